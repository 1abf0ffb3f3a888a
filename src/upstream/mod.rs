//! Named pools of endpoints: which endpoint gets a request, which are healthy, how much may be retried.
//!
//! A [`Pool`] is shared by all threads. Whoever forwards a request calls [`Pool::deposit`] once, then
//! [`Pool::pick`], makes the request to the [`Lease`]'s address, tells the [`Outcome`] by [`Lease::report`], and on
//! failure asks `resilience::retry::may_retry` and [`Pool::may_retry`] before it picks again, naming the endpoints
//! it tried. [`spawn_prober`] keeps one pool's health and resolves its names.
//!
//! This room makes no connection but those of its probes, knows no route and no client, and never decides whether a
//! request may be repeated.

mod address;
mod balance;
mod config;
mod endpoint;
mod health;
mod lease;
mod metrics;
mod pool;
mod probe;
mod prober;
mod status;
mod tls;

#[cfg(test)]
mod tests;

pub use address::{Address, AddressError};
pub use config::{Balance, Config, EndpointConfig, HealthConfig, PassiveConfig, RetryConfig, TlsConfig};
pub use endpoint::{Endpoint, Target};
pub use lease::{Lease, Outcome};
pub use metrics::Metrics;
pub use pool::{Error, PickError, Pool, Prepared};
pub use probe::is_local;
pub use prober::spawn_prober;
pub use status::EndpointStatus;
