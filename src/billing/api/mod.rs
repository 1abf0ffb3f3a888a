//! The HTTP door: JSON over HTTP/1.1 under `/billing/v1/`, as [`openapi.json`](OPENAPI) tells exactly; `/ping` and
//! `/metrics` at the root.
//!
//! It reads and bounds what comes in, asks the [`Desk`], and turns what comes out into answers. The desk is every door's:
//! it forwards what another node owns, once. Never here: what money does (`domain`), who owns a shard (`shard`).

mod cluster;
mod desk;
mod error;
mod gate;
mod history;
mod json;
mod metrics;
mod page;
mod peers;
mod routes;
mod server;
mod strangers;
#[cfg(test)]
pub(super) mod tests;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use desk::{Desk, Outcome, Shards};
pub use error::{Kind, Problem};
pub use gate::{Caller, Gate, Token, TokenError};
pub use json::{Order, What, key};
pub use peers::Peers;
pub use strangers::Strangers;

use super::shard::IMAGE_BYTES_MAX;
use crate::drain::Drain;
use metrics::Metrics;

/// The OpenAPI 3.1 document that `/billing/v1/openapi.json` answers.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Most accounts that one node tells another in one listing.
pub const NODE_PAGE_MAX: usize = 20_001;

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Per listener; more wait in the kernel's queue. Default 4096: the front keeps some tens for each of its cores, and
    /// each costs a descriptor and some 20 KB.
    pub connections: usize,
    /// At once, in all; more get 503. Default 8192: twice what a journal in the same room can have outstanding at its best
    /// rate within 20 ms.
    pub in_flight: usize,
    /// Request line and fields; beyond it 431. Default 16 KiB, hyper's least is 8 KiB.
    pub header_bytes: usize,
    /// From the connection, or the end of the request before, to the end of a head: so it bounds idle time too. Default
    /// 60 s: above what the front keeps its idle connections for.
    pub header_timeout: Duration,
    /// Of one operation. Default 64 KiB.
    pub body_bytes: usize,
    /// Of a batch. Default 1 MiB.
    pub batch_bytes: usize,
    /// Of a bucket that another node sends. Default what a shard lets leave at most.
    pub image_bytes: usize,
    /// For the content to arrive; then 408. Default 10 s.
    pub body_timeout: Duration,
    /// For a client that reads nothing of its answer; then the connection is cut. Default 20 s: as long as it would have
    /// waited for it.
    pub unread_timeout: Duration,
    /// For the desk to answer; then 504, or 503 where nothing was changed. Default 20 s: a failover of the journal may take
    /// longer, but no client waits so long.
    pub answer_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 4096,
            in_flight: 8192,
            header_bytes: 16 << 10,
            header_timeout: Duration::from_secs(60),
            body_bytes: 64 << 10,
            batch_bytes: 1 << 20,
            image_bytes: IMAGE_BYTES_MAX,
            body_timeout: Duration::from_secs(10),
            unread_timeout: Duration::from_secs(20),
            answer_timeout: Duration::from_secs(20),
        }
    }
}

/// The door, closed. Cheap to clone.
#[derive(Clone)]
pub struct Api<S>(Arc<Inner<S>>);

struct Inner<S> {
    desk: Desk<S>,
    gate: Gate,
    limits: Limits,
    slots: Semaphore,
    drain: Drain,
    registry: Registry,
    metrics: Metrics,
}

impl<S: Shards> Api<S> {
    /// `registry` is what `/metrics` encodes. Error: a metric of this room was registered before.
    pub fn new(
        desk: Desk<S>,
        gate: Gate,
        limits: Limits,
        drain: Drain,
        registry: Registry,
    ) -> Result<Api<S>, prometheus::Error> {
        let metrics = Metrics::register(&registry)?;
        let slots = Semaphore::new(limits.in_flight);
        Ok(Api(Arc::new(Inner { desk, gate, limits, slots, drain, registry, metrics })))
    }

    /// Serves on each of these sockets until `closing`; then each connection ends with the request it is at. Returns when
    /// the last one has ended, or [`GRACE`](server::GRACE) later.
    pub async fn serve(self, listeners: Vec<TcpListener>, closing: CancellationToken) {
        let connections = self.0.metrics.connections.clone();
        let (limits, router) = (self.0.limits, routes::router(self));
        server::serve(listeners, router, limits, connections, closing).await;
    }
}
