//! Deterministic chance: every random-looking value of the stand-in is a hash of (seed, stream, index), so that two
//! processes with one seed hold the same data and a test can be repeated.

/// What a value is drawn for. Two streams never share values.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Stream {
    MovieTitle = 1,
    MovieYear,
    MovieDuration,
    CustomerName,
    CustomerBirthday,
    SessionStart,
    SessionCustomer,
    SessionMovie,
    LongDummy,
    Latency,
    Lifetime,
    LifetimeKind,
}

/// The source of chance of one process. Cheap to copy; holds only the seed.
#[derive(Clone, Copy, Debug)]
pub struct Dice {
    seed: u64,
}

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice { seed }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The `index`th value of `stream`: uniform over all of u64.
    #[inline]
    pub fn roll(&self, stream: Stream, index: u64) -> u64 {
        let start = mix(self.seed ^ (stream as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93));
        mix(start.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// The `index`th value of `stream`, uniform in `0..bound`. A `bound` of 0 gives 0.
    #[inline]
    pub fn below(&self, stream: Stream, index: u64, bound: u64) -> u64 {
        scale(self.roll(stream, index), bound)
    }
}

/// Maps a uniform value to `0..bound` by its high bits (Lemire's multiplication, without the rejection step: the bias
/// is below 2^-40 for every bound used here).
#[inline]
pub fn scale(value: u64, bound: u64) -> u64 {
    ((u128::from(value) * u128::from(bound)) >> 64) as u64
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_and_streams_differ() {
        let dice = Dice::new(7);
        assert_eq!(dice.roll(Stream::MovieYear, 3), Dice::new(7).roll(Stream::MovieYear, 3));
        assert_ne!(dice.roll(Stream::MovieYear, 3), dice.roll(Stream::MovieTitle, 3));
        assert_ne!(dice.roll(Stream::MovieYear, 3), Dice::new(8).roll(Stream::MovieYear, 3));
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let dice = Dice::new(1);
        let mut seen = [false; 10];
        for index in 0..1_000 {
            seen[dice.below(Stream::Latency, index, 10) as usize] = true;
        }
        assert!(seen.iter().all(|&reached| reached));
        assert_eq!(dice.below(Stream::Latency, 1, 0), 0);
    }
}
