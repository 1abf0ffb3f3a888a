//! What operators ask for, at whichever node, and what other nodes ask of this one's shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Desk, Shards};
use crate::billing::api::error::{Kind, Problem};
use crate::billing::api::gate::Caller;
use crate::billing::shard::{Failure, Owners};

/// Images that come in at once.
pub(super) const IMAGES_MAX: usize = 4;
/// Buckets of one request on their way at once.
const AT_ONCE: usize = 4;
/// How long something is tried before it is told how far it is. With what another node then takes for its own it stays below
/// the door's timeout.
const PATIENCE: Duration = Duration::from_secs(6);
/// A node that was asked does not have it either: so often this one looks who has.
const LOOKS: usize = 3;
/// Before what was busy is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Of one bucket; or of some that another node was asked for together, which names one itself.
type Failed = (Option<u16>, Problem);

impl<S: Shards> Desk<S> {
    /// Moves buckets to a shard, wherever they and it are; all are there when it is `Ok`. Asked again, it goes on.
    pub async fn move_buckets(&self, caller: Caller, buckets: &[u16], to: u32) -> Result<(), Problem> {
        let until = Instant::now() + PATIENCE;
        let mut left = buckets.to_vec();
        let mut untouched = true;
        let mut looks = if caller == Caller::Client { LOOKS } else { 0 };
        loop {
            let before = left.len();
            let failed = self.try_moves(caller, &mut left, to, until).await;
            untouched &= left.len() == before && failed.iter().all(|(_, problem)| is_untouched(problem));
            let Some((bucket, problem)) = worst(failed) else { return Ok(()) };
            let again = match problem.kind {
                Kind::Busy => Instant::now() + PAUSE < until,
                Kind::Loop => looks > 0 && Instant::now() + PAUSE < until,
                _ => false,
            };
            if !again {
                let there = (caller == Caller::Client).then_some((buckets.len() - left.len(), buckets.len()));
                return Err(told(there, bucket, problem, untouched));
            }
            looks -= usize::from(problem.kind == Kind::Loop);
            // Where they are now; if that cannot be read, whoever is asked says so.
            let _ = self.shards.map_version().await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Leaves in `left` what is not there.
    async fn try_moves(&self, caller: Caller, left: &mut Vec<u16>, to: u32, until: Instant) -> Vec<Failed> {
        let moving = left.iter().copied().map(async |bucket| {
            // What is behind others in a long list is left for the next request.
            let late = Instant::now() > until;
            let busy = || Failure::Busy { retry_after: Duration::from_secs(1) };
            (bucket, if late { Err(busy()) } else { self.shards.move_bucket(bucket, to).await })
        });
        let results: Vec<_> = stream::iter(moving).buffer_unordered(AT_ONCE).collect().await;
        let mut away: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        let mut failed = Vec::new();
        left.clear();
        for (bucket, result) in results {
            match result {
                Ok(()) => continue,
                Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => {
                    away.entry(advertise).or_default().push(bucket);
                    continue;
                }
                Err(failure) => failed.push((Some(bucket), failure.into())),
            }
            left.push(bucket);
        }
        let away = away.into_iter().map(|(advertise, theirs)| async move {
            let moved = self.peers.move_buckets(&advertise, theirs.clone(), to).await;
            if moved.as_ref().is_err_and(|problem| problem.kind == Kind::Loop) {
                self.shards.look_again(&theirs, &advertise).await;
            }
            (theirs, moved)
        });
        for (theirs, result) in join_all(away).await {
            if let Err(problem) = result {
                failed.push((None, problem));
                left.extend(theirs);
            }
        }
        failed
    }

    /// Gives a shard to a node by hand, wherever it is.
    pub async fn hand_over(&self, caller: Caller, shard: u32, to: &str) -> Result<(), Problem> {
        if caller == Caller::Client {
            self.check_known(to).await?;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let given = match self.shards.assign(shard, to).await {
                Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => {
                    let given = self.peers.hand_over(&advertise, shard, to).await;
                    // It may be for this node.
                    self.shards.look_at(shard);
                    given
                }
                given => given.map_err(Problem::from),
            };
            match given {
                // It changes hands, as it does after a hand-over.
                Err(problem) if problem.kind == Kind::Busy && Instant::now() + PAUSE < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                given => return given,
            }
        }
    }

    /// A shard that is kept for a node which is not there has no owner for that long. So it goes to this node, or to one that has
    /// a lease.
    async fn check_known(&self, to: &str) -> Result<(), Problem> {
        let Owners { node, shards } = self.shards.owners().await;
        if node == to || shards.iter().any(|shard| shard.node == to && !shard.advertise.is_empty()) {
            return Ok(());
        }
        let detail = format!(
            "no node called {to} has a shard; one that has none yet is given one if it is asked itself"
        );
        Err(Problem { detail, ..Kind::UnknownNode.into() })
    }

    /// For as long as it is kept, there is room for an image that another node sends.
    pub fn place_for_image(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.images).try_acquire_owned().map_err(|_| Kind::Busy.into())
    }

    pub async fn adopt(&self, shard: u32, generation: u64, image: Bytes) -> Result<(), Problem> {
        self.shards.adopt(shard, generation, image).await.map_err(|failure| match failure {
            Failure::Refused(refusal) => Problem::malformed(refusal.to_string()),
            other => other.into(),
        })
    }

    pub async fn give(&self, shard: u32, to: &str) -> Result<(), Problem> {
        self.shards.give(shard, to).await.map_err(Problem::from)
    }
}

/// Surely nothing was done, and it may be otherwise in a moment.
fn is_untouched(problem: &Problem) -> bool {
    matches!(problem.kind, Kind::Busy | Kind::Loop)
}

/// What asking again does not help, before what is not known, before what is busy.
fn worst(failed: Vec<Failed>) -> Option<Failed> {
    failed.into_iter().min_by_key(|(_, problem)| (problem.kind.stops(), is_untouched(problem)))
}

/// What to tell of many at once: nothing was done only if nothing was for any. `there`: how many of how many are, for a client; a
/// node that asked for one counts itself.
fn told(there: Option<(usize, usize)>, bucket: Option<u16>, problem: Problem, untouched: bool) -> Problem {
    if untouched && is_untouched(&problem) {
        return problem;
    }
    let kind = if problem.kind.stops() { Kind::Unknown } else { problem.kind };
    let there = there.map(|(there, all)| format!("{there} of {all} buckets are there; ")).unwrap_or_default();
    let bucket = bucket.map(|bucket| format!("bucket {bucket}: ")).unwrap_or_default();
    let detail = format!("{there}{bucket}{}", problem.detail);
    Problem { detail, ..kind.into() }
}
