//! Buckets go from one state to another, with everything that belongs to them, whatever comes twice, late or never.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::ledger_model::Model;
use super::*;

fn release(bucket: u16, to: u32, generation: u64) -> Command {
    Command::Release { bucket, to, generation }
}

#[test]
fn a_bucket_takes_its_accounts_and_keys_along() {
    let (mut from, mut to) = (Shard::new(), Shard::of([]));
    from.operate(1, create(100, 10), SECOND);
    let paid = from.run(command(1, "pay", withdraw(30)), 2 * SECOND).result;
    let bucket = bucket_of(1);
    assert_eq!(to.run(command(1, "pay", withdraw(30)), 0).result, Err(Refusal::Elsewhere));
    assert_eq!(to.state.account(1, at(0)), Err(Refusal::Elsewhere));

    assert!(from.run(release(bucket, 1, 2), 3 * SECOND).changed);
    let outgoing = from.state.outgoing_of(bucket).unwrap().clone();
    assert_eq!((outgoing.to, outgoing.generation, outgoing.accounts_len()), (1, 2, 1));
    assert_eq!(from.state.timers().count(), 0, "its timers stop here");
    let image: Box<[u8]> = outgoing.image().into();
    assert!(to.run(Command::Adopt { generation: 2, image: image.clone() }, 0).changed);
    assert_eq!(to.state.last(), at(3 * SECOND), "its clock is not behind the bucket's");
    assert_eq!(from.operate(1, add(1), 3 * SECOND).result, Err(Refusal::Elsewhere));
    assert_eq!(from.state.buckets().count(), usize::from(BUCKETS) - 1);
    assert!(from.run(Command::Sent { bucket, generation: 2 }, 3 * SECOND).changed);
    assert_eq!(from.state.outgoing().count(), 0);

    let again = to.run(command(1, "pay", withdraw(30)), 4 * SECOND);
    assert_eq!((again.result, again.replayed), (paid, true));
    assert_eq!(to.account(1, 4 * SECOND).balance, money(40));
    assert_eq!(to.state.timer(1), Some(Timer { account: 1, version: 1, at: at(8 * SECOND) }));

    // Twice, late, from nowhere, broken: nothing is different.
    let cut: Box<[u8]> = image[..image.len() - 1].into();
    for (command, result) in [
        (Command::Adopt { generation: 2, image: image.clone() }, Ok(Reply::Stale)),
        (Command::Adopt { generation: 1, image: image.clone() }, Ok(Reply::Stale)),
        (Command::Adopt { generation: 3, image: image.clone() }, Err(Refusal::BadBucket)),
        (Command::Adopt { generation: 3, image: cut }, Err(Refusal::BadBucket)),
        (Command::Adopt { generation: 3, image: [].into() }, Err(Refusal::BadBucket)),
        (release(BUCKETS, 0, 1), Err(Refusal::BadBucket)),
        (release(u16::MAX, 0, 1), Err(Refusal::BadBucket)),
        (release(bucket, 0, 2), Ok(Reply::Stale)),
        (release(bucket, 0, 4), Err(Refusal::BadBucket)),
        (release(bucket + 1, 0, 1), Err(Refusal::BadBucket)),
        (Command::Sent { bucket, generation: 2 }, Ok(Reply::Stale)),
        (Command::Sent { bucket: u16::MAX, generation: 0 }, Ok(Reply::Stale)),
    ] {
        let text = format!("{command:?}");
        let applied = to.run(command, 5 * SECOND);
        assert_eq!((applied.result, applied.changed), (result, false), "{text}");
    }
    assert_eq!(from.replayed().digest(), from.state.digest());
    assert_eq!(to.replayed_on(State::new([])).digest(), to.state.digest());
}

