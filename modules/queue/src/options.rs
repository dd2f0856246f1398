//! What the operator chooses: the back-end, its durability and its sizes.

use std::fmt;
use std::str::FromStr;

use waystation_core::storage::Durability;

/// Which back-end keeps the queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A log of records in a folder of this machine; the default.
    #[default]
    Log,
    /// This process's memory: everything is gone when it ends.
    Memory,
}

impl Kind {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no queue back-end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no queue of this machine; use \"log\" (the default) or \"memory\"")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        [Self::Log, Self::Memory]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a resolved commit has to survive. [`Durability::Memory`] is taken as
    /// [`Durability::Os`]: who wants no file opens the memory back-end.
    pub durability: Durability,
    /// Bytes of a segment, the unit in which disk is taken and given back: from
    /// [`MIN_SEGMENT`] to [`MAX_SEGMENT`], and set to the nearer of these otherwise. A batch that
    /// is longer makes its segment longer.
    pub segment_bytes: u32,
    /// Free bytes on the device below which batches with records are refused with `Full`, while
    /// verdicts and marks go on. `None`: 5 % of the device, at most 512 MiB. `Some(0)`: never.
    pub min_free_bytes: Option<u64>,
    /// Bytes of index pages of old segments that are kept in memory.
    pub cache_bytes: usize,
}

/// Smallest [`Options::segment_bytes`]; useful in tests only.
pub const MIN_SEGMENT: u32 = 4 * 1024;
/// Largest [`Options::segment_bytes`].
pub const MAX_SEGMENT: u32 = 1024 * 1024 * 1024;

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Fsync,
            segment_bytes: 64 * 1024 * 1024,
            min_free_bytes: None,
            cache_bytes: 8 * 1024 * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_read_back_what_they_print() {
        for kind in [Kind::Log, Kind::Memory] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let message = "kafka".parse::<Kind>().unwrap_err().to_string();
        assert_eq!(message, r#""kafka" is no queue of this machine; use "log" (the default) or "memory""#);
    }
}
