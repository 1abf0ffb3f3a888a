//! `forefront legacy`: the stand-in for the legacy service, with its own commands and messages.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use crate::legacy::{
    Addresses, Config, DEFAULT_LOG_DIR, DEFAULT_PATH, End, Kind, Lifetime, Log, Options, Span, StoreKind,
    VERSION, serve,
};

/// Runs the stand-in for the legacy service
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The service's own command: completion, help, prepare_db, print_current_config, print_default_config,
    /// run_server or version
    command: Option<String>,
    /// Arguments of that command
    #[arg(hide = true)]
    rest: Vec<String>,
    /// The service's configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Read no configuration file: every field has its default
    #[arg(long, conflicts_with = "config")]
    no_config: bool,
    /// Address to serve on; may be given several times
    #[arg(long, value_name = "ADDRESS", default_values_t = [DEFAULT_LISTEN])]
    listen: Vec<SocketAddr>,
    /// Address of the control listener, for tests only [default: none]
    #[arg(long, value_name = "ADDRESS")]
    control: Option<SocketAddr>,
    /// Where changes are kept: memory, file:PATH (shared by several processes), postgres
    #[arg(long, default_value = "memory")]
    store: StoreKind,
    /// Run as root
    #[arg(long)]
    allow_root: bool,
    /// How long the port stays closed at the start
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    start_delay: Duration,
    /// How long an answer of /long_dummy takes
    #[arg(long, value_name = "RANGE", default_value = "3s..6s")]
    long_dummy: Span,
    /// Requests a second, /ping included; 0 = no limit
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    rate_limit: u32,
    /// Requests that may wait for the limiter
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    queue: usize,
    /// When the process fails by itself: a range of times, or off
    #[arg(long, value_name = "RANGE|off", default_value = "22m..25m", value_parser = lifetime)]
    lifetime: LifetimeSpan,
    /// How it then fails: exit, panic, leak, sick, hang or slow [default: one of exit, leak, sick]
    #[arg(long, value_name = "KIND")]
    lifetime_kind: Option<Kind>,
    /// A leak kills the process at this size, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    leak_max_mib: u32,
    /// What the data and all chance come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the service logs
    #[arg(long, value_enum, default_value_t = LogTo::File)]
    log: LogTo,
    /// Below it the log file has its directory, which must exist
    #[arg(long, value_name = "DIR", default_value = DEFAULT_LOG_DIR)]
    log_dir: PathBuf,
}

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 27352);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogTo {
    None,
    Stdout,
    File,
}

#[derive(Clone, Copy, Debug)]
struct LifetimeSpan(Option<Span>);

fn lifetime(text: &str) -> Result<LifetimeSpan, String> {
    match text {
        "off" => Ok(LifetimeSpan(None)),
        _ => text
            .parse()
            .map(|span| LifetimeSpan(Some(span)))
            .map_err(|error: crate::legacy::SpanError| error.to_string()),
    }
}

/// The exit code of a Go program that panics.
const PANICKED: u8 = 2;

