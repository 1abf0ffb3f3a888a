//! `Vary` (RFC 9111, 4.1) for answers fetched by a canonical request, which carries no field that could select. Pure.

use http::HeaderMap;
use http::header::{self, HeaderName};

/// The fields named by `Vary`; `None` if it holds `*` or what is no field name, so that nothing ever matches.
pub fn names(headers: &HeaderMap) -> Option<Box<[HeaderName]>> {
    let mut names = Vec::new();
    for value in headers.get_all(header::VARY) {
        for member in value.as_bytes().split(|&byte| byte == b',') {
            let member = member.trim_ascii();
            if member.is_empty() {
                continue;
            }
            // `*` is a token, so it would pass as a field name.
            let name = (member != b"*").then(|| HeaderName::from_bytes(member).ok())??;
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Some(names.into_boxed_slice())
}

/// Does the stored answer fit this request? It does if the request, like the canonical one, has none of the named
/// fields. `Accept-Encoding` is normalised: an answer without a content coding suits everyone who does not refuse it.
pub fn selects(vary: &[HeaderName], stored: &HeaderMap, request: &HeaderMap) -> bool {
    vary.iter().all(|name| {
        if name == header::ACCEPT_ENCODING && !stored.contains_key(header::CONTENT_ENCODING) {
            return !refuses_identity(request);
        }
        !request.contains_key(name)
    })
}

/// RFC 9110, 12.5.3: identity is acceptable unless `identity;q=0`, or `*;q=0` without a word on identity.
fn refuses_identity(request: &HeaderMap) -> bool {
    let (mut identity, mut any) = (None, None);
    for value in request.get_all(header::ACCEPT_ENCODING) {
        for member in value.as_bytes().split(|&byte| byte == b',') {
            let mut parts = member.split(|&byte| byte == b';');
            let coding = parts.next().unwrap_or_default().trim_ascii();
            let refused = parts.any(is_zero_weight);
            if coding.eq_ignore_ascii_case(b"identity") {
                identity = Some(refused);
            } else if coding == b"*" {
                any = Some(refused);
            }
        }
    }
    identity.or(any).unwrap_or(false)
}

/// `q=0`, `q=0.`, `q=0.0` to `q=0.000`.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let parameter = parameter.trim_ascii();
    let Some(weight) = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")) else {
        return false;
    };
    weight.first() == Some(&b'0') && weight.iter().all(|byte| matches!(byte, b'0' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a valid value"));
        }
        headers
    }

    #[test]
    fn reads_names_of_all_lines_once() {
        let vary = names(&map(&[("vary", "Accept, ,accept-language"), ("vary", "ACCEPT")])).expect("names");
        assert_eq!(&*vary, [header::ACCEPT, header::ACCEPT_LANGUAGE]);
        assert_eq!(names(&map(&[])).expect("none").len(), 0);
        for bad in ["*", "accept, *", "a b"] {
            assert!(names(&map(&[("vary", bad)])).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_request_with_a_named_field_is_not_served() {
        let vary = [header::ACCEPT_LANGUAGE];
        assert!(selects(&vary, &map(&[]), &map(&[("accept", "x")])));
        assert!(!selects(&vary, &map(&[]), &map(&[("accept-language", "en")])));
    }

    #[test]
    fn plain_bodies_suit_all_who_do_not_refuse_them() {
        let vary = [header::ACCEPT_ENCODING];
        for (accepted, fits) in [
            ("gzip, br", true),
            ("", true),
            ("identity;q=0", false),
            ("gzip, *;q=0.00", false),
            ("*;q=0, identity;q=0.5", true),
            ("gzip;q=0", true),
        ] {
            assert_eq!(selects(&vary, &map(&[]), &map(&[("accept-encoding", accepted)])), fits, "{accepted}");
        }
        let packed = map(&[("content-encoding", "gzip")]);
        assert!(!selects(&vary, &packed, &map(&[("accept-encoding", "gzip")])));
        assert!(selects(&vary, &packed, &map(&[])));
    }
}
