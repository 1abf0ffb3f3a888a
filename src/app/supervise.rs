//! `forefront supervise`: the process keeper, and the guardian it puts before each process.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::BoxFuture;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::supervisor::{Config, Keeper, Shutdown, Watcher, guardian};

/// The hidden subcommand that leads to [`guardian`].
pub const GUARDIAN: &str = "__guardian";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The configuration: processes to keep, and how
    #[arg(long, value_name = "FILE", default_value = "/etc/forefront/supervise.toml")]
    config: PathBuf,
}

/// Serves `/metrics` of the registry and `/status` of the function on the listener until the token is cancelled.
pub type ServeAdmin = Box<dyn FnOnce(TcpListener, Seen, CancellationToken) -> BoxFuture<'static, ()> + Send>;

/// What the keeper's admin listener shows.
pub struct Seen {
    pub registry: Registry,
    pub status: Arc<dyn Fn() -> Value + Send + Sync>,
}

/// Runs the keeper until SIGTERM, SIGINT or SIGHUP: then all processes are stopped in order; a second signal kills them at
/// once. Exit code 0 after either.
///
/// Errors: [`Failure::Config`] from `load`; [`Failure::Failed`] when a socket, log or guardian cannot be had.
pub fn run(
    args: Args,
    load: impl FnOnce(&Path) -> anyhow::Result<Config>,
    registry: Registry,
    serve_admin: ServeAdmin,
) -> Result<ExitCode, Failure> {
    let config = load(&args.config).map_err(Failure::Config)?;
    runtime()?.block_on(async {
        let shutdown = shutdown_on_signals()?;
        keep(config, registry, serve_admin, shutdown, |_| async {}).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The hidden command that stands between the keeper and a process. Must be called before any thread is started.
pub fn guardian(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match guardian::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let source =
                std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            eprintln!("error: {error}{source}");
            ExitCode::FAILURE
        }
    }
}

/// One thread suffices: the keeper mostly waits, and what blocks has threads of its own.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Keeps what `config` says until `shutdown`; meanwhile runs `beside`, which is given a view of the keeper.
pub(super) async fn keep<F: Future<Output = ()>>(
    config: Config,
    registry: Registry,
    serve_admin: ServeAdmin,
    shutdown: Shutdown,
    beside: impl FnOnce(Watcher) -> F,
) -> anyhow::Result<()> {
    let admin = match config.admin_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let keeper = Keeper::new(config, shim(), true, &registry).context("cannot keep the processes")?;
    let watcher = keeper.watcher();
    let admin_shutdown = CancellationToken::new();
    let serving = admin.map(|listener| {
        let seen = Seen { registry, status: status(watcher.clone()) };
        tokio::spawn(serve_admin(listener, seen, admin_shutdown.clone()))
    });
    let keeping = keeper.run(shutdown);
    let beside = async {
        beside(watcher).await;
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = keeping => result,
        () = beside => Ok(()),
    };
    // Last, so that the stopping can be watched.
    admin_shutdown.cancel();
    if let Some(serving) = serving {
        let _ = serving.await;
    }
    result.context("cannot keep the processes")
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (admin)"))
}

/// The image of this very process, even if the file was replaced by a newer one meanwhile: the two ends of the
/// guardian's socket always speak the same language.
fn shim() -> Vec<OsString> {
    vec!["/proc/self/exe".into(), GUARDIAN.into()]
}

fn status(watcher: Watcher) -> Arc<dyn Fn() -> Value + Send + Sync> {
    let started = Instant::now();
    Arc::new(move || {
        let mut status = watcher.status();
        if let Value::Object(fields) = &mut status {
            fields.insert("role".to_owned(), json!("supervise"));
            fields.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
            fields.insert("uptime_seconds".to_owned(), json!(started.elapsed().as_secs_f64()));
        }
        status
    })
}

/// Signals this soon after the first are taken for the same wish: `timeout(1)` signals the process and then its group.
const SAME_WISH: Duration = Duration::from_millis(500);

/// The first SIGTERM, SIGINT or SIGHUP (a closed terminal) stops in order, the second kills.
pub(super) fn shutdown_on_signals() -> anyhow::Result<Shutdown> {
    let shutdown = Shutdown::default();
    let watch = |kind| signal(kind).context("cannot watch for signals");
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut hang_up = watch(SignalKind::hangup())?;
    let Shutdown { stop, kill } = shutdown.clone();
    tokio::spawn(async move {
        let mut any = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => {}
            }
        };
        any().await;
        tracing::info!("Stopping all processes; one more signal kills them.");
        stop.cancel();
        let same = tokio::time::sleep(SAME_WISH);
        tokio::pin!(same);
        loop {
            tokio::select! {
                () = &mut same => break,
                () = any() => {}
            }
        }
        any().await;
        tracing::warn!("Killing all processes.");
        kill.cancel();
    });
    Ok(shutdown)
}
