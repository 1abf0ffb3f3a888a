//! The owner of a shard at work: one loop, which alone touches the state.
//!
//! A turn: take what waits, answer reads from the state (all of it is durable), apply the commands at one time, make what
//! changed durable as one batch, then send orders and answer. While a batch is written the next one waits in the channel.

mod moving;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use super::astray::{self, Astray};
use super::backend::Backend;
use super::batching::BatchLimit;
use super::commit::{Stopped, commit};
use super::forgetting::Forgetting;
use super::metrics::Metrics;
use super::postbox::{Answer, Bells, Reply};
use super::replica::Replica;
use super::seat::{Errand, HandOver, Request, Seat, Standing, Told, busy};
use super::snapshots::Snapshots;
use super::tenure::Tenure;
use super::transfer::Transfer;
use super::wall::{Leaps, WallClock};
use super::{Config, Failure};
use crate::billing::domain::{
    self, AHEAD, Account, Applied, Command, EventKind, Hashed, Micros, Order, Stage, State,
};
use crate::billing::journal::{self, Line};
use crate::billing::notifier::{FollowUp, Outbox, Timers};
use crate::billing::projection::{self, Feed};
use crate::clock;
use moving::{Departures, Replies, Step};

/// Depletions in one batch, so that 10,000 at one second leave room for callers in each of their batches.
const DEPLETIONS_MAX: usize = 1024;
/// Follow-ups of the notifier in one batch.
const FOLLOW_UPS_MAX: usize = 1024;
/// Buckets that come in one batch, and a few more steps of those that leave: each may be large.
const ERRANDS_MAX: usize = 2;
/// Listings under way at once: each looks at every account, on a thread of its own.
const LISTINGS_MAX: usize = 4;
/// How far the wall clock may be behind the journal before that is told. Nodes differ by less.
const BEHIND: Duration = Duration::from_millis(500);
/// How often callers are looked after while the journal does not answer.
const SHED: Duration = Duration::from_millis(100);

/// What an owner is given.
pub struct Office<B> {
    pub config: Arc<Config>,
    pub backend: B,
    pub wall: WallClock,
    pub metrics: Arc<Metrics>,
    pub transfer: Arc<Transfer<B>>,
    pub seat: Arc<Seat>,
    pub tenure: Arc<Tenure>,
    pub closing: CancellationToken,
    /// To the ledger.
    pub feed: Feed,
    /// None: nobody is told of depletions.
    pub outbox: Option<Outbox>,
    /// Counts orders that money came for.
    pub cancelled: Box<dyn Fn(u64) + Send + Sync>,
}

pub struct Inlets {
    pub requests: mpsc::Receiver<Request>,
    pub follow_ups: mpsc::Receiver<FollowUp>,
    pub errands: mpsc::Receiver<Errand>,
    pub hand_over: mpsc::Receiver<HandOver>,
}

/// Why an owner stopped.
pub enum Leaving {
    Closing,
    HandOver(HandOver),
    TenureOver,
    Broken(journal::Error),
}

/// The replica is there if all of it is durable.
pub struct Left {
    pub why: Leaving,
    pub replica: Option<Replica>,
}

pub struct Owner<B> {
    office: Office<B>,
    inlets: Inlets,
    state: State,
    seq: u64,
    last: Option<(u64, u32)>,
    /// The last batch may or may not be durable.
    doubtful: bool,
    timers: Timers,
    rebuilt: Option<oneshot::Receiver<Timers>>,
    snapshots: Snapshots,
    forgetting: Forgetting,
    accounts: i64,
    told_behind: bool,
    leaps: Leaps,
    told_ahead: bool,
    listings: Arc<Semaphore>,
    /// Snapshots; dropped with the owner.
    beside: JoinSet<()>,
    departures: Departures<B>,
    looks: Interval,
    inbox: Vec<Request>,
    arrived: Vec<FollowUp>,
    errands: Vec<Errand>,
    steps: Vec<Step>,
    batch_limit: BatchLimit,
}

