//! Clients that do not read: they hold neither others nor much memory.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{TransportConfig, VarInt};
use tokio::net::{TcpSocket, TcpStream};

use crate::bed::{
    Ask, H2, H2Answer, H3, H3Answer, Node, Origin, Protocol, Quic, SELF_SIGNED, Secured, Tls, Windows, Wire,
    ask, content, https, ok, route, until, upstream, within,
};

/// More than the kernel takes for a connection.
const OBJECT_BYTES: usize = 16 * 1024 * 1024;
const WINDOW_BYTES: u32 = 64 * 1024;
/// How long others may take for that object while somebody stalls. Debug builds on busy machines are slow.
const UNHINDERED: Duration = Duration::from_secs(15);

/// A client that asked and does not read.
enum Stalled {
    H1 { _wire: Wire },
    H1Tls { _wire: Box<Secured> },
    H2 { _client: H2, _answer: H2Answer },
    H3 { _client: H3, _answer: H3Answer },
}

/// A connection whose receive buffer is small, so that not reading is soon noticed.
async fn narrow(address: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(WINDOW_BYTES).expect("a size the kernel allows");
    let connected = within(Duration::from_secs(5), "connecting", socket.connect(address)).await;
    connected.expect("the node listens")
}

fn narrow_quic() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(WINDOW_BYTES));
    transport
}

async fn stall(node: &Node, protocol: Protocol, path: &str) -> Stalled {
    let head = format!("GET {path} HTTP/1.1\r\nHost: bed.example\r\n\r\n");
    match protocol {
        Protocol::H1 => {
            let mut wire = Wire::over(narrow(node.http).await);
            wire.send(head).await;
            assert_eq!(wire.head().await.map(|head| head.status()), Ok(200), "over {protocol:?}");
            Stalled::H1 { _wire: wire }
        }
        Protocol::H1Tls => {
            let stream = narrow(node.https).await;
            let mut wire = Tls::new(&["http/1.1"]).over(stream, "localhost").await.expect("a handshake");
            wire.send(head).await;
            assert_eq!(wire.head().await.map(|head| head.status()), Ok(200), "over {protocol:?}");
            Stalled::H1Tls { _wire: Box::new(wire) }
        }
        Protocol::H2c | Protocol::H2 => {
            let client = H2::secured_with(node.https, Windows(WINDOW_BYTES, 8 << 20)).await;
            let answer = client.begin(&Ask::get(path)).await.expect("an answer begins");
            assert_eq!(answer.status(), 200, "over {protocol:?}");
            Stalled::H2 { _client: client, _answer: answer }
        }
        Protocol::H3 => {
            let quic = Quic::connect_with(node.https, &Tls::new(&["h3"]), narrow_quic()).await;
            let client = H3::over(quic).await;
            let answer = client.begin(&Ask::get(path)).await.expect("an answer begins");
            assert_eq!(answer.status(), 200, "over {protocol:?}");
            Stalled::H3 { _client: client, _answer: answer }
        }
    }
}

#[tokio::test]
async fn who_fills_an_entry_and_stalls_holds_nobody_who_wants_the_same() {
    let object = Bytes::from(content(OBJECT_BYTES));
    let sent = object.clone();
    let origin = Origin::answering(move |_, _| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len());
        [head.as_bytes(), &sent].concat()
    })
    .await;
    let cached = route("cached", "/cached/*", "cache = { max_age = \"60s\" }");
    let store = "[cache]\ncapacity = \"512 MiB\"\nobject_bytes_max = \"32 MiB\"\n";
    let node = Node::start(&(https(SELF_SIGNED) + store + &upstream(&[origin.address], "") + &cached)).await;
    for filler in [Protocol::H1, Protocol::H1Tls, Protocol::H2, Protocol::H3] {
        let path = format!("/cached/{filler:?}");
        let stalled = stall(&node, filler, &path).await;
        for reader in [Protocol::H1, Protocol::H2, Protocol::H3] {
            let begun = Instant::now();
            let answer = ask(&node, reader, &Ask::get(&path)).await;
            let took = begun.elapsed();
            println!("{filler:?} stalls, {reader:?} has all after {took:?}: {}", answer.cache_status());
            assert!(
                answer.is(200),
                "{reader:?} beside a stalled {filler:?}: {:?} {:?}",
                answer.head,
                answer.end
            );
            assert!(answer.body == object, "{reader:?} beside a stalled {filler:?}: {}", answer.body.len());
            assert!(took < UNHINDERED, "{reader:?} beside a stalled {filler:?}: {took:?}");
        }
        drop(stalled);
    }
    println!("{} fetches for 4 entries", origin.count());
}

