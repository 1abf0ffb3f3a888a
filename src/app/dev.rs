//! `forefront dev`: the whole system on loopback, kept by the same keeper as in production. Two proxy nodes before legacy
//! stand-ins and a billing node with its embedded journal; needs no root, no database, no network.

mod ports;
mod secret;
mod template;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use prometheus::Registry;
use serde_json::json;

use self::ports::{LEGACY_MAX, Legacy, Node, Ports};
use self::template::{PROXY, set, set_named};
use super::supervise::{ServeAdmin, keep, runtime, shutdown_on_signals};
use super::{Failure, reach};
use crate::supervisor::probe::{Outcome, probe};
use crate::supervisor::{Backoff, Config, HealthConfig, ProcessConfig};

/// The file in the state directory that both nodes' keys for sessions come from.
const SECRET: &str = "secret";

/// What the certificate of the nodes is for.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// How often the nodes are asked whether they are ready.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// How long they may take before it is said that they take long. They are waited for all the same.
const READY_LATE_AFTER: Duration = Duration::from_secs(60);

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Where configurations, changes to the stand-ins' data and logs are kept
    #[arg(long, value_name = "DIR", default_value = ".forefront")]
    state: PathBuf,
    /// Added to every port; 0 takes free ports instead [default: the documented ports]
    #[arg(long, value_name = "OFFSET")]
    ports: Option<u16>,
    /// Print one line of JSON with every address when all is ready, and nothing else; implies --quiet
    #[arg(long)]
    json: bool,
    /// Logs go to files in the state directory instead of the terminal
    #[arg(long)]
    quiet: bool,
    /// How many legacy stand-ins
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=i64::from(LEGACY_MAX)))]
    legacy: u16,
    /// How long a stand-in's port stays closed at its start
    #[arg(long, value_name = "TIME", default_value = "0s")]
    start_delay: String,
    /// How long a stand-in's answer to /long_dummy takes, such as 3s..6s [default: the stand-in's]
    #[arg(long, value_name = "RANGE")]
    long_dummy: Option<String>,
    /// When a stand-in fails by itself: a range of times such as 22m..25m, or off [default: the stand-in's]
    #[arg(long, value_name = "RANGE|off")]
    lifetime: Option<String>,
}

