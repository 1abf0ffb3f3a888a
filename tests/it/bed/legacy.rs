//! The stand-in for the legacy service, as a process.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::wire::request;
use super::{Process, get, until};

/// A running stand-in without start-up delay and without a limited lifetime.
pub struct Legacy {
    pub process: Process,
    pub address: SocketAddr,
    control: SocketAddr,
}

impl Legacy {
    /// Starts one; `more` are further flags, or others in place of those given here.
    pub async fn start(more: &[&str]) -> Legacy {
        Legacy::start_on("127.0.0.1:0", more).await
    }

    pub async fn start_on(listen: &str, more: &[&str]) -> Legacy {
        let fixed =
            ["legacy", "run_server", "--allow-root", "--no-config", "--log", "none", "--start-delay", "0s"];
        let addresses = ["--lifetime", "off", "--listen", listen, "--control", "127.0.0.1:0"];
        let process = Process::start(fixed.iter().chain(&addresses).chain(more));
        let mut told = None;
        until("the stand-in listens", async || {
            told = process
                .stdout()
                .iter()
                .find_map(|line| line.strip_prefix("legacy listening on ").map(str::to_owned));
            told.is_some()
        })
        .await;
        let told = told.expect("it was waited for");
        let (address, control) = told.split_once(" control ").expect("both are told");
        Legacy {
            process,
            address: address.parse().expect("an address"),
            control: control.parse().expect("an address"),
        }
    }

    /// Requests it got, by endpoint.
    pub async fn requests(&self) -> HashMap<String, u64> {
        serde_json::from_slice(&get(self.control, "/requests").await.body).expect("/requests is JSON")
    }

    pub async fn count(&self, endpoint: &str) -> u64 {
        self.requests().await.get(endpoint).copied().unwrap_or(0)
    }

    pub async fn reset_counts(&self) {
        self.post("/requests/reset", "").await;
    }

    pub async fn fault(&self, kind: &str) {
        self.post("/fault", &format!("{{\"kind\": \"{kind}\"}}")).await;
    }

    async fn post(&self, path: &str, json: &str) {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}", json.len());
        let answer = request(self.control, &format!("{head}\r\n\r\n{json}")).await;
        assert!(answer.status() < 300, "{path}: {answer:?}");
    }
}
