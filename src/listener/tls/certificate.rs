//! One certificate with its chain and key, as read from files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Error, files};
use crate::listener::settings::CertificateFiles;

/// A chain whose first certificate belongs to the key. Nothing is said about who trusts it, or when.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// Where the chain came from.
    pub(super) path: PathBuf,
    /// What to show it for, [`normalized`]: from the settings, or else the DNS names in the certificate.
    pub(super) names: Vec<String>,
    /// The addresses in the certificate. No client asks for an address by name (RFC 6066, 3).
    pub(super) addresses: Vec<IpAddr>,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    /// Seconds since 1970.
    pub(super) not_after: i64,
    pub(super) key: Arc<CertifiedKey>,
}

impl Certificate {
    pub(super) fn read(files: &CertificateFiles) -> Result<Certificate, Error> {
        let CertificateFiles { names, certificate, private_key } = files;
        let chain = read_chain(certificate)?;
        let key = certified_key(chain, certificate, private_key)?;
        let Subject { names: own_names, addresses, not_before, not_after } = subject(&key, certificate)?;
        let names =
            if names.is_empty() { own_names } else { names.iter().map(|name| normalized(name)).collect() };
        let path = certificate.clone();
        Ok(Certificate { path, names, addresses, not_before, not_after, key: Arc::new(key) })
    }

    /// What it is called in metrics and logs: its first name, else that of its file.
    pub(super) fn label(&self) -> String {
        let stem = || self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.names.first().cloned().unwrap_or_else(stem)
    }
}

/// As names are compared: without case (RFC 4343) and without the root's dot.
pub(super) fn normalized(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain = CertificateDer::pem_slice_iter(&files::read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Pem { path: path.to_owned(), source })?;
    if chain.is_empty() { Err(Error::NoCertificate { path: path.to_owned() }) } else { Ok(chain) }
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    certificate: &Path,
    private_key: &Path,
) -> Result<CertifiedKey, Error> {
    let der = PrivateKeyDer::from_pem_slice(&files::read(private_key)?).map_err(|source| match source {
        pem::Error::NoItemsFound => Error::NoPrivateKey { path: private_key.to_owned() },
        source => Error::Pem { path: private_key.to_owned(), source },
    })?;
    let key = rustls::crypto::aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(der)
        .map_err(|source| Error::PrivateKey { path: private_key.to_owned(), source })?;
    let key = CertifiedKey::new(chain, key);
    match key.keys_match() {
        Ok(()) => Ok(key),
        Err(source @ rustls::Error::InconsistentKeys(_)) => Err(Error::Mismatch {
            certificate: certificate.to_owned(),
            private_key: private_key.to_owned(),
            source,
        }),
        Err(error) => Err(Error::Certificate { path: certificate.to_owned(), reason: error.to_string() }),
    }
}

/// What a certificate says of itself.
struct Subject {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    not_before: i64,
    not_after: i64,
}

fn subject(key: &CertifiedKey, path: &Path) -> Result<Subject, Error> {
    let broken = |reason: String| Error::Certificate { path: path.to_owned(), reason };
    let der = key.end_entity_cert().map_err(|error| broken(error.to_string()))?;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| broken(error.to_string()))?;
    let alternatives = certificate.subject_alternative_name().map_err(|error| broken(error.to_string()))?;
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.push(normalized(name)),
            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
            _ => {}
        }
    }
    let validity = certificate.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Ok(Subject { names, addresses, not_before, not_after })
}

/// RFC 5280, 4.2.1.6: four or sixteen bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or(v6).ok()
}