/// A batch before it is durable.
#[derive(Default)]
struct Turn {
    at: Micros,
    commands: Vec<Command>,
    /// For the ledger, once it is durable.
    lines: Vec<Line>,
    answers: Vec<(Reply, Answer)>,
    /// Orders to send once it is durable, unless money comes before.
    depleted: Vec<Order>,
    /// Accounts whose orders money came for.
    reopened: Vec<u64>,
    /// Accounts and versions that need no order any more.
    settled: Vec<(u64, u32)>,
    /// Orders that came with a bucket and are sent here from now on.
    inherited: Vec<Order>,
    /// Buckets to carry away once it is durable.
    released: Vec<u16>,
    replies: Replies,
    /// Accounts that came, less those that went.
    created: i64,
}

impl<B: Backend> Owner<B> {
    /// `replica` is at the end of the journal.
    pub fn new(office: Office<B>, inlets: Inlets, replica: Replica) -> Owner<B> {
        let Replica { state, seq, last } = replica;
        let leaps = Leaps::new(office.wall.now(), clock::now());
        let now = office.wall.now().max(state.last());
        let timers = Timers::new(state.timers().map(|timer| (timer.at, timer.account)), now);
        if let Some(outbox) = &office.outbox {
            outbox.refill(state.orders(), clock::now());
        }
        office.seat.set_seq(seq);
        let (transfer, tenure) = (Arc::clone(&office.transfer), Arc::clone(&office.tenure));
        let mut looks = interval_at(Instant::now() + astray::EVERY, astray::EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let batch_limit = BatchLimit::new(office.config.batch_commands);
        Owner {
            looks,
            departures: Departures::new(transfer, tenure, state.outgoing()),
            timers,
            snapshots: Snapshots::new(&office.config),
            forgetting: Forgetting::new(&office.config),
            accounts: state.accounts_len() as i64,
            office,
            inlets,
            state,
            seq,
            last,
            doubtful: false,
            rebuilt: None,
            told_behind: false,
            leaps,
            told_ahead: false,
            listings: Arc::new(Semaphore::new(LISTINGS_MAX)),
            beside: JoinSet::new(),
            inbox: Vec::new(),
            arrived: Vec::new(),
            errands: Vec::new(),
            steps: Vec::new(),
            batch_limit,
        }
    }

    /// Until something ends it. Requests that are left are answered by then.
    pub async fn serve(mut self) -> Left {
        let why = loop {
            self.office.seat.gauges.accounts.set(self.accounts);
            self.office.seat.gauges.outgoing.set(self.state.outgoing().count() as i64);
            if let Err(why) = self.wait().await {
                break why;
            }
            if let Err(why) = self.turn().await {
                break why;
            }
        };
        self.leave(why).await
    }

    /// Until there is work; takes it.
    async fn wait(&mut self) -> Result<(), Leaving> {
        let now = self.now();
        let (due, forgetting_due) = (self.timers.next(), self.forgetting.next());
        let Office { wall, tenure, closing, .. } = &self.office;
        let until_due = async {
            match due {
                Some(due) if due <= now => {}
                Some(due) => wall.until(due).await,
                None => std::future::pending().await,
            }
        };
        let until_forgetting = async {
            match forgetting_due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let rebuilt = async {
            match &mut self.rebuilt {
                Some(rebuilt) => rebuilt.await,
                None => std::future::pending().await,
            }
        };
        let Inlets { requests, follow_ups, errands, hand_over } = &mut self.inlets;
        let limit = self.batch_limit.commands();
        tokio::select! {
            biased;
            () = tenure.ended() => return Err(Leaving::TenureOver),
            () = closing.cancelled() => return Err(Leaving::Closing),
            Some(request) = hand_over.recv() => return Err(Leaving::HandOver(request)),
            1.. = follow_ups.recv_many(&mut self.arrived, FOLLOW_UPS_MAX) => {}
            step = self.departures.step() => self.steps.push(step),
            1.. = errands.recv_many(&mut self.errands, ERRANDS_MAX) => {}
            fresh = rebuilt => {
                self.timers.end_rebuild(fresh.ok());
                self.rebuilt = None;
            }
            _ = self.looks.tick() => {
                let Office { seat, transfer, config, .. } = &self.office;
                seat.compare(&self.state, &transfer.map, config.lease);
            }
            1.. = requests.recv_many(&mut self.inbox, limit) => {}
            () = until_due => {}
            () = until_forgetting => {}
        }
        while self.inbox.len() < limit
            && let Ok(request) = requests.try_recv()
        {
            self.inbox.push(request);
        }
        while self.arrived.len() < FOLLOW_UPS_MAX
            && let Ok(follow_up) = follow_ups.try_recv()
        {
            self.arrived.push(follow_up);
        }
        self.steps.extend(std::iter::from_fn(|| self.departures.ready()));
        self.office.seat.gauges.queue.set(requests.len() as i64);
        Ok(())
    }

    async fn turn(&mut self) -> Result<(), Leaving> {
        if !self.office.tenure.holds() {
            return Err(Leaving::TenureOver);
        }
        let at = self.now();
        self.rebuild_timers(at);
        self.read(at);
        let most = self.inbox.len() + self.arrived.len();
        let mut turn = Turn {
            at,
            commands: Vec::with_capacity(most),
            lines: if most > 0 { self.office.feed.buffer(most) } else { Vec::new() },
            answers: Vec::with_capacity(self.inbox.len()),
            ..Turn::default()
        };
        self.refill();
        self.operate(&mut turn);
        self.follow_up(&mut turn);
        self.deplete(&mut turn);
        self.move_buckets(&mut turn);
        self.forget(&mut turn);
        if !turn.commands.is_empty() {
            self.make_durable(&mut turn).await?;
        }
        self.tell(turn);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------ one turn

    /// Reads come first in a turn: the state is durable then. Callers whose commands are in the same turn were not
    /// answered yet, so nobody can tell that a read came before them.
    fn read(&mut self, now: Micros) {
        let mut bells = Bells::default();
        let reads: Vec<Request> = self.inbox.extract_if(.., |request| request.is_read()).collect();
        for request in reads {
            match request {
                Request::Get { account, reply } => {
                    let account = self.state.account(account, now).map_err(Failure::Refused);
                    reply.send_with(account.map(|account| Told { account, replayed: false }), &mut bells);
                }
                Request::List { after, limit, reply } => self.list(after, limit, now, reply),
                Request::Operate { .. } => {}
            }
        }
    }

    fn list(
        &self,
        after: Option<u64>,
        limit: usize,
        now: Micros,
        reply: oneshot::Sender<Result<Vec<Account>, Failure>>,
    ) {
        // Accounts on their way would be told by nobody; so would those of a bucket that is nowhere, and others twice.
        let Office { transfer, tenure, .. } = &self.office;
        let is_as_mapped = Astray::of(&self.state, &transfer.map.current(), tenure.shard).is_empty();
        if !is_as_mapped {
            // It may be the map that is late.
            transfer.map.doubt();
        }
        let is_whole = is_as_mapped && self.state.outgoing().next().is_none();
        let place = Arc::clone(&self.listings).try_acquire_owned().ok().filter(|_| is_whole);
        let Some(place) = place else { return drop(reply.send(Err(busy()))) };
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || {
            let page = state.page(after, limit, now);
            drop(state);
            drop(place);
            drop(reply.send(Ok(page)));
        });
    }

    /// Here, because all orders of the state are durable before the first command of a turn.
    fn refill(&mut self) {
        if self.arrived.contains(&FollowUp::Refill)
            && let Some(outbox) = &self.office.outbox
        {
            outbox.refill(self.state.orders(), clock::now());
        }
    }

    fn operate(&mut self, turn: &mut Turn) {
        let full = self.forgetting.is_full();
        // It keeps its room for the next turn.
        let mut inbox = std::mem::take(&mut self.inbox);
        let (mut commands, mut replies) = (Vec::with_capacity(AHEAD), Vec::with_capacity(AHEAD));
        for request in inbox.drain(..) {
            let Request::Operate { account, key, operation, reply } = request else { continue };
            if full {
                reply.send(Err(busy()));
                continue;
            }
            // Who has gone away before it began does not want it done.
            if reply.is_closed() {
                continue;
            }
            commands.push(Command::Operate { key, account, operation });
            replies.push(reply);
            if commands.len() == AHEAD {
                self.operate_all(&mut commands, &mut replies, turn);
            }
        }
        self.operate_all(&mut commands, &mut replies, turn);
        self.inbox = inbox;
    }

    /// At most [`AHEAD`].
    fn operate_all(&mut self, commands: &mut Vec<Command>, replies: &mut Vec<Reply>, turn: &mut Turn) {
        let ahead = self.state.look_ahead(commands);
        for (hashed, reply) in ahead.into_iter().flatten().zip(replies.drain(..)) {
            let applied = self.apply_hashed(hashed, turn);
            if applied.changed {
                turn.commands.push(hashed.command.clone());
            }
            let answer = match applied.result {
                Ok(domain::Reply::Account(account)) => Ok(Told { account, replayed: applied.replayed }),
                Ok(domain::Reply::Done | domain::Reply::Stale) => Err(Failure::Unknown),
                Err(refusal) => Err(Failure::Refused(refusal)),
            };
            turn.answers.push((reply, answer));
        }
        commands.clear();
    }

    fn follow_up(&mut self, turn: &mut Turn) {
        for follow_up in std::mem::take(&mut self.arrived) {
            if let FollowUp::Delivered { account, version, at } = follow_up {
                self.apply(Command::Delivered { account, version, at }, turn);
                turn.settled.push((account, version));
            }
        }
    }

    fn deplete(&mut self, turn: &mut Turn) {
        for _ in 0..DEPLETIONS_MAX {
            let Some(account) = self.timers.pop(turn.at) else { return };
            match self.state.timer(account) {
                Some(timer) if timer.at <= turn.at => {
                    self.apply(Command::Deplete { account, version: timer.version }, turn);
                }
                Some(timer) => self.timers.push(account, timer.at),
                None => {}
            }
        }
    }

    fn forget(&mut self, turn: &mut Turn) {
        let busy = !turn.commands.is_empty();
        if let Some(before) = self.forgetting.due(&self.state, turn.at, clock::now(), busy) {
            self.apply(Command::Forget { before }, turn);
            self.forgetting.count(&self.state);
        }
    }

    fn apply(&mut self, command: Command, turn: &mut Turn) -> Applied {
        let applied = self.apply_hashed(Hashed::from(&command), turn);
        if applied.changed {
            turn.commands.push(command);
        }
        applied
    }

    /// The caller journals it if it changed anything.
    fn apply_hashed(&mut self, hashed: Hashed, turn: &mut Turn) -> Applied {
        let command = hashed.command;
        let account = match command {
            Command::Operate { account, .. }
            | Command::Deplete { account, .. }
            | Command::Delivered { account, .. } => Some(*account),
            Command::Forget { .. }
            | Command::Release { .. }
            | Command::Adopt { .. }
            | Command::Sent { .. }
            | Command::Assign { .. } => None,
        };
        let instant = |state: &State| account.and_then(|account| state.timer(account)).map(|timer| timer.at);
        let before = instant(&self.state);
        // Without an instant it may be stopped, and money then reopens it.
        let version = match before {
            None => account.and_then(|account| self.state.row(account)).map(|row| row.version),
            Some(_) => None,
        };
        let place = (self.seq + 1, turn.commands.len());
        let applied = projection::apply(&mut self.state, hashed, turn.at, place, &mut turn.lines);
        if !applied.changed {
            return applied;
        }
        applied.events.iter().for_each(|event| turn.notice(event, version));
        if let Some(account) = account {
            self.timers.moved(account, before, instant(&self.state));
        }
        applied
    }

    // ------------------------------------------------------------------------------------------------------- durable

    async fn make_durable(&mut self, turn: &mut Turn) -> Result<(), Leaving> {
        let Office { config, backend, metrics, seat, tenure, feed, .. } = &self.office;
        let commands = domain::Batch { at: turn.at, commands: std::mem::take(&mut turn.commands) };
        let mut payload = Vec::with_capacity(32 + 64 * commands.commands.len());
        commands.encode(&mut payload);
        let batch = journal::Batch {
            shard: tenure.shard,
            seq: self.seq + 1,
            epoch: tenure.epoch,
            payload: Bytes::from(payload),
        };
        let began = clock::now();
        let result = {
            let durable = commit(backend, &batch, tenure, metrics);
            tokio::pin!(durable);
            let mut impatient = interval_at(Instant::now() + config.patience, SHED);
            impatient.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    result = &mut durable => break result,
                    _ = impatient.tick() => {
                        seat.set_stuck(true);
                        if clock::now() >= began + config.answer_timeout {
                            turn.give_up();
                        }
                        shed(&mut self.inlets.requests, config.queue);
                    }
                }
            }
        };
        seat.set_stuck(false);
        if let Err(stopped) = result {
            self.doubtful = true;
            turn.give_up();
            return Err(match stopped {
                Stopped::TenureOver => Leaving::TenureOver,
                Stopped::Broken(error) => Leaving::Broken(error),
            });
        }
        self.seq = batch.seq;
        self.last = Some((batch.epoch, batch.checksum()));
        seat.set_seq(self.seq);
        feed.offer(batch.seq, turn.at, std::mem::take(&mut turn.lines));
        let took = clock::now() - began;
        self.batch_limit.committed(took);
        metrics.commit.observe(took.as_secs_f64());
        metrics.batch_commands.observe(commands.commands.len() as f64);
        if !tenure.holds() {
            // It is durable, but another owner may have answered differently since.
            turn.give_up();
            return Err(Leaving::TenureOver);
        }
        if self.snapshots.is_due(batch.payload.len()) {
            let place = (batch.shard, batch.seq, batch.epoch);
            self.beside.spawn(self.snapshots.make(backend.clone(), feed.clone(), place, self.state.clone()));
        }
        // Those that ended give their place back.
        while self.beside.try_join_next().is_some() {}
        Ok(())
    }

