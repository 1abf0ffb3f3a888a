//! What the servers say of themselves and of each other.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Row};

use super::Postgres;
use super::replica_set::ReplicaSet;
use crate::billing::journal::{Error, MemberState, MemberStatus, ReplicaSetStatus};
use crate::telemetry::causes;

/// What one server says.
struct Report {
    state: MemberState,
    application_name: Option<String>,
    /// A place in the log: the end of a master's, the replayed end of a replica's.
    place: Option<i64>,
    replay_delay: Option<Duration>,
    /// Of a master: name, address, sync_state of each replica that it sees.
    replicas: Vec<(String, String, String)>,
}

/// An answer is given again for this long, so that the servers are asked about once a second, however many want to know.
const FRESH: Duration = Duration::from_secs(1);

impl Postgres {
    /// Whoever comes while the servers are asked waits for that answer.
    pub(in crate::billing::journal) async fn status(&self) -> Vec<ReplicaSetStatus> {
        let mut looked = self.inner.looked.lock().await;
        if let Some((at, status)) = &*looked
            && at.elapsed() < FRESH
        {
            return status.clone();
        }
        let status = self.look().await;
        *looked = Some((Instant::now(), status.clone()));
        status
    }

    async fn look(&self) -> Vec<ReplicaSetStatus> {
        let sets = self.inner.sets.iter().enumerate();
        let all = sets.map(|(index, set)| async move {
            let shards =
                (0..self.inner.shards).filter(|shard| *shard as usize % self.inner.sets.len() == index);
            ReplicaSetStatus { index, shards: shards.collect(), members: members(set).await }
        });
        futures::future::join_all(all).await
    }
}

async fn members(set: &ReplicaSet) -> Vec<MemberStatus> {
    let hosts = set.hosts.all();
    let reports = futures::future::join_all((0..hosts.len()).map(|at| ask(set, at))).await;
    let master = reports.iter().flatten().find(|report| report.state == MemberState::Writable);
    let end = master.and_then(|master| master.place);
    let sees = master.map(|master| master.replicas.as_slice()).unwrap_or_default();
    let members = hosts.iter().zip(&reports).map(|(host, report)| {
        let uri = host.uri.clone();
        let report = match report {
            Ok(report) => report,
            Err(problem) => {
                return MemberStatus {
                    uri,
                    state: MemberState::Unreachable,
                    replication: None,
                    lag_bytes: None,
                    lag: None,
                    problem: Some(problem.clone()),
                };
            }
        };
        let replica = report.state == MemberState::ReadOnly;
        // A master tells replicas apart by the name they gave, which Patroni sets to the member's, or by address.
        let replication = sees.iter().find(|(name, address, _)| {
            report.application_name.as_ref() == Some(name) || uri.contains(&format!("{address}:"))
        });
        let behind = end.zip(report.place).map(|(end, place)| u64::try_from(end - place).unwrap_or(0));
        MemberStatus {
            uri,
            state: report.state,
            replication: replication.filter(|_| replica).map(|(_, _, state)| state.clone()),
            lag_bytes: behind.filter(|_| replica),
            // With nothing to replay the last transaction is old without being late.
            lag: report
                .replay_delay
                .filter(|_| replica)
                .map(|lag| if behind == Some(0) { Duration::ZERO } else { lag }),
            problem: None,
        }
    });
    members.collect()
}

/// Over a connection of its own, because the pool's lead to the master only.
async fn ask(set: &ReplicaSet, at: usize) -> Result<Report, String> {
    let (client, driver) =
        set.hosts.connect(at, TargetSessionAttrs::Any).await.map_err(|error| causes(&error))?;
    let _ends = Ends(driver);
    let answer = tokio::time::timeout(set.hosts.answer_timeout(), report(&client)).await;
    answer.map_err(|late| late.to_string())?.map_err(|error| causes(&error))
}

struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn report(client: &Client) -> Result<Report, tokio_postgres::Error> {
    let read_only: String = client.query_one("show transaction_read_only", &[]).await?.try_get(0)?;
    let state = if read_only == "on" { MemberState::ReadOnly } else { MemberState::Writable };
    let mut report =
        Report { state, application_name: None, place: None, replay_delay: None, replicas: Vec::new() };
    // From here on it is PostgreSQL's own; what only speaks its protocol answers with an error, which says nothing.
    let sql = "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() - '0/0'::pg_lsn
            else pg_current_wal_lsn() - '0/0'::pg_lsn end::bigint,
        (extract(epoch from now() - pg_last_xact_replay_timestamp()) * 1000000)::bigint,
        current_setting('cluster_name', true)";
    if let Ok(row) = client.query_one(sql, &[]).await {
        report.place = row.try_get(0)?;
        let delay_us: Option<i64> = row.try_get(1)?;
        report.replay_delay = delay_us.map(|us| Duration::from_micros(u64::try_from(us).unwrap_or(0)));
        report.application_name = row.try_get(2)?;
    }
    let sql =
        "select coalesce(application_name, ''), coalesce(host(client_addr), ''), coalesce(sync_state, '')
        from pg_stat_replication";
    if state == MemberState::Writable
        && let Ok(rows) = client.query(sql, &[]).await
    {
        let replica = |row: &Row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?, row.try_get(2).ok()?));
        report.replicas = rows.iter().filter_map(replica).collect();
    }
    Ok(report)
}

/// What is acknowledged with `synchronous_commit = off`, `fsync = off` or no synchronous standby may be lost with one
/// machine. That may be meant, so it is told and not refused.
pub(super) async fn warn_of_weak_durability(set: &ReplicaSet) -> Result<(), Error> {
    let host = &set.hosts.all()[0].uri;
    let sql = "select current_setting('synchronous_commit', true), current_setting('fsync', true),
        current_setting('synchronous_standby_names', true)";
    let rows = match set.read("checking durability", sql, &[]).await {
        Ok(rows) => rows,
        // Another database than PostgreSQL, which has no such settings.
        Err(Error::Unavailable { source, .. })
            if source.downcast_ref::<tokio_postgres::Error>().is_some_and(|error| error.code().is_some()) =>
        {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let setting =
        |column| rows.first().and_then(|row| row.try_get::<_, Option<String>>(column).ok().flatten());
    let (commit, fsync, standbys) = (setting(0), setting(1), setting(2));
    if fsync.as_deref() == Some("off") || commit.as_deref() == Some("off") {
        tracing::warn!(
            host,
            "journal: the server acknowledges before its disk has it (fsync or synchronous_commit off)"
        );
    } else if commit.as_deref() == Some("local") || standbys.as_deref().is_some_and(str::is_empty) {
        tracing::warn!(host, "journal: no synchronous standby, what is acknowledged is on one machine only");
    }
    Ok(())
}
