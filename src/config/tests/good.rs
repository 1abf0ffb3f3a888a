//! Files that load.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::cache::QueryKey;
use crate::config::show;
use crate::listener::{CertificateFiles, CertificateSource, ProxyProtocol, QuicReset, TlsConfig};
use crate::resilience::limit::Rate;
use crate::resilience::retry::RetryClass;
use crate::upstream::Balance;

const SHIPPED: &str = include_str!("../../../config/proxy.toml");
const DOCUMENTATION: &str = include_str!("../../../docs/configuration.md");

const MINIMAL: &str = "
[[upstream]]
name = 'u'
endpoints = ['127.0.0.1:1']
[[route]]
name = 'r'
path = '/*'
upstream = 'u'
";

/// The sample of the design.
const SAMPLE: &str = r#"
[node]
name = "a"
threads = 2
[listen]
http = ["[::]:8080"]
https = ["[::]:8443"]
http3 = true
[tls]
self_signed = ["localhost"]
[admin]
listen = "127.0.0.1:9101"
[health]
listen = "[::]:8100"
[cache]
capacity = "256 MiB"
[[upstream]]
name = "bingo"
endpoints = ["127.0.0.1:27352", "127.0.0.1:27353"]
[upstream.health]
path = "/ping"
interval = "1s"
timeout = "500ms"
unhealthy_after = 2
healthy_after = 1
[[route]]
name = "long_dummy"
path = "/long_dummy"
methods = ["GET", "HEAD"]
upstream = "bingo"
timeout = "30s"
cache = { max_age = "60s", refresh_at = "30s" }   # or cache = "origin": as the origin's fields say
[[route]]
name = "rest"
path = "/*"
upstream = "bingo"
timeout = "30s"
"#;

/// Every key that is not in the sample, none at its default.
const EVERYTHING: &str = r#"
[node]
name = "b"
threads = 3
state_dir = "/srv/with \"quotes\" and \\"
[listen]
http = "127.0.0.1:0"
https = ["127.0.0.1:0", "[::1]:443"]
http3 = false
proxy_protocol = "accept"
proxy_protocol_from = ["10.0.0.0/8", "192.0.2.1"]
[tls]
shared_secret_file = "/secret"
quic_reset = "shared"
[[tls.certificate]]
names = ["Example.com", "*.example.com"]
certificate = "/chain.pem"
private_key = "/key.pem"
[[tls.certificate]]
certificate = "/other/chain.pem"
private_key = "/other/key.pem"
[admin]
listen = "[::1]:1"
token_file = "/t"
[health]
listen = ["127.0.0.1:2", "[::1]:2"]
[log]
format = "text"
level = "debug"
access_sample = 0.25
[drain]
delay = "0s"
grace = "1m30s"
[limits]
connections = 5
connections_per_client = 4
requests_per_client = { per_second = 1.5, burst = 3 }
header_bytes = "1 KiB"
header_timeout = "1s"
header_list_bytes = "2 KiB"
streams_per_connection = 7
handshake_timeout = "2s"
idle_timeout = "3s"
body_bytes = "1 MB"
trusted = ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]
[cache]
capacity = "1 GiB"
object_bytes_max = "1 MiB"
fills = 2
peers = ["10.0.0.2:80", "peer:80"]
[[upstream]]
name = "u"
endpoints = ["name:80", "unix:/run/x", "[::1]:5"]
balance = "round_robin"
connect_timeout = "250ms"
slow_start = "10s"
requests_in_flight = 9
keepalive = 1
keepalive_idle = "1s"
host = "example.com:8080"
passive = { failures = 0, server_errors = 1, eject_for = "1s", eject_for_max = "2s" }
retry = { budget = 0.5, budget_min_per_second = 1, attempts = 1 }
tls = { sni = "example.com", ca_file = "/ca", verify = false }
[[route]]
name = "r"
hosts = ["example.com", "*.example.com"]
path = "/a/{b}"
methods = ["GET"]
upstream = "u"
timeout = "1s"
idle_timeout = "2s"
total_timeout = "3s"
retry = "any"
in_flight = 4
queue = 0
idempotency_key = "add"
cache = { max_age = "1m", query = ["a", "b"] }
[[route]]
name = "o"
path = "/o"
upstream = "u"
in_flight = 3
cache = "origin"
[[route]]
name = "n"
path = "/n"
upstream = "u"
cache = "none"
"#;

