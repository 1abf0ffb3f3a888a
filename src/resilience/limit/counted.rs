//! How many of something each client holds at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::ClientKey;

const SHARDS: usize = 16;

type Shard = Mutex<HashMap<ClientKey, usize, ahash::RandomState>>;

/// Counts what each client holds, e.g. connections. Holds one entry per client that holds something, so its size is
/// bounded by whatever bounds the guards in all (the limit of connections).
#[derive(Debug)]
pub struct Counted {
    per_client_max: AtomicUsize,
    hasher: ahash::RandomState,
    shards: [Shard; SHARDS],
}

/// One thing held by a client; given back on drop.
#[derive(Debug)]
pub struct Guard {
    counted: Arc<Counted>,
    key: ClientKey,
}

impl Counted {
    /// `per_client_max`: the most one client may hold; 0 is no limit (it is counted all the same).
    pub fn new(per_client_max: usize) -> Arc<Counted> {
        Arc::new(Counted {
            per_client_max: AtomicUsize::new(per_client_max),
            hasher: ahash::RandomState::new(),
            shards: std::array::from_fn(|_| Shard::default()),
        })
    }

    /// Changes the bound; what is held stays.
    pub fn set_per_client_max(&self, per_client_max: usize) {
        self.per_client_max.store(per_client_max, Ordering::Relaxed);
    }

    /// One more for this client, or None when it holds as many as it may.
    pub fn try_acquire(self: &Arc<Counted>, key: ClientKey) -> Option<Guard> {
        let max = self.per_client_max.load(Ordering::Relaxed);
        let mut shard = self.shard(key).lock();
        if max > 0 && shard.get(&key).is_some_and(|held| *held >= max) {
            return None;
        }
        *shard.entry(key).or_insert(0) += 1;
        Some(Guard { counted: Arc::clone(self), key })
    }

    /// What this client holds now.
    pub fn held(&self, key: ClientKey) -> usize {
        self.shard(key).lock().get(&key).copied().unwrap_or(0)
    }

    /// Clients that hold something.
    pub fn clients(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, key: ClientKey) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Entry::Occupied(mut held) = self.counted.shard(self.key).lock().entry(self.key) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn key(last: u8) -> ClientKey {
        ClientKey::from(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn each_client_has_its_own_count() {
        let counted = Counted::new(2);
        let first = counted.try_acquire(key(1)).expect("first");
        let second = counted.try_acquire(key(1)).expect("second");
        assert!(counted.try_acquire(key(1)).is_none());
        let other = counted.try_acquire(key(2)).expect("another client");
        drop(first);
        let third = counted.try_acquire(key(1)).expect("given back");
        assert_eq!((counted.held(key(1)), counted.clients()), (2, 2));
        drop((second, third, other));
        assert_eq!(counted.clients(), 0, "nothing is kept for clients that are gone");
    }

    #[test]
    fn another_bound_holds_from_now_on() {
        let counted = Counted::new(2);
        let guards: Vec<_> = (0..2).filter_map(|_| counted.try_acquire(key(1))).collect();
        counted.set_per_client_max(1);
        assert_eq!((guards.len(), counted.held(key(1))), (2, 2));
        drop(guards);
        let one = counted.try_acquire(key(1)).expect("one");
        assert!(counted.try_acquire(key(1)).is_none());
        counted.set_per_client_max(2);
        assert!(counted.try_acquire(key(1)).is_some());
        drop(one);
    }

    #[test]
    fn zero_is_no_limit() {
        let counted = Counted::new(0);
        let guards: Vec<_> = (0..1000).map(|_| counted.try_acquire(key(1))).collect();
        assert!(guards.iter().all(Option::is_some));
    }
}
