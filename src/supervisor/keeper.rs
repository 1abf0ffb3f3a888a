//! The keeper: every instance of every process, started in order, stopped in the reverse.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::instance::{self, Parts, Phase, Status};
use super::lifecycle::{Event, Machine, Policy, Reason};
use super::logs::{Sink, Target};
use super::metrics::{InstanceMetrics, Metrics};
use super::process::{Spawner, Spec};
use super::recycle::{self, Candidate};
use super::settings::{Config, ProcessConfig};
use super::{Error, procfs, sockets};

/// How often memory is measured and planned restarts are looked for.
const CARE_INTERVAL: Duration = Duration::from_secs(1);

/// After SIGKILL, how long the keeper waits for what cannot die before it leaves. Beyond the guardian's own patience.
const GIVE_UP_AFTER: Duration = Duration::from_secs(35);

/// How long stopped instances may take to read the last output.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long the last lines may take to be written.
const LOG_WAIT_MAX: Duration = Duration::from_secs(1);

/// The two ways to end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Stop all in order: SIGTERM, and SIGKILL after each one's `stop_timeout`.
    pub stop: CancellationToken,
    /// SIGKILL to all, now.
    pub kill: CancellationToken,
}

/// Keeps processes. [`Keeper::new`] starts none; [`Keeper::run`] does.
pub struct Keeper {
    slots: Arc<[Slot]>,
    node: Arc<str>,
    parts: Vec<(Parts, mpsc::Receiver<Event>, watch::Sender<Status>)>,
    spawner: Spawner,
    sinks: HashMap<Target, Sink>,
}

/// One instance as the keeper sees it.
struct Slot {
    name: Arc<str>,
    process: usize,
    events: mpsc::Sender<Event>,
    status: watch::Receiver<Status>,
    metrics: InstanceMetrics,
    memory_max: Option<u64>,
    recycle_at: Option<Duration>,
    memory_bytes: std::sync::atomic::AtomicU64,
}

/// Sees the state of a keeper from outside. Clones are cheap.
#[derive(Clone)]
pub struct Watcher {
    slots: Arc<[Slot]>,
    node: Arc<str>,
}

impl Keeper {
    /// Checks the configuration, binds the sockets, opens the logs, registers the metrics.
    ///
    /// `shim` is the command line that leads to [`super::guardian::run`]. `adopt`: see [`Spawner::start`]; true in a
    /// process that is a keeper and nothing else. Must be called within a Tokio runtime.
    pub fn new(
        config: Config,
        shim: Vec<OsString>,
        adopt: bool,
        registry: &Registry,
    ) -> Result<Keeper, Error> {
        if let Some((index, problem)) = config.check().into_iter().next() {
            return Err(Error::Config { process: config.processes[index].name.clone(), problem });
        }
        let metrics = Metrics::new(registry)?;
        let spawner = Spawner::start(shim, adopt)?;
        let mut keeper = Keeper {
            slots: Arc::new([]),
            node: config.node.into(),
            parts: Vec::new(),
            spawner,
            sinks: HashMap::new(),
        };
        let mut slots = Vec::new();
        for (index, process) in config.processes.iter().enumerate() {
            keeper.add(index, process, &metrics, &mut slots)?;
        }
        keeper.slots = slots.into();
        Ok(keeper)
    }

    /// A view of it that outlives [`Keeper::run`].
    pub fn watcher(&self) -> Watcher {
        Watcher { slots: Arc::clone(&self.slots), node: Arc::clone(&self.node) }
    }

    /// See [`Watcher::status`].
    pub fn status(&self) -> Value {
        self.watcher().status()
    }

    /// Starts all, keeps them, and returns when all are stopped. Error: SIGCHLD cannot be watched; then nothing is started.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let Keeper { slots, node: _, parts, spawner, sinks } = self;
        let mut ended = signal(SignalKind::child()).map_err(Error::Signal)?;
        let mut instances = JoinSet::new();
        let leave = CancellationToken::new();
        for (parts, events, status) in parts {
            // Said here already, or a stop that comes before the first spawn is through would find it stopped.
            status.send_modify(|status| status.phase = Phase::Starting);
            instances.spawn(instance::run(parts, events, status, leave.clone()));
        }
        for slot in slots.iter() {
            slot.tell(Event::Start);
        }
        let watching = async {
            while ended.recv().await.is_some() {
                spawner.look();
            }
        };
        let stopping = async {
            tokio::select! {
                () = shutdown.stop.cancelled() => {}
                () = shutdown.kill.cancelled() => {}
                () = care(&slots) => {}
            }
            stop_all(&slots, &shutdown.kill).await;
        };
        let leaving = async {
            stopping.await;
            leave.cancel();
            let all_left = async { while instances.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(LEAVE_WAIT_MAX, all_left).await;
            // Whatever could not be stopped is left to its guardian, which sees the socket close when the task ends.
            instances.shutdown().await;
        };
        tokio::select! {
            () = leaving => {}
            () = watching => {}
        }
        let closing = move || sinks.into_values().for_each(|sink| sink.close(LOG_WAIT_MAX));
        let _ = tokio::task::spawn_blocking(closing).await;
        Ok(())
    }

