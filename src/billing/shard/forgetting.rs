//! When idempotency keys are forgotten: after their time, and before it only where memory would run out.
//!
//! How old keys are is counted in the shard's time, which stands still while the clock is behind the journal. When to look is
//! counted by the monotonic clock, so that a shard whose time stands still is full of keys in the end, and takes no more.

use std::time::{Duration, Instant};

use super::Config;
use crate::billing::domain::{BUCKETS, Micros, State};

/// In a batch that is written anyway. What has come in since is as much as is taken out, so it is done often, in small
/// parts. Also while there is no room: nothing else is written then, and callers wait for it.
const EVERY_BUSY: Duration = Duration::from_secs(1);
/// In a batch of its own, only to give memory back.
const EVERY_IDLE: Duration = Duration::from_secs(300);

pub struct Forgetting {
    keep: Duration,
    keep_min: Duration,
    keys_max: usize,
    /// What is kept at present: `keep`, or less where there are too many.
    keeping: Duration,
    last: Option<Instant>,
    /// As they were counted last.
    keys: usize,
    /// The part of `keys_max` that the shard has by its buckets, as of then.
    share: usize,
}

impl Forgetting {
    pub fn new(config: &Config) -> Forgetting {
        let Config { keep_keys, keep_keys_min, keys_max, .. } = *config;
        Forgetting {
            keep: keep_keys,
            keep_min: keep_keys_min.min(keep_keys),
            keys_max,
            keeping: keep_keys,
            last: None,
            keys: 0,
            share: keys_max,
        }
    }

    /// When [`Forgetting::due`] should be asked although nothing else is to be done.
    pub fn next(&self) -> Option<Instant> {
        Some(self.last.filter(|_| self.keys > 0)? + self.every(false))
    }

    /// What is to be forgotten now, if it is time; then comes [`Forgetting::count`]. `at` is the shard's time. `busy`: a batch
    /// is written anyway.
    pub fn due(&mut self, state: &State, at: Micros, now: Instant, busy: bool) -> Option<Micros> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < self.every(busy)) {
            return None;
        }
        self.last = Some(now);
        self.count(state);
        self.adjust();
        let before = Micros::new(at.get().saturating_sub(micros(self.keeping)));
        (self.keys > 0).then_some(before)
    }

    /// What is left.
    pub fn count(&mut self, state: &State) {
        self.keys = state.keys_len();
        self.share = (self.keys_max as u128 * state.buckets().count() as u128 / u128::from(BUCKETS)) as usize;
    }

    /// Are there so many keys that no more can be taken, although they are kept for the shortest time?
    pub fn is_full(&self) -> bool {
        self.keys > self.share.saturating_add(self.share / 4) && self.keeping <= self.keep_min
    }

    fn every(&self, busy: bool) -> Duration {
        if busy || self.is_full() { EVERY_BUSY } else { EVERY_IDLE }
    }

    fn adjust(&mut self) {
        if self.keys > self.share {
            if self.keeping == self.keep {
                let (keys, share) = (self.keys, self.share);
                tracing::warn!(keys, share, "too many idempotency keys, they are kept for less long");
            }
            self.keeping = (self.keeping * 3 / 4).max(self.keep_min);
        } else if self.keys <= self.share / 2 {
            self.keeping = (self.keeping * 4 / 3).saturating_add(Duration::from_micros(1)).min(self.keep);
        }
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::domain::{Command, Key, Money, Operation, Velocity};
    use crate::billing::journal::Node;

    const SECOND: u64 = 1_000_000;

    fn forgetting(keys_max: usize) -> Forgetting {
        let node = Node { name: "a".to_owned(), advertise: "a:1".to_owned() };
        Forgetting::new(&Config { keys_max, ..Config::new(node, 1) })
    }

    fn use_key(state: &mut State, n: u64, at: u64) {
        let operation = Operation::Create { balance: Money::ZERO, velocity: Velocity::ZERO };
        let key = Key::new(b"k").unwrap();
        state.apply(&Command::Operate { key, account: n, operation }, Micros::new(at));
    }

    #[test]
    fn keys_are_kept_for_their_time() {
        let (mut forgetting, mut state, began) = (forgetting(100), State::new(0..1000), Instant::now());
        let after = |seconds| began + Duration::from_secs(seconds);
        let nothing = forgetting.due(&state, Micros::new(SECOND), began, true);
        assert_eq!(nothing, None, "there is nothing to forget");
        use_key(&mut state, 1, SECOND);
        let day = 24 * 3600 * SECOND;
        let now = 3 * day;
        assert_eq!(forgetting.due(&state, Micros::new(now), after(300), false), Some(Micros::new(2 * day)));
        assert_eq!(forgetting.next(), Some(after(600)));
        assert_eq!(forgetting.due(&state, Micros::new(now + SECOND), after(301), false), None);
        assert!(forgetting.due(&state, Micros::new(now + SECOND), after(301), true).is_some());
    }

    #[test]
    fn too_many_are_kept_for_less_long_but_not_too_short() {
        let (mut forgetting, mut state) = (forgetting(8), State::new(0..1000));
        (0..11).for_each(|n| use_key(&mut state, n, 1));
        let (mut at, began) = (0, Instant::now());
        let now = |at| began + Duration::from_micros(at);
        let mut kept = Vec::new();
        for _ in 0..40 {
            at += SECOND;
            let before =
                forgetting.due(&state, Micros::new(at + 1_000 * 3600 * SECOND), now(at), true).unwrap();
            kept.push((at + 1_000 * 3600 * SECOND - before.get()) / SECOND);
        }
        assert_eq!((kept[0], kept[39]), (24 * 3600 * 3 / 4, 60));
        assert!(forgetting.is_full());
        state = State::new([]);
        for _ in 0..40 {
            at += SECOND;
            forgetting.due(&state, Micros::new(at + 1_000 * 3600 * SECOND), now(at), true);
        }
        assert_eq!(forgetting.keeping, forgetting.keep);
        assert!(!forgetting.is_full());
    }
}
