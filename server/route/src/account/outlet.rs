//! Handing stanzas to sessions, and what happens to those that take no more.
//!
//! What must hold (DELIVERY 4): presence that a session has no room for waits, the last one of
//! each sender; other stanzas that nothing keeps are dropped; a record stays in the queue, and
//! the session, whose client does not read, is closed.

use std::task::Context;
use std::time::Duration;

use waystation_core::queue::RecordId;
use waystation_core::{
    MessageType, PresenceType, SessionId, Stanza, StanzaType, StreamCondition, StreamError,
};
use waystation_runtime::{Offer, wheel};

use super::{AccountRoute, Given, Link, first_room};
use crate::mail::SessionMail;

/// Most senders whose presence waits for one session.
const MAX_LATE: usize = 1_000;
/// How often it is offered again.
const LATE_PAUSE: Duration = Duration::from_secs(1);

/// Stanzas whose loss newer ones make good, and alerts that are not stored.
pub(super) fn is_ephemeral(stanza: &Stanza) -> bool {
    is_presence(stanza)
        || matches!(stanza.stanza_type(), StanzaType::Message(MessageType::Headline | MessageType::Error))
}

fn is_presence(stanza: &Stanza) -> bool {
    matches!(
        stanza.stanza_type(),
        StanzaType::Presence(PresenceType::Available | PresenceType::Unavailable | PresenceType::Error)
    )
}

impl AccountRoute {
    /// Offers a stanza to a session. A record that was taken is held by the session; counting
    /// it among the records that are out is the caller's.
    pub(super) fn try_give(&mut self, id: SessionId, stanza: &Stanza, record: Option<RecordId>) -> Given {
        let config = &self.router.config;
        let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == id) else { return Given::Gone };
        let given = match &mut handle.link {
            Link::Live(outlet) => {
                let mail = match record {
                    Some(record) => SessionMail::Record(stanza.clone(), record),
                    None => SessionMail::Stanza(stanza.clone()),
                };
                match outlet.offer(mail) {
                    Offer::Accepted => Given::Taken,
                    Offer::Full(_) => Given::Full,
                    Offer::Gone(_) => Given::Gone,
                }
            }
            Link::Detached(detached) => {
                if detached.push(stanza, record, config.detached_stanzas, config.detached_bytes) {
                    Given::Taken
                } else {
                    Given::Full
                }
            }
        };
        if let (Given::Taken, Some(record)) = (given, record) {
            first_room(&mut handle.held);
            handle.held.push_back(record);
        }
        given
    }

    /// Hands a stanza to a session; false when the session could not take it and leaves.
    pub(super) fn give(&mut self, id: SessionId, stanza: &Stanza, record: Option<RecordId>) -> bool {
        match self.try_give(id, stanza, record) {
            Given::Taken => {
                if let Some(record) = record {
                    self.records.hold(record, stanza.len());
                } else if is_presence(stanza)
                    && let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == id)
                {
                    // An older one that still waits for room must not come after it.
                    handle.late.retain(|older| older.from() != stanza.from());
                }
                return true;
            }
            Given::Full => self.overflow(id, stanza, record),
            // It has ended, and says by mail how: until then nothing overtakes this.
            Given::Gone => self.wait_for(id),
        }
        false
    }

    fn overflow(&mut self, id: SessionId, stanza: &Stanza, record: Option<RecordId>) {
        if record.is_none() && is_ephemeral(stanza) {
            let handle = self.handles.iter_mut().find(|handle| handle.id == id);
            if let (Some(handle), true) = (handle, is_presence(stanza)) {
                handle.late.retain(|older| older.from() != stanza.from());
                if handle.late.len() < MAX_LATE {
                    handle.late.push(stanza.clone());
                }
            }
            return;
        }
        let detached =
            self.handles.iter().any(|handle| handle.id == id && matches!(handle.link, Link::Detached(_)));
        if detached {
            tracing::info!(account = %self.account, "a session ended: too much waited for its client");
            return self.end_detached(id);
        }
        let error = StreamError::new(StreamCondition::PolicyViolation)
            .with_text("the client does not read what it is sent");
        self.close_session(id, error);
    }

    /// Offers late presence again.
    pub(super) fn flush_late(&mut self, cx: &mut Context<'_>) {
        let ids: Vec<_> = self.handles.iter().filter(|h| !h.late.is_empty()).map(|h| h.id).collect();
        for id in ids {
            let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == id) else { continue };
            let mut late = std::mem::take(&mut handle.late).into_iter();
            while let Some(stanza) = late.next() {
                if self.try_give(id, &stanza, None) != Given::Taken {
                    let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == id) else { break };
                    handle.late = std::iter::once(stanza).chain(late).collect();
                    wheel::wake_after(LATE_PAUSE, cx.waker().clone());
                    break;
                }
            }
        }
    }
}
