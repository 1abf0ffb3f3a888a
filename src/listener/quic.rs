//! QUIC sockets and endpoints: one a core on one address, datagrams steered by connection ID, handshakes bounded.
//!
//! The kernel spreads datagrams over the sockets of an address by a hash of addresses and ports, so a client that moves would
//! reach another core. A small program on the sockets chooses by the first byte of the connection ID instead, and each core's
//! endpoint gives out ids whose first byte leads to it.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, Incoming, TokioRuntime, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

use super::tcp::{ConnectionLimits, Permit};
use crate::resilience::limit::ClientKey;

/// Content of one request a client may send ahead of its being read.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same of all requests of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Content of all answers of a connection held until the client has acknowledged it.
const SEND_WINDOW_BYTES: u64 = 1024 * 1024;
/// Control stream, two of QPACK, and some of kinds unknown here (RFC 9114, 6.2).
const UNI_STREAMS: u32 = 8;
/// Fewer than these under way on a core are no flood.
pub const HANDSHAKES_FREE: usize = 64;
/// Handshakes under way on a core above which further ones are refused.
const HANDSHAKES_MAX: usize = 1024;
/// Datagrams that wait for a busy core.
const SOCKET_BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// A peer of which nothing is heard for so long is gone; those that are there are asked in time.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// More cores than a byte of a connection ID can tell apart well share sockets.
const SOCKETS_MAX: usize = 127;
/// Bytes of a connection ID.
const ID_BYTES: usize = 8;
/// The code of a connection that ends without an error (RFC 9114, 8.1: H3_NO_ERROR).
const NO_ERROR: VarInt = VarInt::from_u32(0x100);
/// H3_EXCESSIVE_LOAD.
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);

/// What an endpoint is made of.
#[derive(Clone)]
pub struct Settings {
    pub tls: Arc<rustls::ServerConfig>,
    /// Address-validation tokens are made under a key from it.
    pub token_secret: [u8; 32],
    /// So are stateless resets.
    pub reset_secret: [u8; 32],
    /// Concurrent requests of one connection.
    pub streams: usize,
    pub handshake_timeout: Duration,
    /// Handshakes under way on a core above which clients must show that their address is theirs (RFC 9000, 8.1.2).
    pub handshakes_free: usize,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the TLS settings cannot be used for QUIC: {0}")]
    Tls(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    #[error("the keys of QUIC cannot be derived")]
    Keys,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Binds one socket a core on one address, and steers datagrams by connection ID. Fewer than `cores` where the kernel cannot
/// steer: then one, for all.
pub fn bind(address: SocketAddr, cores: usize) -> io::Result<Vec<UdpSocket>> {
    let mut address = address;
    let cores = cores.clamp(1, SOCKETS_MAX);
    let mut sockets = Vec::with_capacity(cores);
    for _ in 0..cores {
        let socket = bind_one(address)?;
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    if sockets.len() > 1
        && let Err(error) = steer(&sockets[0], sockets.len())
    {
        tracing::warn!(%error, "datagrams cannot be steered; one core takes all of QUIC");
        sockets.truncate(1);
    }
    Ok(sockets)
}

/// As [`bind`], for sockets of one address that were handed over. Each of them must be read.
pub fn adopt(sockets: &[UdpSocket]) -> io::Result<()> {
    match sockets {
        [first, _, ..] => steer(first, sockets.len()),
        _ => Ok(()),
    }
}

fn bind_one(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // As far as the host lets it; a short buffer costs retransmissions, no connection.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Tells whether another process holds the address, which `SO_REUSEPORT` would hide.
pub fn is_free(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())
}

/// Puts the choice by connection ID on the sockets of an address, given one of them. The id begins at byte 6 of a packet with
/// a long header and at byte 1 of one with a short header (RFC 8999, 5.1 and 5.2). The id a client makes up for its first
/// packets is as good: all of them go one way, and the endpoint there answers with ids of its own.
fn steer(socket: &UdpSocket, cores: usize) -> io::Result<()> {
    use libc::{BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_MOD, BPF_RET};
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let cores = u32::try_from(cores).unwrap_or(1);
    let mut program = [
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JSET | BPF_K, 0, 2, 0x80),
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 6),
        step(BPF_JMP | libc::BPF_JA, 0, 0, 1),
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 1),
        step(BPF_ALU | BPF_MOD | BPF_K, 0, 0, cores),
        step(BPF_RET | BPF_A, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, whose length is right, before the call returns; the descriptor is open.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ids that lead to one core: random, but for the remainder of their first byte.
struct Steered {
    core: u8,
    cores: u8,
}

impl ConnectionIdGenerator for Steered {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        // Ids must not be guessed, for they lead to connections: not the quick generator.
        if aws_lc_rs::rand::fill(&mut id).is_err() {
            fastrand::fill(&mut id);
        }
        let rounds = u8::MAX / self.cores;
        id[0] = (id[0] % rounds) * self.cores + self.core;
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Makes the endpoint of one core, `core` of `cores`, on its socket. To be called on the core's runtime.
pub fn endpoint(
    settings: &Settings,
    socket: UdpSocket,
    core: usize,
    cores: usize,
) -> Result<quinn::Endpoint, Error> {
    let byte = |number: usize| u8::try_from(number).ok().filter(|number| *number < 128);
    let (core, cores) = (byte(core).unwrap_or(0), byte(cores).unwrap_or(1).max(1));
    let steered = move || Box::new(Steered { core, cores }) as Box<dyn ConnectionIdGenerator>;
    // A key of its own for each core: a packet that strays to another one must not reset a living connection.
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &settings.reset_secret);
    let of_core = hmac::sign(&secret, &core.to_be_bytes());
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, of_core.as_ref())));
    config.cid_generator(steered);
    let server = server_config(settings)?;
    Ok(quinn::Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?)
}

