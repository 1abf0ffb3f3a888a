//! A proxy node's settings as TOML.

use super::writer::{Writer, list, quoted};
use crate::cache::{self, Policy, QueryKey};
use crate::config::proxy::{Admin, Health, Log, Settings, word, words};
use crate::config::units;
use crate::listener::{self, CertificateFiles, CertificateSource, ProxyProtocol};
use crate::proxy::{AccessLog, DrainConfig, Limits, RouteConfig};
use crate::resilience::limit::Rate;
use crate::route::Rule;
use crate::upstream::{self, HealthConfig, PassiveConfig, RetryConfig, TlsConfig};

/// A file that loads to these settings.
pub fn to_toml(settings: &Settings) -> String {
    let Settings { state_dir, proxy, cache, cache_peers, upstreams, admin, health, log } = settings;
    let crate::proxy::Config {
        node,
        threads,
        listen_http,
        listen_https,
        http3,
        tls,
        proxy_protocol,
        limits: bounds,
        drain,
        routes,
        access_log,
    } = proxy;
    let mut out = Writer::default();
    out.header("[node]");
    out.text("name", node);
    out.plain("threads", threads);
    out.text("state_dir", state_dir.display());
    out.header("[listen]");
    out.texts("http", listen_http);
    out.texts("https", listen_https);
    out.plain("http3", http3);
    let ProxyProtocol { from } = proxy_protocol;
    out.text("proxy_protocol", if from.is_empty() { "off" } else { "accept" });
    out.texts("proxy_protocol_from", from);
    if let Some(config) = tls {
        certificates(&mut out, config);
    }
    listeners(&mut out, admin, health);
    log_and_drain(&mut out, log, access_log, drain);
    limits(&mut out, bounds);
    store(&mut out, cache, cache_peers);
    for config in upstreams {
        upstream(&mut out, config);
    }
    for config in routes {
        route(&mut out, config);
    }
    out.done()
}

fn certificates(out: &mut Writer, config: &listener::TlsConfig) {
    let listener::TlsConfig { source, shared_secret_file, quic_reset } = config;
    out.header("[tls]");
    let mut tables: &[CertificateFiles] = &[];
    match source {
        CertificateSource::SelfSigned(names) => out.texts("self_signed", names),
        CertificateSource::Files(files) => match &files[..] {
            [one] if one.names.is_empty() => certificate(out, one),
            several => tables = several,
        },
    }
    out.maybe_text("shared_secret_file", shared_secret_file.as_ref().map(|path| path.display()));
    out.text("quic_reset", word(&words::QUIC_RESETS, *quic_reset));
    // Last, or the keys above would be theirs.
    for one in tables {
        out.line("[[tls.certificate]]");
        certificate(out, one);
    }
}

fn certificate(out: &mut Writer, files: &CertificateFiles) {
    let CertificateFiles { names, certificate, private_key } = files;
    if !names.is_empty() {
        out.texts("names", names);
    }
    out.text("certificate", certificate.display());
    out.text("private_key", private_key.display());
}

fn listeners(out: &mut Writer, admin: &Admin, health: &Health) {
    let Admin { listen, token_file } = admin;
    out.header("[admin]");
    out.text("listen", listen);
    out.maybe_text("token_file", token_file.as_ref().map(|path| path.display()));
    let Health { listen } = health;
    out.header("[health]");
    out.texts("listen", listen);
}

fn log_and_drain(out: &mut Writer, log: &Log, access_log: &AccessLog, drain: &DrainConfig) {
    let (Log { format, level }, AccessLog { sample }) = (log, access_log);
    out.header("[log]");
    out.text("format", format.as_str());
    out.text("level", level.as_str());
    out.plain("access_sample", sample);
    let DrainConfig { delay, grace } = drain;
    out.header("[drain]");
    out.duration("delay", *delay);
    out.duration("grace", *grace);
}

fn limits(out: &mut Writer, limits: &Limits) {
    let Limits {
        connections,
        connections_per_client,
        requests_per_client,
        header_bytes,
        header_timeout,
        idle_timeout,
        body_bytes,
        trusted,
        header_list_bytes,
        streams_per_connection,
        handshake_timeout,
    } = limits;
    out.header("[limits]");
    out.plain("connections", connections);
    out.plain("connections_per_client", connections_per_client);
    if let Some(Rate { per_second, burst }) = requests_per_client {
        out.line(&format!("requests_per_client = {{ per_second = {per_second}, burst = {burst} }}"));
    }
    out.size("header_bytes", *header_bytes as u64);
    out.duration("header_timeout", *header_timeout);
    out.duration("idle_timeout", *idle_timeout);
    out.size("body_bytes", *body_bytes);
    out.texts("trusted", trusted);
    out.size("header_list_bytes", *header_list_bytes as u64);
    out.plain("streams_per_connection", streams_per_connection);
    out.duration("handshake_timeout", *handshake_timeout);
}

