//! Scenarios of a whole pool, the later ones over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;

/// No scenario takes a tenth of it, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn metrics() -> (prometheus::Registry, Metrics) {
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry).expect("an empty registry");
    (registry, metrics)
}

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

fn config(addresses: &[&str]) -> Config {
    Config::new("test", addresses.iter().map(|text| address(text)))
}

fn pool(addresses: &[&str]) -> Arc<Pool> {
    Pool::new(config(addresses), metrics().1).expect("a good configuration")
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, latency: Duration::from_millis(1) }
}

const TWO: [&str; 2] = ["127.0.0.1:1", "127.0.0.1:2"];

#[test]
fn picks_the_least_busy_and_never_a_tried_one() {
    let (pool, now) = (pool(&TWO), Instant::now());
    let first = pool.pick(&[], now).expect("usable");
    let second = pool.pick(&[], now).expect("usable");
    assert_ne!(first.id(), second.id());
    assert_eq!(pool.pick(&[first.id()], now).expect("the other").id(), second.id());
    assert_eq!(pool.pick(&[first.id(), second.id()], now).err(), Some(PickError::AllTried));
    assert_eq!(first.endpoint().in_flight(), 1);
    let endpoint = Arc::clone(first.endpoint());
    drop(first);
    assert_eq!(endpoint.in_flight(), 0);
}

#[test]
fn a_full_endpoint_is_busy() {
    let mut config = config(&TWO);
    config.requests_in_flight = 2;
    let (pool, now) = (Pool::new(config, metrics().1).expect("good"), Instant::now());
    let leases: Vec<_> = (0..4).map(|_| pool.pick(&[], now).expect("room")).collect();
    assert_eq!(pool.pick(&[], now).err(), Some(PickError::Busy));
    drop(leases);
    assert!(pool.pick(&[], now).is_ok());
}

#[test]
fn threads_never_exceed_the_cap() {
    let mut config = config(&TWO);
    config.requests_in_flight = 3;
    let pool = Pool::new(config, metrics().1).expect("good");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let lease = pool.pick(&[], Instant::now());
                    // A refused claim is taken back a moment later, so up to one more per other thread shows.
                    assert!(pool.endpoints().iter().all(|endpoint| endpoint.in_flight() <= 3 + 4));
                    drop(lease);
                }
            });
        }
    });
    assert!(pool.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
}

#[test]
fn a_refused_connection_ejects_at_once_and_even_the_last() {
    let (pool, now) = (pool(&TWO), Instant::now());
    for _ in 0..2 {
        pool.pick(&[], now).expect("usable").report(Outcome::ConnectFailed, now);
    }
    assert_eq!(pool.pick(&[], now).err(), Some(PickError::NoneHealthy));
    assert!(pool.pick(&[], now + Duration::from_secs(5)).is_ok(), "it ends by itself");
}

#[test]
fn a_sick_endpoint_is_ejected_and_the_last_is_not() {
    let (pool, now) = (pool(&TWO), Instant::now());
    let other = pool.endpoints()[1].id();
    for _ in 0..5 {
        pool.pick(&[other], now).expect("usable").report(answered(500), now);
    }
    let sick = pool.endpoints()[0].id();
    assert_eq!(pool.pick(&[other], now).err(), Some(PickError::AllTried));
    for _ in 0..50 {
        pool.pick(&[sick], now).expect("the last one stays").report(answered(500), now);
    }
    let states: Vec<_> = pool.status().iter().map(|status| status.state).collect();
    assert_eq!(states, ["ejected", "unknown"]);
    assert_eq!(pool.status()[0].last_error.as_deref(), Some("answered 500"));
}

#[test]
fn drained_endpoints_get_nothing_new() {
    let (pool, now) = (pool(&TWO), Instant::now());
    assert!(!pool.drain("127.0.0.1:9"));
    assert!(pool.drain(TWO[0]));
    for _ in 0..10 {
        assert_eq!(pool.pick(&[], now).expect("the other").label(), TWO[1]);
    }
    assert!(pool.drain(TWO[1]));
    assert_eq!(pool.pick(&[], now).err(), Some(PickError::NoneHealthy));
    assert!(pool.undrain(TWO[0]) && pool.undrain(TWO[1]));
    assert!(pool.pick(&[], now).is_ok());
}

