//! TCP listeners: one socket a core on one address (`SO_REUSEPORT`), the accept loop, and the bounds on connections.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::resilience::limit::{ClientKey, Counted, Guard};

/// Connections the kernel completes and keeps until they are accepted; Linux caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How long to wait after `accept` failed for want of descriptors or memory. The pending connections stay in the backlog.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);

/// How often the runtime of a core wakes with nothing to do. tokio interrupts its own wait (a write to an eventfd and one
/// more `epoll_wait`) for every timer set earlier than all others, as the deadline of a forwarded request would be on
/// a connection that may idle for longer. With this timer always nearer than deadlines are, none of them does.
const TICK: Duration = Duration::from_secs(1);

/// Binds one socket, to be opened later. Several may be bound to one address, each for a core of its own: the kernel spreads
/// connections over them. `[::]` takes IPv4 too.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Begins to take connections on a bound socket; until then they are refused, so that a balancer goes elsewhere.
pub fn open(listener: &StdListener) -> io::Result<()> {
    SockRef::from(listener).listen(BACKLOG)
}

/// Tells whether another process holds the address, which `SO_REUSEPORT` would hide: two proxies would share one port
/// unnoticed.
pub fn is_free(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// How many connections there may be, over all cores.
pub struct ConnectionLimits {
    open: AtomicUsize,
    open_max: AtomicUsize,
    clients: Arc<Counted>,
    metrics: Metrics,
}

struct Metrics {
    open: IntGauge,
    accepted: prometheus::IntCounter,
    refused_total: prometheus::IntCounter,
    refused_client: prometheus::IntCounter,
    exhausted: prometheus::IntCounter,
}

impl ConnectionLimits {
    /// `open_max` bounds all connections, `per_client_max` those of one client.
    pub fn new(
        open_max: usize,
        per_client_max: usize,
        registry: &Registry,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let open = IntGauge::new("forefront_listener_connections", "Open downstream connections.")?;
        let accepts = IntCounterVec::new(
            Opts::new("forefront_listener_accepts_total", "Downstream connections by what became of them."),
            &["result"],
        )?;
        registry.register(Box::new(open.clone()))?;
        registry.register(Box::new(accepts.clone()))?;
        let metrics = Metrics {
            open,
            accepted: accepts.with_label_values(&["accepted"]),
            refused_total: accepts.with_label_values(&["refused_total"]),
            refused_client: accepts.with_label_values(&["refused_client"]),
            exhausted: accepts.with_label_values(&["exhausted"]),
        };
        let clients = Counted::new(per_client_max);
        Ok(Arc::new(ConnectionLimits {
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(open_max),
            clients,
            metrics,
        }))
    }

    /// Changes the bounds on all connections and on those of one client; open ones stay.
    pub fn set_max(&self, open_max: usize, per_client_max: usize) {
        self.open_max.store(open_max, Ordering::Relaxed);
        self.clients.set_per_client_max(per_client_max);
    }

    /// Open connections now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// A place for a connection of this client; `None`: a bound is reached.
    pub(super) fn admit(self: &Arc<Self>, client: Option<ClientKey>) -> Option<Permit> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.open_max.load(Ordering::Relaxed) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.metrics.refused_total.inc();
            return None;
        }
        self.metrics.open.inc();
        let mut permit = Permit { limits: self.clone(), _client: None };
        if let Some(key) = client {
            permit._client = self.clients.try_acquire(key);
            if permit._client.is_none() {
                self.metrics.refused_client.inc();
                return None;
            }
        }
        Some(permit)
    }
}

/// One open connection; gives its place back when dropped.
pub struct Permit {
    limits: Arc<ConnectionLimits>,
    _client: Option<Guard>,
}

impl Permit {
    /// Counts the connection as this client's, who is known only now. False: the client has as many as one may have.
    pub fn count(&mut self, client: ClientKey) -> bool {
        self._client = self.limits.clients.try_acquire(client);
        if self._client.is_none() {
            self.limits.metrics.refused_client.inc();
        }
        self._client.is_some()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limits.open.fetch_sub(1, Ordering::Relaxed);
        self.limits.metrics.open.dec();
    }
}

/// An accepted connection.
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub permit: Permit,
}

/// Takes accepted connections.
pub trait Handler: Clone + Send + 'static {
    /// The client to count this peer as; `None` exempts it from the bound of a client.
    fn client(&self, peer: SocketAddr) -> Option<ClientKey>;

    /// Serves one connection to its end.
    fn serve(&self, accepted: Accepted) -> impl Future<Output = ()> + Send + 'static;
}

/// Accepts until `closing`. Runs on the runtime of its core; so does every connection it accepts.
pub async fn accept(
    listener: StdListener,
    limits: Arc<ConnectionLimits>,
    handler: impl Handler,
    closing: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let local = listener.local_addr()?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = closing.cancelled() => return Ok(()),
            _ = tick.tick() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    limits.metrics.exhausted.inc();
                    tracing::warn!(%error, address = %local, "cannot accept; trying again");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    continue;
                }
            },
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(permit) = limits.admit(handler.client(peer)) else { continue };
        limits.metrics.accepted.inc();
        // Answers leave as they are written; holding them back for an acknowledgement would only add latency.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        tokio::spawn(handler.serve(Accepted { stream, peer, permit }));
    }
}

/// Errors that concern the connection that was to be accepted, not the listener (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut
    )
}
