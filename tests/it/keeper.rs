//! The keeper with real processes.
//!
//! Most scenarios run a [`Keeper`] within the test process. Those in which the keeper itself dies run it in a process of
//! its own: this test binary again, as [`host`]. Processes are known by a mark in their environment, which everything that
//! comes of them inherits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forefront::supervisor::{
    Backoff, Config, HealthConfig, Keeper, ProcessConfig, Shutdown, Watcher, procfs,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prometheus::Registry;
use serde_json::{Value, json};

const MARK: &str = "FOREFRONT_TEST_MARK";
const DEADLINE: Duration = Duration::from_secs(30);

fn shim() -> Vec<OsString> {
    vec![env!("CARGO_BIN_EXE_forefront").into(), "__guardian".into()]
}

/// Waits until `probe` gives something; panics with `what` after [`DEADLINE`].
fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "no {what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("{signal} to {pid}: {error}"));
}

/// The living processes with this mark; zombies have no environment any more.
fn marked(mark: &str) -> Vec<i32> {
    let needle = format!("{MARK}={mark}");
    let has = |pid: i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == needle.as_bytes())
    };
    procfs::processes().into_iter().map(|process| process.pid).filter(|pid| has(*pid)).collect()
}

/// The marked processes that run `program`, so that a guardian or a shell about to exec is not counted.
fn marked_running(mark: &str, program: &str) -> Vec<i32> {
    let is =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == program);
    marked(mark).into_iter().filter(is).collect()
}

/// A directory, a mark, and whatever has the mark is killed at the end even if the test fails.
struct Scene {
    directory: tempfile::TempDir,
    mark: String,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for pid in marked(&self.mark) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        Scene { directory, mark }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A shell script in which `$D` is the directory.
    fn process(&self, name: &str, script: &str) -> ProcessConfig {
        let mut process = ProcessConfig::new(name, ["sh", "-c", script].map(String::from).into());
        self.mark(&mut process);
        process
    }

    fn mark(&self, process: &mut ProcessConfig) {
        let directory = self.directory.path().to_str().unwrap().to_owned();
        process.environment.extend([(MARK.to_owned(), self.mark.clone()), ("D".to_owned(), directory)]);
        process.log.path = Some(self.path(&format!("{}.log", process.name)));
        process.backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_millis(200) };
        process.stop_timeout = Duration::from_secs(20);
    }

    /// This test binary as [`ping_server`].
    fn ping_server(&self, name: &str) -> (ProcessConfig, SocketAddr) {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let me = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        let test = "keeper::ping_server";
        let command = [&me, test, "--exact", "--nocapture"].map(String::from);
        let mut process = ProcessConfig::new(name, command.into());
        self.mark(&mut process);
        process.environment.insert("ADDRESS".to_owned(), address.to_string());
        process.address = Some(address.into());
        process.health = Some(HealthConfig {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(500),
            ..HealthConfig::default()
        });
        (process, address)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }
}

