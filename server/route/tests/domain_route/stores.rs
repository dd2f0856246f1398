//! A queue and a store of the tests' own.

use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use waystation_core::queue::{
    Batch, Capabilities, LeaseId, Leased, Parked, QueueBackend, QueueError, QueueName, QueueStats, Record,
    RecordId, Verdict,
};
use waystation_core::storage::{
    self, BoxFuture, Durability, Op, Row, ScanRange, Space, Storage, StorageError,
};

/// A queue that can be made to be full.
pub(crate) struct Queue {
    pub(crate) inner: Arc<dyn QueueBackend>,
    pub(crate) full: AtomicBool,
    /// What is committed is there before whoever committed it is told.
    pub(crate) slow: AtomicBool,
    /// What is committed takes its time to be there.
    pub(crate) late: AtomicBool,
    /// How many milliseconds a commit takes, and how many there were.
    pub(crate) takes: AtomicU64,
    pub(crate) commits: AtomicU64,
    /// How often a domain's queue was read.
    pub(crate) read: AtomicU64,
}

impl QueueBackend for Queue {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Vec<RecordId>, QueueError>> {
        if self.full.load(Ordering::SeqCst) {
            return Box::pin(async { Err(QueueError::Full) });
        }
        if self.late.load(Ordering::SeqCst) {
            let inner = self.inner.clone();
            return Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                inner.commit(batch).await
            });
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        let takes = Duration::from_millis(self.takes.load(Ordering::SeqCst));
        if !takes.is_zero() {
            let inner = self.inner.clone();
            return Box::pin(async move {
                tokio::time::sleep(takes).await;
                inner.commit(batch).await
            });
        }
        let commit = self.inner.commit(batch);
        if !self.slow.load(Ordering::SeqCst) {
            return commit;
        }
        Box::pin(async move {
            let ids = commit.await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            ids
        })
    }
    fn read(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
        max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<Record>, QueueError>> {
        if queue.starts_with("d/") {
            self.read.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.read(queue, after, max, max_bytes)
    }
    fn lease(
        &self,
        queue: QueueName,
        max: usize,
        how_long: Duration,
    ) -> BoxFuture<'static, Result<Vec<Leased>, QueueError>> {
        self.inner.lease(queue, max, how_long)
    }
    fn extend(&self, lease: LeaseId, how_long: Duration) -> BoxFuture<'static, Result<(), QueueError>> {
        self.inner.extend(lease, how_long)
    }
    fn settle(&self, lease: LeaseId, verdict: Verdict) -> BoxFuture<'static, Result<(), QueueError>> {
        self.inner.settle(lease, verdict)
    }
    fn parked(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<Parked>, QueueError>> {
        self.inner.parked(queue, after, max)
    }
    fn purge(&self, queue: QueueName) -> BoxFuture<'static, Result<(), QueueError>> {
        self.inner.purge(queue)
    }
    fn mark(&self, key: u128) -> BoxFuture<'static, Result<Option<u64>, QueueError>> {
        self.inner.mark(key)
    }
    fn stats(&self, queue: QueueName) -> BoxFuture<'static, Result<QueueStats, QueueError>> {
        self.inner.stats(queue)
    }
    fn queues(
        &self,
        prefix: String,
        after: Option<QueueName>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<QueueName>, QueueError>> {
        self.inner.queues(prefix, after, max)
    }
    fn close(&self) -> BoxFuture<'static, Result<(), QueueError>> {
        self.inner.close()
    }
}

/// Rows in memory.
#[derive(Default)]
pub(crate) struct Rows(Mutex<BTreeMap<(Space, Bytes), Bytes>>);

impl Storage for Rows {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        let value = self.0.lock().unwrap().get(&(space, key)).cloned();
        Box::pin(async move { Ok(value) })
    }
    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        let within = (range.start, range.end);
        let rows = self.0.lock().unwrap();
        let found = rows.iter().filter(|((of, key), _)| *of == space && within.contains(key));
        let found = found.take(range.limit).map(|((_, key), value)| (key.clone(), value.clone())).collect();
        Box::pin(async move { Ok(found) })
    }
    fn commit(&self, batch: storage::Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let mut rows = self.0.lock().unwrap();
        for op in batch.ops {
            match op {
                Op::Put { space, key, value } => {
                    rows.insert((space, key), value);
                }
                Op::Delete { space, key } => {
                    rows.remove(&(space, key));
                }
            }
        }
        Box::pin(async { Ok(()) })
    }
    fn durability(&self) -> Durability {
        Durability::Memory
    }
    fn name(&self) -> &'static str {
        "rows"
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}
