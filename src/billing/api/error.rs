//! Failures as answers: the one table of status, type and text, in problem details (RFC 9457).

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::billing::domain::Refusal;
use crate::billing::shard::Failure;

pub const CONTENT_TYPE_PROBLEM: &str = "application/problem+json";

/// What the `type` of every problem begins with; what follows is [`Row::name`].
const TYPE_PREFIX: &str = "urn:problem-type:forefront:billing:";

/// Longest text that is told of one problem: it may quote what the client sent.
const DETAIL_BYTES_MAX: usize = 400;

/// How soon something that is sure to pass is tried again.
const SOON: Duration = Duration::from_secs(1);

/// Why there is no account to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Malformed,
    Unauthorized,
    NotAPeer,
    NoRoute,
    UnknownAccount,
    MethodNotAllowed,
    BodyTimeout,
    AccountExists,
    KeyConflict,
    BodyTooLarge,
    NotJson,
    InsufficientFunds,
    Overflow,
    /// A bucket or a shard, as things are.
    Unmovable,
    /// A shard cannot be given to it.
    UnknownNode,
    /// Surely nothing was done.
    Busy,
    /// It may have been done.
    Unknown,
    /// A forwarded request, and the account is not here either.
    Loop,
}

/// A failure as the client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: Kind,
    pub detail: String,
    pub retry_after: Option<Duration>,
}

/// The members of RFC 9457, 3.1.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProblemBody {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: String,
    /// In seconds, as the field `Retry-After` has it, which the results within a batch cannot have.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

struct Row {
    name: &'static str,
    status: StatusCode,
    title: &'static str,
    /// Where nothing more is known.
    detail: &'static str,
    retry_after: Option<Duration>,
}

pub(super) const KINDS: [Kind; 18] = [
    Kind::Malformed,
    Kind::Unauthorized,
    Kind::NotAPeer,
    Kind::NoRoute,
    Kind::UnknownAccount,
    Kind::MethodNotAllowed,
    Kind::BodyTimeout,
    Kind::AccountExists,
    Kind::KeyConflict,
    Kind::BodyTooLarge,
    Kind::NotJson,
    Kind::InsufficientFunds,
    Kind::Overflow,
    Kind::Unmovable,
    Kind::UnknownNode,
    Kind::Busy,
    Kind::Unknown,
    Kind::Loop,
];

impl Kind {
    fn row(self) -> Row {
        let row = |status, name, title, detail| Row { name, status, title, detail, retry_after: None };
        let soon = |status, name, title, detail| Row { name, status, title, detail, retry_after: Some(SOON) };
        match self {
            Kind::Malformed => row(
                StatusCode::BAD_REQUEST,
                "malformed",
                "The request is malformed",
                "the request cannot be understood",
            ),
            Kind::Unauthorized => row(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "A token is needed",
                "send the field \"Authorization: Bearer <token>\" with the token of this service",
            ),
            Kind::NotAPeer => row(
                StatusCode::FORBIDDEN,
                "not-a-peer",
                "No access",
                "the field x-forefront-peer is for other nodes, and this is not their token",
            ),
            Kind::NoRoute => row(
                StatusCode::NOT_FOUND,
                "no-such-path",
                "There is nothing here",
                "see /billing/v1/openapi.json",
            ),
            Kind::UnknownAccount => row(
                StatusCode::NOT_FOUND,
                "unknown-account",
                "There is no such account",
                "no account has this id",
            ),
            Kind::MethodNotAllowed => row(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "This path does not take this method",
                "the field Allow names the methods it takes",
            ),
            Kind::BodyTimeout => row(
                StatusCode::REQUEST_TIMEOUT,
                "body-timeout",
                "The request took too long to arrive",
                "the content did not arrive in time; nothing was done",
            ),
            Kind::AccountExists => row(
                StatusCode::CONFLICT,
                "account-exists",
                "The account exists already",
                "an account has this id; nothing was changed",
            ),
            Kind::KeyConflict => row(
                StatusCode::CONFLICT,
                "key-reused",
                "The idempotency key was used for something else",
                "this key came before with another operation on this account; nothing was changed",
            ),
            Kind::BodyTooLarge => row(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "The content is too large",
                "the content is longer than it may be",
            ),
            Kind::NotJson => row(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "The content is not JSON",
                "send the field \"Content-Type: application/json\"",
            ),
            Kind::InsufficientFunds => row(
                StatusCode::UNPROCESSABLE_ENTITY,
                "insufficient-funds",
                "The account has less than that",
                "the withdrawal is larger than the balance; nothing was withdrawn",
            ),
            Kind::Overflow => row(
                StatusCode::UNPROCESSABLE_ENTITY,
                "overflow",
                "The result would be too large",
                "the result would be beyond 64 bits; nothing was changed",
            ),
            Kind::Unmovable => row(
                StatusCode::UNPROCESSABLE_ENTITY,
                "unmovable",
                "It cannot be moved",
                "the bucket or shard cannot be moved there; it stays where it is",
            ),
            Kind::UnknownNode => row(
                StatusCode::UNPROCESSABLE_ENTITY,
                "unknown-node",
                "No such node has a shard",
                "a node that has no shard yet is given one if it is asked for that itself",
            ),
            Kind::Busy => soon(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "Busy, try again",
                "nothing was done; the same request may be sent again",
            ),
            Kind::Unknown => soon(
                StatusCode::GATEWAY_TIMEOUT,
                "unknown-outcome",
                "The outcome is not known",
                "it may or may not have been done; the same request with the same Idempotency-Key tells, and does \
                 nothing twice",
            ),
            Kind::Loop => row(
                StatusCode::LOOP_DETECTED,
                "loop",
                "The request was forwarded already",
                "the node it was forwarded to does not own the account either; nothing was done",
            ),
        }
    }

