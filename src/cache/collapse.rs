//! Many requests, one fetch. A fetch is a task of its own: it goes on when the request that began it leaves, and it
//! always tells its waiters something, even if it panics.
//!
//! The lock of `Flights` orders everything that changes the store: a fetch is stored only if it is still listed, and a
//! purge takes it off the list in the same breath as it empties the store. It is never held over an await or a spawn.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ahash::AHashMap;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::storable::{self, Verdict};
use super::store::Record;
use super::{Answer, Cache, Entry, Fetch, FetchError, Fetched, Policy, Uncacheable, refresh};
use crate::clock;

/// A fetch that breaks its promise to end is given up after this. Longer than any timeout of a route that one would
/// cache.
const FETCH_TIME_MAX: Duration = Duration::from_secs(300);

/// How long the word that an answer may not be stored is kept (hit-for-pass): requests meanwhile do not queue behind
/// each other. Short, because the origin may change its mind.
const PASS_FOR: Duration = Duration::from_secs(5);

/// Keys for which that word is kept. Beyond it all are forgotten, which costs one fetch each.
const PASSES_MAX: usize = 4096;

/// What a fetch came to, for all who wait.
#[derive(Clone, Debug)]
enum Outcome {
    Stored(Arc<Entry>),
    Pass(Uncacheable),
    Failed(FetchError),
}

type Waiting = watch::Receiver<Option<Outcome>>;

/// Fetches under way, and keys known to be uncacheable.
#[derive(Default)]
pub struct Flights {
    by_key: AHashMap<Box<str>, Flight>,
    passes: AHashMap<Box<str>, (Uncacheable, Instant)>,
    last_id: u64,
}

struct Flight {
    id: u64,
    outcome: Waiting,
    /// A request waits or waited for it.
    joined: bool,
}

impl Flights {
    pub fn contains(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// Forgets all about the chosen keys. Fetches go on for those who already wait, and are then dropped.
    pub fn forget_where(&mut self, chosen: impl Fn(&str) -> bool) {
        self.by_key.retain(|key, _| !chosen(key));
        self.passes.retain(|key, _| !chosen(key));
    }

    pub fn forget(&mut self, key: &str) {
        self.by_key.remove(key);
        self.passes.remove(key);
    }

    fn begin(&mut self, key: &str, joined: bool) -> (u64, watch::Sender<Option<Outcome>>) {
        self.last_id += 1;
        let (sender, outcome) = watch::channel(None);
        let flight = Flight { id: self.last_id, outcome, joined };
        self.by_key.insert(key.into(), flight);
        (self.last_id, sender)
    }

    /// Takes the flight off the list, unless it was forgotten meanwhile.
    fn end(&mut self, key: &str, id: u64) -> Option<Flight> {
        if self.by_key.get(key)?.id != id {
            return None;
        }
        self.by_key.remove(key)
    }

    fn passed(&self, key: &str, now: Instant) -> Option<Uncacheable> {
        self.passes.get(key).filter(|(_, until)| now < *until).map(|&(reason, _)| reason)
    }

    fn remember_pass(&mut self, key: &str, reason: Uncacheable, now: Instant) {
        if self.passes.len() >= PASSES_MAX {
            self.passes.retain(|_, (_, until)| now < *until);
        }
        if self.passes.len() >= PASSES_MAX {
            self.passes.clear();
        }
        self.passes.insert(key.into(), (reason, now + PASS_FOR));
    }
}

/// How a request takes part.
enum Joined {
    Hit(Arc<Entry>),
    Pass(Uncacheable),
    Busy,
    Follow(Waiting),
    Lead { landing: Landing, outcome: Waiting, stale: bool },
}

impl Cache {
    /// Looks up, or joins or begins the one fetch of this key. Leaving (dropping the future) does not stop the fetch.
    /// Waits as long as the fetch takes. Panics outside of a tokio runtime.
    pub async fn get(self: &Arc<Self>, key: &str, policy: &Arc<Policy>, fetch: &Arc<dyn Fetch>) -> Answer {
        let now = clock::now();
        if let Some(entry) = self.lookup(key, now) {
            return Answer::Hit(entry);
        }
        let lookups = &self.metrics.lookups;
        let (outcome, answer): (_, fn(Arc<Entry>) -> Answer) = match self.join(key, now) {
            Joined::Hit(entry) => return Answer::Hit(entry),
            Joined::Pass(reason) => {
                lookups.bypass.inc();
                return Answer::Pass(reason);
            }
            Joined::Busy => {
                lookups.miss.inc();
                self.metrics.fetches.busy.inc();
                return Answer::Busy;
            }
            Joined::Follow(outcome) => {
                lookups.collapsed.inc();
                (outcome, Answer::Collapsed)
            }
            Joined::Lead { landing, outcome, stale } => {
                if stale {
                    lookups.stale.inc()
                } else {
                    lookups.miss.inc()
                }
                tokio::spawn(landing.fly(Arc::clone(policy), Arc::clone(fetch)));
                (outcome, if stale { Answer::Stale } else { Answer::Miss })
            }
        };
        self.wait(outcome, answer).await
    }

