//! The fjall back-end: one key space of fjall per space, one journal write and one flush per group.
//!
//! What must hold: a group is one batch of fjall's, which flushes its journal before it shows the
//! batch to readers, so nobody acts on what a power loss could take back; what is in no table yet
//! stays within its limit (`fjall_buffers`); and the committer never enters fjall's own
//! back-pressure, which waits for ever when fjall's workers have died.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use waystation_core::storage::{Durability, Row, ScanRange, Space, StorageError};

use super::fjall_buffers::{Usage, weight};
use super::{Changes, Engine, fjall_journal, from_io, take_rows};
use crate::{OpenError, Options};

/// Threads that write tables and merge them.
const WORKERS: usize = 2;

/// Journals on disk before the oldest data is written into tables; also what a start has to replay.
const MAX_JOURNAL_BYTES: u64 = 128 * 1024 * 1024;

/// Open table files that are kept.
const MAX_OPEN_FILES: usize = 256;

/// Where the end of a journal goes that a power loss cut short, beside fjall's folder.
const TORN_TAIL: &str = "torn_journal_tail";

/// fjall waits inside a commit from 4 sealed memtables or 30 runs on; one commit adds at most
/// one of each, and its workers may add another meanwhile.
const MAX_SEALED: usize = 2;
const MAX_TABLES: usize = 25;

/// New tables that are merged into the older ones at once. fjall's own number is 4; with the small
/// tables of a small write buffer, that would merge the same data twice as often. Written down
/// with each key space that is made.
const MERGED_TABLES: u8 = 8;

/// How often the backlog is looked at while it is too large.
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);

/// See the module's header.
pub(crate) struct FjallEngine {
    database: Database,
    /// The key spaces by name. A space gets one with the first value that is put there.
    spaces: RwLock<HashMap<String, Keyspace>>,
    flush: Option<PersistMode>,
    /// Bytes that may be in no table yet, over all key spaces.
    write_buffer: u64,
    /// Bytes of the memtable that was sealed last. The committer alone changes it.
    last_sealed: AtomicU64,
}

impl FjallEngine {
    /// Opens or creates the database in `folder`.
    pub(crate) fn open(folder: &Path, durability: Durability, options: &Options) -> Result<Self, OpenError> {
        let flush = match durability {
            Durability::Fsync => Some(PersistMode::SyncAll),
            Durability::Os => Some(PersistMode::Buffer),
            Durability::Memory => None,
        };
        let aside = folder.with_file_name(TORN_TAIL);
        fjall_journal::check(folder, &aside, durability == Durability::Fsync)?;
        let open = || {
            let database = Database::builder(folder)
                .cache_size(options.cache_bytes)
                .worker_threads(WORKERS)
                .max_journaling_size(MAX_JOURNAL_BYTES)
                .max_cached_files(Some(MAX_OPEN_FILES))
                .manual_journal_persist(true)
                // fjall checks a compressed value by compressing it again, which a later release of
                // the compressor may do differently: it would then take its own journal for damaged.
                .journal_compression(CompressionType::None)
                .open()?;
            let mut spaces = HashMap::new();
            for name in database.list_keyspace_names() {
                let space = database.keyspace(&name, KeyspaceCreateOptions::default)?;
                spaces.insert(name.to_string(), space);
            }
            Ok((database, spaces))
        };
        let (database, spaces) = open().map_err(|error| open_error(folder, error))?;
        let write_buffer = options.write_buffer_bytes.max(64 * 1024);
        Ok(Self {
            database,
            spaces: RwLock::new(spaces),
            flush,
            write_buffer,
            last_sealed: AtomicU64::new(0),
        })
    }

