//! Tables, and how they come to be.
//!
//! Only what PostgreSQL, Citus, YugabyteDB and CockroachDB all know. Every number is a `bigint`: their `integer`s differ in
//! width. Keys of a shard's tables begin with the shard; `bucket` and `forefront_schema` are not a shard's.

use std::time::Instant;

use tokio_postgres::error::SqlState;

use super::replica_set::{DefineError, ReplicaSet};
use crate::billing::journal::{BucketMap, Error};

/// Each brings the schema one version further. Every statement may be repeated, and be run by two nodes at once.
const MIGRATIONS: [&[&str]; 2] = [FIRST, LEDGER];

const FIRST: &[&str] = &[
    // `payload` begins with the format version; `checksum` is the CRC-32 of shard, seq, epoch and payload.
    "create table if not exists journal (
        shard bigint not null, seq bigint not null, epoch bigint not null, checksum bigint not null,
        payload bytea not null, primary key (shard, seq))",
    // One row for each shard. `seq` is the last batch; an append moves it by one if `epoch` and `turn` are its own, and
    // holds the row until it is committed. `turn` outdates appends whose answer was lost.
    "create table if not exists lease (
        shard bigint not null primary key, epoch bigint not null, turn bigint not null, seq bigint not null,
        node text not null, advertise text not null, expires_at timestamptz not null)",
    // Written after its parts, so what stands here is whole.
    "create table if not exists snapshot (
        shard bigint not null, seq bigint not null, epoch bigint not null, checksum bigint not null,
        parts bigint not null, primary key (shard, seq, epoch))",
    "create table if not exists snapshot_part (
        shard bigint not null, seq bigint not null, epoch bigint not null, part bigint not null,
        payload bytea not null, primary key (shard, seq, epoch, part))",
    // All versions of the bucket map: to set one is to insert it. Only in the first replica set.
    "create table if not exists bucket (version bigint not null primary key, shards bigint[] not null)",
    "create table if not exists forefront_schema (
        version bigint not null primary key, replica_sets bigint not null, replica_set bigint not null)",
];

const LEDGER: &[&str] = &[
    // The lines in the order in which histories are read. Money is in micro-units, times are microseconds since the epoch.
    // `balance` to `overrun` are the account after the line; `stopped_velocity` is there while an order is on its way,
    // `overrun` once it was answered. A `kind` of 9 or 10 is a move between shards.
    "create table if not exists ledger (
        shard bigint not null, account bigint not null, seq bigint not null, position bigint not null,
        kind bigint not null, at bigint not null, amount bigint not null, charged bigint not null,
        balance bigint not null, velocity bigint not null, version bigint not null, since bigint not null,
        remainder bigint not null, stopped_velocity bigint, overrun bigint, key bytea,
        primary key (shard, account, seq, position))",
    // How far the ledger is, and under which epoch it may be written: what the lease is to the journal.
    "create table if not exists projected (
        shard bigint not null primary key, epoch bigint not null, seq bigint not null)",
];

/// For whoever reads; nothing here needs them, so a database that cannot have them is used all the same.
const VIEWS: [&str; 2] = [include_str!("billing_ledger.sql"), include_str!("billing_accounts.sql")];

const VERSION: i64 = MIGRATIONS.len() as i64;

/// Where this replica set stands among the configured ones.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) index: usize,
    pub(super) count: usize,
}

/// Brings the schema to this version and fills in what a first start needs.
pub(super) async fn prepare(set: &ReplicaSet, place: Place, shards: u32) -> Result<(), Error> {
    let deadline = Instant::now() + set.hosts.answer_timeout();
    // Two nodes that create at once get in each other's way; whoever lost finds the other's work when it looks again.
    while !stored_is_current(set, place).await? {
        match migrate(set, place).await {
            Err(DefineError::Sql(code, _)) if is_race(&code) && Instant::now() < deadline => {}
            Err(DefineError::Sql(_, cause) | DefineError::Other(cause)) => {
                return Err(Error::unavailable("creating the journal's tables")(cause));
            }
            Ok(()) => {}
        }
    }
    let own = (0..shards).filter(|shard| *shard as usize % place.count == place.index);
    let own: Vec<i64> = own.map(i64::from).collect();
    // A shard that has batches had a lease: one that begins at 0 would not fit them.
    set.read(
        "adding leases",
        "insert into lease (shard, epoch, turn, seq, node, advertise, expires_at)
            select shard, 0, 0, 0, '', '', now() from unnest($1::bigint[]) as own (shard)
            where not exists (select 1 from journal where journal.shard = own.shard)
                and not exists (select 1 from snapshot where snapshot.shard = own.shard)
            on conflict (shard) do nothing",
        &[&own],
    )
    .await?;
    set.read(
        "adding what is projected",
        "insert into projected (shard, epoch, seq) select shard, 0, 0 from unnest($1::bigint[]) as own (shard)
            on conflict (shard) do nothing",
        &[&own],
    )
    .await?;
    if place.index == 0 {
        let first: Vec<i64> = BucketMap::spread(shards).shards.into_iter().map(i64::from).collect();
        set.read(
            "adding the bucket map",
            "insert into bucket (version, shards) select 1, $1::bigint[]
                where not exists (select 1 from bucket) on conflict (version) do nothing",
            &[&first],
        )
        .await?;
    }
    Ok(())
}

/// Whether there is nothing to migrate. A stored schema that does not fit is an error.
async fn stored_is_current(set: &ReplicaSet, place: Place) -> Result<bool, Error> {
    let rows = set
        .read(
            "reading the schema's version",
            "select version, replica_sets, replica_set from forefront_schema order by version desc limit 1",
            &[],
        )
        .await;
    let rows = match rows {
        Err(Error::Unavailable { source, .. }) if is_undefined_table(&*source) => return Ok(false),
        rows => rows?,
    };
    let Some(row) = rows.first() else { return Ok(false) };
    let (version, count, index): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if version > VERSION {
        return Err(Error::Config(format!(
            "the journal's schema is version {version}, and this forefront knows {VERSION}: it is too old"
        )));
    }
    if (count, index) != (place.count as i64, place.index as i64) {
        return Err(Error::Config(format!(
            "this database was made as replica set {index} of {count}, and is configured as {} of {}: \
             the number and order of connections say where each shard is and cannot change",
            place.index, place.count
        )));
    }
    Ok(version == VERSION)
}

async fn migrate(set: &ReplicaSet, place: Place) -> Result<(), DefineError> {
    for statement in MIGRATIONS.iter().flat_map(|migration| migration.iter()) {
        set.define(statement).await?;
    }
    for view in VIEWS {
        match set.define(view).await {
            Err(DefineError::Sql(code, cause)) if !is_race(&code) => {
                tracing::warn!(error = %cause, "journal: a view for reports cannot be made in this database");
            }
            other => other?,
        }
    }
    let stamp = format!(
        "insert into forefront_schema (version, replica_sets, replica_set) values ({VERSION}, {}, {})
            on conflict (version) do nothing",
        place.count, place.index
    );
    set.define(&stamp).await
}

fn is_undefined_table(cause: &(dyn std::error::Error + 'static)) -> bool {
    let error = cause.downcast_ref::<tokio_postgres::Error>();
    error.and_then(tokio_postgres::Error::code) == Some(&SqlState::UNDEFINED_TABLE)
}

/// `if not exists` looks first and creates then: two at once meet in the catalogue's own unique keys.
fn is_race(code: &SqlState) -> bool {
    [
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::INTERNAL_ERROR,
    ]
    .contains(code)
}
