//! Who owns a shard, and which bucket belongs to which shard.

use std::time::Duration;

use super::Error;

/// How many buckets accounts are spread over by the hash of their id.
pub const BUCKETS: usize = 1000;

/// A node as leases name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Two nodes must not share a name: each would take the other's leases.
    pub name: String,
    /// Where other nodes forward requests to.
    pub advertise: String,
}

/// Ownership of a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub shard: u32,
    /// Larger with every owner, also when the same node comes back.
    pub epoch: u64,
    /// The last batch of the shard. Of a lease just acquired: nothing of an earlier owner can follow it.
    pub seq: u64,
    /// The owner; or whom the shard was handed to, as long as `advertise` is empty; or empty, if nobody has had it.
    pub node: String,
    pub advertise: String,
    /// By the journal's clock, at the time of the answer; zero if it ran out. The owner should count from before its
    /// call, so that its own idea of the end is never the later one.
    pub expires_in: Duration,
}

/// The answer to [`acquire`](super::Journal::acquire).
#[derive(Clone, Debug, PartialEq)]
pub enum Acquisition {
    /// With a new epoch; everybody before is fenced.
    Acquired(Lease),
    /// Another node has it, or it is kept for another node.
    Held(Lease),
}

/// To which shard each bucket belongs.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketMap {
    /// One more with each change; 1 at first.
    pub version: u64,
    /// [`BUCKETS`] of them.
    pub shards: Vec<u32>,
}

impl BucketMap {
    /// The map of a first start.
    pub fn spread(shards: u32) -> BucketMap {
        BucketMap { version: 1, shards: (0..shards.max(1)).cycle().take(BUCKETS).collect() }
    }

    pub(super) fn check(&self, shards: u32) -> Result<(), Error> {
        let BucketMap { version: _, shards: of } = self;
        if of.len() != BUCKETS {
            return Err(Error::Config(format!("a bucket map has {BUCKETS} buckets, not {}", of.len())));
        }
        let last = of.iter().copied().max().unwrap_or(0);
        if last >= shards {
            return Err(Error::Config(format!(
                "the journal has buckets in shard {last}, and with `[shards] count = {shards}` there is none: \
                 shards can be added and not taken away, so set it to {} or more",
                u64::from(last) + 1
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_map_is_even() {
        for shards in [1, 2, 3, 7, 1000] {
            let map = BucketMap::spread(shards);
            assert!(map.check(shards).is_ok());
            let of = |shard| map.shards.iter().filter(|of| **of == shard).count();
            let counts: Vec<usize> = (0..shards).map(of).collect();
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(max - min <= 1, "{shards} shards: {min} to {max} buckets");
        }
    }

    #[test]
    fn a_map_of_unknown_shards_is_refused() {
        let lowered = BucketMap::spread(3).check(2).unwrap_err().to_string();
        assert!(lowered.contains("in shard 2") && lowered.contains("`[shards] count = 2`"), "{lowered}");
        assert!(lowered.contains("set it to 3 or more"), "{lowered}");
        assert!(BucketMap { version: 1, shards: vec![0; 999] }.check(2).is_err());
    }
}
