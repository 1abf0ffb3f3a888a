//! What became of accounts, asked of the router: nothing acknowledged is missing, wherever the account was meanwhile.

use prometheus::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::{Failure, History, Router, WallClock};
use super::fake::Fake;
use super::{START, add, config, create, insist, key, node, settled, start, withdraw};
use crate::billing::domain::{AccountsDigest, EventKind, Refusal, State, bucket_of};
use crate::billing::journal::{Entry, GROUPS, Journal, LineKind};
use crate::billing::{domain, notifier};

fn kinds(entries: &[Entry]) -> Vec<EventKind> {
    let kind = |entry: &Entry| match entry.line.kind {
        LineKind::Event(kind) => kind,
        other => panic!("{other:?}"),
    };
    entries.iter().map(kind).collect()
}

fn key_of(entry: &Entry) -> String {
    entry.line.key.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()).unwrap_or_default()
}

/// All pages, which must be whole.
async fn all_of(router: &Router, account: u64) -> Vec<Entry> {
    let (mut entries, mut before) = (Vec::new(), None);
    loop {
        let History { entries: some, next, behind } = router.history(account, before, 3).await.unwrap();
        assert!(!behind && some.len() <= 3);
        entries.extend(some);
        before = next;
        if before.is_none() {
            return entries;
        }
    }
}

#[tokio::test]
async fn a_history_has_what_was_acknowledged_before_it_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let router = node(directory.path(), 3, WallClock::system(), notifier::Config::default()).await;
    let mut clients = JoinSet::new();
    for account in 0..8u64 {
        let router = router.clone();
        clients.spawn(async move {
            router.operate(account, key("first"), create(10, 0)).await.unwrap();
            for n in 0..12 {
                router.operate(account, key(&format!("{n}")), add(1)).await.unwrap();
                let page = router.history(account, None, 1).await.unwrap();
                assert!(!page.behind && page.next.is_some());
                assert_eq!(key_of(&page.entries[0]), format!("{n}"), "account {account}");
            }
            // Refusals and repetitions leave no line.
            assert!(router.operate(account, key("much"), withdraw(1000)).await.is_err());
            router.operate(account, key("11"), add(1)).await.unwrap();
            let entries = all_of(&router, account).await;
            assert_eq!(entries.len(), 13);
            assert_eq!(key_of(&entries[12]), "first");
        });
    }
    clients.join_all().await;
    let nobody = router.history(100, None, 1).await;
    assert!(matches!(nobody, Err(Failure::Refused(Refusal::UnknownAccount))), "{nobody:?}");
}

#[tokio::test]
async fn a_history_follows_its_account_through_shards_and_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let mut router = node(directory.path(), 3, WallClock::system(), notifier::Config::default()).await;
    let (account, bucket) = (7, bucket_of(7));
    insist(&router, account, "first", create(100, 0)).await.unwrap();
    insist(&router, account, "empty", withdraw(100)).await.unwrap();
    let mut expected = vec!["first".to_owned(), "empty".to_owned(), "empty".to_owned()];
    for round in 0..9 {
        let to = (u32::from(bucket) + round) % 3;
        while router.move_bucket(bucket, to).await.is_err() {
            tokio::task::yield_now().await;
        }
        if round % 4 != 3 {
            insist(&router, account, &format!("{round}"), add(1)).await.unwrap();
            expected.push(format!("{round}"));
        }
        if round == 5 {
            router.crash().await;
            router = node(directory.path(), 3, WallClock::system(), notifier::Config::default()).await;
        }
    }
    let entries = all_of(&router, account).await;
    let found: Vec<String> = entries.iter().rev().map(key_of).collect();
    assert_eq!(found, expected);
    assert_eq!(
        kinds(&entries)[entries.len() - 3..],
        [EventKind::Depleted, EventKind::Withdrawn, EventKind::Created]
    );
    let shards: std::collections::BTreeSet<u32> = entries.iter().map(|entry| entry.shard).collect();
    assert_eq!(shards.len(), 3, "it was everywhere");
}

