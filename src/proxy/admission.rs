//! Who gets in: a route's bound on requests under way, with a bounded queue before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A route's places and the queue before them.
pub struct Gate {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// No place, and no room to wait or no time left.
#[derive(Debug)]
pub struct Full;

impl Gate {
    pub fn new(places: usize, queue: usize) -> Gate {
        Gate { places: Arc::new(Semaphore::new(places)), waiting: AtomicUsize::new(0), waiting_max: queue }
    }

    /// A place, after at most `patience` in the queue; first come, first served.
    pub async fn enter(&self, patience: Duration) -> Result<OwnedSemaphorePermit, Full> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        if self.waiting.fetch_add(1, Relaxed) >= self.waiting_max {
            self.waiting.fetch_sub(1, Relaxed);
            return Err(Full);
        }
        let waiting = Waiting(&self.waiting);
        let place = tokio::time::timeout(patience, self.places.clone().acquire_owned()).await;
        drop(waiting);
        // The semaphore is never closed, so what fails is the wait.
        place.ok().and_then(Result::ok).ok_or(Full)
    }
}

/// Counts down also when the waiting request is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn beyond_places_and_queue_nobody_waits() {
        let gate = Arc::new(Gate::new(1, 1));
        let held = gate.enter(Duration::ZERO).await.unwrap();
        let queued = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(Duration::from_secs(5)).await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert!(gate.enter(Duration::from_secs(5)).await.is_err(), "the queue is full");
        drop(held);
        assert!(queued.await.unwrap());
        let _held = gate.enter(Duration::ZERO).await.unwrap();
        assert!(gate.enter(Duration::from_secs(1)).await.is_err(), "patience ends");
    }
}
