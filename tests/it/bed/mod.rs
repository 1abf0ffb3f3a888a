//! The test bed: processes, origins and clients for the scenarios beside it.

pub mod billing;
mod client;
mod heard;
mod http2;
mod http3;
mod legacy;
mod node;
mod origin;
mod process;
mod quic;
pub mod raw_h2;
pub mod raw_h3;
mod tls;
mod wire;

use std::future::Future;
use std::time::{Duration, Instant};

pub use client::{Ask, Client, Protocol, ask};
pub use heard::Heard;
pub use http2::{H2, H2Answer, Windows};
pub use http3::{H3, H3Answer};
pub use legacy::Legacy;
pub use node::{Node, SELF_SIGNED, check, https, refused_by_proxy, route, upstream};
pub use origin::{Origin, ok};
pub use process::Process;
pub use quic::Quic;
pub use tls::{Certificate, Secured, Tls};
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

/// Bytes without a period that a lost or doubled block could hide in.
pub fn content(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(next).collect()
}
