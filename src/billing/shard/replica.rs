//! A shard's state as its journal has it: what an owner begins with, and what other nodes keep up to date.

use crate::billing::domain::{self, CodecError, State};
use crate::billing::journal::{Batch, Error, Snapshot};

use super::backend::Backend;

/// Bytes of batches in one read: a few milliseconds of replay.
const READ_BYTES: usize = 4 << 20;
/// So few batches are the end, but for what was written meanwhile.
const NEAR: usize = 16;

/// Only what is durable, in the order of the journal.
pub struct Replica {
    pub state: State,
    /// Of the last batch in it.
    pub seq: u64,
    /// Epoch and checksum of that batch; None if it is only known from a snapshot.
    pub last: Option<(u64, u32)>,
}

impl Replica {
    /// The newest snapshot, or nothing.
    pub async fn load<B: Backend>(backend: &B, shard: u32) -> Result<Replica, Error> {
        let Some(Snapshot { seq, payload, .. }) = backend.snapshot(shard).await? else {
            return Ok(Replica { state: State::new([]), seq: 0, last: None });
        };
        // Some hundred milliseconds for a large one.
        let decoded = tokio::task::spawn_blocking(move || State::decode(&payload)).await;
        let decoded = decoded
            .map_err(|source| Error::Unavailable { step: "decoding a snapshot", source: source.into() })?;
        let state = decoded.map_err(|error| corrupt(shard, seq, error))?;
        Ok(Replica { state, seq, last: None })
    }

    /// Replays what came since, until the end is near: an owner at work may write as fast as this reads. After
    /// [`Error::Truncated`] it has to be loaded anew.
    pub async fn follow<B: Backend>(&mut self, backend: &B, shard: u32) -> Result<(), Error> {
        while self.read_on(backend, shard).await? > NEAR {}
        Ok(())
    }

    /// Everything, when nobody writes any more.
    async fn finish<B: Backend>(&mut self, backend: &B, shard: u32) -> Result<(), Error> {
        while self.read_on(backend, shard).await? > 0 {}
        Ok(())
    }

    /// How many batches one read gave.
    async fn read_on<B: Backend>(&mut self, backend: &B, shard: u32) -> Result<usize, Error> {
        let batches = backend.read(shard, self.seq, READ_BYTES).await?;
        for batch in &batches {
            self.replay(batch)?;
        }
        tokio::task::yield_now().await;
        Ok(batches.len())
    }

    /// Brings it to exactly `seq`, the last batch of a lease just acquired, and makes sure that its own last batch is still
    /// the journal's: a master that failed may have shown one that its replicas never had.
    pub async fn catch_up<B: Backend>(self, backend: &B, shard: u32, seq: u64) -> Result<Replica, Error> {
        let mut replica = self;
        if !replica.is_part_of(backend, shard, seq).await? {
            tracing::warn!(
                shard,
                seq = replica.seq,
                "what was followed is not in the journal, it is read anew"
            );
            replica = Replica::load(backend, shard).await?;
        }
        match replica.finish(backend, shard).await {
            Err(Error::Truncated { .. }) => {
                replica = Replica::load(backend, shard).await?;
                replica.finish(backend, shard).await?;
            }
            other => other?,
        }
        if replica.seq == seq {
            Ok(replica)
        } else {
            let what = format!("the lease stands at batch {seq}, the journal ends at {}", replica.seq);
            Err(Error::Corrupt { shard, seq: replica.seq + 1, what })
        }
    }

    async fn is_part_of<B: Backend>(&self, backend: &B, shard: u32, seq: u64) -> Result<bool, Error> {
        if self.seq > seq {
            return Ok(false);
        }
        let Some(last) = self.last else { return Ok(true) };
        match backend.read(shard, self.seq.saturating_sub(1), 1).await {
            Ok(batches) => Ok(batches.first().is_some_and(|batch| last == (batch.epoch, batch.checksum()))),
            Err(Error::Truncated { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn replay(&mut self, batch: &Batch) -> Result<(), Error> {
        let Batch { shard, seq, epoch, payload } = batch;
        if *seq != self.seq + 1 {
            let what = format!("it comes after {}", self.seq);
            return Err(Error::Corrupt { shard: *shard, seq: *seq, what });
        }
        let commands = domain::Batch::decode(payload).map_err(|error| corrupt(*shard, *seq, error))?;
        self.state.replay(&commands);
        self.seq = *seq;
        self.last = Some((*epoch, batch.checksum()));
        Ok(())
    }
}

fn corrupt(shard: u32, seq: u64, error: CodecError) -> Error {
    Error::Corrupt { shard, seq, what: error.to_string() }
}
