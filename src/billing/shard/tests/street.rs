//! The way between nodes of a test: it takes time, loses requests and answers, and brings some of them again much later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::super::seat::busy;
use super::super::{Config, Failure, Neighbours, Router, WallClock};
use super::fake::Fake;
use super::start_with;
use crate::billing::domain::Outgoing;
use crate::billing::notifier;

/// Routers by their `advertise`. Cheap to clone.
#[derive(Clone)]
pub struct Street(Arc<Inner>);

struct Inner {
    nodes: Mutex<BTreeMap<String, Router>>,
    trouble: Mutex<Option<Trouble>>,
    count: Mutex<Count>,
}

/// In thousandths of the parcels.
pub struct Trouble {
    pub dice: fastrand::Rng,
    pub lost_before: u32,
    pub lost_after: u32,
    /// Comes once more, up to ten seconds later.
    pub again: u32,
    /// What comes again is taken for new, as if nobody looked at generations: a mistake that must be seen.
    pub forges: Option<Fake>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub parcels: u32,
    pub lost: u32,
    pub again: u32,
}

impl Street {
    pub fn new() -> Street {
        let (nodes, trouble, count) = Default::default();
        Street(Arc::new(Inner { nodes, trouble, count }))
    }

    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        *self.0.trouble.lock() = trouble;
    }

    pub fn count(&self) -> Count {
        *self.0.count.lock()
    }

    /// A node on a journal in memory that the others can reach.
    pub async fn start(&self, config: Config, fake: &Fake, wall: &WallClock, to: notifier::Config) -> Router {
        let advertise = config.node.advertise.clone();
        let router = start_with(config, fake, wall, to, Some(Arc::new(self.clone()))).await;
        self.0.nodes.lock().insert(advertise, router.clone());
        router
    }

    pub fn closed(&self, name: &str) {
        self.0.nodes.lock().remove(&format!("{name}:8200"));
    }

    fn node(&self, advertise: &str) -> Result<Router, Failure> {
        self.0.nodes.lock().get(advertise).cloned().ok_or_else(busy)
    }

    /// What becomes of one parcel: lost before, lost after, comes again.
    fn fate(&self) -> (bool, bool, Option<Duration>) {
        let mut trouble = self.0.trouble.lock();
        let mut count = self.0.count.lock();
        count.parcels += 1;
        let Some(Trouble { dice, lost_before, lost_after, again, forges: _ }) = &mut *trouble else {
            return (false, false, None);
        };
        let thrown = dice.u32(0..1000);
        let before = thrown < *lost_before;
        let after = !before && thrown < *lost_before + *lost_after;
        let again = (dice.u32(0..1000) < *again).then(|| Duration::from_millis(dice.u64(0..10_000)));
        count.lost += u32::from(before || after);
        count.again += u32::from(again.is_some());
        (before, after, again)
    }

    async fn again(self, after: Duration, advertise: String, shard: u32, generation: u64, image: Bytes) {
        tokio::time::sleep(after).await;
        let forges = self.0.trouble.lock().as_ref().and_then(|trouble| trouble.forges.clone());
        let bucket = Outgoing::bucket_of_image(&image).unwrap();
        let generation = forges.map_or(generation, |fake| fake.replay(shard).seen(bucket) + 1);
        if let Ok(router) = self.node(&advertise) {
            drop(router.adopt(shard, generation, image).await);
        }
    }
}

impl Neighbours for Street {
    fn adopt(
        &self,
        advertise: &str,
        shard: u32,
        generation: u64,
        image: Bytes,
    ) -> BoxFuture<'static, Result<(), Failure>> {
        let (street, advertise) = (self.clone(), advertise.to_owned());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let (lost_before, lost_after, again) = street.fate();
            if let Some(after) = again {
                tokio::spawn(street.clone().again(
                    after,
                    advertise.clone(),
                    shard,
                    generation,
                    image.clone(),
                ));
            }
            if lost_before {
                return Err(Failure::Unknown);
            }
            let router = street.node(&advertise)?;
            // What has arrived is done, also if the one who sent it dies.
            let done = tokio::spawn(async move { router.adopt(shard, generation, image).await }).await;
            if lost_after { Err(Failure::Unknown) } else { done.unwrap_or(Err(Failure::Unknown)) }
        })
    }

    fn give(&self, advertise: &str, shard: u32, to: &str) -> BoxFuture<'static, Result<(), Failure>> {
        let (street, advertise, to) = (self.clone(), advertise.to_owned(), to.to_owned());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let router = street.node(&advertise)?;
            tokio::spawn(async move { router.give(shard, &to).await }).await.unwrap_or(Err(Failure::Unknown))
        })
    }
}
