//! The head of a request: parsed strictly, its framing decided, everything ambiguous refused (RFC 9112, 3 and 6).

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::fields::{Fields, tokens};
use super::{Decoder, FIELDS_MAX};

/// Longest request target; above it 414.
const TARGET_BYTES_MAX: usize = 8 * 1024;

/// How the body of a message is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// The version a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    /// HTTP/1.1, or a later minor version of it.
    Http11,
    Http2,
    Http3,
}

impl Version {
    /// The number as `Via` has it (RFC 9110, 7.6.3).
    pub fn number(self) -> &'static str {
        match self {
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
            Version::Http2 => "2",
            Version::Http3 => "3",
        }
    }
}

/// A request head that passed every check. `path` and `query` are in origin form whatever form was sent.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    pub target: Target,
    pub version: Version,
    pub fields: Fields,
    pub framing: Framing,
    /// Does the client let the connection live on after this request?
    pub keep_alive: bool,
}

/// Where a request goes: host from the target or the `Host` field, path and query as sent.
#[derive(Clone, Debug)]
pub struct Target {
    raw: Bytes,
    authority: (usize, usize),
    path: (usize, usize),
    query: Option<(usize, usize)>,
}

impl Target {
    /// Builds a target, for requests that begin here. `None` when the parts hold bytes no target may hold.
    pub fn new(authority: &str, path_and_query: &str) -> Option<Target> {
        if !valid_authority(authority.as_bytes()) || !valid_origin_form(path_and_query.as_bytes()) {
            return None;
        }
        Some(Target::from_parts(authority.as_bytes(), path_and_query.as_bytes()))
    }

    /// The bytes were checked by the caller: ASCII without controls.
    fn from_parts(authority: &[u8], origin_form: &[u8]) -> Target {
        let mut raw = Vec::with_capacity(authority.len() + origin_form.len());
        raw.extend_from_slice(authority);
        raw.extend_from_slice(origin_form);
        let a = authority.len();
        let end = raw.len();
        let question = origin_form.iter().position(|b| *b == b'?').map(|at| a + at);
        Target {
            authority: (0, a),
            path: (a, question.unwrap_or(end)),
            query: question.map(|q| (q + 1, end)),
            raw: raw.into(),
        }
    }

    fn text(&self, place: (usize, usize)) -> &str {
        std::str::from_utf8(&self.raw[place.0..place.1]).unwrap_or_default()
    }

    /// Host and optional port; empty for an HTTP/1.0 request without `Host`.
    pub fn authority(&self) -> &str {
        self.text(self.authority)
    }

    /// The authority without its port.
    pub fn host(&self) -> &str {
        host_of(self.authority())
    }

    pub fn path(&self) -> &str {
        self.text(self.path)
    }

    /// Without the question mark.
    pub fn query(&self) -> Option<&str> {
        self.query.map(|place| self.text(place))
    }

    /// Path and query: the request target in origin form.
    pub fn origin_form(&self) -> &str {
        self.text((self.path.0, self.raw.len()))
    }
}

/// The authority without its port; keeps the brackets of an IPv6 literal.
pub fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

/// A request that is not served, and the status that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RefusedRequest {
    pub status: StatusCode,
    pub reason: &'static str,
}

const fn bad(reason: &'static str) -> RefusedRequest {
    RefusedRequest { status: StatusCode::BAD_REQUEST, reason }
}

const fn refused(status: StatusCode, reason: &'static str) -> RefusedRequest {
    RefusedRequest { status, reason }
}

impl From<httparse::Error> for RefusedRequest {
    fn from(error: httparse::Error) -> RefusedRequest {
        match error {
            httparse::Error::TooManyHeaders => {
                refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
            }
            httparse::Error::Version => {
                refused(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "not an HTTP/1 request")
            }
            httparse::Error::HeaderName => bad("malformed field name"),
            httparse::Error::HeaderValue => bad("malformed field value"),
            httparse::Error::NewLine => bad("malformed line end"),
            httparse::Error::Token => bad("malformed request line"),
            httparse::Error::Status => bad("malformed request line"),
        }
    }
}

