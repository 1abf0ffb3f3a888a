//! Killed at any step, taken over at any step, each line is written once.

use super::*;

on_both_engines! {
    a_projector_killed_at_any_step_leaves_no_gap_and_no_double,
    an_old_projector_that_comes_late_writes_nothing,
    what_an_owner_leaves_is_written_before_it_goes,
    a_projector_at_the_tail_reads_nothing,
}

async fn a_projector_killed_at_any_step_leaves_no_gap_and_no_double(bed: Bed) {
    const ROUNDS: u64 = 60;
    let journal = bed.node().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut owner = Owner::all(&journal, 0, seed).await;
    let mut cut_at = std::collections::BTreeMap::new();
    for round in 0..ROUNDS {
        let ledger = Shaky::new(&journal);
        let (cut, fate) = (round % 12, dice.choice([Fate::HeldBefore, Fate::HeldAfter]).unwrap());
        let (step, note) = (Arc::new(parking_lot::Mutex::new("nothing")), dice.usize(0..3));
        let named = Arc::clone(&step);
        ledger.plan(move |name, call| {
            if call == cut {
                *named.lock() = name;
                return fate;
            }
            Fate::Fine
        });
        let running = start(&mut owner, &ledger, config());
        // Offered while it begins, while it catches up, and when it is live.
        owner.work(dice.usize(0..20)).await;
        if note == 0 {
            owner.snapshot().await;
        }
        owner.work(dice.usize(0..20)).await;
        tokio::select! {
            () = ledger.is_held() => {}
            () = running.reached(owner.seq) => {}
        }
        *cut_at.entry(*step.lock()).or_insert(0) += 1;
        if dice.bool() {
            // In the life of the same owner another comes, as after a panic.
            running.kill().await;
            owner.feed = None;
        } else {
            owner.take_over().await;
            drop(running);
        }
        owner.work(dice.usize(0..4)).await;
    }
    let ledger = Shaky::new(&journal);
    start(&mut owner, &ledger, config()).reached(owner.seq).await;
    println!("cut at {cut_at:?}, {} batches", owner.seq);
    assert!(["claim", "project", "batches"].iter().all(|step| cut_at.contains_key(step)), "{cut_at:?}");
    check(&journal, &owner).await;
}

async fn an_old_projector_that_comes_late_writes_nothing(bed: Bed) {
    let journal = bed.node().await;
    let mut owner = Owner::all(&journal, 0, 1).await;
    let old = Shaky::new(&journal);
    old.plan(|step, call| if step == "project" && call > 4 { Fate::HeldBefore } else { Fate::Fine });
    let before = start(&mut owner, &old, config());
    owner.work(30).await;
    old.is_held().await;
    owner.take_over().await;
    let after = start(&mut owner, &Shaky::new(&journal), config());
    owner.work(10).await;
    after.reached(owner.seq).await;
    old.let_go();
    // It ends by itself, and the owner that is gone is not held up by it.
    tokio::time::timeout(PATIENCE, before.feed.ended()).await.unwrap();
    before.task.await.unwrap();
    owner.work(10).await;
    after.reached(owner.seq).await;
    check(&journal, &owner).await;
}

async fn what_an_owner_leaves_is_written_before_it_goes(bed: Bed) {
    let journal = bed.node().await;
    let mut owner = Owner::all(&journal, 0, 2).await;
    let slow = Config { queue_lines: 10_000, linger: PATIENCE * 10, ..config() };
    let running = start(&mut owner, &Shaky::new(&journal), Config { chunk_lines: 5_000, ..slow });
    running.reached(owner.seq).await;
    owner.work(40).await;
    running.feed.close();
    tokio::time::timeout(PATIENCE, running.feed.ended()).await.unwrap();
    check(&journal, &owner).await;
    running.task.await.unwrap();
}

async fn a_projector_at_the_tail_reads_nothing(bed: Bed) {
    let journal = bed.node().await;
    let mut owner = Owner::all(&journal, 0, 3).await;
    let first = start(&mut owner, &Shaky::new(&journal), config());
    owner.work(20).await;
    first.feed.close();
    first.task.await.unwrap();
    owner.take_over().await;
    let ledger = Shaky::new(&journal);
    ledger.plan(|step, call| {
        assert!(["claim", "project"].contains(&step), "{step}");
        if call == 0 { Fate::HeldBefore } else { Fate::Fine }
    });
    let second = start(&mut owner, &ledger, config());
    // The owner works before the ledger is claimed.
    ledger.is_held().await;
    owner.work(3).await;
    ledger.let_go();
    for _ in 0..20 {
        owner.work(1).await;
        second.reached(owner.seq).await;
    }
    check(&journal, &owner).await;
}
