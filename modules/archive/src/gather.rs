//! Messages that wait in memory to be committed together, as one chunk.
//!
//! What must hold: what was gathered goes to the store when it fills a chunk (then it may wait a
//! moment for others', see `outbox.rs`), when `Config::gather` has passed since the first of it, when
//! somebody needs the store to show it, when the runtime ends that the clock runs on, or when all
//! accounts together have gathered [`MAX_GATHERED`] bytes; until then nobody is told that it is
//! there; what is gathered holds copies, never the buffers that the messages came in; it is told of
//! a failure of what it was to follow.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use waystation_core::archive::Archived;
use waystation_core::datetime::Timestamp;
use waystation_core::storage::{Batch, BoxFuture, StorageError};

use crate::chunk::{Builder, MAX_BYTES};
use crate::outbox::{Commit, TOGETHER};
use crate::row::{self, RowRef};
use crate::state::{STATES, State};
use crate::store::{Account, Archives, Pending, Slot, Waits, failed};

/// Bytes that all accounts together may gather.
pub(crate) const MAX_GATHERED: usize = 16 * 1024 * 1024;

/// What one account has gathered.
pub(crate) struct Gathered {
    rows: Builder,
    /// Resolves with the commit.
    pending: Pending,
    commit: Commit,
    charge: Charge,
    /// Tells it from what the account gathers later.
    number: u64,
}

/// The bytes that count towards the bound.
struct Charge {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    fn set(&mut self, bytes: usize) {
        if bytes == self.bytes {
            return;
        }
        self.total.fetch_add(bytes, Ordering::Relaxed);
        self.total.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Gathered {
    /// Tells those that wait that it will not be committed.
    pub(crate) fn fail(self, error: StorageError) {
        let _ = self.commit.send(std::future::ready(Err(error)).boxed());
    }
}

/// Who gathers, and until when.
#[derive(Default)]
pub(crate) struct Clock {
    due: Mutex<Due>,
    total: Arc<AtomicUsize>,
    /// Nothing is to wait for more any longer.
    stopped: AtomicBool,
}

#[derive(Default)]
struct Due {
    /// In the order of time. Some are committed already.
    queue: VecDeque<(Instant, Arc<Account>, u64)>,
    numbers: u64,
    ticking: bool,
}

impl Clock {
    fn lock(&self) -> MutexGuard<'_, Due> {
        // No change of it can be left half done by a panic.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when nothing is to wait for more any longer.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Bytes that are gathered now.
    pub(crate) fn gathered(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }
}

impl Archives {
    /// Takes up messages behind all others; what is to be waited for, in its order. Messages are
    /// in the order of their positions, and what is known of the account is in the slot.
    pub(crate) fn gather(
        self: &Arc<Self>,
        account: &Arc<Account>,
        slot: &mut Slot,
        messages: &[Archived],
    ) -> Result<Waits, StorageError> {
        let mut pending = Waits::new();
        for message in messages {
            let known = slot.known.as_mut().ok_or(StorageError::Closed)?;
            let position = message.id.0;
            if position <= known.state.newest {
                continue;
            }
            let other = row::counterpart(&account.jid, &message.stanza);
            let row = RowRef::new(other, Timestamp::from_system_time(message.at), &message.stanza);
            let is_wanted = known.prefs.want(other, message.contact);
            if is_wanted {
                known.state.append(position, row.at.unix_millis(), row.stanza_len());
            } else {
                known.state.newest = position;
            }
            let gathered = match &mut slot.gathered {
                Some(gathered) => gathered,
                None => slot.gathered.insert(self.begin(account, slot.generation, slot.room)),
            };
            if is_wanted {
                gathered.rows.push(position, row);
            }
            if gathered.rows.is_full() {
                pending.push(gathered.pending.clone());
                self.seal(account, slot);
            }
        }
        match &mut slot.gathered {
            Some(gathered) => {
                gathered.charge.set(gathered.rows.size());
                pending.push(gathered.pending.clone());
                if self.clock.is_stopped() {
                    self.flush(account, slot);
                }
            }
            // All was there already, perhaps only on its way.
            None if pending.is_empty() => pending.extend(slot.last.clone()),
            None => {}
        }
        Ok(pending)
    }

