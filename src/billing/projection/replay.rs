//! A state of the projector's own, as long as it derives lines from the journal.

use super::Ledger;
use super::lines;
use crate::billing::domain::{self, BUCKETS, Row, State};
use crate::billing::journal::{Batch, Error, Line, Snapshot};

pub struct Replay {
    pub state: State,
    /// Of the last batch in it.
    pub seq: u64,
}

impl Replay {
    /// The state at, or before, the batch that the ledger has: from the newest such snapshot, or from the beginning.
    pub async fn before<L: Ledger>(ledger: &L, shard: u32, projected: u64) -> Result<Replay, Error> {
        match ledger.snapshot_before(shard, projected).await? {
            Some(snapshot) => Replay::decode(snapshot).await,
            None => Ok(Replay { state: State::new([]), seq: 0 }),
        }
    }

    /// The newest snapshot, whatever the ledger has.
    pub async fn newest<L: Ledger>(ledger: &L, shard: u32) -> Result<Replay, Error> {
        match ledger.newest_snapshot(shard).await? {
            Some(snapshot) => Replay::decode(snapshot).await,
            None => Err(Error::Corrupt {
                shard,
                seq: 1,
                what: "it is gone, and no snapshot stands for it".to_owned(),
            }),
        }
    }

    async fn decode(snapshot: Snapshot) -> Result<Replay, Error> {
        let Snapshot { shard, seq, payload, .. } = snapshot;
        // Some hundred milliseconds for a large one.
        let decoded = tokio::task::spawn_blocking(move || State::decode(&payload)).await;
        let decoded = decoded
            .map_err(|source| Error::Unavailable { step: "decoding a snapshot", source: source.into() })?;
        let state = decoded.map_err(|error| Error::Corrupt { shard, seq, what: error.to_string() })?;
        Ok(Replay { state, seq })
    }

    /// Silently if the ledger has it, else with its lines.
    pub fn take(&mut self, batch: &Batch, projected: u64, lines: &mut Vec<Line>) -> Result<(), Error> {
        let Batch { shard, seq, payload, .. } = batch;
        let corrupt = |what| Error::Corrupt { shard: *shard, seq: *seq, what };
        if *seq != self.seq + 1 {
            return Err(corrupt(format!("it comes after {}", self.seq)));
        }
        let commands = domain::Batch::decode(payload).map_err(|error| corrupt(error.to_string()))?;
        if *seq <= projected {
            self.state.replay(&commands);
        } else {
            lines::replay(&mut self.state, &commands, *seq, lines);
        }
        self.seq = *seq;
        Ok(())
    }

    /// Every account, bucket by bucket.
    pub fn rows(&self) -> impl Iterator<Item = Row> + Send + 'static {
        let state = self.state.clone();
        (0..BUCKETS).flat_map(move |bucket| state.accounts_of(bucket).unwrap_or_default())
    }
}