    pub fn status(self) -> StatusCode {
        self.row().status
    }

    /// The word for logs and metrics.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Is it over for this account for the moment, so that the operations after this one had better wait?
    pub fn stops(self) -> bool {
        matches!(self, Kind::Busy | Kind::Unknown | Kind::Loop)
    }
}

impl Problem {
    pub fn malformed(detail: impl Into<String>) -> Problem {
        Problem { detail: cut(detail.into()), ..Problem::from(Kind::Malformed) }
    }

    pub fn busy(retry_after: Duration) -> Problem {
        Problem { retry_after: Some(retry_after), ..Problem::from(Kind::Busy) }
    }

    pub fn body(&self) -> ProblemBody {
        let Problem { kind, detail, retry_after } = self;
        let Row { name, status, title, .. } = kind.row();
        ProblemBody {
            kind: format!("{TYPE_PREFIX}{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.clone(),
            retry_after: retry_after.map(seconds),
        }
    }

    /// What another node told. None if it is none of ours.
    pub fn from_body(body: ProblemBody) -> Option<Problem> {
        let ProblemBody { kind: name, title: _, status: _, detail, retry_after } = body;
        let name = name.strip_prefix(TYPE_PREFIX)?;
        let kind = KINDS.into_iter().find(|kind| kind.name() == name)?;
        Some(Problem { kind, detail: cut(detail), retry_after: retry_after.map(Duration::from_secs) })
    }
}

impl From<Kind> for Problem {
    fn from(kind: Kind) -> Problem {
        let Row { detail, retry_after, .. } = kind.row();
        Problem { kind, detail: detail.to_owned(), retry_after }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::UnknownAccount => Kind::UnknownAccount.into(),
            Refusal::AccountExists => Kind::AccountExists.into(),
            Refusal::InsufficientFunds => Kind::InsufficientFunds.into(),
            Refusal::Overflow => Kind::Overflow.into(),
            Refusal::Conflict => Kind::KeyConflict.into(),
            // The door has looked; these are its own words.
            Refusal::BadAmount | Refusal::BadVelocity => Problem::malformed(refusal.to_string()),
            // The bucket is between two shards, and will have arrived in a moment.
            Refusal::Elsewhere | Refusal::BadBucket => Kind::Busy.into(),
        }
    }
}

impl From<Failure> for Problem {
    /// `Elsewhere` is the desk's; what it did not forward is a loop.
    fn from(failure: Failure) -> Problem {
        match failure {
            Failure::Refused(refusal) => refusal.into(),
            Failure::Busy { retry_after } => Problem::busy(retry_after),
            Failure::Elsewhere { .. } => Kind::Loop.into(),
            Failure::Unknown => Kind::Unknown.into(),
            Failure::Unmovable(why) => Problem { detail: why.to_string(), ..Kind::Unmovable.into() },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // A struct of texts and numbers always serialises.
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.kind.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_PROBLEM));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
        }
        if self.kind == Kind::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self.kind);
        response
    }
}

/// Rounded up: a client that comes back early is refused again.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

fn cut(mut text: String) -> String {
    if text.len() > DETAIL_BYTES_MAX {
        let end = (0..=DETAIL_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::shard::Unmovable;

    #[test]
    fn every_failure_has_its_status() {
        let elsewhere = || Failure::Elsewhere { node: "b".into(), advertise: "b:1".into() };
        let busy = |millis| Failure::Busy { retry_after: Duration::from_millis(millis) };
        for (failure, status, retry_after) in [
            (Failure::from(Refusal::UnknownAccount), 404, None),
            (Refusal::AccountExists.into(), 409, None),
            (Refusal::Conflict.into(), 409, None),
            (Refusal::InsufficientFunds.into(), 422, None),
            (Refusal::Overflow.into(), 422, None),
            (Refusal::BadAmount.into(), 400, None),
            (Refusal::BadVelocity.into(), 400, None),
            (Refusal::Elsewhere.into(), 503, Some(1)),
            (Refusal::BadBucket.into(), 503, Some(1)),
            (busy(0), 503, Some(0)),
            (busy(1), 503, Some(1)),
            (busy(2001), 503, Some(3)),
            (Failure::Unknown, 504, Some(1)),
            (elsewhere(), 508, None),
            (Unmovable::TooLarge { bytes: 7 }.into(), 422, None),
        ] {
            let text = format!("{failure:?}");
            let problem = Problem::from(failure);
            let body = problem.body();
            assert_eq!((body.status, body.retry_after), (status, retry_after), "{text}");
            let response = problem.into_response();
            assert_eq!(response.status().as_u16(), status, "{text}");
            let field =
                response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap().parse().unwrap());
            assert_eq!(field, retry_after, "{text}");
            assert_eq!(response.headers()[CONTENT_TYPE], CONTENT_TYPE_PROBLEM);
        }
    }

    #[test]
    fn every_kind_survives_the_way_through_another_node() {
        for kind in KINDS {
            let problem = Problem::from(kind);
            let text = serde_json::to_string(&problem.body()).unwrap();
            assert_eq!(Problem::from_body(serde_json::from_str(&text).unwrap()), Some(problem), "{text}");
        }
        let names: std::collections::BTreeSet<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), KINDS.len());
    }

    #[test]
    fn long_details_are_cut_between_characters() {
        let problem = Problem::malformed("é".repeat(1000));
        assert!(problem.detail.len() <= DETAIL_BYTES_MAX + 3 && problem.detail.ends_with("é..."));
    }
}