const KEEPER: &str = r#"
[node]
name = "b"
[admin]
listen = "off"
[[process]]
name = "bingo"
command = ["/opt/bingo/bingo", "run_server", "a \"b\"\n"]
user = "bingo"
environment = { PATH = "/bin", "odd name" = "x" }
working_directory = "/opt/bingo"
instances = 2
address = "127.0.0.1:2735{instance}"
health = { path = "/ping", interval = "2s", timeout = "3s", unhealthy_after = 4 }
start_grace = "45s"
stop_timeout = "5s"
backoff = { min = "1s", max = "10s" }
memory_max = "1 GiB"
recycle_after = "15m"
log = { path = "/var/log/bingo.log", bytes_max = "1 MiB" }
sockets = ["http=tcp:[::]:80", "quic=udp:[::]:443"]
[[process]]
name = "plain"
command = ["true"]
"#;

fn load(text: &str) -> Settings {
    settings(text).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_sample_of_the_design() {
    let settings = load(SAMPLE);
    assert_eq!((settings.proxy.node.as_str(), settings.proxy.threads), ("a", 2));
    assert_eq!(settings.upstreams[0].endpoints.len(), 2);
    assert_eq!(
        settings.upstreams[0].health.as_ref().map(|health| health.timeout),
        Some(Duration::from_millis(500))
    );
    let cached = settings.proxy.routes[0].cache.as_ref().unwrap();
    assert_eq!(
        (cached.max_age, cached.refresh_at),
        (Some(Duration::from_secs(60)), Some(Duration::from_secs(30)))
    );
    assert_eq!(cached.query, QueryKey::All);
    assert_eq!(shown(&settings.proxy.listen_https), ["[::]:8443"]);
    assert!(settings.proxy.http3);
    let source = settings.proxy.tls.map(|tls| tls.source);
    assert_eq!(source, Some(CertificateSource::SelfSigned(vec!["localhost".to_owned()])));
}

fn shown(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(SocketAddr::to_string).collect()
}

/// What is appended to a minimal file; HTTP, HTTPS, whether HTTP/3.
const LISTENERS: &[(&str, &[&str], &[&str], bool)] = &[
    ("", &["[::]:80"], &[], false),
    ("[listen]\nhttps = []\nhttp3 = false", &["[::]:80"], &[], false),
    ("[tls]\nself_signed = ['a']", &["[::]:80"], &["[::]:443"], true),
    ("[tls]\nself_signed = ['a']\n[listen]\nhttp3 = false", &["[::]:80"], &["[::]:443"], false),
    ("[tls]\nself_signed = ['a']\n[listen]\nhttp = []", &[], &["[::]:443"], true),
    ("[tls]\nself_signed = ['a']\n[listen]\nhttps = '[::1]:1'", &["[::]:80"], &["[::1]:1"], true),
];

#[test]
fn https_is_on_with_a_certificate_and_http3_with_https() {
    for (appended, http, https, http3) in LISTENERS {
        let proxy = load(&format!("{MINIMAL}{appended}")).proxy;
        assert_eq!(shown(&proxy.listen_http), *http, "{appended}");
        assert_eq!(shown(&proxy.listen_https), *https, "{appended}");
        assert_eq!(proxy.http3, *http3, "{appended}");
        assert_eq!(proxy.tls.is_some(), !https.is_empty(), "{appended}");
        assert_eq!(proxy.proxy_protocol, ProxyProtocol::default());
    }
}

/// The one certificate of a section, in each form it can have.
const ONE_CERTIFICATE: [&str; 2] = [
    "[tls]\ncertificate = '/c'\nprivate_key = '/k'",
    "[[tls.certificate]]\ncertificate = '/c'\nprivate_key = '/k'",
];

#[test]
fn a_certificate_is_named_by_its_files() {
    for text in ONE_CERTIFICATE {
        let tls = load(&format!("{MINIMAL}{text}")).proxy.tls.unwrap();
        let files = CertificateFiles { names: vec![], certificate: "/c".into(), private_key: "/k".into() };
        let source = CertificateSource::Files(vec![files]);
        assert_eq!(
            tls,
            TlsConfig { source, shared_secret_file: None, quic_reset: QuicReset::Node },
            "{text}"
        );
    }
}

#[test]
fn a_certificate_of_ones_own_can_be_for_names_and_addresses() {
    let text = format!(
        "{MINIMAL}[tls]\nself_signed = ['LocalHost', '*.a.test', '::1', '0:0:0:0:0:0:0:2', '127.0.0.1']"
    );
    let names = ["localhost", "*.a.test", "::1", "::2", "127.0.0.1"].map(str::to_owned).to_vec();
    let source = load(&text).proxy.tls.map(|tls| tls.source);
    assert_eq!(source, Some(CertificateSource::SelfSigned(names)));
}

#[test]
fn every_key_arrives() {
    let Settings { state_dir, proxy, cache, cache_peers, upstreams, admin, health, log } = load(EVERYTHING);
    assert_eq!(state_dir.to_str(), Some("/srv/with \"quotes\" and \\"));
    assert_eq!((admin.listen.to_string().as_str(), admin.token_file), ("[::1]:1", Some("/t".into())));
    assert_eq!(health.listen.len(), 2);
    assert_eq!(shown(&proxy.listen_https), ["127.0.0.1:0", "[::1]:443"]);
    assert!(!proxy.http3);
    assert!(proxy.proxy_protocol.expects([10, 1, 2, 3].into()));
    assert!(!proxy.proxy_protocol.expects([192, 0, 2, 2].into()));
    let tls = proxy.tls.unwrap();
    assert_eq!((tls.shared_secret_file, tls.quic_reset), (Some("/secret".into()), QuicReset::Shared));
    let CertificateSource::Files(files) = tls.source else { panic!("{:?}", tls.source) };
    assert_eq!(files[0].names, ["example.com", "*.example.com"]);
    assert_eq!((files[1].names.len(), files[1].private_key.to_str()), (0, Some("/other/key.pem")));
    assert_eq!((log.format.as_str(), log.level.as_str(), proxy.access_log.sample), ("text", "debug", 0.25));
    assert_eq!((proxy.drain.delay, proxy.drain.grace), (Duration::ZERO, Duration::from_secs(90)));
    assert_eq!(proxy.limits.requests_per_client, Some(Rate { per_second: 1.5, burst: 3.0 }));
    assert_eq!((proxy.limits.header_bytes, proxy.limits.body_bytes), (1024, 1_000_000));
    assert_eq!(proxy.limits.trusted.len(), 3);
    assert_eq!((cache.capacity_bytes, cache.object_bytes_max, cache.fills), (1 << 30, 1 << 20, 2));
    assert_eq!(cache_peers.len(), 2);
    let upstream = &upstreams[0];
    assert_eq!(
        (upstream.balance, upstream.requests_in_flight, upstream.keepalive),
        (Balance::RoundRobin, 9, 1)
    );
    assert_eq!(upstream.health, None);
    assert_eq!(upstream.tls.as_ref().map(|tls| tls.verify), Some(false));
    let route = &proxy.routes[0];
    assert_eq!(
        (route.retry, route.in_flight, route.queue, route.idempotency_key),
        (RetryClass::Any, Some(4), 0, true)
    );
    assert_eq!(route.total_timeout, Some(Duration::from_secs(3)));
    assert_eq!(route.rule.hosts.len(), 2);
    let query = route.cache.as_ref().map(|policy| policy.query.clone());
    assert_eq!(query, Some(QueryKey::Names(vec!["a".to_owned(), "b".to_owned()])));
    assert_eq!(proxy.routes[1].queue, 3);
    assert!(proxy.routes[1].cache.as_ref().is_some_and(|policy| policy.max_age.is_none()));
    assert!(proxy.routes[2].cache.is_none());
}

/// What the shipped file says of defaults is so.
#[test]
fn the_shipped_file_shows_the_defaults() {
    let (shipped, default) = (load(SHIPPED), load(&format!("{MINIMAL}[tls]\nself_signed = ['localhost']")));
    assert_eq!(shipped.state_dir, default.state_dir);
    assert_eq!(shipped.proxy.listen_http, default.proxy.listen_http);
    assert_eq!(shipped.proxy.listen_https, default.proxy.listen_https);
    assert_eq!((shipped.proxy.http3, shipped.proxy.tls), (default.proxy.http3, default.proxy.tls));
    assert_eq!(shipped.proxy.proxy_protocol, default.proxy.proxy_protocol);
    assert_eq!(shipped.proxy.limits, default.proxy.limits);
    assert_eq!(shipped.proxy.drain, default.proxy.drain);
    assert_eq!(shipped.proxy.access_log, default.proxy.access_log);
    assert_eq!(shipped.cache, default.cache);
    assert_eq!(shipped.cache_peers, default.cache_peers);
    assert_eq!((shipped.admin, shipped.health, shipped.log), (default.admin, default.health, default.log));
    let (mut upstream, default) = (shipped.upstreams[0].clone(), default.upstreams[0].clone());
    assert_eq!(upstream.health.take(), Some(crate::upstream::HealthConfig::default()));
    // Two are set for the legacy service, and the file says why.
    upstream.requests_in_flight = default.requests_in_flight;
    upstream.passive.server_errors = default.passive.server_errors;
    assert_eq!(
        crate::upstream::Config { name: String::new(), endpoints: Vec::new(), ..upstream },
        crate::upstream::Config { name: String::new(), endpoints: Vec::new(), ..default },
    );
}

#[test]
fn every_shipped_file_loads() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut kinds = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().path();
        // The legacy service's own file is YAML.
        if file.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let kind = crate::config::kind(&file).unwrap_or_else(|problems| panic!("{problems}"));
        let problems = match kind {
            crate::config::Kind::Proxy => proxy::load(&file).err(),
            crate::config::Kind::Supervise => supervise::load(&file).err(),
            crate::config::Kind::Billing => crate::config::billing::load(&file).err(),
        };
        assert_eq!(problems.map(|problems| problems.to_string()), None);
        kinds.push(kind);
    }
    assert!(kinds.contains(&crate::config::Kind::Proxy));
}

