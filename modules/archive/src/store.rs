//! The archives of all accounts: adding messages, and what a query begins with.
//!
//! Messages that need nothing but what is in memory are gathered at once (`gather.rs`). Every
//! other call becomes a job that the account's driver (`driver.rs`) does in the order of the calls.
//!
//! What must hold: of one account, commits are queued in the order of the calls and one at a
//! time, while its slot is locked or by its driver alone; each demands the state that the one
//! before it leaves, so that after a failure nothing behind it takes effect; what is known of an
//! account is forgotten as soon as one of its commits fails, and read back once all that were
//! queued have ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use waystation_core::Jid;
use waystation_core::archive::{Archive, Archived};
use waystation_core::queue::RecordId;
use waystation_core::storage::{BoxFuture, Storage, StorageError};

use crate::Config;
use crate::driver::{self, Job};
use crate::gather::{Clock, Gathered};
use crate::outbox::Outbox;
use crate::prefs::Prefs;
use crate::sid;
use crate::state::State;

/// Accounts that are kept in memory; beyond it those at rest are forgotten and read anew.
const MAX_ACCOUNTS: usize = 10_000;

/// Calls that may wait for one account's driver.
const MAX_JOBS: usize = 16_384;

/// How long after it was found behind an archive is looked at again.
const AGAIN: Duration = Duration::from_millis(100);

/// A commit that more than one party waits for, of what is gathered or was queued.
pub(crate) type Pending = Shared<BoxFuture<'static, Result<(), StorageError>>>;

/// What an add has to wait for, in its order: most often one commit.
pub(crate) type Waits = SmallVec<[Pending; 1]>;

/// The archives of all accounts.
pub(crate) struct Archives {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) outbox: Outbox,
    accounts: Mutex<HashMap<Jid, Arc<Account>>>,
}

/// One account as it is in memory.
pub(crate) struct Account {
    pub(crate) jid: Jid,
    slot: Mutex<Slot>,
}

/// See the module's header.
#[derive(Default)]
pub(crate) struct Slot {
    /// `None` until it is read, and after a failure.
    pub(crate) known: Option<Known>,
    /// Calls that wait for the driver.
    pub(crate) jobs: VecDeque<Job>,
    /// True while the driver runs.
    pub(crate) driving: bool,
    /// What waits to be committed together; only while `known` is there.
    pub(crate) gathered: Option<Gathered>,
    /// The newest commit that is queued.
    pub(crate) last: Option<Pending>,
    /// Grows whenever `known` is forgotten.
    pub(crate) generation: u64,
    /// Bytes of rows that the last chunk had, if it was full: as many may come again.
    pub(crate) room: usize,
    /// The greatest position that was handed over. While the archive has not come that far, it
    /// failed to store something that will be handed over again.
    handed: u64,
    /// Held by every add until whoever called it knows its outcome.
    calls: Arc<()>,
    /// The same of what was called before the last failure.
    earlier: Option<Arc<()>>,
    /// Why it was forgotten last.
    failure: Option<StorageError>,
}

/// What is known of an account's archive once all that was gathered and queued is committed.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) state: State,
    /// The state as it is stored, for the next batch to demand.
    pub(crate) stored: Option<Bytes>,
    pub(crate) prefs: Prefs,
}

/// What a query begins with.
pub(crate) struct Look {
    pub(crate) known: Known,
    /// What has to be committed before the store shows it all.
    pub(crate) last: Option<Pending>,
}

impl Account {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Slot> {
        // No change of the slot can be left half done by a panic.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Forgets what is known, because of a failure or because the account's rows are gone.
    pub(crate) fn forget(&mut self, failure: Option<StorageError>) {
        self.generation += 1;
        self.known = None;
        if Arc::strong_count(&self.calls) > 1 {
            self.earlier = Some(std::mem::take(&mut self.calls));
        }
        if let Some(gathered) = self.gathered.take() {
            // It was made to follow what is not there.
            gathered.fail(failure.clone().unwrap_or(StorageError::Closed));
        }
        self.failure = failure;
    }

