//! Leases and the bucket map in the store: changed there first, then in memory.

use std::path::Path;
use std::time::Duration;

use bytes::{Buf, BufMut};

use super::store::{Shard, Store, opening};
use crate::billing::journal::{Acquisition, BucketMap, Error, Lease, Node, framing};

impl Store {
    pub(super) fn acquire(
        &mut self,
        shard: u32,
        node: &Node,
        length: Duration,
    ) -> Result<Acquisition, Error> {
        self.check_whole()?;
        let Node { name, advertise } = node;
        if name.is_empty() || advertise.is_empty() {
            return Err(Error::Config(
                "a node that owns shards has a name and an advertise address".to_owned(),
            ));
        }
        let now = (self.clock)();
        let own = self.shard(shard)?.clone();
        if own.node != *name && own.expires_at > now {
            return Ok(Acquisition::Held(own.lease(shard, now)));
        }
        let next = Shard {
            last: own.last,
            epoch: own.epoch + 1,
            node: name.clone(),
            advertise: advertise.clone(),
            expires_at: now + length,
        };
        self.store_lease("acquiring a lease", shard, next).map(Acquisition::Acquired)
    }

    pub(super) fn renew(&mut self, shard: u32, epoch: u64, length: Duration) -> Result<Lease, Error> {
        self.check_whole()?;
        let now = (self.clock)();
        let own = self.owned(shard, epoch)?;
        own.expires_at = now + length;
        Ok(own.lease(shard, now))
    }

    pub(super) fn release(
        &mut self,
        shard: u32,
        epoch: u64,
        to: Option<(String, Duration)>,
    ) -> Result<(), Error> {
        self.check_whole()?;
        let now = (self.clock)();
        let (node, keep) = to.unwrap_or_default();
        let last = self.owned(shard, epoch)?.last;
        let next = Shard { last, epoch: epoch + 1, node, advertise: String::new(), expires_at: now + keep };
        self.store_lease("releasing a lease", shard, next).map(drop)
    }

    fn owned(&mut self, shard: u32, epoch: u64) -> Result<&mut Shard, Error> {
        let own = self.shard(shard)?;
        if own.epoch == epoch { Ok(own) } else { Err(Error::Fenced { shard, epoch: own.epoch }) }
    }

    fn store_lease(&mut self, step: &'static str, shard: u32, next: Shard) -> Result<Lease, Error> {
        let mut value = vec![framing::VERSION];
        value.put_u64(next.epoch);
        // A name longer than that would only be shortened when it is read back.
        value.put_u16(u16::try_from(next.node.len()).unwrap_or(u16::MAX));
        value.extend_from_slice(next.node.as_bytes());
        value.extend_from_slice(next.advertise.as_bytes());
        let mut write = self.write();
        write.insert(&self.leases, shard.to_be_bytes(), value);
        self.commit(step, write)?;
        let lease = next.lease(shard, (self.clock)());
        *self.shard(shard)? = next;
        Ok(lease)
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        let now = (self.clock)();
        self.shards.iter().zip(0..).map(|(own, shard)| own.lease(shard, now)).collect()
    }

    pub(super) fn open_buckets(&mut self, path: &Path) -> Result<(), Error> {
        let damaged =
            |what: String| Error::Damaged { place: path.display().to_string(), source: what.into() };
        match self.settings.get("buckets").map_err(|error| opening(error, path))? {
            Some(stored) => {
                let mut rest = framing::unframed(&stored).map_err(damaged)?;
                let version = rest.try_get_u64().map_err(|error| damaged(error.to_string()))?;
                let shards = rest.chunks_exact(4).map(|mut four| four.get_u32()).collect();
                self.buckets = BucketMap { version, shards };
            }
            None => self.store_buckets(&self.buckets.clone())?,
        }
        self.buckets.check(self.shards.len() as u32)
    }

    pub(super) fn bucket_map(&self) -> &BucketMap {
        &self.buckets
    }

    pub(super) fn set_bucket_map(&mut self, map: BucketMap) -> Result<bool, Error> {
        self.check_whole()?;
        map.check(self.shards.len() as u32)?;
        if map.version != self.buckets.version + 1 {
            return Ok(false);
        }
        self.store_buckets(&map)?;
        self.buckets = map;
        Ok(true)
    }

    fn store_buckets(&mut self, map: &BucketMap) -> Result<(), Error> {
        let mut value = vec![framing::VERSION];
        value.put_u64(map.version);
        map.shards.iter().for_each(|shard| value.put_u32(*shard));
        let mut write = self.write();
        write.insert(&self.settings, "buckets", value);
        self.commit("setting the bucket map", write)
    }
}

impl Shard {
    pub(super) fn lease(&self, shard: u32, now: Duration) -> Lease {
        let Shard { last, epoch, node, advertise, expires_at } = self.clone();
        Lease { shard, epoch, seq: last, node, advertise, expires_in: expires_at.saturating_sub(now) }
    }

    /// It ended with the process that had it: the lock says that there is none but this.
    pub(super) fn read(stored: &[u8]) -> Result<Shard, String> {
        let mut rest = framing::unframed(stored)?;
        let epoch = rest.try_get_u64().map_err(|error| error.to_string())?;
        let length = rest.try_get_u16().map_err(|error| error.to_string())?;
        let (node, advertise) = rest.split_at_checked(length.into()).ok_or("the lease is too short")?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string());
        let (node, advertise) = (text(node)?, text(advertise)?);
        Ok(Shard { last: 0, epoch, node, advertise, expires_at: Duration::ZERO })
    }
}
