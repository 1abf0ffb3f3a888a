//! Operations on random accounts.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::engine::{self, Plan, Source};
use crate::wire::Template;

/// What comes in by one half goes out by the other.
const AMOUNT: u64 = 1000;

#[derive(clap::Args)]
pub struct Args {
    address: SocketAddr,
    /// Their ids are 1 to this
    #[arg(long)]
    accounts: u32,
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Requests under way at once, over all connections
    #[arg(long, default_value_t = 512)]
    outstanding: usize,
    /// Requests a second; default: as many as are answered
    #[arg(long)]
    rate: Option<f64>,
    /// These are not in the latencies
    #[arg(long, default_value_t = 0.0)]
    warm_up_seconds: f64,
    /// With the warm-up; default: until `operations` are done
    #[arg(long, required_unless_present = "operations")]
    seconds: Option<f64>,
    #[arg(long)]
    operations: Option<u64>,
    /// Of accounts; keys are others in each run
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

struct Operations {
    templates: [Template; 2],
    accounts: u32,
    random: fastrand::Rng,
    key: u64,
    left: u64,
}

pub fn run(args: &Args) -> anyhow::Result<Value> {
    let plan = Plan {
        address: args.address,
        connections: args.connections.min(args.outstanding),
        outstanding: args.outstanding,
        rate: args.rate,
        warm_up: Duration::try_from_secs_f64(args.warm_up_seconds)?,
        duration: args.seconds.map(Duration::try_from_secs_f64).transpose()?,
    };
    let mut operations = Operations {
        templates: ["add_money", "withdraw"].map(Template::operation),
        accounts: args.accounts.max(1),
        random: fastrand::Rng::with_seed(args.seed),
        key: first_key(),
        left: args.operations.unwrap_or(u64::MAX),
    };
    engine::run(&plan, &mut operations)
}

/// Keys count up from here: no two runs have one in common.
pub fn first_key() -> u64 {
    fastrand::u64(..) & !0xffff_ffff
}

impl Source for Operations {
    fn next(&mut self, out: &mut Vec<u8>, sync: u32) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        self.key = self.key.wrapping_add(1);
        let account = self.random.u32(1..=self.accounts);
        let template = &self.templates[(self.key & 1) as usize];
        template.append(out, sync, account, AMOUNT, self.key);
        true
    }
}
