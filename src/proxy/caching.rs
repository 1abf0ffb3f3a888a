//! Cached routes: how the store's fetches are made, and how what it gives becomes an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::context::{CacheResult, Context};
use super::forwarding::{Forwarded, final_head};
use super::origin::{ConnectError, Origin};
use super::outgoing;
use super::rescue::Rescue;
use super::routes::RouteCache;
use crate::cache::{self, Answer, Entry, Fetch, FetchError, Fetched};
use crate::clock;
use crate::headers::{self, RequestId};
use crate::http1::{Decoded, Fields, RequestHead, ResponseHead};
use crate::listener::{AnswerHead, BodySize, Session};
use crate::upstream::{Lease, Outcome, PickError, Pool};

/// Fetches the answers of one cached route, asking endpoint after endpoint, until it is retired.
pub struct Fetcher {
    job: Arc<Job>,
    retired: Arc<AtomicBool>,
}

struct Job {
    pool: Arc<Pool>,
    timeout: Duration,
    object_bytes_max: u64,
}

impl Fetcher {
    /// Set `retired` when a reload takes its place: what it fetches is then no longer stored.
    pub fn new(
        pool: Arc<Pool>,
        timeout: Duration,
        object_bytes_max: u64,
        retired: Arc<AtomicBool>,
    ) -> Fetcher {
        Fetcher { job: Arc::new(Job { pool, timeout, object_bytes_max }), retired }
    }
}

impl Fetch for Fetcher {
    fn fetch(&self, key: &str) -> BoxFuture<'static, Result<Fetched, FetchError>> {
        let job = self.job.clone();
        let key = key.to_owned();
        async move {
            let (scope, target) = cache::key::split(&key);
            job.run(scope.split_once('@').map(|(_, host)| host), target).await
        }
        .boxed()
    }

    fn is_current(&self) -> bool {
        !self.retired.load(Ordering::SeqCst)
    }
}

impl Job {
    async fn run(&self, host: Option<&str>, target: &str) -> Result<Fetched, FetchError> {
        let deadline = Instant::now() + self.timeout;
        self.pool.deposit();
        let mut tried = Vec::new();
        let mut last = Err(FetchError::NoneHealthy);
        loop {
            let lease = match self.pool.pick(&tried, clock::now()) {
                Ok(lease) => lease,
                Err(PickError::NoneHealthy) if tried.is_empty() => return Err(FetchError::NoneHealthy),
                Err(PickError::Busy) => return Err(FetchError::Overloaded),
                Err(_) => return last,
            };
            tried.push(lease.id());
            last = match timeout_at(deadline, self.ask(&lease, host, target)).await {
                // Perhaps another endpoint is well. If none is, the cache judges the error like any answer.
                Ok(Ok(fetched)) if fetched.status.is_server_error() => Ok(fetched),
                Ok(done @ (Ok(_) | Err(FetchError::TooLarge | FetchError::Overloaded))) => return done,
                Ok(Err(error)) => Err(error),
                Err(_) => {
                    lease.report(Outcome::TimedOut, clock::now());
                    return Err(FetchError::TimedOut);
                }
            };
            let attempts = self.pool.config().retry.attempts as usize;
            if tried.len() >= attempts || !self.pool.may_retry(clock::now()) {
                return last;
            }
        }
    }

    async fn ask(&self, lease: &Lease, host: Option<&str>, target: &str) -> Result<Fetched, FetchError> {
        let origin = match Origin::connect(lease, &self.pool, true).await {
            Ok(origin) => origin,
            Err(error) => {
                let (outcome, failure) = match error {
                    ConnectError::TimedOut => (Outcome::TimedOut, FetchError::Unavailable(error.to_string())),
                    ConnectError::Local(_) => {
                        tracing::debug!(endpoint = lease.label(), %error, "no connection for a fetch");
                        (Outcome::Abandoned, FetchError::Overloaded)
                    }
                    ConnectError::Failed(_) | ConnectError::Address(_) => {
                        (Outcome::ConnectFailed, FetchError::Unavailable(error.to_string()))
                    }
                };
                lease.report(outcome, clock::now());
                return Err(failure);
            }
        };
        let (mut reader, mut writer, keep) = origin.split();
        let sent_at = clock::now();
        let broken = |error: String| {
            lease.report(Outcome::Broken, clock::now());
            FetchError::Unavailable(error)
        };
        writer.write(&self.request(lease, host, target)).await.map_err(|error| broken(error.to_string()))?;
        let head = tokio::select! {
            head = final_head(&mut reader, &Method::GET) => head.map_err(|error| broken(error.to_string()))?,
            () = lease.endpoint_down() => {
                lease.report(Outcome::Abandoned, clock::now());
                return Err(FetchError::Unavailable("the endpoint fell silent".into()));
            }
        };
        let latency = clock::now().saturating_duration_since(sent_at);
        lease.report(Outcome::Answered { status: head.status.as_u16(), latency }, clock::now());
        let mut body = BytesMut::new();
        loop {
            match reader.body().await.map_err(|error| broken(error.to_string()))? {
                Decoded::Data(data) if (body.len() + data.len()) as u64 > self.object_bytes_max => {
                    return Err(FetchError::TooLarge);
                }
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::End(_) => break,
                Decoded::Starved => {}
            }
        }
        let headers = header_map(&head);
        if head.keep_alive && reader.is_done() && !reader.ends_by_close() {
            keep.release(reader, writer);
        }
        Ok(Fetched { status: head.status, headers, body: body.freeze(), sent_at })
    }

