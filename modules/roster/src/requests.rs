//! Subscription stanzas (RFC 6121 3): the state machine's outcomes turned into effects.
//!
//! What must hold: they leave from bare JID to bare JID; a state is stored before anyone hears of
//! it; no request adds an item to the roster before the account approves it (RFC 6121 3.1.3).

use waystation_core::account::{Effect, Effects, LiveSession, Persist, Sessions, Step};
use waystation_core::error::{Condition, StanzaError};
use waystation_core::stanza::NS_CLIENT;
use waystation_core::xml::escape_text;
use waystation_core::{Jid, PresenceType, Stanza, StanzaType};

use crate::account::{Account, full};
use crate::contact::Contact;
use crate::subscription::{Request, inbound, outbound};

/// Most bytes of status text that are kept of a request that is too long to be kept whole.
const MAX_STATUS: usize = 1024;
/// Longest id that such a request keeps.
const MAX_ID: usize = 128;

impl Request {
    fn of(stanza: &Stanza) -> Option<Self> {
        match stanza.stanza_type() {
            StanzaType::Presence(PresenceType::Subscribe) => Some(Self::Subscribe),
            StanzaType::Presence(PresenceType::Subscribed) => Some(Self::Subscribed),
            StanzaType::Presence(PresenceType::Unsubscribe) => Some(Self::Unsubscribe),
            StanzaType::Presence(PresenceType::Unsubscribed) => Some(Self::Unsubscribed),
            _ => None,
        }
    }

    pub(crate) fn presence_type(self) -> PresenceType {
        match self {
            Self::Subscribe => PresenceType::Subscribe,
            Self::Subscribed => PresenceType::Subscribed,
            Self::Unsubscribe => PresenceType::Unsubscribe,
            Self::Unsubscribed => PresenceType::Unsubscribed,
        }
    }
}

impl Account {
    /// A subscription stanza that a session of the account sends (Appendix A.2).
    ///
    /// # Errors
    /// `bad-request` without `to`, `not-allowed` to the account itself, `policy-violation` when
    /// the roster has no room for the new item.
    pub(crate) fn send_request(
        &mut self,
        sessions: &mut Sessions,
        presence: &Stanza,
        effects: &mut Effects,
    ) -> Result<(), StanzaError> {
        let Some(request) = Request::of(presence) else { return Ok(()) };
        let Some(to) = presence.to() else { return Err(Condition::BadRequest.into()) };
        // A full JID stands for its bare one (RFC 6121 3.1.2).
        let jid = to.to_bare();
        if jid == *self.jid() {
            return Err(Condition::NotAllowed.into());
        }
        if self.removed {
            return Ok(());
        }
        let old = self.roster.contact(jid.as_str()).cloned().unwrap_or_default();
        let outcome = outbound(old.state, old.approved, request);
        let routed = || presence.readdressed(Some(self.jid().clone()), Some(jid.clone()));
        if outcome.state == old.state && outcome.approved == old.approved {
            if outcome.route {
                effects.route(routed());
            }
            return Ok(());
        }
        let lost = old.state.is_from() && !outcome.state.is_from();
        let gained = !old.state.is_from() && outcome.state.is_from();
        let contact = Contact {
            listed: old.listed || matches!(request, Request::Subscribe | Request::Subscribed),
            state: outcome.state,
            approved: outcome.approved,
            request: old.request.filter(|_| outcome.state.is_pending_in()),
            ..old
        };
        if !self.roster.has_room(&jid, &contact, &self.config) {
            return Err(full());
        }
        let mut then = Vec::new();
        if lost {
            self.withdraw_presence(sessions, &jid, &mut then);
        }
        if outcome.route {
            then.push(Effect::Route(routed()));
        }
        let listed = contact.listed;
        let batch = self.store(&jid, contact, listed);
        if listed {
            self.push(sessions, &jid, &mut then);
        }
        if gained {
            self.send_presence(sessions, &jid, &mut then);
        }
        effects.persist(Persist { batch, then, request: Some(presence.clone()) });
        Ok(())
    }

