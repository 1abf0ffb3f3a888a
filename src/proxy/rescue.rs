//! Failures as answers: the one place that turns what went wrong into status, fields and body.
//!
//! The client's text says what it may do; the log's text says what happened. `Proxy-Status` (RFC 9209) carries the
//! reason in the words of that RFC.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::http1::RefusedRequest;

/// Why a request gets an answer of our own.
#[derive(Clone, Debug, PartialEq)]
pub enum Rescue {
    /// The request is malformed, ambiguous or beyond a bound of its head.
    Refused(RefusedRequest),
    /// The head did not arrive in time.
    HeadTimeout,
    /// The head is longer than `limits.header_bytes`.
    HeadTooLarge,
    /// Content longer than `limits.body_bytes`.
    BodyTooLarge,
    /// The client's content stopped coming.
    BodyTimeout,
    /// An expectation other than `100-continue`.
    ExpectationFailed,
    NoRoute,
    MethodNotAllowed(Vec<Method>),
    /// More requests per second than one client may make; try again after this.
    RateLimited(Duration),
    /// The route's or the endpoints' bound on requests in flight, or the cache's on fetches.
    Overloaded,
    /// No endpoint is healthy.
    NoEndpoint,
    ConnectFailed,
    ConnectTimeout,
    /// The connection to the origin broke before an answer.
    Broken,
    /// The origin's answer cannot be understood.
    BadAnswer,
    /// No head of an answer within the route's `timeout`.
    AnswerTimeout,
    /// The whole exchange took longer than the route's `total_timeout`.
    TotalTimeout,
    /// The origin's answer is longer than a stored answer may be, and cannot be passed on piecewise.
    Internal,
}

/// A rescue, ready to send: status, field lines (without framing) and body.
pub struct Rescued {
    pub status: StatusCode,
    pub lines: Vec<u8>,
    pub body: Bytes,
}

struct Row {
    status: StatusCode,
    /// What the client reads.
    error: &'static str,
    /// The error type of RFC 9209, 2.3; empty where the client is at fault in a way it has no word for.
    proxy_status: &'static str,
    retry_after_seconds: Option<u64>,
}

impl Rescue {
    fn row(&self) -> Row {
        let row = |status, error, proxy_status, retry_after_seconds| Row {
            status,
            error,
            proxy_status,
            retry_after_seconds,
        };
        match self {
            Rescue::Refused(refused) => row(refused.status, refused.reason, "http_request_error", None),
            Rescue::HeadTimeout => row(
                StatusCode::REQUEST_TIMEOUT,
                "the request did not arrive in time",
                "http_request_error",
                None,
            ),
            Rescue::HeadTooLarge => row(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the request's head is too large",
                "http_request_error",
                None,
            ),
            Rescue::BodyTooLarge => row(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request's content is too large",
                "http_request_error",
                None,
            ),
            Rescue::BodyTimeout => row(
                StatusCode::REQUEST_TIMEOUT,
                "the request's content did not arrive in time",
                "http_request_error",
                None,
            ),
            Rescue::ExpectationFailed => {
                row(StatusCode::EXPECTATION_FAILED, "unknown expectation", "http_request_error", None)
            }
            Rescue::NoRoute => row(StatusCode::NOT_FOUND, "no such resource", "destination_not_found", None),
            Rescue::MethodNotAllowed(_) => {
                row(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", "http_request_denied", None)
            }
            Rescue::RateLimited(wait) => row(
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests",
                "http_request_denied",
                // Rounded up: a client that comes back early is refused again.
                Some(wait.as_secs_f64().ceil().max(1.0) as u64),
            ),
            Rescue::Overloaded => row(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded, try again",
                "connection_limit_reached",
                Some(1),
            ),
            Rescue::NoEndpoint => row(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily unavailable, try again",
                "destination_unavailable",
                Some(2),
            ),
            Rescue::ConnectFailed => {
                row(StatusCode::BAD_GATEWAY, "the service cannot be reached", "connection_refused", Some(1))
            }
            Rescue::ConnectTimeout => row(
                StatusCode::GATEWAY_TIMEOUT,
                "the service cannot be reached",
                "connection_timeout",
                Some(1),
            ),
            Rescue::Broken => row(
                StatusCode::BAD_GATEWAY,
                "the service closed the connection",
                "connection_terminated",
                None,
            ),
            Rescue::BadAnswer => {
                row(StatusCode::BAD_GATEWAY, "the service answered nonsense", "http_protocol_error", None)
            }
            Rescue::AnswerTimeout => row(
                StatusCode::GATEWAY_TIMEOUT,
                "the service did not answer in time",
                "http_response_timeout",
                None,
            ),
            Rescue::TotalTimeout => {
                row(StatusCode::GATEWAY_TIMEOUT, "the exchange took too long", "http_response_timeout", None)
            }
            Rescue::Internal => {
                row(StatusCode::INTERNAL_SERVER_ERROR, "internal error", "proxy_internal_error", None)
            }
        }
    }

    pub fn status(&self) -> StatusCode {
        self.row().status
    }

    /// The word for logs: RFC 9209's error type.
    pub fn reason(&self) -> &'static str {
        self.row().proxy_status
    }

    /// Must the connection end with this answer, because where the next request begins is not known?
    pub fn ends_connection(&self) -> bool {
        matches!(self, Rescue::Refused(_) | Rescue::HeadTimeout | Rescue::HeadTooLarge)
            || matches!(self, Rescue::BodyTooLarge | Rescue::BodyTimeout)
    }

    /// Lays the answer out.
    pub fn answer(&self, id: &[u8], date: &[u8]) -> Rescued {
        let row = self.row();
        let mut lines = Vec::with_capacity(320);
        lines.extend_from_slice(b"date: ");
        lines.extend_from_slice(date);
        lines.extend_from_slice(
            b"\r\ncontent-type: application/json\r\ncache-control: no-store\r\nx-request-id: ",
        );
        lines.extend_from_slice(id);
        // Writing to a Vec cannot fail.
        let _ =
            write!(lines, "\r\nvia: 1.1 forefront\r\nproxy-status: forefront; error={}", row.proxy_status);
        // Neither a hit nor forwarded with success: the member says only why (RFC 9211, 2).
        let _ = write!(lines, "\r\ncache-status: forefront; detail={}\r\n", row.proxy_status);
        if let Some(seconds) = row.retry_after_seconds {
            let _ = write!(lines, "retry-after: {seconds}\r\n");
        }
        if let Rescue::MethodNotAllowed(methods) = self {
            let _ = write!(
                lines,
                "allow: {}\r\n",
                methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
            );
        }
        let body =
            format!("{{\"error\":\"{}\",\"request_id\":\"{}\"}}\n", row.error, String::from_utf8_lossy(id));
        Rescued { status: row.status, lines, body: body.into() }
    }
}
