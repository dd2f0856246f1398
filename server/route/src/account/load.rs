//! Reading an account's state when its route starts, and again after a failed commit.
//!
//! What must hold: mail is handled only when all is there; what the queue held at the start is
//! found before newer records are handled, and none of it is handled twice.

use std::collections::VecDeque;
use std::sync::Arc;

use waystation_core::Jid;
use waystation_core::account::AccountPresence;
use waystation_core::queue::{QueueError, RecordId};
use waystation_core::storage::{ScanRange, StorageError};

use super::detached::StoredStream;
use super::{AccountRoute, State};
use crate::intake::{Stored, account_queue};
use crate::mail::AccountMail;
use crate::router::Router;
use crate::stream::{STREAMS, StreamRow, note_queue, parse_key, read_note, row_prefix};

/// Most stored sessions of an account that are looked at: those that may be resumed, and those
/// that ended within a day.
const MAX_STREAMS: usize = 10_000;
/// Most notes of a session.
const MAX_NOTES: usize = 10_000;

/// What was read.
pub(super) struct Loaded {
    /// Roster and presence; `None` when there is no such account.
    presence: Option<Box<dyn AccountPresence>>,
    /// What only a route that starts needs.
    first: Option<First>,
}

struct First {
    /// There is something in the queue.
    pending: bool,
    archived: RecordId,
    streams: Vec<StoredStream>,
}

fn queue_error(error: QueueError) -> StorageError {
    match error {
        QueueError::Closed => StorageError::Closed,
        other => StorageError::Io(other.to_string()),
    }
}

/// Reads all.
pub(super) fn first(router: &Arc<Router>, account: &Jid) -> State {
    let (router, account) = (router.clone(), account.clone());
    State::Loading(Box::pin(async move {
        let presence = match router.accounts.exists(account.clone()).await? {
            true => Some(router.presence.load(account.clone()).await?),
            false => None,
        };
        let backend = router.intake.backend();
        let stats = backend.stats(account_queue(&account)).await.map_err(queue_error)?;
        let archived = match &router.archive {
            Some(archive) if stats.pending > 0 => archive.newest(account.clone()).await?,
            _ => None,
        };
        let streams = streams(&router, &account).await?;
        let first = First { pending: stats.pending > 0, archived: archived.unwrap_or_default(), streams };
        Ok(Loaded { presence, first: Some(first) })
    }))
}

/// Reads roster and presence again.
pub(super) fn again(router: &Arc<Router>, account: &Jid) -> State {
    let (router, account) = (router.clone(), account.clone());
    State::Loading(Box::pin(async move {
        let presence = match router.accounts.exists(account.clone()).await? {
            true => Some(router.presence.load(account).await?),
            false => None,
        };
        Ok(Loaded { presence, first: None })
    }))
}

async fn streams(router: &Arc<Router>, account: &Jid) -> Result<Vec<StoredStream>, StorageError> {
    let prefix = row_prefix(account);
    let rows = router.storage.scan(STREAMS, ScanRange::prefix(prefix.clone(), MAX_STREAMS)).await?;
    let mut streams = Vec::new();
    for (row_key, value) in rows {
        let key = std::str::from_utf8(&row_key[prefix.len()..]).ok().and_then(parse_key);
        let (Some(key), Some(row)) = (key, StreamRow::parse(&value)) else {
            tracing::error!(%account, "a stored session is damaged and cannot be resumed");
            continue;
        };
        let backend = router.intake.backend();
        let accepted = backend.mark(key).await.map_err(queue_error)?.unwrap_or(0);
        let (mut sent, mut noted) = (Vec::new(), VecDeque::new());
        if matches!(row, StreamRow::Resumable { .. }) {
            let notes =
                backend.read(note_queue(key), None, MAX_NOTES, usize::MAX).await.map_err(queue_error)?;
            for note in notes {
                sent.extend(read_note(&note.payload));
                let last = sent.last().map_or(0, |(number, _)| *number);
                noted.push_back((last, Arc::new(Stored::at(note.id))));
            }
        }
        streams.push(StoredStream { key, row, accepted, sent, notes: noted });
    }
    Ok(streams)
}

impl AccountRoute {
    /// Takes up what was read.
    pub(super) fn loaded(&mut self, loaded: Loaded) {
        self.state = match loaded.presence {
            Some(presence) => State::Live(presence),
            None => State::Nobody,
        };
        let Some(First { pending, archived, streams }) = loaded.first else { return };
        // Records that were given to this route come by mail; all before the first of them,
        // and before those that were given to anyone when this route began, do not.
        let first = self.held.iter().find_map(|mail| match mail {
            AccountMail::Record(id, ..) => Some(id.0),
            _ => None,
        });
        self.records.seen = first.map_or(self.given_before, |first| self.given_before.min(first - 1));
        self.records.archived = archived;
        if matches!(self.state, State::Live(_)) {
            self.restore_streams(streams);
        }
        if pending {
            self.start_catch_up(RecordId(0), true);
        }
    }
}
