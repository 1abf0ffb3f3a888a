//! Latencies in buckets that are at most 1/64 wide.

use serde_json::{Value, json};

const STEPS: u64 = 64;
const STEPS_LOG2: u32 = STEPS.ilog2();

/// Of nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        let buckets = (STEPS * u64::from(64 - STEPS_LOG2 + 1)) as usize;
        Histogram { counts: vec![0; buckets], count: 0, max: 0 }
    }

    pub fn add(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn report(&self) -> Value {
        json!({
            "p50_ms": self.quantile_ms(0.5),
            "p99_ms": self.quantile_ms(0.99),
            "p999_ms": self.quantile_ms(0.999),
            "max_ms": self.max as f64 / 1e6,
        })
    }

    fn quantile_ms(&self, part: f64) -> f64 {
        let rank = (self.count as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return middle(bucket) / 1e6;
            }
        }
        0.0
    }
}

/// Below 64 a number is its own bucket; above, its 7 leading bits say which.
fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(STEPS_LOG2 + 1);
    (u64::from(shift) * STEPS + (nanos >> shift)) as usize
}

fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    let low = (bucket - shift * STEPS) << shift;
    low as f64 + (1_u64 << shift) as f64 / 2.0
}
