//! The service as its clients see it, over real sockets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

/// A running stand-in; it ends with the test's runtime.
struct Legacy {
    address: SocketAddr,
    control: SocketAddr,
    client: Client,
    end: JoinHandle<Result<End, Error>>,
}

fn quick() -> Options {
    Options {
        config: Config::default(),
        log: Log::None,
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        control: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        store: StoreKind::Memory,
        start_delay: Duration::ZERO,
        long_dummy: "10ms..20ms".parse().unwrap(),
        rate_limit: 0,
        queue: 1_000,
        lifetime: None,
        leak_max_bytes: 1,
        seed: 1,
    }
}

impl Legacy {
    async fn start(options: Options) -> Legacy {
        let (tell, told) = oneshot::channel();
        let end = tokio::spawn(serve(options, |addresses| drop(tell.send(addresses.clone()))));
        let addresses = told.await.expect("it serves");
        let client = Client::builder().no_proxy().build().unwrap();
        Legacy { address: addresses.listen[0], control: addresses.control.unwrap(), client, end }
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("http://{}{path}", self.address)).send().await.unwrap()
    }

    async fn text(&self, path: &str) -> (u16, String) {
        let response = self.get(path).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Result<Response> {
        self.client.post(format!("http://{}{path}", self.address)).body(body).send().await
    }

    async fn fault(&self, order: Value) {
        let url = format!("http://{}/fault", self.control);
        let response = self.client.post(url).body(order.to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }

    async fn requests(&self) -> Value {
        let url = format!("http://{}/requests", self.control);
        self.client.get(url).send().await.unwrap().json().await.unwrap()
    }
}

#[tokio::test]
async fn every_endpoint_answers() {
    let legacy = Legacy::start(quick()).await;
    assert!(legacy.text("/").await.1.contains("index_page_is_awesome"));
    assert_eq!(legacy.text("/ping").await, (200, "pong".to_owned()));
    assert!(legacy.text("/config").await.1.contains("test@example.com"));
    let begun = Instant::now();
    assert_eq!(legacy.text("/db_dummy").await.0, 200);
    assert!(begun.elapsed() >= Duration::from_millis(100));
    for path in ["/api/movie/29020", "/api/customer/500000", "/api/session/5000000"] {
        let begun = Instant::now();
        let (status, body) = legacy.text(path).await;
        assert_eq!(status, 200, "{path}");
        assert!(serde_json::from_str::<Value>(&body).unwrap()["id"].is_u64());
        assert!(begun.elapsed() >= Duration::from_millis(24), "{path}");
    }
    for (path, status) in [
        ("/api/movie/29021", 404),
        ("/api/movie/0", 404),
        ("/api/session/-1", 404),
        ("/api/customer/x", 400),
        ("/api/customer/99999999999999999999", 400),
        ("/nothing", 404),
        ("/operation", 405),
    ] {
        assert_eq!(legacy.text(path).await.0, status, "{path}");
    }
    let requests = legacy.requests().await;
    assert_eq!(requests["GET /api/movie/{id}"], 3);
    assert_eq!(requests["GET (unknown)"], 1);
    assert_eq!(requests["GET /ping"], 1);
}

#[tokio::test]
async fn long_dummy_says_when_it_was_made_and_forbids_nothing() {
    let legacy = Legacy::start(quick()).await;
    let response = legacy.get("/long_dummy").await;
    assert!(response.headers().get("cache-control").is_none());
    let one: Value = response.json().await.unwrap();
    let two: Value = legacy.get("/long_dummy").await.json().await.unwrap();
    assert_eq!((&one["answer"], &two["answer"]), (&json!(1), &json!(2)));
    assert!(one["generated_at"].as_u64().unwrap() >= one["started_at"].as_u64().unwrap() + 10);
}

#[tokio::test]
async fn a_session_is_posted_seen_deleted_and_gone() {
    let legacy = Legacy::start(quick()).await;
    let body = json!({"start_time": "2024-05-06T07:08:09+01:00", "customer_id": 7, "movie_id": 8});
    let response = legacy.post("/api/session", body.to_string()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let row: Value = response.json().await.unwrap();
    assert_eq!(row["id"], 5_000_001);
    let joined: Value = legacy.get("/api/session/5000001").await.json().await.unwrap();
    assert_eq!(joined["start_time"], "2024-05-06T06:08:09Z");
    assert_eq!((&joined["customer"]["id"], &joined["movie"]["id"]), (&json!(7), &json!(8)));
    let url = format!("http://{}/api/session/5000001", legacy.address);
    assert_eq!(legacy.client.delete(&url).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(legacy.client.delete(&url).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(legacy.text("/api/session/5000001").await.0, 404);
}

#[tokio::test]
async fn bad_bodies_are_refused_with_a_short_text() {
    let legacy = Legacy::start(quick()).await;
    for (path, body, status) in [
        ("/operation", "", 400),
        ("/operation", "{\"operation\": \"1\"}", 400),
        ("/operation", "{\"operation\": 1.5}", 400),
        ("/operation", "{\"operation\": 7}", 200),
        ("/operation", "{\"operation\": -7}", 200),
        ("/api/session", "[]", 400),
        ("/api/session", "{\"start_time\": \"now\", \"customer_id\": 1, \"movie_id\": 1}", 400),
        (
            "/api/session",
            "{\"start_time\": \"2024-01-01T00:00:00Z\", \"customer_id\": 0, \"movie_id\": 1}",
            400,
        ),
    ] {
        let response = legacy.post(path, body).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path} {body}");
        assert!(response.text().await.unwrap().len() < 100);
    }
    let long = legacy.post("/operation", vec![b' '; 100_000]).await.unwrap();
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn the_session_list_is_streamed_whole_and_in_order() {
    let legacy = Legacy::start(quick()).await;
    // The first row, from the first chunk of an answer that is then left.
    let first = legacy.get("/api/session").await.chunk().await.unwrap().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    let deleted: u64 = first.strip_prefix("[{\"id\":").unwrap().split(',').next().unwrap().parse().unwrap();
    let url = format!("http://{}/api/session/{deleted}", legacy.address);
    assert_eq!(legacy.client.delete(&url).send().await.unwrap().status(), StatusCode::OK);
    let response = legacy.get("/api/session").await;
    assert_eq!(response.headers()["transfer-encoding"], "chunked");
    let body = response.bytes().await.unwrap();
    assert!(body.len() > 20_000_000, "{} bytes", body.len());
    let rows: Vec<Value> = serde_json::from_slice(&body).unwrap();
    assert_eq!(rows.len(), 100_000);
    assert!(rows.iter().all(|row| row["id"] != deleted));
    let key = |row: &Value| {
        let movie = &row["movie"];
        let id = i64::try_from(row["id"].as_u64().unwrap()).unwrap();
        let name = movie["name"].as_str().unwrap().to_owned();
        (-movie["year"].as_i64().unwrap(), name, row["customer"]["id"].as_u64().unwrap(), -id)
    };
    assert!(rows.is_sorted_by(|a, b| key(a) < key(b)));
}

#[tokio::test]
async fn the_other_lists_have_their_rows() {
    let legacy = Legacy::start(quick()).await;
    let movies: Vec<Value> = legacy.get("/api/movie").await.json().await.unwrap();
    assert_eq!(movies.len(), 29_020);
    let customers: Vec<Value> = legacy.get("/api/customer").await.json().await.unwrap();
    assert_eq!((customers.len(), &customers[99_999]["id"]), (100_000, &json!(100_000)));
}

#[tokio::test]
async fn a_sick_process_answers_500_to_everything_until_healed() {
    let legacy = Legacy::start(quick()).await;
    // An operation that makes it sick.
    let response =
        legacy.post("/operation", json!({"operation": 0x5_0000_0000_u64}).to_string()).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(legacy.text("/ping").await, (500, "I feel bad".to_owned()));
    assert_eq!(legacy.text("/api/movie/1").await.0, 500);
    assert_eq!(legacy.text("/nothing").await.0, 500);
    legacy.fault(json!({"kind": "heal"})).await;
    assert_eq!(legacy.text("/ping").await.0, 200);
}

#[tokio::test]
async fn a_hung_process_accepts_and_answers_once_healed() {
    let legacy = Legacy::start(quick()).await;
    legacy.fault(json!({"kind": "hang"})).await;
    let mut stream = TcpStream::connect(legacy.address).await.unwrap();
    stream.write_all(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(200), stream.read(&mut byte)).await.is_err());
    legacy.fault(json!({"kind": "heal"})).await;
    stream.read_exact(&mut byte).await.unwrap();
    assert_eq!(byte, *b"H");
}

#[tokio::test]
async fn a_panic_ends_the_process_without_an_answer() {
    let legacy = Legacy::start(quick()).await;
    let response = legacy.post("/operation", json!({"operation": 0x4_0000_0000_u64}).to_string()).await;
    assert!(response.is_err(), "{response:?}");
    assert_eq!(legacy.end.await.unwrap().unwrap(), End::Panic);
}

#[tokio::test]
async fn a_leak_kills_and_age_ends() {
    let legacy = Legacy::start(quick()).await;
    let response =
        legacy.post("/operation", json!({"operation": 0x3_0000_0000_u64}).to_string()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(legacy.end.await.unwrap().unwrap(), End::Killed);

    let lifetime = Some(Lifetime { span: "1ms".parse().unwrap(), kind: Some(Kind::Exit) });
    let legacy = Legacy::start(Options { lifetime, ..quick() }).await;
    assert!(matches!(legacy.end.await.unwrap().unwrap(), End::Exit(0 | 1)));
}

#[tokio::test]
async fn pings_count_against_the_limit_and_too_many_get_500() {
    let legacy = Legacy::start(Options { rate_limit: 20, queue: 3, ..quick() }).await;
    let pings = futures::future::join_all((0..10).map(|_| legacy.text("/ping"))).await;
    let refused =
        pings.iter().filter(|(status, text)| (*status, text.as_str()) == (500, "too many requests"));
    assert!((1..=6).contains(&refused.count()), "{pings:?}");
    assert_eq!(legacy.requests().await["GET /ping"], 10);
}

#[tokio::test]
async fn the_port_is_closed_until_the_delay_is_over() {
    // A port that was free a moment ago; another process may take it, so only a refusal is asked for.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let delay = Duration::from_millis(300);
    let options = Options { listen: vec![address], control: None, start_delay: delay, ..quick() };
    let (tell, told) = oneshot::channel();
    let begun = Instant::now();
    tokio::spawn(serve(options, |_| tell.send(()).expect("the test waits")));
    tokio::task::yield_now().await;
    assert!(TcpStream::connect(address).await.is_err());
    told.await.unwrap();
    assert!(begun.elapsed() >= delay);
    TcpStream::connect(address).await.unwrap();
}

#[tokio::test]
async fn two_processes_with_one_file_are_one_database_to_their_clients() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreKind::File(dir.path().join("sessions"));
    let one = Legacy::start(Options { store: store.clone(), ..quick() }).await;
    let two = Legacy::start(Options { store, ..quick() }).await;
    let body = json!({"start_time": "2024-01-01T00:00:00Z", "customer_id": 1, "movie_id": 1}).to_string();
    let row: Value = one.post("/api/session", body).await.unwrap().json().await.unwrap();
    assert_eq!(two.text(&format!("/api/session/{}", row["id"])).await.0, 200);
}

#[tokio::test]
async fn a_taken_address_and_postgres_are_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options { listen: vec![taken.local_addr().unwrap()], ..quick() };
    assert!(matches!(serve(options, |_| ()).await, Err(Error::Bind { .. })));
    let options = Options { store: StoreKind::Postgres, ..quick() };
    assert!(matches!(serve(options, |_| ()).await, Err(Error::Store(StoreError::PostgresNotBuilt))));
}
