//! Sparing a client that nobody looks at (XEP-0352).
//!
//! What must hold: while a client is inactive, presence waits, the last of each sender, and so
//! does what says nothing but what somebody is typing; whatever else comes takes what waits along, in
//! front of it, so that nothing is overtaken. Nothing that is stored is ever held back. What
//! waits counts against the session's credit, and is given back like the rest when it ends. A
//! stream, new or resumed, begins active (5.2).

use waystation_core::{MessageType, PresenceType, Stanza, StanzaType};

use super::Link;
use super::stream_management::Kept;

/// `urn:xmpp:csi:0`
pub(crate) const NS_CLIENT_STATE: &str = "urn:xmpp:csi:0";

#[derive(Default)]
pub(super) struct ClientState {
    inactive: bool,
    /// What waits, in order; at most one presence and one message of a sender.
    waiting: Vec<Kept>,
}

impl ClientState {
    /// What waits, for the end of the session.
    pub(super) fn take(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.waiting)
    }
}

/// True for stanzas that can wait until somebody looks.
fn can_wait(kept: &Kept) -> bool {
    kept.record.is_none()
        && match kept.stanza.stanza_type() {
            StanzaType::Presence(PresenceType::Available | PresenceType::Unavailable) => true,
            // One that nothing stores and that has a chat state first is a chat state alone.
            StanzaType::Message(MessageType::Chat | MessageType::Normal) => {
                kept.stanza.child().is_some_and(|(_, ns)| ns == "http://jabber.org/protocol/chatstates")
            }
            _ => false,
        }
}

fn replaces(newer: &Stanza, older: &Stanza) -> bool {
    newer.kind() == older.kind() && newer.from() == older.from()
}

impl Link {
    /// `<active/>` and `<inactive/>`; neither has an answer.
    pub(super) fn client_state_element(&mut self, name: &str) -> bool {
        match name {
            "active" => {
                self.client_state.inactive = false;
                self.outgoing.extend(self.client_state.take());
            }
            "inactive" => self.client_state.inactive = true,
            _ => return false,
        }
        true
    }

    /// Takes up what is to be sent, now or later.
    pub(super) fn take_up(&mut self, kept: Kept) {
        if !self.client_state.inactive {
            return self.outgoing.push_back(kept);
        }
        if !can_wait(&kept) {
            self.outgoing.extend(self.client_state.take());
            return self.outgoing.push_back(kept);
        }
        let waiting = &mut self.client_state.waiting;
        if let Some(index) = waiting.iter().position(|older| replaces(&kept.stanza, &older.stanza)) {
            let older = waiting.remove(index);
            if older.charged {
                self.inlet.release(older.weight(), 1);
            }
        }
        waiting.push(kept);
    }
}
