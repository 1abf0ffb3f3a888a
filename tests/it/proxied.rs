//! The PROXY protocol, versions 1 and 2: who the client is, by a balancer that may say so.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::bed::{
    Node, Origin, SELF_SIGNED, Tls, Wire, content, get, https, ok, request, route, until, upstream,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const GET: &str = "GET /x HTTP/1.1\r\nHost: bed.example\r\n\r\n";

async fn bed(from: &str, more: &str) -> (Origin, Node) {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let accepting = format!("http3 = true\nproxy_protocol = \"accept\"\nproxy_protocol_from = {from}");
    let listen = https(SELF_SIGNED).replace("http3 = true", &accepting);
    let origins = upstream(&[origin.address], "") + &route("rest", "/*", "");
    let node = Node::start(&(listen + more + &origins)).await;
    (origin, node)
}

const LOOPBACK: &str = "[\"127.0.0.1/32\"]";

/// Version 2: command (0 LOCAL, 1 PROXY), family and transport, and what follows.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [SIGNATURE, &[0x20 | command, family], &length, rest].concat()
}

fn four(source: [u8; 4], port: u16) -> Vec<u8> {
    [&source[..], &[192, 0, 2, 1], &port.to_be_bytes(), &443u16.to_be_bytes()].concat()
}

fn six(source: &str, port: u16) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
    [&address(source)[..], &address("2001:db8::1"), &port.to_be_bytes(), &443u16.to_be_bytes()].concat()
}

