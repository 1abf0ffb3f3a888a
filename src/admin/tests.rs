//! The listeners by real sockets: raw bytes out, the whole answer in.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::drain::Drain;

const TOKEN: &str = "0123456789abcdef0123";

/// What the actions were called with.
type Calls = Arc<Mutex<Vec<String>>>;

struct Scene {
    address: SocketAddr,
    calls: Calls,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("took too long")
}

/// Sends the bytes and reads until the server closes.
async fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

impl Scene {
    async fn new(listen: &str, actions: impl FnOnce(&Calls) -> Actions, token: Option<&str>) -> Scene {
        let listener = TcpListener::bind(listen).await.unwrap();
        // A wildcard listener is reached by loopback.
        let address = SocketAddr::new([127, 0, 0, 1].into(), listener.local_addr().unwrap().port());
        let calls = Calls::default();
        let admin = Admin {
            registry: crate::telemetry::registry().unwrap(),
            status: Arc::new(|| json!({ "node": "a", "state": "ready" })),
            actions: actions(&calls),
            token: token.map(|token| Token::new(token).unwrap()),
        };
        let shutdown = CancellationToken::new();
        let server = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { serve(vec![listener], admin, shutdown).await.unwrap() }
        });
        Scene { address, calls, shutdown, server }
    }

    async fn local() -> Scene {
        Scene::new("127.0.0.1:0", all_actions, None).await
    }

    async fn send(&self, method: &str, path: &str, fields: &str, body: &str) -> Answer {
        let Scene { address, .. } = self;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{fields}\
             Content-Length: {length}\r\n\r\n{body}"
        );
        raw(*address, request.as_bytes()).await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, "", body).await
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        soon(self.server).await.unwrap();
    }
}

fn all_actions(calls: &Calls) -> Actions {
    let note = |calls: &Calls| {
        let calls = Arc::clone(calls);
        move |call: String| calls.lock().unwrap().push(call)
    };
    let (drained, purged, endpoint) = (note(calls), note(calls), note(calls));
    Actions {
        drain: Some(Box::new(move || drained("drain".into()))),
        purge: Some(Box::new(move |request| {
            purged(format!("{request:?}"));
            3
        })),
        endpoint: Some(Box::new(move |upstream, address, drain| {
            endpoint(format!("{upstream} {address} {drain}"));
            match (upstream, address) {
                ("bingo", "127.0.0.1:1" | "unix:/run/x") => Ok(()),
                ("bingo", _) => Err(ActionError::UnknownEndpoint),
                _ => Err(ActionError::UnknownUpstream),
            }
        })),
    }
}

#[tokio::test]
async fn it_shows_page_metrics_and_status() {
    let scene = Scene::local().await;
    let page = scene.send("GET", "/", "", "").await;
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-type: text/html") && page.head.contains("content-security-policy: "));
    assert!(!page.body.contains("https://"), "the page must need no network");
    let metrics = scene.send("GET", "/metrics", "", "").await;
    assert!(
        metrics.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{}",
        metrics.head
    );
    assert!(metrics.body.contains("forefront_build_info{"));
    let status = scene.send("GET", "/status", "", "").await;
    assert_eq!(status.json(), json!({ "node": "a", "state": "ready" }));
    assert!(status.head.contains("cache-control: no-store"));
    scene.stop().await;
}

