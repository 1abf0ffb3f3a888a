//! The door over real sockets, before shards in memory that fail as told.

mod exact;
pub(in crate::billing) mod fake;
mod nodes;
mod schema;

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::billing::shard::Failure;
use fake::Fake;

const TOKEN: &str = "0123456789abcdef0123";
const PEER: &str = "peer-0123456789abcdef";

struct Scene {
    address: SocketAddr,
    fake: Fake,
    drain: Drain,
    closing: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

struct Answer {
    status: u16,
    headers: axum::http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("took too long")
}

impl Scene {
    async fn new(fake: Fake, client: Option<&str>, limits: Limits) -> Scene {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        fake.found_at(&address.to_string());
        let peer = Token::new(PEER);
        let desk = Desk::new(fake.clone(), Peers::new(peer.as_ref()));
        let gate = Gate { client: client.and_then(Token::new), peer };
        let drain = Drain::new();
        let api = Api::new(desk, gate, limits, drain.clone(), crate::telemetry::registry().unwrap()).unwrap();
        let closing = CancellationToken::new();
        let server = tokio::spawn(api.serve(vec![listener], closing.clone()));
        Scene { address, fake, drain, closing, server }
    }

    async fn plain() -> Scene {
        Scene::new(Fake::alone(), None, Limits::default()).await
    }

