//! Which build this is.

use prometheus::{IntGaugeVec, Opts, Registry};

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, when the build said so by `FOREFRONT_COMMIT`; else `unknown`.
pub const COMMIT: &str = match option_env!("FOREFRONT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Registers `forefront_build_info`, which is always 1: its labels are the information.
pub(super) fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    let opts = Opts::new("forefront_build_info", "The build that runs; always 1.");
    let info = IntGaugeVec::new(opts, &["version", "commit"])?;
    info.with_label_values(&[VERSION, COMMIT]).set(1);
    registry.register(Box::new(info))
}