fn server_config(settings: &Settings) -> Result<quinn::ServerConfig, Error> {
    let crypto = QuicServerConfig::try_from(settings.tls.clone())?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let token_key =
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"forefront quic tokens").extract(&settings.token_secret);
    server.token_key(Arc::new(token_key));
    server.max_incoming(HANDSHAKES_MAX);
    let mut transport = quinn::TransportConfig::default();
    let streams = u32::try_from(settings.streams).unwrap_or(u32::MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(SILENCE_MAX / 3))
        .max_idle_timeout(SILENCE_MAX.try_into().ok());
    server.transport_config(Arc::new(transport));
    Ok(server)
}

/// What QUIC does, over all cores.
#[derive(Clone)]
pub struct Metrics {
    completed: IntCounter,
    failed: IntCounter,
    refused: IntCounter,
    retried: IntCounter,
    migrations: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    lost: IntCounter,
    resets_received: IntCounter,
    resets_sent: IntCounter,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let family = |name: &str, help: &str, label: &str| {
            let family = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(family.clone())).map(|()| family)
        };
        let single = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let handshakes = family(
            "forefront_listener_quic_handshakes_total",
            "QUIC handshakes by what became of them; retried: told to show their address first.",
            "result",
        )?;
        let bytes = family(
            "forefront_listener_quic_bytes_total",
            "Bytes of UDP payload of QUIC connections, counted when they end.",
            "direction",
        )?;
        let resets = family(
            "forefront_listener_quic_stream_resets_total",
            "Streams reset, by who did it, counted when connections end.",
            "direction",
        )?;
        Ok(Metrics {
            completed: handshakes.with_label_values(&["completed"]),
            failed: handshakes.with_label_values(&["failed"]),
            refused: handshakes.with_label_values(&["refused"]),
            retried: handshakes.with_label_values(&["retried"]),
            migrations: single(
                "forefront_listener_quic_migrations_total",
                "Connections seen at another address of the client than before.",
            )?,
            received: bytes.with_label_values(&["in"]),
            sent: bytes.with_label_values(&["out"]),
            lost: single(
                "forefront_listener_quic_lost_packets_total",
                "Packets taken for lost, counted when connections end.",
            )?,
            resets_received: resets.with_label_values(&["in"]),
            resets_sent: resets.with_label_values(&["out"]),
        })
    }

    /// Counts a connection that was seen at another address.
    pub fn moved(&self) {
        self.migrations.inc();
    }

    fn ended(&self, connection: &quinn::Connection) {
        let stats = connection.stats();
        self.received.inc_by(stats.udp_rx.bytes);
        self.sent.inc_by(stats.udp_tx.bytes);
        self.lost.inc_by(stats.path.lost_packets);
        self.resets_received.inc_by(stats.frame_rx.reset_stream);
        self.resets_sent.inc_by(stats.frame_tx.reset_stream);
    }
}