impl RequestHead {
    /// Takes one head off the front of `buf`. `Ok(None)`: not all of it is there yet, `buf` is untouched.
    pub fn take(buf: &mut BytesMut) -> Result<Option<RequestHead>, RefusedRequest> {
        let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        let length = match parsed.parse(buf) {
            Ok(httparse::Status::Partial) => return Ok(None),
            Ok(httparse::Status::Complete(length)) => length,
            Err(httparse::Error::Version) if !ends_in_a_version(buf) => {
                return Err(bad("malformed request line"));
            }
            Err(error) => return Err(error.into()),
        };
        let base = buf.as_ptr() as usize;
        let http11 = parsed.version == Some(1);
        let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes())
            .map_err(|_| bad("malformed method"))?;
        let target = target(&method, parsed.path.unwrap_or_default().as_bytes(), parsed.headers, http11)?;
        let framing = framing(parsed.headers, http11)?;
        let keep_alive = keep_alive(parsed.headers, http11);
        // The places are offsets from the start of the head, so they hold in the frozen copy too.
        let mut fields = Fields::from_parsed(base, parsed.headers);
        fields.attach(buf.split_to(length).freeze());
        let version = if http11 { Version::Http11 } else { Version::Http10 };
        Ok(Some(RequestHead { method, target, version, fields, framing, keep_alive }))
    }

    /// The head of a request that came over HTTP/2 or HTTP/3, where control data stands in pseudo-fields and content is
    /// framed by the protocol: `content_follows` tells whether there is any. The fields of the map passed the checks of
    /// its types: no control characters, names in lower case.
    pub fn multiplexed(
        version: Version,
        method: Method,
        authority: &str,
        path_and_query: &str,
        map: &HeaderMap,
        content_follows: bool,
    ) -> Result<RequestHead, RefusedRequest> {
        if method == Method::CONNECT {
            return Err(refused(StatusCode::NOT_IMPLEMENTED, "CONNECT is not served here"));
        }
        if map.len() > FIELDS_MAX {
            return Err(refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields"));
        }
        let mut hosts = map.get_all(http::header::HOST).iter().map(HeaderValue::as_bytes);
        let authority = match (authority.as_bytes(), hosts.next(), hosts.next()) {
            (_, _, Some(_)) => return Err(bad("more than one Host field")),
            (b"", None, _) => return Err(bad("no authority")),
            (b"", Some(host), _) => host,
            // A request with both names one site (RFC 9113, 8.3.1; RFC 9114, 4.3.1).
            (authority, Some(host), _) if !authority.eq_ignore_ascii_case(host) => {
                return Err(bad("the Host field contradicts the authority"));
            }
            (authority, _, _) => authority,
        };
        if authority.is_empty() || !valid_authority(authority) {
            return Err(bad("malformed authority"));
        }
        let target = match path_and_query.as_bytes() {
            b"*" if method == Method::OPTIONS => Target::from_parts(authority, b"*"),
            path if path.len() > TARGET_BYTES_MAX => {
                return Err(refused(StatusCode::URI_TOO_LONG, "request target too long"));
            }
            path if valid_origin_form(path) => Target::from_parts(authority, path),
            _ => return Err(bad("malformed request target")),
        };
        let framing = match (announced_length(map)?, content_follows) {
            (Some(length), true) => Framing::Length(length),
            (Some(0) | None, false) => Framing::None,
            (Some(_), false) => return Err(bad("less content than Content-Length says")),
            (None, true) => Framing::Chunked,
        };
        let fields = Fields::from_map(map);
        Ok(RequestHead { method, target, version, fields, framing, keep_alive: true })
    }

    /// The decoder of this request's body.
    pub fn decoder(&self) -> Decoder {
        match self.framing {
            Framing::None => Decoder::none(),
            Framing::Length(length) => Decoder::length(length),
            Framing::Chunked => Decoder::chunked(),
        }
    }

    /// Does the client wait for `100 Continue`? (RFC 9110, 10.1.1)
    pub fn expects_continue(&self) -> bool {
        self.version != Version::Http10
            && self.framing != Framing::None
            && self.fields.has_token("expect", "100-continue")
    }

    /// An upgrade to another protocol, WebSocket say (RFC 9110, 7.8).
    pub fn upgrade(&self) -> Option<&[u8]> {
        if self.version == Version::Http11 && self.fields.has_token("connection", "upgrade") {
            self.fields.get("upgrade")
        } else {
            None
        }
    }
}

