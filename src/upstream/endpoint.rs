//! One endpoint as all threads see it: atomics for the hot path, the state machine under a lock for what is rare.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::balance::{self, Candidate};
use super::health::{Event, Health, State, Thresholds, Transition};
use super::metrics::EndpointMetrics;
use super::status::EndpointStatus;

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    /// The text form of the address.
    pub fn label(&self) -> String {
        match self {
            Target::Tcp(address) => address.to_string(),
            Target::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

/// The gate of an endpoint that is out of use until further notice.
const SHUT: u64 = u64::MAX;
/// Error texts kept for the status page are cut here.
const ERROR_TEXT_CHARS_MAX: usize = 200;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// One address of a pool. Ids are never used twice in a process.
#[derive(Debug)]
pub struct Endpoint {
    id: u64,
    label: String,
    configured: Address,
    target: Target,
    /// The zero of all the nanoseconds below.
    epoch: Instant,
    /// Usable from this moment on; [`SHUT`] is not at all. Written only under the lock of `health`.
    usable_from: AtomicU64,
    /// When it last came back; 0 is never. Written only under the lock of `health`.
    back_at: AtomicU64,
    /// A good answer must be told to `health`. Written only under the lock of `health`.
    remembers_failures: AtomicBool,
    drained: AtomicBool,
    in_flight: AtomicUsize,
    requests: AtomicU64,
    failures: AtomicU64,
    answered_at: AtomicU64,
    /// Times that it was found silent; with `silence` wakes those who wait for its answers.
    silences: AtomicU64,
    silence: Notify,
    suspicion: Notify,
    gone: CancellationToken,
    health: Mutex<Record>,
    pub(super) metrics: EndpointMetrics,
}

#[derive(Debug)]
struct Record {
    health: Health,
    last_error: Option<String>,
}

impl Endpoint {
    pub(super) fn new(
        configured: Address,
        target: Target,
        label: String,
        drained: bool,
        metrics: EndpointMetrics,
        now: Instant,
    ) -> Endpoint {
        Endpoint {
            id: NEXT_ID.fetch_add(1, Relaxed),
            label,
            configured,
            target,
            epoch: now,
            usable_from: AtomicU64::new(0),
            back_at: AtomicU64::new(0),
            remembers_failures: AtomicBool::new(false),
            drained: AtomicBool::new(drained),
            in_flight: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            silences: AtomicU64::new(0),
            silence: Notify::new(),
            suspicion: Notify::new(),
            gone: CancellationToken::new(),
            health: Mutex::new(Record { health: Health::new(now), last_error: None }),
            metrics,
        }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its resolved address as text; the label of metrics, and what drain and undrain take.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The address that the configuration names, before resolution.
    pub fn configured(&self) -> &Address {
        &self.configured
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// May it get a new request now? Three relaxed loads at most.
    pub fn is_usable(&self, now: Instant) -> bool {
        !self.is_drained() && self.nanos(now) >= self.usable_from.load(Relaxed)
    }

    /// Resolves when the endpoint is next found silent: probes got no answer in time, `unhealthy_after` times in a
    /// row, so that waiting for its answers is in vain. Costs nothing until polled.
    pub async fn found_silent(&self, silences_seen: u64) {
        let notified = self.silence.notified();
        tokio::pin!(notified);
        // Registered before the count is read, so that no silence falls between the two.
        notified.as_mut().enable();
        if self.silences() == silences_seen {
            notified.await;
        }
    }

    pub(super) fn silences(&self) -> u64 {
        self.silences.load(Acquire)
    }

    /// The choice's view of it. None when it is out of use.
    pub(super) fn candidate(&self, now: Instant, slow_start_nanos: u64) -> Option<Candidate> {
        let nanos = self.nanos(now);
        if self.is_drained() || nanos < self.usable_from.load(Relaxed) {
            return None;
        }
        let weight = match self.back_at.load(Relaxed) {
            back_at if back_at > 0 && slow_start_nanos > 0 => {
                balance::slow_start_weight(nanos.saturating_sub(back_at), slow_start_nanos)
            }
            _ => balance::FULL_WEIGHT,
        };
        let in_flight = self.in_flight();
        let answered_at = self.answered_at.load(Relaxed);
        Some(Candidate {
            in_flight: balance::with_doubt(in_flight, nanos.saturating_sub(answered_at)),
            weight,
        })
    }

    /// Counts one more request in flight, unless there are `cap` already (0 is no cap).
    pub(super) fn begin(&self, cap: usize) -> bool {
        if self.in_flight.fetch_add(1, Relaxed) >= cap && cap > 0 {
            self.in_flight.fetch_sub(1, Relaxed);
            return false;
        }
        self.requests.fetch_add(1, Relaxed);
        true
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(super) fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Relaxed);
    }

    /// A good answer. Takes the lock only when there are failures to forget.
    pub(super) fn answered(&self, thresholds: &Thresholds, now: Instant) {
        self.answered_at.store(self.nanos(now), Relaxed);
        if self.remembers_failures.load(Relaxed) {
            self.apply(Event::Answered, false, thresholds, None, now);
        }
    }

    /// Did traffic get good answers since then?
    pub(super) fn has_answered_since(&self, then: Instant) -> bool {
        self.answered_at.load(Relaxed) > self.nanos(then)
    }

    pub(super) fn failed(
        &self,
        event: Event,
        only_usable: bool,
        thresholds: &Thresholds,
        error: &str,
        now: Instant,
    ) -> Option<Transition> {
        self.failures.fetch_add(1, Relaxed);
        self.suspicion.notify_one();
        self.apply(event, only_usable, thresholds, Some(error), now)
    }

    /// Feeds the state machine and makes its word known to the hot path.
    pub(super) fn apply(
        &self,
        event: Event,
        only_usable: bool,
        thresholds: &Thresholds,
        error: Option<&str>,
        now: Instant,
    ) -> Option<Transition> {
        let effects = {
            let mut record = self.health.lock();
            let effects = record.health.on(event, only_usable, thresholds, now);
            if let Some(error) = error {
                record.last_error = Some(error.chars().take(ERROR_TEXT_CHARS_MAX).collect());
            }
            self.publish(&record.health, now);
            effects
        };
        if effects.abandon {
            self.silences.fetch_add(1, Release);
            self.silence.notify_waiters();
        }
        effects.transition
    }

    pub(super) fn forget_probes(&self, now: Instant) {
        let mut record = self.health.lock();
        record.health.forget_probes(now);
        self.publish(&record.health, now);
    }

    fn publish(&self, health: &Health, now: Instant) {
        let usable_from = match health.state(now) {
            State::Unknown | State::Up => 0,
            State::Ejected { until } => self.nanos(until),
            State::Down => SHUT,
        };
        self.usable_from.store(usable_from, Relaxed);
        self.back_at.store(health.back_at().map_or(0, |at| self.nanos(at).max(1)), Relaxed);
        self.remembers_failures.store(health.remembers_failures(), Relaxed);
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.health.lock().health.is_in_doubt()
    }

    /// Resolves when traffic failed since the last call.
    pub(super) async fn suspected(&self) {
        self.suspicion.notified().await;
    }

    /// It left the pool: no more requests, no more probes. What is in flight goes on.
    pub(super) fn leave(&self) {
        self.drained.store(true, Relaxed);
        self.gone.cancel();
    }

    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    pub fn status(&self, now: Instant) -> EndpointStatus {
        let (state, since, last_error) = {
            let record = self.health.lock();
            (record.health.state(now), record.health.since(), record.last_error.clone())
        };
        let state = match state {
            _ if self.is_drained() => "drained",
            State::Unknown => "unknown",
            State::Up => "up",
            State::Ejected { .. } => "ejected",
            State::Down => "down",
        };
        EndpointStatus {
            address: self.label.clone(),
            configured: self.configured.to_string(),
            state,
            usable: self.is_usable(now),
            since_seconds: now.saturating_duration_since(since).as_secs(),
            in_flight: self.in_flight(),
            requests: self.requests.load(Relaxed),
            failures: self.failures.load(Relaxed),
            last_error,
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64
    }
}
