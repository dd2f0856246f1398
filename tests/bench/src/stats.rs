//! Rounds as one figure: the middle, and how far apart they were.
//!
//! A median is always one of the values that were measured, never a mean of
//! two, so that it can be found in the raw results.

/// The values of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// The middle value; of an even number the lower of the two in the middle.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
    /// How many there were.
    pub(crate) rounds: usize,
}

impl Spread {
    /// Of these values; none without any.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = values[(values.len() - 1) / 2];
        Some(Self { median, min, max, rounds: values.len() })
    }

    /// The median, and the smallest and the largest value if there were several.
    pub(crate) fn show(&self) -> String {
        let median = short(self.median);
        if self.rounds < 2 {
            return median;
        }
        format!("{median} ({}–{})", short(self.min), short(self.max))
    }
}

/// Three significant digits where that loses nothing, thousands separated.
pub(crate) fn short(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    if value.abs() < 100.0 {
        return if value == value.trunc() { format!("{value:.0}") } else { format!("{value:.2}") };
    }
    let digits = format!("{:.0}", value.abs());
    let first = (digits.len() - 1) % 3 + 1;
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    text.push_str(&digits[..first]);
    for group in digits.as_bytes()[first..].chunks(3) {
        text.push(',');
        text.push_str(std::str::from_utf8(group).unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(short(0.5), "0.50");
        assert_eq!(short(7.0), "7");
        assert_eq!(short(123.4), "123");
        assert_eq!(short(1234.0), "1,234");
        assert_eq!(short(-1234.0), "-1,234");
        assert_eq!(short(1_234_567.0), "1,234,567");
        assert_eq!(short(f64::NAN), "-");
    }

    #[test]
    fn medians_with_their_spread() {
        let three = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((three.median, three.min, three.max), (2.0, 1.0, 3.0));
        assert_eq!(three.show(), "2 (1–3)");
        assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 1.0);
        assert_eq!(Spread::of(vec![1500.0]).unwrap().show(), "1,500");
        assert_eq!(Spread::of(vec![]), None);
    }
}
