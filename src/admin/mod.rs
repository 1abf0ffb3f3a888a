//! The private listener: metrics, status, drain, purge; and the balancer's: live, ready. Knows no other room: it
//! is handed latches and actions.
//!
//! - [`serve`]: `/` (a page for people), `/metrics`, `/status`, and whatever [`Actions`] it is given;
//! - [`serve_health`]: `/live` and `/ready`, nothing else, for a listener that others can reach;
//! - [`status`]: what `/status` looks like; the app fills it, `forefront status` reads it;
//! - [`rates`]: pure arithmetic from counters to rates and quantiles, for the one who fills it.
//!
//! It computes nothing itself and changes nothing but through the actions. Who may change things is decided in
//! `door.rs`.

mod door;
mod health;
pub mod rates;
mod router;
mod server;
pub mod status;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use door::Token;

/// What the private listener shows and may do.
pub struct Admin {
    /// What `/metrics` encodes.
    pub registry: Registry,
    /// What `/status` answers; called once per request, so it should be cheap. See [`status::Status`].
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// What may be changed.
    pub actions: Actions,
    /// Asked for by every action when a listener is not on loopback; without one, such a listener refuses them all.
    pub token: Option<Token>,
}

/// What may be changed through the private listener. An action that is absent answers 404.
#[derive(Default)]
pub struct Actions {
    /// `POST /drain`: begins the drain of this process, as SIGTERM does.
    pub drain: Option<Box<dyn Fn() + Send + Sync>>,
    /// `POST /cache/purge`: removes entries and tells how many.
    pub purge: Option<Box<dyn Fn(PurgeRequest) -> u64 + Send + Sync>>,
    /// `POST /upstreams/{name}/endpoints/{addr}/{drain|undrain}`: upstream, address, and whether to drain.
    pub endpoint: Option<EndpointAction>,
}

/// Takes the upstream's name, the endpoint's address as configured, and true to drain, false to undrain.
pub type EndpointAction = Box<dyn Fn(&str, &str, bool) -> Result<(), ActionError> + Send + Sync>;

/// Which entries to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgeRequest {
    /// Exactly this path, query included.
    Path(String),
    /// Every path that begins so.
    Prefix(String),
}

/// Why an action was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// There is no upstream of this name.
    #[error("there is no such upstream")]
    UnknownUpstream,
    /// The upstream has no endpoint of this address.
    #[error("the upstream has no such endpoint")]
    UnknownEndpoint,
}

/// What can go wrong before the listener serves.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token file cannot be read.
    #[error("cannot read the token file {path:?}")]
    TokenFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token is empty, too short to be a secret, or cannot stand in a header field.
    #[error(
        "the token file {path:?} must hold {} to {} visible ASCII characters",
        door::TOKEN_MIN,
        door::TOKEN_MAX
    )]
    BadToken {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The listener's own address cannot be told.
    #[error("cannot tell the address of the admin listener")]
    Address(#[source] std::io::Error),
}

impl Token {
    /// Reads the token: the file's content without white space around it.
    ///
    /// # Errors
    /// [`Error::TokenFile`], [`Error::BadToken`].
    pub fn from_file(path: &Path) -> Result<Token, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::TokenFile { path: path.to_owned(), source })?;
        Token::new(text.trim()).ok_or_else(|| Error::BadToken { path: path.to_owned() })
    }
}

/// Serves the private listener on each of these sockets until `shutdown`, then lets requests under way finish
/// (at most 2 s).
///
/// Bounds: 256 connections, head 16 KiB within 10 s, body 64 KiB, a request 10 s, a connection 5 min.
///
/// # Errors
/// [`Error::Address`], before anything is served.
pub async fn serve(
    listeners: Vec<TcpListener>,
    admin: Admin,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admin = Arc::new(admin);
    let mut doors = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let address = listener.local_addr().map_err(Error::Address)?;
        doors.push((listener, router::private(&admin, address)));
    }
    server::serve(doors, server::Limits::default(), shutdown).await;
    Ok(())
}

/// Serves `/live` and `/ready` on each of these sockets until `shutdown`. Same bounds as [`serve`].
///
/// Shut it down last: while the process drains, `/ready` must go on answering 503.
pub async fn serve_health(
    listeners: Vec<TcpListener>,
    drain: crate::drain::Drain,
    shutdown: CancellationToken,
) {
    let router = health::router(drain);
    let doors = listeners.into_iter().map(|listener| (listener, router.clone())).collect();
    server::serve(doors, server::Limits::default(), shutdown).await;
}
