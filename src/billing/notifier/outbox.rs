//! The orders of one shard that have no 2xx yet: which is due, which is under way.
//!
//! What is here is a part of the state (the accounts that are stopped without a delivery), so it may be bounded and may be
//! lost. Where there is no room, what was tried most makes it for what was not tried yet: what is refused for ever keeps nobody
//! out. What was left out is fetched from the state again, now and then. An order's life: `add`, then `take` and `failed` in turn, then `answered`, then `settled` once its delivery is
//! durable; `cancel` at any time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Notify;

use crate::billing::domain::{Micros, Order};
use crate::clock;

/// How often what was left out is fetched, while what was tried before takes all the room. It looks at every account.
const REFILL_EVERY: Duration = Duration::from_secs(30);

/// Shared by the owner of a shard, who puts in, and its dispatcher, who takes out.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    pub(super) wake: Notify,
    /// Something was cancelled.
    removed: Notify,
    outstanding: IntGauge,
}

/// When there is something to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Due {
    /// Of orders that were not tried yet.
    pub first: Option<Instant>,
    /// Of the others.
    pub again: Option<Instant>,
    /// To ask [`Outbox::wants_refill`].
    pub refill: Option<Instant>,
}

/// An order to be sent now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Letter {
    pub account: u64,
    pub version: u32,
    pub depleted_at: Micros,
    /// How often it was tried before.
    pub tries: u32,
}

impl Outbox {
    pub(super) fn new(capacity: usize, outstanding: IntGauge) -> Outbox {
        let queue = Mutex::new(Queue::new(capacity));
        Outbox(Arc::new(Shared { queue, wake: Notify::new(), removed: Notify::new(), outstanding }))
    }

    /// Depletions that are durable.
    pub fn add(&self, orders: impl IntoIterator<Item = Order>, now: Instant) {
        self.change(|queue| orders.into_iter().for_each(|order| queue.add(&order, 0, now)));
        self.0.wake.notify_one();
    }

    /// Orders that were left out for want of room, and more. They may have been tried before, so they are behind those that
    /// surely were not.
    pub fn refill(&self, orders: impl IntoIterator<Item = Order>, now: Instant) {
        self.change(|queue| {
            (queue.overflowed, queue.refilled) = (false, Some(now));
            orders.into_iter().for_each(|order| queue.add(&order, 1, now));
        });
        self.0.wake.notify_one();
    }

    /// Money came: whatever version it was, its order is not tried any more. Says whether there was one.
    pub fn cancel(&self, account: u64) -> bool {
        let was_there = self.change(|queue| queue.remove(account).is_some());
        self.0.removed.notify_waiters();
        self.wake_for_refill();
        was_there
    }

    /// The delivery of this version is durable, or means nothing any more.
    pub fn settled(&self, account: u64, version: u32) {
        self.change(|queue| queue.settle(account, version));
        self.wake_for_refill();
    }

