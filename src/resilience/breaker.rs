//! A circuit breaker: after enough consecutive failures it refuses for a while, then lets one trial through.

use std::time::{Duration, Instant};

/// What a [`Breaker`] does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are refused until the instant given.
    Open { until: Instant },
    /// One trial is under way; its end decides. If it never ends, another is allowed from `until` on.
    HalfOpen { until: Instant },
}

/// Order of calls: [`allows`](Self::allows); if true, do the thing, then exactly one of
/// [`on_success`](Self::on_success) and [`on_failure`](Self::on_failure).
#[derive(Clone, Debug)]
pub struct Breaker {
    failures_max: u32,
    open_for: Duration,
    failures: u32,
    state: State,
}

impl Breaker {
    /// Opens after `failures_max` consecutive failures (0 counts as 1), for `open_for`.
    pub fn new(failures_max: u32, open_for: Duration) -> Breaker {
        Breaker { failures_max: failures_max.max(1), open_for, failures: 0, state: State::Closed }
    }

    /// May a call be made now? Begins the trial when an open breaker's time is over, hence `&mut`.
    pub fn allows(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } | State::HalfOpen { until } if now >= until => {
                self.state = State::HalfOpen { until: now + self.open_for };
                true
            }
            State::Open { .. } | State::HalfOpen { .. } => false,
        }
    }

    /// A call succeeded: closed again. A late success of a call made before the breaker opened does not close it.
    pub fn on_success(&mut self, _now: Instant) {
        if !matches!(self.state, State::Open { .. }) {
            self.state = State::Closed;
            self.failures = 0;
        }
    }

    /// A call failed.
    pub fn on_failure(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state {
            State::Closed => self.failures >= self.failures_max,
            State::HalfOpen { .. } => true,
            State::Open { .. } => false,
        };
        if opens {
            self.state = State::Open { until: now + self.open_for };
        }
    }

    pub fn state(&self) -> State {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPEN_FOR: Duration = Duration::from_millis(100);

    #[test]
    fn opens_tries_once_and_closes() {
        let start = Instant::now();
        let mut breaker = Breaker::new(2, OPEN_FOR);
        breaker.on_failure(start);
        assert!(breaker.allows(start), "one failure is not enough");
        breaker.on_failure(start);
        assert!(!breaker.allows(start + OPEN_FOR / 2));
        assert!(breaker.allows(start + OPEN_FOR), "the trial");
        assert!(!breaker.allows(start + OPEN_FOR), "only one trial");
        breaker.on_success(start + OPEN_FOR);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn failed_trial_opens_again_and_a_lost_trial_is_replaced() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1, OPEN_FOR);
        breaker.on_failure(start);
        assert!(breaker.allows(start + OPEN_FOR));
        breaker.on_failure(start + OPEN_FOR);
        assert_eq!(breaker.state(), State::Open { until: start + 2 * OPEN_FOR });
        assert!(breaker.allows(start + 2 * OPEN_FOR));
        assert!(breaker.allows(start + 3 * OPEN_FOR), "the trial never reported");
    }

    proptest! {
        /// Whatever happens, it never refuses for longer than `open_for` after the last event.
        #[test]
        fn never_refuses_for_ever(events in prop::collection::vec((0_u8..3, 0_u64..200), 0..100)) {
            let mut breaker = Breaker::new(3, OPEN_FOR);
            let mut now = Instant::now();
            for (event, step) in events {
                now += Duration::from_millis(step);
                match event {
                    0 => breaker.on_failure(now),
                    1 => breaker.on_success(now),
                    _ => { breaker.allows(now); }
                }
            }
            prop_assert!(breaker.allows(now + OPEN_FOR));
        }
    }
}
