//! TLS of the probes, and what all connections of a pool trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::address::Address;
use super::config::{Config, TlsConfig};
use super::pool::Error;

/// Where distributions keep the system's authorities: Debian and its kin, Red Hat and its kin, SUSE, Alpine.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A checked [`TlsConfig`]. Authorities are read once, and again at a reload.
#[derive(Debug)]
pub(super) struct ClientTls {
    sni: Option<ServerName<'static>>,
    config: Arc<ClientConfig>,
    authorities: Arc<[CertificateDer<'static>]>,
}

impl ClientTls {
    pub(super) fn new(config: &Config, tls: &TlsConfig) -> Result<ClientTls, Error> {
        let TlsConfig { sni, ca_file, verify } = tls;
        let upstream = &config.name;
        let server_name = |name: &str| {
            ServerName::try_from(name.to_owned())
                .map_err(|_| Error::ServerName { upstream: upstream.clone(), name: name.to_owned() })
        };
        let sni = sni.as_deref().map(server_name).transpose()?;
        if sni.is_none() {
            for endpoint in &config.endpoints {
                match &endpoint.address {
                    Address::Socket(_) => {}
                    Address::Name { host, .. } => drop(server_name(host)?),
                    Address::Unix(_) => drop(server_name(&endpoint.address.to_string())?),
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::Tls { upstream: upstream.clone(), source })?;
        let mut trusted = Vec::new();
        let config = if *verify {
            let (store, certificates) = authorities(upstream, ca_file.as_deref())?;
            trusted = certificates;
            builder.with_root_certificates(store).with_no_client_auth()
        } else {
            let verifier = Arc::new(Unverified(provider));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        };
        Ok(ClientTls { sni, config: Arc::new(config), authorities: trusted.into() })
    }

    /// Empty if certificates are not verified.
    pub(super) fn authorities(&self) -> Arc<[CertificateDer<'static>]> {
        Arc::clone(&self.authorities)
    }

    /// The name to ask an endpoint for; None only for a Unix socket without `sni`, which [`new`](Self::new) refuses.
    pub(super) fn server_name(&self, configured: &Address) -> Option<ServerName<'static>> {
        if let Some(sni) = &self.sni {
            return Some(sni.clone());
        }
        match configured {
            Address::Socket(address) => Some(ServerName::from(address.ip())),
            Address::Name { host, .. } => ServerName::try_from(host.clone()).ok(),
            Address::Unix(_) => None,
        }
    }

    pub(super) fn connector(&self) -> tokio_rustls::TlsConnector {
        tokio_rustls::TlsConnector::from(Arc::clone(&self.config))
    }
}

type Authorities = (RootCertStore, Vec<CertificateDer<'static>>);

fn authorities(upstream: &str, file: Option<&Path>) -> Result<Authorities, Error> {
    let path = match file {
        Some(path) => path.to_owned(),
        None => SYSTEM_AUTHORITIES
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .ok_or_else(|| Error::NoSystemAuthorities { upstream: upstream.to_owned() })?,
    };
    let pem = std::fs::read(&path).map_err(|source| Error::ReadAuthorities {
        upstream: upstream.to_owned(),
        path: path.clone(),
        source,
    })?;
    let mut store = RootCertStore::empty();
    // Bundles may hold a few that rustls cannot use; only a bundle without any usable one is a mistake.
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .filter_map(Result::ok)
        .filter(|certificate| store.add(certificate.clone()).is_ok())
        .collect();
    if store.is_empty() {
        return Err(Error::NoAuthorities { upstream: upstream.to_owned(), path });
    }
    Ok((store, certificates))
}

/// `verify = false`: any certificate will do. The handshake's signatures are still checked, so the peer at least owns
/// the key of what it shows.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
