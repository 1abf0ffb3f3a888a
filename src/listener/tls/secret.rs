//! The secret that both nodes have, and the keys that come from it.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};

use super::{Error, files};

/// As many as its keys have: less would be the part to guess.
pub(super) const BYTES_MIN: usize = 32;

/// Keeps keys of this program apart from those that another one derives from the same file.
const SALT: &[u8] = b"forefront shared secret";

/// Keys of any purpose come from it by [`derive`](Self::derive); itself it is never shown. Cheap to clone.
#[derive(Clone)]
pub struct Secret(Prk);

impl Secret {
    /// The content of a file without the white space around it, as text or as bytes. Warns if everyone may read it; a
    /// group may, since that is how a service without privileges is given a file of root's.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::SecretShort`] if there are fewer than 32 bytes.
    pub fn read(path: &Path) -> Result<Secret, Error> {
        let content = files::read(path)?;
        let secret = content.trim_ascii();
        if secret.len() < BYTES_MIN {
            return Err(Error::SecretShort { path: path.to_owned(), bytes: secret.len() });
        }
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
            tracing::warn!(file = ?path, "everyone may read the shared secret, and so every session; chmod o= helps");
        }
        Ok(Secret::from_bytes(secret))
    }

    /// One that nobody else has, and that ends with the process.
    ///
    /// # Errors
    /// [`Error::Random`] if the system has no random bytes.
    pub fn random() -> Result<Secret, Error> {
        let mut secret = [0; BYTES_MIN];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| Error::Random)?;
        Ok(Secret::from_bytes(&secret))
    }

    /// The key for a purpose: HKDF-SHA256 (RFC 5869). Another label or another context gives a key that tells nothing
    /// of this one. Costs a few microseconds.
    pub fn derive(&self, label: &str, context: &[u8]) -> [u8; 32] {
        // With its length ahead of the label, no two pairs of label and context are the same bytes.
        let label_bytes = (label.len() as u64).to_be_bytes();
        let info = [label_bytes.as_slice(), label.as_bytes(), context];
        let mut key = [0; 32];
        self.0
            .expand(&info, HKDF_SHA256)
            .and_then(|material| material.fill(&mut key))
            .expect("HKDF-SHA256 gives up to 8160 bytes, and these are 32");
        key
    }

    /// Do both give the same keys?
    pub fn is_same(&self, other: &Secret) -> bool {
        const LABEL: &str = "comparison";
        self.derive(LABEL, &[]) == other.derive(LABEL, &[])
    }

    fn from_bytes(secret: &[u8]) -> Secret {
        Secret(Salt::new(HKDF_SHA256, SALT).extract(secret))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content: &[u8]) -> Result<Secret, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Secret::read(file.path())
    }

    #[test]
    fn the_same_file_gives_the_same_keys_whatever_the_editor_left_at_its_end() {
        let one = of(b"0123456789abcdef0123456789abcdef").unwrap();
        let two = of(b"\n 0123456789abcdef0123456789abcdef\r\n").unwrap();
        assert!(one.is_same(&two));
        assert_eq!(one.derive("tls ticket", b"7"), two.derive("tls ticket", b"7"));
        assert!(!one.is_same(&of(b"0123456789abcdef0123456789abcdeg").unwrap()));
    }

    /// Keys must outlive upgrades, or the nodes disagree while one of them has the new version.
    #[test]
    fn a_key_stays_what_it_is() {
        let secret = of(b"0123456789abcdef0123456789abcdef").unwrap();
        let key = hex::encode(secret.derive("label", b"context"));
        assert_eq!(key, "d592c500a1f9c56ecb40f334206bc3cb2dcabf66211b268c2770a903ae5c0ea7");
    }

    #[test]
    fn purposes_are_kept_apart() {
        let secret = Secret::random().unwrap();
        let keys = [
            secret.derive("a", b"bc"),
            secret.derive("ab", b"c"),
            secret.derive("abc", b""),
            secret.derive("", b"abc"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key));
        }
        assert!(!secret.is_same(&Secret::random().unwrap()));
    }

    #[test]
    fn a_short_secret_is_refused_with_the_way_out() {
        let error = of(b"  0123456789abcdef0123456789abcde \n").unwrap_err();
        assert!(matches!(error, Error::SecretShort { bytes: 31, .. }), "{error}");
        assert!(error.to_string().contains("head -c 32 /dev/urandom | base64 > /"), "{error}");
        assert!(of(b"").is_err());
    }

    #[test]
    fn it_is_not_shown() {
        let secret = of(b"0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
