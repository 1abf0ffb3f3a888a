//! The ledger of this engine: a store of its own beside the journal's, so that an append never waits for the ledger's writes.
//!
//! Nothing depends on the disk but [`Ledger::secure`], which truncation asks before batches go. What a crash takes is
//! derived again: the ledger comes back as it was some writes ago, at whatever batch it says, because the lines up to there
//! were in that write, or in those before it. What is long is more than one write; what is left of one that was torn is
//! taken out before the next.

use std::ops::{Bound, RangeInclusive};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::{Buf, BufMut};
use fjall::{Database, Keyspace, KvSeparationOptions, PersistMode};

use super::pages::{self, PAGE_LINES, Page};
use super::store::{in_small_files, opening};
use crate::billing::domain::{Micros, Row};
use crate::billing::journal::pages::Grouped;
use crate::billing::journal::{
    Cursor, Error, GROUPS, Line, LineKind, Offers, Stretch, Sweep, Swept, framing, group_of,
};

/// Memory for pages that are in no file yet, and for those read. Histories are mostly of what is new.
const MEMTABLE_BYTES: u64 = 4 << 20;
const CACHE_BYTES: u64 = 8 << 20;
const LOG_BYTES: u64 = 128 << 20;

/// Pages that one call looks through for an account, at most: some milliseconds, for which the thread's other work waits.
const LOOKED_MAX: usize = 1024;

/// Bytes of pages put in by one write.
const PIECE_BYTES: usize = 1 << 20;

/// Pages taken out in one write.
const REMOVED_MAX: usize = 1024;

pub(super) struct Ledger {
    database: Database,
    /// shard, group, seq, position, number -> a page that ends at this place. Large ones are kept apart from their keys, so
    /// that none is copied again whenever tables are merged.
    pages: Keyspace,
    /// shard -> version, the last batch that is in, the time before which lines may be forgotten.
    progress: Keyspace,
    shards: Vec<Progress>,
    /// As with the journal: after an error nobody knows what the log holds.
    broken: bool,
    /// The process wants to end: a long write is given up.
    closing: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    /// Of whoever claimed it last, in the life of this process.
    epoch: u64,
    seq: u64,
    forgotten: Micros,
    /// There may be pages beyond `seq`, of a stretch that was not written to its end. Nobody knows when the ledger is opened.
    torn: bool,
}

/// Pages of a stretch that are not written yet.
struct Piece {
    write: fjall::OwnedWriteBatch,
    bytes: usize,
    /// Of each group's next page, so that what ends at the same place, as carried lines do, is told apart.
    numbers: Vec<u32>,
}

const WRITING: &str = "writing the ledger";

/// A way through the lines of one account in one shard, newest first.
pub(super) struct Walk {
    account: u64,
    /// Lines from here on are not looked at.
    below: Cursor,
    /// Nor are pages that were written before this time.
    since: Micros,
    /// The key of the page that was looked through last.
    seen: Option<Vec<u8>>,
}

impl Walk {
    pub(super) fn new(account: u64, below: Cursor, since: Micros) -> Walk {
        Walk { account, below, since, seen: None }
    }
}

impl Ledger {
    pub(super) fn open(path: &Path, shards: u32, closing: Arc<AtomicBool>) -> Result<Ledger, Error> {
        let database = Database::builder(path)
            .worker_threads(1)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(LOG_BYTES)
            .open()
            .map_err(|error| opening(error, path))?;
        let keyspace = |name: &str, apart: Option<KvSeparationOptions>| {
            database
                .keyspace(name, || in_small_files(MEMTABLE_BYTES, apart))
                .map_err(|error| opening(error, path))
        };
        let pages = keyspace("page", Some(KvSeparationOptions::default()))?;
        let progress = keyspace("progress", None)?;
        let mut ledger = Ledger { database, pages, progress, shards: Vec::new(), broken: false, closing };
        for shard in 0..shards {
            let stored = ledger.stored_progress(shard)?;
            ledger.shards.push(stored);
        }
        Ok(ledger)
    }

