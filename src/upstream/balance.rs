//! Which of the usable endpoints is next. Pure: loads and weights in, an order of preference out.

use super::config::Balance;

/// The full weight of an endpoint, in thousandths.
pub const FULL_WEIGHT: u32 = 1000;
/// An endpoint in slow start begins with a tenth, so that it gets something to show its health with.
const SMALLEST_WEIGHT: u32 = 100;

/// An endpoint as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub in_flight: usize,
    /// In thousandths of a full share, 1 to [`FULL_WEIGHT`].
    pub weight: u32,
}

/// The weight of an endpoint that came back `elapsed_nanos` ago: from a tenth to all, in a straight line.
pub fn slow_start_weight(elapsed_nanos: u64, slow_start_nanos: u64) -> u32 {
    if elapsed_nanos >= slow_start_nanos {
        return FULL_WEIGHT;
    }
    let share = u128::from(elapsed_nanos) * u128::from(FULL_WEIGHT) / u128::from(slow_start_nanos);
    (share as u32).clamp(SMALLEST_WEIGHT, FULL_WEIGHT)
}

/// An endpoint that owes answers and has given none for so long is perhaps stopped.
const DOUBT_NANOS: u64 = 100_000_000;
/// What the doubt counts like. Small, so that an endpoint that merely answers slowly is still used when the others are busy.
const DOUBT_REQUESTS: usize = 4;

/// Requests in flight as the choice counts them: a few more where requests wait and nothing was answered lately. It keeps
/// most of the traffic away from a stopped process long before probes are sure of it.
pub fn with_doubt(in_flight: usize, nanos_since_answer: u64) -> usize {
    if in_flight > 0 && nanos_since_answer > DOUBT_NANOS { in_flight + DOUBT_REQUESTS } else { in_flight }
}

/// Chooses one of `count` places. `turn` counts the choices made and rotates ties; `candidate` tells of a place, None
/// when it must not be chosen. Returns None when no place may be chosen. O(count), no allocation.
pub fn choose(
    balance: Balance,
    turn: usize,
    count: usize,
    mut candidate: impl FnMut(usize) -> Option<Candidate>,
) -> Option<usize> {
    if count == 0 {
        return None;
    }
    let places = (0..count).map(|step| (turn % count + step) % count);
    let mut best: Option<(usize, u128)> = None;
    for place in places {
        let Some(Candidate { in_flight, weight }) = candidate(place) else { continue };
        let cost = match balance {
            Balance::LeastRequests => {
                (in_flight as u128 + 1) * u128::from(FULL_WEIGHT) * 1000 / u128::from(weight.max(1))
            }
            // A full endpoint whose turn it is wins at once; one in slow start lets pass the share it lacks.
            Balance::RoundRobin => u128::from((turn / count % 10) as u32 * 100 >= weight),
        };
        if best.is_none_or(|(_, least)| cost < least) {
            best = Some((place, cost));
            if balance == Balance::RoundRobin && cost == 0 {
                break;
            }
        }
    }
    best.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(balance: Balance, candidates: &[Option<Candidate>], turns: usize) -> Vec<usize> {
        let mut shares = vec![0; candidates.len()];
        for turn in 0..turns {
            if let Some(place) = choose(balance, turn, candidates.len(), |place| candidates[place]) {
                shares[place] += 1;
            }
        }
        shares
    }

    #[test]
    fn a_silent_endpoint_is_the_second_choice_and_not_more() {
        let silent =
            |waiting| Candidate { in_flight: with_doubt(waiting, DOUBT_NANOS + 1), weight: FULL_WEIGHT };
        let busy = |in_flight| Candidate { in_flight, weight: FULL_WEIGHT };
        let chosen = |pair: [Candidate; 2]| choose(Balance::LeastRequests, 0, 2, |place| Some(pair[place]));
        assert_eq!(chosen([silent(1), busy(3)]), Some(1), "it owes an answer");
        assert_eq!(chosen([silent(1), busy(9)]), Some(0), "the other one is busier still");
        assert_eq!(with_doubt(0, u64::MAX), 0, "it owes nothing");
        assert_eq!(with_doubt(3, DOUBT_NANOS), 3, "it answers");
    }

    const IDLE: Option<Candidate> = Some(Candidate { in_flight: 0, weight: FULL_WEIGHT });

    #[test]
    fn ties_take_turns() {
        for balance in [Balance::LeastRequests, Balance::RoundRobin] {
            assert_eq!(shares(balance, &[IDLE; 3], 300), [100, 100, 100]);
            assert_eq!(shares(balance, &[None, IDLE, IDLE], 300)[0], 0);
            assert_eq!(shares(balance, &[], 3), [0_usize; 0]);
        }
    }

    #[test]
    fn least_requests_wins() {
        let busy = Some(Candidate { in_flight: 1, weight: FULL_WEIGHT });
        assert_eq!(shares(Balance::LeastRequests, &[busy, IDLE], 10), [0, 10]);
        assert_eq!(shares(Balance::RoundRobin, &[busy, IDLE], 10), [5, 5]);
    }

    #[test]
    fn slow_start_gets_less() {
        let starting = Some(Candidate { in_flight: 0, weight: 200 });
        let loaded = Some(Candidate { in_flight: 3, weight: FULL_WEIGHT });
        assert_eq!(shares(Balance::LeastRequests, &[starting, loaded], 10), [0, 10]);
        assert_eq!(shares(Balance::RoundRobin, &[starting, IDLE], 1000)[0], 100);
        assert_eq!(slow_start_weight(0, 0), FULL_WEIGHT);
        assert_eq!([0, 50, 99, 100].map(|elapsed| slow_start_weight(elapsed, 100)), [100, 500, 990, 1000]);
    }

    proptest! {
        #[test]
        fn chooses_a_candidate_whenever_there_is_one(
            turn: usize,
            candidates in prop::collection::vec(prop::option::of((0_usize..1000, 1_u32..=1000)), 0..20),
            round_robin: bool,
        ) {
            let balance = if round_robin { Balance::RoundRobin } else { Balance::LeastRequests };
            let chosen = choose(balance, turn, candidates.len(), |place| {
                candidates[place].map(|(in_flight, weight)| Candidate { in_flight, weight })
            });
            prop_assert_eq!(chosen.is_some(), candidates.iter().any(Option::is_some));
            if let Some(place) = chosen {
                prop_assert!(candidates[place].is_some());
            }
        }
    }
}