    pub fn len(&self) -> usize {
        self.0.queue.lock().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn next_due(&self) -> Due {
        self.0.queue.lock().next_due()
    }

    /// `again`: it may be one that was tried before.
    pub(super) fn take(&self, now: Instant, again: bool) -> Option<Letter> {
        self.0.queue.lock().take(now, again)
    }

    /// Is the letter still to be sent? Money may have come.
    pub(super) fn is_wanted(&self, letter: &Letter) -> bool {
        let queue = self.0.queue.lock();
        queue.entries.get(&letter.account).is_some_and(|entry| entry.version == letter.version)
    }

    /// Resolves once it is not, for a letter under way.
    pub(super) async fn unwanted(&self, letter: &Letter) {
        loop {
            let removed = self.0.removed.notified();
            if !self.is_wanted(letter) {
                return;
            }
            removed.await;
        }
    }

    pub(super) fn failed(&self, letter: &Letter, due: Instant) {
        self.0.queue.lock().failed(letter, due);
        self.0.wake.notify_one();
    }

    /// Whatever waits becomes due within `spread`, at random.
    pub(super) fn hasten(&self, now: Instant, spread: Duration) {
        self.0.queue.lock().hasten(now, || spread.mul_f64(fastrand::f64()));
    }

    /// There may be nothing left in memory that would wake the dispatcher.
    fn wake_for_refill(&self) {
        if self.0.queue.lock().has_room_again(clock::now()) {
            self.0.wake.notify_one();
        }
    }

    /// True once: there is room again for what was left out.
    pub(super) fn wants_refill(&self, now: Instant) -> bool {
        let mut queue = self.0.queue.lock();
        let wants = queue.has_room_again(now);
        if wants {
            queue.overflowed = false;
        }
        wants
    }

    pub(super) async fn changed(&self) {
        self.0.wake.notified().await;
    }

    fn change<T>(&self, does: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.0.queue.lock();
        let before = queue.entries.len();
        let result = does(&mut queue);
        self.0.outstanding.add(queue.entries.len() as i64 - before as i64);
        result
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.outstanding.sub(self.queue.get_mut().entries.len() as i64);
    }
}

struct Queue {
    entries: HashMap<u64, Entry>,
    first: Waiting,
    again: Waiting,
    /// Those of `again` by how often they were tried, and account.
    tried: BTreeSet<(u32, u64)>,
    capacity: usize,
    overflowed: bool,
    /// When it was filled from the state last.
    refilled: Option<Instant>,
}

struct Entry {
    version: u32,
    depleted_at: Micros,
    tries: u32,
    /// None: it is under way, or was answered.
    due: Option<Instant>,
}

/// When to try what waits, the older depletion first; lazy, as an entry may be gone.
#[derive(Default)]
struct Waiting(BinaryHeap<Reverse<(Instant, Micros, u64, u32)>>);

impl Waiting {
    fn next(&mut self, entries: &HashMap<u64, Entry>) -> Option<(Instant, Micros, u64)> {
        loop {
            let Reverse((due, depleted_at, account, version)) = *self.0.peek()?;
            let waits = |entry: &Entry| entry.version == version && entry.due == Some(due);
            if entries.get(&account).is_some_and(waits) {
                return Some((due, depleted_at, account));
            }
            self.0.pop();
        }
    }
}

impl Queue {
    fn new(capacity: usize) -> Queue {
        Queue {
            entries: HashMap::new(),
            first: Waiting::default(),
            again: Waiting::default(),
            tried: BTreeSet::new(),
            capacity: capacity.max(1),
            overflowed: false,
            refilled: None,
        }
    }

    fn add(&mut self, order: &Order, tries: u32, now: Instant) {
        let Order { account, version, depleted_at, velocity: _ } = *order;
        let known = self.entries.get(&account).map(|entry| entry.version);
        if known == Some(version) {
            return;
        }
        if known.is_none() && self.entries.len() >= self.capacity {
            self.overflowed = true;
            match self.tried.last() {
                Some((most, tried)) if *most > tries => self.remove(*tried),
                _ => return,
            };
        }
        self.remove(account);
        self.entries.insert(account, Entry { version, depleted_at, tries, due: None });
        self.wait(account, now);
    }

    /// An entry that does not wait does so now.
    fn wait(&mut self, account: u64, until: Instant) {
        let Some(entry) = self.entries.get_mut(&account) else { return };
        entry.due = Some(until);
        let waiting = match entry.tries {
            0 => &mut self.first,
            tries => {
                self.tried.insert((tries, account));
                &mut self.again
            }
        };
        waiting.0.push(Reverse((until, entry.depleted_at, account, entry.version)));
    }

    /// There is room for what was left out, or it is time to make some.
    fn has_room_again(&self, now: Instant) -> bool {
        let is_half_empty = self.entries.len() <= self.capacity / 2;
        self.overflowed && (is_half_empty || self.refill_due().is_some_and(|due| due <= now))
    }

    fn refill_due(&self) -> Option<Instant> {
        let fresh = self.entries.len() - self.tried.len();
        let refilled = self.refilled.filter(|_| self.overflowed && fresh <= self.capacity / 2)?;
        Some(refilled + REFILL_EVERY)
    }

    fn next_due(&mut self) -> Due {
        let due = |(due, _, _)| due;
        Due {
            first: self.first.next(&self.entries).map(due),
            again: self.again.next(&self.entries).map(due),
            refill: self.refill_due(),
        }
    }

