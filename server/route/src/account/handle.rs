//! What the route does with each piece of mail (RFC 6121 8.5).
//!
//! What must hold: a stanza for the account is delivered, stored, answered or, where the RFC
//! wants silence, dropped; the answers to strangers do not tell whether an account or a
//! resource exists.

use std::time::SystemTime;

use waystation_core::account::{Effects, LiveSession, Relation};
use waystation_core::module::Scope;
use waystation_core::{
    Condition, IqType, Kind, MessageType, PresenceType, SessionId, Stanza, StanzaType, StreamCondition,
    StreamError,
};
use waystation_runtime::Offer;

use super::{AccountRoute, Handle, State};
use crate::delivery::{self, Delivery};
use crate::iq::Asked;
use crate::mail::{AccountMail, BindError, BindRequest, Binding, CloseWhich, SessionInfo, SessionMail};
use crate::router::Origin;

/// Stanzas whose loss newer ones make good, and alerts that are not stored.
pub(super) fn is_ephemeral(stanza: &Stanza) -> bool {
    matches!(
        stanza.stanza_type(),
        StanzaType::Presence(PresenceType::Available | PresenceType::Unavailable | PresenceType::Error)
            | StanzaType::Message(MessageType::Headline | MessageType::Error)
    )
}

impl AccountRoute {
    /// Handles one mail; gives it back when it must wait for a session to leave.
    pub(super) fn handle(&mut self, mail: AccountMail) -> Option<AccountMail> {
        match mail {
            AccountMail::Inbound(stanza, origin) => return self.inbound(stanza, origin),
            AccountMail::Outbound(id, stanza, token) => {
                self.outbound(id, stanza);
                self.enqueue_token(token);
            }
            AccountMail::Bind(request, reply) => {
                // A client that has gone meanwhile drops the binding, which unbinds it.
                let _ = reply.send(self.bind(*request));
            }
            AccountMail::Unbind(id, leftovers) => {
                self.leaving.retain(|leaving| *leaving != id);
                self.unbind(id);
                for stanza in leftovers {
                    self.undelivered(stanza);
                }
            }
            AccountMail::ToSession(stanza) => {
                let resource = stanza.to().and_then(|to| to.resource());
                if let Some(id) = resource.and_then(|r| self.sessions.by_resource(r)).map(|s| s.id) {
                    self.give(id, &stanza);
                }
            }
            AccountMail::Close(which, error) => {
                for id in self.which(&which) {
                    self.close_session(id, error.clone());
                }
            }
            AccountMail::Describe(reply) => {
                // The asker may have gone.
                let _ = reply.send(self.describe());
            }
            AccountMail::Remove(except, reply) => {
                let mut effects = Effects::default();
                if let State::Live(presence) = &mut self.state {
                    presence.account_removed(&mut self.sessions, &mut effects);
                }
                self.enqueue(effects);
                let which = except.map_or(CloseWhich::All, CloseWhich::AllBut);
                for id in self.which(&which) {
                    let error =
                        StreamError::new(StreamCondition::NotAuthorized).with_text("the account was removed");
                    self.close_session(id, error);
                }
                self.enqueue_removed(reply);
            }
        }
        None
    }

    fn bind(&mut self, request: BindRequest) -> Result<Binding, BindError> {
        if !matches!(self.state, State::Live(_)) {
            return Err(BindError::NoAccount);
        }
        let resource = request.resource.unwrap_or_else(random_resource);
        let jid = self.account.with_resource(&resource).map_err(|_| BindError::Malformed)?;
        // RFC 6120 7.7.2.2: the newer session wins, for the older one is most often a
        // connection that is dead and does not know it.
        let conflicting = jid.resource().and_then(|r| self.sessions.by_resource(r)).map(|s| s.id);
        if conflicting.is_none() && self.sessions.len() >= self.router.config.sessions_per_account {
            return Err(BindError::TooMany);
        }
        if let Some(old) = conflicting {
            let error = StreamError::new(StreamCondition::Conflict).with_text("replaced by a newer session");
            self.close_session(old, error);
        }
        let id = self.router.new_session_id();
        // Most accounts have one session: room for more is made when they come.
        self.handles.reserve_exact(1);
        self.handles.push(Handle {
            id,
            outlet: request.outlet,
            peer: request.peer,
            security: request.security,
            since: SystemTime::now(),
        });
        self.sessions.insert(LiveSession::new(id, jid.clone()));
        for observer in &self.router.observers {
            observer.session_opened(&jid);
        }
        Ok(Binding::new(id, jid, request.inlet, self.router.clone()))
    }

