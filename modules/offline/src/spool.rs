//! The stored messages of each account, and how much of its limit an account has used.
//!
//! On disk, in the space `offline`: bare JID, NUL, a big-endian number that only grows, holding
//! the stanza as it goes over the wire. Nothing else is stored: the use of an account is counted
//! from its messages when it is first needed, and kept in memory from then on.
//!
//! What must hold: the number of a message and the place of its commit are given out while the
//! table is locked and in the order of the calls, also for calls that come while the account is
//! still being counted; a count begins only after every earlier commit was applied or failed;
//! what is known of an account's use is forgotten whenever a commit of it did not end well.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::sync::oneshot;
use waystation_core::account::{OfflineError, OfflineMessage, OfflineStore};
use waystation_core::datetime::Timestamp;
use waystation_core::storage::{
    Batch, BoxFuture, MAX_BATCH_OPS, Op, ScanRange, Space, Storage, StorageError, prefix_end,
};
use waystation_core::{Jid, Stanza};

use crate::stamp;

const SPACE: Space = Space("offline");

/// Rows read at a time: few enough that a page of the largest stanzas stays small.
const PAGE: usize = 64;

/// Accounts whose use is kept in memory; beyond it those at rest are forgotten and counted anew.
const MAX_ACCOUNTS: usize = 10_000;

/// How much may be stored for one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most messages.
    pub messages: usize,
    /// Most bytes, counted as on the wire.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { messages: 10_000, bytes: 64 * 1024 * 1024 }
    }
}

/// The stored messages of all accounts.
pub struct Spool {
    shared: Arc<Inner>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    limits: Limits,
    accounts: Mutex<HashMap<Jid, Account>>,
}

struct Account {
    /// No number below this is given out again while the account is in memory.
    next: u64,
    state: State,
}

enum State {
    /// Nobody has asked since the start, or what was known is no longer certain.
    Unknown,
    /// The messages are being counted; calls wait in order.
    Counting {
        count: Shared<BoxFuture<'static, ()>>,
        waiting: Queue,
        /// Messages were removed meanwhile, or a commit failed: count again.
        again: bool,
    },
    /// What is stored or about to be.
    Known(Use),
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    messages: usize,
    bytes: u64,
    /// Number of the newest message.
    last: Option<u64>,
}

/// Calls that wait for a count, with the bytes of their messages.
#[derive(Default)]
struct Queue {
    calls: VecDeque<Waiting>,
    bytes: u64,
}

struct Waiting {
    value: Bytes,
    reply: oneshot::Sender<Result<Commit, OfflineError>>,
}

type Commit = BoxFuture<'static, Result<(), StorageError>>;

/// What became of a call while the table was locked.
enum Begun {
    Issued(Result<Commit, OfflineError>),
    Waits(Shared<BoxFuture<'static, ()>>, oneshot::Receiver<Result<Commit, OfflineError>>),
}

impl Spool {
    /// An empty table over what `storage` holds.
    pub fn new(storage: Arc<dyn Storage>, limits: Limits) -> Self {
        Self { shared: Arc::new(Inner { storage, limits, accounts: Mutex::default() }) }
    }
}

impl OfflineStore for Spool {
    fn store(&self, account: Jid, stanza: Stanza) -> BoxFuture<'static, Result<(), OfflineError>> {
        let account = account.to_bare();
        let value = stamp::stamped(&stanza, &account.to_domain(), Timestamp::now());
        let begun = self.shared.begin(&account, value);
        let uncertain = Uncertain::new(&self.shared, account);
        Box::pin(async move {
            let issued = match begun {
                Begun::Issued(issued) => issued,
                Begun::Waits(count, mut reply) => {
                    count.await;
                    // The count answers all that wait before it ends; only the end of the
                    // whole store leaves a call without an answer.
                    reply.try_recv().unwrap_or(Err(OfflineError::Storage(StorageError::Closed)))
                }
            };
            let result = match issued {
                Ok(commit) => commit.await.map_err(OfflineError::from),
                Err(refused) => {
                    uncertain.settled();
                    return Err(refused);
                }
            };
            if result.is_ok() {
                uncertain.settled();
            }
            result
        })
    }

