//! Both engines through one suite, and each through what only it can suffer.

pub(in crate::billing) mod cluster;
mod cutter;
mod embedded;
mod failover;
mod ledger;
mod postgres;
mod suite;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::billing::domain::{EventKind, Key, Money, Row, Stage, Velocity};

const LEASE: Duration = Duration::from_millis(400);

/// No test waits longer for what must come.
const DEADLINE: Duration = Duration::from_secs(30);

fn node(name: &str) -> Node {
    Node { name: name.to_owned(), advertise: format!("http://{name}:8200") }
}

/// Different for each batch, and known to whoever knows its place.
fn payload(shard: u32, seq: u64) -> Bytes {
    let length = (seq * 7919 + u64::from(shard)) % 9000;
    (0..length).map(|at| (at * 31 + seq) as u8).collect()
}

fn batch(shard: u32, seq: u64, epoch: u64) -> Batch {
    Batch { shard, seq, epoch, payload: payload(shard, seq) }
}

fn acquired(acquisition: Acquisition) -> Lease {
    match acquisition {
        Acquisition::Acquired(lease) => lease,
        Acquisition::Held(lease) => panic!("it is held: {lease:?}"),
    }
}

fn held(acquisition: Acquisition) -> Lease {
    match acquisition {
        Acquisition::Held(lease) => lease,
        Acquisition::Acquired(lease) => panic!("it was given: {lease:?}"),
    }
}

async fn read_all(journal: &Journal, shard: u32, after_seq: u64) -> Vec<Batch> {
    let mut all: Vec<Batch> = Vec::new();
    loop {
        let after = all.last().map_or(after_seq, |batch| batch.seq);
        let more = journal.read(shard, after, 20_000).await.unwrap();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

fn row(account: u64, balance: i64, since: u64) -> Row {
    let stage = Stage::Open { balance: Money::new(balance), remainder: 0 };
    Row { id: account, velocity: Velocity::ZERO, version: 1, since: Micros::new(since), stage }
}

/// A line that its place alone determines.
fn line(account: u64, seq: u64, position: u32) -> Line {
    let after = row(account, (seq * 10 + u64::from(position)) as i64, seq * 1000 + u64::from(position));
    Line {
        seq,
        position,
        kind: LineKind::Event(EventKind::MoneyAdded),
        at: after.since,
        amount: Money::new(7),
        charged: Money::new(seq as i64),
        after,
        key: Key::new(format!("{seq}/{position}").as_bytes()),
    }
}

fn stretch(shard: u32, epoch: u64, after: u64, through: u64) -> Stretch {
    // As a projector has it: not before any line's time.
    Stretch { shard, epoch, after, through, at: Micros::new(through * 1000 + 999) }
}

/// Moves the ledger, without lines.
async fn project_nothing(journal: &Journal, shard: u32, epoch: u64, through: u64) {
    let after = journal.claim(shard, epoch).await.unwrap();
    journal.project(&stretch(shard, epoch, after, through), &Arc::default()).await.unwrap();
}

/// The whole history, newest first, by pages of this size.
pub(in crate::billing) async fn history_of(
    journal: &Journal,
    shard: u32,
    account: u64,
    page: usize,
) -> Vec<Entry> {
    let (mut entries, mut before) = (Vec::new(), None);
    loop {
        let History { entries: some, next, whole } =
            journal.history(shard, account, before, page).await.unwrap();
        assert!(whole && some.len() <= page, "{} of {page}", some.len());
        entries.extend(some);
        before = next;
        if before.is_none() {
            return entries;
        }
    }
}

/// A place where nodes can open one journal of three shards.
pub(in crate::billing) enum Bed {
    Embedded { directory: tempfile::TempDir, time_ms: Arc<AtomicU64>, journal: Journal },
    Postgres { database: String },
}

impl Bed {
    pub(in crate::billing) async fn embedded() -> Bed {
        let directory = tempfile::tempdir().unwrap();
        let time_ms = Arc::new(AtomicU64::new(0));
        let journal = open_embedded(directory.path(), &time_ms).await.unwrap();
        Bed::Embedded { directory, time_ms, journal }
    }

    pub(in crate::billing) async fn postgres() -> Bed {
        Bed::Postgres { database: cluster::shared().database().await }
    }

    /// The journal as another node opens it. The embedded one has one node, so that is the same again.
    pub(in crate::billing) async fn node(&self) -> Journal {
        match self {
            Bed::Embedded { journal, .. } => journal.clone(),
            Bed::Postgres { database } => {
                let connections = vec![cluster::shared().connection(database)];
                let engine = Engine::Postgres { connections, ca_file: None, password_file: None };
                Journal::open(&Config { engine, shards: 3, timeouts: Timeouts::default() }).await.unwrap()
            }
        }
    }

    /// The journal after every node has gone and come back.
    async fn restarted(self) -> (Bed, Journal) {
        let bed = match self {
            Bed::Embedded { directory, time_ms, journal } => {
                drop(journal);
                let journal = open_embedded(directory.path(), &time_ms).await.unwrap();
                Bed::Embedded { directory, time_ms, journal }
            }
            bed @ Bed::Postgres { .. } => bed,
        };
        let journal = bed.node().await;
        (bed, journal)
    }

    /// The embedded journal after its ledger was taken away while no node ran.
    pub(in crate::billing) async fn without_ledger(self) -> (Bed, Journal) {
        let Bed::Embedded { directory, time_ms, journal } = self else {
            panic!("it has tables, not a directory")
        };
        drop(journal);
        std::fs::remove_dir_all(directory.path().join("pages")).unwrap();
        let journal = open_embedded(directory.path(), &time_ms).await.unwrap();
        (Bed::Embedded { directory, time_ms, journal: journal.clone() }, journal)
    }

    /// Lets the lease of a shard run out.
    async fn run_out(&self, journal: &Journal, shard: u32) {
        if let Bed::Embedded { time_ms, .. } = self {
            time_ms.fetch_add(LEASE.as_millis() as u64 * 2, Ordering::SeqCst);
        }
        let deadline = Instant::now() + DEADLINE;
        while journal.leases().await.unwrap()[shard as usize].expires_in > Duration::ZERO {
            assert!(Instant::now() < deadline, "the lease does not run out");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn open_embedded(path: &Path, time_ms: &Arc<AtomicU64>) -> Result<Journal, Error> {
    let time_ms = Arc::clone(time_ms);
    let clock = Arc::new(move || Duration::from_millis(time_ms.load(Ordering::SeqCst)));
    super::embedded::Embedded::open_with(path, 3, clock).await.map(Journal::Embedded)
}
