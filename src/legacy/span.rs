//! A range of durations as the command line writes it: `3s..6s`, or one value `5s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::dice;

/// From `min` to `max`, both included; `min` is never above `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    min: Duration,
    max: Duration,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpanError {
    #[error("{0:?} is not a duration (write 250ms, 3s, 22m)")]
    Duration(String),
    #[error("the range ends before it begins")]
    Reversed,
    #[error("longer than a year")]
    TooLong,
}

/// No span of the stand-in means anything beyond it, and sums with an `Instant` stay far from overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Span {
    pub fn new(min: Duration, max: Duration) -> Result<Span, SpanError> {
        if min > max {
            return Err(SpanError::Reversed);
        }
        if max > LONGEST {
            return Err(SpanError::TooLong);
        }
        Ok(Span { min, max })
    }

    /// The duration that a uniform `random` value stands for.
    pub fn pick(&self, random: u64) -> Duration {
        let width = u64::try_from((self.max - self.min).as_nanos()).unwrap_or(u64::MAX - 1);
        self.min + Duration::from_nanos(dice::scale(random, width.saturating_add(1)))
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        Span::new(duration(min)?, duration(max)?)
    }
}

fn duration(text: &str) -> Result<Duration, SpanError> {
    humantime::parse_duration(text.trim()).map_err(|_| SpanError::Duration(text.to_owned()))
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", humantime::format_duration(self.min), humantime::format_duration(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_read_and_picks_within_itself() {
        let span: Span = "3s..6s".parse().unwrap();
        assert_eq!(span.pick(0), Duration::from_secs(3));
        assert_eq!(span.pick(u64::MAX), Duration::from_secs(6));
        let one: Span = "5s".parse().unwrap();
        assert_eq!(one.pick(u64::MAX), Duration::from_secs(5));
        assert_eq!(span.to_string(), "3s..6s");
    }

    #[test]
    fn a_wrong_span_is_refused() {
        assert_eq!("6s..3s".parse::<Span>(), Err(SpanError::Reversed));
        assert_eq!("x..3s".parse::<Span>(), Err(SpanError::Duration("x".into())));
        assert_eq!("2years".parse::<Span>(), Err(SpanError::TooLong));
    }
}