/// Is the third word of the request line a version? If not, there was a space in the target.
fn ends_in_a_version(buf: &[u8]) -> bool {
    buf.split(|b| *b == b' ').nth(2).is_some_and(|word| word.starts_with(b"HTTP/"))
}

fn target(
    method: &Method,
    raw: &[u8],
    headers: &[httparse::Header<'_>],
    http11: bool,
) -> Result<Target, RefusedRequest> {
    if raw.len() > TARGET_BYTES_MAX {
        return Err(refused(StatusCode::URI_TOO_LONG, "request target too long"));
    }
    if *method == Method::CONNECT {
        return Err(refused(StatusCode::NOT_IMPLEMENTED, "CONNECT is not served here"));
    }
    let host = host_field(headers, http11)?;
    if raw == b"*" {
        return if *method == Method::OPTIONS {
            Ok(Target::from_parts(host, b"*"))
        } else {
            Err(bad("the asterisk form is for OPTIONS"))
        };
    }
    if raw.first() == Some(&b'/') {
        return match valid_origin_form(raw) {
            true => Ok(Target::from_parts(host, raw)),
            false => Err(bad("malformed request target")),
        };
    }
    // Absolute form: its authority replaces the Host field (RFC 9112, 3.2.2).
    let rest = strip_scheme(raw).ok_or(bad("malformed request target"))?;
    let split = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(split);
    if authority.is_empty() || !valid_authority(authority) {
        return Err(bad("malformed authority in the request target"));
    }
    if path.first() != Some(&b'/') {
        let mut rooted = Vec::with_capacity(path.len() + 1);
        rooted.push(b'/');
        rooted.extend_from_slice(path);
        return match valid_origin_form(&rooted) {
            true => Ok(Target::from_parts(authority, &rooted)),
            false => Err(bad("malformed request target")),
        };
    }
    match valid_origin_form(path) {
        true => Ok(Target::from_parts(authority, path)),
        false => Err(bad("malformed request target")),
    }
}

fn strip_scheme(raw: &[u8]) -> Option<&[u8]> {
    for scheme in [&b"http://"[..], b"https://"] {
        if raw.len() > scheme.len() && raw[..scheme.len()].eq_ignore_ascii_case(scheme) {
            return Some(&raw[scheme.len()..]);
        }
    }
    None
}

fn host_field<'h>(headers: &[httparse::Header<'h>], http11: bool) -> Result<&'h [u8], RefusedRequest> {
    let mut hosts = headers.iter().filter(|h| h.name.eq_ignore_ascii_case("host"));
    let host = match (hosts.next(), hosts.next()) {
        (Some(only), None) => only.value,
        (Some(_), Some(_)) => return Err(bad("more than one Host field")),
        (None, _) if http11 => return Err(bad("no Host field")),
        (None, _) => b"",
    };
    if valid_authority(host) { Ok(host) } else { Err(bad("malformed Host field")) }
}

/// Visible ASCII without what delimits the other parts of a URI; no user information.
pub(super) fn valid_authority(authority: &[u8]) -> bool {
    authority.len() <= 300
        && authority.iter().all(|b| {
            b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']' | b'%' | b'!' | b'$' | b'&' | b'\''
                )
                || matches!(b, b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
        })
}

