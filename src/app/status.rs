//! `forefront status`: asks a running process and prints tables.

mod cluster;
mod table;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

use super::{Failure, reach};
use crate::admin::status::{Cache, Process, Route, Status, Upstream};
use crate::billing::api::Token;
use crate::config::{self, Kind, Problems};
use table::{Table, none, render_all};

/// For the whole exchange: whoever asks wants to know soon that nobody answers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Thousands of routes or shards fit.
const BODY_BYTES_MAX: usize = 4 << 20;

/// What `forefront status` takes.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Address of the admin listener: of a proxy (9101; in `dev` 9101 and 9102) or of the keeper (9103)
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9101", conflicts_with = "config")]
    admin: String,
    /// Configuration file of the process, which says where to ask; of a billing node the cluster is shown
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Who is asked, and for what.
#[derive(Debug)]
enum Asked {
    Admin(Uri),
    Cluster { url: Uri, token: Option<Token> },
}

/// Prints the status of a running process.
///
/// # Errors
/// [`Failure::Usage`] when the URL cannot be one of an admin listener, [`Failure::Config`] when the file cannot be
/// used, [`Failure::Failed`] when there is no answer within 5 s or not one to be understood.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let asked = match &args.config {
        Some(file) => asked_by(file)?,
        None => Asked::Admin(status_url(&args.admin).map_err(Failure::Usage)?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let text = runtime.block_on(async {
        let (Asked::Admin(url) | Asked::Cluster { url, .. }) = &asked;
        tokio::time::timeout(TIMEOUT, tables(&asked))
            .await
            .with_context(|| format!("{url} did not answer within {} s", TIMEOUT.as_secs()))?
            .with_context(|| format!("cannot get {url}; is the process running, and is this its address?"))
    })?;
    // A reader that has seen enough (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// Whom the process of this configuration answers.
fn asked_by(file: &Path) -> Result<Asked, Failure> {
    let bad = |problems: Problems| Failure::Config(anyhow!("{problems}"));
    let admin = match config::kind(file).map_err(bad)? {
        Kind::Proxy => Some(config::proxy::load(file).map_err(bad)?.admin.listen),
        Kind::Supervise => config::supervise::load(file).map_err(bad)?.admin_listen,
        Kind::Billing => {
            let listen = config::billing::load(file).map_err(bad)?.listen;
            let token = listen.token_file.as_deref().map(Token::from_file).transpose();
            let token = token.map_err(anyhow::Error::from)?;
            let first = listen.http.first().copied().context("it listens nowhere")?;
            return Ok(Asked::Cluster { url: url_of(first, "/billing/v1/cluster")?, token });
        }
    };
    let off =
        || Failure::Usage(anyhow!("{}: `admin.listen` is \"off\", so nobody can be asked", file.display()));
    Ok(Asked::Admin(url_of(admin.ok_or_else(off)?, "/status")?))
}

fn url_of(address: SocketAddr, path: &str) -> anyhow::Result<Uri> {
    Ok(format!("http://{}{path}", reach(address)).parse()?)
}

/// The URL of the status, from what was given: with or without a scheme, with or without a path.
fn status_url(admin: &str) -> anyhow::Result<Uri> {
    let with_scheme = if admin.contains("://") { admin.to_owned() } else { format!("http://{admin}") };
    let uri: Uri = with_scheme.parse().with_context(|| format!("--admin {admin:?} is not a URL"))?;
    if uri.scheme_str() != Some("http") {
        bail!("--admin {admin:?}: the admin listener speaks plain http");
    }
    let authority = uri.authority().with_context(|| format!("--admin {admin:?} names no host"))?;
    let path = uri.path().trim_end_matches('/');
    let path = path.strip_suffix("/status").unwrap_or(path);
    format!("http://{authority}{path}/status")
        .parse()
        .with_context(|| format!("--admin {admin:?} is not a URL"))
}

async fn tables(asked: &Asked) -> anyhow::Result<String> {
    match asked {
        Asked::Admin(url) => Ok(render(&fetch(url, None).await?)),
        Asked::Cluster { url, token } => {
            Ok(cluster::render(&fetch(url, token.as_ref().map(Token::bearer)).await?))
        }
    }
}

async fn fetch<T: DeserializeOwned>(url: &Uri, authorization: Option<HeaderValue>) -> anyhow::Result<T> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = url.clone();
    if let Some(authorization) = authorization {
        request.headers_mut().insert(AUTHORIZATION, authorization);
    }
    let answer = client.request(request).await?;
    if !answer.status().is_success() {
        bail!("it answered {}", answer.status());
    }
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow!(error)).context("the answer was cut off or too long")?;
    serde_json::from_slice(&body.to_bytes()).context("the answer is not a status")
}

