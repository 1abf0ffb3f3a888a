//! Batches: in, out, and what became of one whose answer was lost.

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::lease::no_lease;
use super::{Postgres, Turn, number, signed};
use crate::billing::journal::{Batch, Cause, Confirmation, Error, Tail, framing};

/// Rows of one answer at most, so that the server never sums up a whole journal to find where the limit of bytes is.
const ROWS_MAX: i64 = 512;

/// The version byte and a payload, put together only in the connection's buffer.
#[derive(Debug)]
pub(super) struct Framed<'a>(pub(super) &'a [u8]);

impl ToSql for Framed<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
        out.put_u8(framing::VERSION);
        out.put_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::BYTEA
    }

    to_sql_checked!();
}

impl Postgres {
    pub(in crate::billing::journal) async fn append(&self, batch: &Batch) -> Result<(), Error> {
        const STEP: &str = "appending a batch";
        let Batch { shard, seq, epoch, payload } = batch;
        let set = self.set_of(*shard)?;
        let Some(turn) = self.turn(*shard, *epoch) else { return Err(self.refusal(batch).await?) };
        let sql = "with own as (
                update lease set seq = $2
                where shard = $1 and epoch = $3 and turn = $4 and seq = $2::bigint - 1 returning shard)
            insert into journal (shard, seq, epoch, checksum, payload)
            select shard, $2::bigint, $3::bigint, $5::bigint, $6::bytea from own returning seq";
        let rows = set
            .write(
                STEP,
                sql,
                &[
                    &i64::from(*shard),
                    &signed(*seq)?,
                    &signed(*epoch)?,
                    &turn,
                    &i64::from(batch.checksum()),
                    &Framed(payload),
                ],
            )
            .await
            .map_err(|error| if is_taken(&error) { lease_is_old(*shard, *seq) } else { error })?;
        if rows.is_empty() { Err(self.refusal(batch).await?) } else { Ok(()) }
    }

    fn turn(&self, shard: u32, epoch: u64) -> Option<i64> {
        let turns = self.inner.turns.lock();
        turns.get(&shard).filter(|turn| turn.epoch == epoch).map(|turn| turn.turn)
    }

    pub(super) fn take_turn(&self, shard: u32, turn: Turn) {
        self.inner.turns.lock().insert(shard, turn);
    }

    /// Why the lease did not let it in. Nothing was written.
    async fn refusal(&self, batch: &Batch) -> Result<Error, Error> {
        let Batch { shard, seq, epoch, payload: _ } = batch;
        let lease = self.lease(*shard).await?;
        Ok(if lease.epoch != *epoch || self.turn(*shard, *epoch).is_none() {
            Error::Fenced { shard: *shard, epoch: lease.epoch }
        } else if lease.seq + 1 != *seq {
            Error::OutOfOrder { shard: *shard, expected: lease.seq + 1 }
        } else {
            // A confirmation was given up before its answer came, and had moved the turn.
            let cause = "an earlier append is not confirmed";
            Error::Unknown { step: "appending a batch", source: cause.into() }
        })
    }

    pub(in crate::billing::journal) async fn confirm(
        &self,
        shard: u32,
        epoch: u64,
        seq: u64,
        checksum: u32,
    ) -> Result<Confirmation, Error> {
        const STEP: &str = "confirming a batch";
        let set = self.set_of(shard)?;
        // Waits for the row if the lost append still holds it, and outdates it if it has yet to come. That this is
        // committed synchronously makes all before it as durable.
        let sql = "update lease set turn = turn + 1 where shard = $1 and epoch = $2 returning turn, seq";
        let rows = set.write(STEP, sql, &[&i64::from(shard), &signed(epoch)?]).await?;
        let own = match rows.first() {
            Some(row) => {
                let turn: i64 = row.try_get(0).map_err(Error::unavailable(STEP))?;
                self.take_turn(shard, Turn { epoch, turn });
                Some(number(row, 1)?)
            }
            None => None,
        };
        if own.is_some_and(|last| last < seq) {
            return Ok(Confirmation::NotApplied);
        }
        // A statement of its own: one that had waited for the row would still see the journal as it was before.
        let sql = "select epoch, checksum from journal where shard = $1 and seq = $2";
        let rows = set.read(STEP, sql, &[&i64::from(shard), &signed(seq)?]).await?;
        if let Some(row) = rows.first() {
            let same = number(row, 0)? == epoch && number(row, 1)? == u64::from(checksum);
            return Ok(if same { Confirmation::Applied } else { Confirmation::NotApplied });
        }
        // It is not there, and nothing of this epoch can come any more; or it is truncated, and nobody can tell.
        let lease = self.lease(shard).await?;
        match lease.seq < seq {
            true => Ok(Confirmation::NotApplied),
            false => Err(Error::Fenced { shard, epoch: lease.epoch }),
        }
    }

    pub(in crate::billing::journal) async fn tail(
        &self,
        shard: u32,
        after_seq: u64,
        limit_bytes: usize,
    ) -> Result<Tail, Error> {
        const STEP: &str = "reading batches";
        let set = self.set_of(shard)?;
        let (id, after) = (i64::from(shard), signed(after_seq)?);
        // The end is looked up first, so whatever is missing before it is missing for good.
        let sql = "select lease.seq, journal.epoch, journal.checksum from lease
            left join journal on journal.shard = lease.shard and journal.seq = $2 where lease.shard = $1";
        let rows = set.read(STEP, sql, &[&id, &after]).await?;
        let row = rows.first().ok_or_else(|| no_lease(shard))?;
        let (end, known) = (number(row, 0)?, mark(row)?);
        if end <= after_seq {
            return Ok(Tail { end, mark: known, batches: Vec::new() });
        }
        // The mark comes from this statement too: between the two a master may have given way to another one.
        let sql = "select seq, epoch, checksum, payload from (
                select seq, epoch, checksum, payload,
                    sum(octet_length(payload)) over (order by seq) - octet_length(payload) as before
                from (select seq, epoch, checksum, case when seq > $2 then payload else '' end as payload
                    from journal where shard = $1 and seq >= $2 order by seq limit $3) as next) as summed
            where before < $4::bigint order by seq";
        let limit = i64::try_from(limit_bytes.max(1)).unwrap_or(i64::MAX);
        let params: [&(dyn ToSql + Sync); 4] = [&id, &after, &ROWS_MAX, &limit];
        let mut rows = set.read(STEP, sql, &params).await?;
        let first = rows.first().map(|row| number(row, 0)).transpose()?;
        let before = (first == Some(after_seq)).then(|| rows.remove(0));
        let mut batches = Vec::with_capacity(rows.len());
        for (row, seq) in rows.iter().zip(after_seq + 1..) {
            if number(row, 0)? != seq {
                return Err(self.missing(shard, seq).await?);
            }
            batches.push(batch(row, shard, seq)?);
        }
        if batches.is_empty() {
            return Err(self.missing(shard, after_seq + 1).await?);
        }
        Ok(Tail { end, mark: before.as_ref().map(mark).transpose()?.flatten(), batches })
    }

    /// What it means that a batch before the end is not there.
    async fn missing(&self, shard: u32, seq: u64) -> Result<Error, Error> {
        match self.newest_snapshot(shard).await? {
            Some(newest) if newest.seq >= seq => Ok(Error::Truncated { shard, through: newest.seq }),
            _ => Ok(Error::Corrupt { shard, seq, what: "it is missing".to_owned() }),
        }
    }
}