    fn stored_progress(&self, shard: u32) -> Result<Progress, Error> {
        let Some(stored) = self.progress.get(shard.to_be_bytes()).map_err(reading(shard))? else {
            return Ok(Progress { torn: true, ..Progress::default() });
        };
        let corrupt = |what: String| Error::Corrupt { shard, seq: 0, what };
        let short = |error: bytes::TryGetError| corrupt(error.to_string());
        let mut rest = framing::unframed(&stored).map_err(corrupt)?;
        let seq = rest.try_get_u64().map_err(short)?;
        let forgotten = Micros::new(rest.try_get_u64().map_err(short)?);
        Ok(Progress { epoch: 0, seq, forgotten, torn: true })
    }

    fn progress(&mut self, shard: u32) -> Result<&mut Progress, Error> {
        let count = self.shards.len();
        self.shards.get_mut(shard as usize).ok_or_else(|| Error::Config(format!("shard {shard} of {count}")))
    }

    /// `last` is the journal's last batch; the caller knows that the epoch is the shard's.
    pub(super) fn claim(&mut self, shard: u32, epoch: u64, last: u64) -> Result<u64, Error> {
        let own = self.progress(shard)?;
        if own.epoch > epoch {
            return Err(Error::Fenced { shard, epoch: own.epoch });
        }
        if own.seq > last {
            let what = format!("the ledger has it, and the journal ends at {last}");
            return Err(Error::Corrupt { shard, seq: own.seq, what });
        }
        own.epoch = epoch;
        Ok(own.seq)
    }

    pub(super) fn project(&mut self, stretch: &Stretch, lines: Arc<Offers>) -> Result<(), Error> {
        self.carry(stretch, std::iter::once(lines))
    }

    pub(super) fn carry(
        &mut self,
        stretch: &Stretch,
        chunks: impl Iterator<Item = Arc<Offers>>,
    ) -> Result<(), Error> {
        if self.is_done(stretch)? {
            return Ok(());
        }
        if self.progress(stretch.shard)?.torn {
            for group in 0..GROUPS {
                self.remove_after(stretch.shard, group, stretch.after)?;
            }
        }
        let mut piece =
            Piece { write: self.database.batch(), bytes: 0, numbers: vec![0; usize::from(GROUPS)] };
        for lines in chunks {
            self.insert(&mut piece, stretch, lines)?;
        }
        let Stretch { shard, through: seq, .. } = *stretch;
        let moved = Progress { seq, torn: false, ..*self.progress(shard)? };
        self.write(shard, moved, piece.write)
    }

    fn remove_after(&mut self, shard: u32, group: u16, after: u64) -> Result<(), Error> {
        let Some(first) = after.checked_add(1) else { return Ok(()) };
        let mut write = self.database.batch();
        for entry in self.pages.range(key(shard, group, first, 0, 0)..=last_of(shard, group)) {
            write.remove(&self.pages, entry.key().map_err(reading(shard))?);
            if write.len() >= REMOVED_MAX {
                let full = std::mem::replace(&mut write, self.database.batch());
                commit(&mut self.broken, &self.closing, full)?;
            }
        }
        commit(&mut self.broken, &self.closing, write)
    }

    /// Whether a lost answer was to the same.
    fn is_done(&mut self, stretch: &Stretch) -> Result<bool, Error> {
        let Stretch { shard, epoch, after, through, at: _ } = *stretch;
        let own = *self.progress(shard)?;
        match own {
            Progress { epoch: now, .. } if now != epoch => Err(Error::Fenced { shard, epoch: now }),
            Progress { seq, .. } if seq == through => Ok(true),
            Progress { seq, .. } if seq != after => Err(Error::OutOfOrder { shard, expected: seq + 1 }),
            Progress { .. } => Ok(false),
        }
    }