/// A keeper within this process; stopped, in order, when dropped.
struct Kept {
    watcher: Watcher,
    shutdown: Shutdown,
    registry: Registry,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Kept {
    fn start(processes: Vec<ProcessConfig>) -> Kept {
        let mut config = Config::new("test");
        config.processes = processes;
        let (shutdown, registry) = (Shutdown::default(), Registry::new());
        let (report, reported) = std::sync::mpsc::channel();
        let (token, metrics) = (shutdown.clone(), registry.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let keeper = Keeper::new(config, shim(), false, &metrics).unwrap();
                report.send(keeper.watcher()).unwrap();
                keeper.run(token).await.unwrap();
            });
        });
        Kept { watcher: reported.recv().unwrap(), shutdown, registry, thread: Some(thread) }
    }

    fn process(&self, name: &str) -> Value {
        let status = self.watcher.status();
        let processes = status["processes"].as_array().unwrap();
        processes.iter().find(|process| process["name"] == name).unwrap().clone()
    }

    fn pid(&self, name: &str) -> i32 {
        wait_for("pid", || self.process(name)["pid"].as_i64()).try_into().unwrap()
    }

    fn wait_healthy(&self, name: &str) -> i32 {
        wait_for("healthy process", || {
            let process = self.process(name);
            (process["healthy"] == true).then(|| process["pid"].as_i64()).flatten()
        })
        .try_into()
        .unwrap()
    }

    /// Waits for a living process of another pid.
    fn wait_replaced(&self, name: &str, old: i32) -> i32 {
        wait_for("replacement", || {
            let process = self.process(name);
            let pid: i32 = process["pid"].as_i64()?.try_into().ok()?;
            (pid != old && process["healthy"] == true).then_some(pid)
        })
    }

    fn restarts(&self, process: &str, reason: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|f| f.name() == "forefront_supervise_restarts_total").unwrap();
        let has = |metric: &prometheus::proto::Metric, name: &str, value: &str| {
            metric.get_label().iter().any(|label| label.name() == name && label.value() == value)
        };
        let metric = family
            .get_metric()
            .iter()
            .find(|m| has(m, "process", process) && has(m, "reason", reason))
            .unwrap();
        metric.get_counter().get_value()
    }

    fn stop(mut self) {
        self.shutdown.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.shutdown.kill.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What [`Scene::ping_server`] starts: answers 200, or 500 while there is a file `sick`. By itself it does nothing.
#[test]
fn ping_server() {
    let Ok(address) = std::env::var("ADDRESS") else { return };
    let sick = Path::new(&std::env::var("D").unwrap()).join("sick");
    let listener = TcpListener::bind(address).unwrap();
    for mut stream in listener.incoming().flatten() {
        let _ = stream.read(&mut [0; 1024]);
        let status = if sick.exists() { "500 I feel bad" } else { "200 OK" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
    }
}

/// A keeper in a process of its own, for those that die: keeps one shell script. By itself it does nothing.
#[test]
fn host() {
    let Ok(script) = std::env::var("SCRIPT") else { return };
    let mark = std::env::var("KEPT_MARK").unwrap();
    let mut process = ProcessConfig::new("kept", vec!["sh".into(), "-c".into(), script]);
    process.environment = BTreeMap::from([(MARK.to_owned(), mark)]);
    process.backoff.min = Duration::from_millis(50);
    let mut config = Config::new("test");
    config.processes = vec![process];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let keeper = Keeper::new(config, shim(), true, &Registry::new()).unwrap();
        keeper.run(Shutdown::default()).await.unwrap();
    });
}

struct Host(Child);

