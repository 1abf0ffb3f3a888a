//! The ledger, on both engines and in what each alone can suffer.

use crate::billing::domain::AccountsDigest;

use super::cutter::{Cutter, Plan};
use super::*;

macro_rules! on_both_engines {
    ($($name:ident,)*) => {
        mod with_embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bed::embedded().await).await;
            })*
        }
        mod with_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bed::postgres().await).await;
            })*
        }
    };
}

on_both_engines! {
    a_line_is_written_once_and_in_its_order,
    an_owner_whose_time_is_over_writes_no_line,
    a_history_is_paged_from_the_newest_while_lines_come,
    whatever_a_line_holds_comes_back,
    a_history_goes_through_every_shard_that_had_the_account,
    accounts_are_the_newest_lines,
    a_snapshot_is_carried_over_whole,
    nothing_is_truncated_that_the_ledger_still_needs,
    old_pages_are_forgotten_and_accounts_are_not,
    a_history_is_found_among_those_of_many,
    the_ledger_is_there_after_a_restart,
}

async fn append_to(journal: &Journal, shard: u32, last: u64) -> u64 {
    let lease = acquired(journal.acquire(shard, &node("a"), LEASE * 50).await.unwrap());
    for seq in lease.seq + 1..=last {
        journal.append(&batch(shard, seq, lease.epoch)).await.unwrap();
    }
    lease.epoch
}

async fn project(journal: &Journal, stretch: Stretch, lines: Vec<Line>) {
    journal.project(&stretch, &Arc::new(vec![lines])).await.unwrap();
}

fn places(entries: &[Entry]) -> Vec<(u32, u64, u32)> {
    entries.iter().map(|entry| (entry.shard, entry.line.seq, entry.line.position)).collect()
}

/// By id.
async fn accounts_of(journal: &Journal, shard: u32) -> Vec<Row> {
    let mut all = Vec::new();
    // As somebody would who has many.
    for (first, last) in [(0, 0), (1, 900), (901, GROUPS - 1)] {
        all.extend(journal.projected_accounts(shard, first, last).await.unwrap());
    }
    all.sort_by_key(|row| row.id);
    all
}

/// So that old lines may be forgotten where reports are read.
async fn put_base(journal: &Journal, shard: u32, epoch: u64, seq: u64, rows: &[Row]) {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|row| group_of(row.id));
    let base = Base { shard, epoch, seq, first: 0, last: GROUPS - 1 };
    journal.put_base(&base, &rows).await.unwrap();
}

fn sweep(shard: u32, before: Micros) -> Sweep {
    Sweep { shard, before, first: 0, last: GROUPS - 1, pages: 100 }
}

async fn a_line_is_written_once_and_in_its_order(bed: Bed) {
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 9).await;
    assert_eq!(journal.claim(0, epoch).await.unwrap(), 0);
    let lines = [line(4, 1, 0), line(5, 1, 2), line(4, 2, 0), line(4, 2, 1)];
    let first = Arc::new(vec![lines[..2].to_vec(), lines[2..].to_vec()]);
    for _ in 0..3 {
        // As after an answer that was lost.
        journal.project(&stretch(0, epoch, 0, 2), &first).await.unwrap();
    }
    for wrong in [stretch(0, epoch, 0, 3), stretch(0, epoch, 1, 4), stretch(0, epoch, 3, 5)] {
        let refused = journal.project(&wrong, &first).await;
        assert!(
            matches!(refused, Err(Error::OutOfOrder { shard: 0, expected: 3 })),
            "{wrong:?}: {refused:?}"
        );
    }
    project(&journal, stretch(0, epoch, 2, 7), vec![line(4, 5, 6)]).await;
    project(&journal, stretch(0, epoch, 7, 8), vec![]).await;
    assert_eq!(journal.claim(0, epoch).await.unwrap(), 8);
    let four = history_of(&journal, 0, 4, 100).await;
    assert_eq!(places(&four), [(0, 5, 6), (0, 2, 1), (0, 2, 0), (0, 1, 0)]);
    assert_eq!(four[2].line, lines[2]);
    assert_eq!(places(&history_of(&journal, 0, 5, 100).await), [(0, 1, 2)]);
    assert_eq!(history_of(&journal, 0, 6, 100).await, []);
}

