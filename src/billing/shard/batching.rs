//! How many commands of callers go into one batch.

use std::time::Duration;

/// As many as are applied in about the time that their commit takes. So after a stall, when thousands wait, orders and whoever comes
/// next do not wait for all of them to be applied, and a journal whose commits are slow still carries all that comes.
pub struct BatchLimit {
    /// Of late, in microseconds.
    commit_us: f64,
    most: usize,
}

/// Less than a millisecond of work.
const LEAST: usize = 256;

/// Microseconds that one takes to be applied and answered, with everything that happens meanwhile on a machine that is busy.
const COMMAND_US: f64 = 4.0;

/// The part of one commit in what is known of them: a stall of 20 ms is to be no reason for large batches.
const WEIGHT: f64 = 1.0 / 32.0;

impl BatchLimit {
    pub fn new(most: usize) -> BatchLimit {
        BatchLimit { commit_us: 0.0, most: most.max(1) }
    }

    pub fn commands(&self) -> usize {
        ((self.commit_us / COMMAND_US) as usize).max(LEAST).min(self.most)
    }

    /// One commit was made in this time.
    pub fn committed(&mut self, took: Duration) {
        self.commit_us += (took.as_secs_f64() * 1e6 - self.commit_us) * WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(commits: impl IntoIterator<Item = u64>) -> usize {
        let mut limit = BatchLimit::new(4096);
        commits.into_iter().for_each(|ms| limit.committed(Duration::from_millis(ms)));
        limit.commands()
    }

    #[test]
    fn slow_commits_make_large_batches_and_one_stall_does_not() {
        assert_eq!(after([]), LEAST);
        assert_eq!(after([0; 100].into_iter().chain([20])), LEAST);
        assert!((2000..=2500).contains(&after([10; 200])));
        assert_eq!(after([60_000; 3]), 4096);
        assert_eq!(after([60_000; 3].into_iter().chain([0; 600])), LEAST);
        assert_eq!(BatchLimit::new(0).commands(), 1);
    }
}