#[test]
fn a_reload_keeps_the_state_of_those_that_stay() {
    let (registry, metrics) = metrics();
    let pool = Pool::new(config(&TWO), metrics).expect("good");
    let now = Instant::now();
    let stays = pool.endpoints()[0].id();
    let lease = pool.pick(&[stays], now).expect("the one that goes");
    pool.pick(&[lease.id()], now).expect("the one that stays").report(Outcome::ConnectFailed, now);
    pool.drain(TWO[1]);
    pool.reload(config(&[TWO[0], "127.0.0.1:3"])).expect("good");
    let labels: Vec<_> = pool.endpoints().iter().map(|endpoint| endpoint.label().to_owned()).collect();
    assert_eq!(labels, [TWO[0], "127.0.0.1:3"]);
    assert_eq!(pool.endpoints()[0].id(), stays);
    assert_eq!(pool.status()[0].state, "ejected");
    lease.report(answered(200), now);
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    assert!(
        text.contains("forefront_upstream_endpoint_up{endpoint=\"127.0.0.1:1\",upstream=\"test\"} 0"),
        "{text}"
    );
    assert!(text.contains("forefront_upstream_ejections_total"), "{text}");
    assert!(!text.contains("127.0.0.1:2"), "its series are gone: {text}");
    pool.reload(config(&TWO)).expect("good");
    assert_eq!(pool.status()[1].state, "drained", "a drain lasts until undrain");
    assert!(matches!(pool.reload(Config::new("x", [])), Err(Error::NameChanged { .. })));
    assert!(matches!(pool.reload(config(&[])), Err(Error::NoEndpoints(_))));
}

#[test]
fn names_become_endpoints_and_keep_their_drain() {
    let (pool, now) = (pool(&["name:80"]), Instant::now());
    assert_eq!(pool.pick(&[], now).err(), Some(PickError::NoneHealthy));
    let sockets = |texts: &[&str]| {
        texts.iter().map(|text| text.parse().expect("a socket")).collect::<Vec<SocketAddr>>()
    };
    pool.set_resolved(&address("name:80"), sockets(&["192.0.2.1:80", "192.0.2.2:80", "192.0.2.1:80"]));
    assert_eq!(pool.endpoints().len(), 2);
    assert!(pool.drain("192.0.2.1:80"));
    pool.set_resolved(&address("name:80"), sockets(&["192.0.2.2:80"]));
    pool.set_resolved(&address("name:80"), sockets(&["192.0.2.1:80", "192.0.2.2:80"]));
    assert_eq!(pool.pick(&[], now).expect("the other").label(), "192.0.2.2:80");
    assert!(pool.drain("name:80"));
    assert_eq!(pool.pick(&[], now).err(), Some(PickError::NoneHealthy));
    assert!(pool.undrain("name:80"));
    assert!(pool.endpoints().iter().all(|endpoint| !endpoint.is_drained()));
    let many = (0..1000).map(|n| SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8], 80))).collect();
    pool.set_resolved(&address("name:80"), many);
    assert_eq!(pool.endpoints().len(), 64);
}

#[test]
fn the_budget_ends() {
    let mut config = config(&TWO);
    config.retry = RetryConfig { budget: 0.5, budget_min_per_second: 0.0, attempts: 3 };
    let (registry, metrics) = metrics();
    let (pool, now) = (Pool::new(config, metrics).expect("good"), Instant::now());
    assert_eq!((0..500).filter(|_| pool.may_retry(now)).count(), 100, "what it starts with");
    (0..4).for_each(|_| pool.deposit());
    assert_eq!((0..10).filter(|_| pool.may_retry(now)).count(), 2);
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    assert!(
        text.contains("forefront_upstream_retries_total{upstream=\"test\",verdict=\"spent\"} 102"),
        "{text}"
    );
}

const OK: u8 = 0;
const SICK: u8 = 1;
const HUNG: u8 = 2;

/// An origin whose mode can be changed. Hung: takes the request and never answers.
struct Origin {
    address: SocketAddr,
    mode: Arc<AtomicU8>,
    probes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Origin {
    async fn start(mode: u8) -> Origin {
        Origin::at(SocketAddr::from(([127, 0, 0, 1], 0)), mode).await
    }

    async fn at(address: SocketAddr, mode: u8) -> Origin {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (mode, probes) = (Arc::new(AtomicU8::new(mode)), Arc::new(AtomicU64::new(0)));
        let (seen_mode, seen_probes) = (Arc::clone(&mode), Arc::clone(&probes));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                seen_probes.fetch_add(1, Relaxed);
                connections.spawn(serve(stream, seen_mode.load(Relaxed)));
            }
        });
        Origin { address, mode, probes, task }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Relaxed);
    }

    /// Closes the port.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, mode: u8) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    assert!(request.starts_with(b"GET /ping HTTP/1.1\r\nHost: "), "{}", request.escape_ascii());
    let answer: &[u8] = match mode {
        OK => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong",
        SICK => b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 10\r\n\r\nI feel bad",
        _ => std::future::pending().await,
    };
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
}

fn quick_health(config: &mut Config, timeout: Duration) {
    let interval = Duration::from_millis(20);
    config.health = Some(HealthConfig { interval, timeout, ..HealthConfig::default() });
}

