//! Shards that change hands by plan: nobody who asks may notice.

use std::time::Duration;

use tokio::task::JoinSet;

use super::super::{Failure, Router, WallClock};
use super::fake::Fake;
use super::street::Street;
use super::{START, add, config, create, insist, key, settled};
use crate::billing::domain::{Account, Money, Operation, Refusal, bucket_of};
use crate::billing::notifier;
use crate::clock;

const SHARDS: u32 = 2;
const WRITERS: u64 = 8;

/// Two nodes that know each other; the first has every shard.
struct Pair {
    a: Router,
    b: Router,
    fake: Fake,
    street: Street,
    wall: WallClock,
}

impl Pair {
    async fn new() -> Pair {
        let (fake, street, wall) = (Fake::new(SHARDS), Street::new(), WallClock::since(START));
        let none = notifier::Config::default;
        let a = street.start(config("a", SHARDS), &fake, &wall, none()).await;
        settled(&a).await;
        let b = street.start(config("b", SHARDS), &fake.another(), &wall, none()).await;
        settled(&b).await;
        for id in 0..WRITERS {
            insist(&a, id, "create", create(0, 0)).await.unwrap();
        }
        Pair { a, b, fake, street, wall }
    }

    /// As a door does: forwarded once, and once more if neither knew better.
    async fn ask(
        a: &Router,
        b: &Router,
        id: u64,
        name: &str,
        operation: Operation,
    ) -> Result<Account, Failure> {
        for _ in 0..2 {
            match a.operate(id, key(name), operation).await {
                Err(Failure::Elsewhere { .. }) => {}
                told => return told,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            match b.operate(id, key(name), operation).await {
                Err(Failure::Elsewhere { .. }) => {}
                told => return told,
            }
        }
        Err(Failure::Elsewhere { node: "neither".to_owned(), advertise: String::new() })
    }

    /// Asks for as long as `until` takes, and for every answer once; gives the longest wait for one.
    async fn nobody_notices(&self, round: &str, until: impl Future<Output = ()>) -> Duration {
        let mut writers = JoinSet::new();
        for id in 0..WRITERS {
            let (a, b, round) = (self.a.clone(), self.b.clone(), round.to_owned());
            writers.spawn(async move {
                let mut longest = Duration::ZERO;
                for n in 0..500 {
                    let began = clock::now();
                    let told = Pair::ask(&a, &b, id, &format!("{round}{n}"), add(1)).await;
                    assert!(told.is_ok(), "{round}{n}: {told:?}");
                    longest = longest.max(clock::now() - began);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                longest
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        until.await;
        let longest = writers.join_all().await.into_iter().max().unwrap();
        println!("{round}: the longest wait was {longest:?}");
        longest
    }

    async fn balances_are(&self, balance: i64) {
        for id in 0..WRITERS {
            let told = Pair::ask(&self.b, &self.a, id, "last", add(1)).await.unwrap();
            assert_eq!(told.balance, Money::new(balance + 1), "account {id}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_notices_that_shards_are_handed_over() {
    let pair = Pair::new().await;
    let all = |from: Router, to: &'static str| async move {
        for shard in 0..SHARDS {
            from.hand_over(shard, to).await.unwrap();
        }
        settled(&from).await;
    };
    // The second node has none yet, so it is not told, and finds out by itself.
    pair.nobody_notices("there", all(pair.a.clone(), "b")).await;
    let longest = pair.nobody_notices("back", all(pair.b.clone(), "a")).await;
    assert!(longest <= Duration::from_millis(100), "{longest:?}: who is told takes it at once");
    pair.balances_are(1000).await;
}

/// As at SIGTERM, when the other node has none.
#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_everything_forwards_until_it_is_taken() {
    let pair = Pair::new().await;
    let leaves = async {
        pair.a.rest();
        for shard in 0..SHARDS {
            pair.a.vacate(shard).await.unwrap();
        }
        settled(&pair.a).await;
    };
    pair.nobody_notices("left", leaves).await;
    let cluster = pair.a.cluster().await;
    assert!(cluster.shards.iter().all(|shard| shard.node == "b"), "{cluster:?}");
    pair.balances_are(500).await;
}

/// An owner that has too much to do would only be asked twice.
#[tokio::test(start_paused = true)]
async fn who_was_told_busy_asks_again_only_if_the_shard_is_leaving() {
    let pair = Pair::new().await;
    let posted = |failure| pair.a.posted(1, Some(&add(1)), Err(failure));
    let busy = || Failure::Busy { retry_after: Duration::ZERO };
    assert!(matches!(posted(busy()), Some(Err(Failure::Busy { .. }))));
    assert!(posted(Failure::Refused(Refusal::Elsewhere)).is_none());
    pair.a.hand_over(u32::from(bucket_of(1)) % SHARDS, "b").await.unwrap();
    assert!(posted(busy()).is_none());
    settled(&pair.a).await;
    assert!(posted(busy()).is_none());
}

#[tokio::test(start_paused = true)]
async fn whose_shards_are_is_known_without_asking_every_server() {
    let pair = Pair::new().await;
    pair.fake.servers_hang(true);
    let began = clock::now();
    let owners = pair.a.owners().await;
    assert!(clock::now() - began < Duration::from_secs(1));
    assert!(owners.shards.iter().all(|shard| shard.node == owners.node), "{owners:?}");
    let cluster = pair.a.cluster().await;
    assert_eq!((cluster.shards.len(), cluster.replica_sets.len()), (SHARDS as usize, 0));
}

/// What nobody takes is not waited for again and again.
#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_moment_only() {
    let pair = Pair::new().await;
    for shard in 0..SHARDS {
        pair.a.hand_over(shard, "nobody").await.unwrap();
    }
    for (router, at_most) in [(&pair.a, 1000), (&pair.b, 1000), (&pair.a, 0), (&pair.b, 0)] {
        let began = clock::now();
        let told = router.operate(1, key("add"), add(1)).await;
        assert!(matches!(told, Err(Failure::Busy { .. })), "{told:?}");
        assert!(clock::now() - began <= Duration::from_millis(at_most));
    }
    settled(&pair.a).await;
    settled(&pair.b).await;
    let told = Pair::ask(&pair.a, &pair.b, 1, "add", add(1)).await.unwrap();
    assert_eq!(told.balance, Money::new(1));
}

/// A shard that is asked for and is another node's is not left out of a listing.
#[tokio::test(start_paused = true)]
async fn a_listing_is_of_the_shards_that_are_asked_for() {
    let Pair { a, b, .. } = Pair::new().await;
    assert_eq!(a.list(&[0, 1], None, 100).await.unwrap().len() as u64, WRITERS);
    for shards in [&[0, 1][..], &[1], &[9]] {
        assert!(b.list(shards, None, 100).await.is_err(), "{shards:?} are not its own");
    }
    a.hand_over(0, "b").await.unwrap();
    let mine = loop {
        match b.list(&[0], None, 100).await {
            Ok(accounts) => break accounts,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let theirs = a.list(&[1], None, 100).await.unwrap();
    assert_eq!((mine.len() + theirs.len()) as u64, WRITERS);
    assert!(a.list(&[0, 1], None, 100).await.is_err(), "one of them is gone");
}

/// A third node hears of a hand-over as late as it polls. Told by the old owner that it is wrong, it knows better at once.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_wrong_looks_who_has_the_shard() {
    let Pair { a, b: _, fake, street, wall } = Pair::new().await;
    let settings = super::Config { poll: Duration::from_secs(3), ..config("c", SHARDS) };
    let c = street.start(settings, &fake.another(), &wall, notifier::Config::default()).await;
    settled(&c).await;
    let bucket = bucket_of(1);
    let shard = u32::from(bucket % 2);
    a.hand_over(shard, "b").await.unwrap();
    while fake.owner(shard).0 != "b" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let node = async || match c.get(1).await {
        Err(Failure::Elsewhere { node, .. }) => node,
        other => panic!("{other:?}"),
    };
    assert_eq!(node().await, "a", "as it heard last");
    let began = clock::now();
    c.look_again(&[bucket], "a:8200").await;
    assert_eq!(node().await, "b");
    assert!(clock::now() - began < Duration::from_millis(500), "it did not wait for its poll");
}
