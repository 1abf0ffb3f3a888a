//! How shards are owned and served. Every bound of the room stands here.

use std::time::Duration;

use crate::billing::journal::Node;
use crate::billing::projection;

/// What a bucket's image has at most, when every number in it is counted at its longest. It is one batch of the journal it
/// goes to: at 10 MB/s that is within the journal's answer timeout. It is some 300,000 accounts with a key each, where a
/// bucket has 1000 of a million.
pub const IMAGE_BYTES_MAX: usize = 32 << 20;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: Node,
    /// As many as the journal was opened with.
    pub shards: u32,
    /// A shard has no owner for this long after its owner died. Default 4 s: with a poll that is right behind its end, a
    /// take-over stays below 5 s, and two renewals may fail in between.
    pub lease: Duration,
    /// How often a node that does not own a shard reads its journal and asks for its lease. Default 500 ms: what is left
    /// to replay at a take-over then takes milliseconds.
    pub poll: Duration,
    /// How often the bucket map is read. Default 5 s; a command that finds no account's bucket reads it at once.
    pub map_refresh: Duration,
    /// Commands that wait while a batch is made durable, for each shard. Default 8192: two batches of the largest, some ten
    /// milliseconds of work; whoever comes after that is better off elsewhere or later.
    pub queue: usize,
    /// Commands of callers in a batch, at most. Default 4096: at 64 bytes of key each it stays below 0.5 MiB. How many there are
    /// depends on how long commits take.
    pub batch_commands: usize,
    /// Commands that wait while the journal does not answer are told to come again after this. Default 1 s: far beyond
    /// any commit, so that only an outage is meant.
    pub patience: Duration,
    /// The longest that a caller waits for an answer; then nobody knows. Default 10 s: longer than a journal's own
    /// timeouts, shorter than a client's.
    pub answer_timeout: Duration,
    /// How long the first result of an idempotency key is told again. Default 24 h: a client that was off for a day.
    pub keep_keys: Duration,
    /// Keys of all shards in memory, at about 70 bytes; every node has all of them, as it follows the shards that it does not
    /// own. A shard has the part of its buckets. Above it they are kept for less long, but not below `keep_keys_min`; then, a
    /// quarter above it, commands are refused. Default 16M: about 1.1 GB.
    pub keys_max: usize,
    /// Default 1 min: beyond the retries of a client that is still there, and at 200,000 a second still within `keys_max`.
    pub keep_keys_min: Duration,
    /// A snapshot is made after so many bytes of batches, or as many as the last snapshot has if that is more, so that
    /// snapshots at most double what is written. Default 64 MiB: about one second of replay.
    pub snapshot_bytes: u64,
    /// Or after so many batches. Default 100,000: they cost by the row as well.
    pub snapshot_batches: u64,
    /// Batches that stay behind a snapshot for whoever reads along (followers, the projection). Default 10,000.
    pub keep_batches: u64,
    /// How long a shard that is handed over is kept for the other node. Default 10 s: it polls twenty times.
    pub hand_over: Duration,
    /// A bucket with a larger image stays where it is. Default and most [`IMAGE_BYTES_MAX`], as other nodes take no more.
    pub image_bytes_max: usize,
    /// A node with fewer shards than others asks for one when no shard has changed hands for this long, and up to half of
    /// it more. Default 10 s: a restart, and what it moves, is over then.
    pub spread: Duration,
    /// After a shard was given to a node by hand no shard is asked for, while the node has it. Default 10 min: somebody is at
    /// work there.
    pub assigned_for: Duration,
    pub projection: projection::Config,
}

impl Config {
    /// The defaults.
    pub fn new(node: Node, shards: u32) -> Config {
        Config {
            node,
            shards,
            lease: Duration::from_secs(4),
            poll: Duration::from_millis(500),
            map_refresh: Duration::from_secs(5),
            queue: 8192,
            batch_commands: 4096,
            patience: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(10),
            keep_keys: Duration::from_secs(24 * 3600),
            keys_max: 16_000_000,
            keep_keys_min: Duration::from_secs(60),
            snapshot_bytes: 64 << 20,
            snapshot_batches: 100_000,
            keep_batches: 10_000,
            hand_over: Duration::from_secs(10),
            image_bytes_max: IMAGE_BYTES_MAX,
            spread: Duration::from_secs(10),
            assigned_for: Duration::from_secs(600),
            projection: projection::Config::default(),
        }
    }
}
