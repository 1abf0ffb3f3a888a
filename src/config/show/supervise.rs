//! The keeper's settings as TOML.

use super::writer::{Writer, quoted};
use crate::supervisor::{Backoff, Config, HealthConfig, LogConfig, ProcessConfig};

/// A file that loads to this configuration.
pub fn to_toml(config: &Config) -> String {
    let Config { node, admin_listen, processes } = config;
    let mut out = Writer::default();
    out.header("[node]");
    out.text("name", node);
    out.header("[admin]");
    match admin_listen {
        Some(listen) => out.text("listen", listen),
        None => out.text("listen", "off"),
    }
    for config in processes {
        process(&mut out, config);
    }
    out.done()
}

fn process(out: &mut Writer, config: &ProcessConfig) {
    let ProcessConfig {
        name,
        command,
        user,
        environment,
        working_directory,
        instances,
        address,
        health,
        start_grace,
        stop_timeout,
        backoff: Backoff { min, max },
        memory_max,
        recycle_after,
        log: LogConfig { path, bytes_max },
        sockets,
    } = config;
    out.header("[[process]]");
    out.text("name", name);
    out.texts("command", command);
    out.maybe_text("user", user.as_ref());
    out.maybe_text("working_directory", working_directory.as_ref().map(|path| path.display()));
    out.plain("instances", instances);
    out.maybe_text("address", address.as_ref());
    out.duration("start_grace", *start_grace);
    out.duration("stop_timeout", *stop_timeout);
    if let Some(memory_max) = memory_max {
        out.size("memory_max", *memory_max);
    }
    if let Some(recycle_after) = recycle_after {
        out.duration("recycle_after", *recycle_after);
    }
    out.texts("sockets", sockets);
    if let Some(health) = health {
        probe(out, health);
    }
    out.line("[process.backoff]");
    out.duration("min", *min);
    out.duration("max", *max);
    out.line("[process.log]");
    out.maybe_text("path", path.as_ref().map(|path| path.display()));
    out.size("bytes_max", *bytes_max);
    if !environment.is_empty() {
        out.line("[process.environment]");
        for (name, value) in environment {
            out.text(&quoted(name), value);
        }
    }
}

fn probe(out: &mut Writer, health: &HealthConfig) {
    let HealthConfig { path, interval, timeout, unhealthy_after } = health;
    out.line("[process.health]");
    out.text("path", path);
    out.duration("interval", *interval);
    out.duration("timeout", *timeout);
    out.plain("unhealthy_after", unhealthy_after);
}
