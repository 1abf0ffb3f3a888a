//! The latches of a shutdown: ready, draining, in-flight count.
//!
//! One [`Drain`] belongs to one node and is cloned into whatever takes part. The order of calls:
//! 1. start-up ends: [`Drain::set_ready`]`(true)`; the balancer now sends traffic;
//! 2. each request (or upgraded connection) holds one [`InFlight`] from [`Drain::guard`];
//! 3. shutdown: [`Drain::begin`]; readiness is gone at once, [`Drain::begun`] wakes every waiter;
//! 4. once nothing new is accepted, [`Drain::idle`] resolves when the last guard is dropped.
//!
//! It knows no listener and no timer: how long to wait between these steps is the caller's to decide.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tokio::sync::Notify;

/// The shared latches; a clone is another handle to the same ones. Works across threads and runtimes.
#[derive(Clone, Default)]
pub struct Drain(Arc<Latches>);

#[derive(Default)]
struct Latches {
    ready: AtomicBool,
    draining: AtomicBool,
    /// Somebody has waited in `idle()`. Never unset: it only spares requests the wake-up while nobody waits.
    awaited: AtomicBool,
    begun: Notify,
    idle: Notify,
    in_flight: Padded,
}

/// The one field every request writes, on cache lines of its own so that the latches stay readable cheaply
/// (two lines: adjacent ones are prefetched in pairs).
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicUsize);

impl Drain {
    /// Not ready, not draining, nothing in flight.
    pub fn new() -> Drain {
        Drain::default()
    }

    /// May the balancer send traffic? False before start-up has ended, and for good once draining.
    pub fn ready(&self) -> bool {
        self.0.ready.load(SeqCst) && !self.draining()
    }

    /// Says whether start-up has ended (or the node has become unfit). Without effect on [`Drain::ready`]
    /// while draining.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, SeqCst);
    }

    /// Begins the drain. Only the first call does something; there is no way back.
    pub fn begin(&self) {
        if !self.0.draining.swap(true, SeqCst) {
            self.0.begun.notify_waiters();
        }
    }

    /// Has the drain begun? One load.
    pub fn draining(&self) -> bool {
        self.0.draining.load(SeqCst)
    }

    /// Resolves when the drain has begun, at once if it has already.
    ///
    /// The first poll and the drop take a short lock shared by all waiters, so a connection should pin one such
    /// future for its whole life instead of making one per request.
    pub async fn begun(&self) {
        let notified = self.0.begun.notified();
        tokio::pin!(notified);
        // Registered before the latch is read: a `begin` after the read finds this waiter.
        notified.as_mut().enable();
        if !self.draining() {
            notified.await;
        }
    }

    /// Counts one request in flight until the guard is dropped. One atomic addition and a reference count.
    pub fn guard(&self) -> InFlight {
        self.0.in_flight.0.fetch_add(1, SeqCst);
        InFlight(Arc::clone(&self.0))
    }

    /// Requests in flight at this moment.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.0.load(SeqCst)
    }

    /// Resolves when nothing is in flight, at once if nothing is. It does not stop new requests from coming:
    /// stop accepting first, else the answer is only true for an instant.
    pub async fn idle(&self) {
        self.0.awaited.store(true, SeqCst);
        loop {
            let notified = self.0.idle.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            // `awaited` was stored and the waiter registered before this load; `InFlight::drop` subtracts before
            // it reads `awaited`. All are sequentially consistent, so one of the two sees the other.
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain")
            .field("ready", &self.ready())
            .field("draining", &self.draining())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

/// One request in flight; dropping it ends the count.
#[must_use = "the request counts as in flight only while the guard lives"]
pub struct InFlight(Arc<Latches>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let was = self.0.in_flight.0.fetch_sub(1, SeqCst);
        if was == 1 && self.0.awaited.load(SeqCst) {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    /// Fails instead of hanging when a wake-up is lost.
    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), future).await.expect("no wake-up came")
    }

    fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn ready_needs_the_flag_and_ends_with_the_drain() {
        let drain = Drain::new();
        assert!(!drain.ready());
        drain.set_ready(true);
        assert!(drain.ready());
        drain.set_ready(false);
        assert!(!drain.ready());
        drain.set_ready(true);
        drain.begin();
        drain.begin();
        assert!(drain.draining() && !drain.ready());
        drain.set_ready(true);
        assert!(!drain.ready(), "a draining node must not become ready again");
    }

    #[test]
    fn guards_count_until_dropped() {
        let drain = Drain::new();
        let first = drain.guard();
        let second = drain.clone().guard();
        assert_eq!(drain.in_flight(), 2);
        drop(first);
        assert_eq!(drain.in_flight(), 1);
        drop(second);
        assert_eq!(drain.in_flight(), 0);
    }

    #[test]
    fn idle_waits_for_the_last_guard() {
        let drain = Drain::new();
        let (first, second) = (drain.guard(), drain.guard());
        let mut idle = Box::pin(drain.idle());
        assert!(poll_once(idle.as_mut()).is_pending());
        drop(first);
        assert!(poll_once(idle.as_mut()).is_pending());
        drop(second);
        assert!(poll_once(idle.as_mut()).is_ready());
    }

    #[test]
    fn idle_goes_on_waiting_when_a_new_request_came_before_it_looked() {
        let drain = Drain::new();
        let first = drain.guard();
        let mut idle = Box::pin(drain.idle());
        assert!(poll_once(idle.as_mut()).is_pending());
        drop(first);
        let second = drain.guard();
        assert!(poll_once(idle.as_mut()).is_pending());
        drop(second);
        assert!(poll_once(idle.as_mut()).is_ready());
    }

    #[test]
    fn begun_is_seen_early_and_late() {
        let drain = Drain::new();
        let mut early = Box::pin(drain.begun());
        assert!(poll_once(early.as_mut()).is_pending());
        drain.begin();
        assert!(poll_once(early.as_mut()).is_ready());
        assert!(poll_once(Box::pin(drain.begun()).as_mut()).is_ready());
    }

    /// Waiters and the event race on runtimes of their own, many times: a lost wake-up fails `soon`.
    #[test]
    fn no_wake_up_is_lost_across_runtimes() {
        let rounds = 2_000;
        let drains: Vec<Drain> = (0..rounds).map(|_| Drain::new()).collect();
        let guards: Vec<InFlight> = drains.iter().map(Drain::guard).collect();
        let barrier = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    barrier.wait();
                    runtime.block_on(async {
                        for drain in &drains {
                            soon(drain.begun()).await;
                            soon(drain.idle()).await;
                        }
                    });
                });
            }
            barrier.wait();
            for (drain, guard) in drains.iter().zip(guards) {
                drain.begin();
                let inner = drain.guard();
                drop(guard);
                drop(inner);
            }
        });
        assert!(drains.iter().all(|drain| drain.in_flight() == 0));
    }
}
