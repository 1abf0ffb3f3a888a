//! Which shard has a bucket: as this node knows it, and as the journal is told.
//!
//! The journal's map follows the states: a bucket is set to a shard once that shard has adopted it, and a shard releases a
//! bucket only after it has found in the journal's map that the bucket is its own. So for each release the map is changed
//! once, from the shard that released to the shard that adopted; whoever finds it changed finds it done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use crate::billing::journal::{BucketMap, Error};
use crate::clock;
use crate::resilience::backoff::Backoff;

/// Between readings that brought nothing new; a moved bucket's map is written within moments.
const AGAIN: Duration = Duration::from_millis(50);
/// Another node was faster, or the journal does not answer.
const RETRY: Backoff = Backoff { min: Duration::from_millis(5), max: Duration::from_secs(1) };

pub struct Map {
    current: ArcSwap<BucketMap>,
    /// The journal had no newer one then.
    known_at: parking_lot::Mutex<Instant>,
    /// Somebody found it old.
    doubted: Notify,
    refreshed: Notify,
    /// One change at a time from this node: each has to be made on what the last one left.
    setting: Mutex<()>,
}

impl Map {
    pub fn new(current: BucketMap) -> Map {
        Map {
            current: ArcSwap::from_pointee(current),
            known_at: parking_lot::Mutex::new(clock::now()),
            doubted: Notify::new(),
            refreshed: Notify::new(),
            setting: Mutex::new(()),
        }
    }

    /// As this node knows it.
    pub fn current(&self) -> Guard<Arc<BucketMap>> {
        self.current.load()
    }

    /// When the journal had no newer one.
    pub fn known_at(&self) -> Instant {
        *self.known_at.lock()
    }

    pub fn shard_of(&self, bucket: u16) -> Option<u32> {
        self.current.load().shards.get(usize::from(bucket)).copied()
    }

    /// It is read again soon.
    pub fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// As the journal has it right now.
    pub async fn read<B: Backend>(&self, backend: &B) -> Result<Arc<BucketMap>, Error> {
        let from = clock::now();
        let fresh = Arc::new(backend.bucket_map().await?);
        self.learn(&fresh, from);
        Ok(fresh)
    }

    /// Until this node knows a map that is newer than this version.
    pub async fn newer_than(&self, version: u64) {
        loop {
            let refreshed = self.refreshed.notified();
            if self.current.load().version > version {
                return;
            }
            self.doubt();
            refreshed.await;
        }
    }

    /// Reads it now and then, and when somebody found it old.
    pub async fn keep<B: Backend>(&self, backend: B, every: Duration, closing: CancellationToken) {
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                () = tokio::time::sleep(every) => {}
                () = self.doubted.notified() => {}
            }
            let version = self.current.load().version;
            match self.read(&backend).await {
                Ok(fresh) if fresh.version > version => {
                    tracing::debug!(version = fresh.version, "there is a new bucket map");
                }
                Ok(_) => tokio::time::sleep(AGAIN).await,
                Err(error) => {
                    tracing::debug!(%error, "the bucket map could not be read");
                    tokio::time::sleep(AGAIN).await;
                }
            }
            self.refreshed.notify_waiters();
        }
    }

    /// Returns when in the journal the bucket is `to`'s, or was and has moved on; in any case not `from`'s by its last way.
    ///
    /// `may` says whether the caller is still the one to do it: its lease lasts, and the bucket has not come back. It is asked
    /// after the map was read and before it is set, and the journal refuses a change that is not of the map as it was read.
    /// So a caller that was stopped in between, for however long, changes nothing that came after its time. One that may not
    /// any more goes on asking, in vain; whoever calls this ends it.
    pub async fn set<B: Backend>(
        &self,
        backend: &B,
        bucket: u16,
        from: u32,
        to: u32,
        may: impl Fn() -> bool,
    ) {
        let mut tries = 0;
        loop {
            let done = {
                let _one_at_a_time = self.setting.lock().await;
                self.try_set(backend, bucket, from, to, &may).await
            };
            match done {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(bucket, %error, "the bucket map could not be changed yet"),
            }
            tokio::time::sleep(RETRY.delay(tries, fastrand::f64())).await;
            tries = tries.saturating_add(1);
        }
    }

    async fn try_set<B: Backend>(
        &self,
        backend: &B,
        bucket: u16,
        from: u32,
        to: u32,
        may: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        let began = clock::now();
        let mut map = backend.bucket_map().await?;
        if map.shards.get(usize::from(bucket)) != Some(&from) {
            self.learn(&Arc::new(map), began);
            return Ok(true);
        }
        if !may() {
            return Ok(false);
        }
        map.version += 1;
        map.shards.iter_mut().skip(usize::from(bucket)).take(1).for_each(|shard| *shard = to);
        let set = backend.set_bucket_map(&map).await?;
        if set {
            self.learn(&Arc::new(map), began);
        }
        Ok(set)
    }

    /// `from` is before it was read.
    fn learn(&self, fresh: &Arc<BucketMap>, from: Instant) {
        self.current.rcu(|current| if fresh.version > current.version { fresh } else { current }.clone());
        let mut known_at = self.known_at.lock();
        *known_at = from.max(*known_at);
        drop(known_at);
        self.refreshed.notify_waiters();
    }
}
