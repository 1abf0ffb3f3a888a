//! What happens between a node and its server: lost answers, locks, certificates, damage.

use std::path::PathBuf;

use tokio::net::TcpListener;
use tokio_postgres::Client;

use super::cutter::{Cutter, MARK, Plan};
use super::*;

const QUICK: Timeouts = Timeouts {
    connect: Duration::from_secs(2),
    statement: Duration::from_secs(10),
    answer: Duration::from_secs(20),
};

async fn open(connection: String, ca_file: Option<PathBuf>, timeouts: Timeouts) -> Result<Journal, Error> {
    let engine = Engine::Postgres { connections: vec![connection], ca_file, password_file: None };
    Journal::open(&Config { engine, shards: 2, timeouts }).await
}

/// A database, a journal in it, and a connection for what others do to it.
async fn opened(timeouts: Timeouts) -> (String, Journal, Client) {
    let database = cluster::shared().database().await;
    let connection = cluster::shared().connection(&database);
    let journal = open(connection, None, timeouts).await.unwrap();
    let client = cluster::shared().client(&database).await;
    (database, journal, client)
}

/// The process ids of the journal's connections that wait for a lock, once there are as many.
async fn waiting(client: &Client, count: usize) -> Vec<i32> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let sql = "select pid from pg_stat_activity where datname = current_database()
            and application_name = 'forefront-billing' and wait_event_type = 'Lock' order by query_start";
        // In a transaction, as the one that holds the lock, a server is seen as it was at the first look.
        client.batch_execute("select pg_stat_clear_snapshot()").await.unwrap();
        let rows = client.query(sql, &[]).await.unwrap();
        if rows.len() >= count {
            return rows.iter().map(|row| row.get(0)).collect();
        }
        assert!(Instant::now() < deadline, "nobody waits for the lock");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn terminate(client: &Client, pid: i32) {
    client.query("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
}

const LOCK: &str = "begin; select 1 from lease where shard = 0 for update";

fn spawn_append(journal: &Journal, batch: Batch) -> tokio::task::JoinHandle<Result<(), Error>> {
    let journal = journal.clone();
    tokio::spawn(async move { journal.append(&batch).await })
}

fn spawn_confirm(journal: &Journal, batch: Batch) -> tokio::task::JoinHandle<Confirmation> {
    let journal = journal.clone();
    tokio::spawn(async move { confirm_until_told(&journal, &batch).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_session_is_unknown_and_confirmed() {
    let (_, journal, other) = opened(QUICK).await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    other.batch_execute(LOCK).await.unwrap();
    let appending = spawn_append(&journal, batch(0, 1, epoch));
    terminate(&other, waiting(&other, 1).await[0]).await;
    let lost = appending.await.unwrap();
    assert!(matches!(lost, Err(Error::Unknown { .. })), "{lost:?}");
    let confirming = spawn_confirm(&journal, batch(0, 1, epoch));
    waiting(&other, 1).await;
    other.batch_execute("rollback").await.unwrap();
    assert_eq!(confirming.await.unwrap(), Confirmation::NotApplied);
    journal.append(&batch(0, 1, epoch)).await.unwrap();
    assert_eq!(read_all(&journal, 0, 0).await.len(), 1);
}

/// The node has given up, and the server has not.
#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_waits_for_an_append_under_way() {
    let (database, journal, other) = opened(QUICK).await;
    let confirmer = open(cluster::shared().connection(&database), None, QUICK).await.unwrap();
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    other.batch_execute(LOCK).await.unwrap();
    let appending = spawn_append(&journal, batch(0, 1, epoch));
    waiting(&other, 1).await;
    appending.abort();
    let confirming = spawn_confirm(&confirmer, batch(0, 1, epoch));
    waiting(&other, 2).await;
    other.batch_execute("rollback").await.unwrap();
    // The append was there first.
    assert_eq!(confirming.await.unwrap(), Confirmation::Applied);
    assert_eq!(read_all(&confirmer, 0, 0).await, [batch(0, 1, epoch)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_is_given_up() {
    let timeouts = Timeouts { answer: Duration::from_secs(3), ..QUICK };
    let (_, journal, other) = opened(timeouts).await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    other.batch_execute(LOCK).await.unwrap();
    let lost = journal.append(&batch(0, 1, epoch)).await;
    assert!(matches!(lost, Err(Error::Unknown { .. })), "{lost:?}");
    other.batch_execute("rollback").await.unwrap();
    // The server may or may not have seen that nobody listens any more.
    let told = confirm_until_told(&journal, &batch(0, 1, epoch)).await;
    let there = read_all(&journal, 0, 0).await.len();
    assert_eq!(there == 1, told == Confirmation::Applied, "{told:?} and {there} there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_comes_after_its_confirmation_is_refused() {
    let (_, journal, _) = opened(QUICK).await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    let Journal::Postgres(engine) = &journal else { unreachable!("it was opened so") };
    let before = engine.turns();
    let lost = batch(0, 1, epoch);
    let outcome = journal.confirm(0, epoch, 1, lost.checksum()).await.unwrap();
    assert_eq!(outcome, Confirmation::NotApplied);
    // As the lost attempt was sent: with the turn of that time.
    let after = engine.replace_turns(before);
    let late = journal.append(&lost).await;
    assert!(matches!(late, Err(Error::Unknown { .. })), "{late:?}");
    assert!(read_all(&journal, 0, 0).await.is_empty());
    engine.replace_turns(after);
    journal.append(&lost).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_the_server_cancelled_was_not_applied() {
    let timeouts = Timeouts { statement: Duration::from_millis(1500), ..QUICK };
    let (_, journal, other) = opened(timeouts).await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    other.batch_execute(LOCK).await.unwrap();
    let refused = journal.append(&batch(0, 1, epoch)).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    other.batch_execute("rollback").await.unwrap();
    journal.append(&batch(0, 1, epoch)).await.unwrap();
}

/// Requests and answers are lost, or arrive late; the journal must hold what was acknowledged or confirmed, once, and
/// nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_lost_is_confirmed_rightly() {
    const ROUNDS: usize = 300;
    let database = cluster::shared().database().await;
    let cutter = Cutter::start(cluster::shared().port).await;
    let connection =
        format!("host=127.0.0.1 port={} user=forefront dbname={database} sslmode=disable", cutter.port);
    let journal = open(connection, None, QUICK).await.unwrap();
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut model: Vec<Batch> = Vec::new();
    let (mut lost, mut applied, mut late) = (0, 0, 0);
    for round in 0..ROUNDS {
        // Another payload in each round, so that a repetition that was not allowed shows.
        let payload: Bytes = format!("{MARK} {round} {}", "x".repeat(dice.usize(0..2000))).into();
        let attempt = Batch { shard: 0, seq: model.len() as u64 + 1, epoch, payload };
        let plan = dice.choice([Plan::Pass, Plan::LoseRequest, Plan::LoseAnswer, Plan::Hold]).unwrap();
        cutter.plan(plan);
        let there = match journal.append(&attempt).await {
            Ok(()) => true,
            Err(Error::Unknown { .. }) => {
                lost += 1;
                // A held request races with its confirmation, or comes after it.
                let confirming = confirm_until_told(&journal, &attempt);
                let told = if plan == Plan::Hold && dice.bool() {
                    tokio::join!(confirming, cutter.let_go()).0
                } else {
                    late += u32::from(plan == Plan::Hold);
                    confirming.await
                };
                cutter.let_go().await;
                applied += u32::from(told == Confirmation::Applied);
                told == Confirmation::Applied
            }
            Err(error) => panic!("round {round}, {plan:?}: {error:?}"),
        };
        assert!(plan != Plan::LoseAnswer || there, "round {round}: it was applied");
        assert!(plan != Plan::LoseRequest || !there, "round {round}: it never arrived");
        let found = read_when_possible(&journal, model.len() as u64).await;
        let expected: &[Batch] = if there { std::slice::from_ref(&attempt) } else { &[] };
        assert!(found == expected, "round {round}, {plan:?}: told {there}, found {}", found.len());
        model.extend(there.then_some(attempt));
    }
    assert_eq!(read_all(&journal, 0, 0).await, model);
    println!(
        "{ROUNDS} appends, {lost} answers lost, {applied} of those applied, {late} came after the confirmation"
    );
    assert!(lost > ROUNDS / 2 && applied > 0 && late > 0, "{lost} lost, {applied} applied, {late} late");
}

async fn confirm_until_told(journal: &Journal, batch: &Batch) -> Confirmation {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match journal.confirm(batch.shard, batch.epoch, batch.seq, batch.checksum()).await {
            Ok(outcome) => return outcome,
            Err(Error::Unavailable { .. } | Error::Unknown { .. }) if Instant::now() < deadline => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn read_when_possible(journal: &Journal, after_seq: u64) -> Vec<Batch> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match journal.read(0, after_seq, 1 << 20).await {
            Ok(batches) => return batches,
            Err(Error::Unavailable { .. }) if Instant::now() < deadline => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_start_at_once() {
    let database = cluster::shared().database().await;
    let connection = cluster::shared().connection(&database);
    let starts = (0..6).map(|_| tokio::spawn(open(connection.clone(), None, QUICK)));
    let starts: Vec<_> = starts.collect();
    let mut owners = 0;
    for (at, start) in starts.into_iter().enumerate() {
        let journal = start.await.unwrap().unwrap();
        assert_eq!(journal.bucket_map().await.unwrap(), BucketMap::spread(2));
        let name = format!("node-{at}");
        let acquisition = journal.acquire(0, &node(&name), LEASE * 50).await.unwrap();
        owners += u32::from(matches!(acquisition, Acquisition::Acquired(_)));
    }
    assert_eq!(owners, 1);
}

/// What a database cannot make it is used without; what it could not make at this moment it is to make at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn what_reports_read_is_made_once_it_can_be() {
    let (database, _journal, other) = opened(QUICK).await;
    let connection = cluster::shared().connection(&database);
    let unmade = "delete from forefront_schema; drop view billing_ledger cascade";
    other.batch_execute(unmade).await.unwrap();
    other.batch_execute("begin; lock table ledger_page").await.unwrap();
    let hurried = Timeouts { statement: Duration::from_millis(300), ..QUICK };
    let locked = open(connection.clone(), None, hurried).await;
    assert!(matches!(locked, Err(Error::Unavailable { .. })), "{locked:?}");
    other.batch_execute("rollback").await.unwrap();
    open(connection.clone(), None, QUICK).await.unwrap();
    other.query("select * from billing_ledger", &[]).await.unwrap();
    other.query("select * from billing_history(1)", &[]).await.unwrap();
    // Of the same name, and somebody else's.
    other.batch_execute(unmade).await.unwrap();
    other.batch_execute("create table billing_ledger (shard bigint)").await.unwrap();
    open(connection, None, QUICK).await.unwrap();
}

/// With the cause's causes, as whoever starts a node reads it.
#[tokio::test]
async fn a_server_that_is_not_there_is_named_without_the_password() {
    let connection = "host=127.0.0.1,localhost port=1 user=pays dbname=money password=hush-hush".to_owned();
    let error = open(connection, None, QUICK).await.expect_err("nobody listens there");
    let told = crate::telemetry::causes(&error);
    for piece in ["replica set 0", "pays@127.0.0.1:1/money, postgresql://pays@localhost:1/money", "must run"]
    {
        assert!(told.contains(piece), "{told}");
    }
    assert!(!told.contains("hush") && !format!("{error:?}").contains("hush"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_settings_is_refused() {
    let (database, _, other) = opened(QUICK).await;
    let connection = cluster::shared().connection(&database);
    let config = |connections: Vec<String>, shards| Config {
        engine: Engine::Postgres { connections, ca_file: None, password_file: None },
        shards,
        timeouts: QUICK,
    };
    let refused = async |config| match Journal::open(&config).await {
        Err(Error::Config(problem)) => problem,
        outcome => panic!("{outcome:?}"),
    };
    assert!(refused(config(vec![connection.clone(), connection.clone()], 2)).await.contains("0 of 1"));
    assert!(refused(config(vec![connection.clone()], 1)).await.contains("set it to 2 or more"));
    assert!(refused(config(vec![], 1)).await.contains("connections"));
    assert!(refused(config(vec![connection.clone()], 1001)).await.contains("1000"));
    // More shards than before are welcome.
    let larger = Journal::open(&config(vec![connection.clone()], 5)).await.unwrap();
    assert_eq!(larger.leases().await.unwrap().len(), 5);
    other.batch_execute("insert into forefront_schema values (99, 1, 0)").await.unwrap();
    assert!(refused(config(vec![connection], 2)).await.contains("version 99"));
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_are_spread_over_replica_sets() {
    let (one, two) = (cluster::shared().database().await, cluster::shared().database().await);
    let connections = vec![cluster::shared().connection(&one), cluster::shared().connection(&two)];
    let engine = Engine::Postgres { connections, ca_file: None, password_file: None };
    let journal = Journal::open(&Config { engine, shards: 4, timeouts: QUICK }).await.unwrap();
    for shard in 0..4 {
        let epoch = acquired(journal.acquire(shard, &node("a"), LEASE).await.unwrap()).epoch;
        journal.append(&batch(shard, 1, epoch)).await.unwrap();
    }
    for (database, expected) in [(one, [0, 2]), (two, [1, 3])] {
        let client = cluster::shared().client(&database).await;
        let rows = client.query("select shard from journal order by shard", &[]).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), expected);
    }
    let shards: Vec<Vec<u32>> = journal.status().await.into_iter().map(|set| set.shards).collect();
    assert_eq!(shards, [[0, 2], [1, 3]]);
    let leases = journal.leases().await.unwrap();
    assert_eq!(leases.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

/// One refuses, one accepts and says nothing (as a frozen server does), one takes no writes, the last is right.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_that_takes_writes_is_found() {
    let database = cluster::shared().database().await;
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let frozen = frozen.local_addr().unwrap().port();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let good = cluster::shared().port;
    let connection = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1 port={closed},{frozen},{good} user=forefront dbname={database} \
         target_session_attrs=read-write password=secret"
    );
    let start = Instant::now();
    let journal = open(connection.clone(), None, QUICK).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let status = journal.status().await;
    let states: Vec<MemberState> = status[0].members.iter().map(|member| member.state).collect();
    assert_eq!(states, [MemberState::Unreachable, MemberState::Unreachable, MemberState::Writable]);
    assert!(status[0].members[0].problem.is_some());
    assert!(!format!("{status:?} {journal:?}").contains("secret"));

    let alone = format!("host=127.0.0.1 port={good} user=forefront dbname={database}");
    let other = cluster::shared().client(&database).await;
    let sql = format!("alter database {database} set default_transaction_read_only = on");
    other.batch_execute(&sql).await.unwrap();
    let refused = open(alone, None, QUICK).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    // What was told before is told for about a second more.
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        let status = journal.status().await;
        if status[0].members[2].state == MemberState::ReadOnly {
            break status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status[0].reachable() && !status[0].writable());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_verified_as_the_mode_says() {
    let database = cluster::shared().database().await;
    let directory = tempfile::tempdir().unwrap();
    let (right, wrong) = (directory.path().join("right.pem"), directory.path().join("wrong.pem"));
    std::fs::write(&right, &cluster::shared().authority).unwrap();
    let strange = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&wrong, strange.cert.pem()).unwrap();
    for (mode, host, file, taken) in [
        ("verify-full", "localhost", Some(&right), true),
        ("verify-full", "127.0.0.1", Some(&right), false),
        ("verify-full", "localhost", Some(&wrong), false),
        ("verify-ca", "127.0.0.1", Some(&right), true),
        ("verify-ca", "127.0.0.1", Some(&wrong), false),
        ("require", "127.0.0.1", Some(&wrong), false),
        ("require", "127.0.0.1", None, true),
        ("prefer", "127.0.0.1", None, true),
        ("disable", "127.0.0.1", None, true),
    ] {
        let port = cluster::shared().port;
        let hostaddr = if host == "localhost" { " hostaddr=127.0.0.1" } else { "" };
        let connection =
            format!("host={host}{hostaddr} port={port} user=forefront dbname={database} sslmode={mode}");
        let outcome = open(connection, file.cloned(), QUICK).await;
        assert_eq!(outcome.is_ok(), taken, "{mode} to {host}: {outcome:?}");
        let other = cluster::shared().client(&database).await;
        let sql = "select bool_or(ssl) from pg_stat_ssl join pg_stat_activity using (pid)
            where application_name = 'forefront-billing' and datname = $1";
        let encrypted: Option<bool> = other.query_one(sql, &[&database]).await.unwrap().get(0);
        assert_eq!(encrypted == Some(true), taken && mode != "disable", "{mode} to {host}");
        drop(outcome);
        let gone = "select count(*) from pg_stat_activity where application_name = 'forefront-billing'
            and datname = $1";
        let deadline = Instant::now() + DEADLINE;
        while other.query_one(gone, &[&database]).await.unwrap().get::<_, i64>(0) > 0 {
            assert!(Instant::now() < deadline, "the connections stay");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_with_its_place() {
    for (damage, place) in [
        ("update journal set payload = set_byte(payload, 5, get_byte(payload, 5) # 1) where seq = 7", 7),
        ("update journal set epoch = 9 where seq = 4", 4),
        ("update journal set payload = set_byte(payload, 0, 9) where seq = 5", 5),
        ("update journal set payload = '' where seq = 5", 5),
        ("delete from journal where seq = 1", 1),
        ("delete from journal where seq = 6", 6),
        ("delete from journal where seq >= 9", 9),
        ("delete from journal", 1),
    ] {
        let (_, journal, other) = opened(QUICK).await;
        let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
        for seq in 1..=10 {
            journal.append(&batch(0, seq, epoch)).await.unwrap();
        }
        other.batch_execute(damage).await.unwrap();
        let mut after = 0;
        let found = loop {
            match journal.read(0, after, 1).await {
                Ok(batches) => after = batches.last().expect("the end was not reached").seq,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&found, Error::Corrupt { shard: 0, seq, .. } if *seq == place),
            "{damage}: {found:?}"
        );
    }
}

/// As after a restore of some tables only. What is told must name the table, and must not be tried for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_does_not_fit_its_journal_is_told() {
    let (database, journal, other) = opened(QUICK).await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    journal.append(&batch(0, 1, epoch)).await.unwrap();
    journal.append(&batch(0, 2, epoch)).await.unwrap();
    other.batch_execute("update lease set seq = 1").await.unwrap();
    let found = journal.append(&batch(0, 2, epoch)).await;
    assert!(
        matches!(&found, Err(Error::Corrupt { shard: 0, seq: 2, what }) if what.contains("`lease`")),
        "{found:?}"
    );
    other.batch_execute("delete from lease").await.unwrap();
    // A node that starts makes one for the other shard, which has nothing yet.
    let again = open(cluster::shared().connection(&database), None, QUICK).await.unwrap();
    assert_eq!(again.leases().await.unwrap().iter().map(|lease| lease.shard).collect::<Vec<_>>(), [1]);
    let name = |found: Error| match found {
        Error::Config(problem) => assert!(problem.contains("`lease` has no row of shard 0"), "{problem}"),
        other => panic!("{other:?}"),
    };
    name(again.acquire(0, &node("a"), LEASE).await.unwrap_err());
    name(again.read(0, 0, 1).await.unwrap_err());
    name(journal.append(&batch(0, 3, epoch)).await.unwrap_err());
    name(journal.renew(0, epoch, LEASE).await.unwrap_err());
}

/// Many may ask for it at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_looked_for_once() {
    let database = cluster::shared().database().await;
    let counted = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connection = cluster::shared().connection(&database).replace("host=", "host=127.0.0.1,");
    let port = counted.local_addr().unwrap().port();
    let connection =
        connection.replace("port=", &format!("port={port},")) + " target_session_attrs=read-write";
    let looks = Arc::new(AtomicU64::new(0));
    let serving = tokio::spawn({
        let looks = Arc::clone(&looks);
        async move {
            while let Ok((stream, _)) = counted.accept().await {
                looks.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        }
    });
    let journal = open(connection, None, QUICK).await.unwrap();
    let before = looks.load(Ordering::SeqCst);
    let told = futures::future::join_all((0..20).map(|_| journal.status())).await;
    assert!(told.iter().all(|status| status[0].writable() && status[0].members.len() == 2), "{told:?}");
    assert_eq!(looks.load(Ordering::SeqCst) - before, 1);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_told() {
    let (_, journal, other) = opened(QUICK).await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    journal.append(&batch(0, 1, epoch)).await.unwrap();
    let payload = Bytes::from(vec![7; 3 << 20]);
    journal.put_snapshot(&Snapshot { shard: 0, seq: 1, epoch, payload }).await.unwrap();
    let longest = "select max(octet_length(payload)) from snapshot_part";
    assert_eq!(other.query_one(longest, &[]).await.unwrap().get::<_, i32>(0), 256 << 10);
    for damage in [
        "update snapshot_part set payload = set_byte(payload, 9, 1) where part = 1",
        "delete from snapshot_part where part = 2",
    ] {
        other.batch_execute(damage).await.unwrap();
        let found = journal.snapshot(0).await;
        assert!(matches!(found, Err(Error::Corrupt { shard: 0, seq: 1, .. })), "{damage}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_bucket_maps_are_deleted() {
    let (_, journal, other) = opened(QUICK).await;
    let mut map = journal.bucket_map().await.unwrap();
    for _ in 0..30 {
        map.version += 1;
        assert!(journal.set_bucket_map(&map).await.unwrap());
    }
    let range = other.query_one("select min(version), max(version) from bucket", &[]).await.unwrap();
    assert_eq!((range.get::<_, i64>(0), range.get::<_, i64>(1)), (21, 31));
    assert_eq!(journal.bucket_map().await.unwrap(), map);
}