    /// All of it is durable.
    fn tell(&mut self, turn: Turn) {
        let Turn {
            at: _,
            commands: _,
            lines: _,
            answers,
            depleted,
            reopened,
            settled,
            inherited,
            released,
            replies,
            created,
        } = turn;
        self.accounts += created;
        self.office.metrics.depletions.inc_by(depleted.len() as u64);
        if let Some(outbox) = &self.office.outbox {
            settled.iter().for_each(|(account, version)| outbox.settled(*account, *version));
            // Before the new orders: an account may have been reopened and have run dry again.
            let cancelled = reopened.iter().filter(|account| outbox.cancel(**account)).count();
            (self.office.cancelled)(cancelled as u64);
            // Money that came in the same turn is earlier than the commit: no order leaves.
            let stopped = |order: &Order| {
                let row = self.state.row(order.account);
                row.is_some_and(|row| {
                    row.version == order.version && matches!(row.stage, Stage::Stopped { .. })
                })
            };
            if !depleted.is_empty() || !inherited.is_empty() {
                outbox.add(depleted.into_iter().chain(inherited).filter(stopped), clock::now());
            }
        }
        if !released.is_empty() || !replies.is_empty() {
            self.send_off(&released);
            self.office.seat.set_assignment(self.state.assignment());
        }
        replies.into_iter().for_each(|(reply, answer)| drop(reply.send(answer)));
        let mut bells = Bells::default();
        answers.into_iter().for_each(|(reply, answer)| reply.send_with(answer, &mut bells));
    }

