//! What was acknowledged is there after a crash, once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::{Failure, Router, WallClock};
use super::fake::Fake;
use super::{START, add, config, create, insist, key, node, settled, start, withdraw};
use crate::billing::domain::{Account, AccountState, Money, Operation, Refusal, Velocity};
use crate::billing::journal::BucketMap;
use crate::billing::notifier;
use crate::clock;

type Told = HashMap<String, (u64, Operation, Result<Account, Refusal>)>;

fn any_operation(dice: &mut fastrand::Rng) -> Operation {
    match dice.u32(0..10) {
        0 => create(dice.i64(0..1_000_000), dice.i64(0..1000)),
        1..=4 => add(dice.i64(0..10_000)),
        5..=8 => withdraw(dice.i64(1..10_000)),
        _ => Operation::UpdateSpendingVelocity { velocity: Velocity::new(dice.i64(-1..1000)) },
    }
}

/// Operates until the router dies, and notes what it was told.
async fn client(router: Router, name: String, seed: u64, told: Arc<Mutex<Told>>) {
    let mut dice = fastrand::Rng::with_seed(seed);
    for n in 0.. {
        let (name, account, operation) = (format!("{name}-{n}"), dice.u64(0..50), any_operation(&mut dice));
        let result = match router.operate(account, key(&name), operation).await {
            Ok(account) => Ok(account),
            Err(Failure::Refused(refusal)) => Err(refusal),
            Err(_) => return,
        };
        told.lock().insert(name, (account, operation, result));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_is_durable_across_crashes() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Told::new()));
    for crash in 0..5 {
        let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
        // Everything that was ever told is told again, word for word.
        let known = told.lock().clone();
        for (name, (account, operation, first)) in known {
            let again = match router.operate(account, key(&name), operation).await {
                Ok(account) => Ok(account),
                Err(Failure::Refused(refusal)) => Err(refusal),
                Err(other) => panic!("{other}"),
            };
            assert_eq!(again, first, "{name} after {crash} crashes");
        }
        let enough = told.lock().len() + 200;
        let mut clients = JoinSet::new();
        for n in 0..16 {
            clients.spawn(client(router.clone(), format!("{crash}-{n}"), dice.u64(..), Arc::clone(&told)));
        }
        while told.lock().len() < enough {
            tokio::task::yield_now().await;
        }
        router.crash().await;
        while clients.join_next().await.is_some() {}
    }
    println!("{} acknowledged, 5 crashes, none lost", told.lock().len());
}

#[tokio::test]
async fn a_key_is_applied_once_and_a_second_body_is_a_conflict() {
    let directory = tempfile::tempdir().unwrap();
    let router = node(directory.path(), 1, WallClock::system(), notifier::Config::default()).await;
    router.operate(7, key("create"), create(100, 0)).await.unwrap();
    let mut same = JoinSet::new();
    for _ in 0..50 {
        let router = router.clone();
        same.spawn(async move { router.operate(7, key("add"), add(5)).await.unwrap().balance });
    }
    assert!(same.join_all().await.iter().all(|balance| *balance == Money::new(105)));
    let conflict = router.operate(7, key("add"), add(6)).await;
    assert!(matches!(conflict, Err(Failure::Refused(Refusal::Conflict))), "{conflict:?}");
    router.crash().await;
    let router = node(directory.path(), 1, WallClock::system(), notifier::Config::default()).await;
    assert_eq!(router.operate(7, key("add"), add(5)).await.unwrap().balance, Money::new(105));
    assert_eq!(router.get(7).await.unwrap().balance, Money::new(105));
    let gone = router.operate(8, key("add"), add(5)).await;
    assert!(matches!(gone, Err(Failure::Refused(Refusal::UnknownAccount))), "{gone:?}");
}

