//! What came of a command: the answer for the caller, the events for ledger and notifier.

use super::account::{Account, Row};
use super::money::{Micros, Money};

/// Why a command was refused. A refusal leaves money as it is; a depletion that it found is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no such account")]
    UnknownAccount,
    #[error("the account exists already")]
    AccountExists,
    #[error("the account has less than that")]
    InsufficientFunds,
    #[error("the result would be beyond 64 bits")]
    Overflow,
    #[error("an amount must be at least 1, a first balance at least 0")]
    BadAmount,
    #[error("a velocity must be at least 0")]
    BadVelocity,
    /// The key came before with another command. Not kept: the first result stays under the key.
    #[error("the idempotency key was used for something else")]
    Conflict,
    /// This state does not hold the account's bucket. Not kept: the shard that has it decides.
    #[error("the account's bucket is not here")]
    Elsewhere,
    /// A bucket to release that is not here, one to adopt that is here already, or an image that cannot be read. Nobody who
    /// keeps to the order of moving asks so.
    #[error("the bucket cannot be moved")]
    BadBucket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The account as it was right after the command.
    Account(Account),
    /// It was done and there is nothing to tell.
    Done,
    /// It came too late, too early or twice, and changed nothing.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Created,
    MoneyAdded,
    Withdrawn,
    VelocityChanged,
    /// The money ended: an order must leave once this is durable.
    Depleted,
    /// The money had ended, and more came before that was journaled: no order leaves.
    Spared,
    /// The order was answered with a 2xx for the first time.
    Delivered,
}

/// A line for the ledger. Its identity is the caller's: the position of the batch in the journal, of the command in the
/// batch, and of the event in [`Applied::events`]. Its idempotency key is the command's.
///
/// Over all events of an account, `balance of after = sum of deposits - sum of withdrawals - sum of charged`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// When it was so: of `Depleted` and `Spared` the exact instant, of `Delivered` the 2xx. Otherwise the command's time.
    pub at: Micros,
    /// What came or went; of `Delivered` the overrun, which nobody pays; otherwise 0.
    pub amount: Money,
    /// What was spent since the account's last event.
    pub charged: Money,
    /// The account after it.
    pub after: Row,
}

impl Event {
    /// What came in, below zero for what was taken out.
    pub fn moved(&self) -> i64 {
        match self.kind {
            EventKind::Created | EventKind::MoneyAdded => self.amount.get(),
            EventKind::Withdrawn => -self.amount.get(),
            EventKind::VelocityChanged | EventKind::Depleted | EventKind::Spared | EventKind::Delivered => 0,
        }
    }
}

/// The events of one command in their order, at most two, without an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events([Option<Event>; 2]);

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        let place = self.0.iter_mut().find(|place| place.is_none());
        debug_assert!(place.is_some(), "no command has three events");
        if let Some(place) = place {
            *place = Some(event);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.0.iter().flatten()
    }

    pub fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }
}

/// What [`State::apply`](super::State::apply) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub events: Events,
    pub result: Result<Reply, Refusal>,
    /// The time that counted: the one given, or the state's last one if that is later.
    pub at: Micros,
    /// False: not one bit of the state is different (a replayed key, a conflict, a stale order, another shard's bucket), so
    /// the command may be in the journal or not.
    pub changed: bool,
    /// The result is the first one of this key, told again. Its account is of that time; the notifier must not use it.
    pub replayed: bool,
}
