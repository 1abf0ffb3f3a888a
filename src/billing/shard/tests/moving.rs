//! Buckets move between shards, under load and whatever breaks on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::map::Map;
use super::super::seat::Errand;
use super::super::{Failure, Router, Unmovable, WallClock};
use super::fake::{Fake, Moment, When};
use super::street::Street;
use super::{PATIENCE, START, add, config, create, insist, key, node, settled, start, withdraw};
use crate::billing::domain::{Account, BUCKETS, Command, Money, State, bucket_of};
use crate::billing::notifier;
use crate::billing::notifier::receiver::{Manner, Receiver};
use crate::resilience::backoff::Backoff;

const OK: Manner = Manner::Answer(200);

fn to(receiver: &Receiver) -> notifier::Config {
    notifier::Config {
        webhook: Some(receiver.webhook.clone()),
        timeout: Duration::from_millis(300),
        retry: Backoff { min: Duration::from_millis(5), max: Duration::from_millis(20) },
        ..notifier::Config::default()
    }
}

/// Asks any of these until somebody did it.
async fn moved(routers: &[&Router], bucket: u16, to: u32) {
    let asked = async {
        for router in routers.iter().cycle() {
            match router.move_bucket(bucket, to).await {
                Ok(()) => return,
                Err(Failure::Busy { .. } | Failure::Unknown | Failure::Elsewhere { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("it never arrived");
}

/// As a client who asks any node with the same key.
async fn insist_on(routers: &[&Router], account: u64, name: &str) -> Account {
    let asked = async {
        for router in routers.iter().cycle() {
            match router.operate(account, key(name), add(1)).await {
                Ok(account) => return account,
                Err(Failure::Refused(refusal)) => panic!("{refusal}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        unreachable!("there is always one more")
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("no answer")
}

async fn buckets(router: &Router) -> Vec<u32> {
    router.cluster().await.shards.iter().map(|shard| shard.buckets).collect()
}

#[tokio::test]
async fn a_bucket_goes_to_and_fro_with_all_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    router.operate(1, key("create"), create(100, 0)).await.unwrap();
    let bucket = bucket_of(1);
    let home = u32::from(bucket % 2);
    for round in 0..6 {
        let to = (home + 1 + round) % 2;
        router.move_bucket(bucket, to).await.unwrap();
        router.move_bucket(bucket, to).await.unwrap();
        // The first answer of the first key is told wherever it is.
        assert_eq!(insist(&router, 1, "create", create(100, 0)).await.unwrap().balance, Money::new(100));
        let balance = insist(&router, 1, &format!("{round}"), add(1)).await.unwrap().balance;
        assert_eq!(balance, Money::new(101 + i64::from(round)));
        let accounts = |cluster: super::super::Cluster| -> Vec<u64> {
            cluster.shards.iter().filter_map(|shard| shard.accounts).collect()
        };
        assert_eq!(accounts(router.cluster().await)[to as usize], 1);
    }
    router.move_bucket(bucket, 1 - home).await.unwrap();
    assert_eq!(buckets(&router).await[home as usize], 499);
    router.crash().await;
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(106));
    assert_eq!(buckets(&router).await[home as usize], 499);
    for (bucket, to, why) in [
        (BUCKETS, 0, Unmovable::NoSuchBucket),
        (0, 2, Unmovable::NoSuchShard),
        (u16::MAX, 9, Unmovable::NoSuchBucket),
    ] {
        let refused = router.move_bucket(bucket, to).await;
        assert!(matches!(refused, Err(Failure::Unmovable(told)) if told == why), "{refused:?}");
    }
}

/// A shard that was added later begins without a bucket and takes what is moved to it.
#[tokio::test]
async fn a_shard_is_added() {
    let directory = tempfile::tempdir().unwrap();
    let router = node(directory.path(), 1, WallClock::system(), notifier::Config::default()).await;
    for id in 0..50 {
        router.operate(id, key("create"), create(id as i64 + 1, 0)).await.unwrap();
    }
    router.crash().await;
    for _ in 0..2 {
        // The second time it is still without a batch of its own.
        let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
        assert_eq!(buckets(&router).await, [1000, 0]);
        router.crash().await;
    }
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    for bucket in (0..50).map(bucket_of) {
        moved(&[&router], bucket, 1).await;
    }
    router.crash().await;
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    let spread = buckets(&router).await;
    assert!(spread[1] > 40 && spread.iter().sum::<u32>() == 1000, "{spread:?}");
    for id in 0..50 {
        assert_eq!(router.get(id).await.unwrap().balance, Money::new(id as i64 + 1));
        let again = router.operate(id, key("create"), create(id as i64 + 1, 0)).await.unwrap();
        assert_eq!(again.balance, Money::new(id as i64 + 1));
    }
    assert_eq!(router.list(&[0, 1], None, 100).await.unwrap().len(), 50);
}

/// Requests for a bucket on its way wait for it; if that takes too long they are told to come again, and nothing was done.
#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_bucket_on_its_way() {
    let (fake, street, wall) = (Fake::new(2), Street::new(), WallClock::since(START));
    let router = street.start(config("a", 2), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    router.operate(1, key("create"), create(100, 0)).await.unwrap();
    let bucket = bucket_of(1);
    let other = 1 - u32::from(bucket % 2);
    for (held, waits) in [(Duration::from_millis(1500), true), (Duration::from_secs(4), false)] {
        let to = if waits { other } else { 1 - other };
        fake.set_trap(Some((Moment::Adopt, When::Before)));
        let mover = router.clone();
        let moving = tokio::spawn(async move { mover.move_bucket(bucket, to).await });
        while !fake.is_trapped() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let name = format!("{waits}");
        let asking = tokio::spawn({
            let (router, name) = (router.clone(), name.clone());
            async move { router.operate(1, key(&name), add(1)).await }
        });
        // The owner of the other shard hangs in its append until its lease is over, or is let go before.
        tokio::time::sleep(held).await;
        fake.set_trap(None);
        let answer = asking.await.unwrap();
        match waits {
            true => assert_eq!(answer.unwrap().balance, Money::new(101)),
            false => assert!(matches!(answer, Err(Failure::Busy { .. })), "{answer:?}"),
        }
        let moved_once = moving.await.unwrap();
        assert!(matches!(moved_once, Ok(()) | Err(Failure::Unknown)), "{moved_once:?}");
        moved(&[&router], bucket, to).await;
        insist(&router, 1, &name, add(1)).await.unwrap();
    }
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(102));
}

/// A bucket has arrived and its map is not set yet: it must not leave again, whoever asks by an older map.
#[tokio::test(start_paused = true)]
async fn a_move_is_over_before_the_next_one_begins() {
    let (fake, wall) = (Fake::new(2), WallClock::since(START));
    let router = start(config("a", 2), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    router.operate(1, key("create"), create(100, 0)).await.unwrap();
    let bucket = bucket_of(1);
    let (home, other) = (u32::from(bucket % 2), 1 - u32::from(bucket % 2));
    fake.set_trap(Some((Moment::Map, When::Before)));
    let mover = router.clone();
    let moving = tokio::spawn(async move { mover.move_bucket(bucket, other).await });
    while !fake.is_trapped() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let back = |reply| Errand::Move { bucket, to: home, reply };
    let refused = router.0.seats[other as usize].have_done(PATIENCE, back).await;
    assert!(matches!(refused, Err(Failure::Busy { .. })), "{refused:?}");
    fake.set_trap(None);
    moving.await.unwrap().unwrap();
    moved(&[&router], bucket, home).await;
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(100));
}

/// Whoever was stopped between reading the map and setting it undoes nothing that came meanwhile, though it looks the same;
/// and whoever may not set it does not say that it is done.
#[tokio::test(start_paused = true)]
async fn an_old_hand_does_not_set_the_map() {
    let fake = Fake::new(2);
    let link = fake.another();
    let (map, may) = (Arc::new(Map::new(fake.map())), Arc::new(AtomicBool::new(true)));
    link.set_trap(Some((Moment::Map, When::Before)));
    let setting = tokio::spawn({
        let (map, link, may) = (Arc::clone(&map), link.clone(), Arc::clone(&may));
        async move { map.set(&link, 0, 0, 1, || may.load(Relaxed)).await }
    });
    while !link.is_trapped() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Somebody else does it, and the bucket comes back.
    let fresh = Map::new(fake.map());
    fresh.set(&fake, 0, 0, 1, || true).await;
    fresh.set(&fake, 0, 1, 0, || true).await;
    let version = fake.map().version;
    may.store(false, Relaxed);
    link.set_trap(None);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((fake.map().version, fake.map().shards[0]), (version, 0));
    assert!(!setting.is_finished());
    // Its lease lasts after all.
    may.store(true, Relaxed);
    setting.await.unwrap();
    assert_eq!((fake.map().version, fake.map().shards[0]), (version + 1, 1));
    map.set(&link, 0, 0, 1, || panic!("it is done")).await;
}

/// A listing leaves no account out because its bucket is on its way.
#[tokio::test(start_paused = true)]
async fn a_listing_is_whole_or_refused() {
    let (fake, wall) = (Fake::new(2), WallClock::since(START));
    let router = start(config("a", 2), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    router.operate(1, key("create"), create(100, 0)).await.unwrap();
    let bucket = bucket_of(1);
    let before = router.map_version().await.unwrap();
    fake.set_trap(Some((Moment::Map, When::Before)));
    let mover = router.clone();
    let moving = tokio::spawn(async move { mover.move_bucket(bucket, 1 - u32::from(bucket % 2)).await });
    while !fake.is_trapped() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let listed = router.list(&[0, 1], None, 9).await;
    assert!(matches!(listed, Err(Failure::Busy { .. })), "{listed:?}");
    fake.set_trap(None);
    moving.await.unwrap().unwrap();
    assert!(router.map_version().await.unwrap() > before, "whoever lists over several nodes sees it");
    while router.list(&[0, 1], None, 9).await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(router.list(&[0, 1], None, 9).await.unwrap().len(), 1);
}

/// At each step, before it is durable and after, the node that is at it dies.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_loses_nothing() {
    let mut crashes = 0;
    for moment in [Moment::Release, Moment::Adopt, Moment::Map, Moment::Sent] {
        for when in [When::Before, When::After] {
            for comes_back in [false, true] {
                crash_at(moment, when, comes_back).await;
                crashes += 1;
            }
        }
    }
    println!("{crashes} crashes, nothing was lost");
}

async fn crash_at(moment: Moment, when: When, comes_back: bool) {
    let what = format!("{when:?} {moment:?}, comes back: {comes_back}");
    let (fake, street, wall) = (Fake::new(2), Street::new(), WallClock::since(START));
    let links = [fake.another(), fake.another()];
    let none = notifier::Config::default;
    let a = street.start(config("a", 2), &links[0], &wall, none()).await;
    settled(&a).await;
    let b = street.start(config("b", 2), &links[1], &wall, none()).await;
    settled(&b).await;
    let bucket = bucket_of(1);
    let (from, to) = (u32::from(bucket % 2), 1 - u32::from(bucket % 2));
    a.hand_over(to, "b").await.unwrap();
    settled(&a).await;
    settled(&b).await;
    insist(&a, 1, "create", create(100, 1)).await.unwrap();
    insist(&a, 1, "paid", withdraw(30)).await.unwrap();
    links.iter().for_each(|link| link.set_trap(Some((moment, when))));
    let mover = a.clone();
    let moving = tokio::spawn(async move { drop(mover.move_bucket(bucket, to).await) });
    while !links.iter().any(Fake::is_trapped) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let dead = links.iter().position(Fake::is_trapped).unwrap();
    let expected = usize::from(moment == Moment::Adopt);
    assert_eq!(dead, expected, "{what}: a has the shard it leaves, b the one it goes to");
    let mut nodes = [Some(a), Some(b)];
    street.closed(["a", "b"][dead]);
    nodes[dead].take().unwrap().crash().await;
    moving.abort();
    links.iter().for_each(|link| link.set_trap(None));
    if comes_back {
        let config = config(["a", "b"][dead], 2);
        nodes[dead] = Some(street.start(config, &links[dead], &wall, none()).await);
    }
    let routers: Vec<&Router> = nodes.iter().flatten().collect();
    // Whether it had left or not, asking again brings it there; and what has left arrives also if nobody asks.
    if moment != Moment::Release || when == When::After {
        let arrived = async {
            while fake.replay(to).accounts_of(bucket).is_none() || fake.replay(from).outgoing().count() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.unwrap_or_else(|_| panic!("{what}: it never arrived"));
    }
    moved(&routers, bucket, to).await;
    assert_eq!(fake.map().shards[usize::from(bucket)], to, "{what}");
    assert!(fake.replay(from).accounts_of(bucket).is_none(), "{what}");
    let asked = async {
        for router in routers.iter().cycle() {
            match router.operate(1, key("paid"), withdraw(30)).await {
                Ok(account) => return account,
                Err(Failure::Refused(refusal)) => panic!("{what}: {refusal}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        unreachable!("there is always one more")
    };
    let account = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{what}: no answer"));
    assert_eq!(account.balance, Money::new(70), "{what}: the first answer again");
    for router in nodes.into_iter().flatten() {
        router.crash().await;
    }
}

/// Money ends while its bucket is on its way: the order leaves from where it arrives.
#[tokio::test]
async fn a_depletion_in_the_middle_of_a_move_is_delivered() {
    let (fake, receiver) = (Fake::new(2), Receiver::start(OK).await);
    let (wall, hand) = WallClock::manual(START);
    let router = start(config("a", 2), &fake, &wall, to(&receiver)).await;
    settled(&router).await;
    router.operate(1, key("create"), create(2_000_000, 1_000_000)).await.unwrap();
    let bucket = bucket_of(1);
    let target = 1 - u32::from(bucket % 2);
    fake.set_trap(Some((Moment::Adopt, When::Before)));
    let mover = router.clone();
    let moving = tokio::spawn(async move { mover.move_bucket(bucket, target).await });
    while !fake.is_trapped() {
        tokio::task::yield_now().await;
    }
    hand.advance(Duration::from_secs(3));
    assert!(receiver.heard().is_empty());
    fake.set_trap(None);
    let heard = receiver.wait_for(|heard| !heard.is_empty()).await;
    assert_eq!((heard[0].target.as_str(), heard[0].key.as_str()), ("/off?userID=1", "1-1"));
    moving.await.unwrap().unwrap();
    let account = loop {
        let account = router.get(1).await.unwrap();
        if account.overrun.is_some() {
            break account;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(account.overrun, Some(Money::new(1_000_000)), "from the exact instant, which was under way");
    assert_eq!(receiver.heard().len(), 1);
}

/// An order that nobody takes goes along with its bucket, and is tried from one place only.
#[tokio::test]
async fn orders_that_wait_go_along() {
    let (fake, receiver) = (Fake::new(2), Receiver::start(Manner::Answer(500)).await);
    let router = start(config("a", 2), &fake, &WallClock::system(), to(&receiver)).await;
    settled(&router).await;
    router.operate(1, key("create"), create(10, 0)).await.unwrap();
    router.operate(1, key("all"), withdraw(10)).await.unwrap();
    receiver.wait_for(|heard| heard.len() > 2).await;
    let bucket = bucket_of(1);
    let home = u32::from(bucket % 2);
    router.move_bucket(bucket, 1 - home).await.unwrap();
    let before = receiver.heard().len();
    receiver.wait_for(|heard| heard.len() > before + 2).await;
    receiver.set(OK);
    while router.get(1).await.unwrap().overrun.is_none() {
        tokio::task::yield_now().await;
    }
    let delivered = receiver.heard().into_iter().filter(|heard| heard.manner == OK).count();
    assert_eq!(delivered, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_or_out_of_reach_stays() {
    let (fake, wall) = (Fake::new(2), WallClock::since(START));
    let settings = super::Config { image_bytes_max: 400, ..config("a", 2) };
    let a = start(settings, &fake, &wall, notifier::Config::default()).await;
    settled(&a).await;
    let bucket = bucket_of(1);
    let (home, other) = (u32::from(bucket % 2), 1 - u32::from(bucket % 2));
    a.operate(1, key("create"), create(100, 0)).await.unwrap();
    moved(&[&a], bucket, other).await;
    for n in 0..5 {
        insist(&a, 1, &format!("{n}"), add(1)).await.unwrap();
    }
    let refused = a.move_bucket(bucket, home).await;
    assert!(
        matches!(refused, Err(Failure::Unmovable(Unmovable::TooLarge { bytes })) if bytes > 400),
        "{refused:?}"
    );
    assert_eq!(a.get(1).await.unwrap().balance, Money::new(105));
    // To a shard of a node that this one has no way to.
    let b = start(config("b", 2), &fake.another(), &wall, notifier::Config::default()).await;
    settled(&b).await;
    a.hand_over(home, "b").await.unwrap();
    settled(&a).await;
    let empty =
        (0..BUCKETS).find(|bucket| u32::from(bucket % 2) == other && *bucket != bucket_of(1)).unwrap();
    let refused = a.move_bucket(empty, home).await;
    assert!(matches!(refused, Err(Failure::Unmovable(Unmovable::NoWay))), "{refused:?}");
    assert_eq!(fake.replay(other).outgoing().count(), 0, "it did not leave");
    assert!(matches!(b.move_bucket(empty, home).await, Err(Failure::Elsewhere { node, .. }) if node == "a"));
}

/// An image that is none, or of a bucket that is here, is refused and changes nothing.
#[tokio::test(start_paused = true)]
async fn a_false_image_is_refused() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let router = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    let batches = fake.batches(0);
    let of_here = State::empty_image(3);
    for image in [&b""[..], b"ffbb", b"no image at all", &of_here] {
        let refused = router.adopt(0, 9, bytes::Bytes::copy_from_slice(image)).await;
        assert!(matches!(refused, Err(Failure::Refused(_))), "{refused:?}");
    }
    assert_eq!(fake.batches(0), batches);
    router.adopt(0, 1, of_here.into()).await.unwrap();
    assert_eq!(fake.batches(0), batches, "what came before is told so, and is not written again");
}

/// A batch of some megabytes, on a real disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_bucket_moves() {
    const KEYS: i64 = 40_000;
    let directory = tempfile::tempdir().unwrap();
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    router.operate(1, key("create"), create(1, 0)).await.unwrap();
    for part in 0..KEYS / 2000 {
        let adding = (0..2000).map(|n| {
            let router = router.clone();
            async move { router.operate(1, key(&format!("{part}-{n}")), add(1)).await.unwrap() }
        });
        futures::future::join_all(adding).await;
    }
    let bucket = bucket_of(1);
    let to = 1 - u32::from(bucket % 2);
    moved(&[&router], bucket, to).await;
    assert_eq!(insist(&router, 1, "create", create(1, 0)).await.unwrap().balance, Money::new(1));
    router.crash().await;
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(1 + KEYS));
}

/// Clients add to their accounts while all of their buckets go to and fro, on the journal of a disk: every answer is one step
/// more than the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_over_moving_buckets_loses_and_doubles_nothing() {
    const ACCOUNTS: u64 = 8;
    let directory = tempfile::tempdir().unwrap();
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    for id in 0..ACCOUNTS {
        router.operate(id, key("create"), create(1000, 0)).await.unwrap();
    }
    let (ends, moves) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut movers = JoinSet::new();
    for id in 0..ACCOUNTS {
        let (router, ends, moves) = (router.clone(), Arc::clone(&ends), Arc::clone(&moves));
        movers.spawn(async move {
            for to in (id as u32..).map(|n| n % 2) {
                moved(&[&router], bucket_of(id), to).await;
                moves.fetch_add(1, Relaxed);
                if ends.load(Relaxed) {
                    return;
                }
            }
        });
    }
    let mut clients = JoinSet::new();
    for id in 0..ACCOUNTS {
        let (router, moves) = (router.clone(), Arc::clone(&moves));
        clients.spawn(async move {
            let mut n = 0;
            // Long enough for every bucket to move many times.
            while n < 300 || moves.load(Relaxed) < 20 * ACCOUNTS {
                n += 1;
                let account = insist_on(&[&router], id, &format!("{n}")).await;
                assert_eq!(account.balance, Money::new(1000 + n), "account {id}");
                // And the same once more, which does nothing.
                let again = insist_on(&[&router], id, &format!("{n}")).await;
                assert_eq!(again.balance, account.balance, "account {id}");
            }
            (id, n)
        });
    }
    let done: Vec<(u64, i64)> = clients.join_all().await;
    ends.store(true, Relaxed);
    while movers.join_next().await.is_some() {}
    router.crash().await;
    let router = node(directory.path(), 2, WallClock::system(), notifier::Config::default()).await;
    for (id, n) in &done {
        assert_eq!(
            router.get(*id).await.unwrap().balance,
            Money::new(1000 + n),
            "account {id} after a crash"
        );
    }
    let operations: i64 = done.iter().map(|(_, n)| n).sum();
    println!("{operations} operations, each twice, during {} moves", moves.load(Relaxed));
}

/// An account of the same bucket as account 1, for each of these.
/// The journal's map is looked at before a bucket is released, and callers do not wait for that.
#[tokio::test(start_paused = true)]
async fn a_bucket_that_grew_too_large_meanwhile_stays() {
    let mut one = State::new(0..BUCKETS);
    one.apply(&Command::Operate { key: key("create"), account: 1, operation: create(1, 0) }, START);
    let image_bytes_max = one.image_bytes_max(bucket_of(1)).unwrap();
    let (fake, wall) = (Fake::new(2), WallClock::since(START));
    let settings = super::Config { image_bytes_max, ..config("a", 2) };
    let router = start(settings, &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    router.operate(1, key("create"), create(1, 0)).await.unwrap();
    let bucket = bucket_of(1);
    let (home, mover) = (u32::from(bucket % 2), router.clone());
    let moving = tokio::spawn(async move { mover.move_bucket(bucket, 1 - home).await });
    // The owner begins, and the journal has yet to answer, which takes a millisecond.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!moving.is_finished());
    let neighbour = (2..).find(|id| bucket_of(*id) == bucket).unwrap();
    router.operate(neighbour, key("create"), create(1, 0)).await.unwrap();
    let moved = moving.await.unwrap();
    assert!(matches!(moved, Err(Failure::Unmovable(Unmovable::TooLarge { .. }))), "{moved:?}");
    assert_eq!(router.get(1).await.unwrap().balance, Money::new(1));
}

/// Buckets that wait for a shard without an owner are in nobody else's way.
#[tokio::test(start_paused = true)]
async fn a_shard_without_an_owner_holds_up_no_other() {
    let (fake, street, wall) = (Fake::new(3), Street::new(), WallClock::since(START));
    let none = notifier::Config::default;
    let a = street.start(config("a", 3), &fake, &wall, none()).await;
    settled(&a).await;
    let b = street.start(config("b", 3), &fake.another(), &wall, none()).await;
    settled(&b).await;
    a.hand_over(1, "b").await.unwrap();
    while fake.owner(1).0 != "b" || b.0.seats[1].is_here().is_err() || a.0.seats[1].is_here().is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Dead, but its lease lasts.
    while !a.0.seats[1].is_owned() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    street.closed("b");
    b.crash().await;
    let own: Vec<u16> = (0..BUCKETS).step_by(3).collect();
    let stuck: Vec<_> = own[..8]
        .iter()
        .map(|bucket| {
            let (a, bucket) = (a.clone(), *bucket);
            tokio::spawn(async move { a.move_bucket(bucket, 1).await })
        })
        .collect();
    while fake.replay(0).outgoing().count() < 8 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ninth = a.move_bucket(own[8], 1).await;
    assert!(matches!(ninth, Err(Failure::Busy { .. })), "{ninth:?}");
    a.move_bucket(own[9], 2).await.unwrap();
    // They arrive once somebody has the shard.
    for moved in stuck {
        moved.await.unwrap().unwrap();
    }
}

/// A clock that is far ahead spoils the shard of its node, and no other that a bucket goes to.
#[tokio::test(start_paused = true)]
async fn a_bucket_from_the_future_waits_until_it_is_the_present() {
    let (wall, hand) = WallClock::manual(START);
    let (fake, hour) = (Fake::new(2), Duration::from_secs(3600));
    let router = start(config("a", 2), &fake, &wall, notifier::Config::default()).await;
    settled(&router).await;
    let bucket = bucket_of(1);
    let home = u32::from(bucket % 2);
    // One in the other shard, which spends.
    let other = (2..).find(|id| u32::from(bucket_of(*id) % 2) != home).unwrap();
    router.operate(other, key("create"), create(10_000_000, 1000)).await.unwrap();
    hand.advance(hour);
    router.operate(1, key("create"), create(100, 0)).await.unwrap();
    hand.set(START);
    let mover = router.clone();
    let moving = tokio::spawn(async move { mover.move_bucket(bucket, 1 - home).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!moving.is_finished());
    assert_eq!(router.get(other).await.unwrap().balance, Money::new(10_000_000), "no hour has passed");
    hand.advance(hour);
    moving.await.unwrap().unwrap();
    assert_eq!(insist(&router, 1, "more", add(1)).await.unwrap().balance, Money::new(101));
    assert_eq!(router.get(other).await.unwrap().balance, Money::new(10_000_000 - 3600 * 1000));
}
