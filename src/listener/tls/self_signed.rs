//! The certificate for where there is none yet: made once, and kept, so that who chose to trust it does so once.
//!
//! Several nodes may keep it in one directory. Who looks at it or makes it has the lock.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use super::Error;
use super::certificate::{Certificate, normalized};
use super::expiry::unix_secs;
use crate::listener::settings::CertificateFiles;

const DAY_SECS: i64 = 24 * 60 * 60;

/// Ten years. Nobody renews it by hand, and who trusts it trusts this one certificate.
const VALID_SECS: i64 = 3650 * DAY_SECS;

/// Made anew this long before it ends.
const RENEW_SECS: i64 = 30 * DAY_SECS;

/// 9999-12-31, the last day a certificate can name (RFC 5280, 4.1.2.5.2).
const LAST_SECS: i64 = 253_402_214_400;

/// The most that the common name can hold (RFC 5280, A.1).
const COMMON_NAME_BYTES_MAX: usize = 64;

/// Making a key and two files takes milliseconds.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A certificate that fits the settings. Stays as it is for as long as this lives.
#[derive(Debug)]
pub(super) struct Kept {
    files: CertificateFiles,
    _lock: File,
}

impl Kept {
    pub(super) fn files(&self) -> &CertificateFiles {
        &self.files
    }
}

/// The certificate for these names in the state directory, made if there is none that will do.
pub(super) fn keep(state_dir: &Path, names: &[String], now: SystemTime) -> Result<Kept, Error> {
    let dir = state_dir.join("tls");
    // Fails if there is something else of that name, and not if there is the directory.
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(write_error(&dir))?;
    let lock = lock(&dir.join("lock"))?;
    let files = CertificateFiles {
        names: Vec::new(),
        certificate: dir.join("self-signed.crt"),
        private_key: dir.join("self-signed.key"),
    };
    if let Some(reason) = unfit(&files, names, unix_secs(now)) {
        make(&files, names, unix_secs(now))?;
        tracing::info!(file = ?files.certificate, ?names, reason, "made a self-signed certificate");
    }
    Ok(Kept { files, _lock: lock })
}

/// Waits for others, but not for one that is stuck.
fn lock(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(path).map_err(write_error(path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT_MAX => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked { path: path.to_owned(), seconds: LOCK_WAIT_MAX.as_secs() });
            }
            Err(TryLockError::Error(source)) => return Err(Error::Write { path: path.to_owned(), source }),
        }
    }
}

/// Why the files will not do.
fn unfit(files: &CertificateFiles, names: &[String], now_secs: i64) -> Option<String> {
    let certificate = match Certificate::read(files) {
        Ok(certificate) => certificate,
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Some("there is none yet".to_owned());
        }
        Err(error) => return Some(error.to_string()),
    };
    if certificate.not_after < now_secs.saturating_add(RENEW_SECS) {
        return Some("it ends soon".to_owned());
    }
    let addresses = certificate.addresses.iter().map(IpAddr::to_string);
    let named: BTreeSet<String> = certificate.names.iter().cloned().chain(addresses).collect();
    if named != names.iter().map(|name| spelled(name)).collect() {
        return Some("the names changed".to_owned());
    }
    None
}

/// A name or an address in the one spelling by which it is compared.
fn spelled(name: &str) -> String {
    name.parse::<IpAddr>().map_or_else(|_| normalized(name), |address| address.to_string())
}

fn make(files: &CertificateFiles, names: &[String], now_secs: i64) -> Result<(), Error> {
    let (certificate, key) =
        sign(names, now_secs).map_err(|source| Error::SelfSigned { names: names.to_owned(), source })?;
    // Between the two, key and certificate do not match: who dies here makes both anew at the next start.
    replace(&files.private_key, &key, 0o600)?;
    replace(&files.certificate, &certificate, 0o644)
}