/// It came back before its first way was known to be over.
#[test]
fn what_comes_back_had_arrived() {
    let (mut one, mut other) = (Shard::new(), Shard::of([]));
    let bucket = bucket_of(1);
    one.operate(1, create(100, 0), 0);
    one.run(release(bucket, 1, 2), 0);
    let first: Box<[u8]> = one.state.outgoing_of(bucket).unwrap().image().into();
    other.run(Command::Adopt { generation: 2, image: first.clone() }, 0);
    other.run(command(1, "more", add(11)), 1);
    other.run(release(bucket, 0, 3), 2);
    let image = other.state.outgoing_of(bucket).unwrap().image().into();
    assert!(one.run(Command::Adopt { generation: 3, image }, 3).changed);
    assert_eq!(one.state.outgoing().count(), 0);
    assert_eq!(one.run(Command::Sent { bucket, generation: 2 }, 4).result, Ok(Reply::Stale));
    // The image of its first way once more, when it has left again.
    assert_eq!(other.run(Command::Adopt { generation: 2, image: first }, 5).result, Ok(Reply::Stale));
    assert_eq!(one.account(1, 5).balance, money(111));
}

#[test]
fn an_image_never_exceeds_its_bound() {
    let mut shard = Shard::new();
    let ids: Vec<u64> = (0..).filter(|id| bucket_of(*id) == 7).take(50).collect();
    for (n, id) in ids.iter().enumerate() {
        shard.operate(*id, create(i64::MAX, i64::MAX), u64::MAX / 2);
        shard.operate(*id, add(n as i64), u64::MAX / 2);
        assert!(shard.state.bucket_image(7).unwrap().len() <= shard.state.image_bytes_max(7).unwrap());
    }
    assert_eq!(shard.state.image_bytes_max(BUCKETS), None);
}

/// The time is the one at which it was released, whatever comes after.
#[test]
fn an_image_is_the_same_whenever_it_is_made() {
    let mut shard = Shard::new();
    shard.operate(1, create(100, 1), SECOND);
    shard.run(release(bucket_of(1), 1, 2), 2 * SECOND);
    let image = shard.state.outgoing_of(bucket_of(1)).unwrap().image();
    shard.operate(2, create(1, 0), 3 * SECOND);
    shard.run(Command::Forget { before: at(3 * SECOND) }, 4 * SECOND);
    let back = State::decode(&shard.state.encode()).unwrap();
    for state in [&shard.state, &back, &shard.replayed()] {
        assert_eq!(state.outgoing_of(bucket_of(1)).unwrap().image(), image);
    }
}

#[test]
fn an_assignment_is_kept_with_its_time() {
    let mut shard = Shard::new();
    assert_eq!(shard.state.assignment(), None);
    shard.run(Command::Assign { node: "b".into() }, SECOND);
    let back = State::decode(&shard.state.encode()).unwrap();
    for state in [&shard.state, &back, &shard.replayed()] {
        assert_eq!(state.assignment(), Some(&Assignment { node: "b".into(), at: at(SECOND) }));
    }
}

#[test]
fn a_clone_stays_as_it_was() {
    let mut shard = Shard::new();
    for id in 0..100 {
        shard.operate(id, create(10, 1), 0);
    }
    let (snapshot, digest) = (shard.state.clone(), shard.state.digest());
    for id in 0..100 {
        shard.operate(id, add(1), SECOND);
    }
    shard.run(Command::Forget { before: at(SECOND) }, SECOND);
    assert_eq!(snapshot.digest(), digest);
    assert_ne!(shard.state.digest(), digest);
}

// ---------------------------------------------------------------------------------------------- several and the model

const SHARDS: usize = 3;
const ACCOUNTS: u64 = 12;

