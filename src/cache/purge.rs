//! Removal by hand. A fetch that is under way serves those who already wait, and nobody after: it is not stored.

use super::{Cache, key};

impl Cache {
    /// Removes one entry. How many: 0 or 1. Starts no renewal.
    pub fn purge_exact(&self, key: &str) -> u64 {
        let mut flights = self.flights.lock();
        flights.forget(key);
        let removed = u64::from(self.store.remove(key));
        self.metrics.purged.inc_by(removed);
        removed
    }

    /// Removes all entries whose key begins with `prefix`; how many. Misses wait while it goes over the whole store.
    pub fn purge_prefix(&self, prefix: &str) -> u64 {
        self.purge_keys(|key| key.starts_with(prefix))
    }

    /// Removes all entries whose scope and path with query are chosen; how many. Misses wait as for `purge_prefix`.
    pub fn purge_where(&self, chosen: impl Fn(&str, &str) -> bool) -> u64 {
        self.purge_keys(|key| {
            let (scope, target) = key::split(key);
            chosen(scope, target)
        })
    }

    fn purge_keys(&self, chosen: impl Fn(&str) -> bool) -> u64 {
        let mut flights = self.flights.lock();
        flights.forget_where(&chosen);
        let removed = self.store.remove_where(&chosen);
        self.metrics.purged.inc_by(removed);
        removed
    }
}