#[tokio::test]
async fn a_listing_is_of_all_own_shards_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let router = node(directory.path(), 3, WallClock::system(), notifier::Config::default()).await;
    for id in (0..50).rev() {
        router.operate(id, key("create"), create(id as i64 + 1, 0)).await.unwrap();
    }
    let ids = |accounts: Vec<Account>| accounts.into_iter().map(|account| account.id).collect::<Vec<_>>();
    assert_eq!(ids(router.list(&[0, 1, 2], None, 5).await.unwrap()), [0, 1, 2, 3, 4]);
    assert_eq!(ids(router.list(&[0, 1, 2], Some(46), 5).await.unwrap()), [47, 48, 49]);
    let cluster = router.cluster().await;
    assert_eq!(cluster.shards.iter().map(|shard| shard.buckets).sum::<u32>(), 1000);
    assert_eq!(cluster.shards.iter().filter_map(|shard| shard.accounts).sum::<u64>(), 50);
    assert!(cluster.shards.iter().all(|shard| shard.writable && shard.node == "a"));
    assert!(router.is_able());
}

#[tokio::test]
async fn closing_ends_in_order_and_nothing_is_taken_after() {
    let directory = tempfile::tempdir().unwrap();
    let journal = super::journal(directory.path(), 2).await;
    let (closing, registry) = (CancellationToken::new(), prometheus::Registry::new());
    let notifier = notifier::Config::default();
    let router = Router::start(
        config("a", 2),
        journal,
        WallClock::system(),
        &registry,
        notifier.clone(),
        None,
        closing.clone(),
    );
    let router = router.await.unwrap();
    settled(&router).await;
    router.operate(1, key("create"), create(1, 0)).await.unwrap();
    closing.cancel();
    router.stopped().await;
    assert!(!router.is_able());
    let late = router.operate(1, key("late"), add(1)).await;
    assert!(matches!(late, Err(Failure::Busy { .. })), "{late:?}");
    drop(router);
    let router = node(directory.path(), 2, WallClock::system(), notifier).await;
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(1));
}

/// The journal does not answer: who is beyond the queue is told at once, who waits in it after a while, and who is in the
/// batch gets the answer when it comes.
#[tokio::test(start_paused = true)]
async fn a_full_queue_is_busy() {
    let fake = Fake::new(1);
    let settings = super::Config { queue: 4, ..config("a", 1) };
    let router = start(settings, &fake, &WallClock::since(START), notifier::Config::default()).await;
    settled(&router).await;
    router.operate(1, key("create"), create(100, 0)).await.unwrap();
    fake.hold(true);
    let ask = |name: &'static str| {
        let router = router.clone();
        async move { router.operate(1, key(name), add(1)).await }
    };
    let first = tokio::spawn(ask("in the batch"));
    fake.held(1).await;
    let mut waiting = JoinSet::new();
    for name in ["q1", "q2", "q3", "q4"] {
        waiting.spawn(ask(name));
    }
    // They are spawned, not polled yet.
    tokio::task::yield_now().await;
    let beyond = ask("beyond").await;
    assert!(matches!(beyond, Err(Failure::Busy { .. })), "{beyond:?}");
    for shed in waiting.join_all().await {
        assert!(matches!(shed, Err(Failure::Busy { .. })), "{shed:?}");
    }
    assert!(!router.is_able(), "nothing can be written");
    fake.hold(false);
    assert_eq!(first.await.unwrap().unwrap().balance, Money::new(101));
    assert!(router.is_able());
    assert_eq!(ask("q1").await.unwrap().balance, Money::new(102), "what was shed was not done");
}

