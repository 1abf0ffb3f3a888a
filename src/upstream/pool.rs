//! A named set of endpoints that is shared by all threads.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;

use super::address::Address;
use super::balance;
use super::config::Config;
use super::endpoint::{Endpoint, Target};
use super::health::{Event, Thresholds, Transition};
use super::lease::Lease;
use super::metrics::{Metrics, PoolMetrics};
use super::status::EndpointStatus;
use super::tls::ClientTls;
use crate::resilience::budget::Budget;

/// Addresses of one name that are used; the rest is ignored.
pub(super) const RESOLVED_MAX: usize = 64;

/// Why a pool could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("upstream {0} has no endpoints")]
    NoEndpoints(String),
    #[error("upstream {old} cannot become {new} by a reload")]
    NameChanged { old: String, new: String },
    #[error("upstream {upstream}: cannot read certificate authorities from {}", path.display())]
    ReadAuthorities { upstream: String, path: PathBuf, source: std::io::Error },
    #[error("upstream {upstream}: no certificate authority in {}", path.display())]
    NoAuthorities { upstream: String, path: PathBuf },
    #[error("upstream {upstream}: no certificate authorities of the system were found; set ca_file")]
    NoSystemAuthorities { upstream: String },
    #[error("upstream {upstream}: {name:?} is no name for TLS; set sni")]
    ServerName { upstream: String, name: String },
    #[error("upstream {upstream}: TLS settings are refused")]
    Tls { upstream: String, source: rustls::Error },
}

/// Why no endpoint was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// All are down, ejected or drained. There is no desperate mode: an endpoint known to be ill gets no request, so
    /// that the client has its 503 at once.
    #[error("no endpoint is healthy")]
    NoneHealthy,
    /// Some are usable, but all those were tried.
    #[error("every healthy endpoint was tried")]
    AllTried,
    /// Some are usable and untried, but have `requests_in_flight` already.
    #[error("every healthy endpoint has as many requests as it may")]
    Busy,
}

/// A pool. See the room's documentation for the order of calls.
#[derive(Debug)]
pub struct Pool {
    name: String,
    state: ArcSwap<Shape>,
    turn: AtomicUsize,
    metrics: Metrics,
    counters: PoolMetrics,
    /// What changes the shape; its lock is also what makes changes one after the other.
    members: Mutex<Members>,
    pub(super) endpoints_changed: Notify,
    pub(super) config_changed: Notify,
}

/// A new configuration that was found sound.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    tls: Option<Arc<ClientTls>>,
}

/// Everything that a pick reads, replaced as a whole.
#[derive(Debug)]
struct Shape {
    config: Arc<Config>,
    thresholds: Thresholds,
    slow_start_nanos: u64,
    endpoints: Arc<[Arc<Endpoint>]>,
    budget: Arc<Budget>,
    tls: Option<Arc<ClientTls>>,
}

#[derive(Debug, Default)]
struct Members {
    resolved: HashMap<Address, Vec<SocketAddr>>,
    /// Labels and configured addresses; kept over re-resolution.
    drained: HashSet<String>,
}

