//! Whole numbers as JSON Schema has them: `7`, `7.0` and `70e-1` are one number, `7.5` is none, and no digit is lost on
//! the way. Pure.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What is shown of a value that is no such number.
const SHOWN_CHARS_MAX: usize = 40;

/// The integers that are spoken here.
pub trait Integer: Sized {
    const BOUNDS: (i128, i128);

    /// None: out of its bounds.
    fn from_whole(whole: i128) -> Option<Self>;
}

impl Integer for i64 {
    const BOUNDS: (i128, i128) = (i64::MIN as i128, i64::MAX as i128);

    fn from_whole(whole: i128) -> Option<i64> {
        i64::try_from(whole).ok()
    }
}

impl Integer for u64 {
    const BOUNDS: (i128, i128) = (0, u64::MAX as i128);

    fn from_whole(whole: i128) -> Option<u64> {
        u64::try_from(whole).ok()
    }
}

impl Integer for u32 {
    const BOUNDS: (i128, i128) = (0, u32::MAX as i128);

    fn from_whole(whole: i128) -> Option<u32> {
        u32::try_from(whole).ok()
    }
}

/// One in a list.
pub struct Whole<N>(pub N);

impl<'de, N: Integer> Deserialize<'de> for Whole<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Whole<N>, D::Error> {
        whole(deserializer).map(Whole)
    }
}

/// For `deserialize_with`.
pub fn whole<'de, D: Deserializer<'de>, N: Integer>(deserializer: D) -> Result<N, D::Error> {
    let text = <&RawValue>::deserialize(deserializer)?.get();
    read(text).and_then(N::from_whole).ok_or_else(|| {
        let (least, most) = N::BOUNDS;
        D::Error::custom(format_args!("`{}` is no whole number from {least} to {most}", shown(text)))
    })
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

/// The same, where `rule` says more of what it must be than that it is whole.
pub fn whole_as<'de, D: Deserializer<'de>, N: Integer>(deserializer: D, rule: &str) -> Result<N, D::Error> {
    let text = <&RawValue>::deserialize(deserializer)?.get();
    read(text)
        .and_then(N::from_whole)
        .ok_or_else(|| D::Error::custom(format_args!("{rule}, not `{}`", shown(text))))
}

/// What is written must be there: null is not the same as nothing.
pub fn given_whole<'de, D: Deserializer<'de>, N: Integer>(deserializer: D) -> Result<Option<N>, D::Error> {
    whole(deserializer).map(Some)
}

/// As it may stand in a path or a query. None: it is no number, or out of bounds.
pub fn of_text<N: Integer>(text: &str) -> Option<N> {
    let like_a_number = text.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let begins_and_ends = |text: &str| text.starts_with(digit) && text.ends_with(digit);
    (like_a_number && begins_and_ends(text)).then(|| read(text)).flatten().and_then(N::from_whole)
}

fn digit(character: char) -> bool {
    character.is_ascii_digit()
}

/// `text` is a value of JSON, or nearly. None: it is no number, not whole, or beyond 128 bits.
fn read(text: &str) -> Option<i128> {
    if let Ok(plain) = text.parse() {
        return Some(plain);
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (units, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits: i128 = format!("{units}{fraction}").parse().ok()?;
    if digits == 0 {
        return Some(0);
    }
    let scale = exponent.parse::<i32>().ok()?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let power = 10_i128.checked_pow(scale.unsigned_abs())?;
    match scale {
        0.. => digits.checked_mul(power),
        _ => (digits % power == 0).then(|| digits / power),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_as_they_may_be_written() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.0e9", Some(0)),
            ("0e99999999999999999999", Some(0)),
            ("7.0", Some(7)),
            ("70e-1", Some(7)),
            ("0.7E+1", Some(7)),
            ("-1.50e2", Some(-150)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("18446744073709551615.000", Some(u64::MAX.into())),
            ("1e38", Some(10_i128.pow(38))),
            ("1e39", None),
            ("1e2147483648", None),
            ("1e-2147483648", None),
            ("7.5", None),
            ("1e-1", None),
            ("4503599627370497.3", None),
            ("1.00000000000000000000000001", None),
            ("null", None),
            ("true", None),
            ("\"7\"", None),
            ("[7]", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_in_paths() {
        for (text, expected) in [
            ("4", Some(4)),
            ("4.0", Some(4)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("4.5", None),
            ("-4", None),
            ("+4", None),
            ("4.", None),
            (" 4", None),
            ("", None),
            ("x", None),
            ("\u{664}", None),
        ] {
            assert_eq!(of_text::<u64>(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_point_may_be_anywhere(number: i64, zeros in 0..9_usize, shift in 0..18_u32) {
            let whole = i128::from(number);
            prop_assert_eq!(read(&format!("{number}.{}", "0".repeat(zeros))), Some(whole));
            prop_assert_eq!(read(&format!("{number}{}e-{shift}", "0".repeat(shift as usize))), Some(whole));
            let left = whole % 10_i128.pow(shift) == 0;
            prop_assert_eq!(read(&format!("{number}e-{shift}")), left.then(|| whole / 10_i128.pow(shift)));
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.eE]{0,50}") {
            let _ = read(&text);
        }
    }
}
