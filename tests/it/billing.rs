//! Billing as its users meet it: a node with its embedded journal, alone and behind the front.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bed::billing::{Billing, order, value};
use crate::bed::{
    Ask, Client, Node, Origin, Process, Protocol, SELF_SIGNED, Wire, https, ok, route, until, upstream,
};

const KEYED: &str = "retry = \"any\"\nidempotency_key = \"add\"";

async fn front(endpoints: &[std::net::SocketAddr]) -> Node {
    let billing = upstream(endpoints, "") + &route("billing", "/billing/v1/*", KEYED);
    Node::start(&(https(SELF_SIGNED) + &billing)).await
}

/// Each procedure over each protocol, and each change seen by the very next question, whatever protocol that comes over.
#[tokio::test]
async fn every_procedure_through_the_front_over_every_protocol() {
    let directory = tempfile::tempdir().unwrap();
    let billing = Billing::start(directory.path(), "").await;
    let front = front(&[billing.address]).await;
    let mut clients = Vec::new();
    for protocol in Protocol::ALL {
        clients.push(Client::connect(&front, protocol).await);
    }
    for at in 0..clients.len() {
        let (id, other) = (100 + at, (at + 1) % clients.len());
        let account = format!("/billing/v1/accounts/{id}");
        let steps = [
            ("accounts".to_owned(), json!({ "id": id, "balance": 1000, "velocity": 0 }), 201, 1000),
            (format!("accounts/{id}/add_money"), json!({ "amount": 500 }), 200, 1500),
            (format!("accounts/{id}/withdraw"), json!({ "amount": 300 }), 200, 1200),
            (format!("accounts/{id}/update_spending_velocity"), json!({ "velocity": 0 }), 200, 1200),
        ];
        for (path, body, status, balance) in steps {
            let done = clients[at].ask(&order(&path, &body)).await;
            assert!(done.is(status), "{:?} {path}: {done:?}", Protocol::ALL[at]);
            assert_eq!(value(&done)["balance"], balance, "{path}");
            let key = done.get("idempotency-key").expect("the front gave the request a key");
            assert!((1..=64).contains(&key.len()), "{key}");
            let seen = clients[other].get(&account).await;
            assert_eq!(value(&seen)["balance"], balance, "{path} is seen by {:?}", Protocol::ALL[other]);
            assert_eq!(seen.get("age"), None);
            assert_eq!(seen.get("cache-control"), Some("no-store"));
        }
        let refused =
            clients[at].ask(&order(&format!("accounts/{id}/withdraw"), &json!({ "amount": 1201 }))).await;
        assert!(refused.is(422), "{refused:?}");
        let operations = json!({ "operations": [
            { "operation": "add_money", "id": id, "amount": 1 }, { "operation": "get", "id": id } ] });
        let batch = clients[at].ask(&order("batch", &operations)).await;
        assert_eq!(value(&batch)["results"][1]["account"]["balance"], 1201, "{batch:?}");
        let users = clients[at].ask(&order("insert_data", &Value::Null)).await;
        assert_eq!(value(&users)["accounts"].as_array().map(Vec::len), Some(10), "{users:?}");
        let page = clients[at].get("/billing/v1/accounts?after=99&limit=1000").await;
        assert_eq!(value(&page)["accounts"].as_array().map(Vec::len), Some(at + 1), "{page:?}");
        let cluster = clients[at].get("/billing/v1/cluster").await;
        assert_eq!(value(&cluster)["buckets"]["available_rw"], 1000, "{cluster:?}");
        let document = clients[at].get("/billing/v1/openapi.json").await;
        assert!(value(&document)["paths"].is_object(), "{document:?}");
    }
}

