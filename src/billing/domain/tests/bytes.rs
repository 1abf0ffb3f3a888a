//! What is written can be read, to the bit; what was not written so is an error and nothing worse.

use proptest::prelude::*;

use super::*;

fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(|(value, shift)| value >> shift)
}

fn signed() -> impl Strategy<Value = i64> {
    (any::<i64>(), 0u32..64).prop_map(|(value, shift)| value >> shift)
}

fn time() -> impl Strategy<Value = Micros> {
    number().prop_map(Micros::new)
}

fn any_command() -> impl Strategy<Value = Command> {
    let operation = prop_oneof![
        (signed(), signed()).prop_map(|(balance, per_second)| create(balance, per_second)),
        signed().prop_map(add),
        signed().prop_map(withdraw),
        signed().prop_map(speed),
    ];
    let key =
        proptest::collection::vec(any::<u8>(), 1..=Key::LENGTH_MAX).prop_map(|key| Key::new(&key).unwrap());
    prop_oneof![
        4 => (key, number(), operation)
            .prop_map(|(key, account, operation)| Command::Operate { key, account, operation }),
        1 => (number(), any::<u32>()).prop_map(|(account, version)| Command::Deplete { account, version }),
        1 => (number(), any::<u32>(), time())
            .prop_map(|(account, version, at)| Command::Delivered { account, version, at }),
        1 => time().prop_map(|before| Command::Forget { before }),
        1 => (any::<u16>(), any::<u32>(), number())
            .prop_map(|(bucket, to, generation)| Command::Release { bucket, to, generation }),
        1 => (number(), proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(generation, image)| Command::Adopt { generation, image: image.into() }),
        1 => (any::<u16>(), number()).prop_map(|(bucket, generation)| Command::Sent { bucket, generation }),
        1 => "[a-z0-9é.-]{1,32}".prop_map(|node| Command::Assign { node: node.into() }),
    ]
}

fn any_batch() -> impl Strategy<Value = Batch> {
    (time(), proptest::collection::vec(any_command(), 0..30))
        .prop_map(|(at, commands)| Batch { at, commands })
}

fn encoded(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    batch.encode(&mut bytes);
    bytes
}

/// A state in which every stage, refusal and kind of key occurs.
fn some_state() -> State {
    let mut shard = Shard::new();
    for id in 0..36 {
        shard.operate(id, create(id as i64 * 10, id as i64 % 7), 0);
    }
    for id in 0..36 {
        let operation =
            [add(0), withdraw(3), add(1_000), speed(-1), speed(i64::MAX), add(i64::MAX)][id as usize % 6];
        shard.operate(id, operation, SECOND + id * 777);
        shard.operate(id + 30, create(7, 7), 2 * SECOND);
    }
    for account in 0..36 {
        shard.run(Command::Deplete { account, version: 1 }, 5_000 * SECOND);
    }
    for account in 0..12 {
        shard.run(Command::Delivered { account, version: 1, at: at(5_001 * SECOND) }, 5_002 * SECOND);
    }
    shard.operate(u64::MAX, create(1, 0), 5_003 * SECOND);
    shard.operate(40_000, add(1), 5_003 * SECOND);
    shard.run(Command::Forget { before: at(1_000) }, 5_004 * SECOND);
    assert!(shard.state.orders().count() > 5);
    for id in [1, 13, 20] {
        shard.run(Command::Release { bucket: bucket_of(id), to: 7, generation: 2 }, 5_005 * SECOND);
    }
    shard.run(Command::Assign { node: "a-node".into() }, 5_006 * SECOND);
    shard.operate(2, add(1), 5_007 * SECOND);
    assert_eq!(shard.state.outgoing().map(Outgoing::accounts_len).sum::<usize>(), 3);
    shard.state
}

/// What comes as an image is adopted whole or not at all.
fn adopts(bytes: &[u8]) {
    let mut state = State::new([]);
    let applied = state.apply(&Command::Adopt { generation: 1, image: bytes.into() }, Micros::ZERO);
    assert_eq!(applied.changed, state.buckets().count() == 1);
    assert!(applied.changed || applied.result == Err(Refusal::BadBucket));
}

