//! `[node]`, `[admin]`, `[health]`, `[log]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::listen::{self, Addresses, Listen, Taken, everywhere};
use super::{Admin, Health, Log, LogFormat, LogLevel, path};
use crate::config::reader::{Section, Value};
use crate::proxy::AccessLog;

/// More loops than any machine this is meant for has cores.
const THREADS_MAX: usize = 256;

pub(super) struct Node {
    pub(super) name: String,
    pub(super) threads: usize,
    pub(super) state_dir: PathBuf,
    pub(super) listen: Listen,
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
    let listen = listen::read(root, &mut taken);
    let mut section = root.section("admin");
    let default = SocketAddr::from(([127, 0, 0, 1], 9101));
    let address = Addresses::read(&mut section, "listen", vec![default], listen::one);
    let admin = Admin {
        listen: taken.take(address).first().copied().unwrap_or(default),
        token_file: section.optional("token_file", path),
    };
    section.finish();
    let mut section = root.section("health");
    let addresses = Addresses::read(&mut section, "listen", vec![everywhere(8100)], listen::some);
    let health = Health { listen: taken.take(addresses) };
    section.finish();
    Node { name, threads, state_dir, listen, admin, health }
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
