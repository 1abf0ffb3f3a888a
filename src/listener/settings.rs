//! What the listeners are told. Holds only valid values: `config` parses and checks, this room believes.

use std::path::PathBuf;

use ipnet::IpNet;

/// TLS of the HTTPS listeners, over TCP and over QUIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    pub source: CertificateSource,
    /// Session tickets and address-validation keys come from it, so that a client of one node is understood by the other.
    /// `None`: every start of a node has keys of its own.
    pub shared_secret_file: Option<PathBuf>,
    pub quic_reset: QuicReset,
}

/// Where the certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// At least one; the first is shown to clients that ask for no name, or for one nobody has.
    Files(Vec<CertificateFiles>),
    /// One for these names, made once and kept in the state directory. At least one name.
    SelfSigned(Vec<String>),
}

/// A certificate chain and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server names it is shown for: DNS names, `*.` for one label. Empty: those in the certificate.
    pub names: Vec<String>,
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

/// Who can reset a connection whose state is lost (RFC 9000, 10.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuicReset {
    /// Only the node that had it. The only safe choice where packets of one connection may reach either node
    /// (RFC 9000, 21.11).
    #[default]
    Node,
    /// Each node with the shared secret: for an address that only one node has at a time.
    Shared,
}

/// Peers that say whom they speak for, by the PROXY protocol, versions 1 and 2. From these the header is required; from all
/// others none is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Empty: off.
    pub from: Vec<IpNet>,
}

impl ProxyProtocol {
    /// Must this peer say whom it speaks for?
    pub fn expects(&self, peer: std::net::IpAddr) -> bool {
        self.from.iter().any(|network| network.contains(&peer))
    }
}
