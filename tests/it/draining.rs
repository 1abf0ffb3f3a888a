//! The end of a node over each protocol: what is in flight is finished, who is idle is told, nobody is left hanging.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::bed::raw_h2::{self, GOAWAY, RawH2};
use crate::bed::raw_h3::{self, RawH3};
use crate::bed::{
    Ask, Client, End, H3, Heard, Node, Origin, Protocol, SELF_SIGNED, Wire, ask, get, https, ok, route,
    until, upstream,
};

const H3_NO_ERROR: u64 = 0x100;
const H3_REQUEST_REJECTED: u64 = 0x10b;

/// Holds `/held` until it is let go, and answers all else.
async fn bed(drain: &str) -> (Origin, Node, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let kept = gate.clone();
    let origin = Origin::scripted(move |request, mut wire: Wire| {
        let gate = kept.clone();
        async move {
            if request.target() == "/held" {
                gate.acquire().await.ok()?.forget();
            }
            wire.send(ok(request.target())).await;
            Some(wire)
        }
    })
    .await;
    let origins = upstream(&[origin.address], "") + &route("rest", "/*", "");
    let node = Node::start(&(https(SELF_SIGNED) + &format!("[drain]\n{drain}\n") + &origins)).await;
    (origin, node, gate)
}

async fn is_draining(node: &Node) {
    until("/ready fails", async || get(node.health, "/ready").await.status() == 503).await;
}

#[tokio::test]
async fn a_request_in_flight_is_finished_over_each_protocol() {
    for protocol in Protocol::ALL {
        let (origin, mut node, gate) = bed("delay = \"300ms\"\ngrace = \"10s\"").await;
        let mut client = Client::connect(&node, protocol).await;
        let asked = tokio::spawn(async move { client.ask(&Ask::get("/held")).await });
        until("it is in flight", async || origin.count() == 1).await;
        node.process.signal(libc::SIGTERM);
        is_draining(&node).await;
        // The balancer has not noticed yet.
        let late = ask(&node, protocol, &Ask::get("/late")).await;
        assert!(late.is(200), "a new connection within the delay, over {protocol:?}: {late:?}");
        until("the ports close", async || tokio::net::TcpStream::connect(node.https).await.is_err()).await;
        gate.add_permits(1);
        let answer = asked.await.expect("it does not panic");
        assert!(answer.is(200) && answer.text() == "/held", "over {protocol:?}: {answer:?}");
        assert_eq!(node.process.ended().await.code(), Some(0), "over {protocol:?}");
    }
}

#[tokio::test]
async fn goaway_is_said_over_http2_and_what_came_before_it_is_served() {
    let (origin, mut node, gate) = bed("delay = \"0s\"\ngrace = \"10s\"").await;
    let (mut busy, mut idle) = (RawH2::connect(node.http).await, RawH2::connect(node.http).await);
    idle.send(raw_h2::get(1, "/idle")).await;
    assert_eq!(idle.heard(1).await, Heard::Answer(200, 5));
    busy.send(raw_h2::get(1, "/held")).await;
    until("it is in flight", async || origin.seen().iter().any(|r| r.target() == "/held")).await;
    node.process.signal(libc::SIGTERM);
    for (what, raw) in [("busy", &mut busy), ("idle", &mut idle)] {
        let goaway = raw.next_of(GOAWAY).await.unwrap_or_else(|end| panic!("{what}: no GOAWAY, {end:?}"));
        assert_eq!(goaway.payload[4..8], [0; 4], "{what}: NO_ERROR");
    }
    gate.add_permits(1);
    assert_eq!(busy.heard(1).await, Heard::Answer(200, 5));
    assert!(matches!(busy.farewell().await, Heard::Closed(0) | Heard::Nothing), "it ends, and gently");
    assert_eq!(node.process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn goaway_is_said_over_http3_and_what_comes_after_it_is_rejected() {
    let (origin, mut node, gate) = bed("delay = \"0s\"\ngrace = \"10s\"").await;
    let busy = RawH3::connect(node.https).await;
    let mut control = busy.control().await;
    let (mut send, mut receive) = busy.stream(raw_h3::get("/held")).await.expect("it is open");
    let _ = send.finish();
    until("it is in flight", async || origin.count() == 1).await;
    node.process.signal(libc::SIGTERM);
    // First one that refuses nothing yet, so that requests on their way are served; then the last one.
    let mut said = Vec::new();
    while said.last().is_none_or(|id| *id > 4) {
        said.push(control.goaway().await.expect("GOAWAY before the end of the connection"));
    }
    println!("GOAWAY with {said:?}");
    assert!(said.is_sorted_by(|one, next| one >= next) && said.iter().all(|id| id % 4 == 0), "{said:?}");
    assert_eq!(said.last(), Some(&4), "the one request there was is served");
    let late = busy.ask(raw_h3::get("/late")).await;
    assert_eq!(late, Heard::Reset(H3_REQUEST_REJECTED), "a request after GOAWAY may be made elsewhere");
    gate.add_permits(1);
    assert_eq!(busy.heard(&mut receive).await, Heard::Answer(200, 5));
    assert_eq!(busy.farewell().await, Heard::Closed(H3_NO_ERROR), "closed at once, not timed out");
    assert_eq!(node.process.ended().await.code(), Some(0));
    assert!(origin.seen().iter().all(|request| request.target() != "/late"));
}

#[tokio::test]
async fn idle_connections_are_told_at_once_and_do_not_hold_the_node() {
    let (_origin, mut node, _gate) = bed("delay = \"0s\"\ngrace = \"10s\"").await;
    let mut clients = Vec::new();
    for protocol in Protocol::ALL {
        let mut client = Client::connect(&node, protocol).await;
        assert!(client.get("/x").await.is(200), "over {protocol:?}");
        clients.push(client);
    }
    let quiet = H3::connect(node.https).await;
    let told = Instant::now();
    node.process.signal(libc::SIGTERM);
    assert_eq!(quiet.quic.closed().await, End::Closed(H3_NO_ERROR), "a connection without a request too");
    assert_eq!(node.process.ended().await.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
}

#[tokio::test]
async fn what_outlasts_the_grace_period_is_cut_over_each_protocol() {
    for protocol in Protocol::ALL {
        let (origin, mut node, _gate) = bed("delay = \"0s\"\ngrace = \"300ms\"").await;
        let mut client = Client::connect(&node, protocol).await;
        let asked = tokio::spawn(async move { client.ask(&Ask::get("/held")).await });
        until("it is in flight", async || origin.count() == 1).await;
        node.process.signal(libc::SIGTERM);
        assert_eq!(node.process.ended().await.code(), Some(0), "over {protocol:?}");
        let answer = asked.await.expect("it does not panic");
        assert!(answer.end != End::Whole || answer.status() >= 500, "over {protocol:?}: {answer:?}");
    }
}