#[test]
fn the_shipped_routes() {
    let settings = load(SHIPPED);
    let names: Vec<&str> = settings.proxy.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "index",
            "ping",
            "config",
            "long_dummy",
            "db_dummy",
            "operation",
            "movie_list",
            "customer_list",
            "session_list",
            "movie",
            "customer",
            "session_get",
            "session_create",
            "session_delete",
            "billing",
            "billing_root",
            "rest"
        ]
    );
    let cached: Vec<&str> = settings
        .proxy
        .routes
        .iter()
        .filter(|route| route.cache.is_some())
        .map(|route| route.name.as_str())
        .collect();
    assert_eq!(cached, ["long_dummy"]);
    for route in &settings.proxy.routes {
        let unsafe_method = route.rule.methods.iter().any(|method| !method.is_safe());
        assert_eq!(route.retry == RetryClass::Unsent, unsafe_method, "{}", route.name);
    }
}

/// Keys in comments are keys that exist, too.
#[test]
fn the_shipped_file_names_only_keys_there_are() {
    let commented = |line: &str| line.starts_with("# ") && line.contains(" = ") || line.starts_with("# [");
    let (mut text, mut of_a_route) = (String::new(), String::new());
    for line in SHIPPED.lines() {
        if let Some(key_of_a_route) = line.strip_prefix("#   ") {
            of_a_route.push_str(&format!("{key_of_a_route}\n"));
        } else if commented(line) && !line.starts_with("# endpoints") {
            // Left out: the one line that shows another value for a key that is set.
            text.push_str(&format!("{}\n", &line[2..]));
        } else if !line.starts_with("self_signed") {
            // Left out as well: the certificate that stands instead of the one in comments.
            text.push_str(&format!("{line}\n"));
        }
    }
    // The last route has none of them.
    text.push_str(&of_a_route);
    let settings = load(&text);
    assert!(settings.proxy.limits.requests_per_client.is_some());
    let tls = settings.proxy.tls.unwrap();
    assert!(matches!(tls.source, CertificateSource::Files(_)) && tls.shared_secret_file.is_some());
    assert!(settings.upstreams[0].tls.is_some() && settings.admin.token_file.is_some());
    assert!(settings.proxy.routes.last().is_some_and(|route| route.in_flight.is_some()));
}

