//! HTTP/1.1 towards the client: one connection, its buffers, and one exchange at a time upon it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::session::{AnswerHead, BodySize, Duplex, Gone, Piece, Session};
use crate::http1::{Decoded, Decoder, Encoder, RequestHead, Version};

/// What a read for a head asks of the kernel at once.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// What a read of content asks for at once, and so what one connection holds of a body.
const BODY_READ_BYTES: usize = 32 * 1024;
/// Content up to this size is copied behind its head, to leave in one write.
const COPY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a following request read while watching whether the client leaves.
const AHEAD_BYTES_MAX: usize = 16 * 1024;

/// How long a closed connection is read on, and how many bytes of it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The write timeout of a connection before its first request says better.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why `Connection::fill` brought nothing.
#[derive(Debug)]
pub enum Unfilled {
    /// The client closed, or the connection failed.
    Closed,
    /// The deadline passed.
    TimedOut,
    /// The node closes what is idle.
    Closing,
}

/// A client's connection. Requests are read from `input`, answers are laid into `output`.
pub struct Connection<T> {
    io: T,
    pub input: BytesMut,
    pub output: BytesMut,
    sleep: Pin<Box<Sleep>>,
    deadline: Instant,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    write_timeout: Duration,
    eof: bool,
    /// An answer was cut short: the connection must end by a reset.
    pub abortive: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection<T> {
    /// `closing` resolves when idle connections are to be closed.
    pub fn new(io: T, closing: WaitForCancellationFutureOwned) -> Self {
        let deadline = Instant::now();
        Connection {
            io,
            input: BytesMut::new(),
            output: BytesMut::new(),
            sleep: Box::pin(tokio::time::sleep_until(deadline)),
            deadline,
            closing: Box::pin(closing),
            write_timeout: WRITE_TIMEOUT,
            eof: false,
            abortive: false,
        }
    }

    /// Reads more into `input` before `deadline`. With nothing of a request read yet the node's closing ends it too.
    pub async fn fill(&mut self, deadline: Instant) -> Result<(), Unfilled> {
        self.deadline = deadline;
        self.input.reserve(HEAD_READ_BYTES);
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unfilled>> {
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
            Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(Err(Unfilled::Closed)),
            Poll::Ready(Ok(_)) => return Poll::Ready(Ok(())),
            Poll::Pending => {}
        }
        if self.input.is_empty() && self.closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Unfilled::Closing));
        }
        ready!(self.poll_deadline(cx));
        Poll::Ready(Err(Unfilled::TimedOut))
    }

    /// Ready once `deadline` has passed. The timer is moved only when it fires or would fire late, so that a busy
    /// connection does not touch it.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.deadline() > self.deadline {
            self.sleep.as_mut().reset(self.deadline);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.deadline);
        }
    }

    /// How long the client may take no byte while there is something to send to it.
    pub fn set_write_timeout(&mut self, timeout: Duration) {
        self.write_timeout = timeout;
    }

    /// Sends what lies in `output`.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.send_all(b"").await
    }

    /// Sends what lies in `output`, then `body`, with as few writes as may be.
    pub async fn send_with(&mut self, body: &[u8]) -> io::Result<()> {
        if body.len() <= COPY_BYTES_MAX {
            self.output.extend_from_slice(body);
            return self.send_all(b"").await;
        }
        self.send_all(body).await
    }

    /// Sends `output`, then `content`. Fails with `TimedOut` when the client takes nothing for `write_timeout`.
    async fn send_all(&mut self, mut content: &[u8]) -> io::Result<()> {
        let mut stalled = false;
        poll_fn(|cx| {
            loop {
                let sent = match (self.output.is_empty(), content.is_empty()) {
                    (true, true) => break,
                    (false, true) => Pin::new(&mut self.io).poll_write(cx, &self.output),
                    (true, false) => Pin::new(&mut self.io).poll_write(cx, content),
                    (false, false) => {
                        let parts = [io::IoSlice::new(&self.output), io::IoSlice::new(content)];
                        Pin::new(&mut self.io).poll_write_vectored(cx, &parts)
                    }
                };
                let sent = match sent {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(sent) => sent?,
                    Poll::Pending => return self.poll_stalled(cx, &mut stalled),
                };
                stalled = false;
                let of_output = sent.min(self.output.len());
                if of_output == self.output.len() {
                    self.output.clear();
                } else {
                    let _ = self.output.split_to(of_output);
                }
                content = &content[sent - of_output..];
            }
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Pending => self.poll_stalled(cx, &mut stalled),
                flushed => flushed,
            }
        })
        .await
    }

    /// Waits for the client to take something, at most `write_timeout` since it last did.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, stalled: &mut bool) -> Poll<io::Result<()>> {
        if !*stalled {
            *stalled = true;
            self.deadline = Instant::now() + self.write_timeout;
        }
        ready!(self.poll_deadline(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Closes gently: sends FIN, then reads for a short while what the client still sends, so that the kernel does not
    /// reset the connection and with it the answer the client has not read yet (RFC 9112, 9.6).
    pub async fn close(mut self) {
        let until = Instant::now() + LINGER;
        let ended = tokio::time::timeout_at(until, self.io.shutdown()).await;
        if !matches!(ended, Ok(Ok(()))) || self.eof {
            return;
        }
        let mut budget = LINGER_BYTES_MAX;
        while budget > 0 {
            self.input.clear();
            self.input.reserve(BODY_READ_BYTES);
            let read = poll_fn(|cx| poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input));
            match tokio::time::timeout_at(until, read).await {
                Ok(Ok(bytes)) if bytes > 0 => budget = budget.saturating_sub(bytes),
                _ => return,
            }
        }
    }

    /// Begins the exchange of a request whose head was taken from `input`.
    pub fn exchange(&mut self, request: RequestHead) -> Exchange<'_, T> {
        let decoder = request.decoder();
        let keep_alive = request.keep_alive;
        Exchange {
            connection: self,
            request,
            decoder,
            encoder: Encoder::None,
            keep_alive,
            stage: Stage::Open,
        }
    }

    /// The socket.
    pub fn io(&self) -> &T {
        &self.io
    }

    /// What was read and not used, and the socket: for another protocol.
    pub fn into_parts(self) -> (BytesMut, T) {
        (self.input, self.io)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    HeadSent,
    Finished,
}