/// A header and the client it tells of.
fn good() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let with_more = [four([203, 0, 113, 7], 4711), vec![0x04, 0, 3, 1, 2, 3, 0xe0, 0, 0]].concat();
    vec![
        ("v1 TCP4", b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n".to_vec(), "203.0.113.7"),
        ("v1 TCP6", b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec(), "2001:db8::7"),
        ("v1 UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        ("v1 UNKNOWN with more", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), "127.0.0.1"),
        ("v2 TCP4", binary(1, 0x11, &four([203, 0, 113, 7], 4711)), "203.0.113.7"),
        ("v2 TCP6", binary(1, 0x21, &six("2001:db8::7", 4711)), "2001:db8::7"),
        ("v2 with extensions", binary(1, 0x11, &with_more), "203.0.113.7"),
        ("v2 LOCAL", binary(0, 0x00, &[]), "127.0.0.1"),
        ("v2 LOCAL with an address", binary(0, 0x11, &four([203, 0, 113, 7], 4711)), "127.0.0.1"),
        ("v2 of no family", binary(1, 0x00, &[]), "127.0.0.1"),
        ("v2 TCP4 in IPv6", binary(1, 0x21, &six("::ffff:203.0.113.7", 1)), "203.0.113.7"),
    ]
}

fn is_client(origin: &Origin, client: &str, what: &str) {
    let head = origin.last().head;
    assert_eq!(head.all("x-forwarded-for"), [client], "{what}");
    let forwarded = head.get("forwarded").unwrap_or_default().to_owned();
    let quoted = if client.contains(':') { format!("for=\"[{client}]\"") } else { format!("for={client}") };
    assert!(forwarded.starts_with(&quoted), "{what}: {forwarded}");
}

#[tokio::test]
async fn the_client_is_the_one_told_of() {
    let (origin, node) = bed(LOOPBACK, "").await;
    for (what, header, client) in good() {
        let mut wire = Wire::connect(node.http).await;
        wire.send([&header, GET.as_bytes()].concat()).await;
        assert!(wire.answer().await.is(200), "{what}");
        is_client(&origin, client, what);
        // It is said once, and holds for all requests of the connection.
        assert!(wire.get("/y").await.is(200), "{what}");
        is_client(&origin, client, what);
    }
}

#[tokio::test]
async fn it_may_come_in_any_pieces() {
    let (origin, node) = bed(LOOPBACK, "").await;
    for (what, header, client) in good() {
        let mut wire = Wire::connect(node.http).await;
        for byte in header.iter().chain(GET.as_bytes()) {
            wire.send([*byte]).await;
            tokio::task::yield_now().await;
        }
        let answer = wire.answer().await;
        assert!(answer.is(200), "{what}: {answer:?}");
        is_client(&origin, client, what);
    }
}

#[tokio::test]
async fn it_comes_before_tls_and_before_http2() {
    let (origin, node) = bed(LOOPBACK, "").await;
    for (what, header, client) in good() {
        for alpn in ["http/1.1", "h2"] {
            let mut plain = Wire::connect(node.https).await;
            plain.send(&header).await;
            let mut wire = Tls::new(&[alpn]).over(plain.stream, "localhost").await.expect("a handshake");
            assert_eq!(wire.protocol(), alpn, "{what}");
            if alpn == "http/1.1" {
                assert!(wire.get("/tls").await.is(200), "{what}");
                is_client(&origin, client, what);
            }
        }
        let mut raw = crate::bed::raw_h2::RawH2::bare(node.http).await;
        raw.send([&header, crate::bed::raw_h2::PREFACE].concat()).await;
        raw.send(crate::bed::raw_h2::frame(crate::bed::raw_h2::SETTINGS, 0, 0, [0, 1, 0, 0, 0, 0])).await;
        raw.send(crate::bed::raw_h2::get(1, "/h2c")).await;
        assert_eq!(raw.heard(1).await, crate::bed::Heard::Answer(200, 4), "{what}");
        is_client(&origin, client, what);
    }
}

#[tokio::test]
async fn what_is_malformed_or_missing_closes_the_connection() {
    let (origin, node) =
        bed(LOOPBACK, "[limits]\nhandshake_timeout = \"1s\"\nheader_timeout = \"1s\"\n").await;
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("no header", Vec::new()),
        ("a header of another version", b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n".to_vec()),
        ("an address that is none", b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n".to_vec()),
        ("an address of the other family", b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec()),
        ("a port that is none", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 99999\r\n".to_vec()),
        ("one address", b"PROXY TCP4 1.1.1.1 1 2\r\n".to_vec()),
        ("small letters", b"proxy tcp4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec()),
        ("a bare line feed", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n".to_vec()),
        ("a line that is too long", format!("PROXY UNKNOWN {}\r\n", "x".repeat(200)).into_bytes()),
        ("v2 of version 3", [SIGNATURE, &[0x31, 0x11, 0, 12], &four([1; 4], 1)].concat()),
        ("v2 with an unknown command", binary(7, 0x11, &four([1; 4], 1))),
        ("v2 with too few bytes for its family", binary(1, 0x11, &[1, 2, 3])),
        ("v2 with a broken signature", b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\x0c".to_vec()),
    ];
    cases.push(("random bytes", content(64)));
    for (what, header) in cases {
        let mut wire = Wire::connect(node.http).await;
        wire.send([&header, GET.as_bytes()].concat()).await;
        let (said, end) = wire.rest().await;
        println!("| {what} | {} bytes, {end:?} |", said.len());
        assert!(said.is_empty(), "{what}: {:?}", String::from_utf8_lossy(&said));
    }
    assert_eq!(origin.count(), 0, "nothing of it reached the origin");
    let (_, header, client) = good().remove(0);
    let mut wire = Wire::connect(node.http).await;
    wire.send([&header, GET.as_bytes()].concat()).await;
    assert!(wire.answer().await.is(200));
    is_client(&origin, client, "afterwards");
}

#[tokio::test]
async fn a_header_that_does_not_end_is_not_waited_for() {
    let (_origin, node) =
        bed(LOOPBACK, "[limits]\nhandshake_timeout = \"400ms\"\nheader_timeout = \"400ms\"\n").await;
    let starts: [&[u8]; 4] = [b"", b"PROXY TCP4 1.1.1.1", SIGNATURE, &binary(1, 0x11, &[0; 12])[..20]];
    for address in [node.http, node.https] {
        for start in starts {
            let begun = Instant::now();
            let mut wire = Wire::connect(address).await;
            wire.send(start).await;
            assert!(wire.rest().await.0.is_empty(), "{start:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{start:?}: {:?}", begun.elapsed());
        }
    }
    // Its length may say 64 KiB; that is not waited for, nor kept.
    let mut wire = Wire::connect(node.http).await;
    wire.send([SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat()).await;
    wire.send(vec![0; 1000]).await;
    assert!(wire.rest().await.0.is_empty());
}

#[tokio::test]
async fn from_others_none_is_looked_for() {
    let (origin, node) = bed("[\"10.0.0.0/8\", \"2001:db8::/32\"]", "").await;
    assert!(node.get("/plain").await.is(200));
    is_client(&origin, "127.0.0.1", "a client that is no balancer");
    for (what, header, _) in good() {
        let mut wire = Wire::connect(node.http).await;
        wire.send([&header, GET.as_bytes()].concat()).await;
        assert_ne!(wire.answer().await.status(), 200, "{what} is no request");
    }
    assert_eq!(origin.count(), 1);
    // The list names IPv4 peers only, so an IPv6 peer speaks for itself.
    let (_origin, node) = bed(LOOPBACK, "").await;
    assert!(get(node.http6, "/six").await.is(200));
}

#[tokio::test]
async fn off_means_off() {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let node = Node::start(&(upstream(&[origin.address], "") + &route("rest", "/*", ""))).await;
    let bytes = format!("PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n{GET}");
    assert_eq!(request(node.http, &bytes).await.status(), 400);
    assert!(node.get("/x").await.is(200));
}

/// A balancer on loopback is trusted about who the client is, and the client itself is not.
#[tokio::test]
async fn the_client_told_of_is_the_one_that_is_trusted_or_limited() {
    let limits = "[limits]\nrequests_per_client = { per_second = 0.1, burst = 2 }\n";
    let (origin, node) = bed(LOOPBACK, limits).await;
    let ask = async |client: &str| {
        let header = format!("PROXY TCP4 {client} 192.0.2.1 4711 443\r\n");
        let fields = "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n";
        request_after(node.http, &header, &format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await
    };
    let mut statuses = Vec::new();
    for client in ["203.0.113.7", "203.0.113.7", "203.0.113.7", "203.0.113.8"] {
        statuses.push(ask(client).await);
    }
    assert_eq!(statuses, [200, 200, 429, 200], "each client has a rate of its own");
    let head = origin.last().head;
    assert_eq!(head.all("x-forwarded-for"), ["203.0.113.8"], "what a stranger supplies is replaced");
    assert_eq!(head.all("x-forwarded-proto"), ["http"]);
    assert_eq!(ask("127.0.0.9").await, 200);
    assert_eq!(origin.last().head.all("x-forwarded-for"), ["198.51.100.1, 127.0.0.9"], "one on loopback");
}

async fn request_after(address: SocketAddr, header: &str, bytes: &str) -> u16 {
    let mut wire = Wire::connect(address).await;
    wire.send(format!("{header}{bytes}")).await;
    wire.answer().await.status()
}

/// QUIC has no such header: its peer is its client.
#[tokio::test]
async fn http3_is_not_concerned() {
    let (origin, node) = bed(LOOPBACK, "").await;
    let client = crate::bed::H3::connect(node.https).await;
    until("it is served", async || client.get("/x").await.is(200)).await;
    is_client(&origin, "127.0.0.1", "over HTTP/3");
    let mut wire = Wire::connect(node.http).await;
    wire.send(GET).await;
    assert!(wire.rest().await.0.is_empty(), "over TCP the header is required all the same");
}