async fn an_owner_whose_time_is_over_writes_no_line(bed: Bed) {
    let (old, new) = (bed.node().await, bed.node().await);
    let first = append_to(&old, 0, 5).await;
    let early = old.claim(0, first + 1).await;
    assert!(matches!(early, Err(Error::Fenced { .. })), "{early:?}");
    old.claim(0, first).await.unwrap();
    project(&old, stretch(0, first, 0, 1), vec![line(4, 1, 0)]).await;
    old.release(0, first, None).await.unwrap();
    let second = append_to(&new, 0, 5).await;
    // What is durable may be projected until the next owner's projector comes.
    project(&old, stretch(0, first, 1, 2), vec![line(4, 2, 0)]).await;
    assert_eq!(new.claim(0, second).await.unwrap(), 2);
    for refused in [
        old.project(&stretch(0, first, 2, 3), &Arc::new(vec![vec![line(4, 3, 0)]])).await,
        // Even what is written already.
        old.project(&stretch(0, first, 1, 2), &Arc::default()).await,
        old.carry(&stretch(0, first, 2, 5), std::iter::empty()).await,
        old.claim(0, first).await.map(drop),
    ] {
        assert!(matches!(refused, Err(Error::Fenced { shard: 0, epoch }) if epoch == second), "{refused:?}");
    }
    project(&new, stretch(0, second, 2, 3), vec![line(4, 3, 0)]).await;
    assert_eq!(places(&history_of(&new, 0, 4, 2).await), [(0, 3, 0), (0, 2, 0), (0, 1, 0)]);
}

async fn a_history_is_paged_from_the_newest_while_lines_come(bed: Bed) {
    let journal = bed.node().await;
    let epoch = append_to(&journal, 1, 60).await;
    journal.claim(1, epoch).await.unwrap();
    let of = |account: u64, seq: u64| (0..3).map(move |position| line(account, seq, position));
    let mut at = 0;
    let mut pages = Vec::new();
    let mut before = None;
    // Two more batches before each page, which the pages must not see.
    let first: Vec<Line> = (1..=20).flat_map(|seq| of(8, seq).chain(of(9, seq))).collect();
    project(&journal, stretch(1, epoch, at, 20), first).await;
    at = 20;
    loop {
        let page = journal.history(1, 8, before, 7).await.unwrap();
        assert!(page.whole);
        pages.extend(page.entries);
        let text = page.next.map(|next| next.to_string());
        before = text.map(|text| text.parse().unwrap());
        if before.is_none() {
            break;
        }
        project(&journal, stretch(1, epoch, at, at + 2), of(8, at + 1).chain(of(8, at + 2)).collect()).await;
        at += 2;
    }
    let expected = (1..=20).rev().flat_map(|seq| (0..3).rev().map(move |position| (1, seq, position)));
    assert_eq!(places(&pages), expected.collect::<Vec<_>>());
    assert_eq!(history_of(&journal, 1, 8, 7).await.len() as u64, at * 3);
    let strange: Cursor = "4294967295-18446744073709551615-4294967295".parse().unwrap();
    assert_eq!(journal.history(1, 8, Some(strange), 7).await.unwrap().entries, []);
    // Exactly full pages end without an empty one.
    let all = journal.history(1, 9, None, 60).await.unwrap();
    assert_eq!((all.entries.len(), all.next), (60, None));
}

async fn whatever_a_line_holds_comes_back(bed: Bed) {
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 3).await;
    journal.claim(0, epoch).await.unwrap();
    let stages = [
        Stage::Open { balance: Money::MAX, remainder: 999_999 },
        Stage::Open { balance: Money::ZERO, remainder: 0 },
        Stage::Stopped { velocity: Velocity::MAX },
        Stage::Stopped { velocity: Velocity::ZERO },
        Stage::Delivered { overrun: Money::MAX },
        Stage::Delivered { overrun: Money::ZERO },
    ];
    let kinds = [
        EventKind::Created,
        EventKind::MoneyAdded,
        EventKind::Withdrawn,
        EventKind::VelocityChanged,
        EventKind::Depleted,
        EventKind::Spared,
        EventKind::Delivered,
    ];
    let mut keys: Vec<Option<Key>> =
        vec![None, Key::new(&[0; 64]), Key::new(&[255]), Key::new("é'\\\n".as_bytes())];
    keys.extend((1..64).map(|length| Key::new(&vec![length; usize::from(length)])));
    let mut lines = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        let after = Row {
            // A creation is the first line of its account. These share a group.
            id: u64::MAX - at as u64 * u64::from(GROUPS),
            velocity: [Velocity::MAX, Velocity::ZERO][at % 2],
            version: [1, u32::MAX][at % 2],
            since: [Micros::MAX, Micros::ZERO][at % 2],
            stage: stages[at % stages.len()],
        };
        let (seq, position) = (2, at as u32);
        let kind = LineKind::Event(kinds[at % kinds.len()]);
        let (at, amount, charged) = (after.since, Money::MAX, Money::new(1));
        lines.push(Line { seq, position, kind, at, amount, charged, after, key: *key });
    }
    lines.push(Line::of_row(3, u32::MAX, LineKind::Carried, Micros::new(5), lines[0].after));
    project(&journal, stretch(0, epoch, 0, 3), lines.clone()).await;
    lines.reverse();
    let last = lines.remove(0);
    for line in lines {
        let mut found = history_of(&journal, 0, line.after.id, 10).await;
        if line.after.id == last.after.id {
            assert_eq!(found.remove(0).line, last);
        }
        assert_eq!(found, [Entry { shard: 0, line }]);
    }
}

