//! A hash index from 32 bits of a hash to positions in somebody else's array, 8 bytes a slot.
//!
//! The standard map keeps entries in tables of a power of two, up to twice as large as needed: 1M records of 40 bytes
//! would take 100 bytes each. Here entries lie densely in an array of their owner's, and this index grows by a quarter.
//! Slots hold the hash's bits as well, so growing and removing read no entry. It is never encoded; its order shows
//! nowhere.

/// Linear probing, kept at most 80 % full, removal by shifting back.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// `tag << 32 | position`, or [`EMPTY`].
    slots: Vec<u64>,
    used: usize,
}

/// No entry: positions stay below [`Index::POSITION_MAX`].
const EMPTY: u64 = u64::MAX;

impl Index {
    pub const POSITION_MAX: u32 = u32::MAX - 1;

    /// The first position with this tag that `is` accepts.
    pub fn find(&self, tag: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let mut at = self.home(tag);
        // A free slot ends it: there always is one.
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            if (slot >> 32) as u32 == tag && is(slot as u32) {
                return Some(slot as u32);
            }
            at = self.next(at);
        }
    }

    pub fn insert(&mut self, tag: u32, position: u32) {
        if (self.used + 1) * 5 > self.slots.len() * 4 {
            self.resize((self.used + 1) * 25 / 16 + 4);
        }
        self.place(u64::from(tag) << 32 | u64::from(position));
        self.used += 1;
    }

    /// Nothing happens if it is not there.
    pub fn remove(&mut self, tag: u32, position: u32) {
        let entry = u64::from(tag) << 32 | u64::from(position);
        if self.slots.is_empty() {
            return;
        }
        let mut hole = self.home(tag);
        while self.slots[hole] != entry {
            if self.slots[hole] == EMPTY {
                return;
            }
            hole = self.next(hole);
        }
        let mut at = hole;
        loop {
            at = self.next(at);
            if self.slots[at] == EMPTY {
                break;
            }
            // It may move into the hole unless its home lies behind the hole, on the way to where it is.
            let home = self.home((self.slots[at] >> 32) as u32);
            if self.distance(home, at) >= self.distance(hole, at) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
        }
        self.slots[hole] = EMPTY;
        self.used -= 1;
    }

    /// Reads where a search begins, so that it lies in the processor's cache when the search comes.
    pub fn touch(&self, tag: u32) -> u64 {
        if self.slots.is_empty() { 0 } else { self.slots[self.home(tag)] }
    }

    /// Gives memory back once most of it lies empty.
    pub fn shrink(&mut self) {
        if self.slots.len() > 4 * (self.used + 16) {
            self.resize(self.used * 25 / 16 + 4);
        }
    }

    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
    }

    fn resize(&mut self, slots: usize) {
        let mut fresh = Vec::new();
        fresh.reserve_exact(slots);
        fresh.resize(slots, EMPTY);
        for entry in std::mem::replace(&mut self.slots, fresh) {
            if entry != EMPTY {
                self.place(entry);
            }
        }
    }

    fn place(&mut self, entry: u64) {
        let mut at = self.home((entry >> 32) as u32);
        while self.slots[at] != EMPTY {
            at = self.next(at);
        }
        self.slots[at] = entry;
    }

    /// Spreads tags over any number of slots by a multiplication (Lemire's range reduction).
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.slots.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Few tags, so that most collide, some at the last slot.
        #[test]
        fn it_holds_what_a_set_holds(
            steps in proptest::collection::vec((any::<bool>(), 0u32..12, 0u32..64), 1..400),
        ) {
            let tag_of = |small: u32| small.wrapping_mul(0x1555_5555) | 3;
            let (mut index, mut set) = (Index::default(), BTreeSet::new());
            for (adds, small, position) in steps {
                let tag = tag_of(small);
                if !adds {
                    index.remove(tag, position);
                    set.remove(&(tag, position));
                    index.shrink();
                } else if set.insert((tag, position)) {
                    index.insert(tag, position);
                }
                prop_assert_eq!(index.used, set.len());
                for (tag, position) in &set {
                    prop_assert_eq!(index.find(*tag, |p| p == *position), Some(*position));
                }
            }
            for (tag, position) in (0..12).flat_map(|s| (0..64).map(move |p| (tag_of(s), p))) {
                prop_assert_eq!(index.find(tag, |p| p == position).is_some(), set.contains(&(tag, position)));
            }
        }
    }
}
