//! Malformed HTTP/2, frame by frame: each exchange is refused as RFC 9113 says, and the node goes on serving.
//!
//! `cargo test --test it malformed_h2 -- --nocapture` prints the table of exchanges and answers.

use crate::bed::raw_h2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY,
    PUSH_PROMISE, RST_STREAM, RawH2, SETTINGS, WINDOW_UPDATE, block, frame, get, good, headers, setting,
};
use crate::bed::{Heard, Node, Origin, ok, route, upstream};

/// Error codes (RFC 9113, 7).
const PROTOCOL_ERROR: u64 = 0x1;
const FLOW_CONTROL_ERROR: u64 = 0x3;
const STREAM_CLOSED: u64 = 0x5;
const FRAME_SIZE_ERROR: u64 = 0x6;
const COMPRESSION_ERROR: u64 = 0x9;
const ENHANCE_YOUR_CALM: u64 = 0xb;

/// What may become of it.
#[derive(Clone, Copy)]
enum May {
    /// Answered with 200 and this many bytes.
    Serve(usize),
    /// A malformed message (8.1.1): 400, or an error of the stream, or of the connection.
    RefuseMessage,
    /// An error of the stream with one of these codes, or of the connection with one of them.
    Reset(&'static [u64]),
    /// An error of the connection with one of these codes.
    Close(&'static [u64]),
    /// As `RefuseMessage`; or served without it, where the library that parses hides the fault from the node.
    RefuseMessageOrServe,
    /// As `Close`, or served, for the same reason.
    CloseOrServe(&'static [u64]),
    /// Not HTTP/2 at all: whatever ends it.
    End,
}

/// Frames after the preface; what becomes of stream 1, or of the connection, is judged.
struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    may: May,
}

fn case(what: &'static str, bytes: impl Into<Vec<u8>>, may: May) -> Case {
    Case { what, bytes: bytes.into(), may }
}

/// A request for `/bad` with these fields instead of the good ones that `without` names, and beside the rest.
fn request(without: &[&str], more: &[(&str, &str)]) -> Vec<u8> {
    headers(1, END_STREAM, &fields(without, more))
}

fn fields<'a>(without: &[&str], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = good("GET", "/bad").into_iter().filter(|(name, _)| !without.contains(name));
    kept.chain(more.iter().copied()).collect()
}

/// A POST to `/upload` with this length, and content.
fn post(length: &str, pieces: &[&[u8]]) -> Vec<u8> {
    let mut fields = good("POST", "/upload");
    fields.push(("content-length", length));
    let mut bytes = headers(1, if pieces.is_empty() { END_STREAM } else { 0 }, &fields);
    for (number, piece) in pieces.iter().enumerate() {
        let flags = if number + 1 == pieces.len() { END_STREAM } else { 0 };
        bytes.extend(frame(DATA, flags, 1, piece));
    }
    bytes
}

fn messages() -> Vec<Case> {
    use May::RefuseMessage as Refuse;
    let long = "y".repeat(2000);
    let many: Vec<(&str, &str)> = (0..40).map(|_| ("x", &*long)).collect();
    vec![
        case("no :method", request(&[":method"], &[]), Refuse),
        case("no :scheme", request(&[":scheme"], &[]), Refuse),
        case("no :path", request(&[":path"], &[]), Refuse),
        case("an empty :path", request(&[":path"], &[(":path", "")]), Refuse),
        case("a :path without a slash", request(&[":path"], &[(":path", "bad")]), Refuse),
        case("an empty :method", request(&[":method"], &[(":method", "")]), Refuse),
        case("two :method", request(&[], &[(":method", "GET")]), Refuse),
        case("two :path", request(&[], &[(":path", "/bad")]), Refuse),
        case("two :authority", request(&[], &[(":authority", "bed.example")]), Refuse),
        case("an unknown pseudo-header field", request(&[], &[(":foo", "bar")]), Refuse),
        case("a pseudo-header field of answers", request(&[], &[(":status", "200")]), Refuse),
        case(
            "a pseudo-header field after a field",
            headers(1, END_STREAM, &[(":method", "GET"), (":scheme", "http"), ("x", "y"), (":path", "/bad")]),
            Refuse,
        ),
        case("a name in capitals", request(&[], &[("X-Capital", "y")]), Refuse),
        case("a name with a space", request(&[], &[("a b", "y")]), Refuse),
        case("an empty name", request(&[], &[("", "y")]), Refuse),
        case("a name with a colon", request(&[], &[("a:b", "y")]), Refuse),
        case("NUL in a value", request(&[], &[("x", "a\0b")]), Refuse),
        case("a line feed in a value", request(&[], &[("x", "a\nb")]), Refuse),
        case("a carriage return in a value", request(&[], &[("x", "a\r\nhost: b")]), Refuse),
        case("connection", request(&[], &[("connection", "close")]), Refuse),
        case("transfer-encoding", request(&[], &[("transfer-encoding", "chunked")]), Refuse),
        case("upgrade", request(&[], &[("upgrade", "h2c")]), Refuse),
        case("keep-alive", request(&[], &[("keep-alive", "timeout=5")]), Refuse),
        case("proxy-connection", request(&[], &[("proxy-connection", "keep-alive")]), Refuse),
        case("te that is not trailers", request(&[], &[("te", "gzip")]), Refuse),
        case("no authority and no host", request(&[":authority"], &[]), Refuse),
        case("a host that is not the authority", request(&[], &[("host", "other.example")]), Refuse),
        case("two hosts", request(&[":authority"], &[("host", "a"), ("host", "b")]), Refuse),
        case(
            "user information in :authority",
            request(&[":authority"], &[(":authority", "u@bed.example")]),
            Refuse,
        ),
        case("a space in :path", request(&[":path"], &[(":path", "/bad path")]), Refuse),
        case("a fragment in :path", request(&[":path"], &[(":path", "/odd#f")]), May::RefuseMessageOrServe),
        case("a space in :method", request(&[":method"], &[(":method", "G T")]), Refuse),
        case("less content than its length", post("6", &[b"abc"]), Refuse),
        case("more content than its length", post("2", &[b"abc"]), Refuse),
        case("a length and no content", post("6", &[]), Refuse),
        case("a length that is none", post("abc", &[b"abc"]), Refuse),
        case("a signed length", post("+3", &[b"abc"]), Refuse),
        case(
            "two lengths",
            {
                let two = [("content-length", "3"), ("content-length", "4")];
                [headers(1, 0, &fields(&[], &two)), frame(DATA, END_STREAM, 1, b"abc")].concat()
            },
            Refuse,
        ),
        case(
            "trailers with a pseudo-header field",
            {
                let head = headers(1, 0, &good("POST", "/upload"));
                [head, frame(DATA, 0, 1, b"abc"), headers(1, END_STREAM, &[(":path", "/bad")])].concat()
            },
            May::RefuseMessageOrServe,
        ),
        case(
            "trailers that do not end the stream",
            {
                let head = headers(1, 0, &good("POST", "/upload"));
                [head, frame(DATA, 0, 1, b"abc"), headers(1, 0, &[("x", "y")])].concat()
            },
            Refuse,
        ),
        case(
            "80 kB of fields",
            {
                let whole = block(&fields(&[], &many));
                let mut bytes = frame(HEADERS, END_STREAM, 1, &whole[..16_000]);
                let rest: Vec<&[u8]> = whole[16_000..].chunks(16_000).collect();
                for (number, piece) in rest.iter().enumerate() {
                    let flags = if number + 1 == rest.len() { END_HEADERS } else { 0 };
                    bytes.extend(frame(CONTINUATION, flags, 1, piece));
                }
                bytes
            },
            May::Reset(&[PROTOCOL_ERROR, ENHANCE_YOUR_CALM, 0x2, 0x7, 0x8]),
        ),
    ]
}

fn framing() -> Vec<Case> {
    const PROTOCOL: May = May::Close(&[PROTOCOL_ERROR]);
    const SIZE: May = May::Close(&[FRAME_SIZE_ERROR]);
    let open = || headers(1, 0, &good("POST", "/upload"));
    let then = |bytes: Vec<u8>| [open(), bytes].concat();
    vec![
        case("DATA on stream 0", frame(DATA, 0, 0, b"abc"), PROTOCOL),
        case("HEADERS on stream 0", headers(0, END_STREAM, &good("GET", "/bad")), PROTOCOL),
        case("a stream of a server's number", headers(2, END_STREAM, &good("GET", "/bad")), PROTOCOL),
        case(
            "a stream number lower than before",
            {
                [headers(5, END_STREAM, &good("GET", "/ok")), headers(3, END_STREAM, &good("GET", "/bad"))]
                    .concat()
            },
            May::Close(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        case(
            "DATA on a stream nobody opened",
            frame(DATA, 0, 7, b"abc"),
            May::Close(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        case("RST_STREAM of a stream nobody opened", frame(RST_STREAM, 0, 7, [0; 4]), PROTOCOL),
        case("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, [0; 4]), PROTOCOL),
        case("RST_STREAM of three bytes", then(frame(RST_STREAM, 0, 1, [0; 3])), SIZE),
        case("WINDOW_UPDATE of a stream nobody opened", frame(WINDOW_UPDATE, 0, 7, [0, 0, 0, 1]), PROTOCOL),
        case("WINDOW_UPDATE of 0 for the connection", frame(WINDOW_UPDATE, 0, 0, [0; 4]), PROTOCOL),
        case(
            "WINDOW_UPDATE of 0 for a stream",
            then(frame(WINDOW_UPDATE, 0, 1, [0; 4])),
            May::Reset(&[PROTOCOL_ERROR]),
        ),
        case("WINDOW_UPDATE of three bytes", frame(WINDOW_UPDATE, 0, 0, [0; 3]), SIZE),
        case(
            "a window of the connection beyond its bound",
            frame(WINDOW_UPDATE, 0, 0, 0x7fff_ffffu32.to_be_bytes()),
            May::Close(&[FLOW_CONTROL_ERROR]),
        ),
        case(
            "a window of a stream beyond its bound",
            then(frame(WINDOW_UPDATE, 0, 1, 0x7fff_ffffu32.to_be_bytes())),
            May::Reset(&[FLOW_CONTROL_ERROR]),
        ),
        case("SETTINGS of five bytes", frame(SETTINGS, 0, 0, [0; 5]), SIZE),
        case("SETTINGS on a stream", frame(SETTINGS, 0, 1, setting(4, 1)), PROTOCOL),
        case("SETTINGS ACK with a setting", frame(SETTINGS, ACK, 0, setting(4, 1)), SIZE),
        case("SETTINGS_ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, setting(2, 2)), PROTOCOL),
        case(
            "SETTINGS_INITIAL_WINDOW_SIZE beyond its bound",
            frame(SETTINGS, 0, 0, setting(4, 0x8000_0000)),
            May::Close(&[FLOW_CONTROL_ERROR]),
        ),
        case("SETTINGS_MAX_FRAME_SIZE of 100", frame(SETTINGS, 0, 0, setting(5, 100)), PROTOCOL),
        case("PING of seven bytes", frame(PING, 0, 0, [0; 7]), SIZE),
        case("PING on a stream", frame(PING, 0, 1, [0; 8]), PROTOCOL),
        case("GOAWAY on a stream", frame(GOAWAY, 0, 1, [0; 8]), PROTOCOL),
        case("PUSH_PROMISE", then(frame(PUSH_PROMISE, END_HEADERS, 1, [0, 0, 0, 2, 0x82])), PROTOCOL),
        case("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")])), PROTOCOL),
        case(
            "CONTINUATION after the end of the fields",
            {
                [
                    headers(1, 0, &good("GET", "/bad")),
                    frame(CONTINUATION, END_HEADERS, 1, block(&[("x", "y")])),
                ]
                .concat()
            },
            PROTOCOL,
        ),
        case(
            "another frame among those of a header block",
            {
                [frame(HEADERS, END_STREAM, 1, block(&good("GET", "/bad"))), frame(PING, 0, 0, [0; 8])]
                    .concat()
            },
            PROTOCOL,
        ),
        case(
            "CONTINUATION of another stream",
            {
                let begun = frame(HEADERS, END_STREAM, 1, block(&good("GET", "/bad")));
                [begun, frame(CONTINUATION, END_HEADERS, 3, block(&[("x", "y")]))].concat()
            },
            PROTOCOL,
        ),
        case(
            "a frame longer than allowed",
            then(frame(DATA, 0, 1, vec![0; 17_000])),
            May::Reset(&[FRAME_SIZE_ERROR]),
        ),
        case("padding longer than its frame", then(frame(DATA, PADDED, 1, [9, 0, 0])), PROTOCOL),
        case(
            "HEADERS with more padding than frame",
            frame(HEADERS, PADDED | END_HEADERS, 1, [200, 0x82]),
            PROTOCOL,
        ),
        case(
            "a field of the table that is not there",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, [0x82, 0xff, 0xff, 0x7f]),
            May::Close(&[COMPRESSION_ERROR]),
        ),
        case(
            "a field block that ends in a field",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, [0x82, 0x00, 0x05, b'a']),
            May::Close(&[COMPRESSION_ERROR]),
        ),
        case(
            "a dynamic table larger than allowed",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, [0x3f, 0xff, 0xff, 0xff, 0x07, 0x82]),
            May::Close(&[COMPRESSION_ERROR]),
        ),
        case(
            "more content than the window allows",
            {
                let full = frame(DATA, 0, 1, vec![0; 16_384]);
                then(full.repeat(1200))
            },
            May::Reset(&[FLOW_CONTROL_ERROR, 0x0, 0x8, ENHANCE_YOUR_CALM]),
        ),
    ]
}

