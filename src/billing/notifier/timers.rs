//! The instants at which accounts run dry, soonest first.
//!
//! A lazy heap: what is popped is checked against the state, which alone knows. The rule that makes it exact: for every
//! account that will run dry there is an entry at its instant or before. So an instant that moves later needs no entry (the
//! old one is popped early, and pushed anew); one that moves earlier does. Entries are 16 bytes and have no version, for the
//! state has it.
//!
//! Entries that mean nothing any more stay until they are due. When they are more than half, the heap is made again from
//! the state, elsewhere ([`Timers::begin_rebuild`]): each entry has then been paid for by a push, and no order waits for
//! it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::billing::domain::Micros;

type Heap = BinaryHeap<Reverse<(Micros, u64)>>;

/// Below this many (1 MiB) it is not worth a rebuild.
const REBUILD_MIN: usize = 65_536;

#[derive(Debug, Default)]
pub struct Timers {
    heap: Heap,
    /// How many there were after the last rebuild.
    rebuilt: usize,
    /// What was pushed since a rebuild began.
    meanwhile: Option<Vec<Reverse<(Micros, u64)>>>,
}

impl Timers {
    /// Of a new owner, from the whole state.
    pub fn new(instants: impl Iterator<Item = (Micros, u64)>) -> Timers {
        let heap: Heap = instants.map(Reverse).collect();
        Timers { rebuilt: heap.len(), heap, meanwhile: None }
    }

    /// The account's instant was `before` and is `after`.
    pub fn moved(&mut self, account: u64, before: Option<Micros>, after: Option<Micros>) {
        match (before, after) {
            (_, None) => {}
            (Some(before), Some(after)) if before <= after => {}
            (_, Some(after)) => self.push(account, after),
        }
    }

    /// When [`Timers::pop`] has something next.
    pub fn next(&self) -> Option<Micros> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// An account whose instant may have come. If the state says that it is later, tell by [`Timers::push`].
    pub fn pop(&mut self, now: Micros) -> Option<u64> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, account))| account)
    }

    pub fn push(&mut self, account: u64, at: Micros) {
        self.heap.push(Reverse((at, account)));
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.push(Reverse((at, account)));
        }
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// True if it is time to collect the instants of the state as it is now, and to give them to
    /// [`Timers::end_rebuild`]; once for each.
    pub fn begin_rebuild(&mut self) -> bool {
        let due = self.meanwhile.is_none() && self.heap.len() > 2 * self.rebuilt + REBUILD_MIN;
        if due {
            self.meanwhile = Some(Vec::new());
        }
        due
    }

    pub fn end_rebuild(&mut self, fresh: Timers) {
        let Some(meanwhile) = self.meanwhile.take() else { return };
        self.heap = fresh.heap;
        self.heap.extend(meanwhile);
        self.rebuilt = self.heap.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(n: u64) -> Micros {
        Micros::new(n)
    }

    /// Pops as an owner does; gives who ran dry, when.
    fn run(timers: &mut Timers, state: &mut BTreeMap<u64, Micros>, now: u64) -> Vec<(u64, Micros)> {
        let mut dry = Vec::new();
        while let Some(account) = timers.pop(at(now)) {
            match state.get(&account) {
                Some(instant) if *instant <= at(now) => dry.push((account, state.remove(&account).unwrap())),
                Some(instant) => timers.push(account, *instant),
                None => {}
            }
        }
        dry
    }

    proptest! {
        /// Nobody is missed and nobody is early, whatever moves and whenever a rebuild runs.
        #[test]
        fn everybody_is_popped_at_their_instant(
            steps in proptest::collection::vec((0u64..8, proptest::option::of(1u64..50), 0u64..10, any::<bool>()), 1..200),
        ) {
            let (mut timers, mut state, mut now) = (Timers::default(), BTreeMap::new(), 0);
            let mut snapshot: Option<Vec<(Micros, u64)>> = None;
            for (account, ends_in, passes, rebuilds) in steps {
                let before = state.get(&account).copied();
                let after = ends_in.map(|span| at(now + span));
                match after {
                    Some(after) => state.insert(account, after),
                    None => state.remove(&account),
                };
                timers.moved(account, before, after);
                if rebuilds {
                    match snapshot.take() {
                        Some(instants) => timers.end_rebuild(Timers::new(instants.into_iter())),
                        None => {
                            timers.meanwhile = Some(Vec::new());
                            snapshot = Some(state.iter().map(|(account, at)| (*at, *account)).collect());
                        }
                    }
                }
                now += passes;
                let dry = run(&mut timers, &mut state, now);
                prop_assert!(dry.iter().all(|(_, instant)| *instant <= at(now)));
                prop_assert!(state.values().all(|instant| *instant > at(now)), "somebody was missed");
                let soonest = state.values().min();
                prop_assert!(soonest.is_none_or(|soonest| timers.next().is_some_and(|next| next <= *soonest)));
            }
        }
    }

    #[test]
    fn it_stays_in_proportion_to_the_accounts() {
        let mut timers = Timers::new((0..10).map(|account| (at(u64::MAX), account)));
        let mut instant = 1 << 40;
        let mut most = 0;
        for n in 0..1_000_000u64 {
            timers.moved(n % 10, Some(at(instant)), Some(at(instant - 1)));
            instant -= 1;
            if timers.begin_rebuild() {
                timers.end_rebuild(Timers::new((0..10).map(|account| (at(instant), account))));
            }
            most = most.max(timers.len());
        }
        assert!(most <= REBUILD_MIN + 64, "{most} entries for 10 accounts");
    }
}
