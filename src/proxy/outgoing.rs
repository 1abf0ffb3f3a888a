//! What leaves: the head of a request to an origin, and the field lines of an answer to a client. Copies field lines as
//! they came, in their order and letter case, and leaves out what belongs to one hop only.

use std::net::IpAddr;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::context::Context;
use crate::cache::Entry;
use crate::clock;
use crate::headers::{self, SELF};
use crate::http1::{Fields, Framing, RequestHead, ResponseHead, tokens};

/// The key under which the origin does a request once; where none was given, it is the request's id.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Appends `name: value CRLF`.
pub fn line(name: &str, value: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Is this field named by `Connection`, and so of this hop only? (RFC 9110, 7.6.1)
fn named_by_connection(fields: &Fields, has_connection: bool, name: &str) -> bool {
    has_connection
        && fields
            .all("connection")
            .flat_map(tokens)
            .any(|option| option.eq_ignore_ascii_case(name.as_bytes()) && !is_end_to_end(name))
}

/// Fields a client may not have taken out by naming them in `Connection`.
fn is_end_to_end(name: &str) -> bool {
    ["host", "content-length", "content-type", "authorization", "cookie"]
        .iter()
        .any(|n| n.eq_ignore_ascii_case(name))
}

/// What the next hop adds to a request.
pub struct Hop<'a> {
    /// The host of a request that came without one (HTTP/1.0).
    pub default_host: &'a str,
    /// Passes an upgrade on.
    pub upgrade: bool,
    /// Gives a request that has none an `Idempotency-Key`, so that the origin can tell a repetition.
    pub idempotency_key: bool,
}