/// Runs one of the service's commands. Messages, order of checks and exit codes are those of the service: 0 ok,
/// 1 failed, 2 panicked. `run_server` returns only when the service ends by itself.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(command) = args.command.as_deref() else {
        say("Hello world\n");
        return Ok(ExitCode::SUCCESS);
    };
    match command {
        "help" => say(HELP),
        "completion" => completion(args.rest.first().map(String::as_str)),
        "version" => say(&format!("{VERSION}\n")),
        "print_default_config" => say(&Config::default().to_yaml()?),
        "print_current_config" => match read_config(&args) {
            Ok(config) => say(&config.to_yaml()?),
            Err(code) => return Ok(code),
        },
        "prepare_db" => return prepare_db(&args),
        "run_server" => return run_server(args),
        _ => {
            complain(&format!(
                "Error: unknown command {command:?} for \"bingo\"\nRun 'bingo --help' for usage.\n"
            ));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The embedded database needs no preparation; the checks are those of the service.
fn prepare_db(args: &Args) -> anyhow::Result<ExitCode> {
    if refused_as_root(args) {
        return Ok(ExitCode::FAILURE);
    }
    if let Err(code) = read_config(args) {
        return Ok(code);
    }
    if args.store == StoreKind::Postgres {
        complain(&format!("Error: {}\n", crate::legacy::StoreError::PostgresNotBuilt));
        return Ok(ExitCode::FAILURE);
    }
    say("the embedded database is always prepared\n");
    Ok(ExitCode::SUCCESS)
}

fn run_server(args: Args) -> anyhow::Result<ExitCode> {
    if refused_as_root(&args) {
        return Ok(ExitCode::FAILURE);
    }
    let config = match read_config(&args) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let log = match open_log(&args, &config) {
        Ok(log) => log,
        Err(code) => return Ok(code),
    };
    let undelayed = args.start_delay.is_zero();
    let options = options(args, config, log);
    // Two workers, as on the service's own machines; list queries run beside them.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match runtime.block_on(serve(options, |addresses| congratulate(addresses, undelayed))) {
        Ok(end) => finish(end),
        Err(error) => {
            complain(&format!("Error: failed Init Core: {:#}\n", anyhow::Error::from(error)));
            // Not dropped: a blocking call may still wait for a lock.
            runtime.shutdown_background();
            Ok(ExitCode::FAILURE)
        }
    }
}

fn options(args: Args, config: Config, log: Log) -> Options {
    Options {
        config,
        log,
        listen: args.listen,
        control: args.control,
        store: args.store,
        start_delay: args.start_delay,
        long_dummy: args.long_dummy,
        rate_limit: args.rate_limit,
        queue: args.queue,
        lifetime: args.lifetime.0.map(|span| Lifetime { span, kind: args.lifetime_kind }),
        leak_max_bytes: (args.leak_max_mib as usize) << 20,
        seed: args.seed,
    }
}

/// That it refuses is known; its message and which commands do are not.
fn refused_as_root(args: &Args) -> bool {
    let refused = nix::unistd::geteuid().is_root() && !args.allow_root;
    if refused {
        complain("Error: running as root is not allowed\n");
    }
    refused
}

/// The configuration, or the exit code of the panic that a missing one causes.
fn read_config(args: &Args) -> Result<Config, ExitCode> {
    if args.no_config {
        return Ok(Config::default());
    }
    Config::read(&args.config).map_err(|error| {
        panicked("failed to read config data", &format!("{:#}", anyhow::Error::from(error)));
        ExitCode::from(PANICKED)
    })
}

fn open_log(args: &Args, config: &Config) -> Result<Log, ExitCode> {
    match args.log {
        LogTo::None => Ok(Log::None),
        LogTo::Stdout => Ok(Log::Stdout),
        LogTo::File => {
            let path = config.log_path(&args.log_dir);
            Log::open(&path).map_err(|error| {
                panicked("failed to build logger", &format!("open {}: {error}", path.display()));
                ExitCode::from(PANICKED)
            })
        }
    }
}

/// Prints a panic as Go does.
fn panicked(message: &str, cause: &str) {
    let colon = if cause.is_empty() { "" } else { ": " };
    complain(&format!(
        "panic: {message}{colon}{cause}\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/cmd/bingo/main.go:27 +0x1d\n"
    ));
}

/// Ends the process now. Connections are cut, since the runtime is not shut down first.
fn finish(end: End) -> anyhow::Result<ExitCode> {
    match end {
        End::Exit(code) => std::process::exit(code.into()),
        End::Panic => {
            panicked("we're all gonna die", "");
            std::process::exit(PANICKED.into())
        }
        End::Killed => {
            nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL)
                .context("killing myself")?;
            Ok(ExitCode::from(137))
        }
    }
}

