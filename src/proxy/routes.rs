//! The routes of a running node, with everything a request on them needs at hand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::admission::Gate;
use super::caching::Fetcher;
use super::metrics::{Metrics, RouteMetrics};
use super::settings::{Config, Limits, RouteConfig};
use crate::cache::{self, Cache, Fetch};
use crate::listener::ProxyProtocol;
use crate::resilience::limit::{ClientKey, Keyed, Rate};
use crate::route::{Conflict, Table};
use crate::upstream::{Lease, Pool};

/// Clients whose request rate is remembered at once; those at rest are forgotten first.
const RATED_CLIENTS_MAX: usize = 65_536;

/// What a reload replaces as a whole. Requests keep the one they began with.
pub struct Live {
    pub limits: Limits,
    pub proxy_protocol: ProxyProtocol,
    pub table: Table<Arc<Route>>,
    pub rates: Option<Arc<Keyed>>,
    pub access_log_sample: f64,
    /// Is any route cached? If not, the front does not look for hits.
    pub caches: bool,
}

/// Why a configuration cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error("route {route}: there is no upstream {upstream}")]
    NoUpstream { route: String, upstream: String },
}

impl Live {
    /// Lays the routes of `config` out over these pools. What did not change is carried over from `previous`: places taken,
    /// rates used up, counts and, where policy, upstream and timeout are the same, the way to the store.
    pub fn build(
        config: &Config,
        pools: &HashMap<String, Arc<Pool>>,
        cache: &Arc<Cache>,
        object_bytes_max: u64,
        metrics: &Metrics,
        previous: Option<&Live>,
    ) -> Result<Live, RoutesError> {
        let before: HashMap<&str, &Arc<Route>> = previous
            .into_iter()
            .flat_map(|live| live.table.routes())
            .map(|route| (route.config.name.as_str(), route))
            .collect();
        let mut rules = Vec::with_capacity(config.routes.len());
        let mut uploads: HashMap<&str, Option<Arc<Gate>>> = HashMap::new();
        for route in &config.routes {
            let pool = pools.get(&route.upstream).ok_or_else(|| RoutesError::NoUpstream {
                route: route.name.clone(),
                upstream: route.upstream.clone(),
            })?;
            let before = before.get(route.name.as_str()).map(|route| &***route);
            let uploads = uploads.entry(&route.upstream).or_insert_with(|| upload_gate(pool)).clone();
            let mut route = Route::new(route.clone(), pool.clone(), cache, object_bytes_max, metrics, before);
            route.uploads = uploads;
            rules.push((route.config.rule.clone(), Arc::new(route)));
        }
        Ok(Live {
            limits: config.limits.clone(),
            proxy_protocol: config.proxy_protocol.clone(),
            caches: config.routes.iter().any(|route| route.cache.is_some()),
            table: Table::build(rules)?,
            rates: config.limits.requests_per_client.map(|rate| rates(rate, previous)),
            access_log_sample: config.access_log.sample,
        })
    }

    /// Is this peer one whose forwarding fields are believed, and which no bound of a client holds?
    pub fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.limits.trusted.iter().any(|network| network.contains(&address))
    }

    /// How the peer is counted; `None`: not at all.
    pub fn client(&self, address: std::net::IpAddr) -> Option<ClientKey> {
        (!self.trusts(address)).then(|| ClientKey::from(address))
    }
}

/// What clients have left of this rate, if it is the same as before; else everybody begins anew.
fn rates(rate: Rate, previous: Option<&Live>) -> Arc<Keyed> {
    let unchanged = |live: &&Live| live.limits.requests_per_client == Some(rate);
    previous
        .filter(unchanged)
        .and_then(|live| live.rates.clone())
        .unwrap_or_else(|| Arc::new(Keyed::new(rate, RATED_CLIENTS_MAX)))
}

/// Bodies that come slowly keep a place at an endpoint while they come. They may have half of a pool's places, so that nobody
/// can stop the others with slow uploads. `None` where places are not bounded.
fn upload_gate(pool: &Pool) -> Option<Arc<Gate>> {
    let config = pool.config();
    let places = config.requests_in_flight * config.endpoints.len();
    (places > 0).then(|| Arc::new(Gate::new((places / 2).max(1), 0)))
}

/// One route at work.
pub struct Route {
    pub config: RouteConfig,
    pub pool: Arc<Pool>,
    pub metrics: Arc<RouteMetrics>,
    pub gate: Option<Arc<Gate>>,
    /// Shared by the routes of one upstream; see [`upload_gate`].
    pub uploads: Option<Arc<Gate>>,
    pub cache: Option<Arc<RouteCache>>,
}

/// How a route uses the store.
pub struct RouteCache {
    pub store: Arc<Cache>,
    pub policy: Arc<cache::Policy>,
    pub fetch: Arc<dyn Fetch>,
    /// Set when a reload has put another in its place.
    retired: Arc<AtomicBool>,
}

impl RouteCache {
    fn new(
        store: &Arc<Cache>,
        policy: &cache::Policy,
        pool: &Arc<Pool>,
        timeout: Duration,
        bytes_max: u64,
    ) -> Self {
        let retired = Arc::new(AtomicBool::new(false));
        RouteCache {
            store: store.clone(),
            policy: Arc::new(policy.clone()),
            fetch: Arc::new(Fetcher::new(pool.clone(), timeout, bytes_max, retired.clone())),
            retired,
        }
    }

    /// What its fetches bring from now on is not stored; what is stored is the caller's to remove.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }
}

impl Route {
    /// `before`: the route of this name until now.
    fn new(
        config: RouteConfig,
        pool: Arc<Pool>,
        store: &Arc<Cache>,
        object_bytes_max: u64,
        metrics: &Metrics,
        before: Option<&Route>,
    ) -> Route {
        let cache = config.cache.as_ref().map(|policy| {
            let same = |before: &&Route| {
                Arc::ptr_eq(&before.pool, &pool)
                    && before.config.timeout == config.timeout
                    && before.config.cache.as_ref() == Some(policy)
            };
            before.filter(same).and_then(|before| before.cache.clone()).unwrap_or_else(|| {
                Arc::new(RouteCache::new(store, policy, &pool, config.timeout, object_bytes_max))
            })
        });
        let gate = config.in_flight.map(|places| {
            let same = |before: &&Route| {
                before.config.in_flight == Some(places) && before.config.queue == config.queue
            };
            before
                .filter(same)
                .and_then(|before| before.gate.clone())
                .unwrap_or_else(|| Arc::new(Gate::new(places, config.queue)))
        });
        let metrics =
            before.map_or_else(|| Arc::new(metrics.route(&config.name)), |before| before.metrics.clone());
        Route { metrics, gate, uploads: None, cache, pool, config }
    }

    /// Is this scope of the store one of the route's? It has one, or one for each host.
    pub fn owns_scope(&self, scope: &str) -> bool {
        scope.split('@').next() == Some(&self.config.name)
    }

    /// The scope of this route's keys. A route for all hosts serves one site whatever it is called, so its answers are fetched
    /// with the upstream's own host and shared; a route that names hosts keeps them apart.
    pub fn scope<'r>(&'r self, host: &str) -> std::borrow::Cow<'r, str> {
        if self.config.rule.hosts.is_empty() {
            return std::borrow::Cow::Borrowed(&self.config.name);
        }
        format!("{}@{}", self.config.name, host.to_ascii_lowercase()).into()
    }

    /// The host of a request that came without one.
    pub fn default_host(&self, lease: &Lease) -> String {
        self.pool.config().host.clone().unwrap_or_else(|| lease.endpoint().configured().authority())
    }
}
