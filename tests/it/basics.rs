//! What passes through the proxy arrives as it was sent, both ways.

use crate::bed::{Answer, End, Legacy, Node, Origin, Wire, content, ok, request, route, upstream, within};
use std::time::Duration;

const BODY_BYTES: usize = 5 * 1024 * 1024;

/// A node with one uncached route for everything.
async fn before(origin: &Origin, more: &str) -> Node {
    Node::start(&format!("{more}\n{}{}", upstream(&[origin.address], ""), route("rest", "/*", ""))).await
}

/// Sends back what it gets, framed as it was.
async fn echo() -> Origin {
    Origin::scripted(async |request, mut wire: Wire| {
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        wire.content(&request.head, &mut body, &mut trailers).await.ok()?;
        if request.head.get("transfer-encoding").is_some() {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await;
            for piece in body.chunks(100_001) {
                wire.chunk(piece).await;
            }
            wire.send("0\r\n").await;
            for (name, value) in trailers {
                wire.send(format!("{name}: {value}\r\n")).await;
            }
            wire.send("\r\n").await;
        } else {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
            wire.send(&body).await;
        }
        Some(wire)
    })
    .await
}

#[tokio::test]
async fn content_is_echoed_byte_for_byte_with_a_length_and_in_chunks() {
    let origin = echo().await;
    let node = before(&origin, "").await;
    let body = content(BODY_BYTES);
    let mut wire = node.connect().await;
    wire.send(format!("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES}\r\n\r\n")).await;
    wire.send(&body).await;
    let answer = wire.answer().await;
    assert!(answer.is(200) && answer.body == body, "{} bytes, {:?}", answer.body.len(), answer.end);
    assert_eq!(answer.get("content-length"), Some(BODY_BYTES.to_string().as_str()));

    wire.send("POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await;
    for piece in body.chunks(70_001) {
        wire.chunk(piece).await;
    }
    wire.send("0\r\nX-Sum: 42\r\n\r\n").await;
    let answer = wire.answer().await;
    assert!(answer.is(200) && answer.body == body, "{} bytes, {:?}", answer.body.len(), answer.end);
    assert_eq!(answer.get("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.trailers, [("X-Sum".to_owned(), "42".to_owned())], "trailers pass both ways");
    assert_eq!(origin.seen()[1].head.get("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn content_streams_before_it_is_whole() {
    // The origin answers each piece as it comes: with a proxy that held content back neither side would get on.
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while let Ok(piece) = wire.take(8).await {
            // A chunk of three bytes: "3\r\nabc\r\n".
            wire.send(piece).await;
        }
        None
    })
    .await;
    let node = before(&origin, "").await;
    let mut wire = node.connect().await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let head = wire.head().await.expect("the head comes before any content");
    assert_eq!(head.status(), 200);
    for piece in ["abc", "def", "ghi"] {
        wire.chunk(piece.as_bytes()).await;
        assert_eq!(wire.take(8).await.unwrap(), format!("3\r\n{piece}\r\n").into_bytes());
    }
}

#[tokio::test]
async fn methods_pass_and_head_has_no_content() {
    let origin = Origin::answering(|request, _| match request.method() {
        "HEAD" => b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: \"e\"\r\n\r\n".to_vec(),
        "DELETE" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        method => ok(method),
    })
    .await;
    let node = before(&origin, "").await;
    let mut wire = node.connect().await;
    wire.send("HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let head = wire.answer_to("HEAD").await;
    assert_eq!(
        (head.status(), head.get("content-length"), head.get("etag")),
        (200, Some("1234"), Some("\"e\""))
    );
    wire.send("DELETE /api/session/1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let deleted = wire.answer().await;
    assert!(
        deleted.is(204)
            && deleted.get("content-length").is_none()
            && deleted.get("transfer-encoding").is_none()
    );
    for method in ["GET", "PUT", "PATCH", "OPTIONS", "PROPFIND"] {
        wire.send(format!("{method} /m HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(wire.answer().await.text(), method);
    }
}

#[tokio::test]
async fn early_hints_and_odd_statuses_pass() {
    let origin = Origin::answering(|request, _| match request.target() {
        "/hints" => {
            let mut answer = b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>; rel=preload\r\n\r\n".to_vec();
            answer.extend_from_slice(&ok("page"));
            answer
        }
        _ => b"HTTP/1.1 299 Strangely Fine\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    })
    .await;
    let node = before(&origin, "").await;
    let hinted = node.get("/hints").await;
    assert_eq!(hinted.interim.len(), 1, "{hinted:?}");
    assert_eq!(
        (hinted.interim[0].status(), hinted.interim[0].get("link")),
        (103, Some("</s.css>; rel=preload"))
    );
    assert_eq!((hinted.status(), hinted.text().as_str()), (200, "page"));
    let old = request(node.http, "GET /hints HTTP/1.0\r\nHost: x\r\n\r\n").await;
    assert!(old.interim.is_empty() && old.is(200), "HTTP/1.0 knows no 1xx: {old:?}");
    let odd = node.get("/odd").await;
    assert!(odd.is(299) && odd.text() == "ok", "{odd:?}");
}

#[tokio::test]
async fn a_client_that_expects_continue_is_told_to() {
    let origin = echo().await;
    let node = before(&origin, "[limits]\nbody_bytes = \"1 KiB\"").await;
    let mut wire = node.connect().await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(wire.head().await.unwrap().status(), 100);
    wire.send("hello").await;
    let answer = wire.answer().await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    assert_eq!(origin.seen()[0].head.get("expect"), None, "the expectation was met here");
    // What will be refused anyway is not asked for.
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n").await;
    let refused = wire.answer().await;
    assert_eq!((refused.status(), refused.interim.len()), (413, 0));
}

#[tokio::test]
async fn http_1_0_clients_get_what_they_can_read() {
    let origin = Origin::answering(|request, _| match request.target() {
        "/chunked" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec(),
        _ => ok("plain"),
    })
    .await;
    let node = before(&origin, "").await;
    let answer = request(node.http, "GET /chunked HTTP/1.0\r\n\r\n").await;
    assert!(answer.is(200) && answer.body == b"abc", "{answer:?}");
    assert_eq!((answer.get("transfer-encoding"), answer.get("content-length")), (None, None));
    assert_eq!(
        origin.seen()[0].head.get("host"),
        Some(origin.address.to_string().as_str()),
        "a Host is supplied"
    );
    let mut wire = node.connect().await;
    for _ in 0..2 {
        wire.send("GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").await;
        let answer = wire.answer().await;
        assert_eq!((answer.text().as_str(), answer.get("connection")), ("plain", Some("keep-alive")));
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_hits_and_misses_mixed() {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let cached = route("cached", "/cached", "cache = { max_age = \"60s\" }");
    let config = upstream(&[origin.address], "") + &route("rest", "/*", "") + &cached;
    let node = Node::start(&config).await;
    let line = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut wire = node.connect().await;
    let paths = ["/cached", "/1", "/cached", "/2", "/cached", "/cached", "/3"];
    wire.send(paths.map(line).concat()).await;
    for path in paths {
        let answer = wire.answer().await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, path));
        assert_eq!(
            answer.cache_status().contains("hit"),
            path == "/cached",
            "{path}: {}",
            answer.cache_status()
        );
    }
    wire.send(line("/4") + "GET /5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + &line("/6")).await;
    assert_eq!(wire.answer().await.text(), "/4");
    let last = wire.answer().await;
    assert_eq!((last.text().as_str(), last.get("connection")), ("/5", Some("close")));
    assert_eq!(
        wire.rest().await,
        (vec![], End::Cut),
        "nothing comes after close, and no reset takes answers away"
    );
}

#[tokio::test]
async fn a_connection_is_kept_on_both_sides() {
    let origin = Origin::answering(|_, _| ok("x")).await;
    let node = before(&origin, "").await;
    let mut wire = node.connect().await;
    for _ in 0..20 {
        assert!(wire.get("/").await.is(200));
    }
    assert!(origin.seen().iter().all(|request| request.connection == 0), "one connection carries all");
    assert_eq!(node.sample("forefront_listener_accepts_total", &["accepted"]).await, 1.0);
}

#[tokio::test]
async fn ipv6_is_served_too() {
    let origin = Origin::answering(|_, _| ok("six")).await;
    let node = before(&origin, "").await;
    let answer = crate::bed::get(node.http6, "/").await;
    assert_eq!(answer.text(), "six");
    assert!(origin.seen()[0].head.get("forwarded").unwrap().contains("for=\"[::1]\""));
}

#[tokio::test]
async fn an_upgraded_connection_passes_bytes_both_ways() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        assert_eq!(request.head.get("upgrade"), Some("websocket"));
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly",
        )
        .await;
        while let Ok(bytes) = wire.take(1).await {
            wire.send(bytes.to_ascii_uppercase()).await;
        }
        None
    })
    .await;
    let node = before(&origin, "").await;
    let mut wire = node.connect().await;
    wire.send("GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nahead").await;
    let head = wire.head().await.unwrap();
    assert_eq!((head.status(), head.get("upgrade")), (101, Some("websocket")));
    assert!(head.get("connection").is_some_and(|c| c.eq_ignore_ascii_case("upgrade")));
    assert_eq!(wire.take(10).await.unwrap(), b"earlyAHEAD");
    for word in ["one", "two", "three"] {
        wire.send(word).await;
        assert_eq!(wire.take(word.len()).await.unwrap(), word.to_ascii_uppercase().as_bytes());
    }
    drop(wire);
    assert!(node.get("/ping").await.is(200));
}

#[tokio::test]
async fn the_stand_in_answers_as_if_nothing_were_before_it() {
    let legacy = Legacy::start(&["--rate-limit", "0"]).await;
    let node = Node::start(&(upstream(&[legacy.address], "") + &route("rest", "/*", ""))).await;
    for path in ["/", "/ping", "/config", "/api/movie/1", "/api/session/5", "/api/movie/x", "/nothing"] {
        let (through, direct) = (node.get(path).await, crate::bed::get(legacy.address, path).await);
        assert_eq!((through.status(), through.text()), (direct.status(), direct.text()), "{path}");
        assert_eq!(through.get("content-type"), direct.get("content-type"), "{path}");
    }
    let list = |answer: Answer| (answer.end, answer.body);
    let limit = Duration::from_secs(15);
    let through = within(limit, "the list of movies", async { list(node.get("/api/movie").await) }).await;
    assert_eq!(through, list(crate::bed::get(legacy.address, "/api/movie").await));
}
