//! The engine without a server: a directory, one process, no replica.
//!
//! One thread does all that blocks, in the order of its queue. Appends that wait there together (of different shards) become
//! durable together. A second one does the same for the ledger.

mod heads;
mod leases;
mod ledger;
mod pages;
mod snapshots;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{
    Acquisition, Batch, BucketMap, Confirmation, Cursor, Error, Lease, Line, MemberState, MemberStatus, Node,
    Offers, ReplicaSetStatus, Snapshot, Stretch, Sweep, Swept, Tail, framing,
};
use crate::billing::domain::{Micros, Row};
#[cfg(test)]
pub(super) use heads::Heads;
use ledger::{Ledger, Walk};
use store::Store;

/// Callers beyond these wait for a place. A shard has one append under way, so it is seldom more than the shards.
const QUEUE_MAX: usize = 128;

const READING: &str = "reading lines";

/// Time since some moment, never going back. Leases need no more: those of an earlier process ended with it.
pub(super) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

enum Work {
    Append(Batch, oneshot::Sender<Result<(), Error>>),
    Other(Box<dyn FnOnce(&mut Store) + Send>),
}

type LedgerWork = Box<dyn FnOnce(&mut Ledger) + Send>;

/// Cheap to clone; when the last clone goes, the directory is free again.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    shards: u32,
    /// None only while it is dropped.
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    ledger_work: Option<mpsc::Sender<LedgerWork>>,
    ledger_thread: Option<JoinHandle<()>>,
    /// Tells the ledger to leave a long write.
    closing: Arc<AtomicBool>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded")
            .field("path", &self.inner.path)
            .field("shards", &self.inner.shards)
            .finish()
    }
}

impl Drop for Inner {
    /// Waits for what is under way, so that the next to open the directory finds it unlocked.
    fn drop(&mut self) {
        self.closing.store(true, Relaxed);
        self.work = None;
        self.ledger_work = None;
        for thread in [self.thread.take(), self.ledger_thread.take()].into_iter().flatten() {
            // A panic over there was told to whoever waited for an answer.
            let _ = thread.join();
        }
    }
}

impl Embedded {
    pub(super) async fn open(path: &Path, shards: u32) -> Result<Embedded, Error> {
        let start = Instant::now();
        let journal = Embedded::open_with(path, shards, Arc::new(move || start.elapsed())).await?;
        tracing::warn!(
            path = %path.display(),
            "journal: not replicated, what is acknowledged is lost with this directory"
        );
        Ok(journal)
    }

    pub(super) async fn open_with(path: &Path, shards: u32, clock: Clock) -> Result<Embedded, Error> {
        let directory = path.to_owned();
        let open = move || Store::open(&directory, shards, clock);
        let (work, thread) = serve("journal", path, open, run).await?;
        let (directory, closing) = (path.join("pages"), Arc::new(AtomicBool::new(false)));
        let before = path.join("ledger");
        let heeds = Arc::clone(&closing);
        let open = move || {
            remove_rows(&before);
            Ledger::open(&directory, shards, heeds)
        };
        let opened = serve("ledger", path, open, |mut ledger, mut queue: mpsc::Receiver<LedgerWork>| {
            while let Some(call) = queue.blocking_recv() {
                call(&mut ledger);
            }
        });
        let mut inner = Inner {
            path: path.to_owned(),
            shards,
            work: Some(work),
            thread: Some(thread),
            ledger_work: None,
            ledger_thread: None,
            closing,
        };
        let (work, thread) = opened.await?;
        (inner.ledger_work, inner.ledger_thread) = (Some(work), Some(thread));
        Ok(Embedded { inner: Arc::new(inner) })
    }

    async fn send(&self, step: &'static str, work: Work) -> Result<(), Error> {
        let queue = self.inner.work.as_ref().ok_or("it is closed").map_err(Error::unavailable(step))?;
        queue.send(work).await.map_err(|_| Error::unavailable(step)("the journal's thread has ended"))
    }

