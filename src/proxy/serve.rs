//! A connection's requests, one after the other: read, bounded, answered from the front or taken through the phases.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Proxy;
use super::access_log::Line;
use super::caching::{self, Cached};
use super::context::Context;
use super::forwarding::{Forwarded, Forwarder};
use super::front::{self, Scratch};
use super::metrics::RouteMetrics;
use super::rescue::Rescue;
use super::routes::{Live, Route};
use crate::clock;
use crate::http1::{Framing, RequestHead};
use crate::listener::h1::{Connection, Unfilled};
use crate::listener::tcp::{Accepted, Handler};
use crate::listener::{AnswerHead, BodySize, Session};
use crate::resilience::limit::ClientKey;
use crate::route::Found;

/// Serves the connections of one core.
#[derive(Clone)]
pub struct Core(pub Arc<Proxy>);

/// Who is at the other end.
struct Client {
    key: Option<ClientKey>,
    trusted: bool,
}

/// What became of one request of a connection.
enum Next {
    /// Ready for the next one.
    Again,
    /// The connection ends after what was answered.
    Close,
    /// Nobody is there any more.
    Gone,
}

impl Handler for Core {
    fn client(&self, peer: SocketAddr) -> Option<ClientKey> {
        self.0.live.load().client(peer.ip())
    }

    fn serve(&self, accepted: Accepted) -> impl Future<Output = ()> + Send + 'static {
        let proxy = self.0.clone();
        async move {
            let Accepted { stream, peer, permit } = accepted;
            let closing = proxy.closing.clone().cancelled_owned();
            let mut connection = Connection::new(stream, peer, closing);
            let mut scratch = Scratch::default();
            let next = loop {
                match proxy.next(&mut connection, &mut scratch).await {
                    Next::Again => {}
                    other => break other,
                }
            };
            if connection.abortive {
                // Without a reset the client would take the cut answer for a whole one.
                let _ = connection.io().set_zero_linger();
            } else if matches!(next, Next::Close) {
                connection.close().await;
            }
            drop(permit);
        }
    }
}

