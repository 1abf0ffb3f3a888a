//! What every engine does.

use super::*;

macro_rules! on_both_engines {
    ($($name:ident,)*) => {
        mod with_embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bed::embedded().await).await;
            })*
        }
        mod with_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bed::postgres().await).await;
            })*
        }
    };
}

on_both_engines! {
    batches_come_back_in_their_order,
    only_the_next_batch_is_taken,
    an_owner_whose_time_is_over_is_fenced,
    a_lease_is_held_until_it_runs_out,
    a_node_that_comes_back_fences_its_own_past,
    a_shard_is_handed_over,
    a_snapshot_stands_for_the_batches_before_it,
    a_large_snapshot_comes_back_whole,
    the_bucket_map_is_changed_by_one_at_a_time,
    a_confirmation_tells_what_is_there,
    another_node_tails,
    a_tail_tells_what_it_follows,
    shards_know_nothing_of_each_other,
    what_was_acknowledged_is_there_after_a_restart,
    unknown_shards_are_refused,
    the_status_tells_who_takes_writes,
}

async fn batches_come_back_in_their_order(bed: Bed) {
    let journal = bed.node().await;
    let lease = acquired(journal.acquire(1, &node("a"), LEASE).await.unwrap());
    assert_eq!((lease.epoch, lease.seq), (1, 0));
    assert!(journal.read(1, 0, 1).await.unwrap().is_empty());
    let written: Vec<Batch> = (1..=60).map(|seq| batch(1, seq, 1)).collect();
    for batch in &written {
        journal.append(batch).await.unwrap();
    }
    assert_eq!(read_all(&journal, 1, 0).await, written);
    assert_eq!(read_all(&journal, 1, 42).await, written[42..]);
    assert_eq!(journal.read(1, 0, 0).await.unwrap(), written[..1], "at least one, whatever the limit");
    let some = journal.read(1, 0, 30_000).await.unwrap();
    let bytes: usize = some.iter().map(|batch| batch.payload.len()).sum();
    assert!(some.len() > 3 && bytes <= 40_000, "{} batches of {bytes} bytes", some.len());
    assert!(journal.read(1, 60, 1000).await.unwrap().is_empty());
}

async fn only_the_next_batch_is_taken(bed: Bed) {
    let journal = bed.node().await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    journal.append(&batch(0, 1, epoch)).await.unwrap();
    journal.append(&batch(0, 2, epoch)).await.unwrap();
    for seq in [0, 1, 2, 4, 1000] {
        let refused = journal.append(&batch(0, seq, epoch)).await;
        assert!(matches!(refused, Err(Error::OutOfOrder { shard: 0, expected: 3 })), "{seq}: {refused:?}");
    }
    journal.append(&batch(0, 3, epoch)).await.unwrap();
    assert_eq!(read_all(&journal, 0, 0).await.len(), 3);
}

async fn an_owner_whose_time_is_over_is_fenced(bed: Bed) {
    let (old, new) = (bed.node().await, bed.node().await);
    let first = acquired(old.acquire(0, &node("a"), LEASE).await.unwrap());
    old.append(&batch(0, 1, first.epoch)).await.unwrap();
    bed.run_out(&old, 0).await;
    // Late, but nobody else has come yet.
    old.append(&batch(0, 2, first.epoch)).await.unwrap();
    let second = acquired(new.acquire(0, &node("b"), LEASE).await.unwrap());
    assert_eq!((second.epoch, second.seq), (first.epoch + 1, 2));
    let snapshot = Snapshot { shard: 0, seq: 2, epoch: first.epoch, payload: Bytes::from_static(b"old") };
    for refused in [
        old.append(&batch(0, 3, first.epoch)).await,
        old.put_snapshot(&snapshot).await,
        old.renew(0, first.epoch, LEASE).await.map(drop),
        old.release(0, first.epoch, None).await,
    ] {
        assert!(matches!(refused, Err(Error::Fenced { shard: 0, epoch: 2 })), "{refused:?}");
    }
    assert_eq!(new.snapshot(0).await.unwrap(), None);
    new.append(&batch(0, 3, second.epoch)).await.unwrap();
    let epochs: Vec<u64> = read_all(&new, 0, 0).await.iter().map(|batch| batch.epoch).collect();
    assert_eq!(epochs, [1, 1, 2]);
}

