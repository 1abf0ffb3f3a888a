//! The map of forefront. Each module is a room with one job; `docs/architecture.md` tells which room may name
//! which, and `tests/it/tidy.rs` keeps it so.

pub mod admin;
pub mod app;
pub mod billing;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod drain;
pub mod headers;
pub mod http1;
pub mod legacy;
pub mod listener;
pub mod proxy;
pub mod resilience;
pub mod route;
pub mod supervisor;
pub mod telemetry;
pub mod upstream;
