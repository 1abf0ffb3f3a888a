//! One request to an upstream: picks endpoints, asks, asks another when that does no harm, passes the answer on.
//!
//! A request is sent again only while no byte of an answer went to the client, only as the route's retry class allows,
//! never to an endpoint that was tried, and within the pool's budget. An idle connection that turns out closed does not count
//! as a try of its endpoint.

use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::origin::{AnswerError, ConnectError, Keep, Origin, Reader, Writer};
use super::outgoing;
use super::rescue::Rescue;
use super::routes::Route;
use super::tunnel;
use super::upload::{HELD_BYTES_MAX, Upload};
use crate::http1::{Decoded, Framing, MalformedResponse, ResponseHead};
use crate::listener::{AnswerHead, BodySize, Gone, Piece, Session};
use crate::resilience::retry::{self, Progress};
use crate::upstream::{Lease, Outcome, PickError};

/// Informational answers one origin may send before the final one.
const INTERIM_MAX: u32 = 16;
/// A connection that was idle and breaks this soon after a request was closed before the origin saw the request, as far as
/// one can tell.
const STALE_WITHIN: Duration = Duration::from_millis(50);
/// How long an origin that takes no more of a request may still answer it.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// A deadline that is none.
const FAR: Duration = Duration::from_secs(24 * 3600);
/// Endpoints one request may try, whatever the pool's `attempts`.
const TRIED_MAX: usize = 8;

/// How a forwarded request ended.
#[derive(Debug)]
pub enum Forwarded {
    /// The answer went out whole.
    Answered,
    /// Nothing went out yet: the caller answers.
    Rescue(Rescue),
    /// The answer's head went out and the rest will not come; the session must end so that the client sees it.
    Cut(&'static str),
    /// The client left first.
    ClientGone,
}

/// An origin that answered with a final head.
struct Asked {
    lease: Lease,
    reader: Reader,
    writer: Writer,
    keep: Keep,
    head: ResponseHead,
}

/// A try that brought no answer.
struct Failure {
    progress: Progress,
    rescue: Rescue,
    /// The connection had been idle and was closed by the origin before it saw the request, as far as one can tell.
    stale: bool,
}

enum Unasked {
    Failure(Failure),
    /// Nobody waits any more, or the client broke its own request: no other endpoint would help.
    Over(Forwarded),
}

impl From<Failure> for Unasked {
    fn from(failure: Failure) -> Unasked {
        Unasked::Failure(failure)
    }
}

/// Forwards a request and relays its answer.
pub struct Forwarder<'a> {
    pub route: &'a Route,
    /// Content the request may have.
    pub body_bytes_max: u64,
    /// The value of `Cache-Status` of the answer.
    pub cache_status: &'static [u8],
    /// When the node leaves: what has no end of its own is ended.
    pub closing: &'a CancellationToken,
}

