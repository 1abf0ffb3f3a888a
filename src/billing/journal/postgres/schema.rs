//! Tables, and how they come to be.
//!
//! Only what PostgreSQL, Citus, YugabyteDB and CockroachDB all know. Every number is a `bigint`: their `integer`s differ in
//! width. Keys of a shard's tables begin with the shard; `bucket` and `forefront_schema` are not a shard's.

use std::time::Instant;

use tokio_postgres::error::SqlState;

use super::replica_set::{DefineError, ReplicaSet};
use crate::billing::journal::{BucketMap, Error};

/// Every statement may be repeated, and be run by two nodes at once, while others serve. Version 2 had a ledger of a row for
/// each line, `ledger`, which goes: what follows it is derived again.
const TABLES: [&[&str]; 2] = [FIRST, LEDGER];

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
    // The last versions of the bucket map: to set one is to insert it. Only in the first replica set.
    "create table if not exists bucket (version bigint not null primary key, shards bigint[] not null)",
    "create table if not exists forefront_schema (
        version bigint not null primary key, replica_sets bigint not null, replica_set bigint not null)",
];

const LEDGER: &[&str] = &[
    // Each row has lines of the accounts that share `grp`, which is `account & 1023`: an array for each field, and an element
    // for each line, in the order of their places (seq, position). The key is the last line's place, and `page` tells apart what
    // ends at the same. Money is in micro-units, times are microseconds since the epoch; `last_at` is when it was written, and
    // not before any line in it. `balances` to `overruns` are the account after the line; `stopped_velocities` is there
    // while an order is on its way, `overruns` once it was answered. A kind of 9 or 10 is a move between shards. A column is
    // null if all of it would be: `charged`, `velocities` and `remainders` 0, `versions` 1, `sinces` as `ats`.
    "create table if not exists ledger_page (
        shard bigint not null, grp bigint not null, last_seq bigint not null, last_position bigint not null,
        page bigint not null, last_at bigint not null, accounts bigint[] not null, seqs bigint[] not null,
        positions bigint[] not null, kinds bigint[] not null, ats bigint[] not null, amounts bigint[] not null,
        balances bigint[] not null, charged bigint[], velocities bigint[], versions bigint[], sinces bigint[],
        remainders bigint[], stopped_velocities bigint[], overruns bigint[], keys bytea[],
        primary key (shard, grp, last_seq, last_position, page))",
    // All accounts of a group as they were after the batch `seq`; an account that changed since is newer in its lines.
    "create table if not exists account_page (
        shard bigint not null, grp bigint not null, page bigint not null, seq bigint not null,
        ids bigint[] not null, balances bigint[] not null, velocities bigint[] not null, versions bigint[] not null,
        sinces bigint[] not null, remainders bigint[], stopped_velocities bigint[], overruns bigint[],
        primary key (shard, grp, page))",
    // How far the ledger is, and under which epoch it may be written: what the lease is to the journal. Lines from before
    // `forgotten` may be gone.
    "create table if not exists ledger_progress (
        shard bigint not null primary key, epoch bigint not null, seq bigint not null, forgotten bigint not null)",
];

/// What a database may not know, and is used without: how rows are kept, and what only others read. Bytes of the journal
/// do not compress, and a page of lines is read whole.
const OPTIONS: [&str; 7] = [
    "alter table journal alter column payload set storage external",
    "alter table snapshot_part alter column payload set storage external",
    "alter table ledger_page alter column accounts set storage plain, alter column seqs set storage plain,
        alter column positions set storage plain, alter column kinds set storage plain,
        alter column ats set storage plain, alter column amounts set storage plain,
        alter column balances set storage plain, alter column charged set storage plain,
        alter column velocities set storage plain, alter column versions set storage plain,
        alter column sinces set storage plain, alter column remainders set storage plain,
        alter column stopped_velocities set storage plain, alter column overruns set storage plain,
        alter column keys set storage plain",
    "alter table account_page alter column ids set storage plain, alter column balances set storage plain,
        alter column velocities set storage plain, alter column versions set storage plain,
        alter column sinces set storage plain, alter column remainders set storage plain,
        alter column stopped_velocities set storage plain, alter column overruns set storage plain",
    include_str!("billing_ledger.sql"),
    include_str!("billing_accounts.sql"),
    include_str!("billing_history.sql"),
];

/// Version 2's. Last, because its views are of the same name, and no longer need them.
const GONE: [&str; 2] = ["drop table if exists ledger", "drop table if exists projected"];

const VERSION: i64 = 3;

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
        "insert into ledger_progress (shard, epoch, seq, forgotten)
            select shard, 0, 0, 0 from unnest($1::bigint[]) as own (shard) on conflict (shard) do nothing",
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
    for statement in TABLES.into_iter().flatten() {
        set.define(statement).await?;
    }
    for option in OPTIONS.into_iter().chain(GONE) {
        match set.define(option).await {
            Err(DefineError::Sql(code, cause)) if is_unknown_to_it(&code) => {
                let statement = option.lines().next().unwrap_or_default();
                tracing::warn!(statement, error = %cause, "journal: this database has no such thing, it is used without");
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

/// Whether what failed fails always: the database does not have it, or not for this user. The rest may work the next time: lost connections
/// (class 08), states of the transaction (25, 40), want of resources (53), locks (55), an operator (57), the system (58).
fn is_unknown_to_it(code: &SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    !["08", "25", "40", "53", "55", "57", "58"].contains(&class) && !is_race(code)
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
