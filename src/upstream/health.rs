//! The state machine of one endpoint's health. Pure: events and time in, transitions out.

use std::time::{Duration, Instant};

use super::config::{HealthConfig, PassiveConfig};

/// The numbers that decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    pub unhealthy_after: u32,
    pub healthy_after: u32,
    /// 0 is never.
    pub failures: u32,
    /// 0 is never.
    pub server_errors: u32,
    pub eject_for: Duration,
    pub eject_for_max: Duration,
}

impl Thresholds {
    pub fn new(health: Option<&HealthConfig>, passive: &PassiveConfig) -> Thresholds {
        let PassiveConfig { failures, server_errors, eject_for, eject_for_max } = passive.clone();
        Thresholds {
            unhealthy_after: health.map_or(1, |health| health.unhealthy_after.max(1)),
            healthy_after: health.map_or(1, |health| health.healthy_after.max(1)),
            failures,
            server_errors,
            eject_for,
            eject_for_max: eject_for_max.max(eject_for),
        }
    }
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A probe that began at `started` was answered well.
    ProbeOk { started: Instant },
    /// A probe failed. `silent`: the endpoint said nothing at all in time, as a hung process or a dead host does;
    /// otherwise it refused or answered badly.
    ProbeFailed { silent: bool },
    /// A request was answered, and not as a sick process does.
    Answered,
    /// A connection was refused: the port is closed.
    Refused,
    /// A request timed out or its answer broke.
    NoAnswer,
    /// A request was answered as a sick process does.
    ServerError,
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Refused,
    NoAnswer,
    ServerErrors,
}

impl Reason {
    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Refused => "refused",
            Reason::NoAnswer => "no_answer",
            Reason::ServerErrors => "server_errors",
        }
    }
}

/// A change that is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Usable, by a probe's word.
    Up,
    /// Marked down by probes.
    Down,
    /// Taken out by traffic.
    Ejected(Reason),
}

/// What follows from an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    pub transition: Option<Transition>,
    /// Requests that wait for an answer of this endpoint had better stop waiting.
    pub abandon: bool,
}

/// What probes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet. Usable, so that traffic flows from the first moment.
    Unknown,
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ejection {
    at: Instant,
    until: Instant,
}

/// The states in which an endpoint can be, drain aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Unknown,
    Up,
    Ejected { until: Instant },
    Down,
}

/// The health of one endpoint.
#[derive(Clone, Debug)]
pub struct Health {
    verdict: Verdict,
    probes_failed: u32,
    probes_silent: u32,
    probes_ok: u32,
    no_answers: u32,
    server_errors: u32,
    ejection: Option<Ejection>,
    /// Ejections without a good answer or probe between them.
    ejections: u32,
    since: Instant,
    /// When its latest time out of use ended or will end; None: it was never out of use.
    back_at: Option<Instant>,
}

impl Health {
    pub fn new(now: Instant) -> Health {
        Health {
            verdict: Verdict::Unknown,
            probes_failed: 0,
            probes_silent: 0,
            probes_ok: 0,
            no_answers: 0,
            server_errors: 0,
            ejection: None,
            ejections: 0,
            since: now,
            back_at: None,
        }
    }

    pub fn state(&self, now: Instant) -> State {
        match (self.verdict, self.ejection) {
            (Verdict::Down, _) => State::Down,
            (_, Some(Ejection { until, .. })) if now < until => State::Ejected { until },
            (Verdict::Up, _) => State::Up,
            (Verdict::Unknown, _) => State::Unknown,
        }
    }

    /// When the last transition was.
    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn back_at(&self) -> Option<Instant> {
        self.back_at
    }

    /// True while a good answer would change something, so that the shell may skip the event otherwise.
    pub fn remembers_failures(&self) -> bool {
        self.no_answers > 0 || self.server_errors > 0 || self.ejections > 0
    }

    /// True while one more probe of the same kind may change the verdict: then the next one comes sooner.
    pub fn is_in_doubt(&self) -> bool {
        match self.verdict {
            Verdict::Down => self.probes_ok > 0,
            Verdict::Unknown | Verdict::Up => self.probes_failed > 0,
        }
    }

