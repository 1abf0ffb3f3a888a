//! The endpoints of the service and the gate every request passes first: counting, faults, the token limiter.
//!
//! Bodies and status codes that nobody reported are invented, and said to be so where they are made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::CONTENT_TYPE;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};

use super::calendar::Timestamp;
use super::config::Config;
use super::counts::Counts;
use super::data::{Data, Session};
use super::dice::{Dice, Stream};
use super::faults::{self, Condition, Faults, Kind, Order};
use super::limiter::Limiter;
use super::lists::{List, ListError, Lists};
use super::log::Log;
use super::span::Span;
use super::store::{NewSession, Store, StoreError};

/// Longer bodies get 413 (invented).
const BODY_BYTES_MAX: usize = 64 << 10;

/// `pg_sleep(0.1)`.
const DB_DUMMY: Duration = Duration::from_millis(100);

/// What one row takes with an index on `id`: 24 to 39 ms.
const ROW: (Duration, u64) = (Duration::from_millis(24), 15_000);

/// All that the endpoints work on.
#[derive(Debug)]
pub struct Service {
    pub config: Config,
    pub data: Data,
    pub store: Arc<Store>,
    pub lists: Lists,
    pub faults: Arc<Faults>,
    pub limiter: Arc<Limiter>,
    pub counts: Arc<Counts>,
    pub log: Arc<Log>,
    pub dice: Dice,
    /// Latency of `/long_dummy`.
    pub long_dummy: Span,
    pub asked: AtomicU64,
}

type Shared = State<Arc<Service>>;

/// All endpoints behind the gate.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/ping", get(async || "pong"))
        .route("/config", get(show_config))
        .route("/long_dummy", get(long_dummy))
        .route("/db_dummy", get(db_dummy))
        .route("/operation", post(operation))
        .route("/api/movie", get(async |state: Shared| list(state, List::Movies).await))
        .route("/api/customer", get(async |state: Shared| list(state, List::Customers).await))
        .route("/api/session", get(async |state: Shared| list(state, List::Sessions).await).post(insert))
        .route("/api/movie/{id}", get(movie))
        .route("/api/customer/{id}", get(customer))
        .route("/api/session/{id}", get(session).delete(delete))
        .fallback(async || Failure(StatusCode::NOT_FOUND, "not found"))
        .method_not_allowed_fallback(async || Failure(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&service), gate))
        .with_state(service)
}

/// An answer that is no success, with its short text. Which texts the real service has is not known.
struct Failure(StatusCode, &'static str);

const NOT_FOUND: Failure = Failure(StatusCode::NOT_FOUND, "not found");
const BAD_ID: Failure = Failure(StatusCode::BAD_REQUEST, "bad id");

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// What every request passes, `/ping` and unknown paths too.
async fn gate(
    State(service): Shared,
    pattern: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    service.counts.count(request.method(), pattern.as_ref().map(MatchedPath::as_str));
    let uri = request.uri().clone();
    let response = admit(&service, request, next).await;
    // A hung process answers nothing any more, not even what it had already made.
    service.faults.unhung().await;
    log(&service, &uri, begun);
    response
}

fn log(service: &Service, uri: &Uri, begun: Instant) {
    service.log.request(uri.path(), begun.elapsed());
}

async fn admit(service: &Service, request: Request, next: Next) -> Response {
    service.faults.unhung().await;
    if service.limiter.admit().await.is_err() {
        // The status is not reported; the text is from its log.
        service.log.note("server/limiter.go:31", "too many requests");
        return Failure(StatusCode::INTERNAL_SERVER_ERROR, "too many requests").into_response();
    }
    match service.faults.condition() {
        Condition::Sick => sick(),
        Condition::Slow(delay) => {
            tokio::time::sleep(delay).await;
            next.run(request).await
        }
        Condition::Well | Condition::Hung => next.run(request).await,
    }
}

fn sick() -> Response {
    Failure(StatusCode::INTERNAL_SERVER_ERROR, "I feel bad").into_response()
}

async fn index() -> &'static str {
    "Hi. Accept my congratulations. You were able to launch this app.\nIn the text of the task, you were given a task \
     to launch this app.\nCode: index_page_is_awesome\n"
}

/// Reported to answer 200; the body is invented, and hides the password.
async fn show_config(State(service): Shared) -> Response {
    let mut config = service.config.clone();
    config.postgres_cluster.password = "***".to_owned();
    json(&config)
}

#[derive(Serialize)]
struct LongDummy {
    /// Counts the answers of this process from 1.
    answer: u64,
    pid: u32,
    /// Unix milliseconds when the request was let in: the answer's data are as old as that.
    started_at: u64,
    /// Unix milliseconds when the answer was made.
    generated_at: u64,
}

