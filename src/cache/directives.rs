//! The `Cache-Control` field of an answer (RFC 9111, 5.2.2). Pure.

use http::HeaderMap;
use http::header;

/// The largest delta-seconds; larger ones count as this (RFC 9111, 1.2.2).
pub const DELTA_SECONDS_MAX: u64 = 1 << 31;

/// The directives that matter to a shared cache. Unknown ones are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    pub no_store: bool,
    /// With or without field names: a qualified form counts as the plain one, as 5.2.2.4 allows.
    pub no_cache: bool,
    /// With or without field names: 5.2.2.7.
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    /// Seconds. Invalid: 0. Given more than once: the least. So what is unclear is stale rather than old (4.2.1).
    pub max_age: Option<u64>,
    /// Seconds, as `max_age`.
    pub s_maxage: Option<u64>,
}

impl Directives {
    /// Reads all `Cache-Control` lines of an answer. Never fails: garbage between commas is skipped.
    pub fn of(headers: &HeaderMap) -> Directives {
        let mut found = Directives::default();
        for value in headers.get_all(header::CACHE_CONTROL) {
            for member in (Members { rest: value.as_bytes() }) {
                found.add(member);
            }
        }
        found
    }

    fn add(&mut self, member: &[u8]) {
        let (name, argument) = match member.iter().position(|&byte| byte == b'=') {
            Some(at) => (&member[..at], Some(&member[at + 1..])),
            None => (member, None),
        };
        let name = name.trim_ascii();
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("private") {
            self.private = true;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") || is("proxy-revalidate") {
            self.must_revalidate = true;
        } else if is("max-age") {
            keep_least(&mut self.max_age, argument);
        } else if is("s-maxage") {
            keep_least(&mut self.s_maxage, argument);
        }
    }
}

fn keep_least(kept: &mut Option<u64>, argument: Option<&[u8]>) {
    let seconds = argument.map(unquoted).and_then(delta_seconds).unwrap_or(0);
    *kept = Some(kept.map_or(seconds, |before| before.min(seconds)));
}

/// A number in quotes is not to be sent but is to be understood (RFC 9111, 5.2).
fn unquoted(argument: &[u8]) -> &[u8] {
    let argument = argument.trim_ascii();
    argument.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(argument)
}

/// A non-negative decimal number of seconds, at most `DELTA_SECONDS_MAX`; `None` if it is no number.
pub fn delta_seconds(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(DELTA_SECONDS_MAX);
    Some(text.iter().fold(0, add))
}

/// The members of a list, cut at commas outside of quoted strings. An unclosed quote reaches to the end.
struct Members<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = member_end(self.rest);
        let member = &self.rest[..end];
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(member)
    }
}

fn member_end(list: &[u8]) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, &byte) in list.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
    }
    list.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn read(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_str(line).expect("a valid value"));
        }
        Directives::of(&headers)
    }

    fn with_max_age(seconds: u64) -> Directives {
        Directives { max_age: Some(seconds), ..Directives::default() }
    }

    #[test]
    fn reads_what_a_shared_cache_needs() {
        let all =
            read(&["No-Store, no-cache=\"a, b\"", "private = \"set-cookie\", PUBLIC", "must-revalidate"]);
        assert!(all.no_store && all.no_cache && all.private && all.public && all.must_revalidate);
        assert_eq!(
            read(&["max-age=60, s-maxage=\"30\""]),
            Directives { s_maxage: Some(30), ..with_max_age(60) }
        );
        assert_eq!(read(&[]), Directives::default());
    }

    #[test]
    fn unclear_lifetimes_are_short() {
        for (lines, seconds) in [
            (&["max-age=60, max-age=5"][..], 5),
            (&["max-age=60", "max-age=7"], 7),
            (&["max-age"], 0),
            (&["max-age="], 0),
            (&["max-age=-1"], 0),
            (&["max-age=1.5"], 0),
            (&["max-age=60x"], 0),
            (&["max-age= 60 "], 60),
            (&["max-age=2147483649"], 1 << 31),
            (&["max-age=99999999999999999999999999"], 1 << 31),
        ] {
            assert_eq!(read(lines), with_max_age(seconds), "{lines:?}");
        }
    }

    #[test]
    fn quotes_hide_commas_and_garbage_is_skipped() {
        assert_eq!(read(&["x=\"no-store, \\\", private\", max-age=1"]), with_max_age(1));
        assert_eq!(read(&[",,=,;,no-storey, x no-store, max-age=1"]), with_max_age(1));
        assert_eq!(read(&["x=\"open, no-store"]), Directives::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.append(header::CACHE_CONTROL, value);
                let found = Directives::of(&headers);
                prop_assert!(found.max_age.is_none_or(|seconds| seconds <= DELTA_SECONDS_MAX));
            }
        }

        #[test]
        fn every_number_is_read_as_itself_or_the_maximum(seconds in any::<u64>()) {
            prop_assert_eq!(read(&[&format!("a,max-age={seconds}")]), with_max_age(seconds.min(DELTA_SECONDS_MAX)));
        }
    }
}
