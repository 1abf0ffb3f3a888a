//! HTTP/3: what QUIC brings beyond the other protocols.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::bed::raw_h3::{self, DATA, RawH3, frame, headers};
use crate::bed::{
    Ask, End, H3, Heard, Node, Origin, SELF_SIGNED, Wire, content, https, ok, route, until, upstream,
};

const H3_REQUEST_CANCELLED: u32 = 0x10c;

async fn node(origin: &Origin, more: &str) -> Node {
    let origins = upstream(&[origin.address], "") + &route("rest", "/*", "");
    Node::start(&(https(SELF_SIGNED) + more + &origins)).await
}

/// Answers with what it was sent, or with its target.
async fn echo() -> Origin {
    Origin::answering(
        |request, body| {
            if body.is_empty() { ok(request.target()) } else { ok(&String::from_utf8_lossy(body)) }
        },
    )
    .await
}

/// A client behind a NAT that forgets it, or one that walks out of its house.
#[tokio::test]
async fn a_download_goes_on_from_another_port() {
    const BYTES: usize = 20 * 1024 * 1024;
    let file = Bytes::from(content(BYTES));
    let sent = file.clone();
    let origin = Origin::answering(move |request, _| match request.target() {
        "/file" => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len());
            [head.as_bytes(), &sent].concat()
        }
        other => ok(other),
    })
    .await;
    let node = node(&origin, "").await;
    let client = H3::connect(node.https).await;
    let mut download = client.begin(&Ask::get("/file")).await.expect("an answer begins");
    for part in 1..=3 {
        download.read(part * BYTES / 4).await;
        client.quic.rebind();
    }
    let answer = download.whole().await;
    assert!(answer.is(200), "{:?} {:?}", answer.head, answer.end);
    assert!(answer.body == file, "{} of {BYTES} bytes", answer.body.len());
    assert_eq!(client.get("/after").await.text(), "/after", "and the connection serves on");
    assert_eq!(origin.count(), 2, "nothing was asked for twice");
}

#[tokio::test]
async fn an_upload_goes_on_from_another_port() {
    let origin = echo().await;
    let node = node(&origin, "").await;
    let raw = RawH3::connect(node.https).await;
    let mut fields = raw_h3::good("POST", "/up");
    fields.push(("content-length", "9"));
    let begun = raw.stream([headers(&fields), frame(DATA, b"one")].concat()).await;
    let (mut send, mut receive) = begun.expect("the connection is open");
    for piece in [b"two", b"six"] {
        raw.quic.rebind();
        send.write_all(&frame(DATA, piece)).await.expect("the stream is open");
    }
    send.finish().expect("the stream is open");
    assert_eq!(raw.heard(&mut receive).await, Heard::Answer(200, 9));
}

/// The end comes while content is being read, in the middle of a frame (RFC 9114, 7.1).
#[tokio::test]
async fn an_end_within_content_ends_the_connection_and_no_more() {
    let origin = echo().await;
    let node = node(&origin, "").await;
    let raw = RawH3::connect(node.https).await;
    let mut bytes = headers(&raw_h3::good("POST", "/cut"));
    bytes.extend([0, 10]);
    bytes.extend(b"four");
    let (mut send, mut receive) = raw.stream(&bytes).await.expect("a stream");
    // The request is on its way to the origin by now, and content is waited for.
    until("the request is under way", async || {
        node.sample("forefront_proxy_requests_in_flight", &["route=\"rest\""]).await > 0.0
    })
    .await;
    send.finish().expect("it is open");
    assert_eq!(raw.closed_soon_or(raw.heard(&mut receive).await).await, Heard::Closed(0x106));
    until("nothing is under way", async || {
        node.sample("forefront_proxy_requests_in_flight", &["route=\"rest\""]).await == 0.0
    })
    .await;
    assert_eq!(H3::connect(node.https).await.get("/after").await.text(), "/after");
}

#[tokio::test]
async fn a_get_whose_end_comes_late_has_no_content() {
    let origin = echo().await;
    let node = node(&origin, "").await;
    let raw = RawH3::connect(node.https).await;
    for pause in [Duration::ZERO, Duration::from_millis(5), Duration::from_millis(60)] {
        let begun = raw.stream(raw_h3::get("/late")).await;
        let (mut send, mut receive) = begun.expect("the connection is open");
        // The pause is what is tested: the end is in a packet of its own.
        tokio::time::sleep(pause).await;
        send.finish().expect("the stream is open");
        assert_eq!(raw.heard(&mut receive).await, Heard::Answer(200, 5), "after {pause:?}");
        let head = origin.last().head;
        let framing = (head.get("content-length"), head.get("transfer-encoding"));
        assert_eq!(framing, (None, None), "an end after {pause:?}: {head:?}");
    }
}

