//! The bounded queue between callers of `commit` and the committer thread.
//!
//! What must hold: entries leave in the order in which `push` was called; a caller is never
//! blocked. The store owns the entries up to a limit in number and bytes. Past it, an entry still
//! has its place, but lives only as long as its future: a caller that drops the future gives the
//! memory back, so what waits is bounded by what callers themselves wait for.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use waystation_core::storage::{Batch, StorageError};

/// What a commit resolves to.
pub(crate) type Outcome = Result<(), StorageError>;

/// A batch with the way back to its caller.
pub(crate) struct Entry {
    place: u64,
    bytes: usize,
    pub(crate) batch: Batch,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

/// A limit in number and bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
}

/// What the committer has to do next.
pub(crate) enum Work {
    /// Apply these, in order.
    Group(Vec<Entry>),
    /// Everything was applied and nothing more will come: close.
    Close,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// A write failed: entries are refused, but the committer still waits to be closed.
    Failed,
    /// No more entries; those in the queue are still applied.
    Closing,
}

struct State {
    phase: Phase,
    entries: VecDeque<Entry>,
    /// How many entries, from the front, the store owns, and their weight.
    owned: usize,
    owned_bytes: usize,
    next_place: u64,
    /// The committer waits for work.
    idle: bool,
}

/// See the module's header.
pub(crate) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    limit: Limit,
    group: Limit,
}

impl Queue {
    /// A queue that owns up to `limit` and hands out groups of up to `group`.
    pub(crate) fn new(limit: Limit, group: Limit) -> Self {
        let state = State {
            phase: Phase::Open,
            entries: VecDeque::new(),
            owned: 0,
            owned_bytes: 0,
            next_place: 0,
            idle: false,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), limit, group }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The critical sections do not panic half-way, so the state is whole in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch that weighs `bytes`.
    ///
    /// # Errors
    /// [`StorageError::Closed`] after a failure or once the queue is closing.
    pub(crate) fn push(self: &Arc<Self>, batch: Batch, bytes: usize) -> Result<Commit, StorageError> {
        let (reply, outcome) = oneshot::channel();
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(StorageError::Closed);
        }
        let place = state.next_place;
        state.next_place += 1;
        state.entries.push_back(Entry { place, bytes, batch, reply });
        state.own_up_to(self.limit);
        let owned = state.owned == state.entries.len();
        let wake = std::mem::take(&mut state.idle);
        drop(state);
        if wake {
            self.work.notify_one();
        }
        let waiting = (!owned).then(|| (Arc::clone(self), place));
        Ok(Commit { outcome, waiting })
    }

    /// Blocks until there is work. Called by the committer alone.
    pub(crate) fn next(&self) -> Work {
        let mut state = self.lock();
        while state.entries.is_empty() {
            if state.phase == Phase::Closing {
                return Work::Close;
            }
            state.idle = true;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.entries.front().map(|first| first.bytes) {
            let fits = group.len() < self.group.entries && bytes + next <= self.group.bytes;
            if !fits && !group.is_empty() {
                break;
            }
            bytes += next;
            state.owned -= 1;
            state.owned_bytes -= next;
            group.extend(state.entries.pop_front());
            // The next one may have waited for this room.
            state.own_up_to(self.limit);
        }
        Work::Group(group)
    }

    /// Refuses everything from now on: what is queued resolves to `Closed`.
    pub(crate) fn fail(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Failed;
        }
        let dropped = std::mem::take(&mut state.entries);
        state.owned = 0;
        state.owned_bytes = 0;
        drop(state);
        for entry in dropped {
            // A caller that no longer waits needs no answer.
            let _ = entry.reply.send(Err(StorageError::Closed));
        }
    }

    /// Takes no more entries; the committer ends after those that are queued.
    pub(crate) fn close(&self) {
        self.lock().phase = Phase::Closing;
        self.work.notify_one();
    }

    fn withdraw(&self, place: u64) {
        let mut state = self.lock();
        let owned = state.owned;
        if let Ok(index) = state.entries.binary_search_by_key(&place, |entry| entry.place)
            && index >= owned
        {
            state.entries.remove(index);
        }
    }

    #[cfg(test)]
    fn lengths(&self) -> (usize, usize) {
        let state = self.lock();
        (state.owned, state.entries.len())
    }
}

impl State {
    /// Takes over waiting entries, in order, as far as the limit allows. An entry larger than
    /// the whole limit is taken alone.
    fn own_up_to(&mut self, limit: Limit) {
        while let Some(next) = self.entries.get(self.owned) {
            let fits = self.owned < limit.entries && self.owned_bytes + next.bytes <= limit.bytes;
            if !fits && self.owned > 0 {
                break;
            }
            self.owned_bytes += next.bytes;
            self.owned += 1;
        }
    }
}

/// The future of one commit.
pub(crate) struct Commit {
    outcome: oneshot::Receiver<Outcome>,
    /// Set when the entry was past the limit at first: the queue, and the place in it.
    waiting: Option<(Arc<Queue>, u64)>,
}

