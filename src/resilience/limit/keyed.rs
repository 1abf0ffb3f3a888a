//! A rate for each client, in bounded memory.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{ClientKey, Level, Rate};

/// Clients that share one lock and compete for each other's places.
const WAYS: usize = 16;

/// A token bucket per client, shared by all threads, for at most `keys_max` clients at once.
///
/// It works like a set-associative cache: a client's hash (seeded at random, so that nobody can choose his
/// neighbours) chooses a set of 16 places. When all are taken, the newcomer replaces the bucket that is nearest to
/// full: a full bucket says no more than none at all, and those who ask too much keep theirs. So a flood of clients
/// costs neither memory nor long scans; what it can do is refill a bucket early.
#[derive(Debug)]
pub struct Keyed {
    rate: Rate,
    hasher: ahash::RandomState,
    sets: Box<[Set]>,
}

type Set = Mutex<Vec<(ClientKey, Level)>>;

impl Keyed {
    /// `keys_max` is rounded up to a power of two, at least 16.
    pub fn new(rate: Rate, keys_max: usize) -> Keyed {
        let sets = (keys_max / WAYS).clamp(1, 1 << 20).next_power_of_two();
        Keyed {
            rate: Rate::new(rate.per_second, rate.burst),
            hasher: ahash::RandomState::new(),
            sets: (0..sets).map(|_| Set::default()).collect(),
        }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one of this client's tokens. No allocation once the client's set has its 16 places.
    ///
    /// # Errors
    /// With the time after which the client may try again; nothing was taken.
    pub fn take(&self, key: ClientKey, now: Instant) -> Result<(), Duration> {
        let mut set = self.sets[self.hasher.hash_one(key) as usize & (self.sets.len() - 1)].lock();
        if let Some((_, level)) = set.iter_mut().find(|(held, _)| *held == key) {
            return level.take(self.rate, now);
        }
        let mut level = Level::full(self.rate, now);
        let verdict = level.take(self.rate, now);
        if set.len() < WAYS {
            set.push((key, level));
        } else {
            let fullness = |(_, level): &&mut (ClientKey, Level)| level.tokens(self.rate, now);
            if let Some(place) = set.iter_mut().max_by(|a, b| fullness(a).total_cmp(&fullness(b))) {
                *place = (key, level);
            }
        }
        verdict
    }

    /// Clients that are remembered now.
    pub fn clients(&self) -> usize {
        self.sets.iter().map(|set| set.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn key(number: u32) -> ClientKey {
        ClientKey::from(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn each_client_has_its_own_rate() {
        let start = Instant::now();
        let keyed = Keyed::new(Rate { per_second: 1.0, burst: 2.0 }, 1024);
        assert!(keyed.take(key(1), start).is_ok() && keyed.take(key(1), start).is_ok());
        let wait = keyed.take(key(1), start).expect_err("used up");
        assert!(keyed.take(key(2), start).is_ok());
        assert!(keyed.take(key(1), start + wait).is_ok());
    }

    #[test]
    fn a_flood_of_clients_is_bounded_and_frees_no_offender() {
        let start = Instant::now();
        let keyed = Keyed::new(Rate { per_second: 0.001, burst: 10.0 }, 256);
        while keyed.take(key(0), start).is_ok() {}
        for client in 1..100_000 {
            assert!(keyed.take(key(client), start).is_ok());
        }
        assert!(keyed.clients() <= 256);
        assert!(keyed.take(key(0), start).is_err(), "the emptiest bucket is the last to be replaced");
    }
}
