//! One request and its answer on an HTTP/2 connection.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;

use super::gone;
use crate::http1::{MalformedBody, RequestHead};
use crate::listener::multiplexed::{Laid, Open, interim, lines_of, map_of};
use crate::listener::session::{AnswerHead, Duplex, Gone, Piece, Session};

/// The write timeout before the route says better.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is asked of a stream's window at once.
const RESERVE_BYTES: usize = 64 * 1024;

/// One request and its answer.
pub struct Exchange {
    request: RequestHead,
    body: RecvStream,
    /// Content that was read while its presence was looked for.
    first: Option<Bytes>,
    trailers: Option<Bytes>,
    respond: SendResponse<Bytes>,
    answer: Laid,
    out: Option<SendStream<Bytes>>,
    finished: bool,
    write_timeout: Duration,
    open: Open,
}

impl Exchange {
    pub(super) fn new(
        request: RequestHead,
        body: RecvStream,
        first: Option<Bytes>,
        respond: SendResponse<Bytes>,
        open: Open,
    ) -> Exchange {
        Exchange {
            request,
            body,
            first,
            trailers: None,
            respond,
            answer: Laid::default(),
            out: None,
            finished: false,
            write_timeout: WRITE_TIMEOUT,
            open,
        }
    }

    /// Hands out a piece of content, and lets the client send as much again.
    fn taken(&mut self, data: Bytes) -> Result<Piece, Gone> {
        self.body.flow_control().release_capacity(data.len()).map_err(gone)?;
        Ok(Piece::Data(data))
    }

    /// Sends the head that was laid ready, if it is not sent yet; `end` ends the answer with it.
    fn begin(&mut self, end: bool) -> Result<(), Gone> {
        if let Some(head) = self.answer.take() {
            self.out = Some(self.respond.send_response(head, end).map_err(gone)?);
            self.finished = end;
        }
        Ok(())
    }

    /// Waits until the client takes some of `bytes`, and tells how many.
    async fn window(&mut self, bytes: usize) -> Result<usize, Gone> {
        let Some(out) = &mut self.out else { return Err(Gone::Closed) };
        out.reserve_capacity(bytes.min(RESERVE_BYTES));
        let mut waiting = pin!(poll_fn(|cx| {
            loop {
                match out.capacity() {
                    0 => {}
                    capacity => return Poll::Ready(Ok(capacity)),
                }
                match out.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(gone(error))),
                    Poll::Ready(None) => return Poll::Ready(Err(Gone::Closed)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }));
        // The timer is set only for a client that does not read.
        let now = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await;
        match now {
            Poll::Ready(window) => window,
            Poll::Pending => tokio::time::timeout(self.write_timeout, waiting)
                .await
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
                .inspect_err(|_| self.open.abandon()),
        }
    }
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
        while let Some(data) = self.body.data().await {
            match data {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return self.taken(data),
                Err(error) if error.is_library() => {
                    return Err(Gone::Malformed(MalformedBody("it breaks the protocol")));
                }
                Err(error) => {
                    self.open.abandon();
                    return Err(gone(error));
                }
            }
        }
        let trailers = self.body.trailers().await.map_err(gone)?;
        let trailers = trailers.map_or_else(Bytes::new, |trailers| lines_of(&trailers));
        self.trailers = Some(trailers.clone());
        Ok(Piece::End(trailers))
    }

    async fn left(&mut self) -> Gone {
        let reset = match &mut self.out {
            Some(out) => poll_fn(|cx| out.poll_reset(cx)).await,
            None => poll_fn(|cx| self.respond.poll_reset(cx)).await,
        };
        match reset {
            Ok(_) => {
                self.open.abandon();
                Gone::Closed
            }
            Err(error) => gone(error),
        }
    }

    async fn send_interim(&mut self, status: StatusCode, lines: &[u8]) -> Result<(), Gone> {
        if self.answer.is_laid() {
            return Ok(());
        }
        self.respond.send_informational(interim(status, lines)).map_err(gone)
    }

    fn send_head(&mut self, head: AnswerHead<'_>) {
        self.answer.lay(head, &self.request.method);
    }

    async fn send(&mut self, mut data: Bytes) -> Result<(), Gone> {
        if self.answer.bodiless {
            return Ok(());
        }
        self.begin(false)?;
        while !data.is_empty() {
            let window = self.window(data.len()).await?;
            let part = data.split_to(window.min(data.len()));
            let end = self.answer.spend(part.len())?;
            let Some(out) = &mut self.out else { return Err(Gone::Closed) };
            out.send_data(part, end).map_err(gone)?;
            self.finished |= end;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        self.begin(self.answer.is_complete())
    }

    async fn finish(&mut self, trailers: &[u8]) -> Result<(), Gone> {
        let trailers = map_of(trailers);
        self.begin(trailers.is_empty() && self.answer.is_complete())?;
        if self.finished {
            return Ok(());
        }
        self.answer.end()?;
        let Some(out) = &mut self.out else { return Err(Gone::Closed) };
        if trailers.is_empty() {
            out.send_data(Bytes::new(), true).map_err(gone)?;
        } else {
            out.send_trailers(trailers).map_err(gone)?;
        }
        self.finished = true;
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

impl Drop for Exchange {
    /// An answer that is not whole must not look so (RFC 9113, 8.1).
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        match &mut self.out {
            Some(out) => out.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}
