//! Random commands against the model, with everything that must hold at each step.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::ledger_model::Model;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Operate {
        account: u64,
        key: u8,
        operation: Operation,
    },
    /// Of the present version, or one beside it.
    Deplete {
        account: u64,
        off: u32,
    },
    Delivered {
        account: u64,
        off: u32,
        early: u64,
    },
    Forget {
        age: u64,
    },
    /// The state goes through its bytes.
    Snapshot,
}

/// Mostly small figures, which meet each other; some of any size.
fn figure() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => 0i64..50,
        3 => 0i64..5_000_000,
        1 => (0i64..=i64::MAX, 0u32..63).prop_map(|(value, shift)| value >> shift),
        1 => prop_oneof![Just(i64::MAX), Just(i64::MAX - 1), Just(-1), Just(i64::MIN)],
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        2 => (figure(), figure()).prop_map(|(balance, per_second)| create(balance, per_second)),
        4 => figure().prop_map(add),
        4 => figure().prop_map(withdraw),
        2 => figure().prop_map(speed),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let account = 0u64..4;
    prop_oneof![
        12 => (account.clone(), any::<u8>(), operation())
            .prop_map(|(account, key, operation)| Step::Operate { account, key, operation }),
        4 => (account.clone(), 0u32..3).prop_map(|(account, off)| Step::Deplete { account, off }),
        3 => (account, 0u32..3, 0u64..SECOND)
            .prop_map(|(account, off, early)| Step::Delivered { account, off, early }),
        1 => (0u64..100 * SECOND).prop_map(|age| Step::Forget { age }),
        1 => Just(Step::Snapshot),
    ]
}

/// How far the clock goes, sometimes back, sometimes for ever.
fn gap() -> impl Strategy<Value = i64> {
    prop_oneof![
        2 => Just(0i64),
        4 => 0i64..100,
        6 => 0i64..10_000_000,
        2 => -2_000_000i64..0,
        1 => 0i64..1 << 50,
    ]
}

/// The room, the model and the clock.
struct Pair {
    shard: Shard,
    model: Model,
    now: u64,
    depletions: BTreeMap<(u64, u32), i128>,
    /// Per account: what events say came in, less what they say was spent.
    ledger: BTreeMap<u64, i128>,
}

impl Pair {
    fn new() -> Pair {
        let (depletions, ledger) = Default::default();
        Pair { shard: Shard::new(), model: Model::default(), now: 0, depletions, ledger }
    }

    fn step(&mut self, step: &Step, gap: i64) {
        self.now = self.now.saturating_add_signed(gap);
        // The time that counts.
        let now = self.now.max(self.shard.state.last().get());
        let version = |model: &Model, account: &u64, off: u32| {
            (model.wallets.get(account).map_or(1, |wallet| wallet.version) + 1).saturating_sub(off)
        };
        let applied = match step {
            Step::Operate { account, key, operation } => {
                let expected = self.model.operate(*account, *key, *operation, now);
                let applied = self.shard.run(command(*account, &format!("{key}"), *operation), self.now);
                assert_eq!(applied.result, expected, "{step:?} at {now}");
                applied
            }
            Step::Deplete { account, off } => {
                let expected = *off == 1 && self.model.deplete(*account, now);
                let version = version(&self.model, account, *off);
                let applied = self.shard.run(Command::Deplete { account: *account, version }, self.now);
                assert_eq!(applied.changed, expected, "{step:?} at {now}");
                applied
            }
            Step::Delivered { account, off, early } => {
                let answered = now.saturating_sub(*early);
                let expected = *off == 1 && self.model.delivered(*account, answered);
                let version = version(&self.model, account, *off);
                let command = Command::Delivered { account: *account, version, at: at(answered) };
                let applied = self.shard.run(command, self.now);
                assert_eq!(applied.changed, expected, "{step:?} at {now}");
                applied
            }
            Step::Forget { age } => {
                let before = now.saturating_sub(*age);
                self.model.forget(before);
                self.shard.run(Command::Forget { before: at(before) }, self.now)
            }
            Step::Snapshot => {
                let bytes = self.shard.state.encode();
                self.shard.state = State::decode(&bytes).unwrap();
                assert_eq!(self.shard.state.encode(), bytes);
                return;
            }
        };
        self.book(&applied);
        self.compare(now);
    }