async fn a_lease_is_held_until_it_runs_out(bed: Bed) {
    let (one, other) = (bed.node().await, bed.node().await);
    // Long enough for a slow machine; the embedded time stands still.
    let long = LEASE * 50;
    let lease = acquired(one.acquire(0, &node("a"), long).await.unwrap());
    assert!(lease.expires_in <= long && lease.expires_in > long / 2, "{lease:?}");
    let seen = held(other.acquire(0, &node("b"), LEASE).await.unwrap());
    assert_eq!((seen.epoch, seen.node.as_str()), (lease.epoch, "a"));
    assert_eq!(seen.advertise, "http://a:8200");
    let renewed = one.renew(0, lease.epoch, LEASE).await.unwrap();
    assert!(renewed.epoch == lease.epoch && renewed.expires_in <= LEASE, "{renewed:?}");
    bed.run_out(&one, 0).await;
    acquired(other.acquire(0, &node("b"), long).await.unwrap());
    let leases = one.leases().await.unwrap();
    let nodes: Vec<(u32, &str)> = leases.iter().map(|lease| (lease.shard, lease.node.as_str())).collect();
    assert_eq!(nodes, [(0, "b"), (1, ""), (2, "")]);
}

async fn a_node_that_comes_back_fences_its_own_past(bed: Bed) {
    let (before, after) = (bed.node().await, bed.node().await);
    let long = LEASE * 50;
    let first = acquired(before.acquire(0, &node("a"), long).await.unwrap());
    let second = acquired(after.acquire(0, &node("a"), long).await.unwrap());
    assert_eq!(second.epoch, first.epoch + 1);
    let refused = before.append(&batch(0, 1, first.epoch)).await;
    assert!(matches!(refused, Err(Error::Fenced { epoch: 2, .. })), "{refused:?}");
}

async fn a_shard_is_handed_over(bed: Bed) {
    let (one, other) = (bed.node().await, bed.node().await);
    let long = LEASE * 50;
    let lease = acquired(one.acquire(2, &node("a"), long).await.unwrap());
    one.append(&batch(2, 1, lease.epoch)).await.unwrap();
    one.release(2, lease.epoch, Some(("b", long))).await.unwrap();
    let refused = one.append(&batch(2, 2, lease.epoch)).await;
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    let kept = held(other.acquire(2, &node("c"), long).await.unwrap());
    assert_eq!((kept.node.as_str(), kept.advertise.as_str()), ("b", ""));
    held(one.acquire(2, &node("a"), long).await.unwrap());
    let taken = acquired(other.acquire(2, &node("b"), long).await.unwrap());
    assert!(taken.epoch > lease.epoch && taken.seq == 1, "{taken:?}");
    other.append(&batch(2, 2, taken.epoch)).await.unwrap();

    // The node it was meant for does not come.
    other.release(2, taken.epoch, Some(("nobody", LEASE))).await.unwrap();
    bed.run_out(&one, 2).await;
    let back = acquired(one.acquire(2, &node("a"), long).await.unwrap());
    one.release(2, back.epoch, None).await.unwrap();
    acquired(other.acquire(2, &node("c"), long).await.unwrap());
}

async fn a_snapshot_stands_for_the_batches_before_it(bed: Bed) {
    let journal = bed.node().await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    for seq in 1..=30 {
        journal.append(&batch(0, seq, epoch)).await.unwrap();
    }
    journal.truncate(0, 30).await.unwrap();
    assert_eq!(read_all(&journal, 0, 0).await.len(), 30, "nothing stands for them yet");
    let snapshot = |seq, text| Snapshot { shard: 0, seq, epoch, payload: Bytes::from_static(text) };
    let refused = journal.put_snapshot(&snapshot(31, b"of the future")).await;
    assert!(matches!(refused, Err(Error::OutOfOrder { expected: 31, .. })), "{refused:?}");

    journal.put_snapshot(&snapshot(20, b"twenty")).await.unwrap();
    journal.put_snapshot(&snapshot(20, b"twenty")).await.unwrap();
    assert_eq!(journal.snapshot(0).await.unwrap(), Some(snapshot(20, b"twenty")));
    assert_eq!(read_all(&journal, 0, 0).await.len(), 30, "not truncated yet");
    project_nothing(&journal, 0, epoch, 30).await;
    journal.truncate(0, 25).await.unwrap();
    assert_eq!(read_all(&journal, 0, 20).await.len(), 10);
    let gone = journal.read(0, 5, 1000).await;
    assert!(matches!(gone, Err(Error::Truncated { shard: 0, through: 20 })), "{gone:?}");

    journal.put_snapshot(&snapshot(30, b"")).await.unwrap();
    journal.truncate(0, 30).await.unwrap();
    let (_bed, journal) = {
        drop(journal);
        bed.restarted().await
    };
    assert_eq!(journal.snapshot(0).await.unwrap(), Some(snapshot(30, b"")));
    assert!(read_all(&journal, 0, 30).await.is_empty());
    let lease = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap());
    assert_eq!(lease.seq, 30, "the journal goes on where it was");
    journal.append(&batch(0, 31, lease.epoch)).await.unwrap();
    assert_eq!(read_all(&journal, 0, 30).await.len(), 1);
}

