//! Was the receiver ill, and is it well again?

use std::time::{Duration, Instant};

/// Pure: told what came of each try.
#[derive(Debug)]
pub(super) struct Health {
    illness: Duration,
    /// The last 2xx; before the first, the beginning.
    well: Instant,
    failed: bool,
}

impl Health {
    /// Nothing but failures for as long as `illness` makes one.
    pub fn new(illness: Duration, now: Instant) -> Health {
        Health { illness, well: now, failed: false }
    }

    pub fn failed(&mut self) {
        self.failed = true;
    }

    /// There was a 2xx. True if that is the end of an illness.
    pub fn succeeded(&mut self, now: Instant) -> bool {
        let was_ill = self.failed && now.saturating_duration_since(self.well) >= self.illness;
        (self.failed, self.well) = (false, now);
        was_ill
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_illness_is_failures_alone_for_its_time() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut health = Health::new(Duration::from_secs(5), began);
        assert!(!health.succeeded(at(9)), "nothing failed");
        health.failed();
        assert!(!health.succeeded(at(13)), "not for long");
        // One is refused for ever while others are taken.
        for second in 14..40 {
            health.failed();
            assert!(!health.succeeded(at(second)));
        }
        health.failed();
        assert!(health.succeeded(at(44)));
        assert!(!health.succeeded(at(60)), "told once");
    }
}
