//! Each rule once, with figures that can be checked by hand.

use super::EventKind::*;
use super::*;

fn refused(applied: &Applied) -> Refusal {
    applied.result.unwrap_err()
}

#[test]
fn ten_users_are_inserted_with_one_key_and_only_once() {
    let mut shard = Shard::new();
    for pass in 0..2 {
        for (id, balance, velocity) in TEST_USERS {
            let applied = shard.run(command(id, "insert", Operation::Create { balance, velocity }), pass);
            assert_eq!((applied.result.is_ok(), applied.replayed), (true, pass == 1));
        }
    }
    assert_eq!(shard.state.accounts_len(), 10);
    let user = shard.account(4, 500 * SECOND);
    assert_eq!((user.balance, user.velocity, user.depletes_at), (money(1000), Velocity::ZERO, None));
    let halves = TEST_USERS.map(|(id, ..)| bucket_of(id) < BUCKETS / 2);
    assert!(halves.contains(&true) && halves.contains(&false), "on both of two shards");
    assert_eq!(refused(&shard.operate(4, create(1000, 0), 3)), Refusal::AccountExists);
}

#[test]
fn a_balance_ends_at_the_exact_instant() {
    let mut shard = Shard::new();
    // 10 µ at 3 µ/s: 3.333333 s and a bit, so at 3,333,334 µs.
    let created = shard.operate(1, create(10, 3), 0);
    let ends = 3_333_334;
    assert!(
        matches!(created.result, Ok(Reply::Account(Account { depletes_at: Some(a), .. })) if a == at(ends))
    );
    assert_eq!(shard.account(1, ends - 1).balance, money(1));
    assert_eq!(shard.account(1, ends).balance, money(0));
    assert_eq!(shard.account(1, ends + SECOND).balance, money(0));
    let early = shard.run(Command::Deplete { account: 1, version: 1 }, ends - 1);
    assert_eq!((early.result, early.changed), (Ok(Reply::Stale), false));
    let late = shard.run(Command::Deplete { account: 1, version: 1 }, ends + 700);
    let event = *late.events.iter().next().unwrap();
    assert_eq!((event.kind, event.at, event.charged), (Depleted, at(ends), money(10)));
    let again = shard.run(Command::Deplete { account: 1, version: 1 }, ends + 800);
    assert_eq!((again.result, again.changed), (Ok(Reply::Stale), false));
    let orders: Vec<Order> = shard.state.orders().collect();
    assert_eq!(orders, [Order { account: 1, version: 1, depleted_at: at(ends), velocity: velocity(3) }]);
}

#[test]
fn a_withdrawal_to_zero_depletes_at_any_velocity() {
    for per_second in [0, 7] {
        let mut shard = Shard::new();
        shard.operate(1, create(1_000, per_second), 0);
        let now = SECOND + 1;
        let left = shard.account(1, now).balance.get();
        assert_eq!(refused(&shard.operate(1, withdraw(left + 1), now)), Refusal::InsufficientFunds);
        let applied = shard.operate(1, withdraw(left), now);
        assert_eq!(kinds(&applied), [Withdrawn, Depleted]);
        assert!(applied.events.iter().all(|event| event.at == at(now)));
        assert_eq!(shard.account(1, now).state, AccountState::Stopped);
        assert_eq!(shard.state.timers().count(), 0);
        assert_eq!(refused(&shard.operate(1, withdraw(1), now)), Refusal::InsufficientFunds);
    }
}

#[test]
fn an_account_created_at_zero_is_not_depleted() {
    let mut shard = Shard::new();
    shard.operate(1, create(0, 1_000), 0);
    for now in [0, 10 * SECOND] {
        let account = shard.account(1, now);
        assert_eq!((account.state, account.depletes_at), (AccountState::Active, None));
        assert_eq!(shard.run(Command::Deplete { account: 1, version: 1 }, now).result, Ok(Reply::Stale));
        assert_eq!(refused(&shard.operate(1, withdraw(1), now)), Refusal::InsufficientFunds);
        assert_eq!(kinds(&shard.operate(1, speed(2_000), now)), [VelocityChanged]);
    }
    // Spending begins with the money, and the version is still the first.
    assert_eq!(kinds(&shard.operate(1, add(4_000), 20 * SECOND)), [MoneyAdded]);
    let account = shard.account(1, 21 * SECOND);
    assert_eq!(
        (account.balance, account.version, account.depletes_at),
        (money(2_000), 1, Some(at(22 * SECOND)))
    );
}

