//! The engine on PostgreSQL: a row for each batch; replication and election are the servers'.
//!
//! Every write is one statement, and so one round trip and one transaction. What may be written is decided by the row of the
//! shard's lease, in the same statement: an append moves its `seq` by one if the epoch is its own, and holds the row until it is
//! committed. So everything that changes the lease (another owner, `confirm`) waits for an append under way and outdates
//! one that is still to come. The ledger alone is written by more than one statement: a transaction that begins with the
//! row of `ledger_progress`, which is to it what the lease is to the journal, and that no append waits for.

mod address;
mod append;
mod lease;
mod ledger;
mod pages;
mod password;
mod replica_set;
mod schema;
mod snapshot;
mod status;
mod tls;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio_postgres::Row;

use super::{BucketMap, Cause, Error, ReplicaSetStatus, Timeouts};
use address::Address;
pub(super) use password::without_password;
use replica_set::ReplicaSet;
use schema::Place;

/// Versions of the bucket map that stay beside the newest, for somebody to look at.
const KEPT_MAPS: u64 = 10;

/// What belongs to the settings and is not in them.
pub(super) struct Files<'a> {
    pub(super) ca: Option<&'a Path>,
    pub(super) password: Option<&'a Path>,
}

/// Cheap to clone: clones share the connections.
#[derive(Clone)]
pub struct Postgres {
    inner: Arc<Inner>,
}

struct Inner {
    sets: Vec<ReplicaSet>,
    shards: u32,
    /// Of shards acquired here.
    turns: Mutex<HashMap<u32, Turn>>,
    /// What the servers said last, and when. Locked while they are asked.
    looked: tokio::sync::Mutex<Option<(Instant, Vec<ReplicaSetStatus>)>>,
}

/// What an append of this process must find in the lease.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    epoch: u64,
    turn: i64,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts: Vec<_> =
            self.inner.sets.iter().flat_map(|set| set.hosts.all()).map(|host| &host.uri).collect();
        f.debug_struct("Postgres").field("hosts", &hosts).field("shards", &self.inner.shards).finish()
    }
}

impl Postgres {
    /// Makes the tables where they are missing. Every replica set must be reachable.
    pub(super) async fn open(
        connections: &[String],
        files: Files<'_>,
        shards: u32,
        timeouts: &Timeouts,
    ) -> Result<Postgres, Error> {
        if connections.is_empty() || connections.len() > shards as usize {
            return Err(Error::Config(format!(
                "{} connections for {shards} shards: from one to as many as there are shards",
                connections.len()
            )));
        }
        let password = files.password.map(password::read).transpose().map_err(Error::Config)?;
        let mut sets = Vec::new();
        for text in connections {
            let address = Address::read(text, files.ca, password.as_deref(), timeouts.connect)?;
            sets.push(ReplicaSet::new(address, timeouts)?);
        }
        let inner = Arc::new(Inner { sets, shards, turns: Mutex::default(), looked: Default::default() });
        let journal = Postgres { inner };
        for (index, set) in journal.inner.sets.iter().enumerate() {
            let place = Place { index, count: connections.len() };
            schema::prepare(set, place, shards).await.map_err(|error| unusable(index, set, error))?;
            status::warn_of_weak_durability(set).await.map_err(|error| unusable(index, set, error))?;
        }
        journal.bucket_map().await?.check(shards)?;
        Ok(journal)
    }

    fn set_of(&self, shard: u32) -> Result<&ReplicaSet, Error> {
        if shard >= self.inner.shards {
            return Err(Error::Config(format!("shard {shard} of {}", self.inner.shards)));
        }
        Ok(&self.inner.sets[shard as usize % self.inner.sets.len()])
    }

    pub(super) async fn bucket_map(&self) -> Result<BucketMap, Error> {
        let sql = "select version, shards from bucket order by version desc limit 1";
        let rows = self.inner.sets[0].read("reading the bucket map", sql, &[]).await?;
        let row = rows.first().ok_or_else(|| Error::Config("the bucket map is not there".to_owned()))?;
        let shards = row.try_get::<_, Vec<i64>>(1).map_err(Error::unavailable("reading the bucket map"))?;
        let shards = shards.into_iter().map(|shard| u32::try_from(shard).unwrap_or(u32::MAX)).collect();
        Ok(BucketMap { version: number(row, 0)?, shards })
    }

    pub(super) async fn set_bucket_map(&self, map: &BucketMap) -> Result<bool, Error> {
        map.check(self.inner.shards)?;
        let shards: Vec<i64> = map.shards.iter().copied().map(i64::from).collect();
        // Of two at once, the key lets one in.
        let sql = "insert into bucket (version, shards) select $1::bigint, $2::bigint[]
            where (select max(version) from bucket) = $1::bigint - 1
            on conflict (version) do nothing returning version";
        let step = "setting the bucket map";
        let rows = self.inner.sets[0].write(step, sql, &[&signed(map.version)?, &shards]).await?;
        if rows.is_empty() {
            return Ok(false);
        }
        // The map is set, whatever comes of this; the next one deletes what is left.
        let step = "deleting old bucket maps";
        let below = signed(map.version.saturating_sub(KEPT_MAPS))?;
        if let Err(error) =
            self.inner.sets[0].write(step, "delete from bucket where version < $1", &[&below]).await
        {
            tracing::debug!(%error, "old bucket maps are deleted later");
        }
        Ok(true)
    }
}

/// What whoever starts a node has to know beside the driver's words.
#[derive(Debug, thiserror::Error)]
#[error(
    "replica set {index} of `[journal] connections` ({hosts}) cannot be used; PostgreSQL must run at one of these, take writes, \
     and know the user and the database"
)]
struct Unusable {
    index: usize,
    hosts: String,
    source: Cause,
}

fn unusable(index: usize, set: &ReplicaSet, error: Error) -> Error {
    match error {
        Error::Unavailable { step, source } => {
            let hosts: Vec<&str> = set.hosts.all().iter().map(|host| host.uri.as_str()).collect();
            Error::Unavailable { step, source: Box::new(Unusable { index, hosts: hosts.join(", "), source }) }
        }
        other => other,
    }
}

#[cfg(test)]
impl Postgres {
    pub(super) fn turns(&self) -> HashMap<u32, Turn> {
        self.inner.turns.lock().clone()
    }

    /// Gives back what was there.
    pub(super) fn replace_turns(&self, turns: HashMap<u32, Turn>) -> HashMap<u32, Turn> {
        std::mem::replace(&mut *self.inner.turns.lock(), turns)
    }
}

/// Epochs and sequence numbers count up from 0; they do not reach the end of i64 in the life of a database.
fn signed(value: u64) -> Result<i64, Error> {
    i64::try_from(value).map_err(|_| Error::Config(format!("{value} is beyond what the database can hold")))
}

/// A column that holds such a number.
fn number(row: &Row, column: usize) -> Result<u64, Error> {
    let value: i64 = row.try_get(column).map_err(Error::unavailable("reading a number"))?;
    u64::try_from(value).map_err(Error::unavailable("reading a number"))
}
