//! Starts guardians and waits for them. One thread does both, for as long as the keeper lives: so a fork never races with
//! another (no descriptor of one child leaks into the next), and nobody takes the exit status of another's child.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::guardian::Order;
use super::{Error, procfs};

/// How often the thread looks for ended children even when no SIGCHLD told it to.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long the end of a guardian may wait for the orphans it left.
const ORPHANS_WAIT_MAX: Duration = Duration::from_secs(2);

/// Taken from the keeper's environment where the process has none of its own.
const INHERITED: [&str; 3] = ["PATH", "LANG", "TZ"];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    pub command: Vec<String>,
    pub user: Option<String>,
    pub environment: BTreeMap<String, String>,
    pub directory: Option<PathBuf>,
    pub sockets: Vec<(String, Arc<OwnedFd>)>,
}

/// Starts processes. Clones share the thread, which ends when the last one is dropped.
#[derive(Clone)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

enum Request {
    Spawn(Box<Spec>, oneshot::Sender<io::Result<Spawned>>),
    KillGuardian(i32),
    Look,
}

/// What the thread hands back: all still blocking, made asynchronous where the runtime is.
struct Spawned {
    guardian: i32,
    control: StdUnixStream,
    stdout: OwnedFd,
    stderr: OwnedFd,
    gone: oneshot::Receiver<()>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// `shim` is the command line that leads to [`super::guardian::run`], to which the arguments are appended. With
    /// `adopt` this process becomes a subreaper and kills every child it did not start: right for a process that does
    /// nothing but keep, wrong anywhere else.
    pub fn start(shim: Vec<OsString>, adopt: bool) -> Result<Spawner, Error> {
        if shim.is_empty() {
            return Err(Error::Thread(io::Error::other("no command line for guardians")));
        }
        if adopt {
            nix::sys::prctl::set_child_subreaper(true).map_err(|e| Error::Thread(e.into()))?;
        }
        let (requests, inbox) = mpsc::channel();
        let nursery = Nursery { shim, adopt, children: HashMap::new() };
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || nursery.work(&inbox))
            .map_err(Error::Thread)?;
        Ok(Spawner { requests })
    }

    /// Starts a process. Errors: the guardian could not be started. That the program itself could not is told by
    /// [`Child::news`].
    pub async fn spawn(&self, spec: Spec) -> Result<Child, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Spawn(io::Error::other("the spawner has ended"));
        self.requests.send(Request::Spawn(Box::new(spec), reply)).map_err(|_| gone())?;
        let spawned = answer.await.map_err(|_| gone())?.map_err(Error::Spawn)?;
        Child::new(spawned, self.clone()).map_err(Error::Spawn)
    }

    /// Look for ended children now: call it on SIGCHLD.
    pub fn look(&self) {
        let _ = self.requests.send(Request::Look);
    }
}

/// What is told of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The program runs under this pid.
    Pid(i32),
    /// The program could not be started.
    Failed(String),
    /// The program ended, as `exit 1` or `signal 9`; what it left behind is being killed.
    Ended(String),
    /// Nothing of it is left. The last news.
    Gone,
}

/// A started process, with its guardian. Dropping it closes the control socket, so that its guardian kills all of it.
pub struct Child {
    lines: Lines<BufReader<UnixStream>>,
    lines_open: bool,
    /// The same socket, written to directly: Tokio's `try_write` refuses until its reactor has first seen the socket
    /// writable, and an order right after the start would be lost.
    control: StdUnixStream,
    gone: oneshot::Receiver<()>,
    guardian: i32,
    spawner: Spawner,
    output: Option<(pipe::Receiver, pipe::Receiver)>,
}

impl Child {
    fn new(spawned: Spawned, spawner: Spawner) -> io::Result<Child> {
        let Spawned { guardian, control, stdout, stderr, gone } = spawned;
        control.set_nonblocking(true)?;
        let read = UnixStream::from_std(control.try_clone()?)?;
        let output = Some((pipe::Receiver::from_owned_fd(stdout)?, pipe::Receiver::from_owned_fd(stderr)?));
        let lines = BufReader::new(read).lines();
        Ok(Child { lines, lines_open: true, control, gone, guardian, spawner, output })
    }

    /// The guardian's pid: the root of all that came of this child.
    pub fn guardian(&self) -> i32 {
        self.guardian
    }

    /// Its stdout and stderr, once.
    pub fn take_output(&mut self) -> Option<(pipe::Receiver, pipe::Receiver)> {
        self.output.take()
    }

    /// The next thing that happened. Cancel-safe. Not to be called again after [`News::Gone`].
    pub async fn news(&mut self) -> News {
        while self.lines_open {
            match self.lines.next_line().await {
                Ok(Some(line)) => {
                    let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
                    match word {
                        "pid" => return News::Pid(rest.parse().unwrap_or(0)),
                        "failed" => return News::Failed(rest.to_owned()),
                        "exit" | "signal" => return News::Ended(line),
                        _ => {}
                    }
                }
                Ok(None) | Err(_) => self.lines_open = false,
            }
        }
        // An error means that the spawner is gone, and with it every way to learn more.
        let _ = (&mut self.gone).await;
        News::Gone
    }

    /// SIGTERM to its process group.
    pub fn terminate(&self) {
        self.order(b"T");
    }

    /// SIGKILL to it and all that came of it.
    pub fn kill(&self) {
        self.order(b"K");
    }

