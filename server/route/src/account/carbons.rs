//! Copies of messages for the account's other sessions (XEP-0280).
//!
//! What must hold: a copy comes from the account's bare JID and goes to sessions that asked for
//! copies and did not get or send the message itself; what the sender marked as private, errors,
//! groupchat and messages of rooms are never copied; a copy is held like the message itself.

use waystation_core::queue::RecordId;
use waystation_core::{Condition, Element, MessageType, SessionId, Sign, Stanza, StanzaError, StanzaType};

use super::AccountRoute;

pub(super) const NS_CARBONS: &str = "urn:xmpp:carbons:2";
const NS_FORWARD: &str = "urn:xmpp:forward:0";
const NS_HINTS: &str = "urn:xmpp:hints";
const NS_MUC_USER: &str = "http://jabber.org/protocol/muc#user";

impl AccountRoute {
    /// Answers `<enable/>` and `<disable/>` of one of the account's own sessions (6.1, 6.2);
    /// both may be repeated.
    pub(super) fn carbons_request(&mut self, session: SessionId, request: &Stanza) -> Stanza {
        let enable = match request.child() {
            Some(("enable", _)) => Some(true),
            Some(("disable", _)) => Some(false),
            _ => None,
        };
        let set = matches!(request.stanza_type(), StanzaType::Iq(waystation_core::IqType::Set));
        let (Some(enable), true, Some(live)) = (enable, set, self.sessions.get_mut(session)) else {
            let error = StanzaError::from(Condition::BadRequest);
            // A request always has an error reply.
            return request.error_reply(&error).unwrap_or_else(|| request.result(None));
        };
        live.carbons = enable;
        self.store_stream(session);
        request.result(None)
    }

    /// Copies of a message that the account received; `given` are the sessions that got it. A chat
    /// state is in no queue and is copied all the same (9.2).
    pub(super) fn carbons_of_received(&mut self, id: Option<RecordId>, stanza: &Stanza, given: &[SessionId]) {
        let others = self.carbon_sessions(stanza, |session| !given.contains(&session));
        if !others.is_empty() && eligible(stanza) {
            self.copy(id, stanza, "received", &others);
        }
    }

    /// Copies of a message that one of the account's own sessions sent.
    pub(super) fn carbons_of_sent(&mut self, id: RecordId, stanza: &Stanza) {
        let sender =
            stanza.from().and_then(|from| from.resource()).and_then(|r| self.sessions.by_resource(r));
        let sender = sender.map(|session| session.id);
        let others = self.carbon_sessions(stanza, |session| Some(session) != sender);
        if !others.is_empty() && eligible(stanza) {
            self.copy(Some(id), &self.with_stanza_id(id, stanza), "sent", &others);
        }
    }

    /// The same for a record that was in the queue when the route was loaded: only restored
    /// sessions are there, and one of them may hold it already.
    pub(super) fn restore_carbons(
        &mut self,
        id: RecordId,
        stanza: &Stanza,
        copy: &Stanza,
        given: &[SessionId],
    ) {
        let ours = stanza.to().is_some_and(|to| to.bare_eq(&self.account));
        let sender = stanza.from().filter(|_| !ours).and_then(|from| from.resource());
        let sender = sender.and_then(|r| self.sessions.by_resource(r)).map(|session| session.id);
        let others =
            self.carbon_sessions(stanza, |session| !given.contains(&session) && Some(session) != sender);
        if others.is_empty() || !eligible(stanza) {
            return;
        }
        for session in others {
            if let Some(copy) = self.carbon(copy, if ours { "received" } else { "sent" }, session) {
                self.restore_record(id, ours.then_some(stanza.len()), &copy, &[session]);
            }
        }
    }

    fn carbon_sessions(&self, stanza: &Stanza, wanted: impl Fn(SessionId) -> bool) -> Vec<SessionId> {
        if !matches!(stanza.stanza_type(), StanzaType::Message(MessageType::Chat | MessageType::Normal)) {
            return Vec::new();
        }
        self.sessions.iter().filter(|s| s.carbons && wanted(s.id)).map(|s| s.id).collect()
    }

    fn copy(&mut self, id: Option<RecordId>, stanza: &Stanza, direction: &str, to: &[SessionId]) {
        for session in to {
            if let Some(copy) = self.carbon(stanza, direction, *session) {
                self.give(*session, &copy, id);
            }
        }
    }

    /// The message as a copy for one session (sections 5 and 6).
    fn carbon(&self, stanza: &Stanza, direction: &str, session: SessionId) -> Option<Stanza> {
        let to = self.sessions.get(session)?.jid.clone();
        let inner = [
            format!("<{direction} xmlns='{NS_CARBONS}'><forwarded xmlns='{NS_FORWARD}'>").as_bytes(),
            &stanza.with_namespace().to_bytes(),
            format!("</forwarded></{direction}>").as_bytes(),
        ]
        .concat();
        Some(Stanza::build(stanza.stanza_type(), Some(self.account.clone()), Some(to), None, &inner))
    }
}

/// Section 8.1: chat with or without a body, normal with one, and what XEP-0184 and 0085 carry
/// in chat; nothing private, nothing of a room.
fn eligible(stanza: &Stanza) -> bool {
    if !stanza.may_hold(&[Sign::Carbons, Sign::Hints, Sign::Muc]) && is_chat(stanza) {
        return true;
    }
    let Ok(element) = stanza.element() else { return false };
    if element.child("private", NS_CARBONS).is_some() || element.child("no-copy", NS_HINTS).is_some() {
        return false;
    }
    // A forged or repeated copy is not copied again.
    if element.child("sent", NS_CARBONS).is_some() || element.child("received", NS_CARBONS).is_some() {
        return false;
    }
    if element.child("x", NS_MUC_USER).is_some_and(|x| !is_invitation(x)) {
        return false;
    }
    is_chat(stanza) || element.child("body", "jabber:client").is_some()
}

fn is_chat(stanza: &Stanza) -> bool {
    stanza.stanza_type() == StanzaType::Message(MessageType::Chat)
}

fn is_invitation(x: &Element) -> bool {
    x.child("invite", NS_MUC_USER).is_some()
}