    /// Active health was switched off: what probes said does not count any more.
    pub fn forget_probes(&mut self, now: Instant) {
        if self.verdict == Verdict::Down {
            self.back_at = Some(now);
        }
        if self.verdict != Verdict::Unknown {
            self.since = now;
        }
        self.verdict = Verdict::Unknown;
        (self.probes_failed, self.probes_silent, self.probes_ok) = (0, 0, 0);
    }

    /// `only_usable`: no other endpoint of the pool could take its requests now. Then nothing but a closed port
    /// ejects it: errors and delays may come from the requests, and a bad answer is better than none.
    pub fn on(&mut self, event: Event, only_usable: bool, thresholds: &Thresholds, now: Instant) -> Effects {
        match event {
            Event::ProbeOk { started } => self.on_probe_ok(started, thresholds, now),
            Event::ProbeFailed { silent } => self.on_probe_failed(silent, thresholds, now),
            Event::Answered => {
                // A late answer of a request from before an ejection says nothing of the time since.
                if !matches!(self.state(now), State::Ejected { .. }) {
                    self.forget_failures();
                }
                Effects::default()
            }
            Event::Refused => self.eject(Reason::Refused, thresholds, now),
            Event::NoAnswer => {
                self.no_answers = self.no_answers.saturating_add(1);
                let enough = thresholds.failures > 0 && self.no_answers >= thresholds.failures;
                if enough && !only_usable {
                    self.eject(Reason::NoAnswer, thresholds, now)
                } else {
                    Effects::default()
                }
            }
            Event::ServerError => {
                self.server_errors = self.server_errors.saturating_add(1);
                let enough = thresholds.server_errors > 0 && self.server_errors >= thresholds.server_errors;
                if enough && !only_usable {
                    self.eject(Reason::ServerErrors, thresholds, now)
                } else {
                    Effects::default()
                }
            }
        }
    }

    fn on_probe_ok(&mut self, started: Instant, thresholds: &Thresholds, now: Instant) -> Effects {
        (self.probes_failed, self.probes_silent) = (0, 0);
        self.probes_ok = self.probes_ok.saturating_add(1);
        if self.verdict == Verdict::Down && self.probes_ok < thresholds.healthy_after {
            return Effects::default();
        }
        let was = self.state(now);
        // A probe from before the ejection may have been answered before the endpoint fell ill.
        let heals = self.ejection.is_some_and(|ejection| started >= ejection.at);
        // What was counted up to and while it was down belongs to the illness that is over.
        if heals || self.verdict == Verdict::Down {
            self.ejection = None;
            self.forget_failures();
        }
        self.verdict = Verdict::Up;
        let is = self.state(now);
        let transition = (is != was && is == State::Up).then_some(Transition::Up);
        if transition.is_some() {
            self.since = now;
            if was != State::Unknown {
                self.back_at = Some(now);
            }
        }
        Effects { transition, abandon: false }
    }

    fn on_probe_failed(&mut self, silent: bool, thresholds: &Thresholds, now: Instant) -> Effects {
        self.probes_ok = 0;
        self.probes_failed = self.probes_failed.saturating_add(1);
        self.probes_silent = if silent { self.probes_silent.saturating_add(1) } else { 0 };
        // Who refuses or answers has reset or will answer what waits; only of the silent nothing more will come.
        let abandon = self.probes_silent == thresholds.unhealthy_after;
        let goes_down = self.verdict != Verdict::Down && self.probes_failed >= thresholds.unhealthy_after;
        if goes_down {
            self.verdict = Verdict::Down;
            self.since = now;
        }
        Effects { transition: goes_down.then_some(Transition::Down), abandon }
    }

