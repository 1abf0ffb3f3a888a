//! The wall clock that money is spent by: the system's, or one that a test moves.

use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::watch;

use crate::billing::domain::Micros;
use crate::clock;

/// The longest sleep before the clock is read again, so that a clock that is set forward is seen within this time.
const LOOK: Duration = Duration::from_secs(1);

/// A step of the clock that is worth telling: none that keeps clocks together makes one, after its start.
const STEP: Duration = Duration::from_secs(5);
/// At most, of a clock that steps all the time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct WallClock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Since { at: Micros, began: Instant },
    Manual(watch::Receiver<Micros>),
}

/// Moves the clocks made with it, also back.
#[derive(Debug)]
pub struct Hand(watch::Sender<Micros>);

impl WallClock {
    pub fn system() -> WallClock {
        WallClock(Source::System)
    }

    /// A clock that shows this time now and follows the monotonic one, paused or not.
    pub fn since(at: Micros) -> WallClock {
        WallClock(Source::Since { at, began: clock::now() })
    }

    /// A clock that stands still until it is moved.
    pub fn manual(at: Micros) -> (WallClock, Hand) {
        let (hand, clock) = watch::channel(at);
        (WallClock(Source::Manual(clock)), Hand(hand))
    }

    pub fn now(&self) -> Micros {
        match &self.0 {
            Source::System => {
                let since_epoch = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
                Micros::new(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
            }
            Source::Since { at, began } => {
                let passed = clock::now().saturating_duration_since(*began).as_micros();
                Micros::new(at.get().saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)))
            }
            Source::Manual(clock) => *clock.borrow(),
        }
    }

    /// Until the clock shows this time or a later one.
    pub async fn until(&self, at: Micros) {
        match &self.0 {
            Source::System | Source::Since { .. } => loop {
                match at.since(self.now()) {
                    0 => return,
                    left => tokio::time::sleep(Duration::from_micros(left).min(LOOK)).await,
                }
            },
            Source::Manual(clock) => {
                let reached = clock.clone().wait_for(|now| *now >= at).await.is_ok();
                if !reached {
                    // Nobody moves it any more.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

impl Hand {
    pub fn set(&self, at: Micros) {
        self.0.send_replace(at);
    }

    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now = Micros::new(now.get().saturating_add(by.as_micros() as u64)));
    }
}

/// Notices that the wall clock is set forward, for it then shows more than has passed by the monotonic one. Time follows it all the
/// same: which of them was wrong nobody here knows.
#[derive(Debug)]
pub struct Leaps {
    read: (Micros, Instant),
    told: Option<Instant>,
}

impl Leaps {
    pub fn new(wall: Micros, now: Instant) -> Leaps {
        Leaps { read: (wall, now), told: None }
    }

    /// By how much since the last look, if that is to be told.
    pub fn look(&mut self, wall: Micros, now: Instant) -> Option<Duration> {
        let (wall_before, before) = std::mem::replace(&mut self.read, (wall, now));
        let passed = now.saturating_duration_since(before);
        let step = Duration::from_micros(wall.since(wall_before)).saturating_sub(passed);
        let is_new = self.told.is_none_or(|told| now >= told + TELL_EVERY);
        let step = Some(step).filter(|step| *step > STEP && is_new)?;
        self.told = Some(now);
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_forward_is_told_of_now_and_then() {
        let (began, seconds) = (Instant::now(), Duration::from_secs);
        let wall = |seconds: u64| Micros::new(seconds * 1_000_000);
        let mut leaps = Leaps::new(wall(100), began);
        assert_eq!(leaps.look(wall(400), began + seconds(300)), None, "it goes as it should");
        assert_eq!(leaps.look(wall(405), began + seconds(300)), None, "a small one");
        assert_eq!(leaps.look(wall(1405), began + seconds(301)), Some(seconds(999)));
        assert_eq!(leaps.look(wall(2405), began + seconds(302)), None, "it was told of just now");
        assert_eq!(leaps.look(wall(100), began + seconds(400)), None, "back");
        assert_eq!(leaps.look(wall(111), began + seconds(401)), Some(seconds(10)));
    }
}
