//! Depletions and their orders, with a receiver on a real socket.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::WallClock;
use super::fake::Fake;
use super::{PATIENCE, START, add, config, create, insist, key, node, settled, start, withdraw};
use crate::billing::domain::{Account, AccountState, Micros, Money};
use crate::billing::notifier::receiver::{Heard, Manner, Receiver};
use crate::billing::notifier::{self, Secret, signature, signed_text};
use crate::billing::shard::Router;
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

/// The accounts of these requests, as they came.
fn users(heard: &[Heard]) -> Vec<u64> {
    heard.iter().map(|heard| heard.target.strip_prefix("/off?userID=").unwrap().parse().unwrap()).collect()
}

/// Until the account is as is asked for.
async fn until(router: &Router, account: u64, is: impl Fn(&Account) -> bool) -> Account {
    let asked = async {
        loop {
            let account = router.get(account).await.unwrap();
            if is(&account) {
                return account;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("it never came to that")
}

#[tokio::test]
async fn a_withdrawal_to_zero_sends_a_signed_order() {
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(OK).await);
    let secret = Secret::new("secret");
    let notifier = notifier::Config { secret: Some(secret.clone()), ..to(&receiver) };
    let (wall, hand) = WallClock::manual(START);
    let router = node(directory.path(), 1, wall, notifier).await;
    router.operate(4, key("create"), create(1000, 0)).await.unwrap();
    router.operate(4, key("most"), withdraw(999)).await.unwrap();
    let account = router.operate(4, key("rest"), withdraw(1)).await.unwrap();
    assert_eq!((account.state, account.balance), (AccountState::Stopped, Money::ZERO));
    let heard = receiver.wait_for(|heard| !heard.is_empty()).await;
    let Heard { target, key: order, signature: signed, timestamp, .. } = &heard[0];
    assert_eq!((target.as_str(), order.as_str(), timestamp.as_str()), ("/off?userID=4", "4-1", "1780000000"));
    assert_eq!(signed.as_deref(), Some(signature(&secret, &signed_text(target, order, timestamp)).as_str()));
    until(&router, 4, |account| account.overrun == Some(Money::ZERO)).await;
    // Funded and dry again: another version, another order.
    router.operate(4, key("more"), add(1_000_000)).await.unwrap();
    let faster = crate::billing::domain::Operation::UpdateSpendingVelocity {
        velocity: crate::billing::domain::Velocity::new(500_000),
    };
    let account = router.operate(4, key("faster"), faster).await.unwrap();
    assert_eq!(account.depletes_at, Some(Micros::new(START.get() + 2_000_000)));
    hand.advance(Duration::from_secs(2));
    let heard = receiver.wait_for(|heard| heard.len() > 1).await;
    assert_eq!(heard[1].key, "4-2");
}

/// On the system's clock; how late they are is measured elsewhere.
#[tokio::test]
async fn orders_leave_at_their_instants() {
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(OK).await);
    let router = node(directory.path(), 2, WallClock::system(), to(&receiver)).await;
    let mut instants = Vec::new();
    for (id, milliseconds) in [(1, 450), (2, 150), (3, 300), (4, 600)] {
        let account =
            router.operate(id, key("create"), create(milliseconds * 1000, 1_000_000)).await.unwrap();
        instants.push((account.depletes_at.unwrap(), id));
    }
    instants.sort_unstable();
    let heard = receiver.wait_for(|heard| heard.len() >= 4).await;
    assert!(WallClock::system().now() >= instants[3].0, "none left before its instant");
    let expected: Vec<u64> = instants.iter().map(|(_, id)| *id).collect();
    assert_eq!(users(&heard), expected);
    for (_, id) in instants {
        until(&router, id, |account| account.overrun.is_some()).await;
    }
}

#[tokio::test]
async fn a_receiver_that_fails_and_heals_gets_every_order() {
    let manners = [
        Manner::Answer(500),
        Manner::Answer(302),
        Manner::Answer(404),
        Manner::Close,
        Manner::Garbage,
        Manner::Hang,
    ];
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(OK).await);
    let router = node(directory.path(), 1, WallClock::system(), to(&receiver)).await;
    for (id, manner) in (1..).zip(manners) {
        receiver.set(manner);
        router.operate(id, key("create"), create(1, 0)).await.unwrap();
        router.operate(id, key("all"), withdraw(1)).await.unwrap();
        receiver
            .wait_for(|heard| heard.iter().filter(|heard| heard.key == format!("{id}-1")).count() > 2)
            .await;
        // Others are served in the meantime.
        assert_eq!(router.get(id).await.unwrap().overrun, None, "{manner:?} is no delivery");
    }
    receiver.set(OK);
    for id in 1..=6 {
        until(&router, id, |account| account.overrun.is_some()).await;
    }
    let heard = receiver.heard();
    let delivered: Vec<&Heard> = heard.iter().filter(|heard| heard.manner == OK).collect();
    assert_eq!(delivered.len(), 6, "each once after it healed: {delivered:?}");
}

