//! The room at its boundary: commands in, results, events and bytes out.

mod bytes;
mod ledger_model;
mod moving;
mod properties;
mod rules;
mod size;

use std::sync::Arc;

use super::*;

pub const SECOND: u64 = 1_000_000;

pub fn at(micros: u64) -> Micros {
    Micros::new(micros)
}

pub fn money(amount: i64) -> Money {
    Money::new(amount)
}

pub fn velocity(velocity: i64) -> Velocity {
    Velocity::new(velocity)
}

pub fn create(balance: i64, per_second: i64) -> Operation {
    Operation::Create { balance: money(balance), velocity: velocity(per_second) }
}

pub fn add(amount: i64) -> Operation {
    Operation::AddMoney { amount: money(amount) }
}

pub fn withdraw(amount: i64) -> Operation {
    Operation::Withdraw { amount: money(amount) }
}

pub fn speed(per_second: i64) -> Operation {
    Operation::UpdateSpendingVelocity { velocity: velocity(per_second) }
}

pub fn command(account: u64, key: &str, operation: Operation) -> Command {
    Command::Operate { key: Key::new(key.as_bytes()).unwrap(), account, operation }
}

/// A state with all buckets, fresh keys for all, and the journal it would have.
pub struct Shard {
    pub state: State,
    pub journal: Vec<Vec<u8>>,
    fresh: u64,
}

impl Shard {
    pub fn new() -> Shard {
        Shard::of(0..BUCKETS)
    }

    pub fn of(buckets: impl IntoIterator<Item = u16>) -> Shard {
        Shard { state: State::new(buckets), journal: Vec::new(), fresh: 0 }
    }

    pub fn run(&mut self, command: Command, now: u64) -> Applied {
        let before = self.state.clone();
        let applied = self.state.apply(&command, at(now));
        if applied.changed {
            let mut batch = Vec::new();
            Batch { at: applied.at, commands: vec![command] }.encode(&mut batch);
            self.journal.push(batch);
        } else {
            assert!(before.is_untouched(&self.state), "said to change nothing: {command:?}");
        }
        applied
    }

    /// With a key that nobody used.
    pub fn operate(&mut self, account: u64, operation: Operation, now: u64) -> Applied {
        self.fresh += 1;
        self.run(command(account, &format!("fresh-{}", self.fresh), operation), now)
    }

    pub fn account(&self, id: u64, now: u64) -> Account {
        self.state.account(id, at(now)).unwrap()
    }

    pub fn replayed(&self) -> State {
        self.replayed_on(State::new(0..BUCKETS))
    }

    pub fn replayed_on(&self, mut state: State) -> State {
        self.journal.iter().for_each(|batch| state.replay(&Batch::decode(batch).unwrap()));
        state
    }
}

impl State {
    /// Not even copied to be written to.
    fn is_untouched(&self, now: &State) -> bool {
        let pairs = self.buckets.iter().zip(&now.buckets);
        let shared = pairs.filter(|(one, other)| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        });
        let going = |state: &State| -> Vec<_> {
            state.outgoing().map(|outgoing| (outgoing.bucket, outgoing.to, outgoing.generation)).collect()
        };
        shared.count() == usize::from(BUCKETS)
            && (self.last, self.horizon, &self.generations) == (now.last, now.horizon, &now.generations)
            && (going(self), &self.assignment) == (going(now), &now.assignment)
    }
}

pub fn kinds(applied: &Applied) -> Vec<EventKind> {
    applied.events.iter().map(|event| event.kind).collect()
}
