//! Refresh-ahead: answers in demand are renewed before they expire, so that nobody waits; expired ones are removed.
//! When what is to happen is decided by pure functions; one task acts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Cache;
use super::freshness::Times;
use super::store::Record;
use crate::clock;

/// Pause after a failed renewal, doubled with each further one up to the second figure: a few tries fit into the half
/// minute that is left, and a sick origin is not pressed.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What to do with an entry at the time it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Refresh,
    /// Not in demand now, but it may be again before it expires.
    LookAgain(Instant),
    Expire,
}

/// An entry is in demand if somebody asked for it within the last lifetime: so one request a lifetime keeps it fresh,
/// and one that nobody wants is renewed at most a few times more.
fn decide(times: &Times, demanded_at: Instant, now: Instant) -> Step {
    if !times.fresh(now) {
        Step::Expire
    } else if now.saturating_duration_since(demanded_at) < times.lifetime {
        Step::Refresh
    } else {
        Step::LookAgain(within_lifetime(times, now, look_interval(times)))
    }
}

/// When to look at an entry for the first time whose fetch began at `began` and ended at `now`: at `refresh_at`, or at
/// its end if it has none. Fetches that renew begin at least a look interval apart, or an origin whose answers always
/// come old (by their `Age`) would be asked without a pause. One that takes long is renewed at once if it is due.
pub fn first_due(times: &Times, began: Instant, now: Instant) -> Instant {
    let Some(refresh_at) = times.refresh_at else { return within_lifetime(times, now, times.lifetime) };
    let soonest = began + look_interval(times);
    let due = times.instant_of(refresh_at).map_or(soonest, |due| due.max(soonest));
    within_lifetime(times, now, due.saturating_duration_since(now))
}

/// When to try again after `failures` failed renewals in a row (at least 1).
fn retry_at(times: &Times, failures: u32, now: Instant) -> Instant {
    let pause = RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(RETRY_MAX);
    within_lifetime(times, now, pause)
}

/// `now + pause`, or the end of the lifetime if that is earlier.
fn within_lifetime(times: &Times, now: Instant, pause: Duration) -> Instant {
    let pause = pause.min(times.ttl(now));
    // A lifetime is at most 2^31 s by the origin's word; an operator's absurd one only means to look in a day.
    now.checked_add(pause).unwrap_or(now + Duration::from_secs(86_400))
}

/// How often an entry is looked at which is past `refresh_at` and not in demand: a small part of its lifetime, for
/// demand that returns in its last moments.
fn look_interval(times: &Times) -> Duration {
    (times.lifetime / 32).clamp(Duration::from_millis(20), Duration::from_secs(1))
}

impl Record {
    fn step(&self, now: Instant) -> Step {
        let mut demanded_at = self.demanded_at.lock();
        if self.take_demand() {
            *demanded_at = now;
        }
        decide(&self.entry.times, *demanded_at, now)
    }
}

