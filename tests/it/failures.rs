//! Origins that fail, and what clients see of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::bed::{Answer, End, Legacy, Node, Origin, Wire, get, ok, request, route, until, upstream};

/// Never ejects, so that each request of a test meets the fault.
const PATIENT: &str = "passive = { failures = 0, server_errors = 0 }";
/// Probes that find a fault fast.
const PROBES: &str = "health = { path = \"/ping\", interval = \"150ms\", timeout = \"250ms\", unhealthy_after = 2, healthy_after = 1 }";

async fn node(endpoints: &[SocketAddr], upstream_keys: &str, route_keys: &str) -> Node {
    Node::start(&(upstream(endpoints, upstream_keys) + &route("rest", "/*", route_keys))).await
}

/// A port nobody listens on.
async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound")
}

fn is_explained(answer: &Answer) -> bool {
    answer.get("proxy-status").is_some_and(|status| status.starts_with("forefront; error="))
        && answer.get("cache-control") == Some("no-store")
        && answer.end == End::Whole
}

#[tokio::test]
async fn an_origin_that_refuses_costs_an_explained_error_and_not_the_node() {
    let node = node(&[closed_port().await], "", "").await;
    for _ in 0..5 {
        let answer = node.get("/").await;
        assert!(matches!(answer.status(), 502 | 503) && is_explained(&answer), "{answer:?}");
        assert!(answer.get("retry-after").is_some(), "{answer:?}");
    }
}

#[tokio::test]
async fn an_origin_that_resets_or_closes_before_its_answer_is_502() {
    let origin = Origin::scripted(async |request, wire: Wire| {
        if request.target() == "/reset" {
            wire.reset();
        }
        None
    })
    .await;
    let node = node(&[origin.address], PATIENT, "").await;
    for path in ["/reset", "/close"] {
        let answer = node.get(path).await;
        assert!(answer.status() == 502 && is_explained(&answer), "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn an_answer_broken_off_is_seen_to_be_broken_off() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        let fields = match request.target() {
            "/length" => "Content-Length: 1000\r\n",
            "/chunked" => "Transfer-Encoding: chunked\r\n",
            _ => "",
        };
        wire.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).await;
        let piece = if request.target() == "/chunked" { "4\r\nhalf\r\n" } else { "half" };
        wire.send(piece).await;
        // What was sent has to arrive before a reset would take it away.
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.reset();
        None
    })
    .await;
    let node = node(&[origin.address], PATIENT, "").await;
    for path in ["/length", "/chunked", "/until-close"] {
        let answer = node.get(path).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "half"), "{path}");
        assert_ne!(answer.end, End::Whole, "{path}");
        let old = request(node.http, &format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert_ne!(old.end, End::Whole, "{path} of HTTP/1.0");
    }
    let old = request(node.http, "GET /until-close HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.end, End::Reset, "only a reset tells an HTTP/1.0 client");
}

