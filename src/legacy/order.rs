//! The order of the lists, without sorting five million rows. Movies are ranked once; sessions are counted by the rank
//! of their movie, and only those that can be among the first are collected and sorted. The first prepared ones are kept,
//! and a list merges the changes into them. Pure.

use std::cmp::Reverse;

use super::data::{Data, Session};
use super::overlay::Snapshot;

/// The rank of each movie by year (newest first) and name (byte order). Movies of one year and name share a rank,
/// since the list goes on with the customer's id. Costs about 30,000 small strings while it is built, 240 kB after.
#[derive(Debug)]
pub struct Ranks {
    /// Movie ids in the order of the movie list.
    order: Vec<u32>,
    /// By movie id; the zeroth is unused.
    rank: Vec<u32>,
    ranks: usize,
}

impl Ranks {
    pub fn build(data: &Data) -> Ranks {
        let mut movies: Vec<_> = (1..=data.sizes().movies).filter_map(|id| data.movie(id)).collect();
        movies
            .sort_unstable_by(|a, b| (Reverse(a.year), &a.name, a.id).cmp(&(Reverse(b.year), &b.name, b.id)));
        let mut rank = vec![0; data.sizes().movies as usize + 1];
        let mut current = 0;
        for (position, movie) in movies.iter().enumerate() {
            if position > 0
                && (movies[position - 1].year, &movies[position - 1].name) != (movie.year, &movie.name)
            {
                current += 1;
            }
            rank[movie.id as usize] = current;
        }
        Ranks { order: movies.iter().map(|movie| movie.id).collect(), rank, ranks: current as usize + 1 }
    }

    /// Movie ids by year (newest first), name, id.
    pub fn movies(&self) -> &[u32] {
        &self.order
    }

    fn of(&self, movie: u32) -> usize {
        self.rank.get(movie as usize).map_or(self.ranks - 1, |&rank| rank as usize)
    }
}

/// The first prepared sessions in the order of the list, a fifth more than a list takes, so that deletions rarely
/// exhaust them. 480 kB for a list of 100,000 rows.
#[derive(Debug)]
pub struct Prefix {
    ids: Vec<u32>,
    /// Rows of a list.
    limit: usize,
}

impl Prefix {
    /// Takes two passes over the prepared sessions, some tens of milliseconds with optimisation: not for an async
    /// worker.
    pub fn build(data: &Data, ranks: &Ranks, limit: usize) -> Prefix {
        let first = by_passes(data, ranks, &Snapshot::default(), limit + limit / 5);
        Prefix { ids: first.iter().filter_map(|session| u32::try_from(session.id).ok()).collect(), limit }
    }

    /// The first sessions by movie year desc, movie name, customer id, session id desc. Costs as much as building
    /// when so many were deleted that the prefix does not suffice.
    pub fn with_changes(&self, data: &Data, ranks: &Ranks, changes: &Snapshot) -> Vec<Session> {
        let kept = self.ids.iter().map(|&id| u64::from(id)).filter(|&id| !changes.is_deleted(id));
        let mut first: Vec<Session> = kept.take(self.limit).filter_map(|id| data.session(id)).collect();
        let whole = self.ids.len() == data.sizes().sessions as usize;
        if first.len() < self.limit && !whole {
            return by_passes(data, ranks, changes, self.limit);
        }
        if !changes.inserted().is_empty() {
            first.extend_from_slice(changes.inserted());
            sort(&mut first, ranks);
            first.truncate(self.limit);
        }
        first
    }
}

fn by_passes(data: &Data, ranks: &Ranks, changes: &Snapshot, limit: usize) -> Vec<Session> {
    let mut counts = vec![0_u32; ranks.ranks];
    for id in prepared(data, changes) {
        counts[ranks.of(data.session_movie(id))] += 1;
    }
    let last = last_rank(&counts, limit);
    let mut first: Vec<Session> = prepared(data, changes)
        .filter(|&id| ranks.of(data.session_movie(id)) <= last)
        .filter_map(|id| data.session(id))
        .chain(changes.inserted().iter().copied())
        .collect();
    sort(&mut first, ranks);
    first.truncate(limit);
    first
}

