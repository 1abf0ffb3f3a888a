//! What is counted of pools and endpoints.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, CounterVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::health::{Reason, Transition};
use super::pool::Pool;
use super::probe;

const ENDPOINT: [&str; 2] = ["upstream", "endpoint"];

/// The metrics of all pools; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    answer_seconds: CounterVec,
    retries: IntCounterVec,
    probes: IntCounterVec,
    ejections: IntCounterVec,
    transitions: IntCounterVec,
    gauges: Gauges,
    /// Pools that live, by name.
    alive: Arc<Mutex<HashMap<String, usize>>>,
}

/// Gauges are read from the endpoints when they are scraped, so that requests need not keep them.
#[derive(Clone, Debug)]
struct Gauges {
    up: IntGaugeVec,
    in_flight: IntGaugeVec,
    pools: Arc<Mutex<Vec<Weak<Pool>>>>,
}

/// One endpoint's counters, so that the hot path looks no label up.
#[derive(Debug)]
pub(super) struct EndpointMetrics {
    pub answered: IntCounter,
    pub connect_failed: IntCounter,
    pub timed_out: IntCounter,
    pub broken: IntCounter,
    pub abandoned: IntCounter,
    pub answer_seconds: Counter,
}

/// One pool's counters.
#[derive(Debug)]
pub(super) struct PoolMetrics {
    pub retries_spent: IntCounter,
    pub retries_denied: IntCounter,
}

const RESULTS: [&str; 5] = ["answered", "connect_failed", "timed_out", "broken", "abandoned"];

impl Metrics {
    /// # Errors
    /// When they are registered twice, or the registry refuses a name.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let answer_seconds = CounterVec::new(
            Opts::new(
                "forefront_upstream_answer_seconds_total",
                "Time from sending requests to the heads of their answers, summed up.",
            ),
            &ENDPOINT,
        )?;
        registry.register(Box::new(answer_seconds.clone()))?;
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &ENDPOINT);
        let gauges = Gauges {
            up: gauge("forefront_upstream_endpoint_up", "1 if the endpoint may get new requests, else 0.")?,
            in_flight: gauge("forefront_upstream_in_flight", "Requests in flight to the endpoint.")?,
            pools: Arc::default(),
        };
        registry.register(Box::new(gauges.clone()))?;
        Ok(Metrics {
            requests: counter(
                "forefront_upstream_requests_total",
                "Tries of requests by how they ended.",
                &["upstream", "endpoint", "result"],
            )?,
            answer_seconds,
            retries: counter(
                "forefront_upstream_retries_total",
                "Retries that the budget was asked for: spent or denied.",
                &["upstream", "verdict"],
            )?,
            probes: counter(
                "forefront_upstream_probes_total",
                "Health probes by result.",
                &["upstream", "endpoint", "result"],
            )?,
            ejections: counter(
                "forefront_upstream_ejections_total",
                "Ejections by traffic, by reason.",
                &["upstream", "endpoint", "reason"],
            )?,
            transitions: counter(
                "forefront_upstream_transitions_total",
                "Changes of an endpoint's health, by the new state.",
                &["upstream", "endpoint", "to"],
            )?,
            gauges,
            alive: Arc::default(),
        })
    }

    /// Adds a pool to those whose gauges are shown, until it is dropped.
    pub(super) fn watch(&self, pool: &Arc<Pool>) {
        let mut pools = self.gauges.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    /// The counters of a new pool. To be followed by `pool_dropped` when it goes.
    pub(super) fn pool(&self, upstream: &str) -> PoolMetrics {
        *self.alive.lock().entry(upstream.to_owned()).or_default() += 1;
        PoolMetrics {
            retries_spent: self.retries.with_label_values(&[upstream, "spent"]),
            retries_denied: self.retries.with_label_values(&[upstream, "denied"]),
        }
    }

    /// A pool went. True if no other one took its name, so that the series of its endpoints are to be removed too.
    pub(super) fn pool_dropped(&self, upstream: &str) -> bool {
        let mut alive = self.alive.lock();
        let left = alive.get(upstream).map_or(0, |pools| pools - 1);
        if left > 0 {
            alive.insert(upstream.to_owned(), left);
            return false;
        }
        alive.remove(upstream);
        for verdict in ["spent", "denied"] {
            let _ = self.retries.remove_label_values(&[upstream, verdict]);
        }
        true
    }

    pub(super) fn endpoint(&self, upstream: &str, endpoint: &str) -> EndpointMetrics {
        let [answered, connect_failed, timed_out, broken, abandoned] =
            RESULTS.map(|result| self.requests.with_label_values(&[upstream, endpoint, result]));
        let answer_seconds = self.answer_seconds.with_label_values(&[upstream, endpoint]);
        EndpointMetrics { answered, connect_failed, timed_out, broken, abandoned, answer_seconds }
    }

    pub(super) fn probed(&self, upstream: &str, endpoint: &str, result: &str) {
        self.probes.with_label_values(&[upstream, endpoint, result]).inc();
    }

    pub(super) fn changed(&self, upstream: &str, endpoint: &str, transition: Transition) {
        let to = match transition {
            Transition::Up => "up",
            Transition::Down => "down",
            Transition::Ejected(reason) => {
                self.ejections.with_label_values(&[upstream, endpoint, reason.as_str()]).inc();
                "ejected"
            }
        };
        self.transitions.with_label_values(&[upstream, endpoint, to]).inc();
    }

    /// Removes the series of an endpoint that left its pool.
    pub(super) fn remove(&self, upstream: &str, endpoint: &str) {
        // A series that was never made cannot be removed, which is as good.
        let _ = self.answer_seconds.remove_label_values(&[upstream, endpoint]);
        for (vec, values) in [
            (&self.requests, &RESULTS[..]),
            (&self.probes, &probe::RESULTS[..]),
            (
                &self.ejections,
                &[Reason::Refused.as_str(), Reason::NoAnswer.as_str(), Reason::ServerErrors.as_str()][..],
            ),
            (&self.transitions, &["up", "down", "ejected"][..]),
        ] {
            for value in values {
                let _ = vec.remove_label_values(&[upstream, endpoint, value]);
            }
        }
    }
}

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        let mut descriptions = self.up.desc();
        descriptions.extend(self.in_flight.desc());
        descriptions
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = Instant::now();
        // Held to the end, so that two scrapes at once do not reset each other's values.
        let pools = self.pools.lock();
        self.up.reset();
        self.in_flight.reset();
        for pool in pools.iter().filter_map(Weak::upgrade) {
            for endpoint in pool.endpoints().iter() {
                let labels = [pool.name(), endpoint.label()];
                self.up.with_label_values(&labels).set(i64::from(endpoint.is_usable(now)));
                let in_flight = i64::try_from(endpoint.in_flight()).unwrap_or(i64::MAX);
                self.in_flight.with_label_values(&labels).set(in_flight);
            }
        }
        let mut families = self.up.collect();
        families.extend(self.in_flight.collect());
        families
    }
}
