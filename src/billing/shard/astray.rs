//! Buckets on which a shard's state and the bucket map do not agree.
//!
//! For a moment they may not, as a bucket's map is written after it has moved. For longer they cannot, unless replica sets were restored
//! to different moments: then a bucket is in two shards, or in none, and its accounts are as old as one of them, or gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::map::Map;
use crate::billing::domain::{BUCKETS, State};
use crate::billing::journal::BucketMap;

/// Beyond a lease, which the shard that a bucket comes from may be without an owner, this is long for a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often an owner looks.
pub const EVERY: Duration = Duration::from_secs(1);

/// Buckets of one shard, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Astray {
    /// The map gives them to the shard, which neither has them nor has sent them away.
    pub missing: Vec<u16>,
    /// The shard has them, and the map gives them to another.
    pub surplus: Vec<u16>,
}

impl Astray {
    /// As things are this moment.
    pub fn of(state: &State, map: &BucketMap, shard: u32) -> Astray {
        let mut astray = Astray::default();
        for (bucket, owner) in (0..BUCKETS).zip(&map.shards) {
            match (state.generation(bucket).is_some(), *owner == shard) {
                (true, false) => astray.surplus.push(bucket),
                (false, true) if state.outgoing_of(bucket).is_none() => astray.missing.push(bucket),
                (true, true) | (false, _) => {}
            }
        }
        astray
    }

    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty()
    }

    pub fn len(&self) -> usize {
        self.missing.len() + self.surplus.len()
    }
}

/// What was seen of a shard so far.
#[derive(Default)]
pub struct Watch {
    /// Of each bucket that is astray: its generation, and since when.
    since: BTreeMap<u16, (u64, Instant)>,
    lasting: Astray,
}

impl Watch {
    /// `state` is as of now. Tells what is astray for so long that it does not end by itself, in the log once.
    pub fn look(&mut self, state: &State, map: &Map, shard: u32, lease: Duration, now: Instant) -> &Astray {
        // Read first: the map may only become newer until it is looked at.
        let known = map.known_at();
        let mut astray = Astray::of(state, &map.current(), shard);
        let before = std::mem::take(&mut self.since);
        for bucket in astray.missing.iter().chain(&astray.surplus) {
            let generation = state.seen(*bucket);
            let since = before.get(bucket).filter(|(seen, _)| *seen == generation);
            self.since.insert(*bucket, since.copied().unwrap_or((generation, now)));
        }
        // A map from before would not tell whether it was only late.
        let lasts = |bucket: &u16| {
            self.since.get(bucket).is_some_and(|(_, since)| known >= *since + lease + PATIENCE)
        };
        astray.missing.retain(lasts);
        astray.surplus.retain(lasts);
        if astray != self.lasting {
            tell(shard, &astray);
            self.lasting = astray;
        }
        &self.lasting
    }

    pub fn lasting(&self) -> &Astray {
        &self.lasting
    }
}

fn tell(shard: u32, astray: &Astray) {
    let Astray { missing, surplus } = astray;
    if astray.is_empty() {
        return tracing::info!(shard, "the shard has the buckets of the map again");
    }
    tracing::error!(
        shard,
        ?missing,
        ?surplus,
        "the shard has other buckets than the map says, as after a restore to different moments: \
         see docs/billing-operations.md"
    );
}
