//! Keeps the house: who may name whom, what is pure, what things are called, what is not left behind. Every rule is a
//! function from a text to its problems, with a test that it can fail and a test that the tree passes.

mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use source::{Source, without_tests};

/// Which room may name which; the same table as in docs/architecture.md. A new arrow is a change of its own.
const ARROWS: [(&str, &[&str]); 18] = [
    ("clock", &[]),
    ("drain", &[]),
    ("headers", &[]),
    ("http1", &[]),
    ("resilience", &[]),
    ("telemetry", &[]),
    ("route", &["headers", "resilience"]),
    ("cache", &["clock", "headers", "telemetry"]),
    ("upstream", &["clock", "drain", "resilience", "telemetry"]),
    ("billing", &["clock", "drain", "headers", "resilience", "telemetry"]),
    ("supervisor", &["clock", "drain", "resilience", "telemetry"]),
    ("listener", &["clock", "drain", "headers", "http1", "resilience", "telemetry"]),
    ("legacy", &["clock", "drain", "headers", "resilience", "telemetry"]),
    ("admin", &["drain", "headers", "telemetry"]),
    (
        "proxy",
        &[
            "cache",
            "clock",
            "drain",
            "headers",
            "http1",
            "listener",
            "resilience",
            "route",
            "telemetry",
            "upstream",
        ],
    ),
    ("config", &["billing", "cache", "listener", "proxy", "resilience", "route", "supervisor", "upstream"]),
    (
        "app",
        &[
            "admin",
            "billing",
            "cache",
            "clock",
            "config",
            "drain",
            "headers",
            "http1",
            "legacy",
            "listener",
            "proxy",
            "resilience",
            "route",
            "supervisor",
            "telemetry",
            "upstream",
        ],
    ),
    // Only for the version that `--version` prints.
    ("cli", &["app", "telemetry"]),
];

/// What `config` may name of each room: the values a file can set, and nothing that does anything but hold them.
/// (A routing table is built to find conflicts between routes.)
const SETTINGS: [&str; 45] = [
    "billing::journal::BUCKETS",
    "billing::journal::Config",
    "billing::journal::Engine",
    "billing::journal::Node",
    "billing::journal::Timeouts",
    "billing::notifier::Config",
    "billing::notifier::Webhook",
    "billing::projection::Config",
    "billing::shard::Config",
    "cache::Config",
    "cache::Policy",
    "cache::QueryKey",
    "listener::CertificateFiles",
    "listener::CertificateSource",
    "listener::ProxyProtocol",
    "listener::QuicReset",
    "listener::TlsConfig",
    "proxy::AccessLog",
    "proxy::Config",
    "proxy::DrainConfig",
    "proxy::Limits",
    "proxy::RouteConfig",
    "resilience::limit::Rate",
    "resilience::retry::RetryClass",
    "route::Conflict",
    "route::HostPattern",
    "route::Pattern",
    "route::Rule",
    "route::Table",
    "supervisor::AddressTemplate",
    "supervisor::Backoff",
    "supervisor::Config",
    "supervisor::HealthConfig",
    "supervisor::LogConfig",
    "supervisor::ProcessConfig",
    "supervisor::SocketConfig",
    "supervisor::settings",
    "upstream::Address",
    "upstream::Balance",
    "upstream::Config",
    "upstream::EndpointConfig",
    "upstream::HealthConfig",
    "upstream::PassiveConfig",
    "upstream::RetryConfig",
    "upstream::TlsConfig",
];

/// Files that decide: time and chance are passed in, and nothing is done but said. A folder ends in `/`.
const PURE: [&str; 12] = [
    "src/http1/",
    "src/route/",
    "src/resilience/",
    "src/cache/key.rs",
    "src/cache/directives.rs",
    "src/cache/freshness.rs",
    "src/cache/vary.rs",
    "src/cache/storable.rs",
    "src/cache/conditional.rs",
    "src/supervisor/lifecycle.rs",
    "src/upstream/health.rs",
    "src/upstream/balance.rs",
];