fn store(out: &mut Writer, cache: &cache::Config, peers: &[upstream::Address]) {
    let cache::Config { capacity_bytes, object_bytes_max, fills } = cache;
    out.header("[cache]");
    out.size("capacity", *capacity_bytes);
    out.size("object_bytes_max", *object_bytes_max);
    out.plain("fills", fills);
    out.texts("peers", peers);
}

fn upstream(out: &mut Writer, config: &upstream::Config) {
    let upstream::Config {
        name,
        endpoints,
        balance,
        connect_timeout,
        health,
        passive,
        retry,
        slow_start,
        requests_in_flight,
        keepalive,
        keepalive_idle,
        host,
        tls,
    } = config;
    out.header("[[upstream]]");
    out.text("name", name);
    out.texts("endpoints", endpoints.iter().map(|upstream::EndpointConfig { address }| address));
    out.text("balance", word(&words::BALANCES, *balance));
    out.duration("connect_timeout", *connect_timeout);
    out.duration("slow_start", *slow_start);
    out.plain("requests_in_flight", requests_in_flight);
    out.plain("keepalive", keepalive);
    out.duration("keepalive_idle", *keepalive_idle);
    out.maybe_text("host", host.as_ref());
    if let Some(health) = health {
        probe(out, health);
    }
    traffic(out, passive, retry);
    if let Some(TlsConfig { sni, ca_file, verify }) = tls {
        out.line("[upstream.tls]");
        out.maybe_text("sni", sni.as_ref());
        out.maybe_text("ca_file", ca_file.as_ref().map(|path| path.display()));
        out.plain("verify", verify);
    }
}

fn probe(out: &mut Writer, health: &HealthConfig) {
    let HealthConfig { path, interval, timeout, unhealthy_after, healthy_after } = health;
    out.line("[upstream.health]");
    out.text("path", path);
    out.duration("interval", *interval);
    out.duration("timeout", *timeout);
    out.plain("unhealthy_after", unhealthy_after);
    out.plain("healthy_after", healthy_after);
}

fn traffic(out: &mut Writer, passive: &PassiveConfig, retry: &RetryConfig) {
    let PassiveConfig { failures, server_errors, eject_for, eject_for_max } = passive;
    out.line("[upstream.passive]");
    out.plain("failures", failures);
    out.plain("server_errors", server_errors);
    out.duration("eject_for", *eject_for);
    out.duration("eject_for_max", *eject_for_max);
    let RetryConfig { budget, budget_min_per_second, attempts } = retry;
    out.line("[upstream.retry]");
    out.plain("budget", budget);
    out.plain("budget_min_per_second", budget_min_per_second);
    out.plain("attempts", attempts);
}

fn route(out: &mut Writer, config: &RouteConfig) {
    let RouteConfig {
        name,
        rule: Rule { hosts, pattern, methods },
        upstream,
        timeout,
        idle_timeout,
        total_timeout,
        retry,
        in_flight,
        queue,
        idempotency_key,
        cache,
    } = config;
    out.header("[[route]]");
    out.text("name", name);
    if !hosts.is_empty() {
        out.texts("hosts", hosts);
    }
    out.text("path", pattern);
    if !methods.is_empty() {
        out.texts("methods", methods);
    }
    out.text("upstream", upstream);
    out.duration("timeout", *timeout);
    out.duration("idle_timeout", *idle_timeout);
    out.maybe_text("total_timeout", total_timeout.map(units::duration));
    out.text("retry", word(&words::RETRIES, *retry));
    if let Some(in_flight) = in_flight {
        out.plain("in_flight", in_flight);
        out.plain("queue", queue);
    }
    out.text("idempotency_key", if *idempotency_key { "add" } else { "off" });
    match cache {
        None => out.text("cache", "none"),
        Some(policy) => out.plain("cache", policy_of(policy)),
    }
}

fn policy_of(Policy { max_age, refresh_at, query }: &Policy) -> String {
    let mut pairs = Vec::new();
    for (key, value) in [("max_age", max_age), ("refresh_at", refresh_at)] {
        if let Some(value) = value {
            pairs.push(format!("{key} = {}", quoted(units::duration(*value))));
        }
    }
    pairs.push(match query {
        QueryKey::All => "query = \"all\"".to_owned(),
        QueryKey::None => "query = \"none\"".to_owned(),
        QueryKey::Names(names) => format!("query = {}", list(names)),
    });
    format!("{{ {} }}", pairs.join(", "))
}
