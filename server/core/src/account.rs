//! What an AccountRoute and the presence logic share: the live sessions of one account, and
//! the effects that the logic asks for.
//!
//! What must hold: the logic is synchronous and runs in the turn of the account's route, so
//! it needs no lock; whatever must be durable before anyone hears of it is a [`Persist`],
//! whose effects run only once its batch is committed.

use std::collections::BTreeSet;
use std::sync::Arc;

use waystation_xml::Element;

use crate::error::StanzaError;
use crate::jid::Jid;
use crate::stanza::{PresenceType, Stanza, StanzaType};
use crate::storage::{Batch, BoxFuture, StorageError};

/// Identity of a bound session, unique for the life of the process: an epoch, so that a stale
/// unbind cannot remove a newer bind of the same resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Most JIDs that one session may have sent directed presence to (RFC 6121 4.6.3).
pub const MAX_DIRECTED: usize = 1_000;

/// What the route knows of one bound session.
#[derive(Debug)]
pub struct LiveSession {
    /// The session's identity.
    pub id: SessionId,
    /// Its full JID.
    pub jid: Jid,
    /// Last available presence sent without `to`; `None` until initial presence and after
    /// unavailable presence.
    pub presence: Option<Stanza>,
    /// Priority of that presence, -128 to 127 (RFC 6121 4.7.2.3).
    pub priority: i8,
    /// True once the session has asked for the roster (RFC 6121 2.2).
    pub interested: bool,
    /// JIDs that got directed presence and are owed an unavailable one.
    pub directed: BTreeSet<Jid>,
    /// It wants copies of the account's other messages (XEP-0280).
    pub carbons: bool,
}

impl LiveSession {
    /// A session that has just been bound.
    pub fn new(id: SessionId, jid: Jid) -> Self {
        Self {
            id,
            jid,
            presence: None,
            priority: 0,
            interested: false,
            directed: BTreeSet::new(),
            carbons: false,
        }
    }

    /// True once initial presence was sent.
    pub fn is_available(&self) -> bool {
        self.presence.is_some()
    }
}

/// The live sessions of one account, in the order of their binding.
#[derive(Debug, Default)]
pub struct Sessions {
    list: Vec<LiveSession>,
}

impl Sessions {
    /// Adds a session.
    pub fn insert(&mut self, session: LiveSession) {
        // Most accounts have one session: room for more is made when they come.
        self.list.reserve_exact(1);
        self.list.push(session);
    }

    /// Removes a session.
    pub fn remove(&mut self, id: SessionId) -> Option<LiveSession> {
        let index = self.list.iter().position(|s| s.id == id)?;
        Some(self.list.remove(index))
    }

    /// Finds a session.
    pub fn get(&self, id: SessionId) -> Option<&LiveSession> {
        self.list.iter().find(|s| s.id == id)
    }

    /// Finds a session to change it.
    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut LiveSession> {
        self.list.iter_mut().find(|s| s.id == id)
    }

    /// Finds a session by resource.
    pub fn by_resource(&self, resource: &str) -> Option<&LiveSession> {
        self.list.iter().find(|s| s.jid.resource() == Some(resource))
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = &LiveSession> {
        self.list.iter()
    }

    /// All sessions, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut LiveSession> {
        self.list.iter_mut()
    }

    /// Sessions that have sent initial presence.
    pub fn available(&self) -> impl Iterator<Item = &LiveSession> {
        self.list.iter().filter(|s| s.is_available())
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// What the logic asks its route to do.
#[derive(Debug)]
pub enum Effect {
    /// Hand a stanza to one session of this account.
    ToSession(SessionId, Stanza),
    /// Route a stanza by its `to`, to any account, host or domain.
    Route(Stanza),
}

/// Changes that must be durable before their effects are seen.
#[derive(Debug)]
pub struct Persist {
    /// What to commit.
    pub batch: Batch,
    /// Runs, in order, once committed.
    pub then: Vec<Effect>,
    /// Who is told if the commit fails: the error reply is made from this stanza.
    pub request: Option<Stanza>,
}

/// Collects what the logic wants done; order is kept, also across commits.
#[derive(Debug, Default)]
pub struct Effects {
    /// The stanza at hand for sessions of this account, as far as it waits for no commit: it is
    /// stored already, and what its sender sends next must not overtake it (RFC 6120 10.1).
    pub at_once: Vec<(SessionId, Stanza)>,
    /// Steps in order. The route runs a step only when all earlier ones are done.
    pub steps: Vec<Step>,
}

/// One step of [`Effects`].
#[derive(Debug)]
pub enum Step {
    /// Without waiting for storage.
    Now(Effect),
    /// After a commit.
    Persist(Persist),
}

impl Effects {
    /// Hands the stanza at hand to one session of this account, before all steps.
    pub fn deliver(&mut self, id: SessionId, stanza: Stanza) {
        self.at_once.push((id, stanza));
    }

    /// Hands a stanza to one session of this account.
    pub fn to_session(&mut self, id: SessionId, stanza: Stanza) {
        self.steps.push(Step::Now(Effect::ToSession(id, stanza)));
    }

    /// Routes a stanza by its `to`.
    pub fn route(&mut self, stanza: Stanza) {
        self.steps.push(Step::Now(Effect::Route(stanza)));
    }

    /// Commits first, then runs effects.
    pub fn persist(&mut self, persist: Persist) {
        self.steps.push(Step::Persist(persist));
    }
}

/// How another entity stands to the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The account itself.
    Own,
    /// May see the account's presence: subscription `from` or `both`.
    Subscriber,
    /// Anyone else.
    Stranger,
}

/// What a presence probe gets whose sender may not see the account's presence (RFC 6121 4.3.2,
/// rule 1). The router gives the same answer for accounts that do not exist, so that probes do
/// not tell which ones do (SECURITY M4). `None` for a probe without addresses.
pub fn refuse_probe(probe: &Stanza) -> Option<Stanza> {
    Some(Stanza::build(
        StanzaType::Presence(PresenceType::Unsubscribed),
        Some(probe.to()?.to_bare()),
        Some(probe.from()?.clone()),
        probe.raw_id(),
        "",
    ))
}

/// Roster, subscriptions and presence of one account (RFC 6121 2 to 4), in memory while the
/// account's route lives.
pub trait AccountPresence: Send {
    /// A presence stanza that one of the account's own sessions sent, of any type, with or
    /// without `to`. `from` is stamped already.
    fn outbound(&mut self, sessions: &mut Sessions, id: SessionId, presence: Stanza, effects: &mut Effects);

