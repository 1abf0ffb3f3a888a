//! One health probe: an own, small HTTP/1.1 client, so that a probe shares nothing with the traffic it judges.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::address::Address;
use super::endpoint::Target;
use super::tls::ClientTls;

/// More of an answer is not read; its status is what counts.
const ANSWER_BYTES_MAX: usize = 4096;
const FIELDS_MAX: usize = 64;

/// The words of a probe's result in metrics. `busy`: no answer, but traffic got some; `local`: this host's own fault.
pub(super) const RESULTS: [&str; 7] = ["ok", "refused", "timed_out", "broken", "bad_answer", "busy", "local"];

/// How a probe failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("probe: connection refused")]
    Refused,
    #[error("probe: cannot connect: {0}")]
    Unreachable(io::Error),
    #[error("probe: this host cannot connect: {0}")]
    Local(io::Error),
    #[error("probe: no answer in time")]
    TimedOut,
    #[error("probe: the connection broke: {0}")]
    Broken(io::Error),
    #[error("probe: answered {0}")]
    Status(u16),
    #[error("probe: the answer is no HTTP")]
    Malformed,
}

impl Failure {
    /// The endpoint said nothing at all, as a hung process or a dead host does.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Failure::TimedOut | Failure::Unreachable(_))
    }

    /// The word in metrics, one of [`RESULTS`].
    pub(super) fn result(&self) -> &'static str {
        match self {
            Failure::Refused => "refused",
            Failure::TimedOut | Failure::Unreachable(_) => "timed_out",
            Failure::Local(_) => "local",
            Failure::Broken(_) => "broken",
            Failure::Status(_) | Failure::Malformed => "bad_answer",
        }
    }
}

/// What to ask whom.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    pub target: &'a Target,
    pub configured: &'a Address,
    pub tls: Option<&'a ClientTls>,
    pub host: &'a str,
    pub path: &'a str,
    /// From connecting to the last byte.
    pub timeout: Duration,
}

impl Probe<'_> {
    /// Healthy is a complete answer with a status of 200 to 299 (a longer one than 4 KiB is not read to its end).
    pub(super) async fn run(&self) -> Result<(), Failure> {
        tokio::time::timeout(self.timeout, self.connect_and_ask()).await.unwrap_or(Err(Failure::TimedOut))
    }

    async fn connect_and_ask(&self) -> Result<(), Failure> {
        match self.target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(connect_failure)?;
                self.secure_and_ask(stream).await
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(connect_failure)?;
                self.secure_and_ask(stream).await
            }
        }
    }

    async fn secure_and_ask<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Result<(), Failure> {
        let Some(tls) = self.tls else { return self.ask(stream).await };
        let Some(name) = tls.server_name(self.configured) else { return Err(Failure::Malformed) };
        let stream = tls.connector().connect(name, stream).await.map_err(Failure::Broken)?;
        self.ask(stream).await
    }

    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) -> Result<(), Failure> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: forefront-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            self.path, self.host
        );
        stream.write_all(request.as_bytes()).await.map_err(Failure::Broken)?;
        stream.flush().await.map_err(Failure::Broken)?;
        let mut answer = Vec::with_capacity(512);
        loop {
            match read_answer(&answer)? {
                Reading::Complete(status) => return verdict(status),
                Reading::Body(status) if answer.len() >= ANSWER_BYTES_MAX => return verdict(status),
                Reading::Head if answer.len() >= ANSWER_BYTES_MAX => return Err(Failure::Malformed),
                reading => {
                    let room = ANSWER_BYTES_MAX - answer.len();
                    let read = (&mut stream).take(room as u64).read_buf(&mut answer).await;
                    match (read, reading) {
                        (Ok(0), Reading::Body(status)) => return verdict(status),
                        (Ok(0), _) => return Err(Failure::Broken(io::ErrorKind::UnexpectedEof.into())),
                        (Ok(_), _) => {}
                        // Servers that close TLS without a close_notify are many; the head has told its status.
                        (Err(error), Reading::Body(status))
                            if error.kind() == io::ErrorKind::UnexpectedEof =>
                        {
                            return verdict(status);
                        }
                        (Err(error), _) => return Err(Failure::Broken(error)),
                    }
                }
            }
        }
    }
}

fn verdict(status: u16) -> Result<(), Failure> {
    if (200..300).contains(&status) { Ok(()) } else { Err(Failure::Status(status)) }
}

fn connect_failure(error: io::Error) -> Failure {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _) => Failure::Refused,
        _ if is_local(&error) => Failure::Local(error),
        _ => Failure::Unreachable(error),
    }
}

/// Is it this host that cannot connect, so that the error says nothing of the endpoint? Descriptors, ports or memory have
/// run out, or a local rule forbids it.
pub fn is_local(error: &io::Error) -> bool {
    use libc::{EADDRINUSE, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM};
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM | EADDRNOTAVAIL | EADDRINUSE | EPERM)
    )
}

/// How much of an answer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Head,
    /// The head is there, the body not to its end, or its end is the end of the connection.
    Body(u16),
    Complete(u16),
}

/// Pure: what the bytes so far amount to. Skips interim answers (RFC 9110, 15.2).
fn read_answer(mut bytes: &[u8]) -> Result<Reading, Failure> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let body_at = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(Reading::Head),
            Err(_) => return Err(Failure::Malformed),
        };
        let status = head.code.ok_or(Failure::Malformed)?;
        let body = &bytes[body_at..];
        if (100..200).contains(&status) {
            bytes = body;
            continue;
        }
        let field = |name: &str| {
            head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
        };
        let complete = if status == 204 || status == 304 {
            true
        } else if field("transfer-encoding").is_some() {
            body.ends_with(b"0\r\n\r\n")
        } else if let Some(length) = field("content-length") {
            let length: usize = std::str::from_utf8(length)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or(Failure::Malformed)?;
            body.len() >= length
        } else {
            false
        };
        return Ok(if complete { Reading::Complete(status) } else { Reading::Body(status) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_send() {
        let cases: [(&[u8], Reading); 9] = [
            (b"", Reading::Head),
            (b"HTTP/1.1 200 OK\r\n", Reading::Head),
            (b"HTTP/1.1 200 OK\r\n\r\npong", Reading::Body(200)),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npon", Reading::Body(200)),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npong", Reading::Complete(200)),
            (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", Reading::Complete(500)),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npong\r\n", Reading::Body(200)),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npong\r\n0\r\n\r\n",
                Reading::Complete(200),
            ),
            (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No\r\n\r\n", Reading::Complete(204)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read_answer(bytes).expect("well-formed"), expected, "{}", bytes.escape_ascii());
        }
        for bad in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"] {
            assert!(read_answer(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn only_2xx_is_healthy() {
        assert!(verdict(200).is_ok() && verdict(204).is_ok());
        for status in [301, 404, 500] {
            assert!(matches!(verdict(status), Err(Failure::Status(code)) if code == status));
        }
    }
}