/// Sockets, clocks, threads and dice.
const IMPURE: [&str; 15] = [
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "tokio::",
    "Instant::now",
    "SystemTime::now",
    "elapsed()",
    "thread::spawn",
    "thread::Builder",
    "thread::sleep",
    "fastrand::",
    "rand::",
];

/// Names that say nothing; the code belongs to the noun that owns it.
const NAMELESS: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "misc", "shared"];

const LINES_MAX: usize = 800;
/// Ten times the largest there is, Cargo.lock; what is larger is made, or fetched.
const BYTES_MAX: u64 = 1_000_000;

// -------------------------------------------------------------------------------------------------------- the rules

/// Paths below `crate` that a file names, by `crate::a`, `use crate::{a, b::c}` or enough `super::`.
fn crate_paths(path: &str, code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| starts_word(code, *at)) {
        paths_of(&code[at + "crate::".len()..], &mut found);
    }
    for (at, _) in code.match_indices("super::").filter(|(at, _)| starts_word(code, *at)) {
        let chain = &code[at..];
        let supers = chain.split("super::").take_while(|between| between.is_empty()).count();
        let continues = code[..at].ends_with("super::");
        if !continues && supers == module_depth(path) + inline_modules(&code[..at]) {
            paths_of(&chain[supers * "super::".len()..], &mut found);
        }
    }
    found
}

/// How many times `super` leads from the file's own module to the crate.
fn module_depth(path: &str) -> usize {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    inner.split('/').count()
}

/// How many `mod name {` are open at the end of this code.
fn inline_modules(code: &str) -> usize {
    let mut open = Vec::new();
    for (at, brace) in code.char_indices().filter(|(_, c)| matches!(c, '{' | '}')) {
        if brace == '}' {
            open.pop();
        } else {
            let mut words = code[..at].split_whitespace().rev();
            open.push(words.next().is_some() && words.next() == Some("mod"));
        }
    }
    open.into_iter().filter(|is_module| *is_module).count()
}

/// The paths of a use tree or of an expression's path, from its beginning.
fn paths_of(tree: &str, found: &mut Vec<Vec<String>>) {
    fn walk<'t>(mut rest: &'t str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'t str {
        let mut path = prefix.to_vec();
        loop {
            rest = rest.trim_start();
            if let Some(group) = rest.strip_prefix('{') {
                rest = group;
                loop {
                    rest = rest.trim_start().trim_start_matches(',').trim_start();
                    match rest.strip_prefix('}') {
                        Some(after) => return after,
                        None if rest.is_empty() => return rest,
                        None => rest = walk(rest, &path, found),
                    }
                    // `name as other` inside of a group: what it is called here does not matter.
                    rest = rest.trim_start();
                    if let Some(renamed) = rest.strip_prefix("as ") {
                        rest = renamed.trim_start().trim_start_matches(is_word);
                    }
                }
            }
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            match &rest[..end] {
                // `*`, or something that is no path at all.
                "" => {
                    found.push(path);
                    return rest.trim_start_matches(|c: char| !matches!(c, ',' | '}'));
                }
                "self" => {}
                word => path.push(word.to_owned()),
            }
            rest = &rest[end..];
            match rest.strip_prefix("::") {
                Some(next) => rest = next,
                None => {
                    found.push(path);
                    return rest;
                }
            }
        }
    }
    walk(tree, &[], found);
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn starts_word(text: &str, at: usize) -> bool {
    !text[..at].chars().next_back().is_some_and(|c| is_word(c) || c == '$')
}