#[tokio::test]
async fn an_origin_that_answers_nonsense_is_502() {
    let answers: HashMap<&str, String> = HashMap::from([
        ("/ssh", "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned()),
        ("/length", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned()),
        ("/lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned()),
        ("/coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab".to_owned()),
        (
            "/both",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\nContent-Length: 2\r\n\r\nab".to_owned(),
        ),
        ("/huge", format!("HTTP/1.1 200 OK\r\n{}\r\n", format!("x: {}\r\n", "y".repeat(8000)).repeat(50))),
        ("/status", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n".to_owned()),
        ("/nul", "HTTP/1.1 200 OK\r\nx: a\0b\r\nContent-Length: 0\r\n\r\n".to_owned()),
    ]);
    let paths: Vec<&str> = answers.keys().copied().collect();
    let origin = Origin::answering(move |request, _| answers[request.target()].clone().into_bytes()).await;
    let node = node(&[origin.address], PATIENT, "timeout = \"2s\"").await;
    for path in paths {
        let answer = node.get(path).await;
        assert!(answer.status() == 502 && is_explained(&answer), "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn an_origin_that_hangs_is_504_in_time() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        if request.target() == "/stalls" {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        }
        wire.rest().await;
        None
    })
    .await;
    let node = node(&[origin.address], PATIENT, "timeout = \"600ms\"\nidle_timeout = \"400ms\"").await;
    let begun = Instant::now();
    let answer = node.get("/hangs").await;
    assert!(answer.status() == 504 && is_explained(&answer), "{answer:?}");
    let took = begun.elapsed();
    assert!((Duration::from_millis(550)..Duration::from_secs(3)).contains(&took), "{took:?}");
    let begun = Instant::now();
    let stalled = node.get("/stalls").await;
    assert_eq!((stalled.status(), stalled.text().as_str(), stalled.end), (200, "half", End::Cut));
    assert!(begun.elapsed() < Duration::from_secs(3));
    // A request whose client stops sending does not wait for ever either.
    let mut wire = node.connect().await;
    wire.send("POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert_eq!(wire.answer().await.status(), 408);
}

#[tokio::test]
async fn connections_the_origin_closed_while_idle_cost_nobody_anything() {
    // It closes after every answer without a word.
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        wire.content(&request.head, &mut Vec::new(), &mut Vec::new()).await.ok()?;
        wire.send(ok("x")).await;
        None
    })
    .await;
    let node = node(&[origin.address], "", "retry = \"unsent\"").await;
    let mut wire = node.connect().await;
    for number in 0..30 {
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        // Long enough for the close to arrive; without this pause a POST may rightly fail, since it may have been applied.
        tokio::time::sleep(Duration::from_millis(30)).await;
        wire.send(format!("{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")).await;
        let answer = wire.answer().await;
        assert!(answer.is(200), "{method} {number}: {answer:?}");
    }
    assert_eq!(origin.count(), 30);
}

#[tokio::test]
async fn without_a_pause_gets_survive_a_closing_origin_too() {
    let origin = Origin::scripted(async |_, mut wire: Wire| {
        wire.send(ok("x")).await;
        None
    })
    .await;
    let node = node(&[origin.address], "", "").await;
    let mut wire = node.connect().await;
    for number in 0..200 {
        let answer = wire.get("/").await;
        assert!(answer.is(200), "{number}: {answer:?}");
    }
}

#[tokio::test]
async fn a_post_that_may_have_been_applied_is_never_sent_again() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let applied: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let fickle = |random: u64, log: Arc<Mutex<HashMap<String, u32>>>| {
        let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(random)));
        Origin::scripted(move |request, mut wire: Wire| {
            let (random, log) = (random.clone(), log.clone());
            async move {
                let mut body = Vec::new();
                wire.content(&request.head, &mut body, &mut Vec::new()).await.ok()?;
                *log.lock().unwrap().entry(String::from_utf8_lossy(&body).into_owned()).or_default() += 1;
                let fate = random.lock().unwrap().u8(..4);
                match fate {
                    0 => wire.reset(),
                    1 => return None,
                    _ => {
                        wire.send(ok("applied")).await;
                        return Some(wire);
                    }
                }
                None
            }
        })
    };
    let (one, two) = (fickle(seed, applied.clone()).await, fickle(!seed, applied.clone()).await);
    let keys = format!("{PATIENT}\nretry = {{ budget = 1.0, budget_min_per_second = 1000 }}");
    let node = node(&[closed_port().await, one.address, two.address], &keys, "retry = \"unsent\"").await;
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let address = node.http;
        clients.spawn(async move {
            let mut good = Vec::new();
            for number in 0..25 {
                let id = format!("{client}-{number}");
                let head = format!(
                    "POST /operation HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}",
                    id.len()
                );
                let answer = request(address, &format!("{head}\r\n\r\n{id}")).await;
                assert!(answer.is(200) || answer.is(502), "{answer:?}");
                if answer.is(200) {
                    good.push(id);
                }
            }
            good
        });
    }
    let good: Vec<String> = clients.join_all().await.concat();
    let applied = applied.lock().unwrap();
    assert!(applied.values().all(|times| *times == 1), "applied twice with seed {seed}: {applied:?}");
    assert!(good.iter().all(|id| applied.contains_key(id)));
    assert!(applied.len() == 200, "the closed port cost a request: {} of 200 applied", applied.len());
    assert!(good.len() < 200 && good.len() > 50, "the faults happened: {} good", good.len());
}

