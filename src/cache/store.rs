//! The one store: moka, weighed in bytes. Time is not moka's matter: every hit is checked against `now`, and the
//! refresher removes what has expired.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use moka::notification::RemovalCause;
use parking_lot::Mutex;

use super::metrics::Metrics;
use super::schedule::Schedule;
use super::{Config, Entry, Fetch, Policy};

/// An entry with what is needed to renew it.
pub struct Record {
    pub id: u64,
    pub key: Box<str>,
    pub entry: Arc<Entry>,
    pub policy: Arc<Policy>,
    pub fetch: Arc<dyn Fetch>,
    /// Asked for since the refresher looked last.
    demanded: AtomicBool,
    /// When the refresher last saw that it had been asked for.
    pub demanded_at: Mutex<Instant>,
    /// Renewals that failed in a row.
    pub failures: AtomicU32,
}

impl Record {
    pub fn new(id: u64, key: Box<str>, entry: Entry, policy: Arc<Policy>, fetch: Arc<dyn Fetch>) -> Record {
        let demanded_at = Mutex::new(entry.times.epoch);
        let (demanded, failures) = (AtomicBool::new(false), AtomicU32::new(0));
        Record { id, key, entry: Arc::new(entry), policy, fetch, demanded, demanded_at, failures }
    }

    /// Hot path: writes only the first time, so that the cache line stays shared between the cores.
    #[inline]
    pub fn mark_demand(&self) {
        if !self.demanded.load(Ordering::Relaxed) {
            self.demanded.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the mark off.
    pub fn take_demand(&self) -> bool {
        self.demanded.swap(false, Ordering::Relaxed)
    }

    fn weight_bytes(&self) -> u64 {
        // The key is held twice: here and by moka.
        self.entry.weight_bytes() + 2 * self.key.len() as u64
    }
}

type Planned = Arc<Mutex<Schedule<Arc<Record>>>>;

/// Entries by key, and the plan of when to look at each again. Locks: `plan` is taken last and never held over a call
/// of moka, whose removal listener takes it.
pub struct Store {
    entries: moka::sync::Cache<Box<str>, Arc<Record>, ahash::RandomState>,
    pub plan: Planned,
}

impl Store {
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Store {
        let plan: Planned = Arc::new(Mutex::new(Schedule::new()));
        let unplan = Arc::clone(&plan);
        let entries = moka::sync::Cache::builder()
            .max_capacity(config.capacity_bytes)
            .weigher(|_, record: &Arc<Record>| u32::try_from(record.weight_bytes()).unwrap_or(u32::MAX))
            .eviction_listener(move |_, record: Arc<Record>, cause| {
                unplan.lock().remove(record.id);
                metrics.entries.dec();
                metrics.bytes.sub(bytes(&record));
                if cause == RemovalCause::Size {
                    metrics.evictions.inc();
                }
            })
            .build_with_hasher(ahash::RandomState::new());
        Store { entries, plan }
    }

    /// Whatever its age. Allocates nothing.
    #[inline]
    pub fn get(&self, key: &str) -> Option<Arc<Record>> {
        self.entries.get(key)
    }

    /// Stores, in place of an older record of this key, and plans the first look at it. True if no other look is
    /// earlier. Call under the lock of the flights; `make_room` after it.
    pub fn insert(&self, record: Record, due: Instant, metrics: &Metrics) -> bool {
        let record = Arc::new(record);
        // Before moka sees it: the listener may be called for it at once.
        metrics.entries.inc();
        metrics.bytes.add(bytes(&record));
        let first = self.plan.lock().insert(record.id, due, Arc::clone(&record));
        self.entries.insert(record.key.clone(), record);
        first
    }

    /// Evicts down to the capacity now rather than some time later.
    pub fn make_room(&self) {
        self.entries.run_pending_tasks();
    }

    pub fn remove(&self, key: &str) -> bool {
        self.entries.remove(key).is_some()
    }

    /// Is it this very record that is stored under its key?
    pub fn holds(&self, record: &Arc<Record>) -> bool {
        self.entries.get(&*record.key).is_some_and(|held| Arc::ptr_eq(&held, record))
    }

    /// Removes all whose key is chosen; how many. Complete only while nothing is inserted.
    pub fn remove_where(&self, chosen: impl Fn(&str) -> bool) -> u64 {
        let keys: Vec<_> = self.entries.iter().map(|(key, _)| key).filter(|key| chosen(key)).collect();
        keys.iter().filter(|key| self.remove(key)).count() as u64
    }
}

fn bytes(record: &Record) -> i64 {
    i64::try_from(record.weight_bytes()).unwrap_or(i64::MAX)
}
