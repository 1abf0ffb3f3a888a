//! Real-time billing: accounts that spend by the second, and orders that leave the moment the money ends.
//!
//! A shard is a state machine in memory with one owner; a command is answered once its batch is in a durable journal. Never
//! here: the proxy, which reaches this over HTTP only; TOML; signals.

pub mod api;
mod background;
pub mod domain;
pub mod iproto;
pub mod journal;
pub mod notifier;
pub mod projection;
pub mod shard;
