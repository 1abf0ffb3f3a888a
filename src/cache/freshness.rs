//! Age and lifetime (RFC 9111, 4.2). Pure.

use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::{self, HeaderName};

use super::directives::{DELTA_SECONDS_MAX, Directives, delta_seconds};

/// When an answer was made and for how long it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When the request was sent to the origin, minus the origin's own `Age`. So the age includes the whole time the
    /// origin took: an upper bound (RFC 9111, 4.2.3, corrected_age_value; `Date` is not used, so that a wrong clock of
    /// the origin does no harm).
    pub epoch: Instant,
    /// The answer is served while its age is below this, never at it or beyond.
    pub lifetime: Duration,
    /// Age at which it is renewed while in demand.
    pub refresh_at: Option<Duration>,
}

impl Times {
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    pub fn fresh(&self, now: Instant) -> bool {
        self.age(now) < self.lifetime
    }

    /// What is left of the lifetime.
    pub fn ttl(&self, now: Instant) -> Duration {
        self.lifetime.saturating_sub(self.age(now))
    }

    /// When the age reaches `after`; `None` beyond what the clock can express.
    pub(super) fn instant_of(&self, after: Duration) -> Option<Instant> {
        self.epoch.checked_add(after)
    }
}

/// Epoch of an answer whose request was sent at `sent_at`. `None` if `Age` reaches beyond the clock's range.
pub fn epoch(sent_at: Instant, headers: &HeaderMap) -> Option<Instant> {
    sent_at.checked_sub(age_of_origin(headers))
}

/// The `Age` field. Several values: the largest. One that is no number is ignored (RFC 9111, 5.1).
fn age_of_origin(headers: &HeaderMap) -> Duration {
    let members =
        headers.get_all(header::AGE).iter().flat_map(|value| value.as_bytes().split(|&b| b == b','));
    Duration::from_secs(members.filter_map(delta_seconds).max().unwrap_or(0))
}

/// The lifetime that the origin states: `s-maxage`, else `max-age`, else `Expires` minus `Date` (or minus `received`,
/// without a usable `Date`). `None` if it states none: there is no heuristic. Invalid statements are zero.
pub fn stated_lifetime(
    directives: &Directives,
    headers: &HeaderMap,
    received: SystemTime,
) -> Option<Duration> {
    if let Some(seconds) = directives.s_maxage.or(directives.max_age) {
        return Some(Duration::from_secs(seconds));
    }
    let mut expires = headers.get_all(header::EXPIRES).iter();
    let first = expires.next()?;
    if expires.next().is_some_and(|second| second != first) {
        return Some(Duration::ZERO);
    }
    // "0" and other invalid dates mean already expired (RFC 9111, 5.3).
    let expires = std::str::from_utf8(first.as_bytes()).ok().and_then(|t| httpdate::parse_http_date(t).ok());
    let made = date(headers, &header::DATE).unwrap_or(received);
    let lifetime = expires.and_then(|expires| expires.duration_since(made).ok()).unwrap_or_default();
    Some(lifetime.min(Duration::from_secs(DELTA_SECONDS_MAX)))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a valid value"));
        }
        headers
    }

    fn lifetime(fields: &[(&'static str, &str)]) -> Option<u64> {
        let headers = map(fields);
        let received = httpdate::parse_http_date("Sun, 06 Nov 1994 08:50:00 GMT").expect("a date");
        stated_lifetime(&Directives::of(&headers), &headers, received).map(|lifetime| lifetime.as_secs())
    }

    #[test]
    fn the_most_specific_statement_wins() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:00 GMT");
        let expires = ("expires", "Sun, 06 Nov 1994 08:51:00 GMT");
        assert_eq!(lifetime(&[]), None);
        assert_eq!(lifetime(&[("cache-control", "max-age=5, s-maxage=7"), date, expires]), Some(7));
        assert_eq!(lifetime(&[("cache-control", "max-age=5"), date, expires]), Some(5));
        assert_eq!(lifetime(&[date, expires]), Some(120));
        assert_eq!(lifetime(&[expires]), Some(60));
        assert_eq!(lifetime(&[("date", "?"), expires]), Some(60));
        assert_eq!(lifetime(&[date, ("expires", "0")]), Some(0));
        assert_eq!(lifetime(&[date, ("expires", "Sun, 06 Nov 1994 08:48:00 GMT")]), Some(0));
        assert_eq!(lifetime(&[date, expires, ("expires", "0")]), Some(0));
        assert_eq!(lifetime(&[date, ("expires", "Fri, 01 Jan 2100 00:00:00 GMT")]), Some(1 << 31));
    }

    #[test]
    fn age_of_the_origin_counts() {
        let sent = Instant::now();
        for (fields, age) in [
            (&[][..], 0),
            (&[("age", "7")], 7),
            (&[("age", "7"), ("age", "9, 8")], 9),
            (&[("age", "-1")], 0),
            (&[("age", "x")], 0),
            (&[("age", "99999999999999999999")], 1 << 31),
        ] {
            let epoch = epoch(sent, &map(fields)).expect("within the clock's range");
            assert_eq!(sent - epoch, Duration::from_secs(age), "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn fresh_means_younger_than_the_lifetime(life in 0u64..200_000, after in 0u64..200_000) {
            let epoch = Instant::now();
            let times = Times { epoch, lifetime: Duration::from_millis(life), refresh_at: None };
            let now = epoch + Duration::from_millis(after);
            prop_assert_eq!(times.fresh(now), after < life);
            prop_assert_eq!(times.ttl(now).is_zero(), !times.fresh(now));
            prop_assert_eq!(times.age(now), Duration::from_millis(after));
        }
    }
}
