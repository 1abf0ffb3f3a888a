//! The IPROTO door: enough of Tarantool's binary protocol for its public connectors to call the procedures, and to select
//! from and insert into the space `accounts`.
//!
//! `msgpack`, `codec`, `schema`, `login`, `procedures` decide without a socket; `connection` reads and writes. Served are
//! PING, ID, AUTH (chap-sha1), CALL, SELECT by id or in the order of ids, INSERT; everything else is a proper error. Never
//! here: TLS, transactions, the HTTP door's token.

mod codec;
mod connection;
mod login;
mod metrics;
mod msgpack;
mod procedures;
mod schema;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntGauge, Registry};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use login::{Users, UsersError};

use super::api::{Desk, Shards};
use crate::drain::Drain;
use connection::Guest;
use login::Salt;
use metrics::Metrics;
use procedures::Keys;

/// Between tries when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The door, closed. Cheap to clone.
pub struct Iproto<S>(Arc<Inner<S>>);

impl<S> Clone for Iproto<S> {
    fn clone(&self) -> Iproto<S> {
        Iproto(Arc::clone(&self.0))
    }
}

struct Inner<S> {
    desk: Desk<S>,
    users: Users,
    drain: Drain,
    limits: Limits,
    metrics: Metrics,
}

/// What clients may take. A request counts as one, a listing as one for each eight accounts, until its answer is written.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Per listener; more wait in the kernel's queue. 4096, as the HTTP door has it; each costs a descriptor and some 20 KB.
    connections: usize,
    /// Of one connection; more are read once some of them are answered. 4096: half of what a shard lets wait.
    in_flight_per_connection: usize,
    /// Of all connections; more are answered with "busy". 32,768: what four shards let wait, and some 20 MB. What
    /// connections read at the same moment may go a little beyond.
    in_flight: usize,
    /// Answers of a connection that are not written yet; nothing is read of it meanwhile. 64 KiB: two thousand answers, or
    /// one listing.
    out_bytes: usize,
    /// From the greeting to a login, where one is needed. 10 s, as for a message.
    login_timeout: Duration,
    /// From the first byte of a message to its last. 10 s, as the HTTP door waits for content.
    message_timeout: Duration,
    /// Without anything asked or outstanding. 15 min: connectors keep connections, and connect again when they are closed.
    idle_timeout: Duration,
    /// For the client's system to take what is written. 20 s: within the grace of a shutdown.
    write_timeout: Duration,
    /// For the client to read the last answer and close. 1 s: some round trips.
    linger: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 4096,
            in_flight_per_connection: 4096,
            in_flight: 32_768,
            out_bytes: 64 << 10,
            login_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15 * 60),
            write_timeout: Duration::from_secs(20),
            linger: Duration::from_secs(1),
        }
    }
}

impl<S> Inner<S> {
    /// For how much there is room besides what is in flight on all connections.
    fn room(&self) -> usize {
        let taken = usize::try_from(self.metrics.in_flight.get()).unwrap_or(0);
        self.limits.in_flight.saturating_sub(taken)
    }
}

impl<S: Shards> Iproto<S> {
    /// Error: a metric of this room was registered before.
    pub fn new(
        desk: Desk<S>,
        users: Users,
        drain: Drain,
        registry: &Registry,
    ) -> Result<Iproto<S>, prometheus::Error> {
        Iproto::with_limits(desk, users, drain, registry, Limits::default())
    }

    fn with_limits(
        desk: Desk<S>,
        users: Users,
        drain: Drain,
        registry: &Registry,
        limits: Limits,
    ) -> Result<Iproto<S>, prometheus::Error> {
        let metrics = Metrics::register(registry)?;
        Ok(Iproto(Arc::new(Inner { desk, users, drain, limits, metrics })))
    }

    /// Serves on each of these sockets until `closing`; then what was asked is answered. Returns when the last connection
    /// has ended.
    pub async fn serve(self, listeners: Vec<TcpListener>, closing: CancellationToken) {
        let serving = listeners.into_iter().map(|listener| self.accept(listener, closing.clone()));
        futures::future::join_all(serving).await;
    }

    async fn accept(&self, listener: TcpListener, closing: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.0.limits.connections));
        let mut connections = JoinSet::new();
        let next = async |slots: &Arc<Semaphore>| {
            let slot = Arc::clone(slots).acquire_owned().await.expect("nobody closes the semaphore");
            (listener.accept().await, slot)
        };
        loop {
            let (accepted, slot) = tokio::select! {
                () = closing.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = next(&slots) => accepted,
            };
            match (accepted, guest()) {
                (Ok((stream, _)), Some(guest)) => {
                    // If it cannot be set, answers wait for each other.
                    let _ = stream.set_nodelay(true);
                    // Of its own, so that connections do not wait for each other to ask it.
                    let (iproto, closing) = (self.clone(), closing.child_token());
                    connections.spawn(async move {
                        let _open = Open::new(&iproto.0.metrics.connections);
                        connection::serve(&iproto.0, stream, guest, closing).await;
                        drop(slot);
                    });
                }
                (Ok(_), None) => tracing::error!("the system has no random bytes, so nobody is let in"),
                (Err(error), _) => {
                    tracing::warn!(%error, "billing could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        // Every connection ends by itself: it watches the same token, and each of its waits has an end.
        while connections.join_next().await.is_some() {}
    }
}

/// What is random of a connection. None: the system has no random bytes.
fn guest() -> Option<Guest> {
    let (mut salt, mut keys) = ([0; 32], [0; 12]);
    aws_lc_rs::rand::fill(&mut salt).and_then(|()| aws_lc_rs::rand::fill(&mut keys)).ok()?;
    Some(Guest { salt: Salt::new(salt), keys: Keys::new(keys) })
}

/// Counted as long as it lives.
struct Open(IntGauge);

impl Open {
    fn new(gauge: &IntGauge) -> Open {
        gauge.inc();
        Open(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
