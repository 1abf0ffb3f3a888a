//! TLS: what is agreed upon, which certificate is shown, what is resumed, and who is waited for.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;

use crate::bed::{
    Certificate, End, H2, H3, Node, Origin, Quic, SELF_SIGNED, Secured, Tls, Wire, https, ok, route, until,
    upstream,
};

async fn origin() -> Origin {
    Origin::answering(|request, _| ok(request.target())).await
}

async fn node(origin: &Origin, tls: &str, more: &str) -> Node {
    let origins = upstream(&[origin.address], "") + &route("rest", "/*", "");
    Node::start(&(https(tls) + more + &origins)).await
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[tokio::test]
async fn both_versions_and_what_alpn_chooses() {
    let origin = origin().await;
    let node = node(&origin, SELF_SIGNED, "").await;
    for version in [&TLS12, &TLS13] {
        for (offered, chosen) in [
            (&["h2", "http/1.1"][..], "h2"),
            (&["http/1.1", "h2"], "h2"),
            (&["http/1.1"], "http/1.1"),
            (&["spdy/3", "http/1.1"], "http/1.1"),
            (&[], ""),
        ] {
            let mut wire = Tls::of_version(offered, &[version]).connect(node.https).await;
            assert_eq!(wire.protocol(), chosen, "of {offered:?} in {version:?}");
            if chosen != "h2" {
                let answer = wire.get("/x").await;
                assert!(answer.is(200) && answer.text() == "/x", "{offered:?} in {version:?}: {answer:?}");
            }
        }
    }
    let stream = Wire::connect(node.https).await.stream;
    let strange = Tls::new(&["spdy/3"]).over(stream, "localhost").await;
    assert!(strange.is_err(), "a client that speaks nothing the node does is told so");
    assert!(H2::secured(node.https).await.get("/y").await.is(200));
}

#[tokio::test]
async fn what_is_no_tls_is_ended_at_once_and_who_is_silent_in_time() {
    let origin = origin().await;
    let node = node(&origin, SELF_SIGNED, "[limits]\nhandshake_timeout = \"400ms\"\n").await;
    let begun = Instant::now();
    for bytes in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "\x16\x03\x01\x02"] {
        let mut wire = Wire::connect(node.https).await;
        wire.send(bytes).await;
        let (said, _) = wire.rest().await;
        assert!(!said.starts_with(b"HTTP/"), "{bytes:?} is not answered in the clear");
    }
    let mut silent = Wire::connect(node.https).await;
    assert_ne!(silent.rest().await.1, End::Whole);
    // Each byte does not begin the time anew.
    let mut trickling = Wire::connect(node.https).await;
    let since = Instant::now();
    for byte in b"\x16\x03\x01\x01\x00\x01".iter().cycle() {
        trickling.send([*byte]).await;
        if !trickling.is_silent_for(Duration::from_millis(50)).await {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(4), "a handshake that trickles goes on");
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(Tls::new(&[]).connect(node.https).await.get("/after").await.is(200));
}

/// The certificate new connections are shown, over TCP and over QUIC.
async fn shown(node: &Node) -> [Vec<u8>; 2] {
    let (tcp, udp) = (Tls::new(&["http/1.1"]), Tls::new(&["h3"]));
    drop(tcp.connect(node.https).await);
    drop(Quic::connect_with(node.https, &udp, quinn::TransportConfig::default()).await);
    [tcp, udp].map(|tls| tls.shown().pop().expect("nothing was there to resume"))
}

/// Replaces the files, and waits until both show the new certificate and who was there is still served.
async fn replace_and_see(how: &str, then: impl Fn(&Node)) {
    let (origin, directory) = (origin().await, directory());
    let old = Certificate::write(directory.path(), "node", &["localhost"]);
    let node = node(&origin, &old.keys(), "").await;
    assert_eq!(shown(&node).await, [old.der.clone(), old.der.clone()], "{how}: at first");
    let mut one = Tls::new(&["http/1.1"]).connect(node.https).await;
    let (two, three) = (H2::secured(node.https).await, H3::connect(node.https).await);
    assert!(one.get("/1").await.is(200) && two.get("/2").await.is(200) && three.get("/3").await.is(200));

    let new = Certificate::write(directory.path(), "node", &["localhost"]);
    assert_ne!(old.der, new.der);
    then(&node);
    until(&format!("{how}: the new certificate"), async || {
        shown(&node).await == [new.der.clone(), new.der.clone()]
    })
    .await;
    for path in ["/a", "/b"] {
        let answers = [one.get(path).await, two.get(path).await, three.get(path).await];
        assert!(answers.iter().all(|answer| answer.is(200)), "{how}: open connections live on: {answers:?}");
    }
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_after_sighup() {
    replace_and_see("SIGHUP", |node| node.process.signal(libc::SIGHUP)).await;
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_by_itself() {
    replace_and_see("by itself", |_| {}).await;
}

#[tokio::test]
async fn files_that_hold_no_certificate_change_nothing() {
    let (origin, directory) = (origin().await, directory());
    let good = Certificate::write(directory.path(), "node", &["localhost"]);
    let text = https(&good.keys()) + &upstream(&[origin.address], "");
    let node = Node::start(&(text.clone() + &route("old", "/old", ""))).await;
    let other = Certificate::write(directory.path(), "other", &["localhost"]);
    for (what, path, content) in [
        ("nonsense", &good.certificate, b"nonsense".to_vec()),
        ("a key that is another's", &good.private_key, std::fs::read(&other.private_key).expect("written")),
        ("nothing", &good.certificate, Vec::new()),
    ] {
        let kept = std::fs::read(path).expect("it was written");
        std::fs::write(path, content).expect("the directory is ours");
        // That the signal was dealt with is seen by what the log says of it.
        let before = node.process.log().lines().count();
        node.process.signal(libc::SIGHUP);
        until(&format!("{what}: the log says so"), async || node.process.log().lines().count() > before)
            .await;
        assert_eq!(shown(&node).await, [good.der.clone(), good.der.clone()], "{what}");
        std::fs::write(path, kept).expect("the directory is ours");
    }
    node.rewrite(&(text + &route("new", "/new", "")));
    node.process.signal(libc::SIGHUP);
    until("the node still reloads", async || node.get("/new").await.is(200)).await;
}

#[tokio::test]
async fn each_name_has_its_certificate() {
    let (origin, directory) = (origin().await, directory());
    let hosts = [("a", "a.example"), ("b", "b.example"), ("wild", "*.c.example")];
    let made = hosts.map(|(file, host)| Certificate::write(directory.path(), file, &[host]));
    let tables = made.iter().zip(hosts).map(|(certificate, (_, host))| {
        format!("[[tls.certificate]]\nnames = [\"{host}\"]\n{}", certificate.keys())
    });
    let node = node(&origin, &tables.collect::<String>(), "").await;
    let cases = [
        ("a.example", 0),
        ("b.example", 1),
        ("B.Example", 1),
        ("x.c.example", 2),
        ("x.y.c.example", 0),
        ("unknown.example", 0),
    ];
    for (name, number) in cases {
        let tls = Tls::new(&["http/1.1"]);
        let mut wire = tls.connect_as(node.https, name).await;
        assert!(tls.shown() == [made[number].der.clone()], "{name}: expected that of {}", hosts[number].1);
        assert!(wire.get("/").await.is(200), "{name}");
    }
    let numeric = Tls::new(&["http/1.1"]);
    drop(numeric.connect_as(node.https, "127.0.0.1").await);
    assert!(numeric.shown() == [made[0].der.clone()], "no name asked for: the first");
}

#[tokio::test]
async fn a_certificate_of_the_nodes_own_is_kept_over_restarts() {
    let (origin, directory) = (origin().await, directory());
    let state =
        format!("[node]\nname = \"bed\"\nthreads = 2\nstate_dir = \"{}\"\n", directory.path().display());
    let mut kept: Option<[Vec<u8>; 2]> = None;
    for _ in 0..2 {
        let mut node = node(&origin, SELF_SIGNED, &state).await;
        let now = shown(&node).await;
        assert!(now[0] == now[1], "one certificate over TCP and QUIC");
        assert!(kept.is_none_or(|kept| kept == now), "the same after a restart");
        kept = Some(now);
        node.process.signal(libc::SIGTERM);
        assert_eq!(node.process.ended().await.code(), Some(0));
    }
    let key = directory.path().join("tls/self-signed.key");
    let mode = std::fs::metadata(&key).expect("the key is kept").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{} is its owner's only: {mode:o}", key.display());
}

/// Two nodes with one certificate; with one secret too, where `secret` is given.
async fn pair(origin: &Origin, directory: &Path, secret: Option<&str>) -> [Node; 2] {
    let certificate = Certificate::write(directory, "node", &["localhost"]);
    let mut keys = certificate.keys();
    if let Some(secret) = secret {
        let file = directory.join("secret");
        std::fs::write(&file, secret).expect("the directory is ours");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
        keys += &format!("shared_secret_file = \"{}\"\n", file.display());
    }
    [node(origin, &keys, "").await, node(origin, &keys, "").await]
}

const SECRET: &str = "7f3a9d0c5b1e8264f0a7c3d95e6b1824a9c07d3f5e8b6124c0d7a3f9158e6b42\n";

/// A request on a new connection, after which there is a ticket to resume it with.
async fn connection(tls: &Tls, node: &Node) -> Secured {
    let before = tls.tickets();
    let mut wire = tls.connect(node.https).await;
    assert!(wire.get("/x").await.is(200));
    assert!(tls.tickets() > before, "a ticket came with the session");
    wire
}

#[tokio::test]
async fn a_session_of_one_node_is_resumed_on_the_other() {
    let (origin, directory) = (origin().await, directory());
    let [a, b] = pair(&origin, directory.path(), Some(SECRET)).await;
    for version in [&TLS13, &TLS12] {
        let tls = Tls::of_version(&["http/1.1"], &[version]);
        assert!(!connection(&tls, &a).await.is_resumed(), "{version:?}: the first");
        assert!(tls.connect(a.https).await.is_resumed(), "{version:?}: on the same node");
        let tls = Tls::of_version(&["http/1.1"], &[version]);
        drop(connection(&tls, &a).await);
        let mut wire = tls.connect(b.https).await;
        assert!(wire.is_resumed(), "{version:?}: on the other node");
        assert!(wire.get("/y").await.is(200));
        assert_eq!(tls.shown().len(), 1, "{version:?}: who resumes is shown no certificate");
    }
}

#[tokio::test]
async fn a_session_over_quic_is_resumed_on_the_other_node() {
    let (origin, directory) = (origin().await, directory());
    let [a, b] = pair(&origin, directory.path(), Some(SECRET)).await;
    let tls = Tls::new(&["h3"]);
    let first = H3::connect_with(a.https, &tls).await;
    assert!(first.get("/x").await.is(200));
    until("a ticket", async || tls.tickets() > 0).await;
    assert_eq!(tls.shown().len(), 1);
    let second = H3::connect_with(b.https, &tls).await;
    assert!(second.get("/y").await.is(200));
    assert_eq!(tls.shown().len(), 1, "who resumes is shown no certificate");
}

#[tokio::test]
async fn without_a_secret_in_common_a_session_begins_anew_and_is_served() {
    let (origin, directory) = (origin().await, directory());
    let [a, b] = pair(&origin, directory.path(), None).await;
    for version in [&TLS13, &TLS12] {
        let tls = Tls::of_version(&["http/1.1"], &[version]);
        drop(connection(&tls, &a).await);
        let mut wire = tls.connect(b.https).await;
        assert!(!wire.is_resumed(), "{version:?}: the other node has other keys");
        assert!(wire.get("/y").await.is(200), "{version:?}");
    }
}

#[tokio::test]
async fn a_session_is_resumed_after_a_restart_where_the_secret_is_kept() {
    let (origin, directory) = (origin().await, directory());
    let [a, _] = pair(&origin, directory.path(), Some(SECRET)).await;
    let tls = Tls::new(&["http/1.1"]);
    drop(connection(&tls, &a).await);
    drop(a);
    let keys = std::fs::read_to_string(directory.path().join("secret")).expect("it was written");
    assert_eq!(keys, SECRET, "the node does not change the file");
    let certificate = directory.path().join("node.pem");
    let keys = format!(
        "certificate = \"{}\"\nprivate_key = \"{}\"\nshared_secret_file = \"{}\"\n",
        certificate.display(),
        directory.path().join("node.key").display(),
        directory.path().join("secret").display()
    );
    let again = node(&origin, &keys, "").await;
    assert!(tls.connect(again.https).await.is_resumed());
}
