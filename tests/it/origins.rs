//! Kinds of origins and of routes to them: names, sockets, hosts, retry classes, timeouts, answers that come early.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::bed::{
    Ask, Client, End, Node, Origin, Protocol, SELF_SIGNED, Wire, https, ok, request, route, until, upstream,
};

const PATIENT: &str = "passive = { failures = 0, server_errors = 0 }";

async fn node(endpoints: &[SocketAddr], route_keys: &str) -> Node {
    Node::start(&(upstream(endpoints, PATIENT) + &route("rest", "/*", route_keys))).await
}

/// Reads each request whole, then breaks off without an answer.
async fn breaks_off() -> Origin {
    Origin::scripted(async |request, mut wire: Wire| {
        wire.content(&request.head, &mut Vec::new(), &mut Vec::new()).await.ok()?;
        None
    })
    .await
}

async fn echoes() -> Origin {
    Origin::answering(|_, body| ok(&String::from_utf8_lossy(body))).await
}

/// One request with content for an origin that breaks off and one that echoes, until the first was asked; the status.
async fn past_a_broken_origin(method: &str, class: &str) -> (u16, String) {
    let (broken, good) = (breaks_off().await, echoes().await);
    let node = node(&[broken.address, good.address], &format!("retry = \"{class}\"")).await;
    let text =
        format!("{method} /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut answer = request(node.http, &format!("{text}3\r\none\r\n4\r\n two\r\n0\r\n\r\n")).await;
    if broken.count() == 0 {
        answer = request(node.http, &format!("{text}3\r\none\r\n4\r\n two\r\n0\r\n\r\n")).await;
    }
    assert!(broken.count() > 0, "the origin that breaks off was asked");
    (answer.status(), answer.text())
}

#[tokio::test]
async fn a_request_is_sent_again_only_as_its_retry_class_allows() {
    let good = (200, "one two".to_owned());
    assert_eq!(past_a_broken_origin("PUT", "idempotent").await, good, "content and all");
    assert_eq!(past_a_broken_origin("POST", "any").await, good);
    assert_eq!(past_a_broken_origin("POST", "idempotent").await.0, 502);
    assert_eq!(past_a_broken_origin("PUT", "unsent").await.0, 502);
}

#[tokio::test]
async fn an_answer_that_comes_before_the_content_is_read_arrives() {
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        wire.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await;
        None
    })
    .await;
    let node = node(&[origin.address], "").await;
    for _ in 0..5 {
        let mut wire = node.connect().await;
        wire.send("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n").await;
        wire.send(vec![b'x'; 300_000]).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status(), answer.text().as_str()), (403, "no"));
        assert_eq!(answer.get("connection"), Some("close"));
    }
}

#[tokio::test]
async fn when_the_client_leaves_the_origin_is_let_go() {
    let left = Arc::new(AtomicBool::new(false));
    let seen = left.clone();
    let origin = Origin::scripted(move |_, mut wire: Wire| {
        let seen = seen.clone();
        async move {
            let (_, end) = wire.rest().await;
            seen.store(end != End::Whole, SeqCst);
            None
        }
    })
    .await;
    let node = node(&[origin.address], "").await;
    let mut wire = node.connect().await;
    wire.send("GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until("it was asked", async || origin.count() == 1).await;
    drop(wire);
    until("its connection ends", async || left.load(SeqCst)).await;
    until("it is counted as 499", async || {
        node.sample("forefront_proxy_requests_total", &["code=\"499\""]).await == 1.0
    })
    .await;
}

#[tokio::test]
async fn an_http_1_0_origin_is_understood() {
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        wire.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end").await;
        None
    })
    .await;
    let node = node(&[origin.address], "").await;
    let mut wire = node.connect().await;
    for _ in 0..3 {
        let answer = wire.get("/").await;
        assert!(answer.is(200) && answer.text() == "until the end", "{answer:?}");
        assert_eq!(answer.get("transfer-encoding"), Some("chunked"), "so the client's connection lives on");
    }
}

#[tokio::test]
async fn an_origin_may_be_named_or_be_a_unix_socket() {
    let origin = echoes().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("origin.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("the directory is ours");
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.unwrap_or(0);
            assert!(head[..read].ends_with(b"\r\n\r\n"), "the head comes in one piece");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &ok("unix")).await;
        }
    });
    let named =
        format!("[[upstream]]\nname = \"origin\"\nendpoints = [\"localhost:{}\"]\n", origin.address.port());
    let socket = format!("[[upstream]]\nname = \"socket\"\nendpoints = [\"unix:{}\"]\n", path.display());
    let by_socket = "[[route]]\nname = \"s\"\npath = \"/socket\"\nupstream = \"socket\"\n";
    let node = Node::start(&(named + &socket + by_socket + &route("rest", "/*", ""))).await;
    assert_eq!(node.get("/socket").await.text(), "unix");
    until("the name is resolved", async || node.get("/").await.is(200)).await;
    serving.abort();
}