/// May this be a request target in origin form? (RFC 9112, 3.2.1) Its length is bounded too.
pub fn valid_origin_form(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && path.len() <= TARGET_BYTES_MAX
        && path.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'<' | b'>' | b'"'))
}

fn framing(headers: &[httparse::Header<'_>], http11: bool) -> Result<Framing, RefusedRequest> {
    let mut length: Option<u64> = None;
    let mut codings = 0;
    let mut chunked = false;
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = content_length(header.value).ok_or(bad("malformed Content-Length"))?;
            if length.is_some_and(|other| other != value) {
                return Err(bad("differing Content-Length fields"));
            }
            length = Some(value);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            for coding in tokens(header.value) {
                codings += 1;
                chunked = coding.eq_ignore_ascii_case(b"chunked");
            }
            if tokens(header.value).next().is_none() {
                return Err(bad("empty Transfer-Encoding"));
            }
        }
    }
    match (codings, length) {
        (0, Some(length)) => Ok(Framing::Length(length)),
        (0, None) => Ok(Framing::None),
        // A message with both is how requests are smuggled (RFC 9112, 6.3).
        (_, Some(_)) => Err(bad("both Transfer-Encoding and Content-Length")),
        (_, None) if !http11 => Err(bad("Transfer-Encoding in an HTTP/1.0 request")),
        (1, None) if chunked => Ok(Framing::Chunked),
        (_, None) if chunked => {
            Err(refused(StatusCode::NOT_IMPLEMENTED, "only the chunked transfer coding is served"))
        }
        (_, None) => Err(refused(StatusCode::NOT_IMPLEMENTED, "unknown transfer coding")),
    }
}

/// The length a multiplexed request announces, if it does.
fn announced_length(map: &HeaderMap) -> Result<Option<u64>, RefusedRequest> {
    let mut length = None;
    for value in map.get_all(http::header::CONTENT_LENGTH) {
        let value = content_length(value.as_bytes()).ok_or(bad("malformed Content-Length"))?;
        if length.is_some_and(|other| other != value) {
            return Err(bad("differing Content-Length fields"));
        }
        length = Some(value);
    }
    Ok(length)
}

/// Digits only, or a list of the same digits (RFC 9110, 8.6); `None` when malformed or beyond 2^63.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    let mut found: Option<u64> = None;
    for part in value.split(|b| *b == b',') {
        let digits = part.trim_ascii();
        if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
        if found.is_some_and(|other| other != number) {
            return None;
        }
        found = Some(number);
    }
    found
}

