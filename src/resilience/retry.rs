//! May a request that failed be sent again?

use std::fmt;
use std::str::FromStr;

/// What a route says of repeating its requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RetryClass {
    /// Only what surely never reached an origin.
    Unsent,
    /// Also what may have reached one, if its method is idempotent (RFC 9110, 9.2.2). The default.
    #[default]
    Idempotent,
    /// Also the others: the operator says that repeating them does no harm.
    Any,
}

impl RetryClass {
    /// The word used in configuration: `unsent`, `idempotent` or `any`.
    pub fn as_str(self) -> &'static str {
        match self {
            RetryClass::Unsent => "unsent",
            RetryClass::Idempotent => "idempotent",
            RetryClass::Any => "any",
        }
    }
}

impl fmt::Display for RetryClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RetryClass {
    type Err = UnknownRetryClass;

    fn from_str(text: &str) -> Result<RetryClass, UnknownRetryClass> {
        [RetryClass::Unsent, RetryClass::Idempotent, RetryClass::Any]
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or(UnknownRetryClass)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected \"unsent\", \"idempotent\" or \"any\"")]
pub struct UnknownRetryClass;

/// How far a request had come when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// No connection was made.
    NotConnected,
    /// Connected, but not one byte of the request was written.
    NothingSent,
    /// Bytes of the request may have reached the origin; no byte of an answer was seen.
    Sent,
    /// The answer began. Never repeated: the client may have part of it.
    AnswerStarted,
}

/// May this request go to another endpoint? Says nothing of budgets, nor of whether the body is still at hand.
pub fn may_retry(class: RetryClass, method_is_idempotent: bool, progress: Progress) -> bool {
    match progress {
        Progress::NotConnected | Progress::NothingSent => true,
        Progress::Sent => match class {
            RetryClass::Unsent => false,
            RetryClass::Idempotent => method_is_idempotent,
            RetryClass::Any => true,
        },
        Progress::AnswerStarted => false,
    }
}

/// RFC 9110, 9.2.2: the safe methods, PUT and DELETE. An unknown method is taken for not idempotent.
pub fn is_idempotent(method: &http::Method) -> bool {
    use http::Method;
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        use Progress::*;
        use RetryClass::*;
        for class in [Unsent, Idempotent, Any] {
            for idempotent in [false, true] {
                assert!(may_retry(class, idempotent, NotConnected));
                assert!(may_retry(class, idempotent, NothingSent));
                assert!(!may_retry(class, idempotent, AnswerStarted));
            }
        }
        assert!(!may_retry(Unsent, true, Sent));
        assert!(may_retry(Idempotent, true, Sent));
        assert!(!may_retry(Idempotent, false, Sent));
        assert!(may_retry(Any, false, Sent));
    }

    #[test]
    fn words_and_methods() {
        for class in [RetryClass::Unsent, RetryClass::Idempotent, RetryClass::Any] {
            assert_eq!(class.to_string().parse(), Ok(class));
        }
        assert_eq!("never".parse::<RetryClass>(), Err(UnknownRetryClass));
        assert!(is_idempotent(&http::Method::GET) && is_idempotent(&http::Method::DELETE));
        assert!(!is_idempotent(&http::Method::POST) && !is_idempotent(&http::Method::PATCH));
    }
}
