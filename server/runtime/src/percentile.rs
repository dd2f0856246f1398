//! Percentiles of what the server measures of itself.
//!
//! What must hold: a percentile is one of the values that were measured.

/// The nearest rank: the smallest of the sorted values that `percent` of a hundred do not exceed; none of no values.
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        assert_eq!(percentile::<u8>(&[], 99), None);
        assert_eq!([0, 50, 99, 100].map(|p| percentile(&[7], p)), [Some(7); 4]);
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!([0, 50, 99, 100].map(|p| percentile(&hundred, p)), [1, 50, 99, 100].map(Some));
        assert_eq!([50, 99].map(|p| percentile(&hundred[..10], p)), [5, 10].map(Some));
    }
}