/// What moving an account leaves behind: its last line in one shard, its first in the next.
fn moves(seq: u64, row: Row) -> [Line; 2] {
    [LineKind::Released, LineKind::Adopted]
        .map(|kind| Line::of_move((seq, 0), kind, Micros::new(seq), row, (535, seq)))
}

async fn a_history_goes_through_every_shard_that_had_the_account(bed: Bed) {
    let journal = bed.node().await;
    let mut epochs = Vec::new();
    for shard in 0..3 {
        epochs.push(append_to(&journal, shard, 50).await);
        journal.claim(shard, epochs[shard as usize]).await.unwrap();
    }
    let put = async |shard: u32, after: u64, through: u64, lines: Vec<Line>| {
        project(&journal, stretch(shard, epochs[shard as usize], after, through), lines).await;
    };
    // Shard 0, then 1, then 0 again, then 2, where nothing happens, then 1 again.
    let told = |seq: u64| line(7, seq, 0);
    let [first_left, first_came] = moves(11, told(10).after);
    put(0, 0, 20, vec![told(1), told(10), first_left, line(8, 11, 2)]).await;
    // The shard it came from is not as far yet.
    let [second_left, second_came] = moves(16, told(15).after);
    let [third_left, third_came] = moves(23, told(22).after);
    let [fourth_left, fourth_came] = moves(25, told(22).after);
    put(1, 0, 17, vec![first_came, told(15)]).await;
    put(0, 20, 24, vec![Line { seq: 21, ..second_came }, told(22)]).await;
    let mut late = journal.history(0, 7, None, 10).await.unwrap();
    assert_eq!((places(&late.entries), late.next, late.whole), (vec![(0, 22, 0)], None, false));
    put(2, 0, 30, vec![Line { seq: 24, ..third_came }]).await;
    put(2, 30, 31, vec![Line { seq: 31, ..fourth_left }]).await;
    put(1, 17, 35, vec![second_left, Line { seq: 30, ..fourth_came }, told(33)]).await;
    put(0, 24, 25, vec![third_left]).await;
    let expected = [(1, 33, 0), (0, 22, 0), (1, 15, 0), (0, 10, 0), (0, 1, 0)];
    for page in [1, 2, 3, 100] {
        assert_eq!(places(&history_of(&journal, 1, 7, page).await), expected, "pages of {page}");
    }
    // Another account arrives before its past does.
    let [left, came] = moves(37, line(9, 36, 0).after);
    put(1, 35, 39, vec![came, line(9, 38, 0)]).await;
    late = journal.history(1, 9, None, 10).await.unwrap();
    assert_eq!((places(&late.entries), late.next, late.whole), (vec![(1, 38, 0)], None, false));
    put(0, 25, 37, vec![line(9, 36, 0), left]).await;
    assert_eq!(places(&history_of(&journal, 1, 9, 10).await), [(1, 38, 0), (0, 36, 0)]);
    // A stopped account changes without a new time, and is what it was before, here and there.
    let stopped = |shard, seq| {
        let stage = Stage::Stopped { velocity: Velocity::MAX };
        let after = Row { stage, ..row(10, 0, 77) };
        (shard, Line { after, ..line(10, seq, 0) })
    };
    let changes = [stopped(0, 38), stopped(1, 41), stopped(0, 41)];
    let [first_left, first_came] = moves(39, changes[0].1.after);
    let [second_left, second_came] = moves(40, changes[1].1.after);
    put(1, 39, 43, vec![first_came, changes[1].1, Line { seq: 43, ..second_left }]).await;
    put(0, 37, 41, vec![changes[0].1, first_left, second_came, changes[2].1]).await;
    let found = history_of(&journal, 0, 10, 1).await;
    assert_eq!(places(&found), [(0, 41, 0), (1, 41, 0), (0, 38, 0)]);
    // And is whole without what was forgotten.
    put_base(&journal, 0, epochs[0], 41, &accounts_of(&journal, 0).await).await;
    assert_eq!(journal.forget_lines(&sweep(0, Micros::MAX)).await.unwrap().lines, 13);
    assert_eq!(places(&history_of(&journal, 1, 9, 10).await), [(1, 38, 0)]);
    // What nobody has lines of, and nobody will have, is not waited for.
    let late = row(11, 5, 90_000);
    put(2, 31, 32, vec![Line::of_row(32, 0, LineKind::Adopted, Micros::ZERO, late)]).await;
    assert!(!journal.history(2, 11, None, 10).await.unwrap().whole);
    // And not what is older than lines that are forgotten.
    put(2, 32, 33, vec![Line::of_row(33, 0, LineKind::Adopted, Micros::ZERO, row(12, 5, 5))]).await;
    assert!(journal.history(2, 12, None, 10).await.unwrap().whole);
    for shard in 0..3 {
        project_nothing(&journal, shard, epochs[shard as usize], 50).await;
    }
    assert!(journal.history(2, 11, None, 10).await.unwrap().whole);
}

