//! How much presence a client may send (SECURITY M4, DELIVERY 4): one stanza of it can make a
//! thousand, and one client can ask ten thousand strangers for theirs.
//!
//! What must hold: a session above its rate is not punished, only read more slowly; a stanza that
//! is refused for its recipient is answered by name, and nothing else of the client suffers; the
//! end of presence always goes through, or whoever got its beginning would keep it.

use std::time::{Duration, Instant};

use waystation_core::{Condition, ErrorType, PresenceType, Stanza, StanzaError, StanzaType};

use super::Link;
use super::rate::Bucket;
use crate::context::Limits;

/// The buckets of one session, in stanzas.
pub(super) struct PresenceRate {
    broadcast: Bucket,
    addressed: Bucket,
}

impl PresenceRate {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { broadcast: Bucket::new(limits.broadcasts), addressed: Bucket::new(limits.presence) }
    }

    /// Counts a presence; how long to pause before the next stanza, if at all.
    pub(super) fn spend(&mut self, presence: &Stanza) -> Option<Duration> {
        match presence.to() {
            None => self.broadcast.spend(1),
            Some(_) => self.addressed.spend(1),
        }
    }
}

impl Link {
    /// Why a presence may not go to whom it is for, if it may not.
    pub(super) fn presence_refusal(&self, presence: &Stanza) -> Option<StanzaError> {
        let to = presence.to()?;
        match presence.stanza_type() {
            // The others answer somebody, or end what was there before.
            StanzaType::Presence(PresenceType::Available | PresenceType::Subscribe | PresenceType::Probe) => {
            }
            _ => return None,
        }
        let wait = self.shared.recipients.take(&self.bare, to, Instant::now()).err()?;
        tracing::debug!(session = %self.jid, "presence to too many recipients");
        let text = format!("presence to too many new addresses; try again in {} s", wait.as_secs() + 1);
        Some(
            StanzaError::new(Condition::PolicyViolation)
                .with_type(ErrorType::Wait)
                .with_text(text)
                .with_application("<too-many-stanzas xmlns='urn:xmpp:errors'/>"),
        )
    }
}