/// The journal has a row of that number.
fn is_taken(error: &Error) -> bool {
    let Error::Unavailable { source, .. } = error else { return false };
    let error = source.downcast_ref::<tokio_postgres::Error>();
    error.and_then(tokio_postgres::Error::code) == Some(&SqlState::UNIQUE_VIOLATION)
}

fn lease_is_old(shard: u32, seq: u64) -> Error {
    let what = "it is there, and the table `lease` is from before it: \
        stop every node and restore all tables from one backup";
    Error::Corrupt { shard, seq, what: what.to_owned() }
}

/// Epoch and checksum of a row, if there is one.
fn mark(row: &Row) -> Result<Option<(u64, u32)>, Error> {
    let epoch: Option<i64> = row.try_get(1).map_err(Error::unavailable("reading batches"))?;
    match epoch {
        // A checksum was 32 bits when it was stored.
        Some(_) => Ok(Some((number(row, 1)?, number(row, 2)? as u32))),
        None => Ok(None),
    }
}

/// A row of the journal, checked.
fn batch(row: &Row, shard: u32, seq: u64) -> Result<Batch, Error> {
    let corrupt = |what| Error::Corrupt { shard, seq, what };
    let epoch = number(row, 1)?;
    let stored: i64 = row.try_get(2).map_err(Error::unavailable("reading batches"))?;
    let framed: &[u8] = row.try_get(3).map_err(Error::unavailable("reading batches"))?;
    let payload = Bytes::copy_from_slice(framing::unframed(framed).map_err(corrupt)?);
    let batch = Batch { shard, seq, epoch, payload };
    framing::compare(stored as u32, batch.checksum()).map_err(corrupt)?;
    Ok(batch)
}
