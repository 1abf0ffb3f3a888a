//! What holds over every protocol alike: one pipeline behind HTTP/1.1, HTTP/2 and HTTP/3, plain and over TLS.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bed::{
    Answer, Ask, Client, End, H3, Node, Origin, Protocol, SELF_SIGNED, Wire, ask, content, https, ok, route,
    until, upstream,
};

const BODY_BYTES: usize = 5 * 1024 * 1024;

/// Uncached for everything but what is below `/cached`.
async fn before(origin: &Origin, more: &str) -> Node {
    let rest = route("rest", "/*", "");
    let cached = route("cached", "/cached/*", "cache = { max_age = \"60s\" }");
    Node::start(&format!("{}{more}\n{}{rest}{cached}", https(SELF_SIGNED), upstream(&[origin.address], "")))
        .await
}

/// Sends back content with its framing and its trailers; knows ranges, conditions and HEAD of `/file`.
async fn origin() -> Origin {
    Origin::scripted(async |request, mut wire: Wire| {
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        wire.content(&request.head, &mut body, &mut trailers).await.ok()?;
        if request.method() != "POST" {
            wire.send(about_file(request.method(), &request.head)).await;
        } else if request.head.get("transfer-encoding").is_some() {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
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

const FILE: &str = "0123456789";

fn about_file(method: &str, head: &crate::bed::Head) -> String {
    let range = head.get("range") == Some("bytes=2-4");
    let same = head.get("if-none-match") == Some("\"v1\"");
    match method {
        "DELETE" => "HTTP/1.1 204 No Content\r\nX-Gone: yes\r\n\r\n".to_owned(),
        "HEAD" => format!("HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n", FILE.len()),
        _ if same => "HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\n\r\n".to_owned(),
        _ if range => {
            let fields = "Content-Range: bytes 2-4/10\r\nContent-Length: 3";
            format!("HTTP/1.1 206 Partial Content\r\n{fields}\r\n\r\n{}", &FILE[2..5])
        }
        _ => {
            let fields = format!("ETag: \"v1\"\r\nContent-Length: {}", FILE.len());
            format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{FILE}")
        }
    }
}

#[tokio::test]
async fn get_head_delete_ranges_and_conditions_pass_over_each() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    for protocol in Protocol::ALL {
        let mut client = Client::connect(&node, protocol).await;
        let got = client.get("/file").await;
        assert!(got.is(200) && got.text() == FILE, "GET over {protocol:?}: {got:?}");
        assert_eq!(got.get("content-length"), Some("10"), "GET over {protocol:?}");

        let head = client.ask(&Ask::new("HEAD", "/file")).await;
        assert!(head.is(200) && head.body.is_empty(), "HEAD over {protocol:?}: {head:?}");
        assert_eq!(
            head.get("content-length"),
            Some("10"),
            "HEAD over {protocol:?} tells the length of a GET"
        );

        let deleted = client.ask(&Ask::new("DELETE", "/file")).await;
        assert!(
            deleted.is(204) && deleted.get("x-gone") == Some("yes"),
            "DELETE over {protocol:?}: {deleted:?}"
        );
        assert_eq!(deleted.get("content-length"), None, "204 over {protocol:?}");

        let part = client.ask(&Ask::get("/file").field("range", "bytes=2-4")).await;
        assert!(part.is(206) && part.text() == "234", "a range over {protocol:?}: {part:?}");
        assert_eq!(part.get("content-range"), Some("bytes 2-4/10"), "over {protocol:?}");

        for path in ["/file", "/cached/file"] {
            let same = client.ask(&Ask::get(path).field("if-none-match", "\"v1\"")).await;
            assert!(same.is(304) && same.body.is_empty(), "{path} unchanged over {protocol:?}: {same:?}");
            assert_eq!(same.get("etag"), Some("\"v1\""), "{path} over {protocol:?}");
        }
        assert!(client.get("/file").await.is(200), "the connection over {protocol:?} goes on");
    }
}

#[tokio::test]
async fn five_megabytes_are_echoed_byte_for_byte_over_each() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    let body = content(BODY_BYTES);
    for protocol in Protocol::ALL {
        let mut client = Client::connect(&node, protocol).await;
        let answer = client.ask(&Ask::new("POST", "/echo").body(body.clone())).await;
        assert!(answer.is(200), "over {protocol:?}: {answer:.0?}", answer = answer.head);
        assert!(answer.body == body, "over {protocol:?}: {} bytes, {:?}", answer.body.len(), answer.end);
        let length = BODY_BYTES.to_string();
        assert_eq!(answer.get("content-length"), Some(&*length), "over {protocol:?}");
        let seen = origin.last().head;
        assert_eq!(seen.get("content-length"), Some(&*length), "the origin over {protocol:?}: {seen:?}");
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_over_each() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    for protocol in Protocol::ALL {
        let sent = Ask::new("POST", "/echo").field("te", "trailers").body("abc").trailer("x-sum", "42");
        // What an origin could take for a field of the head stays behind.
        let sent = sent.trailer("x-forwarded-for", "127.0.0.1").trailer("host", "other.example");
        let answer = ask(&node, protocol, &sent).await;
        assert!(answer.is(200) && answer.text() == "abc", "over {protocol:?}: {answer:?}");
        let [(name, value)] = &answer.trailers[..] else {
            panic!("trailers over {protocol:?}: {:?}", answer.trailers);
        };
        assert!(name.eq_ignore_ascii_case("x-sum") && value == "42", "over {protocol:?}: {name}: {value}");
    }
}

#[tokio::test]
async fn an_empty_body_and_no_body_are_told_apart_by_nothing_but_their_framing() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    for protocol in Protocol::ALL {
        let answer = ask(&node, protocol, &Ask::new("POST", "/echo").body("")).await;
        assert!(answer.is(200) && answer.body.is_empty(), "an empty POST over {protocol:?}: {answer:?}");
        ask(&node, protocol, &Ask::get("/file")).await;
        let seen = origin.last().head;
        let framing = (seen.get("content-length"), seen.get("transfer-encoding"));
        assert_eq!(framing, (None, None), "a GET over {protocol:?} has no content");
    }
}

#[tokio::test]
async fn too_much_content_is_413_over_each_and_harms_no_other_request() {
    let origin = origin().await;
    let node = before(&origin, "[limits]\nbody_bytes = \"64 KiB\"\n").await;
    for protocol in Protocol::ALL {
        let answer = ask(&node, protocol, &Ask::new("POST", "/echo").body(content(1 << 20))).await;
        assert_eq!(answer.status(), 413, "over {protocol:?}: {answer:?}");
        assert!(ask(&node, protocol, &Ask::get("/file")).await.is(200), "after it over {protocol:?}");
    }
}

#[tokio::test]
async fn the_origin_is_told_how_the_client_came() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    for protocol in Protocol::ALL {
        assert!(ask(&node, protocol, &Ask::get("/file")).await.is(200));
        let seen = origin.last().head;
        let (scheme, versions) = match protocol {
            Protocol::H1 => ("http", ["1.1", "1.1"]),
            Protocol::H1Tls => ("https", ["1.1", "1.1"]),
            Protocol::H2c => ("http", ["2", "2.0"]),
            Protocol::H2 => ("https", ["2", "2.0"]),
            Protocol::H3 => ("https", ["3", "3.0"]),
        };
        assert_eq!(seen.all("x-forwarded-proto"), [scheme], "over {protocol:?}");
        assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"], "over {protocol:?}");
        assert_eq!(seen.all("host"), ["bed.example"], "over {protocol:?}: {seen:?}");
        assert_eq!(seen.all("x-forwarded-host"), ["bed.example"], "over {protocol:?}");
        let forwarded = seen.get("forwarded").unwrap_or_default();
        assert!(forwarded.contains(&format!("proto={scheme}")), "over {protocol:?}: {forwarded}");
        let via = seen.all("via").join(", ");
        assert!(versions.iter().any(|v| via == format!("{v} forefront")), "over {protocol:?}: Via: {via}");
        assert_eq!(seen.start, "GET /file HTTP/1.1", "over {protocol:?}");
        assert!(seen.fields.iter().all(|(name, _)| !name.starts_with(':')), "over {protocol:?}: {seen:?}");
    }
}

#[tokio::test]
async fn crumbs_of_a_cookie_are_joined() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    for protocol in [Protocol::H2c, Protocol::H2, Protocol::H3] {
        let crumbs = Ask::get("/file").field("cookie", "a=1").field("x", "y").field("cookie", "b=2");
        assert!(ask(&node, protocol, &crumbs.field("cookie", "c=3")).await.is(200));
        assert_eq!(origin.last().head.all("cookie"), ["a=1; b=2; c=3"], "over {protocol:?}");
    }
}

