//! The router: one decision per stanza, by its `to` (RFC 6120 10, RFC 6121 8).
//!
//! What must hold: a decision never waits; a stanza goes to exactly one of: an iq handler, an
//! account's route, a remote domain's route, or back to its sender as an error (or nowhere, where the RFCs want
//! silence). Order: stanzas from one session to one account keep their order, because each is
//! offered to its recipient's route in the turn it was read; what must pass the sender's own
//! route first carries an [`OrderToken`](crate::OrderToken), and while one is out the session
//! sends everything that way.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ahash::HashSet;
use tokio::sync::oneshot;
use waystation_core::account::{PresenceLogic, Relation};
use waystation_core::archive::Archive;
use waystation_core::module::{AccountRegistry, Scope, SessionObserver};
use waystation_core::queue::{Mark, RecordId};
use waystation_core::storage::Storage;
use waystation_core::{
    Condition, IqType, Jid, Kind, PresenceType, SessionId, Stanza, StanzaError, StanzaType, StreamError,
    storable,
};
use waystation_runtime::{Arbiters, Offer, outlet};

use crate::account::AccountRoute;
use crate::config::RouterConfig;
use crate::directory::{AccountOutlet, Directory, Entry};
use crate::domain::{Domains, NewDomains};
use crate::intake::{Concerned, Intake, Item, NewRecord, account_queue};
use crate::iq::{Asked, IqTable};
use crate::mail::{AccountMail, BindError, BindRequest, Binding, CloseWhich, SessionInfo};
use crate::receipt::Receipt;
use crate::recent::{Party, Recent};
use crate::remote::RemoteStreams;
use crate::stream::{ResumeError, ResumeRequest, Resumption};

/// What every route needs.
pub struct Router {
    pub(crate) hosts: HashSet<Box<str>>,
    pub(crate) config: RouterConfig,
    pub(crate) directory: Directory,
    pub(crate) domains: Domains,
    pub(crate) new_domains: NewDomains,
    /// Streams to remote domains, once the module that has them is there.
    pub(crate) remote: OnceLock<Arc<dyn RemoteStreams>>,
    pub(crate) arbiters: Arc<Arbiters>,
    pub(crate) iqs: IqTable,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) presence: Arc<dyn PresenceLogic>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) archive: Option<Arc<dyn Archive>>,
    pub(crate) accounts: Arc<dyn AccountRegistry>,
    pub(crate) observers: Vec<Arc<dyn SessionObserver>>,
    pub(crate) lingering: AtomicUsize,
    /// The server stops: routes end as soon as they have nothing to do.
    pub(crate) stopping: AtomicBool,
    next_session: AtomicU64,
    /// When the server started: stored sessions can be resumed for their time from then on.
    pub(crate) started: Instant,
    /// Accounts whose routes had no room for a record, and must read the log themselves.
    behind: Mutex<HashSet<Arc<str>>>,
    /// How many there are, so that looking costs nothing when there are none.
    behind_count: AtomicUsize,
}

/// The parts that a router is made of.
pub struct RouterParts {
    /// Domains served here.
    pub hosts: Vec<String>,
    /// Limits.
    pub config: RouterConfig,
    /// Where actors live.
    pub arbiters: Arc<Arbiters>,
    /// Who answers iqs.
    pub iqs: IqTable,
    /// Commits of the presence logic go here.
    pub storage: Arc<dyn Storage>,
    /// Roster, subscriptions and presence.
    pub presence: Arc<dyn PresenceLogic>,
    /// The way into the log, which also keeps what waits for accounts.
    pub intake: Arc<Intake>,
    /// The message archive, if there is one.
    pub archive: Option<Arc<dyn Archive>>,
    /// Which accounts exist.
    pub accounts: Arc<dyn AccountRegistry>,
    /// Who hears of sessions.
    pub observers: Vec<Arc<dyn SessionObserver>>,
}

/// Where a stanza came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A session of this server.
    Session(SessionId),
    /// A remote server, for a domain that it has proven to be.
    Remote,
    /// The server itself, or an account's route.
    Server,
}

/// What became of a stanza.
#[derive(Debug)]
pub enum Routed {
    /// Taken over; errors go to its `from`.
    Done,
    /// The recipient's route or the log has no room: offer the stanza again later, and read
    /// nothing from the sender until then.
    Busy(Stanza, Passage),
}

/// How a stanza travels.
#[derive(Debug, Default)]
pub struct Passage {
    /// Accepted when the stanza is safe, or was refused by name.
    pub receipt: Option<Receipt>,
    /// The mark of the sender's stream, if it has one; set to the receipt's number.
    pub stream: Option<u128>,
    /// Earlier stanzas of the sender are on their way to the log: this one must not overtake.
    pub behind: bool,
    /// An error that the server made of a message that it had accepted: as durable as that.
    pub durable_error: bool,
    /// None of the sender's other sessions wants a copy.
    pub alone: bool,
}

