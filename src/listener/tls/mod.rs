//! TLS of the HTTPS listeners, over TCP and over QUIC: which certificate is shown, how sessions are resumed on either
//! node, and the secret that both nodes have.
//!
//! - [`Tls`] is made once and shared by all cores; its two server configs stay the same for as long as it lives, and
//!   what a reload replaces is behind them, so no connection notices one;
//! - [`Secret`] gives keys for whatever both nodes must agree on.
//!
//! Never here: sockets, client certificates, early data (0-RTT: it can be replayed, RFC 8446, 8), stapled OCSP answers
//! (the public authorities have ended the service).

mod certificate;
mod error;
mod expiry;
mod files;
mod loading;
mod secret;
mod selection;
mod self_signed;
mod tickets;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use secret::Secret;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::Registry;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::settings::{CertificateSource, TlsConfig};
use crate::clock;
use expiry::Expiry;
use loading::{Loaded, Watched};
use selection::Resolver;
use tickets::Ticketer;

/// Enough for the two connections a browser opens at once; each costs the handshake one record.
const TICKETS_PER_HANDSHAKE: usize = 2;

/// What the HTTPS listeners of all cores share.
///
/// [`reload`](Self::reload) and [`refresh`](Self::refresh) read files: call them from the control runtime. Everything
/// else only hands out what is ready.
#[derive(Debug)]
pub struct Tls {
    tcp: Arc<ServerConfig>,
    quic: Arc<ServerConfig>,
    secret: Secret,
    secret_is_shared: bool,
    state_dir: PathBuf,
    resolver: Arc<Resolver>,
    expiry: Expiry,
    current: Mutex<Current>,
}

/// Where the certificates in use came from.
#[derive(Debug)]
struct Current {
    source: CertificateSource,
    watched: Watched,
    /// The last failure that [`Tls::refresh`] told of and that nothing has mended since.
    failure: Option<String>,
}

impl Tls {
    /// Reads certificates and secret, or makes them, and registers
    /// `forefront_listener_certificate_not_after_timestamp_seconds`.
    ///
    /// A self-signed certificate is kept in `state_dir`, which may be shared by nodes that start at the same moment.
    ///
    /// # Errors
    /// Any [`Error`]: nothing is served with half of the certificates, or without the shared secret.
    pub fn new(config: &TlsConfig, state_dir: &Path, registry: &Registry) -> Result<Arc<Tls>, Error> {
        let TlsConfig { source, shared_secret_file, quic_reset: _ } = config;
        let secret = shared_secret_file.as_deref().map_or_else(Secret::random, Secret::read)?;
        let Loaded { selection, watched } = loading::load(source, state_dir, clock::wall())?;
        let expiry = Expiry::new(registry)?;
        expiry.show(&[], selection.certificates(), clock::wall());
        let resolver = Arc::new(Resolver::new(selection));
        let ticketer: Arc<dyn ProducesTickets> = Arc::new(Ticketer::new(secret.clone()));
        Ok(Arc::new(Tls {
            tcp: server_config(&[&TLS13, &TLS12], &[b"h2", b"http/1.1"], &resolver, &ticketer)?,
            quic: server_config(&[&TLS13], &[b"h3"], &resolver, &ticketer)?,
            secret,
            secret_is_shared: shared_secret_file.is_some(),
            state_dir: state_dir.to_owned(),
            resolver,
            expiry,
            current: Mutex::new(Current { source: source.clone(), watched, failure: None }),
        }))
    }

    /// TLS 1.2 and 1.3 with `h2` and `http/1.1`.
    pub fn tcp_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tcp)
    }

    /// TLS 1.3 with `h3` (RFC 9001, 4.2).
    pub fn quic_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.quic)
    }

    /// Never changes: sessions and connections that live would be lost with it.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Takes over new settings: the certificates as a whole, or, on an error, nothing at all. A secret that changed is
    /// not taken over; a warning says so.
    ///
    /// # Errors
    /// As [`new`](Self::new), of certificates and secret.
    pub fn reload(&self, config: &TlsConfig) -> Result<(), Error> {
        let TlsConfig { source, shared_secret_file, quic_reset: _ } = config;
        let secret = shared_secret_file.as_deref().map(Secret::read).transpose()?;
        let mut current = self.current.lock();
        let loaded = loading::load(source, &self.state_dir, clock::wall())?;
        let same_secret = match &secret {
            Some(secret) => secret.is_same(&self.secret),
            None => !self.secret_is_shared,
        };
        if !same_secret {
            tracing::warn!(file = ?shared_secret_file, "the shared secret changed, which takes a restart to take over");
        }
        source.clone_into(&mut current.source);
        self.install(&mut current, loaded);
        Ok(())
    }

    /// Looks whether a file of a certificate or key is another than it was, and if so loads all of them anew. `None`:
    /// nothing to tell. Costs a `stat` per file when nothing changed; meant to be called every few seconds.
    ///
    /// Certificate and key are two files, so this may see one of them replaced and the other not yet. Then, as at any
    /// other failure, the old set stays, the failure is told once, and each later call tries again.
    ///
    /// # Errors
    /// As [`new`](Self::new), of the certificates.
    pub fn refresh(&self) -> Option<Result<(), Error>> {
        let mut current = self.current.lock();
        if current.failure.is_none() && !current.watched.changed() {
            return None;
        }
        match loading::load(&current.source, &self.state_dir, clock::wall()) {
            Ok(loaded) => {
                self.install(&mut current, loaded);
                Some(Ok(()))
            }
            Err(error) => {
                // With its causes, so that another reason for the same file is told too.
                let failure = Some(format!("{error:?}"));
                if current.failure == failure {
                    return None;
                }
                current.failure = failure;
                Some(Err(error))
            }
        }
    }

    fn install(&self, current: &mut Current, loaded: Loaded) {
        let Loaded { selection, watched } = loaded;
        let selection = Arc::new(selection);
        let before = self.resolver.replace(Arc::clone(&selection));
        self.expiry.show(before.certificates(), selection.certificates(), clock::wall());
        current.watched = watched;
        current.failure = None;
    }
}

fn server_config(
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&[u8]],
    resolver: &Arc<Resolver>,
    ticketer: &Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, Error> {
    // The provider's defaults are no weaker than Mozilla's "intermediate": AEAD suites with forward secrecy only;
    // X25519MLKEM768, X25519, P-256 and P-384.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(Error::ServerConfig)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::<Resolver>::clone(resolver));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // All suites are good, and a client without AES in hardware knows best that ChaCha20 is cheaper for it.
    config.ignore_client_order = false;
    config.ticketer = Arc::clone(ticketer);
    config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
    // A session kept here would be unknown to the other node, and cost all cores a lock.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}