    async fn wait(&self, mut outcome: Waiting, answer: fn(Arc<Entry>) -> Answer) -> Answer {
        let outcome = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_gone) => None,
        };
        match outcome {
            Some(Outcome::Stored(entry)) => {
                let now = clock::now();
                if !entry.times.fresh(now) {
                    return Answer::Pass(Uncacheable::Expired);
                }
                self.metrics.age.observe(entry.times.age(now).as_secs_f64());
                answer(entry)
            }
            Some(Outcome::Pass(reason)) => Answer::Pass(reason),
            Some(Outcome::Failed(error)) => Answer::Failed(error),
            None => Answer::Failed(FetchError::Aborted),
        }
    }

    fn join(self: &Arc<Self>, key: &str, now: Instant) -> Joined {
        let mut flights = self.flights.lock();
        // A fetch may have landed between the first lookup and the lock.
        if let Some(entry) = self.lookup(key, now) {
            return Joined::Hit(entry);
        }
        if let Some(reason) = flights.passed(key, now) {
            return Joined::Pass(reason);
        }
        if let Some(flight) = flights.by_key.get_mut(key) {
            flight.joined = true;
            return Joined::Follow(flight.outcome.clone());
        }
        let Ok(permit) = Arc::clone(&self.fills).try_acquire_owned() else { return Joined::Busy };
        let stale = self.store.remove(key);
        let landing = self.prepare(&mut flights, key, None, permit, now);
        let outcome = landing.sender.subscribe();
        Joined::Lead { landing, outcome, stale }
    }

    /// Lists a fetch as under way. Spawn its `fly` after the lock is released: a runtime that is shutting down drops it
    /// at once, and the drop takes the lock.
    pub(super) fn prepare(
        self: &Arc<Self>,
        flights: &mut Flights,
        key: &str,
        renews: Option<Arc<Record>>,
        permit: OwnedSemaphorePermit,
        now: Instant,
    ) -> Landing {
        let (id, sender) = flights.begin(key, renews.is_none());
        let cache = Arc::clone(self);
        Landing {
            cache,
            key: key.into(),
            id,
            began: now,
            renews,
            sender,
            permit: Some(permit),
            landed: false,
        }
    }
}

/// A fetch under way. Dropped before it landed (a panic, a runtime shut down), it gives its waiters an error.
pub(super) struct Landing {
    cache: Arc<Cache>,
    key: Box<str>,
    id: u64,
    began: Instant,
    /// The record it is to replace, if it is a renewal.
    renews: Option<Arc<Record>>,
    sender: watch::Sender<Option<Outcome>>,
    permit: Option<OwnedSemaphorePermit>,
    landed: bool,
}