fn room_of(path: &str) -> &str {
    let inner = path.trim_start_matches("src/");
    inner.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// Rooms this file names without leave.
fn forbidden_arrows(path: &str, text: &str) -> Vec<String> {
    let room = room_of(path);
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{path}: the room {room} has no row in the table of arrows")];
    };
    let named: BTreeSet<String> = crate_paths(path, &Source::of(text).code)
        .into_iter()
        .filter_map(|path| path.into_iter().next())
        .collect();
    let strange = named.into_iter().filter(|name| name != room && !allowed.contains(&name.as_str()));
    strange.map(|name| format!("{path}: {room} may not name {name}")).collect()
}

/// What a file of `config` names of other rooms that is no setting.
fn more_than_settings(path: &str, text: &str) -> Vec<String> {
    let code = Source::of(text).code;
    let mut named = crate_paths(path, &code);
    let modules: Vec<String> =
        named.iter().filter(|path| path.len() == 1).map(|path| path[0].clone()).collect();
    for module in modules {
        let prefix = format!("{module}::");
        for (at, _) in code.match_indices(&prefix) {
            if starts_word(&code, at) && !code[..at].ends_with("::") {
                paths_of(&code[at..], &mut named);
            }
        }
    }
    let allowed = |path: &str| {
        SETTINGS.iter().any(|setting| path == *setting || path.starts_with(&format!("{setting}::")))
    };
    let strange = named
        .iter()
        .filter(|path| path.len() > 1 && path[0] != "config")
        .map(|path| path.join("::"))
        .filter(|path| !allowed(path));
    strange.map(|name| format!("{path}: {name} is no setting")).collect()
}

fn nameless(path: &str, text: &str) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    if path.split('/').any(|part| NAMELESS.contains(&part.split('.').next().unwrap_or_default())) {
        problems.push(format!("{path}: call it by what it is about"));
    }
    if path.ends_with(".rs") {
        let code = Source::of(text).code;
        let words: Vec<&str> = code.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
        let modules = words.windows(2).filter(|pair| pair[0] == "mod" && NAMELESS.contains(&pair[1]));
        problems.extend(modules.map(|pair| format!("{path}: mod {} says nothing", pair[1])));
    }
    problems
}

/// The front door of a room says what it is and what it never does.
fn undocumented_room(path: &str, text: &str) -> Vec<String> {
    let told = text.lines().take_while(|line| line.starts_with("//!")).filter(|line| line.len() > 4).count();
    if told >= 2 { Vec::new() } else { vec![format!("{path}: begins with fewer than two lines of `//!`")] }
}

fn impure(path: &str, text: &str) -> Vec<String> {
    let code = without_tests(&Source::of(text).code);
    let found =
        IMPURE.iter().filter(|thing| code.match_indices(**thing).any(|(at, _)| starts_word(&code, at)));
    found.map(|thing| format!("{path}: is pure, and names {thing}")).collect()
}

fn left_behind(path: &str, text: &str) -> Vec<String> {
    const BANNED: [&str; 5] = ["todo!", "unimplemented!", "dbg!", "#[ignore", "dead_code"];
    let code = Source::of(text).code;
    BANNED
        .iter()
        .filter(|thing| code.match_indices(**thing).any(|(at, _)| starts_word(&code, at)))
        .map(|thing| format!("{path}: {thing} is not left behind"))
        .collect()
}

fn unowned(path: &str, text: &str) -> Vec<String> {
    const MARK: &str = concat!("TO", "DO");
    let mut problems = Vec::new();
    for (at, _) in text.match_indices(MARK).filter(|(at, _)| starts_word(text, *at)) {
        let after = &text[at + MARK.len()..];
        let owner =
            after.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or("", |(name, _)| name);
        if owner.is_empty() && !after.starts_with(is_word) {
            let line = text[..at].lines().count();
            problems.push(format!("{path}:{line}: say who owns it: {MARK}(name)"));
        }
    }
    problems
}

fn too_large(path: &str, bytes: u64) -> Option<String> {
    (bytes > BYTES_MAX).then(|| format!("{path}: has {bytes} bytes, and {BYTES_MAX} are enough"))
}

