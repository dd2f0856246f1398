//! The `Storage` of every back-end: an engine, its committer and its scan threads.
//!
//! What must hold: nothing here blocks a caller but the engine's own point reads and short scans,
//! which are served from memory or the page cache; and dropping a store.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::oneshot;
use waystation_committer::{Limit, Readers, Reserve, free_space};
use waystation_core::storage::{
    Batch, BoxFuture, Durability, MAX_BATCH_BYTES, Row, ScanRange, Space, Storage, StorageError,
};

use crate::committer::{Committer, Inbox, Outcome, Shared};
use crate::engine::Engine;
use crate::limits::{check_batch, check_key, check_range, check_space};
use crate::{DataDir, OpenError, Options};

/// What the store holds of commits that wait. A single batch always fits.
const WAITING: Limit = Limit { entries: 16_384, bytes: 2 * MAX_BATCH_BYTES };

/// What is committed with one flush. Enough to amortise it, and small enough that the first
/// of a group does not wait long for the last.
const GROUP: Limit = Limit { entries: 4096, bytes: 8 * 1024 * 1024 };

/// Threads for long scans.
const SCAN_THREADS: usize = 2;

/// Scans of up to this many rows run where they are asked for; it takes well under a
/// millisecond, which a change of threads twice would only add to.
pub(crate) const INLINE_SCAN_ROWS: usize = 1000;

/// See the module's header.
pub(crate) struct Store<E: Engine> {
    shared: Arc<Shared<E>>,
    readers: Readers,
    durability: Durability,
    committer: Option<JoinHandle<()>>,
    /// Resolves when the committer has ended; taken by the first `close`.
    closed: Mutex<Option<oneshot::Receiver<Outcome>>>,
    /// Keeps the folder locked until the engine is closed.
    _data_dir: DataDir,
}

impl<E: Engine> Store<E> {
    /// Starts the threads that serve `engine`.
    pub(crate) fn start(
        engine: E,
        durability: Durability,
        data_dir: &DataDir,
        options: &Options,
    ) -> Result<Arc<Self>, OpenError> {
        let reserve = if E::ON_DISK {
            let path = data_dir.path().to_owned();
            Reserve::new("the store", Box::new(move || free_space(&path)), options.min_free_bytes)
        } else {
            Reserve::none()
        };
        let shared = Arc::new(Shared {
            engine: RwLock::new(Some(engine)),
            inbox: Arc::new(Inbox::new(WAITING, GROUP)),
        });
        let threads = OpenError::io("start the threads for", data_dir.path());
        let readers = Readers::start("storage-scan", SCAN_THREADS);
        let (ended, closed) = oneshot::channel();
        let committer = Committer { shared: Arc::clone(&shared), reserve };
        let started = readers.and_then(|readers| {
            let committer = std::thread::Builder::new()
                .name("storage-commit".to_owned())
                .spawn(move || committer.run(ended))?;
            Ok((readers, committer))
        });
        let (readers, committer) = started.map_err(threads)?;
        Ok(Arc::new(Self {
            shared,
            readers,
            durability,
            committer: Some(committer),
            closed: Mutex::new(Some(closed)),
            _data_dir: data_dir.clone(),
        }))
    }
}

impl<E: Engine> Storage for Store<E> {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        Box::pin(async move {
            check_space(space)?;
            check_key(&key)?;
            self.shared.with_engine(|engine| engine.get(space, &key))
        })
    }

    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(async move {
            check_space(space)?;
            if !check_range(&range)? {
                return self.shared.with_engine(|_| Ok(Vec::new()));
            }
            if range.limit <= INLINE_SCAN_ROWS {
                return self.shared.with_engine(|engine| engine.scan(space, &range));
            }
            let shared = Arc::clone(&self.shared);
            self.readers.run(move || shared.with_engine(|engine| engine.scan(space, &range))).await
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let queued = check_batch(&batch).and_then(|bytes| self.shared.inbox.push(batch, bytes));
        match queued {
            Ok(commit) => Box::pin(commit),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn durability(&self) -> Durability {
        self.durability
    }

    fn name(&self) -> &'static str {
        E::NAME
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move {
            let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner).take();
            let closed = closed.ok_or(StorageError::Closed)?;
            self.shared.inbox.close();
            closed.await.unwrap_or(Err(StorageError::Closed))
        })
    }
}

impl<E: Engine> Drop for Store<E> {
    /// Waits until what was queued is committed and the engine is closed: only then may the
    /// folder's lock go.
    fn drop(&mut self) {
        self.shared.inbox.close();
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            tracing::error!("the storage thread panicked");
        }
    }
}
