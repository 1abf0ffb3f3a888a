//! A journal in memory that keeps the contract of `Journal`, shared by several nodes, each over a link that can be cut,
//! held, or made to lose answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::backend::Backend;
use crate::billing::domain::{self, Row, State};
use crate::billing::journal::{
    Acquisition, Base, Batch, BucketMap, Confirmation, Cursor, Error, History, Lease, Line, Node, Offers,
    ReplicaSetStatus, Snapshot, Stretch, Sweep, Swept, Tail,
};
use crate::billing::projection::{self, Ledger};
use crate::clock;

#[derive(Clone)]
pub struct Fake {
    world: Arc<Mutex<World>>,
    link: Arc<Link>,
}

struct World {
    shards: Vec<Shard>,
    map: BucketMap,
    mistake: Mistake,
}

/// What a journal must not do; whoever tests with it must see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mistake {
    None,
    /// Takes batches of any epoch.
    NoFence,
    /// Says of every lost batch that it is there.
    WrongConfirmation,
}

#[derive(Default)]
struct Shard {
    batches: Vec<Batch>,
    /// With those that were truncated.
    archive: Vec<Batch>,
    truncated: u64,
    snapshots: Vec<Snapshot>,
    ledger: Vec<Line>,
    projected: u64,
    /// The epoch that may write the ledger.
    claimed: u64,
    epoch: u64,
    node: String,
    advertise: String,
    ends: Option<Instant>,
}

/// Of one node.
pub struct Link {
    cut: AtomicBool,
    ledger_away: AtomicBool,
    map_away: AtomicBool,
    servers_hang: AtomicBool,
    /// Whoever has a lease over this link cannot read.
    blinds: AtomicBool,
    leases: AtomicU64,
    /// Leases are given to this node while others hold them, as if the others' clocks stood still.
    steals: AtomicBool,
    held: watch::Sender<bool>,
    /// Appends that wait at a held link.
    waiting: watch::Sender<usize>,
    faults: Mutex<Option<Faults>>,
    trap: Mutex<Option<(Moment, When)>>,
    trapped: watch::Sender<bool>,
}

/// A step of a bucket on its way, as the journal sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Moment {
    Release,
    Adopt,
    Map,
    Sent,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    Before,
    After,
}

fn moments(batch: &Batch) -> Vec<Moment> {
    let moment = |command: &domain::Command| match command {
        domain::Command::Release { .. } => Some(Moment::Release),
        domain::Command::Adopt { .. } => Some(Moment::Adopt),
        domain::Command::Sent { .. } => Some(Moment::Sent),
        _ => None,
    };
    domain::Batch::decode(&batch.payload).unwrap().commands.iter().filter_map(moment).collect()
}

/// How often an append fails, in thousandths, in each way.
#[derive(Clone)]
pub struct Faults {
    pub dice: fastrand::Rng,
    pub unavailable: u32,
    pub lost_before: u32,
    pub lost_after: u32,
}

#[derive(PartialEq)]
enum Fate {
    Fine,
    Unavailable,
    LostBefore,
    LostAfter,
}

impl Fake {
    pub fn new(shards: u32) -> Fake {
        Fake::with(shards, Mistake::None)
    }

    pub fn with(shards: u32, mistake: Mistake) -> Fake {
        let map = BucketMap::spread(shards);
        let world = World { shards: (0..shards).map(|_| Shard::default()).collect(), map, mistake };
        Fake { world: Arc::new(Mutex::new(world)), link: Arc::new(Link::new()) }
    }

    /// Another node's way to the same journal.
    pub fn another(&self) -> Fake {
        Fake { world: Arc::clone(&self.world), link: Arc::new(Link::new()) }
    }

    pub fn cut(&self, cut: bool) {
        self.link.cut.store(cut, SeqCst);
    }

    /// Nothing is written to the ledger, and all else works.
    pub fn ledger_away(&self, away: bool) {
        self.link.ledger_away.store(away, SeqCst);
    }

    /// The first replica set is away, and all others are there.
    pub fn map_away(&self, away: bool) {
        self.link.map_away.store(away, SeqCst);
    }

    /// Whoever asks every server of the journal how it is gets no answer; all else works.
    pub fn servers_hang(&self, hang: bool) {
        self.link.servers_hang.store(hang, SeqCst);
    }

