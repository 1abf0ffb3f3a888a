//! What the journal's thread works on: an LSM tree whose write-ahead log is fsynced before an append is answered
//! (docs/decisions/0006-embedded-journal.md tells why this one), and the leases in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use fjall::compaction::Leveled;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use super::Clock;
use super::heads::Heads;
use crate::billing::journal::{Batch, BucketMap, Confirmation, Error, Tail, framing};

const OPENING: &str = "opening the journal";

/// Bytes of a file that a merge makes.
const FILE_BYTES: u64 = 2 << 20;
/// Memory for what the log holds and no file yet. While it becomes one, and that is known to be on the disk after some more fsyncs,
/// appends wait: 16 MiB do so every two seconds, for some 10 ms, when 160,000 commands come in a second.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Memory for blocks read. A journal is read once, at its start.
const CACHE_BYTES: u64 = 8 << 20;
/// The log is cut when all of it is in tables; this bounds it, and with it the time to open.
const LOG_BYTES: u64 = 256 << 20;

pub(super) struct Store {
    database: Database,
    /// shard, seq -> version, epoch, checksum, payload.
    pub(super) journal: Keyspace,
    /// shard -> version, epoch, name, address.
    pub(super) leases: Keyspace,
    /// shard, seq, epoch -> version, checksum, number of parts.
    pub(super) snapshots: Keyspace,
    /// shard, seq, epoch, part -> version, bytes.
    pub(super) parts: Keyspace,
    /// `buckets` -> version, version of the map, shards.
    pub(super) settings: Keyspace,
    pub(super) shards: Vec<Shard>,
    /// Batches of each shard up to which they are gone, as far as is known.
    pub(super) forgotten: Vec<u64>,
    pub(super) buckets: BucketMap,
    heads: Heads,
    pub(super) clock: Clock,
    /// After an error of the disk nobody knows what it holds, not even after another fsync.
    pub(super) broken: bool,
}

/// What is kept in memory of a shard.
#[derive(Clone, Default)]
pub(super) struct Shard {
    pub(super) last: u64,
    pub(super) epoch: u64,
    pub(super) node: String,
    pub(super) advertise: String,
    pub(super) expires_at: Duration,
}

impl Store {
    pub(super) fn open(path: &Path, shards: u32, clock: Clock) -> Result<Store, Error> {
        std::fs::create_dir_all(path).map_err(Error::unavailable(OPENING))?;
        let database = Database::builder(path.join("log"))
            .worker_threads(1)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(LOG_BYTES)
            .open()
            .map_err(|error| opening(error, path))?;
        let keyspace = |name: &str, options: fn() -> KeyspaceCreateOptions| {
            database.keyspace(name, options).map_err(|error| opening(error, path))
        };
        let plain = || in_small_files(MEMTABLE_BYTES, None);
        let large = || in_small_files(MEMTABLE_BYTES >> 2, Some(KvSeparationOptions::default()));
        let (heads, noted) = Heads::open(path);
        let mut store = Store {
            journal: keyspace("journal", plain)?,
            leases: keyspace("lease", plain)?,
            snapshots: keyspace("snapshot", plain)?,
            parts: keyspace("snapshot_part", large)?,
            settings: keyspace("setting", plain)?,
            database,
            shards: Vec::new(),
            forgotten: vec![0; shards as usize],
            buckets: BucketMap::spread(shards),
            heads,
            clock,
            broken: false,
        };
        for shard in 0..shards {
            let found = store.find_shard(shard)?;
            let noted = noted.get(shard as usize).copied().unwrap_or(0);
            if found.last < noted {
                let what = format!("it is missing, and so may be all to {noted}");
                return Err(Error::Corrupt { shard, seq: found.last + 1, what });
            }
            store.shards.push(found);
        }
        store.open_buckets(path)?;
        Ok(store)
    }

    fn find_shard(&self, shard: u32) -> Result<Shard, Error> {
        let mut found = match self.leases.get(shard.to_be_bytes()).map_err(reading(shard, 0))? {
            Some(stored) => Shard::read(&stored).map_err(|what| Error::Corrupt { shard, seq: 0, what })?,
            None => Shard::default(),
        };
        if let Some(last) = self.journal.prefix(shard.to_be_bytes()).next_back() {
            found.last = last.key().map_err(reading(shard, 0)).map(|key| seq_of(&key))?;
        }
        if let Some((key, _)) = self.newest_snapshot(shard)? {
            found.last = found.last.max(key.seq);
        }
        Ok(found)
    }

