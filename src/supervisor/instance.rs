//! One kept instance: the thin shell around [`Machine`] that does its actions and feeds it what happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::lifecycle::{Action, Event, Machine, Reason, State};
use super::logs::{self, Sink};
use super::metrics::InstanceMetrics;
use super::probe::{self, Outcome};
use super::process::{Child, News, Spawner, Spec};
use super::settings::HealthConfig;

/// The first probe comes no later than this after the start: a process that serves at once is known to at once.
const FIRST_PROBE_MAX: Duration = Duration::from_millis(250);

/// How long the last output of a stopped instance is waited for.
const OUTPUT_WAIT_MAX: Duration = Duration::from_secs(1);

/// What can be seen of an instance from outside.
#[derive(Clone, Debug)]
pub struct Status {
    pub phase: Phase,
    pub phase_since: Instant,
    /// The program's own pid.
    pub pid: Option<i32>,
    pub guardian: Option<i32>,
    pub up_since: Option<Instant>,
    pub healthy: bool,
    pub restarts: u64,
    /// How it last ended: `exit 1`, `signal 9`, or why it could not be started.
    pub last_end: Option<String>,
    /// What the last failed probe saw.
    pub last_probe_failure: Option<String>,
}

/// The states by their names in `/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Stopped,
    Starting,
    Running,
    Stopping,
    Backoff,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Stopped => "stopped",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Backoff => "backoff",
        }
    }
}

impl From<State> for Phase {
    fn from(state: State) -> Phase {
        match state {
            State::Stopped => Phase::Stopped,
            State::Starting { .. } => Phase::Starting,
            State::Running { .. } => Phase::Running,
            State::Stopping { .. } => Phase::Stopping,
            State::Backoff { .. } => Phase::Backoff,
        }
    }
}

impl Default for Status {
    fn default() -> Status {
        Status {
            phase: Phase::Stopped,
            phase_since: Instant::now(),
            pid: None,
            guardian: None,
            up_since: None,
            healthy: false,
            restarts: 0,
            last_end: None,
            last_probe_failure: None,
        }
    }
}

/// What an instance is made of.
pub struct Parts {
    pub name: Arc<str>,
    pub spec: Spec,
    pub machine: Machine,
    pub health: Option<(SocketAddr, HealthConfig)>,
    pub spawner: Spawner,
    /// Where stdout and stderr go.
    pub sinks: (Sink, Sink),
    /// Put before each line.
    pub prefix: String,
    pub metrics: InstanceMetrics,
}

/// Runs the instance until it is told to `leave` and is stopped. It does nothing before [`Event::Start`].
pub async fn run(
    parts: Parts,
    events: mpsc::Receiver<Event>,
    status: watch::Sender<Status>,
    leave: CancellationToken,
) {
    let output = JoinSet::new();
    let instance =
        Instance { parts, events, status, leave, child: None, probes: None, kills: 0, failed: false, output };
    instance.run().await;
}

struct Instance {
    parts: Parts,
    events: mpsc::Receiver<Event>,
    status: watch::Sender<Status>,
    leave: CancellationToken,
    child: Option<Child>,
    probes: Option<Probes>,
    /// SIGKILLs ordered for this child.
    kills: u32,
    /// This child's program could not be started.
    failed: bool,
    output: JoinSet<()>,
}

/// The probing task of one child, ended with it: no outcome of one child is taken for the next one's.
struct Probes {
    outcomes: mpsc::Receiver<Outcome>,
    task: AbortHandle,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Happening {
    Told(Event),
    Leave,
    News(News),
    Probed(Outcome),
    Due,
}

impl Instance {
    async fn run(mut self) {
        let mut leaving = false;
        while !(leaving && self.parts.machine.state() == State::Stopped) {
            let event = match self.next(leaving).await {
                Happening::Told(event) => Some(event),
                Happening::Leave => {
                    leaving = true;
                    Some(Event::Kill)
                }
                Happening::News(news) => self.note(news),
                Happening::Probed(outcome) => Some(self.note_probe(outcome)),
                Happening::Due => Some(Event::Tick),
            };
            if let Some(event) = event {
                self.apply(event).await;
            }
            self.publish();
        }
        let drained = async { while self.output.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(OUTPUT_WAIT_MAX, drained).await;
    }

    async fn next(&mut self, leaving: bool) -> Happening {
        let Instance { parts, events, leave, child, probes, output, .. } = self;
        let deadline = parts.machine.deadline();
        let news = async {
            match child {
                Some(child) => child.news().await,
                None => std::future::pending().await,
            }
        };
        let probed = async {
            match probes {
                Some(probes) => probes.outcomes.recv().await,
                None => std::future::pending().await,
            }
        };
        let due = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        // Readers that are through are forgotten; this never ends.
        let forget = async {
            while output.join_next().await.is_some() {}
            std::future::pending::<Happening>().await
        };
        tokio::select! {
            () = leave.cancelled(), if !leaving => Happening::Leave,
            Some(event) = events.recv(), if !leaving => Happening::Told(event),
            news = news => Happening::News(news),
            Some(outcome) = probed => Happening::Probed(outcome),
            () = due => Happening::Due,
            never = forget => never,
        }
    }

    async fn apply(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.parts.machine.step(event, Instant::now()).into_iter().flatten() {
                match action {
                    Action::Spawn => events.extend(self.spawn().await),
                    Action::Terminate => {
                        self.probes = None;
                        self.child.iter().for_each(Child::terminate);
                    }
                    Action::Kill => self.kill(),
                    Action::Restarting(reason) => self.count(reason),
                }
            }
        }
    }