    /// Whether more can be added: who hands messages over may not know yet that earlier ones
    /// failed, which come first.
    fn admit(&mut self) -> Result<(), StorageError> {
        if self.earlier.as_ref().is_some_and(|earlier| Arc::strong_count(earlier) > 1) {
            return Err(self.why());
        }
        self.earlier = None;
        Ok(())
    }

    /// Fails when anything did since a generation.
    pub(crate) fn check(&self, generation: u64) -> Result<(), StorageError> {
        if self.generation == generation { Ok(()) } else { Err(self.why()) }
    }

    /// What failed last.
    fn why(&self) -> StorageError {
        self.failure.clone().unwrap_or(StorageError::Closed)
    }

    /// True when something that failed was not handed over again.
    fn is_behind(&self) -> bool {
        self.known.as_ref().map_or(0, |known| known.state.newest) < self.handed
    }

    /// What was handed over so far is no more.
    pub(crate) fn owes_nothing(&mut self) {
        self.handed = 0;
    }

    fn is_at_rest(&self) -> bool {
        !self.driving
            && !self.is_behind()
            && self.gathered.is_none()
            && self.last.as_ref().is_none_or(|last| last.peek().is_some())
    }
}

impl Archives {
    pub(crate) fn new(storage: Arc<dyn Storage>, config: Config) -> Arc<Self> {
        Arc::new(Self {
            storage,
            config,
            clock: Clock::default(),
            outbox: Outbox::default(),
            accounts: Mutex::default(),
        })
    }