/// Certificate and key as PEM.
fn sign(names: &[String], now_secs: i64) -> Result<(String, String), rcgen::Error> {
    let names: Vec<String> = names.iter().map(|name| spelled(name)).collect();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names.clone())?;
    let fits = |name: &&String| name.len() <= COMMON_NAME_BYTES_MAX;
    let common_name = names.iter().find(fits).map_or("forefront", String::as_str);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // From yesterday, for clients whose clock is behind.
    let not_before = (now_secs - DAY_SECS).clamp(0, LAST_SECS - VALID_SECS);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before.unsigned_abs());
    params.not_after = epoch + Duration::from_secs((not_before + VALID_SECS).unsigned_abs());
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The whole new content at once, or the old one.
fn replace(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // One that a crash left, perhaps with another mode.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write_error(&new)(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().create_new(true).write(true).mode(mode).open(&new).map_err(write_error(&new))?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(write_error(&new))?;
    std::fs::rename(&new, path).map_err(write_error(path))
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::UNIX_EPOCH;

    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;

    const NOW_SECS: u64 = 1_790_000_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW_SECS)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The files as they are after someone asked for them.
    fn kept(dir: &Path, wanted: &[&str], now: SystemTime) -> (Vec<u8>, Vec<u8>) {
        let kept = keep(dir, &names(wanted), now).unwrap();
        let files = kept.files();
        (std::fs::read(&files.certificate).unwrap(), std::fs::read(&files.private_key).unwrap())
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn it_says_what_a_server_certificate_says() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = ["Node.example.", "*.example", "192.0.2.1", "2001:DB8::1"];
        let kept = keep(dir.path(), &names(&wanted), now()).unwrap();
        let certificate = Certificate::read(kept.files()).unwrap();
        assert_eq!(certificate.names, ["node.example", "*.example"]);
        assert_eq!(certificate.addresses.len(), 2);
        assert_eq!(certificate.not_before, NOW_SECS as i64 - DAY_SECS);
        assert_eq!(certificate.not_after, NOW_SECS as i64 - DAY_SECS + VALID_SECS);
        let (_, parsed) = X509Certificate::from_der(certificate.key.end_entity_cert().unwrap()).unwrap();
        let purposes = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && !purposes.client_auth && !parsed.is_ca());
        assert_eq!(parsed.subject().to_string(), "CN=node.example");
    }

    #[test]
    fn only_the_owner_reads_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let files = keep(&dir.path().join("state"), &names(&["localhost"]), now()).unwrap().files().clone();
        assert_eq!(mode(&files.private_key), 0o600);
        assert_eq!(mode(files.private_key.parent().unwrap()), 0o700);
    }

    #[test]
    fn it_is_kept_until_it_ends_soon() {
        let dir = tempfile::tempdir().unwrap();
        let first = kept(dir.path(), &["localhost", "::1"], now());
        let at = |secs: i64| now() + Duration::from_secs(secs.unsigned_abs());
        let last = VALID_SECS - DAY_SECS - RENEW_SECS;
        assert_eq!(kept(dir.path(), &["::1", "LOCALHOST"], at(last)), first);
        assert_ne!(kept(dir.path(), &["localhost", "::1"], at(last + 1)), first);
    }

    #[test]
    fn other_names_take_another_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let first = kept(dir.path(), &["localhost"], now());
        let second = kept(dir.path(), &["localhost", "127.0.0.1"], now());
        assert_ne!(second, first);
        assert_ne!(kept(dir.path(), &["localhost"], now()), second);
    }

    #[test]
    fn what_a_crash_or_a_hand_left_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = kept(dir.path(), &["localhost"], now());
        let file = |name: &str| dir.path().join("tls").join(name);
        let (_, other_key) = sign(&names(&["localhost"]), NOW_SECS as i64).unwrap();
        let damages: [&dyn Fn(); 5] = [
            &|| std::fs::remove_file(file("self-signed.key")).unwrap(),
            &|| std::fs::remove_file(file("self-signed.crt")).unwrap(),
            &|| std::fs::write(file("self-signed.key"), &other_key).unwrap(),
            &|| std::fs::write(file("self-signed.crt"), "-----BEGIN CERTIFICATE-----").unwrap(),
            &|| {
                std::fs::write(file("self-signed.key"), "").unwrap();
                std::fs::write(file("self-signed.key.new"), "half").unwrap();
            },
        ];
        for damage in damages {
            damage();
            let mended = kept(dir.path(), &["localhost"], now());
            assert_ne!(mended, last);
            assert_eq!(mended, kept(dir.path(), &["localhost"], now()));
            last = mended;
        }
        assert!(!file("self-signed.key.new").exists());
    }

    #[test]
    fn nodes_that_start_at_once_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(8);
        let start = || {
            barrier.wait();
            kept(dir.path(), &["localhost"], now())
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            nodes.into_iter().map(|node| node.join().unwrap()).collect()
        });
        assert!(all.iter().all(|pair| *pair == all[0]));
    }

    #[test]
    fn any_clock_gives_a_certificate() {
        for now in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(u64::MAX >> 1)] {
            let dir = tempfile::tempdir().unwrap();
            kept(dir.path(), &["localhost"], now);
        }
    }

    #[test]
    fn a_name_that_no_certificate_can_hold_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = keep(dir.path(), &names(&["b\u{fc}cher.example"]), now()).unwrap_err();
        assert!(matches!(error, Error::SelfSigned { .. }), "{error}");
    }
}
