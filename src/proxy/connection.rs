//! Connections, whatever they speak: who is at the other end, what is spoken, and, over HTTP/1.1, one request after the other.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Proxy;
use super::context::{Context, Downstream};
use super::front::{self, Scratch};
use super::rescue::Rescue;
use super::routes::Live;
use super::serve::{Client, Ended, HitLine};
use crate::clock;
use crate::http1::RequestHead;
use crate::listener::h1::{Connection, Unfilled};
use crate::listener::rewound::Rewound;
use crate::listener::tcp::{Accepted, Handler, Permit};
use crate::listener::{h2, proxied};
use crate::resilience::limit::ClientKey;

/// Serves the connections of one listener.
#[derive(Clone)]
pub struct Core {
    pub proxy: Arc<Proxy>,
    pub door: Door,
}

/// What a listener speaks.
#[derive(Clone)]
pub enum Door {
    Http,
    /// `alt_svc`: the field line that offers HTTP/3, or nothing.
    Https {
        tls: TlsAcceptor,
        alt_svc: &'static [u8],
    },
}

/// A connection that can be ended so that the client sees that not all has come.
trait Abort {
    /// Ends by a reset when it is dropped.
    fn abort(&self);
}

impl Abort for TcpStream {
    fn abort(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Abort for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}

/// What became of one request of a connection.
enum Next {
    /// Ready for the next one.
    Again,
    /// The connection ends after what was answered.
    Close,
    /// Nobody is there any more.
    Gone,
    /// The client speaks HTTP/2, without TLS and by prior knowledge.
    Http2,
}

impl Handler for Core {
    fn client(&self, peer: SocketAddr) -> Option<ClientKey> {
        let live = self.proxy.live.load();
        // A balancer is not its clients: they are counted once it has named them.
        if live.proxy_protocol.expects(peer.ip()) { None } else { live.client(peer.ip()) }
    }

    fn serve(&self, accepted: Accepted) -> impl Future<Output = ()> + Send + 'static {
        let Core { proxy, door } = self.clone();
        async move {
            let Accepted { mut stream, peer, mut permit } = accepted;
            let Some(peer) = proxy.whom(&mut stream, peer, &mut permit).await else { return };
            match door {
                Door::Http => proxy.http1(stream, Downstream::plain(peer)).await,
                Door::Https { tls, alt_svc } => proxy.https(stream, tls, peer, alt_svc).await,
            }
            drop(permit);
        }
    }
}