impl Forwarder<'_> {
    /// Carries the request through to its end.
    pub async fn run<S: Session>(&self, session: &mut S, context: &mut Context) -> Forwarded {
        let pool = &self.route.pool;
        let mut upload = Upload::new(session.request(), self.body_bytes_max);
        if let Err(forwarded) = self.hold(session, &mut upload).await {
            return forwarded;
        }
        let _slow = match &self.route.uploads {
            Some(gate) if !upload.ended => match gate.enter(Duration::ZERO).await {
                Ok(place) => Some(place),
                Err(_) => return Forwarded::Rescue(Rescue::Overloaded),
            },
            _ => None,
        };
        pool.deposit();
        let class = self.route.config.retry;
        let idempotent = retry::is_idempotent(&session.request().method);
        let mut tried: Vec<u64> = Vec::new();
        let mut deadline: Option<Instant> = None;
        let mut fresh = false;
        let mut rescue = Rescue::NoEndpoint;
        let mut next: Option<Lease> = None;
        loop {
            let lease = match next.take().map_or_else(|| pool.pick(&tried, clock_now()), Ok) {
                Ok(lease) => lease,
                Err(PickError::Busy) => return Forwarded::Rescue(Rescue::Overloaded),
                Err(PickError::NoneHealthy) if tried.is_empty() => {
                    return Forwarded::Rescue(Rescue::NoEndpoint);
                }
                Err(_) => return Forwarded::Rescue(rescue),
            };
            let id = lease.id();
            match self.ask(session, context, lease, &mut upload, &mut deadline, fresh).await {
                Ok(asked) => {
                    tried.push(id);
                    let again = retry::may_retry(class, idempotent, Progress::Sent)
                        && is_sick(asked.head.status)
                        && upload.repeatable();
                    if again && self.may_try_again(tried.len()) && pool.may_retry(clock_now()) {
                        // The answer in hand is only given up for an endpoint that can take the request now.
                        next = pool.pick(&tried, clock_now()).ok();
                    }
                    if next.is_none() {
                        return self.relay(session, context, asked, upload).await;
                    }
                    drop(asked);
                }
                Err(Unasked::Over(forwarded)) => return forwarded,
                Err(Unasked::Failure(failure)) => {
                    rescue = failure.rescue;
                    fresh = failure.stale;
                    if !failure.stale {
                        tried.push(id);
                    }
                    let allowed = retry::may_retry(class, idempotent, failure.progress)
                        && upload.repeatable()
                        && self.may_try_again(tried.len());
                    if !allowed || !pool.may_retry(clock_now()) {
                        return Forwarded::Rescue(rescue);
                    }
                }
            }
            context.retries += 1;
        }
    }

    /// Reads the request's content before anything is asked of an origin, so that a client that sends a short body slowly
    /// keeps no endpoint's place meanwhile. Of a long body, or of one whose length is not known and which may be one side of
    /// a dialogue, only what is there already.
    async fn hold<S: Session>(&self, session: &mut S, upload: &mut Upload) -> Result<(), Forwarded> {
        let config = &self.route.config;
        let until = Instant::now() + config.timeout;
        let short =
            matches!(session.request().framing, Framing::Length(bytes) if bytes <= HELD_BYTES_MAX as u64);
        let mut may_continue = session.request().expects_continue();
        while !upload.ended && !upload.is_full() {
            let piece = match session.read_body().now_or_never() {
                Some(piece) => piece,
                None if may_continue => {
                    may_continue = false;
                    session
                        .send_interim(StatusCode::CONTINUE, b"")
                        .await
                        .map_err(|_| Forwarded::ClientGone)?;
                    continue;
                }
                None if !short => return Ok(()),
                None => {
                    let idle = Instant::now() + config.idle_timeout;
                    timeout_at(until.min(idle), session.read_body())
                        .await
                        .map_err(|_| Forwarded::Rescue(Rescue::BodyTimeout))?
                }
            };
            upload.take(piece.map_err(client_failed)?, false).map_err(Forwarded::Rescue)?;
        }
        Ok(())
    }

    /// When the exchange as a whole must be over.
    fn total_until(&self, context: &Context) -> Option<Instant> {
        self.route.config.total_timeout.map(|total| Instant::from_std(context.started + total))
    }

    fn may_try_again(&self, tries: usize) -> bool {
        tries < TRIED_MAX.min(self.route.pool.config().retry.attempts as usize)
    }

    /// Sends the request to one endpoint and waits for the final head of its answer.
    async fn ask<S: Session>(
        &self,
        session: &mut S,
        context: &mut Context,
        lease: Lease,
        upload: &mut Upload,
        deadline: &mut Option<Instant>,
        fresh: bool,
    ) -> Result<Asked, Unasked> {
        let config = &self.route.config;
        if context.endpoint.as_deref() != Some(lease.label()) {
            context.endpoint = Some(lease.label().into());
        }
        let origin = self.connect(&lease, deadline, fresh).await?;
        let reused = origin.reused;
        let (mut reader, mut writer, keep) = origin.split();

        let mut head = BytesMut::with_capacity(1024);
        let upgrade = session.request().framing == Framing::None
            && session.request().upgrade().is_some_and(outgoing::is_passed);
        let default_host = match session.request().target.authority() {
            "" => self.route.default_host(&lease),
            _ => String::new(),
        };
        let hop =
            outgoing::Hop { default_host: &default_host, upgrade, idempotency_key: config.idempotency_key };
        outgoing::request(session.request(), context, &hop, &mut head);
        upload.restart(session.request(), head);
        if upload.ended {
            deadline.get_or_insert_with(|| Instant::now() + config.timeout);
        }

        let asked_at = clock_now();
        let method = session.request().method.clone();
        let abandonable = retry::may_retry(config.retry, retry::is_idempotent(&method), Progress::Sent);
        let down = lease.endpoint_down();
        tokio::pin!(down);
        let total = self.total_until(context);
        let mut idle_until = Instant::now() + config.idle_timeout;
        let mut sent = false;
        let mut interims = 0;
        loop {
            let until = total.into_iter().fold(deadline.unwrap_or(idle_until), Instant::min);
            let ended = upload.ended;
            // Reading the client goes on only when what was read before is on its way, so a slow origin slows the client.
            let listens = upload.pending.is_empty();
            tokio::select! {
                biased;
                answer = reader.head(&method) => match answer {
                    Ok(head) if is_interim(&head) => {
                        interims += 1;
                        if interims > INTERIM_MAX {
                            let error = MalformedResponse("too many informational answers");
                            return Err(self.unanswered(&lease, error.into(), Progress::Sent, false).into());
                        }
                        self.interim(session, &head).await.map_err(|_| client_gone(&lease))?;
                    }
                    Ok(head) => return Ok(self.answered(lease, (reader, writer, keep), head, asked_at)),
                    Err(error) => {
                        let unseen = reused && reader.input.is_empty() && is_closed(&error);
                        let stale = unseen && clock_now().saturating_duration_since(asked_at) < STALE_WITHIN;
                        let progress = if sent { Progress::Sent } else { Progress::NothingSent };
                        return Err(self.unanswered(&lease, error, progress, stale).into());
                    }
                },
                written = writer.half.write_buf(&mut upload.pending), if !listens => match written {
                    Ok(bytes) if bytes > 0 => {
                        sent = true;
                        idle_until = Instant::now() + config.idle_timeout;
                        if upload.ended && upload.pending.is_empty() {
                            let _ = writer.half.flush().await;
                            deadline.get_or_insert_with(|| Instant::now() + config.timeout);
                        }
                    }
                    _ => {
                        upload.give_up();
                        // The origin may have answered before it closed: what it said is worth more than the error.
                        let last_words = timeout_at(Instant::now() + LAST_WORDS, final_head(&mut reader, &method));
                        if let Ok(Ok(head)) = last_words.await {
                            return Ok(self.answered(lease, (reader, writer, keep), head, asked_at));
                        }
                        let stale = reused && reader.input.is_empty() && !sent;
                        let progress = if sent { Progress::Sent } else { Progress::NothingSent };
                        return Err(self.unanswered(&lease, AnswerError::Closed, progress, stale).into());
                    }
                },
                event = wait_for_client(session, ended), if listens => match event {
                    Event::Left => return Err(client_gone(&lease)),
                    Event::Piece(Ok(piece)) => {
                        upload.take(piece, true).map_err(|rescue| self.over(&lease, Forwarded::Rescue(rescue)))?;
                        idle_until = Instant::now() + config.idle_timeout;
                        if upload.ended && upload.pending.is_empty() {
                            let _ = writer.half.flush().await;
                            deadline.get_or_insert_with(|| Instant::now() + config.timeout);
                        }
                    }
                    Event::Piece(Err(gone)) => return Err(self.over(&lease, client_failed(gone))),
                },
                () = &mut down, if abandonable => {
                    lease.report(Outcome::Abandoned, clock_now());
                    return Err(Failure { progress: Progress::Sent, rescue: Rescue::AnswerTimeout, stale: false }.into());
                }
                () = sleep_until(until) => {
                    if total.is_some_and(|total| Instant::now() >= total) {
                        return Err(self.over(&lease, Forwarded::Rescue(Rescue::TotalTimeout)));
                    }
                    if !upload.ended && upload.pending.is_empty() {
                        return Err(self.over(&lease, Forwarded::Rescue(Rescue::BodyTimeout)));
                    }
                    lease.report(Outcome::TimedOut, clock_now());
                    // The time is up for the request as a whole: no other endpoint is asked.
                    return Err(Unasked::Over(Forwarded::Rescue(Rescue::AnswerTimeout)));
                }
            }
        }
    }

    /// Reports the head of an answer.
    fn answered(
        &self,
        lease: Lease,
        (reader, writer, keep): (Reader, Writer, Keep),
        head: ResponseHead,
        asked_at: std::time::Instant,
    ) -> Asked {
        let latency = clock_now().saturating_duration_since(asked_at);
        lease.report(Outcome::Answered { status: head.status.as_u16(), latency }, clock_now());
        Asked { lease, reader, writer, keep, head }
    }

    async fn connect(
        &self,
        lease: &Lease,
        deadline: &Option<Instant>,
        fresh: bool,
    ) -> Result<Origin, Unasked> {
        let connecting = Origin::connect(lease, &self.route.pool, fresh);
        let connected = match *deadline {
            Some(deadline) => match timeout_at(deadline, connecting).await {
                Ok(connected) => connected,
                // The request's time is up; that says nothing of this endpoint.
                Err(_) => return Err(self.over(lease, Forwarded::Rescue(Rescue::AnswerTimeout))),
            },
            None => connecting.await,
        };
        connected.map_err(|error| {
            let (outcome, rescue) = match &error {
                ConnectError::Local(_) => {
                    tracing::debug!(endpoint = lease.label(), %error, "no connection");
                    return self.over(lease, Forwarded::Rescue(Rescue::Overloaded));
                }
                ConnectError::TimedOut => (Outcome::TimedOut, Rescue::ConnectTimeout),
                ConnectError::Failed(_) => (Outcome::ConnectFailed, Rescue::ConnectFailed),
                ConnectError::Address(_) => (Outcome::ConnectFailed, Rescue::Internal),
            };
            tracing::debug!(endpoint = lease.label(), %error, "no connection");
            lease.report(outcome, clock_now());
            Failure { progress: Progress::NotConnected, rescue, stale: false }.into()
        })
    }

    async fn interim<S: Session>(&self, session: &mut S, head: &ResponseHead) -> Result<(), Gone> {
        // 100 Continue is of one hop: the client got ours when its content was asked for.
        if head.status == StatusCode::CONTINUE {
            return Ok(());
        }
        let mut lines = BytesMut::new();
        outgoing::interim(head, &mut lines);
        session.send_interim(head.status, &lines).await
    }

    fn unanswered(&self, lease: &Lease, error: AnswerError, progress: Progress, stale: bool) -> Failure {
        tracing::debug!(endpoint = lease.label(), %error, stale, "no answer");
        let rescue = match error {
            AnswerError::Io(_) | AnswerError::Closed => Rescue::Broken,
            AnswerError::Head(_) | AnswerError::Body(_) | AnswerError::HeadTooLarge => Rescue::BadAnswer,
        };
        lease.report(if stale { Outcome::Abandoned } else { Outcome::Broken }, clock_now());
        Failure { progress, rescue, stale }
    }

    fn over(&self, lease: &Lease, forwarded: Forwarded) -> Unasked {
        lease.report(Outcome::Abandoned, clock_now());
        Unasked::Over(forwarded)
    }

    /// Passes the answer on.
    async fn relay<S: Session>(
        &self,
        session: &mut S,
        context: &mut Context,
        asked: Asked,
        mut upload: Upload,
    ) -> Forwarded {
        let Asked { lease, mut reader, mut writer, keep, head } = asked;
        let method = session.request().method.clone();
        let bodiless = method == http::Method::HEAD
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || head.status == StatusCode::SWITCHING_PROTOCOLS;
        let body = match head.content_length() {
            _ if bodiless => BodySize::None,
            Ok(Some(bytes)) => BodySize::Length(bytes),
            _ => BodySize::Unknown,
        };
        let mut lines = BytesMut::with_capacity(1024);
        outgoing::answer(&head, context, self.cache_status, body != BodySize::None, &mut lines);
        context.status = head.status.as_u16();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !outgoing::agrees(session.request(), &head) {
                lease.report(Outcome::Broken, clock_now());
                return Forwarded::Rescue(Rescue::BadAnswer);
            }
            let idle = self.route.config.idle_timeout;
            return tunnel::run(session, &head, lines, reader, writer, idle, self.closing).await;
        }
        if !upload.ended {
            session.close_after();
        }
        session.send_head(AnswerHead { status: head.status, lines: &lines, body });
        let by_close = reader.ends_by_close();
        let outcome = self.relay_body(session, context, &mut reader, &mut writer, &mut upload).await;
        context.bytes_in = upload.received;
        match outcome {
            Ok(()) => {
                let reusable = head.keep_alive && !by_close && reader.is_done();
                if reusable && upload.ended && upload.pending.is_empty() && !upload.broken {
                    keep.release(reader, writer);
                }
                Forwarded::Answered
            }
            Err(Broken::Client) => Forwarded::ClientGone,
            Err(Broken::Origin(outcome, reason)) => {
                lease.report(outcome, clock_now());
                Forwarded::Cut(reason)
            }
        }
    }

    async fn relay_body<S: Session>(
        &self,
        session: &mut S,
        context: &mut Context,
        reader: &mut Reader,
        writer: &mut Writer,
        upload: &mut Upload,
    ) -> Result<(), Broken> {
        let total = self.total_until(context);
        loop {
            let piece = match reader.ready() {
                Ok(Decoded::Starved) => {
                    // The origin takes its time over the content: the client gets the head now.
                    if context.bytes_out == 0 {
                        session.flush().await.map_err(|_| Broken::Client)?;
                    }
                    self.next_piece(session, reader, writer, upload, total).await?
                }
                Ok(piece) => piece,
                Err(_) => return Err(Broken::Origin(Outcome::Broken, "the origin broke off its answer")),
            };
            // How long a client may take nothing is the session's to watch; only the exchange as a whole is bounded here.
            let until = total.unwrap_or(Instant::now() + FAR);
            let sent = match piece {
                Decoded::Data(data) => {
                    context.bytes_out += data.len() as u64;
                    timeout_at(until, session.send(data)).await
                }
                Decoded::End(trailers) => {
                    return match timeout_at(until, session.finish(&trailers)).await {
                        Ok(Ok(())) => Ok(()),
                        _ => Err(Broken::Client),
                    };
                }
                Decoded::Starved => continue,
            };
            match sent {
                Ok(Ok(())) => {}
                _ => return Err(Broken::Client),
            }
        }
    }

    /// Waits for more of the answer, while what is left of the request still goes up.
    async fn next_piece<S: Session>(
        &self,
        session: &mut S,
        reader: &mut Reader,
        writer: &mut Writer,
        upload: &mut Upload,
        total: Option<Instant>,
    ) -> Result<Decoded, Broken> {
        let idle = self.route.config.idle_timeout;
        let mut until = Instant::now() + idle;
        loop {
            let ended = upload.ended;
            let listens = upload.pending.is_empty();
            tokio::select! {
                biased;
                piece = reader.body() => {
                    return piece.map_err(|_| Broken::Origin(Outcome::Broken, "the origin broke off its answer"));
                }
                written = writer.half.write_buf(&mut upload.pending), if !listens => match written {
                    Ok(bytes) if bytes > 0 => until = Instant::now() + idle,
                    // It answers and reads no further: the rest of the request is of no use to it.
                    _ => {
                        upload.give_up();
                        session.close_after();
                    }
                },
                event = wait_for_client(session, ended), if listens => match event {
                    Event::Left | Event::Piece(Err(_)) => return Err(Broken::Client),
                    Event::Piece(Ok(piece)) => {
                        upload.take(piece, true).map_err(|_| Broken::Client)?;
                        until = Instant::now() + idle;
                    }
                },
                () = sleep_until(total.map_or(until, |total| total.min(until))) => {
                    return Err(Broken::Origin(Outcome::TimedOut, "the origin's answer stopped coming"));
                }
            }
        }
    }
}

