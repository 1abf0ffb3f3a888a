//! Nodes that may not be of this journal. A copy of a database has the leases of the nodes that run on the original, and until
//! these run out a node on the copy would ask them, with commands too. So whoever stands in a lease that was there at the start
//! is asked only once that lease moves: then its owner writes to this very journal, and not to another with the same rows.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::billing::journal::Lease;

/// Between looks at the leases, as long as there are strangers. An owner renews three times in each lease, and every batch
/// moves its lease too.
const PAUSE: Duration = Duration::from_millis(100);
/// More of a lease than there could be without a renewal, the clocks' rates allowed for.
const MARGIN: Duration = Duration::from_millis(100);
/// How long one who has to be asked may be a stranger still: more than a third of the default lease.
const PATIENCE: Duration = Duration::from_secs(2);

/// Cheap to clone.
#[derive(Clone)]
pub struct Strangers(watch::Receiver<BTreeSet<String>>);

/// A lease as it was at the start.
struct Seen {
    lease: Lease,
    /// Not before the journal told it.
    at: Instant,
}

impl Strangers {
    pub fn none() -> Strangers {
        Strangers(watch::channel(BTreeSet::new()).1)
    }

    /// Those in the leases of other nodes than `own` that have not run out. Looks on in the background until there are none left, or
    /// `closing`. Error: the leases could not be read now.
    pub async fn look<E: Display>(
        own: String,
        leases: impl AsyncFn() -> Result<Vec<Lease>, E>,
        closing: CancellationToken,
    ) -> Result<(Strangers, impl Future<Output = ()>), E> {
        let found = leases().await?;
        let at = Instant::now();
        let other =
            |lease: &Lease| !lease.advertise.is_empty() && lease.node != own && !lease.expires_in.is_zero();
        let mut seen: Vec<Seen> = found.into_iter().filter(other).map(|lease| Seen { lease, at }).collect();
        let (sender, receiver) = watch::channel(addresses(&seen));
        let looking = async move {
            while !seen.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = closing.cancelled() => return,
                }
                let asked = Instant::now();
                match leases().await {
                    Ok(now) => forget_known(&mut seen, &now, asked),
                    Err(error) => tracing::debug!(%error, "the leases could not be read; again in a moment"),
                }
                sender.send_if_modified(|strangers| {
                    let left = addresses(&seen);
                    let changed = *strangers != left;
                    *strangers = left;
                    changed
                });
            }
        };
        Ok((Strangers(receiver), looking))
    }

    /// Whether the node at `advertise` may be asked; waits a little for it to become known.
    pub async fn is_known(&self, advertise: &str) -> bool {
        if !self.0.borrow().contains(advertise) {
            return true;
        }
        let mut strangers = self.0.clone();
        let known = strangers.wait_for(|strangers| !strangers.contains(advertise));
        matches!(tokio::time::timeout(PATIENCE, known).await, Ok(Ok(_)))
    }
}

fn addresses(seen: &[Seen]) -> BTreeSet<String> {
    seen.iter().map(|seen| seen.lease.advertise.clone()).collect()
}

/// Whoever moved one of its leases is known; whose leases have run out is asked no more. `asked`: not after the journal told `now`.
fn forget_known(seen: &mut Vec<Seen>, now: &[Lease], asked: Instant) {
    let is_over = |seen: &Seen, now: &Lease| now.epoch != seen.lease.epoch || now.expires_in.is_zero();
    let moved = |seen: &Seen, now: &Lease| {
        let left = seen.lease.expires_in.saturating_sub(asked.saturating_duration_since(seen.at));
        now.epoch == seen.lease.epoch && (now.seq != seen.lease.seq || now.expires_in > left + MARGIN)
    };
    let of = |seen: &Seen| now.iter().find(|now| now.shard == seen.lease.shard);
    let known: BTreeSet<String> = seen
        .iter()
        .filter(|seen| of(seen).is_some_and(|now| moved(seen, now)))
        .map(|seen| seen.lease.advertise.clone())
        .collect();
    seen.retain(|seen| {
        !known.contains(&seen.lease.advertise) && of(seen).is_some_and(|now| !is_over(seen, now))
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn lease(shard: u32, node: &str, expires_in: Duration) -> Lease {
        let advertise = if node.is_empty() { String::new() } else { format!("{node}:8200") };
        Lease { shard, epoch: 3, seq: 7, node: node.to_owned(), advertise, expires_in }
    }

    /// A journal's leases, which run out.
    #[derive(Clone)]
    struct Journal(Arc<Mutex<Vec<(Lease, Instant)>>>);

    impl Journal {
        fn new(leases: impl IntoIterator<Item = Lease>) -> Journal {
            Journal(Arc::new(Mutex::new(leases.into_iter().map(|lease| (lease, Instant::now())).collect())))
        }

        fn change(&self, shard: usize, change: impl FnOnce(&mut Lease)) {
            let (lease, at) = &mut self.0.lock()[shard];
            lease.expires_in = lease.expires_in.saturating_sub(at.elapsed());
            *at = Instant::now();
            change(lease);
        }

        async fn strangers(&self) -> Strangers {
            let Journal(leases) = self.clone();
            let read = async move || {
                let left = |(lease, at): &(Lease, Instant)| Lease {
                    expires_in: lease.expires_in.saturating_sub(at.elapsed()),
                    ..lease.clone()
                };
                Ok::<_, String>(leases.lock().iter().map(left).collect())
            };
            let (strangers, looking) =
                Strangers::look("a".to_owned(), read, CancellationToken::new()).await.unwrap();
            tokio::spawn(looking);
            strangers
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_of_a_copy_is_asked_until_the_leases_are_over() {
        let copy = Journal::new([lease(0, "b", LEASE), lease(1, "c", LEASE / 2), lease(2, "a", LEASE)]);
        let strangers = copy.strangers().await;
        assert!(strangers.is_known("a:8200").await, "this node's own");
        assert!(strangers.is_known("d:8200").await, "whoever comes later took its lease here");
        let began = Instant::now();
        while !strangers.is_known("c:8200").await {
            assert!(began.elapsed() < LEASE);
        }
        assert!(began.elapsed() >= LEASE / 2 - PATIENCE, "{:?}", began.elapsed());
        assert!(!strangers.is_known("b:8200").await);
        tokio::time::sleep(LEASE / 2).await;
        assert!(strangers.is_known("b:8200").await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_writes_here_is_known() {
        let renewed: fn(&mut Lease) = |lease| lease.expires_in = LEASE;
        let appended: fn(&mut Lease) = |lease| lease.seq += 1;
        let taken: fn(&mut Lease) = |lease| lease.epoch += 1;
        for (what, change) in [("renewed", renewed), ("appended", appended), ("taken", taken)] {
            let journal = Journal::new([lease(0, "b", LEASE), lease(1, "c", LEASE)]);
            let strangers = journal.strangers().await;
            assert!(!strangers.is_known("b:8200").await, "{what}");
            journal.change(0, change);
            assert!(strangers.is_known("b:8200").await, "{what}");
            assert!(!strangers.is_known("c:8200").await, "{what}");
        }
    }
}