fn untidy_space(path: &str, text: &str) -> Vec<String> {
    let bad = text.lines().enumerate().filter(|(_, line)| line.contains('\t') || line.ends_with(' '));
    bad.map(|(number, _)| format!("{path}:{}: a tab, or space at the end of the line", number + 1)).collect()
}

/// Places of one machine or one network, which mean nothing on another.
fn of_one_machine(path: &str, text: &str) -> Vec<String> {
    // In halves, so that this file does not hold them itself.
    const PLACES: [&str; 11] = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("arti", "factory"),
        concat!("index", "-url"),
        concat!("replace", "-with"),
        concat!("//regi", "stry."),
        concat!("static.crates", ".io"),
        concat!("index.crates", ".io"),
        concat!("proxy.golang", ".org"),
        concat!("pypi", ".org"),
    ];
    let mut problems: Vec<String> = PLACES
        .iter()
        .filter(|place| text.contains(**place))
        .map(|place| format!("{path}: holds {place}"))
        .collect();
    if path.ends_with("Cargo.lock") {
        const CRATES: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        let strange = text.lines().filter(|line| line.starts_with("source = ") && *line != CRATES);
        problems.extend(strange.map(|line| format!("{path}: {line}")));
    }
    problems
}

/// Metric names that are not `forefront_<room>_<thing>`, counters without `_total` and other kinds with it.
fn misnamed_metrics(path: &str, text: &str) -> Vec<String> {
    // The process keeper is `supervise` to its operators; the last two are of every process.
    const OTHERS: [&str; 3] = ["supervise", "build", "process"];
    let source = Source::of(text);
    let code = without_tests(&source.code);
    let mut problems = Vec::new();
    for (at, literal) in source.literals.iter().filter(|(_, literal)| literal.starts_with("forefront_")) {
        if code.as_bytes().get(*at) != Some(&b'"') {
            continue;
        }
        let name = without_placeholders(literal);
        let sound = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let room = name.split('_').nth(1).unwrap_or_default();
        if !sound || !(OTHERS.contains(&room) || ARROWS.iter().any(|(known, _)| *known == room)) {
            problems.push(format!("{path}: {literal} is not forefront_<room>_<thing>"));
        }
        let statement = code[..*at].rsplit(';').next().unwrap_or_default().to_ascii_lowercase();
        let kind = ["counter", "gauge", "histogram"]
            .into_iter()
            .filter_map(|kind| Some((statement.rfind(kind)?, kind)))
            .max();
        match kind {
            Some((_, "counter")) if !name.ends_with("_total") => {
                problems.push(format!("{path}: the counter {literal} does not end in _total"));
            }
            Some((_, "gauge" | "histogram")) if name.ends_with("_total") => {
                problems.push(format!("{path}: {literal} ends in _total and is no counter"));
            }
            _ => {}
        }
    }
    problems
}

/// A format string's `{thing}` stands for a word.
fn without_placeholders(literal: &str) -> String {
    let mut parts = literal.split('{');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        name.push('x');
        name.push_str(part.split_once('}').map_or("}", |(_, after)| after));
    }
    name
}

fn undecided(path: &str, text: &str) -> Vec<String> {
    let has = |heading: &str| {
        text.lines().any(|line| line.trim_start_matches('#').trim() == heading && line.starts_with("##"))
    };
    let missing = ["Context", "Choice", "Cost"].into_iter().filter(|heading| !has(heading));
    missing.map(|heading| format!("{path}: has no heading `## {heading}`")).collect()
}

// --------------------------------------------------------------------------------------------------------- the tree

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files of the tree, without what is built or fetched, as paths from the root.
fn paths(under: &str) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let skipped = ["target", ".git", ".forefront", "node_modules", "__pycache__", ".terraform"];
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !skipped.iter().any(|s| name == *s) => {
                    walk(&entry.path(), found)
                }
                Ok(kind) if kind.is_file() && name != ".git" => found.push(entry.path()),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(under), &mut found);
    found.sort();
    found.iter().filter_map(|path| Some(path.strip_prefix(root()).ok()?.to_str()?.to_owned())).collect()
}