async fn accounts_are_the_newest_lines(bed: Bed) {
    let journal = bed.node().await;
    let epoch = append_to(&journal, 2, 30).await;
    journal.claim(2, epoch).await.unwrap();
    let ids = [0, 1, 7, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];
    let mut lines: Vec<Line> =
        (1..=20).flat_map(|seq| ids.map(|id| line(id, seq, (id % 9) as u32))).collect();
    lines.sort_by_key(|line| (line.seq, line.position));
    lines.push(Line::of_row(21, 0, LineKind::Released, Micros::ZERO, line(7, 20, 0).after));
    lines.push(Line::of_row(22, 0, LineKind::Adopted, Micros::ZERO, row(100, 5, 5)));
    project(&journal, stretch(2, epoch, 0, 22), lines).await;
    let newest = |id: u64| line(id, 20, (id % 9) as u32).after;
    let mut expected: Vec<Row> = ids.iter().filter(|id| **id != 7).map(|id| newest(*id)).collect();
    expected.insert(2, row(100, 5, 5));
    let found = accounts_of(&journal, 2).await;
    assert_eq!(found, expected);
    let digest = |rows: &[Row]| {
        let mut digest = AccountsDigest::new();
        rows.iter().for_each(|row| digest.add(row));
        digest.finish()
    };
    assert_eq!(digest(&found), digest(&expected));
    // The same, whatever of it was written as a whole before.
    for seq in [20, 22] {
        let then = if seq == 20 { ids.map(newest).to_vec() } else { expected.clone() };
        put_base(&journal, 2, epoch, seq, &then).await;
        assert_eq!(accounts_of(&journal, 2).await, expected, "beyond a base of {seq}");
    }
    assert_eq!(accounts_of(&journal, 1).await, []);
}

async fn a_snapshot_is_carried_over_whole(bed: Bed) {
    // More than one chunk, and pages that end at the same place.
    const ACCOUNTS: u64 = 100_000;
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 9).await;
    journal.claim(0, epoch).await.unwrap();
    project(&journal, stretch(0, epoch, 0, 2), vec![line(3, 2, 0)]).await;
    let rows = || (0..ACCOUNTS).map(|id| row(id, id as i64, 1));
    for _ in 0..2 {
        let stretch = Stretch { at: Micros::new(77), ..stretch(0, epoch, 2, 8) };
        journal.carry(&stretch, rows()).await.unwrap();
    }
    assert_eq!(journal.claim(0, epoch).await.unwrap(), 8);
    let entries = history_of(&journal, 0, 3, 10).await;
    assert_eq!(places(&entries), [(0, 8, 0), (0, 2, 0)]);
    assert_eq!(entries[0].line, Line::of_row(8, 0, LineKind::Carried, Micros::new(77), row(3, 3, 1)));
    assert!(accounts_of(&journal, 0).await.into_iter().eq(rows()));
    project(&journal, stretch(0, epoch, 8, 9), vec![line(3, 9, 0)]).await;
    assert_eq!(places(&history_of(&journal, 0, 3, 1).await), [(0, 9, 0), (0, 8, 0), (0, 2, 0)]);
}

async fn nothing_is_truncated_that_the_ledger_still_needs(bed: Bed) {
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 50).await;
    let snapshot = |seq| Snapshot { shard: 0, seq, epoch, payload: payload(0, seq) };
    let first_left = async || match journal.read(0, 0, 1).await {
        Ok(batches) => batches[0].seq,
        Err(Error::Truncated { .. }) => {
            let all = futures::future::join_all((0..50).map(|seq| journal.read(0, seq, 1))).await;
            all.into_iter().flatten().next().unwrap()[0].seq
        }
        Err(error) => panic!("{error:?}"),
    };
    journal.put_snapshot(&snapshot(10)).await.unwrap();
    journal.truncate(0, 50).await.unwrap();
    assert_eq!(first_left().await, 1, "the ledger is at the beginning");
    assert_eq!(journal.snapshot_before(0, 9).await.unwrap(), None);
    project_nothing(&journal, 0, epoch, 15).await;
    journal.put_snapshot(&snapshot(20)).await.unwrap();
    journal.put_snapshot(&snapshot(30)).await.unwrap();
    journal.put_snapshot(&snapshot(40)).await.unwrap();
    journal.truncate(0, 50).await.unwrap();
    assert_eq!(first_left().await, 11);
    assert_eq!(journal.snapshot_before(0, 15).await.unwrap(), Some(snapshot(10)));
    assert_eq!(
        journal.snapshot_before(0, 39).await.unwrap(),
        Some(snapshot(10)),
        "those between stand for nothing"
    );
    assert_eq!(journal.snapshot(0).await.unwrap(), Some(snapshot(40)));
    project_nothing(&journal, 0, epoch, 40).await;
    journal.truncate(0, 35).await.unwrap();
    assert_eq!(first_left().await, 36);
    assert_eq!(journal.snapshot_before(0, 39).await.unwrap(), None);
    assert_eq!(journal.snapshot_before(0, 40).await.unwrap(), Some(snapshot(40)));
}