    /// What is not written of it stays in the piece.
    fn insert(&mut self, piece: &mut Piece, stretch: &Stretch, lines: Arc<Offers>) -> Result<(), Error> {
        let Stretch { shard, at, .. } = *stretch;
        let grouped = Grouped::new(lines);
        for group in 0..GROUPS {
            let lines: Vec<&Line> = grouped.lines_of(group).collect();
            for page in lines.chunks(PAGE_LINES) {
                let Some(Line { seq, position, .. }) = page.last() else { continue };
                let value = pages::encode(shard, group, at, page);
                let number = &mut piece.numbers[usize::from(group)];
                piece.bytes += value.len();
                piece.write.insert(&self.pages, key(shard, group, *seq, *position, *number), value);
                *number += 1;
            }
            if piece.bytes >= PIECE_BYTES {
                let torn = Progress { torn: true, ..*self.progress(shard)? };
                piece.bytes = 0;
                self.write(shard, torn, std::mem::replace(&mut piece.write, self.database.batch()))?;
            }
        }
        Ok(())
    }

    /// Onto the disk, and not for its own sake: what the system has not written yet when somebody must be sure of it goes there at
    /// once, and a batch of the journal waits for all of that.
    fn write(
        &mut self,
        shard: u32,
        progress: Progress,
        mut write: fjall::OwnedWriteBatch,
    ) -> Result<(), Error> {
        self.move_to(shard, progress, &mut write);
        commit(&mut self.broken, &self.closing, write)?;
        *self.progress(shard)? = progress;
        self.flush()
    }

    fn move_to(&self, shard: u32, progress: Progress, write: &mut fjall::OwnedWriteBatch) {
        let Progress { epoch: _, seq, forgotten, torn: _ } = progress;
        let mut stored = vec![framing::VERSION];
        stored.put_u64(seq);
        stored.put_u64(forgotten.get());
        write.insert(&self.progress, shard.to_be_bytes(), stored);
    }

    /// The last batch whose lines are on the disk for good.
    pub(super) fn secure(&mut self, shard: u32) -> Result<u64, Error> {
        let seq = self.progress(shard)?.seq;
        self.flush()?;
        Ok(seq)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let persisted = self.database.persist(PersistMode::SyncData);
        self.broken |= persisted.is_err();
        persisted.map_err(Error::unavailable(WRITING))
    }

    // ---------------------------------------------------------------------------------------------------------- reads

    /// And how to go on, as with [`Ledger::walk`].
    pub(super) fn lines(&self, walk: Walk, limit: usize) -> Result<(Vec<Line>, Option<Walk>), Error> {
        let mut found = Vec::new();
        let rest = self.walk(walk, |line| {
            found.push(line);
            found.len() < limit && !line.is_first()
        })?;
        Ok((found, rest))
    }

    /// And how to go on, as with [`Ledger::walk`].
    pub(super) fn find_released(
        &self,
        adopted: &Line,
        walk: Walk,
    ) -> Result<(Option<Cursor>, Option<Walk>), Error> {
        let (mut found, shard) = (None, walk.below.shard);
        let rest = self.walk(walk, |line| {
            found = line.went_to(adopted).then_some(Cursor { shard, seq: line.seq, position: line.position });
            found.is_none() && !line.is_before(adopted)
        })?;
        Ok((found, rest))
    }

    /// The next lines, until it is enough or has looked through [`LOOKED_MAX`] pages; then it gives the rest of the way.
    fn walk(&self, walk: Walk, mut goes_on: impl FnMut(Line) -> bool) -> Result<Option<Walk>, Error> {
        let Walk { account, below: Cursor { shard, seq, position }, since, seen } = &walk;
        let (shard, group) = (*shard, group_of(*account));
        let end = match seen {
            Some(seen) => Bound::Excluded(seen.clone()),
            None => {
                let place = key(shard, group, *seq, *position, 0);
                // The page that has the place ends there, or is the first one beyond it.
                let beyond = self.pages.range(place.clone()..=last_of(shard, group)).next();
                let end = beyond.map(|entry| entry.key().map_err(reading(shard))).transpose()?;
                Bound::Included(end.map_or(place, |end| end.to_vec()))
            }
        };
        let pages = self.pages.range((Bound::Included(key(shard, group, 0, 0, 0)), end)).rev();
        for (entry, looked) in pages.zip(1..) {
            let (key, value) = entry.into_inner().map_err(reading(shard))?;
            let page = page(shard, group, &key, &value)?;
            if page.at < *since {
                break;
            }
            let lines = page.lines(Some(*account)).map_err(strange(shard, &key))?;
            let older = lines.into_iter().rev().filter(|line| (line.seq, line.position) < (*seq, *position));
            for line in older {
                if !goes_on(line) {
                    return Ok(None);
                }
            }
            if looked == LOOKED_MAX {
                return Ok(Some(Walk { seen: Some(key.to_vec()), ..walk }));
            }
        }
        Ok(None)
    }