    /// Does something on the journal's thread.
    async fn on_thread<T: Send + 'static>(
        &self,
        step: &'static str,
        call: impl FnOnce(&mut Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let work = Work::Other(Box::new(move |store| drop(reply.send(call(store)))));
        self.send(step, work).await?;
        answer.await.map_err(Error::unknown(step))?
    }

    /// Does something on the ledger's thread, unless nobody waits for it any more when its turn comes.
    async fn on_ledger<T: Send + 'static>(
        &self,
        step: &'static str,
        call: impl FnOnce(&mut Ledger) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let queue =
            self.inner.ledger_work.as_ref().ok_or("it is closed").map_err(Error::unavailable(step))?;
        let (reply, answer) = oneshot::channel();
        let work: LedgerWork = Box::new(move |ledger| {
            if !reply.is_closed() {
                drop(reply.send(call(ledger)));
            }
        });
        let ended = |_| Error::unavailable(step)("the ledger's thread has ended");
        queue.send(work).await.map_err(ended)?;
        answer.await.map_err(Error::unknown(step))?
    }

    pub(super) async fn append(&self, batch: &Batch) -> Result<(), Error> {
        const STEP: &str = "appending a batch";
        let (reply, answer) = oneshot::channel();
        self.send(STEP, Work::Append(batch.clone(), reply)).await?;
        answer.await.map_err(Error::unknown(STEP))?
    }

    /// Behind the lost append in the queue, so its answer is final.
    pub(super) async fn confirm(
        &self,
        shard: u32,
        epoch: u64,
        seq: u64,
        checksum: u32,
    ) -> Result<Confirmation, Error> {
        self.on_thread("confirming a batch", move |store| store.confirm(shard, epoch, seq, checksum)).await
    }

    pub(super) async fn tail(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Tail, Error> {
        self.on_thread("reading batches", move |store| store.tail(shard, after_seq, limit_bytes)).await
    }

    /// Part by part, so that appends and the disk get their turn in between.
    pub(super) async fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        const STEP: &str = "writing a snapshot";
        let Snapshot { shard, seq, epoch, payload } = snapshot.clone();
        let mut parts = 0;
        for start in (0..payload.len()).step_by(framing::PART_BYTES) {
            let part = payload.slice(start..payload.len().min(start + framing::PART_BYTES));
            let at = parts;
            self.on_thread(STEP, move |store| store.put_part(shard, seq, epoch, at, &part)).await?;
            tokio::time::sleep(framing::PART_REST).await;
            parts += 1;
        }
        let checksum = snapshot.checksum();
        self.on_thread(STEP, move |store| store.put_heading(shard, seq, epoch, checksum, parts)).await
    }

    pub(super) async fn snapshot(&self, shard: u32) -> Result<Option<Snapshot>, Error> {
        self.snapshot_before(shard, u64::MAX).await
    }

    pub(super) async fn snapshot_before(&self, shard: u32, seq: u64) -> Result<Option<Snapshot>, Error> {
        self.on_thread("reading a snapshot", move |store| store.snapshot_before(shard, seq)).await
    }

    pub(super) async fn truncate(&self, shard: u32, through_seq: u64) -> Result<(), Error> {
        const STEP: &str = "truncating";
        let secured = self.on_ledger(STEP, move |ledger| ledger.secure(shard)).await?;
        while !self.on_thread(STEP, move |store| store.truncate_some(shard, through_seq, secured)).await? {
            tokio::time::sleep(framing::FORGET_REST).await;
        }
        Ok(())
    }

    pub(super) async fn claim(&self, shard: u32, epoch: u64) -> Result<u64, Error> {
        const STEP: &str = "claiming the ledger";
        let last = self.on_thread(STEP, move |store| store.last_of(shard, epoch)).await?;
        self.on_ledger(STEP, move |ledger| ledger.claim(shard, epoch, last)).await
    }

    pub(super) async fn project(&self, stretch: &Stretch, lines: &Arc<Offers>) -> Result<(), Error> {
        let (stretch, lines) = (*stretch, Arc::clone(lines));
        self.on_ledger("projecting", move |ledger| ledger.project(&stretch, lines)).await
    }

    pub(super) async fn carry(
        &self,
        stretch: &Stretch,
        chunks: impl Iterator<Item = Arc<Offers>> + Send + 'static,
    ) -> Result<(), Error> {
        let stretch = *stretch;
        self.on_ledger("projecting a snapshot", move |ledger| ledger.carry(&stretch, chunks)).await
    }

    pub(super) async fn lines(&self, account: u64, before: Cursor, limit: usize) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        let mut walk = Some(Walk::new(account, before, Micros::ZERO));
        while let Some(from) = walk {
            let wanted = limit.saturating_sub(lines.len());
            let (some, rest) = self.on_ledger(READING, move |ledger| ledger.lines(from, wanted)).await?;
            lines.extend(some);
            walk = rest;
        }
        Ok(lines)
    }

    pub(super) async fn find_released(&self, adopted: &Line, below: Cursor) -> Result<Option<Cursor>, Error> {
        let adopted = *adopted;
        let Row { id, since, .. } = adopted.after;
        for shard in 0..self.inner.shards {
            let mut walk = Some(Walk::new(id, below.in_shard(shard), since));
            while let Some(from) = walk {
                let find = move |ledger: &mut Ledger| ledger.find_released(&adopted, from);
                let (found, rest) = self.on_ledger(READING, find).await?;
                if found.is_some() {
                    return Ok(found);
                }
                walk = rest;
            }
        }
        Ok(None)
    }

    pub(super) async fn ledger_is_level(&self) -> Result<bool, Error> {
        const STEP: &str = "reading what is projected";
        let lasts: Vec<u64> = self.on_thread(STEP, |store| Ok(store.lasts())).await?;
        self.on_ledger(STEP, move |ledger| Ok(ledger.is_level(&lasts))).await
    }

    pub(super) async fn has_forgotten(&self, at: Micros) -> Result<bool, Error> {
        self.on_ledger("reading what is forgotten", move |ledger| Ok(ledger.has_forgotten(at))).await
    }

    pub(super) async fn projected_accounts(
        &self,
        shard: u32,
        first: u16,
        last: u16,
    ) -> Result<Vec<Row>, Error> {
        let call = move |ledger: &mut Ledger| ledger.projected_accounts(shard, first, last);
        self.on_ledger("reading projected accounts", call).await
    }

    pub(super) async fn forget_lines(&self, sweep: &Sweep) -> Result<Swept, Error> {
        let sweep = *sweep;
        self.on_ledger("forgetting lines", move |ledger| ledger.forget_lines(&sweep)).await
    }

    pub(super) async fn acquire(
        &self,
        shard: u32,
        node: &Node,
        lease: Duration,
    ) -> Result<Acquisition, Error> {
        let node = node.clone();
        self.on_thread("acquiring a lease", move |store| store.acquire(shard, &node, lease)).await
    }

    pub(super) async fn renew(&self, shard: u32, epoch: u64, lease: Duration) -> Result<Lease, Error> {
        self.on_thread("renewing a lease", move |store| store.renew(shard, epoch, lease)).await
    }

    pub(super) async fn release(
        &self,
        shard: u32,
        epoch: u64,
        to: Option<(&str, Duration)>,
    ) -> Result<(), Error> {
        let to = to.map(|(node, keep)| (node.to_owned(), keep));
        self.on_thread("releasing a lease", move |store| store.release(shard, epoch, to)).await
    }

    pub(super) async fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.on_thread("reading leases", |store| Ok(store.leases())).await
    }

    pub(super) async fn bucket_map(&self) -> Result<BucketMap, Error> {
        self.on_thread("reading the bucket map", |store| Ok(store.bucket_map().clone())).await
    }

    pub(super) async fn set_bucket_map(&self, map: &BucketMap) -> Result<bool, Error> {
        let map = map.clone();
        self.on_thread("setting the bucket map", move |store| store.set_bucket_map(map)).await
    }

    pub(super) async fn status(&self) -> Vec<ReplicaSetStatus> {
        let works = self.on_thread("asking for the status", |store| store.check_whole()).await;
        let member = MemberStatus {
            uri: format!("file://{}", self.inner.path.display()),
            state: if works.is_ok() { MemberState::Writable } else { MemberState::Unreachable },
            replication: None,
            lag_bytes: None,
            lag: None,
            problem: works.err().map(|error| error.to_string()),
        };
        vec![ReplicaSetStatus { index: 0, shards: (0..self.inner.shards).collect(), members: vec![member] }]
    }
}

