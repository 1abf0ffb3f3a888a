//! One HTTP/1.1 exchange with an origin, on a connection that pingora dialed and keeps.
//!
//! Connections are pooled per thread, because a socket belongs to the runtime that polls it.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use ahash::AHashMap;
use bytes::BytesMut;
use http::Method;
use pingora_core::ErrorType;
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::Stream;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::{HttpPeer, Peer, Tracer, Tracing};
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::http1::{Decoded, Decoder, MalformedBody, MalformedResponse, ResponseHead};
use crate::upstream::{self, Address, Config, Lease, Pool};

/// Idle connections one thread keeps, over all endpoints.
const IDLE_CONNECTIONS_MAX: usize = 1024;
/// Peers remembered by a thread; endpoints come and go with name resolution, so the map is emptied when it is full.
const PEERS_MAX: usize = 1024;
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// What is read of an answer at once, and so what a slow client makes the proxy hold of it.
const READ_BYTES: usize = 64 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("connecting timed out")]
    TimedOut,
    #[error("cannot connect: {0}")]
    Failed(Box<pingora_core::Error>),
    /// Descriptors, ports or memory have run out here, or a local rule forbids it: nothing is wrong with the endpoint, and
    /// no other one would be reached either.
    #[error("this host cannot connect: {0}")]
    Local(Box<pingora_core::Error>),
    #[error("the endpoint's address cannot be used: {0}")]
    Address(String),
}

impl ConnectError {
    fn of(error: Box<pingora_core::Error>) -> ConnectError {
        match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => ConnectError::TimedOut,
            // The system's word counts where there is one: pingora has one type for a socket of its own that failed and for
            // a Unix socket that may not be opened, and none at all for want of descriptors while connecting to one.
            kind => match os_error(&error) {
                Some(error_of_os) if upstream::is_local(error_of_os) => ConnectError::Local(error),
                Some(_) => ConnectError::Failed(error),
                None => match kind {
                    ErrorType::InternalError | ErrorType::BindError | ErrorType::SocketError => {
                        ConnectError::Local(error)
                    }
                    _ => ConnectError::Failed(error),
                },
            },
        }
    }
}