#[test]
fn money_before_the_journal_spares_and_after_it_reopens() {
    // Dry at 10 s. Whoever is first after that decides.
    let dry = || {
        let mut shard = Shard::new();
        shard.operate(1, create(100, 10), 0);
        shard
    };
    let mut spared = dry();
    assert_eq!(spared.account(1, 12 * SECOND).depletes_at, Some(at(10 * SECOND)), "past, and not journaled");
    let applied = spared.operate(1, add(50), 12 * SECOND);
    let events: Vec<_> =
        applied.events.iter().map(|e| (e.kind, e.at, e.charged, e.after.balance())).collect();
    assert_eq!(
        events,
        [(Spared, at(10 * SECOND), money(100), money(0)), (MoneyAdded, at(12 * SECOND), money(0), money(50))]
    );
    assert_eq!(spared.account(1, 13 * SECOND).version, 1);
    // The timer that was on its way comes too early for the new instant, and depletes once that is there.
    let timer = Command::Deplete { account: 1, version: 1 };
    assert_eq!(spared.run(timer.clone(), 12 * SECOND).result, Ok(Reply::Stale));
    assert_eq!(spared.state.orders().count(), 0);
    assert_eq!(kinds(&spared.run(timer.clone(), 17 * SECOND)), [Depleted]);

    let mut reopened = dry();
    assert_eq!(kinds(&reopened.run(timer.clone(), 11 * SECOND)), [Depleted]);
    assert_eq!(kinds(&reopened.operate(1, add(50), 12 * SECOND)), [MoneyAdded]);
    let account = reopened.account(1, 13 * SECOND);
    assert_eq!((account.version, account.balance, account.state), (2, money(40), AccountState::Active));
    assert_eq!(reopened.state.orders().count(), 0, "a delivery that was not sent is off");
    assert_eq!(reopened.run(timer, 17 * SECOND).result, Ok(Reply::Stale), "of another version");

    // Any other command finds the depletion, even one that is refused.
    for operation in [withdraw(1), speed(0), speed(99)] {
        let mut found = dry();
        let applied = found.operate(1, operation, 12 * SECOND);
        let first = applied.events.iter().next().unwrap();
        assert_eq!((first.kind, first.at), (Depleted, at(10 * SECOND)));
        assert_eq!(found.state.orders().count(), 1);
    }
    // What is no command at all finds nothing.
    let mut malformed = dry();
    for operation in [withdraw(0), add(0), add(-5), speed(-1)] {
        assert!(malformed.operate(1, operation, 12 * SECOND).events.is_empty());
    }
}

#[test]
fn the_overrun_is_what_was_spent_between_depletion_and_delivery() {
    let mut shard = Shard::new();
    shard.operate(1, create(100, 10), 0);
    shard.run(Command::Deplete { account: 1, version: 1 }, 10 * SECOND);
    assert_eq!(shard.account(1, 11 * SECOND).overrun, None);
    // A velocity set since then is for the next version.
    shard.operate(1, speed(1_000), 11 * SECOND);
    let delivered =
        |version, second| Command::Delivered { account: 1, version, at: at(second * SECOND + SECOND / 4) };
    assert_eq!(shard.run(delivered(2, 12), 13 * SECOND).result, Ok(Reply::Stale));
    assert_eq!(kinds(&shard.run(delivered(1, 12), 13 * SECOND)), [Delivered]);
    assert_eq!(shard.run(delivered(1, 90), 91 * SECOND).result, Ok(Reply::Stale), "only the first counts");
    let account = shard.account(1, 100 * SECOND);
    assert_eq!(
        (account.overrun, account.balance, account.velocity),
        (Some(money(22)), money(0), velocity(1_000))
    );
    shard.operate(1, add(5_000), 100 * SECOND);
    let account = shard.account(1, 101 * SECOND);
    assert_eq!((account.overrun, account.balance, account.version), (None, money(4_000), 2));
}

#[test]
fn a_velocity_change_settles_first_and_carries_the_remainder() {
    let mut shard = Shard::new();
    shard.operate(1, create(100, 1), 0);
    // 0.6 µ at one velocity and 0.4 µ at another are one.
    shard.operate(1, speed(2), 600_000);
    assert_eq!(shard.account(1, 799_999).balance, money(100));
    assert_eq!(shard.account(1, 800_000).balance, money(99));
    shard.operate(1, speed(0), 900_000);
    assert_eq!(shard.account(1, u64::MAX).balance, money(99));
    assert_eq!(shard.account(1, 0).depletes_at, None);
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let mut shard = Shard::new();
    shard.operate(1, create(100, 10), 5 * SECOND);
    let applied = shard.operate(1, add(1), 2 * SECOND);
    assert_eq!(applied.at, at(5 * SECOND));
    assert_eq!(shard.account(1, SECOND).balance, money(101));
    assert_eq!(shard.account(1, 6 * SECOND).balance, money(91));
}

