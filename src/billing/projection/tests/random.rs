//! Replay = memory = ledger, after whatever happened, also to buckets between shards.

use super::*;
use crate::billing::domain::{Command, bucket_of};

on_both_engines! {
    memory_journal_and_ledger_agree_after_anything,
}

/// A bucket goes from one owner to the other, as its image.
async fn move_bucket(from: &mut Owner, to: &mut Owner, bucket: u16) {
    let Some(generation) = from.state.generation(bucket).map(|generation| generation + 1) else { return };
    from.turn(vec![Command::Release { bucket, to: to.shard, generation }]).await;
    let image = from.state.outgoing_of(bucket).unwrap().image().into();
    to.not_before(from);
    to.turn(vec![Command::Adopt { generation, image }]).await;
    from.turn(vec![Command::Sent { bucket, generation }]).await;
}

async fn memory_journal_and_ledger_agree_after_anything(bed: Bed) {
    let journal = bed.node().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut owners =
        [Owner::new(&journal, 0, 0..500, seed).await, Owner::new(&journal, 1, 500..1000, seed ^ 1).await];
    let shaky = |dice: &mut fastrand::Rng| {
        let (ledger, mut dice) = (Shaky::new(&journal), dice.fork());
        ledger.plan(move |_, _| match dice.u32(0..40) {
            0 => Fate::Unavailable,
            1 => Fate::Lost,
            _ => Fate::Fine,
        });
        ledger
    };
    let mut running: Vec<Running> =
        owners.iter_mut().map(|owner| start(owner, &shaky(&mut dice), config())).collect();
    // In which shards each account was, and what happened to it there, in the order of time.
    let mut past: std::collections::BTreeMap<u64, Vec<(u32, Line)>> = Default::default();
    let mut seen = [0, 0];
    let mut moves = 0;
    for _ in 0..60 {
        for (at, owner) in owners.iter_mut().enumerate() {
            owner.work(dice.usize(0..6)).await;
            for line in owner.told_since(&mut seen[at]) {
                past.entry(line.after.id).or_default().push((owner.shard, line));
            }
        }
        let at = dice.usize(0..2);
        match dice.u32(0..6) {
            0 => {
                owners[at].take_over().await;
                running[at] = start(&mut owners[at], &shaky(&mut dice), config());
            }
            1 => owners[at].snapshot().await,
            2..=4 => {
                let bucket = bucket_of(dice.u64(0..15).wrapping_sub(2));
                let [one, other] = &mut owners;
                let (from, to) = if at == 0 { (one, other) } else { (other, one) };
                moves += usize::from(from.state.accounts_of(bucket).is_some_and(|rows| !rows.is_empty()));
                move_bucket(from, to, bucket).await;
            }
            _ => {}
        }
    }
    for (running, owner) in running.iter().zip(&owners) {
        running.reached(owner.seq).await;
        check_accounts(&journal, owner).await;
    }
    let lines: usize = past.values().map(Vec::len).sum();
    println!("{lines} lines, {moves} moves");
    assert!(moves > 2 && lines > 150, "{moves} moves, {lines} lines");
    for (account, mut lines) in past {
        let Some(owner) = owners.iter().find(|owner| owner.state.row(account).is_some()) else { continue };
        lines.reverse();
        let found = history_of(&journal, owner.shard, account, 7).await;
        let found: Vec<(u32, Line)> = found.iter().map(|entry| (entry.shard, entry.line)).collect();
        assert_eq!(found, lines, "account {account}");
    }
}