/// What looks odd and must work.
fn odd() -> Vec<Case> {
    let ok = May::Serve(3);
    let head = good("GET", "/ok");
    let padded = |flags: u8, kind: u8, payload: &[u8]| {
        frame(kind, flags | PADDED, 1, [&[3], payload, &[0; 3]].concat())
    };
    vec![
        case("a frame of an unknown type", [frame(0xee, 0xff, 0, b"abc"), get(1, "/ok")].concat(), ok),
        case(
            "an unknown frame of a stream",
            [headers(1, 0, &head), frame(0xee, 0, 1, b"abc"), frame(DATA, END_STREAM, 1, b"")].concat(),
            ok,
        ),
        case("an unknown setting", [frame(SETTINGS, 0, 0, setting(0xaaaa, 7)), get(1, "/ok")].concat(), ok),
        case("an unknown flag", headers(1, END_STREAM | 0x80, &head), ok),
        case(
            "PRIORITY of a stream nobody opened",
            [frame(PRIORITY, 0, 9, [0, 0, 0, 0, 16]), get(1, "/ok")].concat(),
            ok,
        ),
        case("HEADERS with padding", padded(END_STREAM | END_HEADERS, HEADERS, &block(&head)), ok),
        case(
            "DATA with padding",
            [headers(1, 0, &good("POST", "/ok")), padded(END_STREAM, DATA, b"abc")].concat(),
            ok,
        ),
        case(
            "empty DATA in the middle",
            {
                let pieces =
                    [frame(DATA, 0, 1, b"abc"), frame(DATA, 0, 1, b""), frame(DATA, END_STREAM, 1, b"d")];
                [headers(1, 0, &good("POST", "/ok")), pieces.concat()].concat()
            },
            ok,
        ),
        case(
            "fields in many frames",
            {
                let whole = block(&head);
                let mut bytes = frame(HEADERS, END_STREAM, 1, &whole[..10]);
                for piece in whole[10..whole.len() - 1].chunks(40) {
                    bytes.extend(frame(CONTINUATION, 0, 1, piece));
                }
                bytes.extend(frame(CONTINUATION, END_HEADERS, 1, &whole[whole.len() - 1..]));
                bytes
            },
            ok,
        ),
        case(
            "host and no authority",
            headers(
                1,
                END_STREAM,
                &[(":method", "GET"), (":scheme", "http"), (":path", "/ok"), ("host", "bed.example")],
            ),
            ok,
        ),
        case(
            "trailers",
            {
                let head = headers(1, 0, &good("POST", "/ok"));
                [head, frame(DATA, 0, 1, b"abc"), headers(1, END_STREAM, &[("x", "y")])].concat()
            },
            ok,
        ),
        case("PING and its answer in between", [frame(PING, 0, 0, b"12345678"), get(1, "/ok")].concat(), ok),
    ]
}