#[test]
fn the_first_result_is_told_again_word_for_word() {
    let mut shard = Shard::new();
    let script = [
        ("create", create(100, 10), 0),
        ("again", create(100, 10), 1),
        ("add", add(5), 2 * SECOND + 3),
        ("most", add(i64::MAX), 3 * SECOND),
        ("bad", add(0), 3 * SECOND),
        ("slow", speed(-1), 3 * SECOND),
        ("much", withdraw(1_000), 3 * SECOND),
        ("all", withdraw(75), 3 * SECOND),
        ("fast", speed(77), 4 * SECOND),
    ];
    let first: Vec<_> =
        script.map(|(key, operation, now)| shard.run(command(1, key, operation), now).result).into();
    assert_eq!(first[1], Err(Refusal::AccountExists));
    assert_eq!(first[3], Err(Refusal::Overflow));
    shard.operate(1, add(500), 50 * SECOND);
    for (n, (key, operation, _)) in script.into_iter().enumerate() {
        let applied = shard.run(command(1, key, operation), 60 * SECOND);
        assert_eq!((applied.result, applied.replayed, applied.changed), (first[n], true, false), "{key}");
        let other = if operation == add(6) { add(7) } else { add(6) };
        let applied = shard.run(command(1, key, other), 60 * SECOND);
        assert_eq!((applied.result, applied.changed), (Err(Refusal::Conflict), false), "{key}");
    }
    assert_eq!(shard.account(1, 60 * SECOND).balance, money(0), "500 less ten times 77");
    // Another account, the same key: another key. Unknown stays unknown under its key.
    let unknown = command(2, "add", add(5));
    assert_eq!(shard.run(unknown.clone(), 61 * SECOND).result, Err(Refusal::UnknownAccount));
    shard.operate(2, create(1, 0), 61 * SECOND);
    assert_eq!(shard.run(unknown, 61 * SECOND).result, Err(Refusal::UnknownAccount));
}

#[test]
fn a_key_is_kept_for_its_time_and_no_longer() {
    let mut shard = Shard::new();
    shard.operate(1, create(100, 0), 0);
    let pay = command(1, "pay", withdraw(10));
    shard.run(pay.clone(), 10 * SECOND);
    shard.run(Command::Forget { before: at(10 * SECOND) }, 20 * SECOND);
    assert!(shard.run(pay.clone(), 21 * SECOND).replayed);
    shard.run(Command::Forget { before: at(10 * SECOND + 1) }, 22 * SECOND);
    assert!(!shard.run(pay.clone(), 23 * SECOND).replayed);
    assert_eq!(shard.account(1, 24 * SECOND).balance, money(80));
    // A line in the future forgets what there is, not what comes.
    assert_eq!(shard.run(Command::Forget { before: Micros::MAX }, 30 * SECOND).result, Ok(Reply::Done));
    assert_eq!(shard.state.keys_len(), 0);
    assert!(State::decode(&shard.state.encode()).is_ok());
    assert_eq!(shard.run(Command::Forget { before: at(5) }, 31 * SECOND).result, Ok(Reply::Stale));
    shard.run(pay.clone(), 30 * SECOND);
    assert!(shard.run(pay, 30 * SECOND).replayed);
}

#[test]
fn extremes_are_refused_or_right_and_never_panic() {
    let extremes = [i64::MIN, -1, 0, 1, 2, 999_999, i64::MAX - 1, i64::MAX];
    let times = [0, 1, SECOND, i64::MAX as u64, u64::MAX];
    for (balance, per_second) in extremes.iter().flat_map(|b| extremes.map(|v| (*b, v))) {
        let mut shard = Shard::new();
        shard.operate(1, create(balance, per_second), 0);
        for (amount, now) in extremes.iter().flat_map(|a| times.map(|now| (*a, now))) {
            for operation in [add(amount), withdraw(amount), speed(amount)] {
                shard.operate(1, operation, now);
                shard.run(Command::Deplete { account: 1, version: 1 }, now);
                shard.run(Command::Delivered { account: 1, version: 1, at: Micros::MAX }, now);
                if let Ok(account) = shard.state.account(1, at(u64::MAX)) {
                    assert!(
                        account.balance >= Money::ZERO && account.overrun.is_none_or(|o| o >= Money::ZERO)
                    );
                }
            }
        }
        assert_eq!(shard.replayed().digest(), shard.state.digest());
    }
    let mut shard = Shard::new();
    shard.operate(1, create(i64::MAX, 1), 0);
    assert_eq!(refused(&shard.operate(1, add(1), 0)), Refusal::Overflow);
    assert!(shard.operate(1, add(1), SECOND).result.is_ok(), "one was spent");
}

#[test]
fn a_listing_goes_by_ids() {
    let mut shard = Shard::new();
    for id in [9, u64::MAX, 3, 0, 70, 5] {
        shard.operate(id, create(1, 0), 0);
    }
    let ids = |after, limit| -> Vec<u64> {
        shard.state.page(after, limit, Micros::ZERO).iter().map(|account| account.id).collect()
    };
    assert_eq!(ids(None, 3), [0, 3, 5]);
    assert_eq!(ids(Some(5), 3), [9, 70, u64::MAX]);
    assert_eq!(ids(Some(u64::MAX), 3), [0; 0]);
    assert_eq!(ids(None, 0), [0; 0]);
}
