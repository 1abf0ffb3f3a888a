//! The same accounts once more, in the plainest way: what came in and what the time cost, as exact sums in `i128`
//! (millionths of a micro-unit), and instants found by search. It shares no arithmetic with the room.

use std::collections::BTreeMap;

use super::*;

const SCALE: i128 = 1_000_000;

#[derive(Clone, Debug)]
pub struct Wallet {
    velocity: i128,
    pub version: u32,
    /// Of this period, which began when it was created, spared or reopened.
    funds: i128,
    /// Millionths of a micro-unit that this period cost until `since`. Never rounded.
    spent: i128,
    since: i128,
    /// When, and at which velocity.
    pub stopped: Option<(i128, i128)>,
    pub overrun: Option<i128>,
}

/// Of a key: what was asked, answered, and when.
type First = (Operation, Result<Reply, Refusal>, u64);

/// All accounts, and what went over the counter.
#[derive(Default)]
pub struct Model {
    pub wallets: BTreeMap<u64, Wallet>,
    pub keys: BTreeMap<(u64, u8), First>,
    pub deposits: i128,
    pub withdrawals: i128,
    /// Charged in periods that are over.
    pub accrued: i128,
    /// Each depletion once.
    pub depletions: BTreeMap<(u64, u32), i128>,
}

impl Wallet {
    fn cost(&self, now: i128) -> i128 {
        self.spent + self.velocity * (now - self.since).max(0)
    }

    fn charged(&self, now: i128) -> i128 {
        (self.cost(now) / SCALE).min(self.funds)
    }

    pub fn balance(&self, now: i128) -> i128 {
        if self.stopped.is_some() { 0 } else { self.funds - self.charged(now) }
    }

    /// The first microsecond at which all of it is charged, found by halving.
    fn dry_at(&self, now: i128) -> Option<i128> {
        if self.stopped.is_some() || self.funds == 0 || self.charged(now) < self.funds {
            return None;
        }
        let (mut before, mut after) = (self.since, now);
        while after - before > 1 {
            let middle = (before + after) / 2;
            if self.charged(middle) < self.funds { before = middle } else { after = middle }
        }
        Some(after)
    }

    fn settle(&mut self, now: i128) {
        self.spent = self.cost(now);
        self.since = self.since.max(now);
    }
}

impl Model {
    /// Balances, and what is charged of them until now.
    pub fn sums(&self, now: u64) -> (i128, i128) {
        let open = self.wallets.values().filter(|wallet| wallet.stopped.is_none());
        let accrued: i128 = open.map(|wallet| wallet.charged(now.into())).sum();
        (self.wallets.values().map(|wallet| wallet.balance(now.into())).sum(), self.accrued + accrued)
    }

    pub fn operate(&mut self, id: u64, key: u8, operation: Operation, now: u64) -> Result<Reply, Refusal> {
        if let Some((first, result, _)) = self.keys.get(&(id, key)) {
            return if *first == operation { *result } else { Err(Refusal::Conflict) };
        }
        let result = self.fresh(id, operation, now.into());
        let result = result.map(|()| Reply::Account(self.account(id, now)));
        self.keys.insert((id, key), (operation, result, now));
        result
    }

    pub fn forget(&mut self, before: u64) {
        self.keys.retain(|_, (_, _, at)| *at >= before);
    }

    pub fn deplete(&mut self, id: u64, now: u64) -> bool {
        let Some(dry_at) = self.wallets.get(&id).and_then(|wallet| wallet.dry_at(now.into())) else {
            return false;
        };
        self.stop(id, dry_at);
        true
    }

    pub fn delivered(&mut self, id: u64, at: u64) -> bool {
        let Some(wallet) = self.wallets.get_mut(&id) else { return false };
        let (Some((stopped_at, velocity)), None) = (wallet.stopped, wallet.overrun) else { return false };
        let overrun = velocity * (i128::from(at) - stopped_at).max(0) / SCALE;
        wallet.overrun = Some(overrun.min(i64::MAX.into()));
        true
    }