    fn add(
        &mut self,
        index: usize,
        process: &ProcessConfig,
        metrics: &Metrics,
        slots: &mut Vec<Slot>,
    ) -> Result<(), Error> {
        let held = sockets::bind(&process.sockets)?;
        for (name, number) in process.instance_names().into_iter().zip(1..) {
            let filled = Filled::new(process, number)
                .map_err(|problem| Error::Config { process: process.name.clone(), problem })?;
            let spec = Spec {
                command: filled.command,
                user: process.user.clone(),
                environment: filled.environment,
                directory: filled.directory,
                sockets: held.clone(),
            };
            let targets = match filled.log {
                Some(path) => {
                    let file = Target::File(path, process.log.bytes_max);
                    (file.clone(), file)
                }
                None => (Target::Stdout, Target::Stderr),
            };
            // A file of one's own needs no prefix, so that what reads it (JSON, say) finds what was written.
            let shared = process.instances > 1 && !process.log.path.as_deref().is_some_and(names_instance);
            let prefixed = shared || process.log.path.is_none();
            let instance_metrics = metrics.of(&name);
            let name: Arc<str> = name.into();
            let (events, inbox) = mpsc::channel(16);
            let (status, seen) = watch::channel(Status::default());
            slots.push(Slot {
                name: Arc::clone(&name),
                process: index,
                events,
                status: seen,
                metrics: instance_metrics.clone(),
                memory_max: process.memory_max,
                recycle_at: process.recycle_after.map(|after| recycle::due_at(after, &self.node, &name)),
                memory_bytes: Default::default(),
            });
            let parts = Parts {
                prefix: if prefixed { format!("{name} | ") } else { String::new() },
                name,
                spec,
                machine: Machine::new(Policy::from(process)),
                health: filled.address.zip(process.health.clone()),
                spawner: self.spawner.clone(),
                sinks: (self.sink(targets.0)?, self.sink(targets.1)?),
                metrics: instance_metrics,
            };
            self.parts.push((parts, inbox, status));
        }
        Ok(())
    }

    fn sink(&mut self, target: Target) -> Result<Sink, Error> {
        if let Some(sink) = self.sinks.get(&target) {
            return Ok(sink.clone());
        }
        let sink = Sink::start(target.clone())?;
        self.sinks.insert(target, sink.clone());
        Ok(sink)
    }
}

fn names_instance(path: &std::path::Path) -> bool {
    path.to_str().is_some_and(|text| text.contains("{instance}") || text.contains("{address}"))
}

/// The templates of a process, filled in for one instance.
struct Filled {
    command: Vec<String>,
    environment: std::collections::BTreeMap<String, String>,
    directory: Option<PathBuf>,
    log: Option<PathBuf>,
    address: Option<std::net::SocketAddr>,
}

impl Filled {
    fn new(process: &ProcessConfig, number: u32) -> Result<Filled, String> {
        let address = match &process.address {
            Some(template) => {
                let refuse = || format!("address: {template} is none for instance {number}");
                Some(template.of(number).ok_or_else(refuse)?)
            }
            None => None,
        };
        let fill = |text: &str| {
            let text = text.replace("{instance}", &number.to_string());
            address.map_or(text.clone(), |address| text.replace("{address}", &address.to_string()))
        };
        let fill_path = |path: &PathBuf| match path.to_str() {
            Some(text) => PathBuf::from(fill(text)),
            None => path.clone(),
        };
        Ok(Filled {
            command: process.command.iter().map(|part| fill(part)).collect(),
            environment: process
                .environment
                .iter()
                .map(|(name, value)| (name.clone(), fill(value)))
                .collect(),
            directory: process.working_directory.as_ref().map(fill_path),
            log: process.log.path.as_ref().map(fill_path),
            address,
        })
    }
}