    // ------------------------------------------------------------------------------------------------------- the rest

    /// Never before the state's time, which a clock that was set back would be.
    fn now(&mut self) -> Micros {
        let (now, last) = (self.office.wall.now(), self.state.last());
        if let Some(step) = self.leaps.look(now, clock::now()) {
            let shard = self.office.tenure.shard;
            tracing::error!(
                shard,
                ?step,
                "the clock was set forward, accounts are charged for that; clocks must be synchronised"
            );
        }
        let behind = Duration::from_micros(last.since(now));
        if behind > BEHIND && !self.told_behind {
            let shard = self.office.tenure.shard;
            tracing::warn!(
                shard,
                ?behind,
                "the clock is behind the journal: time stands still until it has caught up"
            );
        }
        self.told_behind = behind > BEHIND || self.told_behind && behind > Duration::ZERO;
        now.max(last)
    }

    fn rebuild_timers(&mut self, now: Micros) {
        if let Some(horizon) = self.timers.begin_rebuild(now) {
            let (done, rebuilt) = oneshot::channel();
            let state = self.state.clone();
            tokio::task::spawn_blocking(move || {
                let instants = state.timers().map(|timer| (timer.at, timer.account));
                drop(done.send(Timers::until(horizon, instants)));
            });
            self.rebuilt = Some(rebuilt);
        }
    }

