//! What the keeper is told: which processes to keep, and how. Plain values that are valid by construction; the text
//! form (`config/supervise.toml`) is read elsewhere and compiled to these.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Everything one keeper keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The node's name, as in the proxy's configuration; shown in `/status`.
    pub node: String,
    /// Where `/metrics` and `/status` are served; `None` serves neither. Default `127.0.0.1:9103`.
    pub admin_listen: Option<SocketAddr>,
    /// Started in this order, stopped in the reverse. Names are unique: see [`Config::check`].
    pub processes: Vec<ProcessConfig>,
}

impl Config {
    /// A keeper of `node` with the default admin address and nothing to keep yet.
    pub fn new(node: impl Into<String>) -> Config {
        Config {
            node: node.into(),
            admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 9103))),
            processes: Vec::new(),
        }
    }

    /// What no single field shows: every problem of the whole, as (index of the process, sentence).
    pub fn check(&self) -> Vec<(usize, String)> {
        let mut problems = Vec::new();
        let mut seen = BTreeMap::new();
        for (index, process) in self.processes.iter().enumerate() {
            for problem in process.check() {
                problems.push((index, problem));
            }
            for instance in process.instance_names() {
                if let Some(first) = seen.insert(instance.clone(), index) {
                    problems
                        .push((index, format!("the name {instance} is already taken by process {first}")));
                }
            }
        }
        problems
    }
}

/// One kept process, or `instances` alike.
///
/// In `command`, in the values of `environment`, in `working_directory`, in `log.path` and in `address`, `{instance}`
/// stands for the number of the instance, from 1; in the first four `{address}` stands for its address.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessConfig {
    /// Letters, digits, `-`, `_` and `.`; the label of its metrics and the prefix of its lines.
    pub name: String,
    /// Program and arguments; never empty. The program is looked up in the `PATH` of its environment, after the change
    /// to `working_directory`.
    pub command: Vec<String>,
    /// The account it runs as, with that account's groups. Default: the keeper's own. Needs a keeper run by root.
    pub user: Option<String>,
    /// The whole environment, but for `PATH`, `HOME`, `LANG`, `TZ` (and `USER`, `LOGNAME` with `user`), which come from
    /// the keeper (from the account) where they are not given here. Default: nothing.
    pub environment: BTreeMap<String, String>,
    /// Default: the keeper's own.
    pub working_directory: Option<PathBuf>,
    /// How many alike, 1 to [`INSTANCES_MAX`]. One is called `name`; more are called `name-1`, `name-2`. Default 1.
    pub instances: u32,
    /// Where its HTTP port is, for `health`.
    pub address: Option<AddressTemplate>,
    /// Default none: then a process is healthy while it lives. Needs `address`.
    pub health: Option<HealthConfig>,
    /// From its start, how long failing probes do not count. Default 60 s: twice the silence at bingo's start.
    pub start_grace: Duration,
    /// From SIGTERM to SIGKILL in an ordered stop. Default 10 s. A process that is restarted because it is unhealthy gets
    /// at most [`super::lifecycle::SICK_STOP_MAX`].
    pub stop_timeout: Duration,
    /// The wait before a restart. Default 500 ms to 15 s.
    pub backoff: Backoff,
    /// Resident bytes of the process and all its descendants above which it is restarted. Default none.
    pub memory_max: Option<u64>,
    /// Uptime at which it is restarted as planned, one instance at a time. Default none.
    pub recycle_after: Option<Duration>,
    /// Its stdout and stderr: default to the keeper's own, each line prefixed with its name.
    pub log: LogConfig,
    /// Listening sockets the keeper holds over restarts and passes as `LISTEN_FDS`. Default none. All instances share them.
    pub sockets: Vec<SocketConfig>,
}

/// More than any host wants; keeps a typing error from forking the host to death.
pub const INSTANCES_MAX: u32 = 64;

