//! Malformed and hostile requests: each is refused with a status that says why, and the node goes on serving.
//!
//! `cargo test --test it bad_input -- --nocapture` prints the table of requests and answers.

use std::time::{Duration, Instant};

use crate::bed::{End, Node, Origin, Wire, ok, request, route, upstream};

/// A request, what it is, and the status it must get. 0: the connection ends without an answer.
struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    status: u16,
}

fn case(what: &'static str, bytes: impl Into<Vec<u8>>, status: u16) -> Case {
    Case { what, bytes: bytes.into(), status }
}

/// A GET with this in place of the fields.
fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\n{fields}\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}")
}

fn heads() -> Vec<Case> {
    vec![
        case("no Host", get(""), 400),
        case("two Hosts", get("Host: a\r\nHost: b\r\n"), 400),
        case("two equal Hosts", get("Host: a\r\nHost: a\r\n"), 400),
        case("user information in Host", get("Host: u@a\r\n"), 400),
        case("a space in Host", get("Host: a b\r\n"), 400),
        case("a path in Host", get("Host: a/b\r\n"), 400),
        case("white space before the colon", get("Host : a\r\n"), 400),
        case("a folded line", get("Host: a\r\nX: 1\r\n folded\r\n"), 400),
        case("a field without a name", get("Host: a\r\n: x\r\n"), 400),
        case("a field without a colon", get("Host: a\r\nnonsense\r\n"), 400),
        case("NUL in a field", get("Host: a\r\nX: a\0b\r\n"), 400),
        case("NUL in the target", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        case("CR in a field", get("Host: a\r\nX: a\rb\r\n"), 400),
        case("a control character in the method", "G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        case("a fragment in the target", "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        case("a target without a slash", "GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        case("a space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        case("the asterisk form of GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        case("an unknown scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        case("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
        case("HTTP/0.9", "GET /\r\n\r\n", 400),
        case("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        case("HTTP/3.0", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        case("what begins like HTTP/2", "PRI * HTTP/2.0\r\n\r\nXY\r\n\r\n", 505),
        case("a TLS hello", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".repeat(5), 400),
        case("an SSH greeting", "SSH-2.0-OpenSSH_9.2\r\n", 400),
        case("101 fields", get(&format!("Host: a\r\n{}", "x: y\r\n".repeat(101))), 431),
        case(
            "a head of 64 KiB",
            get(&format!("Host: a\r\n{}", format!("x: {}\r\n", "y".repeat(1000)).repeat(64))),
            431,
        ),
        case("one field of 40 KiB", get(&format!("Host: a\r\nx: {}\r\n", "y".repeat(40 << 10))), 431),
        case("a target of 9 KiB", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9 << 10)), 414),
        case("an unknown expectation", get("Host: a\r\nExpect: tea\r\n"), 417),
    ]
}

fn bodies() -> Vec<Case> {
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    vec![
        case(
            "length and chunked",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            400,
        ),
        case(
            "chunked and length",
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
            400,
        ),
        case("two lengths", post("Content-Length: 1\r\nContent-Length: 2\r\n", "ab"), 400),
        case("a list of two lengths", post("Content-Length: 1, 2\r\n", "ab"), 400),
        case("a signed length", post("Content-Length: +1\r\n", "a"), 400),
        case("a negative length", post("Content-Length: -1\r\n", ""), 400),
        case("a length in hex", post("Content-Length: 0x1\r\n", "a"), 400),
        case("a length beyond 64 bits", post("Content-Length: 99999999999999999999\r\n", ""), 400),
        case("an empty length", post("Content-Length:\r\n", ""), 400),
        case("an unknown coding", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 501),
        case("chunked not last", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 501),
        case(
            "chunked twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            501,
        ),
        case("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        case(
            "a vertical tab before the coding",
            post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
            400,
        ),
        case("a chunk size that is none", chunked("g\r\nabc\r\n0\r\n\r\n"), 400),
        case("a negative chunk size", chunked("-3\r\nabc\r\n0\r\n\r\n"), 400),
        case("a chunk size beyond 64 bits", chunked("fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), 400),
        case("a bare line feed after the size", chunked("3\nabc\r\n0\r\n\r\n"), 400),
        case("a chunk longer than its size", chunked("3\r\nabcd\r\n0\r\n\r\n"), 400),
        case("a chunk line of 1 KiB", chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(1024))), 400),
        case("a malformed trailer", chunked("3\r\nabc\r\n0\r\n: x\r\n\r\n"), 400),
        case("content declared over the bound", post("Content-Length: 5000\r\n", ""), 413),
        case("content in chunks over the bound", chunked(&format!("1000\r\n{}\r\n", "x".repeat(4096))), 413),
    ]
}

/// A node whose content bound is 2 KiB, before an origin that answers what it reads.
async fn bed() -> (Origin, Node) {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let limits = "[limits]\nbody_bytes = \"2 KiB\"\nheader_timeout = \"300ms\"\nidle_timeout = \"2s\"\n";
    let cached =
        route("long_dummy", "/long_dummy", "methods = [\"GET\", \"HEAD\"]\ncache = { max_age = \"60s\" }");
    let node = Node::start(
        &(limits.to_owned() + &upstream(&[origin.address], "") + &cached + &route("rest", "/*", "")),
    )
    .await;
    (origin, node)
}

async fn judge(node: &Node, cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for Case { what, bytes, status } in cases {
        let mut wire = node.connect().await;
        wire.send(&bytes).await;
        let answer = wire.answer().await;
        let (rest, end) = wire.rest().await;
        println!("| {what} | {} |", answer.status());
        let closed = rest.is_empty() && end == End::Cut;
        let keeps = status == 417;
        if answer.status() != status || answer.end != End::Whole || !(closed || keeps) {
            wrong.push(format!(
                "{what}: {} {:?}, then {} bytes, {end:?}; expected {status}",
                answer.status(),
                answer.end,
                rest.len()
            ));
        }
        let served = node.get("/after").await;
        assert!(served.is(200) && served.text() == "/after", "after {what}: {served:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn malformed_heads_are_refused() {
    let (origin, node) = bed().await;
    let cases = heads();
    assert!(cases.len() > 25);
    judge(&node, cases).await;
    assert!(
        origin.seen().iter().all(|request| request.target() == "/after" || request.target() == "/long_dummy")
    );
}

#[tokio::test]
async fn malformed_content_is_refused_and_nothing_is_smuggled() {
    let (origin, node) = bed().await;
    judge(&node, bodies()).await;
    let odd: Vec<String> = origin
        .seen()
        .iter()
        .map(|r| r.target().to_owned())
        .filter(|t| !["/after", "/p", "/long_dummy"].contains(&&**t))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
}

#[tokio::test]
async fn what_follows_a_refused_request_is_not_served() {
    let (origin, node) = bed().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let shapes = [
        format!(
            "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
            smuggled.len() + 5
        ),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nZ\r\n0\r\n\r\n{smuggled}"),
        format!("Content-Length: 0\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
    ];
    for shape in shapes {
        let mut wire = node.connect().await;
        wire.send(format!("POST /p HTTP/1.1\r\nHost: a\r\n{shape}")).await;
        let (said, _) = wire.rest().await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{shape:?} got {said}");
    }
    assert!(origin.seen().iter().all(|request| request.target() != "/smuggled"), "{:?}", origin.seen());
}

#[tokio::test]
async fn a_slow_head_ends_in_time_however_it_trickles() {
    let (_origin, node) = bed().await;
    let mut wire = node.connect().await;
    let begun = Instant::now();
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
    while wire.is_silent_for(Duration::from_millis(50)).await {
        wire.send("X: y\r\n").await;
        assert!(begun.elapsed() < Duration::from_secs(3), "the deadline counts from the first byte");
    }
    assert_eq!(wire.answer().await.status(), 408);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn an_idle_connection_ends_quietly() {
    let (_origin, node) = bed().await;
    let mut fresh = node.connect().await;
    let mut used = node.connect().await;
    assert!(used.get("/").await.is(200));
    assert_eq!(fresh.rest().await, (vec![], End::Cut));
    assert_eq!(used.rest().await, (vec![], End::Cut));
}

#[tokio::test]
async fn other_spellings_of_a_cached_path_do_not_meet_its_entry() {
    let (origin, node) = bed().await;
    assert_eq!(node.get("/long_dummy").await.text(), "/long_dummy");
    let before = origin.count();
    let spellings = [
        "//long_dummy",
        "/%6cong_dummy",
        "/x/../long_dummy",
        "/./long_dummy",
        "/long_dummy/",
        "/long_dummy%2f",
        "/LONG_DUMMY",
        "/long_dummy;a",
        "/x/%2e%2e/long_dummy",
        "/long_dummy%3f",
    ];
    for spelling in spellings {
        let answer = node.get(spelling).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, spelling), "as it was sent");
        assert!(answer.cache_status().contains("fwd=bypass"), "{spelling}: {}", answer.cache_status());
        assert!(node.get("/long_dummy").await.cache_status().contains("hit"));
    }
    assert_eq!(origin.count() - before, spellings.len());
    // The absolute form names the same path.
    let absolute = "GET http://other.example/long_dummy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(request(node.http, absolute).await.cache_status().contains("hit"));
    request(node.http, "GET http://other.example/q?a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let last = origin.seen().pop().unwrap();
    assert_eq!((last.target(), last.head.all("host").as_slice()), ("/q?a", &["other.example"][..]));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_content_harms_nobody() {
    let (_origin, node) = bed().await;
    for end in ["close", "reset"] {
        let mut wire: Wire = node.connect().await;
        wire.send("POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").await;
        if end == "reset" {
            wire.reset();
        }
    }
    assert!(node.get("/after").await.is(200));
    crate::bed::until("nothing is left in flight", async || {
        node.sample("forefront_proxy_requests_in_flight", &["rest"]).await == 0.0
    })
    .await;
}