fn sort(sessions: &mut [Session], ranks: &Ranks) {
    sessions.sort_unstable_by_key(|session| {
        (ranks.of(session.movie_id), session.customer_id, Reverse(session.id))
    });
}

fn prepared<'a>(data: &Data, changes: &'a Snapshot) -> impl Iterator<Item = u64> + 'a {
    (1..=u64::from(data.sizes().sessions)).filter(|&id| !changes.is_deleted(id))
}

/// The rank with which the counts reach `limit`.
fn last_rank(counts: &[u32], limit: usize) -> usize {
    let mut sum = 0;
    for (rank, &count) in counts.iter().enumerate() {
        sum += count as usize;
        if sum >= limit {
            return rank;
        }
    }
    counts.len()
}

#[cfg(test)]
mod tests {
    use super::super::calendar::Timestamp;
    use super::super::data::Sizes;
    use super::super::overlay::{Change, Overlay};
    use super::*;

    const SMALL: Sizes = Sizes { movies: 300, customers: 20, sessions: 5_000 };

    /// The query itself: join everything, sort everything.
    fn by_sorting_all(data: &Data, changes: &Snapshot, limit: usize) -> Vec<u64> {
        let mut rows: Vec<_> = prepared(data, changes)
            .filter_map(|id| data.session(id))
            .chain(changes.inserted().iter().copied())
            .filter_map(|session| data.join(session))
            .collect();
        rows.sort_by(|a, b| {
            (Reverse(a.movie.year), &a.movie.name, a.customer.id, Reverse(a.id)).cmp(&(
                Reverse(b.movie.year),
                &b.movie.name,
                b.customer.id,
                Reverse(b.id),
            ))
        });
        rows.iter().take(limit).map(|row| row.id).collect()
    }

    /// Every `step`th prepared session deleted, 99 inserted.
    fn changed(data: &Data, step: usize) -> Snapshot {
        let mut overlay = Overlay::new(data);
        for id in (1..=5_000).step_by(step) {
            overlay.apply(Change::Delete(id));
        }
        for id in 5_001..5_100 {
            let movie_id = (id % 300) as u32 + 1;
            overlay.apply(Change::Insert(Session { id, start_time: Timestamp(0), customer_id: 3, movie_id }));
        }
        overlay.snapshot()
    }

    #[test]
    fn the_first_sessions_are_those_of_the_whole_sort() {
        for seed in 0..4 {
            let data = Data::new(seed, SMALL);
            let ranks = Ranks::build(&data);
            let untouched = Overlay::new(&data).snapshot();
            for changes in [untouched, changed(&data, 7), changed(&data, 2), changed(&data, 1)] {
                for limit in [0, 1, 17, 1_000, 100_000] {
                    let prefix = Prefix::build(&data, &ranks, limit);
                    let found: Vec<u64> = prefix
                        .with_changes(&data, &ranks, &changes)
                        .iter()
                        .map(|session| session.id)
                        .collect();
                    assert_eq!(found, by_sorting_all(&data, &changes, limit), "seed {seed}, limit {limit}");
                }
            }
        }
    }

    #[test]
    fn movies_of_one_year_and_name_share_a_rank() {
        let data = Data::new(1, Sizes::FULL);
        let ranks = Ranks::build(&data);
        assert_eq!(ranks.movies().len(), 29_020);
        assert!(ranks.ranks < 29_020, "the names are to repeat, or ties are never tested");
        let years: Vec<u32> =
            ranks.movies().iter().filter_map(|&id| data.movie(id)).map(|movie| movie.year).collect();
        assert!(years.is_sorted_by(|a, b| a >= b));
    }
}
