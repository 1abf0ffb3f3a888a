//! The guardian: a small process of our own binary between the keeper and each kept process.
//!
//! Why it exists: PDEATHSIG does not reach grandchildren, so a keeper that is killed would leave behind whatever its
//! processes had forked. The guardian is the parent of the kept process and the subreaper of everything that comes of it
//! (also of what called `setsid`), and holds one end of a socket of which only the keeper holds the other. When that
//! closes, for whatever reason, the guardian kills all its descendants until none is left.
//!
//! - The guardian has no PDEATHSIG: it must outlive the keeper by the moment it needs to clean up.
//! - The kept process has one (SIGKILL, from the guardian, set after the change of user, which clears it).
//! - When the guardian itself is killed, the kept process dies of that PDEATHSIG, and the rest falls to the keeper, the
//!   next subreaper.
//!
//! It runs before any thread is started, so that it may fork and go on as an ordinary program.
//!
//! On the socket, keeper to guardian: `T` (SIGTERM, then SIGCONT, to the process group), `K` (SIGKILL to all). Guardian to
//! keeper, one line each: `pid N`, then `failed TEXT` or `exit N` or `signal N`.

use std::ffi::{CString, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, User, fork, getpid, getppid, setsid};

use super::procfs;

/// The first descriptor passed on, as `sd_listen_fds(3)` has it.
const LISTEN_FDS_START: RawFd = 3;

/// How long it goes on killing what does not die (stuck in the kernel, or of a user it may not touch).
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// Between two rounds of killing, when no child's end cuts the wait short.
const ROUND: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("bad argument {0:?} (this command is for the keeper only)")]
    Argument(OsString),
    #[error("{step} failed")]
    Step { step: &'static str, source: io::Error },
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step { step, source: source.into() }
}

/// What the keeper asks of a guardian, as command-line arguments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Order {
    /// The descriptor of the socket to the keeper.
    pub control: RawFd,
    /// Listening sockets: name and descriptor.
    pub sockets: Vec<(String, RawFd)>,
    pub user: Option<String>,
    pub directory: Option<PathBuf>,
    pub command: Vec<OsString>,
}

impl Order {
    pub fn to_args(&self) -> Vec<OsString> {
        let Order { control, sockets, user, directory, command } = self;
        let mut args = vec!["--control".into(), control.to_string().into()];
        for (name, fd) in sockets {
            args.extend(["--socket".into(), format!("{name}={fd}").into()]);
        }
        if let Some(user) = user {
            args.extend(["--user".into(), user.into()]);
        }
        if let Some(directory) = directory {
            args.extend(["--directory".into(), directory.into()]);
        }
        args.push("--".into());
        args.extend(command.iter().cloned());
        args
    }

    fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Order, Error> {
        let mut args = args.into_iter();
        let mut order = Order { control: -1, ..Order::default() };
        while let Some(flag) = args.next() {
            if flag == "--" {
                order.command = args.by_ref().collect();
                break;
            }
            let value = args.next().ok_or_else(|| Error::Argument(flag.clone()))?;
            let text = value.to_str();
            let bad = || Error::Argument(value.clone());
            match flag.to_str() {
                Some("--control") => order.control = text.and_then(|t| t.parse().ok()).ok_or_else(bad)?,
                Some("--user") => order.user = Some(text.ok_or_else(bad)?.to_owned()),
                Some("--directory") => order.directory = Some(PathBuf::from(&value)),
                Some("--socket") => {
                    let (name, fd) = text.and_then(|t| t.rsplit_once('=')).ok_or_else(bad)?;
                    order.sockets.push((name.to_owned(), fd.parse().map_err(|_| bad())?));
                }
                _ => return Err(Error::Argument(flag)),
            }
        }
        let fds = || order.sockets.iter().map(|(_, fd)| *fd).chain([order.control]);
        if order.command.is_empty() || fds().any(|fd| fd < LISTEN_FDS_START) {
            return Err(Error::Argument("--control, --socket or command".into()));
        }
        Ok(order)
    }
}

/// Runs the guardian to its end; the exit code is the kept process's (128 + n for signal n).
///
/// `args` is what follows the hidden subcommand: see [`Order::to_args`]. Must be called while the process has one thread.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<u8, Error> {
    let order = Order::parse(args)?;
    let (control, sockets) = take_descriptors(&order)?;
    nix::sys::prctl::set_child_subreaper(true).map_err(failed("becoming a subreaper"))?;
    let signals = Signals::block()?;
    let guardian = getpid();
    // SAFETY: this process has one thread, so the child may do whatever an ordinary program may.
    match unsafe { fork() }.map_err(failed("fork"))? {
        ForkResult::Child => {
            let error = become_process(&order, &sockets, guardian);
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let text = format!("{error}: {cause}").replace('\n', " ");
            // The socket is still open here: it closes at exec.
            let _ = (&control).write_all(format!("failed {text}\n").as_bytes());
            // SAFETY: ends at once, and runs none of what the parent means to run at its own end.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            drop(sockets);
            control.set_nonblocking(true).map_err(failed("the control socket"))?;
            let mut guardian = Guardian { control, signals, child, status: None, killing: None };
            guardian.tell(&format!("pid {child}"));
            guardian.watch()
        }
    }
}