impl Pool {
    /// Makes a pool. Names have no endpoints until [`spawn_prober`](super::spawn_prober) has resolved them.
    ///
    /// # Errors
    /// No endpoints, or TLS settings that cannot work.
    pub fn new(config: Config, metrics: Metrics) -> Result<Arc<Pool>, Error> {
        let tls = check(&config)?;
        let now = Instant::now();
        let empty = Shape::new(Arc::new(config), Arc::new([]), None, tls, now);
        let pool = Arc::new(Pool {
            name: empty.config.name.clone(),
            counters: metrics.pool(&empty.config.name),
            state: ArcSwap::from_pointee(empty),
            turn: AtomicUsize::new(0),
            metrics,
            members: Mutex::default(),
            endpoints_changed: Notify::new(),
            config_changed: Notify::new(),
        });
        {
            let members = pool.members.lock();
            pool.reshape(&members, None, now);
        }
        pool.metrics.watch(&pool);
        Ok(pool)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same `Arc` until a reload changes something.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.state.load().config)
    }

    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.state.load().endpoints)
    }

    /// Picks a usable endpoint whose id is not in `tried`, by the pool's balance. No lock, no allocation; O(endpoints).
    ///
    /// # Errors
    /// See [`PickError`].
    pub fn pick(self: &Arc<Self>, tried: &[u64], now: Instant) -> Result<Lease, PickError> {
        let shape = self.state.load();
        let Shape { config, slow_start_nanos, endpoints, .. } = &**shape;
        let cap = config.requests_in_flight;
        let turn = self.turn.fetch_add(1, Relaxed);
        // Another thread may take the last place of the chosen one; then the choice is made again.
        for _ in 0..=endpoints.len() {
            let (mut usable, mut untried) = (false, false);
            let place = balance::choose(config.balance, turn, endpoints.len(), |place| {
                let candidate = endpoints[place].candidate(now, *slow_start_nanos)?;
                usable = true;
                if tried.contains(&endpoints[place].id()) {
                    return None;
                }
                untried = true;
                (cap == 0 || endpoints[place].in_flight() < cap).then_some(candidate)
            });
            match place {
                Some(place) if endpoints[place].begin(cap) => {
                    return Ok(Lease::new(Arc::clone(self), Arc::clone(&endpoints[place])));
                }
                Some(_) => {}
                // The endpoints were exchanged after they were looked up.
                None if !usable && !Arc::ptr_eq(&shape, &self.state.load()) => return self.pick(tried, now),
                None if !usable => return Err(PickError::NoneHealthy),
                None if !untried => return Err(PickError::AllTried),
                None => return Err(PickError::Busy),
            }
        }
        Err(PickError::Busy)
    }

    /// A request came: once per request, not per try.
    pub fn deposit(&self) {
        self.state.load().budget.deposit();
    }

    /// Does the budget allow one more retry? If so, it is paid for.
    pub fn may_retry(&self, now: Instant) -> bool {
        let allowed = self.state.load().budget.withdraw(now);
        if allowed {
            self.counters.retries_spent.inc()
        } else {
            self.counters.retries_denied.inc()
        }
        allowed
    }

    /// No new requests for this endpoint: its label, or a configured address (a name means all its addresses, also
    /// those to come). What is in flight goes on. False if there is no such endpoint.
    pub fn drain(&self, address: &str) -> bool {
        self.set_drained(address, true)
    }

    /// The contrary of [`drain`](Self::drain).
    pub fn undrain(&self, address: &str) -> bool {
        self.set_drained(address, false)
    }

    /// Takes a new configuration: endpoints that stay keep their state, those that go finish what is in flight.
    ///
    /// # Errors
    /// As [`new`](Self::new), or the name changed. Then nothing was changed.
    pub fn reload(&self, config: Config) -> Result<(), Error> {
        self.prepare(config).map(|prepared| self.apply(prepared))
    }

    /// Checks a new configuration, to be taken by [`apply`](Self::apply) when all else that changes with it is sound.
    /// Changes nothing.
    ///
    /// # Errors
    /// As [`reload`](Self::reload).
    pub fn prepare(&self, config: Config) -> Result<Prepared, Error> {
        if config.name != self.name {
            return Err(Error::NameChanged { old: self.name.clone(), new: config.name });
        }
        let tls = check(&config)?;
        Ok(Prepared { config, tls })
    }

    /// Takes what [`prepare`](Self::prepare) of this very pool gave.
    pub fn apply(&self, Prepared { config, tls }: Prepared) {
        if config == *self.state.load().config && tls.is_none() {
            return;
        }
        let mut members = self.members.lock();
        members.resolved.retain(|name, _| config.endpoints.iter().any(|endpoint| endpoint.address == *name));
        self.reshape(&members, Some((config, tls)), Instant::now());
        drop(members);
        self.config_changed.notify_one();
        self.endpoints_changed.notify_one();
    }

    pub fn status(&self) -> Vec<EndpointStatus> {
        let now = Instant::now();
        self.endpoints().iter().map(|endpoint| endpoint.status(now)).collect()
    }

    /// What connections to the endpoints trust; None without TLS. The same `Arc` as long as `config` gives the same.
    pub fn authorities(&self) -> Option<Arc<[CertificateDer<'static>]>> {
        self.state.load().tls.as_ref().map(|tls| tls.authorities())
    }

    pub(super) fn tls(&self) -> Option<Arc<ClientTls>> {
        self.state.load().tls.clone()
    }

    /// What a name resolved to; at most [`RESOLVED_MAX`] are kept. Endpoints that are gone finish what is in flight.
    pub(super) fn set_resolved(&self, name: &Address, mut addresses: Vec<SocketAddr>) {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(RESOLVED_MAX);
        let mut members = self.members.lock();
        let known = self.state.load().config.endpoints.iter().any(|endpoint| endpoint.address == *name);
        if !known || members.resolved.get(name) == Some(&addresses) {
            return;
        }
        tracing::info!(upstream = %self.name, name = %name, ?addresses, "name resolved");
        members.resolved.insert(name.clone(), addresses);
        self.reshape(&members, None, Instant::now());
        drop(members);
        self.endpoints_changed.notify_one();
    }

    pub(super) fn is_resolved(&self, name: &Address) -> bool {
        self.members.lock().resolved.contains_key(name)
    }

    pub(super) fn answered(&self, endpoint: &Endpoint, now: Instant) {
        endpoint.answered(&self.state.load().thresholds, now);
    }

    pub(super) fn failed(&self, endpoint: &Endpoint, event: Event, error: &str, now: Instant) {
        let shape = self.state.load();
        let only_usable =
            !shape.endpoints.iter().any(|other| other.id() != endpoint.id() && other.is_usable(now));
        let transition = endpoint.failed(event, only_usable, &shape.thresholds, error, now);
        self.tell(endpoint, transition, Some(error));
    }

    /// The end of a probe. `event` is None when it says nothing of the endpoint's health.
    pub(super) fn probed(
        &self,
        endpoint: &Endpoint,
        event: Option<Event>,
        result: &'static str,
        error: Option<&str>,
        now: Instant,
    ) {
        if endpoint.gone().is_cancelled() {
            return;
        }
        self.metrics.probed(&self.name, endpoint.label(), result);
        if let Some(event) = event {
            let transition = endpoint.apply(event, false, &self.state.load().thresholds, error, now);
            self.tell(endpoint, transition, error);
        }
    }

    fn tell(&self, endpoint: &Endpoint, transition: Option<Transition>, error: Option<&str>) {
        let Some(transition) = transition else { return };
        let (upstream, label) = (&*self.name, endpoint.label());
        match transition {
            Transition::Up => tracing::info!(upstream, endpoint = label, "endpoint is up"),
            Transition::Down => tracing::warn!(upstream, endpoint = label, error, "endpoint is down"),
            Transition::Ejected(reason) => {
                tracing::warn!(
                    upstream,
                    endpoint = label,
                    reason = reason.as_str(),
                    error,
                    "endpoint is ejected"
                );
            }
        }
        if !endpoint.gone().is_cancelled() {
            self.metrics.changed(upstream, label, transition);
        }
    }

    fn set_drained(&self, address: &str, drained: bool) -> bool {
        let mut members = self.members.lock();
        let shape = self.state.load();
        let named =
            |endpoint: &Endpoint| endpoint.label() == address || endpoint.configured().to_string() == address;
        let configured =
            shape.config.endpoints.iter().any(|endpoint| endpoint.address.to_string() == address);
        if !configured && !shape.endpoints.iter().any(|endpoint| named(endpoint)) {
            return false;
        }
        if drained {
            members.drained.insert(address.to_owned());
        } else {
            members.drained.remove(address);
            for endpoint in shape.endpoints.iter().filter(|endpoint| named(endpoint)) {
                members.drained.remove(endpoint.label());
            }
        }
        for endpoint in shape.endpoints.iter().filter(|endpoint| named(endpoint)) {
            endpoint.set_drained(members.is_drained(endpoint.configured(), endpoint.label()));
        }
        tracing::info!(upstream = %self.name, address, drained, "drain of an endpoint changed");
        true
    }

    /// Builds the shape anew from configuration and resolved names. Called under the lock of `members`.
    fn reshape(&self, members: &Members, new: Option<(Config, Option<Arc<ClientTls>>)>, now: Instant) {
        let old = self.state.load_full();
        let (config, tls) = match new {
            Some((config, tls)) => (Arc::new(config), tls),
            None => (Arc::clone(&old.config), old.tls.clone()),
        };
        let wanted = members.targets(&config);
        let stays = |endpoint: &Endpoint| {
            wanted.iter().any(|(at, target)| at == endpoint.configured() && target == endpoint.target())
        };
        let endpoints = wanted
            .iter()
            .map(|(configured, target)| {
                let same = |old: &&Arc<Endpoint>| old.configured() == configured && old.target() == target;
                if let Some(endpoint) = old.endpoints.iter().find(same) {
                    return Arc::clone(endpoint);
                }
                let label = target.label();
                let metrics = self.metrics.endpoint(&self.name, &label);
                let drained = members.is_drained(configured, &label);
                Arc::new(Endpoint::new(configured.clone(), target.clone(), label, drained, metrics, now))
            })
            .collect();
        let budget = (old.config.retry == config.retry).then(|| Arc::clone(&old.budget));
        let shape = Shape::new(config, endpoints, budget, tls, now);
        if shape.config.health.is_none() {
            shape.endpoints.iter().for_each(|endpoint| endpoint.forget_probes(now));
        }
        let shape = Arc::new(shape);
        self.state.store(Arc::clone(&shape));
        // Only now, or requests would meanwhile find no usable endpoint among the old ones.
        for endpoint in old.endpoints.iter().filter(|endpoint| !stays(endpoint)) {
            endpoint.leave();
            // A newcomer of the same label goes on with its series.
            if !shape.endpoints.iter().any(|other| other.label() == endpoint.label()) {
                self.metrics.remove(&self.name, endpoint.label());
            }
            tracing::info!(upstream = %self.name, endpoint = endpoint.label(), "endpoint left");
        }
    }
}

