//! What one account's driver does: the calls that need to look into the store first, one after
//! the other in the order of the calls.
//!
//! What must hold: while a driver runs, no call of its account goes past it; when it ends, for
//! whatever reason, nothing waits for it any more, and what it may have left half done is read
//! anew.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot::Sender;
use waystation_core::datetime::Timestamp;
use waystation_core::storage::{Batch, ScanRange, StorageError};

use crate::prefs::{PREFS, Prefs};
use crate::retention::Goal;
use crate::row::{self, ROWS, Row};
use crate::state::{STATES, State};
use crate::store::{Account, Archives, Incoming, Known, Look, Pending};

type Reply<T> = Sender<Result<T, StorageError>>;

/// A call that waits for the driver.
pub(crate) enum Job {
    /// Adds messages; answered once they are queued.
    Add { messages: Vec<Incoming>, reply: Reply<Pending> },
    /// Tells what is known.
    Look { reply: Reply<Look> },
    /// Stores preferences.
    SetPrefs { prefs: Prefs, reply: Reply<()> },
    /// Removes a few of the oldest messages if the goal wants it; true when more is to be done.
    Trim { goal: Goal, reply: Reply<bool> },
    /// Removes everything.
    Remove { reply: Reply<()> },
}

/// Ends a driver.
struct Driving {
    account: Arc<Account>,
    done: bool,
}

impl Drop for Driving {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // The runtime ends, or a job panicked: those that wait are told by the loss of their reply.
        let mut slot = self.account.lock();
        slot.driving = false;
        slot.jobs.clear();
        slot.forget(None);
    }
}

/// Does the account's jobs until there is none. `driving` is set already.
pub(crate) async fn drive(archives: Arc<Archives>, account: Arc<Account>) {
    let mut driving = Driving { account: account.clone(), done: false };
    loop {
        let job = {
            let mut slot = account.lock();
            let Some(job) = slot.jobs.pop_front() else {
                slot.driving = false;
                driving.done = true;
                return;
            };
            job
        };
        // A caller that no longer waits needs no answer.
        match job {
            Job::Add { messages, reply } => {
                let _ = reply.send(archives.add_looking(&account, messages).await);
            }
            Job::Look { reply } => {
                let looked = archives.load(&account).await;
                let _ = reply.send(looked.map(|known| Look { known, last: account.lock().last.clone() }));
            }
            Job::SetPrefs { prefs, reply } => {
                let _ = reply.send(archives.set_prefs(&account, prefs).await);
            }
            Job::Trim { goal, reply } => {
                let _ = reply.send(archives.trim(&account, goal).await);
            }
            Job::Remove { reply } => {
                let _ = reply.send(archives.remove(&account).await);
            }
        }
    }
}

impl Archives {
    /// What is known of the account, read from the store if need be.
    pub(crate) async fn load(&self, account: &Account) -> Result<Known, StorageError> {
        loop {
            let (last, generation) = {
                let slot = account.lock();
                if let Some(known) = &slot.known {
                    return Ok(known.clone());
                }
                (slot.last.clone(), slot.generation)
            };
            if let Some(last) = last {
                // Whether it failed or not: the store now shows what is left.
                let _ = last.await;
            }
            let stored = self.storage.get(STATES, State::key(&account.jid)).await?;
            let state = stored.as_deref().map(State::decode).transpose()?.unwrap_or_default();
            let prefs = self.storage.get(PREFS, Prefs::key(&account.jid)).await?;
            let prefs = match prefs {
                Some(prefs) => Prefs::decode(&prefs)?,
                None => Prefs { default: self.config.default_policy, ..Prefs::default() },
            };
            let mut slot = account.lock();
            // A commit may have failed since the store was read.
            if slot.generation == generation {
                let known = Known { state, stored, prefs };
                slot.known = Some(known.clone());
                slot.last = None;
                return Ok(known);
            }
        }
    }

    /// Adds messages of which some may be there already: those are left out, and late ones get
    /// a time that fits between their neighbours'.
    async fn add_looking(
        &self,
        account: &Arc<Account>,
        mut messages: Vec<Incoming>,
    ) -> Result<Pending, StorageError> {
        loop {
            let known = self.load(account).await?;
            let mut kept = Vec::with_capacity(messages.len());
            // Late messages of one call are neighbours of each other before the store has them.
            let mut newest_late = None;
            for mut message in messages {
                let state = &known.state;
                let fresh = message.position > state.newest;
                // Below what was removed nothing comes back: that would be a hole.
                let may_lack = || message.position > state.trimmed && message.is_wanted(&known.prefs);
                if fresh || (may_lack() && self.fit_in(account, &mut message, &mut newest_late).await?) {
                    kept.push(message);
                }
            }
            let mut slot = account.lock();
            if slot.known.is_some() {
                return self.issue(account, &mut slot, &kept);
            }
            messages = kept;
        }
    }

    /// False when there is such a message already. Otherwise makes its time fit: positions and
    /// times of what is stored go together, and that must stay so.
    /// `late` is the position and time of the late message before it in the same call.
    async fn fit_in(
        &self,
        account: &Account,
        message: &mut Incoming,
        late: &mut Option<(u64, i64)>,
    ) -> Result<bool, StorageError> {
        // What was queued before must be seen here.
        let last = account.lock().last.clone();
        if let Some(last) = last {
            let _ = last.await;
        }
        let prefix = row::prefix(&account.jid);
        let key = row::key(&prefix, message.position);
        let ends = (row::key(&prefix, 0), row::key(&prefix, u64::MAX));
        let range =
            |start: Bound<Bytes>, end: Bound<Bytes>, reverse| ScanRange { start, end, reverse, limit: 1 };
        let before = range(Bound::Included(ends.0), Bound::Excluded(key.clone()), true);
        let after = range(Bound::Included(key.clone()), Bound::Included(ends.1), false);
        let neighbour = |row: Option<&(Bytes, Bytes)>| match row {
            Some((key, value)) => {
                Ok(Some((row::position_of(key, &prefix)?, Row::decode(value)?.at.unix_millis())))
            }
            None => Ok::<_, StorageError>(None),
        };
        let after = self.storage.scan(ROWS, after).await?;
        if after.first().is_some_and(|(found, _)| *found == key) {
            return Ok(false);
        }
        let before = neighbour(self.storage.scan(ROWS, before).await?.first())?;
        let before = before.max(*late).map(|(_, time)| time);
        let after = neighbour(after.first())?.map(|(_, time)| time);
        let own = message.row.at.unix_millis();
        let fitting = match (before, after) {
            (Some(before), Some(after)) if before <= after => own.clamp(before, after),
            (Some(before), Some(_)) => before,
            (Some(before), None) => own.max(before),
            (None, Some(after)) => own.min(after),
            (None, None) => own,
        };
        *late = Some((message.position, fitting));
        // Between two times that were stored, or a message's own.
        message.row.at = Timestamp::from_unix_millis(fitting).unwrap_or(message.row.at);
        Ok(true)
    }

    async fn set_prefs(&self, account: &Account, prefs: Prefs) -> Result<(), StorageError> {
        self.load(account).await?;
        let batch = Batch::new().put(PREFS, Prefs::key(&account.jid), prefs.encode());
        let outcome = self.storage.commit(batch).await;
        let mut slot = account.lock();
        match (&outcome, &mut slot.known) {
            (Ok(()), Some(known)) => known.prefs = prefs,
            (Ok(()), None) => {}
            // Which ones hold now is for the store to say.
            (Err(error), _) => slot.forget(Some(error.clone())),
        }
        outcome
    }
}
