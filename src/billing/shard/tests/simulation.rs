//! Two nodes, one journal, three shards, one of which begins empty, buckets that go to and fro, and everything that can happen
//! to them, by a seed. Time is the runtime's, paused, so an hour is a second and a seed is a run.
//!
//! `FOREFRONT_SIMULATION_SEEDS` is how many seeds are run; `FOREFRONT_SIMULATION_SEED` the first of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::super::{Failure, Router, WallClock};
use super::fake::{Fake, Faults, Mistake};
use super::street::{self, Street, Trouble};
use super::{PATIENCE, START, add, config, create, key, withdraw};
use crate::billing::domain::{
    Account, BUCKETS, Command, EventKind, Operation, Refusal, Reply, State, Velocity, bucket_of,
};
use crate::billing::journal::BucketMap;
use crate::billing::notifier;
use crate::clock;

const NODES: [&str; 2] = ["a", "b"];
const SHARDS: u32 = 3;
const CLIENTS: u64 = 8;
const MOVERS: usize = 3;
const ACCOUNTS: u64 = 20;
const OPERATIONS: usize = 80;
const SEEDS: u64 = 10;

type Nodes = Arc<[Mutex<Option<Router>>; 2]>;

struct Said {
    key: String,
    account: u64,
    operation: Operation,
    first: Result<Account, Refusal>,
}

/// What happened in a run.
#[derive(Clone, Copy, Default)]
struct Count {
    answers: usize,
    moves: u32,
    crashes: u32,
    cuts: u32,
    hand_overs: u32,
    steals: u32,
    losses: u32,
    street: street::Count,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { answers, moves, crashes, cuts, hand_overs, steals, losses, street } = self;
        let street::Count { parcels, lost, again } = street;
        write!(
            f,
            "{answers} answers, {moves} moves ({parcels} parcels, {lost} lost, {again} twice), {crashes} crashes, \
             {cuts} cuts, {hand_overs} hand-overs, {steals} stolen leases, {losses} changes of loss"
        )
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        let Count { answers, moves, crashes, cuts, hand_overs, steals, losses, street } = other;
        self.answers += answers;
        self.moves += moves;
        self.crashes += crashes;
        self.cuts += cuts;
        self.hand_overs += hand_overs;
        self.steals += steals;
        self.losses += losses;
        self.street.parcels += street.parcels;
        self.street.lost += street.lost;
        self.street.again += street.again;
    }
}

/// What a run is made with, which everybody in it has.
#[derive(Clone)]
struct World {
    fake: Fake,
    links: [Fake; 2],
    street: Street,
    wall: WallClock,
    nodes: Nodes,
    said: Arc<Mutex<Vec<Said>>>,
    count: Arc<Mutex<Count>>,
}

/// What must be seen, if it is there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Planted {
    Nothing,
    OfJournal(Mistake),
    /// An image that comes once more is taken for a new one.
    OldImages,
}

fn any_operation(dice: &mut fastrand::Rng) -> Operation {
    match dice.u32(0..10) {
        0..=1 => create(dice.i64(0..100_000), dice.i64(0..100_000)),
        2..=4 => add(dice.i64(1..10_000)),
        5..=8 => withdraw(dice.i64(1..10_000)),
        _ => Operation::UpdateSpendingVelocity { velocity: Velocity::new(dice.i64(0..100_000)) },
    }
}

impl World {
    fn new(planted: Planted, dice: &mut fastrand::Rng) -> World {
        let mistake = if let Planted::OfJournal(mistake) = planted { mistake } else { Mistake::None };
        let fake = Fake::with(SHARDS, mistake);
        fake.set_map(BucketMap::spread(SHARDS - 1));
        let street = Street::new();
        let forges = (planted == Planted::OldImages).then(|| fake.clone());
        let dice = dice.fork();
        street.set_trouble(Some(Trouble { dice, lost_before: 100, lost_after: 100, again: 200, forges }));
        let links = [fake.another(), fake.another()];
        let (nodes, said, count) =
            (Arc::new([Mutex::new(None), Mutex::new(None)]), Arc::default(), Arc::default());
        World { fake, links, street, wall: WallClock::since(START), nodes, said, count }
    }

    async fn start(&self, at: usize) {
        let settings = super::Config {
            snapshot_batches: 50,
            keep_batches: 3,
            spread: Duration::from_secs(1),
            assigned_for: Duration::from_secs(3),
            ..config(NODES[at], SHARDS)
        };
        let none = notifier::Config::default();
        let router = self.street.start(settings, &self.links[at], &self.wall, none).await;
        *self.nodes[at].lock() = Some(router);
    }

    async fn crash(&self, at: usize) {
        let router = self.nodes[at].lock().take();
        self.street.closed(NODES[at]);
        if let Some(router) = router {
            router.crash().await;
        }
    }

    fn any_node(&self, dice: &mut fastrand::Rng) -> Option<Router> {
        self.nodes[dice.usize(0..2)].lock().clone()
    }

