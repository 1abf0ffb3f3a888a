//! `forefront status`: asks the admin listener of a running process and prints tables.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::Failure;
use crate::admin::status::{Cache, Process, Route, Status, Upstream};

/// For the whole exchange: whoever asks wants to know soon that nobody answers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Thousands of routes fit.
const BODY_BYTES_MAX: usize = 4 << 20;

/// What `forefront status` takes.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Address of the admin listener: of a proxy (9101; in `dev` 9101 and 9102) or of the keeper (9103)
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9101")]
    admin: String,
}

/// Prints the status of the process behind `--admin`.
///
/// # Errors
/// [`Failure::Usage`] when the URL cannot be one of an admin listener, [`Failure::Failed`] when there is no
/// answer within 5 s or not one to be understood.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let url = status_url(&args.admin).map_err(Failure::Usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let status = runtime.block_on(async {
        tokio::time::timeout(TIMEOUT, fetch(&url))
            .await
            .with_context(|| format!("{url} did not answer within {} s", TIMEOUT.as_secs()))?
            .with_context(|| {
                format!("cannot get {url}; is the process running, and is this its admin address?")
            })
    })?;
    // A reader that has seen enough (`| head`) is no failure.
    let _ = std::io::stdout().write_all(render(&status).as_bytes());
    Ok(ExitCode::SUCCESS)
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

async fn fetch(url: &Uri) -> anyhow::Result<Status> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let answer = client.get(url.clone()).await?;
    if !answer.status().is_success() {
        bail!("it answered {}", answer.status());
    }
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("the answer was cut off or too long")?;
    serde_json::from_slice(&body.to_bytes()).context("the answer is not a status")
}

/// The tables, each after an empty line; those without rows are left out.
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
    let tables = [
        table,
        endpoints(&status.upstreams),
        cache(status.cache.as_ref()),
        routes(&status.routes),
        processes(&status.processes),
    ];
    let texts: Vec<String> =
        tables.iter().filter(|table| !table.rows.is_empty()).map(Table::render).collect();
    texts.join("\n")
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

fn none() -> String {
    "-".to_owned()
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

/// Columns as wide as their widest cell. A head that begins with `>` stands, as its cells do, to the right.
struct Table {
    heads: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(heads: &[&str]) -> Table {
        let heads = heads.iter().map(|head| match head.strip_prefix('>') {
            Some(head) => (head.to_owned(), true),
            None => ((*head).to_owned(), false),
        });
        Table { heads: heads.collect(), rows: Vec::new() }
    }

    /// Names come from the other side of a socket: what would steer a terminal is replaced.
    fn row<const N: usize>(&mut self, cells: [String; N]) {
        let printable = |cell: String| cell.replace(char::is_control, "?");
        self.rows.push(cells.into_iter().map(printable).collect());
    }

    fn render(&self) -> String {
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| head.clone()).collect();
        let mut text = String::new();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (column, (cell, (_, right))) in row.iter().zip(&self.heads).enumerate() {
                let cells = self.rows.iter().chain([&heads]).filter_map(|row| row.get(column));
                let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
                let gap = if column == 0 { "" } else { "  " };
                // Writing to a string cannot fail.
                let _ = match right {
                    true => write!(line, "{gap}{cell:>width$}"),
                    false => write!(line, "{gap}{cell:<width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
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
        assert_eq!(fetch(&url).await.unwrap().node, "b");
        for (answer, told) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[7", "not a status"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "cut off"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n{", "too long"),
            ("SSH-2.0-x\r\n", ""),
        ] {
            let error = fetch(&serve_once(answer).await).await.unwrap_err();
            assert!(format!("{error:#}").contains(told), "{error:#}");
        }
    }
}
