//! Connections of HTTP/2 and HTTP/3: requests side by side. A plain fresh hit is answered where it is found; every other
//! request is a task of its own on the connection's core.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Proxy;
use super::context::{CacheResult, Context, Downstream};
use super::front::{self, Found, Scratch};
use super::outgoing;
use super::rescue::Rescue;
use super::routes::Live;
use super::serve::{Client, Ended, HitLine};
use crate::clock;
use crate::http1::RefusedRequest;
use crate::listener::multiplexed::{Incoming, Unfit, map_of};
use crate::listener::{h2, h3, quic};
use crate::resilience::limit::ClientKey;

/// Content above this goes the whole way, where a client that does not read is given up.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// Serves the QUIC connections of one listener.
#[derive(Clone)]
pub struct QuicCore {
    pub proxy: Arc<Proxy>,
    pub metrics: quic::Metrics,
    /// The field line that offers HTTP/3 anew.
    pub alt_svc: &'static [u8],
}

impl quic::Handler for QuicCore {
    fn client(&self, peer: SocketAddr) -> Option<ClientKey> {
        self.proxy.live.load().client(peer.ip())
    }

    fn serve(&self, connection: quinn::Connection) -> impl Future<Output = ()> + Send + 'static {
        let QuicCore { proxy, metrics, alt_svc } = self.clone();
        async move { proxy.http3(connection, metrics, alt_svc).await }
    }
}

impl Proxy {
    /// Serves a connection of HTTP/2 to its end.
    pub(super) async fn http2<T>(self: &Arc<Self>, io: T, downstream: Downstream)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let bounds = {
            let live = self.live.load();
            let limits = &live.limits;
            h2::Bounds {
                streams: limits.streams_per_connection,
                header_list_bytes: limits.header_list_bytes,
                handshake_timeout: limits.handshake_timeout,
                idle_timeout: limits.idle_timeout,
            }
        };
        let closing = self.closing.clone().cancelled_owned();
        let Some(mut connection) = h2::Connection::accept(io, bounds, closing).await else { return };
        let mut scratch = Scratch::default();
        while let Some(arrival) = connection.next().await {
            if self.drain.draining() {
                connection.leave();
            }
            self.take_up(arrival, downstream, &mut scratch).await;
        }
    }

    /// Serves a connection of HTTP/3 to its end.
    async fn http3(
        self: &Arc<Self>,
        connection: quinn::Connection,
        metrics: quic::Metrics,
        alt_svc: &'static [u8],
    ) {
        let bounds = {
            let live = self.live.load();
            h3::Bounds {
                header_list_bytes: live.limits.header_list_bytes,
                header_timeout: live.limits.header_timeout,
                handshake_timeout: live.limits.handshake_timeout,
                idle_timeout: live.limits.idle_timeout,
            }
        };
        // Of trust and rates the address counts that was validated in the handshake. One that a connection moves to is
        // believed by QUIC before it is (RFC 9000, 9.3), and could be anybody's.
        let peer = quic::canonical(connection.remote_address());
        let mut seen_at = peer;
        let closing = self.closing.clone().cancelled_owned();
        let Some(mut connection) = h3::Connection::accept(connection, bounds, closing).await else { return };
        let mut scratch = Scratch::default();
        while let Some(arrival) = connection.next().await {
            let now = quic::canonical(connection.peer());
            if now != seen_at {
                seen_at = now;
                metrics.moved();
            }
            if self.drain.draining() {
                connection.leave().await;
            }
            let downstream = Downstream { peer, scheme: "https", protocol: "h3", alt_svc };
            self.take_up(arrival, downstream, &mut scratch).await;
        }
    }

    /// Answers a request, or begins to.
    async fn take_up<I: Incoming>(
        self: &Arc<Self>,
        arrival: I,
        downstream: Downstream,
        scratch: &mut Scratch,
    ) {
        let live = self.live.load_full();
        if arrival.is_bare()
            && let Some(found) = front::find_parsed(&live, arrival.request(), scratch)
            && found.entry.body.len() <= INLINE_BYTES_MAX
        {
            let client = Client::of(&live, downstream.peer);
            if client.within_rate(&live, found.now).is_ok() {
                let proxy = self.clone();
                let mut answering = Box::pin(async move {
                    proxy.answer_hit(arrival, &live, downstream, client, found).await;
                });
                // It is answered at once, as a rule; a client that does not read must not hold the others up.
                if poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx))).await.is_pending() {
                    tokio::spawn(answering);
                }
                return;
            }
        }
        let proxy = self.clone();
        tokio::spawn(async move { proxy.exchange(arrival, live, downstream).await });
    }

    async fn answer_hit<I: Incoming>(
        &self,
        arrival: I,
        live: &Live,
        downstream: Downstream,
        client: Client,
        found: Found,
    ) {
        let _in_flight = self.drain.guard();
        let mut context = Context::new(found.now, downstream, client.trusted);
        let entry = &found.entry;
        let (age, ttl) = (entry.times.age(found.now), entry.times.ttl(found.now));
        let fields = outgoing::stored_fields(entry, age.as_secs(), ttl.as_secs(), "hit", &context);
        context.cache = CacheResult::Hit;
        context.status = entry.status.as_u16();
        // The URI is a reference count away; only a logged request needs it.
        let uri = self.access_log.is_on().then(|| arrival.request().uri().clone());
        if arrival.answer(entry.status, fields, entry.body.clone()).await.is_ok() {
            context.bytes_out = entry.body.len() as u64;
        }
        let line = HitLine {
            host: uri.as_ref().and_then(|uri| uri.authority()).map_or("", |authority| authority.as_str()),
            target: uri.as_ref().and_then(|uri| uri.path_and_query()).map_or("", |target| target.as_str()),
        };
        self.account_hit(live, &context, &found, line);
    }

    /// Takes one request through its phases.
    async fn exchange<I: Incoming>(self: Arc<Self>, arrival: I, live: Arc<Live>, downstream: Downstream) {
        let client = Client::of(&live, downstream.peer);
        let timeout = live.limits.header_timeout;
        match tokio::time::timeout(timeout, arrival.into_session()).await {
            Ok(Ok(mut session)) => {
                if let Ended::Cut = self.serve(&mut session, live, client, downstream).await {
                    tracing::trace!("the stream is reset");
                }
            }
            Ok(Err(Unfit::Refused(arrival, refused))) => self.refuse_one(arrival, refused, downstream).await,
            Ok(Err(Unfit::Gone)) | Err(_) => {}
        }
    }

    /// Answers a request that cannot be served; its connection lives on.
    async fn refuse_one<I: Incoming>(&self, arrival: I, refused: RefusedRequest, downstream: Downstream) {
        let _in_flight = self.drain.guard();
        let context = Context::new(clock::now(), downstream, false);
        let rescue = Rescue::Refused(refused);
        let counted = &self.metrics.unrouted;
        counted.rescued(rescue.reason());
        let method = arrival.request().method().clone();
        counted.ended(
            downstream.protocol,
            &method,
            refused.status.as_u16(),
            false,
            std::time::Duration::ZERO,
        );
        let answer = rescue.answer(context.id_bytes(), &clock::http_date());
        let body = if method == Method::HEAD { Default::default() } else { answer.body };
        let _ = arrival.answer(answer.status, map_of(&answer.lines), body).await;
    }
}