    /// Asks this node or that until somebody answers.
    async fn client(self, n: u64, mut dice: fastrand::Rng) {
        for turn in 0..OPERATIONS {
            let (name, account) = (format!("{n}-{turn}"), dice.u64(0..ACCOUNTS));
            let operation = any_operation(&mut dice);
            let began = clock::now();
            let first = loop {
                if clock::now() - began > PATIENCE {
                    return;
                }
                let result = match self.any_node(&mut dice) {
                    Some(router) => router.operate(account, key(&name), operation).await,
                    None => Err(Failure::Unknown),
                };
                match result {
                    Ok(account) => break Ok(account),
                    Err(Failure::Refused(refusal)) => break Err(refusal),
                    Err(_) => tokio::time::sleep(Duration::from_millis(dice.u64(1..300))).await,
                }
            };
            self.said.lock().push(Said { key: name, account, operation, first });
            tokio::time::sleep(Duration::from_millis(dice.u64(0..200))).await;
        }
    }

    /// Moves the buckets that matter, without a break.
    async fn mover(self, mut dice: fastrand::Rng) {
        loop {
            let (bucket, to) = (bucket_of(dice.u64(0..ACCOUNTS)), dice.u32(0..SHARDS));
            if let Some(router) = self.any_node(&mut dice)
                && router.move_bucket(bucket, to).await.is_ok()
            {
                self.count.lock().moves += 1;
            }
            tokio::time::sleep(Duration::from_millis(dice.u64(0..100))).await;
        }
    }

    async fn trouble(self, mut dice: fastrand::Rng) {
        loop {
            tokio::time::sleep(Duration::from_millis(dice.u64(50..1500))).await;
            let at = dice.usize(0..2);
            match dice.usize(0..5) {
                0 => {
                    self.count.lock().crashes += 1;
                    self.crash(at).await;
                    tokio::time::sleep(Duration::from_millis(dice.u64(0..6000))).await;
                    self.start(at).await;
                }
                1 => {
                    self.count.lock().cuts += 1;
                    self.links[at].cut(true);
                    tokio::time::sleep(Duration::from_millis(dice.u64(0..8000))).await;
                    self.links[at].cut(false);
                }
                2 => {
                    self.count.lock().hand_overs += 1;
                    let router = self.nodes[at].lock().clone();
                    if let Some(router) = router {
                        let (shard, to) = (dice.u32(0..SHARDS), NODES[1 - at]);
                        match dice.bool() {
                            true => drop(router.hand_over(shard, to).await),
                            false => drop(router.assign(shard, to).await),
                        }
                    }
                }
                3 => {
                    self.count.lock().steals += 1;
                    self.links[at].steals(true);
                    tokio::time::sleep(Duration::from_millis(dice.u64(0..2000))).await;
                    self.links[at].steals(false);
                }
                _ => {
                    self.count.lock().losses += 1;
                    let [unavailable, lost_before, lost_after] =
                        [dice.u32(0..200), dice.u32(0..200), dice.u32(0..200)];
                    self.links[at].set_faults(Some(Faults {
                        dice: dice.fork(),
                        unavailable,
                        lost_before,
                        lost_after,
                    }));
                }
            }
        }
    }

    /// Everything works again; what is on its way arrives, and what has run dry is journaled.
    async fn heals(&self) -> Result<(), String> {
        for link in &self.links {
            link.cut(false);
            link.steals(false);
            link.set_faults(None);
        }
        for at in 0..2 {
            if self.nodes[at].lock().is_none() {
                self.start(at).await;
            }
        }
        let arrived = async {
            while (0..SHARDS).any(|shard| self.fake.replay(shard).outgoing().count() > 0) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            while (0..SHARDS).any(|shard| self.fake.ledger(shard).1 < self.fake.archive(shard).len() as u64) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // What still comes twice has come.
            tokio::time::sleep(Duration::from_secs(15)).await;
            for node in self.nodes.iter() {
                let router = node.lock().clone();
                router.unwrap().settled().await;
            }
        };
        let late = |_| {
            "a bucket is on its way for ever, the ledger is late for ever, or a shard has no owner".to_owned()
        };
        tokio::time::timeout(2 * PATIENCE, arrived).await.map_err(late)
    }
}

/// What was answered, and how much trouble there was; or what is wrong.
async fn run(seed: u64, planted: Planted) -> Result<Count, String> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let world = World::new(planted, &mut dice);
    for at in 0..2 {
        world.start(at).await;
    }
    // Each has something.
    for shard in 0..SHARDS {
        let [a, b] = [0, 1].map(|at| world.nodes[at].lock().clone().unwrap());
        a.settled().await;
        if shard % 2 == 1 {
            drop(a.hand_over(shard, NODES[1]).await);
            b.settled().await;
        }
    }
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(world.clone().client(n, dice.fork()));
    }
    let mut others = JoinSet::new();
    others.spawn(world.clone().trouble(dice.fork()));
    for _ in 0..MOVERS {
        others.spawn(world.clone().mover(dice.fork()));
    }
    while clients.join_next().await.is_some() {}
    others.shutdown().await;
    let healed = world.heals().await;
    for at in 0..2 {
        world.crash(at).await;
    }
    check(&world)?;
    healed?;
    let mut count = *world.count.lock();
    count.answers = world.said.lock().len();
    count.street = world.street.count();
    Ok(count)
}

