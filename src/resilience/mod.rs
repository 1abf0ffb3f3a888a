//! Pure policies: backoff, breaker, budget, limit, retry classes. Time is passed in; randomness is given by the caller.
//!
//! This room knows no socket, no clock and no other room. [`budget::Budget`] and the keyed limits of [`limit`] are
//! shared between threads; all the rest are plain values that their owner keeps where it wants.

pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod limit;
pub mod retry;