/// What the client did.
enum Event {
    Left,
    Piece(Result<Piece, Gone>),
}

/// More of the request, or, once it is read whole, the client's leaving.
async fn wait_for_client<S: Session>(session: &mut S, ended: bool) -> Event {
    if ended {
        let gone = session.left().await;
        tracing::trace!(%gone, "the client left");
        return Event::Left;
    }
    Event::Piece(session.read_body().await)
}

enum Broken {
    Client,
    Origin(Outcome, &'static str),
}

fn clock_now() -> std::time::Instant {
    crate::clock::now()
}

fn client_gone(lease: &Lease) -> Unasked {
    lease.report(Outcome::Abandoned, clock_now());
    Unasked::Over(Forwarded::ClientGone)
}

fn client_failed(gone: Gone) -> Forwarded {
    match gone {
        Gone::Malformed(_) => Forwarded::Rescue(Rescue::Refused(crate::http1::RefusedRequest {
            status: StatusCode::BAD_REQUEST,
            reason: "malformed content",
        })),
        Gone::Closed | Gone::Io(_) => Forwarded::ClientGone,
    }
}

fn is_interim(head: &ResponseHead) -> bool {
    head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS
}

/// The first head that is not informational; the caller bounds the wait.
pub(super) async fn final_head(
    reader: &mut Reader,
    method: &http::Method,
) -> Result<ResponseHead, AnswerError> {
    loop {
        let head = reader.head(method).await?;
        if !is_interim(&head) {
            return Ok(head);
        }
    }
}

fn is_closed(error: &AnswerError) -> bool {
    matches!(error, AnswerError::Closed | AnswerError::Io(_))
}

/// The answers of a process that no longer works: worth another endpoint, if the request may be repeated.
fn is_sick(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}