#[tokio::test]
async fn hosts_have_routes_and_stored_answers_of_their_own() {
    let origin = Origin::answering(|request, _| ok(request.head.get("host").unwrap_or_default())).await;
    let hosts = "hosts = [\"a.example\", \"*.b.example\"]\ncache = { max_age = \"60s\" }";
    let config = upstream(&[origin.address], "") + &route("hosts", "/x", hosts) + &route("rest", "/*", "");
    let node = Node::start(&config).await;
    let ask = async |host: &str| {
        request(node.http, &format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    };
    for host in ["a.example", "one.b.example", "two.b.example"] {
        assert_eq!(ask(host).await.text(), host);
        let again = ask(host).await;
        assert!(again.text() == host && again.cache_status().contains("hit"), "{again:?}");
        assert!(ask(&host.to_uppercase()).await.cache_status().contains("hit"), "names have no letter case");
    }
    assert_eq!(node.order("/cache/purge", "{\"path\": \"/x\"}").await["removed"], 3, "of every host");
    assert!(!ask("a.example").await.cache_status().contains("hit"));
    node.process.signal(libc::SIGHUP);
    node.process.logged("configuration reloaded").await;
    assert!(ask("a.example").await.cache_status().contains("hit"), "a reload keeps what is stored");
    assert_eq!(node.order("/cache/purge", "{\"prefix\": \"/\"}").await["removed"], 1);
    for host in ["b.example", "c.example"] {
        let other = ask(host).await;
        assert!(other.text() == host && other.cache_status().contains("bypass"), "{other:?}");
    }
}

#[tokio::test]
async fn an_idempotency_key_is_added_where_the_route_says_so() {
    let origin = echoes().await;
    let node = node(&[origin.address], "idempotency_key = \"add\"").await;
    for field in ["", "Idempotency-Key: own\r\n"] {
        let text =
            format!("POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{field}Content-Length: 0\r\n\r\n");
        assert!(request(node.http, &text).await.is(200));
    }
    let keys: Vec<String> = origin.seen().iter().map(|r| r.head.all("idempotency-key").join("|")).collect();
    assert!(keys[0].len() >= 16 && keys[1] == "own", "{keys:?}");
}

/// Whoever is told that nobody knows can ask again under the key that the request had.
#[tokio::test]
async fn the_key_that_was_added_stands_in_the_nodes_own_errors() {
    let dying = breaks_off().await;
    let keyed = route("keyed", "/keyed/*", "idempotency_key = \"add\"");
    let node = Node::start(
        &(https(SELF_SIGNED) + &upstream(&[dying.address], PATIENT) + &keyed + &route("plain", "/*", "")),
    )
    .await;
    for protocol in Protocol::ALL {
        let mut client = Client::connect(&node, protocol).await;
        let lost = client.ask(&Ask::new("POST", "/keyed/x").body("{}")).await;
        assert!(lost.is(502), "{protocol:?}: {lost:?}");
        let key = lost.get("idempotency-key").expect("the key it was sent with");
        assert_eq!(dying.last().head.get("idempotency-key"), Some(key), "{protocol:?}");
        for ask in [
            Ask::new("POST", "/keyed/x").body("{}").field("Idempotency-Key", "own"),
            Ask::new("POST", "/plain").body("{}"),
        ] {
            let lost = client.ask(&ask).await;
            assert!(lost.is(502) && lost.get("idempotency-key").is_none(), "{protocol:?}: {lost:?}");
        }
    }
}

#[tokio::test]
async fn the_whole_exchange_may_be_bounded() {
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        loop {
            wire.chunk(b"tick").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let node = node(&[origin.address], "total_timeout = \"600ms\"").await;
    let begun = Instant::now();
    let answer = node.get("/").await;
    assert!(answer.status() == 200 && answer.end == End::Cut && answer.body.len() >= 4, "{answer:?}");
    assert!((Duration::from_millis(550)..Duration::from_secs(3)).contains(&begun.elapsed()));
}

#[tokio::test]
async fn a_sick_endpoint_does_not_spoil_what_is_cached() {
    let sick = Origin::answering(|_, _| b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nsick".to_vec()).await;
    let good = echoes().await;
    let cached = route("c", "/c/*", "cache = { max_age = \"60s\" }");
    let node = Node::start(&(upstream(&[sick.address, good.address], PATIENT) + &cached)).await;
    for number in 0..10 {
        assert!(node.get(&format!("/c/{number}")).await.is(200));
    }
    assert!(sick.count() > 0, "the sick one was asked");
}
