//! What one client may take, what all may take, and what they make the node hold in memory.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::bed::{End, Node, Origin, Wire, get, ok, route, until, upstream, within};

async fn node(origin: &Origin, limits: &str, upstream_keys: &str, route_keys: &str) -> Node {
    let cached = route("cached", "/cached", "cache = { max_age = \"60s\" }");
    let rest = route("rest", "/*", route_keys);
    Node::start(&format!("[limits]\n{limits}\n{}{rest}{cached}", upstream(&[origin.address], upstream_keys)))
        .await
}

async fn plain() -> Origin {
    Origin::answering(|_, _| ok("x")).await
}

/// Opens connections and tells which of them serve a request; the others are closed without a word.
async fn served(node: &Node, connections: usize) -> (Vec<Wire>, usize) {
    let (mut kept, mut refused) = (Vec::new(), 0);
    for _ in 0..connections {
        let mut wire = node.connect().await;
        if wire.get("/").await.is(200) {
            kept.push(wire);
        } else {
            refused += 1;
        }
    }
    (kept, refused)
}

#[tokio::test]
async fn one_client_gets_so_many_connections_and_no_more() {
    let origin = plain().await;
    let node = node(&origin, "connections_per_client = 3\ntrusted = []", "", "").await;
    let (mut kept, refused) = served(&node, 6).await;
    assert_eq!((kept.len(), refused), (3, 3));
    assert!(kept[2].get("/").await.is(200), "open ones go on");
    assert!(get(node.http6, "/").await.is(200), "another client is not concerned");
    assert_eq!(node.sample("forefront_listener_accepts_total", &["refused_client"]).await, 3.0);
    kept.pop();
    until("a place is free again", async || served(&node, 1).await.1 == 0).await;
}

#[tokio::test]
async fn trusted_peers_are_exempt_from_what_one_client_may_take() {
    let origin = plain().await;
    let limits = "connections_per_client = 1\nrequests_per_client = { per_second = 1 }";
    let node = node(&origin, limits, "", "").await;
    let (kept, refused) = served(&node, 5).await;
    assert_eq!((kept.len(), refused), (5, 0));
}

#[tokio::test]
async fn all_clients_together_get_so_many_connections() {
    let origin = plain().await;
    let node = node(&origin, "connections = 4\nconnections_per_client = 4", "", "").await;
    let (kept, refused) = served(&node, 7).await;
    assert_eq!((kept.len(), refused), (4, 3));
    assert_eq!(node.sample("forefront_listener_connections", &[]).await, 4.0);
    assert_eq!(get(node.health, "/ready").await.status(), 200, "the health listener has its own bound");
    drop(kept);
    until("there is room again", async || served(&node, 1).await.1 == 0).await;
}

#[tokio::test]
async fn a_client_beyond_its_rate_gets_429_hits_included() {
    let origin = plain().await;
    let node =
        node(&origin, "requests_per_client = { per_second = 0.5, burst = 4 }\ntrusted = []", "", "").await;
    let mut wire = node.connect().await;
    let mut statuses = Vec::new();
    for path in ["/", "/cached", "/cached", "/", "/cached", "/"] {
        let answer = wire.get(path).await;
        statuses.push(answer.status());
        if answer.status() == 429 {
            let after: u64 = answer.get("retry-after").expect("it says when").parse().expect("seconds");
            assert!((1..=3).contains(&after), "{answer:?}");
            assert!(answer.get("proxy-status").is_some());
        }
    }
    assert_eq!(statuses, [200, 200, 200, 200, 429, 429], "the connection goes on all the same");
    assert!(get(node.http6, "/").await.is(200), "another client is not concerned");
}

/// Takes this long over `/slow`.
async fn slow(time: Duration) -> Origin {
    Origin::scripted(move |request, mut wire: Wire| async move {
        if request.target() == "/slow" {
            tokio::time::sleep(time).await;
        }
        wire.send(ok("x")).await;
        Some(wire)
    })
    .await
}

/// So many GETs of `/slow` at once: how many were answered, and how many shed with 503.
async fn at_once(node: &Node, origin: &Origin, requests: usize) -> (usize, usize) {
    let mut clients = JoinSet::new();
    for _ in 0..requests {
        let address = node.http;
        clients.spawn(async move { get(address, "/slow").await });
    }
    let answers = clients.join_all().await;
    let good = answers.iter().filter(|answer| answer.is(200)).count();
    let shed: Vec<_> = answers.iter().filter(|answer| answer.status() == 503).collect();
    assert!(
        shed.iter().all(|answer| answer.get("retry-after").is_some() && answer.get("proxy-status").is_some())
    );
    assert_eq!(good + shed.len(), requests, "nothing else happens");
    assert_eq!(
        origin.count(),
        good + 1,
        "what was refused never reached the origin (one request warmed the cache)"
    );
    (good, shed.len())
}

