//! Two nodes and one journal: who may write, and how soon.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::backend::Backend;
use super::super::tenure::Tenure;
use super::super::{Failure, Router, WallClock};
use super::fake::{Fake, Faults};
use super::{START, add, config, create, insist, key, settled, start, withdraw};
use crate::billing::domain::{self, AccountState, Command, Money};
use crate::billing::journal::{Acquisition, Batch, Lease, Node};
use crate::billing::notifier;
use crate::billing::notifier::receiver::{Manner, Receiver};
use crate::clock;

const OK: Manner = Manner::Answer(200);

/// Node a, which owns the shard, and node b, which follows.
async fn two(fake: &Fake, other: &Fake, wall: &WallClock) -> (Router, Router) {
    let a = start(config("a", 1), fake, wall, notifier::Config::default()).await;
    settled(&a).await;
    let b = start(config("b", 1), other, wall, notifier::Config::default()).await;
    settled(&b).await;
    (a, b)
}

async fn owner_is(fake: &Fake, name: &str) {
    while fake.owner(0).0 != name {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_other_node_says_where_and_takes_over_from_the_dead() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let (a, b) = two(&fake, &fake.another(), &wall).await;
    a.operate(1, key("create"), create(100, 0)).await.unwrap();
    match b.operate(1, key("add"), add(1)).await {
        Err(Failure::Elsewhere { node, advertise }) => {
            assert_eq!((node.as_str(), advertise.as_str()), ("a", "a:8200"))
        }
        other => panic!("{other:?}"),
    }
    assert!(b.is_able(), "by forwarding");
    let cluster = b.cluster().await;
    assert_eq!((cluster.node.as_str(), cluster.shards[0].node.as_str()), ("b", "a"));
    assert!(cluster.shards[0].writable);
    let asker = b.clone();
    // Whoever forwarded something to it need not wait for longer than that.
    let left = tokio::spawn(async move { asker.left(&[1, 2], "a:8200").await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!left.is_finished());
    let dead = clock::now();
    a.crash().await;
    left.await.unwrap();
    let account = loop {
        match b.operate(1, key("add"), add(1)).await {
            Ok(account) => break account,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let took = clock::now() - dead;
    assert_eq!(account.balance, Money::new(101));
    assert!(took <= Duration::from_secs(5), "{took:?}");
    println!("taken over after {took:?}");
}

/// What was written after a follower had read and before it looked at the lease is what it lacks.
#[tokio::test(start_paused = true)]
async fn a_follower_says_how_far_it_is_behind() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let (a, b) = two(&fake, &fake.another(), &wall).await;
    let lag = |router: &Router| router.0.seats[0].gauges.lag.get();
    insist(&a, 1, "create", create(0, 0)).await.unwrap();
    let mut n = 0;
    while lag(&b) == 0 {
        n += 1;
        assert!(n < 10_000, "it never was behind");
        a.operate(1, key(&format!("{n}")), add(1)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((lag(&a), lag(&b)), (0, 0), "it caught up");
}

/// A backup is restored while a node follows, or a master takes over that lacks what the node has read; then another owner writes.
#[tokio::test(start_paused = true)]
async fn a_follower_begins_anew_if_the_journal_is_another_one() {
    for (written, what) in [(1, "shorter"), (2, "as long"), (4, "longer")] {
        let (fake, wall) = (Fake::new(1), WallClock::since(START));
        let (a, b) = two(&fake, &fake.another(), &wall).await;
        a.operate(1, key("create"), create(100, 0)).await.unwrap();
        for n in 0..3 {
            a.operate(1, key(&format!("{n}")), add(1)).await.unwrap();
        }
        let last = a.0.seats[0].seq();
        a.crash().await;
        while b.0.seats[0].seq() < last {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fake.restore(0, last - 2);
        let thief = fake.another();
        thief.steals(true);
        let node = Node { name: "c".to_owned(), advertise: "c:8200".to_owned() };
        let taken = thief.acquire(0, &node, Duration::from_secs(4)).await.unwrap();
        let Acquisition::Acquired(lease) = taken else { panic!("{taken:?}") };
        for n in 1..=written {
            let command =
                Command::Operate { key: key(&format!("c's {n}")), account: 1, operation: add(1000) };
            let mut payload = Vec::new();
            domain::Batch { at: wall.now(), commands: vec![command] }.encode(&mut payload);
            let (seq, payload) = (lease.seq + n, payload.into());
            thief.append(&Batch { shard: 0, seq, epoch: lease.epoch, payload }).await.unwrap();
        }
        while matches!(b.get(1).await, Err(Failure::Elsewhere { .. })) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let balance = insist(&b, 1, "b's", add(1)).await.unwrap().balance;
        assert_eq!(balance, Money::new(102 + 1000 * written as i64), "it is {what}");
        assert_eq!(fake.replay(0).account(1, START).unwrap().balance, balance, "it is {what}");
    }
}

/// A node that cannot reach the journal writes, answers and reads nothing once its lease is over, and follows when it can.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_gives_up() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let other = fake.another();
    let (a, b) = two(&fake, &other, &wall).await;
    a.operate(1, key("create"), create(100, 0)).await.unwrap();
    fake.cut(true);
    let cut = clock::now();
    let writer = a.clone();
    let lost = tokio::spawn(async move { writer.operate(1, key("lost"), add(1)).await });
    owner_is(&fake, "b").await;
    assert!(clock::now() - cut <= Duration::from_secs(5));
    let lost = lost.await.unwrap();
    assert!(matches!(lost, Err(Failure::Unknown)), "{lost:?}");
    let read = a.get(1).await;
    assert!(matches!(read, Err(Failure::Busy { .. } | Failure::Elsewhere { .. })), "{read:?}");
    assert!(!a.is_able());
    assert_eq!(insist(&b, 1, "b's", withdraw(40)).await.unwrap().balance, Money::new(60));
    fake.cut(false);
    settled(&a).await;
    assert!(matches!(a.get(1).await, Err(Failure::Elsewhere { node, .. }) if node == "b"));
    assert_eq!(insist(&b, 1, "lost", add(1)).await.unwrap().balance, Money::new(61));
}

/// Renewals stop without a word, as when a process is stopped and goes on: the clock alone ends the tenure.
#[tokio::test(start_paused = true)]
async fn a_tenure_ends_by_the_clock_alone() {
    let lease = Lease {
        shard: 0,
        epoch: 1,
        seq: 0,
        node: "a".to_owned(),
        advertise: String::new(),
        expires_in: Duration::from_secs(60),
    };
    let tenure = Tenure::new(&lease, Duration::from_secs(4), clock::now());
    tokio::time::advance(Duration::from_millis(3999)).await;
    assert!(tenure.holds());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!tenure.holds());
}

/// A batch that hangs until the lease is over must not be answered, nor an order sent, whatever became of it.
#[tokio::test]
async fn nothing_is_sent_or_answered_after_the_lease() {
    let receiver = Receiver::start(OK).await;
    let notifier =
        notifier::Config { webhook: Some(receiver.webhook.clone()), ..notifier::Config::default() };
    let (fake, wall) = (Fake::new(1), WallClock::system());
    let other = fake.another();
    let lease = Duration::from_millis(400);
    let of = |name| super::Config { lease, poll: Duration::from_millis(50), ..config(name, 1) };
    let a = start(of("a"), &fake, &wall, notifier.clone()).await;
    settled(&a).await;
    a.operate(1, key("create"), create(10, 0)).await.unwrap();
    fake.hold(true);
    let writer = a.clone();
    let withdrawn = tokio::spawn(async move { writer.operate(1, key("all"), withdraw(10)).await });
    fake.held(1).await;
    fake.cut(true);
    let withdrawn = withdrawn.await.unwrap();
    assert!(matches!(withdrawn, Err(Failure::Unknown)), "{withdrawn:?}");
    assert!(receiver.heard().is_empty());
    fake.hold(false);
    // Another node goes on; asked again, the key is done there, and the order leaves once.
    let b = start(of("b"), &other, &wall, notifier).await;
    settled(&b).await;
    let account = insist(&b, 1, "all", withdraw(10)).await.unwrap();
    assert_eq!(account.state, AccountState::Stopped);
    receiver.wait_for(|heard| !heard.is_empty()).await;
    while b.get(1).await.unwrap().overrun.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(receiver.heard().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_handed_over_without_loss() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let (a, b) = two(&fake, &fake.another(), &wall).await;
    a.operate(1, key("create"), create(1, 0)).await.unwrap();
    let (writer, sink) = (a.clone(), b.clone());
    let load = tokio::spawn(async move {
        let mut on_b = 0;
        for n in 0..2000 {
            let name = format!("{n}");
            loop {
                if writer.operate(1, key(&name), add(1)).await.is_ok() {
                    break;
                }
                if sink.operate(1, key(&name), add(1)).await.is_ok() {
                    on_b += 1;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        on_b
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = clock::now();
    a.hand_over(0, "b").await.unwrap();
    assert!(matches!(b.hand_over(0, "b").await, Ok(()) | Err(Failure::Busy { .. })));
    let epoch = fake.owner(0).1;
    settled(&b).await;
    owner_is(&fake, "b").await;
    let on_b = load.await.unwrap();
    assert!(on_b > 100, "{on_b}");
    println!("handed over after {:?} at epoch {epoch}", clock::now() - began);
    assert_eq!(insist(&b, 1, "2000", add(1)).await.unwrap().balance, Money::new(2002));
    let again = a.hand_over(0, "c").await;
    assert!(matches!(again, Err(Failure::Elsewhere { .. })), "{again:?}");
}

/// Nobody takes it: it comes back.
#[tokio::test(start_paused = true)]
async fn a_shard_handed_to_nobody_comes_back() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let a = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    settled(&a).await;
    a.hand_over(0, "nobody").await.unwrap();
    assert!(matches!(a.get(1).await, Err(Failure::Busy { .. })));
    settled(&a).await;
    insist(&a, 1, "create", create(1, 0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_closes_leaves_its_shard_at_once() {
    let (fake, wall, closing) = (Fake::new(1), WallClock::since(START), CancellationToken::new());
    let registry = prometheus::Registry::new();
    let notifier = notifier::Config::default();
    let a = Router::start_on(
        config("a", 1),
        fake.clone(),
        wall.clone(),
        &registry,
        notifier.clone(),
        None,
        closing.clone(),
    );
    let a = a.await.unwrap();
    settled(&a).await;
    let b = start(config("b", 1), &fake.another(), &wall, notifier).await;
    settled(&b).await;
    let began = clock::now();
    closing.cancel();
    a.stopped().await;
    owner_is(&fake, "b").await;
    let took = clock::now() - began;
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

/// Answers that are lost before and after they were written: every command is done once, whatever its first caller heard.
#[tokio::test(start_paused = true)]
async fn lost_answers_are_looked_up() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let dice = fastrand::Rng::with_seed(seed);
    fake.set_faults(Some(Faults { dice, unavailable: 100, lost_before: 100, lost_after: 100 }));
    let a = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    settled(&a).await;
    insist(&a, 1, "create", create(1, 0)).await.unwrap();
    for n in 0..500 {
        assert_eq!(insist(&a, 1, &format!("{n}"), add(1)).await.unwrap().balance, Money::new(n + 2));
    }
    assert_eq!(fake.replay(0).account(1, START).unwrap().balance, Money::new(501));
}

/// Somebody else writes with the node's name: it must stop, and say so.
#[tokio::test(start_paused = true)]
async fn a_fenced_owner_stops_at_once() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let a = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    settled(&a).await;
    a.operate(1, key("create"), create(1, 0)).await.unwrap();
    let thief = Node { name: "a".to_owned(), advertise: "thief:1".to_owned() };
    fake.another().acquire(0, &thief, Duration::from_secs(4)).await.unwrap();
    let fenced = a.operate(1, key("add"), add(1)).await;
    assert!(matches!(fenced, Err(Failure::Unknown)), "{fenced:?}");
    assert_eq!(
        insist(&a, 1, "add", add(1)).await.unwrap().balance,
        Money::new(2),
        "once it has the shard again"
    );
}

/// The shard's own replica set gives the lease, and the one with the bucket map is away.
#[tokio::test(start_paused = true)]
async fn a_first_owner_waits_for_the_bucket_map_with_patience() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    let router = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    fake.map_away(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (_, epoch) = fake.owner(0);
    assert!((10..400).contains(&epoch), "{epoch} changes of the lease in a minute");
    fake.map_away(false);
    settled(&router).await;
    insist(&router, 1, "create", create(1, 0)).await.unwrap();
}

/// It can write and renew its lease, and not read what it needs to serve.
#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_get_ready_leaves_the_shard_to_others() {
    let (fake, wall) = (Fake::new(1), WallClock::since(START));
    fake.blinds(true);
    let a = start(config("a", 1), &fake, &wall, notifier::Config::default()).await;
    while fake.owner(0).0 != "a" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let b = start(config("b", 1), &fake.another(), &wall, notifier::Config::default()).await;
    let began = clock::now();
    while b.operate(1, key("create"), create(1, 0)).await.is_err() {
        assert!(clock::now() - began < Duration::from_secs(60), "nobody serves");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(a.get(1).await.is_err());
}
