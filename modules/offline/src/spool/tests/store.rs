//! A store in memory that can hold commits back and fail them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use waystation_core::storage::{
    Batch, BoxFuture, Durability, Op, Row, ScanRange, Space, Storage, StorageError,
};

type Reply = oneshot::Sender<Result<(), StorageError>>;

#[derive(Default)]
pub(super) struct TestStorage(Mutex<State>);

#[derive(Default)]
struct State {
    rows: BTreeMap<(Space, Bytes), Bytes>,
    queue: VecDeque<(Batch, Reply)>,
    held: bool,
    failing_commits: usize,
    failing_scans: usize,
}

impl TestStorage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on commits wait.
    pub(super) fn hold(&self) {
        self.state().held = true;
    }

    /// Applies all commits that wait, in order, and those to come.
    pub(super) fn release(&self) {
        let mut state = self.state();
        state.held = false;
        state.apply();
    }

    pub(super) fn fail_commits(&self, count: usize) {
        self.state().failing_commits = count;
    }

    pub(super) fn fail_scans(&self, count: usize) {
        self.state().failing_scans = count;
    }

    pub(super) async fn wait_for_commits(&self, count: usize) {
        let waiting = async {
            while self.state().queue.len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
    }

    pub(super) fn rows(&self, space: Space) -> usize {
        self.state().rows.keys().filter(|(of, _)| *of == space).count()
    }

    pub(super) fn bytes(&self, space: Space) -> u64 {
        let state = self.state();
        state.rows.iter().filter(|((of, _), _)| *of == space).map(|(_, value)| value.len() as u64).sum()
    }
}

impl State {
    fn apply(&mut self) {
        while let Some((batch, reply)) = self.queue.pop_front() {
            if self.failing_commits > 0 {
                self.failing_commits -= 1;
                let _ = reply.send(Err(StorageError::Full));
                continue;
            }
            for op in batch.ops {
                match op {
                    Op::Put { space, key, value } => self.rows.insert((space, key), value),
                    Op::Delete { space, key } => self.rows.remove(&(space, key)),
                };
            }
            let _ = reply.send(Ok(()));
        }
    }
}

impl Storage for TestStorage {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        Box::pin(async move { Ok(self.state().rows.get(&(space, key)).cloned()) })
    }

    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(async move {
            let rows = {
                let mut state = self.state();
                if state.failing_scans > 0 {
                    state.failing_scans -= 1;
                    return Err(StorageError::Io("injected".into()));
                }
                let bounds = (range.start.map(|key| (space, key)), range.end.map(|key| (space, key)));
                let rows = state.rows.range(bounds).map(|((_, key), value)| (key.clone(), value.clone()));
                rows.take(range.limit).collect()
            };
            // Leaves room for others between reading and answering.
            tokio::task::yield_now().await;
            Ok(rows)
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.state();
        state.queue.push_back((batch, reply));
        if !state.held {
            state.apply();
        }
        Box::pin(async move { receiver.await.unwrap_or(Err(StorageError::Closed)) })
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn name(&self) -> &'static str {
        "test"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}
