//! Field names and values every room agrees on: hop-by-hop fields, request ids, trace context.

use std::cell::Cell;
use std::fmt;

/// The name this proxy uses of itself in `Via`, `Cache-Status` and `Proxy-Status` (a token).
pub const SELF: &str = "forefront";

/// Fields of one connection, not of the message: never passed on (RFC 9110, 7.6.1). `TE` and `Trailer` describe the
/// hop's framing, `Proxy-*` belong to the next proxy.
pub fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ];
    NAMES.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// A request's id: 32 hexadecimal digits, unique over nodes and restarts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// The next id of this thread: 64 random bits chosen once, then a counter.
    pub fn next() -> RequestId {
        thread_local! {
            static STATE: Cell<(u64, u64)> = Cell::new((fastrand::u64(..), fastrand::u64(..) >> 16));
        }
        let (prefix, count) = STATE.get();
        STATE.set((prefix, count.wrapping_add(1)));
        let mut text = [0; 32];
        hex(prefix, &mut text[..16]);
        hex(count, &mut text[16..]);
        RequestId(text)
    }

    /// An id that came with a request from a trusted peer, if it is one: 8 to 32 hexadecimal digits or dashes are kept by the
    /// caller as text; anything else is replaced.
    pub fn is_acceptable(value: &[u8]) -> bool {
        (8..=64).contains(&value.len())
            && value.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn hex(number: u64, out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (at, digit) in out.iter_mut().enumerate() {
        *digit = DIGITS[(number >> (60 - 4 * at)) as usize & 15];
    }
}

/// Is this a `traceparent` to pass on? (W3C Trace Context, 3.2: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.)
pub fn is_traceparent(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let nonzero = |part: &[u8]| part.iter().any(|b| *b != b'0');
    value.len() == 55
        && value[..3] == *b"00-"
        && value[35] == b'-'
        && value[52] == b'-'
        && hex(&value[3..35])
        && nonzero(&value[3..35])
        && hex(&value[36..52])
        && nonzero(&value[36..52])
        && hex(&value[53..])
}

/// A new `traceparent` for a request that came without one, not sampled: the trace id is the request's id.
pub fn begin_traceparent(id: &RequestId) -> [u8; 55] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    text[3..35].copy_from_slice(&id.0);
    hex(fastrand::u64(1..), &mut text[36..52]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_trace_contexts_are_sound() {
        let (one, two) = (RequestId::next(), RequestId::next());
        assert_ne!(one, two);
        assert!(is_traceparent(&begin_traceparent(&one)));
        assert!(is_traceparent(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in [
            &b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"[..],
            b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            b"",
            b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(!is_traceparent(bad));
        }
    }

    #[test]
    fn hop_by_hop_names_ignore_case() {
        assert!(is_hop_by_hop("Keep-Alive") && is_hop_by_hop("TE") && !is_hop_by_hop("Accept"));
    }
}
