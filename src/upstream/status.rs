//! What the status page says of an endpoint.

/// A view at one moment.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct EndpointStatus {
    /// Resolved.
    pub address: String,
    /// As the configuration names it.
    pub configured: String,
    /// `unknown`, `up`, `down`, `ejected` or `drained`.
    pub state: &'static str,
    /// May it get new requests?
    pub usable: bool,
    /// Since its health last changed.
    pub since_seconds: u64,
    pub in_flight: usize,
    /// Tries since the process began.
    pub requests: u64,
    /// Tries that failed, answers of a sick process included.
    pub failures: u64,
    pub last_error: Option<String>,
}