/// Runs the system until SIGINT (Ctrl-C), SIGTERM or SIGHUP.
///
/// Errors: [`Failure::Usage`] when the ports asked for cannot be, [`Failure::Failed`] when an address is taken or the state
/// directory cannot be written; in each case nothing was started.
pub fn run(args: Args, registry: Registry, serve_admin: ServeAdmin) -> Result<ExitCode, Failure> {
    let ports = match args.ports {
        Some(0) => Ports::free(args.legacy)?,
        offset => Ports::fixed(offset.unwrap_or(0), args.legacy).map_err(Failure::Usage)?,
    };
    ports.check_free()?;
    let state = prepare(&args.state, &ports)?;
    let config = processes(&args, &ports, &state)?;
    let quiet = args.quiet || args.json;
    runtime()?.block_on(async {
        let shutdown = shutdown_on_signals()?;
        let announce = |_| async {
            if !quiet {
                say("Starting. Ctrl-C stops all.\n");
            }
            wait_until_ready(&ports).await;
            say(&if args.json { as_json(&ports, &state) } else { as_text(&ports, &state) });
        };
        keep(config, registry, serve_admin, shutdown, announce).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the state directory, the nodes' secret and their configurations in it; gives its absolute path, UTF-8.
fn prepare(state: &Path, ports: &Ports) -> anyhow::Result<String> {
    let cannot = || format!("cannot prepare the state directory {}", state.display());
    std::fs::create_dir_all(state).with_context(cannot)?;
    let state = std::fs::canonicalize(state).with_context(cannot)?;
    let Some(text) = state.to_str().map(str::to_owned) else {
        bail!("the path of the state directory {} is not UTF-8", state.display());
    };
    secret::ensure(&state.join(SECRET)).with_context(cannot)?;
    for node in &ports.nodes {
        let config = proxy_config(node, ports, &state);
        std::fs::write(config_path(&text, node), config).with_context(cannot)?;
    }
    std::fs::write(billing_config_path(&text), billing_config(ports, &text)).with_context(cannot)?;
    Ok(text)
}

fn config_path(state: &str, node: &Node) -> String {
    format!("{state}/proxy-{}.toml", node.name)
}

fn billing_config_path(state: &str) -> String {
    format!("{state}/billing.toml")
}

/// Nobody is told of depletions: there are no machines to be switched off here. They are journaled all the same.
fn billing_config(ports: &Ports, state: &str) -> String {
    let quoted = |text: &str| json!(text).to_string();
    format!(
        "[node]\nname = \"dev\"\nstate_dir = {}\n\n[listen]\nhttp = [{}]\niproto = [{}]\n\n[journal]\nengine = \"embedded\"\npath = {}\n\n\
         # [notifier]\n# url = \"http://127.0.0.1:9000/off?userID={{user_id}}\"\n\n[log]\nformat = \"text\"\n",
        quoted(state),
        quoted(&ports.billing.to_string()),
        quoted(&ports.iproto.to_string()),
        quoted(&format!("{state}/billing")),
    )
}

/// Both nodes have the one state directory, so that they have one certificate.
fn proxy_config(node: &Node, ports: &Ports, state: &Path) -> String {
    // TOML's basic strings and JSON's agree for every text; `{:?}` would not do, it writes \u{..}.
    let quoted = |text: &dyn ToString| json!(text.to_string()).to_string();
    let endpoints: Vec<String> = ports.legacy.iter().map(|one| quoted(&one.listen)).collect();
    let names = NAMES.map(|name| quoted(&name));
    let settings = [
        ("[node]", "name", quoted(&node.name)),
        ("[node]", "state_dir", quoted(&state.display())),
        ("[listen]", "http", format!("[{}]", quoted(&node.http))),
        ("[listen]", "https", format!("[{}]", quoted(&node.https))),
        ("[tls]", "self_signed", format!("[{}]", names.join(", "))),
        ("[tls]", "shared_secret_file", quoted(&state.join(SECRET).display())),
        ("[health]", "listen", format!("[{}]", quoted(&node.health))),
        ("[admin]", "listen", quoted(&node.admin)),
        ("[log]", "format", quoted(&"text")),
        // One may be asked for as often as one likes, but a terminal is for people.
        ("[log]", "access_sample", "0".to_owned()),
        // Enough for a balancer that asks a few times a second to notice, short enough to wait for at Ctrl-C.
        ("[drain]", "delay", quoted(&"1s")),
        ("[drain]", "grace", quoted(&"5s")),
        ("[[upstream]]", "endpoints", format!("[{}]", endpoints.join(", "))),
    ];
    let text =
        settings.iter().fold(PROXY.to_owned(), |text, (header, key, value)| set(&text, header, key, value));
    set_named(&text, "[[upstream]]", "billing", "endpoints", &format!("[{}]", quoted(&ports.billing)))
}

fn processes(args: &Args, ports: &Ports, state: &str) -> anyhow::Result<Config> {
    let program = std::env::current_exe().context("cannot tell the path of this program")?;
    let Some(program) = program.to_str() else { bail!("the path of this program is not UTF-8") };
    let mut config = Config::new("dev");
    config.admin_listen = Some(ports.keeper);
    for (number, one) in ports.legacy.iter().enumerate() {
        config.processes.push(legacy_process(args, program, state, number + 1, one));
    }
    config.processes.push(billing_process(program, state, ports));
    for node in &ports.nodes {
        config.processes.push(proxy_process(program, state, node));
    }
    if args.quiet || args.json {
        for process in &mut config.processes {
            process.log.path = Some(format!("{state}/{}.log", process.name).into());
        }
    }
    Ok(config)
}

fn legacy_process(args: &Args, program: &str, state: &str, number: usize, one: &Legacy) -> ProcessConfig {
    let Args { start_delay, long_dummy, lifetime, quiet, json, .. } = args;
    let mut command: Vec<String> =
        [program, "legacy", "run_server", "--allow-root", "--no-config"].map(String::from).into();
    // A hundred lines a second are for a file, not for a terminal.
    let log = if *quiet || *json { "stdout" } else { "none" };
    let store = format!("file:{state}/bingo.db");
    let (listen, control) = (one.listen.to_string(), one.control.to_string());
    let mut flag = |name: &str, value: &str| command.extend([name.to_owned(), value.to_owned()]);
    flag("--listen", &listen);
    flag("--control", &control);
    flag("--store", &store);
    flag("--log", log);
    flag("--start-delay", start_delay);
    if let Some(range) = long_dummy {
        flag("--long-dummy", range);
    }
    if let Some(range) = lifetime {
        flag("--lifetime", range);
    }
    let mut process = ProcessConfig::new(format!("legacy-{number}"), command);
    process.address = Some(one.listen.into());
    process.health = Some(HealthConfig::default());
    process.environment = inherited();
    process.stop_timeout = Duration::from_secs(5);
    process
}

fn billing_process(program: &str, state: &str, ports: &Ports) -> ProcessConfig {
    let command =
        vec![program.to_owned(), "billing".to_owned(), "--config".to_owned(), billing_config_path(state)];
    let mut process = ProcessConfig::new("billing".to_owned(), command);
    process.address = Some(ports.billing.into());
    process.health = Some(HealthConfig::default());
    process.environment = inherited();
    process.backoff = Backoff { min: Duration::from_millis(200), ..Backoff::default() };
    process
}

fn proxy_process(program: &str, state: &str, node: &Node) -> ProcessConfig {
    let command =
        vec![program.to_owned(), "proxy".to_owned(), "--config".to_owned(), config_path(state, node)];
    let mut process = ProcessConfig::new(format!("proxy-{}", node.name), command);
    process.address = Some(reach(node.health).into());
    process.health = Some(HealthConfig { path: "/live".to_owned(), ..HealthConfig::default() });
    process.environment = inherited();
    process.backoff = Backoff { min: Duration::from_millis(200), ..Backoff::default() };
    process
}

/// What a developer sets for `dev` is meant for what it starts.
fn inherited() -> std::collections::BTreeMap<String, String> {
    ["FOREFRONT_LOG", "RUST_BACKTRACE"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
        .collect()
}

async fn wait_until_ready(ports: &Ports) {
    let all_ready = async {
        for node in &ports.nodes {
            while probe(reach(node.health), "/ready", Duration::from_secs(1)).await != Outcome::Healthy {
                tokio::time::sleep(READY_INTERVAL).await;
            }
        }
        while probe(ports.billing, "/ping", Duration::from_secs(1)).await != Outcome::Healthy {
            tokio::time::sleep(READY_INTERVAL).await;
        }
    };
    tokio::pin!(all_ready);
    if tokio::time::timeout(READY_LATE_AFTER, &mut all_ready).await.is_err() {
        tracing::warn!("Still not ready; see the logs of the processes.");
        all_ready.await;
    }
}

fn as_text(ports: &Ports, state: &str) -> String {
    let url = |address| format!("http://localhost:{}", reach(address).port());
    let secure = |address| url(address).replacen("http", "https", 1);
    let mut text = String::from("\nReady.\n");
    let mut line = |what: &str, where_: String| text.push_str(&format!("  {what:<24}{where_}\n"));
    for Node { name, http, https, health, admin } in &ports.nodes {
        line(&format!("node {name}"), format!("{} {}", url(*http), secure(*https)));
        line("  health", format!("{0}/live {0}/ready", url(*health)));
        line("  admin", format!("{0}/ {0}/metrics {0}/status", url(*admin)));
    }
    for (Legacy { listen, control }, number) in ports.legacy.iter().zip(1..) {
        line(&format!("legacy stand-in {number}"), url(*listen));
        line("  control", format!("{0}/requests {0}/fault {0}/pid", url(*control)));
    }
    line("billing", format!("{} IPROTO localhost:{}", url(ports.billing), ports.iproto.port()));
    line("  cluster and metrics", format!("{0}/billing/v1/cluster {0}/metrics", url(ports.billing)));
    line("keeper", format!("{0}/metrics {0}/status", url(ports.keeper)));
    line("state and logs", state.to_owned());
    let [a, b] = &ports.nodes;
    text.push_str(&format!(
        "\nTry:\n  curl -i {front}/long_dummy\n  curl -ik {}/api/movie/1\n  curl {}/status\n  \
         curl -X POST {front}/billing/v1/insert_data\n  curl {front}/billing/v1/accounts/4\n  \
         curl {front}/billing/v1/cluster\n\n",
        secure(b.https),
        url(ports.keeper),
        front = url(a.http),
    ));
    text
}

fn as_json(ports: &Ports, state: &str) -> String {
    let url = |address| format!("http://{}", reach(address));
    let nodes: Vec<_> = ports
        .nodes
        .iter()
        .map(|Node { name, http, https, health, admin }| {
            let secure = format!("https://{}", reach(*https));
            json!({
                "name": name, "http": url(*http), "https": secure, "health": url(*health), "admin": url(*admin)
            })
        })
        .collect();
    let legacy: Vec<_> = ports
        .legacy
        .iter()
        .map(|Legacy { listen, control }| json!({ "http": url(*listen), "control": url(*control) }))
        .collect();
    let billing = json!({ "http": url(ports.billing), "iproto": ports.iproto });
    let all = json!({
        "nodes": nodes, "legacy": legacy, "billing": billing, "keeper": url(ports.keeper), "state": state
    });
    all.to_string() + "\n"
}

/// To stdout; whoever closed it does not want to know.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_configurations_have_their_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let ports = Ports::fixed(0, 2).unwrap();
        let state = prepare(&directory.path().join("made"), &ports).unwrap();
        let text = std::fs::read_to_string(config_path(&state, &ports.nodes[1])).unwrap();
        let problems = crate::config::proxy::parse(Path::new("proxy-b.toml"), &text).err();
        assert!(problems.is_none(), "{problems:?}");
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["node"]["name"].as_str(), Some("b"));
        assert_eq!(table["listen"]["http"][0].as_str(), Some("[::]:8081"));
        assert_eq!(table["listen"]["https"][0].as_str(), Some("[::]:8444"));
        assert_eq!(table["listen"]["http3"].as_bool(), Some(true));
        assert_eq!(table["tls"]["self_signed"].as_array().map(Vec::len), Some(3));
        let secret = table["tls"]["shared_secret_file"].as_str().unwrap();
        assert!(Path::new(secret).is_file() && secret.starts_with(&state), "{secret}");
        assert_eq!(table["node"]["state_dir"].as_str(), Some(state.as_str()));
        assert_eq!(table["health"]["listen"][0].as_str(), Some("[::]:8102"));
        assert_eq!(table["admin"]["listen"].as_str(), Some("127.0.0.1:9102"));
        assert_eq!(table["upstream"][0]["endpoints"][1].as_str(), Some("127.0.0.1:27353"));
        assert_eq!(table["upstream"][1]["name"].as_str(), Some("billing"));
        assert_eq!(table["upstream"][1]["endpoints"].as_array().map(Vec::len), Some(1));
        assert_eq!(table["upstream"][1]["endpoints"][0].as_str(), Some("127.0.0.1:8200"));
        let text = std::fs::read_to_string(billing_config_path(&state)).unwrap();
        let settings = crate::config::billing::parse(Path::new("billing.toml"), &text).unwrap();
        assert_eq!(settings.listen.http, [ports.billing]);
        assert_eq!(settings.notifier.url, None);
        assert!(table["route"].as_array().is_some_and(|routes| routes.len() > 5));
    }

    #[test]
    fn the_processes_are_valid_and_the_proxies_stop_first() {
        let args = Args {
            state: "unused".into(),
            ports: None,
            json: false,
            quiet: true,
            legacy: 2,
            start_delay: "0s".into(),
            long_dummy: Some("1s..2s".into()),
            lifetime: Some("off".into()),
        };
        let config = processes(&args, &Ports::fixed(0, 2).unwrap(), "/tmp/state").unwrap();
        assert_eq!(config.check(), vec![]);
        let names: Vec<&str> = config.processes.iter().map(|process| process.name.as_str()).collect();
        assert_eq!(names, ["legacy-1", "legacy-2", "billing", "proxy-a", "proxy-b"]);
        assert!(config.processes[0].command.join(" ").contains("--long-dummy 1s..2s --lifetime off"));
    }

    #[test]
    fn what_is_printed_has_lines_to_try() {
        let ports = Ports::fixed(0, 2).unwrap();
        let text = as_text(&ports, "/x");
        assert_eq!(text.matches("\n  curl ").count(), 6, "{text}");
        for path in
            ["8080/billing/v1/insert_data\n", "8080/billing/v1/accounts/4\n", "8080/billing/v1/cluster\n"]
        {
            assert!(text.contains(path), "{text}");
        }
        assert!(
            text.contains("node b                  http://localhost:8081 https://localhost:8444\n"),
            "{text}"
        );
        assert!(text.contains("curl -ik https://localhost:8444/"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&as_json(&ports, "/x")).unwrap();
        assert_eq!(value["nodes"][0]["http"], "http://127.0.0.1:8080");
        assert_eq!(value["billing"]["http"], "http://127.0.0.1:8200");
        assert_eq!(value["nodes"][1]["https"], "https://127.0.0.1:8444");
    }
}
