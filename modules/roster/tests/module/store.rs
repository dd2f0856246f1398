//! A store in memory whose futures are ready at once and whose commits can be made to fail.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use waystation_core::storage::{
    Batch, BoxFuture, Durability, MAX_BATCH_OPS, MAX_KEY, MAX_VALUE, Op, Row, ScanRange, Space, Storage,
    StorageError,
};

/// All rows of a store.
pub(crate) type Rows = BTreeMap<(Space, Bytes), Bytes>;

#[derive(Default)]
pub(crate) struct Store {
    rows: Mutex<Rows>,
    /// How many of the next commits fail.
    pub(crate) failures: AtomicUsize,
    /// How many commits were applied.
    pub(crate) commits: AtomicUsize,
}

impl Store {
    /// A copy of all rows.
    pub(crate) fn rows(&self) -> Rows {
        self.rows.lock().unwrap().clone()
    }

    pub(crate) fn put(&self, space: Space, key: Bytes, value: Bytes) {
        self.rows.lock().unwrap().insert((space, key), value);
    }

    fn apply(&self, batch: &Batch) -> Result<(), StorageError> {
        if self.failures.load(Ordering::SeqCst) > 0 {
            self.failures.fetch_sub(1, Ordering::SeqCst);
            return Err(StorageError::Io("the test said so".into()));
        }
        assert!(batch.expects.is_empty(), "this store knows no conditions");
        assert!(batch.ops.len() <= MAX_BATCH_OPS);
        self.commits.fetch_add(1, Ordering::SeqCst);
        let mut rows = self.rows.lock().unwrap();
        for op in batch.ops.iter().cloned() {
            match op {
                Op::Put { space, key, value } => {
                    assert!(key.len() <= MAX_KEY && value.len() <= MAX_VALUE);
                    rows.insert((space, key), value);
                }
                Op::Delete { space, key } => {
                    rows.remove(&(space, key));
                }
            }
        }
        Ok(())
    }
}

impl Storage for Store {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        let value = self.rows.lock().unwrap().get(&(space, key)).cloned();
        Box::pin(std::future::ready(Ok(value)))
    }

    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        let within = |key: &Bytes| {
            (match &range.start {
                Bound::Included(start) => key >= start,
                Bound::Excluded(start) => key > start,
                Bound::Unbounded => true,
            }) && (match &range.end {
                Bound::Included(end) => key <= end,
                Bound::Excluded(end) => key < end,
                Bound::Unbounded => true,
            })
        };
        assert!(!range.reverse, "this store scans forwards only");
        let rows = self.rows.lock().unwrap();
        let found = rows
            .iter()
            .filter(|((of, key), _)| *of == space && within(key))
            .take(range.limit)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        Box::pin(std::future::ready(self.apply(&batch)))
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn name(&self) -> &'static str {
        "test"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
