//! The sled 0.34 back-end, within the limits that the crate's README states.
//!
//! What must hold: all spaces share one tree, whose keys begin with the name of the space and a
//! NUL, because a sled batch is atomic within one tree only. Removals do not go through sled's
//! batches, with which the file grows without bound: a batch carries a note of the keys to remove,
//! they are removed one by one after it, and a note found at the start is carried out again.

use std::ops::Bound;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use waystation_core::storage::{Durability, Row, ScanRange, Space, StorageError};

use super::{Changes, Engine, from_io, take_rows};
use crate::store::INLINE_SCAN_ROWS;
use crate::{OpenError, Options};

/// Where the note of keys to remove is kept. No space's name begins with NUL.
const REMOVALS: &[u8] = b"\0removals";

/// How long to wait for the threads of a database closed just before to let its file go.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// See the module's header.
pub(crate) struct SledEngine {
    database: sled::Db,
    /// Held for writing while a group is applied, so that readers see all of it or nothing.
    /// True while the stored note names any key.
    noted: RwLock<bool>,
    flush: bool,
}

impl SledEngine {
    /// Opens or creates the database in `folder`.
    pub(crate) fn open(folder: &Path, durability: Durability, options: &Options) -> Result<Self, OpenError> {
        let config =
            sled::Config::new().path(folder).cache_capacity(options.cache_bytes).flush_every_ms(None);
        let deadline = Instant::now() + LOCK_WAIT;
        let database = loop {
            match config.open() {
                // The data folder's lock is ours, so only a thread of this process can hold this one.
                Err(sled::Error::Io(error))
                    if error.to_string().starts_with("could not acquire lock")
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => break opened.map_err(|error| open_error(folder, error))?,
            }
        };
        let engine = Self { database, noted: RwLock::new(false), flush: durability != Durability::Memory };
        engine.finish_removals().map_err(|error| OpenError::Damaged {
            path: folder.to_owned(),
            engine: Self::NAME,
            detail: error.to_string(),
        })?;
        Ok(engine)
    }

    /// Carries out the note that the last group before a crash left.
    fn finish_removals(&self) -> Result<(), StorageError> {
        let Some(note) = self.database.get(REMOVALS).map_err(|error| from_sled(&error))? else {
            return Ok(());
        };
        let keys = decode_note(&note)
            .ok_or_else(|| StorageError::Corrupt("the note of keys to remove is cut short".to_owned()))?;
        self.remove(&keys).map_err(|error| from_sled(&error))?;
        // A later group that puts one of these keys has to replace the note.
        *self.noted.write().unwrap_or_else(PoisonError::into_inner) = !keys.is_empty();
        Ok(())
    }

    fn remove<K: AsRef<[u8]>>(&self, keys: &[K]) -> sled::Result<()> {
        keys.iter().try_for_each(|key| self.database.remove(key).map(drop))
    }

    fn apply(&self, changes: &Changes) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        let mut removed = Vec::new();
        for ((space, key), value) in changes {
            let key = full_key(*space, key);
            match value {
                Some(value) => batch.insert(key, &value[..]),
                None => removed.push(key),
            }
        }
        let mut noted = self.noted.write().unwrap_or_else(PoisonError::into_inner);
        if *noted || !removed.is_empty() {
            batch.insert(REMOVALS, encode_note(&removed));
        }
        self.database.apply_batch(batch)?;
        self.remove(&removed)?;
        *noted = !removed.is_empty();
        Ok(())
    }

    /// Up to `limit` rows between two full keys, seen at one moment.
    fn rows(
        &self,
        (start, end): &(Bound<Vec<u8>>, Bound<Vec<u8>>),
        range: &ScanRange,
        limit: usize,
        prefix: usize,
    ) -> Result<Vec<Row>, StorageError> {
        let _seen_whole = self.noted.read().unwrap_or_else(PoisonError::into_inner);
        let rows = self.database.range::<&[u8], _>((as_slice(start), as_slice(end)));
        let range = ScanRange { limit, ..range.clone() };
        take_rows(rows, &range, |row| {
            let (key, value) = row.map_err(|error| from_sled(&error))?;
            Ok((Bytes::copy_from_slice(&key[prefix..]), Bytes::copy_from_slice(&value)))
        })
    }
}