    fn load(
        &self,
        account: Jid,
        after: Option<Bytes>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<OfflineMessage>, StorageError>> {
        let inner = self.shared.clone();
        Box::pin(async move {
            let prefix = prefix(&account);
            let mut start = match after {
                Some(position) => Bound::Excluded(key(&prefix, read_position(&position)?.0)),
                None => Bound::Included(prefix.clone()),
            };
            let mut messages = Vec::new();
            while messages.len() < max {
                let page = PAGE.min(max - messages.len());
                let rows = inner.storage.scan(SPACE, range(&prefix, start, page)).await?;
                let end_reached = rows.len() < page;
                let Some((last, _)) = rows.last() else { break };
                start = Bound::Excluded(last.clone());
                for (key, value) in rows {
                    let number = number(&key[prefix.len()..])?;
                    match Stanza::parse(&value) {
                        Ok(stanza) => messages.push(OfflineMessage { key: position(number, &value), stanza }),
                        // One unreadable message must not hold up those after it; it stays
                        // where it is, to be looked into.
                        Err(error) => {
                            tracing::error!(%account, number, ?error, "a stored offline message is damaged");
                        }
                    }
                }
                if end_reached {
                    break;
                }
            }
            Ok(messages)
        })
    }

    fn remove(&self, account: Jid, keys: Vec<Bytes>) -> BoxFuture<'static, Result<(), StorageError>> {
        let account = account.to_bare();
        let prefix = prefix(&account);
        let mut batches = vec![Batch::new()];
        let mut removed = Use::default();
        for position in &keys {
            let (number, bytes) = match read_position(position) {
                Ok(found) => found,
                Err(error) => return Box::pin(async { Err(error) }),
            };
            removed.messages += 1;
            removed.bytes += bytes;
            if let Some(batch) = batches.last_mut().filter(|batch| batch.ops.len() < MAX_BATCH_OPS) {
                batch.ops.push(Op::Delete { space: SPACE, key: key(&prefix, number) });
            } else {
                batches.push(Batch::new().delete(SPACE, key(&prefix, number)));
            }
        }
        let commits = self.shared.remove(&account, removed, batches);
        let uncertain = Uncertain::new(&self.shared, account);
        Box::pin(async move {
            for commit in commits {
                commit.await?;
            }
            uncertain.settled();
            Ok(())
        })
    }

    fn count(&self, account: Jid) -> BoxFuture<'static, Result<usize, StorageError>> {
        let account = account.to_bare();
        let inner = self.shared.clone();
        Box::pin(async move {
            let known = match inner.lock().get(&account) {
                Some(Account { state: State::Known(used), .. }) => Some(*used),
                _ => None,
            };
            match known {
                Some(used) => Ok(used.messages),
                None => Ok(tally(&*inner.storage, &account).await?.messages),
            }
        })
    }

    fn clear(&self, account: Jid) -> BoxFuture<'static, Result<(), StorageError>> {
        let account = account.to_bare();
        let inner = self.shared.clone();
        let barrier = barrier(&*inner.storage, &account);
        // Whether it ends well or not, what remains must be counted anew.
        let uncertain = Uncertain::new(&inner, account);
        Box::pin(async move {
            barrier.await?;
            let prefix = prefix(&uncertain.account);
            loop {
                let start = Bound::Included(prefix.clone());
                let rows = inner.storage.scan(SPACE, range(&prefix, start, PAGE)).await?;
                if rows.is_empty() {
                    return Ok(());
                }
                let mut batch = Batch::new();
                for (key, _) in rows {
                    batch = batch.delete(SPACE, key);
                }
                inner.storage.commit(batch).await?;
            }
        })
    }
}

