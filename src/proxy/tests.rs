//! A proxy's shared state as `app` drives it, over real sockets: reloads, purges, warming.

use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::routes::Route;
use super::*;
use crate::cache::{Answer, FetchError, Policy, QueryKey, Uncacheable};
use crate::resilience::limit::Rate;
use crate::resilience::retry::RetryClass;
use crate::route::Rule;
use crate::upstream;

/// An origin that answers every request with the same bytes and counts them.
struct Origin {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Origin {
    async fn start(answer: &'static str) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counted = counted.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                            return;
                        }
                    }
                    counted.fetch_add(1, Relaxed);
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Origin { address, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }
}

const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngood";

fn pool(name: &str, address: &str) -> Arc<Pool> {
    let metrics = upstream::Metrics::register(&Registry::new()).expect("an empty registry");
    let address = address.parse().expect("an address");
    Pool::new(upstream::Config::new(name, [address]), metrics).expect("a good configuration")
}

fn pools(of: &[(&str, &Origin)]) -> Pools {
    of.iter().map(|(name, origin)| ((*name).to_owned(), pool(name, &origin.address))).collect()
}

fn route(name: &str, hosts: &[&str], path: &str, upstream: &str) -> RouteConfig {
    RouteConfig {
        name: name.to_owned(),
        rule: Rule {
            hosts: hosts.iter().map(|host| host.parse().expect("a host")).collect(),
            pattern: path.parse().expect("a path"),
            methods: Vec::new(),
        },
        upstream: upstream.to_owned(),
        timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(20),
        total_timeout: None,
        retry: RetryClass::Idempotent,
        in_flight: Some(5),
        queue: 5,
        idempotency_key: false,
        cache: Some(policy(3600)),
    }
}

fn policy(max_age_seconds: u64) -> Policy {
    Policy { max_age: Some(Duration::from_secs(max_age_seconds)), refresh_at: None, query: QueryKey::All }
}

fn config(routes: Vec<RouteConfig>) -> Config {
    Config {
        node: "a".to_owned(),
        threads: 1,
        listen_http: Vec::new(),
        listen_https: Vec::new(),
        http3: false,
        tls: None,
        proxy_protocol: Default::default(),
        limits: Limits {
            connections: 10,
            connections_per_client: 10,
            requests_per_client: Some(Rate { per_second: 1.0, burst: 1.0 }),
            header_bytes: 1 << 14,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            body_bytes: 1 << 20,
            trusted: Vec::new(),
            header_list_bytes: 1 << 14,
            streams_per_connection: 10,
            handshake_timeout: Duration::from_secs(10),
        },
        drain: DrainConfig { delay: Duration::ZERO, grace: Duration::ZERO },
        routes,
        access_log: AccessLog { sample: 0.0 },
    }
}

fn proxy(config: &Config, pools: &Pools) -> Arc<Proxy> {
    let registry = Registry::new();
    let cache_config = cache::Config::default();
    let cache = Cache::new(cache_config.clone(), &registry).expect("an empty registry");
    let (drain, closing) = (Drain::new(), CancellationToken::new());
    Proxy::new(config, &cache_config, pools, cache, &registry, drain, closing, None).expect("a good one")
}

fn live_route(proxy: &Proxy, name: &str) -> Arc<Route> {
    let live = proxy.live.load();
    live.table.routes().find(|route| route.config.name == name).expect("a route").clone()
}

/// Asks the store as a request would.
async fn get(proxy: &Proxy, name: &str, host: &str, target: &str) -> Answer {
    get_on(&live_route(proxy, name), host, target).await
}

async fn get_on(route: &Route, host: &str, target: &str) -> Answer {
    let cache = route.cache.as_ref().expect("a cached route");
    let key = format!("{}\0{target}", route.scope(host));
    cache.store.get(&key, &cache.policy, &cache.fetch).await
}

fn is_hit(answer: &Answer) -> bool {
    matches!(answer, Answer::Hit(_))
}

#[tokio::test]
async fn a_reload_forgets_the_answers_of_changed_routes_and_of_no_other() {
    let (one, two) = (Origin::start(GOOD).await, Origin::start(GOOD).await);
    let pools = pools(&[("one", &one), ("two", &two)]);
    let same = || vec![route("same", &[], "/same", "one"), route("hosted", &["a.test"], "/hosted", "one")];
    let routes =
        ["policy", "upstream", "timeout", "gone"].map(|name| route(name, &[], &format!("/{name}"), "one"));
    let proxy = proxy(&config(same().into_iter().chain(routes.clone()).collect()), &pools);
    for name in ["same", "hosted", "policy", "upstream", "timeout", "gone"] {
        assert!(!is_hit(&get(&proxy, name, "a.test", "/").await));
        assert!(is_hit(&get(&proxy, name, "a.test", "/").await), "{name}");
    }
    let [mut policy_changed, mut upstream_changed, mut timeout_changed, _] = routes;
    policy_changed.cache = Some(policy(60));
    upstream_changed.upstream = "two".to_owned();
    timeout_changed.timeout = Duration::from_secs(21);
    let changed = [policy_changed, upstream_changed, timeout_changed];
    proxy.reload(&config(same().into_iter().chain(changed).collect()), &pools).expect("a good one");
    for (name, kept) in
        [("same", true), ("hosted", true), ("policy", false), ("upstream", false), ("timeout", false)]
    {
        assert_eq!(is_hit(&get(&proxy, name, "a.test", "/").await), kept, "{name}");
    }
    assert_eq!(two.requests(), 1, "the new upstream is asked");
    assert_eq!(proxy.cache.entries(), 5);
}

