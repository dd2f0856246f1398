//! The bounded queue between a store's callers and its committer thread.
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

use crate::Failure;

/// A job with the way back to its caller: `J` is what to commit, which resolves to a `T` or an `E`.
pub struct Entry<J, T, E> {
    place: u64,
    /// What it weighs, as its caller said.
    pub bytes: usize,
    /// What to commit.
    pub job: J,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<J, T, E> Entry<J, T, E> {
    /// Lets the caller's future resolve. An entry that is dropped instead resolves to
    /// [`Failure::closed`].
    pub fn answer(self, outcome: Result<T, E>) {
        // A caller that no longer waits needs no answer.
        let _ = self.reply.send(outcome);
    }
}

/// A limit in number and bytes, of which the first that is reached counts.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// So many entries.
    pub entries: usize,
    /// So many bytes in all of them, as their callers weigh them.
    pub bytes: usize,
}

/// What the committer has to do next.
pub enum Work<J, T, E> {
    /// Commit these, in order, and answer each. Never empty.
    Group(Vec<Entry<J, T, E>>),
    /// Everything was committed and nothing more will come: close.
    Close,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// A write failed: entries are refused, but the committer still waits to be closed.
    Failed,
    /// No more entries; those in the queue are still committed.
    Closing,
}

struct State<J, T, E> {
    phase: Phase,
    entries: VecDeque<Entry<J, T, E>>,
    /// How many entries, from the front, the store owns, and their weight.
    owned: usize,
    owned_bytes: usize,
    next_place: u64,
    /// The committer waits for work.
    idle: bool,
}

/// What waits to be committed, in the order in which it came. Shared by the callers and the one
/// committer thread.
pub struct Inbox<J, T, E> {
    state: Mutex<State<J, T, E>>,
    work: Condvar,
    limit: Limit,
    group: Limit,
}

