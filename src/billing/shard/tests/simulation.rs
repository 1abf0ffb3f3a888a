//! Two nodes, one journal, and everything that can happen to them, by a seed. Time is the runtime's, paused, so an hour is a
//! second and a seed is a run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::super::{Failure, Router, WallClock};
use super::fake::{Fake, Faults, Mistake};
use super::{PATIENCE, START, add, config, create, key, settled, start, withdraw};
use crate::billing::domain::{Account, Command, Operation, Refusal, Reply, Velocity, bucket_of};
use crate::billing::journal::BucketMap;
use crate::billing::notifier;
use crate::clock;

const NODES: [&str; 2] = ["a", "b"];
const SHARDS: u32 = 2;
const CLIENTS: u64 = 8;
const OPERATIONS: usize = 60;
const SEEDS: u64 = 10;

type Nodes = Arc<[Mutex<Option<Router>>; 2]>;
/// Key, account, operation, and the first answer.
type Told = Arc<Mutex<Vec<(String, u64, Operation, Result<Account, Refusal>)>>>;

fn any_operation(dice: &mut fastrand::Rng) -> Operation {
    match dice.u32(0..10) {
        0..=1 => create(dice.i64(0..100_000), dice.i64(0..100_000)),
        2..=4 => add(dice.i64(1..10_000)),
        5..=8 => withdraw(dice.i64(1..10_000)),
        _ => Operation::UpdateSpendingVelocity { velocity: Velocity::new(dice.i64(0..100_000)) },
    }
}

/// Asks this node or that until somebody answers.
async fn client(nodes: Nodes, n: u64, mut dice: fastrand::Rng, told: Told) {
    for turn in 0..OPERATIONS {
        let (name, account, operation) = (format!("{n}-{turn}"), dice.u64(0..20), any_operation(&mut dice));
        let began = clock::now();
        loop {
            if clock::now() - began > PATIENCE {
                return;
            }
            let router = nodes[dice.usize(0..2)].lock().clone();
            let result = match router {
                Some(router) => router.operate(account, key(&name), operation).await,
                None => Err(Failure::Unknown),
            };
            match result {
                Ok(account) => break told.lock().push((name, account.id, operation, Ok(account))),
                Err(Failure::Refused(refusal)) => {
                    break told.lock().push((name, account, operation, Err(refusal)));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(dice.u64(1..300))).await,
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.u64(0..200))).await;
    }
}

async fn trouble(
    nodes: Nodes,
    links: [Fake; 2],
    wall: WallClock,
    mut dice: fastrand::Rng,
    count: Arc<Mutex<[u32; 5]>>,
) {
    loop {
        tokio::time::sleep(Duration::from_millis(dice.u64(100..3000))).await;
        let at = dice.usize(0..2);
        let kind = dice.usize(0..5);
        count.lock()[kind] += 1;
        match kind {
            0 => {
                let router = nodes[at].lock().take();
                if let Some(router) = router {
                    router.crash().await;
                }
                tokio::time::sleep(Duration::from_millis(dice.u64(0..6000))).await;
                let settings =
                    super::Config { snapshot_batches: 50, keep_batches: 3, ..config(NODES[at], SHARDS) };
                let router = start(settings, &links[at], &wall, notifier::Config::default()).await;
                *nodes[at].lock() = Some(router);
            }
            1 => {
                links[at].cut(true);
                tokio::time::sleep(Duration::from_millis(dice.u64(0..8000))).await;
                links[at].cut(false);
            }
            2 => {
                let router = nodes[at].lock().clone();
                if let Some(router) = router {
                    drop(router.hand_over(dice.u32(0..SHARDS), NODES[1 - at]).await);
                }
            }
            3 => {
                links[at].steals(true);
                tokio::time::sleep(Duration::from_millis(dice.u64(0..2000))).await;
                links[at].steals(false);
            }
            _ => {
                let [unavailable, lost_before, lost_after] =
                    [dice.u32(0..200), dice.u32(0..200), dice.u32(0..200)];
                links[at].set_faults(Some(Faults {
                    dice: dice.fork(),
                    unavailable,
                    lost_before,
                    lost_after,
                }));
            }
        }
    }
}