/// What one client of a load saw: how many it asked, those that were not 200, the slowest.
type Seen = (u32, Vec<Answer>, Duration);

/// GETs in a closed loop by eight clients until told to stop.
fn load(address: SocketAddr, path: &'static str) -> (Arc<AtomicBool>, JoinSet<Seen>) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let stop = stop.clone();
        clients.spawn(async move {
            let (mut asked, mut failed, mut slowest) = (0, Vec::new(), Duration::ZERO);
            let mut wire = Wire::connect(address).await;
            while !stop.load(SeqCst) {
                let begun = Instant::now();
                let answer = wire.get(path).await;
                slowest = slowest.max(begun.elapsed());
                asked += 1;
                if !answer.is(200) {
                    failed.push(answer);
                }
            }
            (asked, failed, slowest)
        });
    }
    (stop, clients)
}

/// Two stand-ins under load, one of which meets a fault.
async fn two_under_load(fault: impl AsyncFnOnce(&mut Legacy), sign: &str) {
    let (mut one, two) = (Legacy::start(&[]).await, Legacy::start(&[]).await);
    let node = node(&[one.address, two.address], PROBES, "timeout = \"10s\"").await;
    let (stop, clients) = load(node.http, "/api/movie/1");
    let both =
        async || one.count("GET /api/movie/{id}").await > 10 && two.count("GET /api/movie/{id}").await > 10;
    until("both serve", both).await;
    fault(&mut one).await;
    let before = two.count("GET /api/movie/{id}").await;
    until("the other carries on", async || two.count("GET /api/movie/{id}").await > before + 200).await;
    stop.store(true, SeqCst);
    let (mut asked, mut failed, mut slowest) = (0, Vec::new(), Duration::ZERO);
    for (more, bad, slow) in clients.join_all().await {
        asked += more;
        failed.extend(bad);
        slowest = slowest.max(slow);
    }
    println!("{sign}: {asked} asked, {} failed, slowest {slowest:?}", failed.len());
    assert!(failed.is_empty(), "{} of {asked} failed, e.g. {:?}", failed.len(), failed[0]);
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[tokio::test]
async fn gets_do_not_notice_that_a_process_is_killed() {
    two_under_load(
        async |legacy| {
            legacy.process.signal(libc::SIGKILL);
            assert!(!legacy.process.ended().await.success());
        },
        "killed",
    )
    .await;
}

#[tokio::test]
async fn gets_waiting_at_a_frozen_process_are_rescued() {
    two_under_load(
        async |legacy| {
            legacy.process.signal(libc::SIGSTOP);
            until("it is stopped", async || legacy.process.state() == 'T').await;
        },
        "frozen",
    )
    .await;
}

#[tokio::test]
async fn gets_do_not_notice_that_a_process_is_sick() {
    two_under_load(
        async |legacy| {
            legacy.fault("sick").await;
            assert_eq!(get(legacy.address, "/ping").await.status(), 500);
        },
        "sick",
    )
    .await;
}

#[tokio::test]
async fn with_all_endpoints_down_the_answer_is_503_until_one_is_back() {
    let legacy = Legacy::start(&[]).await;
    let address = legacy.address;
    let node = node(&[address], PROBES, "").await;
    assert!(node.get("/").await.is(200));
    drop(legacy);
    until("no endpoint is healthy", async || node.get("/").await.status() == 503).await;
    let answer = node.get("/").await;
    assert!(is_explained(&answer), "{answer:?}");
    assert!(answer.get("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{answer:?}");
    let begun = Instant::now();
    let _back = Legacy::start_on(&address.to_string(), &[]).await;
    until("it is used again", async || node.get("/").await.is(200)).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
}
