//! From counters to rates, and from histogram buckets to quantiles. Pure: time is passed in.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Samples kept per counter, whatever the window: a bound on memory when it is fed too often.
const SAMPLES_MAX: usize = 128;

/// Rates of named counters over a sliding window.
///
/// Feed it every counter about once a second; read a rate at any time.
pub struct Sampler {
    window: Duration,
    counters: HashMap<String, VecDeque<(Instant, u64)>>,
}

impl Default for Sampler {
    /// Ten seconds, as docs/observability.md says of `/status`.
    fn default() -> Sampler {
        Sampler::new(Duration::from_secs(10))
    }
}

impl Sampler {
    /// Rates over the last `window`.
    pub fn new(window: Duration) -> Sampler {
        Sampler { window, counters: HashMap::new() }
    }

    /// Notes the value of a counter. One that is lower than before was reset and begins anew.
    pub fn feed(&mut self, now: Instant, counter: &str, value: u64) {
        if !self.counters.contains_key(counter) {
            self.counters.insert(counter.to_owned(), VecDeque::new());
        }
        let Some(samples) = self.counters.get_mut(counter) else { return };
        if samples.back().is_some_and(|(_, last)| value < *last) {
            samples.clear();
        }
        samples.push_back((now, value));
        // The newest sample that is at least a window old is the base, so it stays.
        let old = |at: Instant| now.saturating_duration_since(at) >= self.window;
        while samples.len() > SAMPLES_MAX || samples.get(1).is_some_and(|(at, _)| old(*at)) {
            samples.pop_front();
        }
    }

    /// Increase per second over the window, or over as much of it as was seen; 0 before the second sample.
    pub fn per_second(&self, counter: &str) -> f64 {
        let Some(samples) = self.counters.get(counter) else { return 0.0 };
        let (Some((began, first)), Some((ended, last))) = (samples.front(), samples.back()) else {
            return 0.0;
        };
        let elapsed = ended.saturating_duration_since(*began).as_secs_f64();
        if elapsed > 0.0 { last.saturating_sub(*first) as f64 / elapsed } else { 0.0 }
    }

    /// Forgets the counters that `keep` does not name, for example of routes that a reload removed.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.counters.retain(|name, _| keep(name));
    }
}

/// The `q`-quantile (0 to 1) estimated from cumulative buckets `(upper bound, count at or below it)` in rising
/// order, linear within a bucket as Prometheus' `histogram_quantile` does. A quantile in the infinite bucket gives the
/// highest finite bound. None without observations or buckets.
pub fn quantile(buckets: &[(f64, u64)], total: u64, q: f64) -> Option<f64> {
    let rank = q.clamp(0.0, 1.0) * total as f64;
    let (mut lower, mut below) = (0.0, 0);
    if total == 0 {
        return None;
    }
    for &(upper, count) in buckets.iter().filter(|(upper, _)| upper.is_finite()) {
        if count as f64 >= rank && count > below {
            let share = (rank - below as f64) / (count - below) as f64;
            return Some(lower + (upper - lower) * share.max(0.0));
        }
        (lower, below) = (upper, count);
    }
    (lower > 0.0).then_some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_rate_is_over_the_window() {
        let start = Instant::now();
        let mut sampler = Sampler::default();
        assert_eq!(sampler.per_second("a"), 0.0);
        sampler.feed(start, "a", 100);
        assert_eq!(sampler.per_second("a"), 0.0);
        sampler.feed(at(start, 1), "a", 160);
        assert_eq!(sampler.per_second("a"), 60.0);
        for second in 2..=30 {
            sampler.feed(at(start, second), "a", 160);
        }
        assert_eq!(sampler.per_second("a"), 0.0, "the burst has left the window");
    }

    #[test]
    fn a_steady_rate_stays_steady() {
        let start = Instant::now();
        let mut sampler = Sampler::default();
        for second in 0..100 {
            sampler.feed(at(start, second), "a", second * 120);
            sampler.feed(at(start, second), "b", 7);
        }
        assert_eq!(sampler.per_second("a"), 120.0);
        assert_eq!(sampler.per_second("b"), 0.0);
        assert!(sampler.counters["a"].len() <= 11);
    }

    #[test]
    fn a_reset_begins_anew_and_memory_is_bounded() {
        let start = Instant::now();
        let mut sampler = Sampler::default();
        sampler.feed(start, "a", 1_000);
        sampler.feed(at(start, 1), "a", 3);
        assert_eq!(sampler.per_second("a"), 0.0);
        sampler.feed(at(start, 2), "a", 5);
        assert_eq!(sampler.per_second("a"), 2.0);
        for _ in 0..10_000 {
            sampler.feed(at(start, 3), "a", 5);
        }
        assert!(sampler.counters["a"].len() <= SAMPLES_MAX);
        sampler.retain(|name| name != "a");
        assert!(sampler.counters.is_empty());
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let buckets = [(0.1, 50), (0.5, 90), (1.0, 100), (f64::INFINITY, 100)];
        assert_eq!(quantile(&buckets, 100, 0.5), Some(0.1));
        assert_eq!(quantile(&buckets, 100, 0.9), Some(0.5));
        assert_eq!(quantile(&buckets, 100, 0.95), Some(0.75));
        assert_eq!(quantile(&buckets, 0, 0.5), None);
        assert_eq!(quantile(&[], 10, 0.5), None);
        assert_eq!(quantile(&[(0.1, 0), (0.5, 0)], 10, 0.5), Some(0.5), "all are above the last bound");
    }
}
