//! A real PostgreSQL server for the time of this test process.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::User;
use tokio_postgres::NoTls;

const TO_GET_IT: &str = "these tests need PostgreSQL's server: run .ci/postgres";
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// Keeps the server until the pipe to it closes, which it does however this process ends; then stops it by its process id and
/// removes its files. The server also dies with this shell.
const KEEPER: &str = r#"
    directory=$1 home=$2; shift 2
    "$@" >"$directory/server.log" 2>&1 </dev/null &
    server=$!
    while read -r order; do kill "-$order" "$server"; done
    kill -QUIT "$server" 2>/dev/null
    wait "$server"
    rm -rf "$home"
"#;

pub(in crate::billing) struct Cluster {
    /// Holds the sockets too.
    home: PathBuf,
    pub(super) port: u16,
    pub(super) authority: String,
    orders: Option<ChildStdin>,
    keeper: Child,
}

impl Drop for Cluster {
    /// Not for the one that all tests share, whose keeper sees the process end.
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.keeper.wait();
    }
}

/// The one for tests that need nothing of their own.
pub(in crate::billing) fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(&[]))
}

fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect(TO_GET_IT);
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.retain(|bin| bin.join("postgres").exists());
    found.sort();
    found.pop().expect(TO_GET_IT)
}

/// PostgreSQL refuses to run as root.
fn unprivileged() -> Option<User> {
    nix::unistd::getuid()
        .is_root()
        .then(|| User::from_name("nobody").unwrap().expect("there is a user nobody"))
}

fn command(program: &Path) -> Command {
    let Some(user) = unprivileged() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
    command.args(["--clear-groups", "--pdeathsig=QUIT"]).arg(program);
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("the command can be started");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text));
}

fn give_away(path: &Path) {
    if let Some(user) = unprivileged() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn home() -> PathBuf {
    // Removed by the keeper, which outlives this process.
    let home = tempfile::Builder::new().prefix("forefront-pg").tempdir().unwrap().keep();
    give_away(&home);
    home
}

impl Cluster {
    pub(super) fn start(settings: &[&str]) -> Cluster {
        let home = home();
        let data = home.join("data");
        let mut initdb = command(&binaries().join("initdb"));
        run(initdb
            .args(["-A", "trust", "-U", "forefront", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data));
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for (name, text) in
            [("server.crt", made.cert.pem()), ("server.key", made.signing_key.serialize_pem())]
        {
            let file = data.join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            give_away(&file);
        }
        Cluster::serve(home, made.cert.pem(), settings)
    }

    /// A streaming replica of this server.
    pub(super) fn replica(&self, name: &str) -> Cluster {
        let home = home();
        let mut backup = command(&binaries().join("pg_basebackup"));
        let from = format!("{} application_name={name}", self.connection("postgres"));
        run(backup
            .args(["-R", "-X", "stream", "--no-sync", "-c", "fast", "-D"])
            .arg(home.join("data"))
            .arg("-d")
            .arg(from));
        Cluster::serve(home, self.authority.clone(), &[&format!("cluster_name={name}")])
    }

    fn serve(home: PathBuf, authority: String, settings: &[&str]) -> Cluster {
        let port = free_port();
        let server = binaries().join("postgres");
        let mut server = command(&server);
        server.arg("-D").arg(home.join("data")).arg("-k").arg(&home);
        server.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
        for setting in ["ssl=on", "max_connections=200", "hot_standby=on"].iter().chain(settings) {
            server.args(["-c", setting]);
        }
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper"]).arg(home.join("data")).arg(&home);
        keeper.arg(server.get_program()).args(server.get_args());
        let mut keeper = keeper.stdin(Stdio::piped()).spawn().unwrap();
        let cluster = Cluster { home, port, authority, orders: keeper.stdin.take(), keeper };
        cluster.wait_for_start();
        cluster
    }

    fn wait_for_start(&self) {
        let deadline = Instant::now() + STARTS_WITHIN;
        let ready = || {
            let mut ask = Command::new(binaries().join("pg_isready"));
            ask.arg("-q").arg("-h").arg(&self.home).args(["-p", &self.port.to_string()]);
            ask.status().is_ok_and(|status| status.success())
        };
        while !ready() {
            let log = std::fs::read_to_string(self.home.join("data/server.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server does not start:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal to the server: `KILL`, `STOP`, `CONT`, `QUIT`.
    pub(super) fn signal(&mut self, name: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{name}").unwrap();
    }

    pub(super) fn connection(&self, database: &str) -> String {
        format!("host={} port={} user=forefront dbname={database}", self.home.display(), self.port)
    }

    pub(in crate::billing) async fn client(&self, database: &str) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.connection(database), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A database of this test's own.
    pub(super) async fn database(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let client = self.client("postgres").await;
        // Two cannot be made from one template at the same moment.
        while let Err(error) = client.batch_execute(&format!("create database {name}")).await {
            let code = error.code().cloned();
            assert_eq!(code, Some(tokio_postgres::error::SqlState::OBJECT_IN_USE), "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        name
    }
}
