//! The pure part of billing: accounts that hold money and spend it by the second, what can be done to them, and the bytes
//! of all that. Every figure is an integer and every result exact.
//!
//! Never here: a clock, a socket, a file, a random source, an order that depends on a hash map. Time is an argument; the
//! same commands at the same times give the same state, to the bit. Nothing that comes in can make it panic or overflow.
//!
//! The order of use: [`State::new`], [`State::decode`] of a snapshot, then [`State::replay`] of the batches after it; as
//! the owner, [`State::apply`] each command, put those that changed something into a [`Batch`], and tell results and
//! events once the journal has it.

mod account;
mod bucket;
mod chunks;
mod codec;
mod command;
mod idempotency;
mod index;
mod money;
mod moving;
mod outcome;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

pub use account::{Account, AccountState, Row, Stage};
pub use bucket::{BUCKETS, bucket_of};
pub use codec::CodecError;
pub use command::{Batch, Command, Key, Operation, TEST_USERS};
pub use money::{MICROS_PER_SECOND, Micros, Money, Velocity};
pub use moving::{Assignment, Outgoing};
pub use outcome::{Applied, Event, EventKind, Events, Refusal, Reply};
pub use snapshot::AccountsDigest;
pub use state::{AHEAD, Hashed, Memory, Order, State, Timer};