    fn take(&mut self, now: Instant, again: bool) -> Option<Letter> {
        let first = self.first.next(&self.entries);
        let again = if again { self.again.next(&self.entries) } else { None };
        let next = [first, again].into_iter().flatten().filter(|(due, _, _)| *due <= now).min();
        let (_, depleted_at, account) = next?;
        let entry = self.entries.get_mut(&account)?;
        let Entry { version, tries, .. } = *entry;
        entry.due = None;
        entry.tries = tries.saturating_add(1);
        self.tried.remove(&(tries, account));
        Some(Letter { account, version, depleted_at, tries })
    }

    fn failed(&mut self, letter: &Letter, due: Instant) {
        let Letter { account, version, .. } = *letter;
        if self.entries.get(&account).is_some_and(|entry| entry.version == version && entry.due.is_none()) {
            self.wait(account, due);
        }
    }

    /// What was not tried yet is due already.
    fn hasten(&mut self, now: Instant, mut wait: impl FnMut() -> Duration) {
        let mut again = Vec::with_capacity(self.tried.len());
        for (_, account) in &self.tried {
            if let Some(Entry { version, depleted_at, due: Some(due), .. }) = self.entries.get_mut(account) {
                *due = (*due).min(now + wait());
                again.push(Reverse((*due, *depleted_at, *account, *version)));
            }
        }
        self.again = Waiting(again.into());
    }

    fn settle(&mut self, account: u64, version: u32) {
        if self.entries.get(&account).is_some_and(|entry| entry.version == version) {
            self.remove(account);
        }
    }

    fn remove(&mut self, account: u64) -> Option<Entry> {
        let entry = self.entries.remove(&account)?;
        self.tried.remove(&(entry.tries, account));
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::domain::Velocity;

    fn order(account: u64, version: u32, at: u64) -> Order {
        Order { account, version, depleted_at: Micros::new(at), velocity: Velocity::ZERO }
    }

    fn taken(queue: &mut Queue, now: Instant) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| queue.take(now, true)).map(|letter| (letter.account, letter.version)).collect()
    }