    fn eject(&mut self, reason: Reason, thresholds: &Thresholds, now: Instant) -> Effects {
        if matches!(self.state(now), State::Ejected { .. } | State::Down) {
            return Effects::default();
        }
        let factor = 1_u32.checked_shl(self.ejections).unwrap_or(u32::MAX);
        let until = now + thresholds.eject_for.saturating_mul(factor).min(thresholds.eject_for_max);
        self.ejection = Some(Ejection { at: now, until });
        self.ejections = self.ejections.saturating_add(1);
        self.since = now;
        self.back_at = Some(until);
        Effects { transition: Some(Transition::Ejected(reason)), abandon: false }
    }

    /// The counts stay over an ejection, so that an endpoint which is still ill when its time is over goes out again
    /// at its first failure.
    fn forget_failures(&mut self) {
        (self.no_answers, self.server_errors, self.ejections) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn thresholds() -> Thresholds {
        Thresholds::new(Some(&HealthConfig::default()), &PassiveConfig::default())
    }

    /// Feeds events one second apart; returns the transitions.
    fn run(health: &mut Health, now: &mut Instant, events: &[Event]) -> Vec<Transition> {
        let mut transitions = Vec::new();
        for event in events {
            *now += SECOND;
            transitions.extend(health.on(*event, false, &thresholds(), *now).transition);
        }
        transitions
    }

    #[test]
    fn probes_mark_down_and_bring_back() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        assert_eq!(health.state(now), State::Unknown);
        let failed = Event::ProbeFailed { silent: false };
        assert_eq!(run(&mut health, &mut now, &[failed]), []);
        assert!(health.is_in_doubt());
        assert_eq!(run(&mut health, &mut now, &[failed, failed]), [Transition::Down]);
        assert_eq!(health.state(now), State::Down);
        assert_eq!(
            run(&mut health, &mut now, &[Event::Answered, Event::Refused]),
            [],
            "only probes bring it back"
        );
        let ok = Event::ProbeOk { started: now };
        assert_eq!(run(&mut health, &mut now, &[ok]), [Transition::Up]);
        assert_eq!(health.back_at(), Some(now), "slow start begins");
    }

