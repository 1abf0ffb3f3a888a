//! The ledger as a table of pages: copied in, in the transaction that moves `ledger_progress`; read back by account, page by
//! page of its group (docs/decisions/0008-projection.md tells why).
//!
//! A row is written once and never updated. What a report over all accounts begins with is `account_page`, which is swapped
//! some groups at a time.
//!
//! Account ids are unsigned and columns are not: an id of 2^63 or more is stored as the negative number with the same bits.

use std::sync::Arc;

use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::ToSql;

use super::pages::{COPY_ACCOUNTS, COPY_LINES, LinePages, account_pages};
use super::replica_set::{Filling, ReplicaSet};
use super::{Postgres, number, signed};
use crate::billing::domain::{Key, Micros, Money, Row, Stage, Velocity};
use crate::billing::journal::{Base, Cursor, Error, Line, LineKind, Offers, Stretch, Sweep, Swept, group_of};

/// A line of a page, in the order of [`read`].
macro_rules! line {
    () => {
        "line.account, line.seq, line.position, line.kind, line.at, line.amount, coalesce(line.charged, 0), line.balance,
         coalesce(line.velocity, 0), coalesce(line.version, 1), coalesce(line.since, line.at),
         coalesce(line.remainder, 0), line.stopped_velocity, line.overrun, line.key"
    };
}

/// Where the lines of a page are.
macro_rules! lines_of_page {
    () => {
        "unnest(page.accounts, page.seqs, page.positions, page.kinds, page.ats, page.amounts, page.balances,
            page.charged, page.velocities, page.versions, page.sinces, page.remainders, page.stopped_velocities,
            page.overruns, page.keys)
         as line (account, seq, position, kind, at, amount, balance, charged, velocity, version, since, remainder,
            stopped_velocity, overrun, key)"
    };
}

/// Pages that one statement looks through for an account, at most: 8 MB.
const LOOKED_MAX: i64 = 1024;

/// Pages of one statement that have the account, at most.
const FOUND_MAX: usize = 64;

impl Postgres {
    pub(in crate::billing::journal) async fn claim(&self, shard: u32, epoch: u64) -> Result<u64, Error> {
        const STEP: &str = "claiming the ledger";
        let set = self.set_of(shard)?;
        let (id, own) = (i64::from(shard), signed(epoch)?);
        let sql = "update ledger_progress set epoch = $2 where shard = $1 and epoch <= $2
            and exists (select 1 from lease where shard = $1 and epoch = $2) returning seq";
        let rows = set.write_ledger(STEP, sql, &[&id, &own]).await?;
        let lease = self.lease(shard).await?;
        let Some(row) = rows.first() else {
            if lease.epoch != epoch {
                return Err(Error::Fenced { shard, epoch: lease.epoch });
            }
            let (claimed, _) = self.claimed(shard).await?;
            return Err(Error::Fenced { shard, epoch: claimed });
        };
        let seq = number(row, 0)?;
        if seq > lease.seq {
            let what = format!("the ledger has it, and the journal ends at {}", lease.seq);
            return Err(Error::Corrupt { shard, seq, what });
        }
        Ok(seq)
    }

    /// Epoch and last batch.
    async fn claimed(&self, shard: u32) -> Result<(u64, u64), Error> {
        let sql = "select epoch, seq from ledger_progress where shard = $1";
        let rows =
            self.set_of(shard)?.read_ledger("reading what is projected", sql, &[&i64::from(shard)]).await?;
        let missing =
            || Error::Config(format!("the row of shard {shard} in the table `ledger_progress` is not there"));
        let row = rows.first().ok_or_else(missing)?;
        Ok((number(row, 0)?, number(row, 1)?))
    }

    pub(super) async fn projected(&self, shard: u32) -> Result<u64, Error> {
        self.claimed(shard).await.map(|(_, seq)| seq)
    }

