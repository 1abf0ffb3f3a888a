//! The ledger, written after the fact: what each command of a shard did to its account becomes a line in the journal's
//! ledger, once, by the shard's owner.
//!
//! ```text
//!   claim ──at the tail──► live: lines that the owner offers, in chunks ──queue full──┐
//!     └──behind──► catch up: a snapshot, the batches after it, until the tail ◄───────┘
//! ```
//! [`apply`] notes lines while the owner works; [`Feed::offer`] hands them over once their batch is durable, and never
//! waits; a [`Projector`] writes them, for one tenure. What is not offered is derived from the journal, which gives the same
//! lines. Beside that it forgets old lines, and now and then writes all accounts, of a snapshot, where reports are read.
//!
//! Never here: what a command does (`domain`), how lines are kept (`journal`), a wall clock. Nothing of this room makes a
//! command wait; a lag, or a ledger that is away, is seen in metrics and in histories that say so, and nowhere else.

mod basing;
mod feed;
mod lines;
mod metrics;
mod projector;
mod replay;
mod settings;
mod sweeping;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use feed::Feed;
pub use lines::apply;
pub use metrics::Metrics;
pub use projector::{Office, Projector};
pub use settings::Config;

use super::domain::Row;
use super::journal::{Base, Batch, Cursor, Error, History, Journal, Offers, Snapshot, Stretch, Sweep, Swept};

/// A future that a task can hold.
macro_rules! later {
    ($of:ty) => { impl Future<Output = Result<$of, Error>> + Send };
}

/// What a projector needs of a journal, so that tests can lose answers and cut connections at will. The contract of each
/// call is told at [`Journal`].
pub trait Ledger: Clone + Send + Sync + 'static {
    fn claim(&self, shard: u32, epoch: u64) -> later!(u64);
    fn project(&self, stretch: &Stretch, lines: &Arc<Offers>) -> later!(());
    fn carry(&self, stretch: &Stretch, rows: impl Iterator<Item = Row> + Send + 'static) -> later!(());
    fn keeps_bases(&self) -> bool;
    fn put_base(&self, base: &Base, rows: &[Row]) -> later!(());
    fn batches(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> later!(Vec<Batch>);
    fn newest_snapshot(&self, shard: u32) -> later!(Option<Snapshot>);
    fn snapshot_before(&self, shard: u32, seq: u64) -> later!(Option<Snapshot>);
    fn forget_lines(&self, sweep: &Sweep) -> later!(Swept);
    fn history(&self, shard: u32, account: u64, before: Option<Cursor>, limit: usize) -> later!(History);
}

impl Ledger for Journal {
    async fn claim(&self, shard: u32, epoch: u64) -> Result<u64, Error> {
        Journal::claim(self, shard, epoch).await
    }

    async fn project(&self, stretch: &Stretch, lines: &Arc<Offers>) -> Result<(), Error> {
        Journal::project(self, stretch, lines).await
    }

    async fn carry(
        &self,
        stretch: &Stretch,
        rows: impl Iterator<Item = Row> + Send + 'static,
    ) -> Result<(), Error> {
        Journal::carry(self, stretch, rows).await
    }

    fn keeps_bases(&self) -> bool {
        Journal::keeps_bases(self)
    }

    async fn put_base(&self, base: &Base, rows: &[Row]) -> Result<(), Error> {
        Journal::put_base(self, base, rows).await
    }

    async fn batches(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Vec<Batch>, Error> {
        Journal::read(self, shard, after_seq, limit_bytes).await
    }

    async fn newest_snapshot(&self, shard: u32) -> Result<Option<Snapshot>, Error> {
        Journal::snapshot(self, shard).await
    }

    async fn snapshot_before(&self, shard: u32, seq: u64) -> Result<Option<Snapshot>, Error> {
        Journal::snapshot_before(self, shard, seq).await
    }

    async fn forget_lines(&self, sweep: &Sweep) -> Result<Swept, Error> {
        Journal::forget_lines(self, sweep).await
    }

    async fn history(
        &self,
        shard: u32,
        account: u64,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<History, Error> {
        Journal::history(self, shard, account, before, limit).await
    }
}