/// Persistence as RFC 9112, 9.3 has it.
fn keep_alive(headers: &[httparse::Header<'_>], http11: bool) -> bool {
    let mut keep = http11;
    for header in headers.iter().filter(|h| h.name.eq_ignore_ascii_case("connection")) {
        for option in tokens(header.value) {
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            if option.eq_ignore_ascii_case(b"keep-alive") {
                keep = true;
            }
        }
    }
    keep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Option<RequestHead>, RefusedRequest> {
        RequestHead::take(&mut BytesMut::from(text))
    }

    fn status(text: &str) -> u16 {
        take(text).expect_err(text).status.as_u16()
    }

    #[test]
    fn a_plain_request_is_taken_and_the_rest_stays() {
        let mut buf =
            BytesMut::from("GET /a/b?c=d HTTP/1.1\r\nHost: x.example:81\r\nA: 1\r\na: 2\r\n\r\nGET ");
        let head = RequestHead::take(&mut buf).unwrap().unwrap();
        assert_eq!((head.target.host(), head.target.path()), ("x.example", "/a/b"));
        assert_eq!((head.target.query(), head.target.origin_form()), (Some("c=d"), "/a/b?c=d"));
        assert_eq!(head.fields.all("A").collect::<Vec<_>>(), [b"1", b"2"]);
        assert!(head.keep_alive && head.framing == Framing::None);
        assert_eq!(&buf[..], b"GET ");
    }

    #[test]
    fn an_unfinished_head_waits() {
        let mut buf = BytesMut::from("GET / HTTP/1.1\r\nHost: x\r\n");
        assert!(RequestHead::take(&mut buf).unwrap().is_none());
        assert_eq!(buf.len(), 25);
    }

    #[test]
    fn the_absolute_form_names_the_authority() {
        let head = take("GET http://y.example:8/p?q HTTP/1.1\r\nHost: x\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.target.authority(), head.target.origin_form()), ("y.example:8", "/p?q"));
        let bare = take("GET http://y.example HTTP/1.1\r\nHost: x\r\n\r\n").unwrap().unwrap();
        assert_eq!(bare.target.path(), "/");
    }

    #[test]
    fn ambiguous_and_malformed_heads_are_refused() {
        let cases = [
            (400, "GET / HTTP/1.1\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"),
            (400, "GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            (400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"),
            (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n"),
            (501, "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
            (505, "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
            (400, "G@T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ];
        for (expected, text) in cases {
            assert_eq!(status(text), expected, "{text:?}");
        }
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000))), 414);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(101))), 431);
    }

    #[test]
    fn identical_lengths_are_one() {
        let head = take("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(head.unwrap().unwrap().framing, Framing::Length(5));
    }

    #[test]
    fn persistence_follows_version_and_connection() {
        for (text, keep) in [
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            assert_eq!(take(text).unwrap().unwrap().keep_alive, keep, "{text}");
        }
    }

    fn multiplexed(
        authority: &str,
        path: &str,
        pairs: &[(&str, &str)],
        content: bool,
    ) -> Result<RequestHead, u16> {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        RequestHead::multiplexed(Version::Http2, Method::POST, authority, path, &map, content)
            .map_err(|refused| refused.status.as_u16())
    }

    #[test]
    fn a_multiplexed_request_is_checked_like_any() {
        type Case<'a> = (u16, &'a str, &'a str, &'a [(&'a str, &'a str)], bool);
        let cases: [Case<'_>; 12] = [
            (400, "", "/", &[], false),
            (400, "a", "/", &[("host", "b")], false),
            (400, "a", "/", &[("host", "a"), ("host", "a")], false),
            (400, "u@a", "/", &[], false),
            (400, "", "/", &[("host", "")], false),
            (400, "a", "", &[], false),
            (400, "a", "*", &[], false),
            (400, "a", "/ b", &[], false),
            (400, "a", "/", &[("content-length", "1")], false),
            (400, "a", "/", &[("content-length", "x")], true),
            (400, "a", "/", &[("content-length", "1"), ("content-length", "2")], true),
            (414, "a", &format!("/{}", "x".repeat(9000)), &[], false),
        ];
        for (status, authority, path, pairs, content) in cases {
            assert_eq!(
                multiplexed(authority, path, pairs, content).unwrap_err(),
                status,
                "{authority} {pairs:?}"
            );
        }
    }

    #[test]
    fn a_multiplexed_request_is_like_any_other() {
        let head =
            multiplexed("A.example:8", "/p?q", &[("host", "a.example:8"), ("content-length", "3")], true);
        let head = head.unwrap();
        assert_eq!((head.target.authority(), head.target.origin_form()), ("A.example:8", "/p?q"));
        assert_eq!(head.framing, Framing::Length(3));
        let crumbs =
            multiplexed("", "/", &[("host", "a"), ("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")], true);
        let crumbs = crumbs.unwrap();
        assert_eq!(crumbs.framing, Framing::Chunked);
        assert_eq!(crumbs.fields.all("cookie").collect::<Vec<_>>(), [b"a=1; b=2"]);
        assert_eq!(multiplexed("a", "/", &[("content-length", "0")], false).unwrap().framing, Framing::None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = RequestHead::take(&mut BytesMut::from(&bytes[..]));
        }
    }
}
