//! The door over real sockets, before shards in memory; the client speaks by another library.

use std::net::SocketAddr;

use rmpv::Value as Term;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::billing::api::tests::fake::Fake;
use crate::billing::api::{Peers, Token};
use crate::billing::shard::Failure;

const PEER: &str = "peer-0123456789abcdef";

struct Scene {
    address: SocketAddr,
    fake: Fake,
    registry: Registry,
    closing: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

struct Client {
    stream: TcpStream,
    salt: [u8; 20],
    sync: u64,
}

/// The data, or code and text of an error.
type Answer = Result<Term, (u64, String)>;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("took too long")
}

impl Scene {
    async fn new(users: Users) -> Scene {
        Scene::with(users, Limits { linger: Duration::from_millis(100), ..Limits::default() }).await
    }

    async fn with(users: Users, limits: Limits) -> Scene {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fake, registry) = (Fake::alone(), Registry::new());
        let desk = Desk::new(fake.clone(), Peers::new(Token::new(PEER).as_ref()));
        let iproto = Iproto::with_limits(desk, users, Drain::new(), &registry, limits).unwrap();
        let closing = CancellationToken::new();
        let server = tokio::spawn(iproto.serve(vec![listener], closing.clone()));
        Scene { address, fake, registry, closing, server }
    }

    /// Until a series has this value.
    async fn counted(&self, series: &str, value: f64) {
        let line = format!("{series} {value}");
        let text = || String::from_utf8(crate::telemetry::encode(&self.registry)).unwrap();
        let told = async {
            while !text().lines().any(|told| told == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(20), told).await;
        assert!(told.is_ok(), "no {line} in {}", text());
    }

    async fn client(&self) -> Client {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut greeting = [0; 128];
        soon(stream.read_exact(&mut greeting)).await.unwrap();
        assert!(greeting.starts_with(b"Tarantool 2.6.0 (Binary) ") && greeting[127] == b'\n');
        let text = std::str::from_utf8(&greeting[64..108]).unwrap();
        Client { stream, salt: decoded(text), sync: 0 }
    }

    async fn stop(self) {
        self.closing.cancel();
        soon(self.server).await.unwrap();
    }
}

/// The first 20 bytes of base64.
fn decoded(text: &str) -> [u8; 20] {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits: Vec<u8> =
        text.bytes().flat_map(|byte| (0..6).rev().map(move |bit| digit(byte) >> bit & 1)).collect();
    std::array::from_fn(|at| bits[8 * at..8 * at + 8].iter().fold(0, |byte, bit| byte << 1 | bit))
}

fn message(code: u64, sync: u64, fields: Vec<(u64, Term)>) -> Vec<u8> {
    let mut content = Vec::new();
    let header = vec![(0, Term::from(code)), (1, Term::from(sync))];
    for fields in [header, fields] {
        let fields = fields.into_iter().map(|(key, value)| (Term::from(key), value)).collect();
        rmpv::encode::write_value(&mut content, &Term::Map(fields)).unwrap();
    }
    let mut message = vec![0xce];
    message.extend((content.len() as u32).to_be_bytes());
    message.extend(content);
    message
}

fn users(text: &str) -> Users {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users");
    std::fs::write(&file, text).unwrap();
    Users::from_file(&file).unwrap()
}

fn list(items: &[i64]) -> Term {
    Term::Array(items.iter().map(|item| Term::from(*item)).collect())
}

impl Client {
    async fn ask(&mut self, code: u64, fields: Vec<(u64, Term)>) -> Answer {
        self.send(code, fields).await;
        let (sync, answer) = self.answer().await;
        assert_eq!(sync, self.sync);
        answer
    }

    async fn send(&mut self, code: u64, fields: Vec<(u64, Term)>) {
        self.sync += 1;
        self.stream.write_all(&message(code, self.sync, fields)).await.unwrap();
    }

