//! The account: what its route hands over, roster iqs, and the steps that several parts share.
//!
//! What must hold: once the account is removed nothing is stored for it any more and it answers
//! like one that does not exist.

use std::sync::Arc;

use waystation_core::account::{AccountPresence, Effect, Effects, LiveSession, Persist, Relation, Sessions};
use waystation_core::datetime::Timestamp;
use waystation_core::error::{Condition, ErrorType, StanzaError};
use waystation_core::storage::{Batch, Space, Storage, StorageError, key};
use waystation_core::{IqType, Jid, PresenceType, SessionId, Stanza, StanzaType};

use crate::RosterConfig;
use crate::contact::Contact;
use crate::ids::Ids;
use crate::query::{Change, read_set, write_query};
use crate::roster::{Roster, version_text};
use crate::subscription::{Half, Request, State};

/// When the account's last available resource became unavailable: key the account, value
/// milliseconds since 1970 (8 bytes, little endian).
const LAST_UNAVAILABLE: Space = Space("last_unavailable");

/// Roster, subscriptions and presence of one account.
pub(crate) struct Account {
    pub(crate) roster: Roster,
    pub(crate) config: Arc<RosterConfig>,
    pub(crate) ids: Arc<Ids>,
    /// When the last available resource became unavailable, if there ever was one.
    pub(crate) last_unavailable: Option<Timestamp>,
    /// Set by [`AccountPresence::account_removed`].
    pub(crate) removed: bool,
}

impl Account {
    pub(crate) async fn load(
        storage: &dyn Storage,
        account: Jid,
        config: Arc<RosterConfig>,
        ids: Arc<Ids>,
    ) -> Result<Self, StorageError> {
        let roster = Roster::load(storage, account.to_bare()).await?;
        let last = storage.get(LAST_UNAVAILABLE, key(&[roster.account().as_str()])).await?;
        let last_unavailable = match last {
            None => None,
            Some(value) => Some(
                value
                    .as_ref()
                    .try_into()
                    .ok()
                    .and_then(|millis| Timestamp::from_unix_millis(i64::from_le_bytes(millis)))
                    .ok_or_else(|| StorageError::Corrupt("a time of last presence cannot be read".into()))?,
            ),
        };
        Ok(Self { roster, config, ids, last_unavailable, removed: false })
    }

    /// The account's bare JID.
    pub(crate) fn jid(&self) -> &Jid {
        self.roster.account()
    }

    /// A presence stanza without content from the account or one of its resources.
    pub(crate) fn presence(from: &Jid, to: &Jid, kind: PresenceType, raw_id: Option<&str>) -> Stanza {
        Stanza::build(StanzaType::Presence(kind), Some(from.clone()), Some(to.clone()), raw_id, "")
    }

    /// Replaces what is known of a contact; see [`Roster::store`].
    pub(crate) fn store(&mut self, jid: &Jid, contact: Contact, seen: bool) -> Batch {
        let ids = &self.ids;
        self.roster.store(jid, contact, seen, || ids.first_version())
    }

    /// Roster pushes of one contact to all interested resources (RFC 6121 2.1.6).
    pub(crate) fn push(&self, sessions: &Sessions, jid: &Jid, then: &mut Vec<Effect>) {
        let mut interested = sessions.iter().filter(|session| session.interested).peekable();
        if interested.peek().is_none() {
            return;
        }
        let Some(contact) = self.roster.contact(jid.as_str()) else { return };
        let push = self.push_stanza(jid, contact);
        then.extend(interested.map(|session| {
            let push = push.readdressed(Some(self.jid().clone()), Some(session.jid.clone()));
            Effect::ToSession(session.id, push)
        }));
    }

    /// A push with the version of the contact's change, not addressed yet.
    fn push_stanza(&self, jid: &Jid, contact: &Contact) -> Stanza {
        let query = write_query(&version_text(contact.changed), [(jid, contact)]);
        let id = self.ids.stanza_id();
        Stanza::build(StanzaType::Iq(IqType::Set), None, None, Some(&id), query)
    }

    /// Current presence of all available resources to a contact (RFC 6121 3.1.5).
    pub(crate) fn send_presence(&self, sessions: &Sessions, to: &Jid, then: &mut Vec<Effect>) {
        then.extend(sessions.available().filter_map(|session| {
            let presence = session.presence.as_ref()?;
            Some(Effect::Route(presence.readdressed(Some(session.jid.clone()), Some(to.clone()))))
        }));
    }

