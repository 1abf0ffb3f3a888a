//! `config/supervise.toml`: the process keeper. Every key and default is told in docs/configuration.md.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use super::document;
use super::error::Problems;
use super::proxy::{origin_form, path};
use super::reader::{Section, Value};
use crate::supervisor::{
    AddressTemplate, Backoff, Config, HealthConfig, LogConfig, ProcessConfig, SocketConfig,
};

/// Reads a file.
///
/// Errors: every problem of the file at once.
pub fn load(file: &Path) -> Result<Config, Problems> {
    parse(file, &document::text_of(file)?)
}

/// As [`load`], with the text at hand; `file` is only what problems are attributed to.
pub fn parse(file: &Path, text: &str) -> Result<Config, Problems> {
    document::read(file, text, compile)
}

fn compile(root: &mut Section<'_>) -> Config {
    let mut node = root.section("node");
    let default = Config::new(node.or("name", "forefront".to_owned(), Value::name));
    node.finish();
    let mut admin = root.section("admin");
    let admin_listen = admin.or("listen", default.admin_listen, admin_address);
    admin.finish();
    Config { node: default.node, admin_listen, processes: processes(root) }
}

/// The outer None: it cannot be used. The inner one: no listener.
fn admin_address(value: Value<'_>) -> Option<Option<SocketAddr>> {
    if value.is("off") {
        return Some(None);
    }
    let hint = "write an IP address and a port, e.g. \"127.0.0.1:9103\", or \"off\"";
    value.parsed("an address to listen on", hint).map(Some)
}

fn processes(root: &mut Section<'_>) -> Vec<ProcessConfig> {
    let place = root.place_of("process");
    let sections = root.sections("process");
    if sections.is_empty() {
        place.refuse("there is no process", "add [[process]] with name = \"...\" and command = [\"...\"]");
    }
    let mut processes: Vec<ProcessConfig> = Vec::new();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for section in sections {
        let place = section.place_of("name");
        let process = process(section);
        for instance in process.instance_names() {
            if let Some(other) = names.insert(instance.clone(), process.name.clone())
                && !process.name.is_empty()
            {
                let message = format!("{instance:?} is already an instance of process {other:?}");
                place.refuse(&message, "give each process a name of its own");
            }
        }
        processes.push(process);
    }
    processes
}

fn process(mut section: Section<'_>) -> ProcessConfig {
    let problems_before = section.problems();
    let name = section.required("name", "name = \"...\"", Value::name).unwrap_or_default();
    let command = section.required("command", "command = [\"/path/of/program\", \"argument\"]", command);
    let default = ProcessConfig::new(name, command.unwrap_or_default());
    let health = health(section.section("health"));
    let process = ProcessConfig {
        user: section.optional("user", Value::filled),
        environment: environment(&mut section),
        working_directory: section.optional("working_directory", path),
        instances: section.or("instances", default.instances, |value| {
            value.integer(1..=crate::supervisor::settings::INSTANCES_MAX)
        }),
        address: section.optional("address", |value| {
            value.parsed::<AddressTemplate>(
                "an address",
                "write e.g. \"127.0.0.1:27352\", or \"127.0.0.1:2735{instance}\" for several instances",
            )
        }),
        health,
        start_grace: section.or("start_grace", default.start_grace, Value::duration_or_zero),
        stop_timeout: section.or("stop_timeout", default.stop_timeout, Value::duration),
        backoff: backoff(section.section("backoff"), default.backoff),
        memory_max: section.optional("memory_max", |value| value.size(1 << 20..=1 << 50)),
        recycle_after: section.optional("recycle_after", Value::duration),
        log: log(section.section("log"), default.log),
        sockets: section.or("sockets", Vec::new(), |value| {
            value.list(|value| {
                value.parsed::<SocketConfig>(
                    "a socket",
                    "write e.g. \"http=[::]:80\" or \"quic=udp:[::]:443\"",
                )
            })
        }),
        name: default.name,
        command: default.command,
    };
    // What no single key shows. After a problem with a key it could only repeat that one.
    if section.problems() == problems_before {
        tell_inconsistencies(&section, &process);
    }
    section.finish();
    process
}

/// The keeper's own check; each sentence begins with the key it is about.
fn tell_inconsistencies(section: &Section<'_>, process: &ProcessConfig) {
    for sentence in process.check() {
        match sentence.split_once(": ") {
            Some((key, message)) => {
                section.place_of(key.split('.').next().unwrap_or(key)).tell(message);
            }
            None => section.place().tell(&sentence),
        }
    }
}

fn command(value: Value<'_>) -> Option<Vec<String>> {
    value.list_of_some(|value| {
        let place = value.place();
        let text = value.text()?;
        if text.contains('\0') {
            place.refuse("has a NUL byte", "take it out: no program can be given one");
            return None;
        }
        Some(text.to_owned())
    })
}

fn environment(section: &mut Section<'_>) -> BTreeMap<String, String> {
    let entries = section.entries("environment");
    entries.into_iter().filter_map(|(name, value)| Some((name, value.text()?.to_owned()))).collect()
}

fn health(mut section: Section<'_>) -> Option<HealthConfig> {
    let default = HealthConfig::default();
    let config = HealthConfig {
        path: section.or("path", default.path, origin_form),
        interval: section.or("interval", default.interval, Value::duration),
        timeout: section.or("timeout", default.timeout, Value::duration),
        unhealthy_after: section
            .or("unhealthy_after", default.unhealthy_after, |value| value.integer(1..=100)),
    };
    let given = section.is_given();
    section.finish();
    given.then_some(config)
}

fn backoff(mut section: Section<'_>, default: Backoff) -> Backoff {
    let config = Backoff {
        min: section.or("min", default.min, Value::duration),
        max: section.or("max", default.max, Value::duration),
    };
    section.finish();
    config
}

fn log(mut section: Section<'_>, default: LogConfig) -> LogConfig {
    let config = LogConfig {
        path: section.optional("path", path),
        bytes_max: section.or("bytes_max", default.bytes_max, |value| value.size(4096..=1 << 50)),
    };
    section.finish();
    config
}
