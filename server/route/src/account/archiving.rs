//! Handing the account's messages to its archive.
//!
//! What must hold: a record stays in the queue until the archive has it; the archive gets messages
//! in the order of the log, so that what it says it has up to is what it has; after a failure
//! nothing is handed over before what failed, which is read from the queue again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use waystation_core::archive::Archived;
use waystation_core::queue::{QueueError, Record, RecordId};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Stanza, storable};
use waystation_runtime::wheel;

use super::{AccountRoute, State};

/// How long after a failure it is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Records read at once for that, and bytes of them.
const PAGE: usize = 256;
const PAGE_BYTES: usize = 1024 * 1024;

/// Messages that a turn has room for at first, about what a busy account is given in one.
const TURN: usize = 16;

/// What is on its way to the archive.
#[derive(Default)]
pub(super) struct Archiving {
    /// Handed over at the end of the turn.
    next: Vec<Archived>,
    /// In their order, in which they become durable: only the first is waited for.
    under_way: VecDeque<UnderWay>,
    /// The records that are under way, in the same order.
    ids: VecDeque<RecordId>,
    bell: Option<Bell>,
    failed: Option<Box<Failed>>,
}

/// Records that could not be added, and those that came behind them.
#[derive(Default)]
struct Failed {
    /// By number only.
    ids: BTreeSet<RecordId>,
    again: Again,
}

/// What becomes of those that failed.
#[derive(Default)]
enum Again {
    #[default]
    Now,
    /// When they are tried again.
    At(Instant),
    Reading(BoxFuture<'static, Result<Vec<Record>, QueueError>>),
}

/// Tells whether there is news of what is waited for. Many turns pass until then, and looking means
/// a lock and a few cold lines of memory, which was a fiftieth of what a message cost the server.
struct Bell {
    shared: Arc<Ring>,
    /// What the archive wakes: `shared`.
    waker: Waker,
    /// The last known waker of the route.
    route: Waker,
}

struct Ring {
    rung: AtomicBool,
    route: Mutex<Waker>,
}

impl Ring {
    fn route(&self) -> MutexGuard<'_, Waker> {
        // It is replaced as a whole.
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.route().wake_by_ref();
    }
}

impl Bell {
    fn new(route: &Waker) -> Self {
        let shared = Arc::new(Ring { rung: AtomicBool::new(false), route: Mutex::new(route.clone()) });
        Self { waker: shared.clone().into(), shared, route: route.clone() }
    }

    /// True when it rang since the last time. From now on it wakes this route.
    fn has_rung(&mut self, route: &Waker) -> bool {
        if !self.route.will_wake(route) {
            self.route.clone_from(route);
            self.shared.route().clone_from(route);
        }
        // Most often it did not, which is found out without writing.
        self.shared.rung.load(Ordering::Acquire) && self.shared.rung.swap(false, Ordering::AcqRel)
    }
}

/// Records that were handed to the archive together: as many of `ids`.
struct UnderWay {
    /// It was asked, and rings when there is news.
    asked: bool,
    count: usize,
    add: BoxFuture<'static, Result<(), StorageError>>,
}

impl Archiving {
    pub(super) fn is_idle(&self) -> bool {
        self.next.is_empty() && self.under_way.is_empty() && self.failed.is_none()
    }
}

impl AccountRoute {
    /// A message that belongs into the archive, if there is one.
    pub(super) fn archive(&mut self, id: RecordId, stanza: &Stanza, at: SystemTime) {
        if self.router.archive.is_none() || !storable::storable(stanza) {
            return;
        }
        let Some(message) = self.archived(id, stanza, at) else { return };
        self.records.is_archiving(id, stanza.len());
        match &mut self.archiving.failed {
            None => {
                let next = &mut self.archiving.next;
                if next.is_empty() {
                    next.reserve(TURN);
                }
                next.push(message);
            }
            Some(failed) => {
                failed.ids.insert(id);
            }
        }
    }

    fn archived(&self, id: RecordId, stanza: &Stanza, at: SystemTime) -> Option<Archived> {
        let State::Live(presence) = &self.state else { return None };
        let other =
            if stanza.to().is_some_and(|to| to.bare_eq(&self.account)) { stanza.from() } else { stanza.to() };
        let contact = other.is_some_and(|other| presence.is_contact(other));
        Some(Archived { id, at, stanza: stanza.clone(), contact })
    }

    /// Hands over what has gathered; true when there was something.
    pub(super) fn flush_archive(&mut self) -> bool {
        let messages = std::mem::take(&mut self.archiving.next);
        !messages.is_empty() && self.add_to_archive(messages)
    }

