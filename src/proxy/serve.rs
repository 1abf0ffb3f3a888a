//! One request, whatever its protocol: bounded, routed, taken through the phases, answered, counted, logged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;

use super::Proxy;
use super::access_log::Line;
use super::caching::{self, Cached};
use super::context::{Context, Downstream};
use super::forwarding::{Forwarded, Forwarder};
use super::front::Found as FrontFound;
use super::metrics::RouteMetrics;
use super::outgoing;
use super::rescue::Rescue;
use super::routes::{Live, Route};
use crate::clock;
use crate::http1::{Framing, RequestHead, Version};
use crate::listener::{AnswerHead, BodySize, Session};
use crate::resilience::limit::ClientKey;
use crate::route::Found;

/// Who is at the other end.
pub struct Client {
    key: Option<ClientKey>,
    pub trusted: bool,
}

impl Proxy {
    /// One request, whatever its protocol: bounded, routed, answered, counted, logged.
    pub(super) async fn serve<S: Session>(
        self: &Arc<Self>,
        session: &mut S,
        live: Arc<Live>,
        client: Client,
        downstream: Downstream,
    ) -> Ended {
        let _in_flight = self.drain.guard();
        let mut context = Context::new(clock::now(), downstream, client.trusted);
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
        let _counted_in_flight = InFlight::count(&counted.in_flight);
        if let Some(route) = &route {
            session.set_write_timeout(route.config.idle_timeout);
        }
        let forwarded = match (&route, missed, client.within_rate(&live, context.started)) {
            (_, _, Err(wait)) => Forwarded::Rescue(Rescue::RateLimited(wait)),
            (Some(route), None, Ok(())) => self.answer(session, &mut context, &live, route).await,
            (_, missed, _) => Forwarded::Rescue(missed.unwrap_or(Rescue::NoRoute)),
        };
        let ended = self.conclude(session, &mut context, counted, route.as_deref(), forwarded).await;
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
        if request.version != Version::Http10
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
        route: Option<&Route>,
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
                let mut answer = rescue.answer(context.id_bytes(), &clock::http_date());
                answer.lines.extend_from_slice(context.downstream.alt_svc);
                // Whoever sent no key, and is told that nobody knows, can ask again with the one it was sent with.
                if route.is_some_and(|route| route.config.idempotency_key)
                    && outgoing::needs_key(session.request())
                {
                    outgoing::told_key(context, &mut answer.lines);
                }
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

    /// Counts and logs a plain fresh hit that was sent.
    pub(super) fn account_hit(&self, live: &Live, context: &Context, hit: &FrontFound, line: HitLine<'_>) {
        let took = clock::now().saturating_duration_since(hit.now);
        hit.route.metrics.ended(context.downstream.protocol, &Method::GET, context.status, false, took);
        hit.route.metrics.moved(0, context.bytes_out, 0);
        if self.access_log.wants(live.access_log_sample, context.status) {
            let HitLine { host, target } = line;
            let route = &hit.route.config.name;
            self.access_log
                .write(context, &Line { method: "GET", host, target, user_agent: None, route, took });
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
        counted.ended(context.downstream.protocol, &request.method, context.status, cut, took);
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
}

/// Counts down also when the request's task is dropped or panics.
struct InFlight(prometheus::IntGauge);

impl InFlight {
    fn count(gauge: &prometheus::IntGauge) -> InFlight {
        gauge.inc();
        InFlight(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What the log tells of a hit's request.
pub struct HitLine<'a> {
    pub host: &'a str,
    pub target: &'a str,
}

/// How an exchange ended.
pub enum Ended {
    /// The client has a whole answer.
    Whole,
    /// The connection must end so that the client sees its answer is not whole.
    Cut,
    ClientGone,
}

impl Client {
    pub fn of(live: &Live, peer: std::net::SocketAddr) -> Client {
        let trusted = live.trusts(peer.ip());
        Client { key: (!trusted).then(|| ClientKey::from(peer.ip())), trusted }
    }

    /// Is this client within its rate of requests? If not, how long it must wait.
    pub fn within_rate(&self, live: &Live, now: Instant) -> Result<(), Duration> {
        match (&live.rates, self.key) {
            (Some(rates), Some(key)) => rates.take(key, now),
            _ => Ok(()),
        }
    }
}