impl Host {
    fn start(scene: &Scene, script: &str) -> Host {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["keeper::host", "--exact", "--nocapture"]);
        command.env("SCRIPT", script).env("KEPT_MARK", &scene.mark);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Host(command.process_group(0).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Forks in every way there is: a child, one in a session of its own, one whose parent is gone, one of both.
const FORKS: &str = "sleep 300 & setsid sleep 300 & (sleep 300 &) ; (setsid sleep 300 &) ; exec sleep 300";

#[test]
fn a_killed_keeper_leaves_nothing_behind() {
    let scene = Scene::new();
    let mut host = Host::start(&scene, FORKS);
    wait_for("five sleeps", || (marked_running(&scene.mark, "sleep").len() == 5).then_some(()));
    host.0.kill().unwrap();
    host.0.wait().unwrap();
    wait_for("end of all", || marked(&scene.mark).is_empty().then_some(()));
}

#[test]
fn a_keeper_killed_with_its_group_leaves_nothing_behind() {
    let scene = Scene::new();
    let mut host = Host::start(&scene, FORKS);
    wait_for("five sleeps", || (marked_running(&scene.mark, "sleep").len() == 5).then_some(()));
    signal(-host.pid(), Signal::SIGKILL);
    host.0.wait().unwrap();
    wait_for("end of all", || marked(&scene.mark).is_empty().then_some(()));
}

#[test]
fn a_killed_guardian_costs_a_restart_and_leaves_no_orphan() {
    let scene = Scene::new();
    let host = Host::start(&scene, FORKS);
    let old = wait_for("five sleeps", || {
        let sleeps = marked_running(&scene.mark, "sleep");
        (sleeps.len() == 5).then_some(sleeps)
    });
    let guardian =
        procfs::descendants(host.pid()).into_iter().find(|process| process.parent == host.pid()).unwrap();
    signal(guardian.pid, Signal::SIGKILL);
    wait_for("five new sleeps and no old one", || {
        let sleeps = marked_running(&scene.mark, "sleep");
        (sleeps.len() == 5 && sleeps.iter().all(|pid| !old.contains(pid))).then_some(())
    });
}

#[test]
fn a_killed_process_comes_back_and_its_descendants_do_not_stay() {
    let scene = Scene::new();
    let kept = Kept::start(vec![scene.process("x", "setsid sleep 300 & exec sleep 300")]);
    wait_for("two sleeps", || (marked_running(&scene.mark, "sleep").len() == 2).then_some(()));
    let old = marked_running(&scene.mark, "sleep");
    signal(kept.pid("x"), Signal::SIGKILL);
    wait_for("two new sleeps", || {
        let sleeps = marked_running(&scene.mark, "sleep");
        (sleeps.len() == 2 && sleeps.iter().all(|pid| !old.contains(pid))).then_some(())
    });
    assert_eq!(kept.restarts("x", "exit"), 1.0);
    assert_eq!(kept.process("x")["last_exit"], "signal 9");
    kept.stop();
    assert_eq!(marked(&scene.mark), [0; 0]);
}

#[test]
fn a_stopped_process_is_replaced() {
    let scene = Scene::new();
    let (process, _) = scene.ping_server("x");
    let kept = Kept::start(vec![process]);
    let old = kept.wait_healthy("x");
    signal(old, Signal::SIGSTOP);
    wait_for("state T", || (procfs::process(old)?.state == 'T').then_some(()));
    let stopped = Instant::now();
    kept.wait_replaced("x", old);
    assert!(stopped.elapsed() < Duration::from_secs(20), "took {:?}", stopped.elapsed());
    assert_eq!(kept.restarts("x", "unhealthy"), 1.0);
}

#[test]
fn a_sick_process_is_replaced() {
    let scene = Scene::new();
    let (process, _) = scene.ping_server("x");
    let kept = Kept::start(vec![process]);
    let old = kept.wait_healthy("x");
    fs::write(scene.path("sick"), "").unwrap();
    wait_for("failed probe", || (kept.process("x")["last_probe_failure"] == "status 500").then_some(()));
    wait_for("end", || (kept.process("x")["pid"] != json!(old)).then_some(()));
    fs::remove_file(scene.path("sick")).unwrap();
    kept.wait_replaced("x", old);
    assert!(kept.restarts("x", "unhealthy") >= 1.0);
}

#[test]
fn processes_stop_in_the_reverse_order() {
    let scene = Scene::new();
    let script = |name: &str| {
        format!(
            "trap 'echo {name} >> $D/order; exit 0' TERM; echo up > $D/{name}; while :; do sleep 300 & wait; done"
        )
    };
    let names = ["one", "two", "three"];
    let kept = Kept::start(names.iter().map(|name| scene.process(name, &script(name))).collect());
    wait_for("all up", || names.iter().all(|name| scene.path(name).exists()).then_some(()));
    kept.stop();
    assert_eq!(fs::read_to_string(scene.path("order")).unwrap(), "three\ntwo\none\n");
    assert_eq!(marked(&scene.mark), [0; 0]);
}

#[test]
fn what_ignores_sigterm_is_killed() {
    let scene = Scene::new();
    let mut process = scene.process("x", "trap '' TERM; echo up > $D/up; while :; do sleep 300; done");
    process.stop_timeout = Duration::from_millis(300);
    let kept = Kept::start(vec![process]);
    wait_for("start", || scene.path("up").exists().then_some(()));
    kept.stop();
    assert_eq!(marked(&scene.mark), [0; 0]);
}

#[test]
fn a_second_order_kills_at_once() {
    let scene = Scene::new();
    let kept =
        Kept::start(vec![scene.process("x", "trap '' TERM; echo up > $D/up; while :; do sleep 300; done")]);
    wait_for("start", || scene.path("up").exists().then_some(()));
    let told = Instant::now();
    kept.shutdown.stop.cancel();
    kept.shutdown.kill.cancel();
    kept.stop();
    assert!(told.elapsed() < Duration::from_secs(15), "took {:?} of 20 s", told.elapsed());
    assert_eq!(marked(&scene.mark), [0; 0]);
}

#[test]
fn sockets_are_passed_as_systemd_does() {
    let scene = Scene::new();
    let script = "echo pid $(($LISTEN_PID - $$)) fds $LISTEN_FDS names $LISTEN_FDNAMES; \
                  readlink /proc/$$/fd/3; readlink /proc/$$/fd/4; set -- /proc/$$/fd/*; echo $#; exec sleep 300";
    let mut process = scene.process("x", script);
    process.sockets = ["http=127.0.0.1:0", "quic=udp:127.0.0.1:0"].map(|text| text.parse().unwrap()).into();
    let kept = Kept::start(vec![process]);
    let log = wait_for("output", || Some(scene.log("x")).filter(|log| log.lines().count() == 4));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "pid 0 fds 2 names http:quic");
    assert!(lines[1].starts_with("socket:") && lines[2].starts_with("socket:"), "{log}");
    assert_eq!(lines[3].trim(), "6", "0 to 4, the directory being listed, and nothing else");
    let old = kept.pid("x");
    signal(old, Signal::SIGKILL);
    let log = wait_for("more output", || Some(scene.log("x")).filter(|log| log.lines().count() == 8));
    assert_eq!(log.lines().nth(5), Some(lines[1]), "the same socket again");
}

#[test]
fn another_user_has_no_more_than_its_own() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can change the user");
        return;
    }
    let scene = Scene::new();
    let mut process = scene.process("x", "echo $(id -u) $(id -G) $HOME $USER; exec sleep 300");
    process.user = Some("nobody".to_owned());
    process.working_directory = Some("/".into());
    let kept = Kept::start(vec![process]);
    let log = wait_for("output", || Some(scene.log("x")).filter(|log| log.ends_with('\n')));
    assert_eq!(log.trim(), "65534 65534 /nonexistent nobody");
    // The change of user clears PDEATHSIG; that it was set after shows when the guardian is killed.
    let old = kept.pid("x");
    let guardian = kept.process("x")["guardian_pid"].as_i64().unwrap();
    signal(guardian.try_into().unwrap(), Signal::SIGKILL);
    wait_for("end", || procfs::process(old).is_none_or(|process| process.state == 'Z').then_some(()));
}