    async fn leave(mut self, mut why: Leaving) -> Left {
        match &why {
            Leaving::HandOver(_) => self.office.seat.publish_changing(),
            Leaving::Closing | Leaving::TenureOver | Leaving::Broken(_) => {
                self.office.seat.publish(Standing::Vacant);
            }
        }
        self.office.seat.gauges.accounts.set(0);
        self.office.seat.gauges.queue.set(0);
        self.office.seat.gauges.outgoing.set(0);
        let Inlets { requests, follow_ups, errands, .. } = &mut self.inlets;
        requests.close();
        for request in self.inbox.drain(..) {
            request.refuse(busy());
        }
        while let Ok(request) = requests.try_recv() {
            request.refuse(busy());
        }
        errands.close();
        self.errands.drain(..).for_each(|errand| errand.refuse(busy()));
        while let Ok(errand) = errands.try_recv() {
            errand.refuse(busy());
        }
        // Deliveries that came already are worth a batch: the next owner would send them again.
        if matches!(why, Leaving::Closing | Leaving::HandOver(_)) && self.office.tenure.holds() {
            follow_ups.close();
            while let Ok(follow_up) = follow_ups.try_recv() {
                self.arrived.push(follow_up);
            }
            let mut turn = Turn { at: self.now(), ..Turn::default() };
            self.follow_up(&mut turn);
            if let Leaving::HandOver(HandOver { to, assigned: true, .. }) = &why {
                self.apply(Command::Assign { node: to.as_str().into() }, &mut turn);
            }
            if !turn.commands.is_empty()
                && let Err(ended) = self.make_durable(&mut turn).await
            {
                if let Leaving::HandOver(HandOver { reply, .. }) = why {
                    drop(reply.send(Err(Failure::Unknown)));
                }
                why = ended;
            }
        }
        let Owner { state, seq, last, doubtful, .. } = self;
        Left { why, replica: (!doubtful).then_some(Replica { state, seq, last }) }
    }
}

