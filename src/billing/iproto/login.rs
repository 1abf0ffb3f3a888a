//! Who a client is: greeting, users, `chap-sha1`. Pure but for reading a file. No password stays in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

pub const GREETING_BYTES: usize = 128;
const SALT_BYTES: usize = 32;
const SCRAMBLE_BYTES: usize = 20;
/// Of base64.
pub(super) const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// A file of users, not of anything else.
const FILE_BYTES_MAX: usize = 1 << 20;

/// What is kept of a password, which is enough to recognise it: `sha1(sha1(password))`.
type Digest = [u8; SCRAMBLE_BYTES];

/// Who may log in, by name. None: everybody is `guest` and may do all.
#[derive(Clone, Default)]
pub struct Users(Option<BTreeMap<Vec<u8>, Digest>>);

#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("cannot read the users in {path:?}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path:?}, line {line}: a user is name:password, neither of them empty")]
    Bad { path: PathBuf, line: usize },
    #[error("{path:?} has no user, or is too large to be a file of users")]
    Size { path: PathBuf },
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Users(..)")
    }
}

/// What the greeting has of one connection.
#[derive(Clone, Copy)]
pub struct Salt([u8; SALT_BYTES]);

impl Users {
    pub fn from_file(path: &Path) -> Result<Users, UsersError> {
        let text =
            std::fs::read(path).map_err(|source| UsersError::Read { path: path.to_owned(), source })?;
        if text.len() > FILE_BYTES_MAX {
            return Err(UsersError::Size { path: path.to_owned() });
        }
        let mut users = BTreeMap::new();
        for (line, number) in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).zip(1..) {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
            let (name, password) = (&line[..colon], &line[(colon + 1).min(line.len())..]);
            if name.is_empty() || password.is_empty() {
                return Err(UsersError::Bad { path: path.to_owned(), line: number });
            }
            users.insert(name.to_vec(), sha1(&sha1(password)));
        }
        match users.is_empty() {
            true => Err(UsersError::Size { path: path.to_owned() }),
            false => Ok(Users(Some(users))),
        }
    }

    /// May a client do something without telling who it is?
    pub fn guests_may(&self) -> bool {
        self.0.is_none()
    }

    /// Is it one of them? Who is not is not told whether it is for the name, and learns it from the time taken neither.
    pub fn know(&self, user: &[u8], scramble: Option<&[u8]>, salt: &Salt) -> bool {
        match (&self.0, scramble) {
            (None, None) => user == b"guest",
            (Some(users), Some(scramble)) => {
                let kept = users.get(user);
                salt.fits(scramble, kept.unwrap_or(&[0; SCRAMBLE_BYTES])) & kept.is_some()
            }
            _ => false,
        }
    }
}

impl Salt {
    pub fn new(random: [u8; SALT_BYTES]) -> Salt {
        Salt(random)
    }

    /// Two lines of 64 bytes: what this is, and the salt.
    pub fn greeting(&self) -> [u8; GREETING_BYTES] {
        let mut greeting = [b' '; GREETING_BYTES];
        // The version whose requests this door knows; connectors look at it.
        let title = b"Tarantool 2.6.0 (Binary) f0f0f0f0-0000-4000-8000-000000000000";
        greeting[..title.len()].copy_from_slice(title);
        greeting[63] = b'\n';
        for (place, byte) in greeting[64..].iter_mut().zip(base64(&self.0)) {
            *place = byte;
        }
        greeting[127] = b'\n';
        greeting
    }

    /// Is it what a client sends that knows the password? It sends `sha1(password) xor mask`.
    fn fits(&self, scramble: &[u8], kept: &Digest) -> bool {
        let Ok(scramble) = <&[u8; SCRAMBLE_BYTES]>::try_from(scramble) else { return false };
        let told = xor(scramble, &self.mask(kept));
        verify_slices_are_equal(&sha1(&told), kept).is_ok()
    }

    fn mask(&self, kept: &Digest) -> [u8; SCRAMBLE_BYTES] {
        let mut seed = [0; 2 * SCRAMBLE_BYTES];
        seed[..SCRAMBLE_BYTES].copy_from_slice(&self.0[..SCRAMBLE_BYTES]);
        seed[SCRAMBLE_BYTES..].copy_from_slice(kept);
        sha1(&seed)
    }

    /// As clients compute it.
    #[cfg(test)]
    pub(super) fn scramble_of(&self, password: &[u8]) -> [u8; SCRAMBLE_BYTES] {
        let first = sha1(password);
        xor(&first, &self.mask(&sha1(&first)))
    }
}

fn sha1(bytes: &[u8]) -> Digest {
    let mut sum = [0; SCRAMBLE_BYTES];
    sum.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref());
    sum
}

fn xor(one: &[u8; SCRAMBLE_BYTES], other: &[u8; SCRAMBLE_BYTES]) -> [u8; SCRAMBLE_BYTES] {
    std::array::from_fn(|at| one[at] ^ other[at])
}

/// RFC 4648, with padding.
pub(super) fn base64(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.chunks(3).flat_map(|chunk| {
        let word = chunk.iter().chain(&[0; 2]).take(3).fold(0, |word, byte| word << 8 | usize::from(*byte));
        (0..4).map(move |place| match place <= chunk.len() {
            true => ALPHABET[word >> (18 - 6 * place) & 63],
            false => b'=',
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()).collect::<Vec<_>>(), coded.as_bytes());
        }
        let greeting = Salt::new([0xff; 32]).greeting();
        assert!(
            greeting[64..].starts_with(b"//////////////////////////////////////////8=  ")
                && greeting[63] == b'\n'
        );
    }

    /// Computed by the scramble of the public Python connector.
    #[test]
    fn a_scramble_of_another_implementation() {
        let salt: [u8; 32] = std::array::from_fn(|at| at as u8);
        let scramble = hex::encode(Salt::new(salt).scramble_of(b"secret"));
        assert_eq!(scramble, "21b3ff405f32cbe4aafff291396046ea29fa3a4d");
    }

    #[test]
    fn users_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users");
        assert!(matches!(Users::from_file(&file), Err(UsersError::Read { .. })));
        for (text, fine) in
            [("", false), ("a", false), (":x", false), ("a:", false), ("# c\n\na:b:c\r\nd:e\n", true)]
        {
            std::fs::write(&file, text).unwrap();
            assert_eq!(Users::from_file(&file).is_ok(), fine, "{text:?}");
        }
        let users = Users::from_file(&file).unwrap();
        let salt = Salt::new([7; 32]);
        let scramble = salt.scramble_of(b"b:c");
        assert!(!users.guests_may());
        assert!(users.know(b"a", Some(&scramble), &salt));
        assert!(!users.know(b"d", Some(&scramble), &salt) && !users.know(b"a", None, &salt));
        assert!(!users.know(b"a", Some(&scramble[1..]), &salt) && !users.know(b"a", Some(b""), &salt));
        assert!(!users.know(b"nobody", Some(&salt.scramble_of(b"")), &salt));
        // What is kept is no password.
        assert!(!users.know(b"a", Some(&sha1(&sha1(b"b:c"))), &salt));
        assert!(
            !users.know(b"a", Some(&scramble), &Salt::new([8; 32])) && !users.know(b"guest", None, &salt)
        );
        assert!(Users::default().know(b"guest", None, &salt));
        assert!(!Users::default().know(b"root", Some(&scramble), &salt));
    }
}
