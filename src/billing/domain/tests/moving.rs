//! Buckets go from one state to another, with everything that belongs to them.

use proptest::prelude::*;

use super::*;

fn totals(states: &[&State], now: u64) -> (i128, usize) {
    let accounts = states.iter().flat_map(|state| state.page(None, usize::MAX, at(now)));
    accounts.fold((0, 0), |(sum, count), account| (sum + i128::from(account.balance.get()), count + 1))
}

#[test]
fn a_bucket_takes_its_accounts_and_keys_along() {
    let mut from = Shard::new();
    let mut to = Shard { state: State::new([]), ..Shard::new() };
    from.operate(1, create(100, 10), SECOND);
    let paid = from.run(command(1, "pay", withdraw(30)), 2 * SECOND).result;
    let bucket = bucket_of(1);
    assert_eq!(to.run(command(1, "pay", withdraw(30)), 0).result, Err(Refusal::Elsewhere));
    assert_eq!(to.state.account(1, at(0)), Err(Refusal::Elsewhere));

    let image: Box<[u8]> = from.state.bucket_image(bucket).unwrap().into();
    assert!(from.run(Command::Release { bucket }, 3 * SECOND).changed);
    assert!(to.run(Command::Adopt { image: image.clone() }, 0).changed);
    assert_eq!(to.state.last(), at(2 * SECOND), "its clock is not behind the bucket's");
    assert_eq!(from.operate(1, add(1), 3 * SECOND).result, Err(Refusal::Elsewhere));
    assert_eq!(from.state.buckets().count(), usize::from(BUCKETS) - 1);

    let again = to.run(command(1, "pay", withdraw(30)), 4 * SECOND);
    assert_eq!((again.result, again.replayed), (paid, true));
    assert_eq!(to.account(1, 4 * SECOND).balance, money(40));
    assert_eq!(to.state.timer(1), Some(Timer { account: 1, version: 1, at: at(8 * SECOND) }));

    // Twice, from nowhere, broken: refused, and nothing is different.
    for command in [
        Command::Adopt { image: image.clone() },
        Command::Adopt { image: image[..image.len() - 1].into() },
        Command::Release { bucket: BUCKETS },
        Command::Release { bucket: u16::MAX },
    ] {
        let applied = to.run(command, 5 * SECOND);
        assert_eq!((applied.result, applied.changed), (Err(Refusal::BadBucket), false));
    }
    assert_eq!(from.replayed().digest(), from.state.digest());
    // The journal of `to` begins without a bucket.
    let mut replayed = State::new([]);
    to.journal.iter().for_each(|batch| replayed.replay(&Batch::decode(batch).unwrap()));
    assert_eq!(replayed.digest(), to.state.digest());
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Two shards with their buckets going to and fro are, together, one shard.
    #[test]
    fn moving_buckets_changes_nothing(
        steps in proptest::collection::vec((0u64..12, 0u8..60, 0i64..400, 0u64..3_000_000, 0u8..5, any::<bool>()), 1..120),
    ) {
        let mut whole = State::new(0..BUCKETS);
        let mut halves = [State::new(0..BUCKETS / 2), State::new(BUCKETS / 2..BUCKETS)];
        let mut now = 0;
        for (account, key, amount, gap, what, moves) in steps {
            now += gap;
            let operation = match what {
                0 => create(amount, amount % 50),
                1 => add(amount),
                2 => withdraw(amount),
                _ => speed(amount),
            };
            let command = match what {
                4 => Command::Deplete { account, version: 1 },
                _ => command(account, &format!("{key}"), operation),
            };
            let expected = whole.apply(&command, at(now));
            let owner = usize::from(halves[0].accounts_of(bucket_of(account)).is_none());
            let applied = halves[owner].apply(&command, at(now));
            prop_assert_eq!((applied.result, applied.events), (expected.result, expected.events));
            if moves {
                let bucket = bucket_of(account);
                let image = halves[owner].extract_bucket(bucket).unwrap();
                prop_assert_eq!(halves[1 - owner].absorb(&image), Ok(bucket));
                let again = halves[1 - owner].bucket_image(bucket).unwrap();
                prop_assert!(again.ends_with(&image[image.len().min(5 + 9 + 9)..]), "the content is the same");
            }
        }
        let [one, other] = &halves;
        prop_assert_eq!(totals(&[one, other], now), totals(&[&whole], now));
        let [mut one, other] = halves;
        for bucket in other.buckets() {
            one.absorb(&other.bucket_image(bucket).unwrap()).unwrap();
        }
        prop_assert_eq!(one.accounts_digest(), whole.accounts_digest());
        prop_assert_eq!(one.digest(), whole.digest());
    }
}
