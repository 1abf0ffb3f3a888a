//! What `dev` and `supervise` share: the log, the registry and the private listener of a keeper.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use prometheus::Registry;

use super::supervise::{Seen, ServeAdmin};
use super::{Failure, dev, supervise};
use crate::admin::{self, Actions, Admin};
use crate::config;
use crate::telemetry::{self, LogConfig};

/// `forefront dev`.
pub fn run_dev(args: dev::Args) -> Result<ExitCode, Failure> {
    let registry = prepare()?;
    dev::run(args, registry, serve_admin())
}

/// `forefront supervise`.
pub fn run_supervise(args: supervise::Args) -> Result<ExitCode, Failure> {
    let registry = prepare()?;
    let load = |path: &Path| config::supervise::load(path).map_err(|problems| anyhow!("{problems}"));
    supervise::run(args, load, registry, serve_admin())
}

fn prepare() -> Result<Registry, Failure> {
    let mut log = LogConfig::default();
    if let Some(filter) = config::environment::log_filter() {
        log.filter = filter;
    }
    let log = telemetry::init(&log).map_err(|error| Failure::Usage(error.into()))?;
    let registry = telemetry::registry().map_err(anyhow::Error::from)?;
    log.register(&registry).map_err(anyhow::Error::from)?;
    // The log lives as long as the process: its thread must see the last lines.
    std::mem::forget(log);
    Ok(registry)
}

fn serve_admin() -> ServeAdmin {
    Box::new(|listener, seen, shutdown| {
        Box::pin(async move {
            let Seen { registry, status } = seen;
            let admin = Admin {
                registry,
                status: Arc::new(move || status()),
                actions: Actions::default(),
                token: None,
            };
            if let Err(error) = admin::serve(vec![listener], admin, shutdown).await {
                tracing::error!(%error, "the admin listener ended");
            }
        })
    })
}
