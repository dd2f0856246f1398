//! Whether two kinds of requests take different times: samples in random order, the rank test of
//! Mann and Whitney, and the difference of the medians.
//!
//! What must hold: load on the machine meets both kinds alike, because which kind comes next is
//! drawn at random; a difference that no attacker can use is not called one.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The normal deviate that chance exceeds, to either side, once in 1,000 times.
const ONE_IN_A_THOUSAND: f64 = 3.290_527;

/// Times of requests of two kinds.
#[derive(Debug, Default)]
pub struct Timings {
    /// Of the one kind and of the other, in nanoseconds.
    pub samples: [Vec<u64>; 2],
}

impl Timings {
    /// Adds a time of kind 0 or 1.
    pub fn add(&mut self, kind: usize, time: Duration) {
        self.samples[kind].push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The medians of both kinds in nanoseconds.
    pub fn medians(&self) -> [u64; 2] {
        [0, 1].map(|kind| {
            let mut sorted = self.samples[kind].clone();
            sorted.sort_unstable();
            sorted.get(sorted.len() / 2).copied().unwrap_or_default()
        })
    }

    /// How far the sum of ranks is from what it would be if the kinds were alike, in standard
    /// deviations (normal approximation, ties corrected).
    pub fn deviate(&self) -> f64 {
        let mut all: Vec<(u64, usize)> =
            (0..2).flat_map(|kind| self.samples[kind].iter().map(move |time| (*time, kind))).collect();
        all.sort_unstable();
        let [n0, n1] = [0, 1].map(|kind| self.samples[kind].len() as f64);
        let n = n0 + n1;
        let (mut rank_sum, mut ties, mut below) = (0.0, 0.0, 0.0);
        for equal in all.chunk_by(|a, b| a.0 == b.0) {
            let count = equal.len() as f64;
            // The mean of the ranks below + 1 to below + count.
            let rank = below + (count + 1.0) / 2.0;
            rank_sum += rank * equal.iter().filter(|(_, kind)| *kind == 0).count() as f64;
            ties += count.powi(3) - count;
            below += count;
        }
        let u = rank_sum - n0 * (n0 + 1.0) / 2.0;
        let variance = n0 * n1 / 12.0 * (n + 1.0 - ties / (n * (n - 1.0)));
        if variance > 0.0 { (u - n0 * n1 / 2.0) / variance.sqrt() } else { 0.0 }
    }

    /// Whether the kinds can be told apart: p < 0.001, and medians that are further apart than
    /// `tolerance` and `share` of the larger one together.
    pub fn differ(&self, tolerance: Duration, share: f64) -> bool {
        let [a, b] = self.medians();
        let allowed = tolerance.as_nanos() as f64 + share * a.max(b) as f64;
        self.deviate().abs() > ONE_IN_A_THOUSAND && a.abs_diff(b) as f64 > allowed
    }

    /// What was found, for people.
    pub fn summary(&self) -> String {
        let [a, b] = self.medians().map(|ns| ns as f64 / 1_000.0);
        let [n0, n1] = [0, 1].map(|kind| self.samples[kind].len());
        format!("medians {a:.1} us of {n0} and {b:.1} us of {n1}, {:.2} standard deviations", self.deviate())
    }
}

/// `count` times 0 and `count` times 1 in random order.
pub fn shuffled(count: usize) -> Vec<usize> {
    // Keyed anew by the operating system for each process and each value.
    let keys = RandomState::new();
    let mut order: Vec<usize> = (0..2 * count).map(|n| n % 2).collect();
    for last in (1..order.len()).rev() {
        let mut hasher = keys.build_hasher();
        hasher.write_usize(last);
        order.swap(last, (hasher.finish() % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 to 999, in random order.
    fn noise(seed: usize) -> u64 {
        let order = RandomState::new().hash_one(seed);
        order % 1_000
    }

    fn timings(count: usize, slower: u64) -> Timings {
        let mut timings = Timings::default();
        for (n, kind) in shuffled(count).into_iter().enumerate() {
            let us = 100 + noise(n) + if kind == 1 { slower } else { 0 };
            timings.add(kind, Duration::from_micros(us));
        }
        timings
    }

    #[test]
    fn the_deviate_is_that_of_worked_examples() {
        // U = 0 of 3 * 3, the variance 9 / 12 * 7: (0 - 4.5) / 2.2913.
        let apart = Timings { samples: [vec![1, 2, 3], vec![4, 5, 6]] };
        assert!((apart.deviate() + 1.963_961).abs() < 1e-5, "{}", apart.deviate());
        // Ranks 1, 3, 3 against 3, 5, 6: U = 1, two thirds of a tie of three.
        let tied = Timings { samples: [vec![1, 2, 2], vec![2, 3, 4]] };
        let variance: f64 = 9.0 / 12.0 * (7.0 - 24.0 / 30.0);
        assert!((tied.deviate() - (1.0 - 4.5) / variance.sqrt()).abs() < 1e-9, "{}", tied.deviate());
        let same = Timings { samples: [vec![7; 5], vec![7; 5]] };
        assert!(same.deviate().abs() < f64::EPSILON && !same.differ(Duration::ZERO, 0.0));
    }

    #[test]
    fn a_difference_is_found_in_noise_and_none_where_there_is_none() {
        let tolerance = Duration::from_micros(50);
        assert!(timings(2_000, 150).differ(tolerance, 0.0));
        assert!(!timings(2_000, 0).differ(tolerance, 0.0));
        // Certain, and too small for anyone.
        let small = Timings { samples: [(0..2_000).collect(), (20_000..22_000).collect()] };
        assert!(small.deviate().abs() > ONE_IN_A_THOUSAND && !small.differ(tolerance, 0.0));
        // Large, but within the share of the whole that is allowed.
        let slow = |ms: u64| (0..200).map(|n| ms * 1_000_000 + n).collect();
        let share = Timings { samples: [slow(1_000), slow(1_015)] };
        assert!(share.differ(tolerance, 0.0) && !share.differ(tolerance, 0.02));
    }

    #[test]
    fn the_order_is_random_and_holds_as_many_of_each() {
        let (one, other) = (shuffled(500), shuffled(500));
        assert_ne!(one, other);
        for order in [one, other] {
            assert_eq!(order.iter().filter(|kind| **kind == 0).count(), 500);
            assert_eq!(order.len(), 1_000);
        }
    }
}
