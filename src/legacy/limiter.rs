//! The token limiter in front of every request: 100 requests a second, in bursts of five each 50 ms.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

/// How often tokens come. Measured on the real service: a lone client in a closed loop sees 50 ms at p95.
pub const TICK: Duration = Duration::from_millis(50);

const TICKS_PER_SECOND: f64 = 20.0;

/// More than the allowed number of callers wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests")]
pub struct Overloaded;

/// Hands out tokens first come, first served. [`Limiter::run`] must run beside it, or nobody but the first tick's
/// callers gets one. A caller that goes away leaves the queue and costs no token.
#[derive(Debug)]
pub struct Limiter {
    /// Tokens on hand; its queue is FIFO, and tokens added go to the waiting first.
    tokens: Semaphore,
    waiting: AtomicUsize,
    /// Callers that may wait at once.
    queue: usize,
    /// Zero: no limit.
    per_second: u32,
}

impl Limiter {
    /// `per_second` 0 switches the limit off. The first tick's tokens are on hand at once.
    pub fn new(per_second: u32, queue: usize) -> Limiter {
        let first = Refill::new(per_second).tick(0);
        Limiter { tokens: Semaphore::new(first), waiting: AtomicUsize::new(0), queue, per_second }
    }

    /// Waits for a token.
    ///
    /// # Errors
    /// [`Overloaded`] at once when the queue is full.
    pub async fn admit(&self) -> Result<(), Overloaded> {
        if self.per_second == 0 {
            return Ok(());
        }
        if let Ok(token) = self.tokens.try_acquire() {
            token.forget();
            return Ok(());
        }
        let _place = Place::take(&self.waiting, self.queue)?;
        // The semaphore is never closed; were it, refusing is the safe answer.
        self.tokens.acquire().await.map_err(|_| Overloaded)?.forget();
        Ok(())
    }

    /// Adds tokens for ever. Late ticks are skipped, as a Go ticker drops them: a frozen process gets no burst later.
    pub async fn run(&self) {
        let mut refill = Refill::new(self.per_second);
        refill.tick(0);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.tokens.add_permits(refill.tick(self.tokens.available_permits()));
        }
    }
}

/// A place in the queue, given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, queue: usize) -> Result<Place<'a>, Overloaded> {
        // Counted before it is compared, so that callers who come at once cannot all see the last place free.
        let place = Place(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= queue { Err(Overloaded) } else { Ok(place) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many tokens each tick brings: exact on average for rates that are no multiple of 20. Pure.
struct Refill {
    per_tick: f64,
    credit: f64,
}

impl Refill {
    fn new(per_second: u32) -> Refill {
        Refill { per_tick: f64::from(per_second) / TICKS_PER_SECOND, credit: 0.0 }
    }

    /// Tokens to add now that `available` lie unused. Unused tokens do not pile up beyond one tick's.
    fn tick(&mut self, available: usize) -> usize {
        self.credit += self.per_tick;
        let whole = self.credit.floor();
        self.credit -= whole;
        let most = self.per_tick.ceil() as usize;
        (whole as usize).min(most.saturating_sub(available))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    fn running(per_second: u32, queue: usize) -> Arc<Limiter> {
        let limiter = Arc::new(Limiter::new(per_second, queue));
        let ticker = Arc::clone(&limiter);
        tokio::spawn(async move { ticker.run().await });
        limiter
    }

    #[tokio::test(start_paused = true)]
    async fn five_pass_at_once_and_five_each_tick() {
        let limiter = running(100, 1_000);
        tokio::task::yield_now().await;
        let begun = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..15 {
            limiter.admit().await.unwrap();
            waits.push(begun.elapsed().as_millis());
        }
        let expected: Vec<u128> = [[0; 5], [50; 5], [100; 5]].concat();
        // The paused clock moves in whole milliseconds and may fire one late.
        for (wait, expected) in waits.iter().zip(expected) {
            assert!((expected..=expected + 1).contains(wait), "{waits:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_second_saves_up_one_tick_only() {
        let limiter = running(100, 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..5 {
            limiter.admit().await.unwrap();
        }
        assert_eq!(limiter.admit().await, Err(Overloaded));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_served_in_order_and_one_who_leaves_costs_nothing() {
        let limiter = running(20, 1_000);
        limiter.admit().await.unwrap();
        let served = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut callers = Vec::new();
        for number in 0..4 {
            let (limiter, served) = (Arc::clone(&limiter), Arc::clone(&served));
            callers.push(tokio::spawn(async move {
                limiter.admit().await.unwrap();
                served.lock().push(number);
            }));
            tokio::task::yield_now().await;
        }
        callers[1].abort();
        let begun = Instant::now();
        for caller in callers {
            let _ = caller.await;
        }
        assert_eq!(*served.lock(), [0, 2, 3]);
        assert!(begun.elapsed() < Duration::from_millis(160), "{:?}", begun.elapsed());
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_too_many_is_refused_at_once() {
        let limiter = running(20, 2);
        limiter.admit().await.unwrap();
        let (one, two) = (limiter.admit(), limiter.admit());
        tokio::pin!(one, two);
        assert!(futures::poll!(&mut one).is_pending());
        assert!(futures::poll!(&mut two).is_pending());
        assert_eq!(limiter.admit().await, Err(Overloaded));
        one.await.unwrap();
        two.await.unwrap();
    }

    #[test]
    fn any_rate_is_exact_over_a_second() {
        for rate in [1, 7, 20, 100, 101, 1_000, 12_345] {
            let mut refill = Refill::new(rate);
            let second: usize = (0..20).map(|_| refill.tick(0)).sum();
            assert!(second.abs_diff(rate as usize) <= 1, "{rate}: {second}");
        }
    }

    #[tokio::test]
    async fn zero_means_no_limit() {
        let limiter = Limiter::new(0, 0);
        for _ in 0..10_000 {
            limiter.admit().await.unwrap();
        }
    }
}