    /// Reads until the server closes.
    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = soon(self.stream.read_to_end(&mut rest)).await;
        rest
    }

    async fn answer(&mut self) -> (u64, Answer) {
        let mut length = [0; 5];
        soon(self.stream.read_exact(&mut length)).await.unwrap();
        assert_eq!(length[0], 0xce);
        let mut content = vec![0; u32::from_be_bytes(length[1..].try_into().unwrap()) as usize];
        soon(self.stream.read_exact(&mut content)).await.unwrap();
        let mut bytes = &content[..];
        let header = rmpv::decode::read_value(&mut bytes).unwrap();
        let body = rmpv::decode::read_value(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        let field = |map: &Term, key: u64| {
            let found = map.as_map().unwrap().iter().find(|(name, _)| name.as_u64() == Some(key));
            found.map(|(_, value)| value.clone())
        };
        let code = field(&header, 0).and_then(|code| code.as_u64()).unwrap();
        let answer = match code {
            0 => Ok(field(&body, 0x30).unwrap_or(body)),
            code => Err((code & 0x7fff, field(&body, 0x31).unwrap().as_str().unwrap().to_owned())),
        };
        (field(&header, 1).and_then(|sync| sync.as_u64()).unwrap(), answer)
    }

    async fn call(&mut self, function: &str, arguments: &[i64]) -> Answer {
        self.ask(10, vec![(0x22, Term::from(function)), (0x21, list(arguments))]).await
    }

    async fn select(&mut self, key: &[i64], iterator: u64, offset: u64, limit: u64) -> Answer {
        let number = |number: u64| Term::from(number);
        self.ask(
            1,
            vec![
                (0x10, number(512)),
                (0x11, number(0)),
                (0x12, number(limit)),
                (0x13, number(offset)),
                (0x14, number(iterator)),
                (0x20, list(key)),
            ],
        )
        .await
    }

    async fn log_in(&mut self, user: &str, password: &[u8]) -> Answer {
        let mut salt = [0; 32];
        salt[..20].copy_from_slice(&self.salt);
        let scramble = Salt::new(salt).scramble_of(password).to_vec();
        let tuple = Term::Array(vec![Term::from("chap-sha1"), Term::from(scramble)]);
        self.ask(7, vec![(0x23, Term::from(user)), (0x21, tuple)]).await
    }
}

#[tokio::test]
async fn procedures_answer_as_the_originals() {
    let scene = Scene::new(Users::default()).await;
    let mut client = scene.client().await;
    let truth = Term::Array(vec![Term::from(true)]);
    assert_eq!(client.ask(64, vec![]).await, Ok(Term::Map(vec![])));
    assert_eq!(client.call("insert_data", &[]).await, Ok(truth.clone()));
    assert_eq!(client.call("get", &[4]).await, Ok(Term::Array(vec![list(&[4, 1000, 0])])));
    assert_eq!(client.call("add_money", &[4, 1000]).await, Ok(truth.clone()));
    assert_eq!(client.call("withdraw", &[4, 500]).await, Ok(truth.clone()));
    assert_eq!(client.call("update_spending_velocity", &[4, 7]).await, Ok(truth.clone()));
    assert_eq!(client.call("get", &[4]).await, Ok(Term::Array(vec![list(&[4, 1500, 7])])));
    // The old call wraps what is returned.
    let old = client.ask(6, vec![(0x22, Term::from("add_money")), (0x21, list(&[4, 1]))]).await;
    assert_eq!(old, Ok(Term::Array(vec![truth])));
    for _ in 0..2 {
        let arguments = Term::Array(vec![Term::from(4), Term::from(1), Term::from("key")]);
        client.ask(10, vec![(0x22, Term::from("withdraw")), (0x21, arguments)]).await.unwrap();
    }
    assert_eq!(client.call("get", &[4]).await, Ok(Term::Array(vec![list(&[4, 1500, 7])])));
    for (function, arguments, code, piece) in [
        ("get", &[77][..], 32, "unknown-account"),
        ("withdraw", &[4, 99_999], 32, "insufficient-funds"),
        ("add_money", &[4, i64::MAX], 32, "overflow"),
        ("add_money", &[4, 0], 1, "amount is 0"),
        ("add_money", &[-4, 1], 1, "an id is"),
        ("add_money", &[4], 1, "takes an id, an amount"),
        ("get", &[1, 2, 3, 4, 5], 1, "too many"),
        ("drop_all", &[], 33, "'drop_all' is not defined"),
    ] {
        let (given, text) = client.call(function, arguments).await.unwrap_err();
        assert!(given == code && text.contains(piece), "{function}: {given} {text}");
    }
    scene.fake.fail(Failure::Unknown);
    assert_eq!(client.call("add_money", &[4, 1]).await.unwrap_err().0, 78);
    scene.fake.fail(Failure::Busy { retry_after: Duration::from_secs(1) });
    assert_eq!(client.call("add_money", &[4, 1]).await.unwrap_err().0, 116);
    assert_eq!(client.ask(8, vec![]).await.unwrap_err().0, 48);
    scene.stop().await;
}