/// Appends the head of the request to an origin, blank line included.
pub fn request(request: &RequestHead, context: &Context, hop: &Hop<'_>, out: &mut BytesMut) {
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(request.target.origin_form().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = match request.target.authority() {
        "" => hop.default_host,
        authority => authority,
    };
    line("host", host.as_bytes(), out);
    let has_connection = request.fields.contains("connection");
    for (name, value) in request.fields.iter() {
        let ours = is_made_here(name) || headers::is_hop_by_hop(name);
        if !ours && !named_by_connection(&request.fields, has_connection, name) {
            line(name, value, out);
        }
    }
    match request.framing {
        Framing::None => {}
        Framing::Length(bytes) => {
            out.extend_from_slice(b"content-length: ");
            crate::listener::h1::push_number(bytes, out);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    if hop.upgrade
        && let Some(protocol) = request.fields.get("upgrade")
    {
        line("connection", b"upgrade", out);
        line("upgrade", protocol, out);
    }
    if hop.idempotency_key && needs_key(request) {
        line(IDEMPOTENCY_KEY, context.id.as_bytes(), out);
    }
    forwarding(request, context, host, out);
    out.extend_from_slice(b"via: ");
    out.extend_from_slice(request.version.number().as_bytes());
    out.extend_from_slice(b" forefront\r\n");
    line("x-request-id", context.id_bytes(), out);
    match request.fields.get("traceparent").filter(|value| headers::is_traceparent(value)) {
        Some(value) => line("traceparent", value, out),
        None => line("traceparent", &headers::begin_traceparent(&context.id), out),
    }
    out.extend_from_slice(b"\r\n");
}

/// Has the client left it to us to name a key?
pub fn needs_key(request: &RequestHead) -> bool {
    !request.fields.contains(IDEMPOTENCY_KEY)
}

/// Appends the key that was made, for an answer of our own.
pub fn told_key(context: &Context, out: &mut Vec<u8>) {
    for piece in [IDEMPOTENCY_KEY.as_bytes(), b": ", context.id.as_bytes(), b"\r\n"] {
        out.extend_from_slice(piece);
    }
}

/// Fields of a request that are written anew: framing, forwarding, ids. `Via` of hops before is kept, as its own line.
fn is_made_here(name: &str) -> bool {
    const NAMES: [&str; 7] =
        ["host", "content-length", "expect", "forwarded", "x-real-ip", "x-request-id", "traceparent"];
    let forwarding = name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded-"));
    forwarding || NAMES.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// `X-Forwarded-*` and `Forwarded` (RFC 7239). What a trusted peer says of the hops before it is kept and added to; what
/// any other client says is not believed and left out.
fn forwarding(request: &RequestHead, context: &Context, host: &str, out: &mut BytesMut) {
    let peer = text_of(context.downstream.peer.ip());
    let before = |name| request.fields.all(name).filter(|_| context.trusted);
    out.extend_from_slice(b"x-forwarded-for: ");
    for value in before("x-forwarded-for") {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(peer.as_bytes());
    out.extend_from_slice(b"\r\n");
    let proto = before("x-forwarded-proto").next().unwrap_or(context.downstream.scheme.as_bytes());
    line("x-forwarded-proto", proto, out);
    line("x-forwarded-host", before("x-forwarded-host").next().unwrap_or(host.as_bytes()), out);
    out.extend_from_slice(b"forwarded: ");
    for value in before("forwarded") {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(b"for=");
    match context.downstream.peer.ip() {
        IpAddr::V4(_) => out.extend_from_slice(peer.as_bytes()),
        // An IPv6 address is quoted and bracketed (RFC 7239, 6).
        IpAddr::V6(_) => {
            out.extend_from_slice(b"\"[");
            out.extend_from_slice(peer.as_bytes());
            out.extend_from_slice(b"]\"");
        }
    }
    out.extend_from_slice(b";host=\"");
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(b"\";proto=");
    out.extend_from_slice(context.downstream.scheme.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// An address as text, without allocating.
fn text_of(address: IpAddr) -> AddressText {
    use std::io::Write;
    let mut text = AddressText { bytes: [0; 48], length: 0 };
    let mut rest = &mut text.bytes[..];
    // 48 bytes hold every address: the longest IPv6 text has 45.
    let _ = write!(rest, "{address}");
    let left = rest.len();
    text.length = text.bytes.len() - left;
    text
}

struct AddressText {
    bytes: [u8; 48],
    length: usize,
}

impl AddressText {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Appends the field lines of an origin's answer: unaltered but for what belongs to the hop, `Date` when absent, `Via`,
/// `Cache-Status`, `x-request-id`. `Content-Length` is left to the session's framing when `framed`.
pub fn answer(
    answer: &ResponseHead,
    context: &Context,
    cache_status: &[u8],
    framed: bool,
    out: &mut BytesMut,
) {
    let has_connection = answer.fields.contains("connection");
    let mut dated = false;
    // RFC 9110, 8.6: these have no content to have a length.
    let lengthless = answer.status == StatusCode::NO_CONTENT || answer.status.is_informational();
    for (name, value) in answer.fields.iter() {
        let left_out = headers::is_hop_by_hop(name)
            || ((framed || lengthless) && name.eq_ignore_ascii_case("content-length"))
            || name.eq_ignore_ascii_case("x-request-id")
            || named_by_connection(&answer.fields, has_connection, name);
        if left_out {
            continue;
        }
        dated |= name.eq_ignore_ascii_case("date");
        line(name, value, out);
    }
    if !dated {
        line("date", &clock::http_date(), out);
    }
    line("via", if answer.http11 { b"1.1 forefront" } else { b"1.0 forefront" }, out);
    line("cache-status", cache_status, out);
    line("x-request-id", context.id_bytes(), out);
    out.extend_from_slice(context.downstream.alt_svc);
}

/// Appends the field lines of an informational answer.
pub fn interim(head: &ResponseHead, out: &mut BytesMut) {
    let has_connection = head.fields.contains("connection");
    for (name, value) in head.fields.iter() {
        let left_out = headers::is_hop_by_hop(name)
            || name.eq_ignore_ascii_case("content-length")
            || named_by_connection(&head.fields, has_connection, name);
        if !left_out {
            line(name, value, out);
        }
    }
}

/// Did the client ask for the protocol this 101 switches to, and is its request over?
pub fn agrees(request: &RequestHead, head: &ResponseHead) -> bool {
    request.framing == Framing::None
        && request.upgrade().is_some_and(|asked| {
            head.fields.get("upgrade").is_some_and(|given| {
                tokens(given).next().is_some_and(|given| tokens(asked).any(|a| a.eq_ignore_ascii_case(given)))
            })
        })
}

/// Is this an upgrade to pass on? HTTP over again (h2c) would be a way past routes, limits and field rules.
pub fn is_passed(upgrade: &[u8]) -> bool {
    tokens(upgrade).all(|protocol| {
        let name = protocol.split(|b| *b == b'/').next().unwrap_or_default();
        !["h2c", "http", "tls"].iter().any(|n| n.as_bytes().eq_ignore_ascii_case(name))
    })
}

/// Appends what every stored answer gets when it is handed out: `Age`, `Cache-Status` with what is left of its lifetime,
/// `x-request-id`, `Alt-Svc`.
pub fn stored(age_seconds: u64, ttl_seconds: u64, result: &str, context: &Context, out: &mut BytesMut) {
    use crate::listener::h1::push_number;
    out.extend_from_slice(b"age: ");
    push_number(age_seconds, out);
    out.extend_from_slice(b"\r\ncache-status: ");
    out.extend_from_slice(SELF.as_bytes());
    out.extend_from_slice(b"; ");
    out.extend_from_slice(result.as_bytes());
    out.extend_from_slice(b"; ttl=");
    push_number(ttl_seconds, out);
    out.extend_from_slice(b"\r\nx-request-id: ");
    out.extend_from_slice(context.id_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(context.downstream.alt_svc);
}

/// As [`stored`], for a protocol whose fields are a map: those of the entry, and what it gets when it is handed out.
pub fn stored_fields(
    entry: &Entry,
    age_seconds: u64,
    ttl_seconds: u64,
    result: &str,
    context: &Context,
) -> HeaderMap {
    let mut lines = BytesMut::with_capacity(192);
    stored(age_seconds, ttl_seconds, result, context, &mut lines);
    let lines = lines.freeze();
    let mut fields = HeaderMap::with_capacity(entry.headers.len() + 4);
    fields.extend(entry.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    // One buffer holds the values of all of them.
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = lines.slice_ref(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_maybe_shared(value))
        {
            fields.append(name, value);
        }
    }
    fields
}
