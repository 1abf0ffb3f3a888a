//! Where orders go and how hard they are tried.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

use super::Error;
use crate::resilience::backoff::Backoff;

/// Where the id of the user stands in a URL template.
const USER_ID: &str = "{user_id}";

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// None: depletions are journaled, and nobody is told. Orders leave once there is one.
    pub webhook: Option<Webhook>,
    /// What requests are signed with; None: they are not signed.
    pub secret: Option<Secret>,
    /// Authorities for `https`, PEM; None: the system's.
    pub ca_file: Option<PathBuf>,
    /// From the connection to the head of the answer. Default 5 s: machines are switched off by an API that answers in
    /// well under a second; a hanging one must not hold a place for long.
    pub timeout: Duration,
    /// Requests under way at once to the webhook's host, of all shards of this node; a quarter of them only for orders that
    /// were not tried yet. Default 64: 10,000 orders at 20 ms each take 3 s, and no receiver is run over.
    pub per_host: usize,
    /// Orders held in memory, for each shard, at about 100 bytes. What is beyond stays in the state and is fetched from there
    /// when half of the queue is empty, or now and then while it is full of what is refused. Default 100,000.
    pub queue: usize,
    /// Between tries of one order. Default 100 ms to 30 s.
    pub retry: Backoff,
    /// Failures and no 2xx for so long: the host was ill, and when it answers again, what waits need not wait any longer. Default 5 s:
    /// shorter trouble makes no long waits, and what is refused for ever while others are taken is not tried the more for it.
    pub illness: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            webhook: None,
            secret: None,
            ca_file: None,
            timeout: Duration::from_secs(5),
            per_host: 64,
            queue: 100_000,
            retry: Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) },
            illness: Duration::from_secs(5),
        }
    }
}

/// A key for signatures, which no log shows.
#[derive(Clone, PartialEq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A checked URL template: `http` or `https`, with `{user_id}` in its path or query.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhook {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// As the `Host` field has it.
    pub(super) authority: String,
    path_and_query: String,
}

impl Webhook {
    /// # Errors
    /// [`Error::Webhook`] with what is wrong.
    pub fn parse(url: &str) -> Result<Webhook, Error> {
        let wrong = |problem| Error::Webhook { url: url.to_owned(), problem };
        if !url.contains(USER_ID) {
            return Err(wrong("it needs {user_id} where the id of the user goes"));
        }
        // The URI grammar has no braces; a digit in their place is what requests will have.
        let uri: Uri = url.replace(USER_ID, "0").parse().map_err(|_| wrong("it is no URL"))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(wrong("it must begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        if authority.as_str().contains('@') {
            return Err(wrong("a user and a password do not belong into it"));
        }
        let named_port = authority.as_str().rsplit(']').next().is_some_and(|rest| rest.contains(':'));
        let port = match authority.port_u16() {
            Some(port) => port,
            None if named_port => return Err(wrong("its port is no number from 0 to 65535")),
            None if tls => 443,
            None => 80,
        };
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let Some(at) = rest.find(['/', '?']) else {
            return Err(wrong("{user_id} belongs into its path or query"));
        };
        let (named, path) = rest.split_at(at);
        if named.contains(USER_ID) {
            return Err(wrong("{user_id} belongs into its path or query"));
        }
        let path = path.split('#').next().unwrap_or_default();
        if !path.contains(USER_ID) {
            return Err(wrong("{user_id} belongs into its path or query"));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Webhook {
            tls,
            host: host.to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            path_and_query: format!("{slash}{path}"),
        })
    }

    /// What is asked for in the name of this account.
    pub fn path_and_query(&self, account: u64) -> String {
        self.path_and_query.replace(USER_ID, &account.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_read() {
        let webhook = Webhook::parse("http://switch:8080/off?userID={user_id}").unwrap();
        assert_eq!((webhook.tls, webhook.host.as_str(), webhook.port), (false, "switch", 8080));
        assert_eq!(webhook.path_and_query(u64::MAX), "/off?userID=18446744073709551615");
        let webhook = Webhook::parse("https://[::1]?userID={user_id}&again={user_id}").unwrap();
        assert_eq!((webhook.tls, webhook.host.as_str(), webhook.port), (true, "::1", 443));
        assert_eq!(
            (webhook.authority.as_str(), webhook.path_and_query(7).as_str()),
            ("[::1]", "/?userID=7&again=7")
        );
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for url in [
            "http://host/off",
            "http://{user_id}.host/off",
            "http://{user_id}/",
            "ftp://host/{user_id}",
            "/off?userID={user_id}",
            "http://user:secret@host/{user_id}",
            "http://host/#{user_id}",
            "http:///off?userID={user_id}",
            "http://host:99999/{user_id}",
            "http://ho st/{user_id}",
        ] {
            assert!(Webhook::parse(url).is_err(), "{url} was taken");
        }
    }
}
