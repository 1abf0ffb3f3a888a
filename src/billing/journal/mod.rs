//! The journal: where a shard's batches become durable, in their order, and who may write them.
//!
//! It keeps, for each shard, batches (`seq` one more each time), snapshots that stand for the batches before them, and a
//! lease with an epoch; one map of buckets to shards; and beside them the ledger, which is derived from the batches and
//! follows them. Two engines: `Embedded`, a directory of one node, and `Postgres`, replica sets of PostgreSQL or of what
//! speaks its protocol.
//!
//! Never here: what a payload means. No engine answers an append before it is durable, takes one of an old epoch, or one
//! that does not follow the last. The journal repeats no write by itself: a lost answer is `Error::Unknown`. Nothing is
//! truncated that the ledger still needs.
//!
//! Order of calls for an owner: `acquire`; `snapshot`, then `tail` until it gives nothing; `append` one at a time, each
//! `Unknown` followed by `confirm`; `renew` all the while; `put_snapshot`, then `truncate`; `release`. Anybody may `read`, and
//! another node follows by `tail`. Order of calls for whoever projects: `claim`; `snapshot_before` and `read`, or `carry`;
//! `project`, one at a time.
//!
//! Cancellation: a dropped `append` or `put_snapshot` may or may not have happened (`confirm` tells); a dropped `acquire`
//! may have fenced the caller's own earlier epoch. Everything else may be dropped and called again.

mod batch;
mod embedded;
mod error;
mod framing;
mod lease;
mod ledger;
mod pages;
mod postgres;
mod status;
#[cfg(test)]
pub(super) mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use batch::{Batch, Confirmation, Snapshot, Tail};
pub use embedded::Embedded;
pub use error::{Cause, Error};
pub use framing::checksum;
pub use lease::{Acquisition, BUCKETS, BucketMap, Lease, Node};
pub use ledger::{Base, Cursor, Entry, History, Line, LineKind, NoCursor, Stretch, Sweep, Swept};
pub use pages::{GROUPS, Offers, group_of};
use postgres::Files;
pub use postgres::Postgres;
pub use status::{MemberState, MemberStatus, ReplicaSetStatus};

use super::domain::{Micros, Row};

/// What the journal is and how long it is waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub engine: Engine,
    /// From 1 to [`BUCKETS`]. More may be added later; fewer are refused while a bucket belongs to one that would go.
    pub shards: u32,
    pub timeouts: Timeouts,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Engine {
    /// A directory, made if it is not there. One process at a time, and no replica.
    Embedded { path: PathBuf },
    Postgres {
        /// One connection string for each replica set, as libpq reads them (`host=a,b,c target_session_attrs=read-write
        /// sslmode=verify-full …`). Shard i lives in the set `i % n`, so their number and order are for ever.
        connections: Vec<String>,
        /// Authorities for `sslmode=verify-ca` and `verify-full`, PEM.
        ca_file: Option<PathBuf>,
        /// Holds the password for connection strings that have none, on one line. Read when the journal is opened.
        password_file: Option<PathBuf>,
    },
}

impl Engine {
    /// Its connection strings for people: without passwords.
    pub fn shown_connections(&self) -> Vec<String> {
        match self {
            Engine::Embedded { .. } => Vec::new(),
            Engine::Postgres { connections, .. } => {
                connections.iter().map(|text| postgres::without_password(text)).collect()
            }
        }
    }
}

/// Of `postgres` only: the embedded engine waits for its disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// For each host of a connection string: TCP, TLS, authentication and the question whether it takes writes. A frozen
    /// server still accepts TCP, so the whole of it is bounded.
    pub connect: Duration,
    /// A statement is cancelled by the server after this time (whole milliseconds, and at least one). It does not cut
    /// the wait for a synchronous standby: that would acknowledge what is not replicated.
    pub statement: Duration,
    /// The answer to a statement is given up after this time, which makes an append `Unknown`. Above `statement`, so
    /// that a slow server tells by itself.
    pub answer: Duration,
}

impl Default for Timeouts {
    /// Two servers may hang and the third is still found within 5 s. An answer is given up after about the time that
    /// a failover takes at least, when the old connection is most likely dead.
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(2),
            statement: Duration::from_secs(5),
            answer: Duration::from_secs(8),
        }
    }
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub enum Journal {
    Embedded(Embedded),
    Postgres(Postgres),
}

/// The same call of either engine.
macro_rules! either {
    ($journal:expr, $engine:ident => $call:expr) => {
        match $journal {
            Journal::Embedded($engine) => $call,
            Journal::Postgres($engine) => $call,
        }
    };
}

