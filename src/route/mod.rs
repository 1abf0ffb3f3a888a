//! The routing table and its patterns: which route takes a request, by host, path and method.
//!
//! Pure: no socket, clock or random source; it knows neither upstreams nor configuration files. What a route *is*
//! (`R`) is the caller's business; the table only finds it.
//!
//! Order of precedence, never the order of the file:
//! 1. host: a named host, then the longest wildcard (`*.example.com`), then routes of any host;
//! 2. path: exact, then `{param}` (the leftmost literal segment wins), then the longest prefix;
//! 3. method: a route that lists the method, then one that takes any. A route whose methods do not match is skipped.
//!
//! The path is matched as it was sent. A path that an origin may normalise into another one (dot segments, `//`,
//! `%2F`, backslashes) reaches prefix routes only, see [`Shape`].

mod host;
mod path;
mod pattern;
mod table;

pub use host::{HostError, HostPattern};
pub use path::Shape;
pub use pattern::{Pattern, PatternError};
pub use table::{Conflict, Found, Rule, Table};
