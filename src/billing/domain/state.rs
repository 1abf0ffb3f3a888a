//! All accounts and keys of a shard, and `apply`.

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::account::{Account, Record, Row, Stage};
use super::bucket::{BUCKETS, Bucket, bucket_of};
use super::command::{Batch, Command, Operation};
use super::idempotency::{Entry, Kept, KeyHash};
use super::money::{Micros, Velocity};
use super::moving::{Assignment, Outgoing};
use super::outcome::{Applied, Events, Refusal, Reply};

/// The state machine of a shard. What it is depends on the commands and their times alone, so replaying a journal gives
/// the same bytes ([`State::encode`]), whoever replays it.
///
/// A clone costs a thousand counters: the buckets are shared until one side changes an account, which then copies the 25 that
/// lie with it (1 KB), and keeps what is new in its bucket beside what was. So a snapshot or a long listing is made of a clone,
/// elsewhere, and stalls no command.
#[derive(Clone, Debug)]
pub struct State {
    /// By number; `None` is another shard's.
    pub(super) buckets: Vec<Option<Arc<Bucket>>>,
    /// The time of the last change. It never goes back: a command from before is applied at this time.
    pub(super) last: Micros,
    /// Keys from before are forgotten.
    pub(super) horizon: Micros,
    /// The greatest that was seen of each bucket, by number; 0: none. See [`super::moving`].
    pub(super) generations: Vec<u64>,
    /// Released and perhaps not arrived. None of them is in `buckets`.
    pub(super) outgoing: BTreeMap<u16, Outgoing>,
    pub(super) assignment: Option<Assignment>,
}

/// When an account's money ends, unless something happens before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    pub account: u64,
    pub version: u32,
    pub at: Micros,
}

/// A depletion in the journal, without a 2xx in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub account: u64,
    pub version: u32,
    pub depleted_at: Micros,
    /// What it was spending then.
    pub velocity: Velocity,
}

/// How far [`State::look_ahead`] looks: enough for all the loads a core has in flight.
pub const AHEAD: usize = 16;

/// What is allocated, by capacity and not by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub accounts_bytes: usize,
    pub keys_bytes: usize,
}

/// A command, and the hash of its key if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Hashed<'c> {
    pub command: &'c Command,
    hash: Option<KeyHash>,
}

impl<'c> From<&'c Command> for Hashed<'c> {
    fn from(command: &'c Command) -> Hashed<'c> {
        let hash = match command {
            Command::Operate { key, account, .. } => Some(KeyHash::new(*account, key.as_bytes())),
            _ => None,
        };
        Hashed { command, hash }
    }
}

impl State {
    /// Without accounts, holding these buckets (a number beyond the last is none) as if they had been adopted at their
    /// first generation.
    pub fn new(buckets: impl IntoIterator<Item = u16>) -> State {
        let mut state = State {
            buckets: vec![None; usize::from(BUCKETS)],
            last: Micros::ZERO,
            horizon: Micros::ZERO,
            generations: vec![0; usize::from(BUCKETS)],
            outgoing: BTreeMap::new(),
            assignment: None,
        };
        for bucket in buckets.into_iter().map(usize::from).filter(|bucket| *bucket < usize::from(BUCKETS)) {
            state.buckets[bucket] = Some(Arc::default());
            state.generations[bucket] = 1;
        }
        state
    }

