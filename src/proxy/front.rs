//! The front: answers plain fresh hits straight from the store, before anything else is set up.
//!
//! One policy says what a plain request is; whatever is not plain goes the whole way and finds the same store entry
//! there. A hit costs one look at the routing table, one at the store and one write.

use std::time::Instant;

use bytes::BytesMut;
use http::Method;

use super::context::{CacheResult, Context};
use super::outgoing;
use super::routes::{Live, Route};
use crate::cache::{Entry, key};
use crate::http1::{host_of, valid_origin_form};
use crate::listener::h1::Connection;
use crate::route::Found;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Fields a plain request may have; with more the request goes the whole way.
const PLAIN_FIELDS_MAX: usize = 48;

/// A plain fresh hit, found in the first `consumed` bytes of the input.
pub struct Hit {
    pub entry: Arc<Entry>,
    pub route: Arc<Route>,
    pub now: Instant,
    consumed: usize,
    /// Places of target and host in the head.
    target: (usize, usize),
    host: (usize, usize),
}

/// Buffers of one connection, kept between requests.
#[derive(Default)]
pub struct Scratch {
    key: String,
}

/// Looks for a plain fresh hit at the beginning of `input`. `None` says nothing about the request: it may be incomplete,
/// malformed, or merely not plain.
pub fn find(live: &Live, input: &[u8], scratch: &mut Scratch) -> Option<Hit> {
    if !live.caches || !input.starts_with(b"GET /") {
        return None;
    }
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; PLAIN_FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let consumed = match parsed.parse_with_uninit_headers(input, &mut headers) {
        Ok(httparse::Status::Complete(length))
            if parsed.version == Some(1) && length <= live.limits.header_bytes =>
        {
            length
        }
        _ => return None,
    };
    let target = parsed.path.filter(|target| valid_origin_form(target.as_bytes()))?;
    if consumed > live.limits.header_bytes {
        return None;
    }
    let host = plain_host(parsed.headers)?;
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let Found::Route(route) = live.table.find(host_of(host), &Method::GET, path) else { return None };
    let cache = route.cache.as_ref()?;
    key::write(&mut scratch.key, route.scope(host_of(host)).as_ref(), path, query, &cache.policy.query);
    let now = crate::clock::now();
    let entry = cache.store.lookup(&scratch.key, now)?;
    if !entry.vary.is_empty() {
        return None;
    }
    let place = |part: &str| {
        let start = part.as_ptr() as usize - input.as_ptr() as usize;
        (start, start + part.len())
    };
    Some(Hit { entry, route: route.clone(), now, consumed, target: place(target), host: place(host) })
}

/// The policy: the host of a request that is plain, `None` for one that is not. Plain is a request without content,
/// conditions, ranges, expectations or upgrades, on a connection that lives on. `Cookie`, `Authorization` and
/// `Cache-Control` do not matter: stored answers were fetched without them and are for everybody.
fn plain_host<'h>(headers: &[httparse::Header<'h>]) -> Option<&'h str> {
    let mut host = None;
    for header in headers {
        let name = header.name.as_bytes();
        // By length first: most fields of a browser's request are told apart without comparing a letter.
        let stands_in_the_way = match name.len() {
            2 => name.eq_ignore_ascii_case(b"te"),
            4 if name.eq_ignore_ascii_case(b"host") => {
                let value = std::str::from_utf8(header.value).ok()?;
                let sound = value
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
                if host.is_some() || !sound || value.is_empty() {
                    return None;
                }
                host = Some(value);
                false
            }
            5 => name.eq_ignore_ascii_case(b"range"),
            6 => name.eq_ignore_ascii_case(b"expect"),
            7 => name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"trailer"),
            10 if name.eq_ignore_ascii_case(b"connection") => {
                !header.value.eq_ignore_ascii_case(b"keep-alive")
            }
            14 => name.eq_ignore_ascii_case(b"content-length"),
            // As long as one of the conditions, which are looked for below.
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => true,
            // An id from a trusted peer is taken over, on the way that can.
            12 => name.eq_ignore_ascii_case(b"x-request-id"),
            _ => name.len() > 3 && name[..3].eq_ignore_ascii_case(b"if-"),
        };
        if stands_in_the_way {
            return None;
        }
    }
    host
}

impl Hit {
    /// Takes the request off the input and sends the answer; `close` ends the connection with it. Gives the request's
    /// head, for the log, and how sending went.
    pub async fn send<T: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        connection: &mut Connection<T>,
        context: &mut Context,
        close: bool,
    ) -> (BytesMut, std::io::Result<()>) {
        let head = connection.input.split_to(self.consumed);
        let (age, ttl) = (self.entry.times.age(self.now), self.entry.times.ttl(self.now));
        let body = &self.entry.body;
        let out = &mut connection.output;
        out.reserve(self.entry.head.len() + 256);
        out.extend_from_slice(&self.entry.head);
        outgoing::stored(age.as_secs(), ttl.as_secs(), "hit", context.id.as_bytes(), out);
        if close {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
        context.cache = CacheResult::Hit;
        context.status = self.entry.status.as_u16();
        let sent = connection.send_with(body).await;
        if sent.is_ok() {
            context.bytes_out = body.len() as u64;
        }
        (head, sent)
    }

    /// The request target in the head that `send` gave back.
    pub fn target<'h>(&self, head: &'h [u8]) -> &'h str {
        text(head, self.target)
    }

    /// The host in the head that `send` gave back.
    pub fn host<'h>(&self, head: &'h [u8]) -> &'h str {
        text(head, self.host)
    }
}

fn text(head: &[u8], (start, end): (usize, usize)) -> &str {
    head.get(start..end).and_then(|part| std::str::from_utf8(part).ok()).unwrap_or_default()
}