/// Of these the text files whose names end so, as `(path, text)`: what is no text has nothing to keep tidy.
fn files(under: &str, ends: &str) -> Vec<(String, String)> {
    let named = paths(under).into_iter().filter(|path| path.ends_with(ends));
    named.filter_map(|path| Some((path.clone(), std::fs::read_to_string(root().join(path)).ok()?))).collect()
}

fn check(files: &[(String, String)], rule: impl Fn(&str, &str) -> Vec<String>) {
    assert!(!files.is_empty(), "a rule over no files holds nothing");
    let problems: Vec<String> = files.iter().flat_map(|(path, text)| rule(path, text)).collect();
    assert!(problems.is_empty(), "{} problems:\n  {}", problems.len(), problems.join("\n  "));
}

fn rust_files() -> Vec<(String, String)> {
    ["src", "tests"].iter().flat_map(|folder| files(folder, ".rs")).collect()
}

#[test]
fn rooms_name_only_whom_they_may() {
    let rooms: Vec<_> = files("src", ".rs")
        .into_iter()
        .filter(|(path, _)| !matches!(&**path, "src/main.rs" | "src/lib.rs"))
        .collect();
    check(&rooms, forbidden_arrows);
    let there: BTreeSet<&str> = rooms.iter().map(|(path, _)| room_of(path)).collect();
    for (room, _) in ARROWS {
        assert!(there.contains(room), "the table of arrows has a row for {room}, which is no room");
    }
    let main = std::fs::read_to_string(root().join("src/main.rs")).expect("there is a main.rs");
    let named: Vec<_> =
        main.match_indices("forefront::").map(|(at, found)| &main[at + found.len()..]).collect();
    assert!(named.iter().all(|rest| rest.starts_with("cli::")), "main names cli and nothing else");
}

#[test]
fn arrows_go_down() {
    for (row, (room, allowed)) in ARROWS.iter().enumerate() {
        let above = |name: &str| ARROWS[..row].iter().any(|(earlier, _)| *earlier == name);
        assert!(
            allowed.iter().all(|name| above(name)),
            "{room} names a room that is not above it in the table"
        );
    }
}

#[test]
fn config_names_settings_only() {
    check(&files("src/config", ".rs"), more_than_settings);
}

