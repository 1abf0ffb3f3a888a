//! The life of one kept process as a pure state machine: (state, event, now) → (state, actions).
//!
//! ```text
//!            Start                   probe ok (or no probes)
//!  Stopped ────────► Starting ───────────────────────────► Running
//!     ▲  ▲               │ exited          unhealthy, exited  │
//!     │  │ Stop          ▼                                    ▼
//!     │  └─────────── Backoff ◄───────── exited ───────── Stopping
//!     └────────────────────────── exited, if told to stop ────┘
//! ```
//!
//! What always holds, and is property-tested below: a new process is spawned only after the last one is gone; never
//! sooner than the shortest backoff after the last spawn; `Stop` ends in `Stopped` once the process is gone; SIGKILL
//! follows SIGTERM within the stop timeout.

use std::time::{Duration, Instant};

use super::settings::{Backoff, ProcessConfig};

/// The longest an unhealthy process gets between SIGTERM and SIGKILL. It is not expected to end well, a stopped or hung
/// one cannot even take the signal, and every second of it is a second without service.
pub const SICK_STOP_MAX: Duration = Duration::from_secs(3);

/// How long a process must have been running for its next restart to start again from the shortest backoff.
pub const STABLE_AFTER: Duration = Duration::from_secs(30);

/// SIGKILL is repeated at this interval while the process is still there (it may be stuck in the kernel).
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// The part of a [`ProcessConfig`] that decides its life.
#[derive(Clone, Debug)]
pub struct Policy {
    pub start_grace: Duration,
    pub stop_timeout: Duration,
    pub backoff: Backoff,
    /// `None`: no probes, so it runs from its start.
    pub unhealthy_after: Option<u32>,
}

impl From<&ProcessConfig> for Policy {
    fn from(config: &ProcessConfig) -> Policy {
        Policy {
            start_grace: config.start_grace,
            stop_timeout: config.stop_timeout,
            backoff: config.backoff,
            unhealthy_after: config.health.as_ref().map(|health| health.unhealthy_after),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing runs and nothing will until `Start`.
    Stopped,
    /// Alive, not yet seen healthy; until `grace` failing probes do not count.
    Starting { since: Instant, grace: Instant, failures: u32 },
    /// Alive and was healthy; `failures` probes failed in a row.
    Running { since: Instant, healthy_since: Instant, failures: u32 },
    /// SIGTERM was sent; at `deadline` SIGKILL is (again).
    Stopping { deadline: Instant, killed: bool, then: Then },
    /// Gone; spawned again at `until`.
    Backoff { until: Instant },
}

/// What follows when a stopping process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Stop,
    Restart,
}

/// Why a process is restarted: the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It ended by itself or was killed by another.
    Exit,
    /// It could not be started.
    Spawn,
    /// Probes failed.
    Unhealthy,
    /// Beyond `memory_max`.
    Memory,
    /// Planned, after `recycle_after`.
    Recycle,
}

impl Reason {
    pub const ALL: [Reason; 5] =
        [Reason::Exit, Reason::Spawn, Reason::Unhealthy, Reason::Memory, Reason::Recycle];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Exit => "exit",
            Reason::Spawn => "spawn",
            Reason::Unhealthy => "unhealthy",
            Reason::Memory => "memory",
            Reason::Recycle => "recycle",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Keep it running from now on.
    Start,
    /// Stop it in order, for good.
    Stop,
    /// Stop it at once, for good.
    Kill,
    /// Restart it in order (memory, recycling).
    Restart(Reason),
    /// It and all its descendants are gone.
    Exited,
    /// The last `Spawn` failed; nothing runs.
    SpawnFailed,
    /// A probe of the living process ended: healthy or not.
    Probe(bool),
    /// [`Machine::deadline`] is reached. Harmless at any other time.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the process; answer with `Exited` or `SpawnFailed` one day.
    Spawn,
    /// SIGTERM to its process group.
    Terminate,
    /// SIGKILL to it and everything that came of it.
    Kill,
    /// It is being restarted: count it.
    Restarting(Reason),
}

/// At most two actions follow from one event.
pub type Actions = [Option<Action>; 2];

const NOTHING: Actions = [None, None];

/// One process's life. Feed it events in the order they happen; do its actions in the order given.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    state: State,
    /// Restarts in a row without a stable run in between: the exponent of the backoff.
    restarts_in_row: u32,
    spawned_at: Option<Instant>,
}