/// One request and its answer on an HTTP/1.1 connection.
pub struct Exchange<'c, T> {
    connection: &'c mut Connection<T>,
    request: RequestHead,
    decoder: Decoder,
    encoder: Encoder,
    keep_alive: bool,
    stage: Stage,
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Exchange<'_, T> {
    /// May the connection carry another request? Only when this one was read and answered whole.
    pub fn reusable(&self) -> bool {
        self.keep_alive && self.stage == Stage::Finished && self.decoder.is_done() && !self.connection.eof
    }

    async fn read_more(&mut self, bytes: usize) -> io::Result<usize> {
        let connection = &mut *self.connection;
        connection.input.reserve(bytes);
        let read =
            poll_fn(|cx| poll_read_buf(Pin::new(&mut connection.io), cx, &mut connection.input)).await?;
        connection.eof |= read == 0;
        Ok(read)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Session for Exchange<'_, T> {
    fn request(&self) -> &RequestHead {
        &self.request
    }

    async fn read_body(&mut self) -> Result<Piece, Gone> {
        loop {
            match self.decoder.decode(&mut self.connection.input) {
                Ok(Decoded::Data(data)) => return Ok(Piece::Data(data)),
                Ok(Decoded::End(trailers)) => return Ok(Piece::End(trailers)),
                Ok(Decoded::Starved) => {}
                Err(malformed) => {
                    self.keep_alive = false;
                    return Err(malformed.into());
                }
            }
            if self.read_more(BODY_READ_BYTES).await? == 0 {
                self.keep_alive = false;
                return Err(Gone::Closed);
            }
        }
    }

    async fn left(&mut self) -> Gone {
        loop {
            if self.connection.input.len() >= AHEAD_BYTES_MAX {
                // A client that sends requests ahead is there; how long it stays is seen when it is answered.
                return std::future::pending().await;
            }
            match self.read_more(HEAD_READ_BYTES).await {
                Ok(0) => return Gone::Closed,
                Ok(_) => {}
                Err(error) => return Gone::Io(error),
            }
        }
    }

    async fn send_interim(&mut self, status: StatusCode, lines: &[u8]) -> Result<(), Gone> {
        if self.request.version == Version::Http10 || self.stage != Stage::Open {
            return Ok(());
        }
        status_line(status, &mut self.connection.output);
        self.connection.output.extend_from_slice(lines);
        self.connection.output.extend_from_slice(b"\r\n");
        Ok(self.connection.flush().await?)
    }

    fn send_head(&mut self, head: AnswerHead<'_>) {
        debug_assert_eq!(self.stage, Stage::Open, "an exchange has one head");
        self.stage = Stage::HeadSent;
        // A body that was not read to its end would be taken for the next request.
        self.keep_alive &= self.decoder.is_done();
        let http11 = self.request.version != Version::Http10;
        let output = &mut self.connection.output;
        status_line(head.status, output);
        output.extend_from_slice(head.lines);
        self.encoder = match head.body {
            BodySize::None => Encoder::None,
            BodySize::Length(bytes) => {
                output.extend_from_slice(b"content-length: ");
                push_number(bytes, output);
                output.extend_from_slice(b"\r\n");
                Encoder::Length(bytes)
            }
            BodySize::Unknown if http11 => {
                output.extend_from_slice(b"transfer-encoding: chunked\r\n");
                Encoder::Chunked
            }
            BodySize::Unknown => {
                self.keep_alive = false;
                Encoder::UntilClose
            }
        };
        if self.request.method == Method::HEAD {
            self.encoder = Encoder::None;
        }
        match (self.keep_alive, http11) {
            (true, false) => output.extend_from_slice(b"connection: keep-alive\r\n"),
            (false, true) if head.status != StatusCode::SWITCHING_PROTOCOLS => {
                output.extend_from_slice(b"connection: close\r\n");
            }
            _ => {}
        }
        output.extend_from_slice(b"\r\n");
    }

    async fn send(&mut self, data: Bytes) -> Result<(), Gone> {
        if self.encoder == Encoder::None {
            return Ok(());
        }
        self.encoder.before(data.len(), &mut self.connection.output)?;
        if data.len() <= COPY_BYTES_MAX {
            self.connection.output.extend_from_slice(&data);
            self.encoder.after(&mut self.connection.output);
            return Ok(self.connection.flush().await?);
        }
        self.connection.send_with(&data).await?;
        self.encoder.after(&mut self.connection.output);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        if self.connection.output.is_empty() {
            return Ok(());
        }
        Ok(self.connection.flush().await?)
    }

    async fn finish(&mut self, trailers: &[u8]) -> Result<(), Gone> {
        let ended = self.encoder.end(trailers, &mut self.connection.output);
        if ended.is_err() {
            self.keep_alive = false;
        }
        self.connection.flush().await?;
        ended?;
        self.stage = Stage::Finished;
        Ok(())
    }

    fn set_write_timeout(&mut self, timeout: Duration) {
        self.connection.write_timeout = timeout;
    }

    fn close_after(&mut self) {
        self.keep_alive = false;
    }

    fn raw(&mut self) -> Option<(&mut BytesMut, &mut dyn Duplex)> {
        self.keep_alive = false;
        let connection = &mut *self.connection;
        Some((&mut connection.input, &mut connection.io))
    }
}

impl<T> Drop for Exchange<'_, T> {
    fn drop(&mut self) {
        // An answer that only the end of the connection ends would look whole if the connection ended gently.
        if self.stage == Stage::HeadSent && self.encoder == Encoder::UntilClose {
            self.connection.abortive = true;
        }
    }
}

/// Appends a status line and field lines.
pub fn lay_head(status: StatusCode, lines: &[u8], out: &mut BytesMut) {
    status_line(status, out);
    out.extend_from_slice(lines);
}

fn status_line(status: StatusCode, out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal.
pub fn push_number(mut number: u64, out: &mut BytesMut) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