/// What was answered, and how much trouble there was; or what was answered and is not in the journal.
async fn run(seed: u64, mistake: Mistake) -> Result<(usize, [u32; 5]), String> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let (fake, wall) = (Fake::with(SHARDS, mistake), WallClock::since(START));
    let links = [fake.clone(), fake.another()];
    let nodes: Nodes = Arc::new([Mutex::new(None), Mutex::new(None)]);
    for at in 0..2 {
        let router = start(config(NODES[at], SHARDS), &links[at], &wall, notifier::Config::default()).await;
        *nodes[at].lock() = Some(router);
    }
    let (told, count) = (Told::default(), Arc::new(Mutex::new([0; 5])));
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(client(Arc::clone(&nodes), n, dice.fork(), Arc::clone(&told)));
    }
    let chaos = tokio::spawn(trouble(
        Arc::clone(&nodes),
        links.clone(),
        wall.clone(),
        dice.fork(),
        Arc::clone(&count),
    ));
    while clients.join_next().await.is_some() {}
    chaos.abort();
    drop(chaos.await);
    for link in &links {
        link.cut(false);
        link.steals(false);
        link.set_faults(None);
    }
    for node in nodes.iter() {
        let router = node.lock().take();
        if let Some(router) = router {
            if mistake == Mistake::None {
                settled(&router).await;
            }
            router.crash().await;
        }
    }
    check(&fake, &wall, &told.lock())?;
    let answers = told.lock().len();
    let count = *count.lock();
    Ok((answers, count))
}

/// Every answer is in the journal, once and as it was told.
fn check(
    fake: &Fake,
    wall: &WallClock,
    told: &[(String, u64, Operation, Result<Account, Refusal>)],
) -> Result<(), String> {
    let map = BucketMap::spread(SHARDS);
    let mut states: HashMap<u32, _> = (0..SHARDS).map(|shard| (shard, fake.replay(shard))).collect();
    for (name, account, operation, first) in told {
        let state = states.get_mut(&map.shards[usize::from(bucket_of(*account))]).unwrap();
        let command = Command::Operate { key: key(name), account: *account, operation: *operation };
        let applied = state.apply(&command, wall.now());
        if applied.changed {
            return Err(format!("{name} was answered and is not in the journal"));
        }
        let again = applied.result.map(|reply| match reply {
            Reply::Account(account) => account,
            other => panic!("{other:?}"),
        });
        if again != *first {
            return Err(format!("{name} was answered {first:?}, and the journal says {again:?}"));
        }
    }
    Ok(())
}

fn simulate(seed: u64, mistake: Mistake) -> Result<(usize, [u32; 5]), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(run(seed, mistake))
}

#[test]
fn whatever_happens_answers_are_in_the_journal() {
    let first = fastrand::u64(..1 << 40);
    for seed in first..first + SEEDS {
        let (answers, trouble) =
            simulate(seed, Mistake::None).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        assert_eq!(answers as u64, CLIENTS * OPERATIONS as u64, "seed {seed}: somebody was never answered");
        let [crashes, cuts, hand_overs, steals, losses] = trouble;
        println!(
            "seed {seed}: {answers} answers, {crashes} crashes, {cuts} cuts, {hand_overs} hand-overs, {steals} stolen \
             leases, {losses} changes of loss"
        );
    }
}

/// The simulation sees a journal that does not fence, and one that confirms what is not there.
#[test]
fn a_mistake_of_the_journal_is_seen() {
    let first = fastrand::u64(..1 << 40);
    for mistake in [Mistake::NoFence, Mistake::WrongConfirmation] {
        let seen = (first..first + 50).find_map(|seed| Some((seed, simulate(seed, mistake).err()?)));
        let (seed, what) = seen.unwrap_or_else(|| panic!("from seed {first}: {mistake:?} was not seen"));
        println!("{mistake:?} was seen with seed {seed}, after {} runs: {what}", seed - first + 1);
    }
}
