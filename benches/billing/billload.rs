//! An IPROTO client for the billing bench: `cargo build --release --example billload`. The result is JSON on stdout.
//! It speaks to forefront and to Tarantool alike. One thread, and requests that are copied and patched, because it shares the
//! machine with what it measures.

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

#[path = "billload/call.rs"]
mod call;
#[path = "billload/create.rs"]
mod create;
#[path = "billload/engine.rs"]
mod engine;
#[path = "billload/histogram.rs"]
mod histogram;
#[path = "billload/load.rs"]
mod load;
#[path = "billload/receive.rs"]
mod receive;
#[path = "billload/wire.rs"]
mod wire;

#[derive(Parser)]
#[command(about = "An IPROTO client for the billing bench; prints JSON")]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Creates accounts with consecutive ids
    Create(create::Args),
    /// Half add_money, half withdraw, each with an idempotency key of its own
    Load(load::Args),
    /// Calls one procedure and prints what it returns
    Call(call::Args),
    /// Answers orders with 200 and prints a line for each: id, then microseconds since the epoch
    Receive { address: SocketAddr },
}

fn main() -> anyhow::Result<()> {
    let result = match Cli::parse().mode {
        Mode::Create(args) => create::run(&args)?,
        Mode::Load(args) => load::run(&args)?,
        Mode::Call(args) => call::run(&args)?,
        Mode::Receive { address } => return receive::run(address),
    };
    println!("{result}");
    Ok(())
}
