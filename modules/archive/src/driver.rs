//! What one account's driver does: the calls that need to look into the store first, one after
//! the other in the order of the calls.
//!
//! What must hold: while a driver runs, no call of its account goes past it; when it ends, for
//! whatever reason, nothing waits for it any more, and what it may have left half done is read
//! anew.

use std::sync::Arc;

use tokio::sync::oneshot::Sender;
use waystation_core::archive::Archived;
use waystation_core::storage::{Batch, StorageError};

use crate::prefs::{PREFS, Prefs};
use crate::retention::Goal;
use crate::state::{STATES, State};
use crate::store::{Account, Archives, Known, Look, Waits};

type Reply<T> = Sender<Result<T, StorageError>>;

/// A call that waits for the driver.
pub(crate) enum Job {
    /// Adds messages, unless something failed since the generation in which they were handed over;
    /// answered with what has to be waited for.
    Add { generation: u64, messages: Vec<Archived>, reply: Reply<Waits> },
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
        if !matches!(job, Job::Add { .. }) {
            // Changes and looks begin with everything that came before them on its way.
            archives.flush(&account, &mut account.lock());
        }
        // A caller that no longer waits needs no answer.
        match job {
            Job::Add { generation, messages, reply } => {
                let _ = reply.send(archives.add_looking(&account, generation, messages).await);
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

    /// Commits a change of what is stored that was made from what is known, and keeps the result.
    /// Nothing may be gathered.
    pub(crate) async fn change(
        &self,
        account: &Account,
        state: State,
        batch: Batch,
    ) -> Result<(), StorageError> {
        let stored = state.encode();
        let generation = account.lock().generation;
        let outcome = self.storage.commit(batch.put(STATES, State::key(&account.jid), stored.clone())).await;
        let mut slot = account.lock();
        if let Err(error) = outcome {
            slot.forget(Some(error.clone()));
            return Err(error);
        }
        if slot.generation == generation
            && let Some(known) = &mut slot.known
        {
            (known.state, known.stored) = (state, Some(stored));
        }
        Ok(())
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
