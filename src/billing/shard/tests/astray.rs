//! Shards that have not the buckets of the map, as after a restore of replica sets to different moments.

use std::time::Duration;

use super::super::{Astray, Failure, Router, WallClock};
use super::fake::{Fake, Moment, When};
use super::{START, config, create, insist, settled, start};
use crate::billing::domain::bucket_of;
use crate::billing::journal::BucketMap;
use crate::billing::notifier;

/// Longer than a lease, a reading of the map and the patience of whoever looks.
const LONG: Duration = Duration::from_secs(60);

async fn astray(router: &Router) -> Vec<(Vec<u16>, Vec<u16>)> {
    let shards = router.cluster().await.shards.into_iter();
    shards
        .map(|shard| {
            let Astray { missing, surplus } = shard.astray;
            (missing, surplus)
        })
        .collect()
}

fn gauges(router: &Router) -> Vec<i64> {
    router.0.seats.iter().map(|seat| seat.gauges.astray.get()).collect()
}

/// The map of one moment and the shards of another: the bucket is in none, as the map says, and in one against it.
#[tokio::test(start_paused = true)]
async fn buckets_that_are_not_where_the_map_says_are_told() {
    let (fake, wall) = (Fake::new(2), WallClock::since(START));
    let owner = start(config("a", 2), &fake, &wall, notifier::Config::default()).await;
    settled(&owner).await;
    let follower = start(config("b", 2), &fake.another(), &wall, notifier::Config::default()).await;
    for id in 0..20 {
        insist(&owner, id, "create", create(1, 0)).await.unwrap();
    }
    let (bucket, map) = (bucket_of(7), fake.map());
    let from = map.shards[usize::from(bucket)];
    let mut shards = map.shards.clone();
    shards[usize::from(bucket)] = 1 - from;
    fake.set_map(BucketMap { version: map.version + 1, shards });
    owner.map_version().await.unwrap();
    // At once: an account would be left out, or told twice.
    let listed = owner.list(&[0, 1], None, 100).await;
    assert!(matches!(listed, Err(Failure::Busy { .. })), "{listed:?}");
    assert_eq!(gauges(&owner), [0, 0], "it may be on its way");
    tokio::time::sleep(LONG).await;
    let mut expected = vec![(vec![], vec![]), (vec![], vec![])];
    expected[from as usize].1.push(bucket);
    expected[1 - from as usize].0.push(bucket);
    for router in [&owner, &follower] {
        assert_eq!((astray(router).await, gauges(router)), (expected.clone(), vec![1, 1]));
    }
    fake.set_map(BucketMap { version: map.version + 2, ..map });
    tokio::time::sleep(LONG).await;
    for router in [&owner, &follower] {
        assert_eq!(gauges(router), [0, 0]);
        assert!(
            astray(router).await.iter().all(|(missing, surplus)| missing.is_empty() && surplus.is_empty())
        );
    }
    assert_eq!(owner.list(&[0, 1], None, 100).await.unwrap().len(), 20);
}

/// However long it takes.
#[tokio::test(start_paused = true)]
async fn a_bucket_on_its_way_is_not_astray() {
    for moment in [Moment::Adopt, Moment::Sent] {
        let (fake, wall) = (Fake::new(2), WallClock::since(START));
        let router = start(config("a", 2), &fake, &wall, notifier::Config::default()).await;
        settled(&router).await;
        fake.set_trap(Some((moment, When::Before)));
        let bucket = bucket_of(7);
        let to = 1 - fake.map().shards[usize::from(bucket)];
        let mover = router.clone();
        let moving = tokio::spawn(async move { mover.move_bucket(bucket, to).await });
        while !fake.is_trapped() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(LONG).await;
        assert_eq!(gauges(&router), [0, 0], "{moment:?}");
        fake.set_trap(None);
        // Whoever asked may have given up long ago.
        drop(moving.await.unwrap());
        tokio::time::sleep(LONG).await;
        assert_eq!(gauges(&router), [0, 0], "{moment:?}");
        assert_eq!(fake.map().shards[usize::from(bucket)], to);
        assert!(router.list(&[0, 1], None, 100).await.is_ok());
    }
}