    /// Applies one command at `now`, or at the time of the last change if that is later.
    ///
    /// Journal the command with [`Applied::at`] unless [`Applied::changed`] is false; answer once it is durable, also to
    /// the replay of a key whose first command is not durable yet.
    pub fn apply<'c>(&mut self, command: impl Into<Hashed<'c>>, now: Micros) -> Applied {
        let Hashed { command, hash } = command.into();
        self.apply_hashed(command, hash, now)
    }

    /// Applies commands in their order, at one time, as [`State::apply`] would, and about twice as fast when there are many
    /// accounts; see [`State::look_ahead`].
    pub fn apply_all(&mut self, commands: &[Command], now: Micros, mut told: impl FnMut(&Command, Applied)) {
        for chunk in commands.chunks(AHEAD) {
            for hashed in self.look_ahead(chunk).into_iter().flatten() {
                told(hashed.command, self.apply(hashed, now));
            }
        }
    }

    /// Reads where these commands will look, as far as there are [`AHEAD`]: what one costs is waiting for memory, and here the
    /// waits of all of them overlap.
    pub fn look_ahead<'c>(&self, commands: &'c [Command]) -> [Option<Hashed<'c>>; AHEAD] {
        let mut ahead = [None; AHEAD];
        ahead.iter_mut().zip(commands).for_each(|(place, command)| *place = Some(Hashed::from(command)));
        // Two passes, as the second one's places are known from the first one's.
        let touched = [State::touch_index, State::touch_record]
            .map(|touch| ahead.iter().flatten().fold(0, |so_far, hashed| so_far ^ touch(self, hashed)));
        std::hint::black_box(touched);
        ahead
    }

    fn touch_index(&self, hashed: &Hashed) -> u64 {
        let Hashed { command: Command::Operate { account, .. }, hash: Some(hash) } = hashed else { return 0 };
        let Some(bucket) = self.bucket(bucket_of(*account)) else { return 0 };
        bucket.touch(*account) ^ bucket.keys.touch(hash)
    }

    fn touch_record(&self, hashed: &Hashed) -> u64 {
        let Command::Operate { account, .. } = hashed.command else { return 0 };
        let record = self.bucket(bucket_of(*account)).and_then(|bucket| bucket.get(*account));
        record.map_or(0, Record::id)
    }

    fn apply_hashed(&mut self, command: &Command, hash: Option<KeyHash>, now: Micros) -> Applied {
        let at = now.max(self.last);
        match command {
            Command::Operate { key, account, operation } => {
                let hash = hash.unwrap_or_else(|| KeyHash::new(*account, key.as_bytes()));
                self.operate(hash, *account, operation, at)
            }
            Command::Deplete { account, version } => self.follow_up(*account, at, |record, events| {
                record.version() == *version && record.deplete_if_dry(at, events)
            }),
            Command::Delivered { account, version, at: answered } => {
                self.follow_up(*account, at, |record, events| record.delivered(*version, *answered, events))
            }
            Command::Forget { before } => self.forget(*before, at),
            Command::Release { bucket, to, generation } => {
                let moved = self.release(*bucket, *to, *generation, at);
                self.moved(moved, at)
            }
            Command::Adopt { generation, image } => {
                let moved = self.adopt(image, *generation);
                self.moved(moved, at)
            }
            Command::Sent { bucket, generation } => {
                let moved = self.sent(*bucket, *generation);
                self.moved(moved, at)
            }
            Command::Assign { node } => {
                let moved = self.assign(node, at);
                self.moved(moved, at)
            }
        }
    }

    /// A batch from the journal.
    pub fn replay(&mut self, batch: &Batch) {
        self.apply_all(&batch.commands, batch.at, |_, _told_when_it_was_new| {});
    }

    fn operate(&mut self, hash: KeyHash, account: u64, operation: &Operation, at: Micros) -> Applied {
        let unchanged =
            |result| Applied { events: Events::default(), result, at, changed: false, replayed: false };
        let body = operation.fingerprint();
        let Some(bucket) = self.place(bucket_of(account)).and_then(Option::as_mut) else {
            return unchanged(Err(Refusal::Elsewhere));
        };
        if let Some(entry) = bucket.keys.find(&hash) {
            if entry.body != body {
                return unchanged(Err(Refusal::Conflict));
            }
            return Applied { replayed: true, ..unchanged(entry.kept.result(account, entry.at)) };
        }
        let bucket = Arc::make_mut(bucket);
        let mut events = Events::default();
        let result = bucket.operate(account, operation, at, &mut events);
        let kept = match &result {
            Ok(record) => Some(Kept(record.parts())),
            Err(refusal) => Kept::refusal(*refusal),
        };
        if let Some(kept) = kept {
            bucket.keys.insert(Entry { hash, body, at, kept });
        }
        self.last = at;
        let result = result.map(|record| Reply::Account(record.view(at)));
        Applied { events, result, at, changed: true, replayed: false }
    }

    /// The commands of the notifier, which say whether they had something to do.
    fn follow_up(&mut self, id: u64, at: Micros, does: impl Fn(&mut Record, &mut Events) -> bool) -> Applied {
        let mut events = Events::default();
        let unchanged =
            |result| Applied { events: Events::default(), result, at, changed: false, replayed: false };
        let Some(bucket) = self.place(bucket_of(id)).and_then(Option::as_mut) else {
            return unchanged(Err(Refusal::Elsewhere));
        };
        // Tried on a copy, so that a bucket which a snapshot shares is not copied for nothing.
        let Some(mut record) = bucket.get(id).copied() else {
            return unchanged(Err(Refusal::UnknownAccount));
        };
        if !does(&mut record, &mut events) {
            return unchanged(Ok(Reply::Stale));
        }
        if let Some(place) = Arc::make_mut(bucket).get_mut(id) {
            *place = record;
        }
        self.last = at;
        Applied { events, result: Ok(Reply::Done), at, changed: true, replayed: false }
    }

    /// Takes what is older from every bucket, so it costs as much as came in since it was last done (0.1 µs a key, and some
    /// 50 µs): the shard does it several times a second, so that nobody waits long for it.
    fn forget(&mut self, before: Micros, at: Micros) -> Applied {
        let horizon = before.min(at);
        let changed = horizon > self.horizon;
        if changed {
            self.horizon = horizon;
            self.last = at;
            let stale = self.buckets.iter_mut().flatten().filter(|bucket| bucket.keys.is_stale(horizon));
            stale.for_each(|bucket| Arc::make_mut(bucket).keys.sweep(horizon));
        }
        let result = Ok(if changed { Reply::Done } else { Reply::Stale });
        Applied { events: Events::default(), result, at, changed, replayed: false }
    }

    fn moved(&mut self, (changed, result): (bool, Result<Reply, Refusal>), at: Micros) -> Applied {
        let at = at.max(self.last);
        if changed {
            self.last = at;
        }
        Applied { events: Events::default(), result, at, changed, replayed: false }
    }

    fn place(&mut self, bucket: u16) -> Option<&mut Option<Arc<Bucket>>> {
        self.buckets.get_mut(usize::from(bucket))
    }

    // ---------------------------------------------------------------------------------------------------------- reads

    /// `get`: the account as it is at `now`, or at the time of the last change if that is later.
    pub fn account(&self, id: u64, now: Micros) -> Result<Account, Refusal> {
        let bucket = self.bucket(bucket_of(id)).ok_or(Refusal::Elsewhere)?;
        let record = bucket.get(id).ok_or(Refusal::UnknownAccount)?;
        Ok(record.view(now.max(self.last)))
    }

    /// The account as of its last change.
    pub fn row(&self, id: u64) -> Option<Row> {
        Some(self.bucket(bucket_of(id))?.get(id)?.row())
    }

    /// The accounts with ids beyond `after`, by id. Looks at every account there is (at 1M 3 ms): do it on a
    /// clone, off the path of commands.
    pub fn page(&self, after: Option<u64>, limit: usize, now: Micros) -> Vec<Account> {
        let mut least = BinaryHeap::new();
        for record in self.records().filter(|record| after.is_none_or(|after| record.id() > after)) {
            if least.len() < limit {
                least.push(record.id());
            } else if let Some(mut most) = least.peek_mut()
                && record.id() < *most
            {
                *most = record.id();
            }
        }
        least.into_sorted_vec().into_iter().filter_map(|id| self.account(id, now).ok()).collect()
    }

    /// The accounts of a bucket, by id; `None` if it is not here.
    pub fn accounts_of(&self, bucket: u16) -> Option<Vec<Row>> {
        self.bucket(bucket).map(Bucket::rows)
    }

    /// When this account's money ends, as things are. What a popped timer is checked against.
    pub fn timer(&self, account: u64) -> Option<Timer> {
        timer(self.bucket(bucket_of(account))?.get(account)?)
    }

    /// Of every account that will run dry or has and nobody journaled it, in no order: what a new owner begins with.
    pub fn timers(&self) -> impl Iterator<Item = Timer> {
        self.records().filter_map(timer)
    }

    /// Of every depletion that is journaled and not delivered, in no order: what a new owner sends.
    pub fn orders(&self) -> impl Iterator<Item = Order> {
        self.records().filter_map(order)
    }

    /// [`State::timers`] of one bucket: what comes with it.
    pub fn timers_of(&self, bucket: u16) -> impl Iterator<Item = Timer> {
        self.records_of(bucket).filter_map(timer)
    }

    /// [`State::orders`] of one bucket.
    pub fn orders_of(&self, bucket: u16) -> impl Iterator<Item = Order> {
        self.records_of(bucket).filter_map(order)
    }

    /// The buckets that are here, ascending.
    pub fn buckets(&self) -> impl Iterator<Item = u16> {
        (0..BUCKETS).filter(|bucket| self.bucket(*bucket).is_some())
    }

    /// The time of the last change.
    pub fn last(&self) -> Micros {
        self.last
    }

    pub fn accounts_len(&self) -> usize {
        self.held().map(|bucket| bucket.len()).sum()
    }

    /// Of the buckets that are here. The shard bounds it, by refusing new commands.
    pub fn keys_len(&self) -> usize {
        self.held().map(|bucket| bucket.keys.len()).sum()
    }

    pub fn memory(&self) -> Memory {
        let all = self.held().chain(self.outgoing().map(|outgoing| outgoing.content.as_ref()));
        let (accounts, keys) =
            all.map(Bucket::bytes).fold((0, 0), |(a, k), (accounts, keys)| (a + accounts, k + keys));
        let table = self.buckets.capacity() * size_of::<Option<Arc<Bucket>>>()
            + self.generations.capacity() * size_of::<u64>();
        Memory { accounts_bytes: accounts + table, keys_bytes: keys }
    }

    pub(super) fn bucket(&self, bucket: u16) -> Option<&Bucket> {
        self.buckets.get(usize::from(bucket))?.as_deref()
    }

    fn held(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.iter().flatten().map(Arc::as_ref)
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.held().flat_map(|bucket| bucket.records())
    }
}

fn timer(record: &Record) -> Option<Timer> {
    Some(Timer { account: record.id(), version: record.version(), at: record.depletes_at()? })
}

pub(super) fn order(record: &Record) -> Option<Order> {
    let Row { id, version, since, stage, .. } = record.row();
    let Stage::Stopped { velocity } = stage else { return None };
    Some(Order { account: id, version, depleted_at: since, velocity })
}