impl Queue {
    /// True when a message of `bytes` fits; calls that were given up do not count.
    fn has_room(&mut self, bytes: u64, limits: Limits) -> bool {
        let fits = |queue: &Self| queue.calls.len() < limits.messages && queue.bytes + bytes <= limits.bytes;
        if !fits(self) {
            self.calls.retain(|call| !call.reply.is_closed());
            self.bytes = self.calls.iter().map(|call| call.value.len() as u64).sum();
        }
        fits(self)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Jid, Account>> {
        // No change of the table can be left half done by a panic.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a message its place: at once when the account's use is known, otherwise in the
    /// queue of those that wait for it.
    fn begin(self: &Arc<Self>, account: &Jid, value: Bytes) -> Begun {
        let mut accounts = self.lock();
        if !accounts.contains_key(account) && accounts.len() >= MAX_ACCOUNTS {
            accounts.retain(|_, account| matches!(account.state, State::Counting { .. }));
            if accounts.len() >= MAX_ACCOUNTS {
                let error = StorageError::Io("too many accounts are being counted at once".into());
                return Begun::Issued(Err(error.into()));
            }
        }
        let entry = accounts.entry(account.clone()).or_insert(Account { next: 0, state: State::Unknown });
        if let State::Known(_) = entry.state {
            return Begun::Issued(self.issue(account, entry, value));
        }
        if let State::Unknown = entry.state {
            let count = count(Arc::downgrade(self), self.storage.clone(), account.clone());
            entry.state =
                State::Counting { count: count.boxed().shared(), waiting: Queue::default(), again: false };
        }
        let State::Counting { count, waiting, .. } = &mut entry.state else {
            // Both other states were dealt with above.
            return Begun::Issued(Err(StorageError::Closed.into()));
        };
        if !waiting.has_room(value.len() as u64, self.limits) {
            return Begun::Issued(Err(OfflineError::Full));
        }
        let (reply, receiver) = oneshot::channel();
        waiting.bytes += value.len() as u64;
        waiting.calls.push_back(Waiting { value, reply });
        Begun::Waits(count.clone(), receiver)
    }

    /// Checks the limits, takes a number and queues the commit. The table is locked meanwhile,
    /// which is what keeps numbers and commits in one order.
    fn issue(&self, account: &Jid, entry: &mut Account, value: Bytes) -> Result<Commit, OfflineError> {
        let State::Known(used) = &mut entry.state else {
            return Err(StorageError::Closed.into());
        };
        let bytes = used.bytes + value.len() as u64;
        if used.messages >= self.limits.messages || bytes > self.limits.bytes {
            return Err(OfflineError::Full);
        }
        // Numbers begin at the clock's, so that they also grow over a restart with an empty
        // spool, when no stored message tells where to continue.
        let number = entry.next.max(clock());
        entry.next = number
            .checked_add(1)
            .ok_or_else(|| StorageError::Corrupt("the last offline number is used".into()))?;
        used.messages += 1;
        used.bytes = bytes;
        Ok(self.storage.commit(Batch::new().put(SPACE, key(&prefix(account), number), value)))
    }

    /// Queues the removal of messages, which make room at once.
    fn remove(&self, account: &Jid, removed: Use, batches: Vec<Batch>) -> Vec<Commit> {
        let mut accounts = self.lock();
        match accounts.get_mut(account).map(|entry| &mut entry.state) {
            Some(State::Known(used)) => {
                used.messages = used.messages.saturating_sub(removed.messages);
                used.bytes = used.bytes.saturating_sub(removed.bytes);
            }
            // The count may or may not have met them.
            Some(State::Counting { again, .. }) => *again = true,
            Some(State::Unknown) | None => {}
        }
        batches.into_iter().map(|batch| self.storage.commit(batch)).collect()
    }

    /// What is known of an account's use is no longer certain.
    fn forget(&self, account: &Jid) {
        if let Some(entry) = self.lock().get_mut(account) {
            match &mut entry.state {
                State::Unknown => {}
                State::Counting { again, .. } => *again = true,
                state @ State::Known(_) => *state = State::Unknown,
            }
        }
    }

    /// Ends a count: true when it must be done once more.
    fn counted(&self, account: &Jid, found: &Result<Use, StorageError>) -> bool {
        let mut accounts = self.lock();
        let Some(entry) = accounts.get_mut(account) else { return false };
        if let (State::Counting { again, .. }, Ok(_)) = (&mut entry.state, found)
            && mem::take(again)
        {
            return true;
        }
        let State::Counting { waiting, .. } = mem::replace(&mut entry.state, State::Unknown) else {
            return false;
        };
        if let Ok(used) = found {
            entry.state = State::Known(*used);
            entry.next = entry.next.max(used.last.map_or(0, |last| last.saturating_add(1)));
        }
        for Waiting { value, reply } in waiting.calls {
            if reply.is_closed() {
                continue;
            }
            let answer = match found {
                Ok(_) => self.issue(account, entry, value),
                Err(error) => Err(OfflineError::Storage(error.clone())),
            };
            // An answer that nobody takes is a commit that is dropped: as if never called.
            let _ = reply.send(answer);
        }
        false
    }
}

/// Counts an account's messages, then lets those that wait go on.
async fn count(inner: Weak<Inner>, storage: Arc<dyn Storage>, account: Jid) {
    loop {
        let found = match barrier(&*storage, &account).await {
            Ok(()) => tally(&*storage, &account).await,
            Err(error) => Err(error),
        };
        match inner.upgrade() {
            Some(inner) if inner.counted(&account, &found) => {}
            _ => return,
        }
    }
}

/// Resolves once every commit that was queued before is applied or has failed.
fn barrier(storage: &dyn Storage, account: &Jid) -> Commit {
    // A prefix is no message's key, so that this changes nothing.
    storage.commit(Batch::new().delete(SPACE, prefix(account)))
}

async fn tally(storage: &dyn Storage, account: &Jid) -> Result<Use, StorageError> {
    let prefix = prefix(account);
    let mut used = Use::default();
    let mut start = Bound::Included(prefix.clone());
    loop {
        let rows = storage.scan(SPACE, range(&prefix, start, PAGE)).await?;
        used.messages += rows.len();
        used.bytes += rows.iter().map(|(_, value)| value.len() as u64).sum::<u64>();
        let Some((last, _)) = rows.last() else { return Ok(used) };
        used.last = Some(number(&last.slice(prefix.len()..))?);
        if rows.len() < PAGE {
            return Ok(used);
        }
        start = Bound::Excluded(last.clone());
    }
}

/// Makes what is known of an account uncertain unless its commit resolved well.
struct Uncertain {
    inner: Weak<Inner>,
    account: Jid,
    armed: bool,
}

impl Uncertain {
    fn new(inner: &Arc<Inner>, account: Jid) -> Self {
        Self { inner: Arc::downgrade(inner), account, armed: true }
    }

    /// Nothing has become uncertain. A method, so that futures own the whole guard.
    fn settled(mut self) {
        self.armed = false;
    }
}

impl Drop for Uncertain {
    fn drop(&mut self) {
        if self.armed
            && let Some(inner) = self.inner.upgrade()
        {
            inner.forget(&self.account);
        }
    }
}

/// Microseconds since 1970.
fn clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

/// The bare JID and NUL, which no JID holds.
fn prefix(account: &Jid) -> Bytes {
    let mut out = account.bare_str().as_bytes().to_vec();
    out.push(0);
    out.into()
}

fn key(prefix: &[u8], number: u64) -> Bytes {
    [prefix, &number.to_be_bytes()].concat().into()
}

/// The number in what follows a key's prefix.
fn number(bytes: &[u8]) -> Result<u64, StorageError> {
    bytes
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| StorageError::Corrupt("the key of an offline message has a wrong length".into()))
}

/// What the outside knows a message by: its number, and its length, so that a removal knows how
/// much room it makes.
fn position(number: u64, value: &[u8]) -> Bytes {
    [number.to_be_bytes(), (value.len() as u64).to_be_bytes()].concat().into()
}

fn read_position(position: &[u8]) -> Result<(u64, u64), StorageError> {
    let both: Option<([u8; 8], [u8; 8])> = position
        .split_at_checked(8)
        .and_then(|(number, length)| Some((number.try_into().ok()?, length.try_into().ok()?)));
    let (number, length) = both.ok_or(StorageError::Invalid("not a position of an offline message"))?;
    Ok((u64::from_be_bytes(number), u64::from_be_bytes(length)))
}

fn range(prefix: &Bytes, start: Bound<Bytes>, limit: usize) -> ScanRange {
    let end = prefix_end(prefix).map_or(Bound::Unbounded, Bound::Excluded);
    ScanRange { start, end, reverse: false, limit }
}

#[cfg(test)]
mod tests;
