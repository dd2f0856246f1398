//! The way into the log: what must be durable before anyone acts on it.
//!
//! What must hold: items take effect in the order in which they were offered, each after the
//! commit that it was part of; so the order of records is the order in which every route sees
//! them, and what only passes through keeps its place between them. A receipt is accepted only
//! after the commit has returned. At most [`MAX_BYTES`] wait: then senders are read no further.
//! When the log fails, nothing is accepted any more and the server is told to stop: the records
//! are read back when it starts again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use waystation_core::queue::{
    Append, Batch, MAX_BATCH_BYTES, Mark, Payload, QueueBackend, QueueError, QueueName, RecordId, Settle,
    Verdict,
};
use waystation_core::storage::StorageError;
use waystation_core::{Jid, Stanza};
use waystation_runtime::Weigh;

use crate::commits::{CommitTimes, RecentCommits};
use crate::directory::AccountOutlet;
use crate::domain::{Domain, Reservation};
use crate::mail::AccountMail;
use crate::pace::{Pace, Pause};
use crate::receipt::Receipt;
use crate::router::Router;

/// Most bytes that may wait for a commit (DELIVERY 4: intake log not committed).
pub const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Most items of one commit, each record that is done with counted as one.
const MAX_ITEMS: usize = 4_096;

/// How long acknowledgements wait when there was no room even for them.
const RETRY: Duration = Duration::from_secs(1);

/// How long records that are done with wait for a commit that somebody needs.
const LAZY: Duration = Duration::from_millis(100);

/// The queue of an account.
pub fn account_queue(account: &Jid) -> QueueName {
    ["a/", account.bare_str()].concat().into()
}

/// Records that are done with together.
pub type Ids = smallvec::SmallVec<[RecordId; 2]>;

/// Most records that are done with together.
pub const MAX_DONE: usize = 256;

/// What is offered.
pub enum Item {
    /// A stanza to be stored once for the accounts that it concerns.
    Record(Box<NewRecord>),
    /// Mail for a route that must not overtake what was offered before it.
    Pass(Box<Pass>),
    /// A number to be stored (XEP-0198 `h`).
    Mark(Mark, Option<Arc<Stored>>),
    /// A small record of a session's own, whose position is told when it is known.
    Note(QueueName, bytes::Bytes, Arc<Stored>),
    /// Records of one queue that are done with: one to [`MAX_DONE`] of them. Under load they come by
    /// the dozen, and an item for each was a thirtieth of what a message cost the server.
    Done(QueueName, Ids),
    /// Accepted once everything offered before it has taken effect.
    After(Receipt),
}

/// What only passes through.
pub enum Pass {
    /// Mail for an account's route.
    Account(Jid, AccountMail),
    /// A stanza for the route of a remote domain.
    Domain(Arc<Domain>, Stanza),
}

/// A stanza to be stored.
pub struct NewRecord {
    /// The stanza.
    pub stanza: Stanza,
    /// Those whose queues hold it, one or two.
    pub concerned: smallvec::SmallVec<[Concerned; 2]>,
    /// How far the sender's stream is stored with it.
    pub mark: Option<Mark>,
    /// Accepted when the record is durable, or was refused by name.
    pub receipt: Option<Receipt>,
    /// The record that it replaces, done with in the same commit: a bounced message.
    pub instead_of: Option<(QueueName, RecordId)>,
    /// Told when it is stored, for whoever must know that it was not refused.
    pub stored: Option<Arc<Stored>>,
}

/// Whom a record concerns.
pub enum Concerned {
    /// An account.
    Account {
        /// The account; perhaps with a resource, which does not matter.
        account: Jid,
        /// Its queue.
        queue: QueueName,
        /// Its route, when there was one.
        route: Option<AccountOutlet>,
    },
    /// A remote domain, in whose queue there is room for it.
    Domain(Reservation),
}

impl Concerned {
    fn queue(&self) -> &QueueName {
        match self {
            Self::Account { queue, .. } => queue,
            Self::Domain(reservation) => &reservation.domain().queue,
        }
    }
}