impl Machine {
    pub fn new(policy: Policy) -> Machine {
        Machine { policy, state: State::Stopped, restarts_in_row: 0, spawned_at: None }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// When the next `Tick` is due, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Stopped | State::Starting { .. } | State::Running { .. } => None,
            State::Stopping { deadline, .. } => Some(deadline),
            State::Backoff { until } => Some(until),
        }
    }

    /// Alive and answering, as far as is known.
    pub fn healthy(&self) -> bool {
        matches!(self.state, State::Running { failures: 0, .. })
    }

    /// Since when the living process has been up.
    pub fn up_since(&self) -> Option<Instant> {
        match self.state {
            State::Starting { since, .. } | State::Running { since, .. } => Some(since),
            State::Stopping { .. } | State::Stopped | State::Backoff { .. } => None,
        }
    }

    #[must_use]
    pub fn step(&mut self, event: Event, now: Instant) -> Actions {
        match event {
            Event::Start => self.start(now),
            Event::Stop => self.stop(now),
            Event::Kill => self.kill(now),
            Event::Restart(reason) => self.restart(reason, self.policy.stop_timeout, now),
            Event::Exited => self.gone(Reason::Exit, now),
            Event::SpawnFailed => self.gone(Reason::Spawn, now),
            Event::Probe(healthy) => self.probed(healthy, now),
            Event::Tick => self.tick(now),
        }
    }

    fn start(&mut self, now: Instant) -> Actions {
        match self.state {
            State::Stopped => {
                // Told to start again right after a stop: the shortest backoff still holds.
                let earliest = self.spawned_at.map_or(now, |at| at + self.policy.backoff.min);
                if earliest > now {
                    self.state = State::Backoff { until: earliest };
                    return NOTHING;
                }
                self.spawn(now)
            }
            State::Stopping { deadline, killed, then: Then::Stop } => {
                self.state = State::Stopping { deadline, killed, then: Then::Restart };
                NOTHING
            }
            _ => NOTHING,
        }
    }

    fn spawn(&mut self, now: Instant) -> Actions {
        self.spawned_at = Some(now);
        self.state = match self.policy.unhealthy_after {
            None => State::Running { since: now, healthy_since: now, failures: 0 },
            Some(_) => State::Starting { since: now, grace: now + self.policy.start_grace, failures: 0 },
        };
        [Some(Action::Spawn), None]
    }

    fn stop(&mut self, now: Instant) -> Actions {
        match self.state {
            State::Stopped => NOTHING,
            State::Backoff { .. } => {
                self.state = State::Stopped;
                NOTHING
            }
            State::Starting { .. } | State::Running { .. } => {
                self.terminate(self.policy.stop_timeout, Then::Stop, now)
            }
            State::Stopping { deadline, killed, .. } => {
                self.state = State::Stopping { deadline, killed, then: Then::Stop };
                NOTHING
            }
        }
    }

    fn kill(&mut self, now: Instant) -> Actions {
        match self.state {
            State::Stopped => NOTHING,
            State::Backoff { .. } => {
                self.state = State::Stopped;
                NOTHING
            }
            _ => {
                self.state = State::Stopping { deadline: now + KILL_AGAIN, killed: true, then: Then::Stop };
                [Some(Action::Kill), None]
            }
        }
    }

    fn restart(&mut self, reason: Reason, timeout: Duration, now: Instant) -> Actions {
        match self.state {
            State::Starting { .. } | State::Running { .. } => {
                self.note_run(now);
                let [first, _] = self.terminate(timeout, Then::Restart, now);
                [Some(Action::Restarting(reason)), first]
            }
            // It is on its way already, or must not run.
            State::Stopping { .. } | State::Stopped | State::Backoff { .. } => NOTHING,
        }
    }

    fn terminate(&mut self, timeout: Duration, then: Then, now: Instant) -> Actions {
        self.state = State::Stopping { deadline: now + timeout, killed: false, then };
        [Some(Action::Terminate), None]
    }

    fn gone(&mut self, reason: Reason, now: Instant) -> Actions {
        match self.state {
            State::Starting { .. } | State::Running { .. } => {
                self.note_run(now);
                self.back_off(now);
                [Some(Action::Restarting(reason)), None]
            }
            State::Stopping { then: Then::Restart, .. } => {
                self.back_off(now);
                NOTHING
            }
            State::Stopping { then: Then::Stop, .. } => {
                self.state = State::Stopped;
                NOTHING
            }
            State::Stopped | State::Backoff { .. } => NOTHING,
        }
    }

    /// A run that lasted starts the backoff anew. Called when a run is given up.
    fn note_run(&mut self, now: Instant) {
        if let State::Running { healthy_since, .. } = self.state
            && now.saturating_duration_since(healthy_since) >= STABLE_AFTER
        {
            self.restarts_in_row = 0;
        }
    }

    fn back_off(&mut self, now: Instant) {
        let Backoff { min, max } = self.policy.backoff;
        let factor = 1u32.checked_shl(self.restarts_in_row).unwrap_or(u32::MAX);
        let wait = min.saturating_mul(factor).min(max).max(min);
        self.restarts_in_row = self.restarts_in_row.saturating_add(1);
        self.state = State::Backoff { until: now + wait };
    }

    fn probed(&mut self, healthy: bool, now: Instant) -> Actions {
        let Some(unhealthy_after) = self.policy.unhealthy_after else { return NOTHING };
        let failures_in_row = match (&mut self.state, healthy) {
            (State::Starting { since, .. }, true) => {
                self.state = State::Running { since: *since, healthy_since: now, failures: 0 };
                return NOTHING;
            }
            (State::Running { failures, .. }, true) => {
                *failures = 0;
                return NOTHING;
            }
            (State::Starting { grace, .. }, false) if now < *grace => return NOTHING,
            (State::Starting { failures, .. } | State::Running { failures, .. }, false) => {
                *failures = failures.saturating_add(1);
                *failures
            }
            _ => return NOTHING,
        };
        if failures_in_row < unhealthy_after {
            return NOTHING;
        }
        self.restart(Reason::Unhealthy, self.policy.stop_timeout.min(SICK_STOP_MAX), now)
    }

    fn tick(&mut self, now: Instant) -> Actions {
        match self.state {
            State::Stopping { deadline, then, .. } if now >= deadline => {
                self.state = State::Stopping { deadline: now + KILL_AGAIN, killed: true, then };
                [Some(Action::Kill), None]
            }
            State::Backoff { until } if now >= until => self.spawn(now),
            _ => NOTHING,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIN: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(15);

    fn policy(unhealthy_after: Option<u32>) -> Policy {
        Policy {
            start_grace: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(10),
            backoff: Backoff { min: MIN, max: MAX },
            unhealthy_after,
        }
    }

    /// Steps and drops the empty places.
    fn step(machine: &mut Machine, event: Event, now: Instant) -> Vec<Action> {
        machine.step(event, now).into_iter().flatten().collect()
    }

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn a_hung_process_is_replaced_within_seconds() {
        let start = Instant::now();
        let mut machine = Machine::new(policy(Some(3)));
        assert_eq!(step(&mut machine, Event::Start, start), [Action::Spawn]);
        assert_eq!(step(&mut machine, Event::Probe(true), start + seconds(30.0)), []);
        let mut now = start + seconds(100.0);
        for _ in 0..2 {
            assert_eq!(step(&mut machine, Event::Probe(false), now), []);
            now += seconds(2.0);
        }
        let detected = now;
        assert_eq!(
            step(&mut machine, Event::Probe(false), now),
            [Action::Restarting(Reason::Unhealthy), Action::Terminate]
        );
        now = machine.deadline().unwrap();
        assert_eq!(step(&mut machine, Event::Tick, now), [Action::Kill]);
        assert_eq!(step(&mut machine, Event::Exited, now), []);
        now = machine.deadline().unwrap();
        assert_eq!(step(&mut machine, Event::Tick, now), [Action::Spawn]);
        assert_eq!(now - detected, SICK_STOP_MAX + MIN);
    }

    #[test]
    fn failing_probes_do_not_count_during_the_grace() {
        let start = Instant::now();
        let mut machine = Machine::new(policy(Some(1)));
        step(&mut machine, Event::Start, start);
        assert_eq!(step(&mut machine, Event::Probe(false), start + seconds(59.0)), []);
        assert_eq!(
            step(&mut machine, Event::Probe(false), start + seconds(60.0)),
            [Action::Restarting(Reason::Unhealthy), Action::Terminate]
        );
    }

    #[test]
    fn backoff_doubles_to_its_maximum_and_starts_anew_after_a_stable_run() {
        let mut now = Instant::now();
        let mut machine = Machine::new(policy(None));
        step(&mut machine, Event::Start, now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            step(&mut machine, Event::Exited, now);
            let until = machine.deadline().unwrap();
            waits.push((until - now).as_millis());
            now = until;
            assert_eq!(step(&mut machine, Event::Tick, now), [Action::Spawn]);
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        now += STABLE_AFTER;
        step(&mut machine, Event::Exited, now);
        assert_eq!(machine.deadline().unwrap() - now, MIN);
    }

    #[test]
    fn a_kill_that_does_not_bite_is_repeated() {
        let start = Instant::now();
        let mut machine = Machine::new(policy(None));
        step(&mut machine, Event::Start, start);
        assert_eq!(step(&mut machine, Event::Stop, start), [Action::Terminate]);
        let first = machine.deadline().unwrap();
        assert_eq!(first - start, seconds(10.0));
        assert_eq!(step(&mut machine, Event::Tick, first), [Action::Kill]);
        let second = machine.deadline().unwrap();
        assert_eq!(step(&mut machine, Event::Tick, second), [Action::Kill]);
        step(&mut machine, Event::Exited, second);
        assert_eq!(machine.state(), State::Stopped);
    }

    #[test]
    fn start_while_stopping_restarts_and_stop_takes_it_back() {
        let start = Instant::now();
        let mut machine = Machine::new(policy(None));
        step(&mut machine, Event::Start, start);
        step(&mut machine, Event::Stop, start);
        step(&mut machine, Event::Start, start);
        step(&mut machine, Event::Stop, start);
        step(&mut machine, Event::Exited, start);
        assert_eq!(machine.state(), State::Stopped);
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            1 => Just(Event::Start),
            1 => Just(Event::Stop),
            1 => Just(Event::Kill),
            1 => Just(Event::Restart(Reason::Memory)),
            3 => Just(Event::Exited),
            6 => any::<bool>().prop_map(Event::Probe),
            6 => Just(Event::Tick),
        ]
    }

    /// A world with one process slot, in which a living process ends only when it likes to or is killed.
    struct World {
        machine: Machine,
        now: Instant,
        alive: bool,
        last_spawn: Option<Instant>,
        terminated_at: Option<Instant>,
        killed: bool,
    }

    impl World {
        fn new(unhealthy_after: Option<u32>) -> World {
            World {
                machine: Machine::new(policy(unhealthy_after)),
                now: Instant::now(),
                alive: false,
                last_spawn: None,
                terminated_at: None,
                killed: false,
            }
        }

        fn feed(&mut self, event: Event) {
            if event == Event::Exited {
                if !self.alive {
                    return;
                }
                self.alive = false;
                self.terminated_at = None;
                self.killed = false;
            }
            for action in step(&mut self.machine, event, self.now) {
                match action {
                    Action::Spawn => {
                        assert!(!self.alive, "two live children");
                        if let Some(last) = self.last_spawn {
                            assert!(self.now - last >= MIN, "restarted after {:?}", self.now - last);
                        }
                        self.alive = true;
                        self.last_spawn = Some(self.now);
                    }
                    Action::Terminate => {
                        assert!(self.alive, "nobody to terminate");
                        self.terminated_at = Some(self.now);
                    }
                    Action::Kill => {
                        assert!(self.alive, "nobody to kill");
                        self.killed = true;
                    }
                    Action::Restarting(_) => {}
                }
            }
            let idle = matches!(self.machine.state(), State::Stopped | State::Backoff { .. });
            assert_eq!(idle, !self.alive, "the machine and the world disagree");
        }

        /// Lets `wait` pass, with every tick at its time.
        fn pass(&mut self, wait: Duration) {
            let end = self.now + wait;
            while let Some(due) = self.machine.deadline().filter(|due| *due <= end) {
                self.now = due.max(self.now);
                if let Some(at) = self.terminated_at.filter(|_| !self.killed) {
                    assert!(self.now - at <= seconds(10.0), "SIGKILL is late");
                }
                self.feed(Event::Tick);
                assert!(self.machine.deadline().is_none_or(|next| next > due), "a busy loop");
            }
            self.now = end;
        }
    }

    proptest! {
        #[test]
        fn one_child_bounded_restarts_and_stop_stops(
            unhealthy_after in proptest::option::of(1u32..4),
            script in proptest::collection::vec((events(), 0u64..20_000), 1..200),
        ) {
            let mut world = World::new(unhealthy_after);
            for (event, wait_ms) in script {
                world.pass(Duration::from_millis(wait_ms));
                world.feed(event);
            }
            world.feed(Event::Stop);
            world.pass(seconds(10.0));
            prop_assert!(!world.alive || world.killed, "neither gone nor killed 10 s after Stop");
            world.feed(Event::Exited);
            prop_assert_eq!(world.machine.state(), State::Stopped);
            world.pass(seconds(100.0));
            prop_assert_eq!(world.machine.state(), State::Stopped);
        }

        /// A process that dies under the first signal that can reach it is back within 20 s of any trouble.
        #[test]
        fn recovery_is_bounded(exits in proptest::collection::vec((any::<bool>(), 0u64..40_000), 1..30)) {
            let mut world = World::new(Some(1));
            world.feed(Event::Start);
            for (hangs, wait_ms) in exits {
                world.feed(Event::Probe(true));
                world.pass(Duration::from_millis(wait_ms));
                let trouble = world.now;
                if hangs {
                    world.feed(Event::Probe(false));
                    world.pass(SICK_STOP_MAX);
                    prop_assert!(world.killed);
                }
                world.feed(Event::Exited);
                let back = world.machine.deadline().unwrap();
                prop_assert!(back - trouble <= SICK_STOP_MAX + MAX);
                world.pass(back - world.now);
                prop_assert!(world.alive);
            }
        }
    }
}
