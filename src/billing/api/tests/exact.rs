//! The document says what the server does, all of it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::schema::{check, document, resolve};
use super::*;
use crate::billing::api::json::{AmountBody, CreateBody, VelocityBody, batch, object};
use crate::billing::api::routes::operators::{HandOverBody, MoveBody};
use crate::billing::domain::{Key, State};

/// What it takes to get one documented status of one operation.
#[derive(Default)]
struct Recipe {
    token: bool,
    limits: Limits,
    failure: Option<Failure>,
    hold: bool,
    unable: bool,
    /// Operations before it, under the same key.
    before: Vec<(&'static str, Value)>,
    path: Option<&'static str>,
    fields: Vec<(&'static str, &'static str)>,
    /// Instead of the usual one.
    body: Option<String>,
    media: Option<&'static str>,
    /// The content is said to be longer than it is.
    stalls: bool,
}

const KEY: &str = "the-key";

/// A request that succeeds: its path and content.
fn good(operation: &str) -> (&'static str, Option<Value>) {
    match operation {
        "list" => ("/billing/v1/accounts?limit=3", None),
        "create" => ("/billing/v1/accounts", Some(json!({ "id": 99, "balance": 5, "velocity": 1 }))),
        "get" => ("/billing/v1/accounts/4", None),
        "history" => ("/billing/v1/accounts/4/history?limit=3&before=0-65535-0", None),
        "add_money" => ("/billing/v1/accounts/4/add_money", Some(json!({ "amount": 7 }))),
        "withdraw" => ("/billing/v1/accounts/4/withdraw", Some(json!({ "amount": 7 }))),
        "update_spending_velocity" => {
            ("/billing/v1/accounts/4/update_spending_velocity", Some(json!({ "velocity": 3 })))
        }
        "batch" => (
            "/billing/v1/batch",
            Some(json!({ "operations": [{ "operation": "get", "id": 4 }, { "operation": "get", "id": 77 },
                { "operation": "create", "id": 98, "balance": 1, "velocity": 1 }] })),
        ),
        "insert_data" => ("/billing/v1/insert_data", None),
        "cluster" => ("/billing/v1/cluster", None),
        "move" => ("/billing/v1/cluster/move", Some(json!({ "buckets": [17, 3], "to_shard": 1 }))),
        "hand_over" => ("/billing/v1/cluster/hand_over", Some(json!({ "shard": 0, "to": "a" }))),
        // An older one than the node has: nothing is done.
        "adopt" => ("/billing/v1/cluster/adopt?shard=0&generation=1", None),
        "give" => ("/billing/v1/cluster/give", Some(json!({ "shard": 0, "to": "b" }))),
        "openapi" => ("/billing/v1/openapi.json", None),
        "ping" => ("/ping", None),
        "metrics" => ("/metrics", None),
        other => panic!("what succeeds for {other}?"),
    }
}

fn recipe(operation: &str, status: u16) -> Recipe {
    let elsewhere = || Failure::Elsewhere { node: "b".into(), advertise: "127.0.0.1:1".into() };
    let mut recipe = Recipe::default();
    match (status, operation) {
        (200, "adopt") => recipe.body = Some(empty_image()),
        (200 | 201, _) => {}
        (400, "adopt") => recipe.path = Some("/billing/v1/cluster/adopt?shard=0"),
        (400, "list") => recipe.path = Some("/billing/v1/accounts?limit=0"),
        (400, "history") => recipe.path = Some("/billing/v1/accounts/4/history?before=x"),
        (400, "get") => recipe.path = Some("/billing/v1/accounts/-1"),
        (400, _) => recipe.body = Some("[1]".to_owned()),
        (401, _) => recipe.token = true,
        (403, _) => recipe.fields.push(("x-forefront-peer", "somebody-else-altogether")),
        (404, "get") => recipe.path = Some("/billing/v1/accounts/77"),
        (404, "history") => recipe.path = Some("/billing/v1/accounts/77/history"),
        (404, "add_money") => recipe.path = Some("/billing/v1/accounts/77/add_money"),
        (404, "withdraw") => recipe.path = Some("/billing/v1/accounts/77/withdraw"),
        (404, "update_spending_velocity") => {
            recipe.path = Some("/billing/v1/accounts/77/update_spending_velocity");
        }
        (408, _) => {
            recipe.limits.body_timeout = Duration::from_millis(50);
            recipe.stalls = true;
        }
        (409, "create") => recipe.body = Some(json!({ "id": 4, "balance": 1, "velocity": 1 }).to_string()),
        (409, _) => recipe.before.push(("accounts/4/withdraw", json!({ "amount": 1 }))),
        (413, _) => {
            recipe.limits = Limits { body_bytes: 100, batch_bytes: 100, image_bytes: 100, ..recipe.limits };
            recipe.body = Some(" ".repeat(101));
        }
        (415, _) => recipe.media = Some("application/x-www-form-urlencoded"),
        (422, "move") => recipe.body = Some(json!({ "bucket": 0, "to_shard": 1 }).to_string()),
        (422, "hand_over" | "give") => recipe.body = Some(json!({ "shard": 7, "to": "a" }).to_string()),
        (422, _) => recipe.body = Some(json!({ "amount": i64::MAX }).to_string()),
        (500, "ping") => recipe.unable = true,
        (503, _) => recipe.limits.in_flight = 0,
        (504, _) => {
            recipe.limits.answer_timeout = Duration::from_millis(50);
            recipe.hold = true;
            recipe.body = (operation == "adopt").then(empty_image);
        }
        (508, _) => {
            recipe.failure = Some(elsewhere());
            recipe.fields.push(("x-forefront-peer", PEER));
        }
        _ => panic!("how does {operation} give {status}?"),
    }
    recipe
}

/// Of a bucket without accounts, which is ASCII.
fn empty_image() -> String {
    String::from_utf8(State::empty_image(7)).unwrap()
}

async fn cook(operation: &str, method: &str, recipe: Recipe) -> Answer {
    let Recipe { token, limits, failure, hold, unable, before, path, mut fields, body, media, stalls } =
        recipe;
    let scene = Scene::new(Fake::alone(), token.then_some(TOKEN), limits).await;
    if !token && limits.in_flight > 0 && limits.body_bytes > 100 {
        scene.send(Method::POST, "/billing/v1/insert_data", &[], "").await;
    }
    for (path, body) in before {
        assert_eq!(scene.post(path, KEY, body).await.status, 200);
    }
    if let Some(failure) = failure {
        scene.fake.fail(failure);
    }
    if hold {
        scene.fake.hold();
    }
    scene.fake.able(!unable);
    let (usual_path, usual_body) = good(operation);
    let path = path.unwrap_or(usual_path);
    let body = body.or(usual_body.map(|body| body.to_string())).unwrap_or_default();
    fields.push(("idempotency-key", KEY));
    if matches!(operation, "adopt" | "give") && !fields.iter().any(|(name, _)| *name == "x-forefront-peer") {
        fields.push(("x-forefront-peer", PEER));
    }
    let media = media.unwrap_or("application/json");
    let answer = if stalls {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {media}\r\ncontent-length: 9\r\n{fields}\
             connection: close\r\n\r\n{{"
        );
        parsed(&scene.raw(head.as_bytes()).await)
    } else {
        if !body.is_empty() {
            fields.push(("content-type", media));
        }
        scene.send(method.parse().unwrap(), path, &fields, &body).await
    };
    scene.fake.heal();
    scene.stop().await;
    answer
}

fn parsed(raw: &str) -> Answer {
    let (head, text) = raw.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {raw:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let field = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.parse().unwrap(), value.parse().unwrap())
    };
    Answer {
        status,
        headers: lines.map(field).collect::<Vec<(axum::http::HeaderName, _)>>().into_iter().collect(),
        text: text.to_owned(),
    }
}

/// Fields, media type and content must be as documented.
fn assert_documented(document: &Value, response: &Value, answer: &Answer, what: &str) {
    let response = resolve(document, response);
    assert_eq!(answer.headers["cache-control"], "no-store", "{what}");
    let empty = serde_json::Map::new();
    let headers = response.get("headers").and_then(Value::as_object).unwrap_or(&empty);
    for (name, header) in headers {
        let value = answer.headers.get(name.as_str()).unwrap_or_else(|| panic!("{what} lacks {name}"));
        let text = value.to_str().unwrap();
        let schema = resolve(document, &header["schema"]);
        let value = if schema["type"] == "integer" { text.parse().unwrap() } else { json!(text) };
        check(document, schema, &value).unwrap_or_else(|why| panic!("{what}: {name}: {why}"));
    }
    let content = response["content"].as_object().unwrap();
    let media = answer.headers["content-type"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let media = content.get(&media).unwrap_or_else(|| panic!("{what} is {media}"));
    let text = json!(answer.text);
    let value = if media["schema"].get("type") == Some(&json!("string")) { text } else { answer.json() };
    check(document, &media["schema"], &value).unwrap_or_else(|why| panic!("{what}: {why}"));
    if let Some(status) = value.get("status").and_then(Value::as_u64) {
        assert_eq!(status, u64::from(answer.status), "{what}");
    }
}

#[tokio::test]
async fn every_documented_status_is_given_as_documented() {
    let document = document();
    let mut walked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            let name = operation["operationId"].as_str().unwrap();
            assert!(good(name).0.starts_with(path.split("/{").next().unwrap()), "{name}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let status: u16 = status.parse().unwrap();
                let what = format!("{method} {path}: {status}");
                let answer = cook(name, &method.to_uppercase(), recipe(name, status)).await;
                assert_eq!(answer.status, status, "{what}: {}", answer.text);
                assert_documented(&document, response, &answer, &what);
                walked += 1;
            }
        }
    }
    assert!(walked > 80, "only {walked} statuses are documented");
}

