//! What a proxy node tells of itself on `/status`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::Registry;
use prometheus::proto::MetricFamily;
use tokio_util::sync::CancellationToken;

use super::proxy_upstreams::Upstreams;
use crate::admin::rates::{Sampler, quantile};
use crate::admin::status::{Cache as CacheStatus, Endpoint, Route, Status, Upstream};
use crate::cache::Cache;
use crate::drain::Drain;
use crate::listener::tcp::ConnectionLimits;
use crate::proxy::Proxy;
use crate::telemetry;
use crate::upstream::Pool;

/// Everything `/status` is made of.
pub struct StatusSource {
    node: String,
    capacity_bytes: u64,
    started: Instant,
    proxy: Arc<Proxy>,
    upstreams: Arc<Upstreams>,
    cache: Arc<Cache>,
    limits: Arc<ConnectionLimits>,
    drain: Drain,
    registry: Registry,
    rates: Mutex<Sampler>,
}

impl StatusSource {
    /// Gathers, and samples the routes' counters once a second until `stopped`.
    #[allow(clippy::too_many_arguments)] // It is made of the whole node, once.
    pub fn start(
        node: String,
        capacity_bytes: u64,
        proxy: Arc<Proxy>,
        upstreams: Arc<Upstreams>,
        cache: Arc<Cache>,
        limits: Arc<ConnectionLimits>,
        drain: Drain,
        registry: Registry,
        stopped: CancellationToken,
    ) -> Arc<StatusSource> {
        let source = Arc::new(StatusSource {
            node,
            capacity_bytes,
            started: Instant::now(),
            proxy,
            upstreams,
            cache,
            limits,
            drain,
            registry,
            rates: Mutex::default(),
        });
        let sampled = source.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    _ = tick.tick() => sampled.sample(),
                }
            }
        });
        source
    }

    fn sample(&self) {
        let now = Instant::now();
        let mut rates = self.rates.lock();
        for route in self.proxy.status() {
            rates.feed(now, &format!("{} requests", route.name), route.requests);
            rates.feed(now, &format!("{} errors", route.name), route.errors);
        }
    }

    /// The status now.
    pub fn status(&self) -> serde_json::Value {
        let families = self.registry.gather();
        let state = match (self.drain.draining(), self.drain.ready()) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "starting",
        };
        let status = Status {
            node: self.node.clone(),
            role: "proxy".into(),
            version: telemetry::VERSION.into(),
            state: state.into(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            connections: self.limits.open() as u64,
            in_flight: self.drain.in_flight() as u64,
            upstreams: self.upstreams(),
            cache: Some(self.cache(&families)),
            routes: self.routes(&families),
            processes: Vec::new(),
        };
        serde_json::to_value(status).unwrap_or_default()
    }

    /// The upstreams of now, by name.
    fn upstreams(&self) -> Vec<Upstream> {
        let pools = self.upstreams.pools();
        let mut pools: Vec<_> = pools.values().collect();
        pools.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        pools.into_iter().map(|pool| upstream(pool)).collect()
    }

    fn cache(&self, families: &[MetricFamily]) -> CacheStatus {
        let lookups = counters(families, "forefront_cache_lookups_total", "result");
        let hits = lookups.get("hit").copied().unwrap_or_default();
        CacheStatus {
            entries: self.cache.entries(),
            bytes: self.cache.bytes(),
            capacity_bytes: self.capacity_bytes,
            hits,
            misses: lookups.values().sum::<u64>() - hits,
            last_age_seconds: self.cache.last_age().map(|age| age.as_secs_f64()),
        }
    }

    fn routes(&self, families: &[MetricFamily]) -> Vec<Route> {
        let rates = self.rates.lock();
        let durations = families.iter().find(|f| f.name() == "forefront_proxy_request_duration_seconds");
        self.proxy
            .status()
            .into_iter()
            .map(|route| {
                let buckets = durations.and_then(|family| buckets_of(family, &route.name));
                let at = |q| buckets.as_ref().and_then(|(buckets, total)| quantile(buckets, *total, q));
                Route {
                    requests: route.requests,
                    errors: route.errors,
                    requests_per_second: rates.per_second(&format!("{} requests", route.name)),
                    errors_per_second: rates.per_second(&format!("{} errors", route.name)),
                    in_flight: route.in_flight.max(0) as u64,
                    p50_seconds: at(0.5),
                    p90_seconds: at(0.9),
                    name: route.name,
                }
            })
            .collect()
    }
}

fn upstream(pool: &Pool) -> Upstream {
    let endpoints = pool.status().into_iter().map(|endpoint| Endpoint {
        address: endpoint.address,
        state: endpoint.state.to_owned(),
        in_flight: endpoint.in_flight as u64,
        requests: endpoint.requests,
        failures: endpoint.failures,
        since_seconds: endpoint.since_seconds as f64,
    });
    Upstream { name: pool.name().to_owned(), endpoints: endpoints.collect() }
}

/// The counters of one family by the value of one label.
fn counters(families: &[MetricFamily], name: &str, label: &str) -> HashMap<String, u64> {
    let family = families.iter().find(|family| family.name() == name);
    let metrics = family.iter().flat_map(|family| family.get_metric());
    metrics
        .filter_map(|metric| {
            let pair = metric.get_label().iter().find(|pair| pair.name() == label)?;
            Some((pair.value().to_owned(), metric.get_counter().get_value() as u64))
        })
        .collect()
}

type Buckets = (Vec<(f64, u64)>, u64);

fn buckets_of(family: &MetricFamily, route: &str) -> Option<Buckets> {
    let metric =
        family.get_metric().iter().find(|m| m.get_label().iter().any(|pair| pair.value() == route))?;
    let histogram = metric.get_histogram();
    let buckets = histogram.get_bucket().iter().map(|b| (b.upper_bound(), b.cumulative_count())).collect();
    Some((buckets, histogram.get_sample_count()))
}
