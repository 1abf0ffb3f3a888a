//! How the service fails: by order of the control listener, by a `POST /operation` that carries a fault, by age.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::dice::{self, Dice, Stream};
use super::span::Span;

/// What can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The process ends, with code 0 or 1.
    Exit,
    /// The process prints a Go panic and ends with code 2.
    Panic,
    /// Memory grows until the process is killed. It goes on serving meanwhile.
    Leak,
    /// 500 to every request.
    Sick,
    /// Connections are accepted, requests are never answered.
    Hang,
    /// Every answer takes some seconds longer.
    Slow,
    /// Back to normal; leaked memory is given back.
    Heal,
}

/// An order to fail. `for_` ends it by itself (sick, hang, slow, leak), unless a newer order came in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub kind: Kind,
    pub for_: Option<Duration>,
    /// For [`Kind::Slow`]; [`SLOW_DELAY`] when not given.
    pub delay: Option<Duration>,
}

/// What [`Kind::Slow`] adds when the order does not say (invented).
pub const SLOW_DELAY: Duration = Duration::from_secs(3);

/// How the process answers now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Well,
    Sick,
    Hung,
    Slow(Duration),
}

/// How the process ends. The caller of the server carries it out: no answer is sent any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exit(u8),
    Panic,
    /// As by the kernel when memory ran out: SIGKILL.
    Killed,
}

/// The faults of one process. Must be used inside of a tokio runtime.
#[derive(Debug)]
pub struct Faults {
    condition: watch::Sender<Condition>,
    end: watch::Sender<Option<End>>,
    /// Counts orders: an order that runs out heals only if it is still the newest.
    newest: AtomicU64,
    leak: Mutex<Option<AbortHandle>>,
    leak_max_bytes: usize,
    dice: Dice,
}

/// A leak grows by this much each [`LEAK_PAUSE`]: 80 MiB a second (invented).
const LEAK_STEP_BYTES: usize = 8 << 20;
const LEAK_PAUSE: Duration = Duration::from_millis(100);

impl Faults {
    /// A leak ends the process once it holds `leak_max_bytes`, so that no test harms its machine.
    pub fn new(leak_max_bytes: usize, dice: Dice) -> Arc<Faults> {
        Arc::new(Faults {
            condition: watch::Sender::new(Condition::Well),
            end: watch::Sender::new(None),
            newest: AtomicU64::new(0),
            leak: Mutex::new(None),
            leak_max_bytes,
            dice,
        })
    }

    pub fn condition(&self) -> Condition {
        *self.condition.borrow()
    }

    /// Waits while the process hangs.
    pub async fn unhung(&self) {
        let mut condition = self.condition.subscribe();
        // The sender lives in self, so waiting cannot fail.
        let _ = condition.wait_for(|condition| *condition != Condition::Hung).await;
    }

    /// Waits for the end of the process.
    pub async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await.map(|end| *end) {
            Ok(Some(end)) => end,
            // Not reached: the sender lives in self.
            _ => std::future::pending().await,
        }
    }

    /// Carries an order out. The newest order replaces the condition an older one left.
    pub fn order(self: &Arc<Faults>, order: Order) {
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        match order.kind {
            Kind::Exit => self.finish(End::Exit((self.dice.roll(Stream::Lifetime, number) & 1) as u8)),
            Kind::Panic => self.finish(End::Panic),
            Kind::Leak => self.leak(),
            Kind::Sick => self.set(Condition::Sick),
            Kind::Hang => self.set(Condition::Hung),
            Kind::Slow => self.set(Condition::Slow(order.delay.unwrap_or(SLOW_DELAY))),
            Kind::Heal => self.heal(),
        }
        if let (Some(time), false) = (order.for_, order.kind == Kind::Heal) {
            let faults = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                if faults.newest.load(Ordering::Relaxed) == number {
                    faults.heal();
                }
            });
        }
    }

    fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    fn finish(&self, end: End) {
        self.end.send_if_modified(|ended| ended.is_none() && ended.replace(end).is_none());
    }

    fn heal(&self) {
        if let Some(leak) = self.leak.lock().take() {
            leak.abort();
        }
        self.set(Condition::Well);
    }

    fn leak(self: &Arc<Faults>) {
        let mut leak = self.leak.lock();
        if leak.is_some() {
            return;
        }
        let faults = Arc::clone(self);
        let task = tokio::spawn(async move {
            let mut leaked: Vec<Vec<u8>> = Vec::new();
            while leaked.len() * LEAK_STEP_BYTES < faults.leak_max_bytes {
                // Not zero: pages that were never written would not count as memory.
                leaked.push(vec![1; LEAK_STEP_BYTES]);
                tokio::time::sleep(LEAK_PAUSE).await;
            }
            faults.finish(End::Killed);
            std::future::pending::<()>().await;
        });
        *leak = Some(task.abort_handle());
    }
}

