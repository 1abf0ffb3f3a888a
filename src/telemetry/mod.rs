//! Tracing set-up, metrics registry, build information.
//!
//! - [`init`] sends events (and the records of the `log` crate, which pingora uses) to stderr;
//! - [`registry`] makes a registry that already holds what every process shows: build and process metrics;
//! - [`encode`] writes a registry in the Prometheus text format;
//! - [`access::Writer`] is where the access log goes;
//! - [`causes`] is an error as a log tells it.
//!
//! Nothing here ever makes a request wait for a reader of a log: lines are handed to a thread, and when that
//! thread cannot keep up they are dropped and counted. There is no global registry.

pub mod access;
mod build;
mod log;
mod process;
mod sink;

pub use build::{COMMIT, VERSION};
pub use log::{Format, Log, LogConfig, init};

use prometheus::{Encoder, Registry, TextEncoder};

/// The content type of what [`encode`] writes.
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What can go wrong while telemetry is set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not of the form `info,forefront::cache=debug`.
    #[error("the log filter {filter:?} cannot be understood")]
    Filter {
        /// As it was given.
        filter: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Another subscriber was installed before.
    #[error("logging is set up already")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
    /// The file of the access log cannot be opened.
    #[error("cannot open the log file {path:?}")]
    Open {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The thread that writes a log cannot be started.
    #[error("cannot start the log thread")]
    Thread(#[source] std::io::Error),
    /// A metric of this room was registered before.
    #[error("cannot register a metric")]
    Register(#[source] prometheus::Error),
}

/// A new registry with `forefront_build_info` and the `process_*` metrics.
///
/// # Errors
/// [`Error::Register`], which cannot happen on a fresh registry unless this room names a metric twice.
pub fn registry() -> Result<Registry, Error> {
    let registry = Registry::new();
    build::register(&registry).map_err(Error::Register)?;
    process::register(&registry).map_err(Error::Register)?;
    Ok(registry)
}

/// An error and what it comes from, as one text for a log.
pub fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The registry's metrics in the Prometheus text format (0.0.4).
///
/// A family that cannot be encoded is left out and logged, so that one bad metric does not blind the rest.
pub fn encode(registry: &Registry) -> Vec<u8> {
    let encoder = TextEncoder::new();
    let mut text = Vec::with_capacity(16 * 1024);
    for family in registry.gather() {
        let before = text.len();
        if let Err(error) = encoder.encode(std::slice::from_ref(&family), &mut text) {
            text.truncate(before);
            tracing::warn!(metric = family.name(), %error, "a metric could not be encoded and was left out");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name{label="value",...} number`, as the text format has it.
    fn is_sample(line: &str) -> bool {
        let Some((series, value)) = line.rsplit_once(' ') else { return false };
        let name = series.split('{').next().unwrap_or("");
        let labels_close = !series.contains('{') || series.ends_with("\"}");
        let name_is_valid = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
            && name.starts_with(|c: char| c.is_ascii_alphabetic());
        labels_close && name_is_valid && value.parse::<f64>().is_ok()
    }

    #[test]
    fn the_shared_metrics_encode_validly() {
        let registry = registry().unwrap();
        let text = String::from_utf8(encode(&registry)).unwrap();
        for line in text.lines() {
            let comment = line.starts_with("# HELP ") || line.starts_with("# TYPE ");
            assert!(comment || is_sample(line), "not a valid line: {line}");
        }
        for name in [
            "forefront_build_info{",
            "process_open_fds ",
            "process_max_fds ",
            "process_resident_memory_bytes ",
            "process_virtual_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_start_time_seconds ",
            "process_threads ",
        ] {
            let line = text.lines().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("{name} is missing in\n{text}"));
            let value: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
            assert!(value > 0.0 || name.starts_with("process_cpu"), "{line}");
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let inner = std::io::Error::other("no route");
        let error = Error::Open { path: "x".into(), source: std::io::Error::other(Error::Thread(inner)) };
        assert_eq!(causes(&error), "cannot open the log file \"x\": cannot start the log thread: no route");
    }

    #[test]
    fn two_registries_live_side_by_side() {
        assert!(registry().is_ok() && registry().is_ok());
    }
}