impl Slot {
    fn tell(&self, event: Event) {
        // The queue is full only if the instance is stuck in sixteen orders already; one more would not help.
        let _ = self.events.try_send(event);
    }

    async fn stopped(&self) {
        // An error means that its task has ended.
        let _ = self.status.clone().wait_for(|status| status.phase == Phase::Stopped).await;
    }
}

/// Watches memory and age for as long as it is polled.
async fn care(slots: &[Slot]) {
    let mut interval = tokio::time::interval(CARE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let guardians: Vec<Option<i32>> = slots.iter().map(|slot| slot.status.borrow().guardian).collect();
        let Ok(memory) = tokio::task::spawn_blocking(move || measure(&guardians)).await else { continue };
        for (slot, bytes) in slots.iter().zip(memory) {
            slot.memory_bytes.store(bytes, std::sync::atomic::Ordering::Relaxed);
            slot.metrics.set_memory(bytes);
            if slot.memory_max.is_some_and(|most| bytes > most) {
                slot.tell(Event::Restart(Reason::Memory));
            }
        }
        let now = Instant::now();
        let candidates: Vec<Candidate> = slots.iter().map(|slot| slot.candidate(now)).collect();
        for index in recycle::choose(&candidates) {
            slots[index].tell(Event::Restart(Reason::Recycle));
        }
        for (slot, candidate) in slots.iter().zip(candidates) {
            slot.metrics.set_uptime(candidate.uptime);
        }
    }
}

impl Slot {
    fn candidate(&self, now: Instant) -> Candidate {
        let status = self.status.borrow();
        Candidate {
            process: self.process,
            uptime: status.up_since.map(|since| now.saturating_duration_since(since)),
            healthy: status.healthy,
            due_at: self.recycle_at,
        }
    }
}

/// Resident bytes of what each guardian guards.
fn measure(guardians: &[Option<i32>]) -> Vec<u64> {
    let all = procfs::processes();
    let of = |guardian: &i32| procfs::of(*guardian, &all).iter().map(|p| procfs::resident_bytes(p.pid)).sum();
    guardians.iter().map(|guardian| guardian.as_ref().map_or(0, of)).collect()
}

async fn stop_all(slots: &[Slot], kill: &CancellationToken) {
    let orderly = async {
        let mut rest = slots;
        // The instances of one process stop together: what comes before them in the order waits for all of them.
        while let Some(last) = rest.last() {
            let first = rest.iter().position(|slot| slot.process == last.process).unwrap_or(0);
            let (before, group) = rest.split_at(first);
            group.iter().for_each(|slot| slot.tell(Event::Stop));
            futures::future::join_all(group.iter().map(Slot::stopped)).await;
            rest = before;
        }
    };
    tokio::select! {
        () = orderly => return,
        () = kill.cancelled() => {}
    }
    slots.iter().for_each(|slot| slot.tell(Event::Kill));
    let gone = futures::future::join_all(slots.iter().map(Slot::stopped));
    if tokio::time::timeout(GIVE_UP_AFTER, gone).await.is_err() {
        tracing::error!("Some processes could not be killed; leaving them behind.");
    }
}

impl Watcher {
    /// Everything `/status` shows.
    pub fn status(&self) -> Value {
        let now = Instant::now();
        let processes: Vec<Value> = self.slots.iter().map(|slot| slot.status_at(now)).collect();
        let all = self.slots.iter().all(|slot| slot.status.borrow().healthy);
        json!({
            "node": &*self.node,
            // The words of a proxy's status, so that one reader does for both.
            "state": if all { "ready" } else { "starting" },
            "processes": processes,
        })
    }
}

impl Slot {
    fn status_at(&self, now: Instant) -> Value {
        let status = self.status.borrow().clone();
        let Status {
            phase,
            phase_since,
            pid,
            guardian,
            up_since,
            healthy,
            restarts,
            last_end,
            last_probe_failure,
        } = status;
        json!({
            "name": &*self.name,
            "state": phase.as_str(),
            "since_seconds": now.saturating_duration_since(phase_since).as_secs_f64(),
            "healthy": healthy,
            "pid": pid,
            "guardian_pid": guardian,
            "uptime_seconds": up_since.map(|since| now.saturating_duration_since(since).as_secs()),
            "restarts": restarts,
            "memory_bytes": self.memory_bytes.load(std::sync::atomic::Ordering::Relaxed),
            "last_exit": last_end,
            "last_probe_failure": last_probe_failure,
        })
    }
}
