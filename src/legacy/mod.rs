//! The stand-in for the legacy service: its endpoints, its limits, its data and all the ways it fails, built from what
//! is known of it from outside. Whatever is not known is invented, and the code says so at that place.
//!
//! It never ends the process and prints nothing but its log: [`serve`] tells its caller how the process is to end. It knows nothing
//! of the proxy in front of it, and contacts nobody.
//!
//! From the bottom: `dice`, `calendar`, `data`, `overlay`, `order`, `span` are pure; `journal` and `store` keep changes;
//! `limiter`, `faults`, `counts`, `log` are what every request meets; `lists` and `endpoints` answer; `control` is
//! for tests; `server` starts them all.

mod calendar;
mod config;
mod control;
mod counts;
mod data;
mod dice;
mod endpoints;
mod faults;
mod journal;
mod limiter;
mod lists;
mod log;
mod order;
mod overlay;
mod server;
mod span;
mod store;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub use config::{Config, ConfigError, DEFAULT_LOG_DIR, DEFAULT_PATH};
pub use faults::{End, Kind, Lifetime};
pub use log::Log;
pub use server::{Addresses, Options, serve};
pub use span::{Span, SpanError};
pub use store::{StoreError, StoreKind};

/// The version the service tells of itself (invented).
pub const VERSION: &str = "1.0.0";

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("listen tcp {address}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the address of a listener could not be read")]
    Address(#[source] std::io::Error),
}