    pub(super) fn has_forgotten(&self, at: Micros) -> bool {
        self.shards.iter().any(|own| own.forgotten > at)
    }

    pub(super) fn is_level(&self, lasts: &[u64]) -> bool {
        self.shards.iter().zip(lasts).all(|(own, last)| own.seq >= *last)
    }

    pub(super) fn projected_accounts(&self, shard: u32, first: u16, last: u16) -> Result<Vec<Row>, Error> {
        let mut newest = std::collections::BTreeMap::new();
        for group in first..=last {
            for entry in self.pages.range(all_of(shard, group)) {
                let (key, value) = entry.into_inner().map_err(reading(shard))?;
                let lines = page(shard, group, &key, &value)?.lines(None).map_err(strange(shard, &key))?;
                newest.extend(lines.into_iter().map(|line| ((group, line.after.id), line)));
            }
        }
        let there = newest.into_values().filter(|line| line.kind != LineKind::Released);
        Ok(there.map(|line| line.after).collect())
    }

    pub(super) fn forget_lines(&mut self, sweep: &Sweep) -> Result<Swept, Error> {
        let Sweep { shard, before, first, last, pages } = *sweep;
        let mut own = *self.progress(shard)?;
        let (mut write, mut swept) = (self.database.batch(), Swept::default());
        for group in first..=last {
            let mut gone = 0;
            for entry in self.pages.range(all_of(shard, group)).take(pages as usize) {
                let (key, value) = entry.into_inner().map_err(reading(shard))?;
                let page = page(shard, group, &key, &value)?;
                if page.at >= before {
                    break;
                }
                own.forgotten = own.forgotten.max(Micros::new(page.at.get().saturating_add(1)));
                swept.lines += page.len() as u64;
                gone += 1;
                write.remove(&self.pages, key);
            }
            swept.more |= gone == pages;
        }
        if !write.is_empty() {
            self.move_to(shard, own, &mut write);
            commit(&mut self.broken, &self.closing, write)?;
            *self.progress(shard)? = own;
        }
        Ok(swept)
    }
}

/// Whether the process dies now or later, the log has either all of it or nothing.
fn commit(broken: &mut bool, closing: &AtomicBool, write: fjall::OwnedWriteBatch) -> Result<(), Error> {
    if *broken {
        let cause = "an earlier write failed; only opening the journal again tells what the disk holds";
        return Err(Error::unavailable(WRITING)(cause));
    }
    if closing.load(Relaxed) {
        return Err(Error::unavailable(WRITING)("the journal is being closed"));
    }
    let committed = write.commit();
    *broken = committed.is_err();
    committed.map_err(Error::unknown(WRITING))
}

fn reading(shard: u32) -> impl Fn(fjall::Error) -> Error {
    move |error| match error {
        fjall::Error::Io(error) => Error::unavailable("reading the ledger")(error),
        error => Error::Corrupt { shard, seq: 0, what: format!("the ledger: {error}") },
    }
}

fn key(shard: u32, group: u16, seq: u64, position: u32, number: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(22);
    key.put_u32(shard);
    key.put_u16(group);
    key.put_u64(seq);
    key.put_u32(position);
    key.put_u32(number);
    key
}

fn last_of(shard: u32, group: u16) -> Vec<u8> {
    key(shard, group, u64::MAX, u32::MAX, u32::MAX)
}

