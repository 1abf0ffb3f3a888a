//! HTTP/2 towards the client (RFC 9113), over TLS or by prior knowledge. The `h2` crate speaks the protocol; here are the
//! bounds of a connection, its end, and its requests as [`Session`]s.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, SendResponse};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::multiplexed::{Incoming, Open, Tally, Unfit};
use super::session::Gone;
use crate::http1::{RequestHead, Version};

mod session;

pub use session::Exchange;

/// Content of one request a client may send ahead of its being read.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same of all requests of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Content of one answer held for a client that does not read.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Streams reset by the client before they were accepted, at once.
const PENDING_RESETS_MAX: usize = 50;
/// Streams reset here because of the client's errors, in all.
const ERRORS_MAX: usize = 256;
/// How long a connection that says goodbye may take over it once nothing is under way.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a client must send first (RFC 9113, 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bounds of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub streams: usize,
    pub header_list_bytes: usize,
    /// For the preface and the first settings.
    pub handshake_timeout: Duration,
    /// Without a request under way.
    pub idle_timeout: Duration,
}

/// A client's connection.
pub struct Connection<T> {
    inner: h2::server::Connection<T, Bytes>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    leaving: bool,
    tally: Arc<Tally>,
    bounds: Bounds,
    used_at: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection<T> {
    /// Greets the client. `closing` resolves when connections are to end with what is under way on them. `None`: the client
    /// did not speak HTTP/2, or not in time.
    pub async fn accept(io: T, bounds: Bounds, closing: WaitForCancellationFutureOwned) -> Option<Self> {
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(u32::try_from(bounds.streams).unwrap_or(u32::MAX))
            .max_header_list_size(u32::try_from(bounds.header_list_bytes).unwrap_or(u32::MAX))
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_local_error_reset_streams(Some(ERRORS_MAX));
        let inner = tokio::time::timeout(bounds.handshake_timeout, builder.handshake(io)).await;
        let inner = match inner {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => {
                tracing::debug!(%error, "no HTTP/2");
                return None;
            }
            Err(_) => return None,
        };
        let used_at = Instant::now();
        Some(Connection {
            inner,
            closing: Box::pin(closing),
            leaving: false,
            tally: Arc::default(),
            bounds,
            used_at,
            sleep: Box::pin(tokio::time::sleep_until(used_at + bounds.idle_timeout)),
        })
    }

    /// The next request. `None`: the connection is over. To be called until then, for it is what moves the connection's
    /// bytes; requests are served in tasks of their own.
    pub async fn next(&mut self) -> Option<Arrival> {
        loop {
            tokio::select! {
                biased;
                accepted = self.inner.accept() => match accepted? {
                    Ok((request, respond)) => {
                        self.used_at = Instant::now();
                        return Some(Arrival::new(request, respond, self.tally.begin()));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an HTTP/2 connection ended");
                        return None;
                    }
                },
                () = &mut self.closing, if !self.leaving => self.leave(),
                () = self.tally.excess() => self.inner.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM),
                () = &mut self.sleep => {
                    if !self.sleep_on() {
                        return None;
                    }
                }
            }
        }
    }

    /// Takes no request beyond those the client has sent when it reads of it (RFC 9113, 6.8).
    pub fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.inner.graceful_shutdown();
            self.used_at = Instant::now();
            self.sleep.as_mut().reset(self.used_at + GOODBYE);
        }
    }

    /// The timer fired: is the connection to go on? One that is idle for too long says goodbye, and is dropped if even that
    /// does not come through.
    fn sleep_on(&mut self) -> bool {
        let now = Instant::now();
        if self.tally.open() > 0 {
            self.used_at = now;
        }
        let patience = if self.leaving { GOODBYE } else { self.bounds.idle_timeout };
        if now >= self.used_at + patience {
            if self.leaving {
                return false;
            }
            self.leave();
        } else {
            self.sleep.as_mut().reset(self.used_at + patience);
        }
        true
    }
}

/// One request, not looked at yet.
pub struct Arrival {
    request: Request<()>,
    body: h2::RecvStream,
    respond: SendResponse<Bytes>,
    open: Open,
}

impl Arrival {
    fn new(request: Request<h2::RecvStream>, respond: SendResponse<Bytes>, open: Open) -> Arrival {
        let (parts, body) = request.into_parts();
        Arrival { request: Request::from_parts(parts, ()), body, respond, open }
    }
}

impl Incoming for Arrival {
    type Session = Exchange;

    fn request(&self) -> &Request<()> {
        &self.request
    }

    fn is_bare(&self) -> bool {
        self.body.is_end_stream()
    }

    async fn answer(mut self, status: StatusCode, fields: HeaderMap, body: Bytes) -> Result<(), Gone> {
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        let mut stream = self.respond.send_response(response, body.is_empty()).map_err(gone)?;
        if !body.is_empty() {
            // The stream keeps what the client's window does not take yet; it is the store's own content, not a copy.
            stream.send_data(body, true).map_err(gone)?;
        }
        Ok(())
    }

    async fn into_session(mut self) -> Result<Exchange, Unfit<Self>> {
        let mut first = None;
        if !self.body.is_end_stream() && waits_for_content(&self.request) {
            match self.body.data().await {
                Some(Ok(data)) => first = Some(data),
                Some(Err(_)) => {
                    self.open.abandon();
                    return Err(Unfit::Gone);
                }
                None => {}
            }
        }
        let follows = first.is_some() || !self.body.is_end_stream();
        let uri = self.request.uri();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let method = self.request.method().clone();
        let head = RequestHead::multiplexed(
            Version::Http2,
            method,
            authority,
            path,
            self.request.headers(),
            follows,
        );
        match head {
            Ok(head) => Ok(Exchange::new(head, self.body, first, self.respond, self.open)),
            Err(refused) => Err(Unfit::Refused(self, refused)),
        }
    }
}

/// Should the end of this request's content, which it does not announce, be waited for? Of methods that rarely have content
/// it tells whether there is any; an upload is passed on as it comes.
pub(super) fn waits_for_content(request: &Request<()>) -> bool {
    !request.headers().contains_key(http::header::CONTENT_LENGTH)
        && !["POST", "PUT", "PATCH"].contains(&request.method().as_str())
}

fn gone(error: h2::Error) -> Gone {
    match error.into_io() {
        Some(error) => Gone::Io(error),
        None => Gone::Closed,
    }
}
