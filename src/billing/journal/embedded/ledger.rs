//! The ledger of this engine: a store of its own beside the journal's, so that an append never waits for the ledger's writes.
//!
//! Nothing here waits for the disk but [`Ledger::secure`], which truncation asks before batches go. What a crash takes is
//! derived again: the ledger comes back as it was some writes ago, at whatever batch it says, because one write moves that
//! and holds the last lines up to there; lines beyond it, of a projection that was torn, are written again as they were.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::{Buf, BufMut};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, UserKey, UserValue};

use super::store::opening;
use crate::billing::domain::{Key, Micros, Money, Row, Stage, Velocity};
use crate::billing::journal::ledger::Left;
use crate::billing::journal::{Cursor, Entry, Error, Line, LineKind, Stretch, Sweep, Swept, framing};

/// Memory for lines that are in no table yet, and for those read. Histories are mostly of what is new.
const MEMTABLE_BYTES: u64 = 32 << 20;
const CACHE_BYTES: u64 = 8 << 20;
const LOG_BYTES: u64 = 128 << 20;

/// Lines in one write: a few milliseconds.
const WRITE_LINES: usize = 2048;

pub(super) struct Ledger {
    database: Database,
    /// shard, account, seq, position -> version, the line.
    lines: Keyspace,
    /// shard -> version, the last batch that is in.
    projected: Keyspace,
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
}

const WRITING: &str = "writing the ledger";

impl Ledger {
    pub(super) fn open(path: &Path, shards: u32, closing: Arc<AtomicBool>) -> Result<Ledger, Error> {
        let database = Database::builder(path)
            .worker_threads(1)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(LOG_BYTES)
            .open()
            .map_err(|error| opening(error, path))?;
        let keyspace = |name: &str| {
            let plain = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            database.keyspace(name, plain).map_err(|error| opening(error, path))
        };
        let (lines, projected) = (keyspace("line")?, keyspace("projected")?);
        let mut ledger = Ledger { database, lines, projected, shards: Vec::new(), broken: false, closing };
        for shard in 0..shards {
            let seq = ledger.stored_seq(shard)?;
            ledger.shards.push(Progress { epoch: 0, seq });
        }
        Ok(ledger)
    }

