//! QUIC connections, for HTTP/3 to be spoken over, properly (`h3`) or not (`raw_h3`).

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TransportConfig};

use super::{End, PATIENCE, Tls, within};

/// A connection and the UDP socket it has to itself.
pub struct Quic {
    pub connection: Connection,
    endpoint: Endpoint,
}

impl Quic {
    pub async fn connect(address: SocketAddr) -> Quic {
        Quic::connect_with(address, &Tls::new(&["h3"]), TransportConfig::default()).await
    }

    pub async fn connect_with(address: SocketAddr, tls: &Tls, transport: TransportConfig) -> Quic {
        let endpoint = Endpoint::client(any_port()).expect("a free port");
        let crypto = QuicClientConfig::try_from(tls.config.clone()).expect("TLS 1.3 is among the versions");
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, address, "localhost").expect("the name is one");
        let connected = within(PATIENCE, "a QUIC handshake", connecting).await;
        let connection = connected.unwrap_or_else(|error| panic!("QUIC with {address}: {error}"));
        Quic { connection, endpoint }
    }

    /// Goes on from another UDP port, as a client behind a NAT does.
    pub fn rebind(&self) {
        let before = self.endpoint.local_addr().expect("it is bound");
        let socket = UdpSocket::bind(any_port()).expect("a free port");
        self.endpoint.rebind(socket).expect("a bound socket will do");
        assert_ne!(self.endpoint.local_addr().expect("it is bound"), before, "another port");
    }

    /// Waits until the connection ends: how.
    pub async fn closed(&self) -> End {
        end_of(&within(PATIENCE, "the end of the QUIC connection", self.connection.closed()).await)
    }
}

pub(super) fn end_of(error: &ConnectionError) -> End {
    match error {
        ConnectionError::ApplicationClosed(close) => End::Closed(close.error_code.into_inner()),
        _ => End::Broken,
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