/// Tells where something was stored, once it is.
#[derive(Default)]
pub struct Stored {
    /// 0 while that is not known.
    position: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Stored {
    /// What is stored already.
    pub fn at(position: RecordId) -> Self {
        Self { position: AtomicU64::new(position.0), waker: Mutex::default() }
    }

    /// The position (1 for a mark, which has none), once it is stored.
    pub fn get(&self) -> Option<RecordId> {
        let position = self.position.load(Ordering::Acquire);
        (position != 0).then_some(RecordId(position))
    }

    /// As [`Stored::get`]; the task of `cx` is woken when it is stored.
    pub fn poll(&self, cx: &mut Context<'_>) -> Option<RecordId> {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        self.get()
    }

    fn set(&self, position: RecordId) {
        self.position.store(position.0, Ordering::Release);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}

impl Item {
    /// Mail for an account's route that must not overtake what was offered before it.
    pub fn pass(to: Jid, mail: AccountMail) -> Self {
        Self::Pass(Box::new(Pass::Account(to, mail)))
    }

    /// A stanza for the route of a remote domain that must not overtake what was offered before it.
    pub(crate) fn pass_domain(domain: Arc<Domain>, stanza: Stanza) -> Self {
        Self::Pass(Box::new(Pass::Domain(domain, stanza)))
    }

    fn weight(&self) -> usize {
        match self {
            Self::Record(record) => record.stanza.len() + 256,
            Self::Pass(pass) => match &**pass {
                Pass::Account(_, mail) => mail.weight(),
                Pass::Domain(_, stanza) => stanza.len() + 256,
            },
            Self::Note(_, payload, _) => payload.len() + 128,
            Self::Done(_, ids) => 128 * ids.len(),
            _ => 128,
        }
    }

    /// What it counts in a commit.
    fn count(&self) -> usize {
        match self {
            Self::Done(_, ids) => ids.len(),
            _ => 1,
        }
    }
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// What they count, and bytes of them.
    waiting_count: usize,
    waiting_bytes: usize,
    /// The same with those of what is being committed.
    bytes: usize,
    /// How many wait that somebody waits for.
    urgent: usize,
    /// So many of them are waited for before they are committed; 0 outside a pause.
    wanted: usize,
    failed: bool,
    stopped: bool,
    /// How many items were offered, and how many of them were taken to be committed.
    offered: u64,
    taken: u64,
    /// Acknowledgements that wait for another attempt, and the last that was offered again.
    retrying: usize,
    retried: u64,
    commits: RecentCommits,
}

impl Waiting {
    /// True when there is no more reason for a pause.
    fn ends_pause(&self) -> bool {
        self.urgent >= self.wanted || self.waiting_bytes > MAX_BATCH_BYTES / 2 || self.stopped
    }
}

/// The intake of one server.
pub struct Intake {
    backend: Arc<dyn QueueBackend>,
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// Told when the log has failed.
    failed: Notify,
    /// Records up to here were given to the routes, or were in the log before this process.
    given: AtomicU64,
    /// Records up to here were in the log before this process.
    found: u64,
    /// So many of the items that were offered have taken effect.
    effected: AtomicU64,
}

impl Intake {
    /// An intake that commits to `backend` once [`Intake::run`] runs.
    ///
    /// # Errors
    /// When the backend cannot be read.
    pub async fn new(backend: Arc<dyn QueueBackend>) -> Result<Arc<Self>, QueueError> {
        let found = backend.stats("a/".into()).await?.as_of.0;
        Ok(Arc::new(Self {
            given: AtomicU64::new(found),
            found,
            effected: AtomicU64::new(0),
            backend,
            waiting: Mutex::default(),
            wake: Notify::new(),
            failed: Notify::new(),
        }))
    }

    /// Records up to here were given to the routes that were there for them, or were in the log
    /// before.
    pub(crate) fn given(&self) -> RecordId {
        RecordId(self.given.load(Ordering::Acquire))
    }

    /// Records up to here were in the log when the server started.
    pub(crate) fn found(&self) -> RecordId {
        RecordId(self.found)
    }

    /// How many of the items that were offered have taken effect: those whose [`Intake::offer_numbered`]
    /// gave a number up to this one.
    pub(crate) fn effected(&self) -> u64 {
        self.effected.load(Ordering::Acquire)
    }

    /// The queue behind it.
    pub fn backend(&self) -> &Arc<dyn QueueBackend> {
        &self.backend
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while no more of a sender's stanzas are to be taken.
    pub fn is_full(&self) -> bool {
        self.lock().bytes >= MAX_BYTES
    }

    /// True when the log has failed: what is offered now is dropped, and its receipts fail.
    pub fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// Takes an item. Senders ask [`Intake::is_full`] first; what the server itself must say
    /// about a stanza that had room is taken in any case.
    pub fn offer(&self, item: Item) {
        self.offer_numbered(item);
    }

    /// As [`Intake::offer`]; gives the item's number, which [`Intake::effected`] reaches.
    pub(crate) fn offer_numbered(&self, item: Item) -> u64 {
        let (weight, count) = (item.weight(), item.count());
        let number;
        {
            let mut waiting = self.lock();
            if waiting.failed {
                drop(waiting);
                // Its receipt, if any, fails here.
                drop(item);
                return u64::MAX;
            }
            waiting.offered += 1;
            number = waiting.offered;
            let urgent = !matches!(item, Item::Done(..));
            let first = waiting.items.is_empty() || (urgent && waiting.urgent == 0);
            waiting.urgent += usize::from(urgent);
            waiting.bytes += weight;
            waiting.waiting_bytes += weight;
            waiting.waiting_count += count;
            waiting.items.push_back(item);
            let wakes = if waiting.wanted == 0 { first } else { waiting.ends_pause() };
            if !wakes {
                return number;
            }
        }
        self.wake.notify_one();
        number
    }

    /// Ends [`Intake::run`] once nothing waits.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify_one();
    }

    /// What the last commits took; none before the first.
    pub fn commit_times(&self) -> Option<CommitTimes> {
        // Sorting them while it is locked would hold up every session.
        let recent = self.lock().commits.clone();
        recent.into_times()
    }

    /// Resolves when the log has failed.
    pub async fn failure(&self) {
        loop {
            let notified = self.failed.notified();
            if self.has_failed() {
                return;
            }
            notified.await;
        }
    }

    /// Resolves when nothing waits and nothing is being committed, or the log has failed.
    pub async fn settle(&self) {
        loop {
            {
                let waiting = self.lock();
                if waiting.failed || waiting.bytes == 0 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Commits what is offered until it is stopped or the log fails.
    pub async fn run(self: Arc<Self>, router: Weak<Router>) {
        let mut items = VecDeque::new();
        let mut pace = Pace::new();
        let mut pause = None;
        loop {
            match pause.take() {
                Some(pause) => pace.paused(&pause, self.pause(&pause).await),
                None => self.gather().await,
            }
            let (weight, urgent) = self.take(&mut items);
            if items.is_empty() {
                if self.lock().stopped {
                    return;
                }
                self.wake.notified().await;
                continue;
            }
            let batch = to_batch(&items);
            let is_commit = !batch.is_empty();
            let at = SystemTime::now();
            let begun = Instant::now();
            let result = if is_commit { self.backend.commit(batch).await } else { Ok(Vec::new()) };
            let took = begun.elapsed();
            let Some(router) = router.upgrade() else { return };
            match result {
                Ok(ids) => {
                    let last = ids.last().copied();
                    effect(&router, &mut items, ids, at);
                    if let Some(last) = last {
                        self.given.fetch_max(last.0, Ordering::AcqRel);
                    }
                }
                Err(error @ (QueueError::Full | QueueError::Invalid(_) | QueueError::LeaseLost)) => {
                    tracing::error!(%error, "stanzas were refused: the queue cannot take them");
                    self.refuse(&router, &mut items);
                }
                Err(error) => {
                    tracing::error!(%error, "the queue has failed: the server stops acknowledging");
                    let mut waiting = self.lock();
                    waiting.failed = true;
                    let rest = std::mem::take(&mut waiting.items);
                    drop(waiting);
                    self.failed.notify_waiters();
                    // Their receipts fail.
                    drop((items, rest));
                    return;
                }
            }
            let mut waiting = self.lock();
            if is_commit {
                waiting.commits.add(took);
            }
            waiting.bytes -= weight;
            // What was refused has not taken effect, whatever came after it.
            if waiting.retrying == 0 && waiting.taken >= waiting.retried {
                self.effected.store(waiting.taken, Ordering::Release);
            }
            pause = pace.committed(took, urgent, waiting.urgent, Instant::now());
        }
    }

    /// Waits as long as is worth it before a commit; how many then wait that somebody waits for.
    async fn pause(&self, pause: &Pause) -> usize {
        self.lock().wanted = pause.wanted;
        let enough = async {
            while !self.lock().ends_pause() {
                self.wake.notified().await;
            }
        };
        let _ = tokio::time::timeout_at(pause.until.into(), enough).await;
        let mut waiting = self.lock();
        waiting.wanted = 0;
        waiting.urgent
    }

    /// Nobody waits for a record to leave its queue: that alone is no reason for a flush, and
    /// waits a moment for one.
    async fn gather(&self) {
        let lazy = {
            let waiting = self.lock();
            !waiting.items.is_empty() && waiting.urgent == 0 && !waiting.stopped
        };
        if lazy {
            // Woken by something urgent, or not.
            let _ = tokio::time::timeout(LAZY, self.wake.notified()).await;
        }
    }

    /// Puts into `items`, which is empty, what is committed next; its weight, and how many of it somebody waits
    /// for. All that waits, most
    /// often: then the two queues change places, and no item is moved.
    fn take(&self, items: &mut VecDeque<Item>) -> (usize, usize) {
        let mut waiting = self.lock();
        if waiting.waiting_count <= MAX_ITEMS && waiting.waiting_bytes <= MAX_BATCH_BYTES / 2 {
            std::mem::swap(&mut waiting.items, items);
            waiting.taken += items.len() as u64;
            waiting.waiting_count = 0;
            let weight = std::mem::take(&mut waiting.waiting_bytes);
            return (weight, std::mem::take(&mut waiting.urgent));
        }
        let (mut weight, mut count) = (0, 0);
        while let Some(next) = waiting.items.front()
            && (items.is_empty()
                || (count + next.count() <= MAX_ITEMS && weight + next.weight() <= MAX_BATCH_BYTES / 2))
        {
            weight += next.weight();
            count += next.count();
            items.extend(waiting.items.pop_front());
        }
        waiting.taken += items.len() as u64;
        waiting.waiting_count -= count;
        waiting.waiting_bytes -= weight;
        // What did not fit is not looked at one by one.
        let urgent = waiting.urgent.min(items.len());
        waiting.urgent = waiting.items.len();
        (weight, urgent)
    }

    /// Nothing of a batch was stored: senders are told, and what needs no room is tried again.
    fn refuse(self: &Arc<Self>, router: &Arc<Router>, items: &mut VecDeque<Item>) {
        let mut again = Vec::new();
        for item in items.drain(..) {
            match item {
                Item::Record(record) => {
                    let NewRecord { stanza, receipt, instead_of, .. } = *record;
                    if instead_of.is_none() {
                        router.refuse(&stanza, &StorageError::Full.into());
                    }
                    // It was answered, and that is a fate (DELIVERY P2).
                    receipt.into_iter().for_each(Receipt::accept);
                }
                Item::Pass(pass) => router.pass(*pass),
                Item::After(receipt) => receipt.accept(),
                // A note only spares repetition after a crash.
                Item::Note(..) => {}
                Item::Mark(..) | Item::Done(..) => again.push(item),
            }
        }
        if !again.is_empty() {
            let intake = self.clone();
            intake.lock().retrying += 1;
            tokio::spawn(async move {
                tokio::time::sleep(RETRY).await;
                let last = again.into_iter().map(|item| intake.offer_numbered(item)).last();
                let mut waiting = intake.lock();
                waiting.retrying -= 1;
                waiting.retried = waiting.retried.max(last.unwrap_or_default());
            });
        }
    }
}

fn to_batch(items: &VecDeque<Item>) -> Batch {
    let mut batch = Batch::default();
    let ack = |queue: &QueueName, id: RecordId| Settle { queue: queue.clone(), id, verdict: Verdict::Ack };
    for item in items {
        match item {
            Item::Record(record) => {
                let (head, tail) = record.stanza.wire();
                let payload: Payload = [head.clone(), tail.clone()].into_iter().collect();
                let queues = record.concerned.iter().map(|concerned| concerned.queue().clone()).collect();
                batch.records.push(Append { queues, payload });
                batch.marks.extend(record.mark);
                batch.settles.extend(record.instead_of.iter().map(|(queue, id)| ack(queue, *id)));
            }
            Item::Note(queue, payload, _) => {
                let payload: Payload = std::iter::once(payload.clone()).collect();
                batch.records.push(Append { queues: std::iter::once(queue.clone()).collect(), payload });
            }
            Item::Mark(mark, _) => batch.marks.push(*mark),
            Item::Done(queue, ids) => batch.settles.extend(ids.iter().map(|id| ack(queue, *id))),
            Item::Pass(..) | Item::After(_) => {}
        }
    }
    batch
}

fn effect(router: &Arc<Router>, items: &mut VecDeque<Item>, ids: Vec<RecordId>, at: SystemTime) {
    let mut ids = ids.into_iter();
    for item in items.drain(..) {
        match item {
            Item::Record(record) => {
                let Some(id) = ids.next() else { return };
                let NewRecord { stanza, concerned, receipt, stored, .. } = *record;
                for concerned in concerned {
                    router.record(concerned, id, stanza.clone(), at);
                }
                stored.into_iter().for_each(|stored| stored.set(id));
                receipt.into_iter().for_each(Receipt::accept);
            }
            Item::Note(_, _, position) => {
                let Some(id) = ids.next() else { return };
                position.set(id);
            }
            Item::Pass(pass) => router.pass(*pass),
            Item::Mark(_, stored) => stored.into_iter().for_each(|stored| stored.set(RecordId(1))),
            Item::After(receipt) => receipt.accept(),
            Item::Done(..) => {}
        }
    }
}