impl Landing {
    /// Fetches, judges, stores, tells.
    pub(super) async fn fly(self, policy: Arc<Policy>, fetch: Arc<dyn Fetch>) {
        let fetched = match tokio::time::timeout(FETCH_TIME_MAX, fetch.fetch(&self.key)).await {
            Ok(fetched) => fetched,
            Err(_elapsed) => Err(FetchError::TimedOut),
        };
        self.land(fetched, policy, fetch);
    }

    fn land(mut self, fetched: Result<Fetched, FetchError>, policy: Arc<Policy>, fetch: Arc<dyn Fetch>) {
        self.landed = true;
        let (now, received) = (clock::now(), clock::wall());
        let outcome = match self.cache.judge(fetched, &policy, now, received) {
            Ok(entry) => {
                self.settle_stored(Record::new(self.id, self.key.clone(), entry, policy, fetch), now)
            }
            Err(outcome) => self.settle_unstored(outcome, now),
        };
        // Before the waiters run: who asks next must find the place free.
        self.permit = None;
        self.sender.send_replace(Some(outcome));
        self.cache.store.make_room();
        if self.renews.is_some() {
            self.cache.wake.notify_one();
        }
    }

    fn settle_stored(&self, record: Record, now: Instant) -> Outcome {
        let Cache { metrics, store, .. } = &*self.cache;
        let entry = Arc::clone(&record.entry);
        let mut flights = self.cache.flights.lock();
        let listed = flights.end(&self.key, self.id);
        let Some(flight) = listed.filter(|_| record.fetch.is_current()) else {
            metrics.fetches.purged.inc();
            return Outcome::Stored(entry);
        };
        match &self.renews {
            Some(old) => {
                metrics.refreshes.stored.inc();
                *record.demanded_at.lock() = *old.demanded_at.lock();
                if flight.joined || old.take_demand() {
                    record.mark_demand();
                }
            }
            None => record.mark_demand(),
        }
        metrics.fetches.stored.inc();
        let due = refresh::first_due(&record.entry.times, self.began, now);
        if store.insert(record, due, metrics) {
            self.cache.wake.notify_one();
        }
        Outcome::Stored(entry)
    }

    fn settle_unstored(&self, outcome: Outcome, now: Instant) -> Outcome {
        let fetches = &self.cache.metrics.fetches;
        let mut flights = self.cache.flights.lock();
        if flights.end(&self.key, self.id).is_none() {
            fetches.purged.inc();
            return outcome;
        }
        if let Outcome::Pass(reason) = outcome {
            fetches.pass.inc();
            flights.remember_pass(&self.key, reason, now);
        } else {
            fetches.failed.inc();
        }
        drop(flights);
        if let Some(record) = &self.renews {
            self.cache.renewal_failed(record, now);
        }
        outcome
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        self.cache.metrics.fetches.aborted.inc();
        let listed = self.cache.flights.lock().end(&self.key, self.id).is_some();
        self.permit = None;
        if let Some(record) = self.renews.as_ref().filter(|_| listed) {
            self.cache.renewal_failed(record, clock::now());
        }
        // The sender goes with this value, which is what its waiters see.
        self.cache.wake.notify_one();
    }
}

impl Cache {
    /// The entry to store, or what to tell the waiters instead.
    fn judge(
        &self,
        fetched: Result<Fetched, FetchError>,
        policy: &Policy,
        now: Instant,
        received: SystemTime,
    ) -> Result<Entry, Outcome> {
        let fetched = match fetched {
            Ok(fetched) => Arc::new(fetched),
            Err(FetchError::TooLarge) => return Err(Outcome::Pass(Uncacheable::TooLarge)),
            Err(error) => return Err(Outcome::Failed(error)),
        };
        match storable::judge(&fetched, policy, self.object_bytes_max, now, received) {
            Verdict::Store(times) => {
                let Fetched { status, headers, body, sent_at: _ } = Arc::unwrap_or_clone(fetched);
                Ok(Entry::build(status, headers, body, times, received))
            }
            Verdict::Pass(reason) => Err(Outcome::Pass(reason)),
            Verdict::Share(error) => Err(Outcome::Failed(error)),
        }
    }
}
