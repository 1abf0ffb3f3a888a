//! HTTP/3 towards the client (RFC 9114), on quinn. The `h3` crate speaks the protocol; here are the transport beneath it, the
//! bounds of a connection, its end, and its requests as [`Session`](super::Session)s.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use h3::error::Code;
use h3::server::RequestResolver;
use http::{HeaderMap, Request, Response, StatusCode, header};
use tokio::time::{Instant, Sleep, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::h2::waits_for_content;
use super::multiplexed::{Incoming, Open, Tally, Unfit};
use super::session::Gone;
use crate::http1::{RequestHead, Version};

mod frames;
mod session;
mod transport;

pub use session::Exchange;
use session::{Streams, WRITE_TIMEOUT, bounded};
use transport::{Accepted, Newest};

/// Requests the first GOAWAY still allows: those the client sent before it read of it.
const STILL_TAKEN: usize = 1 << 20;
/// Between the first GOAWAY and the last: some round trips (RFC 9114, 5.2).
const GOAWAY_GAP: Duration = Duration::from_millis(250);
/// Answers are waited for until the client has them; then its words of farewell have so long.
const LAST_BYTES: Duration = Duration::from_millis(20);
/// Bytes of frames other than DATA that a client may make us hold, at least.
const HELD_BYTES_MIN: u64 = 256 * 1024;

/// The bounds of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub header_list_bytes: usize,
    /// From the beginning of a request to the end of its head.
    pub header_timeout: Duration,
    /// For the settings of the connection.
    pub handshake_timeout: Duration,
    /// Without a request under way.
    pub idle_timeout: Duration,
}

/// How far a connection's leaving has come.
#[derive(Clone, Copy, PartialEq)]
enum Leaving {
    No,
    /// Told that it will end; requests on their way are still taken.
    Announced,
    /// Takes no more; what is under way ends.
    Said,
    /// Nothing is under way; the last bytes travel.
    Quiet,
}

