//! How often each endpoint was asked, for tests that compare requests of clients with requests at the origin.

use std::collections::BTreeMap;

use http::Method;
use parking_lot::Mutex;

/// What a request that matches no endpoint counts as.
const UNKNOWN: &str = "(unknown)";

/// Counters by method and route pattern; both come from closed sets, so the map stays small.
#[derive(Debug, Default)]
pub struct Counts {
    by_route: Mutex<BTreeMap<(&'static str, String), u64>>,
}

impl Counts {
    /// `pattern` is the route's pattern, never a path.
    pub fn count(&self, method: &Method, pattern: Option<&str>) {
        let mut by_route = self.by_route.lock();
        *by_route.entry((known(method), pattern.unwrap_or(UNKNOWN).to_owned())).or_default() += 1;
    }

    /// The counters, as `GET /api/movie/{id}` → n.
    pub fn all(&self) -> BTreeMap<String, u64> {
        let by_route = self.by_route.lock();
        by_route.iter().map(|((method, pattern), count)| (format!("{method} {pattern}"), *count)).collect()
    }

    pub fn reset(&self) {
        self.by_route.lock().clear();
    }
}

/// The methods that are told apart: a client could invent any number of others.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "OTHER",
    }
}
