//! The back-end that keeps everything in this process's memory, for tests and throw-away servers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use waystation_core::storage::{Row, ScanRange, Space, StorageError};

use super::{Changes, Engine, take_rows};

/// A sorted map per space, under one lock: a batch is seen whole or not at all.
#[derive(Default)]
pub(crate) struct MemoryEngine {
    spaces: RwLock<HashMap<Space, BTreeMap<Bytes, Bytes>>>,
}

impl Engine for MemoryEngine {
    const NAME: &'static str = "memory";
    const ON_DISK: bool = false;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        Ok(spaces.get(&space).and_then(|rows| rows.get(key)).cloned())
    }

    fn scan(&self, space: Space, range: &ScanRange) -> Result<Vec<Row>, StorageError> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        let Some(rows) = spaces.get(&space) else { return Ok(Vec::new()) };
        let rows = rows.range((range.start.clone(), range.end.clone()));
        take_rows(rows, range, |(key, value)| Ok((key.clone(), value.clone())))
    }

    fn commit(&self, changes: Changes) -> Result<(), StorageError> {
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        for ((space, key), value) in changes {
            let rows = spaces.entry(space).or_default();
            match value {
                // Copies: the caller's bytes may be a small part of a large buffer, which a row
                // that stays for long must not keep alive.
                Some(value) => rows.insert(Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)),
                None => rows.remove(&key),
            };
        }
        Ok(())
    }

    fn close(self) -> Result<(), StorageError> {
        Ok(())
    }
}
