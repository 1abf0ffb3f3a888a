//! Durations and sizes as people write them, and back.

use std::time::Duration;

/// Longest duration that may be written: beyond it a timer is a mistake.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

const DURATION_UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// `"500ms"`, `"60s"`, `"1m30s"`; units d, h, m, s, ms, us, the larger first, whole numbers, a year at most.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total_us: u64 = 0;
    let mut largest_allowed = u64::MAX;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = number(rest)?;
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let (_, unit_us) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        if *unit_us >= largest_allowed {
            return None;
        }
        largest_allowed = *unit_us;
        total_us = total_us.checked_add(number.checked_mul(*unit_us)?)?;
        rest = next.trim_start();
    }
    let duration = Duration::from_micros(total_us);
    (duration <= DURATION_MAX).then_some(duration)
}

/// `"256 MiB"`, `"16KiB"`, `"1 GB"`: KiB to TiB are powers of 1024, KB to TB of 1000.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number(text.trim())?;
    let unit = unit.trim_start();
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*factor)
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// What [`parse_duration`] reads as the same duration; below a microsecond is cut off.
pub(super) fn duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, unit_us) in DURATION_UNITS {
        let count = rest / unit_us;
        rest %= unit_us;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// What [`parse_size`] reads as the same size.
pub(super) fn size(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes.is_multiple_of(*factor);
    match SIZE_UNITS.iter().find(fits) {
        Some((unit, factor)) => format!("{} {unit}", bytes / factor),
        None => "0 B".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("500ms", 500),
            ("60s", 60_000),
            ("1m30s", 90_000),
            ("1h 5m", 3_900_000),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            " ",
            "30",
            "30x",
            "s",
            "-1s",
            "1.5s",
            "30s1m",
            "1s1s",
            "999999999999d",
            "400d",
            "1M",
            "1S",
            "٣s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("256 MiB", 256 << 20),
            ("16KiB", 16 << 10),
            ("1GB", 1_000_000_000),
            ("1 kb", 1000),
            ("512 B", 512),
            ("0 B", 0),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "12", "MiB", "-1 B", "1.5 GiB", "1 MiBs", "99999999999 TiB", "1 M"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(us in 0..DURATION_MAX.as_micros() as u64, bytes: u64) {
            let time = Duration::from_micros(us);
            prop_assert_eq!(parse_duration(&duration(time)), Some(time));
            prop_assert_eq!(parse_size(&size(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,30}", close in "[0-9dhmsuKMGTiB .]{0,30}") {
            for text in [text, close] {
                parse_duration(&text);
                parse_size(&text);
            }
        }
    }
}