    /// Who has a lease over this link can read nothing until it gives the lease back.
    pub fn blinds(&self, blinds: bool) {
        self.link.blinds.store(blinds, SeqCst);
    }

    pub fn steals(&self, steals: bool) {
        self.link.steals.store(steals, SeqCst);
    }

    /// Appends wait until it is let go.
    pub fn hold(&self, held: bool) {
        self.link.held.send_replace(held);
    }

    pub async fn held(&self, appends: usize) {
        self.link.waiting.subscribe().wait_for(|waiting| *waiting >= appends).await.unwrap();
    }

    pub fn set_faults(&self, faults: Option<Faults>) {
        *self.link.faults.lock() = faults;
    }

    pub fn set_map(&self, map: BucketMap) {
        self.world.lock().map = map;
    }

    pub fn map(&self) -> BucketMap {
        self.world.lock().map.clone()
    }

    fn change_map(&self, map: &BucketMap) -> bool {
        let own = &mut self.world.lock().map;
        let next = map.version == own.version + 1;
        if next {
            own.clone_from(map);
        }
        next
    }

    /// As a backup has it that was made when this batch was the last.
    pub fn restore(&self, shard: u32, seq: u64) {
        let shard = &mut self.world.lock().shards[shard as usize];
        for batches in [&mut shard.batches, &mut shard.archive] {
            batches.retain(|batch| batch.seq <= seq);
        }
        shard.snapshots.retain(|snapshot| snapshot.seq <= seq);
        shard.projected = shard.projected.min(seq);
    }

    /// Nobody, while it is kept for somebody.
    pub fn owner(&self, shard: u32) -> (String, u64) {
        let world = self.world.lock();
        let shard = &world.shards[shard as usize];
        (if shard.advertise.is_empty() { String::new() } else { shard.node.clone() }, shard.epoch)
    }

    pub fn has_snapshot(&self, shard: u32) -> bool {
        !self.world.lock().shards[shard as usize].snapshots.is_empty()
    }

    pub fn batches(&self, shard: u32) -> usize {
        self.world.lock().shards[shard as usize].batches.len()
    }

    /// What a replay of everything gives.
    pub fn replay(&self, shard: u32) -> State {
        let world = self.world.lock();
        let shard = &world.shards[shard as usize];
        let mut state = State::new([]);
        if let Some(snapshot) = shard.snapshots.last() {
            state = State::decode(&snapshot.payload).unwrap();
        }
        let from = shard.snapshots.last().map_or(0, |snapshot| snapshot.seq);
        for batch in shard.batches.iter().filter(|batch| batch.seq > from) {
            state.replay(&domain::Batch::decode(&batch.payload).unwrap());
        }
        state
    }

    /// The ledger of a shard, and how far it is.
    pub fn ledger(&self, shard: u32) -> (Vec<Line>, u64) {
        let world = self.world.lock();
        let shard = &world.shards[shard as usize];
        (shard.ledger.clone(), shard.projected)
    }

    /// What it must be: of all batches that were ever durable.
    pub fn derived(&self, shard: u32) -> Vec<Line> {
        let (mut state, mut lines) = (State::new([]), Vec::new());
        for (batch, seq) in self.archive(shard).iter().zip(1..) {
            for (place, command) in batch.commands.iter().enumerate() {
                projection::apply(&mut state, command, batch.at, (seq, place), &mut lines);
            }
        }
        lines
    }

    /// Every batch of a shard that was ever durable.
    pub fn archive(&self, shard: u32) -> Vec<domain::Batch> {
        let world = self.world.lock();
        let archive = world.shards[shard as usize].archive.iter();
        archive.map(|batch| domain::Batch::decode(&batch.payload).unwrap()).collect()
    }

    /// Whoever comes to this moment over this link stays there until it is set anew.
    pub fn set_trap(&self, trap: Option<(Moment, When)>) {
        *self.link.trap.lock() = trap;
        self.link.trapped.send_replace(false);
    }

    pub fn is_trapped(&self) -> bool {
        *self.link.trapped.borrow()
    }

    async fn come_to(&self, moments: &[Moment], when: When) {
        let trap = *self.link.trap.lock();
        if trap.is_some_and(|(moment, at)| at == when && moments.contains(&moment)) {
            self.link.trapped.send_replace(true);
            self.link.trapped.subscribe().wait_for(|trapped| !trapped).await.unwrap();
        }
    }

