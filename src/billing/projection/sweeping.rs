//! When old lines are forgotten, and of which groups.

use std::time::{Duration, Instant};

use super::Config;
use crate::billing::domain::Micros;
use crate::billing::journal::{GROUPS, Sweep, Swept};
use crate::clock;

/// Groups looked through in one go for pages that are too old, and pages of each.
const SWEPT_GROUPS: u16 = 64;
const SWEPT_PAGES: u32 = 16;
/// Between two such.
const REST: Duration = Duration::from_millis(50);

/// Where it is in looking through all groups.
pub(super) struct Sweeping {
    keep: Option<Duration>,
    every: Duration,
    next: Instant,
    first: u16,
}

impl Sweeping {
    pub(super) fn new(config: &Config) -> Sweeping {
        // Not all shards at once, and not at every take-over.
        let first = config.sweep_every.mul_f64(fastrand::f64());
        Sweeping { keep: config.keep, every: config.sweep_every, next: clock::now() + first, first: 0 }
    }

    pub(super) async fn due(&self) {
        match self.keep {
            Some(_) => tokio::time::sleep_until(self.next.into()).await,
            None => std::future::pending().await,
        }
    }

    /// What is to be forgotten now, if anything can be.
    pub(super) fn sweep(&mut self, shard: u32, at: Micros) -> Option<Sweep> {
        let keep = self.keep.map(|keep| u64::try_from(keep.as_micros()).unwrap_or(u64::MAX));
        let Some(before) = keep.and_then(|keep| at.get().checked_sub(keep)) else {
            self.rest_long();
            return None;
        };
        let last = (self.first + SWEPT_GROUPS).min(GROUPS) - 1;
        Some(Sweep { shard, before: Micros::new(before), first: self.first, last, pages: SWEPT_PAGES })
    }

    pub(super) fn went_on(&mut self, sweep: &Sweep, swept: &Swept) {
        self.next = clock::now() + REST;
        match sweep.last + 1 {
            _ if swept.more => {}
            GROUPS => self.rest_long(),
            further => self.first = further,
        }
    }

    fn rest_long(&mut self) {
        self.first = 0;
        self.next = clock::now() + self.every;
    }
}
