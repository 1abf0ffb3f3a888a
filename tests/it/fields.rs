//! Fields: what passes unaltered, what belongs to one hop, what the proxy adds.

use crate::bed::{Answer, Head, Node, Origin, Wire, ok, request, route, upstream};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn before(origin: &Origin, limits: &str) -> Node {
    let cached = route("cached", "/cached", "cache = { max_age = \"60s\" }");
    Node::start(&format!("{limits}\n{}{}{cached}", upstream(&[origin.address], ""), route("rest", "/*", "")))
        .await
}

/// What the origin sees of a request with all the fields that proxies put in.
async fn seen_upstream(limits: &str) -> (Head, Answer) {
    let origin = Origin::answering(|_, _| ok("")).await;
    let node = before(&origin, limits).await;
    let given = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\
                 Forwarded: for=203.0.113.9\r\nX-Request-Id: given-by-client-1\r\nVia: 1.1 edge\r\n";
    let bytes = format!("GET /f HTTP/1.1\r\nHost: bed.example\r\n{given}traceparent: {TRACE}\r\n\r\n");
    let answer = request(node.http, &bytes).await;
    (origin.last().head, answer)
}

#[tokio::test]
async fn a_trusted_peer_is_believed_about_the_hops_before_it() {
    let (head, answer) = seen_upstream("").await;
    assert_eq!(head.all("x-forwarded-for"), ["203.0.113.9, 127.0.0.1"]);
    assert_eq!(head.all("x-forwarded-proto"), ["https"]);
    assert_eq!(head.all("x-forwarded-host"), ["shop.example"]);
    assert_eq!(head.all("forwarded").len(), 1);
    assert!(head.get("forwarded").unwrap().starts_with("for=203.0.113.9, for=127.0.0.1;"));
    assert_eq!(head.all("x-request-id"), ["given-by-client-1"]);
    assert_eq!(answer.head.all("x-request-id"), ["given-by-client-1"]);
    assert_eq!(head.all("traceparent"), [TRACE], "a trace goes on");
    assert_eq!(head.all("via").join(", "), "1.1 edge, 1.1 forefront");
    assert_eq!(head.all("host"), ["bed.example"]);
}