async fn a_large_snapshot_comes_back_whole(bed: Bed) {
    let journal = bed.node().await;
    let epoch = acquired(journal.acquire(1, &node("a"), LEASE).await.unwrap()).epoch;
    journal.append(&batch(1, 1, epoch)).await.unwrap();
    for length in [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (7 << 20) + 12_345] {
        let payload: Bytes = (0..length as u32).map(|at| (at ^ (at >> 8)) as u8).collect();
        let snapshot = Snapshot { shard: 1, seq: 1, epoch, payload };
        journal.put_snapshot(&snapshot).await.unwrap();
        assert!(journal.snapshot(1).await.unwrap() == Some(snapshot), "{length} bytes");
    }
}

async fn the_bucket_map_is_changed_by_one_at_a_time(bed: Bed) {
    let journal = bed.node().await;
    let first = journal.bucket_map().await.unwrap();
    assert_eq!(first, BucketMap::spread(3));
    let tries = (0..8).map(|at| {
        let mut map = BucketMap { version: 2, ..first.clone() };
        map.shards[at] = 2;
        map.shards[at + 500] = 0;
        let bed = &bed;
        async move { (bed.node().await.set_bucket_map(&map).await.unwrap(), map) }
    });
    let mut outcomes = futures::future::join_all(tries).await;
    outcomes.retain(|(changed, _)| *changed);
    assert_eq!(outcomes.len(), 1, "one of eight");
    let stored = journal.bucket_map().await.unwrap();
    assert_eq!(stored, outcomes[0].1);
    assert!(!journal.set_bucket_map(&first).await.unwrap(), "an old version");
    let later = BucketMap { version: 4, ..stored.clone() };
    assert!(!journal.set_bucket_map(&later).await.unwrap(), "a version left out");
    let strange = BucketMap { version: 3, shards: vec![3; BUCKETS] };
    assert!(matches!(journal.set_bucket_map(&strange).await, Err(Error::Config(_))));
    let (_bed, journal) = {
        drop(journal);
        bed.restarted().await
    };
    assert_eq!(journal.bucket_map().await.unwrap(), stored);
}

async fn a_confirmation_tells_what_is_there(bed: Bed) {
    let journal = bed.node().await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    let (first, second) = (batch(0, 1, epoch), batch(0, 2, epoch));
    journal.append(&first).await.unwrap();
    let confirm = async |batch: &Batch| {
        journal.confirm(batch.shard, batch.epoch, batch.seq, batch.checksum()).await.unwrap()
    };
    assert_eq!(confirm(&first).await, Confirmation::Applied);
    assert_eq!(confirm(&second).await, Confirmation::NotApplied);
    let other = Batch { payload: Bytes::from_static(b"another"), ..first.clone() };
    assert_eq!(confirm(&other).await, Confirmation::NotApplied);
    journal.append(&second).await.unwrap();
    assert_eq!(confirm(&second).await, Confirmation::Applied);

    // After another owner has come.
    bed.run_out(&journal, 0).await;
    let taken = acquired(bed.node().await.acquire(0, &node("b"), LEASE).await.unwrap());
    assert_eq!(confirm(&second).await, Confirmation::Applied);
    assert_eq!(confirm(&batch(0, 3, epoch)).await, Confirmation::NotApplied);
    let refused = journal.append(&batch(0, 3, epoch)).await;
    assert!(matches!(refused, Err(Error::Fenced { epoch, .. }) if epoch == taken.epoch), "{refused:?}");
}

