//! Where commands for one shard go from this node: to its own loop, to another node, or nowhere for now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::time::{timeout, timeout_at};

use super::Failure;
use super::astray::{Astray, Watch};
use super::map::Map;
use super::metrics::Gauges;
use super::postbox::Reply;
use super::tenure::Tenure;
use crate::billing::domain::{Account, Assignment, Key, Operation, State};
use crate::billing::projection::Feed;
use crate::clock;

/// What a caller wants of an owner.
pub enum Request {
    Operate { account: u64, key: Key, operation: Operation, reply: Reply },
    Get { account: u64, reply: Reply },
    List { after: Option<u64>, limit: usize, reply: oneshot::Sender<Result<Vec<Account>, Failure>> },
}

/// An answer, and whether it is the first one of its key.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub account: Account,
    pub replayed: bool,
}

impl Request {
    /// Changes nothing.
    pub fn is_read(&self) -> bool {
        !matches!(self, Request::Operate { .. })
    }

    pub fn refuse(self, failure: Failure) {
        match self {
            Request::Operate { reply, .. } | Request::Get { reply, .. } => reply.send(Err(failure)),
            // Whoever does not wait any more does not need it.
            Request::List { reply, .. } => drop(reply.send(Err(failure))),
        }
    }
}

/// What is asked of an owner about a bucket or the shard as a whole.
pub enum Errand {
    /// The bucket goes to another shard; told once it is there.
    Move { bucket: u16, to: u32, reply: oneshot::Sender<Result<(), Failure>> },
    /// A bucket comes; told once that is durable.
    Adopt { generation: u64, image: Bytes, reply: oneshot::Sender<Result<(), Failure>> },
    /// The shard is to stay with this node for a while.
    Assign { reply: oneshot::Sender<Result<(), Failure>> },
}

impl Errand {
    pub fn refuse(self, failure: Failure) {
        let (Errand::Move { reply, .. } | Errand::Adopt { reply, .. } | Errand::Assign { reply }) = self;
        drop(reply.send(Err(failure)));
    }
}

/// Asks an owner to leave; told when this node writes nothing more.
pub struct HandOver {
    /// Nobody's name: to whoever takes it first.
    pub to: String,
    /// By hand, so it is to stay there for a while.
    pub assigned: bool,
    pub reply: oneshot::Sender<Result<(), Failure>>,
}

pub enum Standing {
    Own {
        requests: mpsc::Sender<Request>,
        errands: mpsc::Sender<Errand>,
        hand_over: mpsc::Sender<HandOver>,
        tenure: Arc<Tenure>,
        feed: Feed,
    },
    /// As its lease said, and until when.
    Elsewhere {
        node: String,
        advertise: String,
        epoch: u64,
        until: Instant,
        /// Batches that this node lacked when it heard of the lease.
        behind: u64,
    },
    /// On its way to an owner, by plan or to this node, and worth waiting for until then.
    Changing { until: Instant },
    /// Nobody has it that this node knows of.
    Vacant,
}

impl Standing {
    /// What to tell whoever looked for an owner here and found none.
    fn absence(&self) -> Failure {
        match self {
            Standing::Elsewhere { node, advertise, until, .. } if *until > clock::now() => {
                Failure::Elsewhere { node: node.clone(), advertise: advertise.clone() }
            }
            _ => busy(),
        }
    }
}

/// What the router and the shard's task share.
pub struct Seat {
    pub shard: u32,
    pub gauges: Gauges,
    standing: ArcSwap<Standing>,
    assignment: ArcSwapOption<Assignment>,
    poked: Notify,
    changed: watch::Sender<()>,
    /// Places of requests that wait while it changes hands.
    waiting: Semaphore,
    watch: Mutex<Watch>,
    /// The journal does not take a batch for longer than callers are patient.
    stuck: AtomicBool,
    /// Someone must act; see the log.
    broken: AtomicBool,
    /// Of the last durable batch, as far as this node knows.
    seq: AtomicU64,
}

/// Before a shard that changes hands is worth another try.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A planned change of hands takes some ten milliseconds, or a poll of whoever was not told.
const CHANGE: Duration = Duration::from_secs(1);

impl Seat {
    /// At most `waiting` requests wait while it changes hands.
    pub fn new(shard: u32, waiting: usize, gauges: Gauges) -> Seat {
        Seat {
            shard,
            gauges,
            standing: ArcSwap::from_pointee(Standing::Vacant),
            assignment: ArcSwapOption::empty(),
            poked: Notify::new(),
            changed: watch::Sender::new(()),
            waiting: Semaphore::new(waiting.min(Semaphore::MAX_PERMITS)),
            watch: Mutex::default(),
            stuck: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            seq: AtomicU64::new(0),
        }
    }

    pub fn standing(&self) -> Arc<Standing> {
        self.standing.load_full()
    }

    pub fn publish(&self, standing: Standing) {
        self.gauges.owned.set(i64::from(matches!(standing, Standing::Own { .. })));
        self.standing.store(Arc::new(standing));
        self.changed.send_replace(());
    }

    /// It will have an owner in a moment, which begins now.
    pub fn publish_changing(&self) {
        self.publish(Standing::Changing { until: clock::now() + CHANGE });
    }

