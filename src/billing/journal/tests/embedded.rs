//! What happens to a directory: a second opener, kills, torn and damaged files.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

/// Set for the child that writes until it is killed.
const CHILD_DIRECTORY: &str = "FOREFRONT_TEST_JOURNAL";

async fn open(path: &Path) -> Result<Journal, Error> {
    let engine = Engine::Embedded { path: path.to_owned() };
    Journal::open(&Config { engine, shards: 2, timeouts: Timeouts::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opener_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).await.unwrap();
    let refused = open(directory.path()).await;
    assert!(matches!(&refused, Err(Error::Config(problem)) if problem.contains("one node")), "{refused:?}");
    drop(journal);
    open(directory.path()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_cannot_be_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = open(&file.path().join("journal")).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_shards_than_buckets_know_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await.unwrap());
    let engine = Engine::Embedded { path: directory.path().to_owned() };
    let refused = Journal::open(&Config { engine, shards: 1, timeouts: Timeouts::default() }).await;
    assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
}

/// A node that died has no lease any more, whatever it was called.
#[tokio::test(flavor = "multi_thread")]
async fn leases_end_with_their_process() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).await.unwrap();
    acquired(journal.acquire(0, &node("a"), LEASE * 1000).await.unwrap());
    drop(journal);
    let journal = open(directory.path()).await.unwrap();
    let lease = acquired(journal.acquire(0, &node("b"), LEASE).await.unwrap());
    assert_eq!(lease.epoch, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_of_many_shards_share_a_write() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::Embedded { path: directory.path().to_owned() };
    let config = Config { engine, shards: 40, timeouts: Timeouts::default() };
    let journal = Journal::open(&config).await.unwrap();
    let writers = (0..40).map(|shard| {
        let journal = journal.clone();
        tokio::spawn(async move {
            acquired(journal.acquire(shard, &node("a"), LEASE).await.unwrap());
            for seq in 1..=20 {
                journal.append(&batch(shard, seq, 1)).await.unwrap();
                // A refusal among others changes nothing for them.
                assert!(journal.append(&batch(shard, seq, 1)).await.is_err());
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    for shard in 0..40 {
        assert_eq!(read_all(&journal, shard, 0).await.len(), 20);
    }
}

/// The child of the test below; by itself it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let journal = open(Path::new(&path)).await.unwrap();
    let lease = acquired(journal.acquire(0, &node("child"), LEASE).await.unwrap());
    let mut seq = lease.seq;
    let mut projected = journal.claim(0, lease.epoch).await.unwrap();
    loop {
        seq += 1;
        journal.append(&batch(0, seq, lease.epoch)).await.unwrap();
        if seq.is_multiple_of(9) {
            let lines = (projected + 1..=seq).map(|seq| line(seq % 3, seq, 0)).collect();
            journal.project(&stretch(0, lease.epoch, projected, seq), &Arc::new(vec![lines])).await.unwrap();
            projected = seq;
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {seq}").unwrap();
        out.flush().unwrap();
        if seq.is_multiple_of(200) {
            let snapshot = Snapshot { shard: 0, seq, epoch: lease.epoch, payload: payload(0, seq) };
            journal.put_snapshot(&snapshot).await.unwrap();
            journal.truncate(0, seq - 50).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills() {
    const KILLS: u32 = 40;
    let directory = tempfile::tempdir().unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut acknowledged = 0;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "billing::journal::tests::embedded::child_that_writes_until_it_is_killed",
            ])
            .env(CHILD_DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let after = dice.usize(0..120);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen <= after {
            let line = lines.next().expect("the child ended by itself").unwrap();
            seen += usize::from(note(&line, &mut acknowledged));
        }
        // Not in step with the writer: some way into the next append.
        std::thread::sleep(Duration::from_micros(dice.u64(0..1000)));
        child.kill().unwrap();
        child.wait().unwrap();
        lines.map_while(Result::ok).for_each(|line| {
            note(&line, &mut acknowledged);
        });

        let journal = open(directory.path()).await.unwrap();
        let snapshot = journal.snapshot(0).await.unwrap();
        let start = snapshot.as_ref().map_or(0, |snapshot| snapshot.seq);
        if let Some(snapshot) = snapshot {
            assert_eq!(snapshot.payload, payload(0, start));
        }
        let batches = read_all(&journal, 0, start).await;
        let last = batches.last().map_or(start, |batch| batch.seq);
        assert!(last >= acknowledged, "kill {kill}: {acknowledged} was acknowledged, {last} is the last");
        assert!(last <= acknowledged + 1, "kill {kill}: {last} was never written");
        assert!(batches.iter().all(|batch| batch.payload == payload(0, batch.seq)));
        let lease = acquired(journal.acquire(0, &node("parent"), LEASE).await.unwrap());
        let projected = journal.claim(0, lease.epoch).await.unwrap();
        assert!(projected <= last, "kill {kill}: the ledger stands at {projected}, the journal at {last}");
        for account in 0..3 {
            let lines: Vec<Line> =
                history_of(&journal, 0, account, 500).await.iter().map(|entry| entry.line).collect();
            let expected = (1..=projected).rev().filter(|seq| seq % 3 == account);
            assert!(expected.map(|seq| line(account, seq, 0)).eq(lines), "kill {kill}: account {account}");
        }
        acknowledged = last;
    }
    println!("{KILLS} kills, {acknowledged} batches");
}

fn note(line: &str, acknowledged: &mut u64) -> bool {
    // The test harness puts its own words before the first line.
    let Some((_, seq)) = line.split_once("acknowledged ") else { return false };
    *acknowledged = seq.parse().unwrap();
    true
}

/// A journal of some batches as a kill leaves it, and how long its log is in use.
async fn left_behind(batches: u64) -> (tempfile::TempDir, u64) {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).await.unwrap();
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    for seq in 1..=batches {
        journal.append(&batch(0, seq, epoch)).await.unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    copy_tree(directory.path(), copy.path());
    let log = std::fs::read(log_file(copy.path())).unwrap();
    let used = log.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    (copy, used as u64)
}

fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to).status();
    assert!(copied.unwrap().success());
}

/// What the journal notes a second after the last append.
fn note_heads(directory: &Path, heads: &[u64]) {
    let (mut file, _) = crate::billing::journal::embedded::Heads::open(directory);
    file.note(heads, Duration::ZERO).unwrap();
}

fn log_file(directory: &Path) -> PathBuf {
    let files = std::fs::read_dir(directory.join("log")).unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "jnl")).max().expect("there is a log")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_costs_what_was_torn_and_nothing_before() {
    let (directory, bytes) = left_behind(120).await;
    std::fs::remove_file(directory.path().join("heads")).unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut lengths = Vec::new();
    for _ in 0..40 {
        let torn = tempfile::tempdir().unwrap();
        copy_tree(directory.path(), torn.path());
        let length = dice.u64(0..bytes);
        let log = std::fs::OpenOptions::new().write(true).open(log_file(torn.path())).unwrap();
        log.set_len(length).unwrap();
        let journal = open(torn.path()).await.unwrap();
        let found = read_all(&journal, 0, 0).await;
        assert!(found.iter().all(|batch| batch.payload == payload(0, batch.seq)));
        lengths.push((length, found.len()));
        // And it goes on from there.
        let lease = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap());
        assert_eq!(lease.seq, found.len() as u64);
        journal.append(&batch(0, lease.seq + 1, lease.epoch)).await.unwrap();
    }
    lengths.sort_unstable();
    assert!(lengths.is_sorted_by_key(|(_, found)| *found), "a longer log holds no less: {lengths:?}");
    assert!(lengths[0].1 < 20 && lengths[39].1 > 100, "{lengths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_shorter_than_it_was_known_to_be_is_corrupt() {
    let (directory, bytes) = left_behind(60).await;
    note_heads(directory.path(), &[60, 0]);
    let whole = tempfile::tempdir().unwrap();
    copy_tree(directory.path(), whole.path());
    open(whole.path()).await.unwrap();
    // A page of zeros in the middle, which the engine takes for the end.
    let log = std::fs::OpenOptions::new().write(true).open(log_file(directory.path())).unwrap();
    log.write_all_at(&[0; 4096], (bytes / 2) & !4095).unwrap();
    match open(directory.path()).await {
        Err(Error::Corrupt { shard: 0, seq, .. }) => assert!((2..60).contains(&seq), "{seq}"),
        // The zeros may also leave a broken batch, which the engine sees by itself.
        Err(Error::Damaged { .. }) => {}
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_never_taken_for_a_batch() {
    let (directory, bytes) = left_behind(60).await;
    note_heads(directory.path(), &[60, 0]);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let (mut told, mut harmless) = (0, 0);
    for _ in 0..40 {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(directory.path(), copy.path());
        let log = std::fs::File::options().read(true).write(true).open(log_file(copy.path())).unwrap();
        let (at, mut byte) = (dice.u64(0..bytes), [0]);
        log.read_exact_at(&mut byte, at).unwrap();
        log.write_all_at(&[byte[0] ^ (1 << dice.u8(0..8))], at).unwrap();
        match open(copy.path()).await {
            Err(Error::Damaged { .. } | Error::Corrupt { .. }) => told += 1,
            Ok(journal) => {
                let found = read_all(&journal, 0, 0).await;
                assert_eq!(found, (1..=60).map(|seq| batch(0, seq, 1)).collect::<Vec<_>>(), "a bit at {at}");
                harmless += 1;
            }
            Err(error) => panic!("a bit at {at}: {error:?}"),
        }
    }
    println!("{told} told, {harmless} harmless");
    assert!(told > 30, "{told} of 40 told");
}
