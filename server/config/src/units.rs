//! Durations and sizes as people write them: `"30s"`, `"256 KiB"`.
//!
//! What must hold: what is written can be read back to the same value.

use std::fmt;
use std::time::Duration;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Size {
    /// So many KiB (1024 bytes).
    pub const fn kib(n: u64) -> Self {
        Self(n * KIB)
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n * MIB)
    }

    /// So many GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n * GIB)
    }

    /// The number of bytes, for sizes of things in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads `10000`, `10000 B`, `256 KiB`, `4 MiB`, `1 GiB`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let factor = match unit {
            "" | "B" => 1,
            "KiB" => KIB,
            "MiB" => MIB,
            "GiB" => GIB,
            _ => return None,
        };
        number.checked_mul(factor).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(factor) {
                return write!(f, "{} {unit}", self.0 / factor);
            }
        }
        write!(f, "{} B", self.0)
    }
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `500ms`, `30s`, `5m`, `24h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor).map(Duration::from_millis)
}

/// Writes what [`parse_duration`] reads. Parts of a millisecond are lost; none is ever read.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, factor) =
        UNITS.iter().find(|(_, factor)| millis.is_multiple_of(*factor)).unwrap_or(&("ms", 1));
    format!("{}{unit}", millis / factor)
}

/// Digits (with `_` between them, as in TOML) and a unit, with or without a blank between them.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.starts_with('_') || digits.ends_with('_') || unit == " " {
        return None;
    }
    let number = digits.replace('_', "").parse().ok()?;
    Some((number, unit.strip_prefix(' ').unwrap_or(unit)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, size) in [
            ("0", Size(0)),
            ("10000", Size(10_000)),
            ("10_000 B", Size(10_000)),
            ("256 KiB", Size::kib(256)),
            ("256KiB", Size::kib(256)),
            ("4 MiB", Size::mib(4)),
            ("2 GiB", Size::gib(2)),
        ] {
            assert_eq!(Size::parse(text), Some(size), "{text}");
        }
        for bad in ["", "KiB", "-1", "1.5 MiB", "4 KB", "4 mb", "4  MiB", " 4", "4 ", "_4", "99999999999 GiB"]
        {
            assert_eq!(Size::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, millis) in
            [("0s", 0), ("500ms", 500), ("30s", 30_000), ("5 m", 300_000), ("24h", 86_400_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "5", "s", "-5s", "1.5s", "5 sec", "1h30m", "5S", "99999999999999d"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number: u64) {
            prop_assert_eq!(Size::parse(&Size(number).to_string()), Some(Size(number)));
            let duration = Duration::from_millis(number);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
    }
}
