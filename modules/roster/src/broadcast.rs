//! Presence that the account's sessions send (RFC 6121 4.2, 4.4 to 4.6) and that they get.
//!
//! What must hold: whoever got available presence of a session gets unavailable presence when it
//! ends, unless the session or a cancelled subscription told them before.

use std::collections::BTreeSet;

use waystation_core::account::{Effects, LiveSession, MAX_DIRECTED, Sessions};
use waystation_core::error::{Condition, StanzaError};
use waystation_core::stanza::NS_CLIENT;
use waystation_core::xml::Node;
use waystation_core::{Jid, PresenceType, SessionId, Stanza};

use crate::account::Account;

impl Account {
    /// Presence without `to` and type: initial, or an update (RFC 6121 4.2.2, 4.4.2).
    pub(crate) fn broadcast_available(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        presence: &Stanza,
        effects: &mut Effects,
    ) {
        let first = sessions.available().next().is_none();
        let Some(session) = sessions.get_mut(id) else { return };
        let priority = match self.check_broadcast(presence).and_then(|()| priority(presence)) {
            Ok(priority) => priority,
            Err(error) => return Self::refuse(id, presence, &error, effects),
        };
        let initial = !session.is_available();
        let presence = presence.readdressed(Some(session.jid.clone()), None);
        session.priority = priority;
        session.presence = Some(presence.clone());
        self.broadcast(sessions, &presence, effects);
        if initial {
            self.greet(sessions, id, first, effects);
        }
    }

    fn check_broadcast(&self, presence: &Stanza) -> Result<(), StanzaError> {
        if presence.len() > self.config.max_presence_bytes {
            let text = "the presence is too long to be broadcast";
            return Err(StanzaError::new(Condition::PolicyViolation).with_text(text));
        }
        Ok(())
    }

    /// Sends presence to subscribers and to all available resources of the account.
    fn broadcast(&self, sessions: &Sessions, presence: &Stanza, effects: &mut Effects) {
        for jid in self.roster.subscribers() {
            effects.route(presence.readdressed(presence.from().cloned(), Some(jid.clone())));
        }
        let to_self = presence.readdressed(presence.from().cloned(), Some(self.jid().clone()));
        for session in sessions.available() {
            effects.to_session(session.id, to_self.clone());
        }
    }

    /// What a new available resource brings about: it learns of the other resources, contacts are
    /// asked for theirs (RFC 6121 4.3.1), it hears of requests that wait (3.1.3), and requests of
    /// the account that stay unanswered are sent again if it is the `first` resource (3.1.2).
    fn greet(&self, sessions: &Sessions, id: SessionId, first: bool, effects: &mut Effects) {
        for other in sessions.available().filter(|session| session.id != id) {
            if let Some(presence) = &other.presence {
                let to = Some(self.jid().clone());
                effects.to_session(id, presence.readdressed(Some(other.jid.clone()), to));
            }
        }
        let full = sessions.get(id).map_or(self.jid(), |session| &session.jid);
        for (jid, contact) in self.roster.contacts() {
            if contact.state.is_to() {
                // To another domain a probe comes from the bare JID (4.3.1). Within one domain no
                // probe is seen by anyone, and its answer need not go to resources that have it.
                let from = if jid.domain() == full.domain() { full } else { self.jid() };
                effects.route(Self::presence(from, jid, PresenceType::Probe, None));
            } else if contact.state.is_pending_out() && first {
                let raw_id = self.ids.stanza_id();
                effects.route(Self::presence(self.jid(), jid, PresenceType::Subscribe, Some(&raw_id)));
            }
            let Some(request) = &contact.request else { continue };
            match Stanza::parse(request) {
                Ok(request) => effects.to_session(id, request),
                Err(_) => tracing::error!(account = ?self.jid(), "a stored subscription request is damaged"),
            }
        }
    }

    /// Unavailable presence without `to` (RFC 6121 4.5.2).
    pub(crate) fn broadcast_unavailable(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        presence: &Stanza,
        effects: &mut Effects,
    ) {
        let Some(session) = sessions.get_mut(id) else { return };
        if let Err(error) = self.check_broadcast(presence) {
            return Self::refuse(id, presence, &error, effects);
        }
        let presence = presence.readdressed(Some(session.jid.clone()), None);
        let was_available = session.presence.take().is_some();
        session.priority = 0;
        let directed = std::mem::take(&mut session.directed);
        if was_available {
            let to_self = presence.readdressed(presence.from().cloned(), Some(self.jid().clone()));
            effects.to_session(id, to_self);
        }
        self.end_presence(sessions, was_available, &directed, &presence, effects);
    }

