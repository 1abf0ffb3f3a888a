//! The table: built once, then asked for every request.

use std::collections::HashMap;

use ahash::RandomState;
use http::Method;
use thiserror::Error;

use super::host::{self, HOST_BYTES_MAX, HostPattern};
use super::path::Shape;
use super::pattern::{Kind, Pattern, Segment, params_match, prefix_matches};

/// What requests a route takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Empty: any host, and requests without one.
    pub hosts: Vec<HostPattern>,
    pub pattern: Pattern,
    /// Empty: any method. GET does not imply HEAD.
    pub methods: Vec<Method>,
}

/// Two rules of which neither is narrower than the other: the table could not choose. Indices into what was given to
/// [`Table::build`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("rules {first} and {second} take the same requests: {what}")]
pub struct Conflict {
    pub first: usize,
    pub second: usize,
    /// What both take, such as `GET /ping`.
    pub what: String,
}

/// The answer of [`Table::find`].
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a, R> {
    Route(&'a R),
    /// A path matched, but no route takes the method. The methods are those for the Allow field, each once.
    MethodNotAllowed(Vec<Method>),
    NotFound,
}

/// Routes by host, path and method. Immutable; a reload builds another one.
pub struct Table<R> {
    routes: Vec<R>,
    named: Map<Paths>,
    /// Longest suffix first.
    below: Vec<(Box<str>, Paths)>,
    any: Paths,
}

// Keys come from the configuration only, so fixed seeds open no door to chosen collisions.
type Map<V> = HashMap<Box<str>, V, RandomState>;

fn map<V>() -> Map<V> {
    HashMap::with_hasher(RandomState::with_seeds(1, 2, 3, 4))
}

/// The rules of one host.
struct Paths {
    exact: Map<Takers>,
    /// Narrowest first.
    params: Vec<(Box<[Segment]>, Takers)>,
    /// Longest first.
    prefixes: Vec<(Box<str>, Takers)>,
}

/// The rules of one host and pattern, told apart by method.
#[derive(Default)]
struct Takers {
    listed: Vec<(Method, usize)>,
    any: Option<usize>,
}

impl<R> Table<R> {
    /// Errors: two rules with a host, a pattern and a method (or "any") in common.
    pub fn build(rules: Vec<(Rule, R)>) -> Result<Table<R>, Conflict> {
        let mut table = Table {
            routes: Vec::with_capacity(rules.len()),
            named: map(),
            below: Vec::new(),
            any: Paths::new(),
        };
        for (index, (rule, route)) in rules.into_iter().enumerate() {
            table.routes.push(route);
            if rule.hosts.is_empty() {
                table.any.add(&rule, index)?;
            }
            for host in &rule.hosts {
                table.paths_of(host).add(&rule, index)?;
            }
        }
        table.sort();
        Ok(table)
    }

    /// The narrowest route that takes the request. `host` may have a port, any case and a final dot, or be empty; `path`
    /// is as it was sent, without the query. Allocates only for `MethodNotAllowed`.
    pub fn find(&self, host: &str, method: &Method, path: &str) -> Found<'_, R> {
        let mut search = Search { method, path, shape: None, refused: false, collect: None };
        match self.search(host, &mut search) {
            Some(index) => Found::Route(&self.routes[index]),
            None if search.refused => Found::MethodNotAllowed(self.allowed(host, search)),
            None => Found::NotFound,
        }
    }

    /// In the order they were given to `build`.
    pub fn routes(&self) -> impl Iterator<Item = &R> {
        self.routes.iter()
    }

    fn search<'a>(&'a self, host: &str, search: &mut Search<'a, '_>) -> Option<usize> {
        self.named_route(host, search).or_else(|| self.any.find(search))
    }

    /// Asks again, now collecting: so a route that is merely skipped on the way to another one costs no allocation.
    fn allowed<'a>(&'a self, host: &str, mut search: Search<'a, '_>) -> Vec<Method> {
        search.collect = Some(Vec::new());
        self.search(host, &mut search);
        let mut methods: Vec<Method> = Vec::new();
        for (method, _) in search.collect.iter().flatten().flat_map(|takers| &takers.listed) {
            if !methods.contains(method) {
                methods.push(method.clone());
            }
        }
        methods
    }

    fn named_route<'a>(&'a self, host: &str, search: &mut Search<'a, '_>) -> Option<usize> {
        if self.named.is_empty() && self.below.is_empty() {
            return None;
        }
        let mut buffer = [0; HOST_BYTES_MAX];
        let name = host::normalise(host, &mut buffer)?;
        if let Some(paths) = self.named.get(name)
            && let Some(index) = paths.find(search)
        {
            return Some(index);
        }
        self.below
            .iter()
            .filter(|(suffix, _)| name.len() > suffix.len() && name.ends_with(&**suffix))
            .find_map(|(_, paths)| paths.find(search))
    }

    fn paths_of(&mut self, host: &HostPattern) -> &mut Paths {
        match host {
            HostPattern::Exact(name) => self.named.entry(name.clone()).or_insert_with(Paths::new),
            HostPattern::Below(suffix) => slot(&mut self.below, suffix, Paths::new),
        }
    }

    fn sort(&mut self) {
        self.below.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        let hosts = self.named.values_mut().chain(self.below.iter_mut().map(|(_, paths)| paths));
        for paths in hosts.chain([&mut self.any]) {
            paths.params.sort_by(|(one, _), (other, _)| one.cmp(other));
            paths.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
    }
}

