//! A route without threads: accounts, their sessions and what they send each other.
//!
//! Stanzas between accounts wait in `wire` until a test lets them through; what the sessions got is
//! read with `got`, as text, in which the random ids of pushes and of the server's own subscription
//! stanzas are written as `*`.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use waystation_core::account::{
    AccountPresence, Effect, Effects, LiveSession, PresenceLogic, Relation, Sessions, Step,
};
use waystation_core::module::Module;
use waystation_core::{Condition, ErrorType, Jid, Kind, SessionId, Stanza, StanzaError};
use waystation_roster::{RosterConfig, RosterModule};

use crate::store::Store;

/// The result of a future that is ready.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the store of these tests is always ready"),
    }
}

pub(crate) fn jid(text: &str) -> Jid {
    Jid::parse(text).unwrap()
}

pub(crate) fn stanza(xml: &str) -> Stanza {
    Stanza::parse(xml.as_bytes()).unwrap_or_else(|error| panic!("{xml}: {error:?}"))
}

/// A stanza as text; ids that the server made are written as `*`.
pub(crate) fn text(stanza: &Stanza) -> String {
    let text = String::from_utf8(stanza.to_bytes().to_vec()).unwrap();
    match stanza.raw_id() {
        Some(id) if id.len() == 32 => text.replace(id, "*"),
        _ => text,
    }
}

/// An account with its sessions.
pub(crate) struct Host {
    pub(crate) state: Box<dyn AccountPresence>,
    pub(crate) sessions: Sessions,
}