    /// Sends the unavailable presence that a session owes which is available no more.
    pub(crate) fn end_presence(
        &mut self,
        sessions: &Sessions,
        was_available: bool,
        directed: &BTreeSet<Jid>,
        presence: &Stanza,
        effects: &mut Effects,
    ) {
        if was_available {
            self.broadcast(sessions, presence, effects);
        }
        for jid in directed {
            // The broadcast reached those already.
            if !(was_available && self.shares_presence(jid)) {
                effects.route(presence.readdressed(presence.from().cloned(), Some(jid.clone())));
            }
        }
        if was_available {
            self.note_unavailable(sessions, effects);
        }
    }

    /// True when `jid` gets the broadcasts of the account.
    fn shares_presence(&self, jid: &Jid) -> bool {
        jid.bare_eq(self.jid()) || self.roster.is_subscriber(jid.bare_str())
    }

    /// Available presence to someone (RFC 6121 4.6.3). Over [`MAX_DIRECTED`] recipients who would
    /// be owed an unavailable one it is refused with `resource-constraint`, and not sent.
    pub(crate) fn direct_available(
        &self,
        sessions: &mut Sessions,
        id: SessionId,
        presence: Stanza,
        effects: &mut Effects,
    ) {
        let (Some(session), Some(to)) = (sessions.get_mut(id), presence.to()) else { return };
        let owed = !(session.is_available() && self.shares_presence(to));
        if owed && !session.directed.contains(to) {
            if session.directed.len() >= MAX_DIRECTED {
                let error = StanzaError::new(Condition::ResourceConstraint)
                    .with_text("presence was sent to too many; send unavailable presence to some first");
                return Self::refuse(id, &presence, &error, effects);
            }
            session.directed.insert(to.clone());
        }
        effects.route(presence);
    }

    /// Unavailable presence to someone (RFC 6121 4.6.3); to a bare JID it stands for all resources.
    pub(crate) fn direct_unavailable(
        sessions: &mut Sessions,
        id: SessionId,
        presence: Stanza,
        effects: &mut Effects,
    ) {
        let (Some(session), Some(to)) = (sessions.get_mut(id), presence.to()) else { return };
        forget(session, to);
        effects.route(presence);
    }

    /// Who sends unavailable presence is owed none (RFC 6121 4.6.1).
    pub(crate) fn forget_directed(sessions: &mut Sessions, presence: &Stanza) {
        let (Some(from), Some(to)) = (presence.from(), presence.to()) else { return };
        for session in sessions.iter_mut().filter(|session| to.is_bare() || session.jid == *to) {
            forget(session, from);
        }
    }

    /// Presence, or a presence error, for the account (RFC 6121 8.5.2.1.2, 8.5.3).
    pub(crate) fn deliver(sessions: &Sessions, presence: Stanza, effects: &mut Effects) {
        match presence.to().and_then(Jid::resource) {
            None => {
                for session in sessions.available() {
                    effects.to_session(session.id, presence.clone());
                }
            }
            Some(resource) => {
                if let Some(session) = sessions.by_resource(resource) {
                    effects.to_session(session.id, presence);
                }
            }
        }
    }
}

fn forget(session: &mut LiveSession, jid: &Jid) {
    if jid.is_bare() {
        session.directed.retain(|directed| !directed.bare_eq(jid));
    } else {
        session.directed.remove(jid);
    }
}

/// The priority of available presence (RFC 6121 4.7.2.3).
///
/// # Errors
/// `bad-request` when there are two, or it is no integer from -128 to 127.
fn priority(presence: &Stanza) -> Result<i8, StanzaError> {
    // Most presence after the first has no child, and none needs a tree then.
    if presence.child().is_none() {
        return Ok(0);
    }
    let bad = |text| StanzaError::new(Condition::BadRequest).with_text(text);
    let element = presence.element().map_err(|_| Condition::BadRequest)?;
    let mut priorities = element.children().filter(|child| child.is("priority", NS_CLIENT));
    let Some(priority) = priorities.next() else { return Ok(0) };
    if priorities.next().is_some() {
        return Err(bad("a presence has one priority at most"));
    }
    if priority.nodes().iter().any(|node| matches!(node, Node::Element(_))) {
        return Err(bad("the priority is not an integer"));
    }
    let text = priority.text();
    text.trim().parse().map_err(|_| bad("the priority is not an integer from -128 to 127"))
}
