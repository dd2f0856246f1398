//! Latencies in logarithmic buckets: constant memory, and percentiles within one part in 32.

use std::time::Duration;

/// Buckets per power of two.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
const BUCKETS: usize = 64 * STEPS as usize;

/// Counts of latencies in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0 }
    }
}

impl Histogram {
    /// Counts one latency.
    pub(crate) fn record(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    /// The latency that a share `p` (0 to 1) of all stays below or at; zero when nothing was counted.
    pub(crate) fn percentile(&self, p: f64) -> Duration {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "p is within 0..=1")]
        let rank = ((self.total as f64 * p).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_bound(index as u64));
            }
        }
        Duration::ZERO
    }
}

/// Values below `STEPS` have a bucket each; above, each power of two is cut into `STEPS` buckets.
fn bucket(nanos: u64) -> usize {
    let Some(shift) = (64 - nanos.leading_zeros()).checked_sub(STEP_BITS + 1) else {
        return usize::try_from(nanos).unwrap_or(BUCKETS - 1);
    };
    let index = (u64::from(shift) + 1) * STEPS + (nanos >> shift) - STEPS;
    usize::try_from(index).map_or(BUCKETS - 1, |i| i.min(BUCKETS - 1))
}

fn upper_bound(index: u64) -> u64 {
    if index < STEPS {
        return index;
    }
    let shift = index / STEPS - 1;
    ((index % STEPS + STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        let mut value = 0u64;
        while value < 1 << 50 {
            let index = bucket(value) as u64;
            assert!(value <= upper_bound(index), "{value}");
            assert!(index == 0 || value > upper_bound(index - 1), "{value}");
            value += 1 + value / 50;
        }
    }

    #[test]
    fn percentiles_of_a_ramp() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000u64 {
            histogram.record(micros * 1000);
        }
        for (p, exact) in [(0.5, 500_000.0), (0.99, 990_000.0), (1.0, 1_000_000.0)] {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let found = histogram.percentile(p).as_nanos() as f64;
            assert!((found / exact - 1.0).abs() < 1.0 / 32.0, "{p}: {found}");
        }
        assert_eq!(Histogram::default().percentile(0.5), Duration::ZERO);
    }
}
