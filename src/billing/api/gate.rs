//! Who may come in: clients by a bearer token (RFC 6750), other nodes by theirs. Pure but for reading a file.

use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::error::{Kind, Problem};

/// Carries the nodes' own token on a request that is forwarded to the owner of a shard.
pub const PEER: HeaderName = HeaderName::from_static("x-forefront-peer");

/// Fewer characters than this is no secret.
const TOKEN_MIN: usize = 16;
/// More than this is some other file.
const TOKEN_MAX: usize = 512;

/// A secret of a file. Never shown, compared in constant time.
#[derive(Clone)]
pub struct Token(Box<str>);

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the token file {path:?}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the token file {path:?} must hold {TOKEN_MIN} to {TOKEN_MAX} visible ASCII characters")]
    Bad { path: PathBuf },
}

impl Token {
    /// None unless it is 16 to 512 visible ASCII characters.
    pub fn new(text: &str) -> Option<Token> {
        let valid =
            (TOKEN_MIN..=TOKEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        valid.then(|| Token(text.into()))
    }

    /// The file's content without white space around it.
    pub fn from_file(path: &Path) -> Result<Token, TokenError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenError::Read { path: path.to_owned(), source })?;
        Token::new(text.trim()).ok_or_else(|| TokenError::Bad { path: path.to_owned() })
    }

    /// As a field's value; only for where it belongs.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// What a client puts into `Authorization`.
    pub fn bearer(&self) -> HeaderValue {
        // Visible ASCII is a field's value.
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", self.0)).unwrap_or(HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }

    /// The time taken tells the length of the token at most, not how much of the guess was right.
    fn matches(&self, guess: &[u8]) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), guess).is_ok()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// On whose behalf a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Client,
    /// A node that was asked by a client and does not own the account. It is not sent on again.
    Node,
}

#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// None: every client may.
    pub client: Option<Token>,
    /// None: no other node may.
    pub peer: Option<Token>,
}

impl Gate {
    pub fn admit(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        if headers.contains_key(PEER) {
            let given = single(headers, &PEER);
            let known = self.peer.as_ref().zip(given).is_some_and(|(token, given)| token.matches(given));
            return if known { Ok(Caller::Node) } else { Err(Kind::NotAPeer.into()) };
        }
        let Some(token) = &self.client else { return Ok(Caller::Client) };
        let given = single(headers, &AUTHORIZATION).and_then(bearer);
        match given.is_some_and(|given| token.matches(given)) {
            true => Ok(Caller::Client),
            false => Err(Kind::Unauthorized.into()),
        }
    }
}

fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = field.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The value of a field that occurs exactly once.
pub fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.as_bytes();
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "0123456789abcdef";
    const NODE: &str = "fedcba9876543210";

    fn admit(gate: &Gate, fields: &[(&'static str, &str)]) -> Result<Caller, u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        gate.admit(&headers).map_err(|problem| problem.kind.status().as_u16())
    }

    #[test]
    fn tokens_decide() {
        let open = Gate::default();
        let both = Gate { client: Token::new(CLIENT), peer: Token::new(NODE) };
        assert_eq!(admit(&open, &[]), Ok(Caller::Client));
        assert_eq!(admit(&open, &[("authorization", "Bearer whatever")]), Ok(Caller::Client));
        assert_eq!(admit(&open, &[("x-forefront-peer", NODE)]), Err(403));
        assert_eq!(admit(&both, &[("x-forefront-peer", NODE)]), Ok(Caller::Node));
        assert_eq!(admit(&both, &[("x-forefront-peer", NODE), ("x-forefront-peer", NODE)]), Err(403));
        for good in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER   0123456789abcdef "] {
            assert_eq!(admit(&both, &[("authorization", good)]), Ok(Caller::Client), "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer 0123456789abcdeg", "Basic 0123456789abcdef", CLIENT] {
            assert_eq!(admit(&both, &[("authorization", bad)]), Err(401), "{bad}");
        }
        let good = ("authorization", "Bearer 0123456789abcdef");
        assert_eq!(admit(&both, &[]), Err(401));
        assert_eq!(admit(&both, &[good, good]), Err(401));
        // A client's token does not make it a node, and a node needs none.
        assert_eq!(admit(&both, &[good, ("x-forefront-peer", CLIENT)]), Err(403));
    }

    #[test]
    fn tokens_of_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        assert!(matches!(Token::from_file(&file), Err(TokenError::Read { .. })));
        std::fs::write(&file, "short\n").unwrap();
        assert!(matches!(Token::from_file(&file), Err(TokenError::Bad { .. })));
        std::fs::write(&file, format!("  {CLIENT}\n")).unwrap();
        let token = Token::from_file(&file).unwrap();
        assert!(token.matches(CLIENT.as_bytes()) && !format!("{token:?}").contains(CLIENT));
    }
}
