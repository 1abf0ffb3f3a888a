//! The orders of one shard that have no 2xx yet: which is due, which is under way.
//!
//! What is here is a part of the state (the accounts that are stopped without a delivery), so it may be bounded and may be
//! lost. An order's life: `add`, then `take` and `failed` in turn, then `answered`, then `settled` once its delivery is
//! durable; `cancel` at any time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Notify;

use crate::billing::domain::{Micros, Order};

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
        self.change(|queue| orders.into_iter().for_each(|order| queue.add(&order, now)));
        self.0.wake.notify_one();
    }

    /// Orders that were left out for want of room, and more.
    pub fn refill(&self, orders: impl IntoIterator<Item = Order>, now: Instant) {
        self.0.queue.lock().overflowed = false;
        self.add(orders, now);
    }

    /// Money came: whatever version it was, its order is not tried any more. Says whether there was one.
    pub fn cancel(&self, account: u64) -> bool {
        let was_there = self.change(|queue| queue.entries.remove(&account).is_some());
        self.0.removed.notify_waiters();
        self.wake_for_refill();
        was_there
    }

    /// The delivery of this version is durable, or means nothing any more.
    pub fn settled(&self, account: u64, version: u32) {
        self.change(|queue| queue.remove(account, version));
        self.wake_for_refill();
    }

    pub fn len(&self) -> usize {
        self.0.queue.lock().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.queue.lock().next_due()
    }

    pub(super) fn take(&self, now: Instant) -> Option<Letter> {
        self.0.queue.lock().take(now)
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
        if self.0.queue.lock().has_room_again() {
            self.0.wake.notify_one();
        }
    }

    /// True once: there is room again for what was left out.
    pub(super) fn wants_refill(&self) -> bool {
        let mut queue = self.0.queue.lock();
        let wants = queue.has_room_again();
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
    /// When to try what waits, the older depletion first; lazy, as an entry may be gone.
    due: BinaryHeap<Reverse<(Instant, Micros, u64, u32)>>,
    capacity: usize,
    overflowed: bool,
}

struct Entry {
    version: u32,
    depleted_at: Micros,
    tries: u32,
    /// None: it is under way, or was answered.
    due: Option<Instant>,
}

impl Queue {
    fn new(capacity: usize) -> Queue {
        Queue {
            entries: HashMap::new(),
            due: BinaryHeap::new(),
            capacity: capacity.max(1),
            overflowed: false,
        }
    }

    fn add(&mut self, order: &Order, now: Instant) {
        let Order { account, version, depleted_at, velocity: _ } = *order;
        let known = self.entries.get(&account).map(|entry| entry.version);
        if known == Some(version) {
            return;
        }
        if known.is_none() && self.entries.len() >= self.capacity {
            self.overflowed = true;
            return;
        }
        self.entries.insert(account, Entry { version, depleted_at, tries: 0, due: Some(now) });
        self.due.push(Reverse((now, depleted_at, account, version)));
    }

    fn has_room_again(&self) -> bool {
        self.overflowed && self.entries.len() <= self.capacity / 2
    }

    fn next_due(&mut self) -> Option<Instant> {
        loop {
            let Reverse((due, _, account, version)) = *self.due.peek()?;
            if self.waits(account, version, due) {
                return Some(due);
            }
            self.due.pop();
        }
    }

