//! HTTP/2: what one connection may ask for, and what it is told when it asks for more.

use std::time::{Duration, Instant};

use crate::bed::raw_h2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, RawH2, SETTINGS,
    WINDOW_UPDATE, block, frame, get, good, headers, setting,
};
use crate::bed::{Ask, H2, Heard, Node, Origin, Wire, ok, route, until, upstream};

const PROTOCOL_ERROR: u64 = 0x1;
const REFUSED_STREAM: u64 = 0x7;
const CANCEL: u32 = 0x8;
const ENHANCE_YOUR_CALM: u64 = 0xb;

/// How much a flood may make the node hold.
const FLOOD_BYTES_MAX: u64 = 24 * 1024 * 1024;

/// Never answers `/hangs`, answers all else.
async fn bed(more: &str) -> (Origin, Node) {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        if request.target() == "/hangs" {
            wire.rest().await;
            return None;
        }
        wire.content(&request.head, &mut Vec::new(), &mut Vec::new()).await.ok()?;
        wire.send(ok(request.target())).await;
        Some(wire)
    })
    .await;
    let origins = upstream(&[origin.address], "") + &route("rest", "/*", "");
    let node = Node::start(&format!("{more}\n{origins}")).await;
    (origin, node)
}

async fn is_served(node: &Node, after: &str) {
    let answer = H2::plain(node.http).await.get("/after").await;
    assert!(answer.is(200) && answer.text() == "/after", "after {after}: {answer:?}");
}

