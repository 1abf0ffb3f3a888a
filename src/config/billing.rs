//! `config/billing.toml`: one billing node. Every key and default is told in docs/configuration.md.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::Authority;

use super::document;
use super::error::Problems;
use super::proxy::{Log, LogFormat, LogLevel, path};
use super::reader::{Place, Section, Value};
use crate::billing;

/// All of a billing node's settings. Whoever changes a field keeps it valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the embedded journal is by default. Default `/var/lib/forefront`.
    pub state_dir: PathBuf,
    /// What nodes know each other by. Default none: this node forwards nothing.
    pub peer_token_file: Option<PathBuf>,
    pub listen: Listen,
    pub journal: billing::journal::Config,
    /// The node's name and address are in here.
    pub shards: billing::shard::Config,
    pub notifier: Notifier,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Default `127.0.0.1:8200`.
    pub http: Vec<SocketAddr>,
    /// Default none: off.
    pub iproto: Vec<SocketAddr>,
    /// Holds the token that clients must show over HTTP. Default none: every client may.
    pub token_file: Option<PathBuf>,
    /// Lines of `name:password`, for IPROTO. Default none: the user `guest`, without a password.
    pub iproto_users: Option<PathBuf>,
}

/// Files are not read here, so this is not yet the notifier's own configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Notifier {
    /// A checked template. Default none: depletions are journaled, and nobody is told.
    pub url: Option<String>,
    /// Holds what orders are signed with. Default none: they are not signed.
    pub secret_file: Option<PathBuf>,
    /// Authorities for `https`. Default: the system's.
    pub ca_file: Option<PathBuf>,
    pub timeout: Duration,
    pub per_host: usize,
}

/// Two, so that two nodes share the work and a newcomer sees that there are several.
const SHARDS: u32 = 2;

/// A lease must outlive two polls and a slow answer; and nobody wants to wait longer for a take-over.
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_secs(60);

/// Lines are looked through for old ones once an hour.
const KEEP_LEDGER_MIN: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Embedded,
    Postgres,
}

const ENGINES: [(&str, Engine); 2] = [("embedded", Engine::Embedded), ("postgres", Engine::Postgres)];

const LISTEN_HINT: &str =
    "write an IP address and a port, e.g. \"127.0.0.1:8200\" or \"[::]:8200\" (every address)";
const ADVERTISE_HINT: &str = "write what other nodes reach this one by, e.g. \"10.0.0.1:8200\"";

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
    let mut node = root.section("node");
    let state_dir = node.or("state_dir", PathBuf::from("/var/lib/forefront"), path);
    let name = node.or("name", "forefront".to_owned(), Value::name);
    let advertise = node.optional("advertise", advertise);
    let peer_token_file = node.optional("peer_token_file", path);
    let listen = listen(root.section("listen"));
    let mut section = root.section("shards");
    let shards = section.or("count", SHARDS, |value| value.integer(1..=billing::journal::BUCKETS as u32));
    let (journal, engine, keep_ledger) = journal_of(root.section("journal"), &state_dir, shards);
    if engine == Engine::Postgres {
        tell_what_nodes_need(&node, &listen);
    }
    node.finish();
    let advertise =
        advertise.unwrap_or_else(|| listen.http.first().map(SocketAddr::to_string).unwrap_or_default());
    let default = billing::shard::Config::new(billing::journal::Node { name, advertise }, shards);
    let lease = section.or("lease", default.lease, lease);
    section.finish();
    Settings {
        state_dir,
        peer_token_file,
        listen,
        journal,
        shards: billing::shard::Config {
            lease,
            projection: billing::projection::Config { keep: keep_ledger, ..default.projection },
            ..default
        },
        notifier: notifier_of(root.section("notifier")),
        log: log(root.section("log")),
    }
}

/// Other nodes have the same journal: they must be able to tell this one from themselves, and to reach it.
fn tell_what_nodes_need(node: &Section<'_>, listen: &Listen) {
    let missing = |key: &str, message: &str, hint: &str| {
        if !node.has(key) {
            node.place_of(key).refuse(message, hint);
        }
    };
    missing(
        "name",
        "is missing, and nodes that share a PostgreSQL journal are told apart by it",
        "add name = \"a\", another one on each node",
    );
    // It is what is advertised otherwise.
    if listen.http.first().is_some_and(|address| address.ip().is_unspecified()) {
        missing(
            "advertise",
            "is missing, and the first address listened on is no way to reach this node",
            ADVERTISE_HINT,
        );
    }
}

fn listen(mut section: Section<'_>) -> Listen {
    let mut taken = Vec::new();
    let default = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8200))];
    let http = section.optional("http", |value| value.one_or_more(|value| value.placed(address)));
    let iproto = section.optional("iproto", |value| match value.is_list() {
        true => value.list(|value| value.placed(address)),
        false => value.placed(address).map(|one| vec![one]),
    });
    let listen = Listen {
        http: http.map_or(default, |http| take(http, &mut taken)),
        iproto: iproto.map_or(Vec::new(), |iproto| take(iproto, &mut taken)),
        token_file: section.optional("token_file", path),
        iproto_users: section.optional("iproto_users", path),
    };
    if listen.iproto_users.is_some() && listen.iproto.is_empty() {
        section.place_of("iproto_users").refuse("has no effect without iproto", "add iproto, or remove it");
    }
    section.finish();
    listen
}

