//! The addresses of `forefront dev`: the documented ones, all moved by an offset, or free ones.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::bail;
use socket2::{Domain, Socket, Type};

/// How often a port that is free over TCP may turn out to be taken over UDP.
const FREE_TRIES: usize = 64;

/// Most legacy stand-ins one `dev` starts: their documented ports are ten apart from their control ports.
pub const LEGACY_MAX: u16 = 9;

/// Where everything of one `dev` listens.
#[derive(Clone, Debug, PartialEq)]
pub struct Ports {
    pub nodes: [Node; 2],
    pub legacy: Vec<Legacy>,
    pub billing: SocketAddr,
    pub iproto: SocketAddr,
    pub keeper: SocketAddr,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub name: &'static str,
    pub http: SocketAddr,
    /// TCP and UDP.
    pub https: SocketAddr,
    pub health: SocketAddr,
    pub admin: SocketAddr,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Legacy {
    pub listen: SocketAddr,
    pub control: SocketAddr,
}

impl Ports {
    /// The ports of DESIGN's table, each plus `offset`. Error: one would be beyond 65535.
    pub fn fixed(offset: u16, legacy: u16) -> anyhow::Result<Ports> {
        Ports::with(legacy, |ip, port| match port.checked_add(offset) {
            Some(port) => Ok(SocketAddr::new(ip, port)),
            None => bail!("--ports {offset}: port {port} would be beyond 65535"),
        })
    }

    /// Ports that are free now. They are all held until the last is found, so they differ; whoever takes one before its
    /// owner does makes that one's start fail.
    pub fn free(legacy: u16) -> anyhow::Result<Ports> {
        let mut held = Vec::new();
        Ports::with(legacy, |ip, _| {
            let (address, sockets) = free_port(ip)?;
            held.push(sockets);
            Ok(address)
        })
    }

    fn with(
        legacy: u16,
        mut address: impl FnMut(IpAddr, u16) -> anyhow::Result<SocketAddr>,
    ) -> anyhow::Result<Ports> {
        let all = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut node = |name, http, https, health, admin| -> anyhow::Result<Node> {
            Ok(Node {
                name,
                http: address(all, http)?,
                https: address(all, https)?,
                health: address(all, health)?,
                admin: address(loopback, admin)?,
            })
        };
        let nodes = [node("a", 8080, 8443, 8100, 9101)?, node("b", 8081, 8444, 8102, 9102)?];
        let legacy = (0..legacy.min(LEGACY_MAX))
            .map(|number| {
                Ok(Legacy {
                    listen: address(loopback, 27352 + number)?,
                    control: address(loopback, 27362 + number)?,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let (billing, iproto) = (address(loopback, 8200)?, address(loopback, 3301)?);
        Ok(Ports { nodes, legacy, billing, iproto, keeper: address(loopback, 9103)? })
    }

    /// Every address, with what it is for.
    pub fn all(&self) -> Vec<(String, Type, SocketAddr)> {
        let mut all = Vec::new();
        let mut add = |what: String, kind: Type, address: SocketAddr| all.push((what, kind, address));
        for Node { name, http, https, health, admin } in &self.nodes {
            add(format!("HTTP of node {name}"), Type::STREAM, *http);
            add(format!("HTTPS of node {name}"), Type::STREAM, *https);
            add(format!("HTTP/3 of node {name}"), Type::DGRAM, *https);
            add(format!("health of node {name}"), Type::STREAM, *health);
            add(format!("admin of node {name}"), Type::STREAM, *admin);
        }
        for (Legacy { listen, control }, number) in self.legacy.iter().zip(1..) {
            add(format!("legacy stand-in {number}"), Type::STREAM, *listen);
            add(format!("control of legacy stand-in {number}"), Type::STREAM, *control);
        }
        add("billing".to_owned(), Type::STREAM, self.billing);
        add("IPROTO of billing".to_owned(), Type::STREAM, self.iproto);
        add("admin of the keeper".to_owned(), Type::STREAM, self.keeper);
        all
    }

    /// Error: names every address that cannot be had, and why.
    pub fn check_free(&self) -> anyhow::Result<()> {
        let taken: Vec<String> = self
            .all()
            .into_iter()
            .filter_map(|(what, kind, address)| {
                bind(address, kind).err().map(|error| format!("  {address} ({what}): {error}"))
            })
            .collect();
        if !taken.is_empty() {
            bail!(
                "these addresses cannot be had; stop what uses them, or move all by --ports OFFSET:\n{}",
                taken.join("\n")
            );
        }
        Ok(())
    }
}

/// A port that is free over TCP and over UDP: HTTPS needs both, and for the others it does no harm.
fn free_port(ip: IpAddr) -> anyhow::Result<(SocketAddr, [Socket; 2])> {
    let any = SocketAddr::new(ip, 0);
    for _ in 0..FREE_TRIES {
        let tcp = bind(any, Type::STREAM)?;
        let address = tcp.local_addr()?.as_socket().unwrap_or(any);
        match bind(address, Type::DGRAM) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            udp => return Ok((address, [tcp, udp?])),
        }
    }
    bail!("no port is free over both TCP and UDP")
}

/// Takes an address as a listener would, but without SO_REUSEPORT, so that it fails if anybody listens there.
fn bind(address: SocketAddr, kind: Type) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections of the last run in TIME_WAIT are no reason to refuse. (UDP has none.)
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        // SO_REUSEADDR lets a bound address be bound again unless somebody listens; this tells.
        socket.listen(1)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_documented_ports_are_distinct_and_move_together() {
        let ports = Ports::fixed(0, 2).unwrap();
        let numbers: BTreeSet<u16> = ports.all().iter().map(|(_, _, address)| address.port()).collect();
        let expected =
            [3301, 8080, 8081, 8443, 8444, 8100, 8102, 8200, 9101, 9102, 9103, 27352, 27353, 27362, 27363];
        assert_eq!(numbers, BTreeSet::from(expected));
        let moved = Ports::fixed(1000, 2).unwrap();
        for (one, other) in ports.all().iter().zip(moved.all()) {
            assert_eq!(one.2.port() + 1000, other.2.port());
        }
        assert!(Ports::fixed(40_000, 2).is_err());
    }

    #[test]
    fn free_ports_are_distinct_and_free() {
        let ports = Ports::free(3).unwrap();
        let numbers: BTreeSet<u16> = ports.all().iter().map(|(_, _, address)| address.port()).collect();
        assert_eq!(numbers.len(), 17);
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let holder = std::net::TcpListener::bind(SocketAddr::new(taken.ip(), 0)).unwrap();
        let mut ports = Ports::free(1).unwrap();
        ports.legacy[0].listen = holder.local_addr().unwrap();
        let error = ports.check_free().unwrap_err().to_string();
        assert!(error.contains("legacy stand-in 1"), "{error}");
        assert!(error.contains(&holder.local_addr().unwrap().to_string()), "{error}");
    }

    #[test]
    fn a_port_taken_over_udp_only_is_named() {
        let holder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut ports = Ports::free(1).unwrap();
        ports.nodes[1].https = holder.local_addr().unwrap();
        let error = ports.check_free().unwrap_err().to_string();
        assert!(error.contains("HTTP/3 of node b"), "{error}");
    }
}
