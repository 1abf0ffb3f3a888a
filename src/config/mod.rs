//! Reads TOML and environment, refuses what it does not know, and compiles it to the `Config` of each room.
//!
//! A file is read by a small typed reader over its parsed tree instead of a serde mirror, because serde stops at the
//! first problem and an operator wants all of them, each with line, key path and a way out. Nothing else in the
//! program reads text that an operator wrote; the rooms get values that are valid.
//!
//! - [`proxy::load`], [`supervise::load`], [`billing::load`]: a file to its settings, or every [`Problem`] of it.
//! - [`show`]: settings back to TOML, which loads to the same settings.
//! - [`kind`]: whose file is this?
//! - [`environment`]: the one variable there is.
//!
//! There is no `${NAME}` substitution: a file says what it means, and secrets are named by their files.

pub mod billing;
mod document;
pub mod environment;
mod error;
mod kind;
pub mod proxy;
mod reader;
pub mod show;
pub mod supervise;
mod units;

#[cfg(test)]
mod tests;

pub use error::{Problem, Problems};
pub use kind::{Kind, kind};