fn greetings() -> Vec<Case> {
    let ours = frame(SETTINGS, 0, 0, []);
    vec![
        case("a broken preface", [b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &ours[..]].concat(), May::End),
        case("half a preface, then a request", b"PRI * HTTP/2.0\r\nHost: a\r\n\r\n".to_vec(), May::End),
        case("no SETTINGS first", [PREFACE, &get(1, "/odd")].concat(), May::CloseOrServe(&[PROTOCOL_ERROR])),
        case(
            "SETTINGS ACK first",
            [PREFACE, &frame(SETTINGS, ACK, 0, []), &get(1, "/odd")].concat(),
            May::Close(&[PROTOCOL_ERROR]),
        ),
        case(
            "GOAWAY, then a request",
            [PREFACE, &ours, &frame(GOAWAY, 0, 0, [0; 8]), &get(1, "/ok")].concat(),
            May::Serve(3),
        ),
    ]
}

fn is_allowed(may: May, heard: &Heard) -> bool {
    let by = |codes: &[u64], code: &u64| codes.contains(code);
    match (may, heard) {
        (May::Serve(bytes), Heard::Answer(200, got)) => bytes == *got,
        (May::RefuseMessage, Heard::Answer(400, _)) => true,
        (May::RefuseMessage, Heard::Reset(code) | Heard::Closed(code)) => *code == PROTOCOL_ERROR,
        (May::Reset(codes), Heard::Reset(code) | Heard::Closed(code)) => by(codes, code),
        (May::Reset(_), Heard::Answer(431, _)) => true,
        (May::RefuseMessageOrServe, heard) => {
            matches!(heard, Heard::Answer(200, _)) || is_allowed(May::RefuseMessage, heard)
        }
        // The general code instead of the special one tells the client enough.
        (May::Close(codes) | May::CloseOrServe(codes), Heard::Closed(code)) => {
            by(codes, code) || *code == PROTOCOL_ERROR
        }
        (May::CloseOrServe(_), Heard::Answer(200, _)) => true,
        (May::End, Heard::Nothing | Heard::Closed(_)) => true,
        _ => false,
    }
}

