//! What an operator says about caching: sizes for the whole, and a policy for each route. Pure.

use std::time::Duration;

/// Bounds of the one store of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of all entries: heads, bodies, keys. Default 256 MiB.
    pub capacity_bytes: u64,
    /// Bytes of the largest body that is stored; a larger one is passed through. Default 8 MiB.
    pub object_bytes_max: u64,
    /// Distinct keys fetched at once for waiting requests; one more is `Answer::Busy`. Default 8: enough to warm every
    /// cached route of a small service, few enough not to bury a slow origin. As many again may be renewed ahead.
    pub fills: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { capacity_bytes: 256 << 20, object_bytes_max: 8 << 20, fills: 8 }
    }
}

/// How the answers of one route are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The lifetime of every stored answer, whatever lifetime the origin states, shorter or longer. `None`: as the
    /// origin's fields say. Either way `no-store`, `no-cache`, `private`, `Set-Cookie` and `Vary: *` forbid storing.
    pub max_age: Option<Duration>,
    /// Age at which an answer in demand is renewed. `None`, or not below the lifetime: not renewed ahead.
    pub refresh_at: Option<Duration>,
    /// Which part of the query tells answers apart, and goes to the origin.
    pub query: QueryKey,
}

/// The part of the query that belongs to the key. What is left out of the key is not sent to the origin either, so one
/// client cannot choose the answer another one gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QueryKey {
    /// The query as sent.
    #[default]
    All,
    /// No query.
    None,
    /// Only parameters with these names, compared as sent (not percent-decoded), in the order of this list.
    Names(Vec<String>),
}
