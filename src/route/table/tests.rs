//! The table against its documented order, and against a naive implementation of the same words.

use proptest::prelude::*;

use super::*;

fn rule(hosts: &[&str], pattern: &str, methods: &[&str]) -> Rule {
    Rule {
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        pattern: pattern.parse().unwrap(),
        methods: methods.iter().map(|method| method.parse().unwrap()).collect(),
    }
}

fn table(rules: &[(&str, Rule)]) -> Table<String> {
    let mut rules: Vec<_> = rules.iter().map(|(name, rule)| (rule.clone(), (*name).to_owned())).collect();
    // The order must not matter, so the worst one is as good as any.
    rules.reverse();
    Table::build(rules).unwrap()
}

fn shipped() -> Table<String> {
    table(&[
        ("long_dummy", rule(&[], "/long_dummy", &["GET", "HEAD"])),
        ("operation", rule(&[], "/operation", &["POST"])),
        ("movies", rule(&[], "/api/movie", &["GET"])),
        ("movie", rule(&[], "/api/movie/{id}", &["GET"])),
        ("top", rule(&[], "/api/{list}/top", &["GET"])),
        ("best", rule(&[], "/api/movie/best", &["GET"])),
        ("session_get", rule(&[], "/api/session/{id}", &["GET"])),
        ("session_delete", rule(&[], "/api/session/{key}", &["DELETE"])),
        ("api", rule(&[], "/api/*", &["GET"])),
        ("billing", rule(&[], "/billing/v1/*", &[])),
        ("example", rule(&["example.com"], "/*", &["GET"])),
        ("below", rule(&["*.example.com"], "/*", &["GET"])),
        ("deep", rule(&["*.deep.example.com"], "/*", &["GET"])),
    ])
}

#[test]
fn finds_the_narrowest() {
    let table = shipped();
    for (host, method, path, expected) in [
        ("", "GET", "/long_dummy", "long_dummy"),
        ("x", "HEAD", "/long_dummy", "long_dummy"),
        ("x", "GET", "/api/movie", "movies"),
        ("x", "GET", "/api/movie/7", "movie"),
        ("x", "GET", "/api/movie/best", "best"),
        ("x", "GET", "/api/movie/top", "movie"),
        ("x", "GET", "/api/other/top", "top"),
        ("x", "GET", "/api/session/7", "session_get"),
        ("x", "DELETE", "/api/session/7", "session_delete"),
        ("x", "GET", "/api/session/7/", "api"),
        ("x", "GET", "/api/movie//7", "api"),
        ("x", "GET", "/api/movie/a%2Fb", "api"),
        ("x", "PATCH", "/billing/v1/accounts", "billing"),
        ("example.com", "GET", "/long_dummy", "example"),
        ("EXAMPLE.com.:8080", "GET", "/x", "example"),
        ("example.com", "HEAD", "/long_dummy", "long_dummy"),
        ("a.example.com", "GET", "/x", "below"),
        ("a.deep.example.com", "GET", "/x", "deep"),
        ("deep.example.com", "GET", "/x", "below"),
    ] {
        let found = table.find(host, &method.parse().unwrap(), path);
        assert_eq!(found, Found::Route(&expected.to_owned()), "{host} {method} {path}");
    }
}

#[test]
fn refuses_methods_only_where_a_path_matched() {
    let table = shipped();
    let allowed = |method: &str, path: &str| match table.find("x", &method.parse().unwrap(), path) {
        Found::MethodNotAllowed(methods) => {
            let mut names: Vec<_> = methods.iter().map(Method::to_string).collect();
            names.sort();
            names.join(", ")
        }
        other => format!("{other:?}"),
    };
    assert_eq!(allowed("POST", "/long_dummy"), "GET, HEAD");
    assert_eq!(allowed("POST", "/api/session/7"), "DELETE, GET");
    assert_eq!(allowed("GET", "/operation"), "POST");
    assert_eq!(allowed("GET", "/nothing"), "NotFound");
    assert_eq!(allowed("GET", "*"), "NotFound");
    assert_eq!(allowed("GET", "/billing/v1/../../long_dummy"), "NotFound");
}