/// The routes as they are shipped: whatever is below `/billing` is billing's, also what it does not know, and is never stored.
#[tokio::test]
async fn what_billing_does_not_know_is_not_asked_of_the_legacy_service() {
    let shipped = include_str!("../../config/proxy.toml");
    let routes = &shipped[shipped.find("[[route]]").expect("there are routes")..];
    let directory = tempfile::tempdir().unwrap();
    let billing = Billing::start(directory.path(), "").await;
    let legacy = Origin::answering(|_, _| ok("legacy")).await;
    let upstream =
        |name: &str, address| format!("[[upstream]]\nname = \"{name}\"\nendpoints = [\"{address}\"]\n");
    let upstreams = upstream("bingo", legacy.address) + &upstream("billing", billing.address);
    let front = Node::start(&(https(SELF_SIGNED) + &upstreams + routes)).await;
    let mut client = Client::connect(&front, Protocol::H2).await;
    for path in [
        "/billing",
        "/billing/",
        "/billing/x",
        "/billing/v1",
        "/billing/v1/x",
        "/billing/metrics",
        "/billing?x=1",
    ] {
        for _ in 0..2 {
            let unknown = client.get(path).await;
            assert!(unknown.is(404), "{path}: {unknown:?}");
            assert_eq!(unknown.get("content-type"), Some("application/problem+json"), "{path}");
            assert_eq!(value(&unknown)["type"], "urn:problem-type:forefront:billing:no-such-path", "{path}");
            assert_eq!(
                (unknown.get("cache-control"), unknown.get("age")),
                (Some("no-store"), None),
                "{path}"
            );
        }
    }
    assert!(client.get("/billing/v1/cluster").await.is(200));
    // Its cached route may have been filled meanwhile.
    assert!(legacy.seen().iter().all(|asked| !asked.target().starts_with("/billing")));
    assert_eq!(client.get("/billingx").await.text(), "legacy");
}

#[tokio::test]
async fn the_status_of_a_node_is_shown_by_its_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "a-token-for-clients\n").unwrap();
    let mut billing = Billing::start(directory.path(), &format!("token_file = {token:?}")).await;
    let file = directory.path().join("billing.toml");
    let status = async || {
        let mut command = Process::start(["status".as_ref(), "--config".as_ref(), file.as_os_str()]);
        (command.ended().await.code(), command.stdout().join("\n"), command.log())
    };
    let (code, table, _) = status().await;
    assert_eq!(code, Some(0), "{table}");
    for piece in
        ["forefront  yellow", "LOW_REDUNDANCY", "available_rw  forefront", &billing.address.to_string()]
    {
        assert!(table.contains(piece), "{piece}: {table}");
    }
    std::fs::write(&token, "another-token-of-nobody").unwrap();
    let (code, _, told) = status().await;
    assert!(code == Some(1) && told.contains("401"), "{told}");
    billing.process.signal(libc::SIGTERM);
    billing.process.ended().await;
    let (code, _, told) = status().await;
    assert!(code == Some(1) && told.contains("is the process running"), "{told}");
}

/// One node does what it is told and dies before it answers. The front asks the other, under the same key.
#[tokio::test]
async fn an_answer_lost_behind_the_front_applies_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let billing = Billing::start(directory.path(), "").await;
    billing.create(7, 1000, 0).await;
    let address = billing.address;
    let dying = Origin::scripted(move |request, mut wire: Wire| async move {
        let mut body = Vec::new();
        wire.content(&request.head, &mut body, &mut Vec::new()).await.ok()?;
        let key = request.head.get("idempotency-key").expect("every request has a key").to_owned();
        let ask = order(request.target().strip_prefix("/billing/v1/")?, &serde_json::from_slice(&body).ok()?);
        let mut behind = Wire::connect(address).await;
        behind.send(ask.field("Idempotency-Key", &key).bytes()).await;
        assert!(behind.answer().await.is(200));
        None
    })
    .await;
    let front = front(&[dying.address, billing.address]).await;
    let mut client = Client::connect(&front, Protocol::H2).await;
    let mut done = 0;
    // Until the front has put the dying one aside, which it may do after the first.
    for _ in 0..10 {
        let added = client.ask(&order("accounts/7/add_money", &json!({ "amount": 1 }))).await;
        assert!(added.is(200), "{added:?}");
        done += 1;
    }
    assert!(dying.count() >= 1, "the dying one was never asked");
    assert_eq!(billing.get("accounts/7").await["balance"], 1000 + done);
}