    /// Forgets a session; a stale call finds nothing.
    fn unbind(&mut self, id: SessionId) {
        self.handles.retain(|handle| handle.id != id);
        let Some(closed) = self.sessions.remove(id) else { return };
        if closed.is_available() {
            self.tell_observers(&closed.jid, None);
        }
        let mut effects = Effects::default();
        if let State::Live(presence) = &mut self.state {
            presence.session_closed(&mut self.sessions, closed, &mut effects);
        }
        self.enqueue(effects);
    }

    fn tell_observers(&self, jid: &waystation_core::Jid, unavailable: Option<&Stanza>) {
        let others = self.sessions.available().filter(|s| s.jid != *jid).count();
        for observer in &self.router.observers {
            observer.session_unavailable(jid, others, unavailable);
        }
    }

    /// Tells a session to close and forgets it; what it did not write comes with its unbind.
    pub(super) fn close_session(&mut self, id: SessionId, error: StreamError) {
        let Some(handle) = self.handles.iter().find(|h| h.id == id) else { return };
        // Gone: it has ended by itself, and its unbind is on the way as well.
        let _ = handle.outlet.offer_control(SessionMail::Close(error));
        self.leaving.push(id);
        self.unbind(id);
    }

    fn which(&self, which: &CloseWhich) -> Vec<SessionId> {
        self.sessions
            .iter()
            .filter(|s| match which {
                CloseWhich::All => true,
                CloseWhich::AllBut(id) => s.id != *id,
                CloseWhich::Resource(resource) => s.jid.resource() == Some(resource),
            })
            .map(|s| s.id)
            .collect()
    }

    fn describe(&self) -> Vec<SessionInfo> {
        self.sessions
            .iter()
            .filter_map(|s| {
                let handle = self.handles.iter().find(|h| h.id == s.id)?;
                Some(SessionInfo {
                    jid: s.jid.clone(),
                    peer: handle.peer,
                    security: handle.security,
                    since: handle.since,
                    priority: s.is_available().then_some(s.priority),
                })
            })
            .collect()
    }

    /// A stanza of one of the account's own sessions.
    fn outbound(&mut self, id: SessionId, stanza: Stanza) {
        // A session that was closed may still have mail on the way: it speaks no more.
        let Some(session) = self.sessions.get(id) else { return };
        let StanzaType::Presence(_) = stanza.stanza_type() else {
            // Sent this way only so that it does not overtake presence.
            if let crate::Routed::Busy(stanza) = self.router.route(stanza, Origin::Session(id))
                && let Some(to) = stanza.to().cloned()
            {
                self.router.control(&to, AccountMail::Inbound(stanza, Some(id)));
            }
            return;
        };
        let receives = |s: &LiveSession| s.is_available() && s.priority >= 0;
        let (was_available, was_receiving) = (session.is_available(), receives(session));
        let mut effects = Effects::default();
        if let State::Live(presence) = &mut self.state {
            presence.outbound(&mut self.sessions, id, stanza.clone(), &mut effects);
        }
        self.enqueue(effects);
        let Some(session) = self.sessions.get(id) else { return };
        if was_available && !session.is_available() {
            let jid = session.jid.clone();
            self.tell_observers(&jid, Some(&stanza));
        } else if !was_receiving && receives(session) {
            self.start_drain(id);
        }
    }

    /// A stanza for the account.
    fn inbound(&mut self, stanza: Stanza, origin: Option<SessionId>) -> Option<AccountMail> {
        match stanza.kind() {
            Kind::Message => return self.message(stanza, origin),
            Kind::Iq => return self.iq(stanza, origin),
            Kind::Presence => {
                let mut effects = Effects::default();
                if let State::Live(presence) = &mut self.state {
                    presence.inbound(&mut self.sessions, stanza, &mut effects);
                } else if stanza.stanza_type() == StanzaType::Presence(PresenceType::Probe)
                    && let Some(refusal) = waystation_core::account::refuse_probe(&stanza)
                {
                    // What an account answers to a stranger (8.5.1, SECURITY M4).
                    effects.route(refusal);
                }
                self.enqueue(effects);
            }
        }
        None
    }

    fn message(&mut self, stanza: Stanza, origin: Option<SessionId>) -> Option<AccountMail> {
        let delivery = match self.state {
            State::Live(_) => delivery::message(&self.sessions, &stanza),
            _ => delivery::message_to_nobody(&stanza),
        };
        match delivery {
            Delivery::Ignore => {}
            Delivery::Bounce => self.router.refuse(&stanza, &Condition::ServiceUnavailable.into()),
            Delivery::Store => self.store_or_refuse(stanza),
            Delivery::To(targets) => {
                let exact = stanza.to().is_some_and(|to| !to.is_bare() && targets.len() == 1);
                if self.is_draining() && !exact && waystation_core::storable::storable(&stanza) {
                    // Behind those that are being handed over.
                    self.store(stanza);
                    return None;
                }
                let mut delivered = false;
                for id in targets {
                    delivered |= self.give(id, &stanza);
                }
                if !delivered && !is_ephemeral(&stanza) {
                    // The sessions are leaving; once they have, the rules are asked again.
                    return Some(AccountMail::Inbound(stanza, origin));
                }
            }
        }
        None
    }