    /// The account's place in memory, made if it has none.
    pub(crate) fn account(&self, jid: &Jid) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(jid.bare_str()) {
            return account.clone();
        }
        if accounts.len() >= MAX_ACCOUNTS {
            // Whoever else holds one got it under this lock, so that none has two places.
            accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.lock().is_at_rest());
        }
        let account = Arc::new(Account { jid: jid.to_bare(), slot: Mutex::default() });
        accounts.insert(account.jid.clone(), account.clone());
        account
    }

    /// Hands a call to the account's driver. Must run inside of a tokio runtime.
    ///
    /// # Errors
    /// When too many wait already.
    fn push<T>(
        self: &Arc<Self>,
        account: &Arc<Account>,
        slot: &mut Slot,
        job: impl FnOnce(oneshot::Sender<Result<T, StorageError>>) -> Job,
    ) -> Result<oneshot::Receiver<Result<T, StorageError>>, StorageError> {
        if slot.jobs.len() >= MAX_JOBS {
            return Err(StorageError::Io("too many calls wait for one archive".into()));
        }
        let (reply, outcome) = oneshot::channel();
        slot.jobs.push_back(job(reply));
        if !slot.driving {
            slot.driving = true;
            tokio::spawn(driver::drive(self.clone(), account.clone()));
        }
        Ok(outcome)
    }

    /// Hands a call to the account's driver and waits for its end.
    pub(crate) async fn ask<T>(
        self: &Arc<Self>,
        account: &Jid,
        job: impl FnOnce(oneshot::Sender<Result<T, StorageError>>) -> Job,
    ) -> Result<T, StorageError> {
        let outcome = {
            let account = self.account(account);
            let mut slot = account.lock();
            self.push(&account, &mut slot, job)?
        };
        outcome.await.unwrap_or(Err(StorageError::Closed))
    }

    /// What is known of an account behind all calls that came before this one.
    async fn look(self: &Arc<Self>, jid: &Jid) -> Result<Look, StorageError> {
        let outcome = {
            let account = self.account(jid);
            let mut slot = account.lock();
            if !slot.driving && slot.known.is_some() {
                self.flush(&account, &mut slot);
                if let Some(known) = &slot.known {
                    return Ok(Look { known: known.clone(), last: slot.last.clone() });
                }
            }
            self.push(&account, &mut slot, |reply| Job::Look { reply })?
        };
        outcome.await.unwrap_or(Err(StorageError::Closed))
    }

    /// What is known of an account, once the store shows everything whose `add` came before.
    pub(crate) async fn settled(self: &Arc<Self>, jid: &Jid) -> Result<Known, StorageError> {
        let mut failure = StorageError::Closed;
        // After a failed commit what is known is read back; it takes an unlucky store to fail
        // another one meanwhile.
        for _ in 0..3 {
            let look = self.look(jid).await?;
            match look.last {
                None => return Ok(look.known),
                Some(last) => match last.await {
                    Ok(()) => return Ok(look.known),
                    Err(error) => failure = error,
                },
            }
        }
        Err(failure)
    }

    /// The same, once what failed was handed over again: until then there is a gap.
    pub(crate) async fn whole(self: &Arc<Self>, jid: &Jid) -> Result<Known, StorageError> {
        loop {
            let handed = self.account(jid).lock().handed;
            let known = self.settled(jid).await?;
            if known.state.newest >= handed {
                return Ok(known);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// A commit failed that was queued in a generation; the error for the caller.
pub(crate) fn failed(account: &Weak<Account>, generation: u64, error: StorageError) -> StorageError {
    let Some(account) = account.upgrade() else { return error };
    let mut slot = account.lock();
    // A conflict says no more than that an earlier commit failed: what that one said is told.
    let error = match (error, &slot.failure) {
        (StorageError::Conflict, Some(failure)) if slot.generation > generation => failure.clone(),
        (StorageError::Conflict, _) => StorageError::Io("what this was to follow was not stored".into()),
        (error, _) => error,
    };
    if slot.generation == generation {
        slot.forget(Some(error.clone()));
    }
    error
}

/// Where a call's messages are.
enum Added {
    /// Gathered or queued.
    Pending(Result<Waits, StorageError>),
    /// With the driver, which tells what to wait for.
    Asked(Result<oneshot::Receiver<Result<Waits, StorageError>>, StorageError>),
}

/// The archives as the rest of the server sees them.
pub(crate) struct Seam(pub(crate) Arc<Archives>);

impl Archive for Seam {
    /// Must be called inside of a tokio runtime, which must outlive the call.
    fn add(&self, account: Jid, mut messages: Vec<Archived>) -> BoxFuture<'static, Result<(), StorageError>> {
        let (mut last, mut ascending) = (0, true);
        for message in &mut messages {
            let position = message.id.0;
            if position == 0 {
                return Box::pin(async { Err(StorageError::Invalid("position 0 is never used")) });
            }
            ascending &= position > last;
            last = position;
            if let Some(stanza) = sid::without_own(&message.stanza, &account) {
                message.stanza = stanza;
            }
        }
        if !ascending {
            messages.sort_by_key(|message| message.id);
            messages.dedup_by_key(|message| message.id);
        }
        let account = self.0.account(&account);
        let (call, added) = {
            let mut slot = account.lock();
            slot.handed = slot.handed.max(messages.last().map_or(0, |last| last.id.0));
            if let Err(error) = slot.admit() {
                return Box::pin(async { Err(error) });
            }
            let generation = slot.generation;
            let newest = slot.known.as_ref().map(|known| known.state.newest);
            let is_fresh = |newest| messages.first().is_none_or(|first| first.id.0 > newest);
            let added = if !slot.driving && newest.is_some_and(is_fresh) {
                Added::Pending(self.0.gather(&account, &mut slot, &messages))
            } else {
                Added::Asked(self.0.push(&account, &mut slot, |reply| Job::Add {
                    generation,
                    messages,
                    reply,
                }))
            };
            (slot.calls.clone(), added)
        };
        self.0.gathered();
        let added = match added {
            Added::Pending(Ok(mut waits)) if waits.len() == 1 => match waits.pop() {
                Some(pending) => return Box::pin(pending.inspect(|_| drop(call))),
                None => Added::Pending(Ok(waits)),
            },
            added => added,
        };
        Box::pin(async move {
            let pending = match added {
                Added::Pending(pending) => pending?,
                Added::Asked(outcome) => outcome?.await.unwrap_or(Err(StorageError::Closed))?,
            };
            // The first failure is the one that says why.
            for pending in pending {
                pending.await?;
            }
            drop(call);
            Ok(())
        })
    }

    fn newest(&self, account: Jid) -> BoxFuture<'static, Result<Option<RecordId>, StorageError>> {
        let archives = self.0.clone();
        Box::pin(async move {
            let newest = archives.settled(&account).await?.state.newest;
            Ok((newest > 0).then_some(RecordId(newest)))
        })
    }
}
