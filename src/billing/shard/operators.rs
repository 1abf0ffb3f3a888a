//! What operators and other nodes ask of the shards of this node: to move buckets, and to give shards away.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::router::Router;
use super::seat::{Errand, HandOver, Seat, Standing, busy};
use super::{Failure, Unmovable, spread};
use crate::billing::domain::{Assignment, BUCKETS};
use crate::clock;

/// For the bucket map to be read, and for leases; a journal that takes longer has other worries.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

impl Router {
    /// Moves a bucket to another shard; it is there when this returns `Ok`, and also if it was before. `Busy`: nothing was
    /// done. `Unknown`: it may be on its way, and then arrives; asked again, this tells. `Elsewhere`: the shard that has it is
    /// another node's.
    pub async fn move_bucket(&self, bucket: u16, to: u32) -> Result<(), Failure> {
        if bucket >= BUCKETS {
            return Err(Unmovable::NoSuchBucket.into());
        }
        self.seat_of(to)?;
        let from = self.0.map.shard_of(bucket).ok_or_else(busy)?;
        let errand = |reply| Errand::Move { bucket, to, reply };
        self.seat_of(from)?.have_done(self.0.config.answer_timeout, errand).await
    }

    /// The node at `advertise` does not have these buckets, as this one thought: their map is read again, and then their
    /// shards' leases, until they are somebody else's. Two seconds at most.
    pub async fn look_again(&self, buckets: &[u16], advertise: &str) {
        if let Err(failure) = self.map_version().await {
            tracing::debug!(%failure, "the bucket map could not be read in time");
        }
        let shards: BTreeSet<u32> =
            buckets.iter().filter_map(|bucket| self.0.map.shard_of(*bucket)).collect();
        let left =
            join_all(shards.into_iter().filter_map(|shard| self.seat_of(shard).ok()).map(async |seat| {
                if seat.is_at(advertise) {
                    seat.poke();
                    seat.left(advertise).await;
                }
            }));
        let _ = timeout(LOOK_TIMEOUT, left).await;
    }

    /// Of the bucket map, as the journal has it: larger whenever a bucket has moved.
    pub async fn map_version(&self) -> Result<u64, Failure> {
        let read = timeout(LOOK_TIMEOUT, (self.0.read_map)()).await;
        read.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// Takes a bucket into a shard of this node, as another shard released it. It is durable here when this returns `Ok`, and
    /// also if it was before.
    pub async fn adopt(&self, shard: u32, generation: u64, image: Bytes) -> Result<(), Failure> {
        let errand = |reply| Errand::Adopt { generation, image, reply };
        self.seat_of(shard)?.have_done(self.0.config.answer_timeout, errand).await
    }

    /// Hands a shard this node owns to another node; returns when this node writes nothing more. `Unknown`: it does not
    /// either, but the other node may have to wait for the end of the lease.
    pub async fn hand_over(&self, shard: u32, to: &str) -> Result<(), Failure> {
        if to == self.0.config.node.name {
            return Ok(());
        }
        self.leave_to(shard, to, false).await
    }

    /// As [`Router::hand_over`], by hand: no node asks another for a shard for a while. If this node is the other and has it
    /// already, the while begins anew.
    pub async fn assign(&self, shard: u32, to: &str) -> Result<(), Failure> {
        if to.is_empty() || to.len() > Assignment::NODE_BYTES_MAX {
            return Err(Unmovable::BadName.into());
        }
        if to != self.0.config.node.name {
            return self.leave_to(shard, to, true).await;
        }
        let errand = |reply| Errand::Assign { reply };
        self.seat_of(shard)?.have_done(self.0.config.answer_timeout, errand).await
    }

    /// Another node asks for a shard, to spread them. It gets it if this node has at least two more and nothing speaks against
    /// it; otherwise `Busy`. If `to` is this node, it was given to it, and may be taken.
    pub async fn give(&self, shard: u32, to: &str) -> Result<(), Failure> {
        let super::router::Inner { config, seats, wall, gave, .. } = &*self.0;
        let seat = self.seat_of(shard)?;
        if to == config.node.name {
            seat.poke();
            return Ok(());
        }
        seat.is_here()?;
        let mut gave = gave.try_lock().map_err(|_| busy())?;
        let owners = spread::owners(seats, config, wall).ok_or_else(busy)?;
        let owners: Vec<&str> = owners.iter().map(|(node, _)| node.as_str()).collect();
        let lately = gave.is_some_and(|gave| clock::now() < gave + config.spread);
        if lately || !spread::is_worth_giving(&owners, shard, to) {
            return Err(busy());
        }
        *gave = Some(clock::now());
        self.hand_over(shard, to).await
    }

    /// Whoever had a shard has been asked to give it to this node: looks whether it may be taken.
    pub fn look_at(&self, shard: u32) {
        if let Ok(seat) = self.seat_of(shard) {
            seat.poke();
        }
    }

    /// Leaves a shard to whoever takes it first; this node does not, if it rests.
    pub async fn vacate(&self, shard: u32) -> Result<(), Failure> {
        self.leave_to(shard, "", false).await
    }

    /// From now on this node takes no shard: it is about to leave.
    pub fn rest(&self) {
        self.0.resting.store(true, Relaxed);
    }

    async fn leave_to(&self, shard: u32, to: &str, assigned: bool) -> Result<(), Failure> {
        let seat = self.seat_of(shard)?;
        match &*seat.standing() {
            Standing::Own { hand_over, .. } => {
                let (reply, answer) = oneshot::channel();
                let request = HandOver { to: to.to_owned(), assigned, reply };
                hand_over.try_send(request).map_err(|_| busy())?;
                match timeout(self.0.config.answer_timeout, answer).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) | Err(_) => Err(Failure::Unknown),
                }
            }
            Standing::Elsewhere { node, .. } if node == to && !assigned => Ok(()),
            // By hand, the other node is to know.
            Standing::Elsewhere { .. } | Standing::Changing { .. } | Standing::Vacant => {
                seat.is_here().and(Err(busy()))
            }
        }
    }

    fn seat_of(&self, shard: u32) -> Result<&Seat, Failure> {
        self.0.seats.get(shard as usize).map(AsRef::as_ref).ok_or_else(|| Unmovable::NoSuchShard.into())
    }
}