/// R9: both schemes serve, neither sends the client to the other.
#[tokio::test]
async fn secured_answers_tell_of_http3_and_nothing_redirects() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    let own = format!("h3=\":{}\"; ma=", node.https.port());
    for protocol in Protocol::ALL {
        for path in ["/file", "/cached/file", "/cached/file"] {
            let answer = ask(&node, protocol, &Ask::get(path)).await;
            assert!(answer.is(200), "no redirect of {path} over {protocol:?}: {answer:?}");
            assert_eq!(answer.get("strict-transport-security"), None, "{path} over {protocol:?}");
            let told = answer.get("alt-svc");
            match protocol {
                Protocol::H1 | Protocol::H2c => assert_eq!(told, None, "{path} over {protocol:?}"),
                // Whoever is there already need not be told.
                Protocol::H3 => assert!(told.is_none_or(|told| told.starts_with(&own)), "{told:?}"),
                Protocol::H1Tls | Protocol::H2 => {
                    assert!(
                        told.is_some_and(|told| told.starts_with(&own)),
                        "{path} over {protocol:?}: {told:?}"
                    )
                }
            }
        }
    }
}

#[tokio::test]
async fn without_http3_nothing_tells_of_it_and_no_udp_port_is_open() {
    let origin = origin().await;
    let text = https(SELF_SIGNED).replace("http3 = true", "http3 = false");
    let node = Node::start(&(text + &upstream(&[origin.address], "") + &route("rest", "/*", ""))).await;
    let answer = ask(&node, Protocol::H2, &Ask::get("/file")).await;
    assert!(answer.is(200) && answer.get("alt-svc").is_none(), "{answer:?}");
    std::net::UdpSocket::bind(node.https).expect("the UDP port is free");
}

