//! The bounded queue between the callers of the log and its committer thread.
//!
//! What must hold: entries leave in the order in which `push` was called; a caller is never
//! blocked. The log owns the entries up to a limit in number and bytes. Past it, an entry still
//! has its place, but lives only as long as its future: a caller that drops the future gives the
//! memory back, so what waits is bounded by what callers themselves wait for.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use waystation_core::queue::{Batch, LeaseId, QueueError, QueueName, RecordId, Verdict};

/// What an entry resolves to: the ids of its records.
pub(crate) type Outcome = Result<Vec<RecordId>, QueueError>;

/// What a caller wants to have committed.
pub(crate) enum Job {
    /// See `QueueBackend::commit`.
    Batch(Batch),
    /// Counts an attempt on each of these records, which were just leased.
    Leased { queue: QueueName, ids: Vec<u64> },
    /// See `QueueBackend::settle`.
    Settle { lease: LeaseId, verdict: Verdict },
    /// See `QueueBackend::purge`.
    Purge { queue: QueueName },
}

/// A job with the way back to its caller.
pub(crate) struct Entry {
    place: u64,
    pub(crate) bytes: usize,
    pub(crate) job: Job,
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
    /// Commit these, in order.
    Group(Vec<Entry>),
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

struct State {
    phase: Phase,
    entries: VecDeque<Entry>,
    /// How many entries, from the front, the log owns, and their weight.
    owned: usize,
    owned_bytes: usize,
    next_place: u64,
    /// The committer waits for work.
    idle: bool,
}

/// See the module's header.
pub(crate) struct Inbox {
    state: Mutex<State>,
    work: Condvar,
    limit: Limit,
    group: Limit,
}

impl Inbox {
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

    /// Queues a job that weighs `bytes`.
    ///
    /// # Errors
    /// [`QueueError::Closed`] after a failure or once the log is closing.
    pub(crate) fn push(self: &Arc<Self>, job: Job, bytes: usize) -> Result<Commit, QueueError> {
        let (reply, outcome) = oneshot::channel();
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(QueueError::Closed);
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
            let _ = entry.reply.send(Err(QueueError::Closed));
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

/// The future of one entry.
pub(crate) struct Commit {
    outcome: oneshot::Receiver<Outcome>,
    /// Set when the entry was past the limit at first: the queue, and the place in it.
    waiting: Option<(Arc<Inbox>, u64)>,
}

impl Future for Commit {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = std::task::ready!(Pin::new(&mut self.outcome).poll(cx));
        self.waiting = None;
        // The sender is dropped unanswered only when the committer is gone.
        Poll::Ready(outcome.unwrap_or(Err(QueueError::Closed)))
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        if let Some((inbox, place)) = self.waiting.take() {
            inbox.withdraw(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use waystation_core::queue::Append;

    use super::*;

    fn job(n: usize) -> Job {
        let payload = Bytes::from(n.to_string());
        let record =
            Append { queues: smallvec::smallvec!["q".into()], payload: smallvec::smallvec![payload] };
        Job::Batch(Batch { records: vec![record], ..Batch::default() })
    }

    fn taken(inbox: &Inbox) -> Vec<String> {
        let Work::Group(group) = inbox.next() else { return Vec::new() };
        let text = |entry: &Entry| match &entry.job {
            Job::Batch(batch) => String::from_utf8_lossy(&batch.records[0].payload[0]).into_owned(),
            _ => String::new(),
        };
        group.iter().map(text).collect()
    }

    #[test]
    fn groups_keep_the_order_and_what_waits_past_the_limit_can_be_withdrawn() {
        let limit = Limit { entries: 2, bytes: 100 };
        let inbox = Arc::new(Inbox::new(limit, Limit { entries: 3, bytes: 100 }));
        let mut waiting: Vec<_> = (0..6).map(|n| inbox.push(job(n), 10).unwrap()).collect();
        // The third entry is past the limit of two, the first two are owned by the log.
        drop(waiting.remove(2));
        drop(waiting.remove(0));
        assert_eq!(taken(&inbox), ["0", "1", "3"]);
        assert_eq!(taken(&inbox), ["4", "5"]);
        inbox.close();
        assert!(matches!(inbox.next(), Work::Close));
        assert!(matches!(inbox.push(job(9), 1), Err(QueueError::Closed)));
    }

    #[test]
    fn an_entry_larger_than_every_limit_goes_alone_and_failure_answers_what_waits() {
        let limit = Limit { entries: 10, bytes: 10 };
        let inbox = Arc::new(Inbox::new(limit, limit));
        let _first = inbox.push(job(0), 50).unwrap();
        let second = inbox.push(job(1), 5).unwrap();
        assert_eq!(taken(&inbox), ["0"]);
        inbox.fail();
        let answer = futures_util::FutureExt::now_or_never(second).unwrap();
        assert!(matches!(answer, Err(QueueError::Closed)));
        assert!(inbox.push(job(2), 1).is_err());
    }
}