    /// As [`Seat::publish_changing`], unless the moment began before.
    pub fn still_changing(&self) {
        if !matches!(&**self.standing.load(), Standing::Changing { .. }) {
            self.publish_changing();
        }
    }

    /// Whoever was told that it is busy, when it stood like this: is it worth another try? Waits while it changes hands, as
    /// long as that is.
    pub async fn is_worth_a_try(&self, before: &Arc<Standing>) -> bool {
        let Standing::Changing { until } = *self.standing() else {
            return !Arc::ptr_eq(before, &self.standing());
        };
        let Ok(_place) = self.waiting.try_acquire() else { return false };
        let settled = self.comes_to(|| !matches!(&**self.standing.load(), Standing::Changing { .. }));
        timeout_at(until.into(), settled).await.is_ok()
    }

    /// Puts a request where it belongs, or says why not.
    pub fn hand_in(&self, request: Request) -> Result<(), Failure> {
        match &**self.standing.load() {
            Standing::Own { requests, .. } => requests.try_send(request).map_err(|_| busy()),
            standing => Err(standing.absence()),
        }
    }

    /// Puts it where it belongs if that is here and there is room, else gives it back.
    pub fn try_hand_in(&self, request: Request) -> Result<(), Request> {
        match &**self.standing.load() {
            Standing::Own { requests, .. } => requests.try_send(request).map_err(TrySendError::into_inner),
            Standing::Elsewhere { .. } | Standing::Changing { .. } | Standing::Vacant => Err(request),
        }
    }

    /// Does this node own it? If not, who does.
    pub fn is_here(&self) -> Result<(), Failure> {
        self.errands().map(drop)
    }

    fn errands(&self) -> Result<mpsc::Sender<Errand>, Failure> {
        match &**self.standing.load() {
            Standing::Own { errands, .. } => Ok(errands.clone()),
            standing => Err(standing.absence()),
        }
    }

    /// Has an owner on this node do something. `Unknown`: it may or may not be done, or be done yet.
    pub async fn have_done(
        &self,
        patience: Duration,
        errand: impl FnOnce(oneshot::Sender<Result<(), Failure>>) -> Errand,
    ) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        self.errands()?.try_send(errand(reply)).map_err(|_| busy())?;
        match timeout(patience, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Failure::Unknown),
        }
    }

    /// To whom the shard was given by hand last, as far as this node knows.
    pub fn assignment(&self) -> Option<Arc<Assignment>> {
        self.assignment.load_full()
    }

    pub fn set_assignment(&self, assignment: Option<&Assignment>) {
        if self.assignment().as_deref() != assignment {
            self.assignment.store(assignment.cloned().map(Arc::new));
        }
    }

    /// Are the buckets of a state, which is as of now, those of the map?
    pub fn compare(&self, state: &State, map: &Map, lease: Duration) {
        let mut watch = self.watch.lock();
        let astray = watch.look(state, map, self.shard, lease, clock::now());
        self.gauges.astray.set(astray.len() as i64);
    }

    /// Those that are not for longer than a move takes.
    pub fn astray(&self) -> Astray {
        self.watch.lock().lasting().clone()
    }

    /// Has the shard's task look at the lease at once: it may be this node's.
    pub fn poke(&self) {
        self.poked.notify_one();
    }

    pub async fn poked(&self) {
        self.poked.notified().await;
    }

    /// Can commands be done there, by this node or by forwarding?
    pub fn is_able(&self) -> bool {
        match &**self.standing.load() {
            Standing::Own { tenure, .. } => tenure.holds() && !self.stuck.load(Relaxed),
            Standing::Elsewhere { until, .. } => *until > clock::now(),
            Standing::Changing { .. } | Standing::Vacant => false,
        }
    }

    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Relaxed);
    }

    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Relaxed);
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    pub fn set_seq(&self, seq: u64) {
        self.seq.store(seq, Relaxed);
    }

    pub fn seq(&self) -> u64 {
        self.seq.load(Relaxed)
    }

    /// Has it an owner right now, here or elsewhere, whose lease has not run out as far as this node knows?
    pub fn is_owned(&self) -> bool {
        match &**self.standing.load() {
            Standing::Own { tenure, .. } => tenure.holds(),
            Standing::Elsewhere { until, .. } => *until > clock::now(),
            Standing::Changing { .. } | Standing::Vacant => false,
        }
    }

    /// Resolves once it has an owner.
    pub async fn owned(&self) {
        self.comes_to(|| self.is_owned()).await;
    }

    /// Resolves once it has an owner, and that is not at this address.
    pub async fn left(&self, address: &str) {
        self.comes_to(|| self.is_owned() && !self.is_at(address)).await;
    }

    /// Is it another node's at this address, as far as this one heard last?
    pub fn is_at(&self, address: &str) -> bool {
        matches!(&**self.standing.load(), Standing::Elsewhere { advertise, .. } if advertise == address)
    }

    async fn comes_to(&self, there: impl Fn() -> bool) {
        let mut changed = self.changed.subscribe();
        while !there() {
            // The sender lives in this very seat.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

pub fn busy() -> Failure {
    Failure::Busy { retry_after: RETRY_AFTER }
}
