//! Which certificate a client is shown, by the name it asks for (RFC 6066, 3).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Error;
use super::certificate::{Certificate, normalized};

/// All certificates in use at one time, by name.
#[derive(Debug)]
pub(super) struct Selection {
    certificates: Vec<Certificate>,
    /// Wildcards stand under `*.` and the rest.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

impl Selection {
    /// A name that two certificates have is the earlier one's: a renewed certificate may bring a name that it did not have
    /// before, and must not keep the set from being used.
    ///
    /// # Errors
    /// [`Error::NoCertificates`].
    pub(super) fn new(certificates: Vec<Certificate>) -> Result<Selection, Error> {
        let first = certificates.first().ok_or(Error::NoCertificates)?;
        let first = Arc::clone(&first.key);
        let mut owners: HashMap<&str, &Certificate> = HashMap::new();
        for certificate in &certificates {
            for name in &certificate.names {
                match owners.entry(name) {
                    Entry::Vacant(free) => drop(free.insert(certificate)),
                    // One certificate may well say a name twice.
                    Entry::Occupied(taken) if std::ptr::eq(*taken.get(), certificate) => {}
                    Entry::Occupied(taken) => tracing::warn!(
                        name,
                        shown = ?taken.get().path,
                        passed_over = ?certificate.path,
                        "two certificates are for one name; the settings can list the names each is for"
                    ),
                }
            }
        }
        let by_name =
            owners.into_iter().map(|(name, owner)| (name.to_owned(), Arc::clone(&owner.key))).collect();
        Ok(Selection { certificates, by_name, first })
    }

    /// In the order of the settings; at least one.
    pub(super) fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// That of this very name, else of the wildcard for its first label, else the first.
    fn choose(&self, server_name: Option<&str>) -> Arc<CertifiedKey> {
        let found = server_name.and_then(|name| {
            let name = normalized(name);
            self.by_name.get(&name).or_else(|| {
                let (_, parent) = name.split_once('.')?;
                self.by_name.get(&format!("*.{parent}"))
            })
        });
        Arc::clone(found.unwrap_or(&self.first))
    }
}

/// Hands each handshake a certificate of the selection that is current when the client's hello arrives.
#[derive(Debug)]
pub(super) struct Resolver(ArcSwap<Selection>);

impl Resolver {
    pub(super) fn new(selection: Selection) -> Resolver {
        Resolver(ArcSwap::from_pointee(selection))
    }

    /// Gives back the one before.
    pub(super) fn replace(&self, selection: Arc<Selection>) -> Arc<Selection> {
        self.0.swap(selection)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().choose(hello.server_name()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::listener::tls::tests::write_pair;

    fn selection(dir: &Path, entries: &[(&str, &[&str], &[&str])]) -> Result<Selection, Error> {
        let read = |(stem, own, listed): &(&str, &[&str], &[&str])| {
            let mut files = write_pair(dir, stem, own);
            files.names = listed.iter().map(|name| (*name).to_owned()).collect();
            Certificate::read(&files).unwrap()
        };
        Selection::new(entries.iter().map(read).collect())
    }

    #[test]
    fn a_name_finds_its_own_then_its_wildcard_then_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let entries: [(&str, &[&str], &[&str]); 4] = [
            ("first", &["first.example"], &[]),
            ("wild", &["*.Example.com", "*.example.com"], &[]),
            ("exact", &["api.example.com", "192.0.2.1"], &[]),
            ("listed", &["other.example"], &["Listed.example.", "*.listed.example"]),
        ];
        let selection = selection(dir.path(), &entries).unwrap();
        let label = |name: Option<&str>| {
            let chosen = selection.choose(name);
            let is_it = |certificate: &&Certificate| Arc::ptr_eq(&certificate.key, &chosen);
            let path = &selection.certificates.iter().find(is_it).unwrap().path;
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        };
        for (name, expected) in [
            ("first.example", "first"),
            ("api.example.com", "exact"),
            ("API.Example.COM.", "exact"),
            ("www.example.com", "wild"),
            ("WWW.EXAMPLE.COM", "wild"),
            ("www.example.com.", "wild"),
            ("a.www.example.com", "first"),
            ("example.com", "first"),
            ("listed.example", "listed"),
            ("any.listed.example", "listed"),
            ("other.example", "first"),
            ("com", "first"),
            ("", "first"),
            (".", "first"),
        ] {
            assert_eq!(label(Some(name)), expected, "{name}");
        }
        assert_eq!(label(None), "first");
    }

    #[test]
    fn of_two_certificates_for_one_name_the_first_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let entries: [(&str, &[&str], &[&str]); 2] =
            [("one", &["a.example", "b.example"], &[]), ("two", &["c.example"], &["B.example"])];
        let selection = selection(dir.path(), &entries).unwrap();
        let chosen = selection.choose(Some("b.example"));
        assert!(Arc::ptr_eq(&selection.certificates[0].key, &chosen));
    }

    #[test]
    fn there_is_always_one_to_show() {
        assert!(matches!(Selection::new(Vec::new()), Err(Error::NoCertificates)));
    }
}
