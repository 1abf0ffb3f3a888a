//! One account: its record of 40 bytes and everything that can happen to it.
//!
//! ```text
//!             create
//!               │        balance reaches 0, by spending or by a withdrawal
//!               ▼        (journaled; at the exact instant)
//!      ┌────► Open ───────────────────────────────────► Stopped
//!      │        ▲                                          │  first 2xx of the order
//!      │        └── add_money, version + 1 ──┬─────────────┤
//!      │                                     │             ▼
//!      └── add_money before the depletion    └───────── Delivered (overrun known)
//!          was journaled: same version
//! ```
//!
//! While an account is open, `balance - floor((velocity × (now - since) + remainder) / 1e6)` is what it has, never below
//! zero. The balance is whole micro-units; a remainder owed when it ends (less than one micro-unit) is not charged. So it
//! shows zero exactly if it ran dry or was created at zero.
//!
//! # Between the instant and its journal
//! At the depletion instant D an account has zero, whoever knows. That it is *depleted* is a fact of the journal. Until
//! one is journaled, the account is open with a balance of zero, and the first command after D decides:
//! - `deplete` (the notifier's timer), `withdraw` and `update_spending_velocity` deplete it first, at D exactly, and then do
//!   their own (a withdrawal is refused). An order leaves after the commit.
//! - `add_money` saves it: what was charged is the balance at D and nothing for the time from D to now; the new money is
//!   spent from now; no order leaves, and the version stays, because this version's depletion never happened. The ledger
//!   sees [`EventKind::Spared`](super::EventKind::Spared). A timer's `deplete` that was already on its way finds an instant
//!   that is later, and does nothing.

use super::money::{self, MICROS_PER_SECOND, Micros, Money, Velocity};
use super::outcome::{Event, EventKind, Events, Refusal};

/// What is known of an account at the time it last changed, exactly. Two equal rows are the same account: this is what
/// snapshots, the projection and digests hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: u64,
    pub velocity: Velocity,
    /// 1 when created, one more with each reopening.
    pub version: u32,
    /// Open: the balance was true then. Otherwise: the depletion instant.
    pub since: Micros,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Spends at its velocity. The remainder is in millionths of a micro-unit, owed and not charged yet.
    Open { balance: Money, remainder: u32 },
    /// Depleted; no 2xx of its order is known. What it was spending at the instant counts for the overrun, not what was
    /// set since.
    Stopped { velocity: Velocity },
    /// Depleted, and its order was answered.
    Delivered { overrun: Money },
}

impl Row {
    /// The balance as of `since`.
    pub fn balance(&self) -> Money {
        match self.stage {
            Stage::Open { balance, .. } => balance,
            Stage::Stopped { .. } | Stage::Delivered { .. } => Money::ZERO,
        }
    }
}

/// An account as it is shown at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub id: u64,
    pub balance: Money,
    pub velocity: Velocity,
    pub state: AccountState,
    pub version: u32,
    /// When the balance ends at this velocity. None if it never does (or in more than 292,277 years), and once it has. A
    /// time that is past already: not journaled yet.
    pub depletes_at: Option<Micros>,
    /// `velocity × (first 2xx of the order - depletion)` of the present version; known once there was one. Never charged.
    pub overrun: Option<Money>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountState {
    Active,
    Stopped,
}

/// The 40 bytes of an account. `amount` means: open, the balance; stopped, the velocity at the instant; delivered, the
/// overrun. `bits`: the stage above [`STAGE_SHIFT`], the remainder below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    id: u64,
    amount: i64,
    velocity: Velocity,
    since: Micros,
    version: u32,
    bits: u32,
}

/// A record without its name and time, as a kept result holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub amount: i64,
    pub velocity: Velocity,
    pub version: u32,
    pub bits: u32,
}

const _: () = assert!(size_of::<Record>() == 40, "the memory of an account is a target");

const STAGE_SHIFT: u32 = 24;
const REMAINDER_MASK: u32 = (1 << STAGE_SHIFT) - 1;
const OPEN: u32 = 0;
const STOPPED: u32 = 1;
const DELIVERED: u32 = 2;

/// What an open account spent since its record was written.
struct Spent {
    charged: i64,
    remainder: u32,
    /// It has nothing any more, since then.
    dry_at: Option<Micros>,
}

