//! A shard's state as its journal has it: what an owner begins with, and what other nodes keep up to date.

use crate::billing::domain::{self, CodecError, State};
use crate::billing::journal::{Batch, Error, Snapshot, Tail};

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
        let Some(Snapshot { seq, payload, .. }) = backend.newest_snapshot(shard).await? else {
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

    /// Brings it to exactly `seq`, the last batch of a lease just acquired.
    pub async fn catch_up<B: Backend>(self, backend: &B, shard: u32, seq: u64) -> Result<Replica, Error> {
        let mut replica = self;
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

    /// Everything, when nobody writes any more.
    async fn finish<B: Backend>(&mut self, backend: &B, shard: u32) -> Result<(), Error> {
        while self.read_on(backend, shard).await? > 0 {}
        Ok(())
    }

    /// How many batches one read gave. What is here may not be the journal's any more: a master that failed may have shown a
    /// batch that its replicas never had, and a backup may have been restored. Then it is read anew.
    async fn read_on<B: Backend>(&mut self, backend: &B, shard: u32) -> Result<usize, Error> {
        let mut tail = backend.tail(shard, self.seq, READ_BYTES).await?;
        if !self.is_before(shard, &tail)? {
            tracing::warn!(
                shard,
                seq = self.seq,
                "what was followed is not in the journal any more, the shard is read anew"
            );
            *self = Replica::load(backend, shard).await?;
            tail = backend.tail(shard, self.seq, READ_BYTES).await?;
            if !self.is_before(shard, &tail)? {
                let what = format!("a snapshot stands for it, and the journal ends at {}", tail.end);
                return Err(Error::Corrupt { shard, seq: self.seq, what });
            }
        }
        // What is only known from a snapshot gets its mark here.
        self.last = tail.mark;
        for batch in &tail.batches {
            self.replay(batch)?;
        }
        tokio::task::yield_now().await;
        Ok(tail.batches.len())
    }

    /// Does it follow the last batch that is in here?
    fn is_before(&self, shard: u32, tail: &Tail) -> Result<bool, Error> {
        let Tail { end, mark, batches: _ } = tail;
        match (self.last, mark) {
            _ if *end < self.seq => Ok(false),
            (Some(last), Some(mark)) => Ok(last == *mark),
            // Nobody can tell.
            (Some(_), None) => Err(Error::Truncated { shard, through: self.seq }),
            (None, _) => Ok(true),
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