    fn space(&self, space: Space) -> Option<Keyspace> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner).get(space.0).cloned()
    }

    fn space_or_new(&self, space: Space) -> fjall::Result<Keyspace> {
        if let Some(found) = self.space(space) {
            return Ok(found);
        }
        let made = self.database.keyspace(space.0, || {
            KeyspaceCreateOptions::default()
                // Ours comes first; fjall writes this one down for good.
                .max_memtable_size(self.write_buffer)
                .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(MERGED_TABLES)))
                .manual_journal_persist(true)
        })?;
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        spaces.insert(space.0.to_owned(), made.clone());
        Ok(made)
    }

    /// Waits until fjall's workers have caught up, and there is memory for `incoming` bytes;
    /// true when they have nothing to write.
    fn wait_for_room(&self, touched: &BTreeSet<Space>, incoming: u64) -> fjall::Result<bool> {
        for space in touched.iter().filter_map(|space| self.space(*space)) {
            while space.sealed_memtable_count() > MAX_SEALED || space.l0_table_count() > MAX_TABLES {
                self.pause()?;
            }
        }
        loop {
            let usage = self.usage();
            if usage.is_idle() || self.held(&usage).saturating_add(incoming) <= self.write_buffer {
                return Ok(usage.is_idle());
            }
            self.pause()?;
        }
    }

    /// Bytes that are in no table yet, or not let go.
    pub(super) fn held(&self, usage: &Usage) -> u64 {
        usage.held(self.database.write_buffer_size(), self.last_sealed.load(Ordering::Relaxed))
    }

    /// The memtables of all key spaces.
    pub(super) fn usage(&self) -> Usage {
        Usage::of(&self.spaces.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A moment for fjall's workers.
    fn pause(&self) -> fjall::Result<()> {
        // Fails when a worker failed; nothing else tells that the wait would not end.
        self.database.persist(PersistMode::Buffer)?;
        std::thread::sleep(BACKLOG_PAUSE);
        Ok(())
    }

    fn write(&self, changes: &Changes) -> fjall::Result<()> {
        let touched = changes.keys().map(|(space, _)| *space).collect();
        let idle = self.wait_for_room(&touched, weight(changes))?;
        let mut batch = self.database.batch().durability(self.flush);
        for ((space, key), value) in changes {
            match value {
                Some(value) => batch.insert(&self.space_or_new(*space)?, &key[..], &value[..]),
                None => {
                    if let Some(space) = self.space(*space) {
                        batch.remove(&space, &key[..]);
                    }
                }
            }
        }
        batch.commit()?;
        if idle && let Some((bytes, space)) = self.usage().due(self.write_buffer) {
            self.last_sealed.store(bytes, Ordering::Relaxed);
            space.rotate_memtable()?;
        }
        Ok(())
    }
}

impl Engine for FjallEngine {
    const NAME: &'static str = "fjall";
    const ON_DISK: bool = true;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let Some(space) = self.space(space) else { return Ok(None) };
        // Through a snapshot, for a batch is shown to snapshots in one step.
        let value = self.database.snapshot().get(&space, key).map_err(|error| from_fjall(&error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, space: Space, range: &ScanRange) -> Result<Vec<Row>, StorageError> {
        let Some(space) = self.space(space) else { return Ok(Vec::new()) };
        let rows = self.database.snapshot().range(&space, (range.start.clone(), range.end.clone()));
        take_rows(rows, range, |row| {
            let (key, value) = row.into_inner().map_err(|error| from_fjall(&error))?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        })
    }

    fn commit(&self, changes: Changes) -> Result<(), StorageError> {
        self.write(&changes).map_err(|error| from_fjall(&error))
    }

    fn close(self) -> Result<(), StorageError> {
        // At any durability: after an orderly end nothing should be lost, whatever happens next.
        self.database.persist(PersistMode::SyncAll).map_err(|error| from_fjall(&error))
    }
}

/// The storage error for fjall's: what the system said if it comes from there, else damage.
fn from_fjall(error: &fjall::Error) -> StorageError {
    match error {
        fjall::Error::Poisoned => {
            StorageError::Io("fjall has stopped after a failed write; its log names the cause".to_owned())
        }
        fjall::Error::Locked => StorageError::Io("fjall's folder is locked".to_owned()),
        fjall::Error::Io(error) => from_io(error),
        fjall::Error::Storage(inner) => match inner.source().and_then(|cause| cause.downcast_ref()) {
            Some(io) => from_io(io),
            None => StorageError::Corrupt(error.to_string()),
        },
        error => StorageError::Corrupt(error.to_string()),
    }
}

fn open_error(folder: &Path, error: fjall::Error) -> OpenError {
    match error {
        fjall::Error::Io(source) => OpenError::Io { action: "open", path: folder.to_owned(), source },
        error => OpenError::Damaged {
            path: folder.to_owned(),
            engine: FjallEngine::NAME,
            detail: error.to_string(),
        },
    }
}