async fn old_pages_are_forgotten_and_accounts_are_not(bed: Bed) {
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 30).await;
    journal.claim(0, epoch).await.unwrap();
    // A page of each write: account 1 has 20, 2 is old as a whole, 3 is young, the last one is beyond signed numbers.
    for seq in 1..=20 {
        let mut lines = vec![line(1, seq, 0)];
        lines.extend([3, 4].contains(&seq).then(|| line(2, seq, 1)));
        lines.extend((seq == 18).then(|| line(3, seq, 1)));
        lines.extend([1, 19].contains(&seq).then(|| line(u64::MAX, seq, 2)));
        project(&journal, stretch(0, epoch, seq - 1, seq), lines).await;
    }
    let before = accounts_of(&journal, 0).await;
    let of = async |account| -> Vec<u64> {
        history_of(&journal, 0, account, 4).await.iter().map(|entry| entry.line.seq).collect()
    };
    let old = Sweep { pages: 10, ..sweep(0, Micros::new(15_000)) };
    if journal.keeps_bases() {
        // Reports would miss an account.
        let swept = journal.forget_lines(&old).await.unwrap();
        assert_eq!(swept, Swept { lines: 0, more: false, held: true });
        // Of the 14 that are old, it stands for 12.
        put_base(
            &journal,
            0,
            epoch,
            12,
            &[line(1, 12, 0).after, line(2, 4, 1).after, line(u64::MAX, 1, 2).after],
        )
        .await;
        assert_eq!(accounts_of(&journal, 0).await, before);
    }
    let mut rounds = Vec::new();
    loop {
        let swept = journal.forget_lines(&old).await.unwrap();
        rounds.push(swept);
        if !swept.more {
            break;
        }
    }
    let told: u64 = rounds.iter().map(|swept| swept.lines).sum();
    assert!(rounds.len() == 2 && rounds[0].more, "{rounds:?}");
    if journal.keeps_bases() {
        assert!(told == 12 + 2 + 1 && rounds[1].held, "{rounds:?}");
        assert_eq!(of(1).await, [20, 19, 18, 17, 16, 15, 14, 13]);
        put_base(&journal, 0, epoch, 20, &before).await;
        assert_eq!(journal.forget_lines(&old).await.unwrap(), Swept { lines: 2, more: false, held: false });
        assert_eq!(accounts_of(&journal, 0).await, before, "also of what has no line any more");
    } else {
        assert!(told == 14 + 2 + 1 && !rounds[1].held, "{rounds:?}");
    }
    assert_eq!(of(1).await, [20, 19, 18, 17, 16, 15]);
    assert_eq!((of(2).await, of(3).await, of(u64::MAX).await), (vec![], vec![18], vec![19]));
    project(&journal, stretch(0, epoch, 20, 21), vec![line(2, 21, 0)]).await;
    assert_eq!(of(2).await, [21]);
}

/// Many accounts of one group, so that a history is looked for among the lines of others, in pages that are full.
async fn a_history_is_found_among_those_of_many(bed: Bed) {
    const ACCOUNTS: u64 = 50;
    const BATCHES: u64 = 60;
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, BATCHES).await;
    journal.claim(0, epoch).await.unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let id = |account: u64| account * u64::from(GROUPS) + 9;
    let mut expected: Vec<Vec<Line>> = vec![Vec::new(); ACCOUNTS as usize];
    let mut after = 0;
    while after < BATCHES {
        let through = (after + dice.u64(1..15)).min(BATCHES);
        let mut offers = Vec::new();
        for seq in after + 1..=through {
            // Some end at the same place, as what moves does.
            let (mut lines, together) = (Vec::new(), dice.bool());
            for at in 0..dice.u64(0..40) {
                let account = if together { at } else { dice.u64(0..ACCOUNTS) };
                let key = Key::new(&vec![b'k'; dice.usize(1..=64)]);
                let line = Line { key, ..line(id(account), seq, if together { 0 } else { at as u32 }) };
                expected[account as usize].push(line);
                lines.push(line);
            }
            offers.push(lines);
        }
        journal.project(&stretch(0, epoch, after, through), &Arc::new(offers)).await.unwrap();
        after = through;
    }
    for (account, mut lines) in (0..).zip(expected) {
        lines.reverse();
        let found = history_of(&journal, 0, id(account), dice.usize(1..9)).await;
        assert!(found.iter().map(|entry| entry.line).eq(lines), "account {account}");
    }
    // The first line of an account is the end, whatever is behind it.
    let created = Line { kind: LineKind::Event(EventKind::Created), ..line(id(70), BATCHES, 1_000) };
    let next = append_to(&journal, 0, BATCHES + 1).await;
    journal.claim(0, next).await.unwrap();
    let lines = vec![created, line(id(70), BATCHES + 1, 0)];
    project(&journal, stretch(0, next, BATCHES, BATCHES + 1), lines).await;
    let history = journal.history(0, id(70), None, 2).await.unwrap();
    assert_eq!((history.entries.len(), history.next, history.whole), (2, None, true));
}

