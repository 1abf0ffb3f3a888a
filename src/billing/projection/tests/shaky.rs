//! A ledger whose calls fail, hang or lose their answers as told.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Fine,
    Unavailable,
    /// It is done, and nobody is told.
    Lost,
    /// Nothing is done until it is let go.
    HeldBefore,
    /// It is done, and the answer held.
    HeldAfter,
}

type Fates = Box<dyn FnMut(&'static str, u64) -> Fate + Send>;

#[derive(Clone)]
pub struct Shaky {
    journal: Journal,
    fates: Arc<Mutex<Fates>>,
    calls: Arc<AtomicU64>,
    held: Arc<watch::Sender<u64>>,
    let_go: Arc<watch::Sender<bool>>,
}

impl Shaky {
    pub fn new(journal: &Journal) -> Shaky {
        Shaky {
            journal: journal.clone(),
            fates: Arc::new(Mutex::new(Box::new(|_, _| Fate::Fine))),
            calls: Arc::default(),
            held: Arc::new(watch::Sender::new(0)),
            let_go: Arc::new(watch::Sender::new(false)),
        }
    }

    /// What becomes of each call, by its name and number.
    pub fn plan(&self, fates: impl FnMut(&'static str, u64) -> Fate + Send + 'static) {
        self.calls.store(0, SeqCst);
        *self.fates.lock() = Box::new(fates);
    }

    /// Until a call is held.
    pub async fn is_held(&self) {
        self.held.subscribe().wait_for(|held| *held > 0).await.unwrap();
    }

    pub fn let_go(&self) {
        self.let_go.send_replace(true);
    }

    async fn hold(&self) {
        if *self.let_go.borrow() {
            return;
        }
        self.held.send_modify(|held| *held += 1);
        let _held = Held(&self.held);
        self.let_go.subscribe().wait_for(|let_go| *let_go).await.unwrap();
    }

    async fn pass<T>(
        &self,
        step: &'static str,
        call: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let fate = self.fates.lock()(step, self.calls.fetch_add(1, SeqCst));
        match fate {
            Fate::Fine => call.await,
            Fate::Unavailable => Err(Error::Unavailable { step, source: "as told".into() }),
            Fate::Lost => {
                drop(call.await);
                Err(Error::Unknown { step, source: "as told".into() })
            }
            Fate::HeldBefore => {
                self.hold().await;
                call.await
            }
            Fate::HeldAfter => {
                let done = call.await;
                self.hold().await;
                done
            }
        }
    }
}

struct Held<'a>(&'a watch::Sender<u64>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

impl Ledger for Shaky {
    async fn claim(&self, shard: u32, epoch: u64) -> Result<u64, Error> {
        self.pass("claim", self.journal.claim(shard, epoch)).await
    }

    async fn project(&self, stretch: &Stretch, lines: &Arc<Offers>) -> Result<(), Error> {
        self.pass("project", self.journal.project(stretch, lines)).await
    }

    async fn carry(
        &self,
        stretch: &Stretch,
        rows: impl Iterator<Item = Row> + Send + 'static,
    ) -> Result<(), Error> {
        self.pass("carry", self.journal.carry(stretch, rows)).await
    }

    fn keeps_bases(&self) -> bool {
        self.journal.keeps_bases()
    }

    async fn put_base(&self, base: &Base, rows: &[Row]) -> Result<(), Error> {
        self.pass("put_base", self.journal.put_base(base, rows)).await
    }

    async fn batches(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Vec<Batch>, Error> {
        // Few at a time, so that there are steps in between.
        self.pass("batches", self.journal.read(shard, after_seq, limit_bytes.min(2_000))).await
    }

    async fn newest_snapshot(&self, shard: u32) -> Result<Option<Snapshot>, Error> {
        self.pass("newest_snapshot", self.journal.snapshot(shard)).await
    }

    async fn snapshot_before(&self, shard: u32, seq: u64) -> Result<Option<Snapshot>, Error> {
        self.pass("snapshot_before", self.journal.snapshot_before(shard, seq)).await
    }

    async fn forget_lines(&self, sweep: &Sweep) -> Result<Swept, Error> {
        self.pass("forget_lines", self.journal.forget_lines(sweep)).await
    }

    async fn history(
        &self,
        shard: u32,
        account: u64,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<History, Error> {
        self.pass("history", self.journal.history(shard, account, before, limit)).await
    }
}
