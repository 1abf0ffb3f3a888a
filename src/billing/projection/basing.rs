//! When all accounts are written, for reports to begin with, and from what.

use std::pin::Pin;
use std::time::{Duration, Instant};

use super::replay::Replay;
use super::{Config, Ledger};
use crate::billing::background;
use crate::billing::domain::Row;
use crate::billing::journal::{Base, Error, GROUPS, group_of};
use crate::clock;

/// So many for each account make what an account costs little beside its lines.
const LINES_PER_ACCOUNT: u64 = 4;
/// Accounts written in one go: some 10 ms.
const PIECE_ROWS: usize = 16_384;

/// The accounts of a snapshot, by their groups, and its batch.
pub(super) struct Accounts {
    seq: u64,
    rows: Vec<Row>,
}

type Loading = Pin<Box<dyn Future<Output = Result<Accounts, Error>> + Send>>;

/// Where it is between two bases, or in one.
pub(super) struct Basing {
    every: Duration,
    next: Instant,
    /// Lines written since the last.
    lines: u64,
    /// Accounts of the last, and its batch.
    known: u64,
    seq: u64,
    /// Old lines wait for it.
    wanted: bool,
    loading: Option<Loading>,
    writing: Option<(Accounts, u16)>,
}

impl Basing {
    pub(super) fn new(config: &Config) -> Basing {
        // Not all shards at once.
        let next = clock::now() + config.base_every.mul_f64(fastrand::f64());
        Basing {
            every: config.base_every,
            next,
            lines: 0,
            known: 0,
            seq: 0,
            wanted: false,
            loading: None,
            writing: None,
        }
    }

    pub(super) fn wrote(&mut self, lines: u64) {
        self.lines += lines;
    }

    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Until there is something to do; with what was loaded, if that is it. May be dropped and called again.
    pub(super) async fn due(&mut self) -> Option<Result<Accounts, Error>> {
        if let Some(loading) = &mut self.loading {
            let loaded = loading.as_mut().await;
            self.loading = None;
            return Some(loaded);
        }
        tokio::time::sleep_until(self.next.into()).await;
        None
    }

    fn is_enough(&self) -> bool {
        self.wanted || self.lines >= LINES_PER_ACCOUNT * self.known.max(u64::from(GROUPS))
    }

    /// Begins to look for a snapshot, if it is worth that.
    pub(super) fn begin<L: Ledger>(&mut self, ledger: &L, shard: u32, projected: u64) {
        self.next = clock::now() + self.every;
        if self.is_enough() {
            let ledger = ledger.clone();
            self.loading = Some(Box::pin(async move { accounts(&ledger, shard, projected).await }));
        }
    }

    /// Nothing is written, if it would be the same, or if there are more accounts than was thought.
    pub(super) fn loaded(&mut self, accounts: Accounts) {
        self.known = accounts.rows.len() as u64;
        if accounts.seq > self.seq && self.is_enough() {
            self.seq = accounts.seq;
            self.writing = Some((accounts, 0));
        }
    }

    /// What is to be written now, if something is.
    pub(super) fn piece(&self, shard: u32, epoch: u64) -> Option<(Base, &[Row])> {
        let (Accounts { seq, rows }, first) = self.writing.as_ref()?;
        let start = rows.partition_point(|row| group_of(row.id) < *first);
        // Up to the group before the one that would be too much, or one that is.
        let last = match rows.get(start + PIECE_ROWS) {
            Some(beyond) => group_of(beyond.id).saturating_sub(1).max(*first),
            None => GROUPS - 1,
        };
        let end = rows.partition_point(|row| group_of(row.id) <= last);
        Some((Base { shard, epoch, seq: *seq, first: *first, last }, &rows[start..end]))
    }

    /// It is tried again, with a newer snapshot, when the next is due.
    pub(super) fn failed(&mut self) {
        (self.writing, self.seq) = (None, 0);
        self.next = clock::now() + self.every;
    }

    /// The piece up to this group is written, and it rests as long as that took.
    pub(super) fn went_on(&mut self, last: u16, took: Duration) {
        match &mut self.writing {
            Some((_, first)) if last + 1 < GROUPS => {
                *first = last + 1;
                self.next = clock::now() + took;
            }
            _ => {
                (self.writing, self.lines, self.wanted) = (None, 0, false);
                self.next = clock::now() + self.every;
            }
        }
    }
}

async fn accounts<L: Ledger>(ledger: &L, shard: u32, projected: u64) -> Result<Accounts, Error> {
    let replay = Replay::before(ledger, shard, projected).await?;
    let seq = replay.seq;
    let sorted = background::run(move || {
        let mut rows: Vec<Row> = replay.rows().collect();
        drop(replay);
        rows.sort_by_key(|row| group_of(row.id));
        rows
    });
    let rows = sorted
        .await
        .map_err(|source| Error::Unavailable { step: "sorting accounts", source: source.into() })?;
    Ok(Accounts { seq, rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::domain::{Micros, Money, Stage, Velocity};

    #[test]
    fn pieces_have_every_group_once_and_every_account() {
        let row = |id| {
            let stage = Stage::Open { balance: Money::ZERO, remainder: 0 };
            Row { id, velocity: Velocity::ZERO, version: 1, since: Micros::ZERO, stage }
        };
        let many = |group: u64, count: u64| (0..count).map(move |at| at * u64::from(GROUPS) + group);
        let crowded = many(0, 30_000).chain(many(1, 10)).chain(many(600, 16_384)).chain(many(1023, 20_000));
        let even = (0..100_000).collect::<Vec<u64>>();
        for ids in [Vec::new(), crowded.collect(), even] {
            let mut rows: Vec<Row> = ids.into_iter().map(row).collect();
            rows.sort_by_key(|row| group_of(row.id));
            let mut basing = Basing::new(&Config::default());
            basing.want();
            basing.loaded(Accounts { seq: 7, rows: rows.clone() });
            let (mut written, mut next) = (Vec::new(), 0);
            while let Some((base, some)) = basing.piece(3, 4) {
                assert_eq!((base.shard, base.epoch, base.seq, base.first), (3, 4, 7, next));
                assert!(some.iter().all(|row| (base.first..=base.last).contains(&group_of(row.id))));
                assert!(some.len() <= PIECE_ROWS || base.first == base.last, "{base:?}: {}", some.len());
                written.extend_from_slice(some);
                next = base.last + 1;
                basing.went_on(base.last, Duration::ZERO);
            }
            assert_eq!((next, written), (GROUPS, rows));
            // The same is not written again.
            basing.want();
            basing.loaded(Accounts { seq: 7, rows: Vec::new() });
            assert!(basing.piece(3, 4).is_none());
        }
    }

    #[test]
    fn a_base_is_worth_its_lines() {
        let mut basing = Basing::new(&Config::default());
        basing.loaded(Accounts { seq: 7, rows: Vec::new() });
        assert!(basing.piece(0, 1).is_none());
        basing.wrote(LINES_PER_ACCOUNT * u64::from(GROUPS));
        basing.loaded(Accounts { seq: 7, rows: Vec::new() });
        assert!(basing.piece(0, 1).is_some());
    }
}
