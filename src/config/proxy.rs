//! `config/proxy.toml`: one proxy node. Every key and default is told in docs/configuration.md.

mod limits;
mod listen;
mod node;
mod routes;
mod tls;
mod upstreams;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::document;
use super::error::Problems;
use super::reader::{Section, Value};
use crate::{cache, proxy, upstream};

/// All of a proxy node's settings. Whoever changes a field keeps it valid.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the node keeps what must outlive it, such as a certificate it signed itself. Default `/var/lib/forefront`.
    pub state_dir: PathBuf,
    pub proxy: proxy::Config,
    pub cache: cache::Config,
    /// HTTP addresses of the other nodes. Default none.
    pub cache_peers: Vec<upstream::Address>,
    pub upstreams: Vec<upstream::Config>,
    pub admin: Admin,
    pub health: Health,
    pub log: Log,
}

/// The private listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Default `127.0.0.1:9101`.
    pub listen: SocketAddr,
    /// Holds the token that changes of state need beyond loopback. Default none.
    pub token_file: Option<PathBuf>,
}

/// `/live` and `/ready` for the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Default `[::]:8100`.
    pub listen: Vec<SocketAddr>,
}

/// What is written to standard error. The share of requests logged is [`proxy::AccessLog`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Default JSON.
    pub format: LogFormat,
    /// Default info; the environment goes over it.
    pub level: LogLevel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogFormat {
    pub(super) const WORDS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];

    pub fn as_str(self) -> &'static str {
        word(&LogFormat::WORDS, self)
    }
}

impl LogLevel {
    pub(super) const WORDS: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];

    /// Is a `tracing` filter too.
    pub fn as_str(self) -> &'static str {
        word(&LogLevel::WORDS, self)
    }
}

/// The words of choices that other rooms define.
pub(super) mod words {
    pub(in crate::config) use super::routes::RETRIES;
    pub(in crate::config) use super::tls::QUIC_RESETS;
    pub(in crate::config) use super::upstreams::BALANCES;
}

/// The word of a choice in a table that has every one of them.
pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], choice: T) -> &'static str {
    words.iter().find(|(_, each)| *each == choice).map_or("", |(word, _)| word)
}

/// Reads a file.
///
/// Errors: every problem of the file at once.
pub fn load(file: &Path) -> Result<Settings, Problems> {
    parse(file, &document::text_of(file)?)
}

/// As [`load`], with the text at hand; `file` is only what problems are attributed to.
pub fn parse(file: &Path, text: &str) -> Result<Settings, Problems> {
    document::read(file, text, compile)
}

fn compile(root: &mut Section<'_>) -> Settings {
    let node = node::read(root);
    let upstreams = upstreams::read(root);
    let routes = routes::read(root, &upstreams);
    let log = node::log(root);
    let proxy = proxy::Config {
        node: node.name,
        threads: node.threads,
        listen_http: node.listen.http,
        listen_https: node.listen.https,
        http3: node.listen.http3,
        tls: node.listen.tls,
        proxy_protocol: node.listen.proxy_protocol,
        limits: limits::read(root),
        drain: limits::drain(root),
        routes,
        access_log: log.access,
    };
    let (cache, cache_peers) = limits::cache(root);
    Settings {
        state_dir: node.state_dir,
        proxy,
        cache,
        cache_peers,
        upstreams,
        admin: node.admin,
        health: node.health,
        log: log.log,
    }
}

const LISTEN_HINT: &str =
    "write an IP address and a port, e.g. \"[::]:8080\" (every address) or \"127.0.0.1:8080\"";
const ENDPOINT_HINT: &str = "write e.g. \"127.0.0.1:80\", \"[::1]:80\", \"name:80\" or \"unix:/path\"";

fn listen_address(value: Value<'_>) -> Option<SocketAddr> {
    value.parsed("an address to listen on", LISTEN_HINT)
}

fn endpoint_address(value: Value<'_>) -> Option<upstream::Address> {
    value.parsed("an address", ENDPOINT_HINT)
}

pub(super) use upstreams::origin_form;

pub(super) fn path(value: Value<'_>) -> Option<PathBuf> {
    value.filled().map(PathBuf::from)
}