impl Paths {
    fn new() -> Paths {
        Paths { exact: map(), params: Vec::new(), prefixes: Vec::new() }
    }

    fn add(&mut self, rule: &Rule, index: usize) -> Result<(), Conflict> {
        let takers = match rule.pattern.kind() {
            Kind::Exact => self.exact.entry(rule.pattern.as_str().into()).or_default(),
            Kind::Params(segments) => slot(&mut self.params, segments, Takers::default),
            Kind::Prefix(prefix) => slot(&mut self.prefixes, prefix, Takers::default),
        };
        takers.add(rule, index)
    }

    fn find<'a>(&'a self, search: &mut Search<'a, '_>) -> Option<usize> {
        // An exact pattern is never ambiguous, so a path equal to one needs no second look.
        if let Some(takers) = self.exact.get(search.path)
            && let Some(index) = search.offer(takers)
        {
            return Some(index);
        }
        let shape = search.shape();
        if shape == Shape::Plain {
            for (segments, takers) in &self.params {
                if params_match(segments, search.path)
                    && let Some(index) = search.offer(takers)
                {
                    return Some(index);
                }
            }
        }
        self.prefixes
            .iter()
            .filter(|(prefix, _)| prefix_matches(prefix, search.path, shape))
            .find_map(|(_, takers)| search.offer(takers))
    }
}

impl Takers {
    /// A rule may name a host or a method twice: that is no conflict with itself.
    fn add(&mut self, rule: &Rule, index: usize) -> Result<(), Conflict> {
        let conflict = |first: usize, method: &str| Conflict {
            first,
            second: index,
            what: format!("{method} {}", rule.pattern),
        };
        if rule.methods.is_empty() {
            match self.any {
                Some(first) if first != index => return Err(conflict(first, "any method on")),
                _ => self.any = Some(index),
            }
        }
        for method in &rule.methods {
            match self.listed.iter().find(|(listed, _)| listed == method) {
                Some((_, first)) if *first != index => return Err(conflict(*first, method.as_str())),
                Some(_) => {}
                None => self.listed.push((method.clone(), index)),
            }
        }
        Ok(())
    }

    fn take(&self, method: &Method) -> Option<usize> {
        self.listed.iter().find(|(listed, _)| listed == method).map(|(_, index)| *index).or(self.any)
    }
}

/// One `find`: what was asked, and what was learnt on the way.
struct Search<'a, 'r> {
    method: &'r Method,
    path: &'r str,
    /// Computed once, and only if no exact route answers first.
    shape: Option<Shape>,
    /// A path matched, but not its methods.
    refused: bool,
    /// Those that refused, if somebody wants to know.
    collect: Option<Vec<&'a Takers>>,
}

impl<'a> Search<'a, '_> {
    fn shape(&mut self) -> Shape {
        *self.shape.get_or_insert_with(|| Shape::of(self.path))
    }

    fn offer(&mut self, takers: &'a Takers) -> Option<usize> {
        let taken = takers.take(self.method);
        if taken.is_none() {
            self.refused = true;
            if let Some(collected) = &mut self.collect {
                collected.push(takers);
            }
        }
        taken
    }
}

/// The value of `key` in a small list, made if it is not there.
fn slot<'a, K: Clone + PartialEq, V>(
    list: &'a mut Vec<(K, V)>,
    key: &K,
    make: impl FnOnce() -> V,
) -> &'a mut V {
    let at = match list.iter().position(|(present, _)| present == key) {
        Some(at) => at,
        None => {
            list.push((key.clone(), make()));
            list.len() - 1
        }
    };
    &mut list[at].1
}

#[cfg(test)]
mod tests;
