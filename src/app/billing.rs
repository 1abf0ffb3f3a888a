//! `forefront billing`: one billing node, from its configuration file to its last answer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::billing::api::{Api, Desk, Gate, Limits, Peers, Strangers, Token};
use crate::billing::iproto::{Iproto, Users};
use crate::billing::journal::{Engine, Journal};
use crate::billing::notifier::{self, Secret, Webhook};
use crate::billing::shard::{Neighbours, Owners, Router, WallClock};
use crate::config;
use crate::config::billing::{Notifier, Settings};
use crate::config::proxy::{LogFormat, LogLevel};
use crate::drain::Drain;
use crate::listener::tcp;
use crate::telemetry::{self, Log, LogConfig};

/// For the other nodes to be told, and to take what they are given.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// For nodes that nobody knows to take what is left to them: each looks twice a second. If there is none, this is lost.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(2);
/// For requests in flight, once no more come: what the door itself waits for an answer, and a little.
const GRACE: Duration = Duration::from_secs(25);
/// For the journal to take the last batch and the leases.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// More than this is not a key.
const SECRET_BYTES_MAX: usize = 4096;

#[derive(clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs a node until SIGTERM or SIGINT; then its shards are handed over, what is in flight is answered, and the exit code is 0.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let settings =
        config::billing::load(&args.config).map_err(|problems| Failure::Config(anyhow!("{problems}")))?;
    let log = telemetry::init(&log_config(&settings)).context("cannot set up logging")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(start_and_serve(settings, &log));
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended.map(|()| ExitCode::SUCCESS).map_err(Failure::Failed)
}

fn log_config(settings: &Settings) -> LogConfig {
    let format = match settings.log.format {
        LogFormat::Json => telemetry::Format::Json,
        LogFormat::Text => telemetry::Format::Text,
    };
    // The embedded journal's store tells each of its files at the level of information.
    let level = match settings.log.level {
        LogLevel::Info => "info,fjall=warn,lsm_tree=warn",
        level => level.as_str(),
    };
    LogConfig { format, filter: config::environment::log_filter().unwrap_or_else(|| level.to_owned()) }
}