fn all_of(shard: u32, group: u16) -> RangeInclusive<Vec<u8>> {
    key(shard, group, 0, 0, 0)..=last_of(shard, group)
}

fn page<'a>(shard: u32, group: u16, key: &[u8], value: &'a [u8]) -> Result<Page<'a>, Error> {
    Page::read(shard, group, seq_of(key), value).map_err(strange(shard, key))
}

fn strange(shard: u32, key: &[u8]) -> impl Fn(String) -> Error {
    let seq = seq_of(key);
    move |what| Error::Corrupt { shard, seq, what: format!("a page of the ledger: {what}") }
}

fn seq_of(mut key: &[u8]) -> u64 {
    key.advance(key.len().min(6));
    key.try_get_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::domain::{Money, Stage, Velocity};

    fn row(id: u64, balance: i64) -> Row {
        let stage = Stage::Open { balance: Money::new(balance), remainder: 0 };
        Row { id, velocity: Velocity::ZERO, version: 1, since: Micros::ZERO, stage }
    }

    fn carried(seq: u64, rows: impl Iterator<Item = Row>) -> Arc<Offers> {
        let line = |row| Line::of_row(seq, 0, LineKind::Carried, Micros::ZERO, row);
        Arc::new(vec![rows.map(line).collect()])
    }

    /// An account that is seldom used, among many of its group.
    #[test]
    fn a_long_way_is_gone_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path(), 1, Arc::default()).unwrap();
        ledger.claim(0, 1, 9).unwrap();
        let stretch = Stretch { shard: 0, epoch: 1, after: 0, through: 5, at: Micros::ZERO };
        let pages = 2 * LOOKED_MAX + 1;
        let ids = (0..(pages * PAGE_LINES) as u64).map(|number| 7 + number * u64::from(GROUPS));
        ledger.carry(&stretch, std::iter::once(carried(5, ids.map(|id| row(id, 1))))).unwrap();
        let newest = Cursor { shard: 0, seq: u64::MAX, position: u32::MAX };
        let (mut walk, mut found) = (Some(Walk::new(7, newest, Micros::ZERO)), Vec::new());
        while let Some(from) = walk {
            let (lines, rest) = ledger.lines(from, 10).unwrap();
            found.push(lines.len());
            walk = rest;
        }
        assert_eq!(found, [0, 0, 1]);
    }

    /// The process ends while a snapshot is carried over; the next one finds a newer snapshot, with other accounts.
    #[test]
    fn what_a_torn_write_left_is_gone_before_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            |closing: &Arc<AtomicBool>| Ledger::open(directory.path(), 1, Arc::clone(closing)).unwrap();
        let closing = Arc::new(AtomicBool::new(false));
        let mut ledger = open(&closing);
        assert_eq!(ledger.claim(0, 1, 9).unwrap(), 0);
        let stretch = Stretch { shard: 0, epoch: 1, after: 0, through: 5, at: Micros::ZERO };
        let chunks = (0..5).map(|chunk| {
            closing.store(chunk == 4, Relaxed);
            carried(5, (chunk * 8_000..(chunk + 1) * 8_000).map(|id| row(id, 1)))
        });
        let torn = ledger.carry(&stretch, chunks);
        assert!(matches!(torn, Err(Error::Unavailable { .. })), "{torn:?}");
        drop(ledger);
        let mut ledger = open(&Arc::default());
        assert_eq!(ledger.claim(0, 2, 9).unwrap(), 0);
        assert!(!ledger.projected_accounts(0, 0, 1).unwrap().is_empty(), "it left something");
        let stretch = Stretch { shard: 0, epoch: 2, after: 0, through: 7, at: Micros::ZERO };
        ledger.carry(&stretch, std::iter::once(carried(7, (100..200).map(|id| row(id, 2))))).unwrap();
        let rows = ledger.projected_accounts(0, 0, GROUPS - 1).unwrap();
        assert!(rows.into_iter().eq((100..200).map(|id| row(id, 2))));
        assert_eq!(ledger.secure(0).unwrap(), 7);
    }
}