/// Endless content at `/endless`, as long as somebody takes it; small answers elsewhere.
async fn endless() -> Origin {
    const LENGTH: usize = 64 * 1024 * 1024;
    Origin::scripted(async |request, mut wire: Wire| {
        if request.target() != "/endless" {
            wire.send(ok(request.target())).await;
            return Some(wire);
        }
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
        let piece = vec![b'x'; 64 * 1024];
        for _ in 0..LENGTH / piece.len() {
            tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &piece).await.ok()?;
        }
        Some(wire)
    })
    .await
}

async fn before(origin: &Origin) -> Node {
    let routes = route("rest", "/*", "idle_timeout = \"1m\"");
    Node::start(&(https(SELF_SIGNED) + &upstream(&[origin.address], "") + &routes)).await
}

#[tokio::test]
async fn stalled_streams_hold_no_other_stream_of_their_connection() {
    let origin = endless().await;
    let node = before(&origin).await;
    let two = H2::secured_with(node.https, Windows(WINDOW_BYTES, 8 << 20)).await;
    let quic = Quic::connect_with(node.https, &Tls::new(&["h3"]), narrow_quic()).await;
    let three = H3::over(quic).await;
    let (mut of_two, mut of_three) = (Vec::new(), Vec::new());
    for number in 0..5 {
        of_two.push(two.begin(&Ask::get("/endless")).await.expect("an answer begins"));
        of_three.push(three.begin(&Ask::get("/endless")).await.expect("an answer begins"));
        let begun = Instant::now();
        let (by_two, by_three) = (two.get("/small").await, three.get("/small").await);
        assert!(by_two.is(200), "beside {number} stalled streams of HTTP/2: {by_two:?}");
        assert!(by_three.is(200), "beside {number} stalled streams of HTTP/3: {by_three:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

/// Resident memory once it no longer grows.
async fn settled(node: &Node) -> u64 {
    let (mut most, mut steady) = (0, 0);
    until("memory settles", async || {
        let now = node.process.resident();
        steady = if now > most + 128 * 1024 { 0 } else { steady + 1 };
        most = most.max(now);
        steady > 50
    })
    .await;
    most
}

/// Ten clients, 64 MB each.
#[tokio::test]
async fn ten_clients_that_never_read_cost_little_memory_over_each_protocol() {
    const CLIENT_BYTES_MAX: u64 = 1024 * 1024;
    let origin = endless().await;
    for protocol in [Protocol::H1, Protocol::H1Tls, Protocol::H2, Protocol::H3] {
        let node = before(&origin).await;
        for reader in Protocol::ALL {
            assert!(ask(&node, reader, &Ask::get("/small")).await.is(200));
        }
        let before = settled(&node).await;
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(stall(&node, protocol, "/endless").await);
        }
        let grown = settled(&node).await.saturating_sub(before);
        println!("ten that never read over {protocol:?}: {} KiB", grown / 1024);
        assert!(grown < 10 * CLIENT_BYTES_MAX, "ten that never read over {protocol:?}: {grown} bytes");
        for reader in Protocol::ALL {
            let begun = Instant::now();
            let answer = ask(&node, reader, &Ask::get("/small")).await;
            assert!(answer.is(200), "{reader:?} beside ten of {protocol:?}: {answer:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{reader:?}: {:?}", begun.elapsed());
        }
    }
}