    pub(in crate::billing::journal) async fn project(
        &self,
        stretch: &Stretch,
        lines: &Arc<Offers>,
    ) -> Result<(), Error> {
        self.fill("projecting", stretch, std::iter::once(Arc::clone(lines))).await
    }

    pub(in crate::billing::journal) async fn carry(
        &self,
        stretch: &Stretch,
        chunks: impl Iterator<Item = Arc<Offers>> + Send,
    ) -> Result<(), Error> {
        self.fill("projecting a snapshot", stretch, chunks).await
    }

    /// Whoever has the row of `ledger_progress` has the shard's ledger, so one of an old epoch changes none.
    async fn fill(
        &self,
        step: &'static str,
        stretch: &Stretch,
        chunks: impl Iterator<Item = Arc<Offers>> + Send,
    ) -> Result<(), Error> {
        let Stretch { shard, epoch, after, through, at } = *stretch;
        let id = i64::from(shard);
        let filling = Filling {
            gate: "update ledger_progress set seq = $4 where shard = $1 and epoch = $2 and seq = $3",
            params: &[&id, &signed(epoch)?, &signed(after)?, &signed(through)?],
            clear: None,
            copy: COPY_LINES,
        };
        let pages = LinePages::new(id, bounded(at.get()), chunks);
        if self.set_of(shard)?.fill(step, filling, pages).await? {
            return Ok(());
        }
        match self.claimed(shard).await? {
            (now, _) if now != epoch => Err(Error::Fenced { shard, epoch: now }),
            // By an attempt whose answer was lost.
            (_, seq) if seq == through => Ok(()),
            (_, seq) => Err(Error::OutOfOrder { shard, expected: seq + 1 }),
        }
    }

    pub(in crate::billing::journal) async fn put_base(&self, base: &Base, rows: &[Row]) -> Result<(), Error> {
        let Base { shard, epoch, seq, first, last } = *base;
        let id = i64::from(shard);
        let filling = Filling {
            // Holds the row, as a projection does.
            gate: "update ledger_progress set seq = seq where shard = $1 and epoch = $2 and seq >= $3",
            params: &[&id, &signed(epoch)?, &signed(seq)?],
            clear: Some((
                "delete from account_page where shard = $1 and grp between $2 and $3",
                &[&id, &i64::from(first), &i64::from(last)],
            )),
            copy: COPY_ACCOUNTS,
        };
        let pages = account_pages(id, signed(seq)?, first..=last, rows);
        if self.set_of(shard)?.fill("writing accounts", filling, pages).await? {
            return Ok(());
        }
        match self.claimed(shard).await? {
            (now, _) if now != epoch => Err(Error::Fenced { shard, epoch: now }),
            (_, seq) => Err(Error::OutOfOrder { shard, expected: seq + 1 }),
        }
    }

    // ---------------------------------------------------------------------------------------------------------- reads

    pub(in crate::billing::journal) async fn lines(
        &self,
        account: u64,
        before: Cursor,
        limit: usize,
    ) -> Result<Vec<Line>, Error> {
        let Cursor { shard, seq, position } = before;
        // A cursor may come from anywhere.
        let Ok(set) = self.set_of(shard) else { return Ok(Vec::new()) };
        let mut walk = Walk::new(set, account, before).await?;
        let mut lines: Vec<Line> = Vec::new();
        while lines.len() < limit
            && let Some(older) = walk.next(limit - lines.len(), Micros::ZERO).await?
        {
            lines.extend(older.into_iter().filter(|line| (line.seq, line.position) < (seq, position)));
            if lines.last().is_some_and(Line::is_first) {
                break;
            }
        }
        lines.truncate(limit);
        Ok(lines)
    }

