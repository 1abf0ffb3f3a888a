//! What is counted. Every counter is resolved once, so that a hit costs a few atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Metrics of the one store.
pub struct Metrics {
    pub lookups: Lookups,
    pub fetches: Fetches,
    pub refreshes: Refreshes,
    /// Age of answers served from the store.
    pub age: Histogram,
    pub bytes: IntGauge,
    pub entries: IntGauge,
    pub evictions: IntCounter,
    pub purged: IntCounter,
    /// Age of the answer served last, in milliseconds, plus one; 0 before the first.
    last_age: AtomicU64,
}

/// Results of lookups, in the words of the lexicon.
pub struct Lookups {
    pub hit: IntCounter,
    pub miss: IntCounter,
    pub stale: IntCounter,
    pub bypass: IntCounter,
    pub collapsed: IntCounter,
}

/// Ends of fetches, renewals included.
pub struct Fetches {
    pub stored: IntCounter,
    pub pass: IntCounter,
    pub failed: IntCounter,
    pub aborted: IntCounter,
    pub purged: IntCounter,
    pub busy: IntCounter,
}

/// Renewals ahead of expiry.
pub struct Refreshes {
    pub stored: IntCounter,
    pub failed: IntCounter,
    pub idle: IntCounter,
}

/// Upper bounds in seconds: whole seconds matter most around the 60 s that must not be passed.
const AGE_BUCKETS: [f64; 12] = [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 55.0, 60.0, 120.0, 600.0, 3600.0];

impl Metrics {
    /// Fails if a metric of the same name is registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let lookups = by_result(registry, "lookups", "Lookups by result")?;
        let fetches = by_result(registry, "fetches", "Fetches from the origin by result")?;
        let refreshes = by_result(registry, "refreshes", "Renewals ahead of expiry by result")?;
        let age =
            HistogramOpts::new("forefront_cache_age_served_seconds", "Age of answers served from the store")
                .buckets(AGE_BUCKETS.to_vec());
        Ok(Metrics {
            lookups: Lookups {
                hit: lookups.with_label_values(&["hit"]),
                miss: lookups.with_label_values(&["miss"]),
                stale: lookups.with_label_values(&["stale"]),
                bypass: lookups.with_label_values(&["bypass"]),
                collapsed: lookups.with_label_values(&["collapsed"]),
            },
            fetches: Fetches {
                stored: fetches.with_label_values(&["stored"]),
                pass: fetches.with_label_values(&["pass"]),
                failed: fetches.with_label_values(&["failed"]),
                aborted: fetches.with_label_values(&["aborted"]),
                purged: fetches.with_label_values(&["purged"]),
                busy: fetches.with_label_values(&["busy"]),
            },
            refreshes: Refreshes {
                stored: refreshes.with_label_values(&["stored"]),
                failed: refreshes.with_label_values(&["failed"]),
                idle: refreshes.with_label_values(&["idle"]),
            },
            age: register(registry, Histogram::with_opts(age)?)?,
            bytes: register(registry, IntGauge::new("forefront_cache_size_bytes", "Bytes of all entries")?)?,
            entries: register(registry, IntGauge::new("forefront_cache_entries", "Entries in the store")?)?,
            evictions: counter(registry, "evictions", "Entries removed to make room")?,
            purged: counter(registry, "purged", "Entries removed by purges")?,
            last_age: AtomicU64::new(0),
        })
    }

    /// One hit. Two counters and one histogram: no look-up of labels.
    #[inline]
    pub fn hit(&self, age: Duration) {
        self.lookups.hit.inc();
        self.age.observe(age.as_secs_f64());
        self.last_age.store(age.as_millis() as u64 + 1, Relaxed);
    }

    /// Age of the answer served last.
    pub fn last_age(&self) -> Option<Duration> {
        self.last_age.load(Relaxed).checked_sub(1).map(Duration::from_millis)
    }
}

fn by_result(registry: &Registry, thing: &str, help: &str) -> Result<IntCounterVec, prometheus::Error> {
    let opts = Opts::new(format!("forefront_cache_{thing}_total"), help);
    register(registry, IntCounterVec::new(opts, &["result"])?)
}

fn counter(registry: &Registry, thing: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    register(registry, IntCounter::new(format!("forefront_cache_{thing}_total"), help)?)
}

fn register<M>(registry: &Registry, metric: M) -> Result<M, prometheus::Error>
where
    M: prometheus::core::Collector + Clone + 'static,
{
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
