//! The IPROTO door: enough of Tarantool's binary protocol for its public connectors to call the procedures, and to select
//! from and insert into the space `accounts`.
//!
//! `msgpack`, `codec`, `schema`, `login`, `procedures` decide without a socket; `connection` reads and writes. Served are PING, ID, AUTH
//! (chap-sha1), CALL, SELECT by id or in the order of ids, INSERT; everything else is a proper error. Never here: TLS,
//! transactions, the HTTP door's token.

mod codec;
mod connection;
mod login;
mod msgpack;
mod procedures;
mod schema;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntGauge, Registry};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use login::{Users, UsersError};

use super::api::{Desk, Shards};
use crate::drain::Drain;
use login::Salt;

/// Per listener; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// As the HTTP door has it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
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
    answer_timeout: Duration,
    requests: IntCounter,
    connections: IntGauge,
}

impl<S: Shards> Iproto<S> {
    /// Error: a metric of this room was registered before.
    pub fn new(
        desk: Desk<S>,
        users: Users,
        drain: Drain,
        registry: &Registry,
    ) -> Result<Iproto<S>, prometheus::Error> {
        let requests =
            IntCounter::new("forefront_billing_iproto_requests_total", "Messages of IPROTO clients")?;
        let connections =
            IntGauge::new("forefront_billing_iproto_connections", "Open connections of the IPROTO door")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        let answer_timeout = ANSWER_TIMEOUT;
        Ok(Iproto(Arc::new(Inner { desk, users, drain, answer_timeout, requests, connections })))
    }

    /// Serves on each of these sockets until `closing`; then what was asked is answered. Returns when the last connection
    /// has ended.
    pub async fn serve(self, listeners: Vec<TcpListener>, closing: CancellationToken) {
        let serving = listeners.into_iter().map(|listener| self.accept(listener, closing.clone()));
        futures::future::join_all(serving).await;
    }

    async fn accept(&self, listener: TcpListener, closing: CancellationToken) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
            let mut random = [0; 32];
            let salted = aws_lc_rs::rand::fill(&mut random);
            match accepted {
                Ok((stream, _)) if salted.is_ok() => {
                    let _ = stream.set_nodelay(true);
                    let (iproto, closing) = (self.clone(), closing.clone());
                    connections.spawn(async move {
                        let open = iproto.0.connections.clone();
                        open.inc();
                        connection::serve(iproto, stream, Salt::new(random), closing).await;
                        open.dec();
                        drop(slot);
                    });
                }
                Ok(_) => tracing::error!("the system has no random bytes, so nobody can log in"),
                Err(error) => {
                    tracing::warn!(%error, "billing could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}
