//! Sockets and endpoints over real datagrams.

use prometheus::proto::MetricType;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::*;

#[test]
fn ids_lead_to_their_core() {
    for cores in [1, 2, 3, 16, 100] {
        for core in 0..cores {
            let mut steered = Steered { core, cores };
            for _ in 0..300 {
                assert_eq!(steered.generate_cid()[0] % cores, core, "of {cores}");
            }
        }
    }
}

/// Sends datagrams like those of QUIC to two sockets of one address, and looks which of them got each.
#[test]
fn datagrams_are_steered_by_the_id_whatever_port_they_come_from() {
    let sockets = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
    assert_eq!(sockets.len(), 2, "this kernel cannot steer");
    let address = sockets[0].local_addr().unwrap();
    for socket in &sockets {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    for id in 0..=20u8 {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let short = [0x40, id, 9, 9, 9, 9, 9, 9, 9];
        let long = [0xc0, 0, 0, 0, 1, 8, id, 9, 9, 9, 9, 9, 9, 9];
        for datagram in [&short[..], &long] {
            client.send_to(datagram, address).unwrap();
            let mut got = [0; 64];
            let (bytes, _) = sockets[usize::from(id % 2)].recv_from(&mut got).unwrap();
            assert_eq!(&got[..bytes], datagram);
        }
    }
}

/// TLS of a server with a certificate of its own, and that of a client who trusts it.
fn tls() -> (Arc<rustls::ServerConfig>, rustls::ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from(made.cert);
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    (Arc::new(server), client)
}

fn settings(tls: Arc<rustls::ServerConfig>, handshakes_free: usize) -> Settings {
    Settings {
        tls,
        token_secret: [1; 32],
        reset_secret: [2; 32],
        streams: 10,
        handshake_timeout: Duration::from_secs(20),
        handshakes_free,
    }
}

async fn connect(
    tls: &rustls::ClientConfig,
    to: SocketAddr,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls.clone()).unwrap();
    let mut client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    client.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    client.connect(to, "localhost").unwrap().await
}

/// Holds each connection until the client closes it.
#[derive(Clone)]
struct Held;

impl Handler for Held {
    fn client(&self, peer: SocketAddr) -> Option<ClientKey> {
        Some(ClientKey::from(peer.ip()))
    }

    fn serve(&self, connection: quinn::Connection) -> impl Future<Output = ()> + Send + 'static {
        until_closed(connection)
    }
}

async fn until_closed(connection: quinn::Connection) {
    connection.closed().await;
}

/// An endpoint that accepts at most `connections` at once, where it is, and what it counts.
fn serving(settings: &Settings, connections: usize) -> (quinn::Endpoint, SocketAddr, Registry) {
    let registry = Registry::new();
    let limits = ConnectionLimits::new(100, connections, &registry).unwrap();
    let socket = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let endpoint = endpoint(settings, socket, 0, 1).unwrap();
    let address = endpoint.local_addr().unwrap();
    let metrics = Metrics::register(&registry).unwrap();
    let closing = CancellationToken::new();
    tokio::spawn(accept(
        endpoint.clone(),
        limits,
        Held,
        settings.clone(),
        Latecomers::Refuse,
        metrics,
        closing,
    ));
    (endpoint, address, registry)
}

fn handshakes(registry: &Registry, result: &str) -> f64 {
    let families = registry.gather();
    let family =
        families.iter().find(|family| family.name() == "forefront_listener_quic_handshakes_total").unwrap();
    assert_eq!(family.get_field_type(), MetricType::COUNTER);
    let of =
        |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == result);
    family.get_metric().iter().find(of).unwrap().get_counter().get_value()
}

#[tokio::test]
async fn in_a_flood_clients_must_show_their_address() {
    let (server, client) = tls();
    for (free, retried) in [(HANDSHAKES_FREE, 0.0), (0, 1.0)] {
        let (_endpoint, address, registry) = serving(&settings(server.clone(), free), 10);
        let connection = connect(&client, address).await.unwrap();
        assert_eq!(handshakes(&registry, "retried"), retried, "{free}");
        drop(connection);
    }
}

#[tokio::test]
async fn a_client_may_have_so_many_connections_and_no_more() {
    let (server, client) = tls();
    let (_endpoint, address, registry) = serving(&settings(server, HANDSHAKES_FREE), 2);
    let held = [connect(&client, address).await.unwrap(), connect(&client, address).await.unwrap()];
    let refused = connect(&client, address).await.unwrap().closed().await;
    let quinn::ConnectionError::ApplicationClosed(close) = &refused else { panic!("{refused}") };
    assert_eq!(close.error_code, EXCESSIVE_LOAD);
    assert_eq!(handshakes(&registry, "refused"), 1.0);
    drop(held);
}

/// A node is killed and its successor, on the same socket, knows nothing of its connections: the client learns so at its first
/// word, for the successor has the key of the one before.
#[test]
fn a_lost_connection_is_reset_by_the_successor() {
    let (server, client) = tls();
    let before = settings(server, HANDSHAKES_FREE);
    let socket = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let kept = socket.try_clone().unwrap();
    let address = socket.local_addr().unwrap();
    let first = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let serving = first.block_on(async { endpoint(&before, socket, 0, 1).unwrap() });
    let accepting = first.spawn(async move {
        let connection = serving.accept().await.unwrap().await.unwrap();
        (serving, connection)
    });
    let clients = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let connection = clients.block_on(connect(&client, address)).unwrap();
    let (serving, lost) = first.block_on(accepting).unwrap();
    // As if it were killed: nothing is said to the client.
    first.shutdown_background();
    std::mem::forget((serving, lost));

    clients.block_on(async {
        let _successor = endpoint(&before, kept, 0, 1).unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(b"hello?").await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(30), connection.closed()).await.unwrap();
        assert!(matches!(end, quinn::ConnectionError::Reset), "{end}");
    });
}
