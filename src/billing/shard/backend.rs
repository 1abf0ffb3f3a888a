//! What this room needs of a journal, so that its own tests can lose answers and cut connections at will. The contract of
//! each call is told at [`Journal`].

use std::time::Duration;

use crate::billing::journal::{
    Acquisition, Batch, BucketMap, Confirmation, Error, Journal, Lease, Node, ReplicaSetStatus, Snapshot,
    Tail,
};
use crate::billing::projection::Ledger;

/// A future of a backend, which a task can hold. What the ledger needs besides is told at [`Ledger`].
macro_rules! later {
    ($of:ty) => { impl Future<Output = $of> + Send };
}

pub trait Backend: Ledger {
    fn append(&self, batch: &Batch) -> later!(Result<(), Error>);
    fn confirm(&self, shard: u32, epoch: u64, seq: u64, sum: u32) -> later!(Result<Confirmation, Error>);
    fn tail(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> later!(Result<Tail, Error>);
    fn put_snapshot(&self, snapshot: &Snapshot) -> later!(Result<(), Error>);
    fn truncate(&self, shard: u32, through_seq: u64) -> later!(Result<(), Error>);
    fn acquire(&self, shard: u32, node: &Node, lease: Duration) -> later!(Result<Acquisition, Error>);
    fn renew(&self, shard: u32, epoch: u64, lease: Duration) -> later!(Result<Lease, Error>);
    fn release(&self, shard: u32, epoch: u64, to: Option<(&str, Duration)>) -> later!(Result<(), Error>);
    fn leases(&self) -> later!(Result<Vec<Lease>, Error>);
    fn bucket_map(&self) -> later!(Result<BucketMap, Error>);
    fn set_bucket_map(&self, map: &BucketMap) -> later!(Result<bool, Error>);
    fn status(&self) -> later!(Vec<ReplicaSetStatus>);
}

impl Backend for Journal {
    async fn append(&self, batch: &Batch) -> Result<(), Error> {
        Journal::append(self, batch).await
    }

    async fn confirm(&self, shard: u32, epoch: u64, seq: u64, sum: u32) -> Result<Confirmation, Error> {
        Journal::confirm(self, shard, epoch, seq, sum).await
    }

    async fn tail(&self, shard: u32, after_seq: u64, limit_bytes: usize) -> Result<Tail, Error> {
        Journal::tail(self, shard, after_seq, limit_bytes).await
    }

    async fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        Journal::put_snapshot(self, snapshot).await
    }

    async fn truncate(&self, shard: u32, through_seq: u64) -> Result<(), Error> {
        Journal::truncate(self, shard, through_seq).await
    }

    async fn acquire(&self, shard: u32, node: &Node, lease: Duration) -> Result<Acquisition, Error> {
        Journal::acquire(self, shard, node, lease).await
    }

    async fn renew(&self, shard: u32, epoch: u64, lease: Duration) -> Result<Lease, Error> {
        Journal::renew(self, shard, epoch, lease).await
    }

    async fn release(&self, shard: u32, epoch: u64, to: Option<(&str, Duration)>) -> Result<(), Error> {
        Journal::release(self, shard, epoch, to).await
    }

    async fn leases(&self) -> Result<Vec<Lease>, Error> {
        Journal::leases(self).await
    }

    async fn bucket_map(&self) -> Result<BucketMap, Error> {
        Journal::bucket_map(self).await
    }

    async fn set_bucket_map(&self, map: &BucketMap) -> Result<bool, Error> {
        Journal::set_bucket_map(self, map).await
    }

    async fn status(&self) -> Vec<ReplicaSetStatus> {
        Journal::status(self).await
    }
}