impl ProcessConfig {
    /// A process with every default.
    pub fn new(name: impl Into<String>, command: Vec<String>) -> ProcessConfig {
        ProcessConfig {
            name: name.into(),
            command,
            user: None,
            environment: BTreeMap::new(),
            working_directory: None,
            instances: 1,
            address: None,
            health: None,
            start_grace: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
            memory_max: None,
            recycle_after: None,
            log: LogConfig::default(),
            sockets: Vec::new(),
        }
    }

    /// The names its instances go by.
    pub fn instance_names(&self) -> Vec<String> {
        match self.instances {
            1 => vec![self.name.clone()],
            count => (1..=count).map(|number| format!("{}-{number}", self.name)).collect(),
        }
    }

    /// Every problem with its values, as sentences that name the key.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut refuse = |bad: bool, text: &str| {
            if bad {
                problems.push(text.to_owned());
            }
        };
        let name_ok = |text: &str| {
            !text.is_empty()
                && text.len() <= 64
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let nul = |text: &str| text.contains('\0');
        refuse(!name_ok(&self.name), "name: 1 to 64 letters, digits, '-', '_' or '.'");
        refuse(self.command.first().is_none_or(String::is_empty), "command: needs a program");
        refuse(self.command.iter().any(|part| nul(part)), "command: holds a NUL byte");
        refuse(
            self.environment.iter().any(|(k, v)| k.is_empty() || k.contains('=') || nul(k) || nul(v)),
            "environment: a name is empty, or holds '=' or a NUL byte",
        );
        refuse(
            !(1..=INSTANCES_MAX).contains(&self.instances),
            "instances: must be 1 to 64 (remove the process to have none)",
        );
        refuse(self.health.is_some() && self.address.is_none(), "health: needs an address to probe");
        refuse(self.stop_timeout.is_zero(), "stop_timeout: must be more than zero");
        refuse(
            self.backoff.min < Backoff::FLOOR || self.backoff.max < self.backoff.min,
            "backoff: min must be 10ms or more, and max not below min",
        );
        refuse(self.memory_max == Some(0), "memory_max: must be more than zero (remove it for none)");
        refuse(
            self.recycle_after.is_some_and(|after| after <= self.start_grace),
            "recycle_after: must be longer than start_grace",
        );
        refuse(self.log.bytes_max < 4096, "log.bytes_max: must be 4 KiB or more");
        if let Some(HealthConfig { path, interval, timeout, unhealthy_after }) = &self.health {
            let path_ok = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
            refuse(!path_ok, "health.path: must start with '/' and be visible ASCII");
            refuse(
                interval.is_zero() || timeout.is_zero(),
                "health: interval and timeout must be more than zero",
            );
            refuse(*unhealthy_after == 0, "health.unhealthy_after: must be 1 or more");
        }
        for (index, socket) in self.sockets.iter().enumerate() {
            let again = self.sockets[..index].iter().any(|other| other.name == socket.name);
            refuse(again, &format!("sockets: the name {} is there twice", socket.name));
        }
        problems
    }
}

/// `GET path`, any 2xx within `timeout` is healthy.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthConfig {
    /// Default `/ping`.
    pub path: String,
    /// From the end of one probe to the next. Default 1 s: one request in a hundred of what bingo can take.
    pub interval: Duration,
    /// From connecting to the head of the answer. Default 1 s.
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy, so that it is restarted. Default 3.
    pub unhealthy_after: u32,
}

impl Default for HealthConfig {
    fn default() -> HealthConfig {
        HealthConfig {
            path: "/ping".to_owned(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_after: 3,
        }
    }
}

/// The wait before a restart: `min`, doubled with each restart in a row, at most `max`. A stable run starts it anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Default 500 ms.
    pub min: Duration,
    /// Default 15 s, so that a process that comes good again is back well within a minute.
    pub max: Duration,
}

impl Backoff {
    /// The smallest `min`: below it restarting would be a busy loop.
    pub const FLOOR: Duration = Duration::from_millis(10);
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { min: Duration::from_millis(500), max: Duration::from_secs(15) }
    }
}

/// Where captured output goes.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// A file to append to; `None` is the keeper's own stdout.
    pub path: Option<PathBuf>,
    /// When the file would grow beyond this many bytes it becomes `path.1` (replacing the last one). Default 64 MiB.
    pub bytes_max: u64,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { path: None, bytes_max: 64 << 20 }
    }
}