#[test]
fn the_map_shows_the_same_arrows() {
    let map = std::fs::read_to_string(root().join("docs/architecture.md")).expect("there is a map");
    for (room, allowed) in ARROWS {
        let row = map.lines().find(|line| line.starts_with(&format!("| `{room}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/architecture.md has no row for {room}"));
        let told: BTreeSet<&str> =
            row.split('|').nth(3).unwrap_or_default().split('`').skip(1).step_by(2).collect();
        let expected: BTreeSet<&str> = allowed.iter().copied().collect();
        let all_but_cli = room == "app" && row.ends_with("| every room but `cli` |");
        assert!(told == expected || all_but_cli, "docs/architecture.md says otherwise: {row}");
    }
}

#[test]
fn everything_has_a_name() {
    check(&files("", ""), nameless);
}

#[test]
fn every_room_has_a_front_door() {
    let doors = files("src", "/mod.rs");
    check(
        &doors.into_iter().filter(|(path, _)| path.split('/').count() == 3).collect::<Vec<_>>(),
        undocumented_room,
    );
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut lengths: Vec<(usize, String)> =
        rust_files().into_iter().map(|(path, text)| (text.lines().count(), path)).collect();
    lengths.sort_unstable_by(|one, other| other.cmp(one));
    let longest: Vec<String> =
        lengths.iter().take(10).map(|(lines, path)| format!("{lines:5}  {path}")).collect();
    println!("the longest files:\n{}", longest.join("\n"));
    assert!(
        lengths[0].0 <= LINES_MAX,
        "above {LINES_MAX} lines look for the second noun:\n{}",
        longest.join("\n")
    );
}

#[test]
fn files_are_small() {
    let sizes = paths("").into_iter().map(|path| {
        let size = std::fs::metadata(root().join(&path)).map_or(0, |file| file.len());
        (path, size)
    });
    let problems: Vec<String> = sizes.filter_map(|(path, size)| too_large(&path, size)).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn what_decides_is_pure() {
    let sources = files("src", ".rs");
    for pure in PURE {
        let of_it: Vec<_> = sources
            .iter()
            .filter(|(path, _)| path == pure || (pure.ends_with('/') && path.starts_with(pure)))
            .filter(|(path, _)| !path.ends_with("/tests.rs"))
            .cloned()
            .collect();
        assert!(!of_it.is_empty(), "{pure} is listed as pure and is not there");
        check(&of_it, impure);
    }
}

#[test]
fn nothing_is_left_behind() {
    check(&rust_files(), left_behind);
    check(&files("", ""), unowned);
    check(&rust_files(), untidy_space);
}

#[test]
fn nothing_is_of_one_machine() {
    check(&files("", ""), of_one_machine);
}

#[test]
fn metrics_are_named_alike() {
    let sources: Vec<_> =
        files("src", ".rs").into_iter().filter(|(path, _)| !path.ends_with("tests.rs")).collect();
    check(&sources, misnamed_metrics);
}

#[test]
fn decisions_tell_context_choice_and_cost() {
    check(&files("docs/decisions", ".md"), undecided);
}

// ------------------------------------------------------------------------------------------- that the rules can fail

#[test]
fn sizes_can_fail() {
    assert!(too_large("a.bin", BYTES_MAX + 1).is_some());
    assert!(too_large("a.bin", BYTES_MAX).is_none());
}

fn fails(problems: Vec<String>) {
    assert!(!problems.is_empty(), "the rule let it pass");
}

fn passes(problems: Vec<String>) {
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn arrows_can_fail() {
    let bad = [
        "use crate::upstream::Pool;",
        "use crate::{clock, upstream};",
        "use crate::{clock::{self, now}, headers::*, upstream::{Pool as Basin, Lease}};",
        "use crate::{\n    clock as c,\n    upstream,\n};",
        "fn f() { crate :: clock::now(); crate::upstream::f::<u8>() }",
        "use super::super::upstream::Pool;",
        "mod a { mod b { use super::super::super::super::upstream; } }",
        "pub(in crate::upstream) fn f() {}",
    ];
    for text in bad {
        fails(forbidden_arrows("src/cache/store.rs", text));
    }
    fails(forbidden_arrows("src/cache/mod.rs", "use super::upstream;"));
    fails(forbidden_arrows("src/clock.rs", "use super::upstream;"));
    fails(forbidden_arrows("src/newroom/mod.rs", ""));
    let good = [
        "use crate::clock::now; use crate::cache::key; use crate::{headers, telemetry};",
        "use super::entry; // use crate::upstream;\n/* crate::upstream */ const A: &str = \"crate::upstream\";",
        "mod tests { use super::super::entry; fn f() { let c = '\"'; crate::clock::now(); } }",
        "fn f<'a>(a: &'a str) -> &'a str { r#\"crate::upstream \"#; a }",
    ];
    for text in good {
        passes(forbidden_arrows("src/cache/store.rs", text));
    }
}

#[test]
fn settings_can_fail() {
    fails(more_than_settings("src/config/a.rs", "use crate::cache::Cache;"));
    fails(more_than_settings("src/config/a.rs", "use crate::{cache, proxy}; fn f(c: &cache::Cache) {}"));
    fails(more_than_settings("src/config/a.rs", "fn f() { crate::upstream::spawn_prober() }"));
    passes(more_than_settings("src/config/a.rs", "use crate::{cache}; fn f(c: &cache::Config) {}"));
}

#[test]
fn names_can_fail() {
    fails(nameless("src/cache/utils.rs", ""));
    fails(nameless("src/common/mod.rs", ""));
    fails(nameless("src/cache/store.rs", "mod helpers { }"));
    passes(nameless("src/cache/store.rs", "mod key; // mod utils"));
}

#[test]
fn front_doors_can_fail() {
    fails(undocumented_room("src/cache/mod.rs", "//! One line.\n//!\n\nmod a;"));
    fails(undocumented_room("src/cache/mod.rs", "mod a;"));
    passes(undocumented_room("src/cache/mod.rs", "//! One line.\n//!\n//! Another.\nmod a;"));
}

#[test]
fn purity_can_fail() {
    for thing in IMPURE {
        fails(impure("src/route/table.rs", &format!("fn f() {{ let x = {thing}; }}")));
    }
    fails(impure("src/route/table.rs", "#[cfg(test)]\nmod tests {}\nfn f() { Instant::now() }"));
    passes(impure(
        "src/route/table.rs",
        "fn operand::a() {}\n#[cfg(test)]\nmod tests { fn f() { Instant::now() } }",
    ));
}

#[test]
fn leftovers_can_fail() {
    for text in
        ["todo!()", "unimplemented!()", "dbg!(1)", "#[ignore = \"slow\"]", "#![allow(unused, dead_code)]"]
    {
        fails(left_behind("src/a.rs", text));
    }
    passes(left_behind("src/a.rs", "// todo!() is banned\nconst A: &str = \"dbg!\";"));
    fails(unowned("README.md", concat!("TO", "DO: write it")));
    passes(unowned("README.md", concat!("TO", "DO(anna): write it")));
    fails(untidy_space("src/a.rs", "fn f() {} \n"));
    fails(untidy_space("src/a.rs", "\tfn f() {}\n"));
    passes(untidy_space("src/a.rs", "fn f() {}\n"));
}

#[test]
fn places_can_fail() {
    fails(of_one_machine("Makefile", concat!("cd /wo", "rk/main")));
    fails(of_one_machine("Cargo.lock", "source = \"registry+https://mirror.example/index\""));
    passes(of_one_machine("Makefile", "cd src && pwd"));
}

#[test]
fn metric_names_can_fail() {
    fails(misnamed_metrics("src/a.rs", "IntCounter::new(\"forefront_cache_hits\", \"Hits.\")"));
    fails(misnamed_metrics(
        "src/a.rs",
        "IntCounterVec::new(Opts::new(\"forefront_cache_hits\", \"Hits.\"), &[])",
    ));
    fails(misnamed_metrics("src/a.rs", "IntGauge::new(\"forefront_cache_bytes_total\", \"Bytes.\")"));
    fails(misnamed_metrics("src/a.rs", "IntGauge::new(\"forefront_cache_Bytes\", \"Bytes.\")"));
    fails(misnamed_metrics("src/a.rs", "IntGauge::new(\"forefront_nowhere_bytes\", \"Bytes.\")"));
    passes(misnamed_metrics("src/a.rs", "IntCounter::new(format!(\"forefront_cache_{thing}_total\"), help)"));
    passes(misnamed_metrics(
        "src/a.rs",
        "let a = counter(b); IntGauge::new(\"forefront_cache_bytes\", \"Bytes.\")",
    ));
}

#[test]
fn decisions_can_fail() {
    fails(undecided("docs/decisions/0001-a.md", "# A\n\n## Context\n\n## Choice\n"));
    passes(undecided("docs/decisions/0001-a.md", "# A\n\n## Context\n\n## Choice\n\n## Cost\n"));
}
