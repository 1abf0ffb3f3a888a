//! Depletion orders: when an account's money ends, the user's machines are to be switched off at once.
//!
//! [`Timers`] know the instants; the shard journals a depletion and hands the order to its [`Outbox`] after the commit; the
//! [`Courier`] sends `GET <webhook>?userID=<id>` until a 2xx comes, for ever, and hands that back to be journaled. Delivery is
//! at least once: the receiver tells copies by `Idempotency-Key`.
//!
//! Never here: what is durable (the shard says), a state of its own that has to outlive anything (the outbox is rebuilt from
//! the accounts that are stopped without a delivery), a scan that an order would wait for.

mod client;
mod courier;
mod health;
mod metrics;
mod outbox;
#[cfg(test)]
pub(super) mod receiver;
mod settings;
mod signature;
mod timers;

pub use courier::{Courier, FollowUp, MaySend};
pub use outbox::Outbox;
pub use settings::{Config, Secret, Webhook};
pub use signature::{SIGNATURE, TIMESTAMP, signature, signed_text};
pub use timers::Timers;

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("webhook {url:?}: {problem}")]
    Webhook { url: String, problem: &'static str },
    #[error("cannot read the authorities in {path:?}")]
    ReadAuthorities { path: std::path::PathBuf, source: std::io::Error },
    #[error("no authority in {0:?} can be used")]
    NoAuthorities(std::path::PathBuf),
    #[error("this system has no file of authorities that is known here; name one")]
    NoSystemAuthorities,
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("cannot register a metric")]
    Register(#[source] prometheus::Error),
}