/// A client's connection.
pub struct Connection {
    quic: quinn::Connection,
    inner: h3::server::Connection<transport::Connection, Bytes>,
    newest: Newest,
    /// Requests whose heads are not there yet.
    resolving: FuturesUnordered<BoxFuture<'static, Option<Arrival>>>,
    tally: Arc<Tally>,
    bounds: Bounds,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    leaving: Leaving,
    /// No request will come any more.
    exhausted: bool,
    /// The first id that is no longer taken.
    limit: u64,
    next_id: u64,
    used_at: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Connection {
    /// Begins HTTP/3 on a QUIC connection. `closing` resolves when connections are to end with what is under way on them.
    pub async fn accept(
        quic: quinn::Connection,
        bounds: Bounds,
        closing: WaitForCancellationFutureOwned,
    ) -> Option<Connection> {
        let newest = Newest::default();
        let held_max = (4 * bounds.header_list_bytes as u64).max(HELD_BYTES_MIN);
        let transport = transport::Connection::new(quic.clone(), newest.clone(), held_max);
        let mut builder = h3::server::builder();
        builder.max_field_section_size(bounds.header_list_bytes as u64).send_grease(false);
        let used_at = Instant::now();
        match timeout(bounds.handshake_timeout, builder.build(transport)).await.ok()? {
            Ok(inner) => Some(Connection {
                quic,
                inner,
                newest,
                resolving: FuturesUnordered::new(),
                tally: Arc::default(),
                bounds,
                closing: Box::pin(closing),
                leaving: Leaving::No,
                exhausted: false,
                limit: u64::MAX,
                next_id: 0,
                used_at,
                sleep: Box::pin(tokio::time::sleep_until(used_at + bounds.idle_timeout)),
            }),
            Err(error) => {
                tracing::debug!(%error, "no HTTP/3");
                None
            }
        }
    }

    /// The next request. `None`: the connection is over. To be called until then; requests are served in tasks of their own.
    pub async fn next(&mut self) -> Option<Arrival> {
        loop {
            tokio::select! {
                biased;
                accepted = self.inner.accept(), if !self.exhausted => match accepted {
                    Ok(Some(resolver)) => {
                        if let Some(arrival) = self.begin(resolver).await {
                            return Some(arrival);
                        }
                    }
                    // The client says it will ask nothing more; it may still be reading.
                    Ok(None) => {
                        self.exhausted = true;
                        self.leave().await;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an HTTP/3 connection ended");
                        return None;
                    }
                },
                Some(resolved) = self.resolving.next(), if !self.resolving.is_empty() => {
                    if resolved.is_some() {
                        return resolved;
                    }
                }
                () = &mut self.closing, if self.leaving == Leaving::No => self.leave().await,
                () = self.tally.excess() => {
                    self.quic.close(code(Code::H3_EXCESSIVE_LOAD), b"too many requests given up");
                    return None;
                }
                () = &mut self.sleep => {
                    if !self.sleep_on().await {
                        return None;
                    }
                }
            }
        }
    }

    /// The client's address now: a connection may move (RFC 9000, 9).
    pub fn peer(&self) -> std::net::SocketAddr {
        self.quic.remote_address()
    }

    /// Takes up the request stream that was accepted last. Its head is there already as a rule.
    async fn begin(&mut self, resolver: RequestResolver<transport::Connection, Bytes>) -> Option<Arrival> {
        // The transport left it when it gave the stream out, just now.
        let accepted = self.newest.lock().take()?;
        let facts = accepted.facts.clone();
        if facts.id >= self.limit {
            facts.reset_on_drop(Code::H3_REQUEST_REJECTED);
            return None;
        }
        self.next_id = facts.id + 4;
        self.used_at = Instant::now();
        let open = self.tally.begin();
        let patience = self.bounds.header_timeout;
        let mut resolving: BoxFuture<'static, Option<Arrival>> = Box::pin(async move {
            let watched = open.clone();
            let mut resolving = pin!(resolve(resolver, accepted, open));
            let resolved = timeout(patience, resolving.as_mut()).await.unwrap_or_else(|_| {
                // Before the streams are dropped, with what waits for them.
                facts.reset_on_drop(Code::H3_REQUEST_INCOMPLETE);
                None
            });
            if resolved.is_none() {
                watched.abandon();
            }
            resolved
        });
        match poll_fn(|cx| Poll::Ready(resolving.as_mut().poll(cx))).await {
            Poll::Ready(arrival) => arrival,
            Poll::Pending => {
                self.resolving.push(resolving);
                None
            }
        }
    }

    /// Tells the client that this connection will end, and lets those requests come that it sends before it reads so.
    pub async fn leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            if self.next_id == 0 {
                // With nothing accepted `h3` says that nothing will be, whatever it is told.
                self.limit = 0;
            }
            self.goaway(STILL_TAKEN).await;
            self.sleep.as_mut().reset(Instant::now() + GOAWAY_GAP);
        }
    }

    /// A client that reads nothing must not hold up its connection's other requests. A failure shows when the connection is
    /// read; the limit holds whatever the client was told.
    async fn goaway(&mut self, still_taken: usize) {
        let _ = timeout(GOAWAY_GAP, self.inner.shutdown(still_taken)).await;
    }

    /// The timer fired: is the connection to go on?
    async fn sleep_on(&mut self) -> bool {
        if self.leaving != Leaving::No {
            return self.leave_on().await;
        }
        let now = Instant::now();
        if self.tally.open() > 0 {
            self.used_at = now;
        }
        if now >= self.used_at + self.bounds.idle_timeout {
            self.leave().await;
        } else {
            self.sleep.as_mut().reset(self.used_at + self.bounds.idle_timeout);
        }
        true
    }

    /// The next step of leaving; false: that was the last.
    async fn leave_on(&mut self) -> bool {
        let idle = self.tally.open() == 0 && self.resolving.is_empty();
        let pause = match self.leaving {
            Leaving::No => return true,
            Leaving::Announced => {
                self.limit = self.next_id;
                self.goaway(1).await;
                self.leaving = Leaving::Said;
                Duration::ZERO
            }
            Leaving::Said if idle => {
                self.leaving = Leaving::Quiet;
                LAST_BYTES
            }
            Leaving::Said => Duration::from_millis(20),
            Leaving::Quiet => return false,
        };
        self.sleep.as_mut().reset(Instant::now() + pause);
        true
    }
}

