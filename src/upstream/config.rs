//! What a pool is told. Plain values; the text forms are parsed elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use super::address::Address;

/// One pool. [`Config::new`] gives every default.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The upstream's name: a label of metrics and logs. It cannot be changed by a reload.
    pub name: String,
    pub endpoints: Vec<EndpointConfig>,
    pub balance: Balance,
    /// Bound of making a connection, for whoever connects. Default 1 s.
    pub connect_timeout: Duration,
    /// Active health; None (the default) is passive health only.
    pub health: Option<HealthConfig>,
    pub passive: PassiveConfig,
    pub retry: RetryConfig,
    /// An endpoint that came back gets its full share only after this time. Default 0: off.
    pub slow_start: Duration,
    /// The most requests in flight per endpoint; beyond it `PickError::Busy`. Default 0: no limit.
    pub requests_in_flight: usize,
    /// The most idle connections kept per endpoint and thread, for whoever connects. Default 64.
    pub keepalive: usize,
    /// How long an idle connection is kept. Default 30 s, below what servers usually keep on their side, so that it
    /// is rather us who close.
    pub keepalive_idle: Duration,
    /// The `Host` of probes and cached fetches; None (the default) is the endpoint's own authority.
    pub host: Option<String>,
    /// None (the default) is plain text.
    pub tls: Option<TlsConfig>,
}

impl Config {
    /// A pool of these endpoints with the defaults.
    pub fn new(name: impl Into<String>, endpoints: impl IntoIterator<Item = Address>) -> Config {
        Config {
            name: name.into(),
            endpoints: endpoints.into_iter().map(|address| EndpointConfig { address }).collect(),
            balance: Balance::default(),
            connect_timeout: Duration::from_secs(1),
            health: None,
            passive: PassiveConfig::default(),
            retry: RetryConfig::default(),
            slow_start: Duration::ZERO,
            requests_in_flight: 0,
            keepalive: 64,
            keepalive_idle: Duration::from_secs(30),
            host: None,
            tls: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    pub address: Address,
}

/// How one endpoint is chosen among the usable ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest requests in flight, ties in turn. The default: a slow endpoint gets less.
    #[default]
    LeastRequests,
    /// One after the other.
    RoundRobin,
}

/// Active health: `GET path`, healthy on 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// Origin-form. Default `/ping`.
    pub path: String,
    /// From probe to probe of one endpoint. Default 1 s; a probe counts against the origin's own limits.
    pub interval: Duration,
    /// From connecting to the last byte. Default 500 ms.
    pub timeout: Duration,
    /// Consecutive failures that mark an endpoint down. Default 2.
    pub unhealthy_after: u32,
    /// Consecutive successes that bring it back. Default 1.
    pub healthy_after: u32,
}

impl Default for HealthConfig {
    fn default() -> HealthConfig {
        HealthConfig {
            path: "/ping".to_owned(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            unhealthy_after: 2,
            healthy_after: 1,
        }
    }
}

/// Passive health: what traffic says of an endpoint. A refused connection always ejects at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassiveConfig {
    /// Consecutive timeouts and broken answers that eject. Default 3; 0 is never.
    pub failures: u32,
    /// Consecutive answers of a sick process (500, 502, 503, 504) without a good one between them that eject.
    /// Default 5, so that one bad request, repeated once or twice, does not look like a sick process; 0 is never.
    pub server_errors: u32,
    /// How long an ejection lasts; each one in a row doubles it. Default 5 s.
    pub eject_for: Duration,
    /// The longest ejection. Default 60 s.
    pub eject_for_max: Duration,
}

impl Default for PassiveConfig {
    fn default() -> PassiveConfig {
        PassiveConfig {
            failures: 3,
            server_errors: 5,
            eject_for: Duration::from_secs(5),
            eject_for_max: Duration::from_secs(60),
        }
    }
}

/// Bounds of repeating requests.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryConfig {
    /// Retries per request that are allowed. Default 0.2.
    pub budget: f64,
    /// Retries that are allowed each second however few requests there are. Default 10.
    pub budget_min_per_second: f64,
    /// Total tries of one request. Default 3.
    pub attempts: u32,
}

impl Default for RetryConfig {
    fn default() -> RetryConfig {
        RetryConfig { budget: 0.2, budget_min_per_second: 10.0, attempts: 3 }
    }
}

/// TLS to the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The name asked for and verified; None: the endpoint's configured name or address.
    pub sni: Option<String>,
    /// PEM file of the authorities trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Verify the certificate. Default true.
    pub verify: bool,
}

impl Default for TlsConfig {
    fn default() -> TlsConfig {
        TlsConfig { sni: None, ca_file: None, verify: true }
    }
}
