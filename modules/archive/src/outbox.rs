//! Full chunks that wait for those of other accounts, to be flushed by the store together.
//!
//! A flush costs the store and the device more than all else that a chunk does. Where accounts fill
//! chunks by the hundred a second, each would otherwise be one of a few of its flush: three quarters
//! of what the store's thread did were flushes.
//!
//! What must hold: what is here goes to the store in the order in which it came, before anything of
//! the same account that does not come through here; at the latest when [`TOGETHER`] has passed, with
//! whatever makes the archive bring something to the store at once, when it makes [`MAX_SEALED`]
//! bytes, and when the runtime ends that the wait runs on; at once, when nothing came for that long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use waystation_core::storage::{Batch, BoxFuture, Op, Storage, StorageError};

use crate::store::Archives;

/// How long after chunks that went to the store the next ones follow.
pub(crate) const TOGETHER: Duration = Duration::from_millis(50);

/// Bytes of chunks, as they are stored, that wait for no others.
pub(crate) const MAX_SEALED: usize = 1024 * 1024;

/// Gets a commit, as soon as there is one.
pub(crate) type Commit = oneshot::Sender<BoxFuture<'static, Result<(), StorageError>>>;

/// See the module's header.
#[derive(Default)]
pub(crate) struct Outbox(Mutex<Sealed>);

#[derive(Default)]
struct Sealed {
    batches: Vec<(Batch, Commit)>,
    bytes: usize,
    /// When the last ones went.
    sent: Option<Instant>,
    /// Somebody waits to send the next ones.
    waiting: bool,
}

impl Sealed {
    /// Under the lock, so that nobody's next batch goes past.
    fn send(&mut self, storage: &dyn Storage) {
        if self.batches.is_empty() {
            return;
        }
        for (batch, commit) in self.batches.drain(..) {
            let _ = commit.send(storage.commit(batch));
        }
        // The room that a burst needed is not kept.
        self.batches.shrink_to(64);
        self.bytes = 0;
        self.sent = Some(Instant::now());
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Sealed> {
        // No change of it can be left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch behind all others.
    pub(crate) fn push(&self, batch: Batch, commit: Commit) {
        let size = |op: &Op| match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key, .. } => key.len(),
        };
        let bytes: usize = batch.ops.iter().map(size).sum();
        let mut sealed = self.lock();
        sealed.bytes += bytes;
        sealed.batches.push((batch, commit));
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Hands everything to the store.
    pub(crate) fn send(&self, storage: &dyn Storage) {
        self.lock().send(storage);
    }
}

impl Archives {
    /// Sees to it that what was put into the outbox goes to the store in time. Must run inside of a
    /// tokio runtime.
    pub(crate) fn send_soon(self: &Arc<Self>) {
        let mut sealed = self.outbox.lock();
        if sealed.batches.is_empty() {
            return;
        }
        let next = sealed.sent.map(|sent| sent + TOGETHER).filter(|next| *next > Instant::now());
        match next {
            Some(next) if sealed.bytes < MAX_SEALED && !self.clock.is_stopped() => {
                if !std::mem::replace(&mut sealed.waiting, true) {
                    tokio::spawn(send_at(next, Waiting(self.clone())));
                }
            }
            _ => sealed.send(&*self.storage),
        }
    }
}

/// Ends a wait, also when the runtime ends.
struct Waiting(Arc<Archives>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut sealed = self.0.outbox.lock();
        sealed.waiting = false;
        sealed.send(&*self.0.storage);
    }
}

async fn send_at(next: Instant, waiting: Waiting) {
    tokio::time::sleep_until(next).await;
    drop(waiting);
}
