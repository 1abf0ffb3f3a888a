//! From settings to certificates in memory, with what is needed to see that their files changed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::certificate::Certificate;
use super::files::Stamp;
use super::selection::Selection;
use super::{Error, self_signed};
use crate::listener::settings::{CertificateFiles, CertificateSource};

/// A whole set of certificates.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) selection: Selection,
    pub(super) watched: Watched,
}

/// The files of a set, as they were just before they were read.
#[derive(Debug)]
pub(super) struct Watched(Vec<(PathBuf, Option<Stamp>)>);

impl Watched {
    /// Is any of them another now?
    pub(super) fn changed(&self) -> bool {
        self.0.iter().any(|(path, stamp)| Stamp::of(path) != *stamp)
    }
}

/// Reads all certificates; one that is to be self-signed is made if need be.
pub(super) fn load(source: &CertificateSource, state_dir: &Path, now: SystemTime) -> Result<Loaded, Error> {
    match source {
        CertificateSource::Files(entries) => read(entries),
        CertificateSource::SelfSigned(names) => {
            // Nobody replaces the files while `kept` lives.
            let kept = self_signed::keep(state_dir, names, now)?;
            read(std::slice::from_ref(kept.files()))
        }
    }
}

fn read(entries: &[CertificateFiles]) -> Result<Loaded, Error> {
    // Ahead of the reading: what is replaced meanwhile is then noticed the next time.
    let paths = entries.iter().flat_map(|entry| [&entry.certificate, &entry.private_key]);
    let watched = Watched(paths.map(|path| (path.clone(), Stamp::of(path))).collect());
    let certificates = entries.iter().map(Certificate::read).collect::<Result<Vec<_>, _>>()?;
    for certificate in certificates.iter().skip(1).filter(|certificate| certificate.names.is_empty()) {
        tracing::warn!(file = ?certificate.path, "no client is shown this certificate, for it has no name");
    }
    Ok(Loaded { selection: Selection::new(certificates)?, watched })
}
