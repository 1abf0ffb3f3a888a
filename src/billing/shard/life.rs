//! The life of one shard on one node, for as long as the node lives:
//!
//! ```text
//!   follow ──lease acquired──► catch up ──► own ──lease lost, fenced──► follow
//!     ▲  ▲                                   │
//!     │  └── another node has it             └── closing, handed over: release ──► end, or follow
//!     └── the journal does not answer
//! ```
//! A shard whose journal is corrupt is given up: somebody must act.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::commit::{Stopped, commit};
use super::metrics::Metrics;
use super::owner::{Inlets, Leaving, Left, Office, Owner};
use super::replica::Replica;
use super::seat::{HandOver, Seat, Standing};
use super::tenure::Tenure;
use super::transfer::Transfer;
use super::wall::WallClock;
use super::{Config, Failure};
use crate::billing::domain::{self, Command, State};
use crate::billing::journal::{self, Acquisition, Error, Lease};
use crate::billing::notifier::Courier;
use crate::billing::projection::{self, Feed, Projector};
use crate::clock;
use crate::resilience::backoff::Backoff;

/// Answered orders that wait to be journaled; their senders keep their places until then.
const FOLLOW_UPS: usize = 1024;
/// Buckets that wait to be released or adopted; their images are bounded where they come in.
const ERRANDS: usize = 64;
/// Between tries while the journal does not answer.
const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(1) };
/// How long a node that has a lease goes on trying to read what it needs to serve, once that failed. Beyond a lost connection;
/// then somebody else may have the shard.
const UNREADY_MAX: Duration = Duration::from_secs(3);
/// A lease that is about to end is asked for right after its end.
const BEHIND_THE_END: Duration = Duration::from_millis(5);
/// Between looks at a shard that changes hands: as long as its requests wait here.
const SOON: Duration = Duration::from_millis(20);
/// So many, one after another: about as long as requests wait. Then it is waited for as for any other.
const SOON_MAX: u32 = 50;

pub struct Life<B> {
    pub config: Arc<Config>,
    pub backend: B,
    pub wall: WallClock,
    pub metrics: Arc<Metrics>,
    pub courier: Courier,
    pub projection: projection::Metrics,
    pub transfer: Arc<Transfer<B>>,
    pub seat: Arc<Seat>,
    /// This node is about to leave and takes nothing.
    pub resting: Arc<AtomicBool>,
    pub closing: CancellationToken,
}

/// What comes after a step.
enum Next {
    Wait(Duration),
    /// It changes hands.
    Soon,
    Closed,
    /// Corrupt, or settings that do not fit.
    GivenUp(Error),
}

/// Why a shard is not served although its lease is this node's.
enum Unready {
    Stopped(Stopped),
    /// The journal does not give what is needed. Another node may come to it.
    Later(Error),
}

impl From<Stopped> for Unready {
    fn from(stopped: Stopped) -> Unready {
        Unready::Stopped(stopped)
    }
}