    #[test]
    fn one_failure_between_good_ones_is_nothing() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        let (failed, ok) = (Event::ProbeFailed { silent: true }, Event::ProbeOk { started: now });
        assert_eq!(run(&mut health, &mut now, &[ok, failed, ok, failed, ok]), [Transition::Up]);
        assert_eq!(health.back_at(), None, "it was never away");
    }

    #[test]
    fn waiting_requests_are_told_of_silence_only() {
        let now = Instant::now();
        let abandon = |events: &[bool]| {
            let mut health = Health::new(now);
            let effects = events
                .iter()
                .map(|silent| health.on(Event::ProbeFailed { silent: *silent }, false, &thresholds(), now));
            effects.map(|effects| effects.abandon).collect::<Vec<_>>()
        };
        assert_eq!(abandon(&[true, true, true, true]), [false, true, false, false]);
        assert_eq!(abandon(&[false, false, false]), [false; 3]);
        assert_eq!(abandon(&[false, false, true, true]), [false, false, false, true]);
    }

    #[test]
    fn a_sick_process_is_ejected_and_a_bad_request_is_not() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        let (sick, good) = (Event::ServerError, Event::Answered);
        assert_eq!(run(&mut health, &mut now, &[sick, sick, sick, sick, good, sick, sick, sick, sick]), []);
        assert_eq!(run(&mut health, &mut now, &[sick]), [Transition::Ejected(Reason::ServerErrors)]);
    }

    #[test]
    fn a_closed_port_ejects_at_once_and_repeated_ejections_last_longer() {
        let start = Instant::now();
        let mut health = Health::new(start);
        let mut now = start;
        for seconds in [5, 10, 20, 40, 60, 60] {
            let effects = health.on(Event::Refused, true, &thresholds(), now);
            assert_eq!(effects.transition, Some(Transition::Ejected(Reason::Refused)));
            now += seconds * SECOND;
            assert!(matches!(health.state(now - Duration::from_nanos(1)), State::Ejected { .. }));
            assert_eq!(health.state(now), State::Unknown);
        }
        health.on(Event::Answered, false, &thresholds(), now);
        health.on(Event::Refused, false, &thresholds(), now);
        assert_eq!(
            health.state(now),
            State::Ejected { until: now + 5 * SECOND },
            "a good answer resets the length"
        );
    }

    #[test]
    fn still_ill_after_an_ejection_means_out_at_the_first_failure() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        run(&mut health, &mut now, &[Event::NoAnswer; 3]);
        now += 5 * SECOND;
        assert_eq!(run(&mut health, &mut now, &[Event::NoAnswer]), [Transition::Ejected(Reason::NoAnswer)]);
    }

    #[test]
    fn only_a_probe_from_after_the_ejection_heals_it() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        let before = now;
        run(&mut health, &mut now, &[Event::ServerError; 5]);
        let ejected_at = now;
        assert_eq!(run(&mut health, &mut now, &[Event::ProbeOk { started: before }]), []);
        assert!(matches!(health.state(now), State::Ejected { .. }));
        assert_eq!(run(&mut health, &mut now, &[Event::ProbeOk { started: ejected_at }]), [Transition::Up]);
        assert_eq!(run(&mut health, &mut now, &[Event::ServerError; 4]), [], "it begins anew");
    }

    #[test]
    fn the_last_one_goes_only_when_its_port_is_closed() {
        let now = Instant::now();
        let mut health = Health::new(now);
        for event in [Event::ServerError, Event::NoAnswer].into_iter().cycle().take(100) {
            assert_eq!(health.on(event, true, &thresholds(), now), Effects::default());
        }
        assert!(health.on(Event::Refused, true, &thresholds(), now).transition.is_some());
    }

    #[test]
    fn failures_seen_while_it_was_down_are_forgotten() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        run(&mut health, &mut now, &[Event::ProbeFailed { silent: true }; 2]);
        run(&mut health, &mut now, &[Event::NoAnswer; 50]);
        let ok = Event::ProbeOk { started: now };
        assert_eq!(run(&mut health, &mut now, &[ok, Event::NoAnswer, Event::NoAnswer]), [Transition::Up]);
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::ProbeOk { started: Instant::now() }),
            any::<bool>().prop_map(|silent| Event::ProbeFailed { silent }),
            Just(Event::Answered),
            Just(Event::Refused),
            Just(Event::NoAnswer),
            Just(Event::ServerError),
        ]
    }

    proptest! {
        /// Whatever came before: two failed probes mark it down, good ones bring it back, and without probes an
        /// ejection ends within its longest time.
        #[test]
        fn always_goes_down_and_always_comes_back(
            events in prop::collection::vec((event(), any::<bool>(), 0_u64..20_000), 0..200),
        ) {
            let mut now = Instant::now();
            let mut health = Health::new(now);
            for (event, only_usable, step) in events {
                now += Duration::from_millis(step);
                let before = health.state(now);
                let event = if matches!(event, Event::ProbeOk { .. }) { Event::ProbeOk { started: now } } else { event };
                let effects = health.on(event, only_usable, &thresholds(), now);
                let after = health.state(now);
                prop_assert_eq!(effects.transition.is_some(), before != after, "a transition for each change");
                if let State::Ejected { until } = after {
                    prop_assert!(until - now <= thresholds().eject_for_max);
                    let later = health.state(now + thresholds().eject_for_max);
                    prop_assert!(!matches!(later, State::Ejected { .. }), "it ends");
                }
                if !health.remembers_failures() {
                    let mut same = health.clone();
                    same.on(Event::Answered, only_usable, &thresholds(), now);
                    prop_assert_eq!(same.state(now), after);
                    prop_assert_eq!((same.no_answers, same.server_errors, same.ejections), (0, 0, 0));
                }
            }
            let mut down = health.clone();
            for _ in 0..2 {
                down.on(Event::ProbeFailed { silent: true }, true, &thresholds(), now);
            }
            prop_assert_eq!(down.state(now), State::Down);
            down.on(Event::ProbeOk { started: now }, true, &thresholds(), now);
            prop_assert_eq!(down.state(now), State::Up);
        }
    }
}
