//! `[listen]`: where clients come in.

use std::net::{Ipv6Addr, SocketAddr};

use super::limits::network;
use super::{listen_address, tls};
use crate::config::reader::{Place, Section, Value};
use crate::listener::{ProxyProtocol, TlsConfig};

pub(super) struct Listen {
    pub(super) http: Vec<SocketAddr>,
    pub(super) https: Vec<SocketAddr>,
    pub(super) http3: bool,
    pub(super) tls: Option<TlsConfig>,
    pub(super) proxy_protocol: ProxyProtocol,
}

/// Reads `[tls]` as well: whether there is HTTPS by default depends on it.
pub(super) fn read(root: &mut Section<'_>, taken: &mut Taken) -> Listen {
    let tls = tls::read(root.section("tls"));
    let mut section = root.section("listen");
    let https_default = if tls.is_some() { vec![everywhere(443)] } else { Vec::new() };
    let problems_before = section.problems();
    let http = Addresses::read(&mut section, "http", vec![everywhere(80)], some_or_none);
    let https = Addresses::read(&mut section, "https", https_default, some_or_none);
    let addresses_are_sound = section.problems() == problems_before;
    let listen = Listen {
        http3: section.or("http3", !https.list.is_empty(), Value::flag),
        http: taken.take(http),
        https: taken.take(https),
        tls,
        proxy_protocol: proxy_protocol(&mut section),
    };
    // What no single key shows. After a problem with an address it could only repeat that one.
    if addresses_are_sound {
        tell_inconsistencies(&section, &listen);
    }
    section.finish();
    listen
}

/// Every address of this host, IPv4 as well.
pub(super) fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

fn tell_inconsistencies(section: &Section<'_>, listen: &Listen) {
    let refuse = |key: &str, message: &str, hint: &str| section.place_of(key).refuse(message, hint);
    match (listen.https.is_empty(), &listen.tls) {
        (false, None) => refuse(
            "https",
            "needs a certificate",
            "add [tls] with self_signed = [\"localhost\"], or with certificate and private_key",
        ),
        (true, Some(_)) => {
            refuse("https", "is empty, and [tls] is for nothing else", "remove one of the two");
        }
        (true, None) if listen.http.is_empty() => {
            refuse("http", "must not be empty without an HTTPS listener", "name at least one address");
        }
        _ => {}
    }
    if listen.http3 && listen.https.is_empty() {
        refuse("http3", "needs an HTTPS listener", "add one with [tls], or write http3 = false");
    }
}

fn proxy_protocol(section: &mut Section<'_>) -> ProxyProtocol {
    let (place, from_place) = (section.place_of("proxy_protocol"), section.place_of("proxy_protocol_from"));
    let accept =
        section.optional("proxy_protocol", |value| value.choice(&[("off", false), ("accept", true)]));
    let is_off = accept == Some(false) || !section.has("proxy_protocol");
    let problems_before = section.problems();
    let from = section.or("proxy_protocol_from", Vec::new(), |value| value.list(network));
    let from_is_sound = section.problems() == problems_before;
    if accept == Some(true) && from.is_empty() && from_is_sound {
        place.refuse(
            "needs proxy_protocol_from",
            "add the addresses of the balancer, e.g. proxy_protocol_from = [\"10.0.0.0/8\"]",
        );
    }
    if is_off && !from.is_empty() {
        from_place.refuse(
            "has no effect while proxy_protocol is \"off\"",
            "write proxy_protocol = \"accept\", or remove it",
        );
    }
    ProxyProtocol { from }
}

/// The addresses of one listener, each with its place.
pub(super) struct Addresses<'d> {
    list: Vec<(SocketAddr, Place<'d>)>,
    written: bool,
}

impl<'d> Addresses<'d> {
    /// `read` is [`some`], [`some_or_none`] or [`one`].
    pub(super) fn read(
        section: &mut Section<'d>,
        key: &'static str,
        default: Vec<SocketAddr>,
        read: impl FnOnce(Value<'d>) -> Option<Vec<(SocketAddr, Place<'d>)>>,
    ) -> Addresses<'d> {
        let place = section.place_of(key);
        match section.optional(key, read) {
            Some(list) => Addresses { list, written: true },
            None => {
                let list = default.into_iter().map(|address| (address, place.clone())).collect();
                Addresses { list, written: false }
            }
        }
    }
}

/// Just one address.
pub(super) fn one<'d>(value: Value<'d>) -> Option<Vec<(SocketAddr, Place<'d>)>> {
    value.placed(listen_address).map(|one| vec![one])
}

/// One address, or a list of at least one.
pub(super) fn some<'d>(value: Value<'d>) -> Option<Vec<(SocketAddr, Place<'d>)>> {
    value.one_or_more(|value| value.placed(listen_address))
}

/// One address, or a list that may be empty.
fn some_or_none<'d>(value: Value<'d>) -> Option<Vec<(SocketAddr, Place<'d>)>> {
    if value.is_list() { value.list(|value| value.placed(listen_address)) } else { one(value) }
}

/// Addresses that are listened on already. The kernel would not tell: listeners share their ports among threads, so it
/// would spread clients over two that have the same.
#[derive(Default)]
pub(super) struct Taken(Vec<SocketAddr>);

impl Taken {
    pub(super) fn take(&mut self, addresses: Addresses<'_>) -> Vec<SocketAddr> {
        let which = if addresses.written { "" } else { ", the default," };
        for (address, place) in &addresses.list {
            // Port 0 is a new port each time, so it is never taken.
            if address.port() != 0 && self.0.contains(address) {
                let message = format!("{address}{which} is already listened on");
                place.refuse(&message, "give each listener a port of its own");
            }
            self.0.push(*address);
        }
        addresses.list.into_iter().map(|(address, _)| address).collect()
    }
}
