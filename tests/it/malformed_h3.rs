//! Malformed HTTP/3, frame by frame: each exchange is refused as RFC 9114 says, and the node goes on serving.
//!
//! `cargo test --test it malformed_h3 -- --nocapture` prints the table of exchanges and answers.

use crate::bed::raw_h3::{
    CANCEL_PUSH, CONTROL, DATA, GOAWAY, HEADERS, MAX_PUSH_ID, PUSH, PUSH_PROMISE, QPACK_ENCODER, RawH3,
    SETTINGS, frame, get, good, headers, integer, section, settings,
};
use crate::bed::{Heard, Node, Origin, SELF_SIGNED, https, ok, route, upstream};

/// Error codes (RFC 9114, 8.1; RFC 9204, 6).
const GENERAL_PROTOCOL_ERROR: u64 = 0x101;
const STREAM_CREATION_ERROR: u64 = 0x103;
const CLOSED_CRITICAL_STREAM: u64 = 0x104;
const FRAME_UNEXPECTED: u64 = 0x105;
const FRAME_ERROR: u64 = 0x106;
const EXCESSIVE_LOAD: u64 = 0x107;
const ID_ERROR: u64 = 0x108;
const SETTINGS_ERROR: u64 = 0x109;
const MISSING_SETTINGS: u64 = 0x10a;
const REQUEST_REJECTED: u64 = 0x10b;
const REQUEST_CANCELLED: u64 = 0x10c;
const REQUEST_INCOMPLETE: u64 = 0x10d;
const MESSAGE_ERROR: u64 = 0x10e;
const DECOMPRESSION_FAILED: u64 = 0x200;
const ENCODER_STREAM_ERROR: u64 = 0x201;

