//! One health probe: `GET path` over a new connection, healthy on any 2xx within the timeout.
//!
//! By hand rather than by an HTTP client, because all of it must be bounded: one request, the first line of the answer,
//! and no more than [`HEAD_BYTES_MAX`] read for it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A status line is never longer than this in earnest.
const HEAD_BYTES_MAX: usize = 4096;

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Healthy,
    /// Why not: `connection refused`, `timed out`, `status 500`, ...
    Unhealthy(String),
}

/// Probes once. Never takes longer than `timeout`.
pub async fn probe(address: SocketAddr, path: &str, timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, status(address, path)).await {
        Ok(Ok(Some(status))) if (200..300).contains(&status) => Outcome::Healthy,
        Ok(Ok(Some(status))) => Outcome::Unhealthy(format!("status {status}")),
        Ok(Ok(None)) => Outcome::Unhealthy("no HTTP answer".to_owned()),
        Ok(Err(error)) => Outcome::Unhealthy(error.kind().to_string()),
        Err(_) => Outcome::Unhealthy("timed out".to_owned()),
    }
}

async fn status(address: SocketAddr, path: &str) -> std::io::Result<Option<u16>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: forefront-supervise\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(512);
    let mut stream = stream.take(HEAD_BYTES_MAX as u64);
    while !head.contains(&b'\n') {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(parse(&head))
}

/// The status of `HTTP/1.x NNN ...`.
fn parse(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    let status = rest.split(' ').nth(1)?;
    if status.len() == 3 { status.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Answers one connection with `answer`, then holds it open.
    async fn origin(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        address
    }

    async fn check(answer: &'static str, expected: &str) {
        let timeout = Duration::from_millis(if answer.contains('\n') { 10_000 } else { 100 });
        let outcome = probe(origin(answer).await, "/ping", timeout).await;
        match outcome {
            Outcome::Healthy => assert_eq!(expected, "healthy", "{answer:?}"),
            Outcome::Unhealthy(why) => assert_eq!(why, expected, "{answer:?}"),
        }
    }

    #[tokio::test]
    async fn what_an_answer_means() {
        check("HTTP/1.1 200 OK\r\n", "healthy").await;
        check("HTTP/1.0 204\r\n", "healthy").await;
        check("HTTP/1.1 500 Internal Server Error\r\n", "status 500").await;
        check("HTTP/1.1 302 Found\r\n", "status 302").await;
        check("SSH-2.0-x\r\n", "no HTTP answer").await;
        check("HTTP/1.1 20000 x\r\n", "no HTTP answer").await;
        check("", "timed out").await;
        check("HTTP/1.1 200", "timed out").await;
    }

    #[tokio::test]
    async fn a_closed_port_is_told_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let outcome = probe(address, "/ping", Duration::from_secs(10)).await;
        assert_eq!(outcome, Outcome::Unhealthy("connection refused".to_owned()));
    }

    #[tokio::test]
    async fn an_endless_line_is_cut() {
        let long: &'static str = Box::leak("x".repeat(2 * HEAD_BYTES_MAX).into_boxed_str());
        let outcome = probe(origin(long).await, "/ping", Duration::from_secs(10)).await;
        assert_eq!(outcome, Outcome::Unhealthy("no HTTP answer".to_owned()));
    }
}