impl Cache {
    /// Starts the task that renews entries ahead of expiry and removes expired ones. Call once; without it entries are
    /// still never served too old, only fetched when they are missed.
    pub fn spawn_refresher(self: &Arc<Self>, handle: &tokio::runtime::Handle, shutdown: CancellationToken) {
        let cache = Arc::clone(self);
        handle.spawn(async move {
            loop {
                let next = cache.look_at_due(clock::now());
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = cache.wake.notified() => {}
                    () = sleep_until(next) => {}
                }
            }
        });
    }

    /// Acts on all that is due. When to look again; `None`: when woken.
    fn look_at_due(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        loop {
            let popped = self.store.plan.lock().pop_due(now);
            let Some(record) = popped else { return self.store.plan.lock().next() };
            match record.step(now) {
                Step::Expire => self.expire(&record),
                Step::LookAgain(at) => self.plan(record, at),
                Step::Refresh => {
                    let Ok(permit) = Arc::clone(&self.renewals).try_acquire_owned() else {
                        // As many as allowed are under way; the end of each wakes the refresher.
                        self.plan(record, now);
                        return None;
                    };
                    self.renew(record, permit, now);
                }
            }
        }
    }

    fn renew(self: &Arc<Self>, record: Arc<Record>, permit: tokio::sync::OwnedSemaphorePermit, now: Instant) {
        let mut flights = self.flights.lock();
        if !self.store.holds(&record) {
            return;
        }
        if flights.contains(&record.key) {
            drop(flights);
            let at = now + look_interval(&record.entry.times);
            return self.plan(record, at);
        }
        let landing = self.prepare(&mut flights, &record.key, Some(Arc::clone(&record)), permit, now);
        drop(flights);
        tokio::spawn(landing.fly(Arc::clone(&record.policy), Arc::clone(&record.fetch)));
    }

    /// Keeps the record until its end, and plans another try before it. The caller wakes the refresher.
    pub(super) fn renewal_failed(&self, record: &Arc<Record>, now: Instant) {
        self.metrics.refreshes.failed.inc();
        let failures = record.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.plan(Arc::clone(record), retry_at(&record.entry.times, failures, now));
    }

    fn expire(&self, record: &Arc<Record>) {
        let _flights = self.flights.lock();
        if self.store.holds(record) {
            self.store.remove(&record.key);
            if record.entry.times.refresh_at.is_some() && record.failures.load(Ordering::Relaxed) == 0 {
                self.metrics.refreshes.idle.inc();
            }
        }
    }

    fn plan(&self, record: Arc<Record>, at: Instant) {
        self.store.plan.lock().insert(record.id, at, record);
    }
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn times(epoch: Instant) -> Times {
        Times { epoch, lifetime: MINUTE, refresh_at: Some(MINUTE / 2) }
    }

    #[test]
    fn a_new_entry_is_looked_at_when_it_reaches_refresh_at() {
        let epoch = Instant::now();
        let after = |seconds| epoch + Duration::from_secs(seconds);
        assert_eq!(first_due(&times(epoch), epoch, after(6)), after(30));
        assert_eq!(first_due(&times(epoch), epoch, after(40)), after(40), "took long");
        assert_eq!(first_due(&times(epoch), after(40), after(40)), after(41), "came old");
        assert_eq!(first_due(&Times { refresh_at: None, ..times(epoch) }, epoch, after(6)), after(60));
    }

    #[test]
    fn demand_within_a_lifetime_renews() {
        let epoch = Instant::now();
        let after = |seconds| epoch + Duration::from_secs(seconds);
        assert_eq!(decide(&times(epoch), epoch, after(30)), Step::Refresh);
        assert_eq!(decide(&times(after(30)), epoch, after(60)), Step::LookAgain(after(61)));
        assert_eq!(decide(&times(after(30)), after(75), after(76)), Step::Refresh);
        assert_eq!(decide(&times(epoch), after(59), after(60)), Step::Expire);
    }

    #[test]
    fn failed_renewals_are_tried_again_ever_later_but_within_the_lifetime() {
        let epoch = Instant::now();
        let after = |seconds| epoch + Duration::from_secs(seconds);
        for (failures, now, again) in [(1, 30, 31), (2, 31, 33), (4, 37, 45), (5, 45, 55), (99, 55, 60)] {
            assert_eq!(retry_at(&times(epoch), failures, after(now)), after(again), "{failures}");
        }
    }

    proptest! {
        #[test]
        fn every_plan_is_ahead_and_within_the_lifetime(
            life in 1u64..100_000, refresh in proptest::option::of(0u64..100_000), began in 0u64..100_000,
            now in 0u64..100_000, failures in 1u32..,
        ) {
            let epoch = Instant::now();
            let lifetime = Duration::from_millis(life);
            let times = Times { epoch, lifetime, refresh_at: refresh.map(Duration::from_millis) };
            let after_ms = now.min(life - 1);
            let now = epoch + Duration::from_millis(after_ms);
            let first = first_due(&times, epoch + Duration::from_millis(began.min(after_ms)), now);
            prop_assert!(now <= first && first <= epoch + lifetime, "{:?}", first - now);
            let mut plans = vec![retry_at(&times, failures, now)];
            if let Step::LookAgain(at) = decide(&times, epoch - lifetime, now) {
                plans.push(at);
            }
            for at in plans {
                prop_assert!(now < at && at <= epoch + lifetime, "{:?}", at - now);
            }
        }
    }
}
