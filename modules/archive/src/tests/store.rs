//! A store in memory that counts what is read, and can hold commits back and fail them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::oneshot;
use waystation_core::storage::{
    Batch, BoxFuture, Durability, Op, Row, ScanRange, Space, Storage, StorageError,
};

type Reply = oneshot::Sender<Result<(), StorageError>>;
type Rows = BTreeMap<(Space, Bytes), Bytes>;

#[derive(Default)]
pub(super) struct TestStorage(Mutex<State>);

/// What was asked of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Calls {
    pub(super) gets: usize,
    pub(super) scans: usize,
    pub(super) rows: usize,
    pub(super) commits: usize,
}

#[derive(Default)]
struct State {
    rows: Rows,
    queue: VecDeque<(Batch, Reply)>,
    held: bool,
    /// Commits to come that fail, after as many as go well.
    failing: Option<(usize, usize)>,
    failing_reads: usize,
    calls: Calls,
}

impl TestStorage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on commits wait.
    pub(super) fn hold(&self) {
        self.state().held = true;
    }

    /// Rows whose keys begin so.
    pub(super) fn range(&self, space: Space, prefix: &[u8]) -> Vec<Row> {
        let state = self.state();
        let rows = state.rows.iter().filter(|((of, key), _)| *of == space && key.starts_with(prefix));
        rows.map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }

    /// What a new server finds after this one has ended.
    pub(super) fn copy(&self) -> Self {
        Self(Mutex::new(State { rows: self.state().rows.clone(), ..State::default() }))
    }

    /// Applies all commits that wait, in order, and those to come.
    pub(super) fn release(&self) {
        let mut state = self.state();
        state.held = false;
        state.apply();
    }

    /// Fails `count` commits once `after` more were applied.
    pub(super) fn fail_commits(&self, after: usize, count: usize) {
        self.state().failing = Some((after, count));
    }

    pub(super) fn fail_reads(&self, count: usize) {
        self.state().failing_reads = count;
    }

    pub(super) fn rows(&self, space: Space) -> usize {
        self.state().rows.keys().filter(|(of, _)| *of == space).count()
    }

    /// Replaces a value behind everybody's back.
    pub(super) fn damage(&self, space: Space, key: Bytes) {
        self.state().rows.insert((space, key), Bytes::from_static(b"\xff damaged"));
    }

    /// What was asked of the store since the last time.
    pub(super) fn calls(&self) -> Calls {
        std::mem::take(&mut self.state().calls)
    }
}

impl State {
    fn apply(&mut self) {
        while let Some((batch, reply)) = self.queue.pop_front() {
            let outcome = self.apply_one(batch);
            let _ = reply.send(outcome);
        }
    }

    fn apply_one(&mut self, batch: Batch) -> Result<(), StorageError> {
        match &mut self.failing {
            Some((0, count)) if *count > 0 => {
                *count -= 1;
                return Err(StorageError::Full);
            }
            Some((after, _)) if *after > 0 => *after -= 1,
            _ => {}
        }
        for expect in &batch.expects {
            if self.rows.get(&(expect.space, expect.key.clone())) != expect.value.as_ref() {
                return Err(StorageError::Conflict);
            }
        }
        for op in batch.ops {
            match op {
                Op::Put { space, key, value } => self.rows.insert((space, key), value),
                Op::Delete { space, key } => self.rows.remove(&(space, key)),
            };
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), StorageError> {
        if self.failing_reads > 0 {
            self.failing_reads -= 1;
            return Err(StorageError::Io("injected".into()));
        }
        Ok(())
    }
}

impl Storage for TestStorage {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        Box::pin(async move {
            let found = {
                let mut state = self.state();
                state.read()?;
                state.calls.gets += 1;
                state.rows.get(&(space, key)).cloned()
            };
            // Leaves room for others between reading and answering.
            tokio::task::yield_now().await;
            Ok(found)
        })
    }

    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(async move {
            let rows: Vec<Row> = {
                let mut state = self.state();
                state.read()?;
                let bounds = (range.start.map(|key| (space, key)), range.end.map(|key| (space, key)));
                let of_space = |row: &((Space, Bytes), Bytes)| row.0.0 == space;
                let rows = state.rows.range(bounds).map(|(key, value)| (key.clone(), value.clone()));
                let rows = rows.filter(of_space).map(|((_, key), value)| (key, value));
                let rows: Vec<_> = match range.reverse {
                    true => rows.rev().take(range.limit).collect(),
                    false => rows.take(range.limit).collect(),
                };
                state.calls.scans += 1;
                state.calls.rows += rows.len();
                rows
            };
            tokio::task::yield_now().await;
            Ok(rows)
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.state();
        state.calls.commits += 1;
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
