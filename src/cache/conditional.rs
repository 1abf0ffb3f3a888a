//! Preconditions of a GET or HEAD on a stored answer: RFC 9110, 13.2.2, steps 3 and 4. Pure.
//! `If-Match` and `If-Unmodified-Since` are for the origin; `If-Range` belongs to ranges.

use http::HeaderMap;
use http::header;

/// True if the answer is 304. `If-None-Match` (lines joined by a comma) decides alone if it is there; entity tags
/// compare weakly. `If-Modified-Since` counts only with a valid date and an answer that has a `Last-Modified`.
pub fn not_modified(
    stored: &HeaderMap,
    if_none_match: Option<&[u8]>,
    if_modified_since: Option<&[u8]>,
) -> bool {
    if let Some(listed) = if_none_match {
        return none_match_fails(listed, stored.get(header::ETAG).map(|value| value.as_bytes()));
    }
    let Some(since) = if_modified_since.and_then(date) else { return false };
    let modified = stored.get(header::LAST_MODIFIED).and_then(|value| date(value.as_bytes()));
    modified.is_some_and(|modified| modified <= since)
}

/// `*` matches any current representation; otherwise one of the listed tags has to be ours.
fn none_match_fails(listed: &[u8], etag: Option<&[u8]>) -> bool {
    if listed.trim_ascii() == b"*" {
        return true;
    }
    let Some(ours) = etag.map(|tag| opaque(tag.trim_ascii())) else { return false };
    Tags(listed).any(|tag| tag == ours)
}

/// The part that weak comparison looks at (RFC 9110, 8.8.3.2).
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

fn date(value: &[u8]) -> Option<std::time::SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(value).ok()?.trim()).ok()
}

/// The opaque tags of a list, quotes included. A comma may stand inside of the quotes. Stops at what is no tag.
struct Tags<'a>(&'a [u8]);

impl<'a> Iterator for Tags<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.0.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b','))?;
        let tag = opaque(&self.0[start..]);
        if tag.first() != Some(&b'"') {
            return None;
        }
        let end = 1 + tag[1..].iter().position(|&byte| byte == b'"')?;
        self.0 = &tag[end + 1..];
        Some(&tag[..=end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn stored(etag: Option<&str>, modified: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::ETAG, etag), (header::LAST_MODIFIED, modified)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_str(value).expect("a valid value"));
            }
        }
        headers
    }

    #[test]
    fn entity_tags() {
        for (etag, listed, expected) in [
            (Some("\"a\""), "\"a\"", true),
            (Some("W/\"a\""), "\"a\"", true),
            (Some("\"a\""), "W/\"a\"", true),
            (Some("\"a\""), "\"b\"", false),
            (Some("\"a\""), "\"b\", W/\"c\" ,, \"a\"", true),
            (Some("\"a,b\""), "\"x\", \"a,b\"", true),
            (Some("\"a\""), "\"x,\"a\"\"", false),
            (Some("\"a\""), "*", true),
            (None, " * ", true),
            (None, "\"a\"", false),
            (Some("\"a\""), "a", false),
            (Some("\"a\""), "\"a", false),
            (Some("\"a\""), "", false),
        ] {
            assert_eq!(
                not_modified(&stored(etag, None), Some(listed.as_bytes()), None),
                expected,
                "{etag:?} {listed}"
            );
        }
    }

    #[test]
    fn dates_count_only_without_a_tag_condition() {
        let later = "Mon, 07 Nov 1994 08:49:37 GMT";
        let ours = stored(Some("\"a\""), Some(DATE));
        let since = |ours: &HeaderMap, date: &str| not_modified(ours, None, Some(date.as_bytes()));
        assert!(since(&ours, DATE) && since(&ours, later));
        assert!(!since(&ours, "Sat, 05 Nov 1994 08:49:37 GMT"));
        assert!(!since(&ours, "yesterday") && !since(&stored(None, None), later));
        assert!(!not_modified(&ours, Some(b"\"b\""), Some(DATE.as_bytes())));
        assert!(!not_modified(&ours, None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(listed in proptest::collection::vec(any::<u8>(), 0..64)) {
            not_modified(&stored(Some("\"a\""), Some(DATE)), Some(&listed), Some(&listed));
        }
    }
}