fn address(value: Value<'_>) -> Option<SocketAddr> {
    value.parsed("an address to listen on", LISTEN_HINT)
}

/// Tells addresses that are there twice; the second listener would fail at the start only.
fn take(addresses: Vec<(SocketAddr, Place<'_>)>, taken: &mut Vec<SocketAddr>) -> Vec<SocketAddr> {
    for (address, place) in &addresses {
        // Port 0 is a new port each time.
        if address.port() != 0 && taken.contains(address) {
            place
                .refuse(&format!("{address} is already listened on"), "give each listener a port of its own");
        }
        taken.push(*address);
    }
    addresses.into_iter().map(|(address, _)| address).collect()
}

fn advertise(value: Value<'_>) -> Option<String> {
    let place = value.place();
    let text = value.text()?;
    let authority = text.parse::<Authority>().ok();
    let known = authority.is_some_and(|authority| {
        let unspecified = authority
            .host()
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_unspecified());
        authority.port_u16().is_some_and(|port| port > 0) && !text.contains('@') && !unspecified
    });
    if !known {
        place.refuse(&format!("{text:?} is not an address that can be reached"), ADVERTISE_HINT);
        return None;
    }
    Some(text.to_owned())
}

/// And how long lines of the ledger are kept.
fn journal_of(
    mut section: Section<'_>,
    state_dir: &Path,
    shards: u32,
) -> (billing::journal::Config, Engine, Option<Duration>) {
    let engine = section.or("engine", Engine::Embedded, |value| value.choice(&ENGINES));
    let directory = section.optional("path", path);
    let connections = section.optional("connections", |value| value.list_of_some(Value::filled));
    let ca_file = section.optional("ca_file", path);
    let password_file = section.optional("password_file", path);
    let keep_ledger = section.optional("keep_ledger", keep_ledger);
    let useless = |key: &str, engine: &str| {
        if section.has(key) {
            section.place_of(key).refuse(&format!("has no effect with the engine {engine:?}"), "remove it");
        }
    };
    let engine_config = match engine {
        Engine::Embedded => {
            useless("connections", "embedded");
            useless("ca_file", "embedded");
            useless("password_file", "embedded");
            billing::journal::Engine::Embedded {
                path: directory.unwrap_or_else(|| state_dir.join("journal")),
            }
        }
        Engine::Postgres => {
            useless("path", "postgres");
            if !section.has("connections") {
                section.place_of("connections").refuse(
                    "is missing",
                    "add connections = [\"host=db-a,db-b,db-c user=billing dbname=billing \
                     target_session_attrs=read-write sslmode=verify-full\"], one for each replica set",
                );
            }
            let connections = connections.unwrap_or_default();
            if connections.len() > shards as usize {
                section.place_of("connections").refuse(
                    &format!("has {} connections for {shards} shards", connections.len()),
                    "each replica set has a shard at least: take connections out, or raise shards.count",
                );
            }
            billing::journal::Engine::Postgres { connections, ca_file, password_file }
        }
    };
    section.finish();
    (
        billing::journal::Config {
            engine: engine_config,
            shards,
            timeouts: billing::journal::Timeouts::default(),
        },
        engine,
        keep_ledger,
    )
}

fn keep_ledger(value: Value<'_>) -> Option<Duration> {
    let place = value.place();
    let keep = value.duration()?;
    if keep < KEEP_LEDGER_MIN {
        place.refuse("is out of bounds", "write from \"1h\" to \"366d\", or nothing to keep all");
        return None;
    }
    Some(keep)
}

fn lease(value: Value<'_>) -> Option<Duration> {
    let place = value.place();
    let lease = value.duration()?;
    if !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
        place.refuse("is out of bounds", "write from \"1s\" to \"60s\"");
        return None;
    }
    Some(lease)
}

fn notifier_of(mut section: Section<'_>) -> Notifier {
    let default = billing::notifier::Config::default();
    let config = Notifier {
        url: section.optional("url", webhook),
        secret_file: section.optional("secret_file", path),
        ca_file: section.optional("ca_file", path),
        timeout: section.or("timeout", default.timeout, Value::duration),
        per_host: section.or("per_host", default.per_host, |value| value.integer(1..=4096)),
    };
    for key in ["secret_file", "ca_file"] {
        if section.has(key) && !section.has("url") {
            section.place_of(key).refuse("has no effect without url", "add url, or remove it");
        }
    }
    section.finish();
    config
}

fn webhook(value: Value<'_>) -> Option<String> {
    let place = value.place();
    let text = value.text()?;
    match billing::notifier::Webhook::parse(text) {
        Ok(_) => Some(text.to_owned()),
        Err(error) => {
            place.refuse(&error.to_string(), "write e.g. \"http://10.0.0.9:8080/off?userID={user_id}\"");
            None
        }
    }
}

fn log(mut section: Section<'_>) -> Log {
    let log = Log {
        format: section.or("format", LogFormat::Json, |value| value.choice(&LogFormat::WORDS)),
        level: section.or("level", LogLevel::Info, |value| value.choice(&LogLevel::WORDS)),
    };
    section.finish();
    log
}
