//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::{self, Failure};
use crate::telemetry;

/// A front for a fragile HTTP service: it answers from an always-fresh cache where that is allowed, hides the
/// failures of the service where it can be done safely, and restarts it when it dies.
#[derive(Parser)]
#[command(name = "forefront", version = telemetry::VERSION, propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 ok, 1 failed, 2 bad usage or configuration.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole system on loopback: two proxy nodes before two supervised legacy stand-ins and a billing node
    Dev(app::dev::Args),
    /// Run one proxy node
    Proxy(app::proxy::Args),
    /// Keep processes running: health, restart, recycling, sockets, logs
    Supervise(app::supervise::Args),
    /// Run one billing node
    Billing(app::billing::Args),
    Legacy(app::legacy::Args),
    /// Validate configuration files, all problems at once
    Check(app::check::Args),
    /// Show a running process: endpoints and their health, the cache, routes with requests/s and errors; processes;
    /// of a billing node the cluster: shards, owners, replicas, alerts
    Status(app::status::Args),
}

/// Parses the arguments and runs the command. Exit codes: 0 ok, 1 failed, 2 bad usage or configuration.
pub fn main() -> ExitCode {
    let mut raw = std::env::args_os().skip(1);
    // The keeper's own helper: no user calls it, so it is no command of the public command line, and it must act before
    // anything starts a thread.
    if raw.next().is_some_and(|word| word == "__guardian") {
        return app::supervise::guardian(raw);
    }
    // clap itself ends the process on --help (0) and on a command line it cannot parse (2).
    run(Cli::parse().command).unwrap_or_else(|failure| {
        eprintln!("error: {failure}");
        failure.exit_code()
    })
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Proxy(args) => app::proxy::run(args),
        Command::Dev(args) => app::keeper::run_dev(args),
        Command::Supervise(args) => app::keeper::run_supervise(args),
        Command::Billing(args) => app::billing::run(args),
        Command::Legacy(args) => Ok(app::legacy::run(args)?),
        Command::Check(args) => Ok(app::check::run(&args)),
        Command::Status(args) => app::status::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_usage_is_2_and_help_is_0() {
        let code = |line: &str| Cli::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
        assert_eq!(code("forefront"), Some(2));
        assert_eq!(code("forefront nonsense"), Some(2));
        assert_eq!(code("forefront status --nonsense"), Some(2));
        assert_eq!(code("forefront --help"), Some(0));
        assert_eq!(code("forefront --version"), Some(0));
        assert_eq!(code("forefront status"), None);
    }
}