#[tokio::test(start_paused = true)]
async fn a_history_says_when_the_ledger_is_behind() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let router = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    router.operate(1, key("a"), create(1, 0)).await.unwrap();
    assert!(!router.history(1, None, 9).await.unwrap().behind);
    fake.ledger_away(true);
    router.operate(1, key("b"), add(1)).await.unwrap();
    let page = router.history(1, None, 9).await.unwrap();
    assert_eq!((page.behind, kinds(&page.entries)), (true, vec![EventKind::Created]));
    fake.ledger_away(false);
    let page = loop {
        let page = router.history(1, None, 9).await.unwrap();
        if !page.behind {
            break page;
        }
    };
    assert_eq!(kinds(&page.entries), [EventKind::MoneyAdded, EventKind::Created]);
}

/// What a planned hand-over leaves, the next owner need not derive.
#[tokio::test(start_paused = true)]
async fn an_owner_that_leaves_writes_what_it_has() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let router = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    for n in 0..50 {
        router.operate(n, key("a"), create(1, 0)).await.unwrap();
    }
    router.hand_over(0, "b").await.unwrap();
    let (lines, projected) = fake.ledger(0);
    assert_eq!((lines.len(), projected), (50, fake.archive(0).len() as u64));
    assert_eq!(lines, fake.derived(0));
}

/// Replay = memory = ledger, of the whole node on a real journal.
#[tokio::test(flavor = "multi_thread")]
async fn journal_and_ledger_have_the_same_accounts() {
    let directory = tempfile::tempdir().unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let journal = super::journal(directory.path(), 2).await;
    let settings = super::Config { snapshot_batches: 15, keep_batches: 3, ..config("a", 2) };
    let (none, closing) = (notifier::Config::default(), CancellationToken::new());
    let wall = WallClock::system();
    let registry = Registry::new();
    let router = Router::start(settings, journal.clone(), wall, &registry, none, None, closing.clone());
    let router = router.await.unwrap();
    settled(&router).await;
    let mut clients = JoinSet::new();
    for client in 0..8u64 {
        let (router, mut dice) = (router.clone(), dice.fork());
        clients.spawn(async move {
            for n in 0..60 {
                let operation = match dice.u32(0..4) {
                    0 => create(dice.i64(0..1000), dice.i64(0..1_000_000)),
                    1 => withdraw(dice.i64(1..500)),
                    _ => add(dice.i64(1..500)),
                };
                drop(insist(&router, dice.u64(0..30), &format!("{client}-{n}"), operation).await);
            }
        });
    }
    for _ in 0..12 {
        drop(router.move_bucket(bucket_of(dice.u64(0..30)), dice.u32(0..2)).await);
    }
    clients.join_all().await;
    closing.cancel();
    router.stopped().await;
    drop(router);
    for shard in 0..2 {
        assert_eq!(of_ledger(&journal, shard).await, of_journal(&journal, shard).await, "shard {shard}");
    }
}

async fn of_ledger(journal: &Journal, shard: u32) -> [u8; 32] {
    let mut digest = AccountsDigest::new();
    let mut rows = journal.projected_accounts(shard, 0, GROUPS - 1).await.unwrap();
    rows.sort_by_key(|row| row.id);
    rows.iter().for_each(|row| digest.add(row));
    digest.finish()
}

async fn of_journal(journal: &Journal, shard: u32) -> [u8; 32] {
    let (mut state, mut seq) = (State::new([]), 0);
    if let Some(snapshot) = journal.snapshot(shard).await.unwrap() {
        (state, seq) = (State::decode(&snapshot.payload).unwrap(), snapshot.seq);
    }
    for batch in journal.read(shard, seq, usize::MAX).await.unwrap() {
        state.replay(&domain::Batch::decode(&batch.payload).unwrap());
    }
    state.accounts_digest()
}