impl<B: Backend> Life<B> {
    pub async fn run(self) {
        let shard = self.seat.shard;
        let mut replica = None;
        let (mut failures, mut looks) = (0, 0);
        while !self.closing.is_cancelled() {
            let next = match self.step(&mut replica).await {
                Ok(next) => {
                    failures = 0;
                    next
                }
                Err(Error::Truncated { .. }) => Next::Wait(Duration::ZERO),
                Err(error @ (Error::Unavailable { .. } | Error::Unknown { .. } | Error::Fenced { .. })) => {
                    if failures == 0 {
                        tracing::warn!(shard, %error, "the journal does not answer, the shard waits for it");
                    }
                    self.metrics.retries_follow.inc();
                    let wait = RETRY.delay(failures, fastrand::f64());
                    failures = failures.saturating_add(1);
                    Next::Wait(wait)
                }
                // No retry helps.
                Err(error) => Next::GivenUp(error),
            };
            looks = if matches!(next, Next::Soon) { looks + 1 } else { 0 };
            let wait = match next {
                Next::Wait(wait) => wait,
                Next::Soon if looks <= SOON_MAX => SOON,
                Next::Soon => {
                    looks = SOON_MAX;
                    self.config.poll
                }
                Next::Closed => return,
                Next::GivenUp(error) => {
                    tracing::error!(shard, %error, "the shard is given up, somebody must act");
                    self.seat.set_broken(true);
                    self.seat.publish(Standing::Vacant);
                    return;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.seat.poked() => {}
                () = self.closing.cancelled() => {}
            }
        }
    }

    /// Follows, and owns if it can. The replica is left behind only if it is as the journal.
    async fn step(&self, kept: &mut Option<Replica>) -> Result<Next, Error> {
        let Config { lease, poll, .. } = &*self.config;
        let shard = self.seat.shard;
        let followed = async {
            let mut replica = match kept.take() {
                Some(replica) => replica,
                None => Replica::load(&self.backend, shard).await?,
            };
            replica.follow(&self.backend, shard).await?;
            Ok::<_, Error>(replica)
        };
        let replica = tokio::select! {
            followed = followed => followed?,
            () = self.closing.cancelled() => return Ok(Next::Closed),
        };
        self.seat.set_seq(replica.seq);
        self.seat.set_assignment(replica.state.assignment());
        // Before its first batch a shard has no buckets yet.
        if replica.seq > 0 {
            self.seat.compare(&replica.state, &self.transfer.map, *lease);
        }
        let from = clock::now();
        // After this time an acquired lease would be over.
        let acquired = timeout(*lease, self.acquire()).await;
        let acquired =
            acquired.map_err(|late| Error::Unknown { step: "acquiring a lease", source: late.into() })?;
        match acquired {
            Ok(Acquisition::Acquired(acquired)) => {
                let tenure = Arc::new(Tenure::new(&acquired, *lease, from));
                let (next, replica) = self.own(replica, &acquired, tenure).await?;
                *kept = replica;
                Ok(next)
            }
            Ok(Acquisition::Held(held)) => {
                let behind = held.seq.saturating_sub(replica.seq);
                self.seat.gauges.lag.set(i64::try_from(behind).unwrap_or(i64::MAX));
                *kept = Some(replica);
                let until_its_end = held.expires_in + BEHIND_THE_END;
                if held.advertise.is_empty() {
                    self.seat.still_changing();
                    return Ok(Next::Soon);
                }
                self.stand_by(held, behind);
                Ok(Next::Wait(until_its_end.min(*poll)))
            }
            Err(error) => {
                *kept = Some(replica);
                Err(error)
            }
        }
    }

    async fn acquire(&self) -> Result<Acquisition, Error> {
        let (Config { node, lease, .. }, shard) = (&*self.config, self.seat.shard);
        if !self.resting.load(Relaxed) {
            return self.backend.acquire(shard, node, *lease).await;
        }
        let leases = self.backend.leases().await?;
        let held = leases.into_iter().find(|lease| lease.shard == shard);
        let missing = || Error::Unavailable { step: "looking for a lease", source: "it is not there".into() };
        held.map(Acquisition::Held).ok_or_else(missing)
    }

    fn stand_by(&self, held: Lease, behind: u64) {
        let Lease { shard: _, epoch, seq: _, node, advertise, expires_in } = held;
        let served = !expires_in.is_zero() && node != self.config.node.name;
        self.seat.publish(match served {
            true => Standing::Elsewhere { node, advertise, epoch, until: clock::now() + expires_in, behind },
            false => Standing::Vacant,
        });
    }

    /// From the lease to its end. Fails if the journal gives leases and not what is needed to serve.
    async fn own(
        &self,
        replica: Replica,
        acquired: &Lease,
        tenure: Arc<Tenure>,
    ) -> Result<(Next, Option<Replica>), Error> {
        let Lease { shard, epoch, seq, .. } = *acquired;
        self.metrics.leases_acquired.inc();
        self.seat.gauges.lag.set(0);
        self.seat.publish_changing();
        // Dropped at the end of this function, which stops them.
        let mut beside = JoinSet::new();
        beside.spawn({
            let (tenure, backend, metrics) =
                (Arc::clone(&tenure), self.backend.clone(), Arc::clone(&self.metrics));
            async move { tenure.keep(&backend, &metrics).await }
        });
        let ready = tokio::select! {
            ready = self.get_ready(replica, seq, &tenure) => ready,
            () = tenure.ended() => Err(Unready::Stopped(Stopped::TenureOver)),
        };
        let replica = match ready {
            Ok(replica) => replica,
            Err(Unready::Stopped(Stopped::TenureOver)) => {
                self.metrics.leases_lost.inc();
                return Ok((Next::Wait(Duration::ZERO), None));
            }
            Err(Unready::Stopped(Stopped::Broken(error))) => {
                beside.shutdown().await;
                self.release(&tenure, None).await;
                return Ok((Next::GivenUp(error), None));
            }
            Err(Unready::Later(error)) => {
                beside.shutdown().await;
                self.release(&tenure, None).await;
                return Err(error);
            }
        };
        tracing::info!(shard, epoch, seq = replica.seq, "this node owns the shard");
        let (owner, feed) = self.take_office(replica, &tenure, &mut beside);
        let Left { why, replica } = owner.serve().await;
        if matches!(why, Leaving::Closing | Leaving::HandOver(_)) {
            // The next owner need not derive what is written before the ledger is its own. Too late, it will.
            feed.close();
            let _ = timeout(self.config.projection.drain, feed.ended()).await;
        }
        beside.shutdown().await;
        Ok(match why {
            Leaving::TenureOver => {
                self.metrics.leases_lost.inc();
                tenure.end();
                (Next::Wait(Duration::ZERO), replica)
            }
            Leaving::Broken(error) => {
                self.release(&tenure, None).await;
                (Next::GivenUp(error), None)
            }
            Leaving::Closing => {
                self.release(&tenure, None).await;
                (Next::Closed, None)
            }
            Leaving::HandOver(HandOver { to, assigned: _, reply }) => {
                let kept_for = (!to.is_empty()).then_some((to.as_str(), self.config.hand_over));
                let released = self.release(&tenure, kept_for).await;
                tracing::info!(shard, epoch, to, released, "the shard was handed over");
                if released {
                    self.tell(&to);
                }
                drop(reply.send(if released { Ok(()) } else { Err(Failure::Unknown) }));
                (Next::Soon, replica)
            }
        })
    }

    /// The node may take the shard now. If it hears nothing of it, it finds out at its next poll.
    fn tell(&self, to: &str) {
        let Some(neighbours) = &self.transfer.neighbours else { return };
        let advertise = self.transfer.seats.iter().find_map(|seat| match &*seat.standing() {
            Standing::Elsewhere { node, advertise, .. } if node == to => Some(advertise.clone()),
            _ => None,
        });
        if let Some(advertise) = advertise {
            let told = neighbours.give(&advertise, self.seat.shard, to);
            tokio::spawn(async move { drop(told.await) });
        }
    }

    /// The replica at the end of the journal; of a shard that never had a batch, with its buckets.
    async fn get_ready(&self, replica: Replica, seq: u64, tenure: &Tenure) -> Result<Replica, Unready> {
        let mut kept = Some(replica);
        let mut until = None;
        let mut failures = 0;
        let mut replica = loop {
            let replica = match kept.take() {
                Some(replica) => Ok(replica),
                None => Replica::load(&self.backend, tenure.shard).await,
            };
            let ready = match replica {
                Ok(replica) => replica.catch_up(&self.backend, tenure.shard, seq).await,
                Err(error) => Err(error),
            };
            match ready {
                Ok(replica) => break replica,
                Err(error @ Error::Unavailable { .. })
                    if clock::now() >= *until.get_or_insert(clock::now() + UNREADY_MAX) =>
                {
                    return Err(Unready::Later(error));
                }
                Err(Error::Unavailable { step, source }) => {
                    tracing::debug!(shard = tenure.shard, step, %source, "the journal could not be read yet");
                    self.metrics.retries_follow.inc();
                    tokio::time::sleep(RETRY.delay(failures, fastrand::f64())).await;
                    failures = failures.saturating_add(1);
                }
                Err(Error::Fenced { .. }) => return Err(Stopped::TenureOver.into()),
                Err(error) => return Err(Stopped::Broken(error).into()),
            }
        };
        if replica.seq == 0 {
            self.adopt_first_buckets(&mut replica, tenure).await?;
        }
        Ok(replica)
    }

    /// The first batch of a shard says which buckets it begins with, so that a replay needs nothing but the journal. None, if it
    /// was added later: then its first batch is a bucket that is moved there. (The map cannot have changed before: a bucket is
    /// set to a shard after a batch of it, and from one after another.)
    async fn adopt_first_buckets(&self, replica: &mut Replica, tenure: &Tenure) -> Result<(), Unready> {
        let map = self.backend.bucket_map().await.map_err(|error| match error {
            // It is in the first replica set, and this shard may be in another.
            Error::Unavailable { .. } | Error::Unknown { .. } => Unready::Later(error),
            error => Stopped::Broken(error).into(),
        })?;
        let own = (0..domain::BUCKETS).zip(&map.shards).filter(|(_, shard)| **shard == tenure.shard);
        let adopt = own.map(|(bucket, _)| {
            let image = State::empty_image(bucket).into();
            Command::Adopt { generation: 1, image }
        });
        let commands = domain::Batch { at: self.wall.now(), commands: adopt.collect() };
        if commands.commands.is_empty() {
            return Ok(());
        }
        let mut payload = Vec::new();
        commands.encode(&mut payload);
        let batch = journal::Batch {
            shard: tenure.shard,
            seq: 1,
            epoch: tenure.epoch,
            payload: Bytes::from(payload),
        };
        commit(&self.backend, &batch, tenure, &self.metrics).await?;
        replica.state.replay(&commands);
        replica.seq = 1;
        replica.last = Some((batch.epoch, batch.checksum()));
        Ok(())
    }

    fn take_office(
        &self,
        replica: Replica,
        tenure: &Arc<Tenure>,
        beside: &mut JoinSet<()>,
    ) -> (Owner<B>, Feed) {
        let (requests, requests_in) = mpsc::channel(self.config.queue.max(1));
        let (follow_ups, follow_ups_in) = mpsc::channel(FOLLOW_UPS);
        let (errands, errands_in) = mpsc::channel(ERRANDS);
        let (hand_over, hand_over_in) = mpsc::channel(1);
        let outbox = self.courier.outbox();
        if let Some(outbox) = &outbox {
            let holder = Arc::clone(tenure);
            let may_send = Arc::new(move || holder.holds());
            beside.spawn(self.courier.clone().dispatch(outbox.clone(), may_send, follow_ups));
        }
        let (projector, feed) = Projector::new(projection::Office {
            ledger: self.backend.clone(),
            shard: tenure.shard,
            epoch: tenure.epoch,
            last: replica.seq,
            at: replica.state.last(),
            config: self.config.projection.clone(),
            metrics: self.projection.clone(),
        });
        beside.spawn(projector.run());
        let courier = self.courier.clone();
        let office = Office {
            config: Arc::clone(&self.config),
            backend: self.backend.clone(),
            wall: self.wall.clone(),
            metrics: Arc::clone(&self.metrics),
            transfer: Arc::clone(&self.transfer),
            seat: Arc::clone(&self.seat),
            tenure: Arc::clone(tenure),
            closing: self.closing.clone(),
            feed: feed.clone(),
            outbox,
            cancelled: Box::new(move |count| courier.cancelled(count)),
        };
        let inlets = Inlets {
            requests: requests_in,
            follow_ups: follow_ups_in,
            errands: errands_in,
            hand_over: hand_over_in,
        };
        // The last batch of the owner before may have said so.
        self.seat.set_assignment(replica.state.assignment());
        let owner = Owner::new(office, inlets, replica);
        let tenure = Arc::clone(tenure);
        self.seat.publish(Standing::Own { requests, errands, hand_over, tenure, feed: feed.clone() });
        (owner, feed)
    }

    /// So that another node need not wait for the lease to end. Tried as long as the lease lasts; false if it may not have
    /// been heard.
    async fn release(&self, tenure: &Tenure, to: Option<(&str, Duration)>) -> bool {
        let Tenure { shard, epoch, .. } = *tenure;
        let mut failures = 0;
        while tenure.holds() {
            let left = tenure.deadline().saturating_duration_since(clock::now());
            match timeout(left, self.backend.release(shard, epoch, to)).await {
                // Fenced: it was heard before, or somebody else has it.
                Ok(Ok(()) | Err(Error::Fenced { .. })) => {
                    tenure.end();
                    self.metrics.leases_released.inc();
                    return true;
                }
                Ok(Err(error)) => tracing::debug!(shard, epoch, %error, "a lease could not be released yet"),
                Err(_) => break,
            }
            tokio::time::sleep(RETRY.delay(failures, fastrand::f64()).min(left)).await;
            failures = failures.saturating_add(1);
        }
        tenure.end();
        tracing::warn!(shard, epoch, "a lease could not be released, it ends by itself");
        false
    }
}
