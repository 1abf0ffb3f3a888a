//! Starts the service: waits, opens its port, answers until something ends it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::Error;
use super::config::Config;
use super::control::{self, Control};
use super::counts::Counts;
use super::data::{Data, Sizes};
use super::dice::Dice;
use super::endpoints::{self, Service};
use super::faults::{End, Faults, Lifetime};
use super::limiter::Limiter;
use super::lists::Lists;
use super::log::Log;
use super::span::Span;
use super::store::{Store, StoreKind};

/// How the stand-in runs. Defaults are those of the real service where they are known.
#[derive(Debug)]
pub struct Options {
    pub config: Config,
    pub log: Log,
    /// At least one; default `[::]:27352`.
    pub listen: Vec<SocketAddr>,
    /// None (the default): no control listener.
    pub control: Option<SocketAddr>,
    pub store: StoreKind,
    /// The port stays closed for so long. Default 30 s.
    pub start_delay: Duration,
    /// Latency of `/long_dummy`. Default 3 s to 6 s.
    pub long_dummy: Span,
    /// Requests a second; 0 = no limit. Default 100.
    pub rate_limit: u32,
    /// Requests that may wait for the limiter. Default 1,000.
    pub queue: usize,
    /// None: lives until it is ended. Default 22 to 25 minutes.
    pub lifetime: Option<Lifetime>,
    /// A leak kills the process at this size. Default 256 MiB.
    pub leak_max_bytes: usize,
    pub seed: u64,
}

/// Where the service serves, with the ports the system chose for port 0.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub listen: Vec<SocketAddr>,
    pub control: Option<SocketAddr>,
}

/// Pending connections the kernel keeps, as Go's default on Linux.
const BACKLOG: i32 = 4_096;

/// How long to wait before accepting again when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until a fault ends the process; `serving` is called once the port is open. The caller carries the [`End`]
/// out at once: connections in progress are cut, as those of a process that dies. Dropping the future stops everything.
///
/// # Errors
/// When the store cannot be opened or an address cannot be bound.
pub async fn serve(options: Options, serving: impl FnOnce(&Addresses)) -> Result<End, Error> {
    let dice = Dice::new(options.seed);
    let data = Data::new(options.seed, Sizes::FULL);
    let store = Arc::new(Store::open(&options.store, &data)?);
    let faults = Faults::new(options.leak_max_bytes, dice);
    let counts = Arc::new(Counts::default());
    let mut tasks = JoinSet::new();

    let mut control = None;
    if let Some(address) = options.control {
        let listener = bind(address)?;
        control = Some(local(&listener)?);
        let router = control::router(Control { counts: Arc::clone(&counts), faults: Arc::clone(&faults) });
        tasks.spawn(accept(listener, router));
    }
    tokio::select! {
        () = tokio::time::sleep(options.start_delay) => {}
        end = faults.ended() => return Ok(end),
    }

    let limiter = Arc::new(Limiter::new(options.rate_limit, options.queue));
    let log = Arc::new(options.log);
    let service = Arc::new(Service {
        config: options.config,
        data,
        lists: Lists::new(data, Arc::clone(&store), Arc::clone(&faults)),
        store,
        faults: Arc::clone(&faults),
        limiter: Arc::clone(&limiter),
        counts,
        log: Arc::clone(&log),
        dice,
        long_dummy: options.long_dummy,
        asked: Default::default(),
    });
    let router = endpoints::router(service);
    let mut listen = Vec::new();
    for address in options.listen {
        let listener = bind(address)?;
        listen.push(local(&listener)?);
        tasks.spawn(accept(listener, router.clone()));
    }
    tasks.spawn(async move { limiter.run().await });
    tasks.spawn(async move { log.chatter().await });
    if let Some(lifetime) = options.lifetime {
        tasks.spawn(age(Arc::clone(&faults), lifetime, dice));
    }
    serving(&Addresses { listen, control });
    Ok(faults.ended().await)
}

async fn age(faults: Arc<Faults>, lifetime: Lifetime, dice: Dice) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (after, order) = lifetime.draw(&dice, now.as_secs());
    tracing::info!(after = ?after, kind = ?order.kind, "the legacy process will fail by itself");
    tokio::time::sleep(after).await;
    faults.order(order);
}

/// Opens a port for IPv4 and IPv6 alike if the address is `[::]`, as Go does.
fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|source| Error::Bind { address, source })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(Error::Address)
}

/// Accepts for ever. Its connections end with it.
async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Without it the last small chunk of an answer waits for an acknowledgement.
                    let _ = stream.set_nodelay(true);
                    let service = TowerToHyperService::new(router.clone());
                    // No deadline for heads or idle connections: Go's server has none unless told.
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    connections.spawn(async move { connection.await.is_ok() });
                }
                Err(error) => {
                    tracing::warn!(%error, "the legacy listener could not accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
