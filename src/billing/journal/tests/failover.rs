//! A master that dies, and a replica that takes its place: what Patroni does, done by hand.

use super::*;

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(1),
    statement: Duration::from_secs(4),
    answer: Duration::from_secs(5),
};

async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn is_synchronous(master: &tokio_postgres::Client) -> Option<()> {
    let sql = "select 1 from pg_stat_replication where sync_state = 'sync'";
    master.query_opt(sql, &[]).await.unwrap().map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_master() {
    let mut master = cluster::Cluster::start(&["synchronous_standby_names=second"]);
    let replica = master.replica("second");
    let observer = master.client("postgres").await;
    eventually("the replica does not connect", async || is_synchronous(&observer).await).await;
    let connection = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=forefront dbname=postgres target_session_attrs=read-write",
        master.port, replica.port
    );
    let engine = Engine::Postgres { connections: vec![connection], ca_file: None, password_file: None };
    let journal = Journal::open(&Config { engine, shards: 1, timeouts: TIMEOUTS }).await.unwrap();
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;

    let members = eventually("the lag is not seen", async || {
        let members = journal.status().await.remove(0).members;
        (members[1].lag_bytes == Some(0)).then_some(members)
    })
    .await;
    assert_eq!(members[0].state, MemberState::Writable);
    assert_eq!((members[1].state, members[1].replication.as_deref()), (MemberState::ReadOnly, Some("sync")));

    let writing = {
        let journal = journal.clone();
        tokio::spawn(async move {
            let mut seq = 0;
            loop {
                match journal.append(&batch(0, seq + 1, epoch)).await {
                    Ok(()) => seq += 1,
                    Err(error) => return (seq, error),
                }
            }
        })
    };
    eventually("nothing is written", async || (journal.leases().await.ok()?[0].seq > 50).then_some(())).await;
    master.signal("KILL");
    let killed = Instant::now();
    let (acknowledged, error) = writing.await.unwrap();
    assert!(matches!(error, Error::Unknown { .. } | Error::Unavailable { .. }), "{error:?}");
    let client = replica.client("postgres").await;
    client.batch_execute("select pg_promote()").await.unwrap();

    let next = batch(0, acknowledged + 1, epoch);
    let applied = eventually("the new master is not found", async || {
        journal.confirm(0, epoch, next.seq, next.checksum()).await.ok()
    })
    .await;
    println!("{acknowledged} acknowledged, the next {applied:?}, told after {:?}", killed.elapsed());
    if applied == Confirmation::NotApplied {
        journal.append(&next).await.unwrap();
    }
    assert_eq!(
        read_all(&journal, 0, 0).await,
        (1..=next.seq).map(|seq| batch(0, seq, epoch)).collect::<Vec<_>>()
    );
    // What was told before is told for about a second more.
    eventually("the status is an old one", async || {
        let members = journal.status().await.remove(0).members;
        let states = [MemberState::Unreachable, MemberState::Writable];
        members.iter().map(|member| member.state).eq(states).then_some(())
    })
    .await;
}

/// Cancelling the wait for a replica makes PostgreSQL report success, which must not be believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_no_replica_has_is_not_acknowledged() {
    let master = cluster::Cluster::start(&[]);
    let engine = Engine::Postgres {
        connections: vec![master.connection("postgres")],
        ca_file: None,
        password_file: None,
    };
    let timeouts = Timeouts { answer: Duration::from_secs(20), ..TIMEOUTS };
    let journal = Journal::open(&Config { engine, shards: 1, timeouts }).await.unwrap();
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    let observer = master.client("postgres").await;
    observer.batch_execute("alter system set synchronous_standby_names = 'nobody'").await.unwrap();
    observer.batch_execute("select pg_reload_conf()").await.unwrap();
    // The setting reaches sessions one by one: the first append may still go through.
    let mut seq = 0;
    let (lost, outcome) = loop {
        seq += 1;
        let appending = tokio::spawn({
            let (journal, batch) = (journal.clone(), batch(0, seq, epoch));
            async move { journal.append(&batch).await }
        });
        let cancelled = eventually("no append waits for a replica", async || {
            if appending.is_finished() {
                return Some(false);
            }
            let sql = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'";
            (!observer.query(sql, &[]).await.unwrap().is_empty()).then_some(true)
        })
        .await;
        let outcome = appending.await.unwrap();
        if cancelled {
            break (batch(0, seq, epoch), outcome);
        }
        outcome.unwrap();
    };
    assert!(matches!(outcome, Err(Error::Unknown { .. })), "{outcome:?}");
    let confirming = tokio::spawn({
        let journal = journal.clone();
        async move { journal.confirm(0, epoch, lost.seq, lost.checksum()).await }
    });
    eventually("the confirmation does not wait", async || {
        let sql = "select 1 from pg_stat_activity where wait_event = 'SyncRep'";
        (!observer.query(sql, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;
    assert!(!confirming.is_finished(), "the confirmation waits for a replica as well");
    observer.batch_execute("alter system reset synchronous_standby_names").await.unwrap();
    observer.batch_execute("select pg_reload_conf()").await.unwrap();
    assert_eq!(confirming.await.unwrap().unwrap(), Confirmation::Applied);
}
