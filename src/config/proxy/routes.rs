//! `[[route]]`.

use std::str::FromStr;
use std::time::Duration;

use http::Method;

use crate::cache::{Policy, QueryKey};
use crate::config::reader::{Place, Section, Value, nearest};
use crate::proxy::RouteConfig;
use crate::resilience::retry::RetryClass;
use crate::route::{Conflict, Pattern, Rule, Table};
use crate::upstream;

pub(in crate::config) const RETRIES: [(&str, RetryClass); 3] =
    [("unsent", RetryClass::Unsent), ("idempotent", RetryClass::Idempotent), ("any", RetryClass::Any)];

/// Longer than the slowest answer that is not a list; the lists say so themselves.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn read(root: &mut Section<'_>, upstreams: &[upstream::Config]) -> Vec<RouteConfig> {
    let place = root.place_of("route");
    let sections = root.sections("route");
    if sections.is_empty() {
        place.refuse(
            "there is no route",
            "add [[route]] with name = \"rest\", path = \"/*\" and upstream = \"...\"",
        );
    }
    let upstreams: Vec<&str> = upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    let mut routes: Vec<RouteConfig> = Vec::new();
    let mut ruled: Vec<(usize, Place<'_>)> = Vec::new();
    for section in sections {
        let (name_place, path_place) = (section.place_of("name"), section.place_of("path"));
        let (route, rule_is_sound) = route(section, &upstreams);
        if !route.name.is_empty() && routes.iter().any(|other| other.name == route.name) {
            name_place
                .refuse(&format!("there is another route {:?}", route.name), "give each a name of its own");
        }
        if rule_is_sound {
            ruled.push((routes.len(), path_place));
        }
        routes.push(route);
    }
    refuse_conflicts(&routes, ruled);
    routes
}

/// The table tells one conflict at a time, so the later rule of each is taken out until there is none left.
fn refuse_conflicts(routes: &[RouteConfig], mut ruled: Vec<(usize, Place<'_>)>) {
    loop {
        let rules = ruled.iter().map(|(index, _)| (routes[*index].rule.clone(), ())).collect();
        let Err(Conflict { first, second, what }) = Table::build(rules) else { return };
        let (_, place) = ruled.remove(second);
        let other = &routes[ruled[first].0].name;
        place.refuse(
            &format!("route {other:?} takes the same requests: {what}"),
            "give them different paths, methods or hosts",
        );
    }
}

/// The route, and whether its rule is as it was written.
fn route(mut section: Section<'_>, upstreams: &[&str]) -> (RouteConfig, bool) {
    let name = section.required("name", "name = \"...\"", Value::name).unwrap_or_default();
    let (rule, rule_is_sound) = rule(&mut section);
    let upstream = section.required("upstream", "upstream = \"...\", the name of an [[upstream]]", |value| {
        known_upstream(value, upstreams)
    });
    let in_flight = section.optional("in_flight", |value| value.integer(1..=1_000_000));
    let queue_place = section.place_of("queue");
    let queue = section.optional("queue", |value| value.integer(0..=1_000_000));
    if in_flight.is_none() && queue.is_some_and(|queue| queue > 0) {
        queue_place.refuse("has no effect without in_flight", "add in_flight, or remove it");
    }
    let cache_place = section.place_of("cache");
    let cache = section.optional("cache", cache).flatten();
    if cache.is_some() && !rule.methods.is_empty() && !rule.methods.contains(&Method::GET) {
        cache_place.refuse("only GET is cached, and the route does not take it", "add \"GET\" to methods");
    }
    let route = RouteConfig {
        name,
        rule,
        upstream: upstream.unwrap_or_default(),
        timeout: section.or("timeout", TIMEOUT, Value::duration),
        idle_timeout: section.or("idle_timeout", Duration::from_secs(30), Value::duration),
        total_timeout: section.optional("total_timeout", Value::duration),
        retry: section.or("retry", RetryClass::default(), |value| value.choice(&RETRIES)),
        in_flight,
        queue: queue.or(in_flight).unwrap_or(0),
        idempotency_key: section
            .or("idempotency_key", false, |value| value.choice(&[("add", true), ("off", false)])),
        cache,
    };
    section.finish();
    (route, rule_is_sound)
}

fn rule(section: &mut Section<'_>) -> (Rule, bool) {
    let hosts = section.optional("hosts", |value| value.list_of_some(host));
    let pattern = section.required("path", "path = \"/*\"", |value| {
        value.explained::<Pattern>("write e.g. \"/ping\", \"/api/movie/{id}\" or \"/files/*\"")
    });
    let methods = section.optional("methods", |value| value.list_of_some(method));
    let sound = pattern.is_some()
        && hosts.is_some() == section.has("hosts")
        && methods.is_some() == section.has("methods");
    // Stands in for what could not be read; the settings are thrown away then.
    let pattern = pattern.or_else(|| Pattern::from_str("/*").ok());
    let pattern = pattern.expect("a constant pattern that the tests of the room parse");
    let rule = Rule { hosts: hosts.unwrap_or_default(), pattern, methods: methods.unwrap_or_default() };
    (rule, sound)
}

fn host(value: Value<'_>) -> Option<crate::route::HostPattern> {
    value.explained("write e.g. \"example.com\" or \"*.example.com\"")
}

fn method(value: Value<'_>) -> Option<Method> {
    const HINT: &str = "write e.g. \"GET\"; methods are case-sensitive (RFC 9110, 9.1)";
    let place = value.place();
    let text = value.text()?;
    match text.parse::<Method>() {
        Ok(method) if !text.bytes().any(|byte| byte.is_ascii_lowercase()) => Some(method),
        _ => {
            place.refuse(&format!("{text:?} is not a method"), HINT);
            None
        }
    }
}

fn known_upstream(value: Value<'_>, upstreams: &[&str]) -> Option<String> {
    let place = value.place();
    let text = value.text()?;
    if upstreams.contains(&text) {
        return Some(text.to_owned());
    }
    let hint = match nearest(text, upstreams) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("there are: {}", upstreams.join(", ")),
    };
    place.refuse(&format!("there is no upstream {text:?}"), &hint);
    None
}

/// The outer None: it cannot be used. The inner one: not cached.
fn cache(value: Value<'_>) -> Option<Option<Policy>> {
    if value.is_text() {
        let origin = value.choice(&[("origin", true), ("none", false)])?;
        return Some(origin.then_some(Policy { max_age: None, refresh_at: None, query: QueryKey::All }));
    }
    let mut section = value.into_section()?;
    let refresh_place = section.place_of("refresh_at");
    let policy = Policy {
        max_age: section.optional("max_age", Value::duration),
        refresh_at: section.optional("refresh_at", Value::duration),
        query: section.or("query", QueryKey::default(), query),
    };
    if let (Some(max_age), Some(refresh_at)) = (policy.max_age, policy.refresh_at)
        && refresh_at >= max_age
    {
        refresh_place.refuse("is not below max_age, so it would come too late", "write half of max_age, say");
    }
    section.finish();
    Some(Some(policy))
}

fn query(value: Value<'_>) -> Option<QueryKey> {
    if value.is_text() {
        return value.choice(&[("all", false), ("none", true)]).map(|none| match none {
            true => QueryKey::None,
            false => QueryKey::All,
        });
    }
    let place = value.place();
    let names = value.list(Value::filled)?;
    if names.is_empty() {
        place.refuse("must not be empty", "write \"none\" to leave the query out");
        return None;
    }
    Some(QueryKey::Names(names))
}
