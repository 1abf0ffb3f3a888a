//! `[limits]`, `[drain]`, `[cache]`.

use ipnet::IpNet;

use super::endpoint_address;
use crate::config::reader::{Section, Value};
use crate::proxy::{DrainConfig, Limits};
use crate::resilience::limit::Rate;
use crate::{cache, upstream};
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// More than the descriptors Linux gives to one process (`fs.nr_open` is 2^20 by default).
const CONNECTIONS_MAX: usize = 1 << 20;
/// Heads are held in memory whole, one per connection.
const HEADER_BYTES: std::ops::RangeInclusive<u64> = KIB..=MIB;

pub(super) fn read(root: &mut Section<'_>) -> Limits {
    let mut section = root.section("limits");
    let connections = section.or("connections", 10_000, |value| value.integer(1..=CONNECTIONS_MAX));
    let per_client = section.place_of("connections_per_client");
    let limits = Limits {
        connections,
        connections_per_client: section
            .or("connections_per_client", connections.min(1000), |value| value.integer(1..=CONNECTIONS_MAX)),
        requests_per_client: section.optional("requests_per_client", rate),
        header_bytes: section.or("header_bytes", 32 << 10, |value| value.memory(HEADER_BYTES)),
        header_timeout: section.or("header_timeout", Duration::from_secs(10), Value::duration),
        idle_timeout: section.or("idle_timeout", Duration::from_secs(60), Value::duration),
        body_bytes: section.or("body_bytes", 16 * MIB, |value| value.size(0..=1024 * GIB)),
        trusted: section.or("trusted", loopback(), |value| value.list(network)),
        header_list_bytes: section.or("header_list_bytes", 32 << 10, |value| value.memory(HEADER_BYTES)),
        streams_per_connection: section.or("streams_per_connection", 100, |value| value.integer(1..=10_000)),
        handshake_timeout: section.or("handshake_timeout", Duration::from_secs(10), Value::duration),
    };
    if limits.connections_per_client > limits.connections {
        per_client.refuse("is more than limits.connections", "one client cannot have more than all together");
    }
    section.finish();
    limits
}

fn rate(value: Value<'_>) -> Option<Rate> {
    let mut section = value.into_section()?;
    let per_second = section.required("per_second", "per_second = 50", |value| value.decimal(0.001..=1e6));
    let per_second_or_one = per_second.unwrap_or(1.0).max(1.0);
    let burst = section.or("burst", per_second_or_one, |value| value.decimal(1.0..=1e6));
    section.finish();
    Some(Rate { per_second: per_second?, burst })
}

fn loopback() -> Vec<IpNet> {
    let four = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
    let six = ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);
    vec![four.into(), six.into()]
}

/// A network, or a single address. Bits beyond the prefix are refused: they are a typing error as often as not.
pub(super) fn network(value: Value<'_>) -> Option<IpNet> {
    const HINT: &str = "write a network, e.g. \"10.0.0.0/8\" or \"fd00::/8\", or one address";
    let place = value.place();
    let text = value.text()?;
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| ip.into()));
    match net {
        Some(net) if net == net.trunc() => return Some(net),
        Some(net) => place.refuse(
            &format!("{text:?} has bits beyond its prefix"),
            &format!("write \"{}\" for the network", net.trunc()),
        ),
        None => place.refuse(&format!("{text:?} is not a network"), HINT),
    }
    None
}

pub(super) fn drain(root: &mut Section<'_>) -> DrainConfig {
    let mut section = root.section("drain");
    let drain = DrainConfig {
        delay: section.or("delay", Duration::from_secs(5), Value::duration_or_zero),
        grace: section.or("grace", Duration::from_secs(30), Value::duration_or_zero),
    };
    section.finish();
    drain
}

pub(super) fn cache(root: &mut Section<'_>) -> (cache::Config, Vec<upstream::Address>) {
    let mut section = root.section("cache");
    let default = cache::Config::default();
    let object = section.place_of("object_bytes_max");
    let capacity_bytes = section.or("capacity", default.capacity_bytes, |value| value.size(MIB..=1024 * GIB));
    let config = cache::Config {
        capacity_bytes,
        object_bytes_max: section.or(
            "object_bytes_max",
            default.object_bytes_max.min(capacity_bytes),
            |value| value.size(1..=GIB),
        ),
        fills: section.or("fills", default.fills, |value| value.integer(1..=1000)),
    };
    if config.object_bytes_max > config.capacity_bytes {
        object.refuse("is more than cache.capacity", "make one smaller or the other larger");
    }
    let peers = section.or("peers", Vec::new(), |value| value.list(endpoint_address));
    section.finish();
    (config, peers)
}
