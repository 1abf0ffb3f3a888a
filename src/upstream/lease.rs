//! A picked endpoint, for as long as one try of a request lasts.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::endpoint::{Endpoint, Target};
use super::health::Event;
use super::pool::Pool;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer came, `latency` after the request was sent. 500, 502, 503 and 504 count as answers of a
    /// sick process, every other status as good.
    Answered { status: u16, latency: Duration },
    /// No connection: refused, unreachable, no such socket. Ejects at once. (A connection that took too long is
    /// `TimedOut`: one lost SYN is no proof.)
    ConnectFailed,
    /// No connection or no head of an answer in time.
    TimedOut,
    /// The connection broke before the answer was complete.
    Broken,
    /// The client went away, or the try was given up for another reason that says nothing of the endpoint.
    Abandoned,
}

/// Counts as one request in flight until dropped. Report the outcome once, and `Broken` or `TimedOut` a second time if
/// the body breaks after the head was reported; a lease dropped without a report counts as abandoned.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    endpoint: Arc<Endpoint>,
    silences: u64,
    reported: AtomicBool,
}

impl Lease {
    pub(super) fn new(pool: Arc<Pool>, endpoint: Arc<Endpoint>) -> Lease {
        let silences = endpoint.silences();
        Lease { pool, endpoint, silences, reported: AtomicBool::new(false) }
    }

    /// The endpoint's id: put it among the tried before picking again.
    pub fn id(&self) -> u64 {
        self.endpoint.id()
    }

    /// None for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.endpoint.target() {
            Target::Tcp(address) => Some(*address),
            Target::Unix(_) => None,
        }
    }

    /// None unless a Unix socket.
    pub fn unix_path(&self) -> Option<&Path> {
        match self.endpoint.target() {
            Target::Tcp(_) => None,
            Target::Unix(path) => Some(path),
        }
    }

    pub fn label(&self) -> &str {
        self.endpoint.label()
    }

    /// The `Host` of requests that are the proxy's own, such as fetches for the cache: the configured one, or the
    /// endpoint's authority.
    pub fn host(&self) -> String {
        let configured = self.pool.config().host.clone();
        configured.unwrap_or_else(|| self.endpoint.configured().authority())
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Resolves when the endpoint is found silent after this lease was taken: an answer will hardly come any more.
    /// It never resolves for an endpoint that refuses or answers badly, since that one's answers still come or have
    /// been cut off. Costs nothing until polled; borrows nothing.
    pub fn endpoint_down(&self) -> impl Future<Output = ()> + Send + 'static {
        let endpoint = Arc::clone(&self.endpoint);
        let silences = self.silences;
        async move { endpoint.found_silent(silences).await }
    }

    /// Tells how the try ended. Takes no lock unless it failed or failures are to be forgotten.
    pub fn report(&self, outcome: Outcome, now: Instant) {
        self.reported.store(true, Relaxed);
        let metrics = &self.endpoint.metrics;
        match outcome {
            Outcome::Answered { status, latency } => {
                metrics.answered.inc();
                metrics.answer_seconds.inc_by(latency.as_secs_f64());
                match status {
                    500 | 502 | 503 | 504 => {
                        self.failed(Event::ServerError, &format!("answered {status}"), now)
                    }
                    _ => self.pool.answered(&self.endpoint, now),
                }
            }
            Outcome::ConnectFailed => {
                metrics.connect_failed.inc();
                self.failed(Event::Refused, "connection refused", now);
            }
            Outcome::TimedOut => {
                metrics.timed_out.inc();
                self.failed(Event::NoAnswer, "timed out", now);
            }
            Outcome::Broken => {
                metrics.broken.inc();
                self.failed(Event::NoAnswer, "the connection broke", now);
            }
            Outcome::Abandoned => metrics.abandoned.inc(),
        }
    }

    fn failed(&self, event: Event, error: &str, now: Instant) {
        self.pool.failed(&self.endpoint, event, error, now);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.end();
        if !*self.reported.get_mut() {
            self.endpoint.metrics.abandoned.inc();
        }
    }
}
