//! Files of a billing node.

use super::*;
use crate::billing;
use crate::config::billing::{Settings, parse};
use crate::config::show;

const SHIPPED: &str = include_str!("../../../config/billing.toml");
const DOCUMENTATION: &str = include_str!("../../../docs/configuration.md");

/// Every key of the embedded engine, none at its default.
const EMBEDDED: &str = r#"
[node]
name = "b"
advertise = "billing-b:8201"
peer_token_file = "/peer"
state_dir = "/srv/with \"quotes\""
[listen]
http = ["127.0.0.1:0", "[::1]:8200"]
iproto = "127.0.0.1:3301"
token_file = "/token"
iproto_users = "/users"
[journal]
engine = "embedded"
path = "/journal"
keep_ledger = "366d"
[shards]
count = 7
lease = "2s"
[notifier]
url = "https://host:9/off?userID={user_id}"
secret_file = "/secret"
ca_file = "/ca"
timeout = "1s"
per_host = 3
[log]
format = "text"
level = "debug"
"#;

const POSTGRES: &str = "
[node]
name = 'a'
[journal]
engine = 'postgres'
connections = ['host=a,b,c target_session_attrs=read-write sslmode=verify-full', 'host=d']
ca_file = '/ca'
password_file = '/password'
";

fn load(text: &str) -> Settings {
    parse(Path::new("billing.toml"), text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

#[test]
fn nothing_is_needed() {
    let settings = load("");
    assert_eq!(settings.listen.http, ["127.0.0.1:8200".parse().unwrap()]);
    assert!(settings.listen.iproto.is_empty() && settings.listen.token_file.is_none());
    assert_eq!(settings.shards.node.advertise, "127.0.0.1:8200");
    assert_eq!((settings.shards.shards, settings.journal.shards), (2, 2));
    assert_eq!(
        settings.journal.engine,
        billing::journal::Engine::Embedded { path: "/var/lib/forefront/journal".into() }
    );
    assert_eq!(settings.notifier.url, None);
}

#[test]
fn every_value_is_taken() {
    let settings = load(EMBEDDED);
    assert_eq!(
        (settings.shards.node.name.as_str(), settings.shards.node.advertise.as_str()),
        ("b", "billing-b:8201")
    );
    assert_eq!((settings.shards.shards, settings.journal.shards, settings.shards.lease.as_secs()), (7, 7, 2));
    assert_eq!((settings.listen.http.len(), settings.listen.iproto.len()), (2, 1));
    assert_eq!(settings.journal.engine, billing::journal::Engine::Embedded { path: "/journal".into() });
    assert_eq!(settings.shards.projection.keep.map(|keep| keep.as_secs()), Some(366 * 86_400));
    assert_eq!(settings.notifier.url.as_deref(), Some("https://host:9/off?userID={user_id}"));
    let billing::journal::Engine::Postgres { connections, ca_file, password_file } =
        load(POSTGRES).journal.engine
    else {
        panic!("not postgres")
    };
    assert_eq!(
        (connections.len(), ca_file, password_file),
        (2, Some("/ca".into()), Some("/password".into()))
    );
}

#[test]
fn what_is_shown_loads_to_the_same() {
    for text in ["", EMBEDDED, POSTGRES, SHIPPED] {
        let settings = load(text);
        let shown = show::billing_to_toml(&settings);
        assert_eq!(load(&shown), settings, "{shown}");
    }
}

#[test]
fn no_password_is_shown() {
    let text = POSTGRES.replace("'host=d'", "'host=d password=hidden user=u', 'postgresql://u:hidden@e/d'");
    let shown = show::billing_to_toml(&load(&text.replace("[journal]", "[shards]\ncount = 3\n[journal]")));
    assert!(!shown.contains("hidden") && shown.contains("host=d password=*** user=u"), "{shown}");
    load(&shown);
}

/// What the shipped file says of defaults is so, and what it has in comments are keys.
#[test]
fn the_shipped_file_shows_the_defaults() {
    let (shipped, default) = (load(SHIPPED), load(""));
    assert_eq!(shipped.state_dir, default.state_dir);
    assert_eq!(
        (shipped.listen, shipped.notifier, shipped.log),
        (default.listen, default.notifier, default.log)
    );
    assert_eq!(shipped.shards.node.advertise, default.shards.node.advertise);
    assert_eq!((shipped.shards.shards, shipped.shards.lease), (default.shards.shards, default.shards.lease));
    let key = |line: &&str| line.starts_with("# ") && line.contains(" = ") && !line.starts_with("# path");
    let uncommented: Vec<&str> =
        SHIPPED.lines().map(|line| if key(&line) { &line[2..] } else { line }).collect();
    let text = uncommented.join("\n").replace("iproto = []", "iproto = [\"127.0.0.1:3301\"]");
    let settings = load(&text);
    assert!(settings.notifier.secret_file.is_some() && settings.peer_token_file.is_some());
}

#[test]
fn every_key_is_documented() {
    for line in [EMBEDDED, POSTGRES].iter().flat_map(|text| text.lines()) {
        if let Some((key, _)) = line.split_once(" = ") {
            assert!(DOCUMENTATION.contains(&format!("`{key}`")), "{key} is not in docs/configuration.md");
        }
    }
}

const BAD: &[Bad] = &[
    ("[node]\nnme = 'a'", &[(2, "node.nme", "did you mean \"name\"?")]),
    ("[node]\nname = 'a b'", &[(2, "node.name", "is not a name")]),
    ("[node]\nadvertise = '10.0.0.1'", &[(2, "node.advertise", "write what other nodes reach this one by")]),
    ("[node]\nadvertise = '[::]:8200'", &[(2, "node.advertise", "is not an address that can be reached")]),
    ("[node]\nadvertise = 'http://a:1'", &[(2, "node.advertise", "is not an address")]),
    ("[listen]\nhttp = []", &[(2, "listen.http", "must not be empty")]),
    ("[listen]\nhttp = 8200", &[(2, "listen.http", "is not an address to listen on")]),
    (
        "[listen]\nhttp = '127.0.0.1:1'\niproto = ['127.0.0.1:1']",
        &[(3, "listen.iproto[0]", "is already listened on")],
    ),
    ("[listen]\niproto_users = '/u'", &[(2, "listen.iproto_users", "has no effect without iproto")]),
    ("[journal]\nengine = 'sqlite'", &[(2, "journal.engine", "write \"embedded\" or \"postgres\"")]),
    (
        "[journal]\nconnections = ['host=a']",
        &[(2, "journal.connections", "has no effect with the engine \"embedded\"")],
    ),
    (
        "[journal]\nengine = 'postgres'\npath = '/x'",
        &[
            (0, "node.name", "told apart by it"),
            (1, "journal.connections", "is missing"),
            (3, "journal.path", "has no effect with the engine \"postgres\""),
        ],
    ),
    (
        "[node]\nname = 'a'\n[listen]\nhttp = '[::]:8200'\n[journal]\nengine = 'postgres'\nconnections = ['host=a']",
        &[(1, "node.advertise", "is no way to reach this node")],
    ),
    (
        "[node]\nname = 'a'\n[listen]\nhttp = ['[::]:8200', '127.0.0.1:8201']\n\
         [journal]\nengine = 'postgres'\nconnections = ['host=a']",
        &[(1, "node.advertise", "is no way to reach this node")],
    ),
    (
        "[node]\nname = 'a'\n[shards]\ncount = 1\n[journal]\nengine = 'postgres'\nconnections = ['host=a', 'host=b']",
        &[(7, "journal.connections", "has 2 connections for 1 shards")],
    ),
    ("[journal]\nkeep_ledger = '59m'", &[(2, "journal.keep_ledger", "from \"1h\" to \"366d\"")]),
    ("[journal]\nkeep_ledger = '367d'", &[(2, "journal.keep_ledger", "366d at most")]),
    (
        "[shards]\ncount = 0\nlease = '100ms'",
        &[(2, "shards.count", "from 1 to 1000"), (3, "shards.lease", "out of bounds")],
    ),
    (
        "[journal]\npassword_file = '/p'",
        &[(2, "journal.password_file", "has no effect with the engine \"embedded\"")],
    ),
    ("[notifier]\nurl = 'http://x/off'", &[(2, "notifier.url", "it needs {user_id}")]),
    ("[notifier]\nsecret_file = '/s'", &[(2, "notifier.secret_file", "has no effect without url")]),
    (
        "[notifier]\ntimeout = '0s'\nper_host = 0",
        &[(2, "notifier.timeout", "longer"), (3, "notifier.per_host", "from 1")],
    ),
    ("[journl]", &[(1, "journl", "did you mean \"journal\"?")]),
];

#[test]
fn every_problem_has_its_line_and_key() {
    for (text, expected) in BAD {
        let problems =
            parse(Path::new("billing.toml"), text).err().map(|problems| problems.0).unwrap_or_default();
        let expected: Vec<_> =
            expected.iter().map(|(line, key, piece)| ((*line).max(1), *key, *piece)).collect();
        assert_problems(text, &problems, &expected);
    }
}