/// The bytes of a batch as they are in journals since the first version. If this fails, old journals cannot be read.
#[test]
fn the_format_is_this() {
    let commands = vec![
        command(300, "k1", create(5, 64)),
        command(1, "k", withdraw(-1)),
        Command::Delivered { account: 2, version: 3, at: at(128) },
        Command::Release { bucket: 999, to: 1, generation: 2 },
        Command::Adopt { generation: 3, image: [9, 9].into() },
        Command::Sent { bucket: 4, generation: 5 },
        Command::Assign { node: "b".into() },
    ];
    let bytes = encoded(&Batch { at: at(1_000_000), commands });
    assert_eq!(
        hex::encode(bytes),
        concat!(
            "01",
            "c0843d",
            "07",
            "01026b31ac020a8001",
            "03016b0101",
            "0602038001",
            "08e7070102",
            "0903020909",
            "0a0405",
            "0b0162"
        )
    );
    assert_eq!(Batch::decode(&[]), Err(CodecError::Truncated));
    assert_eq!(Batch::decode(&[2, 0, 0]), Err(CodecError::Version(2)));
    assert_eq!(Batch::decode(&[1, 0, 0, 0]), Err(CodecError::Trailing(1)));
    assert_eq!(Batch::decode(&[1, 0x80, 0, 0]), Err(CodecError::Malformed("number")), "two bytes for zero");
    let beyond_64_bits = [1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0];
    assert_eq!(Batch::decode(&beyond_64_bits), Err(CodecError::Malformed("number")));
    let claims_much =
        [1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 9, 0xff, 0xff, 0xff, 0xff, 0xf];
    assert_eq!(Batch::decode(&claims_much), Err(CodecError::Truncated));
}

#[test]
fn a_state_survives_its_bytes_and_no_cut_or_flip_does_harm() {
    let state = some_state();
    let bytes = state.encode();
    let back = State::decode(&bytes).unwrap();
    assert_eq!(back.encode(), bytes);
    assert_eq!(back.digest(), state.digest());
    assert_eq!(back.accounts_digest(), state.accounts_digest());
    assert_eq!(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes).as_ref(), state.digest());
    for cut in 0..bytes.len() {
        assert!(State::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let mut flipped = bytes.clone();
    for place in 0..bytes.len() {
        for bit in [0x01, 0x40, 0x80] {
            flipped[place] ^= bit;
            // Without a checksum a flip may give another state; then that is what it encodes to.
            if let Ok(other) = State::decode(&flipped) {
                assert_eq!(other.encode(), flipped, "two encodings of one state, at {place}");
            }
            flipped[place] ^= bit;
        }
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(State::decode(&longer).err(), Some(CodecError::Trailing(1)));
}

/// What a projection does with its rows.
#[test]
fn the_digest_of_accounts_goes_by_ids() {
    let state = some_state();
    let mut digest = AccountsDigest::new();
    for account in state.page(None, usize::MAX, Micros::ZERO) {
        digest.add(&state.row(account.id).unwrap());
    }
    assert_eq!(digest.finish(), state.accounts_digest());
}

#[test]
fn equal_states_are_equal_bytes_whatever_their_history() {
    let mut orders = [Shard::new(), Shard::new()];
    let ids: Vec<u64> = (0..500).collect();
    for id in &ids {
        orders[0].run(command(*id, "same", create(5, 1)), 10);
    }
    for id in ids.iter().rev() {
        orders[1].run(command(*id, "same", create(5, 1)), 10);
    }
    assert_eq!(orders[0].state.digest(), orders[1].state.digest());
    orders[1].operate(3, add(1), 10);
    assert_ne!(orders[0].state.digest(), orders[1].state.digest());
}

proptest! {
    #[test]
    fn batches_survive_their_bytes(batch in any_batch()) {
        prop_assert_eq!(Batch::decode(&encoded(&batch)), Ok(batch));
    }

    #[test]
    fn a_cut_batch_is_an_error(batch in any_batch(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&batch);
        prop_assert!(Batch::decode(&bytes[..cut.index(bytes.len())]).is_err());
    }

    /// What can be read at all is the one encoding of what was read.
    #[test]
    fn random_bytes_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0usize..3) {
        adopts(&bytes);
        let _ = (Batch::decode(&bytes), State::decode(&bytes));
        // Past the first bytes, which luck would not find.
        let begins: &[u8] = [b"\x01".as_slice(), b"ffbs\x01", b"ffbb\x01"][kind];
        bytes.splice(0..0, begins.iter().copied());
        if let Ok(batch) = Batch::decode(&bytes) {
            prop_assert_eq!(encoded(&batch), bytes.clone());
        }
        if let Ok(state) = State::decode(&bytes) {
            prop_assert_eq!(state.encode(), bytes.clone());
        }
        adopts(&bytes);
    }

    #[test]
    fn a_damaged_batch_does_no_harm(batch in any_batch(), place in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = encoded(&batch);
        let place = place.index(bytes.len());
        bytes[place] = with;
        if let Ok(other) = Batch::decode(&bytes) {
            prop_assert_eq!(encoded(&other), bytes);
            State::new(0..BUCKETS).replay(&other);
        }
    }
}