async fn another_node_tails(bed: Bed) {
    let (owner, follower) = (bed.node().await, bed.node().await);
    let epoch = acquired(owner.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    let writing = tokio::spawn(async move {
        for seq in 1..=150 {
            owner.append(&batch(0, seq, epoch)).await.unwrap();
        }
    });
    let (mut seen, deadline) = (0, Instant::now() + DEADLINE);
    while seen < 150 {
        for batch in follower.read(0, seen, 10_000).await.unwrap() {
            assert_eq!((batch.seq, &batch.payload), (seen + 1, &payload(0, seen + 1)));
            seen = batch.seq;
        }
        assert!(Instant::now() < deadline, "the follower is stuck at {seen}");
    }
    writing.await.unwrap();
}

async fn a_tail_tells_what_it_follows(bed: Bed) {
    let journal = bed.node().await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    for seq in 1..=5 {
        journal.append(&batch(0, seq, epoch)).await.unwrap();
    }
    let tail = async |after, limit| {
        let Tail { end, mark, batches } = journal.tail(0, after, limit).await.unwrap();
        assert_eq!(
            batches.len(),
            batches.iter().zip(after + 1..).filter(|(one, seq)| one.seq == *seq).count()
        );
        (end, mark, batches.len())
    };
    let mark = |seq| Some((epoch, batch(0, seq, epoch).checksum()));
    assert_eq!(tail(0, usize::MAX).await, (5, None, 5));
    assert_eq!(tail(2, usize::MAX).await, (5, mark(2), 3));
    assert_eq!(tail(2, 1).await, (5, mark(2), 1));
    assert_eq!(tail(5, usize::MAX).await, (5, mark(5), 0));
    assert_eq!(tail(6, usize::MAX).await, (5, None, 0), "it was longer once");
    assert_eq!(tail(u64::MAX >> 1, usize::MAX).await, (5, None, 0));

    let snapshot = Snapshot { shard: 0, seq: 4, epoch, payload: Bytes::new() };
    journal.put_snapshot(&snapshot).await.unwrap();
    project_nothing(&journal, 0, epoch, 5).await;
    journal.truncate(0, 3).await.unwrap();
    assert_eq!(tail(3, usize::MAX).await, (5, None, 2), "a snapshot stands for it");
    assert_eq!(tail(4, usize::MAX).await, (5, mark(4), 1));
}

async fn shards_know_nothing_of_each_other(bed: Bed) {
    let journal = bed.node().await;
    let shards = (0..3).map(|shard| {
        let journal = journal.clone();
        tokio::spawn(async move {
            let epoch = acquired(journal.acquire(shard, &node("a"), LEASE).await.unwrap()).epoch;
            for seq in 1..=40 {
                journal.append(&batch(shard, seq, epoch)).await.unwrap();
            }
            let snapshot = Snapshot { shard, seq: 10, epoch, payload: payload(shard, 10) };
            journal.put_snapshot(&snapshot).await.unwrap();
            project_nothing(&journal, shard, epoch, 40).await;
            journal.truncate(shard, 10).await.unwrap();
        })
    });
    for done in futures::future::join_all(shards).await {
        done.unwrap();
    }
    for shard in 0..3 {
        let batches = read_all(&journal, shard, 10).await;
        assert_eq!(batches, (11..=40).map(|seq| batch(shard, seq, 1)).collect::<Vec<_>>());
        assert_eq!(journal.snapshot(shard).await.unwrap().unwrap().payload, payload(shard, 10));
    }
}

async fn what_was_acknowledged_is_there_after_a_restart(bed: Bed) {
    let journal = bed.node().await;
    let epoch = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap()).epoch;
    for seq in 1..=25 {
        journal.append(&batch(0, seq, epoch)).await.unwrap();
    }
    drop(journal);
    let (_bed, journal) = bed.restarted().await;
    assert_eq!(read_all(&journal, 0, 0).await, (1..=25).map(|seq| batch(0, seq, epoch)).collect::<Vec<_>>());
    let lease = acquired(journal.acquire(0, &node("a"), LEASE).await.unwrap());
    assert_eq!((lease.epoch, lease.seq), (epoch + 1, 25));
}

async fn unknown_shards_are_refused(bed: Bed) {
    let journal = bed.node().await;
    assert!(matches!(journal.append(&batch(3, 1, 1)).await, Err(Error::Config(_))));
    assert!(matches!(journal.read(3, 0, 1).await, Err(Error::Config(_))));
    assert!(matches!(journal.acquire(3, &node("a"), LEASE).await, Err(Error::Config(_))));
    let nameless = Node { name: String::new(), advertise: String::new() };
    assert!(matches!(journal.acquire(0, &nameless, LEASE).await, Err(Error::Config(_))));
}

async fn the_status_tells_who_takes_writes(bed: Bed) {
    let status = bed.node().await.status().await;
    assert_eq!(status.len(), 1);
    assert!(status[0].reachable() && status[0].writable(), "{status:?}");
    assert_eq!(status[0].shards, [0, 1, 2]);
    assert_eq!(status[0].members[0].state, MemberState::Writable);
}