    fn unavailable(step: &'static str) -> Error {
        Error::Unavailable { step, source: "the link is cut".into() }
    }

    fn unknown(step: &'static str) -> Error {
        Error::Unknown { step, source: "the answer was lost".into() }
    }

    /// A round trip.
    async fn pass(&self, step: &'static str) -> Result<(), Error> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.link.cut.load(SeqCst) { Err(Fake::unavailable(step)) } else { Ok(()) }
    }

    fn lease(&self, shard: u32) -> Lease {
        let world = self.world.lock();
        let Shard { batches, truncated, epoch, node, advertise, ends, .. } = &world.shards[shard as usize];
        Lease {
            shard,
            epoch: *epoch,
            seq: batches.last().map_or(*truncated, |batch| batch.seq),
            node: node.clone(),
            advertise: advertise.clone(),
            expires_in: ends.map_or(Duration::ZERO, |ends| ends.saturating_duration_since(clock::now())),
        }
    }

    fn write(&self, batch: &Batch) -> Result<(), Error> {
        let last = self.lease(batch.shard);
        if self.world.lock().mistake == Mistake::NoFence {
            let shard = &mut self.world.lock().shards[batch.shard as usize];
            for batches in [&mut shard.batches, &mut shard.archive] {
                batches.retain(|before| before.seq < batch.seq);
                batches.push(batch.clone());
            }
            return Ok(());
        }
        if last.epoch != batch.epoch {
            return Err(Error::Fenced { shard: batch.shard, epoch: last.epoch });
        }
        if last.seq + 1 != batch.seq {
            return Err(Error::OutOfOrder { shard: batch.shard, expected: last.seq + 1 });
        }
        let shard = &mut self.world.lock().shards[batch.shard as usize];
        shard.batches.push(batch.clone());
        shard.archive.push(batch.clone());
        Ok(())
    }
}

impl Link {
    fn new() -> Link {
        Link {
            cut: AtomicBool::new(false),
            ledger_away: AtomicBool::new(false),
            map_away: AtomicBool::new(false),
            servers_hang: AtomicBool::new(false),
            blinds: AtomicBool::new(false),
            leases: AtomicU64::new(0),
            steals: AtomicBool::new(false),
            held: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
            faults: Mutex::new(None),
            trap: Mutex::new(None),
            trapped: watch::Sender::new(false),
        }
    }

    fn fate(&self) -> Fate {
        let mut faults = self.faults.lock();
        let Some(Faults { dice, unavailable, lost_before, lost_after }) = &mut *faults else {
            return Fate::Fine;
        };
        let thrown = dice.u32(0..1000);
        if thrown < *unavailable {
            Fate::Unavailable
        } else if thrown < *unavailable + *lost_before {
            Fate::LostBefore
        } else if thrown < *unavailable + *lost_before + *lost_after {
            Fate::LostAfter
        } else {
            Fate::Fine
        }
    }
}

impl Ledger for Fake {
    async fn claim(&self, shard: u32, epoch: u64) -> Result<u64, Error> {
        self.pass("claim").await?;
        let mut world = self.world.lock();
        let place = &mut world.shards[shard as usize];
        if place.epoch != epoch || place.claimed > epoch {
            return Err(Error::Fenced { shard, epoch: place.epoch });
        }
        place.claimed = epoch;
        Ok(place.projected)
    }

    async fn project(&self, stretch: &Stretch, lines: &Arc<Offers>) -> Result<(), Error> {
        const STEP: &str = "project";
        self.pass(STEP).await?;
        if self.link.ledger_away.load(SeqCst) {
            return Err(Fake::unavailable(STEP));
        }
        let fate = self.link.fate();
        match fate {
            Fate::Unavailable => return Err(Fake::unavailable(STEP)),
            Fate::LostBefore => return Err(Fake::unknown(STEP)),
            Fate::Fine | Fate::LostAfter => {}
        }
        let Stretch { shard, epoch, after, through, at: _ } = *stretch;
        let mut world = self.world.lock();
        let place = &mut world.shards[shard as usize];
        if place.claimed != epoch {
            return Err(Error::Fenced { shard, epoch: place.claimed });
        }
        if place.projected != through {
            if place.projected != after {
                return Err(Error::OutOfOrder { shard, expected: place.projected + 1 });
            }
            place.ledger.extend(lines.iter().flatten());
            place.projected = through;
        }
        if fate == Fate::LostAfter { Err(Fake::unknown(STEP)) } else { Ok(()) }
    }