fn code(code: Code) -> quinn::VarInt {
    quinn::VarInt::from_u64(code.value()).unwrap_or(quinn::VarInt::MAX)
}

/// Waits for the head of a request, and refuses what `h3` lets through though it is malformed (RFC 9114, 4.1.2 to 4.3.1).
async fn resolve(
    resolver: RequestResolver<transport::Connection, Bytes>,
    accepted: Accepted,
    open: Open,
) -> Option<Arrival> {
    let Accepted { facts, stopped } = accepted;
    let (request, stream) = match resolver.resolve_request().await {
        Ok(resolved) => resolved,
        Err(error) => {
            tracing::debug!(%error, "no HTTP/3 request");
            return None;
        }
    };
    let mut streams = Streams { stream, facts, stopped: Some(stopped), passed_over: 0, open };
    if !is_well_formed(&request) {
        streams.malformed();
        return None;
    }
    let looked = poll_fn(|cx| Poll::Ready(streams.poll_data(cx))).await;
    let first = match looked {
        Poll::Ready(Ok(first)) => first,
        Poll::Ready(Err(_)) => return None,
        Poll::Pending => None,
    };
    Some(Arrival { request, streams, first })
}

fn is_well_formed(request: &Request<()>) -> bool {
    let uri = request.uri();
    let whole = matches!(uri.scheme_str(), Some("https" | "http")) && uri.path_and_query().is_some();
    !is_of_one_connection(request.headers()) && (whole || request.method() == http::Method::CONNECT)
}

/// Is there a field that HTTP/3 cannot have? (RFC 9114, 4.2)
fn is_of_one_connection(fields: &HeaderMap) -> bool {
    const NAMES: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
    let te = fields.get(header::TE).is_none_or(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    !te || NAMES.iter().any(|name| fields.contains_key(*name))
}

/// One request whose head has come.
pub struct Arrival {
    request: Request<()>,
    streams: Streams,
    first: Option<Bytes>,
}

impl Incoming for Arrival {
    type Session = Exchange;

    fn request(&self) -> &Request<()> {
        &self.request
    }

    fn is_bare(&self) -> bool {
        self.first.is_none() && self.streams.facts.ended()
    }

    async fn answer(self, status: StatusCode, fields: HeaderMap, body: Bytes) -> Result<(), Gone> {
        let Arrival { mut streams, .. } = self;
        streams.facts.reset_on_drop(Code::H3_INTERNAL_ERROR);
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        let stream = &mut streams.stream;
        bounded(WRITE_TIMEOUT, async {
            stream.send_response(response).await?;
            if !body.is_empty() {
                stream.send_data(body).await?;
            }
            stream.finish().await
        })
        .await?;
        streams.sent();
        Ok(())
    }

    async fn into_session(mut self) -> Result<Exchange, Unfit<Self>> {
        self.streams.facts.reset_on_drop(Code::H3_REQUEST_INCOMPLETE);
        if self.first.is_none() && !self.streams.facts.ended() && waits_for_content(&self.request) {
            match poll_fn(|cx| self.streams.poll_data(cx)).await {
                Ok(first) => self.first = first,
                Err(_) => {
                    self.streams.given_up();
                    return Err(Unfit::Gone);
                }
            }
        }
        let follows = !self.is_bare();
        let uri = self.request.uri();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let method = self.request.method().clone();
        let fields = self.request.headers();
        match RequestHead::multiplexed(Version::Http3, method, authority, path, fields, follows) {
            Ok(head) => Ok(Exchange::new(head, self.streams, self.first)),
            Err(refused) if refused.status == StatusCode::BAD_REQUEST => {
                self.streams.malformed();
                Err(Unfit::Gone)
            }
            Err(refused) => Err(Unfit::Refused(self, refused)),
        }
    }
}