fn render(status: &Status) -> String {
    let Status { node, role, version, state, uptime_seconds, connections, in_flight, .. } = status;
    let mut table = Table::new(&["NODE", "ROLE", "STATE", "UP", ">CONNECTIONS", ">IN FLIGHT", "VERSION"]);
    table.row([
        node.clone(),
        role.clone(),
        state.clone(),
        span(*uptime_seconds),
        connections.to_string(),
        in_flight.to_string(),
        version.clone(),
    ]);
    render_all([
        table,
        endpoints(&status.upstreams),
        cache(status.cache.as_ref()),
        routes(&status.routes),
        processes(&status.processes),
    ])
}

fn endpoints(upstreams: &[Upstream]) -> Table {
    let heads = ["UPSTREAM", "ENDPOINT", "STATE", "FOR", ">IN FLIGHT", ">REQUESTS", ">FAILURES"];
    let mut table = Table::new(&heads);
    for upstream in upstreams {
        for endpoint in &upstream.endpoints {
            table.row([
                upstream.name.clone(),
                endpoint.address.clone(),
                endpoint.state.clone(),
                span(endpoint.since_seconds),
                endpoint.in_flight.to_string(),
                endpoint.requests.to_string(),
                endpoint.failures.to_string(),
            ]);
        }
    }
    table
}

fn cache(cache: Option<&Cache>) -> Table {
    let heads = [">CACHE ENTRIES", ">SIZE", ">CAPACITY", ">HITS", ">MISSES", ">HIT RATIO", ">LAST AGE"];
    let mut table = Table::new(&heads);
    if let Some(cache) = cache {
        table.row([
            cache.entries.to_string(),
            size(cache.bytes),
            size(cache.capacity_bytes),
            cache.hits.to_string(),
            cache.misses.to_string(),
            cache.hit_ratio().map_or_else(none, |ratio| format!("{:.1} %", ratio * 100.0)),
            cache.last_age_seconds.map_or_else(none, |age| format!("{age:.1} s")),
        ]);
    }
    table
}

fn routes(routes: &[Route]) -> Table {
    let heads =
        ["ROUTE", ">REQUESTS/S", ">ERRORS/S", ">REQUESTS", ">ERRORS", ">IN FLIGHT", ">P50 MS", ">P90 MS"];
    let mut table = Table::new(&heads);
    let millis = |seconds: Option<f64>| seconds.map_or_else(none, |seconds| format!("{:.1}", seconds * 1e3));
    for route in routes {
        table.row([
            route.name.clone(),
            format!("{:.1}", route.requests_per_second),
            format!("{:.1}", route.errors_per_second),
            route.requests.to_string(),
            route.errors.to_string(),
            route.in_flight.to_string(),
            millis(route.p50_seconds),
            millis(route.p90_seconds),
        ]);
    }
    table
}

fn processes(processes: &[Process]) -> Table {
    let mut table = Table::new(&["PROCESS", "STATE", "FOR", ">PID", ">RESTARTS", "ENDED LAST BY"]);
    for process in processes {
        table.row([
            process.name.clone(),
            process.state.clone(),
            span(process.since_seconds),
            process.pid.map_or_else(none, |pid| pid.to_string()),
            process.restarts.to_string(),
            process.last_exit.clone().unwrap_or_else(none),
        ]);
    }
    table
}

