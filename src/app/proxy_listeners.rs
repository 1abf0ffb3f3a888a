//! The sockets of a proxy node, and the cores that serve them.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use listenfd::ListenFd;
use prometheus::Registry;
use socket2::{Socket, Type};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::listener::QuicReset;
use crate::listener::quic::{self, Latecomers};
use crate::listener::tcp::{self, ConnectionLimits};
use crate::listener::tls::Tls;
use crate::proxy::{Config, Core, Door, Proxy, QuicCore};

/// How long clients may remember that HTTP/3 is offered; also how long they may try in vain after it was switched off.
const ALT_SVC_SECONDS: u32 = 86_400;

/// A listening socket and what is spoken on it.
struct Listening {
    socket: TcpListener,
    door: Door,
}

/// One core's share of QUIC on one address.
struct Quic {
    socket: UdpSocket,
    /// Which of how many.
    index: usize,
    of: usize,
    settings: quic::Settings,
    latecomers: Latecomers,
    alt_svc: &'static [u8],
}

/// What one core serves.
#[derive(Default)]
struct Share {
    tcp: Vec<Listening>,
    quic: Vec<Quic>,
}

/// The bound sockets of a node, a share for each core.
pub struct Listeners {
    shares: Vec<Share>,
    /// To be opened once clients are welcome. Those that were handed over are open already.
    closed: Vec<TcpListener>,
    handed_over: bool,
    tls: Option<Arc<Tls>>,
    metrics: quic::Metrics,
}

/// When things begin and end.
#[derive(Clone)]
pub struct Latches {
    /// Clients may come.
    pub opened: CancellationToken,
    /// Nobody new is served.
    pub closing: CancellationToken,
    /// All ends.
    pub stopped: CancellationToken,
}

impl Listeners {
    /// Binds every address of the configuration, or takes the socket that was handed over for it.
    pub fn bind(config: &Config, state_dir: &Path, registry: &Registry) -> anyhow::Result<Listeners> {
        let mut inherited = Inherited::take()?;
        let mut listeners = Listeners {
            shares: (0..config.threads.max(1)).map(|_| Share::default()).collect(),
            closed: Vec::new(),
            handed_over: false,
            tls: None,
            metrics: quic::Metrics::register(registry)?,
        };
        for address in &config.listen_http {
            listeners.add_tcp(*address, "http", &mut inherited, |_| Door::Http)?;
        }
        if let Some(settings) = &config.tls
            && !config.listen_https.is_empty()
        {
            let tls = Tls::new(settings, state_dir, registry)?;
            for address in &config.listen_https {
                listeners.add_https(*address, config, settings.quic_reset, &tls, &mut inherited)?;
            }
            listeners.tls = Some(tls);
        }
        inherited.finish();
        Ok(listeners)
    }

    /// The certificates in use, to be loaded anew.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Is there a socket that clients are connecting to already? They wait for this node, whatever it waits for.
    pub fn handed_over(&self) -> bool {
        self.handed_over
    }

    /// The sockets that do not listen yet.
    pub fn closed(&self) -> io::Result<Vec<TcpListener>> {
        self.closed.iter().map(TcpListener::try_clone).collect()
    }

    fn add_https(
        &mut self,
        address: SocketAddr,
        config: &Config,
        reset: QuicReset,
        tls: &Arc<Tls>,
        inherited: &mut Inherited,
    ) -> anyhow::Result<()> {
        let acceptor = TlsAcceptor::from(tls.tcp_config());
        let offer = |port: u16| match config.http3 {
            true => alt_svc(port),
            false => b"",
        };
        let bound = self.add_tcp(address, "https", inherited, |bound| Door::Https {
            tls: acceptor.clone(),
            alt_svc: offer(bound.port()),
        })?;
        if config.http3 {
            self.add_quic(bound, config, reset, tls, offer(bound.port()), inherited)?;
        }
        Ok(())
    }