#[derive(Clone, Debug)]
enum Step {
    Operate {
        account: u64,
        key: u8,
        operation: Operation,
    },
    Deplete {
        account: u64,
    },
    Delivered {
        account: u64,
    },
    /// The bucket of the account leaves where it is.
    Release {
        account: u64,
        to: usize,
    },
    /// One of the images that were ever sent comes, perhaps not for the first time.
    Arrive {
        which: prop::sample::Index,
    },
    /// A release is told to be over, if it is.
    Sent {
        account: u64,
    },
    Forget {
        age: u64,
    },
    /// A state is read back from its bytes, or from its journal.
    Restart {
        shard: usize,
        from_journal: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let account = 0..ACCOUNTS;
    let operation = prop_oneof![
        2 => (0i64..3_000, 0i64..2_000).prop_map(|(balance, per_second)| create(balance, per_second)),
        4 => (1i64..500).prop_map(add),
        4 => (1i64..500).prop_map(withdraw),
        2 => (0i64..2_000).prop_map(speed),
    ];
    prop_oneof![
        16 => (account.clone(), 0u8..40, operation)
            .prop_map(|(account, key, operation)| Step::Operate { account, key, operation }),
        3 => account.clone().prop_map(|account| Step::Deplete { account }),
        2 => account.clone().prop_map(|account| Step::Delivered { account }),
        5 => (account.clone(), 0..SHARDS).prop_map(|(account, to)| Step::Release { account, to }),
        8 => any::<prop::sample::Index>().prop_map(|which| Step::Arrive { which }),
        4 => account.prop_map(|account| Step::Sent { account }),
        1 => (0u64..100 * SECOND).prop_map(|age| Step::Forget { age }),
        2 => (0..SHARDS, any::<bool>()).prop_map(|(shard, from_journal)| Step::Restart { shard, from_journal }),
    ]
}

/// Three states, the wire between them, and the model that knows of no states.
struct Several {
    shards: Vec<Shard>,
    wire: Vec<(usize, u64, Box<[u8]>)>,
    model: Model,
    now: u64,
    depletions: BTreeMap<(u64, u32), i128>,
    moves: usize,
}

/// The first holds everything.
fn first(shard: usize) -> State {
    if shard == 0 { State::new(0..BUCKETS) } else { State::new([]) }
}

impl Several {
    fn new() -> Several {
        let shards = (0..SHARDS).map(|n| Shard { state: first(n), ..Shard::new() }).collect();
        let (wire, model, depletions) = Default::default();
        Several { shards, wire, model, now: 0, depletions, moves: 0 }
    }

    /// Which state holds the account's bucket; None while it is on its way. Never two.
    fn holder(&self, account: u64) -> Option<usize> {
        let holds = |shard: &Shard| shard.state.accounts_of(bucket_of(account)).is_some();
        let holders: Vec<usize> = (0..SHARDS).filter(|n| holds(&self.shards[*n])).collect();
        assert!(holders.len() <= 1, "held by {holders:?}");
        holders.first().copied()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Operate { account, key, operation } => {
                let command = command(*account, &format!("{key}"), *operation);
                let Some(holder) = self.holder(*account) else {
                    let refused =
                        self.shards.iter_mut().map(|shard| shard.run(command.clone(), self.now).result);
                    assert!(refused.into_iter().all(|result| result == Err(Refusal::Elsewhere)));
                    return;
                };
                let expected = self.model.operate(*account, *key, *operation, self.now);
                assert_eq!(self.run(holder, command).result, expected, "{step:?} at {}", self.now);
            }
            Step::Deplete { account } => {
                let Some(holder) = self.holder(*account) else { return };
                let expected = self.model.deplete(*account, self.now);
                let version = self.model.wallets.get(account).map_or(1, |wallet| wallet.version);
                assert_eq!(
                    self.run(holder, Command::Deplete { account: *account, version }).changed,
                    expected
                );
            }
            Step::Delivered { account } => {
                let Some(holder) = self.holder(*account) else { return };
                let expected = self.model.delivered(*account, self.now);
                let version = self.model.wallets.get(account).map_or(1, |wallet| wallet.version);
                let delivered = Command::Delivered { account: *account, version, at: at(self.now) };
                assert_eq!(self.run(holder, delivered).changed, expected);
            }
            Step::Release { account, to } => {
                let Some(holder) = self.holder(*account) else { return };
                if holder == *to {
                    return;
                }
                let bucket = bucket_of(*account);
                let generation = self.shards[holder].state.generation(bucket).unwrap() + 1;
                assert!(self.run(holder, release(bucket, *to as u32, generation)).changed);
                self.send(holder, bucket);
            }
            Step::Arrive { which } => {
                if self.wire.is_empty() {
                    return;
                }
                let (to, generation, image) = which.get(&self.wire).clone();
                let new = self.run(to, Command::Adopt { generation, image }).changed;
                self.moves += usize::from(new);
            }
            Step::Sent { account } => {
                // As the driver does: only what its destination has seen.
                let bucket = bucket_of(*account);
                for from in 0..SHARDS {
                    let outgoing = self.shards[from].state.outgoing_of(bucket).cloned();
                    if let Some(Outgoing { to, generation, .. }) = outgoing
                        && self.shards[to as usize].state.seen(bucket) >= generation
                    {
                        assert!(self.run(from, Command::Sent { bucket, generation }).changed);
                    }
                }
            }
            Step::Forget { age } => {
                let before = self.now.saturating_sub(*age);
                self.model.forget(before);
                for shard in 0..SHARDS {
                    self.run(shard, Command::Forget { before: at(before) });
                }
            }
            Step::Restart { shard, from_journal } => self.restart(*shard, *from_journal),
        }
    }