#[tokio::test]
async fn the_document_and_the_server_have_the_same_routes() {
    let document = document();
    let documented: BTreeMap<&str, BTreeSet<String>> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().map(|method| method.to_uppercase());
            (path.as_str(), methods.filter(|method| method != "PARAMETERS").collect())
        })
        .collect();
    let served: BTreeSet<&str> = routes::table::<Fake>().iter().map(|route| route.path).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), served);
    let scene = Scene::plain().await;
    for (path, methods) in documented {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
            let answer = scene.send(method.parse().unwrap(), &path.replace("{id}", "4"), &[], "").await;
            assert_eq!(answer.status != 405, methods.contains(method), "{method} {path}");
        }
    }
    scene.stop().await;
}

#[test]
fn every_problem_and_alert_is_in_the_document() {
    let document = document();
    let types =
        document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"].as_array().unwrap();
    let told: Vec<Value> = error::KINDS
        .iter()
        .map(|kind| serde_json::to_value(Problem::from(*kind).body()).unwrap()["type"].clone())
        .collect();
    assert_eq!(*types, told);
}

// ------------------------------------------------------------------------------------------------- whatever is sent

/// A number near a bound, or any.
fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(0),
            json!(1),
            json!(-1),
            json!(i64::MAX),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(i64::MAX as u64 + 1),
        ]),
        any::<i64>().prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
        any::<i32>().prop_map(|number| json!(f64::from(number))),
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => number(),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => ".{0,8}".prop_map(Value::from),
        1 => prop::sample::select(vec!["get", "create", "add_money", "withdraw", "update_spending_velocity", "delete"]).prop_map(Value::from),
        1 => prop::collection::vec(number(), 0..3).prop_map(Value::from),
        1 => Just(json!({})),
    ]
}

