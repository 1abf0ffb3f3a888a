//! A TLS client that trusts whom it meets, remembers what it was shown, and counts what it could resume; and certificates
//! for nodes to show.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::client::{Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{PATIENCE, Wire, within};

/// HTTP/1.1, or anything else in bytes, over TLS.
pub type Secured = Wire<TlsStream<TcpStream>>;

/// A client. Its connections resume each other's sessions, whatever node they lead to, when it is given the same name.
#[derive(Clone)]
pub struct Tls {
    pub config: Arc<ClientConfig>,
    shown: Arc<Shown>,
    tickets: Arc<Tickets>,
}

impl Tls {
    /// TLS 1.3 and 1.2.
    pub fn new(alpn: &[&str]) -> Tls {
        Tls::of_version(alpn, rustls::ALL_VERSIONS)
    }

    pub fn of_version(alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> Tls {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let shown = Arc::new(Shown { provider: provider.clone(), leaves: Mutex::default() });
        let memory = ClientSessionMemoryCache::new(64);
        let tickets = Arc::new(Tickets { memory, kept: AtomicUsize::new(0) });
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
        let builder = builder.expect("the provider knows the versions").dangerous();
        let mut config = builder.with_custom_certificate_verifier(shown.clone()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.resumption = Resumption::store(tickets.clone());
        Tls { config: Arc::new(config), shown, tickets }
    }

    pub async fn connect(&self, address: SocketAddr) -> Secured {
        self.connect_as(address, "localhost").await
    }

    /// Asks for this server name.
    pub async fn connect_as(&self, address: SocketAddr, name: &str) -> Secured {
        let stream = Wire::connect(address).await.stream;
        self.over(stream, name).await.unwrap_or_else(|error| panic!("TLS with {address}: {error}"))
    }

    /// Over a connection on which something may have been said already.
    pub async fn over(&self, stream: TcpStream, name: &str) -> io::Result<Secured> {
        let name = ServerName::try_from(name.to_owned()).expect("the test gives a name");
        let connecting = TlsConnector::from(self.config.clone()).connect(name, stream);
        let stream = within(PATIENCE, "a TLS handshake", connecting).await?;
        Ok(Wire { stream, input: Default::default() })
    }

    /// The certificates shown so far, DER; none is shown when a session is resumed.
    pub fn shown(&self) -> Vec<Vec<u8>> {
        self.shown.leaves.lock().expect("no holder panics").clone()
    }

    /// Tickets got so far.
    pub fn tickets(&self) -> usize {
        self.tickets.kept.load(SeqCst)
    }
}

impl Secured {
    pub fn is_resumed(&self) -> bool {
        self.stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// What ALPN chose; empty: nothing.
    pub fn protocol(&self) -> String {
        let chosen = self.stream.get_ref().1.alpn_protocol().unwrap_or_default();
        String::from_utf8_lossy(chosen).into_owned()
    }
}

/// A self-signed certificate and its key as files.
pub struct Certificate {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub der: Vec<u8>,
}

impl Certificate {
    /// Writes `NAME.pem` and `NAME.key`, over what is there: another certificate each time.
    pub fn write(directory: &Path, name: &str, hosts: &[&str]) -> Certificate {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(hosts).expect("the names are names");
        let (certificate, private_key) =
            (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        std::fs::write(&private_key, made.signing_key.serialize_pem()).expect("the directory is ours");
        std::fs::write(&certificate, made.cert.pem()).expect("the directory is ours");
        Certificate { certificate, private_key, der: made.cert.der().to_vec() }
    }

    /// As keys of `[tls]` or `[[tls.certificate]]`.
    pub fn keys(&self) -> String {
        let (certificate, private_key) = (self.certificate.display(), self.private_key.display());
        format!("certificate = \"{certificate}\"\nprivate_key = \"{private_key}\"\n")
    }
}

/// Believes every certificate whose key signed, and keeps it.
#[derive(Debug)]
struct Shown {
    provider: Arc<CryptoProvider>,
    leaves: Mutex<Vec<Vec<u8>>>,
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.leaves.lock().expect("no holder panics").push(leaf.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The library's own store of sessions, which tells when there is something to resume.
#[derive(Debug)]
struct Tickets {
    memory: ClientSessionMemoryCache,
    kept: AtomicUsize,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: rustls::NamedGroup) {
        self.memory.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.memory.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.memory.set_tls12_session(name, session);
        self.kept.fetch_add(1, SeqCst);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.memory.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.memory.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.memory.insert_tls13_ticket(name, ticket);
        self.kept.fetch_add(1, SeqCst);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.memory.take_tls13_ticket(name)
    }
}