    fn take(&mut self, now: Instant) -> Option<Letter> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((_, depleted_at, account, version)) = self.due.pop()?;
        let entry = self.entries.get_mut(&account)?;
        let tries = entry.tries;
        entry.due = None;
        entry.tries = tries.saturating_add(1);
        Some(Letter { account, version, depleted_at, tries })
    }

    fn failed(&mut self, letter: &Letter, due: Instant) {
        let Letter { account, version, depleted_at, tries: _ } = *letter;
        if let Some(entry) = self.entries.get_mut(&account).filter(|entry| entry.version == version) {
            entry.due = Some(due);
            debug_assert_eq!(entry.depleted_at, depleted_at);
            self.due.push(Reverse((due, depleted_at, account, version)));
        }
    }

    fn hasten(&mut self, now: Instant, mut wait: impl FnMut() -> Duration) {
        let mut dues = Vec::with_capacity(self.due.len());
        for (account, entry) in &mut self.entries {
            if let Some(due) = &mut entry.due {
                *due = (*due).min(now + wait());
                dues.push(Reverse((*due, entry.depleted_at, *account, entry.version)));
            }
        }
        self.due = dues.into();
    }

    fn remove(&mut self, account: u64, version: u32) {
        if self.entries.get(&account).is_some_and(|entry| entry.version == version) {
            self.entries.remove(&account);
        }
    }

    fn waits(&self, account: u64, version: u32, due: Instant) -> bool {
        self.entries.get(&account).is_some_and(|entry| entry.version == version && entry.due == Some(due))
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
        std::iter::from_fn(|| queue.take(now)).map(|letter| (letter.account, letter.version)).collect()
    }

    #[test]
    fn the_older_depletion_goes_first_and_each_goes_once() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        [order(1, 1, 30), order(2, 1, 10), order(3, 1, 20), order(2, 1, 10)]
            .iter()
            .for_each(|order| queue.add(order, now));
        assert_eq!(taken(&mut queue, now), [(2, 1), (3, 1), (1, 1)]);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn a_failed_one_waits_and_a_cancelled_one_is_gone() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        [order(1, 1, 10), order(2, 1, 20)].iter().for_each(|order| queue.add(order, now));
        let (first, second) = (queue.take(now).unwrap(), queue.take(now).unwrap());
        let later = now + Duration::from_secs(1);
        queue.failed(&first, later);
        queue.failed(&second, later);
        queue.remove(2, 1);
        assert_eq!((queue.take(now), queue.next_due()), (None, Some(later)));
        assert_eq!(queue.take(later), Some(Letter { tries: 1, ..first }));
        assert_eq!(queue.take(later), None);
        queue.remove(1, 1);
        queue.failed(&first, later);
        assert_eq!(queue.take(later), None, "it was settled before its failure was told");
    }

    #[test]
    fn what_waits_is_hastened_and_nothing_else() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        (1..=4).for_each(|account| queue.add(&order(account, 1, account), now));
        let letters: Vec<Letter> = std::iter::from_fn(|| queue.take(now)).collect();
        let after = |seconds| now + Duration::from_secs(seconds);
        queue.failed(&letters[0], after(30));
        queue.failed(&letters[1], after(20));
        queue.failed(&letters[2], after(1));
        let mut waits = 2..;
        queue.hasten(now, || Duration::from_secs(waits.next().unwrap()));
        assert_eq!(queue.next_due(), Some(after(1)), "what is due before stays so");
        assert_eq!(taken(&mut queue, after(1)), [(3, 1)]);
        let mut sent = taken(&mut queue, after(4));
        sent.sort_unstable();
        assert_eq!(sent, [(1, 1), (2, 1)], "each once; the fourth is under way");
        assert_eq!(queue.next_due(), None);
    }

    /// The account was funded and ran dry again while the first order was under way.
    #[test]
    fn a_new_version_takes_the_place_of_the_old_one() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        queue.add(&order(1, 1, 10), now);
        let old = queue.take(now).unwrap();
        queue.add(&order(1, 2, 20), now);
        queue.failed(&old, now);
        assert_eq!(taken(&mut queue, now), [(1, 2)]);
        queue.remove(1, 1);
        assert_eq!(queue.entries.len(), 1);
    }

    #[test]
    fn what_has_no_room_is_asked_for_once_there_is() {
        let gauge = IntGauge::new("forefront_billing_test", "test").unwrap();
        let (outbox, now) = (Outbox::new(4, gauge.clone()), Instant::now());
        outbox.add((0..6).map(|account| order(account, 1, account)), now);
        assert_eq!((outbox.len(), gauge.get(), outbox.wants_refill()), (4, 4, false));
        (0..2).for_each(|account| outbox.settled(account, 1));
        assert!(outbox.wants_refill() && !outbox.wants_refill());
        outbox.refill((2..6).map(|account| order(account, 1, account)), now);
        assert_eq!((outbox.len(), outbox.wants_refill()), (4, false));
        drop(outbox);
        assert_eq!(gauge.get(), 0);
    }
}
