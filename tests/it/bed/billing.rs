//! A billing node with its embedded journal, and one who asks it over HTTP.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Answer, Ask, PATIENCE, Process, Wire};

/// A running node. Its journal is in the test's directory and outlives it.
pub struct Billing {
    pub process: Process,
    pub address: SocketAddr,
}

impl Billing {
    /// Starts a node and waits until it owns its shards. `more` are further sections.
    pub async fn start(directory: &Path, more: &str) -> Billing {
        let mut node = Billing::spawn(directory, more);
        let begun = Instant::now();
        while !node.process.log().contains("\"ready\"") {
            assert!(!node.process.has_ended(), "the node ended: {}", node.process.log());
            assert!(begun.elapsed() < PATIENCE, "the node is not ready: {}", node.process.log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        node
    }

    fn spawn(directory: &Path, more: &str) -> Billing {
        // Free now; whoever takes it before the node does makes the test fail, and not pass.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let state = directory.display();
        let text = format!("[node]\nstate_dir = \"{state}\"\n[listen]\nhttp = [\"{address}\"]\n{more}\n");
        let file = directory.join("billing.toml");
        std::fs::write(&file, text).expect("the directory is ours");
        let process = Process::start(["billing".as_ref(), "--config".as_ref(), file.as_os_str()]);
        Billing { process, address }
    }

    /// As a power failure would, but for what the disk holds back.
    pub fn kill(self) {
        self.process.signal(libc::SIGKILL);
    }

    /// One request on a connection of its own, which the node must answer.
    pub async fn ask(&self, ask: &Ask) -> Answer {
        let mut wire = Wire::connect(self.address).await;
        wire.send(ask.bytes()).await;
        wire.answer_to(ask.method).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.ask(&Ask::get(&format!("/billing/v1/{path}"))).await;
        assert!(answer.is(200), "GET {path}: {answer:?}");
        value(&answer)
    }

    /// POST of JSON, under a key.
    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        self.ask(&order(path, body).field("Idempotency-Key", key)).await
    }

    pub async fn create(&self, id: u64, balance: i64, velocity: i64) {
        let body = json!({ "id": id, "balance": balance, "velocity": velocity });
        let answer = self.post("accounts", &format!("create-{id}"), &body).await;
        assert!(answer.is(201), "{answer:?}");
    }
}

/// POST of JSON, or of nothing at all for null, without a key.
pub fn order(path: &str, body: &Value) -> Ask {
    let ask = Ask::new("POST", &format!("/billing/v1/{path}"));
    match body {
        Value::Null => ask.field("Content-Length", "0"),
        body => ask.field("Content-Type", "application/json").body(body.to_string()),
    }
}

/// The content, which is JSON.
pub fn value(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}
