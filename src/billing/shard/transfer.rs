//! Carries released buckets to the shards they go to, wherever these are owned.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::map::Map;
use super::seat::{Errand, Seat, busy};
use super::tenure::Tenure;
use super::{Config, Failure, Unmovable};
use crate::billing::domain::Outgoing;
use crate::resilience::backoff::Backoff;

/// Between tries while nobody takes it. A shard that changes hands is back within a second or a lease.
const RETRY: Backoff = Backoff { min: Duration::from_millis(20), max: Duration::from_secs(1) };

/// About once a minute.
const TELL_EVERY: u32 = 60;

/// What shards of this node ask of those on other nodes. The way there belongs to the doors; each call is asked once and
/// may be made again.
pub trait Neighbours: Send + Sync + 'static {
    /// The owner at `advertise` takes a bucket into its shard. `Ok`: it has it, durably, or has had it.
    fn adopt(
        &self,
        advertise: &str,
        shard: u32,
        generation: u64,
        image: Bytes,
    ) -> BoxFuture<'static, Result<(), Failure>>;

    /// The owner at `advertise` gives its shard to the node `to`, if that spreads them better. If the node there is `to` itself, it is
    /// told that it may take it.
    fn give(&self, advertise: &str, shard: u32, to: &str) -> BoxFuture<'static, Result<(), Failure>>;
}

/// One for all shards of a node.
pub struct Transfer<B> {
    pub config: Arc<Config>,
    pub backend: B,
    pub seats: Arc<[Arc<Seat>]>,
    pub map: Arc<Map>,
    /// None: there is no way to other nodes.
    pub neighbours: Option<Arc<dyn Neighbours>>,
}

impl<B: Backend> Transfer<B> {
    /// Can something be brought to this shard from here, as things are?
    pub fn reaches(&self, shard: u32) -> Result<(), Failure> {
        let seat = self.seats.get(shard as usize).ok_or(Unmovable::NoSuchShard)?;
        match seat.is_here() {
            Ok(()) => Ok(()),
            Err(Failure::Elsewhere { .. }) if self.neighbours.is_some() => Ok(()),
            Err(Failure::Elsewhere { .. }) => Err(Unmovable::NoWay.into()),
            Err(other) => Err(other),
        }
    }

    /// Returns once the bucket is adopted and the map says so, or when it came back. After the tenure it does nothing more;
    /// whoever takes over does it again.
    pub async fn carry(&self, from: u32, outgoing: Outgoing, tenure: &Tenure, back: &CancellationToken) {
        let Outgoing { bucket, to, generation, .. } = outgoing;
        let arrived = async {
            self.deliver(outgoing).await;
            let may = || tenure.holds() && !back.is_cancelled();
            self.map.set(&self.backend, bucket, from, to, may).await;
        };
        tokio::select! {
            () = arrived => tracing::debug!(bucket, from, to, generation, "a bucket has arrived"),
            () = back.cancelled() => {}
        }
    }

    async fn deliver(&self, outgoing: Outgoing) {
        let Outgoing { bucket, to, generation, .. } = outgoing;
        let mut tries = 0;
        let mut kept: Option<Bytes> = None;
        loop {
            let image = match &kept {
                Some(image) => Ok(image.clone()),
                None => {
                    let outgoing = outgoing.clone();
                    tokio::task::spawn_blocking(move || Bytes::from(outgoing.image())).await
                }
            };
            let offered = match image {
                Ok(image) => self.offer(to, generation, kept.insert(image).clone()).await,
                Err(error) => {
                    tracing::error!(bucket, %error, "the image of a bucket could not be made");
                    Err(busy())
                }
            };
            match offered {
                Ok(()) => return,
                Err(Failure::Refused(refusal)) if tries % TELL_EVERY == 0 => {
                    tracing::error!(bucket, to, generation, %refusal, "a bucket is refused, somebody must act");
                }
                Err(failure) if tries == 0 => {
                    tracing::info!(bucket, to, generation, %failure, "a bucket waits for its shard");
                }
                Err(failure) => tracing::debug!(bucket, to, tries, %failure, "a bucket waits for its shard"),
            }
            tokio::time::sleep(RETRY.delay(tries, fastrand::f64())).await;
            tries = tries.saturating_add(1);
        }
    }

    async fn offer(&self, to: u32, generation: u64, image: Bytes) -> Result<(), Failure> {
        let seat = self.seats.get(to as usize).ok_or(Unmovable::NoSuchShard)?;
        let adopt = |reply| Errand::Adopt { generation, image: image.clone(), reply };
        match seat.have_done(self.config.answer_timeout, adopt).await {
            Err(Failure::Elsewhere { advertise, .. }) => match &self.neighbours {
                Some(neighbours) => neighbours.adopt(&advertise, to, generation, image).await,
                None => Err(Unmovable::NoWay.into()),
            },
            done => done,
        }
    }
}