    /// For a guardian that does not do its work: it dies, its process with it, and the keeper adopts and kills the rest.
    pub fn kill_guardian(&self) {
        let _ = self.spawner.requests.send(Request::KillGuardian(self.guardian));
    }

    fn order(&self, order: &[u8]) {
        // The socket holds far more orders than are ever given. A guardian that is gone has killed all already.
        let _ = (&self.control).write_all(order);
    }
}

/// The thread's own state.
struct Nursery {
    shim: Vec<OsString>,
    adopt: bool,
    children: HashMap<i32, (std::process::Child, oneshot::Sender<()>)>,
}

impl Nursery {
    fn work(mut self, inbox: &mpsc::Receiver<Request>) {
        loop {
            match inbox.recv_timeout(LOOK_AGAIN) {
                Ok(Request::Spawn(spec, reply)) => {
                    let spawned = self.spawn(&spec);
                    // If nobody waits any more the control socket is dropped here, which ends the guardian.
                    let _ = reply.send(spawned);
                }
                Ok(Request::KillGuardian(pid)) => {
                    if let Some((child, _)) = self.children.get_mut(&pid) {
                        let _ = child.kill();
                    }
                }
                Ok(Request::Look) | Err(mpsc::RecvTimeoutError::Timeout) => self.look(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn spawn(&mut self, spec: &Spec) -> io::Result<Spawned> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let order = Order {
            control: theirs.as_raw_fd(),
            sockets: spec.sockets.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect(),
            user: spec.user.clone(),
            directory: spec.directory.clone(),
            command: spec.command.iter().map(OsString::from).collect(),
        };
        let passed: Vec<i32> = order.sockets.iter().map(|(_, fd)| *fd).chain([order.control]).collect();
        let mut command = Command::new(&self.shim[0]);
        // The name shown by ps; the program itself may be given as /proc/self/exe.
        command.arg0("forefront").args(&self.shim[1..]).args(order.to_args());
        command.env_clear().envs(environment(spec));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: setsid and fcntl are async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                // A session of its own, so that neither a terminal's Ctrl-C nor a signal to the keeper's group reaches it.
                libc::setsid();
                for fd in &passed {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let missing = || io::Error::other("no pipe");
        let stdout = child.stdout.take().ok_or_else(missing)?.into();
        let stderr = child.stderr.take().ok_or_else(missing)?.into();
        let (report, gone) = oneshot::channel();
        let guardian = i32::try_from(child.id()).map_err(io::Error::other)?;
        self.children.insert(guardian, (child, report));
        Ok(Spawned { guardian, control: ours, stdout, stderr, gone })
    }

    fn look(&mut self) {
        let mut ended = Vec::new();
        for (pid, (child, _)) in &mut self.children {
            // An error means that it is no child of ours any more: gone too.
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => ended.push((*pid, Some(status))),
                Err(_) => ended.push((*pid, None)),
            }
        }
        let killed = |status: Option<ExitStatus>| status.is_none_or(|status| status.signal().is_some());
        let reports: Vec<_> =
            ended.iter().filter_map(|(pid, _)| self.children.remove(pid)).map(|(_, report)| report).collect();
        if self.adopt {
            // A guardian that was killed left orphans: they must be gone before its end is told, or two would live at once.
            let wait = if ended.iter().any(|(_, status)| killed(*status)) {
                ORPHANS_WAIT_MAX
            } else {
                Duration::ZERO
            };
            self.kill_orphans(wait);
        }
        for report in reports {
            let _ = report.send(());
        }
    }

    /// Kills and waits for every child of this process that is no guardian.
    fn kill_orphans(&self, wait: Duration) {
        let me = nix::unistd::getpid().as_raw();
        let end = Instant::now() + wait;
        loop {
            let all = procfs::processes();
            let orphans = all.iter().filter(|p| p.parent == me && !self.children.contains_key(&p.pid));
            let mut left = false;
            for orphan in orphans {
                tracing::warn!(pid = orphan.pid, "Killing an orphan of a kept process.");
                for process in procfs::of(orphan.pid, &all).iter().chain([orphan]) {
                    let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
                }
                let gone = waitpid(Pid::from_raw(orphan.pid), Some(WaitPidFlag::WNOHANG));
                left |= matches!(gone, Ok(nix::sys::wait::WaitStatus::StillAlive));
            }
            // What came of an orphan is ours as soon as its parent is gone, so one more look is due after each kill.
            if !left || Instant::now() >= end {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn environment(spec: &Spec) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<OsString, OsString> = INHERITED
        .iter()
        .chain(spec.user.is_none().then_some(&"HOME"))
        .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
        .collect();
    environment.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    environment.extend(spec.environment.iter().map(|(name, value)| (name.into(), value.into())));
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_what_is_configured_and_little_else() {
        let spec = Spec {
            command: vec!["true".into()],
            user: Some("nobody".into()),
            environment: BTreeMap::from([("TZ".into(), "UTC".into())]),
            directory: None,
            sockets: Vec::new(),
        };
        let environment = environment(&spec);
        assert_eq!(environment.get(&OsString::from("TZ")), Some(&"UTC".into()));
        assert!(environment.contains_key(&OsString::from("PATH")));
        assert!(
            !environment.contains_key(&OsString::from("HOME")),
            "the account's own is set by the guardian"
        );
        assert!(environment.len() <= 3, "{environment:?}");
    }
}