#[tokio::test]
async fn an_entry_filled_over_http3_is_a_hit_over_the_others() {
    let origin = origin().await;
    let node = before(&origin, "").await;
    let first = ask(&node, Protocol::H3, &Ask::get("/cached/file")).await;
    assert!(first.is(200) && first.cache_status().contains("fwd=miss"), "{first:?}");
    for protocol in Protocol::ALL {
        let answer = ask(&node, protocol, &Ask::get("/cached/file")).await;
        assert!(answer.is(200) && answer.text() == FILE, "over {protocol:?}: {answer:?}");
        assert!(answer.cache_status().contains("hit"), "over {protocol:?}: {}", answer.cache_status());
        assert!(answer.get("age").is_some(), "over {protocol:?}: {answer:?}");
        let head = ask(&node, protocol, &Ask::new("HEAD", "/cached/file")).await;
        assert!(head.is(200) && head.cache_status().contains("hit"), "HEAD over {protocol:?}: {head:?}");
    }
    assert_eq!(origin.count(), 1, "one entry for all protocols");
}

/// Holds every request until it is let go.
async fn held() -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let kept = gate.clone();
    let origin = Origin::scripted(move |request, mut wire: Wire| {
        let gate = kept.clone();
        async move {
            gate.acquire().await.ok()?.forget();
            wire.send(ok(request.target())).await;
            Some(wire)
        }
    });
    (origin.await, gate)
}

