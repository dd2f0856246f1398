//! Messages that are handed over late: behind them others are stored already.
//!
//! What must hold: a message that is there is left as it is; one that is not gets a place between
//! its neighbours and a time that fits between theirs, so that positions and times go together as
//! before; the chunk that covers its position is replaced in one batch with the counts.

use std::ops::Bound;
use std::sync::Arc;

use waystation_core::archive::Archived;
use waystation_core::datetime::Timestamp;
use waystation_core::storage::{Batch, ScanRange, StorageError};

use crate::chunk::{Builder, Head, ROWS};
use crate::row::{self, Row};
use crate::state::{STATES, State};
use crate::store::{Account, Archives, Waits};
use crate::walk;

impl Archives {
    /// Adds messages of which some may be there already. The account's driver calls it.
    pub(crate) async fn add_looking(
        self: &Arc<Self>,
        account: &Arc<Account>,
        generation: u64,
        messages: Vec<Archived>,
    ) -> Result<Waits, StorageError> {
        let known = self.load(account).await?;
        let mut fresh = Vec::with_capacity(messages.len());
        for message in messages {
            let position = message.id.0;
            let is_wanted =
                || known.prefs.want(row::counterpart(&account.jid, &message.stanza), message.contact);
            if position > known.state.newest {
                fresh.push(message);
            } else if position > known.state.trimmed && is_wanted() {
                // Below what was removed nothing comes back: that would be a hole.
                self.fit_in(account, &message).await?;
            }
        }
        let pending = loop {
            self.load(account).await?;
            let mut slot = account.lock();
            slot.check(generation)?;
            if slot.known.is_some() {
                break self.gather(account, &mut slot, &fresh)?;
            }
        };
        self.gathered();
        Ok(pending)
    }

    /// Stores a message among the others, unless it is there.
    async fn fit_in(&self, account: &Account, message: &Archived) -> Result<(), StorageError> {
        // What was queued before must be seen here.
        let last = {
            let mut slot = account.lock();
            self.flush(account, &mut slot);
            slot.last.clone()
        };
        if let Some(last) = last {
            let _ = last.await;
        }
        let known = self.load(account).await?;
        let position = message.id.0;
        let mut row = Row::new(&account.jid, Timestamp::from_system_time(message.at), &message.stanza);
        let prefix = row::prefix(&account.jid);
        let chunk = walk::at_or_before(&*self.storage, &prefix, position).await?;
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        for entry in chunk.iter().flat_map(|chunk| chunk.entries().map(move |entry| (chunk, entry))) {
            let (chunk, entry) = (entry.0, entry.1?);
            let side = if entry.position < position { &mut before } else { &mut behind };
            side.push((entry.position, chunk.row(&entry)?));
        }
        if behind.first().is_some_and(|(found, _)| *found == position) {
            return Ok(());
        }
        let time_before = before.last().map(|(_, row): &(u64, Row)| row.at.unix_millis());
        let time_behind = match behind.first() {
            Some((_, row)) => Some(row.at.unix_millis()),
            None => self.first_time_behind(&prefix, position).await?,
        };
        let own = row.at.unix_millis();
        let fitting = match (time_before, time_behind) {
            (Some(before), Some(after)) if before <= after => own.clamp(before, after),
            (Some(before), Some(_)) => before,
            (Some(before), None) => own.max(before),
            (None, Some(after)) => own.min(after),
            (None, None) => own,
        };
        // Between two times that were stored, or a message's own.
        row.at = Timestamp::from_unix_millis(fitting).unwrap_or(row.at);

        let mut state = known.state.clone();
        state.insert(fitting, row.stanza_len());
        let mut batch = Batch::new().expect(STATES, State::key(&account.jid), known.stored.clone());
        let mut rows = vec![(position, row)];
        if let Some(chunk) = chunk.filter(|_| !behind.is_empty()) {
            batch = chunk.delete(&account.jid, batch)?;
            rows = [before, rows, behind].concat();
        }
        let mut builder = Builder::default();
        for (position, row) in &rows {
            if builder.is_full() {
                batch = std::mem::take(&mut builder).write(&account.jid, batch);
            }
            builder.push(*position, row.as_ref());
        }
        batch = builder.write(&account.jid, batch);
        self.change(account, state, batch).await
    }

    /// The time of the first message of the chunks behind a position.
    async fn first_time_behind(&self, prefix: &[u8], position: u64) -> Result<Option<i64>, StorageError> {
        let range = ScanRange {
            start: Bound::Excluded(row::key(prefix, position)),
            end: Bound::Included(row::key(prefix, u64::MAX)),
            reverse: false,
            limit: 1,
        };
        let rows = self.storage.scan(ROWS, range).await?;
        let Some((key, value)) = rows.first() else { return Ok(None) };
        Ok(Some(Head::decode(row::position_of(key, prefix)?, value)?.time))
    }
}
