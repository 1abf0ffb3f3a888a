//! Which addresses count as one client.

use std::net::{IpAddr, Ipv6Addr};

/// One client, as limits count it: an IPv4 address, or the /64 of an IPv6 address, since a subscriber owns at least
/// that much and could otherwise come from a new address each time. An IPv4-mapped IPv6 address is its IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey(u128);

const IPV6_NETWORK: u128 = !(u64::MAX as u128);

impl From<IpAddr> for ClientKey {
    fn from(address: IpAddr) -> ClientKey {
        match address.to_canonical() {
            IpAddr::V4(v4) => ClientKey(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => ClientKey(v6.to_bits() & IPV6_NETWORK),
        }
    }
}

impl From<Ipv6Addr> for ClientKey {
    fn from(address: Ipv6Addr) -> ClientKey {
        ClientKey::from(IpAddr::V6(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> ClientKey {
        ClientKey::from(text.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn what_is_one_client() {
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_ne!(key("0.0.0.0"), key("::1"), "IPv4 never falls together with an IPv6 network");
    }
}
