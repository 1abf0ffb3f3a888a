//! When an owner makes a snapshot, and making it beside the commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Config;
use super::backend::Backend;
use crate::billing::background;
use crate::billing::domain::State;
use crate::billing::journal::{Error, Snapshot};
use crate::billing::projection::Feed;
use crate::clock;

/// Before a failed one is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// How long the batches behind a snapshot are kept for the ledger to come to it. If it does not, they stay until the next one.
const LEDGER_PATIENCE: Duration = Duration::from_secs(10);

/// Counts what would have to be replayed.
pub struct Snapshots {
    bytes_max: u64,
    batches_max: u64,
    keep_batches: u64,
    bytes: u64,
    batches: u64,
    not_before: Option<Instant>,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    running: AtomicBool,
    failed: AtomicBool,
    last_bytes: AtomicU64,
}

impl Snapshots {
    pub fn new(config: &Config) -> Snapshots {
        Snapshots {
            bytes_max: config.snapshot_bytes,
            batches_max: config.snapshot_batches,
            keep_batches: config.keep_batches,
            bytes: 0,
            batches: 0,
            not_before: None,
            progress: Arc::default(),
        }
    }

    /// A batch of this size is durable. True if a snapshot should be made now.
    pub fn is_due(&mut self, batch_bytes: usize) -> bool {
        self.bytes += batch_bytes as u64;
        self.batches += 1;
        if self.progress.running.load(Relaxed) {
            return false;
        }
        if self.progress.failed.swap(false, Relaxed) {
            self.not_before = Some(clock::now() + AGAIN);
            self.batches = self.batches.max(self.batches_max);
        }
        let enough = self.bytes >= self.bytes_max.max(self.progress.last_bytes.load(Relaxed));
        (enough || self.batches >= self.batches_max) && self.not_before.is_none_or(|at| clock::now() >= at)
    }

    /// The future stores a snapshot of this state. It is to be run beside the owner: the clone costs a thousand counters,
    /// encoding it some 100 ms for 1M accounts.
    pub fn make<B: Backend>(
        &mut self,
        backend: B,
        feed: Feed,
        (shard, seq, epoch): (u32, u64, u64),
        state: State,
    ) -> impl Future<Output = ()> + Send + use<B> {
        self.bytes = 0;
        self.batches = 0;
        self.not_before = None;
        let progress = Arc::clone(&self.progress);
        progress.running.store(true, Relaxed);
        let through = seq.saturating_sub(self.keep_batches);
        async move {
            let began = clock::now();
            match store(&backend, &feed, (shard, seq, epoch), state, through).await {
                Ok(bytes) => {
                    progress.last_bytes.store(bytes, Relaxed);
                    let took = clock::now() - began;
                    tracing::info!(shard, seq, bytes, ?took, "a snapshot was made");
                }
                Err(error) => {
                    progress.failed.store(true, Relaxed);
                    tracing::warn!(shard, seq, %error, "a snapshot could not be made, the journal grows until one can");
                }
            }
            progress.running.store(false, Relaxed);
        }
    }
}

async fn store<B: Backend>(
    backend: &B,
    feed: &Feed,
    (shard, seq, epoch): (u32, u64, u64),
    state: State,
    through: u64,
) -> Result<u64, Error> {
    let encoded = background::run(move || state.encode()).await;
    let encoded = encoded
        .map_err(|source| Error::Unavailable { step: "encoding a snapshot", source: source.into() })?;
    let bytes = encoded.len() as u64;
    backend.put_snapshot(&Snapshot { shard, seq, epoch, payload: Bytes::from(encoded) }).await?;
    if through > 0 {
        if !feed.passed(seq, LEDGER_PATIENCE).await {
            tracing::debug!(shard, seq, "the ledger is behind the snapshot, less is truncated");
        }
        backend.truncate(shard, through).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::journal::Node;

    fn snapshots(bytes: u64, batches: u64) -> Snapshots {
        let node = Node { name: "a".to_owned(), advertise: "a:1".to_owned() };
        Snapshots::new(&Config { snapshot_bytes: bytes, snapshot_batches: batches, ..Config::new(node, 1) })
    }

    #[test]
    fn they_are_due_by_bytes_or_by_batches() {
        let mut by_bytes = snapshots(100, 1000);
        assert!(!by_bytes.is_due(99) && by_bytes.is_due(1));
        let mut by_batches = snapshots(100, 3);
        assert!(!by_batches.is_due(1) && !by_batches.is_due(1) && by_batches.is_due(1));
    }

    #[test]
    fn a_large_one_is_not_made_as_often() {
        let mut snapshots = snapshots(100, 1000);
        snapshots.progress.last_bytes.store(300, Relaxed);
        assert!(!snapshots.is_due(299) && snapshots.is_due(1));
        snapshots.progress.running.store(true, Relaxed);
        assert!(!snapshots.is_due(1000), "one runs already");
    }
}
