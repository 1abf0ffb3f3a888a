//! Who may change things through the private listener. Pure: header fields in, a decision out.
//!
//! On loopback every local user may, but a browser on the same machine must not be made to by a page from
//! elsewhere: neither by a form or fetch across origins (`Origin`, `Sec-Fetch-Site`), nor by a foreign name that
//! was re-bound to a loopback address (`Host`). Beyond loopback a bearer token (RFC 6750) is asked for.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode};

/// Fewer characters than this is no secret.
pub(super) const TOKEN_MIN: usize = 16;
/// More than this is some other file.
pub(super) const TOKEN_MAX: usize = 512;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The secret of `[admin] token_file`. Never shown, compared in constant time.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// None unless it is 16 to 512 visible ASCII characters.
    pub fn new(text: &str) -> Option<Token> {
        let valid =
            (TOKEN_MIN..=TOKEN_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        valid.then(|| Token(text.as_bytes().into()))
    }

    /// The time taken tells the length of the token at most, not how much of the guess was right.
    fn matches(&self, guess: &[u8]) -> bool {
        if guess.len() != self.0.len() {
            return false;
        }
        let difference = self.0.iter().zip(guess).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
        black_box(difference) == 0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a change may not come from a page of another site")]
    Origin,
    #[error("the Host field must name this listener, as 127.0.0.1 or localhost does")]
    Host,
    #[error(
        "a change needs the field \"Authorization: Bearer <token>\" with the token of [admin] token_file"
    )]
    Token,
    #[error("changes are only possible from loopback, unless [admin] token_file is configured")]
    NoToken,
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Refusal::Token => StatusCode::UNAUTHORIZED,
            Refusal::Origin | Refusal::Host | Refusal::NoToken => StatusCode::FORBIDDEN,
        }
    }
}

/// May a request with these fields, received by a listener on `listen`, change something?
pub(super) fn may_change(
    headers: &HeaderMap,
    listen: SocketAddr,
    token: Option<&Token>,
) -> Result<(), Refusal> {
    let host = single(headers, &HOST).and_then(|host| host.parse::<Authority>().ok());
    same_site(headers, host.as_ref())?;
    if listen.ip().to_canonical().is_loopback() {
        return host.filter(|host| is_local(host, listen)).map(drop).ok_or(Refusal::Host);
    }
    let token = token.ok_or(Refusal::NoToken)?;
    let given = single(headers, &AUTHORIZATION).and_then(bearer);
    given.filter(|given| token.matches(given.as_bytes())).map(drop).ok_or(Refusal::Token)
}

/// Programs send neither field; a browser sends at least one with each request that changes something.
fn same_site(headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Refusal> {
    let fetch_sites = headers.get_all(SEC_FETCH_SITE);
    if fetch_sites.iter().any(|site| site != "same-origin" && site != "none") {
        return Err(Refusal::Origin);
    }
    if !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let origin = single(headers, &ORIGIN).and_then(|origin| origin.strip_prefix("http://"));
    match (origin, host) {
        (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host.as_str()) => Ok(()),
        _ => Err(Refusal::Origin),
    }
}

/// The name must be this machine's own; the port may differ, as it does through a forwarded one.
fn is_local(host: &Authority, listen: SocketAddr) -> bool {
    let name = host.host();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip == listen.ip(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

fn bearer(field: &str) -> Option<&str> {
    let (scheme, token) = field.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

/// The value of a field that occurs exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(listen: &str, token: Option<&str>, fields: &[(&'static str, &str)]) -> Result<(), Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let token = token.map(|token| Token::new(token).unwrap());
        may_change(&headers, listen.parse().unwrap(), token.as_ref())
    }

    #[test]
    fn on_loopback_the_host_must_be_local() {
        let local = "127.0.0.1:9101";
        for host in ["127.0.0.1:9101", "localhost", "LOCALHOST:80", "[::1]:9101", "127.0.0.2"] {
            assert_eq!(decide(local, None, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example:9101", "10.0.0.1", "localhost.evil.example", "", "127.0.0.1.evil.example"]
        {
            assert_eq!(decide(local, None, &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(decide(local, None, &[]), Err(Refusal::Host));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(decide(local, None, &twice), Err(Refusal::Host));
        assert_eq!(decide("[::ffff:127.0.0.1]:1", None, &[("host", "localhost")]), Ok(()));
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let local = "127.0.0.1:9101";
        let host = ("host", "127.0.0.1:9101");
        assert_eq!(decide(local, None, &[host, ("origin", "http://127.0.0.1:9101")]), Ok(()));
        assert_eq!(decide(local, None, &[host, ("sec-fetch-site", "same-origin")]), Ok(()));
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "https://127.0.0.1:9101"),
            ("origin", "null"),
            ("origin", ""),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(decide(local, None, &[host, (name, value)]), Err(Refusal::Origin), "{name} {value}");
        }
        let twice = [host, ("origin", "http://127.0.0.1:9101"), ("origin", "http://evil.example")];
        assert_eq!(decide(local, None, &twice), Err(Refusal::Origin));
    }

    #[test]
    fn beyond_loopback_the_token_decides() {
        let token = Some("0123456789abcdef");
        for listen in ["0.0.0.0:9101", "[::]:9101", "10.0.0.1:9101"] {
            let with = |value| decide(listen, token, &[("host", "any"), ("authorization", value)]);
            assert_eq!(with("Bearer 0123456789abcdef"), Ok(()));
            assert_eq!(with("bearer 0123456789abcdef"), Ok(()));
            for bad in ["Bearer 0123456789abcdeg", "Bearer", "Bearer ", "Basic 0123456789abcdef", ""] {
                assert_eq!(with(bad), Err(Refusal::Token), "{bad}");
            }
            assert_eq!(decide(listen, token, &[("host", "any")]), Err(Refusal::Token));
            assert_eq!(decide(listen, None, &[("host", "localhost")]), Err(Refusal::NoToken));
        }
    }

    #[test]
    fn weak_tokens_are_refused_and_none_is_shown() {
        assert!(Token::new("").is_none() && Token::new("short").is_none());
        assert!(Token::new("0123456789 abcdef").is_none() && Token::new(&"x".repeat(513)).is_none());
        assert!(!format!("{:?}", Token::new("0123456789abcdef")).contains("0123"));
    }
}