#[tokio::test]
async fn ten_users_are_spread_over_both_shards() {
    let directory = tempfile::tempdir().unwrap();
    let billing = Billing::start(directory.path(), "").await;
    let users = value(&billing.post("insert_data", "k", &Value::Null).await);
    let users = users["accounts"].as_array().unwrap().clone();
    let balances: std::collections::BTreeSet<_> = users.iter().map(|user| user["balance"].as_i64()).collect();
    let velocities: std::collections::BTreeSet<_> =
        users.iter().map(|user| user["velocity"].as_i64()).collect();
    assert_eq!((users.len(), balances.len(), velocities.len()), (10, 10, 10));
    let cluster = billing.get("cluster").await;
    let held: Vec<u64> = cluster["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["accounts"].as_u64().unwrap())
        .collect();
    assert_eq!((held.len(), held.iter().sum()), (2, 10), "{cluster}");
    assert!(held.iter().all(|held| *held > 0), "{cluster}");
    // A second time nothing is created, and nothing is changed but by spending.
    let again = value(&billing.post("insert_data", "again", &Value::Null).await);
    assert_eq!(again["accounts"][3], users[3]);
    assert_eq!(billing.get("accounts/4").await["balance"], 1000);
}

fn webhook(receiver: &Origin) -> String {
    format!("[notifier]\nurl = \"http://{}/off?userID={{user_id}}\"", receiver.address)
}

/// By a withdrawal to exactly zero, whatever the velocity; by spending, at the instant; never for velocity 0.
#[tokio::test]
async fn the_order_leaves_when_the_money_ends() {
    let directory = tempfile::tempdir().unwrap();
    let receiver = Origin::answering(|_, _| ok("")).await;
    let billing = Billing::start(directory.path(), &webhook(&receiver)).await;
    billing.create(1, 1000, 0).await;
    billing.create(2, 250_000, 1_000_000).await;
    billing.create(3, 0, 0).await;
    billing.create(4, 1, 0).await;
    assert!(billing.post("accounts/1/withdraw", "all", &json!({ "amount": 1000 })).await.is(200));
    until("both orders", async || receiver.count() >= 2).await;
    let mut seen: Vec<(String, String)> = receiver
        .seen()
        .iter()
        .map(|order| {
            (order.target().to_owned(), order.head.get("idempotency-key").unwrap_or_default().to_owned())
        })
        .collect();
    seen.sort();
    let of = |user: u64| (format!("/off?userID={user}"), format!("{user}-1"));
    assert_eq!(seen, [of(1), of(2)]);
    until("the deliveries are in the journal", async || {
        let stopped = [billing.get("accounts/1").await, billing.get("accounts/2").await];
        stopped.iter().all(|account| account["state"] == "stopped" && account["overrun"].is_i64())
    })
    .await;
    // Money reopens it, and another end is another order.
    assert!(billing.post("accounts/1/add_money", "more", &json!({ "amount": 5 })).await.is(200));
    assert!(billing.post("accounts/1/withdraw", "again", &json!({ "amount": 5 })).await.is(200));
    until("the third order", async || receiver.count() >= 3).await;
    assert_eq!(receiver.last().head.get("idempotency-key"), Some("1-2"));
    assert_eq!(billing.get("accounts/4").await["depletes_at"], Value::Null);
}

/// What a client was answered before the node was killed.
#[derive(Clone)]
struct Acknowledged {
    path: String,
    key: String,
    body: Value,
    answer: Value,
}

const WORKERS: u64 = 16;
const KILLS: u64 = 6;

/// Killed under load, again and again. Each acknowledged operation gets its first answer once more, and the balances are
/// what the acknowledged operations and those that were on their way can make them.
#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_node_is_killed() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut billing = Arc::new(Billing::start(directory.path(), "").await);
    for id in 0..WORKERS {
        billing.create(id, 1_000_000_000, 0).await;
    }
    let (mut sent, mut acknowledged) = (0, Vec::new());
    let mut balances = vec![1_000_000_000; WORKERS as usize];
    for kill in 0..KILLS {
        let mut workers = JoinSet::new();
        for id in 0..WORKERS {
            workers.spawn(work(billing.address, id, kill, random.u64(..)));
        }
        tokio::time::sleep(Duration::from_millis(random.u64(100..600))).await;
        Arc::try_unwrap(billing).ok().expect("nobody else has it").kill();
        let mut last = Vec::new();
        for done in workers.join_all().await {
            let Done { id, acknowledged: told, unanswered } = done;
            sent += told.len() + 1;
            balances[id as usize] = told
                .last()
                .map_or(balances[id as usize], |last| last.answer["balance"].as_i64().expect("a balance"));
            acknowledged.extend(told);
            last.push((id, unanswered));
        }
        billing = Arc::new(Billing::start(directory.path(), "").await);
        for (id, unanswered) in last {
            // It was done or it was not; asked again under its key, it is done once.
            let Acknowledged { path, key, body, .. } = &unanswered;
            let answer = value(&billing.post(path, key, body).await);
            let amount = body["amount"].as_i64().expect("an amount");
            let moved = if path.ends_with("withdraw") { -amount } else { amount };
            balances[id as usize] += moved;
            assert_eq!(answer["balance"], balances[id as usize], "seed {seed}: {path} {key}");
        }
        for id in 0..WORKERS {
            let balance = &billing.get(&format!("accounts/{id}")).await["balance"];
            assert_eq!(*balance, balances[id as usize], "seed {seed}: account {id}");
        }
    }
    let begun = Instant::now();
    for Acknowledged { path, key, body, answer } in &acknowledged {
        let again = value(&billing.post(path, key, body).await);
        assert_eq!(again, *answer, "seed {seed}: {path} {key}");
    }
    println!(
        "{KILLS} kills, {sent} sent, {} acknowledged and read back in {:?}",
        acknowledged.len(),
        begun.elapsed()
    );
    assert!(acknowledged.len() > KILLS as usize, "there was hardly any load");
}

