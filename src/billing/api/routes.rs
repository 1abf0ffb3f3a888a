//! The routes: what is read of a request, what is asked of the desk, what is answered.

pub(super) mod operators;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cluster::ClusterBody;
use super::desk::lost;
use super::error::{Kind, Problem};
use super::gate::{Caller, single};
use super::history::Page;
use super::json::{
    AccountBody, AccountsBody, AmountBody, BATCH_KEY_BYTES_MAX, CreateBody, Order, PageBody, ResultBody,
    ResultsBody, VelocityBody, What, batch as read_batch, key as read_key, new_key, object,
};
use super::page::{PAGE_DEFAULT, PAGE_MAX, limit_of};
use super::whole::of_text;
use super::{Api, Inner, NODE_PAGE_MAX, OPENAPI, Shards};
use crate::billing::domain::{Account, Key, Operation};
use crate::clock;
use crate::telemetry;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Another node's batch is a client's, and each operation has its key written out.
const KEYS_BYTES: usize = 128 << 10;

type Shared<S> = State<Arc<Inner<S>>>;
type Id = Result<Path<String>, PathRejection>;
type Answer = Result<Response, Problem>;

/// One line of the table below.
pub(super) struct Route<S> {
    pub path: &'static str,
    /// In metrics.
    name: &'static str,
    handler: MethodRouter<Arc<Inner<S>>>,
    /// Behind the gate and the limit of requests in flight.
    guarded: bool,
}

/// Every route there is.
pub(super) fn table<S: Shards>() -> Vec<Route<S>> {
    let guarded = |path, name, handler| Route { path, name, handler, guarded: true };
    let open = |path, name, handler| Route { path, name, handler, guarded: false };
    vec![
        guarded("/billing/v1/accounts", "list", get(list::<S>)),
        guarded("/billing/v1/accounts", "create", post(create::<S>)),
        guarded("/billing/v1/accounts/{id}", "get", get(get_account::<S>)),
        guarded("/billing/v1/accounts/{id}/history", "history", get(history::<S>)),
        guarded("/billing/v1/accounts/{id}/add_money", "add_money", post(add_money::<S>)),
        guarded("/billing/v1/accounts/{id}/withdraw", "withdraw", post(withdraw::<S>)),
        guarded(
            "/billing/v1/accounts/{id}/update_spending_velocity",
            "update_spending_velocity",
            post(update_spending_velocity::<S>),
        ),
        guarded("/billing/v1/batch", "batch", post(batch::<S>)),
        guarded("/billing/v1/insert_data", "insert_data", post(insert_data::<S>)),
        guarded("/billing/v1/cluster", "cluster", get(cluster::<S>)),
        guarded("/billing/v1/cluster/move", "move", post(operators::move_buckets::<S>)),
        guarded("/billing/v1/cluster/hand_over", "hand_over", post(operators::hand_over::<S>)),
        guarded("/billing/v1/cluster/adopt", "adopt", post(operators::adopt::<S>)),
        guarded("/billing/v1/cluster/give", "give", post(operators::give::<S>)),
        open("/billing/v1/openapi.json", "openapi", get(openapi)),
        open("/ping", "ping", get(ping::<S>)),
        open("/metrics", "metrics", get(metrics::<S>)),
    ]
}

pub(super) fn router<S: Shards>(api: Api<S>) -> Router {
    let Api(inner) = api;
    let mut router = Router::new();
    for Route { path, name, handler, guarded } in table::<S>() {
        let handler = match guarded {
            true => handler.route_layer(from_fn_with_state((Arc::clone(&inner), name), guard::<S>)),
            false => handler,
        };
        router = router.route(path, handler);
    }
    router
        .fallback(async || Problem::from(Kind::NoRoute))
        .method_not_allowed_fallback(async || Problem::from(Kind::MethodNotAllowed))
        .layer(map_response(async |mut response: Response| {
            let headers = response.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        }))
        .with_state(inner)
}

/// Admits a request, counts it, and lets it through while there is room.
async fn guard<S: Shards>(
    State((api, name)): State<(Arc<Inner<S>>, &'static str)>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = clock::now();
    let _in_flight = (api.drain.guard(), Gauge::new(&api.metrics.in_flight));
    let response = match (api.gate.admit(request.headers()), api.slots.try_acquire()) {
        (Err(problem), _) => problem.into_response(),
        (Ok(_), Err(_)) => Problem::from(Kind::Busy).into_response(),
        (Ok(caller), Ok(_slot)) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
    };
    let took = clock::now().saturating_duration_since(began);
    api.metrics.answered(name, response.status().as_u16(), took);
    response
}

struct Gauge<'a>(&'a prometheus::IntGauge);

