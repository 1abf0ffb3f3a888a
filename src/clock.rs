//! Time as the request path needs it: cheap, and in one place.

use std::cell::Cell;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock. It follows tokio's paused time in tests; otherwise it costs what `Instant::now` costs (a vDSO
/// call and one atomic load).
#[inline]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock, for fields that carry a date. It does not follow paused time.
#[inline]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Length of an IMF-fixdate (RFC 9110, 5.6.7), which is constant.
pub const HTTP_DATE_BYTES: usize = 29;

thread_local! {
    static HTTP_DATE: Cell<(u64, [u8; HTTP_DATE_BYTES])> = const { Cell::new((u64::MAX, [0; HTTP_DATE_BYTES])) };
}

/// The value of a `Date` field for this second. Formatted once a second and thread; allocates nothing.
pub fn http_date() -> [u8; HTTP_DATE_BYTES] {
    let second = wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    HTTP_DATE.with(|cached| {
        let (of, date) = cached.get();
        if of == second {
            return date;
        }
        let date = http_date_of(UNIX_EPOCH + Duration::from_secs(second));
        cached.set((second, date));
        date
    })
}

/// An IMF-fixdate of any time. Times outside of 1970 to 9999, which the format cannot express, give the nearest end.
pub fn http_date_of(time: SystemTime) -> [u8; HTTP_DATE_BYTES] {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let mut line = Line { bytes: [b' '; HTTP_DATE_BYTES], length: 0 };
    // Cannot fail: the format is 29 bytes for every time that was let through here.
    let _ = write!(line, "{}", httpdate::HttpDate::from(time.clamp(UNIX_EPOCH, last)));
    line.bytes
}

/// A formatter target on the stack.
struct Line {
    bytes: [u8; HTTP_DATE_BYTES],
    length: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_the_example_of_the_rfc() {
        let time = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(&http_date_of(time), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn is_the_same_as_the_library_and_stays_within_its_range() {
        let before = wall();
        let text = String::from_utf8(http_date().to_vec()).expect("ASCII");
        let parsed = httpdate::parse_http_date(&text).expect("a date");
        assert!(parsed <= wall() && before <= parsed + Duration::from_secs(1));
        assert_eq!(&http_date_of(UNIX_EPOCH - Duration::from_secs(9)), b"Thu, 01 Jan 1970 00:00:00 GMT");
        let far = http_date_of(UNIX_EPOCH + Duration::from_secs(400_000_000_000));
        assert_eq!(&far, b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[tokio::test(start_paused = true)]
    async fn follows_paused_time() {
        let start = now();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(now() - start, Duration::from_secs(5));
    }
}