/// Takes accepted connections.
pub trait Handler: Clone + Send + 'static {
    /// The client to count this peer as; `None` exempts it from the bound of a client.
    fn client(&self, peer: SocketAddr) -> Option<ClientKey>;

    /// Serves one connection to its end.
    fn serve(&self, connection: quinn::Connection) -> impl Future<Output = ()> + Send + 'static;
}

/// What becomes of clients that come while the node leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latecomers {
    /// They are told at once, and try elsewhere.
    Refuse,
    /// They are not answered: the socket is kept, and they try again in a moment, when another process reads it.
    Ignore,
}

/// Accepts until `closing`; connections go on, and end with the endpoint.
pub async fn accept(
    endpoint: quinn::Endpoint,
    limits: Arc<ConnectionLimits>,
    handler: impl Handler,
    settings: Settings,
    latecomers: Latecomers,
    metrics: Metrics,
    closing: CancellationToken,
) {
    let Settings { handshake_timeout, handshakes_free, .. } = settings;
    let handshakes = Arc::new(AtomicUsize::new(0));
    loop {
        let incoming = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => return,
            },
        };
        let busy = handshakes.load(Ordering::Relaxed);
        if busy >= handshakes_free && !incoming.remote_address_validated() && incoming.may_retry() {
            metrics.retried.inc();
            let _ = incoming.retry();
            continue;
        }
        let peer = canonical(incoming.remote_address());
        // An address that may be forged is not charged for its connections before it is shown to be true.
        let charged = incoming.remote_address_validated();
        let client = handler.client(peer);
        let permit = match limits.admit(client.filter(|_| charged)) {
            Some(permit) if busy < HANDSHAKES_MAX => permit,
            _ => {
                metrics.refused.inc();
                incoming.refuse();
                continue;
            }
        };
        let (handler, metrics) = (handler.clone(), metrics.clone());
        let handshake = Handshake::begin(&handshakes);
        tokio::spawn(async move {
            let uncharged = client.filter(|_| !charged);
            serve(incoming, handshake, (permit, uncharged), handler, handshake_timeout, metrics).await;
        });
    }
    while let Some(incoming) = endpoint.accept().await {
        match latecomers {
            Latecomers::Refuse => incoming.refuse(),
            Latecomers::Ignore => incoming.ignore(),
        }
    }
}

async fn serve(
    incoming: Incoming,
    handshake: Handshake,
    (mut permit, uncharged): (Permit, Option<ClientKey>),
    handler: impl Handler,
    timeout: Duration,
    metrics: Metrics,
) {
    let connecting = async { incoming.accept()?.await };
    let connection = match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            metrics.failed.inc();
            tracing::debug!(%error, "a QUIC handshake failed");
            return;
        }
        Err(_) => {
            metrics.failed.inc();
            return;
        }
    };
    drop(handshake);
    if uncharged.is_some_and(|client| !permit.count(client)) {
        metrics.refused.inc();
        connection.close(EXCESSIVE_LOAD, b"too many connections");
        return;
    }
    metrics.completed.inc();
    handler.serve(connection.clone()).await;
    connection.close(NO_ERROR, b"");
    metrics.ended(&connection);
    drop(permit);
}

/// One handshake under way.
struct Handshake(Arc<AtomicUsize>);

impl Handshake {
    fn begin(count: &Arc<AtomicUsize>) -> Handshake {
        count.fetch_add(1, Ordering::Relaxed);
        Handshake(count.clone())
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes what is still open, so that clients see the end at once, and lets the last packets leave.
pub async fn close(endpoint: &quinn::Endpoint) {
    endpoint.close(NO_ERROR, b"the node leaves");
    let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
}

/// An IPv4 client of a socket for both families, as IPv4.
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

#[cfg(test)]
mod tests;