impl Gauge<'_> {
    fn new(gauge: &prometheus::IntGauge) -> Gauge<'_> {
        gauge.inc();
        Gauge(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// ---------------------------------------------------------------------------------------------------------- accounts

async fn create<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    let caller = caller(&request);
    let key = key_of(request.headers())?;
    let created = async {
        let body: CreateBody = read(&api, request).await?;
        let account = one(&api, caller, body.id, key, body.operation()?).await?;
        let mut response = answer(StatusCode::CREATED, &AccountBody::from(account));
        let location = HeaderValue::from_str(&format!("/billing/v1/accounts/{}", account.id));
        if let Ok(location) = location {
            response.headers_mut().insert(LOCATION, location);
        }
        Ok(response)
    };
    Ok(told_key(&key, created.await))
}

async fn get_account<S: Shards>(State(api): Shared<S>, id: Id, request: Request) -> Answer {
    let order = Order { account: account_id(id)?, what: What::Get };
    let account = within(&api, api.desk.one(caller(&request), order), lost(&order)).await??;
    Ok(answer(StatusCode::OK, &AccountBody::from(account)))
}

async fn history<S: Shards>(State(api): Shared<S>, id: Id, request: Request) -> Answer {
    let (account, page) = (account_id(id)?, Page::read(request.uri().query().unwrap_or_default())?);
    let asked = api.desk.history(caller(&request), account, page);
    Ok(answer(StatusCode::OK, &within(&api, asked, Kind::Busy.into()).await??))
}

async fn add_money<S: Shards>(State(api): Shared<S>, id: Id, request: Request) -> Answer {
    operate(&api, id, request, AmountBody::add_money).await
}

async fn withdraw<S: Shards>(State(api): Shared<S>, id: Id, request: Request) -> Answer {
    operate(&api, id, request, AmountBody::withdraw).await
}

async fn update_spending_velocity<S: Shards>(State(api): Shared<S>, id: Id, request: Request) -> Answer {
    operate(&api, id, request, VelocityBody::operation).await
}

async fn operate<S: Shards, B: DeserializeOwned>(
    api: &Inner<S>,
    id: Id,
    request: Request,
    operation: impl FnOnce(&B) -> Result<Operation, Problem>,
) -> Answer {
    let caller = caller(&request);
    let key = key_of(request.headers())?;
    let operated = async {
        let id = account_id(id)?;
        let body: B = read(api, request).await?;
        let account = one(api, caller, id, key, operation(&body)?).await?;
        Ok(answer(StatusCode::OK, &AccountBody::from(account)))
    };
    Ok(told_key(&key, operated.await))
}

async fn one<S: Shards>(
    api: &Inner<S>,
    caller: Caller,
    account: u64,
    key: Key,
    operation: Operation,
) -> Result<Account, Problem> {
    let order = Order { account, what: What::Operate(key, operation) };
    within(api, api.desk.one(caller, order), lost(&order)).await?
}

/// What is asked of a listing.
struct Listing {
    after: Option<u64>,
    limit: usize,
    /// Only another node names them.
    shards: Option<Vec<u32>>,
}

impl Listing {
    fn read(query: &str, caller: Caller) -> Result<Listing, Problem> {
        let most = if caller == Caller::Node { NODE_PAGE_MAX } else { PAGE_MAX };
        let (mut after, mut limit, mut shards) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let twice = match name {
                "after" => after
                    .replace(of_text(value).ok_or_else(|| {
                        Problem::malformed("after must be the id of an account, a whole number below 2^64")
                    })?)
                    .is_some(),
                "limit" => limit.replace(limit_of(value, most)?).is_some(),
                "shards" if caller == Caller::Node => {
                    let refused = || Problem::malformed("shards are numbers with commas between them");
                    let all: Option<Vec<u32>> = value.split(',').map(|shard| shard.parse().ok()).collect();
                    shards.replace(all.ok_or_else(refused)?).is_some()
                }
                _ => return Err(Problem::malformed("a listing takes after and limit, nothing else")),
            };
            if twice {
                return Err(Problem::malformed(format!("{name} is given twice")));
            }
        }
        if caller == Caller::Node && shards.is_none() {
            return Err(Problem::malformed("another node says which shards it means"));
        }
        Ok(Listing { after, limit: limit.unwrap_or(PAGE_DEFAULT), shards })
    }
}

async fn list<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    let caller = caller(&request);
    let Listing { after, limit, shards } = Listing::read(request.uri().query().unwrap_or_default(), caller)?;
    let listing = async {
        match &shards {
            Some(shards) => api.desk.list_of(shards, after, limit).await,
            None => api.desk.list(after, limit).await,
        }
    };
    let accounts = within(&api, listing, Kind::Busy.into()).await??;
    let next = accounts.last().filter(|_| accounts.len() == limit).map(|account| account.id);
    let accounts = accounts.into_iter().map(AccountBody::from).collect();
    Ok(answer(StatusCode::OK, &PageBody { accounts, next }))
}

// ------------------------------------------------------------------------------------------------------ many at once

