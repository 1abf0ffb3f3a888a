//! One request and its answer on an HTTP/3 connection.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use h3::error::{Code, StreamError};
use h3::server::RequestStream;
use http::StatusCode;

use super::is_of_one_connection;
use super::transport::{BidiStream, Facts};
use crate::http1::{Framing, RequestHead};
use crate::listener::multiplexed::{Laid, Open, interim, lines_of, map_of};
use crate::listener::session::{AnswerHead, Duplex, Gone, Piece, Session};

/// The write timeout before the route says better.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Content given to the transport at once, and so what a client must take within the write timeout.
const SEND_BYTES: usize = 16 * 1024;

/// The streams of one request.
pub(super) struct Streams {
    pub(super) stream: RequestStream<BidiStream, Bytes>,
    pub(super) facts: Arc<Facts>,
    /// `None` once it has resolved.
    pub(super) stopped: Option<BoxFuture<'static, bool>>,
    /// Empty DATA frames passed over.
    pub(super) passed_over: u64,
    pub(super) open: Open,
}

impl Streams {
    /// Reads on. `None`: everything was read. An empty DATA frame, which `h3` takes for the end, is passed over.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            match self.stream.poll_recv_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // What was read may be ahead of what is given out, but never behind it.
                Poll::Ready(Ok(None)) if self.passed_over < self.facts.empty_data() => self.passed_over += 1,
                Poll::Ready(Ok(None)) if self.facts.ended() => return Poll::Ready(Ok(None)),
                // Trailers; the end is still to come.
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Ok(Some(mut data))) => {
                    let bytes = data.copy_to_bytes(data.remaining());
                    self.facts.take(bytes.len());
                    if !bytes.is_empty() {
                        return Poll::Ready(Ok(Some(bytes)));
                    }
                }
            }
        }
    }

    /// The client gave up, or the connection ended.
    pub(super) fn given_up(&self) -> Gone {
        self.open.abandon();
        Gone::Closed
    }

    /// The answer is finished; it is under way until the client has it.
    pub(super) fn sent(&mut self) {
        if let Some(stopped) = self.stopped.take() {
            let open = self.open.clone();
            tokio::spawn(async move {
                stopped.await;
                drop(open);
            });
        }
    }

    /// The request breaks a rule (RFC 9114, 4.1.2).
    pub(super) fn malformed(&mut self) {
        self.stream.stop_sending(Code::H3_MESSAGE_ERROR);
        self.stream.stop_stream(Code::H3_MESSAGE_ERROR);
    }
}

/// One request and its answer.
pub struct Exchange {
    request: RequestHead,
    streams: Streams,
    /// Content that was read while its presence was looked for.
    first: Option<Bytes>,
    received: u64,
    trailers: Option<Bytes>,
    answer: Laid,
    write_timeout: Duration,
}

impl Exchange {
    pub(super) fn new(request: RequestHead, streams: Streams, first: Option<Bytes>) -> Exchange {
        // From here on an answer that is not ended by `finish` is cut.
        streams.facts.reset_on_drop(Code::H3_INTERNAL_ERROR);
        let trailers = (first.is_none() && streams.facts.ended()).then(Bytes::new);
        Exchange {
            request,
            streams,
            first,
            received: 0,
            trailers,
            answer: Laid::default(),
            write_timeout: WRITE_TIMEOUT,
        }
    }

    fn broken(&mut self, reason: &'static str) -> Gone {
        self.streams.malformed();
        tracing::debug!(stream = self.streams.facts.id, reason, "a malformed HTTP/3 request");
        Gone::Closed
    }

    fn taken(&mut self, data: Bytes) -> Result<Piece, Gone> {
        self.received += data.len() as u64;
        match self.request.framing {
            Framing::Length(announced) if self.received > announced => {
                Err(self.broken("more content than Content-Length says"))
            }
            _ => Ok(Piece::Data(data)),
        }
    }

    async fn begin(&mut self) -> Result<(), Gone> {
        if let Some(head) = self.answer.take() {
            bounded(self.write_timeout, self.streams.stream.send_response(head)).await?;
        }
        Ok(())
    }
}

/// Waits for a client to take what is sent, at most so long. The timer is set only for a client that does not read.
pub(super) async fn bounded<T>(
    timeout: Duration,
    sending: impl Future<Output = Result<T, StreamError>>,
) -> Result<T, Gone> {
    let mut sending = pin!(sending);
    let sent = match poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await {
        Poll::Ready(sent) => sent,
        Poll::Pending => match tokio::time::timeout(timeout, sending).await {
            Ok(sent) => sent,
            Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        },
    };
    sent.map_err(|error| {
        tracing::trace!(%error, "an HTTP/3 stream ended");
        Gone::Closed
    })
}

impl Session for Exchange {
    fn request(&self) -> &RequestHead {
        &self.request
    }

    async fn read_body(&mut self) -> Result<Piece, Gone> {
        if let Some(trailers) = &self.trailers {
            return Ok(Piece::End(trailers.clone()));
        }
        if let Some(first) = self.first.take() {
            return self.taken(first);
        }
        let data = poll_fn(|cx| self.streams.poll_data(cx)).await.map_err(|_| self.streams.given_up())?;
        if let Some(data) = data {
            return self.taken(data);
        }
        if matches!(self.request.framing, Framing::Length(announced) if announced != self.received) {
            return Err(self.broken("less content than Content-Length says"));
        }
        let trailers = self.streams.stream.recv_trailers().await.map_err(|_| self.streams.given_up())?;
        if trailers.as_ref().is_some_and(is_of_one_connection) {
            return Err(self.broken("a field of one connection in trailers"));
        }
        let trailers = trailers.map_or_else(Bytes::new, |trailers| lines_of(&trailers));
        self.trailers = Some(trailers.clone());
        Ok(Piece::End(trailers))
    }

    async fn left(&mut self) -> Gone {
        let Some(stopped) = &mut self.streams.stopped else { return std::future::pending().await };
        let gave_up = stopped.await;
        self.streams.stopped = None;
        if !gave_up {
            return std::future::pending().await;
        }
        self.streams.given_up()
    }

    async fn send_interim(&mut self, status: StatusCode, lines: &[u8]) -> Result<(), Gone> {
        if self.answer.is_laid() {
            return Ok(());
        }
        bounded(self.write_timeout, self.streams.stream.send_response(interim(status, lines))).await
    }

    fn send_head(&mut self, head: AnswerHead<'_>) {
        self.answer.lay(head, &self.request.method);
    }

    async fn send(&mut self, mut data: Bytes) -> Result<(), Gone> {
        if self.answer.bodiless {
            return Ok(());
        }
        self.answer.spend(data.len())?;
        self.begin().await?;
        while !data.is_empty() {
            let part = data.split_to(data.len().min(SEND_BYTES));
            bounded(self.write_timeout, self.streams.stream.send_data(part)).await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        self.begin().await
    }

    async fn finish(&mut self, trailers: &[u8]) -> Result<(), Gone> {
        self.begin().await?;
        self.answer.end()?;
        let trailers = map_of(trailers);
        if !trailers.is_empty() {
            bounded(self.write_timeout, self.streams.stream.send_trailers(trailers)).await?;
        }
        bounded(self.write_timeout, self.streams.stream.finish()).await?;
        self.streams.sent();
        Ok(())
    }

    fn set_write_timeout(&mut self, timeout: Duration) {
        self.write_timeout = timeout;
    }

    /// One request's end is not the connection's here; a node that leaves says so to the connection.
    fn close_after(&mut self) {}

    fn raw(&mut self) -> Option<(&mut BytesMut, &mut dyn Duplex)> {
        None
    }
}
