//! Where commands for one shard go from this node: to its own loop, to another node, or nowhere for now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use super::Failure;
use super::metrics::Gauges;
use super::tenure::Tenure;
use crate::billing::domain::{Account, Key, Operation};
use crate::clock;

/// What a caller wants of an owner.
pub enum Request {
    Operate { account: u64, key: Key, operation: Operation, reply: oneshot::Sender<Result<Told, Failure>> },
    Get { account: u64, reply: oneshot::Sender<Result<Account, Failure>> },
    List { after: Option<u64>, limit: usize, reply: oneshot::Sender<Result<Vec<Account>, Failure>> },
}

/// An answer, and whether it is the first one of its key.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub account: Account,
    pub replayed: bool,
}

impl Request {
    pub fn refuse(self, failure: Failure) {
        // Whoever does not wait any more does not need it.
        match self {
            Request::Operate { reply, .. } => drop(reply.send(Err(failure))),
            Request::Get { reply, .. } => drop(reply.send(Err(failure))),
            Request::List { reply, .. } => drop(reply.send(Err(failure))),
        }
    }
}

/// Asks an owner to leave; told when this node writes nothing more.
pub struct HandOver {
    pub to: String,
    pub reply: oneshot::Sender<Result<(), Failure>>,
}

pub enum Standing {
    Own {
        requests: mpsc::Sender<Request>,
        hand_over: mpsc::Sender<HandOver>,
        tenure: Arc<Tenure>,
    },
    /// As its lease said, and until when.
    Elsewhere {
        node: String,
        advertise: String,
        epoch: u64,
        until: Instant,
    },
    /// Nobody has it that this node knows of, or it changes hands.
    Vacant,
}

/// What the router and the shard's task share.
pub struct Seat {
    pub shard: u32,
    pub gauges: Gauges,
    standing: ArcSwap<Standing>,
    changed: watch::Sender<()>,
    /// The journal does not take a batch for longer than callers are patient.
    stuck: AtomicBool,
    /// Someone must act; see the log.
    broken: AtomicBool,
    /// Of the last durable batch, as far as this node knows.
    seq: AtomicU64,
}

/// Before a shard that changes hands is worth another try.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Seat {
    pub fn new(shard: u32, gauges: Gauges) -> Seat {
        Seat {
            shard,
            gauges,
            standing: ArcSwap::from_pointee(Standing::Vacant),
            changed: watch::Sender::new(()),
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

    /// Puts a request where it belongs, or says why not.
    pub fn hand_in(&self, request: Request) -> Result<(), Failure> {
        match &**self.standing.load() {
            Standing::Own { requests, .. } => requests.try_send(request).map_err(|_| busy()),
            Standing::Elsewhere { node, advertise, until, .. } if *until > clock::now() => {
                Err(Failure::Elsewhere { node: node.clone(), advertise: advertise.clone() })
            }
            Standing::Elsewhere { .. } | Standing::Vacant => Err(busy()),
        }
    }

    /// Can commands be done there, by this node or by forwarding?
    pub fn is_able(&self) -> bool {
        match &**self.standing.load() {
            Standing::Own { tenure, .. } => tenure.holds() && !self.stuck.load(Relaxed),
            Standing::Elsewhere { until, .. } => *until > clock::now(),
            Standing::Vacant => false,
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

    /// Resolves once the standing is what is asked for.
    pub async fn wait_for(&self, is: impl Fn(&Standing) -> bool) {
        let mut changed = self.changed.subscribe();
        while !is(&self.standing.load()) {
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
