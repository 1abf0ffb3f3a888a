//! How much of a listing is asked for at once.

use super::error::Problem;
use super::whole::of_text;

pub const PAGE_DEFAULT: usize = 100;
/// For clients.
pub const PAGE_MAX: usize = 1000;

/// The value of `limit`.
pub fn limit_of(value: &str, most: usize) -> Result<usize, Problem> {
    let number = of_text::<u64>(value).and_then(|limit| usize::try_from(limit).ok());
    let refused = || Problem::malformed(format!("limit must be a number from 1 to {most}"));
    number.filter(|limit| (1..=most).contains(limit)).ok_or_else(refused)
}
