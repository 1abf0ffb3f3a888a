//! Buckets that leave and come, and what else concerns a shard as a whole.
//!
//! A bucket leaves in three steps. The journal's map is looked at, for it must say that the bucket is this shard's: then its
//! last way is over for everybody. Then it is released, in a batch; what was done before it in the batch goes with it. Once
//! that is durable it is carried, beside the commands, until it has arrived; the batch after that says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::super::backend::Backend;
use super::super::seat::{Errand, busy};
use super::super::tenure::Tenure;
use super::super::transfer::Transfer;
use super::super::{Failure, Unmovable};
use super::{Owner, Turn};
use crate::billing::domain::{Command, Outgoing, Refusal, Reply};

/// Buckets of one shard on their way to another at once: a shard without an owner holds up no other. Each has its image in
/// memory; and while one commits, the next ones travel.
const UNDER_WAY_MAX: usize = 8;
/// How far the time of a bucket that comes may be ahead of the clock. Synchronised clocks differ by milliseconds.
const AHEAD_MAX: Duration = Duration::from_secs(5);
/// Callers that wait for the same bucket.
const WAITING_MAX: usize = 16;

type Answer = Result<(), Failure>;
pub(super) type Replies = Vec<(oneshot::Sender<Answer>, Answer)>;

/// What a task beside the owner found or did.
pub(super) enum Step {
    /// The journal's map was looked at for a bucket that was here at this generation.
    Looked {
        bucket: u16,
        generation: u64,
        is_own: bool,
    },
    Arrived {
        bucket: u16,
        generation: u64,
    },
}

/// The buckets that leave this shard.
pub(super) struct Departures<B> {
    transfer: Arc<Transfer<B>>,
    tenure: Arc<Tenure>,
    under_way: BTreeMap<u16, Departure>,
    steps: JoinSet<Step>,
}

struct Departure {
    to: u32,
    /// Cancelled when it comes back.
    back: CancellationToken,
    waiting: Vec<oneshot::Sender<Answer>>,
}

impl<B: Backend> Departures<B> {
    /// With what an owner before has left on its way.
    pub fn new<'o>(
        transfer: Arc<Transfer<B>>,
        tenure: Arc<Tenure>,
        outgoing: impl Iterator<Item = &'o Outgoing>,
    ) -> Departures<B> {
        let (under_way, steps) = (BTreeMap::new(), JoinSet::new());
        let mut departures = Departures { transfer, tenure, under_way, steps };
        outgoing.for_each(|outgoing| departures.carry(outgoing.clone()));
        departures
    }

    /// What was done beside the owner; waits for ever if nothing is.
    pub async fn step(&mut self) -> Step {
        loop {
            match self.steps.join_next().await {
                Some(Ok(step)) => return step,
                Some(Err(error)) => self.tell_failed(&error),
                None => std::future::pending().await,
            }
        }
    }

    /// What else is done already.
    pub fn ready(&mut self) -> Option<Step> {
        loop {
            match self.steps.try_join_next()? {
                Ok(step) => return Some(step),
                Err(error) => self.tell_failed(&error),
            }
        }
    }

    fn tell_failed(&self, error: &JoinError) {
        let shard = self.tenure.shard;
        tracing::error!(shard, %error, "a bucket that leaves is stuck until the shard changes hands");
    }

    fn look(&mut self, bucket: u16, generation: u64, to: u32, reply: oneshot::Sender<Answer>) {
        let departure = Departure { to, back: CancellationToken::new(), waiting: vec![reply] };
        self.under_way.insert(bucket, departure);
        let (transfer, shard) = (Arc::clone(&self.transfer), self.tenure.shard);
        self.steps.spawn(async move {
            let map = transfer.map.read(&transfer.backend).await;
            let is_own = map.is_ok_and(|map| map.shards.get(usize::from(bucket)) == Some(&shard));
            Step::Looked { bucket, generation, is_own }
        });
    }

    fn carry(&mut self, outgoing: Outgoing) {
        let Outgoing { bucket, to, generation, .. } = outgoing;
        let fresh = || Departure { to, back: CancellationToken::new(), waiting: Vec::new() };
        let back = self.under_way.entry(bucket).or_insert_with(fresh).back.clone();
        let (transfer, tenure) = (Arc::clone(&self.transfer), Arc::clone(&self.tenure));
        self.steps.spawn(async move {
            transfer.carry(tenure.shard, outgoing, &tenure, &back).await;
            Step::Arrived { bucket, generation }
        });
    }

    fn end(&mut self, bucket: u16, answer: &Answer) {
        let departure = self.under_way.remove(&bucket);
        let waiting = departure.into_iter().flat_map(|departure| departure.waiting);
        waiting.for_each(|reply| drop(reply.send(answer.clone())));
    }

    /// Whoever waits for it asks again.
    fn came_back(&mut self, bucket: u16) {
        if let Some(departure) = self.under_way.remove(&bucket) {
            departure.back.cancel();
        }
    }
}

impl<B: Backend> Owner<B> {
    pub(super) fn move_buckets(&mut self, turn: &mut Turn) {
        for step in std::mem::take(&mut self.steps) {
            match step {
                Step::Looked { bucket, generation, is_own } => self.release(bucket, generation, is_own, turn),
                Step::Arrived { bucket, generation } => self.arrived(bucket, generation, turn),
            }
        }
        for errand in std::mem::take(&mut self.errands) {
            match errand {
                Errand::Move { bucket, to, reply } => self.begin(bucket, to, reply),
                Errand::Adopt { generation, image, reply } => {
                    let adopted = self.adopt(generation, image.as_ref().into(), turn);
                    turn.replies.push((reply, adopted));
                }
                Errand::Assign { reply } => {
                    let node = self.office.config.node.name.as_str().into();
                    self.apply(Command::Assign { node }, turn);
                    turn.replies.push((reply, Ok(())));
                }
            }
        }
    }

