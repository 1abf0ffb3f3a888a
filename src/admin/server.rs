//! Connections of the admin and health listeners: few, short, and each bounded in time.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const HEADER_BYTES_MAX: usize = 16 * 1024;
/// For requests under way when a connection or the listener ends.
const GRACE: Duration = Duration::from_secs(2);
/// Between tries when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients may take. Constants but for tests.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Per listener; more wait in the kernel's queue. Default 256.
    pub(super) connections: usize,
    /// From the connection, or the end of the request before, to the end of a head: so it bounds idle time too.
    /// Default 10 s.
    pub(super) header_timeout: Duration,
    /// A reader that takes its answer byte by byte holds its connection no longer than this. Default 5 min.
    pub(super) connection_age: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            header_timeout: Duration::from_secs(10),
            connection_age: Duration::from_secs(300),
        }
    }
}

/// Serves each router on its listener until `shutdown`.
pub(super) async fn serve(doors: Vec<(TcpListener, Router)>, limits: Limits, shutdown: CancellationToken) {
    let serving =
        doors.into_iter().map(|(listener, router)| accept(listener, router, limits, shutdown.clone()));
    futures::future::join_all(serving).await;
}

async fn accept(listener: TcpListener, router: Router, limits: Limits, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let next = async |slots: &Arc<Semaphore>| {
        let slot = Arc::clone(slots).acquire_owned().await.expect("nobody closes the semaphore");
        (listener.accept().await, slot)
    };
    loop {
        let (accepted, slot) = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = next(&slots) => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), limits, shutdown.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin listener could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Every connection ends by itself within `GRACE`: it watches the same token.
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, shutdown: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // An error here is the client's: it went away or spoke no HTTP. hyper has answered what can be answered.
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(limits.connection_age) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GRACE, connection).await;
}
