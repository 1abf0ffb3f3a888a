//! A retry budget: retries may be a share of the requests, so that an overloaded origin is not buried by them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// One retry, in the unit that deposits are counted in.
const RETRY_MILLI: u64 = 1000;
/// What deposits may save up: enough to send once more all that waited on an endpoint that hung for a second or two
/// at 120 requests/s, and little enough not to hurt an origin that comes back.
pub const SAVED_MAX: u64 = 100;
/// The time over which an unused floor is kept.
const FLOOR_WINDOW: Duration = Duration::from_secs(1);

/// A token bucket on atomics, shared by all threads. Each request deposits `ratio` of a retry (at most [`SAVED_MAX`]
/// are saved up; it starts full, so that the first seconds are covered too); beside that `min_per_second` retries are
/// always there, so that little traffic can be retried as well. After n requests in t seconds at most
/// `SAVED_MAX + ratio n + min_per_second (t + 1) + 1` retries were allowed (a thread more or less in a race).
///
/// Order of calls: [`deposit`](Self::deposit) once per request (not per try), [`withdraw`](Self::withdraw) before
/// each repetition.
#[derive(Debug)]
pub struct Budget {
    deposit_milli: u64,
    saved_milli: AtomicU64,
    epoch: Instant,
    /// Nanoseconds between two retries of the floor; None: no floor.
    floor_interval: Option<u64>,
    /// When the floor's next retry is due, in nanoseconds since `epoch` (the generic cell rate algorithm).
    floor_due: AtomicU64,
}

impl Budget {
    /// `ratio`: retries per request, e.g. 0.2; `min_per_second`: the floor. Negative or not finite counts as 0.
    pub fn new(ratio: f64, min_per_second: f64, now: Instant) -> Budget {
        let sane = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
        let per_second = sane(min_per_second);
        let floor_interval = (per_second > 0.0).then(|| ((1e9 / per_second) as u64).max(1));
        Budget {
            deposit_milli: (sane(ratio) * RETRY_MILLI as f64).round() as u64,
            saved_milli: AtomicU64::new(if sane(ratio) > 0.0 { SAVED_MAX * RETRY_MILLI } else { 0 }),
            epoch: now,
            floor_interval,
            floor_due: AtomicU64::new(0),
        }
    }

    /// A request came. One relaxed load, and one add unless the savings are full.
    pub fn deposit(&self) {
        if self.deposit_milli > 0 && self.saved_milli.load(Relaxed) < SAVED_MAX * RETRY_MILLI {
            self.saved_milli.fetch_add(self.deposit_milli.min(RETRY_MILLI * SAVED_MAX), Relaxed);
        }
    }

    /// May one request be repeated now? If so, it is paid for.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.withdraw_floor(now)
            || self.saved_milli.fetch_update(Relaxed, Relaxed, |saved| saved.checked_sub(RETRY_MILLI)).is_ok()
    }

    fn withdraw_floor(&self, now: Instant) -> bool {
        let Some(interval) = self.floor_interval else { return false };
        // The window is part of the clock, so that the very first second has its floor too.
        let window = FLOOR_WINDOW.as_nanos() as u64;
        let now = (now.saturating_duration_since(self.epoch).as_nanos() as u64).saturating_add(window);
        self.floor_due
            .fetch_update(Relaxed, Relaxed, |due| {
                let due = due.max(now - window);
                (due <= now).then(|| due.saturating_add(interval))
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn little_traffic_can_be_retried() {
        let start = Instant::now();
        let budget = Budget::new(0.0, 2.0, start);
        let at_start = (0..100).filter(|_| budget.withdraw(start)).count();
        assert!((2..=3).contains(&at_start), "{at_start}");
        assert!(!budget.withdraw(start));
        assert!(budget.withdraw(start + Duration::from_millis(500)));
        assert!(!budget.withdraw(start + Duration::from_millis(500)));
    }

    #[test]
    fn requests_pay_for_retries() {
        let start = Instant::now();
        let budget = Budget::new(0.2, 0.0, start);
        assert_eq!((0..1000).filter(|_| budget.withdraw(start)).count() as u64, SAVED_MAX);
        for _ in 0..10 {
            budget.deposit();
        }
        assert_eq!((0..10).filter(|_| budget.withdraw(start)).count(), 2);
        for _ in 0..1_000_000 {
            budget.deposit();
        }
        assert_eq!(
            (0..1000).filter(|_| budget.withdraw(start)).count() as u64,
            SAVED_MAX,
            "savings are capped"
        );
    }

    #[test]
    fn nonsense_means_none() {
        let start = Instant::now();
        for bad in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(!Budget::new(bad, bad, start).withdraw(start));
        }
    }

    proptest! {
        #[test]
        fn never_more_than_its_bound(
            ratio in 0.0_f64..1.0,
            floor in 0.0_f64..50.0,
            events in prop::collection::vec((prop::bool::ANY, 0_u64..100), 0..500),
        ) {
            let start = Instant::now();
            let budget = Budget::new(ratio, floor, start);
            let (mut now, mut requests, mut retries) = (start, 0_u32, 0_u32);
            for (is_request, step) in events {
                now += Duration::from_millis(step);
                if is_request {
                    requests += 1;
                    budget.deposit();
                } else if budget.withdraw(now) {
                    retries += 1;
                }
            }
            let seconds = (now - start).as_secs_f64();
            // Deposits are rounded to a thousandth.
            let bound = SAVED_MAX as f64 + (ratio + 0.001) * f64::from(requests) + floor * (seconds + 1.0) + 1.0;
            prop_assert!(f64::from(retries) <= bound, "{retries} > {bound}");
        }
    }
}