    fn add_to_archive(&mut self, messages: Vec<Archived>) -> bool {
        let Some(archive) = &self.router.archive else { return false };
        let count = messages.len();
        self.archiving.ids.extend(messages.iter().map(|message| message.id));
        let add = archive.add(self.account.clone(), messages);
        self.archiving.under_way.push_back(UnderWay { asked: false, count, add });
        true
    }

    /// True when something was archived, or failed.
    pub(super) fn poll_archive(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Some(first) = self.archiving.under_way.front_mut() {
            let bell = self.archiving.bell.get_or_insert_with(|| Bell::new(cx.waker()));
            if !bell.has_rung(cx.waker()) && first.asked {
                break;
            }
            first.asked = true;
            let Poll::Ready(result) = first.add.as_mut().poll(&mut Context::from_waker(&bell.waker)) else {
                break;
            };
            let Some(UnderWay { count, .. }) = self.archiving.under_way.pop_front() else { break };
            progress = true;
            match result {
                Ok(()) => {
                    for _ in 0..count {
                        let Some(id) = self.archiving.ids.pop_front() else { break };
                        self.has_archived(id);
                    }
                }
                Err(error) => {
                    tracing::error!(account = %self.account, %error, "messages could not be archived yet");
                    let failed = self.archiving.failed.get_or_insert_default();
                    let ids = &mut self.archiving.ids;
                    failed.ids.extend(ids.drain(..count.min(ids.len())));
                    failed.ids.extend(self.archiving.next.drain(..).map(|message| message.id));
                    failed.again = Again::At(Instant::now() + PAUSE);
                }
            }
        }
        if self.archiving.is_idle() {
            // Room that a burst needed is not kept.
            self.archiving = Archiving::default();
        }
        progress | self.poll_again(cx)
    }

    fn has_archived(&mut self, id: RecordId) {
        self.records.has_archived(id);
        self.finish(id);
    }

    /// Hands over again what failed, a page at a time; true when something was done.
    fn poll_again(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(state) = self.archiving.failed.as_mut().filter(|_| self.archiving.under_way.is_empty())
        else {
            return false;
        };
        let Some(first) = state.ids.first().copied() else {
            self.archiving.failed = None;
            return true;
        };
        match &mut state.again {
            Again::At(then) => {
                let left = then.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    wheel::wake_after(left, cx.waker().clone());
                    return false;
                }
                state.again = Again::Now;
            }
            Again::Now => {
                let backend = self.router.intake.backend();
                let after = Some(RecordId(first.0 - 1));
                state.again = Again::Reading(backend.read(self.queue.clone(), after, PAGE, PAGE_BYTES));
            }
            Again::Reading(reading) => match reading.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(page)) => {
                    state.again = Again::Now;
                    self.archive_again(page);
                }
                Poll::Ready(Err(error)) => {
                    tracing::error!(account = %self.account, %error, "messages could not be read to be archived");
                    state.again = Again::At(Instant::now() + PAUSE);
                }
            },
        }
        true
    }

    fn archive_again(&mut self, page: Vec<Record>) {
        let last = page.last().map(|record| record.id);
        let mut messages = Vec::with_capacity(page.len());
        for record in page {
            let failed = self.archiving.failed.as_mut();
            if !failed.is_some_and(|failed| failed.ids.remove(&record.id)) {
                continue;
            }
            // It was a stanza when it was handed over first.
            let stanza = Stanza::parse(&record.payload).ok();
            match stanza.and_then(|stanza| self.archived(record.id, &stanza, record.since)) {
                Some(message) => messages.push(message),
                // The account is gone, and its archive with it.
                None => self.has_archived(record.id),
            }
        }
        // What the queue does not have any more was removed from it, by the account's end.
        if let Some(failed) = &mut self.archiving.failed {
            let rest = last.map(|last| failed.ids.split_off(&RecordId(last.0 + 1)));
            for id in std::mem::replace(&mut failed.ids, rest.unwrap_or_default()) {
                self.has_archived(id);
            }
        }
        if !messages.is_empty() {
            self.add_to_archive(messages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Count(AtomicBool);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_bell_rings_once_and_wakes_whoever_asked_last() {
        let [first, second] = [(); 2].map(|()| Arc::new(Count::default()));
        let wakers = [&first, &second].map(|count| Waker::from(count.clone()));
        let woken = || [&first, &second].map(|count| count.0.swap(false, Ordering::SeqCst));
        let mut bell = Bell::new(&wakers[0]);
        assert!(!bell.has_rung(&wakers[0]));
        bell.waker.wake_by_ref();
        assert_eq!((woken(), bell.has_rung(&wakers[0])), ([true, false], true));
        assert!(!bell.has_rung(&wakers[1]), "twice");
        bell.waker.wake_by_ref();
        assert_eq!((woken(), bell.has_rung(&wakers[1])), ([false, true], true));
    }
}