/// The ledger of an older version, a row for each line, goes; what follows it is derived again.
fn remove_rows(directory: &Path) {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => {
            tracing::info!(path = %directory.display(), "journal: a ledger of the older layout is removed")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "journal: an older ledger cannot be removed, it is not used");
        }
    }
}

/// A thread that opens something and then works on it, from a queue, until nobody can ask any more.
async fn serve<S: 'static, W: Send + 'static>(
    name: &str,
    path: &Path,
    open: impl FnOnce() -> Result<S, Error> + Send + 'static,
    run: impl FnOnce(S, mpsc::Receiver<W>) + Send + 'static,
) -> Result<(mpsc::Sender<W>, JoinHandle<()>), Error> {
    const STEP: &str = "opening the journal";
    let (work, queue) = mpsc::channel(QUEUE_MAX);
    let (opened, outcome) = oneshot::channel();
    let serve = move || match open() {
        Ok(store) => {
            // Nobody waits for it any more if this fails, and then the queue is closed as well.
            let _ = opened.send(Ok(()));
            run(store, queue);
        }
        Err(error) => drop(opened.send(Err(error))),
    };
    let thread =
        std::thread::Builder::new().name(name.to_owned()).spawn(serve).map_err(Error::unavailable(STEP))?;
    // The engine asserts here and there that what it reads is what it wrote, and its panic ends the thread.
    let panicked =
        |_| Error::Damaged { place: path.display().to_string(), source: "the engine panicked".into() };
    outcome.await.map_err(panicked)??;
    Ok((work, thread))
}

