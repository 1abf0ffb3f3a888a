//! Where an endpoint is: a socket address, a name to be resolved, or a Unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of an endpoint as configured. Text forms: `127.0.0.1:80`, `[::1]:80`, `name:80`, `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Socket(SocketAddr),
    /// Each address that the name resolves to is an endpoint of its own.
    Name {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not an address ({reason}); expected \"127.0.0.1:80\", \"[::1]:80\", \"name:80\" or \"unix:/path\""
)]
pub struct AddressError {
    pub text: String,
    pub reason: &'static str,
}

impl Address {
    /// What a request to it says in its `Host` field. A Unix socket has no name, so `localhost`.
    pub fn authority(&self) -> String {
        match self {
            Address::Unix(_) => "localhost".to_owned(),
            Address::Socket(_) | Address::Name { .. } => self.to_string(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(address) => address.fmt(f),
            Address::Name { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let error = |reason| AddressError { text: text.to_owned(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            // sun_path holds 108 bytes with its final zero, see unix(7).
            return match path {
                _ if !path.starts_with('/') => Err(error("the path of a Unix socket must be absolute")),
                _ if path.len() > 107 || path.contains('\0') => {
                    Err(error("the path of a Unix socket is at most 107 bytes"))
                }
                _ => Ok(Address::Unix(PathBuf::from(path))),
            };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(error("port 0")) } else { Ok(Address::Socket(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| error("it has no port"))?;
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| error("its port is not 1 to 65535"))?;
        // A name made of digits and dots only is a mistyped IPv4 address (RFC 3696, 2: no all-numeric top level).
        let numeric = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let letters = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if host.is_empty() || host.len() > 253 || !letters || numeric {
            return Err(error("its host is no name"));
        }
        Ok(Address::Name { host: host.to_ascii_lowercase(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones_read_as_written() {
        for text in ["127.0.0.1:1", "[::1]:1", "name:80", "a-b.example.com:8080", "unix:/run/app.sock"] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
        }
        assert_eq!("NAME:80".parse::<Address>().expect("a name").to_string(), "name:80");
        assert_eq!("unix:/x".parse::<Address>().expect("a path").authority(), "localhost");
    }

    #[test]
    fn bad_ones_are_refused() {
        for text in [
            "",
            ":80",
            "name",
            "name:",
            "name:0",
            "name:65536",
            "127.0.0.1:0",
            "127.0.0:80",
            "1.2.3.4.5:80",
            "::1:80",
            "na me:80",
            "http://name:80",
            "unix:",
            "unix:relative",
            "name:80/path",
            "na\0me:80",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
