//! What HTTP/2 and HTTP/3 have in common: requests that come side by side on one connection, and how a connection that
//! abuses that is told.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use tokio::sync::Notify;

use super::session::{AnswerHead, BodySize, Gone, Session};
use crate::http1::{MalformedBody, RefusedRequest, may_be_trailer};

/// Requests given up by the client before their answer that are never held against a connection.
const ABANDONED_FREE: u32 = 100;

/// A request of a multiplexed connection, before anything was decided about it.
pub trait Incoming: Send + Sized + 'static {
    type Session: Session + 'static;

    /// Method, URI and fields as they came.
    fn request(&self) -> &http::Request<()>;

    /// Is the request known to be over, without any content?
    fn is_bare(&self) -> bool;

    /// Answers at once with all there is; nothing else of the request is looked at.
    fn answer(
        self,
        status: StatusCode,
        fields: HeaderMap,
        body: Bytes,
    ) -> impl Future<Output = Result<(), Gone>> + Send;

    /// The request as a session. Waits until it is known whether content follows where that decides how the request is
    /// framed. Gives the request back if it cannot be served.
    fn into_session(self) -> impl Future<Output = Result<Self::Session, Unfit<Self>>> + Send;
}

/// Why a request is no session.
pub enum Unfit<I> {
    /// It is to be answered with this.
    Refused(I, RefusedRequest),
    /// Nobody is there to be answered.
    Gone,
}

/// What happens on one connection, as seen by all its requests.
#[derive(Debug, Default)]
pub struct Tally {
    open: AtomicUsize,
    begun: AtomicU32,
    abandoned: AtomicU32,
    excess: Notify,
}

impl Tally {
    /// Counts a request until what it returns is dropped.
    pub fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        Open { tally: self.clone() }
    }

    /// Requests under way.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Resolves when the client has begun and dropped so many requests that it can only mean harm (CVE-2023-44487).
    pub async fn excess(&self) {
        self.excess.notified().await;
    }
}

/// One request under way.
#[derive(Debug)]
pub struct Open {
    tally: Arc<Tally>,
}

impl Open {
    /// The client gave this request up before it was answered.
    pub fn abandon(&self) {
        let abandoned = self.tally.abandoned.fetch_add(1, Relaxed) + 1;
        if abandoned > ABANDONED_FREE && abandoned > self.tally.begun.load(Relaxed) / 2 {
            self.tally.excess.notify_one();
        }
    }
}

/// The same request, under way in another place as well.
impl Clone for Open {
    fn clone(&self) -> Open {
        self.tally.open.fetch_add(1, Relaxed);
        Open { tally: self.tally.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.tally.open.fetch_sub(1, Relaxed);
    }
}

/// An answer's head laid ready, and the content that is to follow it.
#[derive(Debug, Default)]
pub struct Laid {
    head: Option<Response<()>>,
    laid: bool,
    /// Content still to be sent, where its length was announced.
    left: Option<u64>,
    /// No content is sent, whatever the head says of it.
    pub bodiless: bool,
}

impl Laid {
    /// Lays the head of the answer to a request of this method.
    pub fn lay(&mut self, head: AnswerHead<'_>, method: &Method) {
        debug_assert!(!self.laid, "an exchange has one head");
        let mut response = interim(head.status, head.lines);
        if let BodySize::Length(bytes) = head.body {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
            self.left = Some(bytes);
        }
        self.bodiless = head.body == BodySize::None || *method == Method::HEAD;
        self.head = Some(response);
        self.laid = true;
    }

    /// Has the head been laid, so that no informational answer may come any more?
    pub fn is_laid(&self) -> bool {
        self.laid
    }

    /// The head, once, to be sent.
    pub fn take(&mut self) -> Option<Response<()>> {
        self.head.take()
    }

    /// Content is sent: does it complete the answer? More than was announced is an error.
    pub fn spend(&mut self, bytes: usize) -> Result<bool, Gone> {
        let Some(left) = &mut self.left else { return Ok(false) };
        *left = left.checked_sub(bytes as u64).ok_or(MalformedBody("more than announced"))?;
        Ok(*left == 0)
    }

    /// Is there surely no content to come?
    pub fn is_complete(&self) -> bool {
        self.bodiless || self.left == Some(0)
    }

    /// The answer ends here. Less than was announced is an error.
    pub fn end(&self) -> Result<(), Gone> {
        match self.left {
            Some(1..) if !self.bodiless => Err(MalformedBody("less than announced").into()),
            _ => Ok(()),
        }
    }
}

/// An answer without content from a status and field lines.
pub fn interim(status: StatusCode, lines: &[u8]) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = map_of(lines);
    response
}

/// Field lines (`name: value CRLF`) as a map. What HTTP/2 and HTTP/3 cannot carry is left out: fields of one connection
/// (RFC 9113, 8.2.2; RFC 9114, 4.2), and what is no field at all.
pub fn map_of(lines: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(24);
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else {
            continue;
        };
        if !crate::headers::is_hop_by_hop(name.as_str()) {
            map.append(name, value);
        }
    }
    map
}

/// Trailer fields as lines, without those that have no business among trailers.
pub fn lines_of(map: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in map.iter().filter(|(name, _)| may_be_trailer(name.as_str())) {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes().trim_ascii());
        lines.extend_from_slice(b"\r\n");
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn lines_become_fields_and_back() {
        let map =
            map_of(b"Date: x\r\nset-cookie: a\r\nset-cookie: b\r\nconnection: close\r\nodd\r\nb d: e\r\n");
        let all: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(all, [("date", &b"x"[..]), ("set-cookie", b"a"), ("set-cookie", b"b")]);
        let trailers =
            map_of(b"x-sum: 1\r\nx-forwarded-for: 127.0.0.1\r\nhost: b\r\ncontent-length: 5\r\nx-sum: 2\r\n");
        assert_eq!(&lines_of(&trailers)[..], b"x-sum: 1\r\nx-sum: 2\r\n");
    }

    #[test]
    fn only_who_mostly_gives_up_is_in_excess() {
        let tally = Arc::new(Tally::default());
        let give_up = |times: u32| (0..times).for_each(|_| tally.begin().abandon());
        (0..300).for_each(|_| drop(tally.begin()));
        give_up(250);
        assert!(tally.excess().now_or_never().is_none(), "it reads most of its answers");
        give_up(200);
        assert!(tally.excess().now_or_never().is_some());
        assert_eq!(tally.open(), 0);
    }
}
