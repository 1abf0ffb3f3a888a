//! New accounts.

use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;

use crate::engine::{self, Plan, Source};
use crate::load::first_key;
use crate::wire::Template;

#[derive(clap::Args)]
pub struct Args {
    address: SocketAddr,
    /// How the server is asked
    #[arg(long)]
    by: By,
    #[arg(long, default_value_t = 1)]
    first: u32,
    #[arg(long)]
    count: u32,
    /// Of the first account
    #[arg(long)]
    balance: u64,
    /// Each next account has so much more
    #[arg(long, default_value_t = 0)]
    balance_step: u64,
    #[arg(long)]
    velocity: u32,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum By {
    /// INSERT; the server makes the idempotency key
    Insert,
    /// CALL create, with a key
    Call,
}

struct Accounts<'a> {
    template: Template,
    args: &'a Args,
    done: u32,
    key: u64,
}

pub fn run(args: &Args) -> anyhow::Result<Value> {
    let plan = Plan {
        address: args.address,
        connections: 8,
        outstanding: 512,
        rate: None,
        warm_up: Duration::ZERO,
        duration: None,
    };
    let template = match args.by {
        By::Insert => Template::insert(args.velocity),
        By::Call => Template::create(args.velocity),
    };
    engine::run(&plan, &mut Accounts { template, args, done: 0, key: first_key() })
}

impl Source for Accounts<'_> {
    fn next(&mut self, out: &mut Vec<u8>, sync: u32) -> bool {
        if self.done == self.args.count {
            return false;
        }
        let id = self.args.first + self.done;
        let balance = self.args.balance + self.args.balance_step * u64::from(self.done);
        self.done += 1;
        self.key = self.key.wrapping_add(1);
        self.template.append(out, sync, id, balance, self.key);
        true
    }
}