    #[test]
    fn the_older_depletion_goes_first_and_each_goes_once() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        [order(1, 1, 30), order(2, 1, 10), order(3, 1, 20), order(2, 1, 10)]
            .iter()
            .for_each(|order| queue.add(order, 0, now));
        assert_eq!(taken(&mut queue, now), [(2, 1), (3, 1), (1, 1)]);
        assert_eq!(queue.next_due(), Due::default());
    }

    #[test]
    fn a_failed_one_waits_and_a_cancelled_one_is_gone() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        [order(1, 1, 10), order(2, 1, 20)].iter().for_each(|order| queue.add(order, 0, now));
        let (first, second) = (queue.take(now, true).unwrap(), queue.take(now, true).unwrap());
        let later = now + Duration::from_secs(1);
        queue.failed(&first, later);
        queue.failed(&second, later);
        queue.settle(2, 1);
        assert_eq!((queue.take(now, true), queue.next_due().again), (None, Some(later)));
        assert_eq!(queue.take(later, true), Some(Letter { tries: 1, ..first }));
        assert_eq!(queue.take(later, true), None);
        queue.settle(1, 1);
        queue.failed(&first, later);
        assert_eq!(queue.take(later, true), None, "it was settled before its failure was told");
    }

    #[test]
    fn what_waits_is_hastened_and_nothing_else() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        (1..=4).for_each(|account| queue.add(&order(account, 1, account), 0, now));
        let letters: Vec<Letter> = std::iter::from_fn(|| queue.take(now, true)).collect();
        let after = |seconds| now + Duration::from_secs(seconds);
        queue.failed(&letters[0], after(30));
        queue.failed(&letters[1], after(20));
        queue.failed(&letters[2], after(1));
        let mut waits = 2..;
        queue.hasten(now, || Duration::from_secs(waits.next().unwrap()));
        assert_eq!(queue.next_due().again, Some(after(1)), "what is due before stays so");
        assert_eq!(taken(&mut queue, after(1)), [(3, 1)]);
        let mut sent = taken(&mut queue, after(4));
        sent.sort_unstable();
        assert_eq!(sent, [(1, 1), (2, 1)], "each once; the fourth is under way");
        assert_eq!(queue.next_due(), Due::default());
    }

    /// The account was funded and ran dry again while the first order was under way.
    #[test]
    fn a_new_version_takes_the_place_of_the_old_one() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        queue.add(&order(1, 1, 10), 0, now);
        let old = queue.take(now, true).unwrap();
        queue.add(&order(1, 2, 20), 0, now);
        queue.failed(&old, now);
        assert_eq!(taken(&mut queue, now), [(1, 2)]);
        queue.settle(1, 1);
        assert_eq!(queue.entries.len(), 1);
    }

    #[test]
    fn what_has_no_room_is_asked_for_once_there_is() {
        let gauge = IntGauge::new("forefront_billing_test", "test").unwrap();
        let (outbox, now) = (Outbox::new(4, gauge.clone()), Instant::now());
        outbox.add((0..6).map(|account| order(account, 1, account)), now);
        assert_eq!((outbox.len(), gauge.get(), outbox.wants_refill(now)), (4, 4, false));
        (0..2).for_each(|account| outbox.settled(account, 1));
        assert!(outbox.wants_refill(now) && !outbox.wants_refill(now));
        outbox.refill((2..6).map(|account| order(account, 1, account)), now);
        assert_eq!((outbox.len(), outbox.wants_refill(now)), (4, false));
        drop(outbox);
        assert_eq!(gauge.get(), 0);
    }

    /// Some are refused for ever, and hang.
    #[test]
    fn what_was_never_tried_need_not_wait_for_what_was() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        (1..=3).for_each(|account| queue.add(&order(account, 1, account), 0, now));
        let refused: Vec<Letter> = std::iter::from_fn(|| queue.take(now, true)).collect();
        refused.iter().for_each(|letter| queue.failed(letter, now));
        queue.add(&order(4, 1, 4), 0, now);
        assert_eq!(queue.next_due(), Due { first: Some(now), again: Some(now), refill: None });
        assert_eq!(queue.take(now, false).map(|letter| (letter.account, letter.tries)), Some((4, 0)));
        assert_eq!(queue.take(now, false), None);
        assert_eq!(taken(&mut queue, now), [(1, 1), (2, 1), (3, 1)]);
    }

    #[test]
    fn what_was_tried_most_makes_room_for_what_was_not() {
        let gauge = IntGauge::new("forefront_billing_test", "test").unwrap();
        let (outbox, now) = (Outbox::new(4, gauge.clone()), Instant::now());
        let all = || (0..6).map(|account| order(account, 1, account));
        outbox.refill([], now);
        outbox.add(all().take(4), now);
        // All are refused twice, and two of them once more.
        for tried in [4, 4, 2] {
            let letters: Vec<Letter> = (0..tried).filter_map(|_| outbox.take(now, true)).collect();
            letters.iter().for_each(|letter| outbox.failed(letter, now));
        }
        let accounts = || {
            let mut accounts: Vec<u64> = outbox.0.queue.lock().entries.keys().copied().collect();
            accounts.sort_unstable();
            accounts
        };
        outbox.add(all().skip(4), now);
        assert_eq!((outbox.len(), gauge.get()), (4, 4));
        assert_eq!(accounts(), [2, 3, 4, 5]);
        // Nobody settles anything, and what was left out has its turn all the same, but not all the time.
        let later = now + REFILL_EVERY;
        assert_eq!(outbox.next_due().refill, Some(later));
        assert!(!outbox.wants_refill(now) && outbox.wants_refill(later) && !outbox.wants_refill(later));
        outbox.refill(all(), later);
        assert_eq!((outbox.len(), outbox.next_due().refill), (4, Some(later + REFILL_EVERY)));
        assert_eq!(accounts(), [0, 1, 4, 5]);
    }

    #[tokio::test]
    async fn whoever_waits_with_a_letter_hears_that_money_came() {
        let gauge = IntGauge::new("forefront_billing_test", "test").unwrap();
        let (outbox, now) = (Outbox::new(4, gauge), Instant::now());
        outbox.add([order(1, 1, 1), order(2, 1, 2)], now);
        let letters = [outbox.take(now, false).unwrap(), outbox.take(now, false).unwrap()];
        let [mut first, mut second] = letters.each_ref().map(|letter| Box::pin(outbox.unwanted(letter)));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
        outbox.cancel(1);
        first.await;
        assert!(futures::poll!(&mut second).is_pending());
    }
}
