//! Shards spread over the nodes by themselves: a node that has fewer than others asks for one.
//!
//! Who asks is known by asking, so a node without a shard needs no registry to be found. It asks a node with at least two
//! more, so each transfer makes the difference smaller and none is ever undone by another. It asks only after nothing has
//! changed for a while, so that shards that are in motion anyway come to rest first; a transfer is such a change, so there is
//! one per while. The asked node counts for itself and has the last word. After a shard was given to a node by hand nobody asks
//! for any for a longer while, as long as that node has it: whoever empties a node for work does not want it filled again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Config;
use super::seat::{Seat, Standing};
use super::transfer::Neighbours;
use super::wall::WallClock;
use crate::clock;

/// Batches that a follower may lack of a shard it asks for: a few milliseconds to replay.
const BEHIND_MAX: u64 = 256;

pub struct Spread {
    pub config: Arc<Config>,
    pub seats: Arc<[Arc<Seat>]>,
    pub neighbours: Arc<dyn Neighbours>,
    pub wall: WallClock,
    /// This node is about to leave and takes nothing.
    pub resting: Arc<AtomicBool>,
    pub closing: CancellationToken,
}

/// Node and epoch, by shard.
type Owners = Vec<(String, u64)>;

impl Spread {
    pub async fn run(self) {
        let mut seen = Owners::new();
        let mut since = clock::now();
        let mut pause = self.pause();
        loop {
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(self.config.poll) => {}
            }
            let now = clock::now();
            let owners =
                owners(&self.seats, &self.config, &self.wall).filter(|_| !self.resting.load(Relaxed));
            let unchanged = owners.as_ref() == Some(&seen);
            seen = owners.unwrap_or_default();
            if !unchanged {
                since = now;
                continue;
            }
            if now.saturating_duration_since(since) >= pause {
                (since, pause) = (now, self.pause());
                tokio::select! {
                    () = self.closing.cancelled() => return,
                    () = self.ask(&seen) => {}
                }
            }
        }
    }

    /// Nodes that started together must not ask together.
    fn pause(&self) -> Duration {
        self.config.spread.mul_f64(1.0 + fastrand::f64() / 2.0)
    }

    async fn ask(&self, owners: &Owners) {
        let me = &self.config.node.name;
        let wanted = wanted(owners.iter().map(|(node, _)| node.as_str()), me, |shard| self.is_known(shard));
        let Some(shard) = fastrand::choice(wanted) else { return };
        let Some(seat) = self.seats.get(shard as usize) else { return };
        let Standing::Elsewhere { node, advertise, .. } = &*seat.standing() else { return };
        match self.neighbours.give(advertise, shard, me).await {
            Ok(()) => {
                tracing::info!(shard, from = node, "a shard was asked for, to spread them, and comes");
                seat.poke();
            }
            Err(failure) => tracing::debug!(shard, from = node, %failure, "a shard was asked for, and stays"),
        }
    }

    /// To its end, so that it is served here in a moment.
    fn is_known(&self, shard: u32) -> bool {
        self.seats.get(shard as usize).is_some_and(|seat| match &*seat.standing() {
            Standing::Elsewhere { behind, .. } => *behind <= BEHIND_MAX,
            Standing::Own { .. } | Standing::Changing { .. } | Standing::Vacant => false,
        })
    }
}

/// None unless shards are at rest as far as this node knows: each has an owner that works, and none was given to it by hand
/// lately.
pub fn owners(seats: &[Arc<Seat>], config: &Config, wall: &WallClock) -> Option<Owners> {
    let owner = |seat: &Arc<Seat>| match &*seat.standing() {
        _ if seat.is_broken() => None,
        Standing::Own { tenure, .. } if tenure.holds() => Some((config.node.name.clone(), tenure.epoch)),
        Standing::Elsewhere { node, epoch, until, .. } if *until > clock::now() => {
            Some((node.clone(), *epoch))
        }
        _ => None,
    };
    let is_assigned = |seat: &Arc<Seat>, node: &str| {
        seat.assignment().is_some_and(|assignment| {
            let age = Duration::from_micros(wall.now().since(assignment.at));
            &*assignment.node == node && age < config.assigned_for
        })
    };
    let owners = seats.iter().map(|seat| owner(seat).filter(|(node, _)| !is_assigned(seat, node)));
    owners.collect()
}