async fn judge(node: &Node, cases: Vec<Case>, greets: bool) {
    let mut wrong = Vec::new();
    for Case { what, bytes, may } in cases {
        let mut raw = if greets { RawH2::bare(node.http).await } else { RawH2::connect(node.http).await };
        raw.send(&bytes).await;
        let heard = match may {
            May::Close(_) | May::CloseOrServe(_) => {
                // Were the connection to go on, this would be answered.
                raw.send(get(101, "/ok")).await;
                raw.heard(101).await
            }
            _ => raw.heard(1).await,
        };
        println!("| {what} | {heard} |");
        if !is_allowed(may, &heard) {
            wrong.push(format!("{what}: {heard}"));
        }
        let mut after = RawH2::connect(node.http).await;
        after.send(get(1, "/ok")).await;
        assert_eq!(after.heard(1).await, Heard::Answer(200, 3), "after {what}");
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

async fn bed() -> (Origin, Node) {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let origins = upstream(&[origin.address], "") + &route("rest", "/*", "");
    let node = Node::start(&format!("[limits]\nheader_timeout = \"2s\"\n{origins}")).await;
    (origin, node)
}

fn nothing_bad_arrived(origin: &Origin) {
    let bad: Vec<_> = origin.seen().into_iter().filter(|request| request.target().contains("bad")).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[tokio::test]
async fn malformed_messages_are_refused() {
    let (origin, node) = bed().await;
    let cases = messages();
    assert!(cases.len() >= 12);
    judge(&node, cases, false).await;
    nothing_bad_arrived(&origin);
}

#[tokio::test]
async fn broken_framing_ends_the_stream_or_the_connection() {
    let (origin, node) = bed().await;
    let cases = framing();
    assert!(cases.len() >= 12);
    judge(&node, cases, false).await;
    nothing_bad_arrived(&origin);
}

#[tokio::test]
async fn what_is_only_odd_is_served() {
    let (_origin, node) = bed().await;
    judge(&node, odd(), false).await;
}

#[tokio::test]
async fn a_connection_begins_as_it_must() {
    let (origin, node) = bed().await;
    judge(&node, greetings(), true).await;
    nothing_bad_arrived(&origin);
}