#[tokio::test]
async fn the_space_is_selected_from_and_inserted_into() {
    let scene = Scene::new(Users::default()).await;
    let mut client = scene.client().await;
    let insert = |tuple| vec![(0x10, Term::from(512)), (0x21, tuple)];
    for id in 1..=5 {
        let inserted = client.ask(2, insert(list(&[id, 10 * id, 0]))).await;
        assert_eq!(inserted, Ok(Term::Array(vec![list(&[id, 10 * id, 0])])));
    }
    assert_eq!(client.ask(2, insert(list(&[5, 1, 1]))).await.unwrap_err().0, 3);
    assert_eq!(client.ask(2, insert(list(&[6, -1, 1]))).await.unwrap_err().0, 1);
    assert_eq!(client.ask(2, insert(list(&[6]))).await.unwrap_err().0, 1);
    let ids = |answer: Answer| -> Vec<i64> {
        answer.unwrap().as_array().unwrap().iter().map(|tuple| tuple[0].as_i64().unwrap()).collect()
    };
    for (key, iterator, offset, limit, expected) in [
        (&[][..], 2, 0, u64::from(u32::MAX), &[1, 2, 3, 4, 5][..]),
        (&[], 0, 0, 100, &[1, 2, 3, 4, 5]),
        (&[], 2, 1, 2, &[2, 3]),
        (&[], 2, 0, 0, &[]),
        (&[3], 0, 0, 100, &[3]),
        (&[3], 0, 1, 100, &[]),
        (&[77], 0, 0, 100, &[]),
        (&[-1], 0, 0, 100, &[]),
        (&[3], 5, 0, 100, &[3, 4, 5]),
        (&[3], 6, 0, 1, &[4]),
        (&[-3], 6, 0, 2, &[1, 2]),
        (&[0], 5, 4, 2, &[5]),
    ] {
        let found = ids(client.select(key, iterator, offset, limit).await);
        assert_eq!(found, expected, "{key:?} {iterator} {offset} {limit}");
    }
    assert_eq!(client.select(&[3], 4, 0, 9).await.unwrap_err().0, 5);
    assert_eq!(client.ask(1, vec![(0x10, Term::from(513))]).await.unwrap_err().0, 36);
    assert_eq!(client.ask(1, vec![(0x10, Term::from(512)), (0x11, Term::from(1))]).await.unwrap_err().0, 35);
    // As a connector asks for the id of a space by its name.
    let by_name = vec![
        (0x10, Term::from(281)),
        (0x11, Term::from(2)),
        (0x14, Term::from(0)),
        (0x20, Term::Array(vec![Term::from("accounts")])),
    ];
    let spaces = client.ask(1, by_name).await.unwrap();
    assert_eq!((spaces.as_array().unwrap().len(), spaces[0][0].as_u64()), (1, Some(512)));
    let indexes = client.ask(1, vec![(0x10, Term::from(289)), (0x20, list(&[512]))]).await.unwrap();
    assert_eq!((indexes.as_array().unwrap().len(), indexes[0][2].as_str()), (1, Some("primary")));
    scene.stop().await;
}

