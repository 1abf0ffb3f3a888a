//! The routes of the private listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, PurgeRequest, door};
use crate::telemetry;

const BODY_BYTES_MAX: usize = 64 * 1024;
/// From the head read to the answer's head made, the body of the request included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The page's own script and style stand in it; nothing else may load, and nobody may frame it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An error for the client: `{"error": ...}`.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// The router of a private listener that is bound to `listen`.
pub(super) fn private(admin: &Arc<Admin>, listen: SocketAddr) -> Router {
    let actions = &admin.actions;
    let mut changes = Router::new();
    if actions.drain.is_some() {
        changes = changes.route("/drain", post(drain));
    }
    if actions.purge.is_some() {
        changes = changes.route("/cache/purge", post(purge));
    }
    if actions.endpoint.is_some() {
        changes = changes
            .route("/upstreams/{name}/endpoints/{addr}/drain", post(|a, p| endpoint(a, p, true)))
            .route("/upstreams/{name}/endpoints/{addr}/undrain", post(|a, p| endpoint(a, p, false)));
    }
    if actions.drain.is_some() || actions.purge.is_some() || actions.endpoint.is_some() {
        changes = changes.route_layer(from_fn_with_state((Arc::clone(admin), listen), guarded));
    }
    let router = Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .merge(changes)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::clone(admin));
    bounded(router)
}

/// What both listeners have in common: a time limit, and answers that nobody stores or guesses the type of.
pub(super) fn bounded(router: Router) -> Router {
    router.layer(from_fn(|request: Request, next: Next| async move {
        let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                Refused(StatusCode::REQUEST_TIMEOUT, "the request took too long".into()).into_response()
            }
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }))
}

pub(super) async fn not_found() -> Response {
    Refused(StatusCode::NOT_FOUND, "there is nothing at this path".into()).into_response()
}

pub(super) async fn method_not_allowed() -> Response {
    Refused(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method".into()).into_response()
}

/// Lets a request through to an action only if it may change something.
async fn guarded(
    State((admin, listen)): State<(Arc<Admin>, SocketAddr)>,
    request: Request,
    next: Next,
) -> Response {
    match door::may_change(request.headers(), listen, admin.token.as_ref()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            tracing::warn!(path = request.uri().path(), %refusal, "an admin action was refused");
            let mut response = Refused(refusal.status(), refusal.to_string()).into_response();
            if refusal == door::Refusal::Token {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

async fn page() -> Response {
    ([(CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(include_str!("page.html"))).into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    ([(CONTENT_TYPE, telemetry::METRICS_CONTENT_TYPE)], telemetry::encode(&admin.registry)).into_response()
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<Value> {
    Json((admin.status)())
}

async fn drain(State(admin): State<Arc<Admin>>) -> Response {
    let Some(drain) = &admin.actions.drain else { return not_found().await };
    tracing::info!("drain was asked for by the admin listener");
    drain();
    (StatusCode::ACCEPTED, Json(json!({ "state": "draining" }))).into_response()
}

async fn endpoint(
    State(admin): State<Arc<Admin>>,
    path: Result<Path<(String, String)>, PathRejection>,
    drain: bool,
) -> Result<Json<Value>, Refused> {
    let Path((upstream, address)) =
        path.map_err(|error| Refused(StatusCode::BAD_REQUEST, error.body_text()))?;
    let missing = || Refused(StatusCode::NOT_FOUND, "there is nothing at this path".into());
    let action = admin.actions.endpoint.as_ref().ok_or_else(missing)?;
    action(&upstream, &address, drain).map_err(|error| Refused(StatusCode::NOT_FOUND, error.to_string()))?;
    tracing::info!(
        upstream,
        endpoint = address,
        drain,
        "an endpoint was drained or undrained by the admin listener"
    );
    Ok(Json(json!({ "upstream": upstream, "endpoint": address, "drained": drain })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeBody {
    path: Option<String>,
    prefix: Option<String>,
}

async fn purge(State(admin): State<Arc<Admin>>, body: Body) -> Result<Json<Value>, Refused> {
    let request = purge_request(&read(body).await?).map_err(|text| Refused(StatusCode::BAD_REQUEST, text))?;
    let missing = || Refused(StatusCode::NOT_FOUND, "there is nothing at this path".into());
    let purge = admin.actions.purge.as_ref().ok_or_else(missing)?;
    let what = format!("{request:?}");
    let removed = purge(request);
    tracing::info!(what, removed, "the cache was purged by the admin listener");
    Ok(Json(json!({ "removed": removed })))
}

async fn read(body: Body) -> Result<Bytes, Refused> {
    axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| {
        let too_long = std::error::Error::source(&error)
            .is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
        match too_long {
            true => Refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is longer than {BODY_BYTES_MAX} bytes"),
            ),
            false => Refused(StatusCode::BAD_REQUEST, "the body could not be read".into()),
        }
    })
}

fn purge_request(body: &[u8]) -> Result<PurgeRequest, String> {
    const FORM: &str = r#"the body must be {"path": "/exact?query"} or {"prefix": "/begins/so"}"#;
    let body: PurgeBody = serde_json::from_slice(body).map_err(|error| format!("{FORM}: {error}"))?;
    let request = match (body.path, body.prefix) {
        (Some(path), None) => PurgeRequest::Path(path),
        (None, Some(prefix)) => PurgeRequest::Prefix(prefix),
        (Some(_), Some(_)) => return Err(format!("{FORM}, not both")),
        (None, None) => return Err(format!("{FORM}; neither was given")),
    };
    let (PurgeRequest::Path(text) | PurgeRequest::Prefix(text)) = &request;
    match text.starts_with('/') {
        true => Ok(request),
        false => Err(format!("{FORM}: {text:?} does not begin with a slash")),
    }
}
