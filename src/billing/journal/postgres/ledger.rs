//! The ledger as a table: lines copied in, in the transaction that moves `projected`; read back by account.
//!
//! A row is written once and never updated. There is no table of accounts to keep in step: the newest line of an account is
//! the account, which halves what a line costs, and more (docs/decisions/0007-projection.md has the figures).
//!
//! Account ids are unsigned and columns are not: an id of 2^63 or more is stored as the negative number with the same bits.

use bytes::BytesMut;
use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::replica_set::Filling;
use super::{Postgres, number, signed};
use crate::billing::domain::{Key, Micros, Money, Row, Stage, Velocity};
use crate::billing::journal::ledger::Left;
use crate::billing::journal::{Cause, Cursor, Entry, Error, Line, LineKind, Stretch, Sweep, Swept};

/// In the order of [`cells`] and [`read`].
macro_rules! columns {
    () => {
        "shard, account, seq, position, kind, at, amount, charged, balance, velocity, version, since, remainder,
         stopped_velocity, overrun, key"
    };
}

const COLUMNS: usize = 16;

/// All numbers but the last.
fn types() -> [Type; COLUMNS] {
    let mut types = [const { Type::INT8 }; COLUMNS];
    types[COLUMNS - 1] = Type::BYTEA;
    types
}

/// A value of a row.
#[derive(Debug)]
pub(super) enum Cell {
    Number(i64),
    Nothing,
    Bytes(Vec<u8>),
}

impl ToSql for Cell {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
        match self {
            Cell::Number(number) => number.to_sql(kind, out),
            Cell::Nothing => Ok(IsNull::Yes),
            Cell::Bytes(bytes) => bytes.as_slice().to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        [Type::INT8, Type::BYTEA].contains(kind)
    }

    to_sql_checked!();
}

impl Postgres {
    pub(in crate::billing::journal) async fn claim(&self, shard: u32, epoch: u64) -> Result<u64, Error> {
        const STEP: &str = "claiming the ledger";
        let set = self.set_of(shard)?;
        let (id, own) = (i64::from(shard), signed(epoch)?);
        let sql = "update projected set epoch = $2 where shard = $1 and epoch <= $2
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
        let sql = "select epoch, seq from projected where shard = $1";
        let rows =
            self.set_of(shard)?.read_ledger("reading what is projected", sql, &[&i64::from(shard)]).await?;
        let missing =
            || Error::Config(format!("the row of shard {shard} in the table `projected` is not there"));
        let row = rows.first().ok_or_else(missing)?;
        Ok((number(row, 0)?, number(row, 1)?))
    }

    pub(super) async fn projected(&self, shard: u32) -> Result<u64, Error> {
        self.claimed(shard).await.map(|(_, seq)| seq)
    }

    pub(in crate::billing::journal) async fn project(
        &self,
        stretch: &Stretch,
        lines: impl Iterator<Item = Line> + Send,
    ) -> Result<(), Error> {
        self.fill("projecting", stretch, lines).await
    }

    pub(in crate::billing::journal) async fn carry(
        &self,
        stretch: &Stretch,
        lines: impl Iterator<Item = Line> + Send,
    ) -> Result<(), Error> {
        self.fill("projecting a snapshot", stretch, lines).await
    }