    fn store_or_refuse(&mut self, stanza: Stanza) {
        if waystation_core::storable::storable(&stanza) {
            self.store(stanza);
        } else if stanza.stanza_type() == StanzaType::Message(MessageType::Groupchat) {
            self.router.refuse(&stanza, &Condition::ServiceUnavailable.into());
        }
        // Chat states and the like for someone who is away are dropped (XEP-0160 3).
    }

    /// Hands a stanza to a session; false when the session could not take it and leaves.
    fn give(&mut self, id: SessionId, stanza: &Stanza) -> bool {
        let Some(handle) = self.handles.iter().find(|h| h.id == id) else { return false };
        match handle.outlet.offer(SessionMail::Stanza(stanza.clone())) {
            Offer::Accepted => return true,
            Offer::Full(_) => self.overflow(id, stanza),
            Offer::Gone(_) => {
                let error = StreamError::new(StreamCondition::Reset);
                self.close_session(id, error);
            }
        }
        false
    }

    /// A stanza that a session took over and could not write: it goes to another resource,
    /// to the store, or back.
    fn undelivered(&mut self, stanza: Stanza) {
        match stanza.stanza_type() {
            StanzaType::Message(MessageType::Chat | MessageType::Normal) => {
                // The resource is gone, so the rules for the bare JID apply.
                let best = self.sessions.available().filter(|s| s.priority >= 0).max_by_key(|s| s.priority);
                let Some(id) = best.map(|s| s.id) else { return self.store_or_refuse(stanza) };
                if self.is_draining() || !self.give(id, &stanza) {
                    self.store_or_refuse(stanza);
                }
            }
            StanzaType::Message(MessageType::Groupchat) | StanzaType::Iq(IqType::Get | IqType::Set) => {
                self.router.refuse(&stanza, &Condition::ServiceUnavailable.into());
            }
            _ => {}
        }
    }

    fn iq(&mut self, stanza: Stanza, origin: Option<SessionId>) -> Option<AccountMail> {
        let request = matches!(stanza.stanza_type(), StanzaType::Iq(IqType::Get | IqType::Set));
        let State::Live(presence) = &mut self.state else {
            if request {
                self.router.refuse(&stanza, &Condition::ServiceUnavailable.into());
            }
            return None;
        };
        let relation = stanza.from().map_or(Relation::Stranger, |from| presence.relation(from));
        let Some(resource) = stanza.to().and_then(|to| to.resource()) else {
            if !request {
                // An answer to a roster push.
                return None;
            }
            let namespace = stanza.child().map_or("", |(_, namespace)| namespace);
            if let Some(id) = origin
                && relation == Relation::Own
                && self.router.presence.iq_namespaces().contains(&namespace)
                && self.sessions.get(id).is_some()
            {
                let mut effects = Effects::default();
                presence.iq(&mut self.sessions, id, stanza, &mut effects);
                self.enqueue(effects);
                return None;
            }
            let asked = Asked {
                scope: Scope::Account,
                target: self.account.clone(),
                relation,
                session: origin,
                available: self.sessions.available().next().is_some(),
            };
            let router = self.router.clone();
            self.router.iqs.answer(stanza, asked, move |reply| router.route_own(reply));
            return None;
        };
        let target = self.sessions.by_resource(resource);
        let Some(target) = target else {
            if request {
                self.router.refuse(&stanza, &Condition::ServiceUnavailable.into());
            }
            return None;
        };
        // 8.5.3.1: whoever may not see the resource's presence must not reach it with a
        // request. A roster is nobody else's business at all (F4).
        let shares_presence = relation != Relation::Stranger
            || stanza.from().is_some_and(|from| {
                target.directed.contains(from) || target.directed.contains(from.bare_str())
            });
        let roster = stanza.child().is_some_and(|(_, ns)| self.router.presence.iq_namespaces().contains(&ns));
        if request && (!shares_presence || (roster && relation != Relation::Own)) {
            self.router.refuse(&stanza, &Condition::ServiceUnavailable.into());
            return None;
        }
        let id = target.id;
        if !self.give(id, &stanza) && request {
            self.router.refuse(&stanza, &Condition::ServiceUnavailable.into());
        }
        None
    }
}

fn random_resource() -> String {
    // Unique is enough here: guessing a resource gains nothing, for iqs to it are checked.
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos()));
    format!("{:016x}", hasher.finish())
}