impl Proxy {
    /// Waits for the next request of the connection and answers it.
    async fn next<T: AsyncRead + AsyncWrite + Unpin + Send>(
        self: &Arc<Self>,
        connection: &mut Connection<T>,
        scratch: &mut Scratch,
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
            if !connection.input.is_empty() && (look || too_long) {
                parsed = connection.input.len();
                let live = self.live.load();
                if let Some(hit) = front::find(&live, &connection.input, scratch) {
                    let client = Client::of(&live, connection.peer);
                    if let Some(next) = self.hit(connection, &live, &client, hit).await {
                        return next;
                    }
                }
                let read = connection.input.len();
                match RequestHead::take(&mut connection.input) {
                    // A head that came in one go is whole before it can be seen to grow too long.
                    Ok(Some(_)) if read - connection.input.len() > live.limits.header_bytes => {
                        return self.refuse(connection, Rescue::HeadTooLarge).await;
                    }
                    Ok(Some(head)) => {
                        let live = arc_swap::Guard::into_inner(live);
                        return self.request(connection, live, head).await;
                    }
                    Ok(None) if connection.input.len() > live.limits.header_bytes => {
                        return self.refuse(connection, Rescue::HeadTooLarge).await;
                    }
                    Ok(None) => {
                        let timeout = live.limits.header_timeout;
                        head_until.get_or_insert_with(|| tokio::time::Instant::now() + timeout);
                    }
                    Err(refused) => return self.refuse(connection, Rescue::Refused(refused)).await,
                }
            }
            match connection.fill(head_until.unwrap_or(idle_until)).await {
                Ok(()) => {}
                Err(Unfilled::TimedOut) if head_until.is_some() => {
                    return self.refuse(connection, Rescue::HeadTimeout).await;
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
        live: &Live,
        client: &Client,
        hit: front::Hit,
    ) -> Option<Next> {
        if client.within_rate(live, hit.now).is_err() {
            return None;
        }
        let _in_flight = self.drain.guard();
        let close = self.drain.draining();
        let mut context = Context::new(hit.now, connection.peer, client.trusted);
        let (head, sent) = hit.send(connection, &mut context, close).await;
        let took = clock::now().saturating_duration_since(hit.now);
        hit.route.metrics.ended(context.protocol, &Method::GET, context.status, false, took);
        hit.route.metrics.moved(0, context.bytes_out, 0);
        if self.access_log.wants(live.access_log_sample, context.status) {
            self.access_log.write(
                &context,
                &Line {
                    method: "GET",
                    host: hit.host(&head),
                    target: hit.target(&head),
                    user_agent: None,
                    route: &hit.route.config.name,
                    took,
                },
            );
        }
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
        live: Arc<Live>,
        head: RequestHead,
    ) -> Next {
        let client = Client::of(&live, connection.peer);
        let peer = connection.peer;
        let mut exchange = connection.exchange(head);
        let ended = self.serve(&mut exchange, live, client, peer).await;
        match ended {
            Ended::Whole if exchange.reusable() => Next::Again,
            Ended::Whole => Next::Close,
            Ended::Cut | Ended::ClientGone => Next::Gone,
        }
    }

    /// One request, whatever its protocol: bounded, routed, answered, counted, logged.
    async fn serve<S: Session>(
        self: &Arc<Self>,
        session: &mut S,
        live: Arc<Live>,
        client: Client,
        peer: SocketAddr,
    ) -> Ended {
        let _in_flight = self.drain.guard();
        let mut context = Context::new(clock::now(), peer, client.trusted);
        context.adopt_id(session.request());
        if self.drain.draining() {
            session.close_after();
        }
        let target = &session.request().target;
        let found = live.table.find(target.host(), &session.request().method, target.path());
        let (route, missed) = match found {
            Found::Route(route) => (Some(route.clone()), None),
            Found::MethodNotAllowed(methods) => (None, Some(Rescue::MethodNotAllowed(methods))),
            Found::NotFound => (None, Some(Rescue::NoRoute)),
        };
        let counted = route.as_ref().map_or(&*self.metrics.unrouted, |route| &route.metrics);
        counted.in_flight.inc();
        if let Some(route) = &route {
            session.set_write_timeout(route.config.idle_timeout);
        }
        let forwarded = match (&route, missed, client.within_rate(&live, context.started)) {
            (_, _, Err(wait)) => Forwarded::Rescue(Rescue::RateLimited(wait)),
            (Some(route), None, Ok(())) => self.answer(session, &mut context, &live, route).await,
            (_, missed, _) => Forwarded::Rescue(missed.unwrap_or(Rescue::NoRoute)),
        };
        let ended = self.conclude(session, &mut context, counted, forwarded).await;
        counted.in_flight.dec();
        let cut = matches!(ended, Ended::Cut);
        self.account(session.request(), &context, cut, counted, &live, route.as_deref());
        ended
    }

    /// The phases of a routed request: bounds on its content and of its route, cache, upstream.
    async fn answer<S: Session>(
        &self,
        session: &mut S,
        context: &mut Context,
        live: &Live,
        route: &Route,
    ) -> Forwarded {
        let request = session.request();
        if let Framing::Length(bytes) = request.framing
            && bytes > live.limits.body_bytes
        {
            return Forwarded::Rescue(Rescue::BodyTooLarge);
        }
        if request.http11
            && request.fields.contains("expect")
            && !request.fields.has_token("expect", "100-continue")
        {
            return Forwarded::Rescue(Rescue::ExpectationFailed);
        }
        let mut cache_status: &'static [u8] = b"forefront; fwd=bypass";
        if let Some(cache) = &route.cache
            && caching::is_eligible(request)
        {
            let scope = route.scope(request.target.host()).into_owned();
            match caching::answer(session, context, cache, &scope).await {
                Cached::Done(forwarded) => return forwarded,
                Cached::Pass(status) => cache_status = status,
            }
        }
        let _place = match &route.gate {
            Some(gate) => {
                let waits = session.request().framing == Framing::None;
                tokio::select! {
                    place = gate.enter(route.config.timeout) => match place {
                        Ok(place) => Some(place),
                        Err(_) => return Forwarded::Rescue(Rescue::Overloaded),
                    },
                    _ = session.left(), if waits => return Forwarded::ClientGone,
                }
            }
            None => None,
        };
        let body_bytes_max = live.limits.body_bytes;
        let forwarder = Forwarder { route, body_bytes_max, cache_status, closing: &self.closing };
        forwarder.run(session, context).await
    }

    /// Answers what nobody answered yet, and tells how the exchange ended.
    async fn conclude<S: Session>(
        &self,
        session: &mut S,
        context: &mut Context,
        counted: &RouteMetrics,
        forwarded: Forwarded,
    ) -> Ended {
        match forwarded {
            Forwarded::Answered => Ended::Whole,
            Forwarded::Rescue(rescue) => {
                context.failure = Some(rescue.reason());
                context.status = rescue.status().as_u16();
                counted.rescued(rescue.reason());
                if rescue.ends_connection() {
                    session.close_after();
                }
                let answer = rescue.answer(context.id_bytes(), &clock::http_date());
                let body = BodySize::Length(answer.body.len() as u64);
                session.send_head(AnswerHead { status: answer.status, lines: &answer.lines, body });
                let sent = async {
                    session.send(answer.body).await?;
                    session.finish(b"").await
                };
                if sent.await.is_ok() { Ended::Whole } else { Ended::ClientGone }
            }
            Forwarded::Cut(reason) => {
                tracing::info!(request_id = context.id.as_str(), reason, "an answer was cut short");
                context.failure = Some("http_response_incomplete");
                counted.rescued("http_response_incomplete");
                Ended::Cut
            }
            Forwarded::ClientGone => {
                context.failure = Some("client_gone");
                // The client will never see a status; 499 in logs and metrics, as nginx has it.
                if context.status == 0 {
                    context.status = 499;
                }
                Ended::ClientGone
            }
        }
    }

    fn account(
        &self,
        request: &RequestHead,
        context: &Context,
        cut: bool,
        counted: &RouteMetrics,
        live: &Live,
        route: Option<&Route>,
    ) {
        let took = clock::now().saturating_duration_since(context.started);
        counted.ended(context.protocol, &request.method, context.status, cut, took);
        counted.moved(context.bytes_in, context.bytes_out, context.retries);
        if self.access_log.wants(live.access_log_sample, context.status) {
            self.access_log.write(
                context,
                &Line {
                    method: request.method.as_str(),
                    host: request.target.authority(),
                    target: request.target.origin_form(),
                    user_agent: request.fields.get("user-agent"),
                    route: route.map_or("none", |route| &route.config.name),
                    took,
                },
            );
        }
    }

    /// Answers bytes that are no request, and ends the connection.
    async fn refuse<T: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        connection: &mut Connection<T>,
        rescue: Rescue,
    ) -> Next {
        let context = Context::new(clock::now(), connection.peer, false);
        let counted = &self.metrics.unrouted;
        counted.rescued(rescue.reason());
        let status = rescue.status().as_u16();
        counted.ended(context.protocol, &Method::GET, status, false, std::time::Duration::ZERO);
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

enum Ended {
    /// The client has a whole answer.
    Whole,
    /// The connection must end so that the client sees its answer is not whole.
    Cut,
    ClientGone,
}

impl Client {
    fn of(live: &Live, peer: SocketAddr) -> Client {
        let trusted = live.trusts(peer.ip());
        Client { key: (!trusted).then(|| ClientKey::from(peer.ip())), trusted }
    }

    /// Is this client within its rate of requests? If not, how long it must wait.
    fn within_rate(&self, live: &Live, now: Instant) -> Result<(), std::time::Duration> {
        match (&live.rates, self.key) {
            (Some(rates), Some(key)) => rates.take(key, now),
            _ => Ok(()),
        }
    }
}