#[tokio::test]
async fn purge_takes_a_path_or_a_prefix() {
    let scene = Scene::local().await;
    let answer = scene.post("/cache/purge", r#"{"path": "/long_dummy?a=1"}"#).await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "removed": 3 })));
    assert_eq!(scene.post("/cache/purge", r#"{"prefix": "/x"}"#).await.status, 200);
    assert_eq!(scene.calls(), [r#"Path("/long_dummy?a=1")"#, r#"Prefix("/x")"#]);
    scene.stop().await;
}

#[tokio::test]
async fn bad_purges_are_explained_and_do_nothing() {
    let scene = Scene::local().await;
    for body in [
        "",
        "{}",
        "null",
        "[1]",
        "not json",
        r#"{"path": "/a", "prefix": "/b"}"#,
        r#"{"path": 7}"#,
        r#"{"path": "long_dummy"}"#,
        r#"{"prefix": ""}"#,
        r#"{"paht": "/a"}"#,
        "{\"path\": \"/\u{0}\"",
    ] {
        let answer = scene.post("/cache/purge", body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.json()["error"].as_str().unwrap().contains("prefix"), "{body}: {}", answer.body);
    }
    let long = format!(r#"{{"path": "/{}"}}"#, "a".repeat(65 * 1024));
    let answer = scene.post("/cache/purge", &long).await;
    assert_eq!(answer.status, 413);
    assert!(answer.json()["error"].is_string());
    assert_eq!(scene.calls(), [""; 0]);
    scene.stop().await;
}

#[tokio::test]
async fn endpoints_are_drained_by_name_and_address() {
    let scene = Scene::local().await;
    let path = "/upstreams/bingo/endpoints/127.0.0.1:1";
    assert_eq!(scene.post(&format!("{path}/drain"), "").await.status, 200);
    assert_eq!(scene.post(&format!("{path}/undrain"), "").await.status, 200);
    assert_eq!(scene.post("/upstreams/bingo/endpoints/unix:%2Frun%2Fx/drain", "").await.status, 200);
    let unknown = scene.post("/upstreams/bingo/endpoints/127.0.0.1:2/drain", "").await;
    assert_eq!(
        (unknown.status, unknown.json()),
        (404, json!({ "error": "the upstream has no such endpoint" }))
    );
    assert_eq!(scene.post("/upstreams/other/endpoints/x/drain", "").await.status, 404);
    assert_eq!(scene.post("/upstreams/bingo/endpoints/%ff/drain", "").await.status, 400);
    assert_eq!(scene.post("/upstreams/bingo/endpoints/127.0.0.1:1/explode", "").await.status, 404);
    assert_eq!(
        scene.calls(),
        [
            "bingo 127.0.0.1:1 true",
            "bingo 127.0.0.1:1 false",
            "bingo unix:/run/x true",
            "bingo 127.0.0.1:2 true",
            "other x true",
        ]
    );
    scene.stop().await;
}

#[tokio::test]
async fn drain_is_accepted_and_only_by_post() {
    let scene = Scene::local().await;
    let wrong = scene.send("GET", "/drain", "", "").await;
    assert_eq!(wrong.status, 405);
    assert!(wrong.head.contains("allow: post") && wrong.json()["error"].is_string());
    assert_eq!(scene.calls(), [""; 0]);
    let answer = scene.post("/drain", "").await;
    assert_eq!((answer.status, answer.json()), (202, json!({ "state": "draining" })));
    assert_eq!(scene.calls(), ["drain"]);
    assert_eq!(scene.send("GET", "/nothing", "", "").await.json()["error"], "there is nothing at this path");
    scene.stop().await;
}

#[tokio::test]
async fn a_browser_cannot_be_made_to_change_things() {
    let scene = Scene::local().await;
    for fields in ["Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        let answer = scene.send("POST", "/drain", fields, "").await;
        assert_eq!(answer.status, 403, "{fields}");
        assert!(answer.json()["error"].is_string());
    }
    let rebound =
        "POST /drain HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(raw(scene.address, rebound.as_bytes()).await.status, 403);
    assert_eq!(scene.calls(), [""; 0]);
    let own = format!("Origin: http://{}\r\n", scene.address);
    assert_eq!(scene.send("POST", "/drain", &own, "").await.status, 202);
    scene.stop().await;
}

#[tokio::test]
async fn beyond_loopback_changes_need_the_token_and_reading_does_not() {
    let scene = Scene::new("0.0.0.0:0", all_actions, Some(TOKEN)).await;
    assert_eq!(scene.send("GET", "/status", "", "").await.status, 200);
    let bare = scene.post("/drain", "").await;
    assert_eq!(bare.status, 401);
    assert!(bare.head.contains("www-authenticate: bearer"));
    let wrong = "Authorization: Bearer 0123456789abcdef0124\r\n";
    assert_eq!(scene.send("POST", "/drain", wrong, "").await.status, 401);
    assert_eq!(scene.calls(), [""; 0]);
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(scene.send("POST", "/drain", &right, "").await.status, 202);
    scene.stop().await;

    let tokenless = Scene::new("0.0.0.0:0", all_actions, None).await;
    assert_eq!(tokenless.post("/drain", "").await.status, 403);
    assert_eq!(tokenless.calls(), [""; 0]);
    tokenless.stop().await;
}

#[tokio::test]
async fn absent_actions_are_not_there() {
    let scene = Scene::new("127.0.0.1:0", |_| Actions::default(), None).await;
    for path in ["/drain", "/cache/purge", "/upstreams/bingo/endpoints/127.0.0.1:1/drain"] {
        assert_eq!(scene.post(path, "").await.status, 404, "{path}");
    }
    assert_eq!(scene.send("GET", "/metrics", "", "").await.status, 200);
    scene.stop().await;
}

#[tokio::test]
async fn ready_follows_the_latches_and_live_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, shutdown) = (Drain::new(), CancellationToken::new());
    let server = tokio::spawn(serve_health(vec![listener], drain.clone(), shutdown.clone()));
    let get = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: balancer\r\nConnection: close\r\n\r\n");
        raw(address, request.as_bytes()).await
    };
    let starting = get("/ready").await;
    assert_eq!((starting.status, starting.json()), (503, json!({ "ready": false, "reason": "starting" })));
    assert_eq!(get("/live").await.status, 200);
    drain.set_ready(true);
    assert_eq!(get("/ready").await.status, 200);
    drain.begin();
    let draining = get("/ready").await;
    assert_eq!((draining.status, draining.json()), (503, json!({ "ready": false, "reason": "draining" })));
    assert_eq!(get("/live").await.status, 200);
    for path in ["/", "/metrics", "/status", "/drain"] {
        assert_eq!(get(path).await.status, 404, "{path}");
    }
    shutdown.cancel();
    soon(server).await.unwrap();
}

#[tokio::test]
async fn garbage_and_long_heads_are_refused() {
    let scene = Scene::local().await;
    assert_eq!(raw(scene.address, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").await.status, 400);
    let long = format!("GET /status HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(32 * 1024));
    // The server may close before it has taken all of it, so the write may fail: only the first line matters.
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    let mut start = [0; 12];
    soon(stream.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 431");
    scene.stop().await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_idle_or_silent_connections() {
    let scene = Scene::local().await;
    let mut idle = TcpStream::connect(scene.address).await.unwrap();
    let request = format!("GET /status HTTP/1.1\r\nHost: {}\r\n\r\n", scene.address);
    idle.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 15];
    soon(idle.read_exact(&mut first)).await.unwrap();
    let silent = TcpStream::connect(scene.address).await.unwrap();
    scene.stop().await;
    drop(silent);
    let mut rest = Vec::new();
    soon(idle.read_to_end(&mut rest)).await.unwrap();
}

/// Serves the health router with room for one connection at a time.
async fn narrow(limits: server::Limits) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let doors = vec![(listener, health::router(Drain::new()))];
    tokio::spawn(server::serve(doors, server::Limits { connections: 1, ..limits }, shutdown.clone()));
    (address, shutdown)
}

/// Each of these connections would keep everyone else out for ever, if it were let.
#[tokio::test]
async fn slow_clients_lose_their_place() {
    let limits = server::Limits { header_timeout: Duration::from_millis(50), ..Default::default() };
    let (address, shutdown) = narrow(limits).await;
    let whole = "GET /live HTTP/1.1\r\nHost: a\r\n\r\n";
    for opening in ["", "GET /live HT", "GET /live HTTP/1.1\r\nHost: a\r\n", whole] {
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(opening.as_bytes()).await.unwrap();
        let next = raw(address, b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(next.status, 200, "after {opening:?}");
        let _ = soon(slow.read_to_end(&mut Vec::new())).await;
    }
    shutdown.cancel();
}

#[tokio::test]
async fn no_connection_grows_old() {
    let hour = Duration::from_secs(3600);
    let limits =
        server::Limits { connection_age: Duration::from_millis(50), header_timeout: hour, connections: 1 };
    let (address, shutdown) = narrow(limits).await;
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    // Answered or not, it ends: nothing else would end it within the hour.
    let _ = soon(busy.read_to_end(&mut Vec::new())).await;
    shutdown.cancel();
}