/// With the last request of a pool that a reload removed, or a new one that came to nothing.
impl Drop for Pool {
    fn drop(&mut self) {
        if self.metrics.pool_dropped(&self.name) {
            for endpoint in self.endpoints().iter() {
                self.metrics.remove(&self.name, endpoint.label());
            }
        }
    }
}

impl Shape {
    fn new(
        config: Arc<Config>,
        endpoints: Arc<[Arc<Endpoint>]>,
        budget: Option<Arc<Budget>>,
        tls: Option<Arc<ClientTls>>,
        now: Instant,
    ) -> Shape {
        let retry = &config.retry;
        let budget =
            budget.unwrap_or_else(|| Arc::new(Budget::new(retry.budget, retry.budget_min_per_second, now)));
        Shape {
            thresholds: Thresholds::new(config.health.as_ref(), &config.passive),
            slow_start_nanos: nanos(config.slow_start),
            config,
            endpoints,
            budget,
            tls,
        }
    }
}

impl Members {
    /// Where connections go, each target once, in the order of the configuration.
    fn targets(&self, config: &Config) -> Vec<(Address, Target)> {
        let mut seen = HashSet::new();
        let mut targets = Vec::new();
        for endpoint in &config.endpoints {
            let address = &endpoint.address;
            let found = match address {
                Address::Socket(socket) => vec![Target::Tcp(*socket)],
                Address::Unix(path) => vec![Target::Unix(path.clone())],
                Address::Name { .. } => {
                    self.resolved.get(address).into_iter().flatten().copied().map(Target::Tcp).collect()
                }
            };
            for target in found {
                if seen.insert(target.clone()) {
                    targets.push((address.clone(), target));
                }
            }
        }
        targets
    }

    fn is_drained(&self, configured: &Address, label: &str) -> bool {
        !self.drained.is_empty()
            && (self.drained.contains(label) || self.drained.contains(&configured.to_string()))
    }
}

fn check(config: &Config) -> Result<Option<Arc<ClientTls>>, Error> {
    if config.endpoints.is_empty() {
        return Err(Error::NoEndpoints(config.name.clone()));
    }
    config.tls.as_ref().map(|tls| ClientTls::new(config, tls).map(Arc::new)).transpose()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