impl Journal {
    /// Makes what is missing (directory, tables, the first bucket map), checks that settings and contents fit, and warns
    /// if what is acknowledged here would not outlive one machine.
    pub async fn open(config: &Config) -> Result<Journal, Error> {
        let Config { engine, shards, timeouts } = config;
        if *shards == 0 || *shards as usize > BUCKETS {
            return Err(Error::Config(format!("there are 1 to {BUCKETS} shards, not {shards}")));
        }
        match engine {
            Engine::Embedded { path } => Embedded::open(path, *shards).await.map(Journal::Embedded),
            Engine::Postgres { connections, ca_file, password_file } => {
                let files = Files { ca: ca_file.as_deref(), password: password_file.as_deref() };
                Postgres::open(connections, files, *shards, timeouts).await.map(Journal::Postgres)
            }
        }
    }

    /// Returns when the batch is durable; on every synchronous replica, where the server has such. One at a time for
    /// each shard. Errors: `Fenced`, `OutOfOrder`, `Unavailable`, `Unknown`.
    pub async fn append(&self, batch: &Batch) -> Result<(), Error> {
        either!(self, engine => engine.append(batch).await)
    }

    /// What became of the append whose answer was `Unknown`, or was not waited for. `checksum` is the batch's. The answer is
    /// final: after `NotApplied` the lost attempt can no longer succeed, and the batch may be appended again. Errors:
    /// `Unavailable` and `Unknown` (ask again), `Fenced` (another owner has already truncated past it).
    pub async fn confirm(
        &self,
        shard: u32,
        epoch: u64,
        seq: u64,
        checksum: u32,
    ) -> Result<Confirmation, Error> {
        either!(self, engine => engine.confirm(shard, epoch, seq, checksum).await)
    }

