//! What the proxy is told to do. Holds only valid values: `config` parses and checks, this room believes.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::listener::{ProxyProtocol, TlsConfig};
use crate::resilience::limit::Rate;
use crate::resilience::retry::RetryClass;
use crate::{cache, route};

/// One proxy node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, on `/status` and in the log.
    pub node: String,
    /// Accept loops, each on a core of its own.
    pub threads: usize,
    /// Plain HTTP listeners.
    pub listen_http: Vec<SocketAddr>,
    /// HTTPS listeners: TCP, and UDP at the same port if `http3`. Not empty only if there is `tls`.
    pub listen_https: Vec<SocketAddr>,
    pub http3: bool,
    pub tls: Option<TlsConfig>,
    /// On the TCP listeners, before TLS.
    pub proxy_protocol: ProxyProtocol,
    pub limits: Limits,
    pub drain: DrainConfig,
    pub routes: Vec<RouteConfig>,
    pub access_log: AccessLog,
}

/// Bounds on what clients may take. Every one has a default, none is infinite.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Open downstream connections in all; further ones are accepted and closed at once.
    pub connections: usize,
    /// Open connections of one client (an address; IPv6 by /64).
    pub connections_per_client: usize,
    /// Requests per second of one client; `None`: not limited.
    pub requests_per_client: Option<Rate>,
    /// Request line and fields together; above it 431.
    pub header_bytes: usize,
    /// From the first byte of a request to the end of its head; above it 408.
    pub header_timeout: Duration,
    /// An HTTP/1.1 connection without a request.
    pub idle_timeout: Duration,
    /// Request content; above it 413.
    pub body_bytes: u64,
    /// Peers exempt from the per-client limits, whose `X-Forwarded-For` is believed.
    pub trusted: Vec<IpNet>,
    /// HTTP/2 and HTTP/3: decoded field section.
    pub header_list_bytes: usize,
    /// HTTP/2 and HTTP/3: concurrent requests of one connection.
    pub streams_per_connection: usize,
    /// TLS and QUIC handshakes.
    pub handshake_timeout: Duration,
}

/// How a node leaves: `/ready` fails at once, listeners close after `delay`, what is in flight has `grace` to finish.
#[derive(Clone, Debug, PartialEq)]
pub struct DrainConfig {
    pub delay: Duration,
    pub grace: Duration,
}

/// The access log: one JSON line a request.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// Share of requests logged, 0 (off) to 1 (every one). Answers of 500 and above are logged whenever it is not 0.
    pub sample: f64,
}

/// One route.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// The label of its metrics.
    pub name: String,
    pub rule: route::Rule,
    pub upstream: String,
    /// From the request sent to the head of the answer, retries included.
    pub timeout: Duration,
    /// Between body bytes, either direction.
    pub idle_timeout: Duration,
    /// The whole exchange; `None`: not bounded.
    pub total_timeout: Option<Duration>,
    pub retry: RetryClass,
    /// Requests under way at once on this node; `None`: not bounded.
    pub in_flight: Option<usize>,
    /// Requests that may wait for `in_flight`; above it 503.
    pub queue: usize,
    /// Adds an `Idempotency-Key` to requests that carry none.
    pub idempotency_key: bool,
    pub cache: Option<cache::Policy>,
}