#[tokio::test]
async fn users_must_log_in() {
    let scene = Scene::new(users("billing:secret\n")).await;
    let mut client = scene.client().await;
    assert_eq!(client.call("insert_data", &[]).await.unwrap_err().0, 42);
    assert_eq!(client.log_in("nobody", b"secret").await.unwrap_err().0, 47);
    assert_eq!(client.log_in("billing", b"wrong").await.unwrap_err().0, 47);
    assert_eq!(client.call("insert_data", &[]).await.unwrap_err().0, 42);
    assert!(client.log_in("billing", b"secret").await.is_ok());
    assert!(client.call("insert_data", &[]).await.is_ok());
    // Who goes on guessing has to connect again.
    let mut client = scene.client().await;
    for _ in 0..3 {
        assert_eq!(client.log_in("billing", b"guess").await.unwrap_err().0, 47);
    }
    assert_eq!(client.rest().await, b"");
    scene.counted("forefront_billing_iproto_requests_total{code=\"47\",operation=\"auth\"}", 5.0).await;
    scene.stop().await;
}

#[tokio::test]
async fn many_at_once_are_done_in_their_order() {
    let scene = Scene::new(Users::default()).await;
    let mut client = scene.client().await;
    client.call("insert_data", &[]).await.unwrap();
    let mut bytes = Vec::new();
    let count = 20_000;
    for sync in 0..count {
        // Each needs what the one before it left.
        let function = if sync % 2 == 0 { "withdraw" } else { "add_money" };
        bytes.extend(message(10, sync, vec![(0x22, Term::from(function)), (0x21, list(&[4, 1000]))]));
    }
    let (mut from, mut to) = client.stream.into_split();
    let sending = tokio::spawn(async move { to.write_all(&bytes).await.map(|()| to) });
    let mut answers = Vec::new();
    let length = {
        let mut one = Vec::new();
        procedures::tell(&mut one, 0, &procedures::Done::True { old: false });
        one.len()
    };
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < count as usize {
        let mut chunk = vec![0; 64 << 10];
        let read = soon(from.read(&mut chunk)).await.unwrap();
        assert!(read > 0);
        answers.extend_from_slice(&chunk[..read]);
        while let Ok(Some(whole)) = codec::message_length(&answers)
            && whole <= answers.len()
        {
            let answer: Vec<u8> = answers.drain(..whole).collect();
            let mut bytes = &answer[5..];
            let header = rmpv::decode::read_value(&mut bytes).unwrap();
            let fields = header.as_map().unwrap();
            assert_eq!(fields[0].1.as_u64(), Some(0), "a withdrawal overtook the money it needs");
            assert!(answer.len() >= length);
            seen.insert(fields[1].1.as_u64().unwrap());
        }
    }
    soon(sending).await.unwrap().unwrap();
    scene.stop().await;
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_no_other() {
    let scene = Scene::new(Users::default()).await;
    let mut fine = scene.client().await;
    for bytes in [
        &[0xce, 0xff, 0xff, 0xff, 0xff][..],
        b"\x16\x03\x01 a greeting of another protocol",
        &[0x01, 0xc0],
        &[0x00],
    ] {
        let mut client = scene.client().await;
        client.stream.write_all(bytes).await.unwrap();
        let (sync, answer) = client.answer().await;
        assert_eq!((sync, answer.unwrap_err().0), (0, 20), "{bytes:?}");
        assert_eq!(client.rest().await, b"", "{bytes:?}");
    }
    // A body that cannot be read is answered, and the next message is served.
    assert_eq!(fine.ask(10, vec![(0x22, Term::from(5))]).await.unwrap_err().0, 20);
    assert!(fine.ask(64, vec![]).await.is_ok());
    scene.stop().await;
}

#[tokio::test]
async fn who_does_not_read_is_not_read_from() {
    let limits = Limits { out_bytes: 1024, write_timeout: Duration::from_millis(200), ..Limits::default() };
    let scene = Scene::with(Users::default(), limits).await;
    let mut fine = scene.client().await;
    let mut deaf = scene.client().await;
    let pings: Vec<u8> = (0..1000).flat_map(|sync| message(64, sync, vec![])).collect();
    // Ends with an error once the server has lost its patience; what the systems between keep is bounded too.
    let given_up = async { while deaf.stream.write_all(&pings).await.is_ok() {} };
    soon(given_up).await;
    assert!(fine.ask(64, vec![]).await.is_ok());
    scene.counted("forefront_billing_iproto_connections", 1.0).await;
    scene.stop().await;
}

#[tokio::test]
async fn what_is_in_flight_is_bounded_for_a_connection_and_in_all() {
    let limits =
        Limits { in_flight_per_connection: 3, in_flight: 5, linger: Duration::ZERO, ..Limits::default() };
    let scene = Scene::with(Users::default(), limits).await;
    let (mut one, mut other) = (scene.client().await, scene.client().await);
    one.call("insert_data", &[]).await.unwrap_err();
    for id in 1..=4 {
        let insert = vec![(0x10, Term::from(512)), (0x21, list(&[id, 1000, 0]))];
        one.ask(2, insert).await.unwrap();
    }
    scene.fake.hold();
    let add = |id: i64| vec![(0x22, Term::from("add_money")), (0x21, list(&[id, 1]))];
    for id in [1, 2, 3, 4] {
        one.send(10, add(id)).await;
    }
    one.send(64, vec![]).await;
    // The fourth is not even read.
    scene.counted("forefront_billing_iproto_in_flight", 3.0).await;
    for id in [1, 2] {
        other.send(10, add(id)).await;
    }
    scene.counted("forefront_billing_iproto_in_flight", 5.0).await;
    // Of the other connection's third nothing is done.
    other.send(10, add(3)).await;
    let (sync, refused) = other.answer().await;
    assert_eq!((sync, refused.unwrap_err().0), (3, 116));
    scene.fake.heal();
    for _ in 0..5 {
        assert!(one.answer().await.1.is_ok());
    }
    for _ in 0..2 {
        assert!(other.answer().await.1.is_ok());
    }
    scene.counted("forefront_billing_iproto_in_flight", 0.0).await;
    assert_eq!(one.call("get", &[3]).await, Ok(Term::Array(vec![list(&[3, 1001, 0])])));
    assert_eq!(one.call("get", &[4]).await, Ok(Term::Array(vec![list(&[4, 1001, 0])])));
    scene.stop().await;
}

#[tokio::test]
async fn silence_is_bounded() {
    let short = Duration::from_millis(100);
    for (name, limits, words) in [
        ("idle", Limits { idle_timeout: short, ..Limits::default() }, &[][..]),
        ("half a message", Limits { message_timeout: short, ..Limits::default() }, &[0xce, 0, 0, 0, 9, 0x82]),
        ("no login", Limits { login_timeout: short, ..Limits::default() }, &[]),
    ] {
        let scene = Scene::with(users("billing:secret"), limits).await;
        let mut client = scene.client().await;
        client.stream.write_all(words).await.unwrap();
        assert_eq!(client.rest().await, b"", "{name}");
        scene.counted("forefront_billing_iproto_connections", 0.0).await;
        scene.stop().await;
    }
    // Who waits for an answer is not silent.
    let limits = Limits { idle_timeout: short, login_timeout: short, ..Limits::default() };
    let scene = Scene::with(Users::default(), limits).await;
    let mut client = scene.client().await;
    scene.fake.hold();
    client.send(10, vec![(0x22, Term::from("get")), (0x21, list(&[1]))]).await;
    tokio::time::sleep(3 * short).await;
    scene.fake.heal();
    assert_eq!(client.answer().await.1.unwrap_err().0, 32);
    scene.stop().await;
}

#[tokio::test]
async fn what_was_asked_is_answered_at_the_end() {
    let scene = Scene::new(Users::default()).await;
    let (mut busy, mut idle) = (scene.client().await, scene.client().await);
    busy.call("insert_data", &[]).await.unwrap();
    idle.ask(64, vec![]).await.unwrap();
    scene.fake.hold();
    for id in 1..=3 {
        busy.send(10, vec![(0x22, Term::from("add_money")), (0x21, list(&[id, 1]))]).await;
    }
    scene.counted("forefront_billing_iproto_in_flight", 3.0).await;
    scene.closing.cancel();
    assert_eq!(idle.rest().await, b"");
    // It comes too late, and must not cost the others their answers.
    busy.send(64, vec![]).await;
    scene.fake.heal();
    for _ in 0..3 {
        assert!(busy.answer().await.1.is_ok());
    }
    assert_eq!(busy.rest().await, b"");
    scene.counted("forefront_billing_iproto_requests_total{code=\"0\",operation=\"add_money\"}", 3.0).await;
    scene.stop().await;
}
