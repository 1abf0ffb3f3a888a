//! TLS to the servers, by rustls, with the meanings that libpq gives to `sslmode`.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trust {
    /// No TLS.
    Plain,
    /// TLS where the server has it, whoever it is. Keeps out who only listens.
    IfOffered,
    /// TLS, whoever it is.
    Anybody,
    /// The certificate is signed by the authorities.
    Chain,
    /// And it is that host's.
    ChainAndName,
}

impl Trust {
    /// Without `sslmode` it is libpq's `prefer`, but a file of authorities is not ignored.
    pub(super) fn of(mode: Option<&str>, ca_file: Option<&Path>) -> Result<Trust, String> {
        let needs_authorities = |trust| match ca_file {
            Some(_) => Ok(trust),
            None => Err(format!("sslmode={} needs ca_file", mode.unwrap_or_default())),
        };
        match (mode, ca_file) {
            (Some("disable"), _) => Ok(Trust::Plain),
            (Some("prefer"), _) | (None, None) => Ok(Trust::IfOffered),
            (Some("require"), None) => Ok(Trust::Anybody),
            // As libpq has it: with authorities at hand, `require` is `verify-ca`.
            (Some("require"), Some(_)) => Ok(Trust::Chain),
            (Some("verify-ca"), _) => needs_authorities(Trust::Chain),
            (Some("verify-full"), _) | (None, Some(_)) => needs_authorities(Trust::ChainAndName),
            (Some(_), _) => {
                Err("sslmode is one of disable, prefer, require, verify-ca, verify-full".to_owned())
            }
        }
    }

    pub(super) fn ssl_mode(self) -> SslMode {
        match self {
            Trust::Plain => SslMode::Disable,
            Trust::IfOffered => SslMode::Prefer,
            Trust::Anybody | Trust::Chain | Trust::ChainAndName => SslMode::Require,
        }
    }
}

pub(super) fn connector(trust: &Trust, ca_file: Option<&Path>) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let inner = match (trust, ca_file) {
        (Trust::Chain | Trust::ChainAndName, Some(file)) => {
            let roots = Arc::new(authorities(file)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            Some(verifier.map_err(|error| format!("{}: {error}", file.display()))?)
        }
        _ => None,
    };
    let verifier = Verifier { provider: Arc::clone(&provider), inner, name: *trust == Trust::ChainAndName };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let pem = std::fs::read(file).map_err(|error| format!("ca_file {}: {error}", file.display()))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate.ok().and_then(|certificate| store.add(certificate).ok());
        if added.is_none() {
            return Err(format!("ca_file {}: a certificate in it cannot be used", file.display()));
        }
    }
    if store.is_empty() {
        return Err(format!("ca_file {} holds no certificate", file.display()));
    }
    Ok(store)
}

/// Without `inner`, any certificate will do. The handshake's signatures are always checked, so the peer at least owns the
/// key of what it shows.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    inner: Option<Arc<WebPkiServerVerifier>>,
    name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The verifier looks at the name last, so the chain was found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_mean_what_libpq_says() {
        let file = Some(Path::new("ca.pem"));
        assert_eq!(Trust::of(None, None), Ok(Trust::IfOffered));
        assert_eq!(Trust::of(None, file), Ok(Trust::ChainAndName));
        assert_eq!(Trust::of(Some("require"), None), Ok(Trust::Anybody));
        assert_eq!(Trust::of(Some("require"), file), Ok(Trust::Chain));
        assert_eq!(Trust::of(Some("verify-ca"), file), Ok(Trust::Chain));
        assert_eq!(Trust::of(Some("verify-full"), file), Ok(Trust::ChainAndName));
        assert_eq!(Trust::of(Some("disable"), file), Ok(Trust::Plain));
        assert!(Trust::of(Some("verify-full"), None).is_err());
        assert!(Trust::of(Some("allow"), None).is_err());
    }
}
