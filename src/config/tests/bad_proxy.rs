//! Proxy files that are refused.

use super::*;

/// Lines 1 to 3 and 4 to 7 of a file with nothing wrong, to which the cases append.
const BASE: &str = "[[upstream]]
name = 'u'
endpoints = ['127.0.0.1:1']
[[route]]
name = 'r'
path = '/*'
upstream = 'u'
";

/// Appended to `BASE`, so the first line is line 8 and belongs to the route.
const APPENDED: &[Bad] = &[
    (
        "timeout = '30x'",
        &[(8, "route[0].timeout", "\"30x\" is not a duration; write a whole number and a unit")],
    ),
    ("timeout = 30", &[(8, "route[0].timeout", "30 is not a duration")]),
    ("timeout = '0s'", &[(8, "route[0].timeout", "must be longer than zero")]),
    ("total_timeout = '-1s'", &[(8, "route[0].total_timeout", "is not a duration")]),
    ("timout = '30s'", &[(8, "route[0].timout", "is not a known key; did you mean \"timeout\"?")]),
    ("colour = 1", &[(8, "route[0].colour", "known here: name, hosts, path")]),
    ("methods = []", &[(8, "route[0].methods", "must not be empty")]),
    ("methods = 'GET'", &[(8, "route[0].methods", "is not a list; write it in brackets")]),
    (
        "methods = ['get', 'PUT', 'P T']",
        &[(8, "route[0].methods[0]", "case-sensitive"), (8, "route[0].methods[2]", "is not a method")],
    ),
    ("hosts = ['a.b:80']", &[(8, "route[0].hosts[0]", "without its port")]),
    ("hosts = ['a.*']", &[(8, "route[0].hosts[0]", "write e.g. \"example.com\" or \"*.example.com\"")]),
    ("retry = 'always'", &[(8, "route[0].retry", "write \"unsent\" or \"idempotent\" or \"any\"")]),
    ("in_flight = 0", &[(8, "route[0].in_flight", "from 1 to")]),
    ("in_flight = '5'", &[(8, "route[0].in_flight", "without quotes")]),
    ("queue = 5", &[(8, "route[0].queue", "has no effect without in_flight")]),
    ("idempotency_key = true", &[(8, "route[0].idempotency_key", "write \"add\"")]),
    ("cache = 'yes'", &[(8, "route[0].cache", "write \"origin\" or \"none\"")]),
    ("cache = 60", &[(8, "route[0].cache", "is not a table")]),
    (
        "cache = { max_age = '60s', refresh_at = '60s' }",
        &[(8, "route[0].cache.refresh_at", "is not below max_age")],
    ),
    ("cache = { maxage = '60s' }", &[(8, "route[0].cache.maxage", "did you mean \"max_age\"?")]),
    ("cache = { query = [] }", &[(8, "route[0].cache.query", "write \"none\"")]),
    ("methods = ['POST']\ncache = 'origin'", &[(9, "route[0].cache", "add \"GET\" to methods")]),
    (
        "[[route]]",
        &[
            (8, "route[1].name", "is missing"),
            (8, "route[1].path", "is missing; add path"),
            (8, "route[1].upstream", "is missing"),
        ],
    ),
    (
        "[[route]]\nname = 'r'\npath = '/a'\nupstream = 'u'",
        &[(9, "route[1].name", "there is another route \"r\"")],
    ),
    (
        "[[route]]\nname = 's'\npath = '/*'\nupstream = 'u'",
        &[(10, "route[1].path", "route \"r\" takes the same requests: any method on /*")],
    ),
    ("[[route]]\nname = 's'\npath = 'a'\nupstream = 'u'", &[(10, "route[1].path", "a path begins with `/`")]),
    (
        "[[route]]\nname = 's'\npath = '/a//b'\nupstream = 'u'",
        &[(10, "route[1].path", "could never be matched")],
    ),
    (
        "[[route]]\nname = 's s'\npath = '/a'\nupstream = 'v'",
        &[
            (9, "route[1].name", "is not a name"),
            (11, "route[1].upstream", "there is no upstream \"v\"; there are: u"),
        ],
    ),
    (
        "[[upstream]]\nname = 'u'\nendpoints = ['127.0.0.1:1']",
        &[(9, "upstream[1].name", "there is another upstream \"u\"")],
    ),
    ("[[upstream]]\nname = 'v'", &[(8, "upstream[1].endpoints", "is missing")]),
    ("[[upstream]]\nname = 'v'\nendpoints = []", &[(10, "upstream[1].endpoints", "must not be empty")]),
    (
        "[[upstream]]\nname = 'v'\nendpoints = ['127.0.0.1', 'a:1', 'a:1']",
        &[
            (10, "upstream[1].endpoints[0]", "is not an address"),
            (10, "upstream[1].endpoints[2]", "is there twice"),
        ],
    ),
    (
        "[[upstream]]\nname = 'v'\nendpoints = ['a:1']\nbalance = 'random'",
        &[(11, "upstream[1].balance", "\"least_requests\" or \"round_robin\"")],
    ),
    (
        "[[upstream]]\nname = 'v'\nendpoints = ['a:1']\nhost = 'a b'",
        &[(11, "upstream[1].host", "is not a host")],
    ),
    (
        "[[upstream]]\nname = 'v'\nendpoints = ['a:1']\n[upstream.health]\npath = 'ping'\ninterval = '0s'\nhealthy = 1",
        &[
            (12, "upstream[1].health.path", "is not a path"),
            (13, "upstream[1].health.interval", "longer than zero"),
            (14, "upstream[1].health.healthy", "is not a known key"),
        ],
    ),
    (
        "[[upstream]]\nname = 'v'\nendpoints = ['a:1']\n[upstream.passive]\neject_for = '5m'\neject_for_max = '1m'",
        &[(13, "upstream[1].passive.eject_for_max", "is shorter than eject_for")],
    ),
    (
        "[[upstream]]\nname = 'v'\nendpoints = ['a:1']\n[upstream.retry]\nbudget = -1\nattempts = 0",
        &[
            (12, "upstream[1].retry.budget", "from 0 to 10"),
            (13, "upstream[1].retry.attempts", "from 1 to 16"),
        ],
    ),
    (
        "[[upstream]]\nname = 'v'\nendpoints = ['a:1']\n[upstream.tls]\nverify = 'no'",
        &[(12, "upstream[1].tls.verify", "write true or false")],
    ),
    (
        "[node]\nname = ''\nthreads = 0\nstate_dir = ''",
        &[
            (9, "node.name", "is not a name"),
            (10, "node.threads", "from 1 to 256"),
            (11, "node.state_dir", "is empty"),
        ],
    ),
    (
        "[listen]\nhttp = [':80', 'localhost:80', '0.0.0.0:99999']",
        &[
            (9, "listen.http[0]", "write an IP address and a port"),
            (9, "listen.http[1]", "is not an address to listen on"),
            (9, "listen.http[2]", "is not an address to listen on"),
        ],
    ),
    ("[listen]\nhttp = []", &[(9, "listen.http", "name at least one")]),
    (
        "[listen]\nhttps = ['[::]:443']",
        &[(9, "listen.https", "needs a certificate; add [tls] with self_signed")],
    ),
    ("[listen]\nhttp3 = true", &[(9, "listen.http3", "needs an HTTPS listener; add one with [tls]")]),
    (
        "[listen]\nhttps = []\nhttp3 = true\n[tls]\nself_signed = ['a']",
        &[
            (9, "listen.https", "is empty, and [tls] is for nothing else; remove one of the two"),
            (10, "listen.http3", "needs an HTTPS listener"),
        ],
    ),
    // Nothing is said of what a bad address leaves undecided.
    ("[listen]\nhttps = ['here']\nhttp3 = true", &[(9, "listen.https[0]", "write an IP address and a port")]),
    ("[listen]\nhttp3 = 'yes'", &[(9, "listen.http3", "write true or false")]),
    (
        "[listen]\nhttp = '[::]:80'\nhttps = ['[::]:80', '[::]:8100']\n[tls]\nself_signed = ['a']\n[admin]\nlisten = '[::]:8100'",
        &[
            (1, "health.listen", "[::]:8100, the default, is already listened on"),
            (10, "listen.https[0]", "[::]:80 is already listened on; give each listener a port of its own"),
            (14, "admin.listen", "is already listened on"),
        ],
    ),
    (
        "[listen]\nproxy_protocol = 'accept'",
        &[(9, "listen.proxy_protocol", "needs proxy_protocol_from; add the addresses of the balancer")],
    ),
    (
        "[listen]\nproxy_protocol = 'accept'\nproxy_protocol_from = []",
        &[(9, "listen.proxy_protocol", "needs proxy_protocol_from")],
    ),
    (
        "[listen]\nproxy_protocol = 'accept'\nproxy_protocol_from = ['balancer', '10.0.0.1/8']",
        &[
            (10, "listen.proxy_protocol_from[0]", "write a network"),
            (10, "listen.proxy_protocol_from[1]", "write \"10.0.0.0/8\""),
        ],
    ),
    (
        "[listen]\nproxy_protocol_from = ['10.0.0.0/8']",
        &[(9, "listen.proxy_protocol_from", "write proxy_protocol = \"accept\", or remove it")],
    ),
    (
        "[listen]\nproxy_protocol = 'on'\nproxy_protocol_from = ['10.0.0.0/8']",
        &[(9, "listen.proxy_protocol", "write \"off\" or \"accept\"")],
    ),
    ("[tls]", &[(8, "tls", "names no certificate; add self_signed = [\"localhost\"]")]),
    (
        "[tls]\nself_signed = ['a']\ncertificate = '/c'\nprivate_key = '/k'",
        &[(9, "tls.self_signed", "stands beside a certificate of files; keep one of the two")],
    ),
    (
        "[tls]\nself_signed = ['a']\n[[tls.certificate]]\ncertificate = '/c'\nprivate_key = '/k'",
        &[(9, "tls.self_signed", "keep one of the two")],
    ),
    ("[tls]\ncertificate = '/c'", &[(9, "tls.certificate", "has no private_key; add private_key = \"/")]),
    ("[tls]\nprivate_key = '/k'", &[(9, "tls.private_key", "has no certificate; add certificate = \"/")]),
    (
        "[tls]\ncertificate = ''\nprivate_key = 1",
        &[(9, "tls.certificate", "is empty"), (10, "tls.private_key", "is not a text")],
    ),
    ("[tls]\ncertificate = []", &[(9, "tls.certificate", "must not be empty")]),
    (
        "[tls]\nprivate_key = '/k'\n[[tls.certificate]]\ncertificate = '/c'\nprivate_key = '/k'",
        &[(9, "tls.private_key", "give each [[tls.certificate]] its own")],
    ),
    (
        "[[tls.certificate]]\nname = 'a'\n[[tls.certificate]]\nnames = []\ncertificate = '/c'",
        &[
            (8, "tls.certificate[0].certificate", "is missing; add certificate = "),
            (8, "tls.certificate[0].private_key", "is missing; add private_key = "),
            (9, "tls.certificate[0].name", "did you mean \"names\"?"),
            (10, "tls.certificate[1].private_key", "is missing"),
            (11, "tls.certificate[1].names", "must not be empty"),
        ],
    ),
    (
        "[[tls.certificate]]\nnames = ['a.test', 'A.test']\ncertificate = '/c'\nprivate_key = '/k'\n\
         [[tls.certificate]]\nnames = ['*.a.test', 'a.test']\ncertificate = '/d'\nprivate_key = '/l'",
        &[
            (9, "tls.certificate[0].names[1]", "\"a.test\" has a certificate already; name it once"),
            (13, "tls.certificate[1].names[1]", "\"a.test\" has a certificate already"),
        ],
    ),
    (
        "[[tls.certificate]]\nnames = ['127.0.0.1', 'a.*', '*', 'a..b', 'a.', 'a b', 'ä', '']\n\
         certificate = '/c'\nprivate_key = '/k'",
        &[
            (9, "tls.certificate[0].names[0]", "\"127.0.0.1\" is not a name of a server"),
            (9, "tls.certificate[0].names[1]", "write e.g. \"example.com\" or \"*.example.com\""),
            (9, "tls.certificate[0].names[2]", "is not a name"),
            (9, "tls.certificate[0].names[3]", "is not a name"),
            (9, "tls.certificate[0].names[4]", "is not a name"),
            (9, "tls.certificate[0].names[5]", "is not a name"),
            (9, "tls.certificate[0].names[6]", "is not a name"),
            (9, "tls.certificate[0].names[7]", "is not a name"),
        ],
    ),
    ("[tls]\nself_signed = []", &[(9, "tls.self_signed", "must not be empty")]),
    ("[tls]\nself_signed = 'a'", &[(9, "tls.self_signed", "write it in brackets")]),
    (
        "[tls]\nself_signed = ['[::1]', 'a:443', '*.*.a', 'a', '::1', '0::1']",
        &[
            (9, "tls.self_signed[0]", "is not a name of a server; write e.g. \"example.com\""),
            (9, "tls.self_signed[1]", "is not a name"),
            (9, "tls.self_signed[2]", "is not a name"),
            (9, "tls.self_signed[5]", "\"::1\" is there twice; name it once"),
        ],
    ),
    (
        "[tls]\nself_signed = ['a']\nquic_reset = 'shared'",
        &[(10, "tls.quic_reset", "needs shared_secret_file; add shared_secret_file = \"/path\"")],
    ),
    (
        "[tls]\nself_signed = ['a']\nquic_reset = 'all'\nshared_secret = '/s'",
        &[
            (10, "tls.quic_reset", "write \"node\" or \"shared\""),
            (11, "tls.shared_secret", "is not a known key"),
        ],
    ),
    (
        "[admin]\nlisten = '[::]:8100'\n[health]\nlisten = '[::]:8100'",
        &[(11, "health.listen", "is already listened on")],
    ),
    (
        "[log]\nlevel = 'loud'\nformat = 1\naccess_sample = 2",
        &[
            (9, "log.level", "\"error\" or \"warn\""),
            (10, "log.format", "1 is not one of the choices"),
            (11, "log.access_sample", "from 0 to 1"),
        ],
    ),
    (
        "[limits]\nheader_bytes = '1 B'\nbody_bytes = 16\ntrusted = ['10.0.0.1/8', 'all']",
        &[
            (9, "limits.header_bytes", "write from \"1 KiB\" to \"1 MiB\""),
            (10, "limits.body_bytes", "16 is not a size; write a whole number and a unit, e.g. \"16 MiB\""),
            (11, "limits.trusted[0]", "write \"10.0.0.0/8\" for the network"),
            (11, "limits.trusted[1]", "is not a network"),
        ],
    ),
    (
        "[limits]\nconnections = 5\nconnections_per_client = 6",
        &[(10, "limits.connections_per_client", "is more than limits.connections")],
    ),
    (
        "[limits]\nrequests_per_client = { burst = 0, rate = 1 }",
        &[
            (9, "limits.requests_per_client.per_second", "is missing"),
            (9, "limits.requests_per_client.burst", "from 1 to"),
            (9, "limits.requests_per_client.rate", "is not a known key"),
        ],
    ),
    ("[limits]\nrequests_per_client = 50", &[(9, "limits.requests_per_client", "is not a table")]),
    (
        "[cache]\ncapacity = '1 MiB'\nobject_bytes_max = '2 MiB'\nfills = 0\npeers = ['http://a']",
        &[
            (10, "cache.object_bytes_max", "is more than cache.capacity"),
            (11, "cache.fills", "from 1 to"),
            (12, "cache.peers[0]", "is not an address"),
        ],
    ),
    ("[drain]\ndelay = 'soon'", &[(9, "drain.delay", "is not a duration")]),
    ("[caches]", &[(8, "caches", "did you mean \"cache\"?")]),
    ("[process]\nx = 1", &[(8, "process", "is not a known key")]),
    ("log = 1", &[(8, "route[0].log", "is not a known key")]),
    ("timeout = '1s'\ntimeout = '2s'", &[(9, "", "is not TOML: duplicate key")]),
    ("timeout = \ncache =", &[(8, "", "is not TOML"), (9, "", "is not TOML")]),
];