    /// Nothing here loses batches that the ledger needs.
    async fn carry(
        &self,
        stretch: &Stretch,
        _: impl Iterator<Item = Row> + Send + 'static,
    ) -> Result<(), Error> {
        panic!("the ledger was to begin anew: {stretch:?}");
    }

    fn keeps_bases(&self) -> bool {
        false
    }

    async fn put_base(&self, base: &Base, _: &[Row]) -> Result<(), Error> {
        panic!("nobody asked for one: {base:?}");
    }

    async fn batches(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Vec<Batch>, Error> {
        Ok(self.tail(shard, after_seq, limit_bytes).await?.batches)
    }

    async fn newest_snapshot(&self, shard: u32) -> Result<Option<Snapshot>, Error> {
        self.pass("newest_snapshot").await?;
        Ok(self.world.lock().shards[shard as usize].snapshots.last().cloned())
    }

    async fn snapshot_before(&self, shard: u32, seq: u64) -> Result<Option<Snapshot>, Error> {
        self.pass("snapshot_before").await?;
        let world = self.world.lock();
        Ok(world.shards[shard as usize].snapshots.iter().rfind(|snapshot| snapshot.seq <= seq).cloned())
    }

    async fn forget_lines(&self, _: &Sweep) -> Result<Swept, Error> {
        Ok(Swept::default())
    }

    async fn history(
        &self,
        shard: u32,
        account: u64,
        _: Option<Cursor>,
        limit: usize,
    ) -> Result<History, Error> {
        self.pass("history").await?;
        let entries = self.ledger(shard).0.into_iter().rev().filter(|line| line.after.id == account);
        let entries =
            entries.take(limit).map(|line| crate::billing::journal::Entry { shard, line }).collect();
        Ok(History { entries, next: None, whole: true })
    }
}

impl Backend for Fake {
    async fn append(&self, batch: &Batch) -> Result<(), Error> {
        const STEP: &str = "append";
        if *self.link.held.borrow() {
            self.link.waiting.send_modify(|waiting| *waiting += 1);
            self.link.held.subscribe().wait_for(|held| !held).await.unwrap();
            self.link.waiting.send_modify(|waiting| *waiting -= 1);
        }
        self.pass(STEP).await?;
        let moments = moments(batch);
        self.come_to(&moments, When::Before).await;
        let written = match self.link.fate() {
            Fate::Fine => self.write(batch),
            Fate::Unavailable => Err(Fake::unavailable(STEP)),
            Fate::LostBefore => Err(Fake::unknown(STEP)),
            Fate::LostAfter => self.write(batch).and(Err(Fake::unknown(STEP))),
        };
        self.come_to(&moments, When::After).await;
        written
    }

    async fn confirm(&self, shard: u32, epoch: u64, seq: u64, sum: u32) -> Result<Confirmation, Error> {
        self.pass("confirm").await?;
        let world = self.world.lock();
        if world.mistake == Mistake::WrongConfirmation {
            return Ok(Confirmation::Applied);
        }
        let found = world.shards[shard as usize].batches.iter().find(|batch| batch.seq == seq);
        Ok(match found {
            Some(batch) if (batch.epoch, batch.checksum()) == (epoch, sum) => Confirmation::Applied,
            _ => Confirmation::NotApplied,
        })
    }

    async fn tail(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Tail, Error> {
        self.pass("read").await?;
        if self.link.blinds.load(SeqCst) && self.link.leases.load(SeqCst) > 0 {
            return Err(Fake::unavailable("read"));
        }
        let world = self.world.lock();
        let Shard { batches, truncated, .. } = &world.shards[shard as usize];
        if after_seq < *truncated {
            return Err(Error::Truncated { shard, through: *truncated });
        }
        let mut bytes = 0;
        let fits = |batch: &&Batch| {
            let first = bytes == 0;
            bytes += batch.payload.len();
            first || bytes <= limit_bytes
        };
        let before = batches.iter().find(|batch| batch.seq == after_seq);
        Ok(Tail {
            end: batches.last().map_or(*truncated, |batch| batch.seq),
            mark: before.map(|batch| (batch.epoch, batch.checksum())),
            batches: batches.iter().filter(|batch| batch.seq > after_seq).take_while(fits).cloned().collect(),
        })
    }

    async fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.pass("put_snapshot").await?;
        let epoch = self.lease(snapshot.shard).epoch;
        if epoch != snapshot.epoch {
            return Err(Error::Fenced { shard: snapshot.shard, epoch });
        }
        self.world.lock().shards[snapshot.shard as usize].snapshots.push(snapshot.clone());
        Ok(())
    }