    async fn send(&self, method: Method, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        let mut request = reqwest::Client::new()
            .request(method, format!("http://{}{path}", self.address))
            .body(body.to_owned());
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let response: Response = soon(request.send()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        let fields = [("content-type", "application/json"), ("idempotency-key", key)];
        self.send(Method::POST, &format!("/billing/v1/{path}"), &fields, &body.to_string()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// Sends the bytes and reads until the server closes, or sends nothing for long.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        let _ = soon(stream.read_to_end(&mut text)).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    async fn stop(self) {
        self.closing.cancel();
        soon(self.server).await.unwrap();
    }
}

fn of(id: u64, balance: i64) -> Value {
    json!({ "id": id, "balance": balance, "velocity": 0, "state": "active", "version": 1, "depletes_at": null,
        "overrun": null })
}

#[tokio::test]
async fn an_account_from_its_first_to_its_last_coin() {
    let scene = Scene::plain().await;
    let created = scene.post("accounts", "a", json!({ "id": 4, "balance": 1000, "velocity": 0 })).await;
    assert_eq!((created.status, created.json()), (201, of(4, 1000)));
    assert_eq!(created.headers["location"], "/billing/v1/accounts/4");
    assert_eq!(created.headers["cache-control"], "no-store");
    assert_eq!(scene.post("accounts/4/add_money", "b", json!({ "amount": 500 })).await.json(), of(4, 1500));
    // The same key is the same operation.
    assert_eq!(scene.post("accounts/4/add_money", "b", json!({ "amount": 500 })).await.json(), of(4, 1500));
    assert_eq!(scene.post("accounts/4/add_money", "b", json!({ "amount": 501 })).await.status, 409);
    assert_eq!(scene.post("accounts/4/withdraw", "c", json!({ "amount": 1501 })).await.status, 422);
    let fast =
        scene.post("accounts/4/update_spending_velocity", "d", json!({ "velocity": 100 })).await.json();
    assert_eq!(fast["depletes_at"].as_u64(), Some(fake::START + 15_000_000));
    scene.fake.advance(5_000_000);
    assert_eq!(scene.get("/billing/v1/accounts/4").await.json()["balance"], 1000);
    let empty = scene.post("accounts/4/withdraw", "e", json!({ "amount": 1000 })).await.json();
    assert_eq!(
        (&empty["state"], &empty["balance"], &empty["depletes_at"]),
        (&json!("stopped"), &json!(0), &Value::Null)
    );
    let again = scene.post("accounts/4/add_money", "f", json!({ "amount": 1 })).await.json();
    assert_eq!((&again["state"], &again["version"]), (&json!("active"), &json!(2)));
    scene.stop().await;
}

#[tokio::test]
async fn a_key_is_made_and_told_where_none_was_sent() {
    let scene = Scene::plain().await;
    let fields = [("content-type", "application/json; charset=utf-8")];
    let body = json!({ "id": 1, "balance": 1, "velocity": 0 }).to_string();
    let created = scene.send(Method::POST, "/billing/v1/accounts", &fields, &body).await;
    let key = created.headers["idempotency-key"].to_str().unwrap().to_owned();
    assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    assert_eq!(scene.send(Method::POST, "/billing/v1/accounts", &fields, &body).await.status, 409);
    assert_eq!(
        scene.post("accounts", &key, json!({ "id": 1, "balance": 1, "velocity": 0 })).await.status,
        201
    );
    // Also where nobody knows, for then it is needed.
    scene.fake.fail(Failure::Unknown);
    let unknown =
        scene.send(Method::POST, "/billing/v1/accounts/1/add_money", &fields, r#"{"amount":1}"#).await;
    assert_eq!(unknown.status, 504);
    assert_eq!(unknown.headers["idempotency-key"].len(), 32);
    assert!(unknown.json()["detail"].as_str().unwrap().contains("the same Idempotency-Key"));
    scene.stop().await;
}

#[tokio::test]
async fn the_test_users_are_inserted_once() {
    let scene = Scene::plain().await;
    scene.post("accounts", "mine", json!({ "id": 7, "balance": 5, "velocity": 0 })).await;
    let inserted = scene.send(Method::POST, "/billing/v1/insert_data", &[], "").await;
    assert_eq!(inserted.status, 200);
    let accounts = inserted.json()["accounts"].as_array().unwrap().clone();
    assert_eq!(accounts.len(), 10);
    assert_eq!((&accounts[3], &accounts[6]), (&of(4, 1000), &of(7, 5)));
    scene.post("accounts/4/add_money", "more", json!({ "amount": 1 })).await;
    let again = scene.send(Method::POST, "/billing/v1/insert_data", &[], "").await;
    assert_eq!(again.json()["accounts"][3], of(4, 1001));
    let page = scene.get("/billing/v1/accounts?limit=4&after=3").await.json();
    assert_eq!((page["accounts"][0]["id"].as_u64(), page["next"].as_u64()), (Some(4), Some(7)));
    // Something may be left out while buckets move.
    scene.fake.moves(true);
    let moving = scene.get("/billing/v1/accounts?limit=4&after=3").await;
    assert_eq!((moving.status, moving.json()["detail"].as_str()), (503, Some("buckets are being moved")));
    scene.fake.moves(false);
    let last = scene.get("/billing/v1/accounts?after=7").await.json();
    assert_eq!((last["accounts"].as_array().unwrap().len(), &last["next"]), (3, &Value::Null));
    scene.stop().await;
}

#[tokio::test]
async fn a_batch_goes_on_where_it_stopped() {
    let scene = Scene::plain().await;
    let operations = json!({ "operations": [
        { "operation": "create", "id": 1, "balance": 10, "velocity": 0 },
        { "operation": "withdraw", "id": 2, "amount": 1 },
        { "operation": "withdraw", "id": 1, "amount": 11 },
        { "operation": "add_money", "id": 1, "amount": 5 },
        { "operation": "get", "id": 1 },
    ] });
    scene.fake.fail_after(2, Failure::Unknown);
    let cut = scene.post("batch", "k", operations.clone()).await;
    let statuses = |answer: &Answer| -> Vec<u64> {
        answer.json()["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["status"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(cut.status, 200);
    assert_eq!(
        statuses(&cut).into_iter().filter(|status| *status > 500).collect::<Vec<_>>().len(),
        3,
        "{}",
        cut.text
    );
    scene.fake.heal();
    for _ in 0..2 {
        let whole = scene.post("batch", "k", operations.clone()).await;
        assert_eq!(statuses(&whole), [201, 404, 422, 200, 200]);
        assert_eq!(whole.json()["results"][4]["account"], of(1, 15));
    }
    scene.stop().await;
}

#[tokio::test]
async fn any_node_takes_any_request() {
    let (one, other) = Fake::pair();
    let (one, other) = (
        Scene::new(one, Some(TOKEN), Limits::default()).await,
        Scene::new(other, Some(TOKEN), Limits::default()).await,
    );
    let token = format!("Bearer {TOKEN}");
    let fields = [("content-type", "application/json"), ("authorization", token.as_str())];
    let send = async |scene: &Scene, method, path: &str, body: &str| {
        let answer = scene.send(method, &format!("/billing/v1/{path}"), &fields, body).await;
        assert!(answer.status < 300, "{path}: {} {}", answer.status, answer.text);
        answer.json()
    };
    assert_eq!(send(&one, Method::POST, "insert_data", "").await["accounts"].as_array().unwrap().len(), 10);
    assert!(one.fake.accounts() > 0 && other.fake.accounts() > 0);
    assert_eq!(one.fake.accounts() + other.fake.accounts(), 10);
    for scene in [&one, &other] {
        let ids: Vec<u64> = send(scene, Method::GET, "accounts?limit=9", "").await["accounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|account| account["id"].as_u64().unwrap())
            .collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        for id in 1..=10 {
            send(scene, Method::POST, &format!("accounts/{id}/add_money"), r#"{"amount":1}"#).await;
            send(scene, Method::GET, &format!("accounts/{id}"), "").await;
        }
        let operations: Vec<Value> =
            (1..=10).map(|id| json!({ "operation": "add_money", "id": id, "amount": 10 })).collect();
        let results =
            send(scene, Method::POST, "batch", &json!({ "operations": operations }).to_string()).await;
        assert!(results["results"].as_array().unwrap().iter().all(|one| one["status"] == 200), "{results}");
    }
    assert_eq!(send(&one, Method::GET, "accounts/4", "").await["balance"], 1022);
    // What the owner refuses is refused the same way by the other.
    for scene in [&one, &other] {
        for id in 1..=10 {
            let path = format!("/billing/v1/accounts/{id}/withdraw");
            assert_eq!(scene.send(Method::POST, &path, &fields, r#"{"amount":99999999}"#).await.status, 422);
        }
    }
    // Gone, its accounts are nobody's for a moment; the others are served.
    let gone = other.fake.clone();
    other.stop().await;
    let statuses: Vec<u16> = futures::future::join_all((1..=10).map(async |id| {
        one.send(Method::GET, &format!("/billing/v1/accounts/{id}"), &fields, "").await.status
    }))
    .await;
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), gone.accounts(), "{statuses:?}");
    assert_eq!(one.send(Method::GET, "/billing/v1/accounts", &fields, "").await.status, 503);
    one.stop().await;
}

#[tokio::test]
async fn a_request_is_forwarded_once() {
    let scene = Scene::plain().await;
    let here = scene.address.to_string();
    scene.fake.fail(Failure::Elsewhere { node: "b".into(), advertise: here });
    let answer = scene.post("accounts/1/add_money", "k", json!({ "amount": 1 })).await;
    assert_eq!(answer.status, 508);
    let batch = json!({ "operations": [{ "operation": "get", "id": 1 }] });
    assert_eq!(scene.post("batch", "k", batch).await.json()["results"][0]["status"], 508);
    // A node whose address is nonsense, or where nobody is.
    for advertise in ["", "no address", "127.0.0.1:1"] {
        scene.fake.fail(Failure::Elsewhere { node: "b".into(), advertise: advertise.into() });
        assert_eq!(
            scene.post("accounts/1/add_money", "k", json!({ "amount": 1 })).await.status,
            503,
            "{advertise}"
        );
    }
    scene.stop().await;
}

/// The owner takes the request and then says nothing; this node takes its shard over meanwhile, and does it.
#[tokio::test]
async fn who_takes_over_answers_in_place_of_a_frozen_owner() {
    let scene = Scene::plain().await;
    scene.post("accounts", "create", json!({ "id": 1, "balance": 10, "velocity": 0 })).await;
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let advertise = frozen.local_addr().unwrap().to_string();
    scene.fake.fail(Failure::Elsewhere { node: "b".into(), advertise });
    let fake = scene.fake.clone();
    let takes = async {
        let mut asked = [frozen.accept().await.unwrap().0, frozen.accept().await.unwrap().0];
        for stream in &mut asked {
            stream.read_u8().await.unwrap();
        }
        fake.takes_over();
        asked
    };
    let add = json!({ "operation": "add_money", "id": 1, "amount": 1 });
    let many = json!({ "operations": [add, { "operation": "get", "id": 1 }] });
    let (one, many, _asked) = tokio::join!(
        scene.post("accounts/1/add_money", "a", json!({ "amount": 1 })),
        scene.post("batch", "b", many),
        takes,
    );
    assert_eq!(one.status, 200, "{}", one.text);
    let many = many.json();
    assert!(many["results"].as_array().unwrap().iter().all(|one| one["status"] == 200), "{many}");
    assert_eq!(scene.get("/billing/v1/accounts/1").await.json()["balance"], 12);
    scene.stop().await;
}

/// A bucket has moved here, and this node forwards by an old map: it looks again, and knows.
#[tokio::test]
async fn who_was_wrong_looks_again() {
    let (scene, other) = (Scene::plain().await, Scene::plain().await);
    scene.post("accounts", "create", json!({ "id": 1, "balance": 10, "velocity": 0 })).await;
    let elsewhere =
        |scene: &Scene| Failure::Elsewhere { node: "?".into(), advertise: scene.address.to_string() };
    other.fake.fail(elsewhere(&scene));
    scene.fake.mistakes(elsewhere(&other));
    let added = scene.post("accounts/1/add_money", "a", json!({ "amount": 1 })).await;
    assert_eq!((added.status, added.json()), (200, of(1, 11)));
    scene.fake.mistakes(elsewhere(&other));
    let add = json!({ "operation": "add_money", "id": 1, "amount": 1 });
    let operations = json!({ "operations": [add, { "operation": "get", "id": 1 }, add] });
    let results = scene.post("batch", "b", operations).await.json();
    let balances: Vec<&Value> =
        results["results"].as_array().unwrap().iter().map(|one| &one["account"]["balance"]).collect();
    assert_eq!(balances, [12, 12, 13], "{results}");
    scene.fake.mistakes(elsewhere(&other));
    assert_eq!(scene.post("cluster/move", "c", json!({ "bucket": 7, "to_shard": 1 })).await.status, 200);
    other.stop().await;
    scene.stop().await;
}

#[tokio::test]
async fn ping_tells_whether_writes_are_taken() {
    let scene = Scene::plain().await;
    let ping = scene.get("/ping").await;
    assert_eq!((ping.status, ping.text.as_str()), (200, "pong"));
    scene.fake.able(false);
    assert_eq!(scene.get("/ping").await.status, 500);
    scene.fake.able(true);
    scene.drain.begin();
    assert_eq!(scene.get("/ping").await.status, 500);
    let metrics = scene.get("/metrics").await;
    let connections = format!("{} 1", "forefront_billing_http_connections");
    assert!(metrics.text.contains(&connections), "{}", metrics.text);
    scene.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_told_so() {
    let scene = Scene::plain().await;
    for path in
        ["/", "/billing", "/billing/v1/", "/billing/v1/accounts/", "/billing/v1/accounts/1/add_money/"]
    {
        let answer = scene.get(path).await;
        assert_eq!(
            (answer.status, &answer.json()["type"]),
            (404, &json!("urn:problem-type:forefront:billing:no-such-path"))
        );
        assert_eq!(answer.headers["cache-control"], "no-store");
    }
    for (method, path, allow) in [
        (Method::DELETE, "/billing/v1/accounts", "GET,HEAD,POST"),
        (Method::GET, "/billing/v1/accounts/1/withdraw", "POST"),
        (Method::PUT, "/ping", "GET,HEAD"),
    ] {
        let answer = scene.send(method, path, &[], "").await;
        assert_eq!((answer.status, answer.headers["allow"].to_str().unwrap()), (405, allow));
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    scene.stop().await;
}

#[tokio::test]
async fn heads_and_silence_are_bounded() {
    let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
    let scene = Scene::new(Fake::alone(), None, limits).await;
    let long = format!("GET /ping HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert!(scene.raw(long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    assert!(scene.raw(b"nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    // Both end by themselves.
    scene.raw(b"GET /ping HTTP/1.1\r\nHo").await;
    let idle = scene.raw(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(idle.starts_with("HTTP/1.1 200 ") && idle.ends_with("pong"), "{idle}");
    scene.stop().await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let limits = Limits { unread_timeout: Duration::from_millis(200), ..Limits::default() };
    let scene = Scene::new(Fake::alone(), None, limits).await;
    let mut deaf = TcpStream::connect(scene.address).await.unwrap();
    let asked = b"GET /billing/v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    // Ends with an error once the server has; what the systems between keep is bounded too.
    let given_up = async { while deaf.write_all(&asked).await.is_ok() {} };
    soon(given_up).await;
    assert_eq!(scene.get("/ping").await.status, 200);
    scene.stop().await;
}

#[tokio::test]
async fn a_request_that_came_is_finished_at_the_end() {
    let scene = Scene::plain().await;
    scene.fake.hold();
    let address = scene.address;
    let asked =
        tokio::spawn(async move { reqwest::get(format!("http://{address}/billing/v1/accounts/1")).await });
    while scene.drain.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    scene.closing.cancel();
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(refused).await;
    scene.fake.heal();
    assert_eq!(soon(asked).await.unwrap().unwrap().status(), 404);
    soon(scene.drain.idle()).await;
    scene.stop().await;
}

/// What operators ask goes to the node that owns, whichever they ask, once.
#[tokio::test]
async fn operators_ask_any_node() {
    let scene = Scene::plain().await;
    let body = json!({ "buckets": [5, 3, 5], "to_shard": 1 });
    let moved = scene.post("cluster/move", "k", body.clone()).await;
    assert_eq!((moved.status, moved.json()), (200, json!({ "buckets": [3, 5], "to_shard": 1 })));
    let refused = scene.post("cluster/move", "k", json!({ "buckets": [0, 1], "to_shard": 1 })).await;
    assert_eq!(refused.status, 422);
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.starts_with("1 of 2 buckets are there; bucket 0: ") && detail.contains("1073741824"),
        "{detail}"
    );
    // Here it is another node's: that is asked, and finds that it is not its own either.
    let other = Scene::plain().await;
    let advertise = other.address.to_string();
    scene.fake.fail(Failure::Elsewhere { node: "b".into(), advertise: advertise.clone() });
    assert_eq!(scene.post("cluster/move", "k", body.clone()).await.status, 200);
    let refused = scene.post("cluster/move", "k", json!({ "buckets": [0], "to_shard": 1 })).await;
    assert_eq!(refused.status, 422);
    let told = refused.json()["detail"].as_str().unwrap().to_owned();
    assert_eq!(told, detail.replace("1 of 2", "0 of 1"), "as the node that has it would say it");
    let unknown = scene.post("cluster/hand_over", "k", json!({ "shard": 1, "to": "nobody" })).await;
    assert_eq!(
        (unknown.status, &unknown.json()["type"]),
        (422, &json!("urn:problem-type:forefront:billing:unknown-node"))
    );
    let give = json!({ "shard": 1, "to": "a" });
    assert_eq!(scene.post("cluster/hand_over", "k", give.clone()).await.status, 200);
    other.fake.fail(Failure::Elsewhere { node: "a".into(), advertise: scene.address.to_string() });
    for (path, body) in [("cluster/move", &body), ("cluster/hand_over", &give)] {
        assert_eq!(scene.post(path, "k", body.clone()).await.status, 508, "{path}");
    }
    // What may be under way is not told as if nothing was done.
    other.fake.fail(Failure::Unknown);
    for (path, body) in [("cluster/move", &body), ("cluster/hand_over", &give)] {
        assert_eq!(scene.post(path, "k", body.clone()).await.status, 504, "{path}");
    }
    let gone = other.address;
    other.stop().await;
    scene.fake.fail(Failure::Elsewhere { node: "b".into(), advertise: gone.to_string() });
    assert_eq!(scene.post("cluster/hand_over", "k", give).await.status, 503);
    scene.stop().await;
}

/// What shards of different nodes ask of each other.
#[tokio::test]
async fn nodes_send_buckets_and_ask_for_shards() {
    use crate::billing::domain::{Refusal, State};
    use crate::billing::shard::Neighbours;
    let (_, odd) = Fake::pair();
    let scene = Scene::new(odd, Some(TOKEN), Limits { image_bytes: 1000, ..Limits::default() }).await;
    let advertise = scene.address.to_string();
    let peers = Peers::new(Token::new(PEER).as_ref());
    let adopt = |generation, image: Vec<u8>| peers.adopt(&advertise, 1, generation, image.into());
    // An even bucket, which it does not have; and once more.
    for _ in 0..2 {
        adopt(2, State::empty_image(4)).await.unwrap();
    }
    for image in [b"no image".to_vec(), State::empty_image(4)[..5].to_vec(), State::empty_image(1)] {
        let refused = adopt(7, image).await;
        assert!(matches!(refused, Err(Failure::Refused(Refusal::BadBucket))), "{refused:?}");
    }
    assert!(matches!(adopt(2, vec![0; 1001]).await, Err(Failure::Refused(_))));
    peers.give(&advertise, 1, "c").await.unwrap();
    scene.fake.fail(Failure::Busy { retry_after: Duration::from_secs(3) });
    let busy = peers.give(&advertise, 1, "c").await;
    assert!(
        matches!(busy, Err(Failure::Busy { retry_after }) if retry_after == Duration::from_secs(3)),
        "{busy:?}"
    );
    scene.fake.fail(Failure::Unknown);
    assert!(matches!(adopt(3, State::empty_image(6)).await, Err(Failure::Unknown)));
    scene.fake.heal();
    // Neither a client nor a stranger may.
    let token = format!("Bearer {TOKEN}");
    let stranger = Peers::new(Token::new("somebody-else-altogether").as_ref());
    let refused = stranger.adopt(&advertise, 1, 9, State::empty_image(8).into()).await;
    assert!(matches!(refused, Err(Failure::Busy { .. })), "{refused:?}");
    for path in ["adopt?shard=1&generation=9", "give"] {
        let fields = [("authorization", token.as_str()), ("content-type", "application/json")];
        let path = format!("/billing/v1/cluster/{path}");
        let answer = scene.send(Method::POST, &path, &fields, r#"{"shard":1,"to":"c"}"#).await;
        assert_eq!(answer.status, 403, "{path}");
    }
    for query in [
        "",
        "?",
        "?shard=1",
        "?shard=1&shard=1&generation=2",
        "?shard=-1&generation=2",
        "?shard=1&generation=x",
    ] {
        let path = format!("/billing/v1/cluster/adopt{query}");
        assert_eq!(
            scene.send(Method::POST, &path, &[("x-forefront-peer", PEER)], "").await.status,
            400,
            "{query}"
        );
    }
    scene.stop().await;
    assert!(matches!(adopt(2, State::empty_image(4)).await, Err(Failure::Busy { .. })));
}

#[tokio::test]
async fn a_history_is_paged_and_asked_of_the_owner() {
    let (here, there) = Fake::pair();
    let scene = Scene::new(here, None, Limits::default()).await;
    let other = Scene::new(there, None, Limits::default()).await;
    // One account of each node.
    for id in [1, 2] {
        scene.post("accounts", "a", json!({ "id": id, "balance": 10, "velocity": 0 })).await;
        scene.post(&format!("accounts/{id}/withdraw"), "b", json!({ "amount": 10 })).await;
        scene.post(&format!("accounts/{id}/add_money"), "c", json!({ "amount": 3 })).await;
        for asked in [&scene, &other] {
            let path = format!("/billing/v1/accounts/{id}/history");
            let first = asked.get(&format!("{path}?limit=2")).await.json();
            let next = first["next"].as_str().expect("there is more").to_owned();
            assert_eq!(next, first["lines"][1]["id"], "the id of the last line");
            let second = asked.get(&format!("{path}?limit=2&before={next}")).await.json();
            let newest = first["lines"][0]["id"].as_str().unwrap();
            let rest = asked.get(&format!("{path}?before={newest}")).await.json();
            assert_eq!(rest["lines"].as_array().map(Vec::len), Some(3), "what is older than a line");
            assert_eq!((&second["next"], &second["behind"]), (&Value::Null, &json!(false)));
            let lines: Vec<Value> = [first, second]
                .iter()
                .flat_map(|page| page["lines"].as_array().unwrap().clone())
                .map(|line| {
                    json!([line["kind"], line["amount"], line["balance"], line["version"], line["key"]])
                })
                .collect();
            assert_eq!(
                lines,
                [
                    json!(["money_added", 3, 3, 2, "c"]),
                    json!(["depleted", 0, 0, 1, "b"]),
                    json!(["withdrawn", 10, 0, 1, "b"]),
                    json!(["created", 10, 10, 1, "a"]),
                ]
            );
        }
    }
    assert_eq!(scene.get("/billing/v1/accounts/3/history").await.status, 404);
    scene.stop().await;
    other.stop().await;
}
