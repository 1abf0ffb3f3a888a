//! A ledger that is slow, away, set back or full of old lines.

use super::*;
use crate::billing::journal::tests::cluster;

on_both_engines! {
    a_ledger_that_is_slow_holds_up_nobody,
    a_ledger_that_is_away_is_caught_up_with,
    who_waits_for_the_ledger_is_not_kept_waiting,
    a_ledger_that_begins_late_begins_with_a_snapshot,
    old_lines_are_forgotten_beside_the_work,
}

async fn a_ledger_that_is_slow_holds_up_nobody(bed: Bed) {
    let journal = bed.node().await;
    let mut owner = Owner::all(&journal, 0, 4).await;
    let ledger = Shaky::new(&journal);
    let running = start(&mut owner, &ledger, config());
    running.reached(owner.seq).await;
    ledger.plan(|step, _| if step == "project" { Fate::HeldBefore } else { Fate::Fine });
    // Far beyond the queue, and nobody lets the ledger go meanwhile.
    owner.work(120).await;
    assert_eq!(running.count("overflows_total"), 1.0);
    assert!(running.count("lag_batches") >= 100.0);
    assert!(!running.feed.reached(owner.seq, Duration::from_millis(1)).await);
    ledger.let_go();
    running.reached(owner.seq).await;
    assert!(running.count("catch_ups_total") >= 1.0);
    assert_eq!(running.count("lag_batches"), 0.0);
    owner.work(5).await;
    running.reached(owner.seq).await;
    check(&journal, &owner).await;
}

async fn a_ledger_that_is_away_is_caught_up_with(bed: Bed) {
    let journal = bed.node().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut owner = Owner::all(&journal, 0, seed).await;
    let ledger = Shaky::new(&journal);
    let mut dice = fastrand::Rng::with_seed(seed);
    ledger.plan(move |_, _| match dice.u32(0..10) {
        0..=1 => Fate::Unavailable,
        2..=3 => Fate::Lost,
        _ => Fate::Fine,
    });
    let running = start(&mut owner, &ledger, config());
    for _ in 0..6 {
        owner.work(20).await;
        owner.snapshot().await;
    }
    running.reached(owner.seq).await;
    assert!(running.count("retries_total") > 0.0);
    check(&journal, &owner).await;
}

async fn who_waits_for_the_ledger_is_not_kept_waiting(bed: Bed) {
    let journal = bed.node().await;
    let mut owner = Owner::all(&journal, 0, 5).await;
    let patient = Config { linger: PATIENCE * 60, chunk_lines: 5_000, queue_lines: 10_000, ..config() };
    let running = start(&mut owner, &Shaky::new(&journal), patient);
    running.reached(owner.seq).await;
    for _ in 0..10 {
        owner.work(3).await;
        running.reached(owner.seq).await;
    }
    check(&journal, &owner).await;
}

/// As when a version that had no ledger wrote the journal, or the ledger is set back on purpose.
async fn a_ledger_that_begins_late_begins_with_a_snapshot(bed: Bed) {
    let journal = bed.node().await;
    let mut owner = Owner::all(&journal, 0, 6).await;
    let running = start(&mut owner, &Shaky::new(&journal), config());
    owner.work(40).await;
    running.reached(owner.seq).await;
    owner.snapshot().await;
    let (seq, at, rows) = (owner.seq, owner.state.last(), owner.state.clone());
    owner.work(20).await;
    running.reached(owner.seq).await;
    let running = match &bed {
        Bed::Postgres { database } => {
            let client = cluster::shared().client(database).await;
            let back = "begin; update ledger_progress set seq = 0 where shard = 0;
                delete from ledger_page where shard = 0; delete from account_page where shard = 0; commit";
            client.batch_execute(back).await.unwrap();
            running
        }
        Bed::Embedded { .. } => {
            running.kill().await;
            owner.feed = None;
            drop(owner.journal);
            drop(journal);
            let (bed, journal) = bed.without_ledger().await;
            owner.journal = journal;
            owner.take_over().await;
            let ledger = Shaky::new(&owner.journal);
            let running = start(&mut owner, &ledger, config());
            return finish(bed, owner, running, seq, at, rows).await;
        }
    };
    finish(bed, owner, running, seq, at, rows).await;
}

async fn finish(
    bed: Bed,
    mut owner: Owner,
    running: Running,
    seq: u64,
    at: Micros,
    carried: crate::billing::domain::State,
) {
    // The first write after it was set back tells.
    owner.work(10).await;
    running.reached(owner.seq).await;
    assert_eq!(running.count("carried_total"), 1.0);
    owner.carried(seq, at, carried.buckets().filter_map(|bucket| carried.accounts_of(bucket)).flatten());
    check(&owner.journal.clone(), &owner).await;
    drop(bed);
}

async fn old_lines_are_forgotten_beside_the_work(bed: Bed) {
    let journal = bed.node().await;
    let mut owner = Owner::all(&journal, 0, 7).await;
    let keep = Duration::from_secs(3600);
    let often = Duration::from_millis(20);
    let forgets = Config { keep: Some(keep), sweep_every: often, base_every: often, ..config() };
    let running = start(&mut owner, &Shaky::new(&journal), forgets);
    owner.work(60).await;
    running.reached(owner.seq).await;
    // Where reports are read, what is forgotten must be in a snapshot.
    owner.snapshot().await;
    let (accounts, last) = (owner.accounts(), owner.seq);
    owner.passes(keep.as_micros() as u64 * 2);
    owner.work(20).await;
    running.reached(owner.seq).await;
    let mut old = 0;
    for account in accounts {
        let mut expected = owner.lines_of(account);
        old += expected.len();
        expected.retain(|line| line.seq > last);
        old -= expected.len();
        expected.reverse();
        let deadline = std::time::Instant::now() + PATIENCE;
        while all_lines(&journal, 0, account).await != expected {
            assert!(
                std::time::Instant::now() < deadline,
                "account {account} still has old lines, or too few"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    println!("{old} lines are old");
    assert!(old > 0 && running.count("forgotten_total") >= old as f64);
    if journal.keeps_bases() {
        assert_eq!(projected_accounts(&journal, 0).await, owner.state.accounts_digest());
    }
}

/// Reports begin with a snapshot, beside the work, after so many lines, and have what came after it.
#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_written_beside_the_work() {
    let journal = Bed::postgres().await.node().await;
    let mut owner = Owner::all(&journal, 0, 8).await;
    let often = Config { base_every: Duration::from_millis(5), ..config() };
    let ledger = Shaky::new(&journal);
    let mut dice = fastrand::Rng::with_seed(9);
    ledger.plan(move |step, _| match (step, dice.u32(0..2)) {
        ("put_base", 0) => Fate::Lost,
        _ => Fate::Fine,
    });
    let running = start(&mut owner, &ledger, often);
    let deadline = std::time::Instant::now() + PATIENCE;
    while running.count("accounts_total") == 0.0 {
        assert!(std::time::Instant::now() < deadline, "{} batches and no base", owner.seq);
        owner.work(50).await;
        owner.snapshot().await;
        running.reached(owner.seq).await;
        check_accounts(&journal, &owner).await;
    }
    owner.work(20).await;
    running.reached(owner.seq).await;
    check(&journal, &owner).await;
}
