//! How the cache gets answers and how it hands them out. The cache knows no upstream: it is given a `Fetch`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, StatusCode};

use super::{Entry, Uncacheable};

/// Asks the origin for the answer of one key.
///
/// The request must be canonical: a GET made from the key alone (`key::split`), with no field of any client's request
/// (no Accept-*, Authorization, Cookie, Range, If-*), because the answer is for everybody. It must end in bounded time.
/// It may be called on any runtime: on the one of the first waiter for a miss, on the refresher's for a renewal.
pub trait Fetch: Send + Sync + 'static {
    /// Fetches the whole answer. Any status is `Ok`; the cache judges it.
    fn fetch(&self, key: &str) -> BoxFuture<'static, Result<Fetched, FetchError>>;

    /// Is it still the way to fetch, and its policy the one to store by? Once it is not, what it brings goes to those who
    /// wait and is not stored. Turn it false, then empty the scope (`Cache::purge_where`): no old answer is left.
    fn is_current(&self) -> bool {
        true
    }
}

/// A complete answer of the origin.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub status: StatusCode,
    /// The fields as received.
    pub headers: HeaderMap,
    /// Not longer than `Config::object_bytes_max`; `FetchError::TooLarge` otherwise.
    pub body: Bytes,
    /// When the request was sent (by `clock::now`), from which the age counts: RFC 9111, 4.2.3, request_time.
    pub sent_at: Instant,
}

/// Why there is no entry. Cheap to clone: it goes to every waiter.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the answer is larger than the store takes")]
    TooLarge,
    /// An error of the origin (4xx, 5xx): never stored, passed to those who waited for it as it is.
    #[error("the origin answered {}", .0.status)]
    Status(Arc<Fetched>),
    #[error("the origin is unavailable: {0}")]
    Unavailable(String),
    #[error("the origin did not answer in time")]
    TimedOut,
    #[error("no endpoint is healthy")]
    NoneHealthy,
    /// No connection or place is to be had at the moment, here or at any endpoint.
    #[error("too much is under way")]
    Overloaded,
    /// The fetch ended without a verdict: it panicked, or its runtime was shut down.
    #[error("the fetch was aborted")]
    Aborted,
}

/// What `Cache::get` gives a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It was there, fresh.
    Hit(Arc<Entry>),
    /// Fetched for this request; nothing was there.
    Miss(Arc<Entry>),
    /// Fetched for this request; what was there had expired.
    Stale(Arc<Entry>),
    /// Fetched for another request or a renewal, which this one waited for.
    Collapsed(Arc<Entry>),
    /// The answer may not be stored: the caller forwards the request itself.
    Pass(Uncacheable),
    /// No answer. The same error goes to every waiter.
    Failed(FetchError),
    /// `Config::fills` other keys are being fetched.
    Busy,
}