async fn the_ledger_is_there_after_a_restart(bed: Bed) {
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 9).await;
    journal.claim(0, epoch).await.unwrap();
    project(&journal, stretch(0, epoch, 0, 5), (1..=5).map(|seq| line(4, seq, 0)).collect()).await;
    drop(journal);
    let (_bed, journal) = bed.restarted().await;
    let epoch = append_to(&journal, 0, 9).await;
    assert_eq!(journal.claim(0, epoch).await.unwrap(), 5);
    assert_eq!(history_of(&journal, 0, 4, 2).await.len(), 5);
    project(&journal, stretch(0, epoch, 5, 6), vec![line(4, 6, 0)]).await;
}

// ---------------------------------------------------------------------------------------------------------- PostgreSQL

/// Answers to commits, and commits themselves, are lost; each line is there once.
#[tokio::test(flavor = "multi_thread")]
async fn a_projection_whose_answer_was_lost_is_made_once() {
    const ROUNDS: u64 = 60;
    let database = cluster::shared().database().await;
    let cutter = Cutter::marking(cluster::shared().port, "COMMIT").await;
    let open = async |connection: String| {
        let engine = Engine::Postgres { connections: vec![connection], ca_file: None, password_file: None };
        Journal::open(&Config { engine, shards: 1, timeouts: Timeouts::default() }).await.unwrap()
    };
    let cut = format!("host=127.0.0.1 port={} user=forefront dbname={database} sslmode=disable", cutter.port);
    let (journal, other) = (open(cut).await, open(cluster::shared().connection(&database)).await);
    let epoch = append_to(&other, 0, ROUNDS).await;
    other.claim(0, epoch).await.unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut lost = 0;
    for seq in 1..=ROUNDS {
        cutter.plan(dice.choice([Plan::Pass, Plan::LoseRequest, Plan::LoseAnswer, Plan::Hold]).unwrap());
        let lines = Arc::new(vec![vec![line(4, seq, 0), line(5, seq, 2)]]);
        loop {
            match journal.project(&stretch(0, epoch, seq - 1, seq), &lines).await {
                Ok(()) => break,
                Err(Error::Unknown { .. }) => {
                    lost += 1;
                    // The server still has the transaction open, and the row.
                    cutter.let_go().await;
                }
                Err(Error::Unavailable { .. }) => {}
                Err(error) => panic!("{seq}: {error:?}"),
            }
        }
    }
    println!("{ROUNDS} projections, {lost} answers lost");
    assert!(lost > ROUNDS / 3, "{lost}");
    assert_eq!(other.claim(0, epoch).await.unwrap(), ROUNDS);
    for account in [4, 5] {
        let seqs: Vec<u64> =
            history_of(&other, 0, account, 7).await.iter().map(|entry| entry.line.seq).collect();
        assert!(seqs.iter().copied().eq((1..=ROUNDS).rev()), "{seqs:?}");
    }
}