/// How long the process lives by itself and what then happens to it.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    pub span: Span,
    /// None: exit, leak or sick, as the dice fall.
    pub kind: Option<Kind>,
}

impl Lifetime {
    /// The time comes from the seed alone and the kind also from the minute of the start, so that processes started
    /// together with one seed stop together, as the real ones do, and a restarted one fails in another way.
    pub fn draw(&self, dice: &Dice, unix_seconds: u64) -> (Duration, Order) {
        let after = self.span.pick(dice.roll(Stream::Lifetime, 0));
        let ways = [Kind::Exit, Kind::Leak, Kind::Sick];
        let way = dice::scale(dice.roll(Stream::LifetimeKind, unix_seconds / 60), ways.len() as u64) as usize;
        (after, Order { kind: self.kind.unwrap_or(ways[way]), for_: None, delay: None })
    }
}

/// The fault that `POST /operation` with this number orders, if any: the nibble under `0xF00000000`.
pub fn of_operation(operation: u64) -> Option<Kind> {
    match (operation & 0xF_0000_0000) >> 32 {
        3 => Some(Kind::Leak),
        4 => Some(Kind::Panic),
        5 => Some(Kind::Sick),
        _ => None,
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        Ok(match text {
            "exit" => Kind::Exit,
            "panic" => Kind::Panic,
            "leak" => Kind::Leak,
            "sick" => Kind::Sick,
            "hang" => Kind::Hang,
            "slow" => Kind::Slow,
            "heal" => Kind::Heal,
            _ => return Err("expected exit, panic, leak, sick, hang, slow or heal".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(kind: Kind) -> Order {
        Order { kind, for_: None, delay: None }
    }

    #[test]
    fn only_three_nibbles_are_deadly_and_other_bits_do_not_matter() {
        assert_eq!(of_operation(0x3_0000_0000), Some(Kind::Leak));
        assert_eq!(of_operation(0x4_0000_0000), Some(Kind::Panic));
        assert_eq!(of_operation(0x5_0000_0000), Some(Kind::Sick));
        assert_eq!(of_operation(0xFFFF_FFF4_1234_5678), Some(Kind::Panic));
        for nibble in [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
            assert_eq!(of_operation(nibble << 32 | 0x5), None, "{nibble}");
        }
        // -1 as a client sends it: every bit set.
        assert_eq!(of_operation(-1_i64 as u64), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_ends_by_itself_unless_a_newer_one_came() {
        let faults = Faults::new(1, Dice::new(1));
        faults.order(Order { for_: Some(Duration::from_secs(30)), ..order(Kind::Hang) });
        assert_eq!(faults.condition(), Condition::Hung);
        faults.unhung().await;
        assert_eq!(faults.condition(), Condition::Well);

        faults.order(Order { for_: Some(Duration::from_secs(1)), ..order(Kind::Hang) });
        faults.order(order(Kind::Sick));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(faults.condition(), Condition::Sick);
        faults.order(order(Kind::Heal));
        assert_eq!(faults.condition(), Condition::Well);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leak_kills_at_its_bound_and_can_be_healed_before() {
        let faults = Faults::new(3 * LEAK_STEP_BYTES, Dice::new(1));
        faults.order(order(Kind::Leak));
        tokio::time::sleep(LEAK_PAUSE).await;
        faults.order(order(Kind::Heal));
        let healed = tokio::time::timeout(Duration::from_secs(60), faults.ended()).await;
        assert!(healed.is_err(), "{healed:?}");
        faults.order(order(Kind::Leak));
        assert_eq!(faults.ended().await, End::Killed);
    }

    #[tokio::test]
    async fn the_first_end_counts() {
        let faults = Faults::new(1, Dice::new(1));
        faults.order(order(Kind::Panic));
        faults.order(order(Kind::Exit));
        assert_eq!(faults.ended().await, End::Panic);
    }

    #[test]
    fn processes_started_together_stop_together() {
        let lifetime = Lifetime { span: "22m..25m".parse().unwrap(), kind: None };
        let draw = |seconds| lifetime.draw(&Dice::new(5), seconds);
        assert_eq!(draw(120), draw(179));
        let after = draw(120).0;
        assert!((Duration::from_secs(22 * 60)..=Duration::from_secs(25 * 60)).contains(&after));
        let kinds: Vec<Kind> = (0..50).map(|minute| draw(minute * 60).1.kind).collect();
        for kind in [Kind::Exit, Kind::Leak, Kind::Sick] {
            assert!(kinds.contains(&kind), "{kind:?}");
        }
    }
}
