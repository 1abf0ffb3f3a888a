//! Snapshots in the store: parts, then a heading that makes them count; and what they stand for, forgotten.

use bytes::{Buf, BufMut, BytesMut};

use super::store::{Store, journal_key, reading, seq_of};
use crate::billing::journal::{Error, Snapshot, framing};

/// Batches, or parts of snapshots, forgotten in one go; appends wait so long.
const FORGOTTEN_MAX: usize = 250;

impl Store {
    pub(super) fn newest_snapshot(
        &self,
        shard: u32,
    ) -> Result<Option<(SnapshotKey, fjall::UserValue)>, Error> {
        self.heading_before(shard, u64::MAX)
    }

    fn heading_before(&self, shard: u32, seq: u64) -> Result<Option<(SnapshotKey, fjall::UserValue)>, Error> {
        let first = SnapshotKey { shard, seq: 0, epoch: 0 };
        let last = SnapshotKey { shard, seq, epoch: u64::MAX };
        let newest = self.snapshots.range(first.whole()..=last.whole()).next_back();
        let Some(newest) = newest else { return Ok(None) };
        let (key, heading) = newest.into_inner().map_err(reading(shard, 0))?;
        Ok(Some((SnapshotKey { shard, seq: seq_of(&key), epoch: epoch_of(&key) }, heading)))
    }

    fn check_snapshot(&mut self, shard: u32, seq: u64, epoch: u64) -> Result<SnapshotKey, Error> {
        self.check_whole()?;
        let own = self.shard(shard)?;
        if own.epoch != epoch {
            return Err(Error::Fenced { shard, epoch: own.epoch });
        }
        if own.last < seq {
            return Err(Error::OutOfOrder { shard, expected: own.last + 1 });
        }
        Ok(SnapshotKey { shard, seq, epoch })
    }

    pub(super) fn put_part(
        &mut self,
        shard: u32,
        seq: u64,
        epoch: u64,
        part: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let key = self.check_snapshot(shard, seq, epoch)?;
        let mut framed = Vec::with_capacity(bytes.len() + 1);
        framed.push(framing::VERSION);
        framed.extend_from_slice(bytes);
        let mut write = self.write();
        write.insert(&self.parts, key.part(part), framed);
        self.commit("writing a snapshot", write)
    }

    pub(super) fn put_heading(
        &mut self,
        shard: u32,
        seq: u64,
        epoch: u64,
        checksum: u32,
        parts: u32,
    ) -> Result<(), Error> {
        let key = self.check_snapshot(shard, seq, epoch)?;
        let mut heading = vec![framing::VERSION];
        heading.put_u32(checksum);
        heading.put_u32(parts);
        let mut write = self.write();
        write.insert(&self.snapshots, key.whole(), heading);
        self.commit("writing a snapshot", write)
    }

    pub(super) fn snapshot_before(&mut self, shard: u32, seq: u64) -> Result<Option<Snapshot>, Error> {
        let Some((key, heading)) = self.heading_before(shard, seq)? else { return Ok(None) };
        let SnapshotKey { shard, seq, epoch } = key;
        let corrupt = |what: String| Error::Corrupt { shard, seq, what };
        let mut heading = framing::unframed(&heading).map_err(corrupt)?;
        let short = |error: bytes::TryGetError| corrupt(error.to_string());
        let checksum = heading.try_get_u32().map_err(short)?;
        let parts = heading.try_get_u32().map_err(short)?;
        let mut payload = BytesMut::new();
        for part in 0..parts {
            let stored = self.parts.get(key.part(part)).map_err(reading(shard, seq))?;
            let stored = stored.ok_or_else(|| corrupt(format!("part {part} of the snapshot is missing")))?;
            payload.extend_from_slice(framing::unframed(&stored).map_err(corrupt)?);
        }
        let snapshot = Snapshot { shard, seq, epoch, payload: payload.freeze() };
        framing::compare(checksum, snapshot.checksum()).map_err(corrupt)?;
        Ok(Some(snapshot))
    }

    /// Whether that was all. `projected`: the last batch that the ledger has, whatever happens.
    pub(super) fn truncate_some(
        &mut self,
        shard: u32,
        through_seq: u64,
        projected: u64,
    ) -> Result<bool, Error> {
        self.check_whole()?;
        let Some((kept, _)) = self.heading_before(shard, projected)? else { return Ok(true) };
        let Some((newest, _)) = self.newest_snapshot(shard)? else { return Ok(true) };
        let mut write = self.write();
        let through = through_seq.min(kept.seq);
        // From there on, because a search steps over everything that was removed before.
        let first = self.forgotten.get(shard as usize).map_or(1, |last| last + 1);
        if first <= through {
            let mut last = first;
            let old = journal_key(shard, first)..=journal_key(shard, through);
            for entry in self.journal.range(old).take(FORGOTTEN_MAX) {
                let key = entry.key().map_err(reading(shard, 0))?;
                last = seq_of(&key);
                write.remove(&self.journal, key);
            }
            if !write.is_empty() {
                self.commit("truncating", write)?;
                if let Some(known) = self.forgotten.get_mut(shard as usize) {
                    *known = last;
                }
                return Ok(false);
            }
        }
        let first = SnapshotKey { shard, seq: 0, epoch: 0 };
        let mut forget = |keyspace: &fjall::Keyspace, end: Vec<u8>, kept: Vec<u8>| -> Result<(), Error> {
            let old = keyspace.range(first.whole()..end).map(|entry| entry.key().map_err(reading(shard, 0)));
            for key in
                old.filter(|key| !key.as_ref().is_ok_and(|key| key.starts_with(&kept))).take(FORGOTTEN_MAX)
            {
                write.remove(keyspace, key?);
            }
            Ok(())
        };
        forget(&self.snapshots, newest.whole(), kept.whole())?;
        forget(&self.parts, newest.part(0), kept.whole())?;
        if write.is_empty() {
            return Ok(true);
        }
        self.commit("truncating", write)?;
        Ok(false)
    }
}

#[derive(Clone, Copy)]
pub(super) struct SnapshotKey {
    shard: u32,
    pub(super) seq: u64,
    epoch: u64,
}

impl SnapshotKey {
    fn whole(self) -> Vec<u8> {
        [&self.shard.to_be_bytes()[..], &self.seq.to_be_bytes(), &self.epoch.to_be_bytes()].concat()
    }

    fn part(self, part: u32) -> Vec<u8> {
        [&self.whole()[..], &part.to_be_bytes()].concat()
    }
}

fn epoch_of(mut key: &[u8]) -> u64 {
    key.advance(key.len().min(12));
    key.try_get_u64().unwrap_or(0)
}
