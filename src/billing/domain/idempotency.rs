//! The first result of each idempotency key of a bucket, for as long as keys are kept.
//!
//! An entry is 56 bytes, with its share of the index about 70: 128 bits that stand for account and key, 64 that stand for
//! the body, the time, and the result. The 128 bits are of SHA-256, because they are in snapshots (ahash promises no
//! stability between versions or processors) and clients choose keys. With 10^9 keys kept at once, that any two are alike
//! has odds of 10^18 / 2^129, about 1 in 10^21; and even then the body's 64 bits make it a conflict, not a wrong answer.
//!
//! Entries lie in the order of their times, so forgetting takes from the front, up to a line in time: the *horizon*.

use std::sync::Arc;

use super::account::{Parts, Record};
use super::chunks::Chunks;
use super::index::Index;
use super::money::{Micros, Velocity};
use super::outcome::{Refusal, Reply};

/// 128 bits for an account and a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 16]);

impl KeyHash {
    pub fn new(account: u64, key: &[u8]) -> KeyHash {
        let mut text = [0; 8 + super::Key::LENGTH_MAX];
        let length = 8 + key.len().min(super::Key::LENGTH_MAX);
        text[..8].copy_from_slice(&account.to_le_bytes());
        text[8..length].copy_from_slice(&key[..length - 8]);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text[..length]);
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest.as_ref()[..16]);
        KeyHash(hash)
    }

    fn tag(&self) -> u32 {
        u32::from_le_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }
}

/// A result in 24 bytes: the account as its record was right after the command, or a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept(pub Parts);

/// Above every stage of an account.
const REFUSED: u32 = 0xff << 24;

/// Their places are in snapshots: only append.
const REFUSALS: [Refusal; 6] = [
    Refusal::UnknownAccount,
    Refusal::AccountExists,
    Refusal::InsufficientFunds,
    Refusal::Overflow,
    Refusal::BadAmount,
    Refusal::BadVelocity,
];

impl Kept {
    /// `None` for the refusals that are not kept.
    pub fn refusal(refusal: Refusal) -> Option<Kept> {
        let place = REFUSALS.iter().position(|kept| *kept == refusal)?;
        Some(Kept(Parts { amount: 0, velocity: Velocity::ZERO, version: 0, bits: REFUSED | place as u32 }))
    }

    /// The first result, word for word: right after its command an open account's record has the command's time, and a
    /// depleted one shows no time.
    pub fn result(&self, account: u64, at: Micros) -> Result<Reply, Refusal> {
        match self.refused() {
            Some(refusal) => Err(refusal),
            None => Ok(Reply::Account(Record::from_parts(account, at, self.0).view(at))),
        }
    }

    /// Whether there is such a result; what is read from outside goes through here.
    pub fn is_sound(&self) -> bool {
        if self.0.bits & REFUSED == REFUSED {
            return self.refused().and_then(Kept::refusal) == Some(*self);
        }
        let record = Record::from_parts(0, Micros::ZERO, self.0);
        Record::from_row(&record.row()) == Some(record)
    }

    fn refused(&self) -> Option<Refusal> {
        let place = self.0.bits.checked_sub(REFUSED)?;
        REFUSALS.get(place as usize).copied()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub hash: KeyHash,
    pub body: u64,
    pub at: Micros,
    pub kept: Kept,
}

const _: () = assert!(size_of::<Entry>() == 56, "there are many of these");

/// The keys of one bucket.
///
/// Clones share the runs, and whoever goes on begins another one instead of copying millions of keys: a snapshot stalls no
/// command. Once the clone is gone, what was put beside comes home little by little.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// From old to new; what is new goes into the last one. One, but while a clone lives and shortly after.
    runs: Vec<Arc<Run>>,
    /// What is older is forgotten, though a run that is shared may still hold it.
    horizon: Micros,
}

#[derive(Clone, Debug, Default)]
struct Run {
    /// A chunk is below 1792 bytes with its counters, a size that an allocator has.
    entries: Chunks<Entry, 31>,
    /// The position of the front entry; positions go round at [`Index::POSITION_MAX`].
    front: u32,
    index: Index,
}

/// How far a sweep looks ahead in the index, so that it does not wait for memory at each entry.
const AHEAD: usize = 8;

/// Half of all positions; far beyond any memory (60 GB in one bucket). The oldest would go.
const ENTRIES_MAX: usize = 1 << 30;

