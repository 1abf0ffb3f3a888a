//! The composition root: one file per command. Only this room knows every other one.
//!
//! It builds the rooms, hands them to each other, starts and ends runtimes, and obeys signals. What a request or a
//! process meets is decided elsewhere.

pub mod billing;
pub mod check;
pub mod dev;
pub mod keeper;
pub mod legacy;
pub mod proxy;
mod proxy_listeners;
mod proxy_status;
mod proxy_upstreams;
pub mod status;
pub mod supervise;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for something that cannot be. Exit code 2.
    Usage(anyhow::Error),
    /// The configuration is wrong; every problem of it is in the text. Exit code 2.
    Config(anyhow::Error),
    /// It was started rightly and failed. Exit code 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// 1 for what failed, 2 for bad usage or configuration.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) | Failure::Config(_) => ExitCode::from(2),
            Failure::Failed(_) => ExitCode::FAILURE,
        }
    }
}

/// The cause, and the causes of the cause, in one text.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Failure::Usage(error) | Failure::Config(error) | Failure::Failed(error)) = self;
        write!(f, "{error:#}")
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

/// How to reach a listener from this host.
fn reach(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}