    /// One socket a core. Where port 0 is asked for, all cores share the one port that the first of them got.
    fn add_tcp(
        &mut self,
        wanted: SocketAddr,
        name: &'static str,
        inherited: &mut Inherited,
        door: impl Fn(SocketAddr) -> Door,
    ) -> anyhow::Result<SocketAddr> {
        let cannot = || format!("cannot listen on {wanted}");
        let mut address = wanted;
        if let Some(socket) = inherited.tcp(wanted) {
            self.handed_over = true;
            for share in &mut self.shares {
                share.tcp.push(Listening { socket: socket.try_clone()?, door: door(address) });
            }
            tracing::info!(listener = name, %address, "handed over");
            return Ok(address);
        }
        if wanted.port() != 0 {
            tcp::is_free(wanted).with_context(cannot)?;
        }
        for share in &mut self.shares {
            let socket = tcp::bind(address).with_context(cannot)?;
            address = socket.local_addr()?;
            self.closed.push(socket.try_clone()?);
            share.tcp.push(Listening { socket, door: door(address) });
        }
        tracing::info!(listener = name, %address, "bound; takes connections when ready");
        Ok(address)
    }

    fn add_quic(
        &mut self,
        address: SocketAddr,
        config: &Config,
        reset: QuicReset,
        tls: &Tls,
        alt_svc: &'static [u8],
        inherited: &mut Inherited,
    ) -> anyhow::Result<()> {
        let limits = &config.limits;
        let of_whom = match reset {
            QuicReset::Node => config.node.as_bytes(),
            QuicReset::Shared => b"",
        };
        let settings = quic::Settings {
            tls: tls.quic_config(),
            token_secret: tls.secret().derive("quic address validation", b""),
            reset_secret: tls.secret().derive("quic stateless reset", of_whom),
            streams: limits.streams_per_connection,
            handshake_timeout: limits.handshake_timeout,
            handshakes_free: quic::HANDSHAKES_FREE,
        };
        let handed_over = inherited.udp(address);
        let latecomers = if handed_over.is_empty() { Latecomers::Refuse } else { Latecomers::Ignore };
        let sockets = if handed_over.is_empty() {
            let cannot = || format!("cannot listen on {address} (UDP)");
            quic::is_free(address).with_context(cannot)?;
            quic::bind(address, self.shares.len()).with_context(cannot)?
        } else {
            anyhow::ensure!(
                handed_over.len() <= self.shares.len(),
                "{} UDP sockets were handed over for {address}, and there are {} cores to read them",
                handed_over.len(),
                self.shares.len()
            );
            quic::adopt(&handed_over).with_context(|| format!("cannot steer datagrams of {address}"))?;
            handed_over
        };
        let of = sockets.len();
        for (index, (socket, share)) in sockets.into_iter().zip(&mut self.shares).enumerate() {
            share.quic.push(Quic { socket, index, of, settings: settings.clone(), latecomers, alt_svc });
        }
        let taken = if latecomers == Latecomers::Ignore {
            "handed over"
        } else {
            "bound; takes connections when ready"
        };
        tracing::info!(listener = "http3", %address, sockets = of, "{taken}");
        Ok(())
    }

    /// Starts a core for each share, on a thread of its own.
    pub fn start(
        self,
        proxy: &Arc<Proxy>,
        limits: &Arc<ConnectionLimits>,
        latches: &Latches,
    ) -> anyhow::Result<Vec<JoinHandle<()>>> {
        let Listeners { shares, metrics, .. } = self;
        let mut cores = Vec::with_capacity(shares.len());
        for (number, share) in shares.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let core = CoreParts {
                proxy: proxy.clone(),
                limits: limits.clone(),
                latches: latches.clone(),
                metrics: metrics.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("core-{number}")).spawn(move || {
                runtime.block_on(core.run(share));
                runtime.shutdown_background();
            })?;
            cores.push(thread);
        }
        Ok(cores)
    }
}

/// The field line that offers HTTP/3 at this port (RFC 7838). It lives as long as the process: there is one a listener.
fn alt_svc(port: u16) -> &'static [u8] {
    Box::leak(format!("alt-svc: h3=\":{port}\"; ma={ALT_SVC_SECONDS}\r\n").into_boxed_str()).as_bytes()
}