/// Two units at most: what matters is whether it was just now.
fn span(seconds: f64) -> String {
    let total = seconds.max(0.0) as u64;
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3_600 % 24, total / 60 % 60, total % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fixture() -> serde_json::Value {
        json!({
            "node": "a", "role": "proxy", "version": "0.1.0", "state": "ready", "uptime_seconds": 3725.5,
            "connections": 12, "in_flight": 3,
            "upstreams": [{ "name": "bingo", "endpoints": [
                { "address": "127.0.0.1:27352", "state": "up", "in_flight": 2, "requests": 12345, "failures": 0,
                  "since_seconds": 61.0 },
                { "address": "127.0.0.1:27353", "state": "down", "in_flight": 0, "requests": 9, "failures": 4,
                  "since_seconds": 5.2 },
            ]}],
            "cache": { "entries": 1, "bytes": 2048, "capacity_bytes": 268435456u64, "hits": 75, "misses": 25,
                       "last_age_seconds": 12.34 },
            "routes": [
                { "name": "long_dummy", "requests": 100, "errors": 0, "requests_per_second": 30.04,
                  "errors_per_second": 0.0, "in_flight": 0, "p50_seconds": 0.0004, "p90_seconds": 0.0011 },
                { "name": "rest", "from_a_newer_version": true },
            ],
        })
    }

    #[test]
    fn the_tables_are_aligned() {
        let status: Status = serde_json::from_value(fixture()).unwrap();
        let expected = "\
NODE  ROLE   STATE  UP     CONNECTIONS  IN FLIGHT  VERSION
a     proxy  ready  1h 2m           12          3  0.1.0

UPSTREAM  ENDPOINT         STATE  FOR    IN FLIGHT  REQUESTS  FAILURES
bingo     127.0.0.1:27352  up     1m 1s          2     12345         0
bingo     127.0.0.1:27353  down   5s             0         9         4

CACHE ENTRIES     SIZE   CAPACITY  HITS  MISSES  HIT RATIO  LAST AGE
            1  2.0 KiB  256.0 MiB    75      25     75.0 %    12.3 s

ROUTE       REQUESTS/S  ERRORS/S  REQUESTS  ERRORS  IN FLIGHT  P50 MS  P90 MS
long_dummy        30.0       0.0       100       0          0     0.4     1.1
rest               0.0       0.0         0       0          0       -       -
";
        assert_eq!(render(&status), expected);
    }

    #[test]
    fn the_keeper_shows_processes() {
        let status = Status {
            role: "supervise".into(),
            processes: vec![Process {
                name: "bingo\u{1b}[31m".into(),
                state: "running".into(),
                pid: Some(7),
                restarts: 2,
                last_exit: Some("signal 9".into()),
                ..Process::default()
            }],
            ..Status::default()
        };
        let text = render(&status);
        assert!(text.ends_with("bingo?[31m  running  0s     7         2  signal 9\n"), "{text}");
        assert!(!text.contains("UPSTREAM") && !text.contains("CACHE"));
    }

    #[test]
    fn urls_are_taken_as_people_write_them() {
        for admin in ["http://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/status"]
        {
            assert_eq!(status_url(admin).unwrap(), "http://127.0.0.1:1/status", "{admin}");
        }
        assert_eq!(status_url("[::1]:9101").unwrap(), "http://[::1]:9101/status");
        for admin in ["", "https://127.0.0.1:1", "unix:/x y", "http://"] {
            assert!(status_url(admin).is_err(), "{admin}");
        }
    }

    #[test]
    fn a_configuration_tells_whom_to_ask() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        let asked = |text: &str| {
            std::fs::write(&file, text).unwrap();
            asked_by(&file)
        };
        let url = |text: &str| match asked(text) {
            Ok(Asked::Admin(url) | Asked::Cluster { url, token: None }) => url.to_string(),
            other => panic!("{other:?}"),
        };
        let proxy = include_str!("../../config/proxy.toml");
        assert_eq!(url(proxy), "http://127.0.0.1:9101/status");
        let keeper = "[[process]]\nname = 'a'\ncommand = ['true']\n[admin]\nlisten = ";
        assert_eq!(
            url(&format!("{keeper}'[::]:7'")),
            "http://127.0.0.1:7/status",
            "what listens everywhere is here"
        );
        assert_eq!(url("[listen]\nhttp = ['[::1]:7', '127.0.0.1:8']"), "http://[::1]:7/billing/v1/cluster");

        let token = directory.path().join("token");
        std::fs::write(&token, "sixteen-or-longer\n").unwrap();
        let with_token = format!("[listen]\ntoken_file = {token:?}");
        let Ok(Asked::Cluster { token: Some(token), .. }) = asked(&with_token) else {
            panic!("it has a token")
        };
        assert_eq!(token.bearer(), "Bearer sixteen-or-longer");

        assert!(matches!(asked(&format!("{keeper}'off'")), Err(Failure::Usage(_))));
        assert!(matches!(asked("[journal]\nengin = 'x'"), Err(Failure::Config(_))));
        assert!(matches!(asked("[listen]\ntoken_file = '/nonexistent/token'"), Err(Failure::Failed(_))));
    }

    async fn serve_once(answer: &'static str) -> Uri {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = status_url(&listener.local_addr().unwrap().to_string()).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        url
    }

    #[tokio::test]
    async fn answers_are_read_and_bad_ones_told() {
        let url = serve_once("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"node\":\"b\"}").await;
        assert_eq!(fetch::<Status>(&url, None).await.unwrap().node, "b");
        for (answer, told) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[7", "not a status"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "cut off"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n{", "too long"),
            ("SSH-2.0-x\r\n", ""),
        ] {
            let error = fetch::<Status>(&serve_once(answer).await, None).await.unwrap_err();
            assert!(format!("{error:#}").contains(told), "{error:#}");
        }
    }
}
