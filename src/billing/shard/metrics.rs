//! What is counted of shards. Every counter is resolved once.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::Failure;
use crate::billing::domain::{Operation, Refusal};

pub struct Metrics {
    /// By procedure, then by result.
    operations: [[IntCounter; RESULTS.len()]; PROCEDURES.len()],
    pub batch_commands: Histogram,
    pub commit: Histogram,
    pub depletions: IntCounter,
    pub leases_acquired: IntCounter,
    pub leases_lost: IntCounter,
    pub leases_released: IntCounter,
    pub buckets_released: IntCounter,
    pub buckets_adopted: IntCounter,
    pub buckets_sent: IntCounter,
    pub retries_append: IntCounter,
    pub retries_confirm: IntCounter,
    pub retries_renew: IntCounter,
    pub retries_follow: IntCounter,
    queue: IntGaugeVec,
    accounts: IntGaugeVec,
    owned: IntGaugeVec,
    outgoing: IntGaugeVec,
    astray: IntGaugeVec,
    lag: IntGaugeVec,
}

/// Of one shard.
#[derive(Clone)]
pub struct Gauges {
    pub queue: IntGauge,
    pub accounts: IntGauge,
    pub owned: IntGauge,
    pub outgoing: IntGauge,
    pub astray: IntGauge,
    pub lag: IntGauge,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Procedure {
    Create,
    AddMoney,
    Withdraw,
    UpdateSpendingVelocity,
    Get,
    List,
    History,
}

const PROCEDURES: [&str; 7] =
    ["create", "add_money", "withdraw", "update_spending_velocity", "get", "list", "history"];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    Ok,
    Replayed,
    Refused,
    Conflict,
    Busy,
    Elsewhere,
    Unknown,
}

const RESULTS: [&str; 7] = ["ok", "replayed", "refused", "conflict", "busy", "elsewhere", "unknown"];

/// Upper bounds in seconds: a local disk, a replicated commit, trouble.
const COMMIT_BUCKETS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
const COMMANDS_BUCKETS: [f64; 9] = [1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

impl Metrics {
    /// Fails if a metric of the same name is registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let operations =
            Opts::new("forefront_billing_operations_total", "Operations by procedure and result");
        let operations = register(registry, IntCounterVec::new(operations, &["procedure", "result"])?)?;
        let leases = Opts::new("forefront_billing_lease_changes_total", "Leases by what became of them");
        let leases = register(registry, IntCounterVec::new(leases, &["change"])?)?;
        let buckets =
            Opts::new("forefront_billing_bucket_moves_total", "Buckets by what became of them here");
        let buckets = register(registry, IntCounterVec::new(buckets, &["change"])?)?;
        let retries = Opts::new("forefront_billing_journal_retries_total", "Calls of the journal made again");
        let retries = register(registry, IntCounterVec::new(retries, &["call"])?)?;
        let commands = HistogramOpts::new("forefront_billing_batch_commands", "Commands journaled together");
        let commit = HistogramOpts::new("forefront_billing_commit_seconds", "Until a batch was durable");
        let depletions = IntCounter::new(
            "forefront_billing_depletions_total",
            "Accounts that ran dry, once it was durable",
        )?;
        let gauge = |thing: &str, help: &str| {
            let gauge = IntGaugeVec::new(Opts::new(format!("forefront_billing_{thing}"), help), &["shard"])?;
            register(registry, gauge)
        };
        Ok(Metrics {
            operations: PROCEDURES
                .map(|procedure| RESULTS.map(|result| operations.with_label_values(&[procedure, result]))),
            batch_commands: register(
                registry,
                Histogram::with_opts(commands.buckets(COMMANDS_BUCKETS.to_vec()))?,
            )?,
            commit: register(registry, Histogram::with_opts(commit.buckets(COMMIT_BUCKETS.to_vec()))?)?,
            depletions: register(registry, depletions)?,
            leases_acquired: leases.with_label_values(&["acquired"]),
            leases_lost: leases.with_label_values(&["lost"]),
            leases_released: leases.with_label_values(&["released"]),
            buckets_released: buckets.with_label_values(&["released"]),
            buckets_adopted: buckets.with_label_values(&["adopted"]),
            buckets_sent: buckets.with_label_values(&["sent"]),
            retries_append: retries.with_label_values(&["append"]),
            retries_confirm: retries.with_label_values(&["confirm"]),
            retries_renew: retries.with_label_values(&["renew"]),
            retries_follow: retries.with_label_values(&["follow"]),
            queue: gauge("queue_commands", "Commands that wait for the owner of a shard")?,
            accounts: gauge("accounts", "Accounts of a shard that this node owns")?,
            owned: gauge("shard_owned", "1 if this node owns the shard")?,
            lag: gauge(
                "journal_lag_batches",
                "Batches of a shard of another node that this one has yet to follow",
            )?,
            astray: gauge(
                "buckets_astray",
                "Buckets that a shard has against the map, or lacks, for longer than a move takes",
            )?,
            outgoing: gauge(
                "buckets_outgoing",
                "Buckets that left a shard of this node and may not have arrived",
            )?,
        })
    }

    pub fn operation(&self, procedure: Procedure, outcome: Outcome) {
        self.operations[procedure as usize][outcome as usize].inc();
    }

    pub fn of_shard(&self, shard: u32) -> Gauges {
        let shard = shard.to_string();
        Gauges {
            queue: self.queue.with_label_values(&[&shard]),
            accounts: self.accounts.with_label_values(&[&shard]),
            owned: self.owned.with_label_values(&[&shard]),
            astray: self.astray.with_label_values(&[&shard]),
            outgoing: self.outgoing.with_label_values(&[&shard]),
            lag: self.lag.with_label_values(&[&shard]),
        }
    }
}

impl Procedure {
    pub fn of(operation: &Operation) -> Procedure {
        match operation {
            Operation::Create { .. } => Procedure::Create,
            Operation::AddMoney { .. } => Procedure::AddMoney,
            Operation::Withdraw { .. } => Procedure::Withdraw,
            Operation::UpdateSpendingVelocity { .. } => Procedure::UpdateSpendingVelocity,
        }
    }
}

impl Outcome {
    pub fn of<T>(result: &Result<T, Failure>) -> Outcome {
        match result {
            Ok(_) => Outcome::Ok,
            Err(Failure::Refused(Refusal::Conflict)) => Outcome::Conflict,
            Err(Failure::Refused(_) | Failure::Unmovable(_)) => Outcome::Refused,
            Err(Failure::Busy { .. }) => Outcome::Busy,
            Err(Failure::Elsewhere { .. }) => Outcome::Elsewhere,
            Err(Failure::Unknown) => Outcome::Unknown,
        }
    }
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