    /// Whoever has the row of `projected` has the shard's ledger, so one of an old epoch changes none.
    async fn fill(
        &self,
        step: &'static str,
        stretch: &Stretch,
        lines: impl Iterator<Item = Line> + Send,
    ) -> Result<(), Error> {
        let Stretch { shard, epoch, after, through } = *stretch;
        let id = i64::from(shard);
        let filling = Filling {
            gate: "update projected set seq = $4 where shard = $1 and epoch = $2 and seq = $3",
            params: &[&id, &signed(epoch)?, &signed(after)?, &signed(through)?],
            copy: concat!("copy ledger (", columns!(), ") from stdin binary"),
            types: &types(),
        };
        if self.set_of(shard)?.fill(step, filling, lines.map(|line| cells(id, &line))).await? {
            return Ok(());
        }
        match self.claimed(shard).await? {
            (now, _) if now != epoch => Err(Error::Fenced { shard, epoch: now }),
            // By an attempt whose answer was lost.
            (_, seq) if seq == through => Ok(()),
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
        let sql = concat!(
            "select ",
            columns!(),
            " from ledger where shard = $1 and account = $2 and (seq, position) < ($3, $4)
            order by seq desc, position desc limit $5"
        );
        let params: [&(dyn ToSql + Sync); 5] = [
            &i64::from(shard),
            &(account as i64),
            &bounded(seq),
            &i64::from(position),
            &i64::try_from(limit).unwrap_or(i64::MAX),
        ];
        let rows = set.read_ledger("reading lines", sql, &params).await?;
        rows.iter().map(|row| read(row).map(|entry| entry.line)).collect()
    }

    pub(in crate::billing::journal) async fn find_line(
        &self,
        row: &Row,
        which: Left,
        below: Cursor,
    ) -> Result<Option<Entry>, Error> {
        // Only among lines since the row's time: before that, the account has not been so yet.
        let sql = concat!(
            "select ",
            columns!(),
            " from unnest($1::bigint[]) as place (own)
                left join lateral (
                    select seq as old_seq, position as old_position from ledger
                    where shard = own and account = $2 and since < $8
                        and (own <> $12 or (seq, position) < ($13, $14))
                    order by seq desc, position desc limit 1) as old on true
                cross join lateral (
                    select * from ledger where shard = own and account = $2 and kind between $3 and $4
                        and balance = $5 and velocity = $6 and version = $7 and since = $8 and remainder = $9
                        and stopped_velocity is not distinct from $10 and overrun is not distinct from $11
                        and (own <> $12 or (seq, position) < ($13, $14))
                        and (old_seq is null or (seq, position) > (old_seq, old_position))
                    order by seq desc, position desc limit 1) as same"
        );
        let (first, last) = match which {
            Left::Told => (1, i64::from(LineKind::ADOPTED) - 1),
            Left::Released => (i64::from(LineKind::RELEASED), i64::from(LineKind::RELEASED)),
        };
        let like = cells(0, &Line::of_row(0, 0, LineKind::Released, Micros::ZERO, *row));
        for (at, set) in self.inner.sets.iter().enumerate() {
            let own: Vec<i64> = (0..i64::from(self.inner.shards))
                .filter(|shard| *shard as usize % self.inner.sets.len() == at)
                .collect();
            let (shard, seq, position) =
                (i64::from(below.shard), bounded(below.seq), i64::from(below.position));
            let mut params: Vec<&(dyn ToSql + Sync)> = vec![&own, &like[1], &first, &last];
            params.extend(like[8..15].iter().map(|cell| cell as &(dyn ToSql + Sync)));
            params.extend([&shard as &(dyn ToSql + Sync), &seq, &position]);
            if let Some(row) = set.read_ledger("reading lines", sql, &params).await?.first() {
                return read(row).map(Some);
            }
        }
        Ok(None)
    }

    pub(in crate::billing::journal) async fn ledger_is_level(&self) -> Result<bool, Error> {
        let sql = "select 1 from projected join lease on lease.shard = projected.shard
            where projected.seq < lease.seq limit 1";
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
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Row>, Error> {
        // From account to account in the index, however many lines each has.
        let sql = concat!(
            "with recursive step (id, count) as (
                (select account, 1 from ledger where shard = $1 and account between $2 and $3 order by account limit 1)
                union all
                select further.account, step.count + 1 from step cross join lateral (
                    select account from ledger where shard = $1 and account > step.id and account <= $3
                    order by account limit 1) as further where step.count < $4)
            select ",
            columns!(),
            " from step cross join lateral (
                select * from ledger where shard = $1 and account = step.id
                order by seq desc, position desc limit 1) as newest order by account"
        );
        let mut rows = Vec::new();
        for (mut first, last) in spans(after) {
            loop {
                let wanted = i32::try_from(limit - rows.len()).unwrap_or(i32::MAX);
                if wanted == 0 {
                    return Ok(rows);
                }
                let params: [&(dyn ToSql + Sync); 4] = [&i64::from(shard), &first, &last, &wanted];
                let found =
                    self.set_of(shard)?.read_ledger("reading projected accounts", sql, &params).await?;
                for row in &found {
                    let Entry { line, .. } = read(row)?;
                    first = line.after.id as i64;
                    if line.kind != LineKind::Released {
                        rows.push(line.after);
                    }
                }
                match first.checked_add(1) {
                    Some(next) if found.len() == wanted as usize => first = next,
                    _ => break,
                }
            }
        }
        Ok(rows)
    }

