//! What is journaled: batches and snapshots, opaque to this room.

use bytes::Bytes;

use super::framing;

/// Some commands of one shard that become durable together.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub shard: u32,
    /// 1 for a shard's first batch, then one more each time; never used twice.
    pub seq: u64,
    /// The owner's, as [`acquire`](super::Journal::acquire) gave it.
    pub epoch: u64,
    pub payload: Bytes,
}

impl Batch {
    /// Over all four fields, so that a batch in another's place is seen too.
    pub fn checksum(&self) -> u32 {
        framing::checksum(self.shard, self.seq, self.epoch, &self.payload)
    }
}

/// A piece of a shard's journal, and what it follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Tail {
    /// The last batch of all. One that is less than the place asked for: the journal was longer once.
    pub end: u64,
    /// Epoch and checksum of the batch at the place asked for, as it was when the batches were read. None: it is not there, because a
    /// snapshot stands for it, or it never was.
    pub mark: Option<(u64, u32)>,
    pub batches: Vec<Batch>,
}

/// A shard's whole state after the batch `seq`.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub shard: u32,
    pub seq: u64,
    /// Of the owner that wrote it.
    pub epoch: u64,
    pub payload: Bytes,
}

impl Snapshot {
    pub(super) fn checksum(&self) -> u32 {
        framing::checksum(self.shard, self.seq, self.epoch, &self.payload)
    }
}

/// What became of an append whose answer was lost. Final, either way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Confirmation {
    /// It is durable.
    Applied,
    /// It is not there, and what may still be on its way will be refused.
    NotApplied,
}