/// What the system said, somewhere down the chain of causes.
fn os_error(error: &pingora_core::Error) -> Option<&io::Error> {
    let mut cause: &(dyn std::error::Error + 'static) = error.root_cause();
    loop {
        match cause.downcast_ref::<io::Error>() {
            Some(error) if error.raw_os_error().is_some() => return Some(error),
            _ => cause = cause.source()?,
        }
    }
}

/// Why an answer cannot be had from a connection.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the origin's connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the origin closed the connection")]
    Closed,
    #[error(transparent)]
    Head(#[from] MalformedResponse),
    #[error(transparent)]
    Body(#[from] MalformedBody),
    #[error("the answer's head is too large")]
    HeadTooLarge,
}

thread_local! {
    /// It trusts nobody by itself: pingora would read the system's authorities here, on the loop that serves requests, and
    /// panic if there is none or one that it cannot use. Each peer brings what its pool trusts.
    static CONNECTOR: Arc<TransportConnector> = Arc::new(TransportConnector::new(Some(ConnectorOptions {
        ca_file: Some("/dev/null".to_owned()),
        ..ConnectorOptions::new(IDLE_CONNECTIONS_MAX)
    })));
    static KNOWN: RefCell<AHashMap<u64, Known>> = RefCell::default();
}

/// pingora wants an authority even where nothing is verified. This one's key was never kept, so it signs nothing.
const UNVERIFIED_ANCHOR: &[u8] = include_bytes!("unverified_anchor.der");

/// Of each peer over TLS its own, so that no connection made under former settings is used again.
static TLS_GROUPS: AtomicU64 = AtomicU64::new(1);

/// An endpoint as this thread connects to it, under one configuration of its pool.
#[derive(Clone)]
struct Known {
    config: Arc<Config>,
    peer: Arc<HttpPeer>,
    tally: Arc<Tally>,
}

impl Known {
    /// Made once per endpoint, thread and configuration.
    fn of(lease: &Lease, pool: &Pool) -> Result<Known, ConnectError> {
        let config = pool.config();
        let before = KNOWN.with_borrow(|known| known.get(&lease.id()).cloned());
        let tally = match before {
            Some(known) if Arc::ptr_eq(&known.config, &config) => return Ok(known),
            Some(known) => known.tally,
            None => Arc::default(),
        };
        let peer = Arc::new(peer(lease, pool, &config, &tally)?);
        let known = Known { config, peer, tally };
        KNOWN.with_borrow_mut(|all| {
            if all.len() >= PEERS_MAX {
                all.clear();
            }
            all.insert(lease.id(), known.clone());
        });
        Ok(known)
    }
}

/// What pingora needs to know of the lease's endpoint.
fn peer(lease: &Lease, pool: &Pool, config: &Config, tally: &Arc<Tally>) -> Result<HttpPeer, ConnectError> {
    let (tls, sni) = match &config.tls {
        Some(tls) => (true, tls.sni.clone().unwrap_or_else(|| host_of(lease.endpoint().configured()))),
        None => (false, String::new()),
    };
    let mut peer = match (lease.address(), lease.unix_path()) {
        (Some(address), _) => HttpPeer::new(address, tls, sni),
        (None, Some(path)) => {
            let path = path.to_str().ok_or_else(|| ConnectError::Address(path.display().to_string()))?;
            HttpPeer::new_uds(path, tls, sni).map_err(ConnectError::Failed)?
        }
        (None, None) => return Err(ConnectError::Address(lease.label().to_owned())),
    };
    peer.options.connection_timeout = Some(config.connect_timeout);
    peer.options.total_connection_timeout = Some(config.connect_timeout);
    peer.options.tracer = Some(Tracer(tally.boxed_clone()));
    // Idle connections are kept apart by endpoint, as they are counted.
    peer.group_key = lease.id();
    if let Some(tls) = &config.tls {
        peer.group_key = TLS_GROUPS.fetch_add(1, Relaxed);
        peer.options.verify_cert = tls.verify;
        peer.options.verify_hostname = tls.verify;
        peer.options.ca = Some(authorities(pool));
    }
    Ok(peer)
}

/// The pool's authorities in pingora's form.
fn authorities(pool: &Pool) -> Arc<CaType> {
    let trusted = pool.authorities().unwrap_or_default();
    let wrap = |der: &[u8]| {
        let der = der.to_vec();
        // pingora's parser is not the one that checked them, and panics where it differs: one authority less.
        std::panic::catch_unwind(|| WrappedX509::new(der, parse_x509)).ok()
    };
    let mut wrapped: Vec<_> = trusted.iter().filter_map(|certificate| wrap(certificate)).collect();
    if wrapped.is_empty() {
        wrapped.extend(wrap(UNVERIFIED_ANCHOR));
    }
    wrapped.into()
}

/// The name for TLS of an address: without port, an IPv6 address without brackets.
fn host_of(address: &Address) -> String {
    match address {
        Address::Socket(address) => address.ip().to_string(),
        Address::Name { host, .. } => host.clone(),
        Address::Unix(_) => crate::http1::host_of(&address.authority()).to_owned(),
    }
}

/// Connections of one thread to one endpoint: what is open and not in use is idle.
#[derive(Debug, Default)]
struct Tally {
    open: AtomicUsize,
    in_use: AtomicUsize,
}

impl Tally {
    fn idle(&self) -> usize {
        self.open.load(Relaxed).saturating_sub(self.in_use.load(Relaxed))
    }

    fn boxed_clone(self: &Arc<Tally>) -> Box<dyn Tracing> {
        Box::new(Counter(self.clone()))
    }
}

/// Lets pingora count the connections it opens and closes, wherever it closes them.
#[derive(Debug)]
struct Counter(Arc<Tally>);

impl Tracing for Counter {
    fn on_connected(&self) {
        self.0.open.fetch_add(1, Relaxed);
    }

    fn on_disconnected(&self) {
        self.0.open.fetch_sub(1, Relaxed);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        self.0.boxed_clone()
    }
}

/// One connection in use.
struct InUse(Arc<Tally>);

impl InUse {
    fn of(tally: Arc<Tally>) -> InUse {
        tally.in_use.fetch_add(1, Relaxed);
        InUse(tally)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Relaxed);
    }
}

/// A connection to an origin.
pub struct Origin {
    stream: Stream,
    keep: Keep,
    /// It carried a request before this one: if it breaks before an answer, the origin may only have closed it for
    /// being idle.
    pub reused: bool,
}

impl Origin {
    /// Takes an idle connection of this thread to the lease's endpoint, or makes one within the pool's
    /// `connect_timeout`. `fresh`: only a new one will do.
    pub async fn connect(lease: &Lease, pool: &Pool, fresh: bool) -> Result<Origin, ConnectError> {
        let known = Known::of(lease, pool)?;
        let connector = CONNECTOR.with(Arc::clone);
        let idle = if fresh { None } else { connector.reused_stream(&*known.peer).await };
        let reused = idle.is_some();
        let stream = match idle {
            Some(stream) => stream,
            None => connector.new_stream(&*known.peer).await.map_err(ConnectError::of)?,
        };
        let Known { config, peer, tally } = known;
        Ok(Origin { stream, keep: Keep { config, peer, in_use: InUse::of(tally) }, reused })
    }

    /// The two directions, to be driven at once, and what is needed to keep the connection afterwards.
    pub fn split(self) -> (Reader, Writer, Keep) {
        let (reader, writer) = tokio::io::split(self.stream);
        (
            Reader { half: reader, input: BytesMut::new(), decoder: Decoder::none() },
            Writer { half: writer },
            self.keep,
        )
    }
}

/// Where a connection goes when its exchange is over. To be held as long as its two directions.
pub struct Keep {
    config: Arc<Config>,
    peer: Arc<HttpPeer>,
    in_use: InUse,
}

impl Keep {
    /// Puts the connection among the idle ones of this thread, or closes it if there are `keepalive` of this endpoint. To be
    /// called only after an answer read to its end on a connection that both sides keep.
    pub fn release(self, reader: Reader, writer: Writer) {
        let Keep { config, peer, in_use } = self;
        if reader.input.is_empty() && in_use.0.idle() < config.keepalive {
            let stream = reader.half.unsplit(writer.half);
            let key = peer.reuse_hash();
            CONNECTOR.with(|connector| connector.release_stream(stream, key, Some(config.keepalive_idle)));
        }
    }
}

/// The direction of requests.
pub struct Writer {
    pub half: WriteHalf<Stream>,
}

impl Writer {
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.half.write_all(bytes).await?;
        self.half.flush().await
    }
}

