//! Shards at work: one owner for each, commands in groups, answers once they are durable.
//!
//! [`Router`] is the way in. Behind it each shard has a life of its own on every node: `life` follows the journal and takes
//! the lease when it is free; `owner` is the one loop that touches the state, for one `tenure`; `commit` makes a batch
//! durable whatever the journal answers.
//!
//! Buckets move between shards (`transfer`, and what the journal's map says of it in `map`), and shards between nodes, by hand
//! or by themselves (`spread`).
//!
//! Never here: what a command does (`domain`), how bytes become durable (`journal`), how an order travels (`notifier`), and
//! how another node is asked: a caller is told where it is, and what shards ask of each other goes through [`Neighbours`].
//!
//! Invariants: an answer is of what is durable under an epoch that was this node's when it was given. A batch is written
//! again only if it surely is not in the journal. A node whose lease ran out, by its own monotonic clock, writes, answers and
//! sends nothing. No time of the journal goes back. A bucket is held by one shard or on its way between two, and whatever comes
//! twice or late, it is never held by both.

mod astray;
mod backend;
mod batching;
mod commit;
mod forgetting;
mod life;
mod map;
mod metrics;
mod operators;
mod owner;
mod postbox;
mod replica;
mod router;
mod seat;
mod settings;
mod snapshots;
mod spread;
mod tenure;
#[cfg(test)]
mod tests;
mod transfer;
mod wall;

use std::time::Duration;

use super::domain::Refusal;
use super::journal::{self, Cursor, Entry, ReplicaSetStatus};
use super::notifier;

pub use astray::Astray;
pub use postbox::{Answer, Postbox, Reply, Slip};
pub use router::Router;
pub use seat::Told;
pub use settings::{Config, IMAGE_BYTES_MAX};
pub use transfer::Neighbours;
pub use wall::{Hand, WallClock};

/// Why shards cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the journal cannot be read")]
    Journal(#[from] journal::Error),
    #[error("the notifier cannot be set up")]
    Notifier(#[from] notifier::Error),
    #[error("cannot register a metric")]
    Register(#[source] prometheus::Error),
}

/// Why there is no answer of the domain.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The queue is full, or the shard or the bucket changes hands. Surely nothing was done: whoever cannot be sure says
    /// `Unknown`. Worth another try after this.
    #[error("busy, try again")]
    Busy { retry_after: Duration },
    /// Another node owns the shard; the request may be forwarded there, once.
    #[error("another node has it")]
    Elsewhere { node: String, advertise: String },
    /// It may or may not have been done, or be done yet: the same key asked again tells. Never the answer to a question that
    /// changes nothing.
    #[error("the journal did not answer")]
    Unknown,
    /// Of a bucket or a shard; not as things are, however often it is asked.
    #[error(transparent)]
    Unmovable(#[from] Unmovable),
}

/// Why a bucket or a shard cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmovable {
    #[error("there is no such bucket")]
    NoSuchBucket,
    #[error("there is no such shard")]
    NoSuchShard,
    #[error("no node can be called that")]
    BadName,
    #[error("the bucket may take {bytes} bytes, which is more than can be sent at once")]
    TooLarge { bytes: usize },
    #[error("the shard is another node's, which this one cannot ask without node.peer_token_file")]
    NoWay,
}

/// A piece of what became of an account, newest first.
#[derive(Clone, Debug)]
pub struct History {
    pub entries: Vec<Entry>,
    /// Where to go on; None: this was all.
    pub next: Option<Cursor>,
    /// The ledger is late, and something newer, or from another shard, may be missing.
    pub behind: bool,
}

/// Which shards are whose.
#[derive(Clone, Debug)]
pub struct Owners {
    /// Who tells this.
    pub node: String,
    pub shards: Vec<ShardStatus>,
}

/// What `GET cluster` shows.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub node: String,
    pub shards: Vec<ShardStatus>,
    pub replica_sets: Vec<ReplicaSetStatus>,
}

#[derive(Clone, Debug)]
pub struct ShardStatus {
    pub shard: u32,
    /// Owner and where it is reached; empty: nobody.
    pub node: String,
    pub advertise: String,
    pub epoch: u64,
    pub seq: u64,
    pub buckets: u32,
    /// Known on the owner only.
    pub accounts: Option<u64>,
    /// As this node sees it, which follows every shard.
    pub astray: Astray,
    /// Can this node have commands done there, by itself or by forwarding?
    pub writable: bool,
}
