//! What can go wrong before TLS can be spoken.

use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem;

/// Each names the file it is about, if there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path:?} is broken PEM")]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{path:?} holds no PEM certificate")]
    NoCertificate { path: PathBuf },
    #[error("the first certificate in {path:?} cannot be understood: {reason}")]
    Certificate { path: PathBuf, reason: String },
    #[error("{path:?} holds no PEM private key (one with a passphrase cannot be used)")]
    NoPrivateKey { path: PathBuf },
    #[error("the private key in {path:?} is broken or of no supported kind (RSA, ECDSA, Ed25519)")]
    PrivateKey { path: PathBuf, source: rustls::Error },
    #[error("the private key in {private_key:?} does not match the first certificate in {certificate:?}")]
    Mismatch { certificate: PathBuf, private_key: PathBuf, source: rustls::Error },
    #[error("there is no certificate to show")]
    NoCertificates,
    #[error(
        "the shared secret in {path:?} has {bytes} bytes, and {} are the least; make one by: \
         head -c 32 /dev/urandom | base64 > {}",
        super::secret::BYTES_MIN,
        .path.display()
    )]
    SecretShort { path: PathBuf, bytes: usize },
    #[error("the system gives no random bytes")]
    Random,
    #[error("cannot write {path:?}")]
    Write { path: PathBuf, source: io::Error },
    /// Another process is stuck while it has the lock: making a certificate takes milliseconds.
    #[error("another process has held {path:?} locked for {seconds} seconds")]
    Locked { path: PathBuf, seconds: u64 },
    #[error("cannot make a self-signed certificate for {names:?}")]
    SelfSigned { names: Vec<String>, source: rcgen::Error },
    #[error("cannot set up TLS")]
    ServerConfig(#[source] rustls::Error),
    /// A metric of the same name was registered before.
    #[error("cannot register a metric")]
    Register(#[source] prometheus::Error),
}
