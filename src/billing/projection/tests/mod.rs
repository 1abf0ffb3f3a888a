//! Projectors on both engines, before an owner that is reduced to what they see of one.

mod owner;
mod random;
mod shaky;
mod steps;
mod trouble;

use std::time::Duration;

use prometheus::Registry;
use tokio::task::JoinHandle;

use super::*;
use crate::billing::domain::{AccountsDigest, Micros};
use crate::billing::journal::tests::{Bed, history_of};
use crate::billing::journal::{Acquisition, Entry, GROUPS, Line, Node};
use owner::Owner;
use shaky::{Fate, Shaky};

/// Longer than anything takes; only a hang ends by it.
const PATIENCE: Duration = Duration::from_secs(60);

const LEASE: Duration = Duration::from_secs(3600);

macro_rules! on_both_engines {
    ($($name:ident,)*) => {
        mod with_embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bed::embedded().await).await;
            })*
        }
        mod with_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bed::postgres().await).await;
            })*
        }
    };
}
use on_both_engines;

/// Small, so that chunks, queues and snapshots end within a test.
fn config() -> Config {
    let (linger, linger_few) = (Duration::from_millis(2), Duration::ZERO);
    Config { queue_lines: 60, chunk_lines: 16, linger, linger_few, ..Config::default() }
}

async fn acquire(journal: &Journal, shard: u32) -> u64 {
    let node = Node { name: "a".to_owned(), advertise: "a:1".to_owned() };
    match journal.acquire(shard, &node, LEASE).await.unwrap() {
        Acquisition::Acquired(lease) => lease.epoch,
        Acquisition::Held(lease) => panic!("{lease:?}"),
    }
}

struct Running {
    feed: Feed,
    task: JoinHandle<()>,
    registry: Registry,
}

/// A projector for this owner, which offers to it from now on.
fn start(owner: &mut Owner, ledger: &Shaky, config: Config) -> Running {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let office = Office {
        ledger: ledger.clone(),
        shard: owner.shard,
        epoch: owner.epoch,
        last: owner.seq,
        at: owner.state.last(),
        config,
        metrics,
    };
    let (projector, feed) = Projector::new(office);
    owner.feed = Some(feed.clone());
    Running { feed, task: tokio::spawn(projector.run()), registry }
}

impl Running {
    async fn reached(&self, seq: u64) {
        assert!(self.feed.reached(seq, PATIENCE).await, "the ledger does not get to {seq}");
    }

    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()), "it ended by itself");
    }

    fn count(&self, metric: &str) -> f64 {
        let families = self.registry.gather();
        let name = format!("forefront_billing_projection_{metric}");
        let family = families.iter().find(|family| family.name() == name).expect("there is such a metric");
        let metric = &family.get_metric()[0];
        metric.get_counter().get_value() + metric.get_gauge().get_value()
    }
}

async fn projected_accounts(journal: &Journal, shard: u32) -> [u8; 32] {
    let mut rows = journal.projected_accounts(shard, 0, GROUPS - 1).await.unwrap();
    rows.sort_by_key(|row| row.id);
    let mut digest = AccountsDigest::new();
    rows.iter().for_each(|row| digest.add(row));
    digest.finish()
}

/// Memory, journal and ledger have the same accounts.
async fn check_accounts(journal: &Journal, owner: &Owner) {
    let shard = owner.shard;
    let memory = owner.state.accounts_digest();
    assert_eq!(projected_accounts(journal, shard).await, memory, "shard {shard}: accounts");
    assert_eq!(owner.replayed(journal).await.accounts_digest(), memory, "shard {shard}: the journal");
}

/// And the ledger holds what the owner saw, each line once.
async fn check(journal: &Journal, owner: &Owner) {
    check_accounts(journal, owner).await;
    let shard = owner.shard;
    for account in owner.accounts() {
        let mut lines = owner.lines_of(account);
        lines.reverse();
        let found: Vec<Line> = all_lines(journal, shard, account).await;
        assert_eq!(found, lines, "shard {shard}: account {account}");
    }
}

/// Of one shard alone.
async fn all_lines(journal: &Journal, shard: u32, account: u64) -> Vec<Line> {
    let entries: Vec<Entry> = history_of(journal, shard, account, 7).await;
    entries.iter().filter(|entry| entry.shard == shard).map(|entry| entry.line).collect()
}
