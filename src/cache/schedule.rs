//! What is due when: a queue by time from which things can also be taken by id. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

use ahash::AHashMap;

/// Holds each id at most once.
pub struct Schedule<T> {
    by_time: BTreeMap<(Instant, u64), T>,
    due: AHashMap<u64, Instant>,
}

impl<T> Schedule<T> {
    pub fn new() -> Schedule<T> {
        Schedule { by_time: BTreeMap::new(), due: AHashMap::new() }
    }

    /// Plans `thing` for `due`, in place of what had this id. True if it is now the first of all.
    pub fn insert(&mut self, id: u64, due: Instant, thing: T) -> bool {
        self.remove(id);
        self.due.insert(id, due);
        self.by_time.insert((due, id), thing);
        self.by_time.keys().next() == Some(&(due, id))
    }

    pub fn remove(&mut self, id: u64) -> Option<T> {
        let due = self.due.remove(&id)?;
        self.by_time.remove(&(due, id))
    }

    /// Takes the longest due thing, if one is due at `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<T> {
        let first = self.by_time.first_entry()?;
        let (due, id) = *first.key();
        if due > now {
            return None;
        }
        self.due.remove(&id);
        Some(first.remove())
    }

    /// When the next thing is due.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.keys().next().map(|&(due, _)| due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        /// Against a plain list: whatever is done, things come out by time, each once, never early.
        #[test]
        fn behaves_like_a_sorted_list(steps in proptest::collection::vec((0u8..3, 0u64..8, 0u64..50), 0..60)) {
            let start = Instant::now();
            let (mut schedule, mut model) = (Schedule::new(), Vec::<(u64, u64)>::new());
            for (kind, id, at) in steps {
                match kind {
                    0 => {
                        model.retain(|&(_, held)| held != id);
                        model.push((at, id));
                        model.sort_unstable();
                        let first = schedule.insert(id, start + Duration::from_millis(at), id);
                        prop_assert_eq!(first, model[0] == (at, id));
                    }
                    1 => {
                        let held = model.iter().position(|&(_, held)| held == id).map(|at| model.remove(at).1);
                        prop_assert_eq!(schedule.remove(id), held);
                    }
                    _ => {
                        let due = (!model.is_empty() && model[0].0 <= at).then(|| model.remove(0).1);
                        prop_assert_eq!(schedule.pop_due(start + Duration::from_millis(at)), due);
                    }
                }
                let next = model.first().map(|&(at, _)| start + Duration::from_millis(at));
                prop_assert_eq!(schedule.next(), next);
                prop_assert_eq!(schedule.due.len(), schedule.by_time.len());
            }
        }
    }
}
