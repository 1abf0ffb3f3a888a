//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential backoff with full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015), but never
/// shorter than `min`, so that no bad luck turns a loop into a busy loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The shortest wait, and the wait before the first repetition.
    pub min: Duration,
    /// The longest wait. Where it is below `min`, it wins.
    pub max: Duration,
}

impl Backoff {
    /// The wait before attempt number `attempt` (0 is the first repetition): uniform between `min` and
    /// `min * 2^attempt`, at most `max`. `random` is in 0..=1; anything else is clamped.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let ceiling = self.ceiling(attempt);
        let floor = self.min.min(ceiling);
        let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 1.0 };
        floor + (ceiling - floor).mul_f64(random)
    }

    /// The longest wait that [`delay`](Self::delay) may give for this attempt.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt).unwrap_or(u32::MAX);
        self.min.saturating_mul(factor).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_until_the_maximum() {
        let backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) };
        let longest: Vec<u64> = (0..6).map(|n| backoff.delay(n, 1.0).as_millis() as u64).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_millis(450));
    }

    proptest! {
        #[test]
        fn stays_between_its_bounds(min in 0_u64..10_000, max in 0_u64..100_000, attempt: u32, random: f64) {
            let backoff = Backoff { min: Duration::from_millis(min), max: Duration::from_millis(max) };
            let delay = backoff.delay(attempt, random);
            prop_assert!(delay <= backoff.max);
            prop_assert!(delay >= backoff.min.min(backoff.max));
        }
    }
}
