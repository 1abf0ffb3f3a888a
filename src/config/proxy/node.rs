//! `[node]`, `[listen]`, `[admin]`, `[health]`, `[log]`, and what this version does not have.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Admin, Health, Log, LogFormat, LogLevel, listen_address, path};
use crate::config::reader::{Place, Section, Value};
use crate::proxy::AccessLog;

/// More loops than any machine this is meant for has cores.
const THREADS_MAX: usize = 256;

const NO_HTTPS: &str = "HTTPS is not in this version";
const NO_HTTPS_HINT: &str = "remove it; plain HTTP is `[listen] http`";

pub(super) struct Node {
    pub(super) name: String,
    pub(super) threads: usize,
    pub(super) state_dir: PathBuf,
    pub(super) listen_http: Vec<SocketAddr>,
    pub(super) admin: Admin,
    pub(super) health: Health,
}

pub(super) fn read(root: &mut Section<'_>) -> Node {
    let mut node = root.section("node");
    let name = node.or("name", "forefront".to_owned(), Value::name);
    let threads = node.or("threads", cores(), |value| value.integer(1..=THREADS_MAX));
    let state_dir = node.or("state_dir", PathBuf::from("/var/lib/forefront"), path);
    node.finish();

    let mut taken = Taken::default();
    let listen_http = listen(root, &mut taken);
    let mut section = root.section("admin");
    let admin = Admin {
        listen: section.or("listen", SocketAddr::from(([127, 0, 0, 1], 9101)), |value| taken.one(value)),
        token_file: section.optional("token_file", path),
    };
    section.finish();
    let mut section = root.section("health");
    let everywhere = vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 8100))];
    let health = Health { listen: section.or("listen", everywhere, |value| taken.some(value)) };
    section.finish();
    Node { name, threads, state_dir, listen_http, admin, health }
}

fn listen(root: &mut Section<'_>, taken: &mut Taken) -> Vec<SocketAddr> {
    let mut section = root.section("listen");
    let everywhere = vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 80))];
    let http = section.or("http", everywhere, |value| taken.some(value));
    let https = section.place_of("https");
    if section.optional("https", |value| value.list(Some)).is_some_and(|list| !list.is_empty()) {
        https.refuse(NO_HTTPS, NO_HTTPS_HINT);
    }
    let http3 = section.place_of("http3");
    if section.optional("http3", Value::flag) == Some(true) {
        http3.refuse("HTTP/3 is not in this version", NO_HTTPS_HINT);
    }
    refuse_proxy_protocol(&mut section);
    section.finish();

    let tls = root.section("tls");
    if tls.is_given() {
        tls.place().refuse(NO_HTTPS, "remove the section");
    }
    tls.ignore();
    http
}

fn refuse_proxy_protocol(section: &mut Section<'_>) {
    let refuse = |place: &Place<'_>| {
        place.refuse(
            "the PROXY protocol is not in this version",
            "remove it, or write proxy_protocol = \"off\"",
        );
    };
    let place = section.place_of("proxy_protocol");
    if section.optional("proxy_protocol", |value| value.choice(&[("off", false), ("accept", true)]))
        == Some(true)
    {
        refuse(&place);
    }
    let place = section.place_of("proxy_protocol_from");
    if section.optional("proxy_protocol_from", |value| value.list(Some)).is_some_and(|list| !list.is_empty())
    {
        refuse(&place);
    }
}

pub(super) struct Logs {
    pub(super) log: Log,
    pub(super) access: AccessLog,
}

pub(super) fn log(root: &mut Section<'_>) -> Logs {
    let mut section = root.section("log");
    let logs = Logs {
        log: Log {
            format: section.or("format", LogFormat::Json, |value| value.choice(&LogFormat::WORDS)),
            level: section.or("level", LogLevel::Info, |value| value.choice(&LogLevel::WORDS)),
        },
        access: AccessLog { sample: section.or("access_sample", 1.0, |value| value.decimal(0.0..=1.0)) },
    };
    section.finish();
    logs
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX)
}

/// Addresses that are listened on already.
#[derive(Default)]
struct Taken(Vec<SocketAddr>);

impl Taken {
    fn one(&mut self, value: Value<'_>) -> Option<SocketAddr> {
        let (address, place) = value.placed(listen_address)?;
        self.add(address, &place);
        Some(address)
    }

    fn some(&mut self, value: Value<'_>) -> Option<Vec<SocketAddr>> {
        let list = value.one_or_more(|value| value.placed(listen_address))?;
        for (address, place) in &list {
            self.add(*address, place);
        }
        Some(list.into_iter().map(|(address, _)| address).collect())
    }

    /// Port 0 is a new port each time, so it is never taken.
    fn add(&mut self, address: SocketAddr, place: &Place<'_>) {
        if address.port() != 0 && self.0.contains(&address) {
            place
                .refuse(&format!("{address} is already listened on"), "give each listener a port of its own");
        }
        self.0.push(address);
    }
}