/// Takes the inherited descriptors over and lets none of them leak into the kept process as they are.
fn take_descriptors(order: &Order) -> Result<(UnixStream, Vec<OwnedFd>), Error> {
    let take = |fd: RawFd| -> Result<OwnedFd, Error> {
        // SAFETY: F_SETFD on any number is harmless, and tells whether it is open.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(failed("taking over a descriptor")(io::Error::last_os_error()));
        }
        // SAFETY: it is open (just seen), inherited for this purpose, and owned by nothing else in this process.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // Whatever the keeper was itself left with by the one that started it is not handed on either. Kernels before 5.11
    // refuse, and then it is.
    // SAFETY: changes a flag of descriptors, closes none.
    unsafe {
        libc::syscall(libc::SYS_close_range, LISTEN_FDS_START, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    // Above the places of the sockets, so that passing them does not overwrite it.
    let above = LISTEN_FDS_START + order.sockets.len() as RawFd;
    let control = take(order.control)?;
    // SAFETY: duplicates an open descriptor; the copy has no other owner.
    let control = unsafe {
        match libc::fcntl(control.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) {
            fd if fd < 0 => return Err(failed("the control socket")(io::Error::last_os_error())),
            fd => UnixStream::from(OwnedFd::from_raw_fd(fd)),
        }
    };
    let sockets = order.sockets.iter().map(|(_, fd)| take(*fd)).collect::<Result<_, _>>()?;
    Ok((control, sockets))
}

/// In the forked child: turns it into the kept process. Returns only on failure.
fn become_process(order: &Order, sockets: &[OwnedFd], guardian: Pid) -> Error {
    match prepare(order, sockets, guardian) {
        Ok(mut command) => {
            let source = command.exec();
            let step = "starting the program";
            Error::Step {
                step,
                source: io::Error::new(source.kind(), format!("{:?}: {source}", order.command[0])),
            }
        }
        Err(error) => error,
    }
}

fn prepare(order: &Order, sockets: &[OwnedFd], guardian: Pid) -> Result<Command, Error> {
    SigSet::empty().thread_set_mask().map_err(failed("unblocking signals"))?;
    setsid().map_err(failed("setsid"))?;
    let mut command = Command::new(&order.command[0]);
    command.args(&order.command[1..]);
    if let Some(name) = &order.user {
        switch_user(name, &mut command)?;
    }
    // A change of user clears it, so it comes after; a parent that died in between shows by another parent's pid.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("PR_SET_PDEATHSIG"))?;
    if getppid() != guardian {
        let gone = io::Error::other("the guardian is gone");
        return Err(Error::Step { step: "watching the guardian", source: gone });
    }
    if let Some(directory) = &order.directory {
        std::env::set_current_dir(directory).map_err(failed("changing to working_directory"))?;
    }
    if !sockets.is_empty() {
        pass_sockets(sockets)?;
        let names: Vec<&str> = order.sockets.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_PID", getpid().to_string());
        command.env("LISTEN_FDS", sockets.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
    }
    Ok(command)
}

fn switch_user(name: &str, command: &mut Command) -> Result<(), Error> {
    let missing = || io::Error::other(format!("there is no user {name:?}"));
    let user = User::from_name(name)
        .map_err(failed("looking up the user"))?
        .ok_or_else(|| failed::<io::Error>("looking up the user")(missing()))?;
    let c_name = CString::new(name).map_err(|_| failed::<io::Error>("looking up the user")(missing()))?;
    nix::unistd::initgroups(&c_name, user.gid).map_err(failed("setting the groups"))?;
    nix::unistd::setgid(user.gid).map_err(failed("setting the group"))?;
    nix::unistd::setuid(user.uid).map_err(failed("setting the user"))?;
    for (variable, value) in [("USER", name), ("LOGNAME", name)] {
        if std::env::var_os(variable).is_none() {
            command.env(variable, value);
        }
    }
    if std::env::var_os("HOME").is_none() {
        command.env("HOME", user.dir);
    }
    Ok(())
}

/// Puts the sockets at 3, 4, ... First all of them go above the last target, so that none overwrites another.
fn pass_sockets(sockets: &[OwnedFd]) -> Result<(), Error> {
    let os = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let above = LISTEN_FDS_START + sockets.len() as RawFd;
    let mut raised = Vec::with_capacity(sockets.len());
    for socket in sockets {
        // SAFETY: duplicates an open descriptor.
        let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
        raised.push(os(fd).map_err(failed("passing a socket"))?);
    }
    for (offset, fd) in raised.iter().enumerate() {
        // SAFETY: whatever was at the target (an original of a socket, the signalfd) is not used in this process any more,
        // and dup2 leaves the copy without FD_CLOEXEC, as it must be.
        os(unsafe { libc::dup2(*fd, LISTEN_FDS_START + offset as RawFd) })
            .map_err(failed("passing a socket"))?;
    }
    Ok(())
}

/// Signals come as readable data, so one poll sees them and the socket.
struct Signals(SignalFd);

impl Signals {
    /// Handed on to the kept process: whoever signals the guardian means what it guards.
    const FORWARDED: [Signal; 6] =
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

    fn block() -> Result<Signals, Error> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        for signal in Signals::FORWARDED {
            set.add(signal);
        }
        // Before the fork, so that no SIGCHLD is missed; the child clears its mask again.
        set.thread_block().map_err(failed("blocking signals"))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Signals(SignalFd::with_flags(&set, flags).map_err(failed("signalfd"))?))
    }

    fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

struct Guardian {
    control: UnixStream,
    signals: Signals,
    child: Pid,
    /// How the kept process ended, once it has.
    status: Option<u8>,
    /// Since when everything is being killed.
    killing: Option<Instant>,
}

impl Guardian {
    fn watch(&mut self) -> Result<u8, Error> {
        loop {
            self.wait_for_something()?;
            while let Some(signal) = self.signals.next() {
                if signal != Signal::SIGCHLD && self.status.is_none() {
                    let _ = kill(self.child, signal);
                }
            }
            self.listen();
            let none_left = self.reap();
            if none_left {
                return Ok(self.status.unwrap_or(0));
            }
            if self.status.is_some() {
                self.kill_from_now_on();
            }
            if let Some(since) = self.killing {
                if since.elapsed() > GIVE_UP_AFTER {
                    return Ok(self.status.unwrap_or(1));
                }
                kill_descendants();
            }
        }
    }

    fn wait_for_something(&self) -> Result<(), Error> {
        let timeout = match self.killing {
            // Not longer than this even without news: a process that forked while `/proc` was read must be found.
            Some(_) => PollTimeout::try_from(ROUND).unwrap_or(PollTimeout::ZERO),
            None => PollTimeout::NONE,
        };
        let mut fds = vec![PollFd::new(self.signals.0.as_fd(), PollFlags::POLLIN)];
        if self.killing.is_none() {
            fds.push(PollFd::new(self.control.as_fd(), PollFlags::POLLIN));
        }
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(failed("poll")(error)),
        }
    }

    fn listen(&mut self) {
        let mut orders = [0; 16];
        match self.control.read(&mut orders) {
            Ok(count) if count > 0 => {
                for order in &orders[..count] {
                    match order {
                        b'T' if self.status.is_none() => {
                            self.signal_group(Signal::SIGTERM);
                            // A stopped process takes SIGTERM only once it is continued.
                            self.signal_group(Signal::SIGCONT);
                        }
                        b'K' => self.kill_from_now_on(),
                        _ => {}
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The keeper is gone.
            Ok(_) | Err(_) => self.kill_from_now_on(),
        }
    }

    /// To the group; to the child alone while it has not made its group yet, or an order right after the start were lost.
    fn signal_group(&self, signal: Signal) {
        if killpg(self.child, signal).is_err() {
            let _ = kill(self.child, signal);
        }
    }

    fn kill_from_now_on(&mut self) {
        self.killing.get_or_insert_with(Instant::now);
    }

    /// Waits for all that ended; true when there is no descendant left. As a subreaper every one of them becomes a child of
    /// this process when its own parent ends, so "no child" means "no descendant".
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.child => {
                    self.status = Some(u8::try_from(code).unwrap_or(u8::MAX));
                    self.tell(&format!("exit {code}"));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.child => {
                    let number = signal as i32;
                    self.status = Some(u8::try_from(128 + number).unwrap_or(u8::MAX));
                    self.tell(&format!("signal {number}"));
                }
                Ok(WaitStatus::StillAlive) => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }

    fn tell(&self, line: &str) {
        // A keeper that is gone, or does not read, changes nothing here.
        let _ = (&self.control).write_all(format!("{line}\n").as_bytes());
    }
}

/// One round. Whatever forks meanwhile is found by the next.
fn kill_descendants() {
    for process in procfs::descendants(getpid().as_raw()) {
        if process.state != 'Z' {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_command_line() {
        let order = Order {
            control: 9,
            sockets: vec![("http".into(), 7), ("quic".into(), 8)],
            user: Some("bingo".into()),
            directory: Some("/opt/bingo".into()),
            command: vec!["/opt/bingo/bingo".into(), "--".into(), "run_server".into()],
        };
        assert_eq!(Order::parse(order.to_args()).unwrap(), order);
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["--control", "9"][..],
            &["--control", "nine", "--", "true"],
            &["--control", "1", "--", "true"],
            &["--control"],
            &["--socket", "http", "--", "true"],
            &["--", "true"],
            &["--else", "x", "--control", "9", "--", "true"],
        ] {
            assert!(Order::parse(args.iter().map(OsString::from)).is_err(), "{args:?}");
        }
    }
}