#[tokio::test]
async fn fifty_misses_at_once_over_http3_make_one_fetch() {
    let (origin, gate) = held().await;
    let node = before(&origin, "").await;
    let mut clients = JoinSet::new();
    for _ in 0..5 {
        let client = H3::connect(node.https).await;
        for _ in 0..10 {
            let client = client.clone();
            clients.spawn(async move { client.get("/cached/x").await });
        }
    }
    until("all are in flight", async || {
        node.sample("forefront_proxy_requests_in_flight", &["cached"]).await == 50.0
    })
    .await;
    gate.add_permits(1000);
    let answers: Vec<Answer> = clients.join_all().await;
    assert!(answers.iter().all(|answer| answer.is(200) && answer.text() == "/cached/x"), "{answers:?}");
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn ninety_streams_of_one_connection_are_all_answered() {
    let (origin, gate) = held().await;
    let node = before(&origin, "").await;
    let client = H3::connect(node.https).await;
    let mut requests = JoinSet::new();
    for number in 0..90 {
        let client = client.clone();
        requests.spawn(async move { (number, client.get(&format!("/n/{number}")).await) });
    }
    until("all are at the origin at once", async || origin.count() == 90).await;
    gate.add_permits(1000);
    for (number, answer) in requests.join_all().await {
        assert!(answer.is(200) && answer.text() == format!("/n/{number}"), "stream {number}: {answer:?}");
    }
}

#[tokio::test]
async fn an_origin_that_dies_in_the_middle_is_never_a_clean_end() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        let (fields, half) = match request.target().trim_start_matches("/cached") {
            "/chunked" => ("Transfer-Encoding: chunked", "4\r\nhalf\r\n"),
            _ => ("Content-Length: 1000", "half"),
        };
        wire.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{half}")).await;
        // What was sent has to arrive before a reset would take it away.
        tokio::time::sleep(Duration::from_millis(100)).await;
        if request.target().ends_with("/reset") {
            wire.reset();
        }
        None
    })
    .await;
    let patient = "passive = { failures = 0, server_errors = 0 }";
    let cached = route("cached", "/cached/*", "cache = { max_age = \"60s\" }");
    let routes = route("rest", "/*", "") + &cached;
    let node = Node::start(&(https(SELF_SIGNED) + &upstream(&[origin.address], patient) + &routes)).await;
    for protocol in Protocol::ALL {
        for path in ["/length", "/chunked", "/reset", "/cached/length", "/cached/chunked"] {
            let answer = ask(&node, protocol, &Ask::get(path)).await;
            println!(
                "{protocol:?} {path}: {} {} bytes, {:?}",
                answer.status(),
                answer.body.len(),
                answer.end
            );
            // What is kept may be told apart from what is broken before anybody is answered.
            if path.starts_with("/cached") && answer.status() == 502 && answer.end == End::Whole {
                continue;
            }
            assert_eq!(answer.status(), 200, "{path} over {protocol:?}");
            assert!("half".starts_with(&answer.text()), "{path} over {protocol:?}: {answer:?}");
            let cut = match protocol {
                Protocol::H1 | Protocol::H1Tls => matches!(answer.end, End::Cut | End::Reset),
                _ => matches!(answer.end, End::Stream(_)),
            };
            assert!(cut, "{path} over {protocol:?} ended {:?}", answer.end);
        }
    }
}

#[tokio::test]
async fn one_stream_that_is_cut_leaves_the_connections_other_streams_alone() {
    let (origin, gate) = held().await;
    let dying = Origin::scripted(async |_, mut wire: Wire| {
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf").await;
        None
    })
    .await;
    let other = upstream(&[dying.address], "").replace("\"origin\"", "\"dying\"");
    let to_other = route("dying", "/dying", "").replace("\"origin\"", "\"dying\"");
    let node = before(&origin, &(other + &to_other)).await;
    for protocol in [Protocol::H2, Protocol::H3] {
        let (mut waiting, mut cut) = match Client::connect(&node, protocol).await {
            Client::H2(client) => (Client::H2(client.clone()), Client::H2(client)),
            Client::H3(client) => (Client::H3(client.clone()), Client::H3(client)),
            _ => unreachable!("asked for one of the two"),
        };
        let before = origin.count();
        let waiting = tokio::spawn(async move { waiting.get("/waits").await });
        until("it waits", async || origin.count() == before + 1).await;
        let broken = cut.get("/dying").await;
        assert!(matches!(broken.end, End::Stream(_)), "over {protocol:?}: {broken:?}");
        gate.add_permits(1);
        let answer = waiting.await.expect("it does not panic");
        assert!(answer.is(200) && answer.text() == "/waits", "over {protocol:?}: {answer:?}");
    }
}