/// The direction of answers.
pub struct Reader {
    pub half: ReadHalf<Stream>,
    pub input: BytesMut,
    decoder: Decoder,
}

impl Reader {
    /// The next head, informational ones included. After a final one `body` gives its content. Safe to drop and call
    /// again: what was read stays in `input`.
    pub async fn head(&mut self, method: &Method) -> Result<ResponseHead, AnswerError> {
        loop {
            let read = self.input.len();
            if let Some(head) = ResponseHead::take(&mut self.input)? {
                // Much may come at once, so a head may be whole before it is seen to grow too long.
                if read - self.input.len() > HEAD_BYTES_MAX {
                    return Err(AnswerError::HeadTooLarge);
                }
                self.decoder = head.decoder(method)?;
                return Ok(head);
            }
            if self.input.len() > HEAD_BYTES_MAX {
                return Err(AnswerError::HeadTooLarge);
            }
            if self.read().await? == 0 {
                return Err(AnswerError::Closed);
            }
        }
    }

    /// The next piece of content. Safe to drop and call again.
    pub async fn body(&mut self) -> Result<Decoded, AnswerError> {
        loop {
            match self.decoder.decode(&mut self.input)? {
                Decoded::Starved => {}
                piece => return Ok(piece),
            }
            if self.read().await? == 0 {
                self.decoder.closed()?;
            }
        }
    }

    /// Content that is there already, without waiting.
    pub fn ready(&mut self) -> Result<Decoded, AnswerError> {
        Ok(self.decoder.decode(&mut self.input)?)
    }

    /// Was the answer read to an end that leaves the connection usable?
    pub fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Does only the end of the connection end the answer?
    pub fn ends_by_close(&self) -> bool {
        self.decoder.ends_by_close()
    }

    async fn read(&mut self) -> Result<usize, AnswerError> {
        self.input.reserve(READ_BYTES);
        Ok(self.half.read_buf(&mut self.input).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_core::Error;

    /// An error as pingora's TCP connector makes it: its own socket's failures wrapped once more.
    fn wrapped(inner: ErrorType, errno: i32) -> Box<Error> {
        let cause = Error::because(inner, "failed to create socket", io::Error::from_raw_os_error(errno));
        Error::because(ErrorType::InternalError, "Fail to connect", cause)
    }

    fn plain(kind: ErrorType, errno: i32) -> Box<Error> {
        Error::because(kind, "Fail to connect", io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_lack_of_this_host_is_not_the_endpoint_s_fault() {
        for error in [
            wrapped(ErrorType::SocketError, libc::EMFILE),
            wrapped(ErrorType::BindError, libc::EADDRNOTAVAIL),
            plain(ErrorType::InternalError, libc::EADDRINUSE),
            plain(ErrorType::InternalError, libc::EPERM),
            // Unix sockets.
            plain(ErrorType::ConnectError, libc::EMFILE),
            plain(ErrorType::ConnectError, libc::ENFILE),
            plain(ErrorType::ConnectError, libc::ENOBUFS),
        ] {
            let text = error.to_string();
            assert!(matches!(ConnectError::of(error), ConnectError::Local(_)), "{text}");
        }
        for error in [
            plain(ErrorType::ConnectRefused, libc::ECONNREFUSED),
            plain(ErrorType::ConnectNoRoute, libc::EHOSTUNREACH),
            plain(ErrorType::ConnectError, libc::ENOENT),
            // A Unix socket of somebody else.
            plain(ErrorType::InternalError, libc::EACCES),
        ] {
            let text = error.to_string();
            assert!(matches!(ConnectError::of(error), ConnectError::Failed(_)), "{text}");
        }
        let timed_out = plain(ErrorType::ConnectTimedout, libc::ETIMEDOUT);
        assert!(matches!(ConnectError::of(timed_out), ConnectError::TimedOut));
    }

    /// Accepts connections and keeps them open.
    async fn listener() -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.push(stream);
            }
        });
        address
    }

