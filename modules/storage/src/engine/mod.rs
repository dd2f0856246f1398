//! What the store needs of an engine. Ordering, conditions, limits and grouping are settled before
//! an engine is called, so that the three differ in as little as possible.

mod fjall;
mod fjall_buffers;
mod fjall_journal;
mod memory;
mod sled;

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use waystation_core::storage::{Row, ScanRange, Space, StorageError};

pub(crate) use self::fjall::FjallEngine;
pub(crate) use self::memory::MemoryEngine;
pub(crate) use self::sled::SledEngine;

/// What a group of batches leaves at each key that it touches; `None`: the key is absent.
pub(crate) type Changes = BTreeMap<(Space, Bytes), Option<Bytes>>;

/// See the module's header. Keys, names and ranges were checked; ranges are not empty.
pub(crate) trait Engine: Send + Sync + 'static {
    /// The name in logs.
    const NAME: &'static str;
    /// Whether it needs room on the device of the data folder.
    const ON_DISK: bool;

    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// The rows of a range.
    fn scan(&self, space: Space, range: &ScanRange) -> Result<Vec<Row>, StorageError>;

    /// Applies all changes or none, and makes them as durable as the engine was opened for.
    /// Called by one thread at a time, and never again after an error.
    fn commit(&self, changes: Changes) -> Result<(), StorageError>;

    /// Flushes and closes.
    fn close(self) -> Result<(), StorageError>;
}

fn from_io(error: &io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::Full,
        _ => StorageError::Io(error.to_string()),
    }
}

/// Takes rows from either end of an iterator, as the range says.
fn take_rows<T>(
    rows: impl DoubleEndedIterator<Item = T>,
    range: &ScanRange,
    read: impl FnMut(T) -> Result<Row, StorageError>,
) -> Result<Vec<Row>, StorageError> {
    if range.reverse {
        rows.rev().take(range.limit).map(read).collect()
    } else {
        rows.take(range.limit).map(read).collect()
    }
}