#[tokio::test]
async fn any_other_client_is_not() {
    let (head, answer) = seen_upstream("[limits]\ntrusted = []").await;
    assert_eq!(head.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(head.all("x-forwarded-proto"), ["http"]);
    assert_eq!(head.all("x-forwarded-host"), ["bed.example"]);
    assert!(head.get("forwarded").unwrap().starts_with("for=127.0.0.1;"), "{head:?}");
    assert!(!head.get("forwarded").unwrap().contains("203.0.113.9"));
    let id = head.get("x-request-id").unwrap();
    assert!(id != "given-by-client-1" && id.len() >= 16);
    assert_eq!(answer.head.all("x-request-id"), [id], "one id on both sides");
}

#[tokio::test]
async fn a_trace_is_begun_where_there_is_none_or_a_malformed_one() {
    let origin = Origin::answering(|_, _| ok("")).await;
    let node = before(&origin, "").await;
    for field in ["", "traceparent: 00-zz-1-01\r\n", "traceparent: \r\n"] {
        request(node.http, &format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{field}\r\n")).await;
    }
    let begun = origin.seen().split_off(1);
    let traces: Vec<String> = begun.iter().map(|r| r.head.all("traceparent").join("|")).collect();
    for trace in &traces {
        let parts: Vec<&str> = trace.split('-').collect();
        assert!(
            parts.len() == 4 && parts[0] == "00" && parts[1].len() == 32 && parts[2].len() == 16,
            "{trace}"
        );
    }
    assert_ne!(traces[0], traces[1]);
}

#[tokio::test]
async fn fields_of_one_hop_end_here_both_ways() {
    let origin = Origin::answering(|_, _| {
        b"HTTP/1.1 200 OK\r\nConnection: X-Inner, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Inner: 1\r\n\
          Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Outer: 2\r\nContent-Length: 0\r\n\r\n"
            .to_vec()
    })
    .await;
    let node = before(&origin, "").await;
    let sent = "Connection: X-Hop, close, Host, X-Request-Id\r\nX-Hop: 1\r\nKeep-Alive: 300\r\nTE: trailers, gzip\r\n\
                Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nUpgrade: h2c\r\nX-End: 3\r\n";
    let answer = request(node.http, &format!("GET /hop HTTP/1.1\r\nHost: x\r\n{sent}\r\n")).await;
    let seen = origin.last().head;
    for name in ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade"] {
        assert_eq!(seen.get(name), None, "{name} went upstream");
    }
    assert_ne!(seen.get("te"), Some("trailers, gzip"));
    assert_eq!((seen.get("x-end"), seen.get("host")), (Some("3"), Some("x")));
    for name in ["keep-alive", "x-inner", "upgrade"] {
        assert_eq!(answer.get(name), None, "{name} came downstream");
    }
    assert_eq!(answer.get("x-outer"), Some("2"));
    assert_eq!(answer.head.all("connection"), ["close"]);
}

#[tokio::test]
async fn order_and_letter_case_are_kept() {
    let origin = Origin::answering(|_, _| {
        b"HTTP/1.1 200 OK\r\nX-b: 1\r\nSet-Cookie: a=1\r\nx-A: 2\r\nSet-Cookie: b=2\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
          SERVER: old\r\nAge: 7\r\nContent-Length: 0\r\n\r\n"
            .to_vec()
    })
    .await;
    let node = before(&origin, "").await;
    let sent = [("Zulu", "1"), ("aLPHA", "2"), ("Cookie", "a=1; b=2"), ("zulu", "3"), ("Accept", "*/*")];
    let lines: String = sent.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let target = "/Path%20x/%c3%A4?b=2&a=1&&x=%2F";
    let answer =
        request(node.http, &format!("GET {target} HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n"))
            .await;
    let request = origin.last();
    assert_eq!(request.target(), target, "the target passes as it was sent");
    let is_sent = |(name, value): &&(String, String)| sent.contains(&(name.as_str(), value.as_str()));
    let passed: Vec<_> =
        request.head.fields.iter().filter(is_sent).map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(passed, sent);
    let names: Vec<&str> = answer.head.fields.iter().map(|(name, _)| name.as_str()).take(7).collect();
    assert_eq!(names, ["X-b", "Set-Cookie", "x-A", "Set-Cookie", "Date", "SERVER", "Age"]);
    assert_eq!(answer.head.all("date"), ["Mon, 01 Jan 2024 00:00:00 GMT"], "the origin's Date is kept");
    assert_eq!(answer.head.all("age"), ["7"], "so is its Age on what is not stored here");
    assert!(answer.get("via").is_some_and(|via| via.contains("forefront")));
}

#[tokio::test]
async fn an_answer_without_date_gets_one() {
    let origin = Origin::answering(|_, _| ok("")).await;
    let node = before(&origin, "").await;
    assert!(node.get("/").await.get("date").is_some_and(|date| date.ends_with(" GMT")));
}

#[tokio::test]
async fn every_answer_tells_what_the_cache_did() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        if request.target() == "/cut" {
            return None;
        }
        wire.send(ok("")).await;
        Some(wire)
    })
    .await;
    let node = before(&origin, "").await;
    let cases = [
        ("/", 200, "forefront; fwd=bypass"),
        ("/cached?1", 200, "forefront; fwd=miss"),
        ("/cached?1", 200, "forefront; hit"),
        ("/cut", 502, "forefront"),
    ];
    for (path, status, cache) in cases {
        let answer = node.get(path).await;
        assert_eq!(answer.status(), status, "{path}");
        assert!(answer.cache_status().starts_with(cache), "{path}: {}", answer.cache_status());
    }
    let malformed = request(node.http, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(malformed.cache_status().starts_with("forefront"), "{malformed:?}");
}

#[tokio::test]
async fn methods_a_path_does_not_take_are_told() {
    let origin = Origin::answering(|_, _| ok("")).await;
    let routes = route("get", "/x", "methods = [\"GET\"]") + &route("post", "/x", "methods = [\"POST\"]");
    let node = Node::start(&(upstream(&[origin.address], "") + &routes)).await;
    let answer = request(node.http, "DELETE /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status(), answer.get("allow")), (405, Some("GET, POST")));
    assert!(answer.get("proxy-status").is_some_and(|status| status.starts_with("forefront; error=")));
    assert_eq!(answer.get("cache-control"), Some("no-store"));
    assert!(answer.cache_status().starts_with("forefront"));
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("errors are JSON");
    assert_eq!(body["request_id"].as_str(), answer.get("x-request-id"));
    assert_eq!(node.get("/y").await.status(), 404);
    assert_eq!(origin.count(), 0);
}