    fn book(&mut self, applied: &Applied) {
        for event in applied.events.iter() {
            let id = event.after.id;
            let sum = self.ledger.entry(id).or_default();
            *sum += i128::from(event.moved()) - i128::from(event.charged.get());
            assert_eq!(*sum, event.after.balance().get().into(), "the ledger says something else: {event:?}");
            assert!(event.charged >= Money::ZERO && event.at <= applied.at);
            assert!(account::Record::from_row(&event.after).is_some(), "no account is like this: {event:?}");
            if event.kind == EventKind::Depleted {
                let twice = self.depletions.insert((id, event.after.version), event.at.get().into());
                assert_eq!(twice, None, "depleted twice in one version");
            }
        }
        if let Some(event) = applied.events.iter().last() {
            assert_eq!(self.shard.state.row(event.after.id), Some(event.after));
        }
    }

    fn compare(&self, now: u64) {
        let mut sum = 0;
        for id in self.model.wallets.keys() {
            let account = self.shard.account(*id, now);
            assert_eq!(account, self.model.account(*id, now));
            assert!(account.balance >= Money::ZERO);
            sum += i128::from(account.balance.get());
        }
        let (balances, accrued) = self.model.sums(now);
        assert_eq!(sum, balances);
        assert_eq!(sum, self.model.deposits - self.model.withdrawals - accrued, "money came from nowhere");
        assert_eq!(self.depletions, self.model.depletions);
        let stopped =
            self.model.wallets.values().filter(|w| w.stopped.is_some() && w.overrun.is_none()).count();
        assert_eq!(self.shard.state.orders().count(), stopped);
    }
}

proptest! {
    /// Results, instants, sums, depletions, ledger, orders; then the journal gives the same bytes.
    #[test]
    fn it_is_the_model(steps in proptest::collection::vec((step(), gap()), 1..120)) {
        let mut pair = Pair::new();
        steps.iter().for_each(|(step, gap)| pair.step(step, *gap));
        let (state, replayed) = (&pair.shard.state, pair.shard.replayed());
        prop_assert_eq!(replayed.encode(), state.encode());
        prop_assert_eq!(replayed.digest(), state.digest());
        prop_assert_eq!(replayed.accounts_digest(), state.accounts_digest());
    }

    /// Every command twice and from the start again: what is known already changes nothing.
    #[test]
    fn replays_are_harmless(steps in proptest::collection::vec((0u64..3, operation(), 0u64..5_000_000), 1..60)) {
        let (mut once, mut often) = (Shard::new(), Shard::new());
        let mut now = 0;
        let mut results = Vec::new();
        for (n, (account, operation, gap)) in steps.iter().enumerate() {
            now += gap;
            let command = command(*account, &format!("key-{n}"), *operation);
            let first = once.run(command.clone(), now).result;
            prop_assert_eq!(often.run(command.clone(), now).result, first);
            results.push((command, first));
            for (command, first) in &results {
                let again = often.run(command.clone(), now);
                prop_assert_eq!(again.result, *first);
                prop_assert!(again.replayed && !again.changed && again.events.is_empty());
            }
        }
        prop_assert_eq!(often.state.encode(), once.state.encode());
    }

    /// One look at the end, or a change of nothing at each of many times between: the same to the microsecond.
    #[test]
    fn accrual_does_not_depend_on_how_often_it_is_looked_at(
        balance in 1i64..1_000_000_000_000, per_second in 0i64..2_000_000,
        times in proptest::collection::vec(1u64..3_000_000, 1..300),
    ) {
        let (mut one, mut many) = (Shard::new(), Shard::new());
        one.operate(1, create(balance, per_second), 0);
        many.operate(1, create(balance, per_second), 0);
        let mut now = 0;
        for gap in times {
            now += gap;
            many.operate(1, speed(per_second), now);
            let (one, many) = (one.account(1, now), many.account(1, now));
            prop_assert_eq!(one.balance, many.balance);
            prop_assert!(many.state == AccountState::Stopped || many.depletes_at == one.depletes_at);
        }
    }
}

#[test]
fn a_million_operations_accrue_as_one() {
    const TIMES: u64 = 1_000_000;
    let mut many = State::new(0..BUCKETS);
    let mut one = many.clone();
    // 7 µ/s, looked at every 13 µs: a single look owes 91 millionths, so nothing would ever be charged by rounding.
    for state in [&mut many, &mut one] {
        state.apply(&command(1, "create", create(1_000_000, 7)), Micros::ZERO);
    }
    let mut charged = 0;
    for n in 1..=TIMES {
        let key = Key::new(&n.to_le_bytes()).unwrap();
        let applied = many.apply(&Command::Operate { key, account: 1, operation: speed(7) }, at(13 * n));
        charged += applied.events.iter().map(|event| event.charged.get()).sum::<i64>();
    }
    one.apply(&command(1, "last", speed(7)), at(13 * TIMES));
    assert_eq!(many.row(1), one.row(1));
    assert_eq!(charged, 91, "7 µ/s for 13 s");
    assert_eq!(many.accounts_digest(), one.accounts_digest());
}