    fn restart(&mut self, n: usize, from_journal: bool) {
        let shard = &mut self.shards[n];
        let digest = shard.state.digest();
        shard.state = match from_journal {
            true => shard.replayed_on(first(n)),
            false => State::decode(&shard.state.encode()).unwrap(),
        };
        assert_eq!(shard.state.digest(), digest);
        // A new owner sends again what may not have arrived.
        let outgoing: BTreeSet<u16> = shard.state.outgoing().map(|outgoing| outgoing.bucket).collect();
        outgoing.into_iter().for_each(|bucket| self.send(n, bucket));
    }

    fn send(&mut self, from: usize, bucket: u16) {
        let outgoing = self.shards[from].state.outgoing_of(bucket).unwrap();
        self.wire.push((outgoing.to as usize, outgoing.generation, outgoing.image().into()));
    }

    fn run(&mut self, shard: usize, command: Command) -> Applied {
        let applied = self.shards[shard].run(command, self.now);
        for event in applied.events.iter().filter(|event| event.kind == EventKind::Depleted) {
            let twice = self.depletions.insert((event.after.id, event.after.version), event.at.get().into());
            assert_eq!(twice, None, "depleted twice in one version");
        }
        applied
    }

    /// Everything that is on its way arrives.
    fn arrive(&mut self) {
        for (to, generation, image) in std::mem::take(&mut self.wire) {
            self.run(to, Command::Adopt { generation, image });
        }
    }

    fn compare(&self) {
        let mut sum = 0;
        let mut timers = BTreeSet::new();
        for id in self.model.wallets.keys() {
            let holder = &self.shards[self.holder(*id).expect("everything has arrived")];
            let (account, expected) = (holder.account(*id, self.now), self.model.account(*id, self.now));
            assert_eq!(account, expected);
            sum += i128::from(account.balance.get());
            timers.extend(expected.depletes_at.map(|at| (*id, at)));
        }
        let (balances, accrued) = self.model.sums(self.now);
        assert_eq!(sum, balances);
        assert_eq!(sum, self.model.deposits - self.model.withdrawals - accrued, "money came from nowhere");
        assert_eq!(self.depletions, self.model.depletions);
        let states = || self.shards.iter().map(|shard| &shard.state);
        let told: BTreeSet<_> =
            states().flat_map(State::timers).map(|timer| (timer.account, timer.at)).collect();
        assert_eq!(told, timers, "every timer, once, where its account is");
        let stopped =
            self.model.wallets.values().filter(|w| w.stopped.is_some() && w.overrun.is_none()).count();
        assert_eq!(states().flat_map(State::orders).count(), stopped);
        let accounts: usize = states().map(State::accounts_len).sum();
        assert_eq!(accounts, self.model.wallets.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Three states with their buckets going to and fro are, together, the model: sums, keys, timers, orders, depletions.
    #[test]
    fn moving_buckets_changes_nothing(
        steps in proptest::collection::vec((step(), 0u64..3_000_000), 1..150),
    ) {
        let mut several = Several::new();
        for (step, gap) in &steps {
            several.now += gap;
            several.step(step);
        }
        several.arrive();
        several.compare();
        // Every key that is known is answered as the first time, wherever its account is now.
        let known: Vec<_> = several.model.keys.iter().map(|(id, first)| (*id, *first)).collect();
        for ((account, key), (operation, result, _)) in known {
            let holder = several.holder(account).unwrap();
            let again = several.run(holder, command(account, &format!("{key}"), operation));
            prop_assert_eq!((again.result, again.replayed), (result, true));
        }
        several.compare();
    }
}