#[tokio::test]
async fn an_empty_piece_in_the_middle_ends_nothing() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = seen.clone();
    let origin = Origin::answering(move |request, body| {
        kept.lock().expect("no holder panics").push(body.to_vec());
        ok(request.target())
    })
    .await;
    let node = node(&origin, "").await;
    let raw = RawH3::connect(node.https).await;
    let pieces = [frame(DATA, b"abc"), frame(DATA, b""), frame(DATA, b""), frame(DATA, b"def")].concat();
    for length in [None, Some(("content-length", "6"))] {
        let mut fields = raw_h3::good("POST", "/x");
        fields.extend(length);
        let heard = raw.ask([headers(&fields), pieces.clone()].concat()).await;
        assert_eq!(heard, Heard::Answer(200, 2), "{length:?}");
        assert_eq!(
            seen.lock().expect("no holder panics").pop().as_deref(),
            Some(&b"abcdef"[..]),
            "{length:?}"
        );
    }
}

#[tokio::test]
async fn a_cancelled_request_is_given_up_and_its_connection_goes_on() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        if request.target() == "/hangs" {
            wire.rest().await;
            return None;
        }
        wire.send(ok(request.target())).await;
        Some(wire)
    })
    .await;
    let node = node(&origin, "").await;
    let raw = RawH3::connect(node.https).await;
    for is_at_the_origin in [false, true, true] {
        let before = origin.count();
        let begun = raw.stream(raw_h3::get("/hangs")).await;
        let (mut send, mut receive) = begun.expect("the connection is open");
        if is_at_the_origin {
            send.finish().expect("the stream is open");
            until("it is in flight", async || origin.count() > before).await;
        } else {
            raw_h3::reset(send, H3_REQUEST_CANCELLED);
        }
        receive.stop(H3_REQUEST_CANCELLED.into()).expect("the stream is open");
        until("it is given up", async || {
            node.sample("forefront_proxy_requests_in_flight", &["rest"]).await == 0.0
        })
        .await;
    }
    assert_eq!(raw.ask(raw_h3::get("/on")).await, Heard::Answer(200, 3));
}

#[tokio::test]
async fn a_connection_gets_so_many_streams_at_once_and_one_more_when_one_ends() {
    let gate = Arc::new(Semaphore::new(0));
    let kept = gate.clone();
    let origin = Origin::scripted(move |request, mut wire: Wire| {
        let gate = kept.clone();
        async move {
            gate.acquire().await.ok()?.forget();
            wire.send(ok(request.target())).await;
            Some(wire)
        }
    })
    .await;
    let node = node(&origin, "[limits]\nstreams_per_connection = 5\n").await;
    let raw = RawH3::connect(node.https).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let (mut send, receive) = raw.stream(raw_h3::get("/x")).await.expect("the connection is open");
        send.finish().expect("the stream is open");
        open.push(receive);
    }
    until("five are in flight", async || origin.count() == 5).await;
    let sixth = raw.quic.connection.open_bi();
    tokio::pin!(sixth);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut sixth).await;
    assert!(early.is_err(), "a sixth stream while five are open");
    gate.add_permits(1);
    let next = tokio::time::timeout(crate::bed::PATIENCE, &mut sixth).await;
    assert!(next.is_ok_and(|opened| opened.is_ok()), "a sixth stream once one has ended");
    gate.add_permits(100);
    for receive in &mut open {
        assert_eq!(raw.heard(receive).await, Heard::Answer(200, 2));
    }
}

#[tokio::test]
async fn an_idle_connection_ends_in_time_and_a_client_that_vanishes_frees_its_request() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        if request.target() == "/hangs" {
            wire.rest().await;
            return None;
        }
        wire.send(ok(request.target())).await;
        Some(wire)
    })
    .await;
    let node = node(&origin, "[limits]\nidle_timeout = \"1s\"\n").await;
    let idle = H3::connect(node.https).await;
    assert!(idle.get("/x").await.is(200));
    // A silent end by QUIC's own idle timeout, or a close that says there was no error.
    let end = idle.quic.closed().await;
    assert!(matches!(end, End::Closed(0x100) | End::Broken), "{end:?}");

    let client = H3::connect(node.https).await;
    let asking = client.clone();
    let asked = tokio::spawn(async move { asking.get("/hangs").await });
    until("it is in flight", async || origin.seen().iter().any(|r| r.target() == "/hangs")).await;
    asked.abort();
    client.quic.connection.close(0x100u32.into(), b"");
    until("it is given up", async || {
        node.sample("forefront_proxy_requests_in_flight", &["rest"]).await == 0.0
    })
    .await;
}

/// Datagrams that are no QUIC, or of connections nobody has, cost nothing but a look.
#[tokio::test]
async fn noise_on_the_udp_port_hinders_nobody() {
    const SEED: u64 = 0x5eed_0003;
    println!("seed {SEED:#x}");
    let origin = echo().await;
    let node = node(&origin, "").await;
    let client = H3::connect(node.https).await;
    let noise = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let mut dice = fastrand::Rng::with_seed(SEED);
    for number in 0..2000 {
        let mut datagram = vec![0; dice.usize(1..1400)];
        dice.fill(&mut datagram);
        if number % 3 == 0 {
            // The long header of a first packet, of version 1, and what follows makes no sense.
            datagram.resize(1200, 0);
            datagram[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        let _ = noise.send_to(&datagram, node.https).await;
        if number % 500 == 0 {
            assert!(client.get("/between").await.is(200), "after {number} datagrams of noise");
        }
    }
    assert!(client.get("/after").await.is(200));
    assert!(H3::connect(node.https).await.get("/new").await.is(200));
}
