//! Host names of a route.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Longest host name that can match (RFC 1035: 255 octets with lengths, so 253 characters and some air).
pub(super) const HOST_BYTES_MAX: usize = 255;

/// `example.com`, or `*.example.com` for every name below it (any depth, not the name itself). Lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One name or address literal, without a port.
    Exact(Box<str>),
    /// The suffix with its leading dot: `.example.com`.
    Below(Box<str>),
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum HostError {
    #[error("a host must not be empty")]
    Empty,
    #[error("a host is at most {HOST_BYTES_MAX} characters long")]
    TooLong,
    #[error("a host is written without its port: routes do not differ by port")]
    Port,
    #[error("`*` may only stand for the whole first label, as in \"*.example.com\"")]
    Wildcard,
    #[error("{0:?} cannot be part of a host; write an internationalised name in its xn-- form")]
    Character(char),
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<HostPattern, HostError> {
        let (text, below) = match text.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > HOST_BYTES_MAX {
            return Err(HostError::TooLong);
        }
        let address = !below && text.starts_with('[') && text.ends_with(']');
        for character in text.chars() {
            match character {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' => {}
                '[' | ']' | ':' if address => {}
                ':' => return Err(HostError::Port),
                '*' => return Err(HostError::Wildcard),
                other => return Err(HostError::Character(other)),
            }
        }
        let name = text.to_ascii_lowercase();
        Ok(if below {
            HostPattern::Below(format!(".{name}").into_boxed_str())
        } else {
            HostPattern::Exact(name.into_boxed_str())
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// The name in a Host field or authority: without port and final dot, in lower case, written into `buffer`. None if it
/// is too long to match anything.
pub(super) fn normalise<'b>(host: &str, buffer: &'b mut [u8; HOST_BYTES_MAX]) -> Option<&'b str> {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    let target = buffer.get_mut(..name.len())?;
    target.copy_from_slice(name.as_bytes());
    target.make_ascii_lowercase();
    std::str::from_utf8(target).ok()
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, printed) in [
            ("example.com", "example.com"),
            ("Example.COM.", "example.com"),
            ("*.Example.com", "*.example.com"),
            ("[::1]", "[::1]"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            let pattern: HostPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), printed);
        }
        for (text, error) in [
            ("", HostError::Empty),
            ("*.", HostError::Empty),
            ("example.com:80", HostError::Port),
            ("a.*.com", HostError::Wildcard),
            ("*", HostError::Wildcard),
            ("a b", HostError::Character(' ')),
            ("müller.de", HostError::Character('ü')),
        ] {
            assert_eq!(text.parse::<HostPattern>(), Err(error), "{text}");
        }
    }

    #[test]
    fn normalises_what_clients_send() {
        let mut buffer = [0; HOST_BYTES_MAX];
        for (host, name) in [
            ("A.b:80", "a.b"),
            ("a.b.", "a.b"),
            ("[::1]:80", "[::1]"),
            ("[::1", "[::1"),
            ("", ""),
            ("a.b.:8", "a.b"),
        ] {
            assert_eq!(normalise(host, &mut buffer), Some(name), "{host}");
        }
        assert_eq!(normalise(&"x".repeat(256), &mut buffer), None);
    }
}
