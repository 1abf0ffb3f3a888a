//! Leases. Time is the database's; a statement's `now()` is that of its beginning, so a wait for the row makes an end only
//! earlier.

use std::time::Duration;

use tokio_postgres::Row;

use super::{Postgres, Turn, number, signed};
use crate::billing::journal::{Acquisition, Error, Lease, Node};

/// A lease as [`read`] takes it, with what is left of it in microseconds.
macro_rules! columns {
    () => {
        "shard, epoch, seq, node, advertise,
         (extract(epoch from expires_at - now()) * 1000000)::bigint as left_us, turn"
    };
}

impl Postgres {
    pub(in crate::billing::journal) async fn acquire(
        &self,
        shard: u32,
        node: &Node,
        lease: Duration,
    ) -> Result<Acquisition, Error> {
        let Node { name, advertise } = node;
        if name.is_empty() || advertise.is_empty() {
            return Err(Error::Config(
                "a node that owns shards has a name and an advertise address".to_owned(),
            ));
        }
        let sql = concat!(
            "update lease set epoch = epoch + 1, turn = 0, node = $2, advertise = $3,
                expires_at = now() + $4::bigint * interval '1 microsecond'
            where shard = $1 and (node = $2 or expires_at <= now()) returning ",
            columns!()
        );
        let set = self.set_of(shard)?;
        let length_us = microseconds(lease)?;
        let rows =
            set.write("acquiring a lease", sql, &[&i64::from(shard), name, advertise, &length_us]).await?;
        let Some(row) = rows.first() else { return self.lease(shard).await.map(Acquisition::Held) };
        let lease = read(row)?;
        let turn: i64 = row.try_get(6).map_err(Error::unavailable("acquiring a lease"))?;
        self.take_turn(shard, Turn { epoch: lease.epoch, turn });
        Ok(Acquisition::Acquired(lease))
    }

    pub(in crate::billing::journal) async fn renew(
        &self,
        shard: u32,
        epoch: u64,
        lease: Duration,
    ) -> Result<Lease, Error> {
        let sql = concat!(
            "update lease set expires_at = now() + $3::bigint * interval '1 microsecond'
            where shard = $1 and epoch = $2 returning ",
            columns!()
        );
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&i64::from(shard), &signed(epoch)?, &microseconds(lease)?];
        let rows = self.set_of(shard)?.write("renewing a lease", sql, &params).await?;
        match rows.first() {
            Some(row) => read(row),
            None => Err(Error::Fenced { shard, epoch: self.lease(shard).await?.epoch }),
        }
    }

    /// Kept for a node: the lease is that node's already, which may take its own at any time; that no address stands
    /// in it says that nobody serves yet.
    pub(in crate::billing::journal) async fn release(
        &self,
        shard: u32,
        epoch: u64,
        to: Option<(&str, Duration)>,
    ) -> Result<(), Error> {
        let (node, keep) = to.unwrap_or(("", Duration::ZERO));
        let sql = "update lease set epoch = epoch + 1, node = $3, advertise = '',
                expires_at = now() + $4::bigint * interval '1 microsecond'
            where shard = $1 and epoch = $2 returning epoch";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&i64::from(shard), &signed(epoch)?, &node, &microseconds(keep)?];
        let rows = self.set_of(shard)?.write("releasing a lease", sql, &params).await?;
        if rows.is_empty() {
            return Err(Error::Fenced { shard, epoch: self.lease(shard).await?.epoch });
        }
        self.inner.turns.lock().remove(&shard);
        Ok(())
    }

    pub(super) async fn lease(&self, shard: u32) -> Result<Lease, Error> {
        let sql = concat!("select ", columns!(), " from lease where shard = $1");
        let rows = self.set_of(shard)?.read("reading a lease", sql, &[&i64::from(shard)]).await?;
        read(rows.first().ok_or_else(|| no_lease(shard))?)
    }

    pub(in crate::billing::journal) async fn leases(&self) -> Result<Vec<Lease>, Error> {
        let sql = concat!("select ", columns!(), " from lease");
        let mut leases = Vec::new();
        for set in &self.inner.sets {
            for row in set.read("reading leases", sql, &[]).await? {
                leases.push(read(&row)?);
            }
        }
        leases.retain(|lease| lease.shard < self.inner.shards);
        leases.sort_by_key(|lease| lease.shard);
        Ok(leases)
    }
}

pub(super) fn no_lease(shard: u32) -> Error {
    Error::Config(format!(
        "the table `lease` has no row of shard {shard}: stop every node and restore all tables from one backup"
    ))
}

fn microseconds(length: Duration) -> Result<i64, Error> {
    i64::try_from(length.as_micros())
        .map_err(|_| Error::Config("a lease of some hundred thousand years".to_owned()))
}

fn read(row: &Row) -> Result<Lease, Error> {
    const STEP: &str = "reading a lease";
    let left_us: i64 = row.try_get(5).map_err(Error::unavailable(STEP))?;
    Ok(Lease {
        shard: u32::try_from(number(row, 0)?).map_err(Error::unavailable(STEP))?,
        epoch: number(row, 1)?,
        seq: number(row, 2)?,
        node: row.try_get(3).map_err(Error::unavailable(STEP))?,
        advertise: row.try_get(4).map_err(Error::unavailable(STEP))?,
        expires_in: Duration::from_micros(u64::try_from(left_us).unwrap_or(0)),
    })
}