/// What may become of it.
#[derive(Clone, Copy)]
enum May {
    /// Answered with 200 and this many bytes.
    Serve(usize),
    /// A malformed message (4.1.2): 400, or an error of the stream, or of the connection.
    RefuseMessage,
    /// As `RefuseMessage`; or served without it, where the library that parses hides the fault from the node.
    RefuseMessageOrServe,
    /// An error of the stream with one of these codes, or of the connection with one of them; 431 too.
    Reset(&'static [u64]),
    /// An error of the connection with one of these codes.
    Close(&'static [u64]),
    /// The same, or it goes on, where the library hides the fault from the node.
    CloseOrServe(&'static [u64]),
}

/// Where it is said. All but the first begin with a good control stream.
#[derive(Clone, Copy)]
enum On {
    /// At the beginning of the control stream.
    NewControl,
    /// On the control stream, after its SETTINGS.
    Control,
    /// On a request stream, which then ends.
    Request,
    /// On a one-way stream of this type.
    OneWay(u64),
    /// The same, and the stream ends.
    Ended(u64),
}

struct Case {
    what: &'static str,
    on: On,
    bytes: Vec<u8>,
    may: May,
}

fn case(what: &'static str, on: On, bytes: impl Into<Vec<u8>>, may: May) -> Case {
    Case { what, on, bytes: bytes.into(), may }
}

fn fields<'a>(without: &[&str], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = good("GET", "/bad").into_iter().filter(|(name, _)| !without.contains(name));
    kept.chain(more.iter().copied()).collect()
}

/// A POST to `/upload` with this length, and content.
fn post(length: &str, pieces: &[&[u8]]) -> Vec<u8> {
    let mut fields = good("POST", "/upload");
    fields.push(("content-length", length));
    let content = pieces.iter().map(|piece| frame(DATA, piece));
    [headers(&fields), content.collect::<Vec<_>>().concat()].concat()
}

fn messages() -> Vec<Case> {
    let request = |what, without: &[&str], more: &[(&str, &str)]| {
        case(what, On::Request, headers(&fields(without, more)), May::RefuseMessage)
    };
    // With another path: what is served arrives at the origin.
    let hidden = |what, without: &[&str], more: &[(&str, &str)]| {
        let fields = good("GET", "/odd").into_iter().filter(|(name, _)| !without.contains(name));
        let fields: Vec<_> = fields.chain(more.iter().copied()).collect();
        case(what, On::Request, headers(&fields), May::RefuseMessageOrServe)
    };
    let bytes = |what, bytes: Vec<u8>| case(what, On::Request, bytes, May::RefuseMessage);
    let long = "y".repeat(2000);
    let many: Vec<(&str, &str)> = (0..40).map(|_| ("x", &*long)).collect();
    vec![
        request("no :method", &[":method"], &[]),
        request("no :scheme", &[":scheme"], &[]),
        request("no :path", &[":path"], &[]),
        request("an empty :path", &[":path"], &[(":path", "")]),
        request("a :path without a slash", &[":path"], &[(":path", "bad")]),
        hidden("two :method", &[], &[(":method", "GET")]),
        hidden("two :path", &[], &[(":path", "/odd")]),
        hidden("two :authority", &[], &[(":authority", "bed.example")]),
        request("an unknown pseudo-header field", &[], &[(":foo", "bar")]),
        hidden("a pseudo-header field of answers", &[], &[(":status", "200")]),
        hidden("a pseudo-header field after a field", &[":path"], &[("x", "y"), (":path", "/odd")]),
        request("a name in capitals", &[], &[("X-Capital", "y")]),
        request("a name with a space", &[], &[("a b", "y")]),
        request("an empty name", &[], &[("", "y")]),
        request("NUL in a value", &[], &[("x", "a\0b")]),
        request("a line feed in a value", &[], &[("x", "a\nb")]),
        request("a carriage return in a value", &[], &[("x", "a\r\nhost: b")]),
        request("connection", &[], &[("connection", "close")]),
        request("transfer-encoding", &[], &[("transfer-encoding", "chunked")]),
        request("upgrade", &[], &[("upgrade", "websocket")]),
        request("keep-alive", &[], &[("keep-alive", "timeout=5")]),
        request("proxy-connection", &[], &[("proxy-connection", "keep-alive")]),
        request("te that is not trailers", &[], &[("te", "gzip")]),
        request("no authority and no host", &[":authority"], &[]),
        request("a host that is not the authority", &[], &[("host", "other.example")]),
        request("an empty :authority", &[":authority"], &[(":authority", "")]),
        request("user information in :authority", &[":authority"], &[(":authority", "u@bed.example")]),
        request("a space in :path", &[":path"], &[(":path", "/bad path")]),
        hidden("a fragment in :path", &[":path"], &[(":path", "/odd#f")]),
        bytes("less content than its length", post("6", &[b"abc"])),
        bytes("more content than its length", post("2", &[b"abc"])),
        bytes("a length and no content", post("6", &[])),
        bytes("a length that is none", post("abc", &[b"abc"])),
        bytes("a signed length", post("+3", &[b"abc"])),
        bytes("two lengths", {
            let two = [("content-length", "3"), ("content-length", "4")];
            [headers(&fields(&[], &two)), frame(DATA, b"abc")].concat()
        }),
        case(
            "trailers with a pseudo-header field",
            On::Request,
            [headers(&good("POST", "/upload")), frame(DATA, b"abc"), headers(&[(":path", "/bad")])].concat(),
            May::RefuseMessageOrServe,
        ),
        case(
            "80 kB of fields",
            On::Request,
            headers(&fields(&[], &many)),
            May::Reset(&[EXCESSIVE_LOAD, REQUEST_REJECTED, REQUEST_CANCELLED, MESSAGE_ERROR]),
        ),
        case("an end before anything", On::Request, [], May::Reset(&[REQUEST_INCOMPLETE, MESSAGE_ERROR])),
        case(
            "an end after an unknown frame",
            On::Request,
            frame(0x21, b"abc"),
            May::Reset(&[REQUEST_INCOMPLETE, MESSAGE_ERROR]),
        ),
    ]
}

fn framing() -> Vec<Case> {
    const UNEXPECTED: May = May::Close(&[FRAME_UNEXPECTED]);
    const DECOMPRESSION: May = May::Close(&[DECOMPRESSION_FAILED]);
    let whole = || headers(&good("POST", "/upload"));
    let trailers = || headers(&[("x", "y")]);
    let after = |bytes: Vec<u8>| [whole(), frame(DATA, b"abc"), bytes].concat();
    let request = |what, bytes: Vec<u8>, may| case(what, On::Request, bytes, may);
    vec![
        request("DATA before HEADERS", frame(DATA, b"abc"), UNEXPECTED),
        request("DATA after trailers", after([trailers(), frame(DATA, b"d")].concat()), UNEXPECTED),
        request("HEADERS after trailers", after([trailers(), trailers()].concat()), UNEXPECTED),
        request("SETTINGS on a request", settings(&[]), UNEXPECTED),
        request("SETTINGS after HEADERS", after(settings(&[])), UNEXPECTED),
        request("GOAWAY on a request", frame(GOAWAY, integer(0)), UNEXPECTED),
        request("CANCEL_PUSH on a request", frame(CANCEL_PUSH, integer(0)), UNEXPECTED),
        request("MAX_PUSH_ID on a request", frame(MAX_PUSH_ID, integer(0)), UNEXPECTED),
        request("PUSH_PROMISE by a client", after(frame(PUSH_PROMISE, [0, 0, 0])), UNEXPECTED),
        request("PING of HTTP/2", frame(0x6, [0; 8]), UNEXPECTED),
        request("WINDOW_UPDATE of HTTP/2", after(frame(0x8, [0, 0, 0, 1])), UNEXPECTED),
        request(
            "HEADERS cut short",
            [integer(HEADERS), integer(100), vec![0, 0]].concat(),
            May::Close(&[FRAME_ERROR]),
        ),
        request(
            "DATA cut short",
            [whole(), integer(DATA), integer(100), b"abc".to_vec()].concat(),
            May::Close(&[FRAME_ERROR]),
        ),
        request(
            "a length cut short",
            [whole(), integer(DATA), vec![0x40]].concat(),
            May::Close(&[FRAME_ERROR]),
        ),
        request(
            "an unknown frame of a terabyte",
            [whole(), integer(0x21), integer(1 << 40), vec![0; 9]].concat(),
            May::Close(&[EXCESSIVE_LOAD]),
        ),
        request(
            "HEADERS of a megabyte",
            [integer(HEADERS), integer(1 << 20), vec![0; 9]].concat(),
            May::Close(&[EXCESSIVE_LOAD]),
        ),
        request(
            "1,001 times empty DATA",
            [whole(), frame(DATA, b"").repeat(1001)].concat(),
            May::Close(&[EXCESSIVE_LOAD]),
        ),
        case(
            "an endless frame on the control stream",
            On::Control,
            [integer(0x21), integer(1 << 40), vec![0; 9]].concat(),
            May::Close(&[EXCESSIVE_LOAD]),
        ),
        request("HEADERS of nothing", frame(HEADERS, []), May::Close(&[DECOMPRESSION_FAILED, FRAME_ERROR])),
        request("a field of the dynamic table", frame(HEADERS, [0, 0, 0x80]), DECOMPRESSION),
        request(
            "a field of the static table that is not there",
            frame(HEADERS, [0, 0, 0xff, 0x7f]),
            DECOMPRESSION,
        ),
        request("a section that waits for the dynamic table", frame(HEADERS, [5, 0, 0x80]), DECOMPRESSION),
        request("a section that ends in a field", frame(HEADERS, [0, 0, 0x25, b'a']), DECOMPRESSION),
        case(
            "no SETTINGS first",
            On::NewControl,
            frame(MAX_PUSH_ID, integer(1)),
            May::Close(&[MISSING_SETTINGS]),
        ),
        case(
            "an unknown frame before SETTINGS",
            On::NewControl,
            [frame(0x21, b"abc"), settings(&[])].concat(),
            May::CloseOrServe(&[MISSING_SETTINGS]),
        ),
        case("one setting twice", On::NewControl, settings(&[(6, 1), (6, 1)]), May::Close(&[SETTINGS_ERROR])),
        case("a setting of HTTP/2", On::NewControl, settings(&[(2, 0)]), May::Close(&[SETTINGS_ERROR])),
        case(
            "a setting cut short",
            On::NewControl,
            frame(SETTINGS, [0x06]),
            May::Close(&[FRAME_ERROR, SETTINGS_ERROR]),
        ),
        case("two SETTINGS", On::Control, settings(&[]), UNEXPECTED),
        case("HEADERS on the control stream", On::Control, get("/bad"), UNEXPECTED),
        case("DATA on the control stream", On::Control, frame(DATA, b"abc"), UNEXPECTED),
        case("PUSH_PROMISE on the control stream", On::Control, frame(PUSH_PROMISE, [0, 0, 0]), UNEXPECTED),
        case("PING of HTTP/2 on the control stream", On::Control, frame(0x6, [0; 8]), UNEXPECTED),
        case(
            "CANCEL_PUSH of what was never pushed",
            On::Control,
            frame(CANCEL_PUSH, integer(3)),
            May::CloseOrServe(&[ID_ERROR]),
        ),
        case(
            "MAX_PUSH_ID that shrinks",
            On::Control,
            [frame(MAX_PUSH_ID, integer(5)), frame(MAX_PUSH_ID, integer(4))].concat(),
            May::CloseOrServe(&[ID_ERROR]),
        ),
        case(
            "GOAWAY that grows",
            On::Control,
            [frame(GOAWAY, integer(4)), frame(GOAWAY, integer(8))].concat(),
            May::Close(&[ID_ERROR]),
        ),
        case(
            "a frame with more in it than belongs there",
            On::Control,
            frame(MAX_PUSH_ID, [1, 2, 3]),
            May::CloseOrServe(&[FRAME_ERROR]),
        ),
        case(
            "a second control stream",
            On::OneWay(CONTROL),
            settings(&[]),
            May::Close(&[STREAM_CREATION_ERROR]),
        ),
        case(
            "a push stream by a client",
            On::OneWay(PUSH),
            integer(0),
            May::CloseOrServe(&[STREAM_CREATION_ERROR]),
        ),
        case("a control stream that ends", On::Ended(CONTROL), [], May::Close(&[CLOSED_CRITICAL_STREAM])),
        case(
            "an encoder stream that ends",
            On::Ended(QPACK_ENCODER),
            [],
            May::CloseOrServe(&[CLOSED_CRITICAL_STREAM]),
        ),
        case(
            "a dynamic table larger than allowed",
            On::OneWay(QPACK_ENCODER),
            [0x3f, 0xff, 0xff, 0x07],
            May::CloseOrServe(&[ENCODER_STREAM_ERROR]),
        ),
    ]
}

/// What looks odd and must work.
fn odd() -> Vec<Case> {
    let ok = May::Serve(3);
    let request = |what, bytes: Vec<u8>| case(what, On::Request, bytes, ok);
    let head = || headers(&good("POST", "/ok"));
    vec![
        request("an unknown frame before HEADERS", [frame(0x21, b"abc"), get("/ok")].concat()),
        request("an unknown frame among DATA", {
            [head(), frame(DATA, b"a"), frame(0x40, b"xyz"), frame(DATA, b"b")].concat()
        }),
        request("an unknown frame at the end", [get("/ok"), frame(0x21 + 0x1f * 5, [])].concat()),
        request(
            "an unknown frame of 100 kB",
            [head(), frame(0x21, vec![0; 100_000]), frame(DATA, b"b")].concat(),
        ),
        request("empty DATA in the middle", {
            [head(), frame(DATA, b"abc"), frame(DATA, b""), frame(DATA, b"def")].concat()
        }),
        request("empty DATA at the end", [head(), frame(DATA, b"abc"), frame(DATA, b"")].concat()),
        request("DATA of no bytes for a GET", [get("/ok"), frame(DATA, b"")].concat()),
        request("trailers", [head(), frame(DATA, b"abc"), headers(&[("x", "y")])].concat()),
        request("trailers and no content", [head(), headers(&[("x", "y")])].concat()),
        request("host and no authority", {
            headers(&[(":method", "GET"), (":scheme", "https"), (":path", "/ok"), ("host", "bed.example")])
        }),
        request("host that is the authority", {
            headers(&[good("GET", "/ok"), vec![("host", "bed.example")]].concat())
        }),
        request("te: trailers", headers(&[good("GET", "/ok"), vec![("te", "trailers")]].concat())),
        request("integers longer than they need be", {
            let section = section(&good("GET", "/ok"));
            [&[0x40, 0x01, 0x80, 0, 0, section.len() as u8][..], &section].concat()
        }),
        case("an unknown setting", On::NewControl, settings(&[(0x21, 7), (0xaaaa, 1)]), ok),
        case("an unknown frame on the control stream", On::Control, frame(0x21, b"abc"), ok),
        case("MAX_PUSH_ID", On::Control, frame(MAX_PUSH_ID, integer(8)), ok),
        case("a one-way stream of an unknown type", On::OneWay(0x21), b"abc", ok),
        case("one that ends at once", On::Ended(0x42), [], ok),
    ]
}

/// Says it; what became of it.
async fn say(node: &Node, case: &Case) -> Heard {
    let mut raw = match case.on {
        On::NewControl => RawH3::bare(node.https).await,
        On::Ended(CONTROL) => RawH3::bare(node.https).await,
        _ => RawH3::connect(node.https).await,
    };
    match case.on {
        On::Request => {
            let heard = raw.ask(&case.bytes).await;
            return match (&case.may, heard) {
                // The stream may be reset first, and the connection closed in the next packet.
                (May::Close(_) | May::CloseOrServe(_), heard) => raw.closed_soon_or(heard).await,
                (_, heard) => heard,
            };
        }
        On::NewControl => {
            raw.one_way(CONTROL, &case.bytes).await;
        }
        On::Control => {
            raw.one_way_again(&case.bytes).await;
        }
        On::OneWay(kind) => {
            raw.one_way(kind, &case.bytes).await;
        }
        On::Ended(CONTROL) => {
            let _ = raw.one_way(CONTROL, settings(&[])).await.finish();
        }
        On::Ended(kind) => {
            let _ = raw.one_way(kind, &case.bytes).await.finish();
        }
    }
    // Were the connection to go on, this would be answered.
    let heard = raw.ask(get("/ok")).await;
    if matches!(case.may, May::Close(_) | May::CloseOrServe(_)) {
        raw.closed_soon_or(heard).await
    } else {
        heard
    }
}

fn is_allowed(may: May, heard: &Heard) -> bool {
    match (may, heard) {
        (May::Serve(bytes), Heard::Answer(200, got)) => bytes == *got,
        (May::RefuseMessage, Heard::Answer(400, _)) => true,
        (May::RefuseMessage, Heard::Reset(code) | Heard::Closed(code)) => *code == MESSAGE_ERROR,
        (May::Reset(codes), Heard::Reset(code) | Heard::Closed(code)) => codes.contains(code),
        (May::Reset(_), Heard::Answer(400 | 431, _)) => true,
        (May::RefuseMessageOrServe, heard) => {
            matches!(heard, Heard::Answer(200, _)) || is_allowed(May::RefuseMessage, heard)
        }
        (May::CloseOrServe(_), Heard::Answer(200, _)) => true,
        // 8: whoever does not care to tell may always use the general code.
        (May::Close(codes) | May::CloseOrServe(codes), Heard::Closed(code)) => {
            codes.contains(code) || *code == GENERAL_PROTOCOL_ERROR
        }
        _ => false,
    }
}

async fn judge(cases: Vec<Case>) {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let origins = upstream(&[origin.address], "") + &route("rest", "/*", "");
    let node = Node::start(&(https(SELF_SIGNED) + &origins)).await;
    let mut wrong = Vec::new();
    for case in cases {
        let heard = say(&node, &case).await;
        println!("| {} | {heard} |", case.what);
        if !is_allowed(case.may, &heard) {
            wrong.push(format!("{}: {heard}", case.what));
        }
        let after = RawH3::connect(node.https).await.ask(get("/ok")).await;
        assert_eq!(after, Heard::Answer(200, 3), "after {}", case.what);
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let bad: Vec<_> = origin.seen().into_iter().filter(|request| request.target().contains("bad")).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[tokio::test]
async fn malformed_messages_are_refused() {
    let cases = messages();
    assert!(cases.len() >= 12);
    judge(cases).await;
}

#[tokio::test]
async fn broken_framing_ends_the_connection() {
    let cases = framing();
    assert!(cases.len() >= 12);
    judge(cases).await;
}

#[tokio::test]
async fn what_is_only_odd_is_served() {
    judge(odd()).await;
}
