//! The cache as its users meet it: one fetch for many, never an old answer, nobody waits, errors are not kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;

use crate::bed::{Answer, Legacy, Node, Origin, Wire, get, ok, request, route, until, upstream};

fn cached(policy: &str) -> String {
    route("long_dummy", "/long_dummy", &format!("cache = {{ {policy} }}"))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_millis() as u64
}

/// When the stand-in let the request in that this answer belongs to, in Unix milliseconds.
fn started_at(answer: &Answer) -> u64 {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("long_dummy is JSON");
    body["started_at"].as_u64().expect("started_at is a number")
}

#[tokio::test]
async fn after_a_purge_200_clients_at_once_cost_the_origin_one_request() {
    let legacy = Legacy::start(&["--long-dummy", "700ms..700ms"]).await;
    let policy = cached("max_age = \"60s\", refresh_at = \"30s\", query = \"none\"");
    let node = Node::start(&(upstream(&[legacy.address], "") + &policy + &route("rest", "/*", ""))).await;
    assert!(node.get("/long_dummy").await.cache_status().contains("hit"), "warmed before it was ready");
    let removed = node.order("/cache/purge", "{\"path\": \"/long_dummy\"}").await;
    assert_eq!(removed["removed"], 1);
    legacy.reset_counts().await;
    let mut clients = JoinSet::new();
    for number in 0..200 {
        // Variants of the query are one answer on this route.
        let path = format!("/long_dummy{}", ["", "?x=1", "?y"][number % 3]);
        clients.spawn(async move { get(node_address(number, &node.http, &node.http6), &path).await });
    }
    let answers = clients.join_all().await;
    assert!(answers.iter().all(|answer| answer.is(200)));
    assert!(answers.iter().all(|answer| answer.body == answers[0].body), "all get the same answer");
    assert_eq!(legacy.count("GET /long_dummy").await, 1);
    let collapsed = answers.iter().filter(|answer| answer.cache_status().contains("collapsed")).count();
    println!("of 200 at once {collapsed} were collapsed");
    assert!(collapsed > 100);
}

fn node_address(
    number: usize,
    four: &std::net::SocketAddr,
    six: &std::net::SocketAddr,
) -> std::net::SocketAddr {
    if number.is_multiple_of(2) { *four } else { *six }
}