/// New accounts until there is no room for their keys.
async fn fill(router: &Router) {
    for id in 0..100 {
        match router.operate(id, key("create"), create(1, 0)).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(Failure::Busy { .. }) => return,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("a hundred keys were taken");
}

/// Until there is room: how long that took.
async fn room(router: &Router) -> Duration {
    let began = clock::now();
    while let Err(failure) = router.operate(1000, key("create"), create(1, 0)).await {
        assert!(matches!(failure, Failure::Busy { .. }), "{failure:?}");
        assert!(clock::now() - began < Duration::from_secs(60), "there is still no room");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    clock::now() - began
}

fn few_keys() -> super::Config {
    let kept = Duration::from_secs(5);
    super::Config { keys_max: 8, keep_keys: kept, keep_keys_min: kept, ..config("a", 1) }
}

/// While all commands are refused nothing else is written, and keys are forgotten all the same as soon as they may be.
#[tokio::test(start_paused = true)]
async fn there_is_room_for_keys_again_once_old_ones_may_be_forgotten() {
    let fake = Fake::new(1);
    let router = start(few_keys(), &fake, &WallClock::since(START), notifier::Config::default()).await;
    settled(&router).await;
    fill(&router).await;
    let took = room(&router).await;
    assert!(took < Duration::from_secs(7), "{took:?}");
}

/// The clock is behind the journal: keys do not grow older, and there are no more of them than there is room for.
#[tokio::test(start_paused = true)]
async fn keys_are_bounded_while_time_stands_still() {
    let (fake, (wall, hand)) = (Fake::new(1), WallClock::manual(START));
    let router = start(few_keys(), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    fill(&router).await;
    hand.advance(Duration::from_secs(6));
    room(&router).await;
}

/// What is not durable is not shown.
#[tokio::test(start_paused = true)]
async fn a_read_never_sees_what_is_not_durable() {
    let fake = Fake::new(1);
    let router = start(config("a", 1), &fake, &WallClock::since(START), notifier::Config::default()).await;
    settled(&router).await;
    router.operate(1, key("create"), create(100, 0)).await.unwrap();
    fake.hold(true);
    let writer = router.clone();
    let write = tokio::spawn(async move { writer.operate(1, key("add"), add(1)).await });
    fake.held(1).await;
    let mut read = Box::pin(router.get(1));
    assert!(futures::poll!(&mut read).is_pending());
    fake.hold(false);
    write.await.unwrap().unwrap();
    assert_eq!(read.await.unwrap().balance, Money::new(101));
}

#[tokio::test(start_paused = true)]
async fn snapshots_stand_for_what_was_truncated() {
    let fake = Fake::new(1);
    let settings = super::Config { snapshot_batches: 20, keep_batches: 5, ..config("a", 1) };
    let wall = WallClock::since(START);
    let router = start(settings.clone(), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    for n in 0..100 {
        router.operate(n, key("create"), create(n as i64 + 1, 0)).await.unwrap();
    }
    while fake.batches(0) > 50 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(fake.has_snapshot(0));
    router.crash().await;
    let router = start(settings, &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    for n in 0..100 {
        assert_eq!(router.get(n).await.unwrap().balance, Money::new(n as i64 + 1));
        assert_eq!(router.operate(n, key("create"), create(n as i64 + 1, 0)).await.unwrap().id, n);
    }
}

/// A clock that is set back stops time, and never turns it.
#[tokio::test]
async fn time_does_not_go_back() {
    let directory = tempfile::tempdir().unwrap();
    let (wall, hand) = WallClock::manual(START);
    let router = node(directory.path(), 1, wall.clone(), notifier::Config::default()).await;
    router.operate(1, key("create"), create(10_000_000, 1_000_000)).await.unwrap();
    hand.advance(Duration::from_secs(4));
    assert_eq!(router.operate(1, key("add"), add(1)).await.unwrap().balance, Money::new(6_000_001));
    hand.set(START);
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(6_000_001));
    assert_eq!(router.operate(1, key("add 2"), add(1)).await.unwrap().balance, Money::new(6_000_002));
    router.crash().await;
    let router = node(directory.path(), 1, wall, notifier::Config::default()).await;
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(6_000_002));
    hand.advance(Duration::from_secs(5));
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(5_000_002));
}

/// The account's bucket went to another shard: a command that came to the old one waits for the new map.
#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_not_here_is_looked_up_again() {
    let fake = Fake::new(2);
    let router = start(config("a", 2), &fake, &WallClock::since(START), notifier::Config::default()).await;
    settled(&router).await;
    // Nobody moved anything yet: the journal's map is wrong, and then right again.
    let right = BucketMap::spread(2);
    let wrong = BucketMap { version: 2, shards: right.shards.iter().map(|shard| 1 - shard).collect() };
    fake.set_map(wrong);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let lost = router.operate(1, key("create"), create(5, 0)).await;
    assert!(matches!(lost, Err(Failure::Busy { .. })), "{lost:?}");
    fake.set_map(BucketMap { version: 3, ..right });
    let found = router.operate(1, key("create"), create(5, 0)).await.unwrap();
    assert_eq!((found.balance, found.state), (Money::new(5), AccountState::Active));
    assert_eq!(insist(&router, 1, "more", add(1)).await.unwrap().balance, Money::new(6));
}