    /// A presence stanza addressed to the account (bare or full), from anyone.
    fn inbound(&mut self, sessions: &mut Sessions, presence: Stanza, effects: &mut Effects);

    /// An iq of a namespace in [`PresenceLogic::iq_namespaces`] from one of the account's own
    /// sessions, to the account itself (or without `to`). The reply is an effect as well.
    fn iq(&mut self, sessions: &mut Sessions, id: SessionId, iq: Stanza, effects: &mut Effects);

    /// A session has ended; it is no longer in `sessions`. Sends the unavailable presence that
    /// others are owed if the session did not send it itself.
    fn session_closed(&mut self, sessions: &mut Sessions, closed: LiveSession, effects: &mut Effects);

    /// True when a JID is in the account's roster.
    fn is_contact(&self, _jid: &Jid) -> bool {
        false
    }

    /// How a JID stands to the account.
    fn relation(&self, jid: &Jid) -> Relation;

    /// A commit of one of this logic's batches failed: the in-memory state is ahead of the
    /// store, and the route reloads it before the next stanza.
    fn must_reload_after_failure(&self) -> bool {
        true
    }

    /// Called before the account is removed: tells contacts (unsubscribe, unsubscribed,
    /// unavailable) and deletes what the logic stored.
    fn account_removed(&mut self, sessions: &mut Sessions, effects: &mut Effects);
}

/// Makes [`AccountPresence`] values; one per server.
pub trait PresenceLogic: Send + Sync + 'static {
    /// Loads an account's state. `account` is a bare JID of a local host.
    fn load(&self, account: Jid) -> BoxFuture<'static, Result<Box<dyn AccountPresence>, StorageError>>;

    /// Namespaces whose iqs from own sessions are handled by [`AccountPresence::iq`].
    fn iq_namespaces(&self) -> &'static [&'static str];
}

/// An iq request as handlers see it.
#[derive(Debug)]
pub struct IqRequest {
    /// The whole stanza; `from` is always present.
    pub stanza: Stanza,
    /// Sender.
    pub from: Jid,
    /// The host or account that is asked.
    pub target: Jid,
    /// True for type set.
    pub set: bool,
    /// The single child element.
    pub payload: Element,
    /// How the sender stands to the account that is asked (strangers to a host).
    pub relation: Relation,
    /// The sender's session when it is connected to this server.
    pub session: Option<SessionId>,
    /// True when the account that is asked has an available resource; false for hosts.
    pub available: bool,
}

/// Answers iqs of one namespace.
pub trait IqHandler: Send + Sync + 'static {
    /// The payload of the result (`None` for an empty one), or the error.
    ///
    /// The runner adds a timeout (`remote-server-timeout`) and turns a panic into
    /// `internal-server-error`; the effect must be durable before the future resolves.
    fn handle(&self, request: IqRequest) -> BoxFuture<'static, Result<Option<Element>, StanzaError>>;

    /// Called after the reply to a request, of whatever type, was queued to the sender: what
    /// this in turn queues to the sender comes after it. For what must not come before the
    /// reply, such as the end of the session whose account was removed.
    fn replied(&self, _request: &Stanza, _session: Option<SessionId>) {}
}

impl<T: IqHandler + ?Sized> IqHandler for Arc<T> {
    fn handle(&self, request: IqRequest) -> BoxFuture<'static, Result<Option<Element>, StanzaError>> {
        (**self).handle(request)
    }

    fn replied(&self, request: &Stanza, session: Option<SessionId>) {
        (**self).replied(request, session);
    }
}