/// What the service prints once it serves, and one line of our own with the addresses.
fn congratulate(addresses: &Addresses, undelayed: bool) {
    const RULE: &str = "--------------------------------------------------";
    let mut text = String::from(
        "My congratulations.\nYou were able to start the server.\nHere's a secret code that confirms that you did it.\n",
    );
    let mut code = |code: &str| text.push_str(&format!("{RULE}\ncode:         {code}\n{RULE}\n"));
    code("yoohoo_server_launched");
    // Without the delay the start-up address counts as blocked.
    if undelayed {
        code("google_dns_is_not_http");
    }
    let listen: Vec<String> = addresses.listen.iter().map(ToString::to_string).collect();
    text.push_str(&format!("legacy listening on {}", listen.join(",")));
    if let Some(control) = addresses.control {
        text.push_str(&format!(" control {control}"));
    }
    text.push('\n');
    say(&text);
}

/// Cobra's command; the scripts themselves are of no use here.
fn completion(shell: Option<&str>) {
    match shell {
        Some(shell @ ("bash" | "fish" | "powershell" | "zsh")) => {
            say(&format!("# {shell} completion for bingo\n"))
        }
        _ => say(
            "Generate the autocompletion script for bingo for the specified shell.\n\nUsage:\n  bingo completion \
                  [command]\n\nAvailable Commands:\n  bash\n  fish\n  powershell\n  zsh\n",
        ),
    }
}

const HELP: &str = "\
bingo

Usage:
  bingo [flags]
  bingo [command]

Available Commands:
  completion           Generate the autocompletion script for the specified shell
  help                 Help about any command
  prepare_db           Prepare the database
  print_current_config Print the current config
  print_default_config Print the default config
  run_server           Run the server
  version              Print the version

Flags:
  -h, --help   help for bingo

Use \"bingo [command] --help\" for more information about a command.
";

/// Writes to stdout; a reader that went away is no reason to fail.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("legacy").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn the_defaults_are_those_of_the_service() {
        let args = parse("run_server").unwrap();
        assert_eq!(args.command.as_deref(), Some("run_server"));
        assert_eq!(args.listen, ["[::]:27352".parse().unwrap()]);
        assert_eq!((args.rate_limit, args.queue, args.control), (100, 1_000, None));
        assert_eq!(args.start_delay, Duration::from_secs(30));
        assert_eq!(args.store, StoreKind::Memory);
        assert_eq!(args.lifetime.0, Some("22m..25m".parse().unwrap()));
        assert_eq!(args.config, PathBuf::from("/opt/bingo/config.yaml"));
    }

    #[test]
    fn every_flag_is_read() {
        let args = parse(
            "run_server --no-config --listen 127.0.0.1:0 --listen [::1]:0 --control 127.0.0.1:0 --store file:/x \
             --allow-root --start-delay 0s --long-dummy 10ms --rate-limit 0 --queue 5 --lifetime off \
             --lifetime-kind hang --leak-max-mib 64 --seed 9 --log none --log-dir /y",
        )
        .unwrap();
        assert_eq!(args.listen.len(), 2);
        assert!(args.lifetime.0.is_none() && args.lifetime_kind == Some(Kind::Hang));
        assert_eq!(args.store, StoreKind::File("/x".into()));
        assert_eq!((args.seed, args.log), (9, LogTo::None));
        for wrong in
            ["--config a --no-config", "--lifetime 5m..3m", "--long-dummy x", "--store y", "--leak-max-mib 0"]
        {
            assert!(parse(&format!("run_server {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_missing_configuration_is_a_panic() {
        let args = parse("print_current_config --config /nonexistent/config.yaml").unwrap();
        assert!(read_config(&args).is_err());
        assert_eq!(read_config(&parse("x --no-config").unwrap()).unwrap(), Config::default());
    }

    #[test]
    fn a_missing_log_directory_is_a_panic() {
        let args = parse("run_server --log-dir /nonexistent").unwrap();
        assert!(open_log(&args, &Config::default()).is_err());
    }
}