fn probed(addresses: &[Address], timeout: Duration) -> (Arc<Pool>, DropGuard) {
    let mut config = Config::new("test", addresses.iter().cloned());
    quick_health(&mut config, timeout);
    start(config)
}

fn start(config: Config) -> (Arc<Pool>, DropGuard) {
    let pool = Pool::new(config, metrics().1).expect("good");
    let shutdown = CancellationToken::new();
    spawn_prober(Arc::clone(&pool), shutdown.clone());
    (pool, shutdown.drop_guard())
}

/// Waits until the pool's states are these.
async fn states(pool: &Pool, expected: &[&str]) {
    let reached = async {
        while pool.status().iter().map(|status| status.state).ne(expected.iter().copied()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, reached).await.is_err() {
        panic!("never became {expected:?}: {:?}", pool.status());
    }
}

#[tokio::test]
async fn probes_find_the_sick_the_closed_and_the_recovered() {
    let (one, two) = (Origin::start(OK).await, Origin::start(OK).await);
    let (pool, _guard) = probed(&[Address::Socket(one.address), Address::Socket(two.address)], PATIENCE);
    states(&pool, &["up", "up"]).await;
    one.set(SICK);
    states(&pool, &["down", "up"]).await;
    assert_eq!(pool.status()[0].last_error.as_deref(), Some("probe: answered 500"));
    let address = two.address;
    two.stop().await;
    states(&pool, &["down", "down"]).await;
    assert_eq!(pool.pick(&[], Instant::now()).err(), Some(PickError::NoneHealthy));
    one.set(OK);
    let _two = Origin::at(address, OK).await;
    states(&pool, &["up", "up"]).await;
}

#[tokio::test]
async fn those_who_wait_on_a_hung_endpoint_are_told() {
    let origin = Origin::start(OK).await;
    let (pool, _guard) = probed(&[Address::Socket(origin.address)], Duration::from_millis(50));
    states(&pool, &["up"]).await;
    let lease = pool.pick(&[], Instant::now()).expect("up");
    let waiting = tokio::spawn(lease.endpoint_down());
    origin.set(HUNG);
    tokio::time::timeout(PATIENCE, waiting).await.expect("told").expect("no panic");
    assert_eq!(pool.status()[0].state, "down");
    tokio::time::timeout(PATIENCE, lease.endpoint_down()).await.expect("also who asks later");
    origin.set(OK);
    states(&pool, &["up"]).await;
}

#[tokio::test]
async fn a_probe_heals_an_ejection() {
    let origin = Origin::start(OK).await;
    let mut config = Config::new("test", [Address::Socket(origin.address)]);
    quick_health(&mut config, PATIENCE);
    config.passive.eject_for = Duration::from_secs(3600);
    config.passive.eject_for_max = Duration::from_secs(3600);
    let (pool, _guard) = start(config);
    states(&pool, &["up"]).await;
    pool.pick(&[], Instant::now()).expect("up").report(Outcome::ConnectFailed, Instant::now());
    states(&pool, &["up"]).await;
}

#[tokio::test]
async fn failing_traffic_brings_the_next_probe_forward() {
    let origin = Origin::start(OK).await;
    let mut config = Config::new("test", [Address::Socket(origin.address)]);
    // Without hurry the second probe would come after an hour.
    let health =
        HealthConfig { interval: Duration::from_secs(3600), timeout: PATIENCE, ..HealthConfig::default() };
    config.health = Some(health);
    let (pool, _guard) = start(config);
    pool.pick(&[], Instant::now()).expect("unknown is usable").report(Outcome::Broken, Instant::now());
    states(&pool, &["up"]).await;
    assert_eq!(origin.probes.load(Relaxed), 1);
}

#[tokio::test]
async fn an_endpoint_that_answers_traffic_is_busy_and_not_hung() {
    let origin = Origin::start(HUNG).await;
    let (registry, metrics) = metrics();
    let mut config = Config::new("test", [Address::Socket(origin.address)]);
    quick_health(&mut config, Duration::from_millis(100));
    let pool = Pool::new(config, metrics).expect("good");
    let shutdown = CancellationToken::new();
    let _guard = shutdown.clone().drop_guard();
    let lease = pool.pick(&[], Instant::now()).expect("usable");
    // In the future, so that a stall of this machine does not look like a hung endpoint.
    lease.report(answered(200), Instant::now() + 2 * PATIENCE);
    spawn_prober(Arc::clone(&pool), shutdown);
    let busy = async {
        loop {
            let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
            if text.contains("result=\"busy\",upstream=\"test\"} 3") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, busy).await.expect("three busy probes");
    assert_eq!(pool.status()[0].state, "unknown");
}

#[tokio::test]
async fn a_name_is_resolved_and_probed() {
    let origin = Origin::start(OK).await;
    let name = Address::Name { host: "localhost".to_owned(), port: origin.address.port() };
    let (pool, _guard) = probed(&[name], PATIENCE);
    let up = async {
        while !pool.status().iter().any(|s| s.state == "up" && s.address == origin.address.to_string()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, up).await.expect("localhost has 127.0.0.1");
}

#[tokio::test]
async fn unix_sockets_and_reloaded_endpoints_are_probed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, OK));
        }
    });
    let (unix, missing) = (Address::Unix(path.clone()), Address::Unix(directory.path().join("missing")));
    let (pool, _guard) = probed(std::slice::from_ref(&unix), PATIENCE);
    states(&pool, &["up"]).await;
    let lease = pool.pick(&[], Instant::now()).expect("up");
    assert_eq!((lease.unix_path(), lease.address()), (Some(path.as_path()), None));
    let mut config = Config::new("test", [unix, missing]);
    quick_health(&mut config, PATIENCE);
    pool.reload(config.clone()).expect("good");
    states(&pool, &["up", "down"]).await;
    config.health = None;
    pool.reload(config).expect("good");
    states(&pool, &["unknown", "unknown"]).await;
}