type Done = Result<(), Refusal>;

impl Record {
    pub fn new(id: u64, balance: Money, velocity: Velocity, at: Micros) -> Result<Record, Refusal> {
        if balance < Money::ZERO {
            return Err(Refusal::BadAmount);
        }
        if velocity < Velocity::ZERO {
            return Err(Refusal::BadVelocity);
        }
        Ok(Record { id, amount: balance.get(), velocity, since: at, version: 1, bits: OPEN << STAGE_SHIFT })
    }

    /// The event of a new record.
    pub fn created(&self) -> Event {
        self.event(EventKind::Created, self.since, Money::new(self.amount), 0)
    }

    /// As [`pack`] gave them, or to be checked by [`Record::from_row`] of its row.
    pub fn from_parts(id: u64, since: Micros, parts: Parts) -> Record {
        let Parts { amount, velocity, version, bits } = parts;
        Record { id, amount, velocity, since, version, bits }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn parts(&self) -> Parts {
        let Record { id: _, amount, velocity, since: _, version, bits } = *self;
        Parts { amount, velocity, version, bits }
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn row(&self) -> Row {
        let Record { id, velocity, version, since, .. } = *self;
        Row { id, velocity, version, since, stage: unpack(self.amount, self.bits) }
    }

    /// None if no account can look like this; what is read from outside goes through here.
    pub fn from_row(row: &Row) -> Option<Record> {
        let Row { id, velocity, version, since, stage } = *row;
        let (amount, bits) = pack(stage)?;
        let sound = velocity >= Velocity::ZERO && version >= 1;
        sound.then_some(Record { id, amount, velocity, since, version, bits })
    }

    /// The account as it is shown at `now`. A time before the last change shows it as of that change.
    pub fn view(&self, now: Micros) -> Account {
        let spent = self.spent(now);
        let open = self.bits >> STAGE_SHIFT == OPEN;
        Account {
            id: self.id,
            balance: Money::new(if open { self.amount - spent.charged } else { 0 }),
            velocity: self.velocity,
            state: if open { AccountState::Active } else { AccountState::Stopped },
            version: self.version,
            depletes_at: self.depletes_at(),
            overrun: (self.bits >> STAGE_SHIFT == DELIVERED).then_some(Money::new(self.amount)),
        }
    }

    pub fn depletes_at(&self) -> Option<Micros> {
        if self.bits >> STAGE_SHIFT != OPEN {
            return None;
        }
        let span = money::lasts(Money::new(self.amount), self.bits & REMAINDER_MASK, self.velocity)?;
        self.since.checked_add(span)
    }

    pub fn add_money(&mut self, amount: Money, now: Micros, events: &mut Events) -> Done {
        if amount.get() < 1 {
            return Err(Refusal::BadAmount);
        }
        let mut charged = 0;
        if self.bits >> STAGE_SHIFT == OPEN {
            let spent = self.spent(now);
            if let Some(dry_at) = spent.dry_at {
                self.open(Money::ZERO, 0, dry_at);
                events.push(self.event(EventKind::Spared, dry_at, Money::ZERO, spent.charged));
                self.open(amount, 0, now);
            } else {
                let balance =
                    Money::new(self.amount - spent.charged).checked_add(amount).ok_or(Refusal::Overflow)?;
                self.open(balance, spent.remainder, now);
                charged = spent.charged;
            }
        } else {
            self.version = self.version.checked_add(1).ok_or(Refusal::Overflow)?;
            self.open(amount, 0, now);
        }
        events.push(self.event(EventKind::MoneyAdded, now, amount, charged));
        Ok(())
    }

    pub fn withdraw(&mut self, amount: Money, now: Micros, events: &mut Events) -> Done {
        if amount.get() < 1 {
            return Err(Refusal::BadAmount);
        }
        self.deplete_if_dry(now, events);
        if self.bits >> STAGE_SHIFT != OPEN {
            return Err(Refusal::InsufficientFunds);
        }
        let spent = self.spent(now);
        let left = self.amount - spent.charged;
        if amount.get() > left {
            return Err(Refusal::InsufficientFunds);
        }
        let emptied = amount.get() == left;
        self.open(Money::new(left - amount.get()), if emptied { 0 } else { spent.remainder }, now);
        events.push(self.event(EventKind::Withdrawn, now, amount, spent.charged));
        if emptied {
            self.stop(now);
            events.push(self.event(EventKind::Depleted, now, Money::ZERO, 0));
        }
        Ok(())
    }

    /// On a stopped account: what it will spend once it is reopened.
    pub fn set_velocity(&mut self, velocity: Velocity, now: Micros, events: &mut Events) -> Done {
        if velocity < Velocity::ZERO {
            return Err(Refusal::BadVelocity);
        }
        self.deplete_if_dry(now, events);
        let mut charged = 0;
        if self.bits >> STAGE_SHIFT == OPEN {
            let spent = self.spent(now);
            charged = spent.charged;
            self.open(Money::new(self.amount - spent.charged), spent.remainder, now);
        }
        self.velocity = velocity;
        events.push(self.event(EventKind::VelocityChanged, now, Money::ZERO, charged));
        Ok(())
    }

    /// Depletes at the exact instant, if that is past. Says whether.
    pub fn deplete_if_dry(&mut self, now: Micros, events: &mut Events) -> bool {
        let spent = self.spent(now);
        let Some(dry_at) = spent.dry_at else { return false };
        self.stop(dry_at);
        events.push(self.event(EventKind::Depleted, dry_at, Money::ZERO, spent.charged));
        true
    }

    /// The first 2xx of this version's order, which came at `at`. Says whether it was the first.
    pub fn delivered(&mut self, version: u32, at: Micros, events: &mut Events) -> bool {
        if self.bits >> STAGE_SHIFT != STOPPED || self.version != version {
            return false;
        }
        let overrun = money::overrun(Velocity::new(self.amount), at.since(self.since));
        self.amount = overrun.get();
        self.bits = DELIVERED << STAGE_SHIFT;
        events.push(self.event(EventKind::Delivered, at, overrun, 0));
        true
    }

    /// An account without money spends nothing, and one that was created so does not run dry.
    fn spent(&self, now: Micros) -> Spent {
        if self.bits >> STAGE_SHIFT != OPEN || self.amount == 0 {
            return Spent { charged: 0, remainder: 0, dry_at: None };
        }
        let cost = money::cost(self.bits & REMAINDER_MASK, self.velocity, now.since(self.since));
        match i64::try_from(cost.whole) {
            Ok(charged) if charged < self.amount => {
                Spent { charged, remainder: cost.remainder, dry_at: None }
            }
            // The instant is not after `now`, so it exists; `now` stands in for what cannot be.
            _ => {
                Spent { charged: self.amount, remainder: 0, dry_at: Some(self.depletes_at().unwrap_or(now)) }
            }
        }
    }

    fn open(&mut self, balance: Money, remainder: u32, since: Micros) {
        self.amount = balance.get();
        self.bits = OPEN << STAGE_SHIFT | remainder;
        // A time before the record's own (a clock that was set back) must not make it spend twice.
        self.since = since.max(self.since);
    }

    fn stop(&mut self, at: Micros) {
        self.amount = self.velocity.get();
        self.bits = STOPPED << STAGE_SHIFT;
        self.since = at;
    }

    fn event(&self, kind: EventKind, at: Micros, amount: Money, charged: i64) -> Event {
        Event { kind, at, amount, charged: Money::new(charged), after: self.row() }
    }
}

fn pack(stage: Stage) -> Option<(i64, u32)> {
    let (amount, bits) = match stage {
        Stage::Open { balance, remainder } => {
            let sound = remainder < MICROS_PER_SECOND && (remainder == 0 || balance > Money::ZERO);
            (balance.get(), sound.then_some(OPEN << STAGE_SHIFT | remainder)?)
        }
        Stage::Stopped { velocity } => (velocity.get(), STOPPED << STAGE_SHIFT),
        Stage::Delivered { overrun } => (overrun.get(), DELIVERED << STAGE_SHIFT),
    };
    (amount >= 0).then_some((amount, bits))
}

fn unpack(amount: i64, bits: u32) -> Stage {
    match bits >> STAGE_SHIFT {
        OPEN => Stage::Open { balance: Money::new(amount), remainder: bits & REMAINDER_MASK },
        STOPPED => Stage::Stopped { velocity: Velocity::new(amount) },
        _ => Stage::Delivered { overrun: Money::new(amount) },
    }
}
