//! A proxy node with a configuration of the test's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::wire::{Answer, request};
use super::{PATIENCE, Process, Wire};

/// A running node.
pub struct Node {
    pub process: Process,
    /// IPv4.
    pub http: SocketAddr,
    /// IPv6.
    pub http6: SocketAddr,
    pub admin: SocketAddr,
    pub health: SocketAddr,
    /// TCP, and UDP where the test asked for HTTP/3. Unspecified where it asked for neither.
    pub https: SocketAddr,
    directory: TempDir,
}

/// What a test does not say itself. Ports are the system's choice; the log tells them.
const SECTIONS: [(&str, &str); 6] = [
    ("[node]", "name = \"bed\"\nthreads = 2\nstate_dir = \"DIRECTORY\""),
    ("[listen]", "http = [\"127.0.0.1:0\", \"[::1]:0\"]"),
    ("[admin]", "listen = \"127.0.0.1:0\""),
    ("[health]", "listen = [\"127.0.0.1:0\"]"),
    ("[log]", "access_sample = 0"),
    ("[drain]", "delay = \"0s\"\ngrace = \"5s\""),
];

/// A certificate of the node's own.
pub const SELF_SIGNED: &str = "self_signed = [\"localhost\"]\n";

/// Listeners for HTTPS and HTTP/3 too; `tls` are the keys of that section.
pub fn https(tls: &str) -> String {
    let listen = "http = [\"127.0.0.1:0\", \"[::1]:0\"]\nhttps = [\"127.0.0.1:0\"]\nhttp3 = true";
    format!("[listen]\n{listen}\n[tls]\n{tls}\n")
}

fn whole(config: &str, directory: &Path) -> String {
    let missing = SECTIONS.iter().filter(|(section, _)| !config.contains(section));
    let text = missing.map(|(section, keys)| format!("{section}\n{keys}\n")).collect::<String>() + config;
    text.replace("DIRECTORY", &directory.display().to_string())
}

/// An upstream without active health, so that only the test's requests reach the origin. `more` are further keys or
/// subtables.
pub fn upstream(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    format!("[[upstream]]\nname = \"origin\"\nendpoints = [{}]\n{more}\n", endpoints.join(", "))
}

/// A route to that upstream.
pub fn route(name: &str, path: &str, more: &str) -> String {
    format!("[[route]]\nname = \"{name}\"\npath = \"{path}\"\nupstream = \"origin\"\n{more}\n")
}

impl Node {
    /// Starts a node and waits until it is ready.
    pub async fn start(config: &str) -> Node {
        let node = Node::start_unready(config).await;
        super::until("the node is ready", async || {
            request(node.health, "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.status()
                == 200
        })
        .await;
        node
    }

    /// Starts a node and waits until it listens.
    pub async fn start_unready(config: &str) -> Node {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("proxy.toml");
        std::fs::write(&file, whole(config, directory.path())).expect("the directory is ours");
        let mut process = Process::start(["proxy".as_ref(), "--config".as_ref(), file.as_os_str()]);
        let begun = Instant::now();
        loop {
            let log = process.log();
            let of = |listener| addresses(&log, listener);
            let (http, https) = (of("http"), of("https"));
            let listens = http.len() == 2 && https.len() == usize::from(config.contains("https = ["));
            if let (true, [health], [admin]) = (listens, &of("health")[..], &of("admin")[..]) {
                let https = https.first().copied().unwrap_or(UNSPECIFIED);
                let (http, http6, health, admin) = (http[0], http[1], *health, *admin);
                return Node { process, http, http6, admin, health, https, directory };
            }
            assert!(!process.has_ended(), "the node ended: {}", process.log());
            assert!(begun.elapsed() < PATIENCE, "the node does not listen: {}", process.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn file(&self) -> PathBuf {
        self.directory.path().join("proxy.toml")
    }

    /// Writes another configuration; addresses stay as the system chose them.
    pub fn rewrite(&self, config: &str) {
        std::fs::write(self.file(), whole(config, self.directory.path())).expect("the directory is ours");
    }

    pub async fn connect(&self) -> Wire {
        Wire::connect(self.http).await
    }

    /// GET on a connection of its own.
    pub async fn get(&self, path: &str) -> Answer {
        super::get(self.http, path).await
    }

    /// POST to the admin listener, which must take it; its answer.
    pub async fn order(&self, path: &str, json: &str) -> serde_json::Value {
        let answer = self.try_order(path, json).await;
        assert!(answer.status() < 300, "POST {path}: {answer:?}");
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }

    pub async fn try_order(&self, path: &str, json: &str) -> Answer {
        let length = json.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        let head = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}");
        request(self.admin, &head).await
    }

    pub async fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&super::get(self.admin, "/status").await.body).expect("/status is JSON")
    }

    pub async fn metrics(&self) -> String {
        super::get(self.admin, "/metrics").await.text()
    }

    /// The value of the one sample whose name and labels begin and contain so; 0 when there is none.
    pub async fn sample(&self, name: &str, labels: &[&str]) -> f64 {
        let metrics = self.metrics().await;
        let lines = metrics.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|l| line.contains(l))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

const UNSPECIFIED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// The bound addresses of a kind of listener, in the order of their binding.
fn addresses(log: &str, listener: &str) -> Vec<SocketAddr> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|line| {
            line["message"] == "listening" || line["message"] == "bound; takes connections when ready"
        })
        .filter(|line| line["listener"] == listener)
        .filter_map(|line| line["address"].as_str()?.parse().ok())
        .collect()
}

/// `forefront check` on this text: exit code, and all it printed.
pub async fn check(config: &str) -> (i32, String) {
    run_on(config, &["check"]).await
}

/// `forefront proxy` on this text, which must not start: exit code, and all it printed.
pub async fn refused_by_proxy(config: &str) -> (i32, String) {
    run_on(config, &["proxy", "--config"]).await
}

async fn run_on(config: &str, arguments: &[&str]) -> (i32, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("proxy.toml");
    std::fs::write(&file, config).expect("the directory is ours");
    let file = file.to_str().expect("it is ASCII").to_owned();
    let mut process = Process::start(arguments.iter().copied().chain([&*file]));
    let status = process.ended().await;
    (status.code().unwrap_or(-1), process.stdout().join("\n") + &process.log())
}