/// Objects that are nearly what is asked for.
fn near() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        9 => prop::sample::select(vec![
            "id", "amount", "velocity", "balance", "operation", "key", "bucket", "buckets", "to_shard", "shard", "to",
        ]).prop_map(String::from),
        1 => "[a-z]{1,6}",
    ];
    prop_oneof![
        8 => prop::collection::hash_map(name, scalar(), 0..5).prop_map(|fields| json!(fields)),
        1 => prop::collection::vec(scalar(), 0..4).prop_map(Value::from),
        1 => scalar(),
    ]
}

fn near_batch() -> impl Strategy<Value = Value> {
    let item = prop_oneof![
        3 => (prop::sample::select(vec!["get", "create", "add_money", "withdraw", "update_spending_velocity"]), near())
            .prop_map(|(operation, mut item)| {
                if let Some(fields) = item.as_object_mut() {
                    fields.insert("operation".to_owned(), json!(operation));
                }
                item
            }),
        1 => near(),
    ];
    prop::collection::vec(item, 0..4).prop_map(|items| json!({ "operations": items }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What is read is exactly what the document allows.
    #[test]
    fn the_readers_agree_with_the_document(value in prop_oneof![near(), near_batch()]) {
        let document = document();
        let text = value.to_string();
        let allowed = |name: &str| check(&document, &document["components"]["schemas"][name], &value);
        let read = |result: Result<(), Problem>| result.map_err(|problem| problem.detail);
        let body = text.as_bytes();
        let key = Key::new(b"k").unwrap();
        for (name, read) in [
            ("NewAccount", read(object::<CreateBody>(body).and_then(|body| body.operation()).map(drop))),
            ("AmountBody", read(object::<AmountBody>(body).and_then(|body| body.withdraw()).map(drop))),
            ("VelocityBody", read(object::<VelocityBody>(body).and_then(|body| body.operation()).map(drop))),
            ("Batch", read(batch(body, &key).map(drop))),
            ("Move", read(object::<MoveBody>(body).and_then(MoveBody::buckets).map(drop))),
            ("HandOver", read(object::<HandOverBody>(body).and_then(HandOverBody::checked).map(drop))),
        ] {
            let allowed = allowed(name);
            prop_assert_eq!(read.is_ok(), allowed.is_ok(), "{}: {} read {:?}, allowed {:?}", name, text, read, allowed);
        }
    }
}

/// Paths and contents of all kinds over one connection after another: no panic, and no failure of the server.
#[test]
fn nothing_that_is_sent_fails_the_server() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let scene = runtime.block_on(Scene::plain());
    let client = reqwest::Client::new();
    let segment = prop_oneof![
        6 => prop::sample::select(vec![
            "billing", "v1", "accounts", "4", "18446744073709551615", "18446744073709551616", "add_money", "withdraw",
            "update_spending_velocity", "batch", "insert_data", "cluster", "move", "hand_over", "ping", "%00", "%ff", "..", "",
        ]).prop_map(String::from),
        1 => "[!-\"$->@-~]{1,5}",
    ];
    let known =
        prop::sample::select(routes::table::<Fake>().iter().map(|route| route.path).collect::<Vec<_>>());
    let path = prop_oneof![
        2 => prop::collection::vec(segment, 0..6).prop_map(|segments| format!("/{}", segments.join("/"))),
        3 => (known, any::<u64>()).prop_map(|(path, id)| path.replace("{id}", &(id % 12).to_string())),
    ];
    let query = prop_oneof![2 => Just(String::new()), 1 => "\\?[a-z0-9=&%]{0,12}"];
    let body = prop_oneof![
        3 => near().prop_map(|value| value.to_string().into_bytes()),
        2 => near_batch().prop_map(|value| value.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ];
    let method =
        prop::sample::select(vec!["GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "WHAT"]);
    let key =
        prop_oneof![3 => Just(None), 1 => "[!-~]{1,66}".prop_map(Some), 1 => "[ -~]{0,3}".prop_map(Some)];
    proptest!(ProptestConfig::with_cases(600), |(method in method, path in path, query in query, body in body, key in key)| {
        let url = format!("http://{}{path}{query}", scene.address);
        let mut request = client.request(method.parse().unwrap(), url).header("content-type", "application/json").body(body);
        if let Some(key) = &key {
            request = request.header("idempotency-key", key.as_str());
        }
        let answer = runtime.block_on(async { soon(request.send()).await });
        // reqwest itself refuses some texts.
        if let Ok(answer) = answer {
            let status = answer.status().as_u16();
            prop_assert!(status < 500, "{method} {path}{query}: {status}");
        }
    });
    runtime.block_on(scene.stop());
}