/// Orders that wait for long, because the receiver was ill, leave when it answers somebody else.
#[tokio::test]
async fn a_receiver_that_is_well_again_gets_what_waits() {
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(Manner::Answer(500)).await);
    let never = Backoff { min: Duration::from_secs(3600), max: Duration::from_secs(3600) };
    let notifier = notifier::Config { retry: never, illness: Duration::ZERO, ..to(&receiver) };
    let router = node(directory.path(), 2, WallClock::system(), notifier).await;
    for id in 1..=20 {
        router.operate(id, key("create"), create(1, 0)).await.unwrap();
        router.operate(id, key("all"), withdraw(1)).await.unwrap();
    }
    receiver.wait_for(|heard| heard.len() == 20).await;
    receiver.set(OK);
    router.operate(21, key("create"), create(1, 0)).await.unwrap();
    router.operate(21, key("all"), withdraw(1)).await.unwrap();
    for id in 1..=21 {
        until(&router, id, |account| account.overrun.is_some()).await;
    }
    assert_eq!(receiver.heard().iter().filter(|heard| heard.manner == OK).count(), 21, "each once");
}

/// Dry and funded within one batch: the depletion never was without its money.
#[tokio::test]
async fn money_before_the_commit_means_no_order() {
    let (fake, receiver) = (Fake::new(1), Receiver::start(OK).await);
    let router = start(config("a", 1), &fake, &WallClock::system(), to(&receiver)).await;
    settled(&router).await;
    for id in [1, 2, 3] {
        router.operate(id, key("create"), create(10, 0)).await.unwrap();
    }
    fake.hold(true);
    let spawn = |account, name: &'static str, operation| {
        let router = router.clone();
        tokio::spawn(async move { router.operate(account, key(name), operation).await.unwrap() })
    };
    let blocker = spawn(3, "blocker", add(1));
    fake.held(1).await;
    // These wait together, so they are of one batch, in this order.
    let dry = spawn(1, "dry", withdraw(10));
    tokio::task::yield_now().await;
    let funded = spawn(1, "funded", add(10));
    tokio::task::yield_now().await;
    let marker = spawn(2, "marker", withdraw(10));
    tokio::task::yield_now().await;
    fake.hold(false);
    blocker.await.unwrap();
    assert_eq!(dry.await.unwrap().state, AccountState::Stopped);
    let funded = funded.await.unwrap();
    assert_eq!((funded.state, funded.version), (AccountState::Active, 2));
    marker.await.unwrap();
    until(&router, 2, |account| account.overrun.is_some()).await;
    assert_eq!(users(&receiver.heard()), [2]);
}

/// The instant has passed, but money comes before that is journaled.
#[tokio::test]
async fn money_after_the_instant_and_before_its_commit_means_no_order() {
    let (fake, receiver) = (Fake::new(1), Receiver::start(OK).await);
    let (wall, hand) = WallClock::manual(START);
    let router = start(config("a", 1), &fake, &wall, to(&receiver)).await;
    settled(&router).await;
    router.operate(1, key("create"), create(1_000_000, 1_000_000)).await.unwrap();
    router.operate(2, key("create"), create(10, 0)).await.unwrap();
    fake.hold(true);
    let spawn = |account, name: &'static str, operation| {
        let router = router.clone();
        tokio::spawn(async move { router.operate(account, key(name), operation).await.unwrap() })
    };
    let blocker = spawn(2, "blocker", add(1));
    fake.held(1).await;
    hand.advance(Duration::from_secs(5));
    let funded = spawn(1, "funded", add(1_000_000));
    tokio::task::yield_now().await;
    fake.hold(false);
    blocker.await.unwrap();
    let funded = funded.await.unwrap();
    assert_eq!((funded.version, funded.balance), (1, Money::new(1_000_000)));
    hand.advance(Duration::from_secs(1));
    let heard = receiver.wait_for(|heard| !heard.is_empty()).await;
    until(&router, 1, |account| account.overrun.is_some()).await;
    assert_eq!(heard.len(), 1, "one order, for the second end");
}