    pub(in crate::billing::journal) async fn forget_lines(&self, sweep: &Sweep) -> Result<Swept, Error> {
        const STEP: &str = "forgetting lines";
        let Sweep { shard, before, after, accounts, lines } = *sweep;
        // Of each account those of its oldest lines that are too old, but for its newest; or as many as allowed.
        let sql = "with recursive step (id, count) as (
                (select account, 1 from ledger where shard = $1 and account between $2 and $3 order by account limit 1)
                union all
                select further.account, step.count + 1 from step cross join lateral (
                    select account from ledger where shard = $1 and account > step.id and account <= $3
                    order by account limit 1) as further where step.count < $4),
            old as (
                select step.id, line.seq, line.position from step cross join lateral (
                    select seq, position, at from ledger where shard = $1 and account = step.id
                    order by seq, position limit $6::bigint + 1) as line
                where line.at < $5 and (line.seq, line.position) < (
                    select seq, position from ledger where shard = $1 and account = step.id
                    order by seq desc, position desc limit 1)),
            counted as (select id, count(*) as lines from old group by id),
            gone as (
                delete from ledger using old where ledger.shard = $1 and ledger.account = old.id
                    and ledger.seq = old.seq and ledger.position = old.position returning 1)
            select (select max(id) from step), (select count(*) from gone),
                coalesce((select max(lines) from counted) > $6, false)";
        for (first, last) in spans(after) {
            let params: [&(dyn ToSql + Sync); 6] = [
                &i64::from(shard),
                &first,
                &last,
                &i32::try_from(accounts).unwrap_or(i32::MAX),
                &bounded(before.get()),
                &i64::try_from(lines).unwrap_or(i64::MAX - 1),
            ];
            let rows = self.set_of(shard)?.write_ledger(STEP, sql, &params).await?;
            let Some(row) = rows.first() else { continue };
            let field = Error::unavailable::<tokio_postgres::Error>;
            let last: Option<i64> = row.try_get(0).map_err(field(STEP))?;
            if let Some(last) = last {
                let more: bool = row.try_get(2).map_err(field(STEP))?;
                return Ok(Swept { last: Some(last as u64), lines: number(row, 1)?, more });
            }
        }
        Ok(Swept { last: None, lines: 0, more: false })
    }
}

/// What is beyond the column is beyond every line.
fn bounded(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Accounts beyond one, in the order of their unsigned ids, as ranges of the signed column.
fn spans(after: Option<u64>) -> Vec<(i64, i64)> {
    match after.map_or(Some(0), |after| after.checked_add(1)) {
        None => Vec::new(),
        Some(first) => match i64::try_from(first) {
            Ok(first) => vec![(first, i64::MAX), (i64::MIN, -1)],
            Err(_) => vec![(first as i64, -1)],
        },
    }
}

fn cells(shard: i64, line: &Line) -> [Cell; COLUMNS] {
    let Line { seq, position, kind, at, amount, charged, after, key } = line;
    let Row { id, velocity, version, since, stage } = after;
    let (remainder, stopped_velocity, overrun) = match stage {
        Stage::Open { remainder, .. } => (i64::from(*remainder), Cell::Nothing, Cell::Nothing),
        Stage::Stopped { velocity } => (0, Cell::Number(velocity.get()), Cell::Nothing),
        Stage::Delivered { overrun } => (0, Cell::Nothing, Cell::Number(overrun.get())),
    };
    [
        Cell::Number(shard),
        Cell::Number(*id as i64),
        Cell::Number(bounded(*seq)),
        Cell::Number(i64::from(*position)),
        Cell::Number(i64::from(kind.code())),
        Cell::Number(bounded(at.get())),
        Cell::Number(amount.get()),
        Cell::Number(charged.get()),
        Cell::Number(after.balance().get()),
        Cell::Number(velocity.get()),
        Cell::Number(i64::from(*version)),
        Cell::Number(bounded(since.get())),
        Cell::Number(remainder),
        stopped_velocity,
        overrun,
        key.as_ref().map_or(Cell::Nothing, |key| Cell::Bytes(key.as_bytes().to_vec())),
    ]
}

fn read(row: &SqlRow) -> Result<Entry, Error> {
    let field = |error: tokio_postgres::Error| Error::unavailable("reading a line")(error);
    let signed = |column: usize| row.try_get::<_, i64>(column).map_err(field);
    let optional = |column: usize| row.try_get::<_, Option<i64>>(column).map_err(field);
    let (shard, seq) = (signed(0)?, number(row, 2)?);
    let corrupt = |column: &str| {
        let what = format!("a line of the ledger has a strange {column}");
        Error::Corrupt { shard: shard as u32, seq, what }
    };
    let narrow = |column: usize, name: &str| u32::try_from(signed(column)?).map_err(|_| corrupt(name));
    let stage = match (optional(13)?, optional(14)?) {
        (None, None) => Stage::Open { balance: Money::new(signed(8)?), remainder: narrow(12, "remainder")? },
        (Some(velocity), None) => Stage::Stopped { velocity: Velocity::new(velocity) },
        (_, Some(overrun)) => Stage::Delivered { overrun: Money::new(overrun) },
    };
    let after = Row {
        id: signed(1)? as u64,
        velocity: Velocity::new(signed(9)?),
        version: narrow(10, "version")?,
        since: Micros::new(number(row, 11)?),
        stage,
    };
    let kind = u8::try_from(signed(4)?).ok().and_then(LineKind::from_code).ok_or_else(|| corrupt("kind"))?;
    let key: Option<&[u8]> = row.try_get(15).map_err(field)?;
    let line = Line {
        seq,
        position: narrow(3, "position")?,
        kind,
        at: Micros::new(number(row, 5)?),
        amount: Money::new(signed(6)?),
        charged: Money::new(signed(7)?),
        after,
        key: key.and_then(Key::new),
    };
    Ok(Entry { shard: narrow(0, "shard")?, line })
}