/// Every answer is in the journal, once and as it was told, all money is accounted for, and every bucket is in one place.
fn check(world: &World) -> Result<(), String> {
    let World { fake, wall, .. } = world;
    let mut states: Vec<State> = (0..SHARDS).map(|shard| fake.replay(shard)).collect();
    check_ledger(world, &states)?;
    for Said { key: name, account, operation, first } in world.said.lock().iter() {
        let holds = |state: &&mut State| state.accounts_of(bucket_of(*account)).is_some();
        let Some(state) = states.iter_mut().find(holds) else {
            return Err(format!("{name} was answered, and its bucket is nowhere"));
        };
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
    let map = fake.map();
    for (bucket, shard) in (0..BUCKETS).zip(map.shards) {
        let holders = (0..).zip(&states).filter(|(_, state)| state.accounts_of(bucket).is_some());
        let holders: Vec<u32> = holders.map(|(shard, _)| shard).collect();
        if holders != [shard] {
            return Err(format!("bucket {bucket} is held by {holders:?}, the map says {shard}"));
        }
    }
    let mut timers = states.iter().flat_map(State::timers);
    match timers.find(|timer| wall.now().since(timer.at) > 2_000_000) {
        Some(late) => Err(format!("{late:?} is past and was not journaled")),
        None => Ok(()),
    }
}

/// Everything that was ever durable once more, from the beginning.
fn check_ledger(world: &World, states: &[State]) -> Result<(), String> {
    let mut done: BTreeSet<(u64, Vec<u8>)> = BTreeSet::new();
    let mut depleted: BTreeSet<(u64, u32)> = BTreeSet::new();
    let mut sums: BTreeMap<u64, i128> = BTreeMap::new();
    for (shard, state) in (0..).zip(states) {
        let (ledger, projected) = world.fake.ledger(shard);
        let derived = world.fake.derived(shard);
        if !ledger.iter().eq(derived.iter().take_while(|line| line.seq <= projected)) {
            return Err(format!("shard {shard}: the ledger at {projected} is not what the journal gives"));
        }
        let mut replayed = State::new([]);
        for batch in world.fake.archive(shard) {
            for command in &batch.commands {
                let applied = replayed.apply(command, batch.at);
                if let Command::Operate { key, account, .. } = command
                    && applied.changed
                    && !done.insert((*account, key.as_bytes().to_vec()))
                {
                    return Err(format!("{key:?} was done twice on account {account}"));
                }
                for event in applied.events.iter() {
                    let moved = i128::from(event.moved()) - i128::from(event.charged.get());
                    *sums.entry(event.after.id).or_default() += moved;
                    if event.kind == EventKind::Depleted
                        && !depleted.insert((event.after.id, event.after.version))
                    {
                        return Err(format!("depleted twice: {event:?}"));
                    }
                }
            }
        }
        if replayed.digest() != state.digest() {
            return Err(format!(
                "shard {shard}: the whole journal is not what its snapshot and the rest are"
            ));
        }
    }
    for (account, sum) in sums {
        let row = states.iter().find_map(|state| state.row(account));
        let balance = row.map(|row| i128::from(row.balance().get()));
        if balance != Some(sum) {
            return Err(format!("account {account} has {balance:?}, the ledger says {sum}"));
        }
    }
    Ok(())
}

fn simulate(seed: u64, planted: Planted) -> Result<Count, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    // What the nodes themselves throw dice for.
    fastrand::seed(seed);
    runtime.block_on(run(seed, planted))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

#[test]
fn whatever_happens_answers_are_in_the_journal() {
    let first = number("FOREFRONT_SIMULATION_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
    let seeds = number("FOREFRONT_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let mut sum = Count::default();
    for seed in first..first + seeds {
        let count = simulate(seed, Planted::Nothing).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        println!("seed {seed}: {count}");
        let all = CLIENTS * OPERATIONS as u64;
        assert_eq!(count.answers as u64, all, "seed {seed}: somebody was never answered");
        sum += count;
    }
    println!("{seeds} seeds from {first}: {sum}");
    assert!(sum.moves as u64 > 10 * seeds, "few moves came about, which proves little");
}

/// The simulation sees a journal that does not fence, one that confirms what is not there, and shards that do not look at
/// the generation of what comes.
#[test]
fn a_mistake_is_seen() {
    let first = fastrand::u64(..1 << 40);
    let mistakes = [
        Planted::OfJournal(Mistake::NoFence),
        Planted::OfJournal(Mistake::WrongConfirmation),
        Planted::OldImages,
    ];
    for planted in mistakes {
        let seen = (first..first + 50).find_map(|seed| Some((seed, simulate(seed, planted).err()?)));
        let (seed, what) = seen.unwrap_or_else(|| panic!("from seed {first}: {planted:?} was not seen"));
        println!("{planted:?} was seen with seed {seed}, after {} runs: {what}", seed - first + 1);
    }
}