    async fn truncate(&self, shard: u32, through_seq: u64) -> Result<(), Error> {
        self.pass("truncate").await?;
        let mut world = self.world.lock();
        let shard = &mut world.shards[shard as usize];
        let behind = |snapshot: &&Snapshot| snapshot.seq <= shard.projected;
        let Some(kept) = shard.snapshots.iter().rfind(behind).map(|kept| kept.seq) else { return Ok(()) };
        let newest = shard.snapshots.last().map_or(0, |newest| newest.seq);
        shard.snapshots.retain(|snapshot| snapshot.seq == kept || snapshot.seq == newest);
        let through = through_seq.min(kept);
        shard.truncated = shard.truncated.max(through);
        shard.batches.retain(|batch| batch.seq > through);
        Ok(())
    }

    async fn acquire(&self, shard: u32, node: &Node, lease: Duration) -> Result<Acquisition, Error> {
        self.pass("acquire").await?;
        {
            let mut world = self.world.lock();
            let shard = &mut world.shards[shard as usize];
            let stolen = self.link.steals.load(SeqCst);
            let free =
                stolen || shard.node == node.name || shard.ends.is_none_or(|ends| ends <= clock::now());
            if free {
                shard.epoch += 1;
                shard.node.clone_from(&node.name);
                shard.advertise.clone_from(&node.advertise);
                shard.ends = Some(clock::now() + lease);
            }
        }
        let now = self.lease(shard);
        if now.node == node.name {
            self.link.leases.fetch_add(1, SeqCst);
        }
        Ok(if now.node == node.name { Acquisition::Acquired(now) } else { Acquisition::Held(now) })
    }

    async fn renew(&self, shard: u32, epoch: u64, lease: Duration) -> Result<Lease, Error> {
        self.pass("renew").await?;
        {
            let mut world = self.world.lock();
            let place = &mut world.shards[shard as usize];
            if place.epoch != epoch {
                return Err(Error::Fenced { shard, epoch: place.epoch });
            }
            place.ends = Some(clock::now() + lease);
        }
        Ok(self.lease(shard))
    }

    async fn release(&self, shard: u32, epoch: u64, to: Option<(&str, Duration)>) -> Result<(), Error> {
        self.pass("release").await?;
        let mut world = self.world.lock();
        let place = &mut world.shards[shard as usize];
        if place.epoch != epoch {
            return Err(Error::Fenced { shard, epoch: place.epoch });
        }
        self.link.leases.fetch_sub(1, SeqCst);
        let (node, keep) = to.unwrap_or(("", Duration::ZERO));
        place.epoch += 1;
        place.node = node.to_owned();
        place.advertise = String::new();
        place.ends = Some(clock::now() + keep);
        Ok(())
    }

    async fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.pass("leases").await?;
        let shards = self.world.lock().shards.len() as u32;
        Ok((0..shards).map(|shard| self.lease(shard)).collect())
    }

    async fn bucket_map(&self) -> Result<BucketMap, Error> {
        self.pass("bucket_map").await?;
        if self.link.map_away.load(SeqCst) {
            return Err(Fake::unavailable("bucket_map"));
        }
        Ok(self.world.lock().map.clone())
    }

    async fn set_bucket_map(&self, map: &BucketMap) -> Result<bool, Error> {
        const STEP: &str = "set_bucket_map";
        self.pass(STEP).await?;
        self.come_to(&[Moment::Map], When::Before).await;
        let set = match self.link.fate() {
            Fate::Fine => Ok(self.change_map(map)),
            Fate::Unavailable => Err(Fake::unavailable(STEP)),
            Fate::LostBefore => Err(Fake::unknown(STEP)),
            Fate::LostAfter => {
                self.change_map(map);
                Err(Fake::unknown(STEP))
            }
        };
        self.come_to(&[Moment::Map], When::After).await;
        set
    }

    async fn status(&self) -> Vec<ReplicaSetStatus> {
        if self.link.servers_hang.load(SeqCst) {
            std::future::pending().await
        }
        Vec::new()
    }
}