    fn pool(config: &Config) -> Arc<Pool> {
        let metrics = upstream::Metrics::register(&prometheus::Registry::new()).expect("an empty registry");
        Pool::new(config.clone(), metrics).expect("a good configuration")
    }

    async fn connect(pool: &Arc<Pool>) -> Result<Origin, ConnectError> {
        let lease = pool.pick(&[], std::time::Instant::now()).expect("usable");
        Origin::connect(&lease, pool, false).await
    }

    /// Connects so many times, then releases all; which were reused.
    async fn use_at_once(pool: &Arc<Pool>, connections: usize) -> Vec<bool> {
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(connect(pool).await.expect("connected"));
        }
        let reused = open.iter().map(|origin| origin.reused).collect();
        for origin in open {
            let (reader, writer, keep) = origin.split();
            keep.release(reader, writer);
        }
        reused
    }

    #[tokio::test]
    async fn no_more_connections_are_kept_than_configured_and_a_reload_counts() {
        let mut config = Config::new("test", [Address::Socket(listener().await)]);
        config.keepalive = 2;
        let pool = pool(&config);
        assert_eq!(use_at_once(&pool, 4).await, [false; 4]);
        assert_eq!(use_at_once(&pool, 4).await, [true, true, false, false]);
        config.keepalive = 0;
        pool.reload(config.clone()).expect("good");
        assert_eq!(use_at_once(&pool, 3).await, [true, true, false], "kept from before");
        assert_eq!(use_at_once(&pool, 1).await, [false]);
    }

    #[tokio::test]
    async fn a_reload_changes_how_endpoints_are_connected_to() {
        let mut config = Config::new("test", [Address::Socket(listener().await)]);
        let pool = pool(&config);
        let timeout = |pool: &Arc<Pool>| {
            let lease = pool.pick(&[], std::time::Instant::now()).expect("usable");
            Known::of(&lease, pool).ok().and_then(|known| known.peer.options.total_connection_timeout)
        };
        assert_eq!(timeout(&pool), Some(config.connect_timeout));
        config.connect_timeout *= 2;
        pool.reload(config.clone()).expect("good");
        assert_eq!(timeout(&pool), Some(config.connect_timeout));
    }

    /// An origin over TLS, certified for 127.0.0.1 and ::1 by the authority of the test data.
    async fn tls_listener(bind: &str) -> std::io::Result<std::net::SocketAddr> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let certificate = CertificateDer::from_pem_slice(include_bytes!("testdata/origin.pem")).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("testdata/origin.key")).expect("PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a good certificate");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind(bind).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.extend(acceptor.accept(stream).await);
            }
        });
        Ok(address)
    }

    #[tokio::test]
    async fn requests_trust_what_the_pool_trusts() {
        let mut addresses = vec![tls_listener("127.0.0.1:0").await.expect("a free port")];
        // Not every host has IPv6.
        addresses.extend(tls_listener("[::1]:0").await);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, include_bytes!("testdata/authority.pem")).expect("written");
        for address in addresses {
            let mut config = Config::new("test", [Address::Socket(address)]);
            config.connect_timeout = std::time::Duration::from_secs(20);
            let tls = |ca_file: Option<&std::path::Path>, verify| {
                Some(upstream::TlsConfig { sni: None, ca_file: ca_file.map(Into::into), verify })
            };
            config.tls = tls(Some(file.path()), true);
            let pool = pool(&config);
            connect(&pool).await.expect("certified by the authority of ca_file");
            config.tls = tls(None, false);
            pool.reload(config.clone()).expect("good");
            connect(&pool).await.expect("not verified");
            let other = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(&other, include_bytes!("testdata/origin.pem")).expect("written");
            config.tls = tls(Some(other.path()), true);
            pool.reload(config.clone()).expect("good");
            assert!(connect(&pool).await.is_err(), "another authority");
            config.tls = tls(Some(file.path()), true);
            config.tls.as_mut().expect("set").sni = Some("elsewhere.test".to_owned());
            pool.reload(config.clone()).expect("good");
            assert!(connect(&pool).await.is_err(), "another name");
        }
    }

    #[test]
    fn names_for_tls() {
        for (address, expected) in
            [("127.0.0.1:1", "127.0.0.1"), ("[::1]:1", "::1"), ("origin.test:1", "origin.test")]
        {
            assert_eq!(host_of(&address.parse().expect("an address")), expected);
        }
    }
}
