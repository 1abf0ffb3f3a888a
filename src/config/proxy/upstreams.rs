//! `[[upstream]]`.

use super::{endpoint_address, path};
use crate::config::reader::{Section, Value};
use crate::upstream::{Address, Balance, Config, HealthConfig, PassiveConfig, RetryConfig, TlsConfig};

pub(in crate::config) const BALANCES: [(&str, Balance); 2] =
    [("least_requests", Balance::LeastRequests), ("round_robin", Balance::RoundRobin)];

/// Enough for any pool; each endpoint is probed, so a thousand of them are a load of their own.
const ENDPOINTS_MAX: usize = 256;

pub(super) fn read(root: &mut Section<'_>) -> Vec<Config> {
    let place = root.place_of("upstream");
    let sections = root.sections("upstream");
    if sections.is_empty() {
        place.refuse(
            "there is no upstream",
            "add [[upstream]] with name = \"...\" and endpoints = [\"127.0.0.1:8080\"]",
        );
    }
    let mut upstreams: Vec<Config> = Vec::new();
    for section in sections {
        let place = section.place_of("name");
        let config = upstream(section);
        if !config.name.is_empty() && upstreams.iter().any(|other| other.name == config.name) {
            place.refuse(
                &format!("there is another upstream {:?}", config.name),
                "give each a name of its own",
            );
        }
        upstreams.push(config);
    }
    upstreams
}

fn upstream(mut section: Section<'_>) -> Config {
    let name = section.required("name", "name = \"...\"", Value::name).unwrap_or_default();
    let endpoints =
        section.required("endpoints", "endpoints = [\"127.0.0.1:8080\"]", endpoints).unwrap_or_default();
    let default = Config::new(name, endpoints);
    let config = Config {
        balance: section.or("balance", default.balance, |value| value.choice(&BALANCES)),
        connect_timeout: section.or("connect_timeout", default.connect_timeout, Value::duration),
        health: health(section.section("health")),
        passive: passive(section.section("passive")),
        retry: retry(section.section("retry")),
        slow_start: section.or("slow_start", default.slow_start, Value::duration_or_zero),
        requests_in_flight: section
            .or("requests_in_flight", default.requests_in_flight, |value| value.integer(0..=1_000_000)),
        keepalive: section.or("keepalive", default.keepalive, |value| value.integer(0..=10_000)),
        keepalive_idle: section.or("keepalive_idle", default.keepalive_idle, Value::duration),
        host: section.optional("host", authority),
        tls: tls(section.section("tls")),
        name: default.name,
        endpoints: default.endpoints,
    };
    section.finish();
    config
}

fn endpoints(value: Value<'_>) -> Option<Vec<Address>> {
    let place = value.place();
    let list = value.list_of_some(|value| value.placed(endpoint_address))?;
    if list.len() > ENDPOINTS_MAX {
        place.refuse(&format!("has more than {ENDPOINTS_MAX} endpoints"), "make several upstreams of it");
    }
    let mut addresses: Vec<Address> = Vec::new();
    for (address, place) in list.into_iter().take(ENDPOINTS_MAX) {
        if addresses.contains(&address) {
            place.refuse(&format!("{address} is there twice"), "name each endpoint once");
        }
        addresses.push(address);
    }
    Some(addresses)
}

fn health(mut section: Section<'_>) -> Option<HealthConfig> {
    let default = HealthConfig::default();
    let config = HealthConfig {
        path: section.or("path", default.path, origin_form),
        interval: section.or("interval", default.interval, Value::duration),
        timeout: section.or("timeout", default.timeout, Value::duration),
        unhealthy_after: section
            .or("unhealthy_after", default.unhealthy_after, |value| value.integer(1..=100)),
        healthy_after: section.or("healthy_after", default.healthy_after, |value| value.integer(1..=100)),
    };
    let given = section.is_given();
    section.finish();
    given.then_some(config)
}

fn passive(mut section: Section<'_>) -> PassiveConfig {
    let default = PassiveConfig::default();
    let longest = section.place_of("eject_for_max");
    let eject_for = section.or("eject_for", default.eject_for, Value::duration);
    let config = PassiveConfig {
        failures: section.or("failures", default.failures, |value| value.integer(0..=1000)),
        server_errors: section.or("server_errors", default.server_errors, |value| value.integer(0..=1000)),
        eject_for,
        eject_for_max: section.or("eject_for_max", default.eject_for_max.max(eject_for), Value::duration),
    };
    if config.eject_for_max < config.eject_for {
        longest.refuse("is shorter than eject_for", "make it longer, or eject_for shorter");
    }
    section.finish();
    config
}

fn retry(mut section: Section<'_>) -> RetryConfig {
    let default = RetryConfig::default();
    let config = RetryConfig {
        budget: section.or("budget", default.budget, |value| value.decimal(0.0..=10.0)),
        budget_min_per_second: section.or("budget_min_per_second", default.budget_min_per_second, |value| {
            value.decimal(0.0..=10_000.0)
        }),
        attempts: section.or("attempts", default.attempts, |value| value.integer(1..=16)),
    };
    section.finish();
    config
}

fn tls(mut section: Section<'_>) -> Option<TlsConfig> {
    let default = TlsConfig::default();
    let config = TlsConfig {
        sni: section.optional("sni", authority),
        ca_file: section.optional("ca_file", path),
        verify: section.or("verify", default.verify, Value::flag),
    };
    let given = section.is_given();
    section.finish();
    given.then_some(config)
}

/// The path of a probe, with its query if it has one.
pub(in crate::config) fn origin_form(value: Value<'_>) -> Option<String> {
    let place = value.place();
    let text = value.text()?;
    if !text.starts_with('/') || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        place.refuse(&format!("{text:?} is not a path"), "write e.g. \"/ping\"");
        return None;
    }
    Some(text.to_owned())
}

/// What a Host field can hold.
fn authority(value: Value<'_>) -> Option<String> {
    let place = value.place();
    let text = value.text()?;
    match text.parse::<http::uri::Authority>() {
        Ok(authority) if !authority.as_str().contains('@') => Some(text.to_owned()),
        _ => {
            place.refuse(
                &format!("{text:?} is not a host"),
                "write e.g. \"example.com\" or \"example.com:8080\"",
            );
            None
        }
    }
}