impl Proxy {
    /// Whom a connection is for: its peer, or whoever the peer speaks for. `None`: it is not to be served.
    async fn whom(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        permit: &mut Permit,
    ) -> Option<SocketAddr> {
        let timeout = {
            let live = self.live.load();
            if !live.proxy_protocol.expects(peer.ip()) {
                return Some(peer);
            }
            live.limits.handshake_timeout
        };
        let client = match tokio::time::timeout(timeout, proxied::take_header(stream)).await {
            Ok(Ok(client)) => client.unwrap_or(peer),
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "connection refused");
                return None;
            }
            Err(_) => return None,
        };
        let key = self.live.load().client(client.ip());
        key.is_none_or(|key| permit.count(key)).then_some(client)
    }

    /// Greets with TLS, and goes on with what was agreed on.
    async fn https(
        self: &Arc<Self>,
        stream: TcpStream,
        tls: TlsAcceptor,
        peer: SocketAddr,
        alt_svc: &'static [u8],
    ) {
        let timeout = self.live.load().limits.handshake_timeout;
        let stream = match tokio::time::timeout(timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "a TLS handshake failed");
                self.metrics.handshakes.failed();
                return;
            }
            Err(_) => {
                self.metrics.handshakes.failed();
                return;
            }
        };
        let session = stream.get_ref().1;
        self.metrics.handshakes.completed(session);
        let over_h2 = session.alpn_protocol() == Some(b"h2");
        let downstream = Downstream { peer, scheme: "https", protocol: "h1", alt_svc };
        if over_h2 {
            self.http2(stream, Downstream { protocol: "h2", ..downstream }).await;
        } else {
            self.http1(stream, downstream).await;
        }
    }

    /// Serves a connection that begins with HTTP/1.1.
    async fn http1<T>(self: &Arc<Self>, io: T, downstream: Downstream)
    where
        T: AsyncRead + AsyncWrite + Abort + Unpin + Send,
    {
        let mut connection = Connection::new(io, self.closing.clone().cancelled_owned());
        let mut scratch = Scratch::default();
        let mut first = downstream.scheme == "http";
        let next = loop {
            match self.next(&mut connection, &downstream, &mut scratch, first).await {
                Next::Again => first = false,
                other => break other,
            }
        };
        match next {
            // Without a reset the client would take the cut answer for a whole one.
            _ if connection.abortive => connection.io().abort(),
            Next::Close => connection.close().await,
            Next::Http2 => {
                let (ahead, io) = connection.into_parts();
                self.http2(Rewound::new(ahead, io), Downstream { protocol: "h2", ..downstream }).await;
            }
            Next::Again | Next::Gone => {}
        }
    }

    /// Waits for the next request of the connection and answers it. `first`: it may turn out to be HTTP/2.
    async fn next<T: AsyncRead + AsyncWrite + Unpin + Send>(
        self: &Arc<Self>,
        connection: &mut Connection<T>,
        downstream: &Downstream,
        scratch: &mut Scratch,
        first: bool,
    ) -> Next {
        let idle_until = tokio::time::Instant::now() + self.live.load().limits.idle_timeout;
        let mut head_until = None;
        let mut parsed = 0;
        loop {
            skip_empty_lines(&mut connection.input);
            // The first bytes are always looked at, for what is no request is refused at once; then nothing is until the
            // head may have ended, or one that comes byte by byte would be parsed as often.
            let look = parsed == 0 || may_end_head(&connection.input, parsed);
            let too_long = connection.input.len() > self.live.load().limits.header_bytes;
            let preface = if first { preface(&connection.input) } else { None };
            if let Some(whole) = preface {
                if whole {
                    return Next::Http2;
                }
                let timeout = self.live.load().limits.header_timeout;
                head_until.get_or_insert_with(|| tokio::time::Instant::now() + timeout);
            } else if !connection.input.is_empty() && (look || too_long) {
                parsed = connection.input.len();
                let live = self.live.load();
                if let Some(hit) = front::find(&live, &connection.input, scratch)
                    && let Some(next) = self.hit(connection, downstream, &live, hit).await
                {
                    return next;
                }
                let read = connection.input.len();
                match RequestHead::take(&mut connection.input) {
                    // A head that came in one go is whole before it can be seen to grow too long.
                    Ok(Some(_)) if read - connection.input.len() > live.limits.header_bytes => {
                        return self.refuse(connection, downstream, Rescue::HeadTooLarge).await;
                    }
                    Ok(Some(head)) => {
                        let live = arc_swap::Guard::into_inner(live);
                        return self.request(connection, downstream, live, head).await;
                    }
                    Ok(None) if connection.input.len() > live.limits.header_bytes => {
                        return self.refuse(connection, downstream, Rescue::HeadTooLarge).await;
                    }
                    Ok(None) => {
                        let timeout = live.limits.header_timeout;
                        head_until.get_or_insert_with(|| tokio::time::Instant::now() + timeout);
                    }
                    Err(refused) => {
                        return self.refuse(connection, downstream, Rescue::Refused(refused)).await;
                    }
                }
            }
            match connection.fill(head_until.unwrap_or(idle_until)).await {
                Ok(()) => {}
                Err(Unfilled::TimedOut) if head_until.is_some() => {
                    return self.refuse(connection, downstream, Rescue::HeadTimeout).await;
                }
                Err(Unfilled::TimedOut | Unfilled::Closing) => return Next::Close,
                Err(Unfilled::Closed) => return Next::Gone,
            }
        }
    }

    /// Answers a plain fresh hit. `None`: the client is over its rate, so the whole way says so.
    async fn hit<T: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        connection: &mut Connection<T>,
        downstream: &Downstream,
        live: &Live,
        hit: front::Hit,
    ) -> Option<Next> {
        let client = Client::of(live, downstream.peer);
        if client.within_rate(live, hit.found.now).is_err() {
            return None;
        }
        let _in_flight = self.drain.guard();
        let close = self.drain.draining();
        let mut context = Context::new(hit.found.now, *downstream, client.trusted);
        let (head, sent) = hit.send(connection, &mut context, close).await;
        let line = HitLine { host: hit.host(&head), target: hit.target(&head) };
        self.account_hit(live, &context, &hit.found, line);
        Some(match sent {
            Ok(()) if close => Next::Close,
            Ok(()) => Next::Again,
            Err(_) => Next::Gone,
        })
    }

    /// Takes a request through its phases and answers it.
    async fn request<T: AsyncRead + AsyncWrite + Unpin + Send>(
        self: &Arc<Self>,
        connection: &mut Connection<T>,
        downstream: &Downstream,
        live: Arc<Live>,
        head: RequestHead,
    ) -> Next {
        let client = Client::of(&live, downstream.peer);
        let mut exchange = connection.exchange(head);
        let ended = self.serve(&mut exchange, live, client, *downstream).await;
        match ended {
            Ended::Whole if exchange.reusable() => Next::Again,
            Ended::Whole => Next::Close,
            Ended::Cut | Ended::ClientGone => Next::Gone,
        }
    }

    /// Answers bytes that are no request, and ends the connection.
    async fn refuse<T: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        connection: &mut Connection<T>,
        downstream: &Downstream,
        rescue: Rescue,
    ) -> Next {
        let context = Context::new(clock::now(), *downstream, false);
        let counted = &self.metrics.unrouted;
        counted.rescued(rescue.reason());
        let status = rescue.status().as_u16();
        counted.ended(downstream.protocol, &Method::GET, status, false, Duration::ZERO);
        let answer = rescue.answer(context.id_bytes(), &clock::http_date());
        let mut head = BytesMut::new();
        crate::listener::h1::lay_head(answer.status, &answer.lines, &mut head);
        head.extend_from_slice(b"content-length: ");
        crate::listener::h1::push_number(answer.body.len() as u64, &mut head);
        head.extend_from_slice(b"\r\nconnection: close\r\n\r\n");
        connection.output.extend_from_slice(&head);
        match connection.send_with(&answer.body).await {
            Ok(()) => Next::Close,
            Err(_) => Next::Gone,
        }
    }
}

/// Is this the beginning of HTTP/2, as far as it has come? `Some(false)`: not all of it has.
fn preface(input: &[u8]) -> Option<bool> {
    let compared = input.len().min(h2::PREFACE.len());
    // Its first letter alone is a POST's too.
    (compared > 2 && input[..compared] == h2::PREFACE[..compared]).then_some(compared == h2::PREFACE.len())
}

/// Empty lines before a request are passed over (RFC 9112, 2.2).
fn skip_empty_lines(input: &mut BytesMut) {
    while let Some(b'\r' | b'\n') = input.first() {
        let _ = input.split_to(1);
    }
}

/// May a head end in what came after `from`?
fn may_end_head(input: &[u8], from: usize) -> bool {
    let window = &input[from.saturating_sub(3).min(input.len())..];
    window.windows(2).any(|two| two == b"\n\n") || window.windows(3).any(|three| three == b"\n\r\n")
}