    /// The end of all presence that a contact got, from available resources as well as directed
    /// (RFC 6121 3.2.2, 3.3.3, 4.6.1).
    pub(crate) fn withdraw_presence(&self, sessions: &mut Sessions, contact: &Jid, then: &mut Vec<Effect>) {
        for session in sessions.iter_mut() {
            let directed = session.directed.len();
            session.directed.retain(|jid| !jid.bare_eq(contact));
            if session.is_available() || session.directed.len() < directed {
                let end = Self::presence(&session.jid, contact, PresenceType::Unavailable, None);
                then.push(Effect::Route(end));
            }
        }
    }

    /// Notes, durably, that the last available resource is gone.
    pub(crate) fn note_unavailable(&mut self, sessions: &Sessions, effects: &mut Effects) {
        if self.removed || sessions.available().next().is_some() {
            return;
        }
        let now = Timestamp::now();
        self.last_unavailable = Some(now);
        let value = now.unix_millis().to_le_bytes().to_vec();
        let batch = Batch::new().put(LAST_UNAVAILABLE, key(&[self.jid().as_str()]), value);
        effects.persist(Persist { batch, then: Vec::new(), request: None });
    }

    /// Answers a stanza of an own session with an error.
    pub(crate) fn refuse(id: SessionId, stanza: &Stanza, error: &StanzaError, effects: &mut Effects) {
        if let Some(reply) = stanza.error_reply(error) {
            effects.to_session(id, reply);
        }
    }

    fn answer_iq(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        iq: &Stanza,
        effects: &mut Effects,
    ) -> Result<(), StanzaError> {
        let own = |jid: Option<&Jid>| jid.is_none_or(|jid| jid.bare_eq(self.jid()));
        if !own(iq.from()) || !own(iq.to()) {
            return Err(Condition::Forbidden.into());
        }
        if self.removed {
            // The roster does not exist (RFC 6121 2.1.4).
            return Err(Condition::ItemNotFound.into());
        }
        let element = iq.element().map_err(|_| StanzaError::new(Condition::BadRequest))?;
        let Some(query) = element.child("query", crate::query::NS_ROSTER) else {
            return Err(Condition::BadRequest.into());
        };
        if iq.stanza_type() == StanzaType::Iq(IqType::Get) {
            self.get(sessions, id, iq, query.attr("ver"), effects);
            return Ok(());
        }
        match read_set(query, &self.config)? {
            Change::Update { jid, name, groups } => {
                if jid == *self.jid() {
                    // As RFC 6121 2.3.3 notes of other servers.
                    return Err(Condition::NotAllowed.into());
                }
                let old = self.roster.contact(jid.as_str()).cloned().unwrap_or_default();
                let contact = Contact { name, groups, listed: true, ..old };
                if !self.roster.has_room(&jid, &contact, &self.config) {
                    return Err(full());
                }
                let batch = self.store(&jid, contact, true);
                let mut then = vec![Effect::ToSession(id, iq.result(None))];
                self.push(sessions, &jid, &mut then);
                effects.persist(Persist { batch, then, request: Some(iq.clone()) });
            }
            Change::Remove { jid } => self.remove_item(sessions, id, iq, &jid, effects)?,
        }
        Ok(())
    }

    /// A roster get (RFC 6121 2.1.3, 2.6).
    fn get(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        iq: &Stanza,
        seen: Option<&str>,
        effects: &mut Effects,
    ) {
        let Some(session) = sessions.get_mut(id) else { return };
        session.interested = true;
        let Some(changes) = seen.and_then(|seen| self.roster.changes_since(seen)) else {
            let query = write_query(&self.roster.version(), self.roster.items());
            let kind = StanzaType::Iq(IqType::Result);
            let (from, to) = (iq.to().cloned(), iq.from().cloned());
            effects.to_session(id, Stanza::build(kind, from, to, iq.raw_id(), query));
            return;
        };
        effects.to_session(id, iq.result(None));
        for (jid, contact) in changes {
            let push = self.push_stanza(jid, contact);
            effects.to_session(id, push.readdressed(Some(self.jid().clone()), Some(session.jid.clone())));
        }
    }

    /// Removes an item (RFC 6121 2.5).
    fn remove_item(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        iq: &Stanza,
        jid: &Jid,
        effects: &mut Effects,
    ) -> Result<(), StanzaError> {
        let Some(old) = self.roster.contact(jid.as_str()).filter(|contact| contact.listed) else {
            // With the type that RFC 6121 2.5.3 shows.
            return Err(StanzaError::new(Condition::ItemNotFound).with_type(ErrorType::Modify));
        };
        let state = old.state;
        let batch = self.store(jid, Contact::default(), true);
        let mut then = vec![Effect::ToSession(id, iq.result(None))];
        self.push(sessions, jid, &mut then);
        self.end_subscriptions(sessions, jid, state, &mut then);
        effects.persist(Persist { batch, then, request: Some(iq.clone()) });
        Ok(())
    }

