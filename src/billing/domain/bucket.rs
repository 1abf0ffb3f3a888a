//! The accounts whose ids fall into one of 1000 buckets, with the keys of their commands: what moves between shards as one.

use std::sync::Arc;

use super::account::{Record, Row};
use super::chunks::Chunks;
use super::command::Operation;
use super::idempotency::Keys;
use super::index::Index;
use super::money::{Micros, Money, Velocity};
use super::outcome::{Events, Refusal};

/// As many as the system this is modelled on has by default. It never changes: it is where every account lies.
pub const BUCKETS: u16 = 1000;

/// `spread(id) mod 1000`. Any language computes it in four lines, which a router of another kind may have to.
pub fn bucket_of(account: u64) -> u16 {
    (spread(account) % u64::from(BUCKETS)) as u16
}

/// One step of SplitMix64 (Steele, Lea and Flood, 2014) from this seed: a bijection that spreads every bit.
pub(super) fn spread(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Records lie densely, in the order in which they came. A clone shares them, chunk by chunk, and the index, which only new accounts
/// change.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    /// A chunk is 1 KB, with its counters: what is shared is copied little by little, and an allocator has that size.
    records: Chunks<Record, 25>,
    index: Arc<Index>,
    pub keys: Keys,
}

impl Bucket {
    pub fn get(&self, account: u64) -> Option<&Record> {
        let position = self.position(account)?;
        self.records.get(position as usize)
    }

    /// Reads where a search for the account begins; see [`Index::touch`].
    pub fn touch(&self, account: u64) -> u64 {
        self.index.touch(tag(account))
    }

    pub fn get_mut(&mut self, account: u64) -> Option<&mut Record> {
        let position = self.position(account)?;
        self.records.get_mut(position as usize)
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// By id.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.records.iter().map(Record::row).collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows
    }

    /// The index and the entries of accounts, and those of keys.
    pub fn bytes(&self) -> (usize, usize) {
        (
            size_of::<Bucket>() + size_of::<Index>() + self.records.bytes() + self.index.bytes(),
            self.keys.bytes(),
        )
    }

    /// The account as its record is right after it, or the refusal.
    pub fn operate(
        &mut self,
        id: u64,
        operation: &Operation,
        now: Micros,
        events: &mut Events,
    ) -> Result<Record, Refusal> {
        if let Operation::Create { balance, velocity } = *operation {
            return self.create(id, balance, velocity, now, events);
        }
        let record = self.get_mut(id).ok_or(Refusal::UnknownAccount)?;
        match *operation {
            Operation::Create { .. } => Err(Refusal::AccountExists),
            Operation::AddMoney { amount } => record.add_money(amount, now, events),
            Operation::Withdraw { amount } => record.withdraw(amount, now, events),
            Operation::UpdateSpendingVelocity { velocity } => record.set_velocity(velocity, now, events),
        }?;
        Ok(*record)
    }

    fn create(
        &mut self,
        id: u64,
        balance: Money,
        velocity: Velocity,
        now: Micros,
        events: &mut Events,
    ) -> Result<Record, Refusal> {
        let record = Record::new(id, balance, velocity, now)?;
        if self.get(id).is_some() {
            return Err(Refusal::AccountExists);
        }
        self.insert(record)?;
        events.push(record.created());
        Ok(record)
    }

    /// The caller knows that it is not there yet.
    pub fn insert(&mut self, record: Record) -> Result<(), Refusal> {
        // 160 GB in one bucket; still, a position is 32 bits.
        let position = u32::try_from(self.records.len()).ok().filter(|at| *at < Index::POSITION_MAX);
        let position = position.ok_or(Refusal::Overflow)?;
        self.records.push_back(record);
        Arc::make_mut(&mut self.index).insert(tag(record.id()), position);
        Ok(())
    }

    fn position(&self, account: u64) -> Option<u32> {
        let is = |position| {
            self.records.get(position as usize).is_some_and(|record: &Record| record.id() == account)
        };
        self.index.find(tag(account), is)
    }
}

/// Other bits than those that chose the bucket, as near as a remainder allows.
fn tag(account: u64) -> u32 {
    (spread(account) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down once: every account of every installation lies where this says.
    #[test]
    fn buckets_never_change() {
        let buckets: Vec<u16> = (0..=10).chain([u64::MAX]).map(bucket_of).collect();
        assert_eq!(buckets, [535, 465, 110, 53, 978, 618, 592, 487, 622, 228, 466, 936]);
    }

    #[test]
    fn buckets_are_even() {
        let mut sizes = vec![0u32; usize::from(BUCKETS)];
        (0..1_000_000).for_each(|id| sizes[usize::from(bucket_of(id))] += 1);
        // 1000 ± 6 standard deviations of a fair throw.
        assert!(sizes.iter().all(|size| (800..1200).contains(size)), "{sizes:?}");
    }
}
