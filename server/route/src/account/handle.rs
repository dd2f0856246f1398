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

use super::carbons::NS_CARBONS;
use super::outlet::is_ephemeral;
use super::steps::QueuedStep;
use super::{AccountRoute, Handle, Link, State};
use crate::delivery::{self, Delivery, Targets};
use crate::iq::Asked;
use crate::mail::{
    AccountMail, BindError, BindRequest, Binding, CloseWhich, Outbound, SessionInfo, SessionMail,
};
use crate::router::{Origin, Passage, Routed};
use crate::stream::ResumeError;

impl AccountRoute {
    /// Handles one mail; gives it back when it must wait for a session to leave.
    pub(super) fn handle(&mut self, mail: AccountMail) -> Option<AccountMail> {
        match mail {
            AccountMail::Inbound(stanza, origin) => return self.inbound(stanza, origin),
            AccountMail::Outbound(id, stanza, outbound) => self.outbound(id, stanza, outbound),
            AccountMail::Record(id, stanza, at) => return self.record(id, stanza, at),
            AccountMail::Behind => {
                self.router.reads_the_log(&self.account);
                self.records.behind = true;
            }
            AccountMail::Confirmed(id, up_to) => self.confirmed(id, up_to),
            AccountMail::Resume(request, reply) => self.resume(request, reply),
            AccountMail::Enable(id, key, max, reply) => self.enable(id, key, max, reply),
            AccountMail::Detach(id, detachment) => self.detach(id, detachment),
            AccountMail::Bind(request, reply) => {
                // A client that has gone meanwhile drops the binding, which unbinds it.
                let _ = reply.send(self.bind(*request));
            }
            AccountMail::Unbind(id, leftovers) => {
                self.has_left(id);
                self.unbind(id);
                for stanza in leftovers {
                    self.undelivered(&stanza);
                }
            }
            AccountMail::ToSession(stanza) => {
                let resource = stanza.to().and_then(|to| to.resource());
                if let Some(id) = resource.and_then(|r| self.sessions.by_resource(r)).map(|s| s.id) {
                    self.give(id, &stanza, None);
                }
            }
            AccountMail::Close(which, error) => {
                for id in self.which(&which) {
                    if !self.leave_to_the_next_server(id, &error) {
                        self.close_session(id, error.clone());
                    }
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
        let link = Link::Live(request.outlet);
        let handle = Handle { peer: request.peer, security: request.security, ..Handle::new(id, link) };
        self.handles.push(handle);
        self.sessions.insert(LiveSession::new(id, jid.clone()));
        for observer in &self.router.observers {
            observer.session_opened(&jid);
        }
        Ok(Binding::new(id, jid, request.inlet, self.router.clone()))
    }

    /// Forgets a session; a stale call finds nothing.
    pub(super) fn unbind(&mut self, id: SessionId) {
        let Some(index) = self.handles.iter().position(|handle| handle.id == id) else { return };
        let handle = self.handles.remove(index);
        let Some(closed) = self.sessions.remove(id) else { return };
        if let Some((_, reply)) = handle.resuming {
            // The client that asks may have gone as well.
            let _ = reply.send(Err(ResumeError::Unknown(None)));
        }
        if closed.is_available() {
            self.tell_observers(&closed.jid, None);
        }
        let mut effects = Effects::default();
        if let State::Live(presence) = &mut self.state {
            presence.session_closed(&mut self.sessions, closed, &mut effects);
        }
        self.enqueue(effects);
        if let Some(resumable) = handle.resumable {
            self.forget_stream(resumable, true);
        }
        let held = !handle.held.is_empty();
        for record in handle.held {
            self.release(record, false);
        }
        if held {
            self.drain_to_anyone();
        }
    }

    fn tell_observers(&self, jid: &waystation_core::Jid, unavailable: Option<&Stanza>) {
        let others = self.sessions.available().filter(|s| s.jid != *jid).count();
        for observer in &self.router.observers {
            observer.session_unavailable(jid, others, unavailable);
        }
    }

    /// Nothing but the end of this session is handled until it comes.
    pub(super) fn wait_for(&mut self, id: SessionId) {
        if !self.leaving.contains(&id) && self.handles.iter().any(|handle| handle.id == id) {
            self.leaving.push(id);
        }
    }

    /// The end of a session has come.
    pub(super) fn has_left(&mut self, id: SessionId) {
        self.leaving.retain(|leaving| *leaving != id);
        self.wake_drain();
    }

    /// Tells a session to close and forgets it; what it did not write comes with its unbind.
    pub(super) fn close_session(&mut self, id: SessionId, error: StreamError) {
        let Some(handle) = self.handles.iter().find(|h| h.id == id) else { return };
        match &handle.link {
            Link::Live(outlet) => {
                // Gone: it has ended by itself, and its unbind is on the way as well.
                let _ = outlet.offer_control(SessionMail::Close(error));
                self.wait_for(id);
                self.unbind(id);
            }
            Link::Detached(_) => self.end_detached(id),
        }
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
    fn outbound(&mut self, id: SessionId, stanza: Stanza, outbound: Outbound) {
        // It may have been resumed since: what it had received counts, and is not sent again.
        let resumed = self.handles.iter().find(|handle| handle.was.contains(&id));
        let id = resumed.map_or(id, |handle| handle.id);
        let StanzaType::Presence(_) = stanza.stanza_type() else {
            // Sent this way only so that it does not overtake presence.
            let Outbound { token, receipt, stream } = outbound;
            let passage = Passage { receipt, stream, behind: true, ..Passage::default() };
            if let Routed::Busy(stanza, passage) = self.router.route(stanza, Origin::Session(id), passage) {
                self.router.route_in_any_case(stanza, Origin::Session(id), passage);
            }
            drop(token);
            return;
        };
        let Some(session) = self.sessions.get(id) else {
            // One that has ended is not seen any more.
            return self.enqueue_step(QueuedStep::Token(outbound));
        };
        let receives = |s: &LiveSession| s.is_available() && s.priority >= 0;
        let (was_available, was_receiving) = (session.is_available(), receives(session));
        let mut effects = Effects::default();
        if let State::Live(presence) = &mut self.state {
            presence.outbound(&mut self.sessions, id, stanza.clone(), &mut effects);
        }
        self.enqueue(effects);
        self.enqueue_step(QueuedStep::Token(outbound));
        self.store_stream(id);
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

    /// A message that nothing keeps: of a class that may be lost.
    fn message(&mut self, stanza: Stanza, origin: Option<SessionId>) -> Option<AccountMail> {
        if self.is_draining() && stanza.stanza_type() != StanzaType::Message(MessageType::Error) {
            // It would overtake what waited; nothing keeps it, and a moment ago nobody was there
            // to take it.
            return None;
        }
        let delivery = match self.state {
            State::Live(_) => delivery::message(&self.sessions, &stanza),
            _ => delivery::message_to_nobody(&stanza),
        };
        match delivery {
            // Chat states and the like for someone who is away are dropped (XEP-0160 3).
            Delivery::Ignore | Delivery::Store => {}
            Delivery::Bounce => self.refuse(&stanza, &Condition::ServiceUnavailable.into()),
            Delivery::To(targets) => {
                let mut given = Targets::new();
                for id in targets {
                    if self.give(id, &stanza, None) {
                        given.push(id);
                    }
                }
                if !given.is_empty() {
                    self.carbons_of_received(None, &stanza, &given);
                } else if !is_ephemeral(&stanza) && !self.leaving.is_empty() {
                    // The sessions are leaving; once they have, the rules are asked again.
                    return Some(AccountMail::Inbound(stanza, origin));
                }
            }
        }
        None
    }

    /// A stanza that a session took over and could not write, and that is in nobody's queue.
    pub(super) fn undelivered(&mut self, stanza: &Stanza) {
        if let StanzaType::Iq(IqType::Get | IqType::Set) = stanza.stanza_type() {
            self.refuse(stanza, &Condition::ServiceUnavailable.into());
        }
    }

    fn iq(&mut self, stanza: Stanza, origin: Option<SessionId>) -> Option<AccountMail> {
        let request = matches!(stanza.stanza_type(), StanzaType::Iq(IqType::Get | IqType::Set));
        let State::Live(presence) = &mut self.state else {
            if request && stanza.to().is_some_and(|to| to.is_bare()) {
                // The services answer as they answer a stranger of an account that exists.
                let asked = Asked {
                    scope: Scope::Account,
                    target: self.account.clone(),
                    relation: Relation::Stranger,
                    session: origin,
                    available: false,
                };
                let router = self.router.clone();
                self.router.iqs.answer(stanza, asked, move |reply| router.route_own(reply));
            } else if request {
                self.refuse(&stanza, &Condition::ServiceUnavailable.into());
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
                && namespace == NS_CARBONS
                && self.sessions.get(id).is_some()
            {
                let reply = self.carbons_request(id, &stanza);
                self.give(id, &reply, None);
                return None;
            }
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
                self.refuse(&stanza, &Condition::ServiceUnavailable.into());
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
            self.refuse(&stanza, &Condition::ServiceUnavailable.into());
            return None;
        }
        let id = target.id;
        if !self.give(id, &stanza, None) && request {
            self.refuse(&stanza, &Condition::ServiceUnavailable.into());
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
