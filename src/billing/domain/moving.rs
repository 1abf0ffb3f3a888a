//! A bucket on its way from one state to another, so that neither a crash at any step nor an order that comes twice or
//! late loses it or makes two of it.
//!
//! ```text
//!   from                                  to
//!   held ──Release (journaled)──► outgoing
//!                                    │ image, again and again ──► Adopt (journaled) ──► held
//!                                    ▼ it has arrived
//!                                 Sent (journaled) ──► gone
//! ```
//! Each release of a bucket has a *generation*, one more than the last. A state keeps the greatest generation it has seen of
//! each bucket, released or adopted, and adopts nothing that is not greater: so an image that comes once more, also after the
//! bucket has gone on, does nothing. Where a released bucket goes is in the journal with it and never changes.

use std::sync::Arc;

use super::account::Record;
use super::bucket::Bucket;
use super::money::Micros;
use super::outcome::{Refusal, Reply};
use super::snapshot::{Image, bucket_of_image, decode_image, image_bound, last_of_image, put_image};
use super::state::{Order, State, order};

/// A released bucket that may not have arrived yet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub bucket: u16,
    /// The shard that it goes to.
    pub to: u32,
    pub generation: u64,
    /// The state's when it was released: so its image is the same whenever it is made.
    pub(super) last: Micros,
    pub(super) horizon: Micros,
    pub(super) content: Arc<Bucket>,
}

/// A node that the shard was given to by hand, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub node: Box<str>,
    pub at: Micros,
}

impl Assignment {
    /// Names are short; see [`super::Command::Assign`].
    pub const NODE_BYTES_MAX: usize = 64;
}

impl Outgoing {
    /// What [`super::Command::Adopt`] takes. Some 50 KB and 1 ms at 1M accounts; do it off the path of commands.
    pub fn image(&self) -> Vec<u8> {
        let Outgoing { bucket, to: _, generation: _, last, horizon, content } = self;
        put_image(*bucket, *last, *horizon, content)
    }

    /// The bucket that an image says it is of; None if it is no image.
    pub fn bucket_of_image(image: &[u8]) -> Option<u16> {
        bucket_of_image(image).ok()
    }

    /// The time of the shard that it comes from, which that of the one it goes to will not be behind; None if it is no image.
    pub fn last_of_image(image: &[u8]) -> Option<Micros> {
        last_of_image(image).ok()
    }

    pub fn accounts_len(&self) -> usize {
        self.content.len()
    }

    /// Depletions of its accounts that were not delivered when it was released.
    pub fn orders(&self) -> impl Iterator<Item = Order> {
        self.content.records().filter_map(order)
    }
}

/// Whether the state is different, and the result.
type Moved = (bool, Result<Reply, Refusal>);

const DONE: Moved = (true, Ok(Reply::Done));
const STALE: Moved = (false, Ok(Reply::Stale));
const BAD: Moved = (false, Err(Refusal::BadBucket));

impl State {
    pub(super) fn release(&mut self, bucket: u16, to: u32, generation: u64, at: Micros) -> Moved {
        let place = usize::from(bucket);
        let (Some(seen), Some(held)) = (self.generations.get_mut(place), self.buckets.get_mut(place)) else {
            return BAD;
        };
        if generation <= *seen {
            return STALE;
        }
        match held.take_if(|_| generation - 1 == *seen) {
            Some(content) => {
                *seen = generation;
                let (last, horizon) = (at.max(self.last), self.horizon);
                let outgoing = Outgoing { bucket, to, generation, last, horizon, content };
                self.outgoing.insert(bucket, outgoing);
                DONE
            }
            None => BAD,
        }
    }

    /// The image may come from a state whose time is later, and time does not go back.
    pub(super) fn adopt(&mut self, image: &[u8], generation: u64) -> Moved {
        let Ok(bucket) = bucket_of_image(image) else { return BAD };
        let place = usize::from(bucket);
        let (Some(seen), Some(held)) = (self.generations.get_mut(place), self.buckets.get_mut(place)) else {
            return BAD;
        };
        if generation <= *seen {
            return STALE;
        }
        let (None, Ok(Image { last, mut content })) = (&held, decode_image(image)) else {
            return BAD;
        };
        content.keys.sweep(self.horizon);
        *held = Some(Arc::new(content));
        *seen = generation;
        self.last = self.last.max(last);
        // It came back, so it had arrived.
        self.outgoing.remove(&bucket);
        DONE
    }

    pub(super) fn sent(&mut self, bucket: u16, generation: u64) -> Moved {
        if self.outgoing.get(&bucket).is_none_or(|outgoing| outgoing.generation != generation) {
            return STALE;
        }
        self.outgoing.remove(&bucket);
        DONE
    }

    pub(super) fn assign(&mut self, node: &str, at: Micros) -> Moved {
        self.assignment = Some(Assignment { node: node.into(), at: at.max(self.last) });
        DONE
    }

    /// At which a bucket that is here was adopted; None if it is not here.
    pub fn generation(&self, bucket: u16) -> Option<u64> {
        self.bucket(bucket)?;
        self.generations.get(usize::from(bucket)).copied()
    }

    /// The greatest generation that this state has seen of a bucket, here or not; 0 if none.
    pub fn seen(&self, bucket: u16) -> u64 {
        self.generations.get(usize::from(bucket)).copied().unwrap_or_default()
    }

    /// What was released and may not have arrived, by bucket: what a new owner sends on.
    pub fn outgoing(&self) -> impl Iterator<Item = &Outgoing> {
        self.outgoing.values()
    }

    pub fn outgoing_of(&self, bucket: u16) -> Option<&Outgoing> {
        self.outgoing.get(&bucket)
    }

    /// To whom the shard was given by hand last.
    pub fn assignment(&self) -> Option<&Assignment> {
        self.assignment.as_ref()
    }

    /// What [`super::Command::Adopt`] takes, of a bucket without accounts: what a first owner begins with.
    pub fn empty_image(bucket: u16) -> Vec<u8> {
        put_image(bucket, Micros::ZERO, Micros::ZERO, &Bucket::default())
    }

    /// The image of a bucket that is here; None if it is not.
    pub fn bucket_image(&self, bucket: u16) -> Option<Vec<u8>> {
        Some(put_image(bucket, self.last, self.horizon, self.bucket(bucket)?))
    }

    /// Bytes that the image of a bucket cannot exceed, told without making it; real ones have about half of it.
    pub fn image_bytes_max(&self, bucket: u16) -> Option<usize> {
        let content = self.bucket(bucket)?;
        Some(image_bound(content.len(), content.keys.len()))
    }

    pub fn accounts_len_of(&self, bucket: u16) -> usize {
        self.bucket(bucket).map_or(0, Bucket::len)
    }

    /// Of every account of a bucket that is here, in no order.
    pub(super) fn records_of(&self, bucket: u16) -> impl Iterator<Item = &Record> {
        self.bucket(bucket).into_iter().flat_map(Bucket::records)
    }
}