#[tokio::test]
async fn money_after_the_commit_ends_the_retries() {
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(Manner::Answer(500)).await);
    let router = node(directory.path(), 1, WallClock::system(), to(&receiver)).await;
    for id in [1, 2] {
        router.operate(id, key("create"), create(10, 0)).await.unwrap();
    }
    router.operate(1, key("all"), withdraw(10)).await.unwrap();
    receiver.wait_for(|heard| heard.len() > 2).await;
    router.operate(1, key("more"), add(5)).await.unwrap();
    // One may have been under way; whatever waited is gone by now.
    receiver.set(OK);
    let before = receiver.heard().len();
    router.operate(2, key("all"), withdraw(10)).await.unwrap();
    until(&router, 2, |account| account.overrun.is_some()).await;
    // Twenty of the longest waits between tries.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let after = users(&receiver.heard()[before..]);
    assert!(after.iter().filter(|user| **user == 1).count() <= 1, "{after:?}");
    let account = router.get(1).await.unwrap();
    assert_eq!((account.version, account.overrun, account.balance), (2, None, Money::new(5)));
}

/// A thousand at one instant, while others operate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_all_delivered_and_starve_nobody() {
    const MANY: u64 = 1000;
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(OK).await);
    let (wall, hand) = WallClock::manual(START);
    let router = node(directory.path(), 2, wall, to(&receiver)).await;
    let created = (0..MANY).map(|id| {
        let router = router.clone();
        async move { router.operate(id, key("create"), create(1_000_000, 1_000_000)).await.unwrap() }
    });
    futures::future::join_all(created).await;
    router.operate(MANY, key("create"), create(1, 0)).await.unwrap();
    hand.advance(Duration::from_secs(1));
    let mut operations = 0;
    while router
        .list(&[0, 1], None, MANY as usize)
        .await
        .unwrap()
        .iter()
        .any(|account| account.overrun.is_none())
    {
        operations += 1;
        insist(&router, MANY, &format!("{operations}"), add(1)).await.unwrap();
    }
    let heard = users(&receiver.heard());
    let distinct: BTreeSet<u64> = heard.iter().copied().collect();
    assert_eq!(distinct, (0..MANY).collect());
    assert_eq!(heard.len() as u64, MANY, "nobody died, so nothing was sent twice");
    println!("{operations} operations while {MANY} orders were delivered");
}

#[tokio::test]
async fn an_order_survives_a_crash_between_depletion_and_delivery() {
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(Manner::Hang).await);
    let (wall, hand) = WallClock::manual(START);
    let router = node(directory.path(), 1, wall.clone(), to(&receiver)).await;
    router.operate(1, key("create"), create(10, 0)).await.unwrap();
    router.operate(2, key("create"), create(1_000_000, 1_000_000)).await.unwrap();
    router.operate(3, key("create"), create(5_000_000, 1_000_000)).await.unwrap();
    router.operate(1, key("all"), withdraw(10)).await.unwrap();
    receiver.wait_for(|heard| !heard.is_empty()).await;
    router.crash().await;
    // One was journaled and not delivered, one ended while nobody was there, one has yet to end.
    receiver.set(OK);
    hand.advance(Duration::from_secs(2));
    let router = node(directory.path(), 1, wall, to(&receiver)).await;
    assert_eq!(until(&router, 1, |account| account.overrun.is_some()).await.overrun, Some(Money::ZERO));
    assert_eq!(
        until(&router, 2, |account| account.overrun.is_some()).await.overrun,
        Some(Money::new(1_000_000))
    );
    hand.advance(Duration::from_secs(3));
    until(&router, 3, |account| account.overrun.is_some()).await;
    let delivered: Vec<Heard> = receiver.heard().into_iter().filter(|heard| heard.manner == OK).collect();
    assert_eq!(delivered.len(), 3);
}

/// More orders than fit into memory wait in the state.
#[tokio::test]
async fn orders_beyond_the_queue_are_delivered_too() {
    let (directory, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(OK).await);
    let notifier = notifier::Config { queue: 8, per_host: 2, ..to(&receiver) };
    let (wall, hand) = WallClock::manual(START);
    let router = node(directory.path(), 1, wall, notifier).await;
    for id in 0..100 {
        router.operate(id, key("create"), create(1_000_000, 1_000_000)).await.unwrap();
    }
    hand.advance(Duration::from_secs(1));
    for id in 0..100 {
        until(&router, id, |account| account.overrun.is_some()).await;
    }
    assert_eq!(users(&receiver.heard()).into_iter().collect::<BTreeSet<u64>>(), (0..100).collect());
}
