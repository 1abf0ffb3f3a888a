//! Rates and counts, alone and per client.

mod client;
mod counted;
mod keyed;

use std::time::{Duration, Instant};

pub use client::ClientKey;
pub use counted::{Counted, Guard};
pub use keyed::Keyed;

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens gained per second; finite and above 0.
    pub per_second: f64,
    /// The most tokens that can be held; at least 1.
    pub burst: f64,
}

impl Rate {
    /// A rate with its values brought into their bounds: not finite or not positive counts as the smallest rate.
    pub fn new(per_second: f64, burst: f64) -> Rate {
        let per_second = if per_second.is_finite() { per_second.max(1e-6) } else { 1e-6 };
        let burst = if burst.is_finite() { burst.max(1.0) } else { 1.0 };
        Rate { per_second, burst }
    }
}

/// A token bucket: starts full, refills with time, each [`take`](Self::take) costs one token.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Rate,
    level: Level,
}

impl TokenBucket {
    pub fn new(rate: Rate, now: Instant) -> TokenBucket {
        let rate = Rate::new(rate.per_second, rate.burst);
        TokenBucket { rate, level: Level::full(rate, now) }
    }

    /// Takes one token.
    ///
    /// # Errors
    /// With the time after which a token will be there, if nobody else takes it. Nothing was taken.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.level.take(self.rate, now)
    }
}

/// The changing half of a token bucket, without the rate that many of them share.
#[derive(Clone, Copy, Debug)]
struct Level {
    tokens: f64,
    at: Instant,
}

impl Level {
    fn full(rate: Rate, now: Instant) -> Level {
        Level { tokens: rate.burst, at: now }
    }

    /// Tokens there would be at `now`. An earlier `now` than the last one (threads race) counts as the last one.
    fn tokens(&self, rate: Rate, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        (self.tokens + gained).min(rate.burst)
    }

    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.tokens = self.tokens(rate, now);
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let seconds = (1.0 - self.tokens) / rate.per_second;
        // A microsecond more than needed, so that rounding never makes a caller wait twice.
        Err(Duration::try_from_secs_f64(seconds)
            .unwrap_or(Duration::MAX)
            .saturating_add(Duration::from_micros(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn burst_then_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate { per_second: 10.0, burst: 3.0 }, start);
        for _ in 0..3 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        let wait = bucket.take(start).expect_err("empty");
        assert!(wait >= Duration::from_millis(100) && wait < Duration::from_millis(101), "{wait:?}");
        assert_eq!(bucket.take(start + wait), Ok(()));
        assert!(bucket.take(start + wait).is_err());
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            per_second in 0.1_f64..1000.0,
            burst in 1.0_f64..100.0,
            steps in prop::collection::vec(0_u64..50, 1..500),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(Rate { per_second, burst }, start);
            let (mut now, mut taken) = (start, 0_u32);
            for step in steps {
                now += Duration::from_millis(step);
                match bucket.take(now) {
                    Ok(()) => taken += 1,
                    Err(wait) => prop_assert!(bucket.clone().take(now + wait).is_ok(), "the wait was not enough"),
                }
            }
            let bound = burst + per_second * (now - start).as_secs_f64() + 1e-6;
            prop_assert!(f64::from(taken) <= bound, "{taken} > {bound}");
        }
    }
}
