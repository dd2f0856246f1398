//! The one thread that writes: gathers what is queued into groups and commits each with one flush.
//!
//! What must hold: the batches of a group take effect in the order of their queueing, each with its
//! conditions checked against all before it; nobody hears of success before the whole group is as
//! durable as promised; after a failure nothing is written or acknowledged again, for what the
//! device holds is then unknown, and a second flush would report a success that it did not have.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::oneshot;
use waystation_committer::{Reserve, Work};
use waystation_core::storage::{Batch, Op, StorageError};

use crate::engine::{Changes, Engine};

/// What a commit resolves to.
pub(crate) type Outcome = Result<(), StorageError>;

/// The batches that wait.
pub(crate) type Inbox = waystation_committer::Inbox<Batch, (), StorageError>;

type Entry = waystation_committer::Entry<Batch, (), StorageError>;

/// What the committer shares with the callers.
pub(crate) struct Shared<E> {
    /// `None` once closed. Written by the committer alone, when it closes.
    pub(crate) engine: RwLock<Option<E>>,
    pub(crate) inbox: Arc<Inbox>,
}

impl<E: Engine> Shared<E> {
    /// Runs `act` on the engine, unless it is closed. A panic of the engine is an error: sled
    /// panics over some damage, which must not take the caller's whole session with it.
    pub(crate) fn with_engine<T>(
        &self,
        act: impl FnOnce(&E) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        let engine = engine.as_ref().ok_or(StorageError::Closed)?;
        catch_unwind(AssertUnwindSafe(|| act(engine)))
            .unwrap_or_else(|_| Err(StorageError::Io(format!("the engine {} panicked", E::NAME))))
    }
}

/// See the module's header.
pub(crate) struct Committer<E> {
    pub(crate) shared: Arc<Shared<E>>,
    pub(crate) reserve: Reserve,
}

impl<E: Engine> Committer<E> {
    /// Serves the inbox until it is closed; then closes the engine and answers `closed`.
    pub(crate) fn run(mut self, closed: oneshot::Sender<Outcome>) {
        let mut failed = false;
        while let Work::Group(group) = self.shared.inbox.next() {
            failed |= !self.commit(group);
        }
        let engine = self.shared.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        let mut outcome = engine.map_or(Err(StorageError::Closed), |engine| {
            catch_unwind(AssertUnwindSafe(|| engine.close()))
                .unwrap_or_else(|_| Err(StorageError::Io(format!("the engine {} panicked", E::NAME))))
        });
        if let Err(error) = &outcome {
            tracing::error!(%error, "the store did not close cleanly");
        } else if failed {
            outcome = Err(StorageError::Io("the store had stopped after a failed write".to_owned()));
        }
        // Nobody listens when the store was dropped instead of closed.
        let _ = closed.send(outcome);
    }

    /// Commits a group and answers its callers; false when the store has failed.
    fn commit(&mut self, group: Vec<Entry>) -> bool {
        match self.apply(&group) {
            Ok(outcomes) => {
                for (entry, outcome) in group.into_iter().zip(outcomes) {
                    entry.answer(outcome);
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, "a write failed: the store takes no more writes until it is reopened");
                // First, so that a caller who hears of the failure finds the store closed.
                self.shared.inbox.fail();
                for entry in group {
                    entry.answer(Err(duplicate(&error)));
                }
                false
            }
        }
    }

    /// The outcome of each entry, or the error that stops the store.
    fn apply(&mut self, group: &[Entry]) -> Result<Vec<Outcome>, StorageError> {
        let low = self.reserve.is_low();
        self.shared.with_engine(|engine| {
            let mut changes = Changes::new();
            let outcomes = group
                .iter()
                .map(|entry| {
                    let batch = &entry.job;
                    if low && batch.ops.iter().any(|op| matches!(op, Op::Put { .. })) {
                        return Err(StorageError::Full);
                    }
                    check_expects(engine, &changes, batch)?;
                    add(&mut changes, batch);
                    Ok(())
                })
                .collect();
            if !changes.is_empty() {
                engine.commit(changes)?;
            }
            Ok(outcomes)
        })
    }
}

fn check_expects<E: Engine>(engine: &E, changes: &Changes, batch: &Batch) -> Outcome {
    for expect in &batch.expects {
        let holds = match changes.get(&(expect.space, expect.key.clone())) {
            Some(value) => *value == expect.value,
            None => engine.get(expect.space, &expect.key)? == expect.value,
        };
        if !holds {
            return Err(StorageError::Conflict);
        }
    }
    Ok(())
}

fn add(changes: &mut Changes, batch: &Batch) {
    for op in &batch.ops {
        match op {
            Op::Put { space, key, value } => changes.insert((*space, key.clone()), Some(value.clone())),
            Op::Delete { space, key } => changes.insert((*space, key.clone()), None),
        };
    }
}

/// The same error once more; it is not `Clone`, for that would promise more than the trait needs.
fn duplicate(error: &StorageError) -> StorageError {
    match error {
        StorageError::Conflict => StorageError::Conflict,
        StorageError::Full => StorageError::Full,
        StorageError::TooLarge(what) => StorageError::TooLarge(what),
        StorageError::Invalid(what) => StorageError::Invalid(what),
        StorageError::Corrupt(text) => StorageError::Corrupt(text.clone()),
        StorageError::Closed => StorageError::Closed,
        StorageError::Io(text) => StorageError::Io(text.clone()),
    }
}

#[cfg(test)]
#[path = "committer_tests.rs"]
mod tests;