struct Done {
    id: u64,
    acknowledged: Vec<Acknowledged>,
    unanswered: Acknowledged,
}

/// One operation after the other until one gets no answer.
async fn work(address: std::net::SocketAddr, id: u64, round: u64, seed: u64) -> Done {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut acknowledged = Vec::new();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    loop {
        let what = if random.bool() { "add_money" } else { "withdraw" };
        let mut operation = Acknowledged {
            path: format!("accounts/{id}/{what}"),
            key: format!("{id}-{round}-{}", acknowledged.len()),
            body: json!({ "amount": random.i64(1..1000) }),
            answer: Value::Null,
        };
        let Acknowledged { path, key, body, .. } = &operation;
        let url = format!("http://{address}/billing/v1/{path}");
        let request = client.post(url).header("idempotency-key", key).json(body);
        let answered = async { request.send().await?.error_for_status()?.json().await };
        match answered.await {
            Ok(answer) => {
                operation.answer = answer;
                acknowledged.push(operation);
            }
            Err(_) => return Done { id, acknowledged, unanswered: operation },
        }
    }
}

/// The end of a node that is told to stop: what is in flight is answered, and the journal opens again.
#[tokio::test]
async fn a_node_told_to_stop_answers_what_is_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let mut billing = Billing::start(directory.path(), "").await;
    billing.create(1, 10, 0).await;
    let mut wire = Wire::connect(billing.address).await;
    let head =
        "POST /billing/v1/accounts/1/add_money HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    wire.send(format!("{head}Idempotency-Key: last\r\nContent-Length: 12\r\n\r\n{{\"amount\"")).await;
    // The head is with the node once another connection was served after it.
    assert!(billing.ask(&Ask::get("/ping")).await.is(200));
    billing.process.signal(libc::SIGTERM);
    billing.process.logged("draining").await;
    wire.send(":3}").await;
    let answer = wire.answer().await;
    assert!(answer.is(200), "{answer:?}");
    assert_eq!(billing.process.ended().await.code(), Some(0));
    let billing = Billing::start(directory.path(), "").await;
    assert_eq!(billing.get("accounts/1").await["balance"], 13);
}