/// Entries that come home with each insertion: more than come in, and below a microsecond.
const HOME: usize = 4;

/// A search looks into each. Clones that overlap for ever must not make more of them; beyond this the new ones are copied into
/// one.
const RUNS_MAX: usize = 8;

impl Keys {
    pub fn find(&self, hash: &KeyHash) -> Option<&Entry> {
        self.runs.iter().rev().find_map(|run| run.find(hash, self.horizon))
    }

    /// Reads where a search begins; see [`Index::touch`].
    pub fn touch(&self, hash: &KeyHash) -> u64 {
        self.runs.first().map_or(0, |run| run.index.touch(hash.tag()))
    }

    /// Its time must not be before that of the last one inserted.
    pub fn insert(&mut self, entry: Entry) {
        match self.runs.last_mut().and_then(Arc::get_mut) {
            Some(run) => run.insert(entry),
            None => {
                let mut run = Run::default();
                if self.runs.len() == RUNS_MAX {
                    let young = self.runs.drain(1..);
                    young.for_each(|other| other.entries.iter().for_each(|entry| run.insert(*entry)));
                }
                run.insert(entry);
                self.runs.push(Arc::new(run));
            }
        }
        self.bring_home();
    }

    pub fn is_stale(&self, horizon: Micros) -> bool {
        self.runs.first().is_some_and(|run| run.is_stale(horizon))
    }

    /// Forgets everything before the horizon. What a clone shares is given back by a later sweep.
    pub fn sweep(&mut self, horizon: Micros) {
        self.horizon = self.horizon.max(horizon);
        self.runs.iter_mut().filter_map(Arc::get_mut).for_each(|run| run.sweep(horizon));
        self.runs.retain(|run| run.entries.len() > 0);
    }

    /// All of them, in place of what is there, from old to new; what has the same time, by hash.
    pub fn sort_into(&self, entries: &mut Vec<Entry>) {
        let all = self.runs.iter().flat_map(|run| run.entries.iter());
        entries.clear();
        entries.extend(all.filter(|entry| entry.at >= self.horizon));
        entries.sort_unstable_by_key(|entry| (entry.at, entry.hash));
    }

    pub fn len(&self) -> usize {
        self.runs.iter().map(|run| run.entries.len() - run.stale(self.horizon)).sum()
    }

    pub fn bytes(&self) -> usize {
        let runs = self.runs.iter().map(|run| size_of::<Run>() + run.entries.bytes() + run.index.bytes());
        runs.sum::<usize>() + self.runs.capacity() * size_of::<Arc<Run>>()
    }

    fn bring_home(&mut self) {
        let [.., older, newer] = &mut self.runs[..] else { return };
        let (Some(older), Some(newer)) = (Arc::get_mut(older), Arc::get_mut(newer)) else { return };
        for entry in std::iter::from_fn(|| newer.pop_front()).take(HOME) {
            older.insert(entry);
        }
        if newer.entries.len() == 0 {
            self.runs.pop();
        }
    }
}

impl Run {
    fn find(&self, hash: &KeyHash, horizon: Micros) -> Option<&Entry> {
        let is = |position| self.at(position).is_some_and(|entry| entry.hash == *hash && entry.at >= horizon);
        self.at(self.index.find(hash.tag(), is)?)
    }

    fn insert(&mut self, entry: Entry) {
        if self.entries.len() >= ENTRIES_MAX {
            self.pop_front();
        }
        let position = self.position(self.entries.len());
        self.index.insert(entry.hash.tag(), position);
        self.entries.push_back(entry);
    }

    fn is_stale(&self, horizon: Micros) -> bool {
        self.entries.get(0).is_some_and(|entry| entry.at < horizon)
    }