#[tokio::test]
async fn a_request_from_before_a_reload_stores_nothing_after_it() {
    let origin = Origin::start(GOOD).await;
    let pools = pools(&[("one", &origin)]);
    let proxy = proxy(&config(vec![route("r", &[], "/r", "one")]), &pools);
    let old = live_route(&proxy, "r");
    let mut changed = route("r", &[], "/r", "one");
    changed.cache = Some(policy(60));
    proxy.reload(&config(vec![changed]), &pools).expect("a good one");
    assert!(matches!(get_on(&old, "", "/r").await, Answer::Miss(_)), "it has its answer");
    assert_eq!(proxy.cache.entries(), 0);
    assert!(
        matches!(get(&proxy, "r", "", "/r").await, Answer::Miss(entry) if entry.times.lifetime.as_secs() == 60)
    );
}

#[tokio::test]
async fn a_reload_keeps_what_clients_and_requests_have_used_up() {
    let origin = Origin::start(GOOD).await;
    let pools = pools(&[("one", &origin)]);
    let mut settings = config(vec![route("r", &[], "/r", "one")]);
    let proxy = proxy(&settings, &pools);
    let now = std::time::Instant::now();
    let client = crate::resilience::limit::ClientKey::from(std::net::IpAddr::from([192, 0, 2, 1]));
    let take = |proxy: &Proxy| proxy.live.load().rates.as_ref().expect("rated").take(client, now).is_ok();
    assert!(take(&proxy) && !take(&proxy));
    let gate = live_route(&proxy, "r").gate.clone().expect("a gate");
    live_route(&proxy, "r").metrics.total.fetch_add(7, Relaxed);
    proxy.reload(&settings, &pools).expect("a good one");
    assert!(!take(&proxy), "the rate is still used up");
    assert!(Arc::ptr_eq(&gate, live_route(&proxy, "r").gate.as_ref().expect("a gate")));
    assert_eq!(proxy.status()[0].requests, 7);
    settings.limits.requests_per_client = Some(Rate { per_second: 1.0, burst: 2.0 });
    settings.routes[0].queue = 6;
    proxy.reload(&settings, &pools).expect("a good one");
    assert!(take(&proxy), "another rate begins anew");
    assert!(!Arc::ptr_eq(&gate, live_route(&proxy, "r").gate.as_ref().expect("a gate")));
    assert_eq!(proxy.status()[0].requests, 7);
}

#[tokio::test]
async fn purges_reach_routes_with_hosts() {
    let origin = Origin::start(GOOD).await;
    let pools = pools(&[("one", &origin)]);
    let routes = vec![route("any", &[], "/p/*", "one"), route("hosted", &["*.test"], "/p/*", "one")];
    let proxy = proxy(&config(routes), &pools);
    let fill = async || {
        for (name, host) in [("any", "x"), ("hosted", "a.test"), ("hosted", "B.test")] {
            for target in ["/p/1", "/p/1?q", "/p/2"] {
                get(&proxy, name, host, target).await;
            }
        }
    };
    fill().await;
    assert_eq!(proxy.cache.entries(), 9);
    assert_eq!(proxy.purge_path("/p/1"), 3);
    assert_eq!(proxy.purge_path("/p/1?q"), 3);
    fill().await;
    assert_eq!(proxy.purge_prefix("/p/1"), 6);
    assert_eq!(proxy.purge_prefix("/p"), 3);
    assert_eq!(proxy.purge_prefix("any"), 0, "the name of a route is no path");
}

/// Longer than any of it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn one_bad_route_keeps_no_other_cold() {
    let (good, closed) = (Origin::start(GOOD).await, TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let address = closed.local_addr().expect("bound").to_string();
    drop(closed);
    let mut pools = pools(&[("good", &good)]);
    pools.insert("bad".to_owned(), pool("bad", &address));
    let routes =
        vec![route("a", &[], "/a", "bad"), route("b", &[], "/b", "good"), route("c", &[], "/c", "bad")];
    let proxy = proxy(&config(routes), &pools);
    let warming = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.fill_all().await }
    });
    let asked = async {
        while good.requests() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("the good one is asked");
    assert!(!warming.is_finished(), "the bad ones are still tried");
    proxy.closing.cancel();
    tokio::time::timeout(PATIENCE, warming).await.expect("it ends").expect("no panic");
}

#[tokio::test]
async fn a_path_that_is_not_there_is_not_asked_for_again() {
    let missing = Origin::start("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let pools = pools(&[("one", &missing)]);
    let proxy = proxy(&config(vec![route("r", &[], "/r", "one")]), &pools);
    tokio::time::timeout(PATIENCE, proxy.fill_all()).await.expect("it gives up");
    assert_eq!(missing.requests(), 1);
}

#[tokio::test]
async fn an_error_that_sets_a_cookie_is_nobody_else_s() {
    let personal = "HTTP/1.1 500 No\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n";
    let (cookie, plain) =
        (Origin::start(personal).await, Origin::start("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await);
    let pools = pools(&[("cookie", &cookie), ("plain", &plain)]);
    let routes = vec![route("cookie", &[], "/c", "cookie"), route("plain", &[], "/p", "plain")];
    let proxy = proxy(&config(routes), &pools);
    let answer = get(&proxy, "cookie", "", "/c").await;
    assert!(matches!(answer, Answer::Pass(Uncacheable::SetCookie)), "{answer:?}");
    let answer = get(&proxy, "plain", "", "/p").await;
    assert!(
        matches!(&answer, Answer::Failed(FetchError::Status(fetched)) if fetched.status == 503),
        "{answer:?}"
    );
}
