//! `/live` and `/ready`, for the balancer: nothing to learn and nothing to change.

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};

use super::router::{bounded, method_not_allowed, not_found};
use crate::drain::Drain;

pub(super) fn router(drain: Drain) -> Router {
    let router = Router::new()
        .route("/live", get(|| async { Json(json!({ "live": true })) }))
        .route("/ready", get(ready))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(drain);
    bounded(router)
}

/// 200, or 503 with the reason: `starting` until start-up has ended, `draining` ever after the drain began.
async fn ready(State(drain): State<Drain>) -> (StatusCode, Json<Value>) {
    let reason = if drain.draining() {
        "draining"
    } else if drain.ready() {
        return (StatusCode::OK, Json(json!({ "ready": true })));
    } else {
        "starting"
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reason": reason })))
}