#[test]
fn every_key_is_documented() {
    for text in [EVERYTHING, SAMPLE, KEEPER] {
        for line in text.lines() {
            if let Some((key, _)) = line.split_once(" = ") {
                assert!(DOCUMENTATION.contains(&format!("`{key}`")), "{key} is not in docs/configuration.md");
            }
        }
    }
}

#[test]
fn what_is_shown_loads_to_the_same() {
    let appended = LISTENERS.iter().map(|(appended, ..)| *appended).chain(ONE_CERTIFICATE);
    let appended = appended.map(|appended| format!("{MINIMAL}{appended}"));
    for text in [SAMPLE, EVERYTHING, SHIPPED].map(str::to_owned).into_iter().chain(appended) {
        let settings = load(&text);
        let again = load(&show::to_toml(&settings));
        assert_eq!(format!("{settings:?}"), format!("{again:?}"));
    }
    let config = keeper(KEEPER).unwrap_or_else(|problems| panic!("{problems}"));
    let again = keeper(&show::supervise_to_toml(&config)).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config, again);
}

/// In every section there is.
#[test]
fn a_key_that_is_not_known_is_refused() {
    let proxy = show::to_toml(&load(&format!(
        "{EVERYTHING}[[upstream]]\nname = 'h'\nendpoints = ['h:1']\nhealth = {{}}"
    )));
    let keeper_text =
        show::supervise_to_toml(&keeper(KEEPER).unwrap_or_else(|problems| panic!("{problems}")));
    for (text, headers_min) in [(proxy, 15), (keeper_text, 6)] {
        let headers: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
        assert!(headers.len() >= headers_min, "{headers:?}");
        // The table with free keys.
        for header in headers.into_iter().filter(|header| *header != "[process.environment]") {
            let bad = text.replacen(&format!("{header}\n"), &format!("{header}\nno_such_key = 1\n"), 1);
            let problems = match headers_min {
                15 => settings(&bad).err(),
                _ => keeper(&bad).err(),
            };
            let problems = problems.map(|problems| problems.to_string()).unwrap_or_default();
            assert_eq!(
                problems.matches("no_such_key: is not a known key").count(),
                1,
                "{header}: {problems}"
            );
        }
    }
}

