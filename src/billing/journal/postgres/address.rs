//! Connection strings: one replica set, several hosts, and how much its certificates are trusted.

use std::path::Path;
use std::time::Duration;

use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::{self, Trust};
use crate::billing::journal::Error;

/// A server that stopped answering is noticed after 10 + 3 × 3 s where nothing waits for an answer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;

/// A read connection string.
pub(super) struct Address {
    /// One for each host, in the order of the string.
    pub(super) hosts: Vec<HostAddress>,
    pub(super) tls: MakeRustlsConnect,
}

pub(super) struct HostAddress {
    pub(super) config: tokio_postgres::Config,
    /// For people: no password.
    pub(super) uri: String,
}

impl Address {
    /// `password`: where the string has none.
    pub(super) fn read(
        text: &str,
        ca_file: Option<&Path>,
        password: Option<&[u8]>,
        connect: Duration,
    ) -> Result<Address, Error> {
        let (rest, mode) = take_sslmode(text).map_err(Error::Config)?;
        // The driver's message may quote the string, and with it a password.
        let mut all: tokio_postgres::Config = rest.parse().map_err(|error: tokio_postgres::Error| {
            Error::Config(format!("connection string: {}", root(&error)))
        })?;
        if all.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err(Error::Config(
                "connection string: a journal is written, target_session_attrs=read-only cannot do"
                    .to_owned(),
            ));
        }
        if let (None, Some(password)) = (all.get_password(), password) {
            all.password(password);
        }
        let trust = Trust::of(mode.as_deref(), ca_file).map_err(Error::Config)?;
        let hosts: Vec<_> = (0..all.get_hosts().len().max(all.get_hostaddrs().len()))
            .map(|at| host(&all, at, &trust, connect))
            .collect::<Result<_, _>>()?;
        if hosts.is_empty() {
            return Err(Error::Config("connection string: it names no host".to_owned()));
        }
        Ok(Address { hosts, tls: tls::connector(&trust, ca_file).map_err(Error::Config)? })
    }
}

/// The innermost cause, which says what is wrong and quotes no more than an option's name.
fn root(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The settings for one host of the string. The driver has no way to take hosts out, so the others are copied.
fn host(
    all: &tokio_postgres::Config,
    at: usize,
    trust: &Trust,
    connect: Duration,
) -> Result<HostAddress, Error> {
    let mismatch =
        || Error::Config("connection string: as many hostaddr and port as host, please".to_owned());
    let mut config = tokio_postgres::Config::new();
    let port = match all.get_ports() {
        [] => 5432,
        [port] => *port,
        ports => *ports.get(at).ok_or_else(mismatch)?,
    };
    let mut name = String::new();
    match all.get_hosts().get(at) {
        Some(Host::Tcp(host)) => {
            name.clone_from(host);
            config.host(host);
        }
        Some(Host::Unix(path)) => {
            name = path.display().to_string();
            config.host_path(path);
        }
        None if all.get_hosts().is_empty() => {}
        None => return Err(mismatch()),
    }
    match all.get_hostaddrs().get(at) {
        Some(address) => {
            if name.is_empty() {
                name = address.to_string();
            }
            config.hostaddr(*address);
        }
        None if all.get_hostaddrs().is_empty() => {}
        None => return Err(mismatch()),
    }
    config
        .port(port)
        .connect_timeout(all.get_connect_timeout().copied().unwrap_or(connect).min(connect))
        .keepalives(true)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES)
        .application_name(all.get_application_name().unwrap_or("forefront-billing"))
        .ssl_mode(trust.ssl_mode())
        .ssl_negotiation(all.get_ssl_negotiation())
        .channel_binding(all.get_channel_binding());
    if let Some(timeout) = all.get_tcp_user_timeout() {
        config.tcp_user_timeout(*timeout);
    }
    if let Some(user) = all.get_user() {
        config.user(user);
    }
    if let Some(password) = all.get_password() {
        config.password(password);
    }
    if let Some(dbname) = all.get_dbname() {
        config.dbname(dbname);
    }
    if let Some(options) = all.get_options() {
        config.options(options);
    }
    let user = all.get_user().map(|user| format!("{user}@")).unwrap_or_default();
    let uri = format!("postgresql://{user}{name}:{port}/{}", all.get_dbname().unwrap_or_default());
    Ok(HostAddress { config, uri })
}

