//! What the operator chooses: the engine, its durability and its sizes.

use std::fmt;
use std::str::FromStr;

use waystation_core::storage::Durability;

/// Which engine keeps the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// fjall, a log-structured merge tree; the default.
    #[default]
    Fjall,
    /// sled 0.34, selectable within the limits that the README of this crate states.
    Sled,
    /// This process's memory: everything is gone when it ends.
    Memory,
}

impl Kind {
    /// The name in the configuration and in the schema file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fjall => "fjall",
            Self::Sled => "sled",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no storage engine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no storage engine; use \"fjall\" (the default), \"sled\" or \"memory\"")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        [Self::Fjall, Self::Sled, Self::Memory]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The engine.
    pub kind: Kind,
    /// What a resolved commit has to survive. Sled never claims more than [`Durability::Os`],
    /// memory never more than [`Durability::Memory`].
    pub durability: Durability,
    /// Bytes that the engine may use to cache what it read. Sled treats it as a wish.
    pub cache_bytes: u64,
    /// Bytes of new data that fjall holds in memory, over all key spaces, until it is in tables:
    /// keys and values with 64 bytes each, for which the system's memory is about a third more.
    /// At the limit a commit waits for a table to be written. At least 64 KiB.
    pub write_buffer_bytes: u64,
    /// Free bytes on the device below which writes are refused with `Full` while removals and
    /// reads go on, so that the engine never runs into a full disk, after which it has to be
    /// reopened. `None`: 5 % of the device, at most 512 MiB. `Some(0)`: never refuse.
    pub min_free_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::default(),
            durability: Durability::Fsync,
            cache_bytes: 32 * 1024 * 1024,
            write_buffer_bytes: 16 * 1024 * 1024,
            min_free_bytes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_read_back_what_they_print() {
        for kind in [Kind::Fjall, Kind::Sled, Kind::Memory] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn an_unknown_kind_is_answered_with_the_known_ones() {
        let message = "rocksdb".parse::<Kind>().unwrap_err().to_string();
        assert_eq!(
            message,
            r#""rocksdb" is no storage engine; use "fjall" (the default), "sled" or "memory""#
        );
    }
}