#[test]
fn every_problem_has_its_line_key_and_hint() {
    for (appended, expected) in APPENDED {
        let text = format!("{BASE}{appended}\n");
        let problems = settings(&text).err().map(|problems| problems.0).unwrap_or_default();
        assert_problems(&text, &problems, expected);
        for problem in problems.iter().filter(|problem| !problem.key.is_empty()) {
            assert!(problem.hint.is_some(), "{problem}");
        }
    }
}

/// One file with a problem in every section that a certificate and its listeners can have.
#[test]
fn all_problems_of_https_are_told_at_once() {
    let text = "[listen]
https = ['[::]:443']
proxy_protocol = 'accept'
[tls]
quic_reset = 'shared'
[[tls.certificate]]
names = ['a', 'a']
certificate = 1
";
    let expected = [
        (3, "listen.proxy_protocol", "needs proxy_protocol_from"),
        (5, "tls.quic_reset", "needs shared_secret_file"),
        (6, "tls.certificate[0].private_key", "is missing"),
        (7, "tls.certificate[0].names[1]", "has a certificate already"),
        (8, "tls.certificate[0].certificate", "is not a text"),
    ];
    // Behind it, so that lines are counted from its first.
    let text = format!("{text}{BASE}");
    assert_problems(&text, &settings(&text).unwrap_err().0, &expected);
}

#[test]
fn a_file_without_routes_and_upstreams() {
    for text in ["", "upstream = []\nroute = []", "\n\n"] {
        let problems = settings(text).unwrap_err().0;
        assert_eq!(problems.len(), 2, "{text}");
    }
    let problems = settings("upstream = 1\n[route]\nname = 'x'").unwrap_err();
    assert!(problems.to_string().contains("route: is not a list of tables; write [[route]]"), "{problems}");
}

#[test]
fn a_problem_shows_its_place() {
    let problems = settings(&format!("{BASE}  timeout = '30x'")).unwrap_err();
    let expected = "proxy.toml:8:13: route[0].timeout: \"30x\" is not a duration; write a whole number and a unit \
                    (d, h, m, s, ms, us), e.g. \"30s\"; 366d at most";
    assert_eq!(problems.to_string(), expected);
}
