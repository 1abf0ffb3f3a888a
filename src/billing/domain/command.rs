//! What can be asked of the state. Commands and their times are what the journal holds; replaying them is the state.

use std::fmt;

use super::bucket::spread;
use super::money::{Micros, Money, Velocity};

/// An idempotency key: 1 to 64 bytes, the caller's or made at the door. It counts per account: the same key on another
/// account is another key, because buckets, and the keys of their accounts with them, move between shards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    length: u8,
    bytes: [u8; Key::LENGTH_MAX],
}

impl Key {
    pub const LENGTH_MAX: usize = 64;

    /// `None` if it is empty or longer than [`Key::LENGTH_MAX`].
    pub fn new(key: &[u8]) -> Option<Key> {
        if key.is_empty() {
            return None;
        }
        let mut bytes = [0; Key::LENGTH_MAX];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Key { length: key.len() as u8, bytes })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// What a client can do to an account. Amounts and velocities are taken as they came; `apply` refuses what may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A balance of 0 is an account that is not depleted and spends nothing until money comes.
    Create {
        balance: Money,
        velocity: Velocity,
    },
    AddMoney {
        amount: Money,
    },
    Withdraw {
        amount: Money,
    },
    UpdateSpendingVelocity {
        velocity: Velocity,
    },
}

impl Operation {
    /// Tells one body from another under the same key. For one kind with one argument this is a bijection, so two
    /// different bodies always differ; otherwise they are alike once in 2^64. No cryptography is needed, for whoever chose
    /// the bodies chose the key too, and would only get the answer to another request of their own.
    pub(super) fn fingerprint(&self) -> u64 {
        let of = |kind: u64, words: [i64; 2]| {
            words.iter().fold(spread(kind), |so_far, word| spread(so_far ^ *word as u64))
        };
        match self {
            Operation::Create { balance, velocity } => of(1, [balance.get(), velocity.get()]),
            Operation::AddMoney { amount } => of(2, [amount.get(), 0]),
            Operation::Withdraw { amount } => of(3, [amount.get(), 0]),
            Operation::UpdateSpendingVelocity { velocity } => of(4, [velocity.get(), 0]),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Operate {
        key: Key,
        account: u64,
        operation: Operation,
    },
    /// The notifier's timer at the depletion instant. Stale if money came first, or a withdrawal or a change of velocity
    /// found the depletion before.
    Deplete {
        account: u64,
        version: u32,
    },
    /// The order of a version was answered with a 2xx at `at`. Only the first counts.
    Delivered {
        account: u64,
        version: u32,
        at: Micros,
    },
    /// Idempotency keys that were used before this are forgotten. In the journal, so that a replay forgets the same.
    Forget {
        before: Micros,
    },
    /// The bucket, its accounts and their keys are on their way to another shard from now on. Stale if it was released or
    /// adopted at this generation or a later one.
    Release {
        bucket: u16,
        /// Not this shard itself, which would take its own image for an old one.
        to: u32,
        /// One more than the bucket's.
        generation: u64,
    },
    /// A bucket as [`Outgoing::image`](super::Outgoing::image) wrote it is this shard's from now on. Stale if this shard has
    /// seen this generation of it, or a later one.
    Adopt {
        generation: u64,
        image: Box<[u8]>,
    },
    /// The bucket that was released at this generation has arrived, and is forgotten here. Stale if it was before.
    Sent {
        bucket: u16,
        generation: u64,
    },
    /// Somebody gave the shard to this node by hand, which is a reason to leave it there for a while. The name has 1 to
    /// [`Assignment::NODE_BYTES_MAX`](super::Assignment::NODE_BYTES_MAX) bytes.
    Assign {
        node: Box<str>,
    },
}

/// Commands that are journaled together, and the one time at which they are applied, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub at: Micros,
    pub commands: Vec<Command>,
}

/// The test users of `insert_data`: id, first balance, velocity. A door turns each into a `Create`; as keys count per
/// account, one key does for all ten. User 4 is the one of `get(4)`: 1000, and never any less by itself.
pub const TEST_USERS: [(u64, Money, Velocity); 10] = [
    (1, Money::new(100), Velocity::new(1)),
    (2, Money::new(500), Velocity::new(10)),
    (3, Money::new(750), Velocity::new(5)),
    (4, Money::new(1_000), Velocity::ZERO),
    (5, Money::new(1_500), Velocity::new(20)),
    (6, Money::new(3_000), Velocity::new(25)),
    (7, Money::new(10_000), Velocity::new(50)),
    (8, Money::new(60_000), Velocity::new(100)),
    (9, Money::new(1_000_000), Velocity::new(250)),
    (10, Money::new(5_000_000), Velocity::new(1_000)),
];
