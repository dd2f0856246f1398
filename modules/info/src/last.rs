//! When an account was last there (XEP-0012 3).
//!
//! On disk, in the space `last_activity`: the bare JID, holding milliseconds since 1970 as a
//! big-endian number and the status of the last unavailable presence.
//!
//! What must hold: nothing is kept of an account that was removed, also when its sessions end
//! only after its removal.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use waystation_core::account::{IqHandler, IqRequest};
use waystation_core::datetime::Timestamp;
use waystation_core::module::{AccountRemoved, SessionObserver};
use waystation_core::stanza::NS_CLIENT;
use waystation_core::storage::{Batch, BoxFuture, Space, Storage, StorageError, key};
use waystation_core::{Condition, Element, Jid, Stanza};

use crate::{NS_LAST, Reply, refuse_stranger};

const SPACE: Space = Space("last_activity");

/// Longest status that is kept, in bytes; a longer one is cut.
const MAX_STATUS: usize = 1_024;

/// Removed accounts that are remembered until their sessions have ended. With more removals
/// than this under way at once, the oldest are forgotten.
const MAX_REMOVED: usize = 1_024;

pub(crate) struct LastActivity {
    storage: Arc<dyn Storage>,
    /// Accounts that were removed and have not had a session since.
    removed: Mutex<VecDeque<Jid>>,
    /// Records on their way to the store, so that a query sees them at once. As many as there
    /// are commits under way.
    pending: Arc<Mutex<HashMap<Jid, Bytes>>>,
}

impl LastActivity {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, removed: Mutex::default(), pending: Arc::default() }
    }

    fn removed(&self) -> MutexGuard<'_, VecDeque<Jid>> {
        // No change of the list can be left half done by a panic.
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IqHandler for LastActivity {
    fn handle(&self, request: IqRequest) -> Reply {
        // XEP-0012 3 would have strangers told `forbidden`; that would tell that the account
        // exists, unlike the answer that RFC 6121 8.5.1 demands for one that does not.
        if let Err(error) = refuse_stranger(&request) {
            return Box::pin(async { Err(error) });
        }
        let storage = self.storage.clone();
        let pending = lock(&self.pending).get(request.target.bare_str()).cloned();
        Box::pin(async move {
            let query = Element::new("query", NS_LAST);
            if request.available {
                return Ok(Some(query.with_attr("seconds", "0")));
            }
            let record = match pending {
                Some(record) => Some(record),
                None => storage.get(SPACE, account_key(&request.target)).await?,
            };
            let Some(record) = record else {
                // It was never there.
                return Err(Condition::ServiceUnavailable.into());
            };
            let (left, status) = read(&record).inspect_err(|error| {
                tracing::error!(account = %request.target, %error, "last activity cannot be read");
            })?;
            let seconds = Timestamp::now().seconds_since(left);
            Ok(Some(query.with_attr("seconds", seconds.to_string()).with_text(&status)))
        })
    }
}

impl SessionObserver for LastActivity {
    fn session_opened(&self, session: &Jid) {
        self.removed().retain(|account| !account.bare_eq(session));
    }

    fn session_unavailable(&self, session: &Jid, others: usize, presence: Option<&Stanza>) {
        if others > 0 || self.removed().iter().any(|account| account.bare_eq(session)) {
            return;
        }
        let status = presence.and_then(status).unwrap_or_default();
        let record = Bytes::from(record(Timestamp::now(), &status));
        let account = session.to_bare();
        lock(&self.pending).insert(account.clone(), record.clone());
        let commit = self.storage.commit(Batch::new().put(SPACE, account_key(session), record.clone()));
        let pending = self.pending.clone();
        tokio::spawn(async move {
            if let Err(error) = commit.await {
                tracing::warn!(%account, %error, "last activity could not be stored");
            }
            let mut pending = lock(&pending);
            // A newer record may have taken its place.
            if pending.get(&account) == Some(&record) {
                pending.remove(&account);
            }
        });
    }
}

impl AccountRemoved for LastActivity {
    fn account_removed(&self, account: Jid) -> BoxFuture<'static, Result<(), StorageError>> {
        let mut removed = self.removed();
        if removed.len() >= MAX_REMOVED {
            removed.pop_front();
        }
        removed.push_back(account.to_bare());
        lock(&self.pending).remove(&account.to_bare());
        self.storage.commit(Batch::new().delete(SPACE, account_key(&account)))
    }
}

fn lock(pending: &Mutex<HashMap<Jid, Bytes>>) -> MutexGuard<'_, HashMap<Jid, Bytes>> {
    // No change of the map can be left half done by a panic.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text of a presence's first status.
fn status(presence: &Stanza) -> Option<String> {
    let mut status = presence.element().ok()?.child("status", NS_CLIENT)?.text();
    let mut end = MAX_STATUS.min(status.len());
    while !status.is_char_boundary(end) {
        end -= 1;
    }
    status.truncate(end);
    Some(status)
}

fn account_key(jid: &Jid) -> Bytes {
    key(&[jid.bare_str()])
}

fn record(left: Timestamp, status: &str) -> Vec<u8> {
    [&left.unix_millis().to_be_bytes(), status.as_bytes()].concat()
}

fn read(record: &[u8]) -> Result<(Timestamp, String), StorageError> {
    let damaged = || StorageError::Corrupt("a record of last activity".into());
    let (millis, status) = record.split_first_chunk().ok_or_else(damaged)?;
    let left = Timestamp::from_unix_millis(i64::from_be_bytes(*millis)).ok_or_else(damaged)?;
    Ok((left, String::from_utf8(status.to_vec()).map_err(|_| damaged())?))
}