/// As an installation of before the ledger is, and one whose ledger has a row for each line: two nodes come at once, while
/// another serves.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_schema_gets_its_ledger() {
    const ROWS: &str = "
        create table ledger (shard bigint not null, account bigint not null, seq bigint not null,
            position bigint not null, kind bigint not null, at bigint not null, amount bigint not null,
            charged bigint not null, balance bigint not null, velocity bigint not null, version bigint not null,
            since bigint not null, remainder bigint not null, stopped_velocity bigint, overrun bigint, key bytea,
            primary key (shard, account, seq, position));
        create table projected (shard bigint not null primary key, epoch bigint not null, seq bigint not null);
        insert into projected values (0, 1, 5);
        create view billing_ledger as select ledger.shard, ledger.seq, ledger.position, ledger.account, 'x'::text as kind,
            timestamptz 'epoch' as at, 0::numeric(20, 6) as amount, 0::numeric(20, 6) as moved,
            0::numeric(20, 6) as charged, 0::numeric(20, 6) as balance, 0::numeric(20, 6) as velocity_per_second,
            ledger.version, encode(ledger.key, 'escape') as key
            from projected join ledger on ledger.shard = projected.shard;
        create view billing_accounts as select ledger.shard, ledger.account, 'active'::text as state,
            0::numeric(20, 6) as balance, 0::numeric(20, 6) as velocity_per_second, ledger.version,
            timestamptz 'epoch' as since, 0::numeric(20, 6) as balance_now, 0::numeric(20, 6) as overrun from ledger;
        grant select on billing_ledger, billing_accounts to public;";
    for (version, before) in [(1, ""), (2, ROWS)] {
        let bed = Bed::postgres().await;
        let Bed::Postgres { database } = &bed else { unreachable!("it was made so") };
        let journal = bed.node().await;
        let epoch = append_to(&journal, 0, 5).await;
        let client = cluster::shared().client(database).await;
        let back = "drop function billing_history; drop view billing_accounts; drop view billing_ledger;
            drop table ledger_page; drop table account_page; drop table ledger_progress; delete from forefront_schema;";
        let stamp = format!("{back} {before} insert into forefront_schema values ({version}, 1, 0)");
        client.batch_execute(&stamp).await.unwrap();
        let (one, other) = tokio::join!(bed.node(), bed.node());
        append_to(&journal, 0, 6).await;
        let epoch = epoch.max(append_to(&one, 0, 6).await);
        assert_eq!(other.claim(0, epoch).await.unwrap(), 0, "version {version}");
        project(&one, stretch(0, epoch, 0, 5), vec![line(4, 5, 0)]).await;
        assert_eq!(history_of(&other, 0, 4, 1).await.len(), 1);
        let sql = "select (select count(*) from billing_history(4)), to_regclass('ledger') is null
                and to_regclass('projected') is null, has_table_privilege('public', 'billing_ledger', 'select')";
        let row = client.query_one(sql, &[]).await.unwrap();
        let told: (i64, bool, bool) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(told, (1, true, version == 2), "who was let in before is let in");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_read_in_units_of_money_by_whoever_may_only_read() {
    let bed = Bed::postgres().await;
    let Bed::Postgres { database } = &bed else { unreachable!("it was made so") };
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 5).await;
    journal.claim(0, epoch).await.unwrap();
    let spending = Row { velocity: Velocity::new(2_000_000), ..row(42, 1_500_000, 1_000_000) };
    let lines = vec![
        Line { amount: Money::new(2_000_001), ..line(42, 1, 0) },
        Line { after: spending, kind: LineKind::Event(EventKind::Withdrawn), ..line(42, 2, 0) },
        line(7, 3, 0),
        Line::of_row(4, 0, LineKind::Released, Micros::ZERO, row(7, 1, 1)),
    ];
    project(&journal, stretch(0, epoch, 0, 4), lines).await;
    let admin = cluster::shared().client(database).await;
    let reader = format!("reader_of_{database}");
    let role = format!(
        "create role {reader} login; grant select on billing_accounts, billing_ledger to {reader}; set role {reader}"
    );
    admin.batch_execute(&role).await.unwrap();
    let sql =
        "select account, kind, amount::text, moved::text, balance::text, at::text, key from billing_ledger
        where account = 42 order by seq";
    let rows = admin.query(sql, &[]).await.unwrap();
    let told: Vec<(i64, String, String, String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        told,
        [
            (42, text("money_added"), text("2.000001"), text("2.000001"), text("0.000010")),
            (42, text("withdrawn"), text("0.000007"), text("-0.000007"), text("1.500000")),
        ]
    );
    let key: String = rows[0].get(6);
    assert_eq!(key, "1/0");
    let sql = "select account, state, balance::text, velocity_per_second::text, balance_now::text
        from billing_accounts";
    let rows = admin.query(sql, &[]).await.unwrap();
    let told: Vec<(i64, String, String, String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect();
    let expected = (42, text("active"), text("1.500000"), text("2.000000"), text("0.000000"));
    assert_eq!(told, [expected], "the other account went to another shard");
    let sql = "select kind from billing_history(42)";
    let kinds = admin.query(sql, &[]).await.unwrap();
    let kinds: Vec<String> = kinds.iter().map(|row| row.get(0)).collect();
    assert_eq!(kinds, ["withdrawn", "money_added"]);
    let refused = admin.batch_execute("delete from ledger_page").await.unwrap_err();
    assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE));
}