impl Turn {
    /// Nobody knows what becomes of it.
    fn give_up(&mut self) {
        self.answers.drain(..).for_each(|(reply, _)| reply.send(Err(Failure::Unknown)));
    }

    /// `version`: of the account before, if it had no instant then.
    fn notice(&mut self, event: &domain::Event, version: Option<u32>) {
        match event.kind {
            EventKind::Depleted => {
                let domain::Row { id, version, since, stage, velocity } = event.after;
                let velocity = if let Stage::Stopped { velocity } = stage { velocity } else { velocity };
                self.depleted.push(Order { account: id, version, depleted_at: since, velocity });
            }
            EventKind::MoneyAdded if version.is_some_and(|version| event.after.version > version) => {
                self.reopened.push(event.after.id);
            }
            EventKind::Created => self.created += 1,
            EventKind::MoneyAdded
            | EventKind::Withdrawn
            | EventKind::VelocityChanged
            | EventKind::Spared
            | EventKind::Delivered => {}
        }
    }
}

/// The journal takes its time: whoever waits is told to come again. At most a queue at once, so that it ends.
fn shed(requests: &mut mpsc::Receiver<Request>, queue: usize) {
    for _ in 0..queue {
        match requests.try_recv() {
            Ok(request) => request.refuse(busy()),
            Err(_) => return,
        }
    }
}