#[tokio::test]
async fn over_several_lifetimes_nobody_waits_and_no_answer_is_old() {
    let legacy = Legacy::start(&["--long-dummy", "300ms..300ms"]).await;
    let policy = cached("max_age = \"3s\", refresh_at = \"1500ms\", query = \"none\"");
    let node = Node::start(&(upstream(&[legacy.address], "") + &policy)).await;
    legacy.reset_counts().await;
    let (mut asked, mut oldest, mut slowest, mut generations) = (0u32, 0u64, Duration::ZERO, Vec::new());
    let begun = Instant::now();
    let mut wire = node.connect().await;
    while begun.elapsed() < Duration::from_secs(10) {
        let (sent_at, sent) = (now_ms(), Instant::now());
        let answer = wire.get("/long_dummy").await;
        slowest = slowest.max(sent.elapsed());
        asked += 1;
        assert!(answer.is(200) && answer.cache_status().contains("hit"), "request {asked}: {answer:?}");
        let age = sent_at.saturating_sub(started_at(&answer));
        assert!(age < 3000 && answer.age() < 3, "request {asked}: {age} ms old, Age {}", answer.age());
        oldest = oldest.max(age);
        if generations.last() != Some(&started_at(&answer)) {
            generations.push(started_at(&answer));
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    let fetched = legacy.count("GET /long_dummy").await;
    println!("{asked} requests, oldest {oldest} ms, slowest {slowest:?}, {fetched} fetches");
    assert!(generations.len() >= 4 && generations.is_sorted(), "renewed again and again: {generations:?}");
    assert!((4..=10).contains(&fetched), "{fetched} fetches in 10 s");
}

#[tokio::test]
async fn age_counts_from_the_request_to_the_origin() {
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        wire.send(b"HTTP/1.1 200 OK\r\nAge: 10\r\nContent-Length: 2\r\n\r\nok").await;
        Some(wire)
    })
    .await;
    let node = Node::start(&(upstream(&[origin.address], "") + &cached("max_age = \"60s\""))).await;
    let first = node.get("/long_dummy").await;
    assert!((11..=13).contains(&first.age()), "its own age and the time the fetch took: {}", first.age());
    until("Age counts on", async || node.get("/long_dummy").await.age() > first.age()).await;
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn head_and_conditions_are_answered_from_the_store() {
    let origin = Origin::answering(|_, _| {
        b"HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
          Content-Type: text/plain\r\nContent-Length: 4\r\n\r\nbody"
            .to_vec()
    })
    .await;
    let node = Node::start(&(upstream(&[origin.address], "") + &cached("max_age = \"60s\""))).await;
    let mut wire = node.connect().await;
    let ask = async |wire: &mut Wire, method: &str, field: &str| {
        wire.send(format!("{method} /long_dummy HTTP/1.1\r\nHost: x\r\n{field}\r\n")).await;
        wire.answer_to(method).await
    };
    let head = ask(&mut wire, "HEAD", "").await;
    assert_eq!((head.status(), head.get("content-length")), (200, Some("4")));
    assert!(head.cache_status().contains("hit") && head.get("age").is_some());
    let cases = [
        ("If-None-Match: \"v1\"\r\n", 304),
        ("If-None-Match: \"v0\", W/\"v1\"\r\n", 304),
        ("If-None-Match: *\r\n", 304),
        ("If-None-Match: \"v0\"\r\n", 200),
        ("If-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT\r\n", 304),
        ("If-Modified-Since: Sun, 31 Dec 2023 00:00:00 GMT\r\n", 200),
        ("If-None-Match: \"v0\"\r\nIf-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT\r\n", 200),
    ];
    for (field, status) in cases {
        let answer = ask(&mut wire, "GET", field).await;
        assert_eq!(answer.status(), status, "{field}");
        assert_eq!(answer.get("etag"), Some("\"v1\""), "{field}");
        assert!(answer.get("age").is_some() && answer.get("date").is_some(), "{field}");
        assert_eq!(answer.text(), if status == 200 { "body" } else { "" }, "{field}");
    }
    assert_eq!(origin.count(), 1, "the origin was asked once");
}

#[tokio::test]
async fn what_must_not_be_kept_is_fetched_each_time_and_an_error_is_never_kept() {
    let origin = Origin::answering(|request, _| {
        let (status, fields) = match request.target() {
            "/c/error" => ("500 Internal Server Error", ""),
            "/c/unavailable" => ("503 Service Unavailable", "Cache-Control: max-age=60\r\n"),
            "/c/no-store" => ("200 OK", "Cache-Control: no-store\r\n"),
            "/c/private" => ("200 OK", "Cache-Control: private\r\n"),
            "/c/cookie" => ("200 OK", "Set-Cookie: a=1\r\n"),
            "/c/vary" => ("200 OK", "Vary: *\r\n"),
            _ => ("200 OK", ""),
        };
        format!("HTTP/1.1 {status}\r\n{fields}Content-Length: 2\r\n\r\nhi").into_bytes()
    })
    .await;
    let passive = "passive = { server_errors = 0, failures = 0 }";
    let node = Node::start(
        &(upstream(&[origin.address], passive) + &route("c", "/c/*", "cache = { max_age = \"60s\" }")),
    )
    .await;
    // What turns out not to be storable is asked for once more, for the client itself; from then on it is known.
    for (path, status, fetches) in [
        ("/c/fine", 200, 1..=1),
        ("/c/error", 500, 3..=3),
        ("/c/unavailable", 503, 3..=3),
        ("/c/no-store", 200, 3..=4),
        ("/c/private", 200, 3..=4),
        ("/c/cookie", 200, 3..=4),
        ("/c/vary", 200, 3..=4),
    ] {
        for _ in 0..3 {
            let answer = node.get(path).await;
            assert!(answer.is(status) && answer.text() == "hi", "{path}: {answer:?}");
            assert_eq!(answer.head.all("cache-status").len(), 1);
        }
        let count = origin.seen().iter().filter(|request| request.target() == path).count();
        assert!(fetches.contains(&count), "{path}: {count} requests");
    }
}

#[tokio::test]
async fn an_answer_too_large_for_the_store_passes_whole() {
    let origin = Origin::answering(|_, _| ok(&"x".repeat(300_000))).await;
    let limit = "[cache]\nobject_bytes_max = \"64 KiB\"\n".to_owned();
    let node = Node::start(
        &(limit + &upstream(&[origin.address], "") + &route("c", "/c/*", "cache = { max_age = \"60s\" }")),
    )
    .await;
    for _ in 0..2 {
        let answer = node.get("/c/large").await;
        assert!(
            answer.is(200) && answer.body.len() == 300_000 && answer.get("age").is_none(),
            "{:?}",
            answer.head
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_fetch_for_others() {
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        tokio::time::sleep(Duration::from_millis(400)).await;
        wire.send(ok("late")).await;
        Some(wire)
    })
    .await;
    let node = Node::start(
        &(upstream(&[origin.address], "") + &route("c", "/c/*", "cache = { max_age = \"60s\" }")),
    )
    .await;
    let mut first = node.connect().await;
    first.send("GET /c/a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until("the fetch has begun", async || origin.count() == 1).await;
    drop(first);
    let second = node.get("/c/a").await;
    assert!(second.is(200) && second.text() == "late", "{second:?}");
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_dead_origin_is_covered_for_one_lifetime_and_no_longer() {
    let origin = Origin::answering(|_, _| ok(&now_ms().to_string())).await;
    let policy = cached("max_age = \"2s\", refresh_at = \"500ms\"");
    let node = Node::start(&(upstream(&[origin.address], "") + &policy)).await;
    assert!(node.get("/long_dummy").await.is(200));
    origin.stop().await;
    let (mut served, mut last) = (0, None);
    let ended = loop {
        let sent_at = now_ms();
        let answer = node.get("/long_dummy").await;
        if answer.status() != 200 {
            break answer;
        }
        let age = sent_at.saturating_sub(answer.text().parse().expect("milliseconds"));
        assert!(age <= 2000, "{age} ms old");
        (served, last) = (served + 1, Some(age));
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    println!("{served} answers from the store, the last {last:?} ms old, then {}", ended.status());
    assert!(last.is_some_and(|age| age > 1000), "the lifetime is used: {last:?}");
    assert!(matches!(ended.status(), 502..=504), "{ended:?}");
    assert!(ended.get("proxy-status").is_some());
}

#[tokio::test]
async fn purging_by_prefix_and_by_exact_query() {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let node = Node::start(
        &(upstream(&[origin.address], "") + &route("c", "/c/*", "cache = { max_age = \"60s\" }")),
    )
    .await;
    for path in ["/c/a", "/c/a?x=1", "/c/a?x=2", "/c/b"] {
        assert_eq!(node.get(path).await.text(), path);
    }
    assert_eq!(node.order("/cache/purge", "{\"path\": \"/c/a?x=1\"}").await["removed"], 1);
    assert_eq!(node.order("/cache/purge", "{\"prefix\": \"/c/a\"}").await["removed"], 2);
    assert!(node.get("/c/b").await.cache_status().contains("hit"));
    assert!(!node.get("/c/a").await.cache_status().contains("hit"));
}

#[tokio::test]
async fn uncached_means_uncached() {
    let legacy = Legacy::start(&[]).await;
    let node = Node::start(&(upstream(&[legacy.address], "") + &route("rest", "/*", ""))).await;
    let mut clients = JoinSet::new();
    for _ in 0..25 {
        let address = node.http;
        clients.spawn(async move { get(address, "/db_dummy").await.is(200) });
        let operation = "POST /operation HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 16\r\n\r\n{\"operation\": 1}";
        clients.spawn(async move { request(address, operation).await.is(200) });
    }
    assert!(clients.join_all().await.iter().all(|good| *good));
    assert_eq!(legacy.count("GET /db_dummy").await, 25);
    assert_eq!(legacy.count("POST /operation").await, 25);
}

#[tokio::test]
async fn a_node_with_a_dead_origin_gets_ready_all_the_same() {
    let alive = Arc::new(AtomicBool::new(false));
    let lives = alive.clone();
    let origin = Origin::scripted(move |_, mut wire: Wire| {
        let lives = lives.clone();
        async move {
            if !lives.load(SeqCst) {
                return None;
            }
            wire.send(ok("warm")).await;
            Some(wire)
        }
    })
    .await;
    let begun = Instant::now();
    let passive = "passive = { failures = 0 }";
    let node =
        Node::start_unready(&(upstream(&[origin.address], passive) + &cached("max_age = \"60s\""))).await;
    assert_eq!(get(node.health, "/ready").await.status(), 503);
    assert_eq!(get(node.health, "/live").await.status(), 200);
    until("ready without a warm cache", async || get(node.health, "/ready").await.status() == 200).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    alive.store(true, SeqCst);
    until("the cache is warmed later", async || {
        origin.count() > 0 && node.status().await["cache"]["entries"] != 0
    })
    .await;
    assert!(node.get("/long_dummy").await.is(200));
}
