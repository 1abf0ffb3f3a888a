//! Money, velocity and time as newtypes over integers, and the only two divisions of billing: what a span costs, and when
//! a balance ends.
//!
//! An account that spends owes `velocity × elapsed / 1e6` micro-units. Whole micro-units are charged; what is left of the
//! division, the *remainder* (in millionths of a micro-unit, below [`MICROS_PER_SECOND`]), is carried to the next charge.
//! As `floor((a + b) / n) = floor(a / n) + floor((a mod n + b) / n)`, any number of charges over the same time come to
//! the same sum as one.

use std::fmt;

/// Microseconds in a second, which is also what a whole micro-unit is divided into.
pub const MICROS_PER_SECOND: u32 = 1_000_000;

const SCALE: u64 = MICROS_PER_SECOND as u64;

/// Micro-units of money. As an argument any `i64` (what may not be is refused by `apply`); as a balance never below zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(i64);

impl Money {
    pub const ZERO: Money = Money(0);
    pub const MAX: Money = Money(i64::MAX);

    pub const fn new(micro_units: i64) -> Money {
        Money(micro_units)
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    pub fn checked_add(self, other: Money) -> Option<Money> {
        self.0.checked_add(other.0).map(Money)
    }

    pub fn checked_sub(self, other: Money) -> Option<Money> {
        self.0.checked_sub(other.0).map(Money)
    }
}

/// Micro-units of money spent in a second. As an argument any `i64`; of an account never below zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Velocity(i64);

impl Velocity {
    pub const ZERO: Velocity = Velocity(0);
    pub const MAX: Velocity = Velocity(i64::MAX);

    pub const fn new(micro_units_per_second: i64) -> Velocity {
        Velocity(micro_units_per_second)
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

/// A point in time: microseconds since the epoch, up to `i64::MAX` (in 292,277 years), so that it fits a signed column.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(u64);

impl Micros {
    pub const ZERO: Micros = Micros(0);
    pub const MAX: Micros = Micros(i64::MAX as u64);

    /// A later time than [`Micros::MAX`] becomes that.
    pub const fn new(since_epoch: u64) -> Micros {
        if since_epoch > Micros::MAX.0 { Micros::MAX } else { Micros(since_epoch) }
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// `None` beyond [`Micros::MAX`].
    pub fn checked_add(self, micros: u64) -> Option<Micros> {
        self.0.checked_add(micros).filter(|at| *at <= Micros::MAX.0).map(Micros)
    }

    /// Microseconds from `earlier` to here; 0 if it is not earlier.
    pub const fn since(self, earlier: Micros) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a span costs: whole micro-units (which may be more than anybody has) and the remainder to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub whole: u128,
    pub remainder: u32,
}

/// The cost of `elapsed` microseconds at a velocity, with the remainder so far. Cannot overflow: both factors are below
/// 2^64, so the product stays below 2^128 by far more than a remainder.
pub(super) fn cost(remainder: u32, velocity: Velocity, elapsed: u64) -> Cost {
    let velocity = velocity.0.max(0) as u64;
    // The usual case is one multiplication and a division by a constant, which is a multiplication too.
    if let Some(owed) = velocity.checked_mul(elapsed).and_then(|owed| owed.checked_add(u64::from(remainder)))
    {
        return Cost { whole: u128::from(owed / SCALE), remainder: (owed % SCALE) as u32 };
    }
    let owed = u128::from(velocity) * u128::from(elapsed) + u128::from(remainder);
    Cost { whole: owed / u128::from(SCALE), remainder: (owed % u128::from(SCALE)) as u32 }
}

/// Microseconds until a balance that spends reaches zero: the least span whose [`cost`] is the whole balance or more.
/// `None` for a balance or velocity of zero, and for a span beyond `u64`.
pub(super) fn lasts(balance: Money, remainder: u32, velocity: Velocity) -> Option<u64> {
    if balance.0 <= 0 || velocity.0 <= 0 {
        return None;
    }
    let (balance, velocity) = (balance.0 as u64, velocity.0 as u64);
    // The remainder is below the scale and the balance is at least 1, so this does not fall below zero.
    match balance.checked_mul(SCALE) {
        Some(full) => Some((full - u64::from(remainder)).div_ceil(velocity)),
        None => {
            let full = u128::from(balance) * u128::from(SCALE) - u128::from(remainder);
            u64::try_from(full.div_ceil(u128::from(velocity))).ok()
        }
    }
}

/// `velocity × elapsed`, in whole micro-units; `i64::MAX` if it is more.
pub(super) fn overrun(velocity: Velocity, elapsed: u64) -> Money {
    Money(i64::try_from(cost(0, velocity, elapsed).whole).unwrap_or(i64::MAX))
}

impl fmt::Debug for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}µ", self.0)
    }
}

impl fmt::Debug for Velocity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}µ/s", self.0)
    }
}

impl fmt::Debug for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}µs", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn extremes_fit() {
        let most = cost(MICROS_PER_SECOND - 1, Velocity::MAX, u64::MAX);
        assert_eq!(most.whole, (i64::MAX as u128 * u128::from(u64::MAX)).div_ceil(1_000_000));
        assert_eq!(overrun(Velocity::MAX, u64::MAX), Money::MAX);
        assert_eq!(lasts(Money::MAX, 0, Velocity::new(1)), None);
        assert_eq!(lasts(Money::MAX, 999_999, Velocity::MAX), Some(1_000_000));
        assert_eq!(lasts(Money::new(1), 999_999, Velocity::MAX), Some(1));
        assert_eq!(lasts(Money::new(1), 0, Velocity::ZERO), None);
        assert_eq!(lasts(Money::ZERO, 0, Velocity::MAX), None);
        assert_eq!(Micros::new(u64::MAX), Micros::MAX);
        assert_eq!(Micros::MAX.checked_add(1), None);
    }

    /// Integers of every size, not only the largest.
    fn any_size() -> impl Strategy<Value = i64> {
        (1i64..=i64::MAX, 0u32..63).prop_map(|(value, shift)| (value >> shift).max(1))
    }

    proptest! {
        #[test]
        fn both_ways_of_the_cost_agree(remainder in 0..MICROS_PER_SECOND, velocity in any_size(), elapsed in any_size()) {
            let cost = cost(remainder, Velocity::new(velocity), elapsed as u64);
            let exact = velocity as u128 * elapsed as u128 + u128::from(remainder);
            prop_assert_eq!(cost.whole * 1_000_000 + u128::from(cost.remainder), exact);
            prop_assert!(cost.remainder < MICROS_PER_SECOND);
        }

        #[test]
        fn a_balance_lasts_until_it_is_spent_and_not_longer(
            balance in any_size(), remainder in 0..MICROS_PER_SECOND, velocity in any_size(),
        ) {
            let velocity = Velocity::new(velocity);
            match lasts(Money::new(balance), remainder, velocity) {
                Some(span) => {
                    prop_assert!(span > 0);
                    prop_assert!(cost(remainder, velocity, span).whole >= balance as u128);
                    prop_assert!(cost(remainder, velocity, span - 1).whole < balance as u128);
                }
                None => prop_assert!(cost(remainder, velocity, u64::MAX).whole < balance as u128),
            }
        }
    }
}
