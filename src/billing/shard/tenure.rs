//! One owner's time: a lease as its own node counts it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::time::{sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::metrics::Metrics;
use crate::billing::journal::{Error, Lease};
use crate::clock;

/// Ends by itself when the lease is over on the monotonic clock, counted from before the call that took or renewed it, so
/// never later than the journal's own idea of it. There is no way back: a new tenure has a new epoch.
pub struct Tenure {
    pub shard: u32,
    pub epoch: u64,
    lease: Duration,
    began: Instant,
    /// Microseconds after `began`.
    ends_us: AtomicU64,
    over: CancellationToken,
}

impl Tenure {
    /// `from` is before the call that acquired it.
    pub fn new(acquired: &Lease, lease: Duration, from: Instant) -> Tenure {
        let Lease { shard, epoch, .. } = *acquired;
        let ends_us = AtomicU64::new(lease.as_micros() as u64);
        Tenure { shard, epoch, lease, began: from, ends_us, over: CancellationToken::new() }
    }

    /// Right now. Looks at the clock, so it is also true of a process that was stopped and goes on. Whoever is told that it is
    /// over leaves for good, so then it is over for everybody, whatever a late renewal says.
    pub fn holds(&self) -> bool {
        if !self.over.is_cancelled() && clock::now() >= self.deadline() {
            self.end();
        }
        !self.over.is_cancelled()
    }

    pub fn deadline(&self) -> Instant {
        self.began + Duration::from_micros(self.ends_us.load(SeqCst))
    }

    pub fn end(&self) {
        self.over.cancel();
    }

    pub async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// Renews every third of the lease until the tenure ends.
    pub async fn keep<B: Backend>(&self, backend: &B, metrics: &Metrics) {
        let third = self.lease / 3;
        let mut next = self.began + third;
        loop {
            sleep_until(next.min(self.deadline()).into()).await;
            if !self.holds() {
                tracing::warn!(
                    shard = self.shard,
                    epoch = self.epoch,
                    "the lease ran out, the shard is given up"
                );
                self.end();
                return;
            }
            let from = clock::now();
            let answer_by = self.deadline().min(from + third);
            match timeout_at(answer_by.into(), backend.renew(self.shard, self.epoch, self.lease)).await {
                // Too late: the next look at the clock ends it.
                Ok(Ok(_)) if !self.holds() => next = from,
                Ok(Ok(_)) => {
                    self.ends_us.store((from + self.lease - self.began).as_micros() as u64, SeqCst);
                    next = from + third;
                }
                Ok(Err(Error::Fenced { epoch, .. })) => {
                    tracing::warn!(shard = self.shard, epoch, "another owner has the shard");
                    self.end();
                    return;
                }
                Ok(Err(error)) => {
                    metrics.retries_renew.inc();
                    tracing::debug!(shard = self.shard, %error, "the lease could not be renewed yet");
                    next = clock::now() + third / 4;
                }
                Err(_) => {
                    metrics.retries_renew.inc();
                    next = clock::now();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenure_that_was_over_stays_so() {
        let (node, expires_in) = ("a".to_owned(), Duration::from_secs(4));
        let lease = Lease { shard: 0, epoch: 1, seq: 0, node, advertise: "a:1".to_owned(), expires_in };
        let tenure = Tenure::new(&lease, expires_in, clock::now());
        assert!(tenure.holds());
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(!tenure.holds());
        // As a renewal does that was under way.
        tenure.ends_us.store(8_000_000, SeqCst);
        assert!(!tenure.holds());
        tenure.ended().await;
    }
}