    pub fn account(&self, id: u64, now: u64) -> Account {
        let wallet = &self.wallets[&id];
        let depletes_at =
            (wallet.stopped.is_none() && wallet.funds * SCALE > wallet.spent && wallet.velocity > 0)
                .then(|| {
                    let left = wallet.funds * SCALE - wallet.spent;
                    wallet.since + (left + wallet.velocity - 1) / wallet.velocity
                })
                .filter(|at| *at <= i64::MAX.into());
        Account {
            id,
            balance: money(wallet.balance(now.into()) as i64),
            velocity: velocity(wallet.velocity as i64),
            state: if wallet.stopped.is_some() { AccountState::Stopped } else { AccountState::Active },
            version: wallet.version,
            depletes_at: depletes_at.map(|depletes| at(depletes as u64)),
            overrun: wallet.overrun.map(|overrun| money(overrun as i64)),
        }
    }

    fn fresh(&mut self, id: u64, operation: Operation, now: i128) -> Result<(), Refusal> {
        match operation {
            Operation::Create { balance, velocity } => {
                let (balance, velocity) = (i128::from(balance.get()), i128::from(velocity.get()));
                match () {
                    () if balance < 0 => return Err(Refusal::BadAmount),
                    () if velocity < 0 => return Err(Refusal::BadVelocity),
                    () if self.wallets.contains_key(&id) => return Err(Refusal::AccountExists),
                    () => {}
                }
                let (since, stopped, overrun) = (now, None, None);
                let wallet =
                    Wallet { velocity, version: 1, funds: balance, spent: 0, since, stopped, overrun };
                self.wallets.insert(id, wallet);
                self.deposits += balance;
                Ok(())
            }
            Operation::AddMoney { amount } => self.add(id, amount.get().into(), now),
            Operation::Withdraw { amount } => self.withdraw(id, amount.get().into(), now),
            Operation::UpdateSpendingVelocity { velocity } => {
                self.known(id)?;
                if velocity < Velocity::ZERO {
                    return Err(Refusal::BadVelocity);
                }
                self.deplete(id, now as u64);
                let wallet = self.known(id)?;
                if wallet.funds == 0 {
                    wallet.since = now
                } else {
                    wallet.settle(now)
                }
                wallet.velocity = velocity.get().into();
                Ok(())
            }
        }
    }

    fn add(&mut self, id: u64, amount: i128, now: i128) -> Result<(), Refusal> {
        let wallet = self.known(id)?;
        if amount < 1 {
            return Err(Refusal::BadAmount);
        }
        let balance = wallet.balance(now);
        if balance + amount > i64::MAX.into() {
            return Err(Refusal::Overflow);
        }
        let spared = wallet.dry_at(now).is_some();
        if balance == 0 {
            // A new period, after a depletion, instead of one, or for the first money.
            wallet.version += u32::from(wallet.stopped.is_some());
            (wallet.stopped, wallet.overrun) = (None, None);
            let charged = std::mem::replace(&mut wallet.funds, amount);
            (wallet.spent, wallet.since) = (0, now);
            self.accrued += if spared { charged } else { 0 };
        } else {
            wallet.settle(now);
            wallet.funds += amount;
        }
        self.deposits += amount;
        Ok(())
    }

    fn withdraw(&mut self, id: u64, amount: i128, now: i128) -> Result<(), Refusal> {
        self.known(id)?;
        if amount < 1 {
            return Err(Refusal::BadAmount);
        }
        self.deplete(id, now as u64);
        let wallet = self.known(id)?;
        let balance = wallet.balance(now);
        if amount > balance {
            return Err(Refusal::InsufficientFunds);
        }
        wallet.settle(now);
        wallet.funds -= amount;
        self.withdrawals += amount;
        if amount == balance {
            self.stop(id, now);
        }
        Ok(())
    }

    /// What is left in funds was spent.
    fn stop(&mut self, id: u64, at: i128) {
        let wallet = self.wallets.get_mut(&id).unwrap();
        wallet.stopped = Some((at, wallet.velocity));
        self.accrued += std::mem::take(&mut wallet.funds);
        let twice = self.depletions.insert((id, wallet.version), at);
        assert_eq!(twice, None, "the model itself depletes twice");
    }

    fn known(&mut self, id: u64) -> Result<&mut Wallet, Refusal> {
        self.wallets.get_mut(&id).ok_or(Refusal::UnknownAccount)
    }
}
