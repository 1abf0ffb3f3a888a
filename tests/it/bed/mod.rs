//! The test bed: processes, origins and clients for the scenarios beside it.

mod legacy;
mod node;
mod origin;
mod process;
mod wire;

use std::future::Future;
use std::time::{Duration, Instant};

pub use legacy::Legacy;
pub use node::{Node, check, refused_by_proxy, route, upstream};
pub use origin::{Origin, ok};
pub use process::Process;
pub use wire::{Answer, End, Head, Wire, get, request};

/// Nothing in a test takes longer; what does hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Bounds a wait, so that a fault shows as a failure and not as a test that never ends.
pub async fn within<T>(limit: Duration, what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

/// Asks again and again until it is so.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