    fn stored_seq(&self, shard: u32) -> Result<u64, Error> {
        let Some(stored) = self.projected.get(shard.to_be_bytes()).map_err(reading(shard))? else {
            return Ok(0);
        };
        let corrupt = |what: String| Error::Corrupt { shard, seq: 0, what };
        let mut rest = framing::unframed(&stored).map_err(corrupt)?;
        rest.try_get_u64().map_err(|error| corrupt(error.to_string()))
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

    pub(super) fn project(
        &mut self,
        stretch: &Stretch,
        lines: impl Iterator<Item = Line>,
    ) -> Result<(), Error> {
        if self.is_done(stretch)? {
            return Ok(());
        }
        self.write(stretch, lines)
    }

    /// What an earlier attempt may have left is taken out first, for that may have been of another snapshot.
    pub(super) fn carry(
        &mut self,
        stretch: &Stretch,
        lines: impl Iterator<Item = Line>,
    ) -> Result<(), Error> {
        if self.is_done(stretch)? {
            return Ok(());
        }
        let Stretch { shard, after, .. } = *stretch;
        let mut write = self.database.batch();
        for entry in self.lines.prefix(shard.to_be_bytes()) {
            let key = entry.key().map_err(reading(shard))?;
            if place_of(shard, &key)?.seq > after {
                write.remove(&self.lines, key);
            }
            if write.len() >= WRITE_LINES {
                let full = std::mem::replace(&mut write, self.database.batch());
                commit(&mut self.broken, &self.closing, full)?;
            }
        }
        commit(&mut self.broken, &self.closing, write)?;
        self.write(stretch, lines)
    }

    /// Whether a lost answer was to the same.
    fn is_done(&mut self, stretch: &Stretch) -> Result<bool, Error> {
        let Stretch { shard, epoch, after, through } = *stretch;
        let own = *self.progress(shard)?;
        match own {
            Progress { epoch: now, .. } if now != epoch => Err(Error::Fenced { shard, epoch: now }),
            Progress { seq, .. } if seq == through => Ok(true),
            Progress { seq, .. } if seq != after => Err(Error::OutOfOrder { shard, expected: seq + 1 }),
            Progress { .. } => Ok(false),
        }
    }

    fn write(&mut self, stretch: &Stretch, lines: impl Iterator<Item = Line>) -> Result<(), Error> {
        let Stretch { shard, through, .. } = *stretch;
        let mut write = self.database.batch();
        for line in lines {
            write.insert(&self.lines, key_of(shard, &line), value_of(&line));
            if write.len() >= WRITE_LINES {
                let full = std::mem::replace(&mut write, self.database.batch());
                commit(&mut self.broken, &self.closing, full)?;
            }
        }
        let mut stored = vec![framing::VERSION];
        stored.put_u64(through);
        write.insert(&self.projected, shard.to_be_bytes(), stored);
        commit(&mut self.broken, &self.closing, write)?;
        self.progress(shard)?.seq = through;
        Ok(())
    }

    /// The last batch whose lines are on the disk for good.
    pub(super) fn secure(&mut self, shard: u32) -> Result<u64, Error> {
        let seq = self.progress(shard)?.seq;
        let persisted = self.database.persist(PersistMode::SyncData);
        self.broken |= persisted.is_err();
        persisted.map_err(Error::unavailable(WRITING))?;
        Ok(seq)
    }

    // ---------------------------------------------------------------------------------------------------------- reads

    pub(super) fn lines(&self, account: u64, before: Cursor, limit: usize) -> Result<Vec<Line>, Error> {
        let Cursor { shard, seq, position } = before;
        let first = key(shard, account, 0, 0);
        let older = self.lines.range(first..key(shard, account, seq, position)).rev().take(limit);
        older.map(|entry| read(shard, entry)).collect()
    }

    pub(super) fn find_line(&self, row: &Row, which: Left, below: Cursor) -> Result<Option<Entry>, Error> {
        for shard in 0..self.shards.len() as u32 {
            let last = Cursor { shard, seq: u64::MAX, position: u32::MAX };
            let end = if shard == below.shard { below } else { last };
            let range = key(shard, row.id, 0, 0)..key(shard, row.id, end.seq, end.position);
            for entry in self.lines.range(range).rev() {
                let line = read(shard, entry)?;
                let counts = match which {
                    Left::Told => matches!(line.kind, LineKind::Event(_) | LineKind::Carried),
                    Left::Released => line.kind == LineKind::Released,
                };
                if counts && line.after == *row {
                    return Ok(Some(Entry { shard, line }));
                }
                // Before that, the account has not been so yet.
                if line.after.since < row.since {
                    break;
                }
            }
        }
        Ok(None)
    }

    pub(super) fn is_level(&self, lasts: &[u64]) -> bool {
        self.shards.iter().zip(lasts).all(|(own, last)| own.seq >= *last)
    }

    pub(super) fn projected_accounts(
        &self,
        shard: u32,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Row>, Error> {
        let (mut rows, mut after) = (Vec::new(), after);
        while rows.len() < limit
            && let Some(account) = self.next_account(shard, after)?
        {
            let newest = self.lines.range(all_of(shard, account)).next_back();
            if let Some(line) = newest.map(|entry| read(shard, entry)).transpose()?
                && line.kind != LineKind::Released
            {
                rows.push(line.after);
            }
            after = Some(account);
        }
        Ok(rows)
    }

    fn next_account(&self, shard: u32, after: Option<u64>) -> Result<Option<u64>, Error> {
        let Some(from) = after.map_or(Some(0), |after| after.checked_add(1)) else { return Ok(None) };
        let beyond = key(shard, from, 0, 0)..=key(shard, u64::MAX, u64::MAX, u32::MAX);
        let first = self.lines.range(beyond).next();
        first.map(|entry| account_of(shard, &entry.key().map_err(reading(shard))?)).transpose()
    }

    pub(super) fn forget_lines(&mut self, sweep: &Sweep) -> Result<Swept, Error> {
        let Sweep { shard, before, after, accounts, lines } = *sweep;
        let (mut swept, mut after) = (Swept { last: None, lines: 0, more: false }, after);
        for _ in 0..accounts {
            let Some(account) = self.next_account(shard, after)? else { break };
            let (gone, more) = self.forget_of(shard, account, before, lines)?;
            swept = Swept { last: Some(account), lines: swept.lines + gone, more: swept.more | more };
            after = Some(account);
        }
        Ok(swept)
    }

    fn forget_of(
        &mut self,
        shard: u32,
        account: u64,
        before: Micros,
        limit: usize,
    ) -> Result<(u64, bool), Error> {
        let mut write = self.database.batch();
        let mut old: Option<UserKey> = None;
        for entry in self.lines.range(all_of(shard, account)) {
            // There is a newer one, so it is not the account.
            if let Some(key) = old.take() {
                write.remove(&self.lines, key);
            }
            let (key, value) = entry.into_inner().map_err(reading(shard))?;
            if line_of(shard, &key, &value)?.at >= before || write.len() >= limit {
                break;
            }
            old = Some(key);
        }
        let gone = write.len();
        commit(&mut self.broken, &self.closing, write)?;
        Ok((gone as u64, gone >= limit))
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

fn key_of(shard: u32, line: &Line) -> Vec<u8> {
    key(shard, line.after.id, line.seq, line.position)
}

fn key(shard: u32, account: u64, seq: u64, position: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(24);
    key.put_u32(shard);
    key.put_u64(account);
    key.put_u64(seq);
    key.put_u32(position);
    key
}

fn all_of(shard: u32, account: u64) -> RangeInclusive<Vec<u8>> {
    key(shard, account, 0, 0)..=key(shard, account, u64::MAX, u32::MAX)
}

/// Which stage the account is in, and so what its figure is.
const OPEN: u8 = 0;
const STOPPED: u8 = 1;
const DELIVERED: u8 = 2;

fn value_of(line: &Line) -> Vec<u8> {
    let Line { seq: _, position: _, kind, at, amount, charged, after, key } = line;
    let Row { id: _, velocity, version, since, stage } = after;
    let (stage, figure, remainder) = match *stage {
        Stage::Open { balance, remainder } => (OPEN, balance.get(), remainder),
        Stage::Stopped { velocity } => (STOPPED, velocity.get(), 0),
        Stage::Delivered { overrun } => (DELIVERED, overrun.get(), 0),
    };
    let key = key.as_ref().map(Key::as_bytes).unwrap_or_default();
    let mut value = Vec::with_capacity(64 + key.len());
    value.extend_from_slice(&[framing::VERSION, kind.code(), stage]);
    value.put_u64(at.get());
    value.put_i64(amount.get());
    value.put_i64(charged.get());
    value.put_i64(velocity.get());
    value.put_u32(*version);
    value.put_u64(since.get());
    value.put_i64(figure);
    value.put_u32(remainder);
    value.extend_from_slice(key);
    value
}

fn read(shard: u32, entry: fjall::Guard) -> Result<Line, Error> {
    let (key, value): (UserKey, UserValue) = entry.into_inner().map_err(reading(shard))?;
    line_of(shard, &key, &value)
}

fn line_of(shard: u32, key: &[u8], value: &[u8]) -> Result<Line, Error> {
    let place = place_of(shard, key)?;
    let line = parse(place, account_of(shard, key)?, value);
    line.map_err(|what| Error::Corrupt {
        shard,
        seq: place.seq,
        what: format!("a line of the ledger: {what}"),
    })
}

fn account_of(shard: u32, mut key: &[u8]) -> Result<u64, Error> {
    key.advance(key.len().min(4));
    key.try_get_u64().map_err(|error| Error::Corrupt { shard, seq: 0, what: error.to_string() })
}

fn place_of(shard: u32, mut key: &[u8]) -> Result<Cursor, Error> {
    key.advance(key.len().min(12));
    let corrupt = |error: bytes::TryGetError| Error::Corrupt { shard, seq: 0, what: error.to_string() };
    let seq = key.try_get_u64().map_err(corrupt)?;
    Ok(Cursor { shard, seq, position: key.try_get_u32().map_err(corrupt)? })
}

fn parse(place: Cursor, id: u64, value: &[u8]) -> Result<Line, String> {
    let mut rest = framing::unframed(value)?;
    let short = |error: bytes::TryGetError| error.to_string();
    let kind = rest.try_get_u8().map_err(short)?;
    let kind = LineKind::from_code(kind).ok_or_else(|| format!("kind {kind} is not known here"))?;
    let stage = rest.try_get_u8().map_err(short)?;
    let at = Micros::new(rest.try_get_u64().map_err(short)?);
    let amount = Money::new(rest.try_get_i64().map_err(short)?);
    let charged = Money::new(rest.try_get_i64().map_err(short)?);
    let velocity = Velocity::new(rest.try_get_i64().map_err(short)?);
    let version = rest.try_get_u32().map_err(short)?;
    let since = Micros::new(rest.try_get_u64().map_err(short)?);
    let figure = rest.try_get_i64().map_err(short)?;
    let remainder = rest.try_get_u32().map_err(short)?;
    let stage = match stage {
        OPEN => Stage::Open { balance: Money::new(figure), remainder },
        STOPPED => Stage::Stopped { velocity: Velocity::new(figure) },
        DELIVERED => Stage::Delivered { overrun: Money::new(figure) },
        other => return Err(format!("stage {other} is not known here")),
    };
    let Cursor { shard: _, seq, position } = place;
    let after = Row { id, velocity, version, since, stage };
    Ok(Line { seq, position, kind, at, amount, charged, after, key: Key::new(rest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, balance: i64) -> Row {
        let stage = Stage::Open { balance: Money::new(balance), remainder: 0 };
        Row { id, velocity: Velocity::ZERO, version: 1, since: Micros::ZERO, stage }
    }

    fn carried(seq: u64, rows: impl Iterator<Item = Row>) -> impl Iterator<Item = Line> {
        rows.map(move |row| Line::of_row(seq, 0, LineKind::Carried, Micros::ZERO, row))
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
        let stretch = Stretch { shard: 0, epoch: 1, after: 0, through: 5 };
        let cut = (0..10_000).map(|id| row(id, 1)).inspect(|row| closing.store(row.id > 8_000, Relaxed));
        let torn = ledger.carry(&stretch, carried(5, cut));
        assert!(matches!(torn, Err(Error::Unavailable { .. })), "{torn:?}");
        drop(ledger);
        let mut ledger = open(&Arc::default());
        assert_eq!(ledger.claim(0, 2, 9).unwrap(), 0);
        assert!(!ledger.projected_accounts(0, None, 1).unwrap().is_empty(), "it left something");
        let stretch = Stretch { shard: 0, epoch: 2, after: 0, through: 7 };
        ledger.carry(&stretch, carried(7, (100..200).map(|id| row(id, 2)))).unwrap();
        let rows = ledger.projected_accounts(0, None, 20_000).unwrap();
        assert!(rows.into_iter().eq((100..200).map(|id| row(id, 2))));
        assert_eq!(ledger.secure(0).unwrap(), 7);
    }
}
