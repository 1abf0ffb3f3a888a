//! `forefront proxy`: one proxy node, from its configuration file to its last request.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::proxy_listeners::{Latches, Listeners};
use super::proxy_status::StatusSource;
use super::proxy_upstreams::Upstreams;
use crate::admin::{self, ActionError, Actions, Admin, PurgeRequest, Token};
use crate::cache::Cache;
use crate::config;
use crate::config::proxy::{LogFormat, Settings};
use crate::drain::Drain;
use crate::listener::tcp::{self, ConnectionLimits};
use crate::listener::tls::Tls;
use crate::proxy::Proxy;
use crate::telemetry::access::{Target, Writer};
use crate::telemetry::{self, Log, LogConfig};
use crate::upstream;

/// How long the node waits for its cache to be warm before it gets ready without it: longer than the slow endpoint
/// takes, shorter than anybody waits for a start.
const WARM_PATIENCE: Duration = Duration::from_secs(10);
/// How often the certificates' files are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(5);
/// Descriptors beside those of clients: connections to origins, listeners, logs, probes, the admin's.
const DESCRIPTORS_SPARE: u64 = 2048;
/// What a node has open before its first client: runtimes, listeners, logs.
const DESCRIPTORS_BASE: u64 = 32;

#[derive(clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs a node until it is told to stop and has drained.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let settings =
        config::proxy::load(&args.config).map_err(|problems| Failure::Config(anyhow!("{problems}")))?;
    let log = telemetry::init(&log_config(&settings)).context("cannot set up logging")?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let ended = control.block_on(Node::start_and_serve(args.config, settings, &log));
    control.shutdown_timeout(Duration::from_millis(500));
    ended.map(|()| ExitCode::SUCCESS).map_err(Failure::Failed)
}

fn log_config(settings: &Settings) -> LogConfig {
    let format = match settings.log.format {
        LogFormat::Json => telemetry::Format::Json,
        LogFormat::Text => telemetry::Format::Text,
    };
    let filter = config::environment::log_filter().unwrap_or_else(|| settings.log.level.as_str().to_owned());
    LogConfig { format, filter }
}

/// A running node, as its control runtime sees it.
struct Node {
    file: PathBuf,
    proxy: Arc<Proxy>,
    upstreams: Arc<Upstreams>,
    limits: Arc<ConnectionLimits>,
    tls: Option<Arc<Tls>>,
    settings: Settings,
    drain: Drain,
    closing: CancellationToken,
    /// Ends what must outlive the drain: the health listener, admin, probers.
    stopped: CancellationToken,
}

impl Node {
    async fn start_and_serve(file: PathBuf, settings: Settings, log: &Log) -> anyhow::Result<()> {
        let registry = telemetry::registry()?;
        log.register(&registry)?;
        let access = match settings.proxy.access_log.sample > 0.0 {
            true => Some(Writer::open(&Target::Stdout, &registry)?),
            false => None,
        };
        let (drain, closing, stopped) = (Drain::new(), CancellationToken::new(), CancellationToken::new());
        let upstreams =
            Upstreams::start(&settings.upstreams, upstream::Metrics::register(&registry)?, stopped.clone())?;
        let cache = Cache::new(settings.cache.clone(), &registry)?;
        let proxy = Proxy::new(
            &settings.proxy,
            &settings.cache,
            &upstreams.pools(),
            cache.clone(),
            &registry,
            drain.clone(),
            closing.clone(),
            access.clone(),
        )?;
        let connections = &settings.proxy.limits;
        let open_max = connections_possible(connections.connections);
        let limits = ConnectionLimits::new(open_max, connections.connections_per_client, &registry)?;
        let listeners = Listeners::bind(&settings.proxy, &settings.state_dir, &registry)?;
        let doors = listeners.closed()?;
        let handed_over = listeners.handed_over();
        let tls = listeners.tls();
        let opened = CancellationToken::new();
        let latches = Latches { opened: opened.clone(), closing: closing.clone(), stopped: stopped.clone() };
        let cores = listeners.start(&proxy, &limits, &latches)?;

        let mut node = Node { file, proxy, upstreams, limits, tls, settings, drain, closing, stopped };
        node.watch_certificates();
        cache.spawn_refresher(&tokio::runtime::Handle::current(), node.stopped.clone());
        node.open_doors(&registry, &cache).await?;
        let ready = node.drain.clone();
        let warming = node.proxy.clone();
        let name = node.settings.proxy.node.clone();
        if handed_over {
            // The others too: what does not listen cannot be waited upon.
            for door in &doors {
                tcp::open(door)?;
            }
            opened.cancel();
        }
        // Clients come in once the cache is warm: a node that is restarted so fast that its balancer did not notice would else
        // make them wait for the slow endpoint. Refused meanwhile, they are sent to the other node.
        tokio::spawn(async move {
            tokio::select! {
                () = warming.warm(WARM_PATIENCE) => {}
                () = ready.begun() => return,
            }
            for door in doors {
                if let Err(error) = tcp::open(&door) {
                    tracing::error!(%error, "cannot listen");
                }
            }
            opened.cancel();
            ready.set_ready(true);
            tracing::info!(node = name, "ready");
        });
        node.obey_signals().await?;
        let mut again = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let [terminate, interrupt] = &mut again;
        tokio::select! {
            () = node.leave() => {}
            // Whoever says it twice does not want to wait.
            _ = terminate.recv() => tracing::warn!("told twice; what is in flight is cut"),
            _ = interrupt.recv() => tracing::warn!("told twice; what is in flight is cut"),
        }
        node.closing.cancel();
        node.stopped.cancel();
        for core in cores {
            let _ = core.join();
        }
        if let Some(access) = access {
            access.flush(Duration::from_secs(1));
        }
        Ok(())
    }