#[test]
fn a_listed_method_goes_before_any() {
    let table = table(&[("get", rule(&[], "/x", &["GET"])), ("all", rule(&[], "/x", &[]))]);
    assert_eq!(table.find("", &Method::GET, "/x"), Found::Route(&"get".to_owned()));
    assert_eq!(table.find("", &Method::PUT, "/x"), Found::Route(&"all".to_owned()));
}

#[test]
fn two_rules_that_match_the_same_conflict() {
    let conflict =
        |one: Rule, other: Rule| Table::build(vec![(one, 1), (other, 2)]).err().map(|found| found.what);
    let text = |what: &str| Some(what.to_owned());
    assert_eq!(conflict(rule(&[], "/a", &["GET"]), rule(&[], "/a", &["PUT", "GET"])), text("GET /a"));
    assert_eq!(conflict(rule(&[], "/a", &[]), rule(&[], "/a", &[])), text("any method on /a"));
    assert_eq!(conflict(rule(&[], "/{a}", &["GET"]), rule(&[], "/{b}", &["GET"])), text("GET /{b}"));
    assert_eq!(
        conflict(rule(&["a.b", "c.d"], "/*", &[]), rule(&["C.D"], "/*", &[])),
        text("any method on /*")
    );
    assert_eq!(conflict(rule(&["a.b"], "/", &[]), rule(&["*.a.b"], "/", &[])), None);
    assert_eq!(conflict(rule(&["a.b"], "/", &[]), rule(&[], "/", &[])), None);
    assert_eq!(conflict(rule(&[], "/a", &["GET"]), rule(&[], "/a", &[])), None);
    assert_eq!(conflict(rule(&["a.b", "a.b"], "/a", &["GET", "GET"]), rule(&[], "/", &[])), None);
}

/// How narrow a rule is for a request, or None if it does not take its host and path. Greater is narrower.
type Narrowness = (usize, u8, Vec<bool>, usize);

fn narrowness(rule: &Rule, host: &str, path: &str) -> Option<Narrowness> {
    let host = host.to_ascii_lowercase();
    let by_host = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(name) => (**name == *host).then_some(usize::MAX),
        HostPattern::Below(suffix) => {
            (host.ends_with(&**suffix) && host.len() > suffix.len()).then_some(suffix.len())
        }
    };
    let host_rank = match rule.hosts.as_slice() {
        [] => 0,
        hosts => hosts.iter().filter_map(by_host).max()?,
    };
    if !rule.pattern.matches(path) {
        return None;
    }
    let text = rule.pattern.as_str();
    Some(if text.ends_with('*') {
        (host_rank, 0, Vec::new(), text.len())
    } else if text.contains('{') {
        (host_rank, 1, text.split('/').map(|segment| !segment.starts_with('{')).collect(), 0)
    } else {
        (host_rank, 2, Vec::new(), 0)
    })
}

fn naive(rules: &[Rule], host: &str, method: &Method, path: &str) -> Result<usize, Vec<String>> {
    let mut allowed = Vec::new();
    let mut best: Option<((Narrowness, bool), usize)> = None;
    for (index, rule) in rules.iter().enumerate() {
        let Some(rank) = narrowness(rule, host, path) else { continue };
        if !rule.methods.is_empty() && !rule.methods.contains(method) {
            allowed.extend(rule.methods.iter().map(Method::to_string));
            continue;
        }
        let rank = (rank, !rule.methods.is_empty());
        if best.as_ref().is_none_or(|(best, _)| *best < rank) {
            best = Some((rank, index));
        }
    }
    allowed.sort();
    allowed.dedup();
    best.map(|(_, index)| index).ok_or(allowed)
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let host = prop::sample::select(vec!["a.b", "x.a.b", "*.a.b", "*.b"]);
    let pattern = prop::sample::select(vec![
        "/", "/a", "/a/", "/a/b", "/a/b/c", "/{x}", "/{y}", "/a/{x}", "/{x}/b", "/{x}/{y}", "/a/{x}/c", "/*",
        "/a/*", "/a/b/*",
    ]);
    let method = prop::sample::select(vec!["GET", "POST", "PUT"]);
    (prop::collection::vec(host, 0..3), pattern, prop::collection::vec(method, 0..3))
        .prop_map(|(hosts, pattern, methods)| rule(&hosts, pattern, &methods))
}

