//! Pages: how both engines lay out the ledger. Lines of accounts that share a *group* stand together, in their order, so that
//! a write touches as many places as there are groups, and not as many as there are lines.

use std::sync::Arc;

use super::Line;

/// Lines as they were handed over, batch by batch: in the order of (seq, position), and each account's places differ.
pub type Offers = Vec<Vec<Line>>;

/// Few enough that a chunk of lines fills pages, and enough that a page of a history is found among few. It is stored in every
/// key, and in the text of views: it never changes.
pub const GROUPS: u16 = 1024;

pub fn group_of(account: u64) -> u16 {
    (account & u64::from(GROUPS - 1)) as u16
}

/// Lines by their groups, in their order.
pub(super) struct Grouped {
    offers: Arc<Offers>,
    /// Which offer, and which line of it.
    order: Vec<(u32, u32)>,
    /// Of each group, in `order`.
    ends: Vec<usize>,
}

impl Grouped {
    /// Two passes, whatever the order: counted, and put in place.
    pub(super) fn new(offers: Arc<Offers>) -> Grouped {
        let group = |line: &Line| usize::from(group_of(line.after.id));
        let mut ends = vec![0; usize::from(GROUPS)];
        for line in offers.iter().flatten() {
            ends[group(line)] += 1;
        }
        let mut total = 0;
        for end in &mut ends {
            total += std::mem::replace(end, total);
        }
        let mut order = vec![(0, 0); total];
        for (offer, lines) in offers.iter().enumerate() {
            for (at, line) in lines.iter().enumerate() {
                let place = &mut ends[group(line)];
                order[*place] = (offer as u32, at as u32);
                *place += 1;
            }
        }
        Grouped { offers, order, ends }
    }

    pub(super) fn lines_of(&self, group: u16) -> impl ExactSizeIterator<Item = &Line> {
        let group = usize::from(group);
        let first = group.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.order[first..self.ends[group]]
            .iter()
            .map(|(offer, at)| &self.offers[*offer as usize][*at as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::domain::{Micros, Money, Row, Stage, Velocity};
    use crate::billing::journal::LineKind;

    #[test]
    fn lines_of_a_group_stay_in_their_order() {
        let line = |id: u64, seq: u64| {
            let stage = Stage::Open { balance: Money::ZERO, remainder: 0 };
            let row = Row { id, velocity: Velocity::ZERO, version: 1, since: Micros::ZERO, stage };
            Line::of_row(seq, 0, LineKind::Carried, Micros::ZERO, row)
        };
        let offers = vec![
            vec![line(5, 1), line(1029, 2), line(u64::MAX, 3)],
            vec![],
            vec![line(1023, 4), line(0, 5), line(5, 6), line(1 << 63, 7)],
        ];
        let grouped = Grouped::new(Arc::new(offers));
        let seqs = |group| grouped.lines_of(group).map(|line| line.seq).collect::<Vec<_>>();
        assert_eq!([seqs(0), seqs(5), seqs(1023), seqs(7)], [vec![5, 7], vec![1, 2, 6], vec![3, 4], vec![]]);
        let none = Grouped::new(Arc::default());
        assert!((0..GROUPS).all(|group| none.lines_of(group).len() == 0));
    }
}