    /// The batches after `after_seq`, in order, at least one if there is one, and then as many as `limit_bytes` of
    /// payload allow. An empty answer is the end. Errors: `Truncated`, `Corrupt`, `Unavailable`.
    pub async fn read(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Vec<Batch>, Error> {
        Ok(self.tail(shard, after_seq, limit_bytes).await?.batches)
    }

    /// As [`Journal::read`], with what the journal has at `after_seq` itself: whoever has read so far can tell whether these batches
    /// follow what it read. After a restore, or the failover to a server that lacked something, they need not.
    pub async fn tail(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Tail, Error> {
        either!(self, engine => engine.tail(shard, after_seq, limit_bytes).await)
    }

    /// Stores a snapshot of any size; once it returns, it is the shard's newest. May be made again after any error but
    /// `Fenced`.
    pub async fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        either!(self, engine => engine.put_snapshot(snapshot).await)
    }

    /// The newest snapshot. Errors: `Corrupt`, `Unavailable`.
    pub async fn snapshot(&self, shard: u32) -> Result<Option<Snapshot>, Error> {
        either!(self, engine => engine.snapshot(shard).await)
    }

    /// The newest snapshot that is not beyond `seq`. Errors: `Corrupt`, `Unavailable`.
    pub async fn snapshot_before(&self, shard: u32, seq: u64) -> Result<Option<Snapshot>, Error> {
        either!(self, engine => engine.snapshot_before(shard, seq).await)
    }

    /// Forgets batches up to `through_seq`, but none that is not behind a snapshot that the ledger has reached; and all
    /// snapshots but that one and the newest. So whoever projects finds a snapshot to begin with, and all that follows.
    pub async fn truncate(&self, shard: u32, through_seq: u64) -> Result<(), Error> {
        either!(self, engine => engine.truncate(shard, through_seq).await)
    }

    /// Takes the shard if it is free, if its lease ran out, or if it is this node's already, and fences whoever had it.
    pub async fn acquire(&self, shard: u32, node: &Node, lease: Duration) -> Result<Acquisition, Error> {
        either!(self, engine => engine.acquire(shard, node, lease).await)
    }

    /// The lease ends `lease` from now. A lease that ran out and that nobody took is renewed as well. Errors: `Fenced`,
    /// `Unavailable`, `Unknown`.
    pub async fn renew(&self, shard: u32, epoch: u64, lease: Duration) -> Result<Lease, Error> {
        either!(self, engine => engine.renew(shard, epoch, lease).await)
    }

    /// Gives the shard up: `epoch` is fenced from here on. With `to`, the shard is kept for that node for so long; without,
    /// it is free at once.
    pub async fn release(&self, shard: u32, epoch: u64, to: Option<(&str, Duration)>) -> Result<(), Error> {
        either!(self, engine => engine.release(shard, epoch, to).await)
    }

    /// All shards', by shard. Unavailable if one replica set is.
    pub async fn leases(&self) -> Result<Vec<Lease>, Error> {
        either!(self, engine => engine.leases().await)
    }

    /// Makes this epoch's owner the only one that writes the shard's ledger, and tells the last batch that is in it. Errors:
    /// `Fenced`, `Unavailable`, `Unknown`, `Corrupt` (the ledger has batches that the journal has not).
    pub async fn claim(&self, shard: u32, epoch: u64) -> Result<u64, Error> {
        either!(self, engine => engine.claim(shard, epoch).await)
    }

    /// Writes the lines of these batches and moves the ledger to the last of them, both or neither, once: what was written
    /// before, as a lost answer may have been, is not written again. Errors: `Fenced`, `OutOfOrder` (the ledger does not
    /// stand at `after`), `Unavailable`, `Unknown`; after the last two it is to be called again as it was.
    pub async fn project(&self, stretch: &Stretch, lines: &Arc<Offers>) -> Result<(), Error> {
        either!(self, engine => engine.project(stretch, lines).await)
    }

    /// Moves the ledger to a snapshot, with a line for each of its accounts, because batches in between are gone. Errors
    /// as with [`Journal::project`].
    pub async fn carry(
        &self,
        stretch: &Stretch,
        rows: impl Iterator<Item = Row> + Send + 'static,
    ) -> Result<(), Error> {
        let Stretch { through, at, .. } = *stretch;
        let lines = rows.map(move |row| Line::of_row(through, 0, LineKind::Carried, at, row));
        either!(self, engine => engine.carry(stretch, Carried { lines }).await)
    }

    /// Whether [`Journal::put_base`] has a use: whether reports over all accounts are read here, by others.
    pub fn keeps_bases(&self) -> bool {
        matches!(self, Journal::Postgres(_))
    }

    /// Puts these accounts, in the order of their groups, in the place of what was there of these groups. Without a use,
    /// nothing. Errors: `Fenced`, `OutOfOrder` (the ledger is not as far), `Unavailable`, `Unknown`; it may be called again.
    pub async fn put_base(&self, base: &Base, rows: &[Row]) -> Result<(), Error> {
        match self {
            Journal::Embedded(_) => Ok(()),
            Journal::Postgres(engine) => engine.put_base(base, rows).await,
        }
    }

    /// The accounts of some groups of a shard, from the first to the last, as the ledger has them. None of those whose lines
    /// are all forgotten, where no base is kept.
    pub async fn projected_accounts(&self, shard: u32, first: u16, last: u16) -> Result<Vec<Row>, Error> {
        either!(self, engine => engine.projected_accounts(shard, first, last).await)
    }

    /// Forgets old lines, by whole pages, and where bases are kept only what one stands for. Errors: `Unavailable`,
    /// `Unknown`; it may be called again.
    pub async fn forget_lines(&self, sweep: &Sweep) -> Result<Swept, Error> {
        either!(self, engine => engine.forget_lines(sweep).await)
    }

    /// The newest lines of an account in one shard, before a place.
    async fn lines(&self, account: u64, before: Cursor, limit: usize) -> Result<Vec<Line>, Error> {
        either!(self, engine => engine.lines(account, before, limit).await)
    }

    /// The line by which the account went that came by this one, in any shard; in that of `below`, only below that place.
    async fn find_released(&self, adopted: &Line, below: Cursor) -> Result<Option<Cursor>, Error> {
        either!(self, engine => engine.find_released(adopted, below).await)
    }

    /// Have lines of this time, or later, been forgotten in some shard?
    async fn has_forgotten(&self, at: Micros) -> Result<bool, Error> {
        either!(self, engine => engine.has_forgotten(at).await)
    }

    /// Has the ledger of every shard all batches, or had it a moment ago?
    async fn ledger_is_level(&self) -> Result<bool, Error> {
        either!(self, engine => engine.ledger_is_level().await)
    }

    pub async fn bucket_map(&self) -> Result<BucketMap, Error> {
        either!(self, engine => engine.bucket_map().await)
    }

    /// Stores `map` if the stored one's version is one less; false if it is not. After `Unknown`: read it.
    pub async fn set_bucket_map(&self, map: &BucketMap) -> Result<bool, Error> {
        either!(self, engine => engine.set_bucket_map(map).await)
    }

    /// Never fails: what cannot be reached is told as such, within the connect timeout and a statement's.
    pub async fn status(&self) -> Vec<ReplicaSetStatus> {
        either!(self, engine => engine.status().await)
    }
}

/// Lines that are made on the way, in chunks that are grouped each by itself.
struct Carried<I> {
    lines: I,
}

impl<I: Iterator<Item = Line>> Iterator for Carried<I> {
    type Item = Arc<Offers>;

    fn next(&mut self) -> Option<Arc<Offers>> {
        const CHUNK_LINES: usize = 65_536;
        let lines: Vec<Line> = self.lines.by_ref().take(CHUNK_LINES).collect();
        (!lines.is_empty()).then(|| Arc::new(vec![lines]))
    }
}