async fn start_and_serve(settings: Settings, log: &Log) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let registry = telemetry::registry()?;
    log.register(&registry)?;
    raise_descriptors();
    let notifier = notifier_config(&settings.notifier)?;
    let token = |file: &Option<PathBuf>| file.as_deref().map(Token::from_file).transpose();
    let gate = Gate { client: token(&settings.listen.token_file)?, peer: token(&settings.peer_token_file)? };
    let users =
        settings.listen.iproto_users.as_deref().map(Users::from_file).transpose()?.unwrap_or_default();
    warn_of_gaps(&settings);
    // Taken before anything is owned, and opened once something is.
    let bind_all =
        |addresses: &[SocketAddr]| addresses.iter().copied().map(bind).collect::<anyhow::Result<Vec<_>>>();
    let (http, iproto) = (bind_all(&settings.listen.http)?, bind_all(&settings.listen.iproto)?);

    let journal = Journal::open(&settings.journal).await.context("cannot open the journal")?;
    let (closing, drain) = (CancellationToken::new(), Drain::new());
    let node = settings.shards.node.clone();
    let wall = WallClock::system();
    let strangers = strangers(node.name.clone(), &journal, closing.clone()).await?;
    let peers = Peers::new(gate.peer.as_ref()).wary_of(strangers);
    let neighbours = gate.peer.as_ref().map(|_| Arc::new(peers.clone()) as Arc<dyn Neighbours>);
    let router =
        Router::start(settings.shards, journal, wall, &registry, notifier, neighbours, closing.clone())
            .await?;
    let desk = Desk::new(router.clone(), peers);
    let binary = Iproto::new(desk.clone(), users, drain.clone(), &registry)?;
    let api = Api::new(desk, gate, Limits::default(), drain.clone(), registry)?;
    let open_all =
        |doors: Vec<std::net::TcpListener>| doors.into_iter().map(open).collect::<anyhow::Result<Vec<_>>>();
    let (http, iproto) = (open_all(http)?, open_all(iproto)?);
    let doors_close = CancellationToken::new();
    let serving = tokio::spawn({
        let closing = doors_close.clone();
        async move { tokio::join!(api.serve(http, closing.clone()), binary.serve(iproto, closing)) }
    });
    tokio::spawn({
        let (router, drain) = (router.clone(), drain.clone());
        async move {
            router.settled().await;
            drain.set_ready(true);
            tracing::info!(node = node.name, advertise = node.advertise, "ready");
        }
    });

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => tracing::warn!("billing reads its configuration at its start only; restart it"),
        }
    }
    let shared =
        settings.peer_token_file.is_some() && matches!(settings.journal.engine, Engine::Postgres { .. });
    let leave = async {
        // `/ping` fails from now on, so that the front turns to the other nodes; whoever comes all the same is served, by
        // them in the end.
        drain.begin();
        router.rest();
        tracing::info!(in_flight = drain.in_flight(), "draining");
        if tokio::time::timeout(HAND_OVER_TIMEOUT, hand_over(&router, shared)).await.is_err() {
            tracing::warn!(
                "the other nodes did not take every shard in time; they will at the end of the leases"
            );
        }
        doors_close.cancel();
        if tokio::time::timeout(GRACE, serving).await.is_err() {
            tracing::warn!(in_flight = drain.in_flight(), "the grace period is over; requests are cut");
        }
        closing.cancel();
        if tokio::time::timeout(STOP_TIMEOUT, router.stopped()).await.is_err() {
            tracing::warn!("the journal did not take the leases back in time; they will run out");
        }
        tracing::info!("drained");
    };
    tokio::select! {
        () = leave => {}
        // Whoever says it twice does not want to wait.
        _ = terminate.recv() => tracing::warn!("told twice; what is in flight is cut"),
        _ = interrupt.recv() => tracing::warn!("told twice; what is in flight is cut"),
    }
    Ok(())
}

/// Those that this node asks nothing as long as they may be nodes of another journal, of which this one is a copy.
async fn strangers(own: String, journal: &Journal, closing: CancellationToken) -> anyhow::Result<Strangers> {
    let journal = journal.clone();
    let leases = async move || journal.leases().await;
    let (strangers, looking) =
        Strangers::look(own, leases, closing).await.context("cannot read the leases")?;
    tokio::spawn(looking);
    Ok(strangers)
}

/// Gives this node's shards to others that own some. Nodes that own none are not known: if there are no others, but may be such
/// (`shared`), shards are left to whoever takes them, while this node forwards.
async fn hand_over(router: &Router, shared: bool) {
    let Owners { node, shards } = router.owners().await;
    let others: BTreeSet<&str> = shards
        .iter()
        .map(|shard| shard.node.as_str())
        .filter(|name| !name.is_empty() && *name != node)
        .collect();
    let own = shards.iter().filter(|shard| shard.node == node);
    if others.is_empty() {
        if shared {
            leave_to_anybody(router, own.map(|shard| shard.shard)).await;
        }
        return;
    }
    for (shard, to) in own.zip(others.iter().copied().cycle()) {
        match router.hand_over(shard.shard, to).await {
            Ok(()) => tracing::info!(shard = shard.shard, to, "a shard is handed over"),
            Err(error) => tracing::warn!(shard = shard.shard, to, %error, "a shard could not be handed over"),
        }
    }
    // Until they are taken, so that who comes here meanwhile can be forwarded.
    router.settled().await;
}

async fn leave_to_anybody(router: &Router, shards: impl Iterator<Item = u32>) {
    for shard in shards {
        if let Err(error) = router.vacate(shard).await {
            tracing::warn!(shard, %error, "a shard could not be left to the other nodes yet");
        }
    }
    match tokio::time::timeout(TAKEN_TIMEOUT, router.settled()).await {
        Ok(()) => tracing::info!("other nodes took the shards"),
        Err(_) => tracing::info!("no other node took the shards"),
    }
}