impl Engine for SledEngine {
    const NAME: &'static str = "sled";
    const ON_DISK: bool = true;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let _seen_whole = self.noted.read().unwrap_or_else(PoisonError::into_inner);
        let value = self.database.get(full_key(space, key)).map_err(|error| from_sled(&error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// A scan of more than [`INLINE_SCAN_ROWS`] rows is read in parts, between which groups may be
    /// applied: otherwise it would hold them up, and every reader behind them.
    fn scan(&self, space: Space, range: &ScanRange) -> Result<Vec<Row>, StorageError> {
        let prefix = space.0.len() + 1;
        let mut bounds = full_bounds(space, range);
        let mut all: Vec<Row> = Vec::new();
        loop {
            let part = (range.limit - all.len()).min(INLINE_SCAN_ROWS);
            let rows = self.rows(&bounds, range, part, prefix)?;
            let complete = rows.len() < part;
            all.extend(rows);
            let Some((last, _)) = all.last() else { return Ok(all) };
            if complete || all.len() == range.limit {
                return Ok(all);
            }
            let last = Bound::Excluded(full_key(space, last));
            if range.reverse {
                bounds.1 = last;
            } else {
                bounds.0 = last;
            }
        }
    }

    fn commit(&self, changes: Changes) -> Result<(), StorageError> {
        self.apply(&changes).map_err(|error| from_sled(&error))?;
        if self.flush {
            self.database.flush().map_err(|error| from_sled(&error))?;
        }
        Ok(())
    }

    fn close(self) -> Result<(), StorageError> {
        self.database.flush().map(drop).map_err(|error| from_sled(&error))
    }
}

fn full_key(space: Space, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(space.0.len() + 1 + key.len());
    full.extend_from_slice(space.0.as_bytes());
    full.push(0);
    full.extend_from_slice(key);
    full
}

fn full_bounds(space: Space, range: &ScanRange) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let full = |bound: &Bound<Bytes>| bound.as_ref().map(|key| full_key(space, key));
    let start = match full(&range.start) {
        Bound::Unbounded => Bound::Included(full_key(space, b"")),
        bound => bound,
    };
    let end = match full(&range.end) {
        Bound::Unbounded => {
            let mut after_all = space.0.as_bytes().to_vec();
            after_all.push(1);
            Bound::Excluded(after_all)
        }
        bound => bound,
    };
    (start, end)
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

fn encode_note(keys: &[Vec<u8>]) -> Vec<u8> {
    let mut note = Vec::with_capacity(keys.iter().map(|key| 4 + key.len()).sum());
    for key in keys {
        // Keys are checked to be far shorter than four bytes can count.
        note.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
        note.extend_from_slice(key);
    }
    note
}

fn decode_note(mut note: &[u8]) -> Option<Vec<&[u8]>> {
    let mut keys = Vec::new();
    while !note.is_empty() {
        let (len, rest) = note.split_first_chunk()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*len).try_into().ok()?)?;
        keys.push(key);
        note = rest;
    }
    Some(keys)
}

fn from_sled(error: &sled::Error) -> StorageError {
    match error {
        sled::Error::Io(error) => from_io(error),
        sled::Error::Corruption { .. } => StorageError::Corrupt(error.to_string()),
        error => StorageError::Io(error.to_string()),
    }
}

fn open_error(folder: &Path, error: sled::Error) -> OpenError {
    match error {
        sled::Error::Io(source) => OpenError::Io { action: "open", path: folder.to_owned(), source },
        error => OpenError::Damaged {
            path: folder.to_owned(),
            engine: SledEngine::NAME,
            detail: error.to_string(),
        },
    }
}