async fn batch<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    let caller = caller(&request);
    let key = key_of(request.headers())?;
    if key.as_bytes().len() > BATCH_KEY_BYTES_MAX {
        let detail = format!("the idempotency key of a batch has at most {BATCH_KEY_BYTES_MAX} characters");
        return Err(Problem::malformed(detail));
    }
    let done = async {
        let more = if caller == Caller::Node { KEYS_BYTES } else { 0 };
        let body = read_bytes(&api, request, api.limits.batch_bytes + more).await?;
        let orders = read_batch(&body, &key)?;
        let results = within(&api, api.desk.batch(caller, &orders), Kind::Unknown.into()).await?;
        let results =
            orders.iter().zip(results).map(|(order, result)| ResultBody::new(order, result)).collect();
        Ok(answer(StatusCode::OK, &ResultsBody { results }))
    };
    Ok(told_key(&key, done.await))
}

async fn insert_data<S: Shards>(State(api): Shared<S>, request: Request) -> Answer {
    let caller = caller(&request);
    let body = collect(&api, request, api.limits.body_bytes).await?;
    if !body.is_empty() {
        let detail = "insert_data takes no content";
        return Err(Problem::malformed(detail));
    }
    let accounts = within(&api, api.desk.insert_data(caller), Kind::Unknown.into()).await??;
    let accounts = accounts.into_iter().map(AccountBody::from).collect();
    Ok(answer(StatusCode::OK, &AccountsBody { accounts }))
}

// --------------------------------------------------------------------------------------------------------- the node

async fn cluster<S: Shards>(State(api): Shared<S>) -> Answer {
    let cluster = within(&api, api.desk.cluster(), Kind::Busy.into()).await?;
    Ok(answer(StatusCode::OK, &ClusterBody::new(cluster)))
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn ping<S: Shards>(State(api): Shared<S>) -> Response {
    const TEXT: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    match !api.drain.draining() && api.desk.is_able() {
        true => (TEXT, "pong").into_response(),
        false => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, "not able to take writes").into_response(),
    }
}

async fn metrics<S: Shards>(State(api): Shared<S>) -> Response {
    ([(CONTENT_TYPE, telemetry::METRICS_CONTENT_TYPE)], telemetry::encode(&api.registry)).into_response()
}

// ---------------------------------------------------------------------------------------------------- what is common

/// The guard put it there.
fn caller(request: &Request) -> Caller {
    request.extensions().get().copied().unwrap_or(Caller::Client)
}

/// The client's, or a new one.
fn key_of(headers: &HeaderMap) -> Result<Key, Problem> {
    match single(headers, &IDEMPOTENCY_KEY) {
        Some(text) => read_key(text),
        None if headers.contains_key(IDEMPOTENCY_KEY) => {
            Err(Problem::malformed("there must be one Idempotency-Key"))
        }
        None => new_key(),
    }
}

/// The key stands in every answer: whoever sent none, and is told that nobody knows, can ask with it.
fn told_key(key: &Key, answer: Answer) -> Response {
    let mut response = answer.unwrap_or_else(Problem::into_response);
    if let Ok(value) = HeaderValue::from_bytes(key.as_bytes()) {
        response.headers_mut().insert(IDEMPOTENCY_KEY, value);
    }
    response
}

fn account_id(path: Id) -> Result<u64, Problem> {
    let refused = || Problem::malformed("the id of an account is a whole number below 2^64");
    let Path(text) = path.map_err(|_| refused())?;
    of_text(&text).ok_or_else(refused)
}

async fn within<S, T>(api: &Inner<S>, asked: impl Future<Output = T>, late: Problem) -> Result<T, Problem> {
    tokio::time::timeout(api.limits.answer_timeout, asked).await.map_err(|_| late)
}

async fn read<S, B: DeserializeOwned>(api: &Inner<S>, request: Request) -> Result<B, Problem> {
    object(&read_bytes(api, request, api.limits.body_bytes).await?)
}

/// The content of a request that must be JSON.
async fn read_bytes<S>(api: &Inner<S>, request: Request, bytes_max: usize) -> Result<Bytes, Problem> {
    let media = single(request.headers(), &CONTENT_TYPE).unwrap_or_default();
    let media = media.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if !media.eq_ignore_ascii_case(b"application/json") {
        return Err(Kind::NotJson.into());
    }
    collect(api, request, bytes_max).await
}

async fn collect<S>(api: &Inner<S>, request: Request, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem {
        detail: format!("the content is longer than {bytes_max} bytes"),
        ..Kind::BodyTooLarge.into()
    };
    let declared = single(request.headers(), &CONTENT_LENGTH).and_then(|text| std::str::from_utf8(text).ok());
    if declared.and_then(|text| text.parse().ok()).is_some_and(|declared: u64| declared > bytes_max as u64) {
        return Err(too_large());
    }
    let reading = axum::body::to_bytes(request.into_body(), bytes_max);
    match tokio::time::timeout(api.limits.body_timeout, reading).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => {
            let long = std::error::Error::source(&error)
                .is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
            Err(if long { too_large() } else { Problem::malformed("the content could not be read") })
        }
        Err(_) => Err(Kind::BodyTimeout.into()),
    }
}

fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    // Structs of texts and numbers always serialise.
    let body = Body::from(serde_json::to_vec(body).unwrap_or_default());
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