impl Router {
    /// A router.
    pub fn new(parts: RouterParts) -> Arc<Self> {
        Arc::new(Self {
            hosts: parts.hosts.into_iter().map(String::into_boxed_str).collect(),
            config: parts.config,
            directory: Directory::default(),
            domains: Domains::default(),
            new_domains: NewDomains::default(),
            remote: OnceLock::new(),
            arbiters: parts.arbiters,
            iqs: parts.iqs,
            storage: parts.storage,
            presence: parts.presence,
            intake: parts.intake,
            archive: parts.archive,
            accounts: parts.accounts,
            observers: parts.observers,
            lingering: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            next_session: AtomicU64::new(1),
            started: Instant::now(),
            behind: Mutex::default(),
            behind_count: AtomicUsize::new(0),
        })
    }

    /// True when the domain is served here.
    pub fn is_local(&self, domain: &str) -> bool {
        self.hosts.contains(domain)
    }

    /// A session identity that was never used before in this process.
    pub fn new_session_id(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// Routes a stanza. `from` must be set; `to` as well, for the session has put the default
    /// there (RFC 6120 8.1.1.1, 10.3). Must be called on an arbiter's thread.
    pub fn route(self: &Arc<Self>, stanza: Stanza, origin: Origin, passage: Passage) -> Routed {
        self.route_with(stanza, origin, passage, None)
    }

    /// The same for a sender of whom it is remembered where the last stored stanza went.
    pub fn route_with(
        self: &Arc<Self>,
        stanza: Stanza,
        origin: Origin,
        passage: Passage,
        recent: Option<&mut Option<Box<Recent>>>,
    ) -> Routed {
        let Some(to) = stanza.to() else {
            passage.receipt.into_iter().for_each(Receipt::accept);
            return Routed::Done;
        };
        if !self.is_local(to.domain()) {
            return self.to_remote(stanza, origin, passage, recent, false);
        }
        if to.local().is_some() {
            return self.to_local(stanza, origin, passage, recent);
        }
        let refused = stanza.kind() == Kind::Message;
        self.to_host(stanza, origin);
        if refused {
            self.accept_refused(passage);
        } else {
            passage.receipt.into_iter().for_each(Receipt::accept);
        }
        Routed::Done
    }

    /// A message, or another stanza that was to be stored, was answered with an error: its sender counts
    /// on the number to be stored with it, and would otherwise be told less after a crash than before.
    pub(crate) fn accept_refused(&self, passage: Passage) {
        let Some(receipt) = passage.receipt else { return };
        let Some(key) = passage.stream else { return receipt.accept() };
        self.intake.offer(Item::Mark(Mark { key, value: Some(receipt.number()) }, None));
        self.intake.offer(Item::After(receipt));
    }

    /// To an account: by way of the log what must be durable, and what must not overtake it.
    fn to_local(
        self: &Arc<Self>,
        stanza: Stanza,
        origin: Origin,
        passage: Passage,
        recent: Option<&mut Option<Box<Recent>>>,
    ) -> Routed {
        let Some(to) = stanza.to().cloned() else { return Routed::Done };
        if storable::durable(&stanza) || passage.durable_error {
            if self.intake.is_full() && origin != Origin::Server {
                return Routed::Busy(stanza, passage);
            }
            let recent = recent.map(|recent| &mut **recent.get_or_insert_default());
            self.intake.offer(Item::Record(Box::new(self.new_record(stanza, &to, passage, recent))));
            return Routed::Done;
        }
        let session = match origin {
            Origin::Session(id) => Some(id),
            Origin::Remote | Origin::Server => None,
        };
        if passage.behind {
            if self.intake.is_full() {
                return Routed::Busy(stanza, passage);
            }
            self.intake.offer(Item::pass(to, AccountMail::Inbound(stanza, session)));
            if let Some(receipt) = passage.receipt {
                self.intake.offer(Item::After(receipt));
            }
            return Routed::Done;
        }
        match self.to_account(&to, AccountMail::Inbound(stanza, session)) {
            Err(AccountMail::Inbound(stanza, _)) => Routed::Busy(stanza, passage),
            _ => {
                passage.receipt.into_iter().for_each(Receipt::accept);
                Routed::Done
            }
        }
    }

    fn new_record(
        self: &Arc<Self>,
        stanza: Stanza,
        to: &Jid,
        passage: Passage,
        mut recent: Option<&mut Recent>,
    ) -> NewRecord {
        let to_whom = self.party(Party::To, to, recent.as_deref_mut());
        self.new_record_for(to_whom, stanza, to, passage, recent)
    }

    /// A record for its recipient, and for its sender where that has a use for it.
    #[inline]
    pub(crate) fn new_record_for(
        self: &Arc<Self>,
        to_whom: Concerned,
        stanza: Stanza,
        to: &Jid,
        passage: Passage,
        recent: Option<&mut Recent>,
    ) -> NewRecord {
        let mut concerned = smallvec::SmallVec::new();
        concerned.push(to_whom);
        // What an account sends concerns its archive and its other sessions as well. Where there is
        // neither, the sender's queue and route are spared half the work of a message.
        let copied = self.archive.is_some() || !passage.alone;
        if let (Kind::Message, false, true, Some(from)) =
            (stanza.kind(), passage.durable_error, copied, stanza.from())
            && from.local().is_some()
            && self.is_local(from.domain())
            && !from.bare_eq(to)
        {
            concerned.push(self.party(Party::From, from, recent));
        }
        let number = passage.receipt.as_ref().map(Receipt::number);
        let mark = passage.stream.zip(number).map(|(key, number)| Mark { key, value: Some(number) });
        NewRecord { stanza, concerned, mark, receipt: passage.receipt, instead_of: None, stored: None }
    }

    /// The account, its queue, and its route, which is looked up once and not again after the
    /// commit.
    pub(crate) fn concerned(self: &Arc<Self>, account: &Jid) -> Concerned {
        self.party(Party::To, account, None)
    }

    pub(crate) fn party(
        self: &Arc<Self>,
        party: Party,
        account: &Jid,
        recent: Option<&mut Recent>,
    ) -> Concerned {
        let known = recent.as_ref().and_then(|recent| recent.find(party, account));
        let entry = known.or_else(|| {
            let entry = self.entry(account, Entry::clone)?;
            recent.into_iter().for_each(|recent| recent.remember(party, account, &entry));
            Some(entry)
        });
        match entry {
            Some(Entry { outlet, queue }) => {
                Concerned::Account { account: account.clone(), queue, route: Some(outlet) }
            }
            None => {
                Concerned::Account { account: account.clone(), queue: account_queue(account), route: None }
            }
        }
    }

    /// A record was committed: gives it to the route of an account or domain that it concerns. A route
    /// that has no room learns that it must read the log itself, and is given nothing until it
    /// does: so it misses no record, and memory stays bounded.
    pub(crate) fn record(
        self: &Arc<Self>,
        concerned: Concerned,
        id: RecordId,
        stanza: Stanza,
        at: SystemTime,
    ) {
        let (account, route) = match concerned {
            Concerned::Account { account, route, .. } => (account, route),
            Concerned::Domain(reservation) => return self.domain_record(reservation, id, &stanza, at),
        };
        if self.behind_count.load(Ordering::Acquire) > 0 && self.behind().contains(account.bare_str()) {
            return;
        }
        let mail = AccountMail::Record(id, stanza, at);
        let offered = match route {
            Some(route) => route.offer(mail),
            None => Offer::Gone(mail),
        };
        let offered = match offered {
            Offer::Accepted => Ok(()),
            Offer::Full(mail) => Err(mail),
            // It ended meanwhile: a new one is started.
            Offer::Gone(mail) => self.to_account(&account, mail),
        };
        if offered.is_err() {
            if self.behind().insert(account.bare_text()) {
                self.behind_count.fetch_add(1, Ordering::Release);
            }
            self.control(&account, AccountMail::Behind);
        }
    }

    /// A route begins to read the log, after which it is given records again.
    pub(crate) fn reads_the_log(&self, account: &Jid) {
        if self.behind().remove(account.bare_str()) {
            self.behind_count.fetch_sub(1, Ordering::Release);
        }
    }

    fn behind(&self) -> MutexGuard<'_, HashSet<Arc<str>>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes a stanza by way of the log, whatever its room: one that must not be lost or
    /// overtake others and has no sender who could wait. There is no more of it than there was
    /// room for once.
    pub(crate) fn route_in_any_case(self: &Arc<Self>, stanza: Stanza, origin: Origin, passage: Passage) {
        let to = stanza.to().filter(|to| to.local().is_some() && self.is_local(to.domain())).cloned();
        let Some(to) = to else {
            let remote = stanza.to().is_some_and(|to| !self.is_local(to.domain()));
            let routed = if remote {
                self.to_remote(stanza, origin, passage, None, true)
            } else {
                self.route(stanza, origin, passage)
            };
            if let Routed::Busy(_, passage) = routed {
                // Hosts are never busy, and a domain's route only when the server has stopped.
                passage.receipt.into_iter().for_each(Receipt::accept);
            }
            return;
        };
        if storable::durable(&stanza) {
            return self.intake.offer(Item::Record(Box::new(self.new_record(stanza, &to, passage, None))));
        }
        let session = match origin {
            Origin::Session(id) => Some(id),
            Origin::Remote | Origin::Server => None,
        };
        self.intake.offer(Item::pass(to, AccountMail::Inbound(stanza, session)));
        if let Some(receipt) = passage.receipt {
            self.intake.offer(Item::After(receipt));
        }
    }

    /// Routes a stanza that the server made, whose loss under overload must not stop anyone:
    /// at a route without credit, presence is dropped and the rest gets through all the same
    /// (each was caused by a stanza that had credit).
    pub fn route_own(self: &Arc<Self>, stanza: Stanza) {
        if let Routed::Busy(stanza, _) = self.route(stanza, Origin::Server, Passage::default()) {
            let ephemeral = matches!(
                stanza.stanza_type(),
                StanzaType::Presence(
                    PresenceType::Available | PresenceType::Unavailable | PresenceType::Probe
                )
            );
            if ephemeral {
                return;
            }
            match stanza.to().cloned() {
                Some(to) if self.is_local(to.domain()) => {
                    self.control(&to, AccountMail::Inbound(stanza, None));
                }
                Some(_) => self.route_in_any_case(stanza, Origin::Server, Passage::default()),
                None => {}
            }
        }
    }

    /// Hands a stanza to the session that its `to` names, and to nothing else.
    pub fn to_session(self: &Arc<Self>, stanza: Stanza) {
        let Some(to) = stanza.to().filter(|to| self.is_local(to.domain()) && !to.is_bare()).cloned() else {
            return;
        };
        if let Some(route) = self.directory.find(to.bare_str()) {
            // Gone: without a route there is no session either.
            let _ = route.offer_control(AccountMail::ToSession(stanza));
        }
    }

    /// Gives mail to an account's route, starting it if need be; gives it back when the route
    /// has no credit left.
    ///
    /// # Errors
    /// The mail, when the route is full, or the server has stopped and there will be none.
    pub fn to_account(self: &Arc<Self>, account: &Jid, mut mail: AccountMail) -> Result<(), AccountMail> {
        loop {
            let Some(route) = self.account_route(account) else { return Err(mail) };
            match route.offer(mail) {
                Offer::Accepted => return Ok(()),
                Offer::Full(mail) => return Err(mail),
                // It ended between the look-up and the offer: a new one is started.
                Offer::Gone(returned) => mail = returned,
            }
        }
    }

    /// Gives a control message to an account's route, whatever its credit. Once the server has
    /// stopped nobody is there to take it, and it is dropped.
    pub fn control(self: &Arc<Self>, account: &Jid, mut mail: AccountMail) {
        loop {
            let Some(route) = self.account_route(account) else {
                return tracing::debug!(%account, "the server has stopped: nobody takes this mail");
            };
            match route.offer_control(mail) {
                Offer::Accepted => return,
                Offer::Full(returned) | Offer::Gone(returned) => mail = returned,
            }
        }
    }

    /// `None` when the arbiter of the account has ended.
    fn account_route(self: &Arc<Self>, account: &Jid) -> Option<AccountOutlet> {
        self.entry(account, |entry| entry.outlet.clone())
    }

    fn entry<T>(self: &Arc<Self>, account: &Jid, take: impl FnOnce(&Entry) -> T) -> Option<T> {
        let start = || {
            let (outlet, inlet) = outlet(self.config.route_bytes, self.config.route_items);
            let router = self.clone();
            let account = account.to_bare();
            let queue = account_queue(&account);
            let entry = Entry { outlet, queue: queue.clone() };
            let place = self.arbiters.place(account.as_str());
            let start = move || AccountRoute::start(router, account, queue, inlet);
            self.arbiters.run_on(place, start).then_some(entry)
        };
        self.directory.find_or_start(account, start, take)
    }

    /// Binds a resource to a session (RFC 6120 7).
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(self: &Arc<Self>, request: BindRequest) -> Result<Binding, BindError> {
        let (reply, answer) = oneshot::channel();
        let account = request.account.clone();
        self.control(&account, AccountMail::Bind(Box::new(request), reply));
        // The route drops the sender only when it ends while loading fails.
        answer.await.unwrap_or(Err(BindError::Unavailable))
    }

    /// Takes up a session whose connection was lost (XEP-0198 5).
    ///
    /// # Errors
    /// [`ResumeError`]; the session is untouched then.
    pub async fn resume(self: &Arc<Self>, request: ResumeRequest) -> Result<Resumption, ResumeError> {
        let (reply, answer) = oneshot::channel();
        let account = request.account.clone();
        self.control(&account, AccountMail::Resume(Box::new(request), reply));
        // The route drops the sender only when it ends while loading fails.
        answer.await.unwrap_or(Err(ResumeError::Unavailable))
    }

    /// The way into the log.
    pub fn intake(&self) -> &Arc<Intake> {
        &self.intake
    }

    /// Closes sessions of an account.
    pub fn close_sessions(self: &Arc<Self>, account: &Jid, which: CloseWhich, error: StreamError) {
        if let Some(route) = self.directory.find(account.bare_str()) {
            // Gone means that the route had no sessions.
            let _ = route.offer_control(AccountMail::Close(which, error));
        }
    }

    /// Describes the sessions of one account, or of all.
    pub async fn sessions(self: &Arc<Self>, account: Option<&Jid>) -> Vec<SessionInfo> {
        let routes = match account {
            Some(account) => self.directory.find(account.bare_str()).into_iter().collect(),
            None => self.directory.all(),
        };
        let mut all = Vec::new();
        for route in routes {
            let (reply, answer) = oneshot::channel();
            if route.offer_control(AccountMail::Describe(reply)).is_accepted()
                && let Ok(mut sessions) = answer.await
            {
                all.append(&mut sessions);
            }
        }
        all
    }

    /// Tells an account's contacts that it is gone and closes its sessions but one; resolves
    /// when that is done. The account must no longer exist in the registry.
    pub async fn remove_account(self: &Arc<Self>, account: &Jid, except: Option<SessionId>) {
        let (reply, done) = oneshot::channel();
        self.control(account, AccountMail::Remove(except, reply));
        // An error means that the route ended, which it does only when all is done.
        let _ = done.await;
    }

    /// Closes the sessions of all accounts, because the server stops.
    pub fn close_all(&self, error: &StreamError) {
        self.stopping.store(true, Ordering::Release);
        for route in self.directory.all() {
            // Gone means that it had no sessions.
            let _ = route.offer_control(AccountMail::Close(CloseWhich::All, error.clone()));
        }
    }

    /// After [`Router::close_all`]: ends the streams to remote domains in order; resolves when no route has
    /// anything left to do, or `limit` has passed.
    pub async fn settle(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        // The last words of accounts are for remote domains as well, so these come after them.
        let accounts = Instant::now() + limit.mul_f32(0.75);
        while !self.directory.is_empty() && Instant::now() < accounts {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.stop_domains(deadline).await;
        while !self.directory.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many account routes are live.
    pub fn routes(&self) -> usize {
        self.directory.len()
    }

    fn to_host(self: &Arc<Self>, stanza: Stanza, origin: Origin) {
        match stanza.kind() {
            // The rest are answers to something this server asked: whoever asked has seen them
            // before the router did, or they are unsolicited.
            Kind::Iq if matches!(stanza.stanza_type(), StanzaType::Iq(IqType::Get | IqType::Set)) => {
                let Some(target) = stanza.to().map(Jid::to_domain) else { return };
                if stanza.to().is_some_and(|to| !to.is_bare()) {
                    // RFC 6120 10.5.2: no resource of a host is addressable here.
                    return self.refuse(&stanza, &Condition::ServiceUnavailable.into());
                }
                let session = match origin {
                    Origin::Session(id) => Some(id),
                    Origin::Remote | Origin::Server => None,
                };
                let asked = Asked {
                    scope: Scope::Host,
                    target,
                    relation: Relation::Stranger,
                    session,
                    available: false,
                };
                let router = self.clone();
                self.iqs.answer(stanza, asked, move |reply| router.route_own(reply));
            }
            Kind::Iq => {}
            // RFC 6120 10.5.1 leaves messages to a host to the host: nobody reads them here,
            // which the sender is told.
            Kind::Message => self.refuse(&stanza, &Condition::ServiceUnavailable.into()),
            // Presence to a host is a common habit of clients; it is ignored.
            Kind::Presence => {}
        }
    }

    /// Answers a stanza with an error, if it may be answered.
    pub(crate) fn refuse(self: &Arc<Self>, stanza: &Stanza, error: &StanzaError) {
        // Presence is answered with errors only by those whom it concerns; a host that
        // cannot be reached is such a case (RFC 6121 4.3: the subscriber learns it).
        if let Some(reply) = stanza.error_reply(error) {
            self.route_own(reply);
        }
    }
}
