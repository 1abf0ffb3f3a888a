//! Listening sockets the keeper holds for its processes, so that a restart refuses no connection: they queue meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use super::settings::{SocketConfig, SocketKind};

/// Connections that may queue while the process restarts. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Binds the sockets, in order. They live as long as the values returned, through every restart.
pub fn bind(configs: &[SocketConfig]) -> Result<Vec<(String, Arc<OwnedFd>)>, Error> {
    configs
        .iter()
        .map(|config| {
            let socket =
                bind_one(config).map_err(|source| Error::Bind { address: config.address, source })?;
            Ok((config.name.clone(), Arc::new(socket.into())))
        })
        .collect()
}

fn bind_one(config: &SocketConfig) -> io::Result<Socket> {
    let SocketConfig { name: _, kind, address } = config;
    let (kind, protocol) = match kind {
        SocketKind::Tcp => (Type::STREAM, Protocol::TCP),
        SocketKind::Udp => (Type::DGRAM, Protocol::UDP),
    };
    // Close-on-exec, as socket2 makes it: only the child it is meant for gets it.
    let socket = Socket::new(Domain::for_address(*address), kind, Some(protocol))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `[::]` means both families, whatever the host's sysctl says.
        socket.set_only_v6(false)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&(*address).into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let config = SocketConfig { name: "http".into(), kind: SocketKind::Tcp, address };
        let error = bind(&[config]).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn both_kinds_are_bound() {
        let address = "127.0.0.1:0".parse().unwrap();
        let config = |kind| SocketConfig { name: "x".into(), kind, address };
        assert_eq!(bind(&[config(SocketKind::Tcp), config(SocketKind::Udp)]).unwrap().len(), 2);
    }
}