impl Future for Commit {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = std::task::ready!(Pin::new(&mut self.outcome).poll(cx));
        self.waiting = None;
        // The sender is dropped unanswered only when the committer is gone.
        Poll::Ready(outcome.unwrap_or(Err(StorageError::Closed)))
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        if let Some((queue, place)) = self.waiting.take() {
            queue.withdraw(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use waystation_core::storage::Space;

    use super::*;

    const SPACE: Space = Space("rows");

    fn queue(entries: usize, bytes: usize) -> Arc<Queue> {
        Arc::new(Queue::new(Limit { entries, bytes }, Limit { entries: 3, bytes: 1000 }))
    }

    fn push(queue: &Arc<Queue>, name: &'static str, bytes: usize) -> Commit {
        queue.push(Batch::new().put(SPACE, name, Bytes::new()), bytes).ok().unwrap()
    }

    fn group(queue: &Queue) -> Vec<Entry> {
        match queue.next() {
            Work::Group(group) => group,
            Work::Close => panic!("closed"),
        }
    }

    fn names(group: &[Entry]) -> Vec<String> {
        let name = |entry: &Entry| match &entry.batch.ops[0] {
            waystation_core::storage::Op::Put { key, .. } => String::from_utf8(key.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        group.iter().map(name).collect()
    }

    #[test]
    fn groups_are_in_order_and_limited_in_number_and_bytes() {
        let queue = queue(100, 100_000);
        let sizes = [("a", 1), ("b", 1), ("c", 1), ("d", 600), ("e", 400), ("f", 1), ("g", 5000), ("h", 1)];
        let _commits: Vec<_> = sizes.map(|(name, bytes)| push(&queue, name, bytes)).into();
        assert_eq!(names(&group(&queue)), ["a", "b", "c"]);
        assert_eq!(names(&group(&queue)), ["d", "e"]);
        assert_eq!(names(&group(&queue)), ["f"]);
        assert_eq!(names(&group(&queue)), ["g"], "one that is larger than a group goes alone");
        assert_eq!(names(&group(&queue)), ["h"]);
    }

    #[test]
    fn past_the_limit_entries_wait_in_their_place() {
        let queue = queue(2, 100);
        let _a = push(&queue, "a", 90);
        let _b = push(&queue, "b", 20);
        // Would fit, but must not overtake.
        let _c = push(&queue, "c", 1);
        assert_eq!(queue.lengths(), (1, 3));
        assert_eq!(names(&group(&queue)), ["a", "b", "c"]);
        assert_eq!(queue.lengths(), (0, 0));
        let _large = push(&queue, "large", 5000);
        assert_eq!(queue.lengths(), (1, 1), "one that is larger than the limit is taken alone");
    }

    #[test]
    fn a_dropped_future_withdraws_only_an_entry_past_the_limit() {
        let queue = queue(2, 100);
        drop(push(&queue, "a", 1));
        let b = push(&queue, "b", 1);
        for _ in 0..1000 {
            drop(push(&queue, "never", 1));
        }
        assert_eq!(queue.lengths(), (2, 2), "what nobody waits for would grow without bound");
        let c = push(&queue, "c", 1);
        let d = push(&queue, "d", 1);
        let _e = push(&queue, "e", 1);
        drop(d);
        assert_eq!(names(&group(&queue)), ["a", "b", "c"]);
        // These left already, so there is nothing to withdraw.
        drop((b, c));
        assert_eq!(names(&group(&queue)), ["e"]);
    }

    #[test]
    fn an_entry_that_the_store_took_over_is_not_withdrawn() {
        let queue = Arc::new(Queue::new(Limit { entries: 1, bytes: 100 }, Limit { entries: 1, bytes: 100 }));
        let _a = push(&queue, "a", 1);
        let b = push(&queue, "b", 1);
        assert_eq!(names(&group(&queue)), ["a"]);
        assert_eq!(queue.lengths(), (1, 1));
        drop(b);
        assert_eq!(names(&group(&queue)), ["b"]);
    }

    #[test]
    fn a_failure_answers_everything_and_refuses_the_rest() {
        let queue = queue(1, 100);
        let commits = [push(&queue, "a", 1), push(&queue, "b", 1)];
        queue.fail();
        for commit in commits {
            assert!(matches!(commit.now_or_never(), Some(Err(StorageError::Closed))));
        }
        assert!(matches!(queue.push(Batch::new(), 1), Err(StorageError::Closed)));
        queue.close();
        assert!(matches!(queue.next(), Work::Close));
    }

    #[test]
    fn closing_hands_out_what_is_queued_first() {
        let queue = queue(1, 100);
        let commits = [push(&queue, "a", 1), push(&queue, "b", 1)];
        queue.close();
        assert!(matches!(queue.push(Batch::new(), 1), Err(StorageError::Closed)));
        assert_eq!(names(&group(&queue)), ["a", "b"]);
        assert!(matches!(queue.next(), Work::Close));
        // The committer is gone without an answer.
        for commit in commits {
            assert!(matches!(commit.now_or_never(), Some(Err(StorageError::Closed))));
        }
    }

    #[test]
    fn the_committer_wakes_for_a_push_and_for_the_end() {
        let queue = queue(10, 100);
        let committer = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                let mut served = 0;
                while let Work::Group(group) = queue.next() {
                    for entry in group {
                        served += 1;
                        entry.reply.send(Ok(())).unwrap();
                    }
                }
                served
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            runtime.block_on(push(&queue, "a", 1)).unwrap();
        }
        queue.close();
        assert_eq!(committer.join().unwrap(), 100);
    }
}