fn warn_of_gaps(settings: &Settings) {
    let Settings { peer_token_file, listen, journal, notifier, .. } = settings;
    if peer_token_file.is_none() && matches!(journal.engine, Engine::Postgres { .. }) {
        tracing::warn!(
            "without `node.peer_token_file` requests for shards of other nodes are refused, not forwarded"
        );
    }
    let beyond = |addresses: &[SocketAddr]| addresses.iter().any(|address| !address.ip().is_loopback());
    if listen.token_file.is_none() && beyond(&listen.http) {
        tracing::warn!(
            "billing listens beyond loopback without `listen.token_file`: whoever reaches it may do everything"
        );
    }
    if beyond(&listen.iproto) {
        tracing::warn!(
            "IPROTO is not encrypted, and is listened for beyond loopback; keep it on a private network"
        );
        if listen.iproto_users.is_none() {
            tracing::warn!("without `listen.iproto_users` whoever reaches IPROTO may do everything");
        }
    }
    if notifier.url.is_none() {
        tracing::warn!("without `notifier.url` nobody is told when an account has no money left");
    }
}

fn notifier_config(settings: &Notifier) -> anyhow::Result<notifier::Config> {
    let Notifier { url, secret_file, ca_file, timeout, per_host } = settings;
    Ok(notifier::Config {
        webhook: url.as_deref().map(Webhook::parse).transpose()?,
        secret: secret_file.as_deref().map(secret).transpose()?,
        ca_file: ca_file.clone(),
        timeout: *timeout,
        per_host: *per_host,
        ..notifier::Config::default()
    })
}

/// The file's content without white space around it.
fn secret(file: &Path) -> anyhow::Result<Secret> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read the secret {}", file.display()))?;
    let bytes = bytes.trim_ascii();
    if bytes.is_empty() || bytes.len() > SECRET_BYTES_MAX {
        return Err(anyhow!("the secret {} must have 1 to {SECRET_BYTES_MAX} bytes", file.display()));
    }
    Ok(Secret::new(bytes))
}

/// An address that is this node's from now on; nobody is let in yet.
fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let cannot = || format!("cannot listen on {address}");
    if address.port() != 0 {
        tcp::is_free(address).with_context(cannot)?;
    }
    tcp::bind(address).with_context(cannot)
}

fn open(listener: std::net::TcpListener) -> anyhow::Result<TcpListener> {
    tcp::open(&listener).context("cannot listen")?;
    let listener = TcpListener::from_std(listener)?;
    tracing::info!(listener = "billing", address = %listener.local_addr()?, "listening");
    Ok(listener)
}

/// As far as it goes; the journal and the connections of clients need them.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "the limit on open files could not be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::{journal, shard};

    /// Its shards are not its own yet, and there is nobody else to wait for.
    #[tokio::test]
    async fn a_node_alone_leaves_at_once_also_while_it_starts() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::Embedded { path: directory.path().to_owned() };
        let timeouts = journal::Timeouts::default();
        let journal = Journal::open(&journal::Config { engine, shards: 2, timeouts }).await.unwrap();
        let node = journal::Node { name: "a".to_owned(), advertise: "a:8200".to_owned() };
        let (registry, closing) = (prometheus::Registry::new(), CancellationToken::new());
        let (config, wall) = (shard::Config::new(node, 2), WallClock::system());
        let none = notifier::Config::default();
        let router = Router::start(config, journal, wall, &registry, none, None, closing).await.unwrap();
        router.rest();
        // As long as it may take others; without them it is a moment.
        tokio::time::timeout(HAND_OVER_TIMEOUT, hand_over(&router, false)).await.unwrap();
    }

    #[test]
    fn secrets_are_read_without_the_end_of_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        assert!(secret(&file).is_err());
        std::fs::write(&file, " \n").unwrap();
        assert!(secret(&file).is_err());
        std::fs::write(&file, "abc\n").unwrap();
        assert_eq!(secret(&file).unwrap(), Secret::new(*b"abc"));
    }
}
