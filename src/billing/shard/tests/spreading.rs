//! Shards spread over the nodes, and stay where somebody put them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::{Failure, Router, Unmovable, WallClock};
use super::fake::Fake;
use super::street::Street;
use super::{PATIENCE, START, config, create, insist, settled};
use crate::billing::notifier;
use crate::clock;

struct Town {
    fake: Fake,
    street: Street,
    wall: WallClock,
    shards: u32,
}

impl Town {
    fn new(shards: u32) -> Town {
        Town { fake: Fake::new(shards), street: Street::new(), wall: WallClock::since(START), shards }
    }

    async fn node(&self, name: &str) -> Router {
        let config = config(name, self.shards);
        let link = self.fake.another();
        let router = self.street.start(config, &link, &self.wall, notifier::Config::default()).await;
        settled(&router).await;
        router
    }

    async fn dies(&self, name: &str, router: Router) {
        self.street.closed(name);
        router.crash().await;
    }

    fn owners(&self) -> Vec<(String, u64)> {
        (0..self.shards).map(|shard| self.fake.owner(shard)).collect()
    }

    /// How many each node has, ascending; nothing while somebody has yet to take one.
    fn counts(&self) -> Vec<usize> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        self.owners().into_iter().for_each(|(node, _)| *counts.entry(node).or_default() += 1);
        if counts.contains_key("") {
            return Vec::new();
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_unstable();
        counts
    }

    /// Until shards lie so; says how long it took.
    async fn comes_to(&self, counts: &[usize]) -> Duration {
        let began = clock::now();
        let reached = async {
            while self.counts() != counts {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let late = || panic!("{:?}, not {counts:?}", self.owners());
        tokio::time::timeout(10 * PATIENCE, reached).await.unwrap_or_else(|_| late());
        clock::now() - began
    }

    async fn stays_for(&self, span: Duration) {
        let before = self.owners();
        tokio::time::sleep(span).await;
        assert_eq!(self.owners(), before, "shards changed hands for nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn two_shards_come_to_lie_on_two_nodes_and_stay() {
    let town = Town::new(2);
    let a = town.node("a").await;
    insist(&a, 1, "create", create(7, 0)).await.unwrap();
    insist(&a, 4, "create", create(7, 0)).await.unwrap();
    town.stays_for(Duration::from_secs(60)).await;
    let b = town.node("b").await;
    let took = town.comes_to(&[1, 1]).await;
    assert!(took >= Duration::from_secs(10), "{took:?}: not before it has been quiet");
    println!("spread after {took:?}");
    settled(&a).await;
    settled(&b).await;
    town.stays_for(Duration::from_secs(1200)).await;
    // All is there, on either.
    for id in [1, 4] {
        let told = [a.get(id).await, b.get(id).await];
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 1, "{told:?}");
    }
    // Its node dies and comes back: the other has both meanwhile.
    town.dies("b", b).await;
    town.comes_to(&[2]).await;
    let _b = town.node("b").await;
    town.comes_to(&[1, 1]).await;
    town.stays_for(Duration::from_secs(300)).await;
}

#[tokio::test(start_paused = true)]
async fn seven_shards_come_to_lie_on_three_nodes() {
    let town = Town::new(7);
    let _nodes = [town.node("a").await, town.node("b").await, town.node("c").await];
    town.comes_to(&[2, 2, 3]).await;
    town.stays_for(Duration::from_secs(600)).await;
}

/// Given by hand, it stays; until it is long ago, or its node dies.
#[tokio::test(start_paused = true)]
async fn what_was_given_by_hand_stays_for_a_while() {
    let town = Town::new(2);
    let (a, b) = (town.node("a").await, town.node("b").await);
    town.comes_to(&[1, 1]).await;
    settled(&a).await;
    settled(&b).await;
    let shard = town.owners().iter().position(|(node, _)| node == "a").unwrap() as u32;
    assert!(matches!(b.assign(shard, "b").await, Err(Failure::Elsewhere { node, .. }) if node == "a"));
    a.assign(shard, "b").await.unwrap();
    town.comes_to(&[2]).await;
    settled(&b).await;
    // Once more, as whoever got no answer would; it is told by the one who has it.
    assert!(matches!(b.assign(shard, "b").await, Ok(())));
    town.stays_for(Duration::from_secs(300)).await;
    let waited = town.comes_to(&[1, 1]).await;
    println!("spread again {waited:?} later");
    assert!(waited >= Duration::from_secs(290), "{waited:?}");
    // Given again, and the node dies: the other has both, and gives one when it comes back.
    let shard = town.owners().iter().position(|(node, _)| node == "a").unwrap() as u32;
    a.assign(shard, "b").await.unwrap();
    town.comes_to(&[2]).await;
    town.dies("b", b).await;
    while town.owners().iter().any(|(node, _)| node != "a") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let b = town.node("b").await;
    let waited = town.comes_to(&[1, 1]).await;
    assert!(waited <= Duration::from_secs(60), "{waited:?}: the assignment died with the node");
    assert_eq!(
        b.assign(9, "b").await.map_err(|failure| failure.to_string()),
        Err(Unmovable::NoSuchShard.to_string())
    );
    for name in ["", &"x".repeat(65)] {
        assert!(matches!(a.assign(0, name).await, Err(Failure::Unmovable(Unmovable::BadName))), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_about_to_leave_asks_for_nothing() {
    let town = Town::new(2);
    let (a, b) = (town.node("a").await, town.node("b").await);
    b.rest();
    town.stays_for(Duration::from_secs(300)).await;
    assert_eq!(town.counts(), [2]);
    assert!(matches!(b.give(0, "a").await, Err(Failure::Elsewhere { .. })), "what it does not have");
    insist(&a, 1, "create", create(1, 0)).await.unwrap();
}