    /// The canonical request: nothing of any client is in it.
    fn request(&self, lease: &Lease, host: Option<&str>, target: &str) -> BytesMut {
        let own =
            || self.pool.config().host.clone().unwrap_or_else(|| lease.endpoint().configured().authority());
        let host = host.map_or_else(own, str::to_owned);
        let id = RequestId::next();
        let mut out = BytesMut::with_capacity(512);
        out.extend_from_slice(b"GET ");
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        outgoing::line("host", host.as_bytes(), &mut out);
        outgoing::line("accept", b"*/*", &mut out);
        outgoing::line("user-agent", b"forefront", &mut out);
        outgoing::line("via", b"1.1 forefront", &mut out);
        outgoing::line("x-request-id", id.as_bytes(), &mut out);
        outgoing::line("traceparent", &headers::begin_traceparent(&id), &mut out);
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// The fields as a map; one of them gets our `Via`, so that stored heads hold it already.
fn header_map(head: &ResponseHead) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(head.fields.len() + 1);
    for (name, value) in head.fields.iter().chain([("via", &b"1.1 forefront"[..])]) {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// What the cache made of a request.
pub enum Cached {
    Done(Forwarded),
    /// The request goes to the origin itself; the value of `Cache-Status`.
    Pass(&'static [u8]),
}

/// May this request be answered from the store? A GET or HEAD without content; the answer is for everybody, so its
/// conditions and preferences change at most how it is handed out.
pub fn is_eligible(request: &RequestHead) -> bool {
    matches!(request.method, Method::GET | Method::HEAD)
        && request.framing == crate::http1::Framing::None
        && request.upgrade().is_none()
}

/// Answers from the store, fetching as needed.
pub async fn answer<S: Session>(
    session: &mut S,
    context: &mut Context,
    cache: &RouteCache,
    scope: &str,
) -> Cached {
    let mut key = String::new();
    let target = &session.request().target;
    cache::key::write(&mut key, scope, target.path(), target.query(), &cache.policy.query);
    let answer = tokio::select! {
        answer = cache.store.get(&key, &cache.policy, &cache.fetch) => answer,
        _ = session.left() => return Cached::Done(Forwarded::ClientGone),
    };
    let (entry, result) = match answer {
        Answer::Hit(entry) => (entry, CacheResult::Hit),
        Answer::Miss(entry) => (entry, CacheResult::Miss),
        Answer::Stale(entry) => (entry, CacheResult::Stale),
        Answer::Collapsed(entry) => (entry, CacheResult::Collapsed),
        Answer::Pass(_) | Answer::Failed(FetchError::TooLarge) => {
            return Cached::Pass(b"forefront; fwd=miss; stored=?0");
        }
        Answer::Busy => return Cached::Done(Forwarded::Rescue(Rescue::Overloaded)),
        Answer::Failed(error) => return Cached::Done(failed(session, context, error).await),
    };
    if !entry.vary.is_empty() && !entry.selected_by(&request_map(session.request())) {
        cache.store.count_bypass();
        return Cached::Pass(b"forefront; fwd=miss; detail=vary");
    }
    context.cache = result;
    Cached::Done(hand_out(session, context, &entry).await)
}

fn request_map(request: &RequestHead) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(request.fields.len());
    for (name, value) in request.fields.iter() {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// Sends a stored answer, or 304 where the client has it.
async fn hand_out<S: Session>(session: &mut S, context: &mut Context, entry: &Entry) -> Forwarded {
    let request = session.request();
    let unchanged =
        entry.not_modified(request.fields.get("if-none-match"), request.fields.get("if-modified-since"));
    let head_only = request.method == Method::HEAD;
    let mut lines = BytesMut::with_capacity(1024);
    for (name, value) in &entry.headers {
        let describes_content = name.as_str().starts_with("content-");
        if *name != http::header::CONTENT_LENGTH && !(unchanged && describes_content) {
            outgoing::line(name.as_str(), value.as_bytes(), &mut lines);
        }
    }
    let now = clock::now();
    let (age, ttl) = (entry.times.age(now), entry.times.ttl(now));
    outgoing::stored(age.as_secs(), ttl.as_secs(), cache_status(context.cache), context, &mut lines);
    let status = if unchanged { StatusCode::NOT_MODIFIED } else { entry.status };
    context.status = status.as_u16();
    let body = if unchanged { BodySize::None } else { BodySize::Length(entry.body.len() as u64) };
    session.send_head(AnswerHead { status, lines: &lines, body });
    if !unchanged && !head_only {
        context.bytes_out = entry.body.len() as u64;
        if session.send(entry.body.clone()).await.is_err() {
            return Forwarded::ClientGone;
        }
    }
    finish(session).await
}

/// The value of `Cache-Status` behind our name (RFC 9211, 2).
fn cache_status(result: CacheResult) -> &'static str {
    match result {
        CacheResult::Hit => "hit",
        CacheResult::Miss => "fwd=miss; stored",
        CacheResult::Stale => "fwd=stale; stored",
        CacheResult::Collapsed => "fwd=miss; collapsed",
        CacheResult::Bypass => "fwd=bypass",
    }
}

/// A fetch that brought nothing to store.
async fn failed<S: Session>(session: &mut S, context: &mut Context, error: FetchError) -> Forwarded {
    let fetched = match error {
        FetchError::Status(fetched) => fetched,
        FetchError::TimedOut => return Forwarded::Rescue(Rescue::AnswerTimeout),
        FetchError::NoneHealthy => return Forwarded::Rescue(Rescue::NoEndpoint),
        FetchError::Overloaded => return Forwarded::Rescue(Rescue::Overloaded),
        FetchError::Unavailable(_) => return Forwarded::Rescue(Rescue::Broken),
        FetchError::TooLarge | FetchError::Aborted => return Forwarded::Rescue(Rescue::Internal),
    };
    let head = received_head(&fetched);
    let mut lines = BytesMut::with_capacity(1024);
    outgoing::answer(&head, context, b"forefront; fwd=miss; stored=?0", true, &mut lines);
    context.status = fetched.status.as_u16();
    context.cache = CacheResult::Miss;
    let body: Bytes = fetched.body.clone();
    context.bytes_out = body.len() as u64;
    session.send_head(AnswerHead {
        status: fetched.status,
        lines: &lines,
        body: BodySize::Length(body.len() as u64),
    });
    if !body.is_empty() && session.send(body).await.is_err() {
        return Forwarded::ClientGone;
    }
    finish(session).await
}

/// The head as the origin sent it: without our own `Via`, the last one of `header_map`, which every answer gets on its way.
fn received_head(fetched: &Fetched) -> ResponseHead {
    let theirs = fetched.headers.get_all(http::header::VIA).iter().count().saturating_sub(1);
    let vias = fetched.headers.get_all(http::header::VIA).iter().take(theirs).map(|value| ("via", value));
    let others = fetched.headers.iter().filter(|(name, _)| *name != http::header::VIA);
    let fields = others.map(|(name, value)| (name.as_str(), value)).chain(vias);
    ResponseHead::new(
        fetched.status,
        Fields::from_pairs(fields.map(|(name, value)| (name, value.as_bytes()))),
    )
}

async fn finish<S: Session>(session: &mut S) -> Forwarded {
    match session.finish(b"").await {
        Ok(()) => Forwarded::Answered,
        Err(_) => Forwarded::ClientGone,
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::Downstream;
    use super::*;

    #[test]
    fn an_error_passed_on_has_the_fields_of_an_answer() {
        let fields: [(&str, &[u8]); 7] = [
            ("Via", b"1.1 other"),
            ("Connection", b"x-hop"),
            ("X-Hop", b"1"),
            ("X-Request-Id", b"theirs"),
            ("Content-Length", b"4"),
            ("Retry-After", b"1"),
            ("Content-Type", b"text/plain"),
        ];
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let headers = header_map(&ResponseHead::new(status, Fields::from_pairs(fields)));
        let fetched = Fetched { status, headers, body: Bytes::from_static(b"sick"), sent_at: clock::now() };
        let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
        let context = Context::new(clock::now(), Downstream::plain(peer), false);
        let mut lines = BytesMut::new();
        outgoing::answer(&received_head(&fetched), &context, b"forefront", true, &mut lines);
        let text = String::from_utf8_lossy(&lines);
        let names: Vec<_> = text.lines().filter_map(|line| line.split(':').next()).collect();
        let expected = ["retry-after", "content-type", "via", "date", "via", "cache-status", "x-request-id"];
        assert_eq!(names, expected, "{text}");
        assert!(text.contains("via: 1.1 other\r\n") && !text.contains("theirs"), "{text}");
    }
}
