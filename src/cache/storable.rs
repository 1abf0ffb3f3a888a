//! May an answer be stored, and for how long? (RFC 9111, 3, and stricter.) Pure.
//!
//! The order is: is it an error of the origin, then what forbids storing, then the lifetime. The operator's `max_age`
//! decides about lifetime alone: it never overrides what forbids storing.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use http::header;

use super::directives::Directives;
use super::freshness::{self, Times};
use super::{FetchError, Fetched, Policy, vary};

/// Why an answer is not stored but left to each request. The words appear in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncacheable {
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// `Cache-Control: no-cache`: it would have to be validated before each use, which is not built.
    NoCache,
    /// It sets a cookie, which is for one client.
    SetCookie,
    /// `Vary: *`, or one that cannot be read.
    VaryAll,
    /// A status that is not stored: 206 and 304 (never asked for), 401, 403, 407 (they depend on the client), other 1xx
    /// to 3xx.
    Status,
    /// The policy is the origin's, and the origin states no lifetime.
    NoLifetime,
    /// Its lifetime was over when it arrived.
    Expired,
    /// Larger than `Config::object_bytes_max`.
    TooLarge,
}

impl Uncacheable {
    pub fn as_str(self) -> &'static str {
        match self {
            Uncacheable::NoStore => "no-store",
            Uncacheable::Private => "private",
            Uncacheable::NoCache => "no-cache",
            Uncacheable::SetCookie => "set-cookie",
            Uncacheable::VaryAll => "vary",
            Uncacheable::Status => "status",
            Uncacheable::NoLifetime => "no-lifetime",
            Uncacheable::Expired => "expired",
            Uncacheable::TooLarge => "too-large",
        }
    }
}

/// The judgement on an answer.
#[derive(Debug)]
pub enum Verdict {
    Store(Times),
    Pass(Uncacheable),
    /// An error for all who wait now, and for nobody later.
    Share(FetchError),
}

/// Judges an answer that arrived at `now` (`received` on the wall clock).
pub fn judge(
    fetched: &Arc<Fetched>,
    policy: &Policy,
    object_bytes_max: u64,
    now: Instant,
    received: SystemTime,
) -> Verdict {
    let directives = Directives::of(&fetched.headers);
    if let Some(reason) = personal(fetched, &directives) {
        return Verdict::Pass(reason);
    }
    if is_shared_error(fetched.status) {
        return Verdict::Share(FetchError::Status(Arc::clone(fetched)));
    }
    if is_truncated(fetched) {
        return Verdict::Share(FetchError::Unavailable("the answer was cut short".into()));
    }
    if let Some(reason) = forbidden(fetched, &directives, object_bytes_max) {
        return Verdict::Pass(reason);
    }
    let stated = freshness::stated_lifetime(&directives, &fetched.headers, received);
    if !is_storable_status(fetched.status, stated) {
        return Verdict::Pass(Uncacheable::Status);
    }
    let Some(lifetime) = policy.max_age.or(stated) else { return Verdict::Pass(Uncacheable::NoLifetime) };
    let Some(epoch) = freshness::epoch(fetched.sent_at, &fetched.headers) else {
        return Verdict::Pass(Uncacheable::Expired);
    };
    let refresh_at = policy.refresh_at.filter(|&at| at < lifetime);
    let times = Times { epoch, lifetime, refresh_at };
    if times.fresh(now) { Verdict::Store(times) } else { Verdict::Pass(Uncacheable::Expired) }
}

/// What makes even an error one client's own.
fn personal(fetched: &Fetched, directives: &Directives) -> Option<Uncacheable> {
    if fetched.headers.contains_key(header::SET_COOKIE) {
        Some(Uncacheable::SetCookie)
    } else if directives.private {
        Some(Uncacheable::Private)
    } else {
        None
    }
}

/// Errors are the same for everybody, except those that ask for the credentials which the canonical request lacks. A
/// `no-store` on them is obeyed: they are not stored. To repeat them for each waiter would only press a sick origin.
fn is_shared_error(status: StatusCode) -> bool {
    let wants_credentials = matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED
    );
    (status.is_client_error() || status.is_server_error()) && !wants_credentials
}

/// A body that is not as long as `Content-Length` said.
fn is_truncated(fetched: &Fetched) -> bool {
    let said = fetched.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    said.and_then(|text| text.trim().parse::<u64>().ok())
        .is_some_and(|said| said != fetched.body.len() as u64)
}

fn forbidden(fetched: &Fetched, directives: &Directives, object_bytes_max: u64) -> Option<Uncacheable> {
    if directives.no_store {
        Some(Uncacheable::NoStore)
    } else if directives.no_cache {
        Some(Uncacheable::NoCache)
    } else if vary::names(&fetched.headers).is_none() {
        Some(Uncacheable::VaryAll)
    } else if fetched.body.len() as u64 > object_bytes_max {
        Some(Uncacheable::TooLarge)
    } else {
        None
    }
}

