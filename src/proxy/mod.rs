//! The life of one request: limits, front, route, cache, forwarding, rescue; metrics and the log around all of it.
//!
//! A [`Proxy`] is shared by all cores; each core runs its own accept loop with a [`Core`] as the handler. Never here: TOML,
//! signals, the choice of ports. `app` builds it and tells it to reload and to drain.

mod access_log;
mod admission;
mod caching;
mod connection;
mod context;
mod forwarding;
mod front;
mod metrics;
mod multiplexed;
mod origin;
mod outgoing;
mod rescue;
mod routes;
mod serve;
mod settings;
#[cfg(test)]
mod tests;
mod tunnel;
mod upload;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::StatusCode;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::cache::{self, Cache};
use crate::drain::Drain;
use crate::telemetry::access::Writer;
use crate::upstream::Pool;
use access_log::AccessWriter;
use metrics::Metrics;
use routes::Live;

pub use connection::{Core, Door};
pub use multiplexed::QuicCore;
pub use routes::RoutesError;
pub use settings::{AccessLog, Config, DrainConfig, Limits, RouteConfig};

/// The pools of a node by name.
pub type Pools = HashMap<String, Arc<Pool>>;

/// Why a proxy cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Routes(#[from] RoutesError),
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// One proxy node's shared state.
pub struct Proxy {
    live: ArcSwap<Live>,
    cache: Arc<Cache>,
    object_bytes_max: u64,
    metrics: Metrics,
    drain: Drain,
    /// Idle connections close when this is cancelled.
    closing: CancellationToken,
    access_log: AccessWriter,
}

/// What a route did so far, for the status page.
#[derive(Clone, Debug)]
pub struct RouteStatus {
    pub name: String,
    pub requests: u64,
    pub errors: u64,
    pub in_flight: i64,
    /// `(max_age seconds)` of a cached route.
    pub cached: bool,
}

impl Proxy {
    /// Builds a node's proxy over its pools and its store.
    pub fn new(
        config: &Config,
        cache_config: &cache::Config,
        pools: &Pools,
        cache: Arc<Cache>,
        registry: &Registry,
        drain: Drain,
        closing: CancellationToken,
        access_log: Option<Writer>,
    ) -> Result<Arc<Proxy>, Error> {
        let metrics = Metrics::new(registry)?;
        let live = Live::build(config, pools, &cache, cache_config.object_bytes_max, &metrics, None)?;
        Ok(Arc::new(Proxy {
            live: ArcSwap::from_pointee(live),
            cache,
            object_bytes_max: cache_config.object_bytes_max,
            metrics,
            drain,
            closing,
            access_log: AccessWriter::new(access_log),
        }))
    }

    /// Takes over routes, limits and the access log's share of a new configuration. What is under way goes on as it began.
    /// An error changes nothing.
    pub fn reload(&self, config: &Config, pools: &Pools) -> Result<(), RoutesError> {
        let old = self.live.load_full();
        let live = Live::build(config, pools, &self.cache, self.object_bytes_max, &self.metrics, Some(&old))?;
        let live = Arc::new(live);
        let kept: Vec<_> = cached(&live)
            .filter(|(_, new)| cached(&old).any(|(_, old)| Arc::ptr_eq(old, new)))
            .map(|(route, _)| route.clone())
            .collect();
        // First nothing is stored by what is gone, then nothing is left of what it stored.
        for (route, cache) in cached(&old) {
            if !kept.iter().any(|kept| kept.config.name == route.config.name) {
                cache.retire();
            }
        }
        self.live.store(live);
        self.cache.purge_where(|scope, _| !kept.iter().any(|route| route.owns_scope(scope)));
        Ok(())
    }

    /// Fills the store for every cached route whose path is one path, trying again until it is filled or `patience` is over.
    /// What is not filled by then goes on being tried in the background until `closing`.
    pub async fn warm(self: &Arc<Self>, patience: Duration) {
        let warming = tokio::spawn({
            let proxy = self.clone();
            async move { proxy.fill_all().await }
        });
        if tokio::time::timeout(patience, warming).await.is_err() {
            tracing::warn!(?patience, "the cache is not warm yet; getting ready without it");
        }
    }

    async fn fill_all(&self) {
        let live = self.live.load_full();
        let fills = live.table.routes().filter_map(|route| {
            let cache = route.cache.as_ref()?;
            let path = route.config.rule.pattern.as_str();
            let one_path = !path.contains('{') && !path.ends_with('*') && route.config.rule.hosts.is_empty();
            one_path.then_some((route, cache, path))
        });
        // At once: an upstream that does not answer must not keep the others' routes cold.
        futures::future::join_all(fills.map(|(route, cache, path)| self.fill(route, cache, path))).await;
    }

    async fn fill(&self, route: &routes::Route, cache: &routes::RouteCache, path: &str) {
        let name = &route.config.name;
        let mut key = String::new();
        cache::key::write(&mut key, name, path, None, &cache.policy.query);
        let mut pause = Duration::from_millis(200);
        loop {
            match cache.store.get(&key, &cache.policy, &cache.fetch).await {
                cache::Answer::Failed(cache::FetchError::Status(answer)) if is_final(answer.status) => {
                    tracing::info!(route = name, status = %answer.status, "nothing to warm the cache with");
                    return;
                }
                cache::Answer::Failed(error) => {
                    tracing::debug!(route = name, %error, "cannot warm the cache yet");
                }
                cache::Answer::Busy => {}
                _ => return,
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(1)),
            }
        }
    }

    /// Removes stored answers by path, query included where the route keeps it; on every cached route that has it.
    pub fn purge_path(&self, path_and_query: &str) -> u64 {
        let live = self.live.load();
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut key = String::new();
        cached(&live)
            .map(|(route, cache)| {
                cache::key::write(&mut key, &route.config.name, path, query, &cache.policy.query);
                if route.config.rule.hosts.is_empty() {
                    return self.cache.purge_exact(&key);
                }
                let wanted = cache::key::split(&key).1;
                self.cache.purge_where(|scope, target| target == wanted && route.owns_scope(scope))
            })
            .sum()
    }

    /// Removes every stored answer whose path begins so.
    pub fn purge_prefix(&self, path_prefix: &str) -> u64 {
        self.cache.purge_where(|_, target| target.starts_with(path_prefix))
    }

    /// What each route did so far.
    pub fn status(&self) -> Vec<RouteStatus> {
        self.live
            .load()
            .table
            .routes()
            .map(|route| RouteStatus {
                name: route.config.name.clone(),
                requests: route.metrics.total.load(Relaxed),
                errors: route.metrics.errors.load(Relaxed),
                in_flight: route.metrics.in_flight.get(),
                cached: route.cache.is_some(),
            })
            .collect()
    }
}

/// Will asking again bring the same? So it is with client errors, but for those that speak of this moment.
fn is_final(status: StatusCode) -> bool {
    let of_this_moment = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    status.is_client_error() && !of_this_moment.contains(&status)
}

fn cached(live: &Live) -> impl Iterator<Item = (&Arc<routes::Route>, &Arc<routes::RouteCache>)> {
    live.table.routes().filter_map(|route| route.cache.as_ref().map(|cache| (route, cache)))
}