    async fn spawn(&mut self) -> Option<Event> {
        self.kills = 0;
        self.failed = false;
        match self.parts.spawner.spawn(self.parts.spec.clone()).await {
            Ok(mut child) => {
                if let Some((stdout, stderr)) = child.take_output() {
                    let Parts { prefix, sinks, metrics, .. } = &self.parts;
                    let dropped = || metrics.dropped.clone();
                    self.output.spawn(logs::pump(stdout, prefix.clone(), sinks.0.clone(), dropped()));
                    self.output.spawn(logs::pump(stderr, prefix.clone(), sinks.1.clone(), dropped()));
                }
                let guardian = child.guardian();
                self.status.send_modify(|status| status.guardian = Some(guardian));
                self.child = Some(child);
                self.probes =
                    self.parts.health.clone().map(|(address, health)| start_probes(address, health));
                None
            }
            Err(error) => {
                let text = format!(
                    "{error}: {}",
                    std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
                );
                tracing::error!(process = %self.parts.name, error = text, "Cannot start a process.");
                self.status.send_modify(|status| status.last_end = Some(text));
                Some(Event::SpawnFailed)
            }
        }
    }

    fn kill(&mut self) {
        self.probes = None;
        self.kills += 1;
        if let Some(child) = &self.child {
            child.kill();
            if self.kills > 1 {
                child.kill_guardian();
            }
        }
    }

    fn count(&self, reason: Reason) {
        self.parts.metrics.restarted(reason);
        self.status.send_modify(|status| status.restarts += 1);
        let last_end = self.status.borrow().last_end.clone().unwrap_or_default();
        let last_probe = self.status.borrow().last_probe_failure.clone().unwrap_or_default();
        let process = &self.parts.name;
        match reason {
            Reason::Exit | Reason::Spawn => {
                tracing::warn!(%process, reason = reason.as_str(), last_end, "Restarting a process.");
            }
            Reason::Unhealthy => {
                tracing::warn!(%process, reason = reason.as_str(), last_probe, "Restarting a process.");
            }
            Reason::Memory | Reason::Recycle => {
                tracing::info!(%process, reason = reason.as_str(), "Restarting a process.");
            }
        }
    }

    fn note(&mut self, news: News) -> Option<Event> {
        let process = &self.parts.name;
        match news {
            News::Pid(pid) => {
                tracing::info!(%process, pid, "Started a process.");
                self.status.send_modify(|status| status.pid = Some(pid));
                None
            }
            News::Failed(text) => {
                tracing::error!(%process, error = text, "Cannot start a process.");
                self.failed = true;
                self.status.send_modify(|status| status.last_end = Some(text));
                None
            }
            News::Ended(how) => {
                self.probes = None;
                if !self.failed {
                    tracing::info!(%process, how, "A process ended.");
                    self.status.send_modify(|status| status.last_end = Some(how));
                }
                None
            }
            News::Gone => {
                self.child = None;
                self.probes = None;
                self.status.send_modify(|status| {
                    status.pid = None;
                    status.guardian = None;
                });
                Some(if self.failed { Event::SpawnFailed } else { Event::Exited })
            }
        }
    }

    fn note_probe(&self, outcome: Outcome) -> Event {
        match outcome {
            Outcome::Healthy => Event::Probe(true),
            Outcome::Unhealthy(why) => {
                self.parts.metrics.probe_failures.inc();
                self.status.send_modify(|status| status.last_probe_failure = Some(why));
                Event::Probe(false)
            }
        }
    }

    fn publish(&self) {
        let machine = &self.parts.machine;
        self.parts.metrics.up.set(i64::from(machine.healthy()));
        self.status.send_modify(|status| {
            let phase = machine.state().into();
            if status.phase != phase {
                status.phase = phase;
                status.phase_since = Instant::now();
            }
            status.healthy = machine.healthy();
            status.up_since = machine.up_since();
        });
    }
}

fn start_probes(address: SocketAddr, health: HealthConfig) -> Probes {
    let (sender, outcomes) = mpsc::channel(1);
    let task = tokio::spawn(async move {
        let HealthConfig { path, interval, timeout, unhealthy_after: _ } = health;
        tokio::time::sleep(interval.min(FIRST_PROBE_MAX)).await;
        loop {
            let outcome = probe::probe(address, &path, timeout).await;
            if sender.send(outcome).await.is_err() {
                return;
            }
            tokio::time::sleep(interval).await;
        }
    });
    Probes { outcomes, task: task.abort_handle() }
}
