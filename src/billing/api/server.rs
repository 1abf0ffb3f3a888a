//! Connections: bounded in number, head and time, ended between two requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use prometheus::IntGauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Limits;

/// For the request a connection is at when it is told to end. The composition root waits for requests by the drain, and
/// longer; this is for clients that do not read their answer.
pub const GRACE: Duration = Duration::from_secs(30);
/// Between tries when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub async fn serve(
    listeners: Vec<TcpListener>,
    router: Router,
    limits: Limits,
    open: IntGauge,
    closing: CancellationToken,
) {
    let serving = listeners
        .into_iter()
        .map(|listener| accept(listener, router.clone(), limits, open.clone(), closing.clone()));
    futures::future::join_all(serving).await;
}

async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    open: IntGauge,
    closing: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let next = async |slots: &Arc<Semaphore>| {
        let slot = Arc::clone(slots).acquire_owned().await.expect("nobody closes the semaphore");
        (listener.accept().await, slot)
    };
    loop {
        let (accepted, slot) = tokio::select! {
            () = closing.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = next(&slots) => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), limits, closing.clone());
                let counted = Counted::new(&open);
                connections.spawn(async move {
                    connection.await;
                    drop((counted, slot));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "billing could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Every connection ends by itself within `GRACE`: it watches the same token.
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, closing: CancellationToken) {
    // An answer is one write; it must not wait for the one before to be acknowledged. If it cannot be set, it does.
    let _ = stream.set_nodelay(true);
    // hyper waits for ever. The system does not, if it is told; of Linux, also while the peer says that it has no room.
    let millis = u32::try_from(limits.unread_timeout.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = setsockopt(&stream, TcpUserTimeout, &millis) {
        tracing::warn!(%error, "billing could not bound how long a client may leave its answer unread");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // An error here is the client's: it went away or spoke no HTTP. hyper has answered what can be answered.
        _ = connection.as_mut() => return,
        () = closing.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GRACE, connection).await;
}

struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
