//! One stored answer, ready to send. Immutable once built.

use std::io::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::freshness::Times;
use super::{conditional, vary};
use crate::clock;
use crate::headers::is_hop_by_hop;

/// One stored answer. The front sends `head`, its own fields, the blank line and `body`; the pipeline reads `headers`.
#[derive(Debug)]
pub struct Entry {
    pub status: StatusCode,
    /// End-to-end fields: without those of one connection and without `Age`; `Date` always, `Content-Length` exact.
    pub headers: HeaderMap,
    /// `HTTP/1.1 200 OK`, then the same fields, CRLF after each line; no blank line, no `Age`, no `Cache-Status` of ours.
    pub head: Bytes,
    pub body: Bytes,
    pub times: Times,
    /// Fields the origin named in `Vary`; see `selected_by`.
    pub vary: Box<[HeaderName]>,
}

/// Made anew for each answer, or of one connection only (RFC 9111, 3.1).
fn is_stored(name: &HeaderName) -> bool {
    let anew = [header::AGE, header::CONTENT_LENGTH, header::TRAILER].contains(name);
    !anew && !is_hop_by_hop(name.as_str())
}

impl Entry {
    /// Builds the entry from an answer that may be stored. `received` becomes `Date` if the origin gave none
    /// (RFC 9110, 6.6.1).
    pub(super) fn build(
        status: StatusCode,
        mut headers: HeaderMap,
        body: Bytes,
        times: Times,
        received: SystemTime,
    ) -> Entry {
        for name in connection_options(&headers) {
            headers.remove(name);
        }
        let left_out: Vec<HeaderName> = headers.keys().filter(|name| !is_stored(name)).cloned().collect();
        for name in left_out {
            headers.remove(name);
        }
        headers.entry(header::DATE).or_insert_with(|| {
            HeaderValue::from_bytes(&clock::http_date_of(received)).expect("an HTTP date is visible ASCII")
        });
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let vary = vary::names(&headers).unwrap_or_default();
        let head = head_bytes(status, &headers);
        Entry { status, headers, head, body, times, vary }
    }

    /// Is the answer, which was fetched by the canonical request, also the one for this request? See `vary::selects`.
    pub fn selected_by(&self, request: &HeaderMap) -> bool {
        vary::selects(&self.vary, &self.headers, request)
    }

    /// Should a GET or HEAD with these preconditions get 304? See `conditional::not_modified`.
    pub fn not_modified(&self, if_none_match: Option<&[u8]>, if_modified_since: Option<&[u8]>) -> bool {
        self.status == StatusCode::OK
            && conditional::not_modified(&self.headers, if_none_match, if_modified_since)
    }

    /// What the entry costs the store, apart from its key. Parsed fields are counted as large as the head, plus slots.
    pub(super) fn weight_bytes(&self) -> u64 {
        const ENTRY_BYTES: usize = 512;
        const FIELD_BYTES: usize = 96;
        (ENTRY_BYTES + self.headers.len() * FIELD_BYTES + 2 * self.head.len() + self.body.len()) as u64
    }
}

/// Fields that `Connection` declares to be of this connection only.
fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .collect()
}

fn head_bytes(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut head = Vec::with_capacity(256);
    // A write to a Vec cannot fail.
    let _ = write!(head, "HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or(""));
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.shrink_to_fit();
    Bytes::from(head)
}
