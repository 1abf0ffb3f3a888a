//! Stored answers: what may be stored, for how long, which requests they fit, and how they are fetched, collapsed into
//! one fetch, renewed ahead and purged (RFC 9111 as far as lifetimes go; validation follows).
//!
//! The cache knows no upstream: it is given a `Fetch`. It never serves an answer at the age of its lifetime or beyond
//! (checked at each hit), never stores an error, and never holds a lock while it waits.
//!
//! Order of calls: `key::write`, `Cache::lookup`; if that gives nothing, `Cache::get`, which fetches.

mod collapse;
mod conditional;
mod directives;
mod entry;
mod fetch;
mod freshness;
pub mod key;
mod metrics;
mod policy;
mod purge;
mod refresh;
mod schedule;
mod storable;
mod store;
#[cfg(test)]
mod tests;
mod vary;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use collapse::Flights;
use metrics::Metrics;
use store::Store;

pub use entry::Entry;
pub use fetch::{Answer, Fetch, FetchError, Fetched};
pub use freshness::Times;
pub use policy::{Config, Policy, QueryKey};
pub use storable::Uncacheable;

/// Why a cache could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the metrics of the cache cannot be registered")]
    Metrics(#[from] prometheus::Error),
}

/// The store and its fetches. Shared by all threads.
pub struct Cache {
    store: Store,
    flights: Mutex<Flights>,
    /// Fetches that requests began.
    fills: Arc<Semaphore>,
    /// Renewals. Apart from the fills, so that neither can starve the other.
    renewals: Arc<Semaphore>,
    /// Wakes the refresher: something is due earlier than it knows, or a renewal ended.
    wake: Notify,
    object_bytes_max: u64,
    metrics: Arc<Metrics>,
}

impl Cache {
    /// An empty cache. Fails if another one is registered already.
    pub fn new(config: Config, registry: &prometheus::Registry) -> Result<Arc<Cache>, Error> {
        let metrics = Arc::new(Metrics::new(registry)?);
        let fills = config.fills.clamp(1, Semaphore::MAX_PERMITS);
        Ok(Arc::new(Cache {
            store: Store::new(&config, Arc::clone(&metrics)),
            flights: Mutex::default(),
            fills: Arc::new(Semaphore::new(fills)),
            renewals: Arc::new(Semaphore::new(fills)),
            wake: Notify::new(),
            object_bytes_max: config.object_bytes_max,
            metrics,
        }))
    }

    /// Hot path: the entry if it is fresh at `now`, or `None`. Marks demand and counts the hit; counts nothing else,
    /// because `get` follows. Allocates nothing.
    #[inline]
    pub fn lookup(&self, key: &str, now: Instant) -> Option<Arc<Entry>> {
        let record = self.store.get(key)?;
        if !record.entry.times.fresh(now) {
            return None;
        }
        record.mark_demand();
        self.metrics.hit(record.entry.times.age(now));
        Some(Arc::clone(&record.entry))
    }

    /// Counts a request of a cached route for which the store was not asked, or could not serve (lookups: bypass).
    pub fn count_bypass(&self) {
        self.metrics.lookups.bypass.inc();
    }

    /// Age of the answer that was handed out last by `lookup`; `None` before the first.
    pub fn last_age(&self) -> Option<std::time::Duration> {
        self.metrics.last_age()
    }

    /// Entries in the store, expired ones included that were not removed yet.
    pub fn entries(&self) -> u64 {
        u64::try_from(self.metrics.entries.get()).unwrap_or(0)
    }

    /// Bytes of all entries, keys included.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.metrics.bytes.get()).unwrap_or(0)
    }
}
