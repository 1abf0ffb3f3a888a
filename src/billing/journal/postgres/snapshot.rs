//! Snapshots, in parts. The parts come first, each a statement of its own, so that no transaction grows with the state; the row
//! in `snapshot` makes them count.

use bytes::{Bytes, BytesMut};
use tokio_postgres::types::ToSql;

use super::append::Framed;
use super::{Postgres, number, signed};
use crate::billing::journal::{Error, Snapshot, framing};

/// Batches deleted by one statement, and parts of snapshots. A batch that is to be durable waits for what the server logged before
/// it.
const DELETED_MAX: usize = 500;
const DELETED_PARTS_MAX: i64 = 64;

/// A row of `snapshot`.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Heading {
    pub(super) seq: u64,
    epoch: u64,
    checksum: u64,
    parts: u64,
}

impl Postgres {
    pub(in crate::billing::journal) async fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        const STEP: &str = "writing a snapshot";
        let Snapshot { shard, seq, epoch, payload } = snapshot;
        let set = self.set_of(*shard)?;
        let lease = self.lease(*shard).await?;
        if lease.epoch != *epoch {
            return Err(Error::Fenced { shard: *shard, epoch: lease.epoch });
        }
        if lease.seq < *seq {
            return Err(Error::OutOfOrder { shard: *shard, expected: lease.seq + 1 });
        }
        let (id, seq, epoch) = (i64::from(*shard), signed(*seq)?, signed(*epoch)?);
        let mut parts: i64 = 0;
        for part in payload.chunks(framing::PART_BYTES - 1) {
            // Written before, if this is not the first attempt.
            let sql =
                "insert into snapshot_part (shard, seq, epoch, part, payload) values ($1, $2, $3, $4, $5)
                on conflict (shard, seq, epoch, part) do update set payload = excluded.payload";
            set.write(STEP, sql, &[&id, &seq, &epoch, &parts, &Framed(part)]).await?;
            tokio::time::sleep(framing::PART_REST).await;
            parts += 1;
        }
        let sql = "insert into snapshot (shard, seq, epoch, checksum, parts)
            select shard, $2::bigint, epoch, $4::bigint, $5::bigint from lease where shard = $1 and epoch = $3
            on conflict (shard, seq, epoch) do update set checksum = excluded.checksum, parts = excluded.parts
            returning seq";
        let checksum = i64::from(snapshot.checksum());
        let rows = set.write(STEP, sql, &[&id, &seq, &epoch, &checksum, &parts]).await?;
        if rows.is_empty() {
            return Err(Error::Fenced { shard: *shard, epoch: self.lease(*shard).await?.epoch });
        }
        Ok(())
    }

    pub(in crate::billing::journal) async fn snapshot(&self, shard: u32) -> Result<Option<Snapshot>, Error> {
        self.snapshot_before(shard, u64::MAX).await
    }

    pub(in crate::billing::journal) async fn snapshot_before(
        &self,
        shard: u32,
        seq: u64,
    ) -> Result<Option<Snapshot>, Error> {
        let Some(mut heading) = self.heading_before(shard, seq).await? else { return Ok(None) };
        loop {
            let problem = match self.assemble(shard, heading).await? {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(problem) => problem,
            };
            // Its owner may have put a newer one in its place meanwhile, and have deleted the parts of this one.
            match self.heading_before(shard, seq).await? {
                Some(newer) if newer != heading => heading = newer,
                _ => return Err(Error::Corrupt { shard, seq: heading.seq, what: problem }),
            }
        }
    }

    pub(super) async fn newest_snapshot(&self, shard: u32) -> Result<Option<Heading>, Error> {
        self.heading_before(shard, u64::MAX).await
    }

    async fn heading_before(&self, shard: u32, seq: u64) -> Result<Option<Heading>, Error> {
        let sql = "select seq, epoch, checksum, parts from snapshot where shard = $1 and seq <= $2
            order by seq desc, epoch desc limit 1";
        let through = i64::try_from(seq).unwrap_or(i64::MAX);
        let rows =
            self.set_of(shard)?.read("looking for a snapshot", sql, &[&i64::from(shard), &through]).await?;
        rows.first()
            .map(|row| {
                let (seq, epoch) = (number(row, 0)?, number(row, 1)?);
                Ok(Heading { seq, epoch, checksum: number(row, 2)?, parts: number(row, 3)? })
            })
            .transpose()
    }

    /// The inner error is what is wrong with what is stored.
    async fn assemble(&self, shard: u32, heading: Heading) -> Result<Result<Snapshot, String>, Error> {
        const STEP: &str = "reading a snapshot";
        let Heading { seq, epoch, checksum, parts } = heading;
        let set = self.set_of(shard)?;
        let mut payload = BytesMut::new();
        for part in 0..parts {
            let sql = "select payload from snapshot_part
                where shard = $1 and seq = $2 and epoch = $3 and part = $4";
            let params: [&(dyn ToSql + Sync); 4] =
                [&i64::from(shard), &signed(seq)?, &signed(epoch)?, &signed(part)?];
            let rows = set.read(STEP, sql, &params).await?;
            let Some(row) = rows.first() else {
                return Ok(Err(format!("part {part} of the snapshot is missing")));
            };
            let framed: &[u8] = row.try_get(0).map_err(Error::unavailable(STEP))?;
            match framing::unframed(framed) {
                Ok(bytes) => payload.extend_from_slice(bytes),
                Err(problem) => return Ok(Err(format!("part {part} of the snapshot: {problem}"))),
            }
        }
        let snapshot = Snapshot { shard, seq, epoch, payload: Bytes::from(payload) };
        Ok(framing::compare(checksum as u32, snapshot.checksum()).map(|()| snapshot))
    }

    pub(in crate::billing::journal) async fn truncate(
        &self,
        shard: u32,
        through_seq: u64,
    ) -> Result<(), Error> {
        const STEP: &str = "truncating";
        let projected = self.projected(shard).await?;
        let Some(kept) = self.heading_before(shard, projected).await? else { return Ok(()) };
        let Some(newest) = self.newest_snapshot(shard).await? else { return Ok(()) };
        let through = through_seq.min(kept.seq);
        let (set, id) = (self.set_of(shard)?, i64::from(shard));
        let sql = "select seq from journal where shard = $1 order by seq limit 1";
        let rows = set.read(STEP, sql, &[&id]).await?;
        let first = rows.first().map_or(Ok(u64::MAX), |row| number(row, 0))?;
        for first in (first..=through).step_by(DELETED_MAX) {
            let last = through.min(first + DELETED_MAX as u64 - 1);
            let sql = "delete from journal where shard = $1 and seq <= $2";
            set.write(STEP, sql, &[&id, &signed(last)?]).await?;
            tokio::time::sleep(framing::FORGET_REST).await;
        }
        let (newest_seq, newest_epoch) = (signed(newest.seq)?, signed(newest.epoch)?);
        let (kept_seq, kept_epoch) = (signed(kept.seq)?, signed(kept.epoch)?);
        let old: [&(dyn ToSql + Sync); 5] = [&id, &newest_seq, &newest_epoch, &kept_seq, &kept_epoch];
        let sql = "delete from snapshot where shard = $1 and (seq < $2 or (seq = $2 and epoch < $3))
            and not (seq = $4 and epoch = $5)";
        set.write(STEP, sql, &old).await?;
        let sql = "with old as (
                select shard, seq, epoch, part from snapshot_part
                where shard = $1 and (seq < $2 or (seq = $2 and epoch < $3)) and not (seq = $4 and epoch = $5)
                order by shard, seq, epoch, part limit $6)
            delete from snapshot_part using old
            where snapshot_part.shard = old.shard and snapshot_part.seq = old.seq
                and snapshot_part.epoch = old.epoch and snapshot_part.part = old.part
            returning snapshot_part.part";
        let [shard, seq, epoch, kept, of] = old;
        while !set.write(STEP, sql, &[shard, seq, epoch, kept, of, &DELETED_PARTS_MAX]).await?.is_empty() {
            tokio::time::sleep(framing::FORGET_REST).await;
        }
        Ok(())
    }
}