#[tokio::test]
async fn a_route_takes_so_many_at_once_and_lets_so_many_wait() {
    let origin = slow(Duration::from_millis(400)).await;
    let node = node(&origin, "", "", "in_flight = 2\nqueue = 3").await;
    let begun = Instant::now();
    assert_eq!(at_once(&node, &origin, 9).await, (5, 4));
    assert!(begun.elapsed() >= Duration::from_millis(1200), "two at once, in three turns");
    assert!(node.get("/cached").await.is(200), "other routes are not concerned");
}

#[tokio::test]
async fn an_endpoint_takes_so_many_at_once() {
    let origin = slow(Duration::from_millis(400)).await;
    let node = node(&origin, "", "requests_in_flight = 3", "").await;
    assert_eq!(at_once(&node, &origin, 8).await, (3, 5));
}

/// Streams `bytes` in chunks as fast as they are taken.
async fn list(bytes: usize) -> Origin {
    Origin::scripted(move |request, mut wire: Wire| async move {
        if request.target() != "/api/session" {
            wire.send(ok("x")).await;
            return Some(wire);
        }
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let row = vec![b'r'; 50_000];
        for _ in 0..bytes / row.len() {
            // The bed's own patience with sending would end a reader that is slow on purpose.
            let mut framed = format!("{:x}\r\n", row.len()).into_bytes();
            framed.extend_from_slice(&row);
            framed.extend_from_slice(b"\r\n");
            tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &framed).await.ok()?;
        }
        wire.chunk(b"").await;
        Some(wire)
    })
    .await
}

const LIST_BYTES: usize = 26_000_000;

#[tokio::test]
async fn ten_slow_readers_of_a_list_cost_little_memory() {
    let origin = list(LIST_BYTES).await;
    let node = node(&origin, "", "", "").await;
    assert!(node.get("/").await.is(200));
    let before = node.process.resident();
    let mut readers = Vec::new();
    for _ in 0..10 {
        let mut wire = node.connect().await;
        wire.send("GET /api/session HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(wire.head().await.expect("a head").status(), 200);
        readers.push(wire);
    }
    let mut grown = Vec::new();
    for _ in 0..6 {
        for wire in &mut readers {
            wire.take(1_000_000).await.expect("the list goes on");
        }
        grown.push(node.process.resident().saturating_sub(before) >> 10);
    }
    println!("resident {} KiB, with ten slow readers of 26 MB each {grown:?} KiB more", before >> 10);
    assert!(grown.iter().all(|kib| *kib < 12 << 10), "far below the list: {grown:?} KiB");
    // The allocator takes memory in pieces of 2 MiB: what grows with the list takes one after the other, 40 MB go by here.
    let steps = grown[1..].windows(2).filter(|two| two[1] > two[0] + 512).count();
    assert!(steps <= 1 && grown[5] <= grown[1] + 2048, "it does not grow as they read on: {grown:?} KiB");
    // One reads to the end, and has it all.
    let mut last = readers.pop().expect("there are ten");
    let limit = Duration::from_secs(15);
    let answer = within(limit, "the rest", async { last.rest_of_chunks().await }).await;
    assert_eq!(answer, End::Whole);
}

#[tokio::test]
async fn an_origin_that_does_not_read_holds_the_client_back() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        if request.method() == "POST" {
            std::future::pending::<()>().await;
        }
        wire.send(ok("x")).await;
        Some(wire)
    })
    .await;
    let node = node(&origin, "body_bytes = \"1 GiB\"", "", "idle_timeout = \"2s\"").await;
    assert!(node.get("/").await.is(200));
    let before = node.process.resident();
    let mut wire = node.connect().await;
    wire.send("POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n").await;
    let (mut sent, piece) = (0usize, vec![b'x'; 1 << 20]);
    let writing = async {
        while tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &piece).await.is_ok() {
            sent += piece.len();
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(1500), writing).await;
    let grown = node.process.resident().saturating_sub(before);
    println!("{sent} bytes were taken, {} KiB more resident", grown >> 10);
    assert!(sent < 200 << 20, "the client is held back: {sent}");
    assert!(grown < 8 << 20, "{} KiB", grown >> 10);
    assert!(node.get("/").await.is(200));
}
