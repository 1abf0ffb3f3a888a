//! What an operator does to a running node: drain it, reload it, take an endpoint out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::bed::{End, Legacy, Node, Origin, Wire, get, ok, route, until, upstream};

/// Takes a second over `/slow`.
async fn origin() -> Origin {
    Origin::scripted(async |request, mut wire: Wire| {
        if request.target() == "/slow" {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        wire.send(ok(request.target())).await;
        Some(wire)
    })
    .await
}

fn draining(origin: &Origin, delay: &str, grace: &str) -> String {
    let drain = format!("[drain]\ndelay = \"{delay}\"\ngrace = \"{grace}\"\n");
    drain + &upstream(&[origin.address], "") + &route("rest", "/*", "")
}

async fn ready(node: &Node) -> u16 {
    get(node.health, "/ready").await.status()
}

#[tokio::test]
async fn a_node_told_to_end_under_load_refuses_nobody_and_cuts_nothing() {
    let origin = origin().await;
    let mut node = Node::start(&draining(&origin, "800ms", "5s")).await;
    let mut slow = node.connect().await;
    slow.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut idle = node.connect().await;
    assert!(idle.get("/").await.is(200));
    until("the slow one is under way", async || origin.seen().iter().any(|r| r.target() == "/slow")).await;

    let leave = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let (leave, address) = (leave.clone(), node.http);
        clients.spawn(async move {
            let mut served = 0;
            while !leave.load(SeqCst) {
                let answer = get(address, "/x").await;
                assert!(answer.is(200), "{answer:?}");
                served += 1;
            }
            served
        });
    }
    node.process.signal(libc::SIGTERM);
    let told = Instant::now();
    until("/ready fails", async || ready(&node).await == 503).await;
    assert!(told.elapsed() < Duration::from_millis(400), "at once: {:?}", told.elapsed());
    assert_eq!(get(node.health, "/live").await.status(), 200);
    assert_eq!(node.status().await["state"], "draining");
    // The balancer has not noticed yet: what it still sends is served, on connections that then end.
    while told.elapsed() < Duration::from_millis(600) {
        assert!(node.get("/late").await.is(200));
    }
    leave.store(true, SeqCst);
    let served: Vec<u32> = clients.join_all().await;
    assert!(served.iter().all(|count| *count > 0), "{served:?}");
    let mut kept = idle;
    kept.send("GET /kept HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = kept.answer().await;
    assert_eq!((answer.status(), answer.get("connection")), (200, Some("close")));
    let answer = slow.answer().await;
    assert!(answer.is(200) && answer.text() == "/slow", "{answer:?}");
    assert_eq!(slow.rest().await, (vec![], End::Cut));
    assert_eq!(node.process.ended().await.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(4), "{:?}", told.elapsed());
    assert!(TcpStream::connect(node.http).await.is_err());
}

#[tokio::test]
async fn a_drain_by_the_admin_listener_ends_the_node_too_and_idle_connections_do_not_hold_it() {
    let origin = origin().await;
    let mut node = Node::start(&draining(&origin, "100ms", "5s")).await;
    let mut idle = node.connect().await;
    assert!(idle.get("/").await.is(200));
    assert_eq!(node.order("/drain", "").await["state"], "draining");
    assert_eq!(idle.rest().await, (vec![], End::Cut));
    assert_eq!(node.process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_outlasts_the_grace_period_is_cut() {
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        wire.rest().await;
        None
    })
    .await;
    let mut node = Node::start(&draining(&origin, "0s", "500ms")).await;
    let mut hanging = node.connect().await;
    hanging.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until("it hangs", async || origin.count() == 1).await;
    let told = Instant::now();
    node.process.signal(libc::SIGTERM);
    assert_eq!(node.process.ended().await.code(), Some(0));
    assert!(told.elapsed() >= Duration::from_millis(450) && told.elapsed() < Duration::from_secs(4));
    assert_ne!(hanging.answer().await.end, End::Whole);
}

#[tokio::test]
async fn a_reload_adds_a_route_and_a_bad_file_changes_nothing() {
    let (one, two) = (origin().await, origin().await);
    let old = upstream(&[one.address], "") + &route("old", "/old", "");
    let node = Node::start(&old).await;
    let mut kept = node.connect().await;
    assert!(kept.get("/old").await.is(200));
    assert_eq!(kept.get("/new").await.status(), 404);

    node.rewrite(&format!("{old}{}[limits]\nbody_bytes = \"1 KiB\"\n", route("new", "/new", "")));
    node.process.signal(libc::SIGHUP);
    node.process.logged("configuration reloaded").await;
    assert!(kept.get("/new").await.is(200), "on the connection that was open before");
    kept.send("POST /new HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n").await;
    assert_eq!(kept.answer().await.status(), 413, "limits are reloaded");

    node.rewrite(&format!("{old}{}", route("bad", "/bad", "timout = \"1s\"\nretry = \"often\"")));
    node.process.signal(libc::SIGHUP);
    node.process.logged("nothing changed").await;
    let log = node.process.log();
    assert!(log.contains("timout") && log.contains("retry"), "it says why: {log}");
    assert!(node.get("/new").await.is(200) && node.get("/bad").await.status() == 404);

    node.rewrite(&(upstream(&[two.address], "") + &route("old", "/old", "")));
    node.process.signal(libc::SIGHUP);
    until("the other endpoint is used", async || {
        let answer = node.get("/old").await;
        assert!(answer.is(200), "nothing fails meanwhile: {answer:?}");
        two.count() > 0
    })
    .await;
    assert_eq!(node.get("/new").await.status(), 404, "a route that is gone is gone");
}

#[tokio::test]
async fn a_reload_takes_over_the_bounds_on_connections() {
    let origin = origin().await;
    let rest = upstream(&[origin.address], "") + &route("rest", "/*", "");
    let limits = |number: u32| format!("[limits]\nconnections_per_client = {number}\ntrusted = []\n{rest}");
    let node = Node::start(&limits(1)).await;
    let mut kept = node.connect().await;
    assert!(kept.get("/").await.is(200));
    assert_eq!(node.get("/").await.status(), 0);
    node.rewrite(&limits(3));
    node.process.signal(libc::SIGHUP);
    node.process.logged("configuration reloaded").await;
    assert_eq!(node.get("/").await.status(), 200);
    assert!(kept.get("/").await.is(200));
}

#[tokio::test]
async fn a_drained_endpoint_gets_no_requests_until_it_is_taken_back() {
    let (one, two) = (Legacy::start(&[]).await, Legacy::start(&[]).await);
    let config = upstream(&[one.address, two.address], "") + &route("rest", "/*", "");
    let node = Node::start(&config).await;
    let ask = async |requests: usize| {
        for _ in 0..requests {
            assert!(node.get("/config").await.is(200));
        }
        (one.count("GET /config").await, two.count("GET /config").await)
    };
    let (before, other) = ask(10).await;
    assert!(before > 0 && other > 0, "both are used: {before}, {other}");
    let endpoint = format!("/upstreams/origin/endpoints/{}", one.address);
    assert_eq!(node.order(&format!("{endpoint}/drain"), "").await["drained"], true);
    assert_eq!(node.status().await["upstreams"][0]["endpoints"][0]["state"], "drained");
    assert_eq!(ask(10).await, (before, other + 10));
    node.order(&format!("{endpoint}/undrain"), "").await;
    assert!(ask(10).await.0 > before);
    let unknown = node.try_order("/upstreams/origin/endpoints/127.0.0.1:1/drain", "").await;
    assert_eq!(unknown.status(), 404);
}

#[tokio::test]
async fn the_private_listener_takes_no_orders_from_other_sites() {
    let origin = origin().await;
    let node = Node::start(&(upstream(&[origin.address], "") + &route("rest", "/*", ""))).await;
    for field in ["Host: evil.example", "Host: localhost\r\nOrigin: http://evil.example"] {
        let bytes =
            format!("POST /drain HTTP/1.1\r\n{field}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(crate::bed::request(node.admin, &bytes).await.status(), 403, "{field}");
    }
    assert_eq!(ready(&node).await, 200);
    assert_eq!(get(node.health, "/metrics").await.status(), 404, "the health listener shows nothing else");
    assert_eq!(node.get("/metrics").await.text(), "/metrics", "and the public one passes everything on");
}
