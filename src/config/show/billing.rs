//! A billing node's settings as TOML.

use super::writer::Writer;
use crate::billing;
use crate::config::billing::{Listen, Notifier, Settings};
use crate::config::proxy::Log;
use crate::config::units;

/// A file that loads to these settings, but for passwords in connection strings, which are not shown.
pub fn to_toml(settings: &Settings) -> String {
    let Settings { state_dir, peer_token_file, listen, journal, shards, notifier, log } = settings;
    // What a file cannot set has its default.
    let billing::shard::Config {
        node: billing::journal::Node { name, advertise },
        shards: count,
        lease,
        projection: billing::projection::Config { keep, .. },
        ..
    } = shards;
    let mut out = Writer::default();
    out.header("[node]");
    out.text("name", name);
    out.text("advertise", advertise);
    out.maybe_text("peer_token_file", peer_token_file.as_ref().map(|path| path.display()));
    out.text("state_dir", state_dir.display());
    let Listen { http, iproto, token_file, iproto_users } = listen;
    out.header("[listen]");
    out.texts("http", http);
    out.texts("iproto", iproto);
    out.maybe_text("token_file", token_file.as_ref().map(|path| path.display()));
    out.maybe_text("iproto_users", iproto_users.as_ref().map(|path| path.display()));
    let billing::journal::Config { engine, shards: _, timeouts: _ } = journal;
    out.header("[journal]");
    match engine {
        billing::journal::Engine::Embedded { path } => {
            out.text("engine", "embedded");
            out.text("path", path.display());
        }
        billing::journal::Engine::Postgres { connections: _, ca_file, password_file } => {
            out.text("engine", "postgres");
            out.texts("connections", engine.shown_connections());
            out.maybe_text("ca_file", ca_file.as_ref().map(|path| path.display()));
            out.maybe_text("password_file", password_file.as_ref().map(|path| path.display()));
        }
    }
    out.maybe_text("keep_ledger", keep.map(units::duration));
    out.header("[shards]");
    out.plain("count", count);
    out.duration("lease", *lease);
    let Notifier { url, secret_file, ca_file, timeout, per_host } = notifier;
    out.header("[notifier]");
    out.maybe_text("url", url.as_ref());
    out.maybe_text("secret_file", secret_file.as_ref().map(|path| path.display()));
    out.maybe_text("ca_file", ca_file.as_ref().map(|path| path.display()));
    out.duration("timeout", *timeout);
    out.plain("per_host", per_host);
    let Log { format, level } = log;
    out.header("[log]");
    out.text("format", format.as_str());
    out.text("level", level.as_str());
    out.done()
}
