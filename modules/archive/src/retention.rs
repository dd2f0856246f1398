//! How long messages are kept: the oldest go first, a few at a time.
//!
//! What must hold: only the oldest messages are removed, so that no archive gets a hole
//! (XEP-0313 3.2); chunks, index and state change in one batch, so that counts stay exact; a chunk
//! of which only a part goes is replaced by one of the rest; a step reads at most [`STEP_CHUNKS`]
//! chunks and ends with the one that makes it [`STEP`] messages, and between two steps of a sweep
//! every call that waits for the account has its turn.

use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use waystation_core::Jid;
use waystation_core::datetime::Timestamp;
use waystation_core::storage::{Batch, ScanRange, StorageError};

use crate::chunk::{Builder, Chunk, ROWS, WITH};
use crate::driver::Job;
use crate::prefs::{PREFS, Prefs};
use crate::row;
use crate::state::{STATES, State};
use crate::store::{Account, Archives};

/// Messages that are enough for one step.
const STEP: usize = 128;

/// Chunks that are read in one step.
const STEP_CHUNKS: usize = 16;

/// Keys that are removed at once where nothing is left to be counted.
const KEYS: usize = 64;

/// Accounts whose states are read at once.
const STATES_PAGE: usize = 256;

/// What has to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// What the configured limits do not allow, at a moment in time.
    Limits {
        /// Messages older than this go, in milliseconds since 1970.
        before: Option<i64>,
    },
    /// Everything.
    All,
}

impl Archives {
    fn limits_at(&self, now: SystemTime) -> Goal {
        // Further back than a clock can tell there is nothing to remove.
        let before = self.config.max_age.and_then(|age| now.checked_sub(age));
        Goal::Limits { before: before.map(|before| Timestamp::from_system_time(before).unix_millis()) }
    }

    /// True when the goal may want messages gone of an archive in this state.
    fn is_over(&self, state: &State, goal: Goal) -> bool {
        let Goal::Limits { before } = goal else { return state.messages > 0 };
        state.messages > 0
            && (before.is_some_and(|before| state.oldest_time < before)
                || self.config.max_messages.is_some_and(|max| state.messages > max)
                || self.config.max_bytes.is_some_and(|max| state.bytes > max))
    }

    /// One step towards the goal; true when more is to be done. The account's driver calls it.
    pub(crate) async fn trim(&self, account: &Account, goal: Goal) -> Result<bool, StorageError> {
        let known = self.load(account).await?;
        if !self.is_over(&known.state, goal) {
            return Ok(false);
        }
        // What was queued before must be seen here.
        let last = account.lock().last.clone();
        if let Some(last) = last {
            last.await?;
        }
        let prefix = row::prefix(&account.jid);
        let rows = self.storage.scan(ROWS, ScanRange::prefix(prefix.clone(), STEP_CHUNKS)).await?;
        let mut all_read = rows.len() < STEP_CHUNKS;
        let mut state = known.state.clone();
        let mut batch = Batch::new().expect(STATES, State::key(&account.jid), known.stored.clone());
        let (mut gone, mut oldest_left) = (0, None);
        for (key, value) in rows {
            if gone >= STEP {
                all_read = false;
                break;
            }
            let chunk = Chunk::decode(row::position_of(&key, &prefix)?, &value)?;
            let (gone_before, mut left) = (gone, Builder::default());
            for entry in chunk.entries() {
                let entry = entry?;
                let millis = entry.at.unix_millis();
                // The state's time is a bound; the message's own decides.
                let at_message = || State { oldest_time: millis, ..state.clone() };
                if oldest_left.is_none() && self.is_over(&at_message(), goal) {
                    gone += 1;
                    state.trim(entry.position, 1, entry.stanza_len());
                    continue;
                }
                oldest_left = oldest_left.or(Some(millis));
                left.push(entry.position, chunk.row(&entry)?.as_ref());
            }
            if gone > gone_before {
                batch = left.write(&account.jid, chunk.delete(&account.jid, batch)?);
            }
            if oldest_left.is_some() {
                break;
            }
        }
        if all_read && oldest_left.is_none() {
            // No message is left; should the counts say otherwise, they are put right.
            (state.messages, state.bytes) = (0, 0);
        }
        if let Some(oldest) = oldest_left {
            // Clocks that ran backwards may have left older ones behind it; they are met later,
            // when those before them go.
            state.oldest_time = oldest;
        }
        if Some(&state.encode()) == known.stored.as_ref() {
            return Ok(false);
        }
        self.change(account, state.clone(), batch).await?;
        Ok(oldest_left.is_none() && self.is_over(&state, goal))
    }

    /// Removes all that is kept of an account. The account's driver calls it.
    pub(crate) async fn remove(&self, account: &Account) -> Result<(), StorageError> {
        loop {
            match self.trim(account, Goal::All).await {
                Ok(true) => {}
                // What cannot be read can be removed all the same.
                Ok(false) | Err(StorageError::Corrupt(_)) => break,
                Err(error) => return Err(error),
            }
        }
        for space in [ROWS, WITH] {
            loop {
                let prefix = row::prefix(&account.jid);
                let rows = self.storage.scan(space, ScanRange::prefix(prefix, KEYS)).await?;
                if rows.is_empty() {
                    break;
                }
                let batch = rows.into_iter().fold(Batch::new(), |batch, (key, _)| batch.delete(space, key));
                self.storage.commit(batch).await?;
            }
        }
        let batch = Batch::new();
        let batch = batch.delete(STATES, State::key(&account.jid)).delete(PREFS, Prefs::key(&account.jid));
        let outcome = self.storage.commit(batch).await;
        let mut slot = account.lock();
        slot.forget(outcome.as_ref().err().cloned());
        slot.owes_nothing();
        outcome
    }

    /// Goes over all accounts once and removes what the limits do not allow at `now`; returns
    /// after each step of each account to whoever else is there.
    ///
    /// # Errors
    /// When the states cannot be read. What goes wrong with one account is logged.
    pub(crate) async fn sweep(self: &Arc<Self>, now: SystemTime) -> Result<(), StorageError> {
        let goal = self.limits_at(now);
        let mut start = Bound::Unbounded;
        loop {
            let range = ScanRange { start, end: Bound::Unbounded, reverse: false, limit: STATES_PAGE };
            let states = self.storage.scan(STATES, range).await?;
            let Some((last, _)) = states.last() else { return Ok(()) };
            start = Bound::Excluded(last.clone());
            for (key, value) in states {
                let jid = std::str::from_utf8(&key).ok().and_then(|text| Jid::parse(text).ok());
                let (Some(jid), Ok(state)) = (jid, State::decode(&value)) else {
                    tracing::error!(?key, "the state of a message archive is damaged");
                    continue;
                };
                if self.is_over(&state, goal) {
                    self.enforce(&jid, goal).await;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn enforce(self: &Arc<Self>, account: &Jid, goal: Goal) {
        loop {
            match self.ask(account, |reply| Job::Trim { goal, reply }).await {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%account, %error, "an archive could not be cut to its limits");
                    return;
                }
            }
        }
    }
}