#[test]
fn too_much_memory_is_a_reason() {
    let scene = Scene::new();
    let script = "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo big > $D/big; sleep 300";
    let mut process = scene.process("x", script);
    process.memory_max = Some(40 << 20);
    let kept = Kept::start(vec![process]);
    wait_for("restart", || (kept.restarts("x", "memory") >= 1.0).then_some(()));
}

#[test]
fn a_program_that_is_not_there_is_told_and_not_tried_without_pause() {
    let scene = Scene::new();
    let mut process = scene.process("x", "");
    process.command = vec!["/nowhere/program".to_owned()];
    let started = Instant::now();
    let kept = Kept::start(vec![process]);
    wait_for("three tries", || (kept.restarts("x", "spawn") >= 3.0).then_some(()));
    assert!(started.elapsed() >= Duration::from_millis(150), "backoff of 50 ms and 100 ms");
    let why = kept.process("x")["last_exit"].as_str().unwrap().to_owned();
    assert!(why.contains("/nowhere/program") && why.contains("No such file"), "{why}");
}

#[test]
fn recycling_goes_one_at_a_time() {
    let scene = Scene::new();
    let mut process = scene.process("x", "echo {instance} $$; exec sleep 300");
    process.instances = 2;
    process.start_grace = Duration::ZERO;
    process.recycle_after = Some(Duration::from_secs(2));
    let kept = Kept::start(vec![process]);
    let (one, two) = (kept.pid("x-1"), kept.pid("x-2"));
    let (mut seen_one, mut seen_two) = (false, false);
    wait_for("both recycled", || {
        let status = kept.watcher.status();
        let of = |index: usize| status["processes"][index].clone();
        assert!(of(0)["healthy"] == true || of(1)["healthy"] == true, "both are down: {status}");
        seen_one |=
            of(0)["healthy"] == true && of(0)["pid"].as_i64().is_some_and(|pid| pid != i64::from(one));
        seen_two |=
            of(1)["healthy"] == true && of(1)["pid"].as_i64().is_some_and(|pid| pid != i64::from(two));
        (seen_one && seen_two).then_some(())
    });
    assert!(kept.restarts("x-1", "recycle") >= 1.0 && kept.restarts("x-2", "recycle") >= 1.0);
    assert!(scene.log("x").lines().any(|line| line.starts_with("x-2 | 2 ")), "{}", scene.log("x"));
}