/// A socket address that may hold `{instance}`, such as `127.0.0.1:2735{instance}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressTemplate(String);

impl AddressTemplate {
    /// The address of one instance, or `None` when the number does not fit, as with `:6553{instance}` and 9.
    pub fn of(&self, instance: u32) -> Option<SocketAddr> {
        self.0.replace("{instance}", &instance.to_string()).parse().ok()
    }
}

impl From<SocketAddr> for AddressTemplate {
    fn from(address: SocketAddr) -> AddressTemplate {
        AddressTemplate(address.to_string())
    }
}

impl FromStr for AddressTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressTemplate, String> {
        let template = AddressTemplate(text.to_owned());
        match template.of(1) {
            Some(_) => Ok(template),
            None => Err(format!(
                "{text:?} is no address: write 127.0.0.1:80, [::1]:80 or 127.0.0.1:800{{instance}}"
            )),
        }
    }
}

impl fmt::Display for AddressTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A socket held by the keeper. Text form: `name=tcp:[::]:80` or `name=udp:[::]:443`; `tcp:` may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// The name in `LISTEN_FDNAMES`: letters, digits, `-`, `_` and `.`.
    pub name: String,
    pub kind: SocketKind,
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A listening stream socket.
    Tcp,
    /// A bound datagram socket.
    Udp,
}

impl FromStr for SocketConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<SocketConfig, String> {
        let refuse = || format!("{text:?} is no socket: write http=[::]:80 or quic=udp:[::]:443");
        let (name, rest) = text.split_once('=').ok_or_else(refuse)?;
        let name_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(name_ok) {
            return Err(refuse());
        }
        let (kind, address) = match rest.split_once(':') {
            Some(("tcp", address)) => (SocketKind::Tcp, address),
            Some(("udp", address)) => (SocketKind::Udp, address),
            _ => (SocketKind::Tcp, rest),
        };
        let address = address.parse().map_err(|_| refuse())?;
        Ok(SocketConfig { name: name.to_owned(), kind, address })
    }
}

impl fmt::Display for SocketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SocketKind::Tcp => "tcp",
            SocketKind::Udp => "udp",
        };
        write!(f, "{}={kind}:{}", self.name, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let mut config = Config::new("a");
        config
            .processes
            .push(ProcessConfig::new("bingo", vec!["/opt/bingo/bingo".into(), "run_server".into()]));
        assert_eq!(config.check(), vec![]);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let mut process = ProcessConfig::new("b d", vec![]);
        process.health = Some(HealthConfig { unhealthy_after: 0, ..HealthConfig::default() });
        process.backoff = Backoff { min: Duration::ZERO, max: Duration::ZERO };
        process.instances = 0;
        assert_eq!(process.check().len(), 6, "{:?}", process.check());
    }

    #[test]
    fn two_processes_cannot_share_a_name() {
        let mut config = Config::new("a");
        let mut pair = ProcessConfig::new("x", vec!["true".into()]);
        pair.instances = 2;
        config.processes = vec![pair, ProcessConfig::new("x-2", vec!["true".into()])];
        assert_eq!(config.check().len(), 1);
    }

    #[test]
    fn sockets_and_addresses_read_what_they_write() {
        for text in ["http=tcp:[::]:80", "quic=udp:0.0.0.0:443"] {
            assert_eq!(text.parse::<SocketConfig>().unwrap().to_string(), text);
        }
        assert_eq!("http=[::]:80".parse::<SocketConfig>().unwrap().kind, SocketKind::Tcp);
        for text in ["", "http", "=[::]:80", "a b=[::]:80", "http=tls:[::]:80"] {
            assert!(text.parse::<SocketConfig>().is_err(), "{text}");
        }
        let template: AddressTemplate = "127.0.0.1:2735{instance}".parse().unwrap();
        assert_eq!(template.of(2), Some("127.0.0.1:27352".parse().unwrap()));
        assert!("localhost".parse::<AddressTemplate>().is_err());
    }
}
