//! The instants at which accounts run dry, soonest first.
//!
//! A lazy heap: what is popped is checked against the state, which alone knows. The rule that makes it exact: for every
//! account that will run dry there is an entry at its instant or before. So an instant that moves later needs no entry (the
//! old one is popped early, and pushed anew); one that moves earlier does. Entries are 16 bytes and have no version, for the
//! state has it.
//!
//! Only instants before the *horizon*, some minutes from now, have entries: memory is for those who run dry soon, and money that
//! comes and goes on all other accounts costs nothing here. Half way to the horizon, and when entries that mean nothing any more
//! are more than half, the heap is made again from the state up to a new horizon, elsewhere ([`Timers::begin_rebuild`]); no
//! order waits for it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::billing::domain::Micros;

type Heap = BinaryHeap<Reverse<(Micros, u64)>>;

/// Below this many (1 MiB) it is not worth a rebuild.
const REBUILD_MIN: usize = 65_536;

/// From a rebuild to its horizon. A rebuild looks at every account (at 1M some milliseconds, on another thread), twice in this
/// time.
const SPAN_MICROS: u64 = 600 * 1_000_000;

#[derive(Debug, Default)]
pub struct Timers {
    heap: Heap,
    /// How many there were after the last rebuild.
    rebuilt: usize,
    /// What was pushed since a rebuild began.
    meanwhile: Option<Vec<Reverse<(Micros, u64)>>>,
    /// Instants from here on have no entry yet.
    horizon: Micros,
}

impl Timers {
    /// Of a new owner, from the whole state.
    pub fn new(instants: impl Iterator<Item = (Micros, u64)>, now: Micros) -> Timers {
        Timers::until(horizon(now), instants)
    }

    /// For [`Timers::end_rebuild`].
    pub fn until(horizon: Micros, instants: impl Iterator<Item = (Micros, u64)>) -> Timers {
        let heap: Heap = instants.filter(|(at, _)| *at < horizon).map(Reverse).collect();
        Timers { rebuilt: heap.len(), heap, meanwhile: None, horizon }
    }

    /// The account's instant was `before` and is `after`.
    pub fn moved(&mut self, account: u64, before: Option<Micros>, after: Option<Micros>) {
        match (before, after) {
            (_, None) => {}
            (Some(before), Some(after)) if before <= after => {}
            (_, Some(after)) => self.push(account, after),
        }
    }

    /// When [`Timers::pop`] has something next, or [`Timers::begin_rebuild`] has.
    pub fn next(&self) -> Option<Micros> {
        let refresh = self.meanwhile.is_none().then(|| self.refresh());
        self.soonest().into_iter().chain(refresh).min()
    }

    /// An account whose instant may have come. If the state says that it is later, tell by [`Timers::push`].
    pub fn pop(&mut self, now: Micros) -> Option<u64> {
        if self.soonest()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, account))| account)
    }

    pub fn push(&mut self, account: u64, at: Micros) {
        if at >= self.horizon {
            return;
        }
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

    /// If it is time to collect the instants of the state as it is now: the horizon for [`Timers::until`], whose result goes to
    /// [`Timers::end_rebuild`]; once for each.
    pub fn begin_rebuild(&mut self, now: Micros) -> Option<Micros> {
        let due = self.heap.len() > 2 * self.rebuilt + REBUILD_MIN || self.refresh() <= now;
        if !due || self.meanwhile.is_some() {
            return None;
        }
        self.meanwhile = Some(Vec::new());
        // What is pushed from now on must be there when the new heap is.
        self.horizon = self.horizon.max(horizon(now));
        Some(self.horizon)
    }

    /// None: it could not be made, the next one is begun at once.
    pub fn end_rebuild(&mut self, fresh: Option<Timers>) {
        let Some(meanwhile) = self.meanwhile.take() else { return };
        let Some(fresh) = fresh else {
            // What is before it may have no entry, and the next one is due by it.
            self.horizon = self.refresh();
            return;
        };
        self.heap = fresh.heap;
        self.heap.extend(meanwhile);
        self.rebuilt = self.heap.len();
    }

    fn soonest(&self) -> Option<Micros> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    fn refresh(&self) -> Micros {
        Micros::new(self.horizon.get().saturating_sub(SPAN_MICROS / 2))
    }
}

