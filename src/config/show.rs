//! Settings back to TOML. What is written here is loaded to the same settings: `forefront check --show` prints it, and
//! the `dev` command derives its files with it.
//!
//! Every struct is taken apart without `..`, so that a new field cannot be forgotten.

mod billing;
mod proxy;
mod supervise;
mod writer;

pub use billing::to_toml as billing_to_toml;
pub use proxy::to_toml;
pub use supervise::to_toml as supervise_to_toml;