/// Body and spread of latency are invented. Nothing forbids caching.
async fn long_dummy(State(service): Shared) -> Response {
    let answer = service.asked.fetch_add(1, Ordering::Relaxed) + 1;
    let started_at = unix_millis();
    tokio::time::sleep(service.long_dummy.pick(service.dice.roll(Stream::LongDummy, answer))).await;
    json(&LongDummy { answer, pid: std::process::id(), started_at, generated_at: unix_millis() })
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The body is invented.
async fn db_dummy() -> Response {
    tokio::time::sleep(DB_DUMMY).await;
    json(&serde_json::json!({"message": "ok"}))
}

#[derive(Deserialize)]
struct Operation {
    operation: serde_json::Number,
}

/// One answer for all ordinary numbers; some order a fault. The answer's text is invented.
async fn operation(State(service): Shared, body: Bytes) -> Response {
    let bad = || Failure(StatusCode::BAD_REQUEST, "bad operation").into_response();
    let Ok(Operation { operation }) = serde_json::from_slice(&body) else { return bad() };
    // Negative numbers are masked in two's complement, as a Go int64 would be.
    let Some(bits) = operation.as_u64().or_else(|| operation.as_i64().map(|number| number as u64)) else {
        return bad();
    };
    if let Some(kind) = faults::of_operation(bits) {
        service.faults.order(Order { kind, for_: None, delay: None });
        match kind {
            // The process dies before it answers.
            Kind::Panic => return std::future::pending().await,
            // Whether this very request still succeeds is not known: 500 here, as everywhere from now on.
            Kind::Sick => return sick(),
            _ => {}
        }
    }
    json(&serde_json::json!({"result": "ok"}))
}

async fn list(State(service): Shared, list: List) -> Response {
    match service.lists.body(list).await {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(ListError::TooLong) => {
            Failure(StatusCode::INTERNAL_SERVER_ERROR, "context deadline exceeded").into_response()
        }
        Err(error) => internal(&error),
    }
}

async fn movie(State(service): Shared, Path(id): Path<String>) -> Response {
    let id = match row_id(&service, &id).await {
        Ok(id) => id,
        Err(failure) => return failure.into_response(),
    };
    found(u32::try_from(id).ok().and_then(|id| service.data.movie(id)))
}

async fn customer(State(service): Shared, Path(id): Path<String>) -> Response {
    let id = match row_id(&service, &id).await {
        Ok(id) => id,
        Err(failure) => return failure.into_response(),
    };
    found(u32::try_from(id).ok().and_then(|id| service.data.customer(id)))
}

async fn session(State(service): Shared, Path(id): Path<String>) -> Response {
    let id = match row_id(&service, &id).await {
        Ok(id) => id,
        Err(failure) => return failure.into_response(),
    };
    match stored(&service, move |store| store.session(id)).await {
        Ok(row) => found(row.and_then(|row| service.data.join(row))),
        Err(response) => response,
    }
}

#[derive(Deserialize)]
struct Insertion {
    start_time: String,
    customer_id: i64,
    movie_id: i64,
}

/// The answer is not reported: 200 with the row and its id.
async fn insert(State(service): Shared, body: Bytes) -> Response {
    let bad = |text| Failure(StatusCode::BAD_REQUEST, text).into_response();
    let Ok(Insertion { start_time, customer_id, movie_id }) = serde_json::from_slice(&body) else {
        return bad("bad session");
    };
    let Some(start_time) = Timestamp::parse(&start_time) else { return bad("bad start_time") };
    row_latency(&service).await;
    let row = NewSession { start_time, customer_id, movie_id };
    match stored(&service, move |store| store.insert(row)).await {
        Ok(row) => json::<Session>(&row),
        Err(response) => response,
    }
}

/// The answer is not reported: 200 with the id, and 404 when there is no such row.
async fn delete(State(service): Shared, Path(id): Path<String>) -> Response {
    let id = match row_id(&service, &id).await {
        Ok(id) => id,
        Err(failure) => return failure.into_response(),
    };
    match stored(&service, move |store| store.delete(id)).await {
        Ok(true) => json(&serde_json::json!({"id": id})),
        Ok(false) => NOT_FOUND.into_response(),
        Err(response) => response,
    }
}

/// Reads an id and waits as long as the database needs for a row. Negative ids are ids of no row.
async fn row_id(service: &Service, id: &str) -> Result<u64, Failure> {
    let id = id.parse::<i64>().map_err(|_| BAD_ID)?;
    row_latency(service).await;
    u64::try_from(id).map_err(|_| NOT_FOUND)
}

async fn row_latency(service: &Service) {
    let asked = service.asked.fetch_add(1, Ordering::Relaxed);
    let micros = service.dice.below(Stream::Latency, asked, ROW.1);
    tokio::time::sleep(ROW.0 + Duration::from_micros(micros)).await;
}

/// Runs a call of the store in a blocking thread. A client that leaves meanwhile does not stop it half-way.
async fn stored<T: Send + 'static>(
    service: &Service,
    call: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Response> {
    let store = Arc::clone(&service.store);
    match tokio::task::spawn_blocking(move || call(&store)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(StoreError::NoCustomer)) => {
            Err(Failure(StatusCode::BAD_REQUEST, "no such customer").into_response())
        }
        Ok(Err(StoreError::NoMovie)) => {
            Err(Failure(StatusCode::BAD_REQUEST, "no such movie").into_response())
        }
        Ok(Err(error)) => Err(internal(&error)),
        Err(error) => Err(internal(&error)),
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "the legacy store failed");
    Failure(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response()
}

fn found(row: Option<impl Serialize>) -> Response {
    row.map_or_else(|| NOT_FOUND.into_response(), |row| json(&row))
}

fn json<T: Serialize>(value: &T) -> Response {
    axum::Json(value).into_response()
}