fn run(mut store: Store, mut queue: mpsc::Receiver<Work>) {
    while let Some(first) = queue.blocking_recv() {
        let mut next = Some(first);
        let mut appends = Vec::new();
        while let Some(Work::Append(batch, reply)) = next {
            appends.push((batch, reply));
            next = queue.try_recv().ok();
        }
        if !appends.is_empty() {
            append(&mut store, appends);
        }
        if let Some(Work::Other(call)) = next {
            call(&mut store);
        }
    }
}

fn append(store: &mut Store, appends: Vec<(Batch, oneshot::Sender<Result<(), Error>>)>) {
    let (batches, replies): (Vec<_>, Vec<_>) = appends.into_iter().unzip();
    for (reply, result) in replies.into_iter().zip(store.append(&batches)) {
        // Who no longer waits will confirm.
        let _ = reply.send(result);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_begun() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Embedded::open(directory.path(), 1).await.unwrap();
        let (lets_go, held) = std::sync::mpsc::channel::<()>();
        let hold = move |_: &mut Ledger| held.recv().map_err(Error::unavailable("holding"));
        let mut holding = Box::pin(journal.on_ledger("holding", hold));
        assert!((&mut holding).now_or_never().is_none());
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let begin = move |_: &mut Ledger| {
            begins.store(true, Relaxed);
            Ok(())
        };
        assert!(journal.on_ledger("asking", begin).now_or_never().is_none());
        lets_go.send(()).unwrap();
        holding.await.unwrap();
        journal.on_ledger("asking after it", |_| Ok(())).await.unwrap();
        assert!(!begun.load(Relaxed));
    }
}