    pub(super) fn shard(&mut self, shard: u32) -> Result<&mut Shard, Error> {
        let count = self.shards.len();
        let known = self.shards.get_mut(shard as usize);
        known.ok_or_else(|| Error::Config(format!("shard {shard} of {count}")))
    }

    /// The last batch, if the epoch is the shard's.
    pub(super) fn last_of(&mut self, shard: u32, epoch: u64) -> Result<u64, Error> {
        let own = self.shard(shard)?;
        if own.epoch == epoch { Ok(own.last) } else { Err(Error::Fenced { shard, epoch: own.epoch }) }
    }

    /// The last batch of each shard.
    pub(super) fn lasts(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.last).collect()
    }

    /// Whether writes are possible.
    pub(super) fn check_whole(&mut self) -> Result<(), Error> {
        if self.broken {
            let cause = "an earlier write failed; only opening the journal again tells what the disk holds";
            return Err(Error::unavailable("writing to the journal")(cause));
        }
        Ok(())
    }

    /// Makes a write durable. `Unknown` if that fails, and then for good.
    pub(super) fn commit(&mut self, step: &'static str, write: fjall::OwnedWriteBatch) -> Result<(), Error> {
        let committed = write.commit();
        self.broken |= committed.is_err();
        committed.map_err(Error::unknown(step))
    }

    pub(super) fn write(&self) -> fjall::OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::SyncData))
    }

    /// One result for each, in their order.
    pub(super) fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), Error>> {
        const STEP: &str = "appending a batch";
        let mut write = self.write();
        let mut results: Vec<Result<(), Error>> = Vec::with_capacity(batches.len());
        for batch in batches {
            let checked = self.check_whole().and_then(|()| self.admit(batch));
            if checked.is_ok() {
                write.insert(&self.journal, journal_key(batch.shard, batch.seq), value(batch));
            }
            results.push(checked);
        }
        // Those admitted have moved `last` already; if this fails, nothing is admitted any more.
        if let Err(error) = self.commit(STEP, write) {
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(Error::unknown(STEP)(error.to_string()));
            }
        }
        self.note_heads(false);
        results
    }

    fn admit(&mut self, batch: &Batch) -> Result<(), Error> {
        let own = self.shard(batch.shard)?;
        if own.epoch != batch.epoch {
            return Err(Error::Fenced { shard: batch.shard, epoch: own.epoch });
        }
        if own.last + 1 != batch.seq {
            return Err(Error::OutOfOrder { shard: batch.shard, expected: own.last + 1 });
        }
        own.last = batch.seq;
        Ok(())
    }

    fn note_heads(&mut self, always: bool) {
        let now = (self.clock)();
        if self.broken || !(always || self.heads.is_due(now)) {
            return;
        }
        let heads = self.lasts();
        if let Err(error) = self.heads.note(&heads, now) {
            tracing::warn!(%error, "journal: cannot note how far it has come");
        }
    }

    pub(super) fn confirm(
        &mut self,
        shard: u32,
        epoch: u64,
        seq: u64,
        checksum: u32,
    ) -> Result<Confirmation, Error> {
        self.check_whole()?;
        let (last, now_epoch) = self.shard(shard).map(|own| (own.last, own.epoch))?;
        match self.batch(shard, seq)? {
            Some(batch) if batch.epoch == epoch && batch.checksum() == checksum => Ok(Confirmation::Applied),
            None if last >= seq => Err(Error::Fenced { shard, epoch: now_epoch }),
            _ => Ok(Confirmation::NotApplied),
        }
    }

    fn batch(&self, shard: u32, seq: u64) -> Result<Option<Batch>, Error> {
        let stored = self.journal.get(journal_key(shard, seq)).map_err(reading(shard, seq))?;
        stored.map(|stored| read_batch(shard, seq, &stored)).transpose()
    }

    pub(super) fn tail(&mut self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Tail, Error> {
        let end = self.shard(shard)?.last;
        let mark = self.mark(shard, after_seq)?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        let range = journal_key(shard, after_seq.saturating_add(1))..=journal_key(shard, u64::MAX);
        for (entry, seq) in self.journal.range(range).zip(after_seq + 1..) {
            let (key, stored) = entry.into_inner().map_err(reading(shard, seq))?;
            if seq_of(&key) != seq {
                return Err(self.missing(shard, seq)?);
            }
            if bytes > 0 && bytes + stored.len() > limit_bytes {
                break;
            }
            bytes += stored.len();
            batches.push(read_batch(shard, seq, &stored)?);
        }
        match batches.is_empty() && end > after_seq {
            true => Err(self.missing(shard, after_seq + 1)?),
            false => Ok(Tail { end, mark, batches }),
        }
    }

    /// Epoch and checksum of a batch, as it is stored.
    fn mark(&self, shard: u32, seq: u64) -> Result<Option<(u64, u32)>, Error> {
        let Some(stored) = self.journal.get(journal_key(shard, seq)).map_err(reading(shard, seq))? else {
            return Ok(None);
        };
        let (epoch, checksum, _) = parts(&stored).map_err(|what| Error::Corrupt { shard, seq, what })?;
        Ok(Some((epoch, checksum)))
    }

    /// What it means that a batch before the end is not there.
    fn missing(&self, shard: u32, seq: u64) -> Result<Error, Error> {
        match self.newest_snapshot(shard)? {
            Some((key, _)) if key.seq >= seq => Ok(Error::Truncated { shard, through: key.seq }),
            _ => Ok(Error::Corrupt { shard, seq, what: "it is missing".to_owned() }),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.note_heads(true);
    }
}

/// A file is flushed to the disk at once when all of it is written, and whatever else is being made durable waits for all of that:
/// for 25 ms when a merge makes one of 64 MiB, which is fjall's default.
pub(super) fn in_small_files(memtable: u64, apart: Option<KvSeparationOptions>) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(memtable)
        .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(FILE_BYTES)))
        .with_kv_separation(apart.map(|apart| apart.file_target_size(memtable)))
}