#[tokio::test]
async fn the_plain_port_speaks_both_versions() {
    let (_origin, node) = bed("").await;
    let client = H2::plain(node.http).await;
    for path in ["/a", "/b"] {
        let answer = client.get(path).await;
        assert!(answer.is(200) && answer.text() == path, "{answer:?}");
    }
    assert!(node.get("/c").await.is(200));
    // A preface that comes in pieces is still one.
    let mut slow = RawH2::bare(node.http).await;
    for byte in crate::bed::raw_h2::PREFACE {
        slow.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    slow.send(frame(SETTINGS, 0, 0, setting(1, 0))).await;
    slow.send(get(1, "/d")).await;
    assert_eq!(slow.heard(1).await, Heard::Answer(200, 2));
}

#[tokio::test]
async fn settings_tell_the_limits_there_are() {
    let limits = "[limits]\nstreams_per_connection = 10\nheader_list_bytes = \"16 KiB\"";
    let (_origin, node) = bed(limits).await;
    let mut raw = RawH2::connect(node.http).await;
    let settings = raw.next_of(SETTINGS).await.expect("the first frame of a server");
    let told = |name: u16| {
        let found = settings.payload.chunks(6).find(|one| one[..2] == name.to_be_bytes());
        found.map(|one| u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
    };
    assert_eq!(told(3), Some(10), "SETTINGS_MAX_CONCURRENT_STREAMS");
    assert_eq!(told(6), Some(16 * 1024), "SETTINGS_MAX_HEADER_LIST_SIZE");
    assert_ne!(told(2), Some(1), "a server does not ask to be pushed to");
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_the_others_go_on() {
    let (origin, node) = bed("[limits]\nstreams_per_connection = 10").await;
    let mut raw = RawH2::connect(node.http).await;
    for number in 0..10 {
        raw.send(get(2 * number + 1, "/hangs")).await;
    }
    until("ten are in flight", async || origin.count() == 10).await;
    raw.send(get(21, "/one-more")).await;
    let heard = raw.heard(21).await;
    assert!(
        [Heard::Reset(REFUSED_STREAM), Heard::Reset(PROTOCOL_ERROR)].contains(&heard),
        "the eleventh: {heard}"
    );
    raw.send(frame(RST_STREAM, 0, 1, CANCEL.to_be_bytes())).await;
    // The node has to notice that there is room again.
    until("a stream is free", async || {
        node.sample("forefront_proxy_requests_in_flight", &["rest"]).await == 9.0
    })
    .await;
    raw.send(get(23, "/again")).await;
    assert_eq!(raw.heard(23).await, Heard::Answer(200, 6));
    assert_eq!(origin.count(), 11, "what was refused never reached the origin");
}

#[tokio::test]
async fn a_rapid_reset_ends_the_connection() {
    let (origin, node) = bed("").await;
    let mut raw = RawH2::connect(node.http).await;
    for number in 0..300 {
        let stream = 2 * number + 1;
        let reset = frame(RST_STREAM, 0, stream, CANCEL.to_be_bytes());
        raw.send([get(stream, "/hangs"), reset].concat()).await;
    }
    let heard = raw.farewell().await;
    println!("300 streams opened and reset: {heard}; {} reached the origin", origin.count());
    assert_eq!(heard, Heard::Closed(ENHANCE_YOUR_CALM));
    is_served(&node, "a rapid reset").await;
    until("nothing is left in flight", async || {
        node.sample("forefront_proxy_requests_in_flight", &["rest"]).await == 0.0
    })
    .await;
}

/// The same by the node's own resets: what makes it reset streams counts too.
#[tokio::test]
async fn streams_that_make_the_node_reset_them_end_the_connection_too() {
    let (_origin, node) = bed("").await;
    let mut raw = RawH2::connect(node.http).await;
    // "MadeYouReset", CVE-2025-8671.
    for number in 0..2000 {
        let stream = 2 * number + 1;
        let zero = frame(WINDOW_UPDATE, 0, stream, [0; 4]);
        raw.send([headers(stream, 0, &good("POST", "/x")), zero].concat()).await;
    }
    let heard = raw.farewell().await;
    println!("2000 streams with a window update of 0: {heard}");
    assert!(matches!(heard, Heard::Closed(code) if code != 0), "{heard}");
    is_served(&node, "provoked resets").await;
}

#[tokio::test]
async fn an_endless_header_block_ends_the_connection() {
    let (_origin, node) = bed("").await;
    let mut raw = RawH2::connect(node.http).await;
    let before = node.process.resident();
    raw.send(frame(HEADERS, END_STREAM, 1, block(&good("GET", "/")))).await;
    let piece = frame(CONTINUATION, 0, 1, block(&[("x", &"y".repeat(16_000))]));
    for _ in 0..2000 {
        raw.send(&piece).await;
    }
    let heard = raw.heard(1).await;
    println!("2000 CONTINUATION frames of 16 kB: {heard}");
    assert!(
        matches!(heard, Heard::Closed(1..) | Heard::Reset(_) | Heard::Answer(431, _) | Heard::Nothing),
        "{heard}"
    );
    let grown = node.process.resident().saturating_sub(before);
    assert!(grown < FLOOD_BYTES_MAX, "{grown} bytes");
    is_served(&node, "a flood of CONTINUATION").await;
}

#[tokio::test]
async fn empty_continuations_end_the_connection() {
    let (_origin, node) = bed("[limits]\nheader_timeout = \"2s\"").await;
    let mut raw = RawH2::connect(node.http).await;
    raw.send(frame(HEADERS, END_STREAM, 1, block(&good("GET", "/")))).await;
    for _ in 0..100 {
        raw.send(frame(CONTINUATION, 0, 1, []).repeat(1000)).await;
    }
    let heard = raw.heard(1).await;
    println!("100,000 empty CONTINUATION frames: {heard}");
    assert!(
        matches!(heard, Heard::Closed(1..) | Heard::Reset(_) | Heard::Answer(408 | 431, _) | Heard::Nothing),
        "{heard}"
    );
    is_served(&node, "empty CONTINUATION").await;
}

#[tokio::test]
async fn floods_of_small_frames_cost_little_and_hinder_nobody() {
    let (_origin, node) = bed("").await;
    is_served(&node, "nothing").await;
    let before = node.process.resident();
    let floods = [
        ("SETTINGS", frame(SETTINGS, 0, 0, setting(4, 65_535))),
        ("empty SETTINGS", frame(SETTINGS, 0, 0, [])),
        ("PING", frame(PING, 0, 0, [0; 8])),
        ("PING ACK", frame(PING, ACK, 0, [0; 8])),
        ("PRIORITY", frame(crate::bed::raw_h2::PRIORITY, 0, 1, [0, 0, 0, 0, 16])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1])),
        ("empty DATA", frame(DATA, 0, 1, [])),
    ];
    for (what, one) in floods {
        let mut raw = RawH2::connect(node.http).await;
        if what == "empty DATA" {
            raw.send(headers(1, 0, &good("POST", "/x"))).await;
        }
        let begun = Instant::now();
        let batch = one.repeat(1000);
        // A node that no longer reads is a good answer too: the flood is the client's to hold then.
        let mut sent = 0;
        while sent < 200_000 && raw.try_send(&batch, Duration::from_secs(1)).await {
            sent += 1000;
            if sent % 50_000 == 0 {
                is_served(&node, what).await;
            }
        }
        let heard = raw.ends_soon().await;
        let grown = node.process.resident().saturating_sub(before);
        println!("{sent} {what} in {:?}: {heard:?}; memory grew by {} KiB", begun.elapsed(), grown / 1024);
        assert!(grown < FLOOD_BYTES_MAX, "{what}: {grown} bytes");
        is_served(&node, what).await;
    }
}

#[tokio::test]
async fn too_long_a_header_list_is_refused_and_the_connection_goes_on() {
    let (origin, node) = bed("[limits]\nheader_list_bytes = \"16 KiB\"").await;
    let mut raw = RawH2::connect(node.http).await;
    let long = "y".repeat(4000);
    let mut fields = good("GET", "/long");
    fields.extend(["a", "b", "c", "d", "e"].map(|name| (name, &*long)));
    let whole = block(&fields);
    raw.send(frame(HEADERS, END_STREAM, 1, &whole[..16_000])).await;
    raw.send(frame(CONTINUATION, END_HEADERS, 1, &whole[16_000..])).await;
    let heard = raw.heard(1).await;
    assert!(matches!(heard, Heard::Answer(431, _) | Heard::Reset(_)), "{heard}");
    raw.send(get(3, "/good")).await;
    assert_eq!(raw.heard(3).await, Heard::Answer(200, 5), "the connection goes on");
    assert!(origin.seen().iter().all(|request| request.target() != "/long"));
}

#[tokio::test]
async fn content_that_does_not_come_is_not_waited_for() {
    let origin = Origin::answering(|request, _| ok(request.target())).await;
    let impatient = route("rest", "/*", "idle_timeout = \"400ms\"");
    let node = Node::start(&(upstream(&[origin.address], "") + &impatient)).await;
    let mut raw = RawH2::connect(node.http).await;
    raw.send(headers(1, 0, &good("POST", "/x"))).await;
    raw.send(frame(DATA, 0, 1, b"half")).await;
    let begun = Instant::now();
    let heard = raw.heard(1).await;
    assert!(matches!(heard, Heard::Answer(408, _) | Heard::Reset(_)), "{heard}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    is_served(&node, "half a request").await;
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go_and_a_client_that_left_frees_its_request() {
    let (origin, node) = bed("[limits]\nidle_timeout = \"500ms\"\nheader_timeout = \"500ms\"").await;
    let mut idle = RawH2::connect(node.http).await;
    idle.send(get(1, "/x")).await;
    assert_eq!(idle.heard(1).await, Heard::Answer(200, 2));
    assert_eq!(idle.next_of(GOAWAY).await.map(|frame| frame.payload[4..8].to_vec()), Ok(vec![0; 4]));
    // One that never begins a request is not idle for ever either.
    let mut fresh = RawH2::connect(node.http).await;
    assert!(matches!(fresh.farewell().await, Heard::Closed(_) | Heard::Nothing));

    let leaving = H2::plain(node.http).await;
    let asked = tokio::spawn(async move { leaving.ask(&Ask::get("/hangs")).await });
    until("it is in flight", async || origin.seen().iter().any(|r| r.target() == "/hangs")).await;
    asked.abort();
    until("it is given up", async || {
        node.sample("forefront_proxy_requests_in_flight", &["rest"]).await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_reset_stream_frees_its_request_and_its_connection_goes_on() {
    let (origin, node) = bed("").await;
    let mut raw = RawH2::connect(node.http).await;
    raw.send(get(1, "/hangs")).await;
    until("it is in flight", async || origin.count() == 1).await;
    raw.send(frame(RST_STREAM, 0, 1, CANCEL.to_be_bytes())).await;
    until("it is given up", async || {
        node.sample("forefront_proxy_requests_in_flight", &["rest"]).await == 0.0
    })
    .await;
    raw.send(get(3, "/on")).await;
    assert_eq!(raw.heard(3).await, Heard::Answer(200, 3));
}