fn horizon(now: Micros) -> Micros {
    Micros::new(now.get().saturating_add(SPAN_MICROS))
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

    const SPAN: u64 = SPAN_MICROS;

    proptest! {
        /// Nobody is missed and nobody is early, whatever moves and whenever a rebuild runs.
        #[test]
        fn everybody_is_popped_at_their_instant(
            steps in proptest::collection::vec(
                (0u64..8, proptest::option::of(1u64..3 * SPAN), prop_oneof![0u64..10, 0..SPAN / 2], any::<bool>()), 1..200),
        ) {
            let (mut timers, mut state, mut now) = (Timers::new(std::iter::empty(), at(0)), BTreeMap::new(), 0);
            let mut snapshot: Option<(Micros, Vec<(Micros, u64)>)> = None;
            for (account, ends_in, passes, lasts) in steps {
                let before = state.get(&account).copied();
                let after = ends_in.map(|span| at(now + span));
                match after {
                    Some(after) => state.insert(account, after),
                    None => state.remove(&account),
                };
                timers.moved(account, before, after);
                // A rebuild is done long before the horizon.
                if snapshot.is_some() && (!lasts || passes > 10) {
                    let (horizon, instants) = snapshot.take().unwrap();
                    timers.end_rebuild(Some(Timers::until(horizon, instants.into_iter())));
                }
                now += passes;
                if let Some(horizon) = timers.begin_rebuild(at(now)) {
                    let instants = state.iter().map(|(account, at)| (*at, *account)).collect();
                    snapshot = Some((horizon, instants));
                }
                let dry = run(&mut timers, &mut state, now);
                prop_assert!(dry.iter().all(|(_, instant)| *instant <= at(now)));
                prop_assert!(state.values().all(|instant| *instant > at(now)), "somebody was missed");
                let soonest = state.values().min();
                let armed = |soonest: &Micros| timers.next().is_some_and(|next| next <= *soonest);
                prop_assert!(snapshot.is_some() || soonest.is_none_or(armed));
            }
        }
    }

    #[test]
    fn it_stays_in_proportion_to_the_accounts() {
        let mut timers = Timers::new((0..10).map(|account| (at(u64::MAX), account)), at(0));
        let mut instant = SPAN - 1;
        let mut most = 0;
        for n in 0..1_000_000u64 {
            timers.moved(n % 10, Some(at(instant)), Some(at(instant - 1)));
            instant -= 1;
            if let Some(horizon) = timers.begin_rebuild(at(0)) {
                let fresh = (0..10).map(|account| (at(instant), account));
                timers.end_rebuild(Some(Timers::until(horizon, fresh)));
            }
            most = most.max(timers.len());
        }
        assert!(most <= REBUILD_MIN + 64, "{most} entries for 10 accounts");
    }

    #[test]
    fn what_is_far_takes_no_memory_and_is_there_in_time() {
        let far = SPAN + 1;
        let mut timers = Timers::new((0..10).map(|account| (at(far), account)), at(0));
        (10..20).for_each(|account| timers.push(account, at(far)));
        assert!(timers.is_empty());
        assert_eq!((timers.next(), timers.begin_rebuild(at(SPAN / 2 - 1))), (Some(at(SPAN / 2)), None));
        let horizon = timers.begin_rebuild(at(SPAN / 2)).unwrap();
        // As it comes while the heap is made.
        timers.push(20, at(far));
        timers.end_rebuild(Some(Timers::until(horizon, (0..20).map(|account| (at(far), account)))));
        assert_eq!((timers.len(), timers.pop(at(far - 1))), (21, None));
        assert!(timers.pop(at(far)).is_some());
    }

    #[test]
    fn a_rebuild_that_failed_is_begun_again_at_once() {
        let (far, now) = (SPAN + 1, SPAN / 2);
        let mut timers = Timers::new(std::iter::once((at(far), 1)), at(0));
        timers.begin_rebuild(at(now)).unwrap();
        timers.push(2, at(far));
        timers.end_rebuild(None);
        assert!(timers.next().is_some_and(|next| next <= at(now)));
        let horizon = timers.begin_rebuild(at(now)).unwrap();
        timers.end_rebuild(Some(Timers::until(horizon, [(at(far), 1), (at(far), 2)].into_iter())));
        assert_eq!((timers.len(), timers.begin_rebuild(at(now))), (2, None));
    }
}