impl<J, T, E> Inbox<J, T, E> {
    /// An inbox that owns up to `limit` and hands out groups of up to `group`. An entry that is
    /// larger than either is taken alone, so none is too large.
    pub fn new(limit: Limit, group: Limit) -> Self {
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

    fn lock(&self) -> MutexGuard<'_, State<J, T, E>> {
        // The critical sections do not panic half-way, so the state is whole in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks until there is work. Called by the committer's thread alone.
    pub fn next(&self) -> Work<J, T, E> {
        let mut state = self.lock();
        while state.entries.is_empty() {
            if state.phase == Phase::Closing {
                return Work::Close;
            }
            state.idle = true;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        let mut group = Vec::with_capacity(state.entries.len().min(self.group.entries));
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

    /// Takes no more entries; the committer ends after those that are queued.
    pub fn close(&self) {
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

impl<J, T, E: Failure> Inbox<J, T, E> {
    /// Queues a job that weighs `bytes`. It has its place from now on, not from when the future is
    /// first polled.
    ///
    /// # Errors
    /// [`Failure::closed`] after a failure or once the store is closing.
    pub fn push(self: &Arc<Self>, job: J, bytes: usize) -> Result<Commit<J, T, E>, E> {
        let (reply, outcome) = oneshot::channel();
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(E::closed());
        }
        let place = state.next_place;
        state.next_place += 1;
        state.entries.push_back(Entry { place, bytes, job, reply });
        state.own_up_to(self.limit);
        let owned = state.owned == state.entries.len();
        let wake = std::mem::take(&mut state.idle);
        drop(state);
        if wake {
            self.work.notify_one();
        }
        let waiting = (!owned).then(|| Waiting { inbox: Arc::clone(self), place });
        Ok(Commit { outcome, waiting })
    }

    /// Refuses everything from now on: what is queued resolves to [`Failure::closed`]. The committer
    /// still waits to be closed.
    pub fn fail(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Failed;
        }
        let dropped = std::mem::take(&mut state.entries);
        state.owned = 0;
        state.owned_bytes = 0;
        drop(state);
        for entry in dropped {
            entry.answer(Err(E::closed()));
        }
    }
}

impl<J, T, E> State<J, T, E> {
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

/// The future of one entry. Dropping it leaves open whether the entry is committed: only one that
/// the store does not own yet is withdrawn.
pub struct Commit<J, T, E> {
    outcome: oneshot::Receiver<Result<T, E>>,
    /// Set when the entry was past the limit at first.
    waiting: Option<Waiting<J, T, E>>,
}

/// Where an entry is that may be withdrawn.
struct Waiting<J, T, E> {
    inbox: Arc<Inbox<J, T, E>>,
    place: u64,
}

impl<J, T, E: Failure> Future for Commit<J, T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        let outcome = std::task::ready!(Pin::new(&mut self.outcome).poll(cx));
        self.waiting = None;
        // The sender is dropped unanswered only when the committer is gone.
        Poll::Ready(outcome.unwrap_or_else(|_| Err(E::closed())))
    }
}

impl<J, T, E> Drop for Commit<J, T, E> {
    fn drop(&mut self) {
        if let Some(Waiting { inbox, place }) = self.waiting.take() {
            inbox.withdraw(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use waystation_core::storage::StorageError;

    use super::*;
    use crate::block_on;

    type Inbox = super::Inbox<&'static str, (), StorageError>;
    type Entry = super::Entry<&'static str, (), StorageError>;
    type Commit = super::Commit<&'static str, (), StorageError>;

    fn inbox(entries: usize, bytes: usize) -> Arc<Inbox> {
        Arc::new(Inbox::new(Limit { entries, bytes }, Limit { entries: 3, bytes: 1000 }))
    }

    fn push(inbox: &Arc<Inbox>, name: &'static str, bytes: usize) -> Commit {
        inbox.push(name, bytes).ok().unwrap()
    }

    fn group(inbox: &Inbox) -> Vec<Entry> {
        match inbox.next() {
            Work::Group(group) => group,
            Work::Close => panic!("closed"),
        }
    }

    fn names(group: &[Entry]) -> Vec<&'static str> {
        group.iter().map(|entry| entry.job).collect()
    }

    #[test]
    fn groups_are_in_order_and_limited_in_number_and_bytes() {
        let inbox = inbox(100, 100_000);
        let sizes = [("a", 1), ("b", 1), ("c", 1), ("d", 600), ("e", 400), ("f", 1), ("g", 5000), ("h", 1)];
        let _commits: Vec<_> = sizes.map(|(name, bytes)| push(&inbox, name, bytes)).into();
        assert_eq!(names(&group(&inbox)), ["a", "b", "c"]);
        assert_eq!(names(&group(&inbox)), ["d", "e"]);
        assert_eq!(names(&group(&inbox)), ["f"]);
        assert_eq!(names(&group(&inbox)), ["g"], "one that is larger than a group goes alone");
        assert_eq!(names(&group(&inbox)), ["h"]);
    }

    #[test]
    fn past_the_limit_entries_wait_in_their_place() {
        let inbox = inbox(2, 100);
        let _a = push(&inbox, "a", 90);
        let _b = push(&inbox, "b", 20);
        // Would fit, but must not overtake.
        let _c = push(&inbox, "c", 1);
        assert_eq!(inbox.lengths(), (1, 3));
        assert_eq!(names(&group(&inbox)), ["a", "b", "c"]);
        assert_eq!(inbox.lengths(), (0, 0));
        let _large = push(&inbox, "large", 5000);
        assert_eq!(inbox.lengths(), (1, 1), "one that is larger than the limit is taken alone");
    }

    #[test]
    fn a_dropped_future_withdraws_only_an_entry_past_the_limit() {
        let inbox = inbox(2, 100);
        drop(push(&inbox, "a", 1));
        let b = push(&inbox, "b", 1);
        for _ in 0..1000 {
            drop(push(&inbox, "never", 1));
        }
        assert_eq!(inbox.lengths(), (2, 2), "what nobody waits for would grow without bound");
        let c = push(&inbox, "c", 1);
        let d = push(&inbox, "d", 1);
        let _e = push(&inbox, "e", 1);
        drop(d);
        assert_eq!(names(&group(&inbox)), ["a", "b", "c"]);
        // These left already, so there is nothing to withdraw.
        drop((b, c));
        assert_eq!(names(&group(&inbox)), ["e"]);
    }

    #[test]
    fn an_entry_that_the_store_took_over_is_not_withdrawn() {
        let inbox = Arc::new(Inbox::new(Limit { entries: 1, bytes: 100 }, Limit { entries: 1, bytes: 100 }));
        let _a = push(&inbox, "a", 1);
        let b = push(&inbox, "b", 1);
        assert_eq!(names(&group(&inbox)), ["a"]);
        assert_eq!(inbox.lengths(), (1, 1));
        drop(b);
        assert_eq!(names(&group(&inbox)), ["b"]);
    }

    #[test]
    fn a_failure_answers_everything_and_refuses_the_rest() {
        let inbox = inbox(1, 100);
        let commits = [push(&inbox, "a", 1), push(&inbox, "b", 1)];
        inbox.fail();
        for commit in commits {
            assert!(matches!(commit.now_or_never(), Some(Err(StorageError::Closed))));
        }
        assert!(matches!(inbox.push("late", 1), Err(StorageError::Closed)));
        inbox.close();
        assert!(matches!(inbox.next(), Work::Close));
    }

    #[test]
    fn closing_hands_out_what_is_queued_first() {
        let inbox = inbox(1, 100);
        let commits = [push(&inbox, "a", 1), push(&inbox, "b", 1)];
        inbox.close();
        assert!(matches!(inbox.push("late", 1), Err(StorageError::Closed)));
        assert_eq!(names(&group(&inbox)), ["a", "b"]);
        assert!(matches!(inbox.next(), Work::Close));
        // The committer is gone without an answer.
        for commit in commits {
            assert!(matches!(commit.now_or_never(), Some(Err(StorageError::Closed))));
        }
    }

    #[test]
    fn the_committer_wakes_for_a_push_and_for_the_end() {
        let inbox = inbox(10, 100);
        let committer = std::thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || {
                let mut served = 0;
                while let Work::Group(group) = inbox.next() {
                    for entry in group {
                        served += 1;
                        entry.answer(Ok(()));
                    }
                }
                served
            }
        });
        for _ in 0..100 {
            block_on(push(&inbox, "a", 1)).unwrap();
        }
        inbox.close();
        assert_eq!(committer.join().unwrap(), 100);
    }
}