#[test]
fn a_stop_right_after_the_start_is_not_lost() {
    let started = Instant::now();
    for _ in 0..20 {
        let scene = Scene::new();
        let kept =
            Kept::start(vec![scene.process("x", "exec sleep 300"), scene.process("y", "exec sleep 300")]);
        kept.stop();
        assert_eq!(marked(&scene.mark), [0; 0]);
        // Within one stop_timeout for all twenty: none had to be killed.
        assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    }
}

/// The whole system on free ports. Gives the process, its addresses, and the pids of all that came of it.
fn start_dev(scene: &Scene) -> (Child, Value, Vec<i32>) {
    let mut dev = Command::new(env!("CARGO_BIN_EXE_forefront"))
        .args(["dev", "--json", "--ports", "0", "--lifetime", "off", "--long-dummy", "10ms..20ms", "--state"])
        .arg(scene.path("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(dev.stdout.take().unwrap()), &mut line).unwrap();
    let addresses: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert_eq!(addresses["nodes"].as_array().map(Vec::len), Some(2));
    assert_eq!(addresses["legacy"].as_array().map(Vec::len), Some(2));
    let pid = i32::try_from(dev.id()).unwrap();
    let all: Vec<i32> = procfs::descendants(pid).iter().map(|process| process.pid).collect();
    assert!(all.len() >= 8, "four processes with their guardians: {all:?}");
    (dev, addresses, all)
}

#[test]
fn a_killed_dev_leaves_nothing_behind() {
    let scene = Scene::new();
    let (mut dev, _, all) = start_dev(&scene);
    dev.kill().unwrap();
    dev.wait().unwrap();
    wait_for("end of all", || all.iter().all(|pid| procfs::process(*pid).is_none()).then_some(()));
}

#[test]
fn a_dev_told_to_stop_ends_well_and_leaves_nothing_behind() {
    let scene = Scene::new();
    let (mut dev, _, all) = start_dev(&scene);
    signal(i32::try_from(dev.id()).unwrap(), Signal::SIGTERM);
    assert_eq!(dev.wait().unwrap().code(), Some(0));
    assert!(all.iter().all(|pid| procfs::process(*pid).is_none()), "nothing is left when it ends");
}