/// Takes `sslmode` out, which the driver reads in half only (it knows no `verify-ca` and `verify-full`).
fn take_sslmode(text: &str) -> Result<(String, Option<String>), String> {
    if is_uri(text) {
        let Some((base, query)) = text.split_once('?') else { return Ok((text.to_owned(), None)) };
        let (modes, others): (Vec<&str>, Vec<&str>) =
            query.split('&').partition(|pair| pair.starts_with("sslmode="));
        let mode = modes.last().and_then(|pair| pair.split_once('=')).map(|(_, mode)| mode.to_owned());
        return Ok((format!("{base}?{}", others.join("&")), mode));
    }
    let mut rest = String::with_capacity(text.len());
    let mut mode = None;
    for (key, value) in pairs(text)? {
        if key == "sslmode" {
            mode = Some(value.trim_matches('\'').to_owned());
        } else {
            rest.push_str(key);
            rest.push('=');
            rest.push_str(value);
            rest.push(' ');
        }
    }
    Ok((rest, mode))
}

pub(super) fn is_uri(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// Keys and values as they are written, with their quotes.
pub(super) fn pairs(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut pairs = Vec::new();
    let mut left = text.trim_start();
    while !left.is_empty() {
        let equals = left.find('=').ok_or("connection string: a key without a value")?;
        let value = left[equals + 1..].trim_start();
        let length = value_length(value).ok_or("connection string: a quote is not closed")?;
        pairs.push((left[..equals].trim_end(), &value[..length]));
        left = value[length..].trim_start();
    }
    Ok(pairs)
}

/// How far a value reaches: to white space, or to the closing quote; a backslash keeps what follows it.
fn value_length(value: &str) -> Option<usize> {
    let quoted = value.starts_with('\'');
    let mut escaped = false;
    for (at, c) in value.char_indices().skip(usize::from(quoted)) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return Some(at + 1),
            c if !quoted && c.is_whitespace() => return Some(at),
            _ => {}
        }
    }
    if quoted { None } else { Some(value.len()) }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::SslMode;

    use super::*;

    fn read(text: &str) -> Result<Address, Error> {
        Address::read(text, None, None, Duration::from_secs(2))
    }

    #[test]
    fn a_password_of_a_file_is_for_strings_without_one() {
        for (text, password) in
            [("host=a,b user=u", "filed"), ("host=a password=own", "own"), ("postgresql://u:own@a/d", "own")]
        {
            let address = Address::read(text, None, Some(b"filed"), Duration::from_secs(2)).unwrap();
            for host in &address.hosts {
                assert_eq!(host.config.get_password(), Some(password.as_bytes()), "{text}");
            }
        }
    }

    #[test]
    fn several_hosts_become_several_settings() {
        let address = read("host=a,b port=5432,6000 user=u password='p w' dbname=d").unwrap();
        let uris: Vec<&str> = address.hosts.iter().map(|host| host.uri.as_str()).collect();
        assert_eq!(uris, ["postgresql://u@a:5432/d", "postgresql://u@b:6000/d"]);
        let second = &address.hosts[1].config;
        assert_eq!(second.get_hosts(), [Host::Tcp("b".to_owned())]);
        assert_eq!(second.get_password(), Some("p w".as_bytes()));
        let address = read("postgresql://u:p@a:1,b:2/d?application_name=x&sslmode=disable").unwrap();
        assert_eq!(address.hosts[1].uri, "postgresql://u@b:2/d");
        assert_eq!(address.hosts[1].config.get_application_name(), Some("x"));
        assert_eq!(address.hosts[1].config.get_ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn the_mode_is_found_and_nothing_else_is_taken_for_it() {
        let take = |text| take_sslmode(text).unwrap();
        assert_eq!(take("host=a sslmode = 'verify-full' user=u").1.as_deref(), Some("verify-full"));
        let (rest, mode) = take(r"password='it\'s sslmode=disable' host=a");
        assert_eq!((rest.trim(), mode), (r"password='it\'s sslmode=disable' host=a", None));
        assert_eq!(take("postgresql://a/d?sslmode=require&x=1").1.as_deref(), Some("require"));
        assert!(take_sslmode("host=a password='x").is_err());
    }

    #[test]
    fn what_cannot_work_is_refused_without_showing_the_password() {
        for text in [
            "host=a password=secret nonsense=1",
            "host=a password=secret sslmode=verify-full",
            "host=a password=secret sslmode=allow",
            "host=a password=secret target_session_attrs=read-only",
            "host=a,b port=1,2,3 hostaddr=127.0.0.1 password=secret",
            "password=secret",
            "host=a password='secret",
        ] {
            let Err(Error::Config(problem)) = read(text) else { panic!("{text} was taken") };
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
