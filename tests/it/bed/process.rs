//! A child process: its output line by line, signals, and a certain end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::until;

/// A child in a process group of its own. Dropping it kills the group; should the test program itself be killed, the
/// kernel does.
pub struct Process {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    collecting: [JoinHandle<()>; 2],
}

type Lines = Arc<Mutex<Vec<String>>>;

impl Process {
    /// Starts `forefront` with these arguments. To be called on the test's own thread: the child dies with its thread.
    pub fn start<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forefront"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and touches nothing of this process.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn().expect("the program was built by cargo");
        let (stdout, out) = collect(child.stdout.take().expect("it is piped"));
        let (stderr, err) = collect(child.stderr.take().expect("it is piped"));
        Process { child, stdout, stderr, collecting: [out, err] }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child was not waited for, so its id is still its own.
        let sent = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(sent, 0, "signal {signal} to {}", self.child.id());
    }

    /// The state letter of /proc/PID/stat: T is stopped, R and S run, Z is dead.
    pub fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('X')
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        let kib: u64 =
            line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a live process has VmRSS");
        kib * 1024
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child is ours").is_some()
    }

    /// Waits for the end, and for the last of its output.
    pub async fn ended(&mut self) -> ExitStatus {
        until("the process ends", async || {
            self.has_ended() && self.collecting.iter().all(JoinHandle::is_finished)
        })
        .await;
        self.child.wait().expect("the child is ours")
    }

    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().expect("no holder panics").clone()
    }

    /// What it wrote to standard error so far: the log of a node.
    pub fn log(&self) -> String {
        self.stderr.lock().expect("no holder panics").join("\n")
    }

    /// Waits until a line of standard error holds `text`.
    pub async fn logged(&self, text: &str) {
        until(&format!("{text:?} in the log"), async || self.log().contains(text)).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: only the group this process was started in gets the signal; it is not reused before the wait.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of process {}:\n{}\n---", self.pid(), self.log());
        }
    }
}

fn collect(pipe: impl Read + Send + 'static) -> (Lines, JoinHandle<()>) {
    let lines = Lines::default();
    let kept = lines.clone();
    let collecting = std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            kept.lock().expect("no holder panics").push(line);
        }
    });
    (lines, collecting)
}