    /// A subscription stanza that the account gets (Appendix A.3).
    pub(crate) fn receive_request(
        &mut self,
        sessions: &mut Sessions,
        presence: &Stanza,
        effects: &mut Effects,
    ) {
        let (Some(request), Some(from), Some(to)) = (Request::of(presence), presence.from(), presence.to())
        else {
            return;
        };
        let jid = from.to_bare();
        if self.removed || jid == *self.jid() {
            return;
        }
        if request != Request::Subscribe
            && to.resource().is_some_and(|resource| sessions.by_resource(resource).is_none())
        {
            // RFC 6121 8.5.3.2.2.
            return;
        }
        let old = self.roster.contact(jid.as_str()).cloned().unwrap_or_default();
        let outcome = inbound(old.state, old.approved, request);
        let reply = outcome.reply.map(|reply| {
            Effect::Route(Self::presence(self.jid(), &jid, reply.presence_type(), presence.raw_id()))
        });
        let mut then = Vec::new();
        if outcome.state == old.state {
            then.extend(reply);
            if outcome.reply == Some(Request::Subscribed) {
                // A subscriber that asks again has lost the presence, too.
                self.send_presence(sessions, &jid, &mut then);
            }
            effects.steps.extend(then.into_iter().map(Step::Now));
            return;
        }
        let kept = if outcome.state.is_pending_in() && !old.state.is_pending_in() {
            let Some(kept) = self.keep(presence, &jid) else { return };
            Some(kept)
        } else {
            None
        };
        let delivered = outcome.deliver.then(|| match &kept {
            Some(kept) => kept.clone(),
            None => presence.readdressed(Some(jid.clone()), Some(self.jid().clone())),
        });
        let contact = Contact {
            state: outcome.state,
            request: match kept {
                Some(kept) => Some(kept.to_bytes()),
                None => old.request.filter(|_| outcome.state.is_pending_in()),
            },
            ..old
        };
        // Only items of the roster ever change in these two.
        let seen = (old.state.attribute(), old.state.is_pending_out())
            != (outcome.state.attribute(), outcome.state.is_pending_out());
        if let Some(delivered) = delivered {
            // Requests go to available resources, what changes a subscription to interested ones
            // (RFC 6121 3.1.3, 3.1.6, 3.2.3, 3.3.3).
            let hears = |session: &&LiveSession| match request {
                Request::Subscribe => session.is_available(),
                _ => session.interested,
            };
            sessions.iter().filter(hears).for_each(|s| effects.deliver(s.id, delivered.clone()));
        }
        let batch = self.store(&jid, contact, seen);
        if seen {
            self.push(sessions, &jid, &mut then);
        }
        if old.state.is_from() && !outcome.state.is_from() {
            self.withdraw_presence(sessions, &jid, &mut then);
        }
        then.extend(reply);
        if !old.state.is_from() && outcome.state.is_from() {
            self.send_presence(sessions, &jid, &mut then);
        }
        effects.persist(Persist { batch, then, request: Some(presence.clone()) });
    }

    /// The form in which a request is kept and delivered; `None` when there is no room for it.
    fn keep(&self, presence: &Stanza, from: &Jid) -> Option<Stanza> {
        let (count, bytes) = self.roster.pending_requests();
        if count >= self.config.max_requests() {
            tracing::debug!(account = ?self.jid(), "too many subscription requests wait, another is ignored");
            return None;
        }
        let whole = presence.readdressed(Some(from.clone()), Some(self.jid().clone()));
        let room = self.config.max_requests_bytes.saturating_sub(bytes);
        if whole.len() <= self.config.max_request_bytes.min(room) {
            return Some(whole);
        }
        let status = if room == 0 { None } else { status_start(&whole, MAX_STATUS.min(room)) };
        let mut content = Vec::new();
        if let Some(status) = status {
            content.extend_from_slice(b"<status>");
            escape_text(&status, &mut content);
            content.extend_from_slice(b"</status>");
        }
        let raw_id = whole.raw_id().filter(|id| id.len() <= MAX_ID);
        let kind = StanzaType::Presence(PresenceType::Subscribe);
        Some(Stanza::build(kind, Some(from.clone()), Some(self.jid().clone()), raw_id, content))
    }
}

/// The start of the first status text, cut between characters to at most `max` bytes.
fn status_start(presence: &Stanza, max: usize) -> Option<String> {
    let mut status = presence.element().ok()?.child("status", NS_CLIENT)?.text();
    status.truncate(status.floor_char_boundary(max));
    Some(status)
}