#[test]
fn the_keeper_has_what_was_written() {
    let config = keeper(KEEPER).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((config.node.as_str(), config.admin_listen), ("b", None));
    let process = &config.processes[0];
    assert_eq!(process.command[2], "a \"b\"\n");
    assert_eq!(process.environment["odd name"], "x");
    assert_eq!((process.instances, process.memory_max), (2, Some(1 << 30)));
    assert_eq!(process.health.as_ref().map(|health| health.unhealthy_after), Some(4));
    assert_eq!(process.sockets.len(), 2);
    let default = crate::supervisor::ProcessConfig::new("plain", vec!["true".to_owned()]);
    assert_eq!(config.processes[1], default);
}

/// A line of a file, or of something like it.
fn a_line() -> impl Strategy<Value = String> {
    let lines: Vec<String> =
        [SHIPPED, EVERYTHING, KEEPER].iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
    prop_oneof![
        6 => prop::sample::select(lines),
        1 => "[a-z_]{1,12} = [\\[\\]{}\"'0-9a-z., ]{0,20}",
        1 => ".{0,40}",
    ]
}

proptest! {
    #[test]
    fn no_text_panics(lines in prop::collection::vec(a_line(), 0..40), cut in 0_usize..4000) {
        let text = lines.join("\n");
        for text in [text.as_str(), SHIPPED.get(cut..).unwrap_or(""), SHIPPED.get(..cut).unwrap_or("")] {
            for problems in [settings(text).err(), keeper(text).err()].into_iter().flatten() {
                prop_assert!(!problems.0.is_empty());
                prop_assert!(problems.0.iter().all(|problem| problem.line > 0));
            }
        }
    }

    /// Whatever loads can be shown and loaded again.
    #[test]
    fn what_loads_can_be_shown(lines in prop::collection::vec(a_line(), 0..12)) {
        let text = format!("{}\n{MINIMAL}", lines.join("\n"));
        if let Ok(loaded) = settings(&text) {
            let again = settings(&show::to_toml(&loaded));
            prop_assert!(again.is_ok(), "{again:?}");
        }
    }
}