/// 200 always; permanent redirects only with a lifetime of their own, which the operator's then replaces.
fn is_storable_status(status: StatusCode, stated: Option<Duration>) -> bool {
    match status {
        StatusCode::OK => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::PERMANENT_REDIRECT => {
            stated.is_some_and(|lifetime| !lifetime.is_zero())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, HeaderValue};

    const BYTES_MAX: u64 = 10;

    fn judged(status: u16, fields: &[(&str, &str)], max_age: Option<u64>, took: u64) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a valid name");
            headers.append(name, HeaderValue::from_str(value).expect("a valid value"));
        }
        let sent_at = Instant::now();
        let fetched = Arc::new(Fetched {
            status: StatusCode::from_u16(status).expect("a valid status"),
            body: Bytes::from_static(if fields.contains(&("x-large", "")) {
                b"12345678901"
            } else {
                b"body"
            }),
            headers,
            sent_at,
        });
        let policy = Policy {
            max_age: max_age.map(Duration::from_secs),
            refresh_at: Some(Duration::from_secs(30)),
            query: super::super::QueryKey::None,
        };
        let now = sent_at + Duration::from_secs(took);
        match judge(&fetched, &policy, BYTES_MAX, now, SystemTime::now()) {
            Verdict::Store(times) => {
                let refresh = times.refresh_at.map_or("never".into(), |at| at.as_secs().to_string());
                format!("{} after {} refresh {refresh}", times.lifetime.as_secs(), times.age(now).as_secs())
            }
            Verdict::Pass(reason) => reason.as_str().to_owned(),
            Verdict::Share(error) => error.to_string(),
        }
    }

    #[test]
    fn table() {
        let cc = "cache-control";
        let operator = Some(60);
        for (status, fields, max_age, took, expected) in [
            (200, &[][..], operator, 5, "60 after 5 refresh 30"),
            (200, &[("age", "7")], operator, 5, "60 after 12 refresh 30"),
            (200, &[("age", "54")], operator, 5, "60 after 59 refresh 30"),
            (200, &[("age", "55")], operator, 5, "expired"),
            (200, &[], operator, 60, "expired"),
            (200, &[(cc, "max-age=3600")], operator, 0, "60 after 0 refresh 30"),
            (200, &[(cc, "max-age=0")], operator, 0, "60 after 0 refresh 30"),
            (200, &[(cc, "no-store")], operator, 0, "no-store"),
            (200, &[(cc, "private")], operator, 0, "private"),
            (200, &[(cc, "no-cache")], operator, 0, "no-cache"),
            (200, &[("set-cookie", "a=b")], operator, 0, "set-cookie"),
            (200, &[("vary", "*")], operator, 0, "vary"),
            (200, &[("vary", "accept")], operator, 0, "60 after 0 refresh 30"),
            (200, &[("x-large", "")], operator, 0, "too-large"),
            (
                200,
                &[("content-length", "5")],
                operator,
                0,
                "the origin is unavailable: the answer was cut short",
            ),
            (200, &[("content-length", "4")], operator, 0, "60 after 0 refresh 30"),
            (200, &[], None, 0, "no-lifetime"),
            (200, &[(cc, "max-age=20")], None, 1, "20 after 1 refresh never"),
            (200, &[(cc, "max-age=0")], None, 0, "expired"),
            (200, &[(cc, "s-maxage=120, max-age=1")], None, 0, "120 after 0 refresh 30"),
            (206, &[(cc, "max-age=20")], operator, 0, "status"),
            (204, &[], operator, 0, "status"),
            (304, &[], operator, 0, "status"),
            (302, &[(cc, "max-age=20")], operator, 0, "status"),
            (301, &[], operator, 0, "status"),
            (301, &[(cc, "max-age=20")], operator, 0, "60 after 0 refresh 30"),
            (308, &[(cc, "max-age=20")], None, 0, "20 after 0 refresh never"),
            (401, &[], operator, 0, "status"),
            (403, &[(cc, "max-age=20")], operator, 0, "status"),
            (404, &[(cc, "max-age=20")], operator, 0, "the origin answered 404 Not Found"),
            (500, &[(cc, "no-store")], operator, 0, "the origin answered 500 Internal Server Error"),
            (503, &[("set-cookie", "a=b")], operator, 0, "set-cookie"),
        ] {
            assert_eq!(
                judged(status, fields, max_age, took),
                expected,
                "{status} {fields:?} {max_age:?} {took}"
            );
        }
    }
}