    pub(in crate::billing::journal) async fn find_released(
        &self,
        adopted: &Line,
        below: Cursor,
    ) -> Result<Option<Cursor>, Error> {
        let Row { id, since, .. } = adopted.after;
        for shard in 0..self.inner.shards {
            let end = below.in_shard(shard);
            let mut walk = Walk::new(self.set_of(shard)?, id, end).await?;
            'shard: while let Some(older) = walk.next(FOUND_MAX, since).await? {
                for line in older {
                    let place = Cursor { shard, seq: line.seq, position: line.position };
                    if place >= end {
                        continue;
                    }
                    if line.went_to(adopted) {
                        return Ok(Some(place));
                    }
                    if line.is_before(adopted) {
                        break 'shard;
                    }
                }
            }
        }
        Ok(None)
    }

    pub(in crate::billing::journal) async fn has_forgotten(&self, at: Micros) -> Result<bool, Error> {
        let sql = "select 1 from ledger_progress where forgotten > $1 limit 1";
        for set in &self.inner.sets {
            if !set.read_ledger("reading what is forgotten", sql, &[&bounded(at.get())]).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(in crate::billing::journal) async fn ledger_is_level(&self) -> Result<bool, Error> {
        let sql = "select 1 from ledger_progress join lease on lease.shard = ledger_progress.shard
            where ledger_progress.seq < lease.seq limit 1";
        for set in &self.inner.sets {
            if !set.read_ledger("reading what is projected", sql, &[]).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(in crate::billing::journal) async fn projected_accounts(
        &self,
        shard: u32,
        first: u16,
        last: u16,
    ) -> Result<Vec<Row>, Error> {
        // The same as in `billing_accounts`, and nothing rounded.
        let sql = concat!(
            "select distinct on (own.grp, line.account) ",
            line!(),
            " from generate_series($2::bigint, $3::bigint) as own (grp)
            cross join lateral (select coalesce((select max(seq) from account_page
                where shard = $1 and account_page.grp = own.grp), -1) as seq) as base
            cross join lateral (
                select known.id, page.seq, 0::bigint, 8::bigint, 0::bigint, 0::bigint, 0::bigint, known.balance,
                    known.velocity, known.version, known.since, known.remainder, known.stopped_velocity,
                    known.overrun, null::bytea
                from account_page as page cross join lateral unnest(page.ids, page.balances, page.velocities,
                        page.versions, page.sinces, page.remainders, page.stopped_velocities, page.overruns)
                    as known (id, balance, velocity, version, since, remainder, stopped_velocity, overrun)
                where page.shard = $1 and page.grp = own.grp
                union all
                select line.account, line.seq, line.position, line.kind, line.at, line.amount, line.charged,
                    line.balance, line.velocity, line.version, coalesce(line.since, line.at), line.remainder,
                    line.stopped_velocity, line.overrun, line.key
                from ledger_page as page cross join lateral ",
            lines_of_page!(),
            " where page.shard = $1 and page.grp = own.grp and page.last_seq > base.seq and line.seq > base.seq)
            as line (account, seq, position, kind, at, amount, charged, balance, velocity, version, since, remainder,
                stopped_velocity, overrun, key)
            order by own.grp, line.account, line.seq desc, line.position desc"
        );
        let params: [&(dyn ToSql + Sync); 3] = [&i64::from(shard), &i64::from(first), &i64::from(last)];
        let found = self.set_of(shard)?.read_ledger("reading projected accounts", sql, &params).await?;
        let lines = found.iter().map(|row| read(row, shard));
        let there = lines.filter(|line| line.as_ref().map_or(true, |line| line.kind != LineKind::Released));
        there.map(|line| line.map(|line| line.after)).collect()
    }

    pub(in crate::billing::journal) async fn forget_lines(&self, sweep: &Sweep) -> Result<Swept, Error> {
        const STEP: &str = "forgetting lines";
        let Sweep { shard, before, first, last, pages } = *sweep;
        // `forgotten` is the time before which lines may be gone.
        let sql = "with own as (
                select grp, (select max(seq) from account_page where shard = $1 and account_page.grp = each.grp) as base
                from generate_series($2::bigint, $3::bigint) as each (grp)),
            old as (
                select own.grp, page.last_seq, page.last_position, page.page, page.last_seq <= own.base as covered
                from own cross join lateral (
                    select last_seq, last_position, page, last_at from ledger_page
                    where shard = $1 and ledger_page.grp = own.grp
                    order by last_seq, last_position, page limit $5) as page
                where page.last_at < $4),
            gone as (
                delete from ledger_page using old where ledger_page.shard = $1 and ledger_page.grp = old.grp
                    and ledger_page.last_seq = old.last_seq and ledger_page.last_position = old.last_position
                    and ledger_page.page = old.page and old.covered
                returning ledger_page.grp, ledger_page.last_at, cardinality(ledger_page.accounts) as lines),
            noted as (
                update ledger_progress set forgotten = greatest(forgotten, (select max(last_at) + 1 from gone))
                where shard = $1 and exists (select 1 from gone) returning 1)
            select coalesce((select sum(lines) from gone), 0)::bigint,
                exists (select 1 from gone group by grp having count(*) >= $5),
                exists (select 1 from old where covered is not true)";
        let params: [&(dyn ToSql + Sync); 5] = [
            &i64::from(shard),
            &i64::from(first),
            &i64::from(last),
            &bounded(before.get()),
            &i64::from(pages),
        ];
        let rows = self.set_of(shard)?.write_ledger(STEP, sql, &params).await?;
        let Some(row) = rows.first() else { return Ok(Swept::default()) };
        let told = |column: usize| row.try_get(column).map_err(Error::unavailable(STEP));
        Ok(Swept { lines: number(row, 0)?, more: told(1)?, held: told(2)? })
    }
}

/// A place among the pages of a group: `last_seq`, `last_position`, `page`.
type Place = (i64, i64, i64);

const END: Place = (i64::MAX, i64::MAX, i64::MAX);

/// Goes through the lines of one account in one shard, from some place back.
struct Walk<'a> {
    set: &'a ReplicaSet,
    shard: u32,
    account: u64,
    /// Pages below this one are yet to be seen.
    end: Option<Place>,
}

impl<'a> Walk<'a> {
    /// From the page that has this place, which ends there or beyond it.
    async fn new(set: &'a ReplicaSet, account: u64, before: Cursor) -> Result<Walk<'a>, Error> {
        let Cursor { shard, seq, position } = before;
        let mut walk = Walk { set, shard, account, end: Some(END) };
        if seq != u64::MAX {
            let sql = "select last_seq, last_position, page from ledger_page
                where shard = $1 and grp = $2 and (last_seq, last_position) >= ($3, $4)
                order by last_seq, last_position, page limit 1";
            let (shard, group) = walk.group();
            let params: [&(dyn ToSql + Sync); 4] = [&shard, &group, &bounded(seq), &i64::from(position)];
            if let Some(row) = set.read_ledger(READING, sql, &params).await?.first() {
                let (seq, position, page) = place(row, 0)?;
                walk.end = Some((seq, position, page + 1));
            }
        }
        Ok(walk)
    }

    fn group(&self) -> (i64, i64) {
        (i64::from(self.shard), i64::from(group_of(self.account)))
    }

    /// The account's lines in some more pages, at most `limit`, newest first, maybe none. None: there are no more pages, or
    /// only such as were written before `since`.
    async fn next(&mut self, limit: usize, since: Micros) -> Result<Option<Vec<Line>>, Error> {
        let Some(end) = self.end else { return Ok(None) };
        let (shard, group) = self.group();
        let sql = "select last_seq, last_position, page, last_at from ledger_page
            where shard = $1 and grp = $2 and (last_seq, last_position, page) < ($3, $4, $5)
            order by last_seq desc, last_position desc, page desc offset $6 limit 1";
        let params: [&(dyn ToSql + Sync); 6] = [&shard, &group, &end.0, &end.1, &end.2, &(LOOKED_MAX - 1)];
        let rows = self.set.read_ledger(READING, sql, &params).await?;
        let (floor, mut beyond) = match rows.first() {
            Some(row) => {
                let floor = place(row, 0)?;
                (floor, (number(row, 3)? >= since.get()).then_some(floor))
            }
            None => ((0, 0, 0), None),
        };
        let sql = concat!(
            "select ",
            line!(),
            ", page.last_seq, page.last_position, page.page from (
                select * from ledger_page where shard = $1 and grp = $2
                    and (last_seq, last_position, page) < ($3, $4, $5)
                    and (last_seq, last_position, page) >= ($6, $7, $8) and $9 = any (accounts)
                order by last_seq desc, last_position desc, page desc limit $10) as page
            cross join lateral ",
            lines_of_page!(),
            " where line.account = $9 order by line.seq desc, line.position desc"
        );
        let pages = limit.clamp(1, FOUND_MAX);
        let params: [&(dyn ToSql + Sync); 10] = [
            &shard,
            &group,
            &end.0,
            &end.1,
            &end.2,
            &floor.0,
            &floor.1,
            &floor.2,
            &(self.account as i64),
            &(pages as i64),
        ];
        let rows = self.set.read_ledger(READING, sql, &params).await?;
        let mut places = rows.iter().map(|row| place(row, LINE_COLUMNS)).collect::<Result<Vec<_>, _>>()?;
        let oldest = places.last().copied();
        places.dedup();
        // It stopped there, not at the floor.
        if places.len() == pages {
            beyond = oldest;
        }
        self.end = beyond;
        rows.iter().map(|row| read(row, self.shard)).collect::<Result<_, _>>().map(Some)
    }
}

const READING: &str = "reading lines";

fn place(row: &SqlRow, first: usize) -> Result<Place, Error> {
    let part = |column: usize| row.try_get(column).map_err(Error::unavailable(READING));
    Ok((part(first)?, part(first + 1)?, part(first + 2)?))
}

/// What is beyond the column is beyond every line.
pub(super) fn bounded(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

const LINE_COLUMNS: usize = 15;

fn read(row: &SqlRow, shard: u32) -> Result<Line, Error> {
    let field = |error: tokio_postgres::Error| Error::unavailable("reading a line")(error);
    let signed = |column: usize| row.try_get::<_, i64>(column).map_err(field);
    let optional = |column: usize| row.try_get::<_, Option<i64>>(column).map_err(field);
    let seq = number(row, 1)?;
    let corrupt = |column: &str| {
        let what = format!("a line of the ledger has a strange {column}");
        Error::Corrupt { shard, seq, what }
    };
    let narrow = |column: usize, name: &str| u32::try_from(signed(column)?).map_err(|_| corrupt(name));
    let stage = match (optional(12)?, optional(13)?) {
        (None, None) => Stage::Open { balance: Money::new(signed(7)?), remainder: narrow(11, "remainder")? },
        (Some(velocity), None) => Stage::Stopped { velocity: Velocity::new(velocity) },
        (_, Some(overrun)) => Stage::Delivered { overrun: Money::new(overrun) },
    };
    let after = Row {
        id: signed(0)? as u64,
        velocity: Velocity::new(signed(8)?),
        version: narrow(9, "version")?,
        since: Micros::new(number(row, 10)?),
        stage,
    };
    let kind = u8::try_from(signed(3)?).ok().and_then(LineKind::from_code).ok_or_else(|| corrupt("kind"))?;
    let key: Option<&[u8]> = row.try_get(14).map_err(field)?;
    Ok(Line {
        seq,
        position: narrow(2, "position")?,
        kind,
        at: Micros::new(number(row, 4)?),
        amount: Money::new(signed(5)?),
        charged: Money::new(signed(6)?),
        after,
        key: key.and_then(Key::new),
    })
}
