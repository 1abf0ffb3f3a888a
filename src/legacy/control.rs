//! The control listener for tests: counters and faults. It stands outside of the limiter and of every fault except the
//! process's end. The real service has nothing like it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;

use super::counts::Counts;
use super::faults::{Faults, Kind, Order};

const BODY_BYTES_MAX: usize = 4 << 10;

#[derive(Clone, Debug)]
pub struct Control {
    pub counts: Arc<Counts>,
    pub faults: Arc<Faults>,
}

/// `GET /requests`, `POST /requests/reset`, `POST /fault`, `GET /pid`.
pub fn router(control: Control) -> Router {
    Router::new()
        .route("/requests", get(async |State(control): State<Control>| Json(control.counts.all())))
        .route("/requests/reset", post(async |State(control): State<Control>| control.counts.reset()))
        .route("/fault", post(fault))
        .route("/pid", get(async || std::process::id().to_string()))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(control)
}

/// `{"kind": "slow", "for": "30s", "delay": "2s"}`; `for` and `delay` may be missing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    kind: String,
    #[serde(rename = "for")]
    for_: Option<String>,
    delay: Option<String>,
}

async fn fault(State(control): State<Control>, body: Bytes) -> Response {
    match read(&body) {
        Ok(order) => {
            tracing::warn!(?order, "a fault was ordered");
            control.faults.order(order);
            StatusCode::OK.into_response()
        }
        Err(text) => (StatusCode::BAD_REQUEST, text).into_response(),
    }
}

fn read(body: &[u8]) -> Result<Order, String> {
    let body: Body = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let kind: Kind = body.kind.parse()?;
    Ok(Order { kind, for_: duration(body.for_)?, delay: duration(body.delay)? })
}

fn duration(text: Option<String>) -> Result<Option<Duration>, String> {
    text.map(|text| humantime::parse_duration(&text).map_err(|_| format!("{text:?} is not a duration")))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_wrong_ones_refused() {
        let order = read(br#"{"kind":"slow","for":"30s","delay":"2s"}"#).unwrap();
        let (for_, delay) = (Some(Duration::from_secs(30)), Some(Duration::from_secs(2)));
        assert_eq!(order, Order { kind: Kind::Slow, for_, delay });
        for wrong in
            ["", "{}", r#"{"kind":"x"}"#, r#"{"kind":"sick","for":3}"#, r#"{"kind":"sick","fro":"3s"}"#]
        {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