/// What a core works with.
struct CoreParts {
    proxy: Arc<Proxy>,
    limits: Arc<ConnectionLimits>,
    latches: Latches,
    metrics: quic::Metrics,
}

impl CoreParts {
    async fn run(self, share: Share) {
        for listening in share.tcp {
            self.accept(listening);
        }
        let mut endpoints = Vec::new();
        for quic in share.quic {
            match self.open(quic).await {
                Ok(endpoint) => endpoints.extend(endpoint),
                Err(error) => tracing::error!(%error, "HTTP/3 is not served on this core"),
            }
        }
        self.latches.stopped.cancelled().await;
        for endpoint in &endpoints {
            quic::close(endpoint).await;
        }
    }

    fn accept(&self, listening: Listening) {
        let Listening { socket, door } = listening;
        let core = Core { proxy: self.proxy.clone(), door };
        let (limits, latches) = (self.limits.clone(), self.latches.clone());
        tokio::spawn(async move {
            // A socket that does not listen yet cannot be waited upon.
            tokio::select! {
                () = latches.opened.cancelled() => {}
                () = latches.closing.cancelled() => return,
            }
            if let Err(error) = tcp::accept(socket, limits, core, latches.closing).await {
                tracing::error!(%error, "a listener ended");
            }
        });
    }

    /// Opens an endpoint once clients may come; `None`: the node leaves before.
    async fn open(&self, quic: Quic) -> Result<Option<quinn::Endpoint>, quic::Error> {
        tokio::select! {
            () = self.latches.opened.cancelled() => {}
            () = self.latches.closing.cancelled() => return Ok(None),
        }
        let Quic { socket, index, of, settings, latecomers, alt_svc } = quic;
        let endpoint = quic::endpoint(&settings, socket, index, of)?;
        let core = QuicCore { proxy: self.proxy.clone(), metrics: self.metrics.clone(), alt_svc };
        tokio::spawn(quic::accept(
            endpoint.clone(),
            self.limits.clone(),
            core,
            settings,
            latecomers,
            self.metrics.clone(),
            self.latches.closing.clone(),
        ));
        Ok(Some(endpoint))
    }
}

/// Sockets that the keeper or systemd holds over restarts and hands over (`LISTEN_FDS`, sd_listen_fds(3)). They are told apart
/// by kind and address.
struct Inherited(Vec<Socket>);

impl Inherited {
    fn take() -> anyhow::Result<Inherited> {
        let mut descriptors = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..descriptors.len() {
            let taken = descriptors.take_raw_fd(index);
            let Some(descriptor) = taken.map_err(|error| anyhow!("LISTEN_FDS: {error}"))? else { continue };
            // SAFETY: the descriptor was passed to this process to own, and `take_raw_fd` gives each out once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            let socket = Socket::from(descriptor);
            socket.set_nonblocking(true).context("LISTEN_FDS")?;
            socket.set_cloexec(true).context("LISTEN_FDS")?;
            sockets.push(socket);
        }
        Ok(Inherited(sockets))
    }

    fn matching(&mut self, kind: Type, address: SocketAddr) -> Vec<Socket> {
        let is_meant = |socket: &Socket| {
            socket.r#type().is_ok_and(|its| its == kind)
                && socket.local_addr().ok().and_then(|bound| bound.as_socket()) == Some(address)
        };
        let (meant, others) = std::mem::take(&mut self.0).into_iter().partition(is_meant);
        self.0 = others;
        meant
    }

    /// One listening socket, for all cores: connections queue in it over a restart.
    fn tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        self.matching(Type::STREAM, address).into_iter().next().map(TcpListener::from)
    }

    fn udp(&mut self, address: SocketAddr) -> Vec<UdpSocket> {
        self.matching(Type::DGRAM, address).into_iter().map(UdpSocket::from).collect()
    }

    /// What nobody asked for is a mistake of whoever hands it over; closed, it costs nothing.
    fn finish(self) {
        for socket in self.0 {
            let address = socket.local_addr().ok().and_then(|bound| bound.as_socket());
            tracing::warn!(?address, "a socket was handed over that no listener is configured for");
        }
    }
}