    fn begin(self: &Arc<Self>, account: &Arc<Account>, generation: u64, room: usize) -> Gathered {
        let (commit, committed) = oneshot::channel::<BoxFuture<'static, _>>();
        let weak = Arc::downgrade(account);
        let pending = async move {
            let outcome = match committed.await {
                Ok(commit) => commit.await,
                Err(_) => Err(StorageError::Closed),
            };
            outcome.map_err(|error| failed(&weak, generation, error))
        };
        let mut due = self.clock.lock();
        due.numbers += 1;
        let number = due.numbers;
        due.queue.push_back((Instant::now() + self.config.gather, account.clone(), number));
        if !std::mem::replace(&mut due.ticking, true) {
            tokio::spawn(tick(Ticking { archives: self.clone(), done: false }));
        }
        let charge = Charge { total: self.clock.total.clone(), bytes: 0 };
        let rows = Builder::with_room(room.min(MAX_BYTES));
        Gathered { rows, pending: pending.boxed().shared(), commit, charge, number }
    }

    /// Queues the commit of what an account has gathered, and of what waits for others. Its driver
    /// must not be in the middle of a change, which is so as long as drivers begin each change with
    /// this.
    pub(crate) fn flush(&self, account: &Account, slot: &mut Slot) {
        self.seal(account, slot);
        self.outbox.send(&*self.storage);
    }

    /// Gathers no more into what an account has gathered: it goes to the store with others'.
    fn seal(&self, account: &Account, slot: &mut Slot) {
        let Some(gathered) = slot.gathered.take() else { return };
        slot.room = if gathered.rows.is_full() { gathered.rows.len() } else { 0 };
        // Whoever forgets what is known takes away what was gathered as well.
        let Some(known) = &mut slot.known else { return gathered.fail(StorageError::Closed) };
        let key = State::key(&account.jid);
        let stored = known.state.encode();
        let batch = Batch::new().expect(STATES, key.clone(), known.stored.replace(stored.clone()));
        let batch = gathered.rows.write(&account.jid, batch).put(STATES, key, stored);
        slot.last = Some(gathered.pending);
        self.outbox.push(batch, gathered.commit);
    }

    /// Commits what was gathered and, from now on, each call at once. No slot may be locked.
    pub(crate) fn stop_gathering(&self) {
        self.clock.stopped.store(true, Ordering::Release);
        self.flush_due(None);
    }

    /// What has to be seen to after messages were gathered: that full chunks are on their way, and
    /// that the rest stays within its bound. No slot may be locked.
    pub(crate) fn gathered(self: &Arc<Self>) {
        self.send_soon();
        if self.clock.gathered() >= MAX_GATHERED {
            self.flush_due(None);
        }
    }

    /// Commits what was to be committed until then, or all. No slot may be locked.
    fn flush_due(&self, until: Option<Instant>) {
        loop {
            let next = {
                let mut due = self.clock.lock();
                let is_due = due.queue.front().is_some_and(|next| until.is_none_or(|until| next.0 <= until));
                is_due.then(|| due.queue.pop_front()).flatten()
            };
            let Some((_, account, number)) = next else { break };
            let mut slot = account.lock();
            if slot.gathered.as_ref().is_some_and(|gathered| gathered.number == number) {
                self.seal(&account, &mut slot);
            }
        }
        self.outbox.send(&*self.storage);
    }
}

/// Ends the clock.
struct Ticking {
    archives: Arc<Archives>,
    done: bool,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        if !self.done {
            // The runtime ends. What others gather from now on starts another clock.
            self.archives.clock.lock().ticking = false;
            self.archives.flush_due(None);
        }
    }
}

/// Commits what is due, as long as anybody gathers.
///
/// What is due so soon is committed now: one wake-up and one flush of the store for many accounts.
async fn tick(mut ticking: Ticking) {
    let archives = ticking.archives.clone();
    loop {
        let next = {
            let mut due = archives.clock.lock();
            match due.queue.front() {
                Some((next, ..)) => *next,
                None => {
                    // The room that a burst needed is not kept.
                    due.queue = VecDeque::new();
                    due.ticking = false;
                    ticking.done = true;
                    return;
                }
            }
        };
        tokio::time::sleep_until(next).await;
        archives.flush_due(Some(Instant::now() + TOGETHER));
    }
}