/// Made for these tests, for the name origin.test, until 2120; trusted by nobody else.
const ORIGIN_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSMWBb+JS35Z7TcLp
9/0AufD6847YcdBreuZoYI42mzGhRANCAARRco1LdRbkmBkdw/xnmSvCZligl1od
iAPVCAILxZWMtc8vclFLIM1cxB4FvN665JiChQ8EEHJ9PH1MSP3zdz3Y
-----END PRIVATE KEY-----
";
const ORIGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBZTCCAQqgAwIBAgIBATAKBggqhkjOPQQDAjAWMRQwEgYDVQQDDAtvcmlnaW4u
dGVzdDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowFjEUMBIGA1UE
AwwLb3JpZ2luLnRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARRco1LdRbk
mBkdw/xnmSvCZligl1odiAPVCAILxZWMtc8vclFLIM1cxB4FvN665JiChQ8EEHJ9
PH1MSP3zdz3Yo0cwRTAWBgNVHREEDzANggtvcmlnaW4udGVzdDAMBgNVHRMBAf8E
AjAAMB0GA1UdDgQWBBSVkpdcPh5sG19aowtb/oA9Cq023jAKBggqhkjOPQQDAgNJ
ADBGAiEA3wHlYF3j7LyERegqIcn4uhmeb7rqfgExE0PkjYxy8qgCIQDXZXlthMKm
R3Iuqeqw7aXK+soCtkmHq5U9zP79WX34jw==
-----END CERTIFICATE-----
";

/// An origin over TLS that answers well.
async fn tls_origin() -> SocketAddr {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_slice(ORIGIN_CERTIFICATE.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(ORIGIN_KEY.as_bytes()).expect("PEM");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
        .expect("a matching pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve(stream, OK));
            }
        }
    });
    address
}

#[tokio::test]
async fn tls_endpoints_are_verified() {
    let address = tls_origin().await;
    let directory = tempfile::tempdir().expect("a directory");
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, ORIGIN_CERTIFICATE).expect("written");
    let sni = |name: &str| Some(name.to_owned());
    let cases = [
        (TlsConfig { sni: sni("origin.test"), ca_file: Some(ca_file.clone()), verify: true }, "up"),
        (TlsConfig { sni: sni("other.test"), ca_file: Some(ca_file.clone()), verify: true }, "down"),
        (TlsConfig { sni: None, ca_file: Some(ca_file), verify: true }, "down"),
        (TlsConfig { sni: None, ca_file: None, verify: false }, "up"),
    ];
    for (tls, expected) in cases {
        let mut config = Config::new("test", [Address::Socket(address)]);
        quick_health(&mut config, PATIENCE);
        config.tls = Some(tls);
        let (pool, _guard) = start(config);
        states(&pool, &[expected]).await;
    }
}

#[test]
fn tls_settings_that_cannot_work_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").expect("written");
    let refused = |address: &str, tls: TlsConfig| {
        let mut config = config(&[address]);
        config.tls = Some(tls);
        Pool::new(config, metrics().1).err()
    };
    let with_file =
        |file: &std::path::Path| TlsConfig { ca_file: Some(file.to_owned()), ..TlsConfig::default() };
    let missing = directory.path().join("missing.pem");
    assert!(matches!(refused(TWO[0], with_file(&missing)), Some(Error::ReadAuthorities { .. })));
    assert!(matches!(refused(TWO[0], with_file(&empty)), Some(Error::NoAuthorities { .. })));
    let unverified = TlsConfig { verify: false, ..TlsConfig::default() };
    assert!(matches!(refused("unix:/s", unverified), Some(Error::ServerName { .. })));
}