    fn begin(&mut self, bucket: u16, to: u32, reply: oneshot::Sender<Answer>) {
        if let Some(departure) = self.departures.under_way.get_mut(&bucket)
            && departure.to == to
        {
            departure.waiting.retain(|reply| !reply.is_closed());
            match departure.waiting.len() {
                0..WAITING_MAX => departure.waiting.push(reply),
                _ => drop(reply.send(Err(Failure::Unknown))),
            }
            return;
        }
        match self.may_leave(bucket, to) {
            Ok(Some(generation)) => self.departures.look(bucket, generation, to, reply),
            Ok(None) => drop(reply.send(Ok(()))),
            Err(failure) => drop(reply.send(Err(failure))),
        }
    }

    /// None: it is where it is to go.
    fn may_leave(&self, bucket: u16, to: u32) -> Result<Option<u64>, Failure> {
        // On its way to somewhere else, on its way here, or another shard's.
        let generation = self.state.generation(bucket).ok_or_else(busy)?;
        if to == self.office.tenure.shard {
            return Ok(None);
        }
        let under_way = &self.departures.under_way;
        let others = under_way.values().filter(|departure| departure.to == to);
        if under_way.contains_key(&bucket) || others.count() >= UNDER_WAY_MAX {
            return Err(busy());
        }
        self.fits(bucket)?;
        self.departures.transfer.reaches(to)?;
        Ok(Some(generation))
    }

    fn fits(&self, bucket: u16) -> Result<(), Failure> {
        let bytes = self.state.image_bytes_max(bucket).unwrap_or_default();
        match bytes > self.office.config.image_bytes_max {
            true => Err(Unmovable::TooLarge { bytes }.into()),
            false => Ok(()),
        }
    }

    fn release(&mut self, bucket: u16, generation: u64, is_own: bool, turn: &mut Turn) {
        let Some(departure) = self.departures.under_way.get(&bucket) else { return };
        let to = departure.to;
        if !is_own || self.state.generation(bucket) != Some(generation) {
            return self.departures.end(bucket, &Err(busy()));
        }
        // It may have grown since, and what is released must be taken.
        if let Err(failure) = self.fits(bucket) {
            return self.departures.end(bucket, &Err(failure));
        }
        self.apply(Command::Release { bucket, to, generation: generation + 1 }, turn);
        turn.released.push(bucket);
        turn.created -= self.state.outgoing_of(bucket).map_or(0, Outgoing::accounts_len) as i64;
    }

    fn arrived(&mut self, bucket: u16, generation: u64, turn: &mut Turn) {
        // Otherwise it came back meanwhile.
        if self.apply(Command::Sent { bucket, generation }, turn).changed {
            self.departures.end(bucket, &Ok(()));
            self.office.metrics.buckets_sent.inc();
        }
    }

    /// The shard's time would follow that of the bucket, and all its accounts would be charged for what has not passed.
    /// Whoever sends it does so again, until the clock has come there.
    fn is_ahead(&mut self, bucket: u16, image: &[u8]) -> bool {
        let now = self.office.wall.now().max(self.state.last());
        let ahead = Outgoing::last_of_image(image).map_or(0, |last| last.since(now));
        let ahead = Duration::from_micros(ahead);
        if ahead > AHEAD_MAX && !self.told_ahead {
            let shard = self.office.tenure.shard;
            tracing::error!(
                shard,
                bucket,
                ?ahead,
                "a bucket comes from a shard whose clock was ahead, it waits outside; clocks must be synchronised"
            );
        }
        self.told_ahead = ahead > AHEAD_MAX;
        ahead > AHEAD_MAX
    }

    /// Its timers run here from now on, and its orders leave here once this is durable.
    fn adopt(&mut self, generation: u64, image: Box<[u8]>, turn: &mut Turn) -> Answer {
        let Some(bucket) = Outgoing::bucket_of_image(&image) else {
            return Err(Refusal::BadBucket.into());
        };
        if generation > self.state.seen(bucket) && self.is_ahead(bucket, &image) {
            return Err(busy());
        }
        let applied = self.apply(Command::Adopt { generation, image }, turn);
        match applied.result {
            Ok(Reply::Done) => {
                self.departures.came_back(bucket);
                self.state.timers_of(bucket).for_each(|timer| self.timers.push(timer.account, timer.at));
                turn.inherited.extend(self.state.orders_of(bucket));
                turn.created += self.state.accounts_len_of(bucket) as i64;
                self.office.metrics.buckets_adopted.inc();
                Ok(())
            }
            result => result.map(drop).map_err(Failure::from),
        }
    }

    /// Their releases are durable.
    pub(super) fn send_off(&mut self, released: &[u16]) {
        for outgoing in released.iter().filter_map(|bucket| self.state.outgoing_of(*bucket)) {
            self.office.metrics.buckets_released.inc();
            if let Some(outbox) = &self.office.outbox {
                for order in outgoing.orders() {
                    outbox.cancel(order.account);
                }
            }
            self.departures.carry(outgoing.clone());
        }
    }
}