/// What every row of a report has, where every stage is, in lines, in a base, and in both.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_has_every_account_once_with_its_newest() {
    let bed = Bed::postgres().await;
    let Bed::Postgres { database } = &bed else { unreachable!("it was made so") };
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 9).await;
    journal.claim(0, epoch).await.unwrap();
    let stopped = Stage::Stopped { velocity: Velocity::new(3) };
    let delivered = Stage::Delivered { overrun: Money::new(5_000_000) };
    let open = Stage::Open { balance: Money::new(4_000_000), remainder: 7 };
    let rows = [open, stopped, delivered, open].map(|stage| Row { stage, ..row(0, 0, 9) });
    let rows: Vec<Row> = (0..).zip(rows).map(|(id, row)| Row { id: id * 1024, ..row }).collect();
    let told = |at: usize, seq: u64| Line { after: rows[at], ..line(0, seq, at as u32) };
    project(&journal, stretch(0, epoch, 0, 3), vec![told(0, 1), told(1, 2), told(3, 3)]).await;
    let client = cluster::shared().client(database).await;
    let report = async || -> Vec<(i64, String, String, Option<String>)> {
        let sql =
            "select account, state, balance::text, overrun::text from billing_accounts order by account";
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
    };
    let expected = |id: i64, state: &str, balance: &str, overrun: Option<&str>| {
        (id, state.to_owned(), balance.to_owned(), overrun.map(str::to_owned))
    };
    let [first, second, fourth] = [
        expected(0, "active", "4.000000", None),
        expected(1024, "stopped", "0.000000", None),
        expected(3072, "active", "4.000000", None),
    ];
    assert_eq!(report().await, [first.clone(), second.clone(), fourth.clone()]);
    put_base(&journal, 0, epoch, 3, &[rows[0], rows[1], rows[3]]).await;
    assert_eq!(report().await, [first.clone(), second, fourth]);
    // One changes, one comes, one goes.
    let changed = Line { after: Row { id: 1024, ..rows[2] }, ..told(2, 5) };
    let gone = Line { kind: LineKind::Released, ..told(3, 6) };
    project(&journal, stretch(0, epoch, 3, 9), vec![told(2, 4), changed, gone]).await;
    let [changed, third] = [1024, 2048].map(|id| expected(id, "stopped", "0.000000", Some("5.000000")));
    assert_eq!(report().await, [first, changed, third]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_is_the_owners_and_not_beyond_the_ledger() {
    let bed = Bed::postgres().await;
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 9).await;
    journal.claim(0, epoch).await.unwrap();
    project(&journal, stretch(0, epoch, 0, 5), vec![line(4, 5, 0)]).await;
    let base = Base { shard: 0, epoch, seq: 5, first: 0, last: GROUPS - 1 };
    let rows = [row(4, 50, 5000)];
    let early = journal.put_base(&Base { seq: 6, ..base }, &rows).await;
    assert!(matches!(early, Err(Error::OutOfOrder { expected: 6, .. })), "{early:?}");
    for _ in 0..2 {
        journal.put_base(&base, &rows).await.unwrap();
    }
    let late = journal.put_base(&Base { epoch: epoch - 1, ..base }, &rows).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    // Some groups alone, and the others stay; more accounts than a row holds.
    let many: Vec<Row> = (0..500).map(|at| row(at * 1024 + 7, at as i64, 1)).collect();
    journal.put_base(&Base { first: 5, last: 9, ..base }, &many).await.unwrap();
    assert_eq!(accounts_of(&journal, 0).await.len(), 501);
    journal.put_base(&Base { first: 7, last: 7, ..base }, &[]).await.unwrap();
    assert_eq!(accounts_of(&journal, 0).await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_and_a_report_read_no_more_than_their_groups() {
    let bed = Bed::postgres().await;
    let Bed::Postgres { database } = &bed else { unreachable!("it was made so") };
    let journal = bed.node().await;
    let epoch = append_to(&journal, 0, 20).await;
    journal.claim(0, epoch).await.unwrap();
    let lines = (1..=20).flat_map(|seq| (0..3000).map(move |account| line(account, seq, account as u32)));
    project(&journal, stretch(0, epoch, 0, 20), lines.collect()).await;
    let client = cluster::shared().client(database).await;
    client.batch_execute("analyze ledger_page, ledger_progress, account_page").await.unwrap();
    for sql in [
        "select * from billing_ledger where grp = 42 and account = 42 order by seq desc, position desc limit 10",
        "select * from billing_accounts",
    ] {
        let plan = client.query(&format!("explain {sql}"), &[]).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        assert!(
            !plan.iter().any(|step| step.contains("Seq Scan on ledger_page")),
            "{sql}: {}",
            plan.join("\n")
        );
    }
    // A row is one page of the database, and is not kept elsewhere.
    let sql = "select pg_column_size(page.*) <= 8160 and pg_relation_size(reltoastrelid) = 0
        from ledger_page as page, pg_class where relname = 'ledger_page'";
    let rows = client.query(sql, &[]).await.unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|row| row.get(0)));
}

// ------------------------------------------------------------------------------------------------------------ embedded

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_ahead_of_its_journal_is_told() {
    let (older, newer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let time_ms = Arc::new(AtomicU64::new(0));
    for (directory, last) in [(&older, 3), (&newer, 8)] {
        let journal = open_embedded(directory.path(), &time_ms).await.unwrap();
        let epoch = append_to(&journal, 0, last).await;
        project_nothing(&journal, 0, epoch, last).await;
    }
    std::fs::remove_dir_all(older.path().join("pages")).unwrap();
    std::fs::rename(newer.path().join("pages"), older.path().join("pages")).unwrap();
    let journal = open_embedded(older.path(), &time_ms).await.unwrap();
    let epoch = append_to(&journal, 0, 3).await;
    let told = journal.claim(0, epoch).await;
    assert!(matches!(told, Err(Error::Corrupt { shard: 0, seq: 8, .. })), "{told:?}");
}

/// As an installation with a row for each line is: that goes, and what comes after is derived again.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_layout_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let time_ms = Arc::new(AtomicU64::new(0));
    let older = directory.path().join("ledger");
    std::fs::create_dir_all(older.join("keyspaces")).unwrap();
    std::fs::write(older.join("keyspaces/0"), "rows").unwrap();
    let journal = open_embedded(directory.path(), &time_ms).await.unwrap();
    assert!(!older.exists());
    let epoch = append_to(&journal, 0, 3).await;
    assert_eq!(journal.claim(0, epoch).await.unwrap(), 0);
    project(&journal, stretch(0, epoch, 0, 3), vec![line(4, 3, 0)]).await;
    assert_eq!(history_of(&journal, 0, 4, 1).await.len(), 1);
}
