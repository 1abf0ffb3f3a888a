//! What is read from the environment, and nowhere else.

/// A `tracing` filter such as `info,forefront::upstream=debug`; over `[log] level`.
pub const LOG_VARIABLE: &str = "FOREFRONT_LOG";

/// The filter, if the variable is set to something.
pub fn log_filter() -> Option<String> {
    std::env::var(LOG_VARIABLE).ok().filter(|filter| !filter.trim().is_empty())
}
