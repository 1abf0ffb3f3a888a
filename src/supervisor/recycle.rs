//! Planned restarts: which instances are due. Pure.
//!
//! bingo fails by itself after some twenty minutes, and processes started together fail together. Restarting each a
//! little earlier, one at a time, turns an outage into nothing.

use std::time::Duration;

/// Planned restarts come after this part of `recycle_after` to the whole of it: see [`due_at`].
const EARLIEST: f64 = 0.8;

/// One instance, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Instances with the same number belong to one process.
    pub process: usize,
    /// `None` while it does not run.
    pub uptime: Option<Duration>,
    pub healthy: bool,
    /// `None`: never.
    pub due_at: Option<Duration>,
}

/// The uptime at which an instance is due: 80 % to 100 % of `recycle_after`, fixed by the names of node and instance, so
/// that two nodes whose processes were started together do not restart them together.
pub fn due_at(recycle_after: Duration, node: &str, instance: &str) -> Duration {
    let mut hash = Fnv::default();
    hash.write(node.as_bytes());
    hash.write(&[0]);
    hash.write(instance.as_bytes());
    recycle_after.mul_f64(EARLIEST + (1.0 - EARLIEST) * hash.unit())
}

/// The indices of those to restart now: at most one of each process, the longest overdue, and none of a process of which
/// any instance is not healthy.
pub fn choose(candidates: &[Candidate]) -> Vec<usize> {
    let mut chosen: Vec<(usize, Duration)> = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let (Some(uptime), Some(due_at)) = (candidate.uptime, candidate.due_at) else { continue };
        let whole =
            candidates.iter().filter(|other| other.process == candidate.process).all(|other| other.healthy);
        let Some(overdue) = uptime.checked_sub(due_at).filter(|_| whole) else { continue };
        match chosen.iter_mut().find(|(other, _)| candidates[*other].process == candidate.process) {
            Some(best) if best.1 < overdue => *best = (index, overdue),
            Some(_) => {}
            None => chosen.push((index, overdue)),
        }
    }
    chosen.into_iter().map(|(index, _)| index).collect()
}

/// FNV-1a with a final mix: the same on every build and host, unlike the standard library's.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// 0 to 1. The mix (of MurmurHash3) spreads names that differ in their last letter only.
    fn unit(&self) -> f64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        (hash >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn candidate(process: usize, uptime_minutes: u64, healthy: bool) -> Candidate {
        Candidate {
            process,
            uptime: Some(Duration::from_secs(60 * uptime_minutes)),
            healthy,
            due_at: Some(Duration::from_secs(60 * 20)),
        }
    }

    #[test]
    fn one_at_a_time_the_longest_overdue() {
        let both =
            [candidate(0, 21, true), candidate(0, 22, true), candidate(1, 30, true), candidate(1, 5, true)];
        assert_eq!(choose(&both), [1, 2]);
    }

    #[test]
    fn none_while_another_instance_is_not_healthy() {
        assert_eq!(choose(&[candidate(0, 21, true), candidate(0, 1, false)]), [0usize; 0]);
        assert_eq!(choose(&[candidate(0, 21, true), candidate(1, 1, false)]), [0]);
        let mut gone = candidate(0, 0, false);
        gone.uptime = None;
        assert_eq!(choose(&[candidate(0, 21, true), gone]), [0usize; 0]);
    }

    #[test]
    fn never_when_not_asked_to() {
        let mut never = candidate(0, 10_000, true);
        never.due_at = None;
        assert_eq!(choose(&[never]), [0usize; 0]);
    }

    #[test]
    fn nodes_and_instances_are_spread() {
        let due: Vec<Duration> = ["a", "b"]
            .iter()
            .flat_map(|node| ["bingo-1", "bingo-2"].map(|name| due_at(HOUR, node, name)))
            .collect();
        for (index, one) in due.iter().enumerate() {
            assert!(*one >= HOUR.mul_f64(0.8) && *one <= HOUR, "{one:?}");
            for other in &due[..index] {
                assert!(one.abs_diff(*other) > Duration::from_secs(30), "{due:?}");
            }
        }
    }
}