/// The shards that `me` may ask for, all of one node: the one that has the most of those that have such.
pub fn wanted<'n>(owners: impl Iterator<Item = &'n str>, me: &str, may: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut shards: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (shard, node) in (0..).zip(owners) {
        shards.entry(node).or_default().push(shard);
    }
    let own = shards.get(me).map_or(0, Vec::len);
    let mut others: Vec<Vec<u32>> = shards.into_values().filter(|theirs| theirs.len() >= own + 2).collect();
    others.sort_by_key(|theirs| std::cmp::Reverse(theirs.len()));
    let mut theirs =
        others.into_iter().map(|theirs| theirs.into_iter().filter(|shard| may(*shard)).collect());
    theirs.find(|theirs: &Vec<u32>| !theirs.is_empty()).unwrap_or_default()
}

/// Does it bring the nodes nearer to each other if this shard goes to `to`? Its owner need not have the most: whoever asks may be
/// too far behind the journal of those.
pub fn is_worth_giving(owners: &[&str], shard: u32, to: &str) -> bool {
    let count = |node: &str| owners.iter().filter(|owner| **owner == node).count();
    owners.get(shard as usize).is_some_and(|owner| count(owner) >= count(to) + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_has_two_fewer_asks_who_has_the_most() {
        let wanted = |owners: &str, known: &[u32]| {
            super::wanted(owners.split(' '), "me", |shard| known.contains(&shard))
        };
        assert_eq!(wanted("a a", &[0, 1]), [0, 1]);
        assert_eq!(wanted("a a me", &[0, 1]), [0u32; 0]);
        assert_eq!(wanted("a a a me", &[0, 2]), [0, 2]);
        assert_eq!(wanted("a b a b b me", &[0, 1, 2, 3, 4]), [1, 3, 4]);
        assert_eq!(
            wanted("a b a b b", &[0, 2]),
            [0, 2],
            "of the next one, where the first has none that is known"
        );
        assert_eq!(wanted("me me", &[0, 1]), [0u32; 0]);
        assert_eq!(wanted("a", &[0]), [0u32; 0]);
    }

    #[test]
    fn who_has_two_more_gives_also_if_another_has_the_most() {
        let owners = ["a", "b", "a", "b", "a", "b", "a", "c"];
        let given = |to| (0..9).filter(|shard| is_worth_giving(&owners, *shard, to)).collect::<Vec<_>>();
        assert_eq!(given("me"), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(given("c"), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(given("b"), [0u32; 0]);
        // Whatever is asked for is given, if both know the same.
        let known = |shard| shard % 2 == 1;
        let wanted = wanted(owners.into_iter(), "me", known);
        assert_eq!(wanted, [1, 3, 5], "of the second, whose shards are known");
        assert!(wanted.iter().all(|shard| is_worth_giving(&owners, *shard, "me")));
    }

    proptest! {
        /// Whoever asks in whichever order: each transfer brings the nodes nearer to each other, so it ends, evenly.
        #[test]
        fn it_comes_to_rest(
            nodes in 1usize..6, owners in proptest::collection::vec(0usize..6, 1..40),
            turns in proptest::collection::vec((0usize..6, any::<prop::sample::Index>()), 400),
        ) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let mut owners: Vec<&str> = owners.into_iter().map(|owner| names[owner % nodes]).collect();
            let count = |owners: &[&str], node: &str| owners.iter().filter(|owner| **owner == node).count();
            let apart = |owners: &[&str]| names.iter().map(|node| count(owners, node).pow(2)).sum::<usize>();
            for (node, choice) in turns {
                let me = names[node % nodes];
                let wanted = wanted(owners.iter().copied(), me, |_| true);
                if wanted.is_empty() {
                    continue;
                }
                let before = apart(&owners);
                owners[*choice.get(&wanted) as usize] = me;
                prop_assert!(apart(&owners) < before, "{owners:?}");
            }
            for _ in 0..owners.len() {
                for me in &names[..nodes] {
                    if let Some(shard) = wanted(owners.iter().copied(), me, |_| true).first() {
                        owners[*shard as usize] = me;
                    }
                }
            }
            let counts = names[..nodes].iter().map(|node| count(&owners, node));
            prop_assert!(counts.clone().max().unwrap() - counts.min().unwrap() <= 1, "{owners:?}");
        }
    }
}
