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
use crate::route;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Fields a plain request may have; with more the request goes the whole way.
const PLAIN_FIELDS_MAX: usize = 48;

/// A stored answer that is fresh, and the route it belongs to.
pub struct Found {
    pub entry: Arc<Entry>,
    pub route: Arc<Route>,
    pub now: Instant,
}

/// A plain fresh hit, found in the first `consumed` bytes of the input.
pub struct Hit {
    pub found: Found,
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
    let found = look_up(live, host, target, scratch)?;
    let place = |part: &str| {
        let start = part.as_ptr() as usize - input.as_ptr() as usize;
        (start, start + part.len())
    };
    Some(Hit { found, consumed, target: place(target), host: place(host) })
}

/// As [`find`], for a request of HTTP/2 or HTTP/3 that has no content.
pub fn find_parsed(live: &Live, request: &http::Request<()>, scratch: &mut Scratch) -> Option<Found> {
    if !live.caches || request.method() != Method::GET || request.headers().len() > PLAIN_FIELDS_MAX {
        return None;
    }
    let uri = request.uri();
    let (host, target) = (uri.authority()?.as_str(), uri.path_and_query()?.as_str());
    let plain = is_plain_host(host)
        && valid_origin_form(target.as_bytes())
        && request.headers().iter().all(|(name, value)| match name.as_str() {
            "host" => value.as_bytes().eq_ignore_ascii_case(host.as_bytes()),
            name => !stands_in_the_way(name.as_bytes(), value.as_bytes()),
        });
    if plain { look_up(live, host, target, scratch) } else { None }
}

/// The stored answer for a plain GET, if it is fresh.
fn look_up(live: &Live, host: &str, target: &str, scratch: &mut Scratch) -> Option<Found> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let route::Found::Route(route) = live.table.find(host_of(host), &Method::GET, path) else { return None };
    let cache = route.cache.as_ref()?;
    key::write(&mut scratch.key, route.scope(host_of(host)).as_ref(), path, query, &cache.policy.query);
    let now = crate::clock::now();
    let entry = cache.store.lookup(&scratch.key, now)?;
    entry.vary.is_empty().then(|| Found { entry, route: route.clone(), now })
}

/// The host of a request whose fields are plain; `None` for one that is not. `Cookie`, `Authorization` and `Cache-Control` do
/// not matter: stored answers were fetched without them and are for everybody.
fn plain_host<'h>(headers: &[httparse::Header<'h>]) -> Option<&'h str> {
    let mut host = None;
    for header in headers {
        let name = header.name.as_bytes();
        if name.len() == 4 && name.eq_ignore_ascii_case(b"host") {
            let value = std::str::from_utf8(header.value).ok()?;
            if host.is_some() || !is_plain_host(value) {
                return None;
            }
            host = Some(value);
        } else if stands_in_the_way(name, header.value) {
            return None;
        }
    }
    host
}

fn is_plain_host(host: &str) -> bool {
    !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
}

/// The policy: is a request with this field not plain? Plain is a request without content, conditions, ranges, expectations or
/// upgrades, on a connection that lives on.
fn stands_in_the_way(name: &[u8], value: &[u8]) -> bool {
    // By length first: most fields of a browser's request are told apart without comparing a letter.
    match name.len() {
        2 => name.eq_ignore_ascii_case(b"te"),
        5 => name.eq_ignore_ascii_case(b"range"),
        6 => name.eq_ignore_ascii_case(b"expect"),
        7 => name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"trailer"),
        10 if name.eq_ignore_ascii_case(b"connection") => !value.eq_ignore_ascii_case(b"keep-alive"),
        14 => name.eq_ignore_ascii_case(b"content-length"),
        // As long as one of the conditions, which are looked for below.
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => true,
        // An id from a trusted peer is taken over, on the way that can.
        12 => name.eq_ignore_ascii_case(b"x-request-id"),
        _ => name.len() > 3 && name[..3].eq_ignore_ascii_case(b"if-"),
    }
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
        let Found { entry, now, .. } = &self.found;
        let (age, ttl) = (entry.times.age(*now), entry.times.ttl(*now));
        let body = &entry.body;
        let out = &mut connection.output;
        out.reserve(entry.head.len() + 256);
        out.extend_from_slice(&entry.head);
        outgoing::stored(age.as_secs(), ttl.as_secs(), "hit", context, out);
        if close {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
        context.cache = CacheResult::Hit;
        context.status = entry.status.as_u16();
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
