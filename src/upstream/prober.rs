//! Keeps a pool's health and its resolved names: the tasks behind active health.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::config::HealthConfig;
use super::endpoint::Endpoint;
use super::health::Event;
use super::pool::Pool;
use super::probe::Probe;
use crate::resilience::backoff::Backoff;

/// From one resolution of the names to the next. Records' own lifetimes are not seen through the system's resolver.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);
/// The longest that a resolution may take; the system's own limit is much longer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A name that was never resolved is asked for again sooner.
const UNRESOLVED: Backoff = Backoff { min: Duration::from_secs(1), max: RESOLVE_INTERVAL };
/// A second opinion comes after this part of the interval.
const IN_DOUBT_DIVISOR: u32 = 10;
/// Whatever the configuration says, there is at least this much between two probes.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Starts the tasks of one pool on the current runtime; they end when `shutdown` is cancelled. Call it once per pool.
/// Without `health` in the configuration only names are resolved.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn spawn_prober(pool: Arc<Pool>, shutdown: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let work = async { tokio::join!(keep_probing(&pool), keep_resolving(&pool)) };
        tokio::select! {
            _ = work => {}
            () = shutdown.cancelled() => {}
        }
    })
}

/// One task per endpoint, as long as it belongs to the pool and active health is on.
async fn keep_probing(pool: &Arc<Pool>) {
    // Dropping the set stops its tasks.
    let mut tasks = JoinSet::new();
    let mut running: HashMap<u64, AbortHandle> = HashMap::new();
    loop {
        running.retain(|_, task| !task.is_finished());
        if pool.config().health.is_some() {
            for endpoint in pool.endpoints().iter() {
                running
                    .entry(endpoint.id())
                    .or_insert_with(|| tasks.spawn(probe_endpoint(Arc::clone(pool), Arc::clone(endpoint))));
            }
        }
        tokio::select! {
            () = pool.endpoints_changed.notified() => {}
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn probe_endpoint(pool: Arc<Pool>, endpoint: Arc<Endpoint>) {
    let mut hurried_at: Option<Instant> = None;
    // Nodes that start together should not probe together.
    let mut wait = match &pool.config().health {
        Some(health) => (health.interval / 10).mul_f64(fastrand::f64()),
        None => return,
    };
    loop {
        let Some(HealthConfig { interval, .. }) = pool.config().health else { return };
        let may_hurry = hurried_at.is_none_or(|at| at.elapsed() >= interval);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Traffic failed: ask now rather than at the next turn, but at most once per interval.
            () = endpoint.suspected(), if may_hurry => hurried_at = Some(Instant::now()),
            () = endpoint.gone().cancelled() => return,
        }
        let started = Instant::now();
        probe_once(&pool, &endpoint, started).await;
        let pause = if endpoint.is_in_doubt() {
            interval / IN_DOUBT_DIVISOR
        } else {
            // Ten per cent of jitter keeps nodes from falling into step.
            interval.mul_f64(0.9 + 0.2 * fastrand::f64()).saturating_sub(started.elapsed())
        };
        wait = pause.max(PAUSE_MIN);
    }
}

async fn probe_once(pool: &Pool, endpoint: &Endpoint, started: Instant) {
    let config = pool.config();
    let Some(health) = &config.health else { return };
    let authority = endpoint.configured().authority();
    let tls = pool.tls();
    let probe = Probe {
        target: endpoint.target(),
        configured: endpoint.configured(),
        tls: tls.as_deref(),
        host: config.host.as_deref().unwrap_or(&authority),
        path: &health.path,
        timeout: health.timeout,
    };
    let result = probe.run().await;
    let now = Instant::now();
    let Err(failure) = result else {
        return pool.probed(endpoint, Some(Event::ProbeOk { started }), "ok", None, now);
    };
    let silent = failure.is_silent();
    let (event, word) = if matches!(failure, super::probe::Failure::Local(_)) {
        tracing::warn!(upstream = %pool.name(), endpoint = endpoint.label(), error = %failure, "probe not made");
        (None, failure.result())
    } else if silent && endpoint.has_answered_since(started + health.timeout / 2) {
        // Traffic was answered while the probe waited: busy, as an origin at its own limit of requests is, not hung.
        (None, "busy")
    } else {
        (Some(Event::ProbeFailed { silent }), failure.result())
    };
    pool.probed(endpoint, event, word, Some(&failure.to_string()), now);
}

async fn keep_resolving(pool: &Pool) {
    let mut failures = 0_u32;
    loop {
        let names: Vec<Address> = pool
            .config()
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address.clone())
            .filter(|address| matches!(address, Address::Name { .. }))
            .collect();
        join_all(names.iter().map(|name| resolve(pool, name))).await;
        let wait = if names.iter().all(|name| pool.is_resolved(name)) {
            failures = 0;
            RESOLVE_INTERVAL
        } else {
            failures = failures.saturating_add(1);
            UNRESOLVED.delay(failures, fastrand::f64())
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = pool.config_changed.notified() => {}
        }
    }
}

/// A failure, and an answer without addresses, keeps what was known.
async fn resolve(pool: &Pool, name: &Address) {
    let Address::Name { host, port } = name else { return };
    let lookup = tokio::net::lookup_host((host.as_str(), *port));
    let reason = match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
        Ok(Ok(addresses)) => {
            let addresses: Vec<SocketAddr> = addresses.collect();
            if !addresses.is_empty() {
                return pool.set_resolved(name, addresses);
            }
            "no addresses".to_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::warn!(upstream = %pool.name(), name = %name, error = %reason, "name not resolved");
}
