//! Raw HTTP/1.1: bytes out as the test wrote them, answers in with all that a user would see of them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PATIENCE, within};

/// A connection, of a client or of an origin, and what was read from it but not used.
pub struct Wire<S = TcpStream> {
    pub stream: S,
    pub input: BytesMut,
}

/// A start line and fields.
#[derive(Clone, Default, PartialEq)]
pub struct Head {
    pub start: String,
    /// As they came: order, letter case.
    pub fields: Vec<(String, String)>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// As its framing promised.
    #[default]
    Whole,
    /// The connection closed before the promised end, or before any answer.
    Cut,
    /// The connection was reset, or closed without TLS's farewell.
    Reset,
    /// HTTP/2 and HTTP/3: the answer's stream was reset with this code.
    Stream(u64),
    /// HTTP/2 and HTTP/3: the connection was closed with this code.
    Closed(u64),
    /// HTTP/2 and HTTP/3: the client refused the answer, or lost the connection in some other way.
    Broken,
}

/// An answer as the client saw it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Heads of informational answers before it.
    pub interim: Vec<Head>,
    pub head: Head,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    pub end: End,
}

impl Head {
    fn parse(text: &str) -> Head {
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        Head { start, fields: lines.filter(|line| !line.is_empty()).map(field).collect() }
    }

    /// The first value of this name, letter case aside.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).into_iter().next()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_owned(), value.trim().to_owned())
}

impl fmt::Debug for Head {
    /// Long values are cut: a failure shall be readable.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.start)?;
        self.fields.iter().take(20).try_for_each(|(name, value)| write!(f, " | {name}: {value:.100}"))
    }
}

impl Answer {
    /// 0 when there was no answer.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// An answer of this status, whole.
    pub fn is(&self, status: u16) -> bool {
        self.status() == status && self.end == End::Whole
    }

    pub fn cache_status(&self) -> &str {
        self.get("cache-status").unwrap_or_default()
    }

    pub fn age(&self) -> u64 {
        self.get("age").expect("an answer from the store has Age").parse().expect("Age is a number")
    }
}

/// One request on a connection of its own, byte for byte.
pub async fn request(address: SocketAddr, bytes: &str) -> Answer {
    let mut wire = Wire::connect(address).await;
    wire.send(bytes).await;
    wire.answer_to(bytes.split(' ').next().unwrap_or_default()).await
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: bed.example\r\nConnection: close\r\n\r\n")).await
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Wire {
        let stream = within(PATIENCE, "connecting", TcpStream::connect(address)).await;
        Wire::over(stream.unwrap_or_else(|error| panic!("{address}: {error}")))
    }

    pub fn over(stream: TcpStream) -> Wire {
        let _ = stream.set_nodelay(true);
        Wire { stream, input: BytesMut::new() }
    }

    /// Does nothing come within this time?
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        self.input.is_empty() && tokio::time::timeout(time, self.more()).await.is_err()
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Sends; a peer that closed meanwhile is seen by who reads.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within(PATIENCE, "sending", self.sent(bytes.as_ref())).await;
    }

    async fn sent(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        // TLS keeps what the socket did not take at once.
        self.stream.flush().await
    }

    /// Sends a chunk of a chunked body; an empty one ends it.
    pub async fn chunk(&mut self, data: &[u8]) {
        let mut framed = format!("{:x}\r\n", data.len()).into_bytes();
        framed.extend_from_slice(data);
        framed.extend_from_slice(b"\r\n");
        self.send(framed).await;
    }

    /// Sends a GET that keeps the connection, and reads its answer.
    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: bed.example\r\n\r\n")).await;
        self.answer().await
    }

    /// The next answer, to anything but HEAD.
    pub async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    pub async fn answer_to(&mut self, method: &str) -> Answer {
        let mut answer = Answer::default();
        loop {
            match self.head().await {
                Ok(head) if (100..200).contains(&head.status()) && head.status() != 101 => {
                    answer.interim.push(head)
                }
                Ok(head) => {
                    answer.head = head;
                    break;
                }
                Err(end) => return Answer { end, ..answer },
            }
        }
        let status = answer.status();
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return answer;
        }
        let head = answer.head.clone();
        answer.end =
            self.content(&head, &mut answer.body, &mut answer.trailers).await.err().unwrap_or(End::Whole);
        answer
    }

    /// The next head, of a request or of an answer.
    pub async fn head(&mut self) -> Result<Head, End> {
        loop {
            if let Some(at) = self.input.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.input.split_to(at + 4);
                return Ok(Head::parse(&String::from_utf8_lossy(&head)));
            }
            self.more().await?;
        }
    }

    /// The content that `head` announces.
    pub async fn content(
        &mut self,
        head: &Head,
        body: &mut Vec<u8>,
        trailers: &mut Vec<(String, String)>,
    ) -> Result<(), End> {
        if head.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return self.chunks(body, trailers).await;
        }
        if let Some(length) = head.get("content-length") {
            let length: usize = length.parse().expect("Content-Length is a number");
            return self.exactly(length, body).await;
        }
        if !head.start.starts_with("HTTP/") {
            return Ok(());
        }
        loop {
            body.append(&mut self.input.split().to_vec());
            match self.more().await {
                Ok(()) => {}
                Err(End::Cut) => return Ok(()),
                Err(end) => return Err(end),
            }
        }
    }

    async fn chunks(&mut self, body: &mut Vec<u8>, trailers: &mut Vec<(String, String)>) -> Result<(), End> {
        loop {
            let line = self.line().await?;
            let size =
                usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            self.exactly(size, body).await?;
            assert_eq!(self.line().await?, "", "a chunk ends with CRLF");
        }
        loop {
            match self.line().await?.as_str() {
                "" => return Ok(()),
                line => trailers.push(field(line)),
            }
        }
    }

    async fn line(&mut self) -> Result<String, End> {
        loop {
            if let Some(at) = self.input.windows(2).position(|two| two == b"\r\n") {
                let line = self.input.split_to(at + 2);
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, length: usize, body: &mut Vec<u8>) -> Result<(), End> {
        let until = body.len() + length;
        loop {
            let take = self.input.len().min(until - body.len());
            body.extend_from_slice(&self.input[..take]);
            self.input.advance(take);
            if body.len() == until {
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// Reads until at least `bytes` are there, and takes exactly them.
    pub async fn take(&mut self, bytes: usize) -> Result<Vec<u8>, End> {
        let mut taken = Vec::new();
        self.exactly(bytes, &mut taken).await?;
        Ok(taken)
    }

    async fn more(&mut self) -> Result<(), End> {
        self.input.reserve(64 * 1024);
        match within(PATIENCE, "more bytes", self.stream.read_buf(&mut self.input)).await {
            Ok(0) => Err(End::Cut),
            Ok(_) => Ok(()),
            Err(_) => Err(End::Reset),
        }
    }

    /// Waits for the end of the connection; what came before it.
    pub async fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.more().await {
                return (self.input.split().to_vec(), end);
            }
        }
    }

    /// Reads chunks, from wherever in one the reader stands, up to the last one.
    pub async fn rest_of_chunks(&mut self) -> End {
        loop {
            if self.input.ends_with(b"\r\n0\r\n\r\n") {
                return End::Whole;
            }
            let keep = self.input.len().min(7);
            self.input.advance(self.input.len() - keep);
            if let Err(end) = self.more().await {
                return end;
            }
        }
    }
}