    /// What a contact gets that is known no more: the end of every subscription and request.
    /// RFC 6121 2.5.2 requires it of subscriptions; unanswered requests are withdrawn and refused
    /// as well, or one side would wait for ever.
    pub(crate) fn end_subscriptions(
        &self,
        sessions: &mut Sessions,
        jid: &Jid,
        state: State,
        then: &mut Vec<Effect>,
    ) {
        if state.is_from() {
            self.withdraw_presence(sessions, jid, then);
        }
        for (half, request) in [(state.to, Request::Unsubscribe), (state.from, Request::Unsubscribed)] {
            if half != Half::None {
                let id = self.ids.stanza_id();
                let end = Self::presence(self.jid(), jid, request.presence_type(), Some(&id));
                then.push(Effect::Route(end));
            }
        }
    }
}

/// What is refused because the roster has no room for it.
pub(crate) fn full() -> StanzaError {
    StanzaError::new(Condition::PolicyViolation).with_text("the roster is full")
}

impl AccountPresence for Account {
    fn outbound(&mut self, sessions: &mut Sessions, id: SessionId, presence: Stanza, effects: &mut Effects) {
        let StanzaType::Presence(kind) = presence.stanza_type() else { return };
        match (kind, presence.to()) {
            (PresenceType::Available, None) => self.broadcast_available(sessions, id, &presence, effects),
            (PresenceType::Unavailable, None) => self.broadcast_unavailable(sessions, id, &presence, effects),
            (PresenceType::Available, Some(_)) => self.direct_available(sessions, id, presence, effects),
            (PresenceType::Unavailable, Some(_)) => Self::direct_unavailable(sessions, id, presence, effects),
            // Clients should not send these (RFC 6121 4.3), but it is not to be held against them.
            (PresenceType::Probe | PresenceType::Error, Some(_)) => effects.route(presence),
            (PresenceType::Probe | PresenceType::Error, None) => {}
            (
                PresenceType::Subscribe
                | PresenceType::Subscribed
                | PresenceType::Unsubscribe
                | PresenceType::Unsubscribed,
                _,
            ) => {
                if let Err(error) = self.send_request(sessions, &presence, effects) {
                    Self::refuse(id, &presence, &error, effects);
                }
            }
        }
    }

    fn inbound(&mut self, sessions: &mut Sessions, presence: Stanza, effects: &mut Effects) {
        let StanzaType::Presence(kind) = presence.stanza_type() else { return };
        match kind {
            PresenceType::Available | PresenceType::Error => Self::deliver(sessions, presence, effects),
            PresenceType::Unavailable => {
                Self::forget_directed(sessions, &presence);
                Self::deliver(sessions, presence, effects);
            }
            PresenceType::Probe => self.answer_probe(sessions, &presence, effects),
            PresenceType::Subscribe
            | PresenceType::Subscribed
            | PresenceType::Unsubscribe
            | PresenceType::Unsubscribed => self.receive_request(sessions, &presence, effects),
        }
    }

    fn iq(&mut self, sessions: &mut Sessions, id: SessionId, iq: Stanza, effects: &mut Effects) {
        // Replies to pushes need no answer and change nothing (RFC 6121 2.1.6).
        if !matches!(iq.stanza_type(), StanzaType::Iq(IqType::Get | IqType::Set)) {
            return;
        }
        if let Err(error) = self.answer_iq(sessions, id, &iq, effects) {
            Self::refuse(id, &iq, &error, effects);
        }
    }

    fn session_closed(&mut self, sessions: &mut Sessions, closed: LiveSession, effects: &mut Effects) {
        let kind = StanzaType::Presence(PresenceType::Unavailable);
        let end = Stanza::build(kind, Some(closed.jid.clone()), None, None, "");
        self.end_presence(sessions, closed.is_available(), &closed.directed, &end, effects);
    }

    fn is_contact(&self, jid: &Jid) -> bool {
        self.roster.contact(jid.bare_str()).is_some_and(|contact| contact.listed)
    }

    fn relation(&self, jid: &Jid) -> Relation {
        if jid.bare_eq(self.jid()) {
            Relation::Own
        } else if self.roster.is_subscriber(jid.bare_str()) {
            Relation::Subscriber
        } else {
            Relation::Stranger
        }
    }

    fn account_removed(&mut self, sessions: &mut Sessions, effects: &mut Effects) {
        let mut then = Vec::new();
        for (jid, contact) in self.roster.contacts() {
            self.end_subscriptions(sessions, jid, contact.state, &mut then);
        }
        let batch = self.roster.clear().delete(LAST_UNAVAILABLE, key(&[self.jid().as_str()]));
        self.last_unavailable = None;
        self.removed = true;
        effects.persist(Persist { batch, then, request: None });
    }
}
