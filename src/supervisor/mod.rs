//! Keeps processes: health, restart, recycling, sockets, output, memory.
//!
//! [`Keeper`] is the whole; [`settings`] is what it is told. Decisions are pure ([`lifecycle`], [`recycle`]); between the
//! keeper and each process stands a [`guardian`], so that no descendant outlives a keeper that was killed.
//!
//! The supervisor never parses configuration, knows no HTTP beyond one probe, and serves nothing: status and metrics are
//! handed out to be served elsewhere.

pub mod guardian;
mod instance;
mod keeper;
pub mod lifecycle;
mod logs;
mod metrics;
pub mod probe;
mod process;
pub mod procfs;
pub mod recycle;
pub mod settings;
mod sockets;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use keeper::{Keeper, Shutdown, Watcher};
pub use settings::{
    AddressTemplate, Backoff, Config, HealthConfig, LogConfig, ProcessConfig, SocketConfig, SocketKind,
};

/// What keeps a keeper from starting. Once it runs, nothing does: trouble with one process is logged, counted and retried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("process {process}: {problem}")]
    Config { process: String, problem: String },
    #[error("cannot listen on {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot open the log {path}")]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot start a thread of the keeper")]
    Thread(#[source] io::Error),
    #[error("cannot start a guardian")]
    Spawn(#[source] io::Error),
    #[error("cannot watch for signals")]
    Signal(#[source] io::Error),
    #[error("metrics are already registered")]
    Metrics(#[from] prometheus::Error),
}