    /// How many are from before the horizon.
    fn stale(&self, horizon: Micros) -> usize {
        let (mut low, mut high) = (0, if self.is_stale(horizon) { self.entries.len() } else { 0 });
        while low < high {
            let middle = low.midpoint(high);
            match self.entries.get(middle) {
                Some(entry) if entry.at < horizon => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    fn sweep(&mut self, horizon: Micros) {
        while self.is_stale(horizon) {
            let ahead = self.entries.get(AHEAD).map_or(0, |entry| self.index.touch(entry.hash.tag()));
            std::hint::black_box(ahead);
            self.pop_front();
        }
        self.index.shrink();
    }

    fn pop_front(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.index.remove(entry.hash.tag(), self.front);
        self.front = (self.front + 1) % Index::POSITION_MAX;
        Some(entry)
    }

    fn at(&self, position: u32) -> Option<&Entry> {
        let offset = (u64::from(position) + u64::from(Index::POSITION_MAX) - u64::from(self.front))
            % u64::from(Index::POSITION_MAX);
        self.entries.get(offset as usize)
    }

    fn position(&self, offset: usize) -> u32 {
        ((u64::from(self.front) + offset as u64) % u64::from(Index::POSITION_MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn entry(n: u64) -> Entry {
        let kept = Kept::refusal(Refusal::Overflow).unwrap();
        Entry { hash: KeyHash::new(n, b"key"), body: n, at: Micros::new(n), kept }
    }

    fn sorted(keys: &Keys) -> Vec<Entry> {
        let mut entries = Vec::new();
        keys.sort_into(&mut entries);
        entries
    }

    #[test]
    fn what_is_swept_is_gone_and_its_memory_too() {
        // Close to where positions go round.
        let run = Run { front: Index::POSITION_MAX - 5, ..Run::default() };
        let mut keys = Keys { runs: vec![Arc::new(run)], ..Keys::default() };
        (0..1_000).for_each(|n| keys.insert(entry(n)));
        let found =
            |keys: &Keys| (0..2_000).filter(|n| keys.find(&entry(*n).hash) == Some(&entry(*n))).count();
        assert_eq!((keys.len(), found(&keys)), (1_000, 1_000));
        keys.sweep(Micros::new(600));
        (1_000..1_010).for_each(|n| keys.insert(entry(n)));
        assert_eq!((keys.len(), found(&keys)), (410, 410));
        let before = keys.bytes();
        keys.sweep(Micros::new(1_005));
        assert_eq!((keys.len(), found(&keys)), (5, 5));
        assert!(keys.bytes() < before / 4, "{} of {before}", keys.bytes());
        keys.sweep(Micros::MAX);
        assert_eq!((keys.len(), found(&keys)), (0, 0));
    }

    proptest! {
        /// Whatever is cloned and dropped meanwhile, a clone stays what it was, and the original is what it would be without.
        #[test]
        fn clones_are_of_their_moment(steps in proptest::collection::vec((0u8..8, 0u64..40), 1..300)) {
            let (mut keys, mut plain) = (Keys::default(), BTreeMap::new());
            let mut clones: VecDeque<(Keys, Vec<Entry>)> = VecDeque::new();
            for (now, (step, which)) in (0u64..).zip(steps) {
                match step {
                    0 => clones.push_back((keys.clone(), plain.values().copied().collect())),
                    1 => drop(clones.pop_front()),
                    2 => {
                        let horizon = now.saturating_sub(which);
                        keys.sweep(Micros::new(horizon));
                        plain.retain(|at, _| *at >= horizon);
                    }
                    _ => {
                        let entry = Entry { at: Micros::new(now), ..entry(now) };
                        keys.insert(entry);
                        plain.insert(now, entry);
                    }
                }
                let expected: Vec<Entry> = plain.values().copied().collect();
                prop_assert_eq!(keys.len(), expected.len());
                prop_assert_eq!(sorted(&keys), expected);
                for n in 0..=now {
                    prop_assert_eq!(keys.find(&entry(n).hash), plain.get(&n));
                }
                for (clone, then) in &clones {
                    prop_assert_eq!(&sorted(clone), then);
                }
                prop_assert!(keys.runs.len() <= RUNS_MAX);
            }
            clones.clear();
            let last = plain.len() as u64 + 1_000;
            (last..last + 400).for_each(|n| keys.insert(entry(n)));
            prop_assert_eq!(keys.runs.len(), 1, "all came home");
        }
    }

    #[test]
    fn hashes_are_of_account_and_key() {
        // Written down once: they are in snapshots, so they must never change.
        assert_eq!(hex::encode(KeyHash::new(7, b"a-key").0), "87e47bbcc153b0cd64379a06df6f72da");
        assert_ne!(KeyHash::new(7, b"a-key"), KeyHash::new(8, b"a-key"));
        assert_ne!(KeyHash::new(7, b"a-key"), KeyHash::new(7, b"a-kez"));
    }
}