fn a_path() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a", "b", "c", "", ".", "..", "%2e%2E", "a%2Fb", "%5C", "..;x", "\\", "%61", ".a", "...",
    ]);
    prop::collection::vec(piece, 0..5).prop_map(|pieces| format!("/{}", pieces.join("/")))
}

/// Everything that some origin might make of a path.
fn readings(path: &str) -> Vec<String> {
    let mut decoded = path.to_owned();
    for (from, to) in
        [("%2F", "/"), ("%2f", "/"), ("%5C", "\\"), ("%5c", "\\"), ("%2E", "."), ("%2e", "."), ("..;x", "..")]
    {
        decoded = decoded.replace(from, to);
    }
    let slashed = decoded.replace('\\', "/");
    let mut readings = vec![path.to_owned(), decoded, slashed];
    for reading in readings.clone() {
        for merge in [false, true] {
            let mut out: Vec<&str> = Vec::new();
            let mut segments = reading[1..].split('/').peekable();
            while let Some(segment) = segments.next() {
                match segment {
                    // Merging makes one slash of several; a single one at the end is as it was sent.
                    "" if merge && segments.peek().is_some() => {}
                    "." => {}
                    ".." => drop(out.pop()),
                    segment => out.push(segment),
                }
            }
            readings.push(format!("/{}", out.join("/")));
        }
    }
    readings
}

proptest! {
    #[test]
    fn agrees_with_the_naive_table(
        rules in prop::collection::vec(a_rule(), 0..12),
        host in prop::sample::select(vec!["", "a.b", "A.B", "x.a.b", "y.x.a.b", "b", "z"]),
        method in prop::sample::select(vec!["GET", "POST", "DELETE"]),
        path in a_path(),
    ) {
        // Keep only rules that do not conflict with an earlier one.
        let mut kept: Vec<Rule> = Vec::new();
        for rule in rules {
            kept.push(rule);
            if Table::build(kept.iter().cloned().map(|rule| (rule, ())).collect()).is_err() {
                kept.pop();
            }
        }
        let table = Table::build(kept.iter().cloned().zip(0..).collect()).unwrap();
        let method: Method = method.parse().unwrap();
        let found = match table.find(host, &method, &path) {
            Found::Route(index) => Ok(*index),
            Found::NotFound => Err(Vec::new()),
            Found::MethodNotAllowed(methods) => {
                prop_assert!(!methods.is_empty());
                let mut names: Vec<_> = methods.iter().map(Method::to_string).collect();
                names.sort();
                Err(names)
            }
        };
        prop_assert_eq!(found, naive(&kept, host, &method, &path));
    }

    /// A route that takes a path as it was sent takes each of its readings too, or it is the catch-all.
    #[test]
    fn no_reading_of_a_path_leaves_its_route(path in a_path(), rule in a_rule()) {
        if rule.pattern.matches(&path) {
            for reading in readings(&path) {
                let inside = rule.pattern.as_str().strip_suffix('*').is_some_and(|prefix| {
                    // Resolving `/a/b/.` gives `/a/b`: still the prefix's own resource.
                    reading.starts_with(prefix) || format!("{reading}/") == prefix
                });
                prop_assert!(inside || rule.pattern.matches(&reading), "{} {path} {reading}", rule.pattern);
            }
        }
    }

    #[test]
    fn no_text_panics(host in ".{0,40}", path in ".{0,60}", raw in "[/.%2eEfF5cC;\\\\a{}*]{0,24}") {
        let table = shipped();
        for path in [path.as_str(), raw.as_str()] {
            table.find(&host, &Method::GET, path);
            let _ = path.parse::<Pattern>().map(|pattern| pattern.matches(path));
        }
        let _ = host.parse::<HostPattern>();
    }
}
