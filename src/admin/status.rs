//! What `/status` answers, as docs/observability.md tells it. The app fills it, the page and `forefront status`
//! read it. Every part may be absent, so that a command reads the answer of an older or newer process, and that of
//! the keeper, which has processes instead of upstreams.

use serde::{Deserialize, Serialize};

/// One process at one moment. Counters count from its start; rates are over the last ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `[node] name`.
    pub node: String,
    /// `proxy` or `supervise`.
    pub role: String,
    /// Version of the package.
    pub version: String,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Since the start of the process.
    pub uptime_seconds: f64,
    /// Open connections of clients.
    pub connections: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// In the order of the configuration.
    pub upstreams: Vec<Upstream>,
    /// Absent where there is no cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// In the order of the configuration.
    pub routes: Vec<Route>,
    /// What the keeper keeps; empty elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
}

/// A named pool of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upstream {
    /// Its name in the configuration.
    pub name: String,
    /// In the order of the configuration.
    pub endpoints: Vec<Endpoint>,
}

/// One address of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// As configured.
    pub address: String,
    /// `up`, `down`, `ejected`, `drained` or `unknown` (not probed yet).
    pub state: String,
    /// Requests under way to it.
    pub in_flight: u64,
    /// Requests sent to it.
    pub requests: u64,
    /// Of these, the ones that failed there.
    pub failures: u64,
    /// How long it has been in this state.
    pub since_seconds: f64,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Stored answers.
    pub entries: u64,
    /// Their weight.
    pub bytes: u64,
    /// Its bound.
    pub capacity_bytes: u64,
    /// Lookups answered from the store.
    pub hits: u64,
    /// Lookups that were not.
    pub misses: u64,
    /// Age of the answer that was served last from the store; null before the first.
    pub last_age_seconds: Option<f64>,
}

impl Cache {
    /// Hits of all lookups, 0 to 1; none before the first lookup.
    pub fn hit_ratio(&self) -> Option<f64> {
        let lookups = self.hits.saturating_add(self.misses);
        (lookups > 0).then(|| self.hits as f64 / lookups as f64)
    }
}

/// One route. An error is an answer with a status of 500 or more, and a request that got none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Its name in the configuration.
    pub name: String,
    /// Requests answered or given up.
    pub requests: u64,
    /// Of these, errors.
    pub errors: u64,
    /// Over the last ten seconds.
    pub requests_per_second: f64,
    /// Over the last ten seconds.
    pub errors_per_second: f64,
    /// Requests under way.
    pub in_flight: u64,
    /// Estimated from the buckets of the duration histogram; null before the first request.
    pub p50_seconds: Option<f64>,
    /// As `p50_seconds`.
    pub p90_seconds: Option<f64>,
}

/// One process of the keeper.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its name and instance.
    pub name: String,
    /// As the keeper calls it, for example `running` or `waiting`.
    pub state: String,
    /// Absent while it is not running.
    pub pid: Option<u32>,
    /// Times it was started again.
    pub restarts: u64,
    /// How long it has been in this state.
    pub since_seconds: f64,
    /// Why it ended last; null if it never did.
    pub last_exit: Option<String>,
}