    /// Takes certificates over when their files change, as tools that renew them do.
    fn watch_certificates(&self) {
        let Some(tls) = self.tls.clone() else { return };
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(CERTIFICATES_EVERY);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    _ = tick.tick() => {}
                }
                let looking = tls.clone();
                // Files may be slow, and this runtime answers probes.
                let looked = tokio::task::spawn_blocking(move || looking.refresh()).await;
                match looked.ok().flatten() {
                    None => {}
                    Some(Ok(())) => {
                        tracing::info!("certificates changed; the new ones are shown from now on")
                    }
                    Some(Err(error)) => {
                        tracing::error!(%error, "certificates changed and cannot be used; the old ones are kept");
                    }
                }
            }
        });
    }

    /// Opens the health and admin listeners.
    async fn open_doors(&self, registry: &Registry, cache: &Arc<Cache>) -> anyhow::Result<()> {
        let mut health = Vec::new();
        for address in &self.settings.health.listen {
            health.push(listen("health", *address)?);
        }
        let address = self.settings.admin.listen;
        let private = listen("admin", address)?;
        let token = self.settings.admin.token_file.as_deref().map(Token::from_file).transpose()?;
        if !address.ip().is_loopback() && token.is_none() {
            tracing::warn!(%address, "the admin listener is not on loopback and has no token: it will refuse changes");
        }
        tokio::spawn(admin::serve_health(health, self.drain.clone(), self.stopped.clone()));
        let source = StatusSource::start(
            self.settings.proxy.node.clone(),
            self.settings.cache.capacity_bytes,
            self.proxy.clone(),
            self.upstreams.clone(),
            cache.clone(),
            self.limits.clone(),
            self.drain.clone(),
            registry.clone(),
            self.stopped.clone(),
        );
        let admin = Admin {
            registry: registry.clone(),
            status: Arc::new(move || source.status()),
            actions: self.actions(),
            token,
        };
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            if let Err(error) = admin::serve(vec![private], admin, stopped).await {
                tracing::error!(%error, "the admin listener ended");
            }
        });
        Ok(())
    }

    fn actions(&self) -> Actions {
        let drain = self.drain.clone();
        let proxy = self.proxy.clone();
        let upstreams = self.upstreams.clone();
        Actions {
            drain: Some(Box::new(move || drain.begin())),
            purge: Some(Box::new(move |request| match request {
                PurgeRequest::Path(path) => proxy.purge_path(&path),
                PurgeRequest::Prefix(prefix) => proxy.purge_prefix(&prefix),
            })),
            endpoint: Some(Box::new(move |upstream, address, drain| {
                let pools = upstreams.pools();
                let pool = pools.get(upstream).ok_or(ActionError::UnknownUpstream)?;
                let known = if drain { pool.drain(address) } else { pool.undrain(address) };
                if known { Ok(()) } else { Err(ActionError::UnknownEndpoint) }
            })),
        }
    }

    /// Waits until the node is to leave; reloads on SIGHUP meanwhile.
    async fn obey_signals(&mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let drain = self.drain.clone();
        let begun = drain.begun();
        tokio::pin!(begun);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = &mut begun => return Ok(()),
                _ = hangup.recv() => self.reload(),
            }
        }
    }

    /// Takes over routes, upstreams and limits of the file. A file with a problem changes nothing.
    fn reload(&mut self) {
        match self.try_reload() {
            Ok(()) => tracing::info!(file = %self.file.display(), "configuration reloaded"),
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "configuration not reloaded; nothing changed")
            }
        }
    }

    fn try_reload(&mut self) -> anyhow::Result<()> {
        let mut settings = config::proxy::load(&self.file).map_err(|problems| anyhow!("{problems}"))?;
        // All that may fail comes before anything changes; the routes, last of it, change as a whole or not.
        let change = self.upstreams.prepare(&settings.upstreams)?;
        if let (Some(tls), Some(config)) = (&self.tls, &settings.proxy.tls) {
            tls.reload(config)?;
        }
        self.proxy.reload(&settings.proxy, &change.pools)?;
        self.upstreams.apply(change);
        let limits = &settings.proxy.limits;
        self.limits.set_max(connections_possible(limits.connections), limits.connections_per_client);
        let running = &self.settings.proxy;
        let fixed = |config: &crate::proxy::Config| {
            let listen = (config.listen_http.clone(), config.listen_https.clone(), config.http3);
            (listen, config.threads, config.tls.is_some())
        };
        if fixed(&settings.proxy) != fixed(running) {
            tracing::warn!(
                http = ?running.listen_http,
                https = ?running.listen_https,
                http3 = running.http3,
                threads = running.threads,
                "the addresses of `[listen]`, `http3` and `node.threads` change only with a restart"
            );
        }
        // What cannot change stays on record as it runs, for the next comparison.
        settings.proxy.listen_http.clone_from(&running.listen_http);
        settings.proxy.listen_https.clone_from(&running.listen_https);
        settings.proxy.http3 = running.http3;
        settings.proxy.threads = running.threads;
        self.settings = settings;
        Ok(())
    }

    /// `/ready` fails at once, listeners close after the delay, what is in flight has the grace period.
    async fn leave(&self) {
        let drain = &self.settings.proxy.drain;
        self.drain.begin();
        tracing::info!(delay = ?drain.delay, grace = ?drain.grace, in_flight = self.drain.in_flight(), "draining");
        tokio::time::sleep(drain.delay).await;
        self.closing.cancel();
        let idle = async {
            // Connections close by themselves once their last answers are with their clients. Until then one more
            // request may come on them, sent before its client read of the end.
            loop {
                self.drain.idle().await;
                if self.limits.open() == 0 && self.drain.in_flight() == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(drain.grace, idle).await.is_err() {
            tracing::warn!(in_flight = self.drain.in_flight(), "the grace period is over; requests are cut");
        }
        self.stopped.cancel();
        tracing::info!("drained");
    }
}

/// Opens a listener of the control runtime; `name` tells in the log what it is for.
fn listen(name: &'static str, address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    let cannot = || format!("cannot listen on {address}");
    if address.port() != 0 {
        tcp::is_free(address).with_context(cannot)?;
    }
    let listener = tcp::bind(address).with_context(cannot)?;
    tcp::open(&listener).with_context(cannot)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tracing::info!(listener = name, address = %listener.local_addr()?, "listening");
    Ok(listener)
}

/// Raises the limit on open descriptors to what the configured connections need. How many connections there may be, so that
/// descriptors are left for the way to the origins: at most `connections`.
fn connections_possible(connections: usize) -> usize {
    let wanted = 2 * connections as u64 + DESCRIPTORS_SPARE;
    let possible = connections_within(connections, raise_descriptors(wanted));
    if possible < connections {
        tracing::warn!(
            configured = connections,
            possible,
            "too few open files are allowed for `limits.connections`; raise it (`ulimit -n`, LimitNOFILE of a unit) to twice as many and 2,048 more, or lower `connections`"
        );
    }
    possible
}

/// Every client's connection may need one to an origin; a part is kept for all else.
fn connections_within(configured: usize, descriptors: u64) -> usize {
    let spare = DESCRIPTORS_SPARE.min((descriptors / 4).max(DESCRIPTORS_BASE));
    let possible = usize::try_from(descriptors.saturating_sub(spare) / 2).unwrap_or(usize::MAX);
    configured.min(possible.max(1))
}

/// Raises the limit on open descriptors as far as `wanted` or as it goes; what it is then.
fn raise_descriptors(wanted: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    if soft >= wanted {
        return soft;
    }
    // Root may raise the hard limit too; others get as far as it goes.
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
        return wanted;
    }
    let reached = wanted.min(hard);
    match setrlimit(Resource::RLIMIT_NOFILE, reached, hard) {
        Ok(()) => reached,
        Err(_) => soft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_the_way_to_the_origins() {
        for (configured, descriptors, expected) in [
            (10_000, 1_048_576, 10_000),
            (10_000, 22_048, 10_000),
            (10_000, 20_000, 8_976),
            (10_000, 1024, 384),
            (10_000, 60, 14),
            (10, 60, 10),
            (10, 1, 1),
        ] {
            assert_eq!(
                connections_within(configured, descriptors),
                expected,
                "{configured} of {descriptors}"
            );
        }
    }
}
