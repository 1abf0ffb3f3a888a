//! Shards at their boundary, the [`Router`]: on the embedded journal where durability counts, on a journal in memory whose
//! answers can be lost where failures count.

mod astray;
mod durable;
mod fake;
mod hand_over;
mod history;
mod moving;
mod orders;
mod simulation;
mod spreading;
mod street;
mod take_over;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use super::{Config, Failure, Neighbours, Router, WallClock};
use crate::billing::domain::{Account, Key, Micros, Money, Operation, Velocity};
use crate::billing::journal::{self, Engine, Journal, Node, Timeouts};
use crate::billing::notifier;
use fake::Fake;

/// Some time in 2026.
const START: Micros = Micros::new(1_780_000_000_000_000);

/// Longer than anything takes; only a hang ends by it.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn key(text: &str) -> Key {
    Key::new(text.as_bytes()).unwrap()
}

pub fn create(balance: i64, velocity: i64) -> Operation {
    Operation::Create { balance: Money::new(balance), velocity: Velocity::new(velocity) }
}

pub fn add(amount: i64) -> Operation {
    Operation::AddMoney { amount: Money::new(amount) }
}

pub fn withdraw(amount: i64) -> Operation {
    Operation::Withdraw { amount: Money::new(amount) }
}

pub fn config(name: &str, shards: u32) -> Config {
    let node = Node { name: name.to_owned(), advertise: format!("{name}:8200") };
    Config::new(node, shards)
}

pub async fn journal(path: &Path, shards: u32) -> Journal {
    let engine = Engine::Embedded { path: path.to_owned() };
    Journal::open(&journal::Config { engine, shards, timeouts: Timeouts::default() }).await.unwrap()
}

/// A node on the embedded journal that owns every shard.
pub async fn node(path: &Path, shards: u32, wall: WallClock, notifier: notifier::Config) -> Router {
    let journal = journal(path, shards).await;
    let closing = CancellationToken::new();
    let router = Router::start(config("a", shards), journal, wall, &Registry::new(), notifier, None, closing)
        .await
        .unwrap();
    settled(&router).await;
    router
}

/// A node on a journal in memory, which does not know how to reach others.
pub async fn start(config: Config, fake: &Fake, wall: &WallClock, notifier: notifier::Config) -> Router {
    start_with(config, fake, wall, notifier, None).await
}

async fn start_with(
    config: Config,
    fake: &Fake,
    wall: &WallClock,
    notifier: notifier::Config,
    neighbours: Option<Arc<dyn Neighbours>>,
) -> Router {
    let closing = CancellationToken::new();
    Router::start_on(config, fake.clone(), wall.clone(), &Registry::new(), notifier, neighbours, closing)
        .await
        .unwrap()
}

pub async fn settled(router: &Router) {
    tokio::time::timeout(PATIENCE, router.settled()).await.expect("a shard has no owner");
}

/// Asks until there is an answer, as a client with a key may.
pub async fn insist(
    router: &Router,
    account: u64,
    name: &str,
    operation: Operation,
) -> Result<Account, Failure> {
    let asked = async {
        loop {
            match router.operate(account, key(name), operation).await {
                Err(Failure::Busy { .. } | Failure::Unknown) => {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
                result => return result,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("no answer")
}