pub(crate) struct World {
    pub(crate) store: Arc<Store>,
    pub(crate) config: RosterConfig,
    pub(crate) hosts: BTreeMap<Jid, Host>,
    /// Routed stanzas that were not let through yet.
    pub(crate) wire: VecDeque<Stanza>,
    inboxes: BTreeMap<SessionId, Vec<Stanza>>,
    names: BTreeMap<String, SessionId>,
    next: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(RosterConfig::default())
    }

    pub(crate) fn with(config: RosterConfig) -> Self {
        Self {
            store: Arc::default(),
            config,
            hosts: BTreeMap::new(),
            wire: VecDeque::new(),
            inboxes: BTreeMap::new(),
            names: BTreeMap::new(),
            next: 0,
        }
    }

    fn logic(&self) -> Arc<dyn PresenceLogic> {
        let module = RosterModule::new(self.store.clone(), self.config.clone());
        module.registration().presence.unwrap()
    }

    fn load(&self, account: &Jid) -> Box<dyn AccountPresence> {
        now(self.logic().load(account.clone())).unwrap()
    }

    /// Loads an account anew from the store, as after an eviction; its sessions stay.
    pub(crate) fn reload(&mut self, account: &str) {
        let account = jid(account);
        let state = self.load(&account);
        self.hosts.get_mut(&account).unwrap().state = state;
    }

    /// Binds a session; the account is loaded with its first one.
    pub(crate) fn bind(&mut self, full: &str) -> SessionId {
        let full = jid(full);
        self.host(&full.to_bare());
        self.next += 1;
        let id = SessionId(self.next);
        self.names.insert(full.to_string(), id);
        self.inboxes.insert(id, Vec::new());
        let session = LiveSession::new(id, full.clone());
        self.hosts.get_mut(&full.to_bare()).unwrap().sessions.insert(session);
        id
    }

    /// The account, loaded if it is not yet.
    pub(crate) fn host(&mut self, account: &Jid) -> &mut Host {
        if !self.hosts.contains_key(account) {
            let state = self.load(account);
            self.hosts.insert(account.clone(), Host { state, sessions: Sessions::default() });
        }
        self.hosts.get_mut(account).unwrap()
    }

    pub(crate) fn session(&self, full: &str) -> &LiveSession {
        self.hosts[&jid(full).to_bare()].sessions.get(self.names[full]).unwrap()
    }

    /// Binds a session that asks for the roster and sends presence, and forgets what that brings.
    pub(crate) fn login(&mut self, full: &str) -> SessionId {
        let id = self.bind(full);
        self.send(full, "<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>");
        self.send(full, "<presence/>");
        self.got(full);
        id
    }

    /// A stanza from a session to its route.
    pub(crate) fn send(&mut self, full: &str, xml: &str) {
        let id = self.names[full];
        let from = jid(full);
        let stanza = stanza(xml).with_from(from.clone());
        let host = self.hosts.get_mut(&from.to_bare()).unwrap();
        let mut effects = Effects::default();
        match stanza.kind() {
            Kind::Iq => host.state.iq(&mut host.sessions, id, stanza, &mut effects),
            _ => host.state.outbound(&mut host.sessions, id, stanza, &mut effects),
        }
        self.run(&from.to_bare(), effects);
    }

    /// A stanza from elsewhere to an account.
    pub(crate) fn receive(&mut self, xml: &str) {
        self.deliver(stanza(xml));
    }

    fn deliver(&mut self, stanza: Stanza) {
        let account = stanza.to().unwrap().to_bare();
        let mut effects = Effects::default();
        let host = self.host(&account);
        host.state.inbound(&mut host.sessions, stanza, &mut effects);
        self.run(&account, effects);
    }

    /// The session's connection ends.
    pub(crate) fn close(&mut self, full: &str) {
        let id = self.names.remove(full).unwrap();
        let account = jid(full).to_bare();
        let mut effects = Effects::default();
        let host = self.hosts.get_mut(&account).unwrap();
        let closed = host.sessions.remove(id).unwrap();
        host.state.session_closed(&mut host.sessions, closed, &mut effects);
        self.run(&account, effects);
    }

    pub(crate) fn remove_account(&mut self, account: &str) {
        let account = jid(account);
        let mut effects = Effects::default();
        let host = self.host(&account);
        host.state.account_removed(&mut host.sessions, &mut effects);
        self.run(&account, effects);
    }

    /// Runs effects as the route does.
    pub(crate) fn run(&mut self, account: &Jid, effects: Effects) {
        for (id, stanza) in effects.at_once {
            self.perform(Effect::ToSession(id, stanza));
        }
        for step in effects.steps {
            match step {
                Step::Now(effect) => self.perform(effect),
                Step::Persist(persist) => {
                    let commit = waystation_core::storage::Storage::commit(&*self.store, persist.batch);
                    if now(commit).is_ok() {
                        persist.then.into_iter().for_each(|effect| self.perform(effect));
                        continue;
                    }
                    let error = StanzaError::new(Condition::InternalServerError).with_type(ErrorType::Wait);
                    if let Some(reply) = persist.request.and_then(|request| request.error_reply(&error)) {
                        let to = reply.to().unwrap();
                        match self.names.get(to.as_str()) {
                            Some(id) => self.perform(Effect::ToSession(*id, reply)),
                            None => self.perform(Effect::Route(reply)),
                        }
                    }
                    let state = self.load(account);
                    let host = self.hosts.get_mut(account).unwrap();
                    assert!(host.state.must_reload_after_failure());
                    host.state = state;
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::ToSession(id, stanza) => {
                if let Some(inbox) = self.inboxes.get_mut(&id) {
                    inbox.push(stanza);
                }
            }
            Effect::Route(stanza) => {
                assert!(stanza.from().is_some() && stanza.to().is_some(), "{}", text(&stanza));
                self.wire.push_back(stanza);
            }
        }
    }

    /// Lets stanzas through between accounts of `example.org` until none waits for them; those to
    /// elsewhere stay on the wire.
    pub(crate) fn settle(&mut self) {
        let mut elsewhere = VecDeque::new();
        while let Some(stanza) = self.wire.pop_front() {
            if stanza.to().unwrap().domain() == "example.org" {
                self.deliver(stanza);
            } else {
                elsewhere.push_back(stanza);
            }
        }
        self.wire = elsewhere;
    }

    /// Stanzas that a session got since the last call.
    pub(crate) fn got(&mut self, full: &str) -> Vec<String> {
        let id = self.names[full];
        self.inboxes.insert(id, Vec::new()).unwrap_or_default().iter().map(text).collect()
    }

    /// Stanzas on the wire, taken off it.
    pub(crate) fn routed(&mut self) -> Vec<String> {
        self.wire.drain(..).map(|stanza| text(&stanza)).collect()
    }

    /// Makes the next commit fail.
    pub(crate) fn fail_next_commit(&self) {
        self.store.failures.store(1, Ordering::SeqCst);
    }

    pub(crate) fn relation(&self, account: &str, other: &str) -> Relation {
        self.hosts[&jid(account)].state.relation(&jid(other))
    }

    /// The items of an account's roster as a fresh load tells them.
    pub(crate) fn stored_roster(&self, account: &str) -> String {
        self.stored_version_and_roster(account).1
    }

    /// Version and items as a fresh load tells them.
    pub(crate) fn stored_version_and_roster(&self, account: &str) -> (String, String) {
        roster_of(&mut *self.load(&jid(account)), account)
    }

    /// What the first session of a fresh load gets and sends when it becomes available.
    pub(crate) fn stored_greeting(&self, account: &str) -> Vec<String> {
        greeting_of(&mut *self.load(&jid(account)), account)
    }

    /// The same of the state in memory, which it leaves as it is.
    pub(crate) fn greeting(&mut self, account: &str) -> Vec<String> {
        greeting_of(&mut *self.host(&jid(account)).state, account)
    }

    /// Lets the oldest stanza through that waits for an account; false when there is none.
    pub(crate) fn let_one_through(&mut self, account: &str) -> bool {
        let account = jid(account);
        let Some(index) = self.wire.iter().position(|s| s.to().unwrap().bare_eq(&account)) else {
            return false;
        };
        let stanza = self.wire.remove(index).unwrap();
        self.deliver(stanza);
        true
    }

    /// Version and items of an account's roster in memory.
    pub(crate) fn roster(&mut self, account: &str) -> (String, String) {
        roster_of(&mut *self.hosts.get_mut(&jid(account)).unwrap().state, account)
    }
}

fn greeting_of(state: &mut dyn AccountPresence, account: &str) -> Vec<String> {
    let mut sessions = Sessions::default();
    let full = jid(&format!("{account}/test"));
    sessions.insert(LiveSession::new(SessionId(0), full.clone()));
    let mut effects = Effects::default();
    state.outbound(&mut sessions, SessionId(0), stanza("<presence/>").with_from(full), &mut effects);
    let effect = |step| match step {
        Step::Now(Effect::ToSession(_, stanza) | Effect::Route(stanza)) => text(&stanza),
        Step::Persist(_) => panic!("presence stores nothing"),
    };
    effects.steps.into_iter().map(effect).collect()
}

/// Version and items, asked by a session that is gone afterwards.
fn roster_of(state: &mut dyn AccountPresence, account: &str) -> (String, String) {
    let mut sessions = Sessions::default();
    let full = jid(&format!("{account}/test"));
    sessions.insert(LiveSession::new(SessionId(0), full.clone()));
    let mut effects = Effects::default();
    let get = "<iq type='get' id='i'><query xmlns='jabber:iq:roster'/></iq>";
    state.iq(&mut sessions, SessionId(0), stanza(get).with_from(full), &mut effects);
    let [Step::Now(Effect::ToSession(_, result))] = &effects.steps[..] else {
        panic!("a get is answered at once")
    };
    let element = result.element().unwrap();
    let query = element.children().next().unwrap();
    let items = query.children().map(|item| item.to_vec("jabber:iq:roster")).collect::<Vec<_>>().concat();
    (query.attr("ver").unwrap().to_owned(), String::from_utf8(items).unwrap())
}