pub(super) fn journal_key(shard: u32, seq: u64) -> Vec<u8> {
    [&shard.to_be_bytes()[..], &seq.to_be_bytes()].concat()
}

pub(super) fn seq_of(mut key: &[u8]) -> u64 {
    key.advance(key.len().min(4));
    key.try_get_u64().unwrap_or(0)
}

fn value(batch: &Batch) -> Vec<u8> {
    let mut value = Vec::with_capacity(13 + batch.payload.len());
    value.push(framing::VERSION);
    value.put_u64(batch.epoch);
    value.put_u32(batch.checksum());
    value.extend_from_slice(&batch.payload);
    value
}

fn read_batch(shard: u32, seq: u64, stored: &[u8]) -> Result<Batch, Error> {
    let corrupt = |what: String| Error::Corrupt { shard, seq, what };
    let (epoch, checksum, payload) = parts(stored).map_err(corrupt)?;
    let batch = Batch { shard, seq, epoch, payload: Bytes::copy_from_slice(payload) };
    framing::compare(checksum, batch.checksum()).map_err(corrupt)?;
    Ok(batch)
}

/// Epoch, checksum and payload.
fn parts(stored: &[u8]) -> Result<(u64, u32, &[u8]), String> {
    let short = |error: bytes::TryGetError| error.to_string();
    let mut rest = framing::unframed(stored)?;
    let epoch = rest.try_get_u64().map_err(short)?;
    let checksum = rest.try_get_u32().map_err(short)?;
    Ok((epoch, checksum, rest))
}

pub(super) fn opening(error: fjall::Error, path: &Path) -> Error {
    match error {
        fjall::Error::Locked => Error::Config(format!(
            "another process has the journal in {} open; it is for one node",
            path.display()
        )),
        fjall::Error::Io(error) => Error::unavailable(OPENING)(error),
        error => Error::Damaged { place: path.display().to_string(), source: error.into() },
    }
}

pub(super) fn reading(shard: u32, seq: u64) -> impl Fn(fjall::Error) -> Error {
    move |error| match error {
        fjall::Error::Io(error) => Error::unavailable("reading the journal")(error),
        error => Error::Corrupt { shard, seq, what: error.to_string() },
    }
}
