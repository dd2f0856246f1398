//! The router: one decision per stanza, by its `to` (RFC 6120 10, RFC 6121 8).
//!
//! What must hold: a decision never waits; a stanza goes to exactly one of: an iq handler, an
//! account's route, or back to its sender as an error (or nowhere, where the RFCs want
//! silence). Order: stanzas from one session to one account keep their order, because each is
//! offered to the account's route in the turn it was read; what must pass the sender's own
//! route first carries an [`OrderToken`](crate::OrderToken), and while one is out the session
//! sends everything that way.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use waystation_core::account::{OfflineStore, PresenceLogic, Relation};
use waystation_core::module::{AccountRegistry, Scope, SessionObserver};
use waystation_core::storage::Storage;
use waystation_core::{
    Condition, IqType, Jid, Kind, PresenceType, SessionId, Stanza, StanzaError, StanzaType, StreamError,
};
use waystation_runtime::{Arbiters, Offer, outlet};

use crate::account::AccountRoute;
use crate::directory::{AccountOutlet, Directory};
use crate::iq::{Asked, IqTable};
use crate::mail::{AccountMail, BindError, BindRequest, Binding, CloseWhich, SessionInfo};

/// Limits of the routes.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Most bytes that may wait for one account's route.
    pub route_bytes: usize,
    /// Most stanzas that may wait for one account's route.
    pub route_items: usize,
    /// Most sessions of one account.
    pub sessions_per_account: usize,
    /// How long a route without sessions stays in memory.
    pub linger: Duration,
    /// Most routes without sessions that stay in memory.
    pub max_lingering: usize,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            route_bytes: 8 * 1024 * 1024,
            route_items: 10_000,
            sessions_per_account: 100,
            linger: Duration::from_secs(60),
            max_lingering: 10_000,
        }
    }
}

/// What every route needs.
pub struct Router {
    pub(crate) hosts: HashSet<Box<str>>,
    pub(crate) config: RouterConfig,
    pub(crate) directory: Directory,
    pub(crate) arbiters: Arc<Arbiters>,
    pub(crate) iqs: IqTable,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) presence: Arc<dyn PresenceLogic>,
    pub(crate) offline: Arc<dyn OfflineStore>,
    pub(crate) accounts: Arc<dyn AccountRegistry>,
    pub(crate) observers: Vec<Arc<dyn SessionObserver>>,
    pub(crate) lingering: AtomicUsize,
    /// The server stops: routes end as soon as they have nothing to do.
    pub(crate) stopping: AtomicBool,
    next_session: AtomicU64,
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
    /// The spool.
    pub offline: Arc<dyn OfflineStore>,
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
    /// The server itself, or an account's route.
    Server,
}

/// What became of a stanza.
#[expect(
    clippy::large_enum_variant,
    reason = "made once a stanza and moved once; a box would cost an allocation"
)]
#[derive(Debug)]
pub enum Routed {
    /// Taken over; errors go to its `from`.
    Done,
    /// The recipient's route has no credit left: offer the stanza again later, and read
    /// nothing from the sender until then.
    Busy(Stanza),
}

impl Router {
    /// A router.
    pub fn new(parts: RouterParts) -> Arc<Self> {
        Arc::new(Self {
            hosts: parts.hosts.into_iter().map(String::into_boxed_str).collect(),
            config: parts.config,
            directory: Directory::default(),
            arbiters: parts.arbiters,
            iqs: parts.iqs,
            storage: parts.storage,
            presence: parts.presence,
            offline: parts.offline,
            accounts: parts.accounts,
            observers: parts.observers,
            lingering: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            next_session: AtomicU64::new(1),
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
    pub fn route(self: &Arc<Self>, stanza: Stanza, origin: Origin) -> Routed {
        let Some(to) = stanza.to() else { return Routed::Done };
        if !self.is_local(to.domain()) {
            // RFC 6120 10.4: no federation is offered by this server, so no remote domain
            // can be reached.
            self.refuse(&stanza, &Condition::RemoteServerNotFound.into());
            return Routed::Done;
        }
        if to.local().is_some() {
            let session = match origin {
                Origin::Session(id) => Some(id),
                Origin::Server => None,
            };
            let to = to.clone();
            return match self.to_account(&to, AccountMail::Inbound(stanza, session)) {
                Ok(()) => Routed::Done,
                Err(AccountMail::Inbound(stanza, _)) => Routed::Busy(stanza),
                Err(_) => Routed::Done,
            };
        }
        self.to_host(stanza, origin);
        Routed::Done
    }

    /// Routes a stanza that the server made, whose loss under overload must not stop anyone:
    /// at a route without credit, presence is dropped and the rest gets through all the same
    /// (each was caused by a stanza that had credit).
    pub fn route_own(self: &Arc<Self>, stanza: Stanza) {
        if let Routed::Busy(stanza) = self.route(stanza, Origin::Server) {
            let ephemeral = matches!(
                stanza.stanza_type(),
                StanzaType::Presence(
                    PresenceType::Available | PresenceType::Unavailable | PresenceType::Probe
                )
            );
            if ephemeral {
                return;
            }
            if let Some(to) = stanza.to().cloned() {
                self.control(&to, AccountMail::Inbound(stanza, None));
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
    /// The mail, when the route is full.
    #[expect(
        clippy::result_large_err,
        reason = "the mail comes back whole; a box would cost an allocation each"
    )]
    pub fn to_account(self: &Arc<Self>, account: &Jid, mut mail: AccountMail) -> Result<(), AccountMail> {
        loop {
            match self.account_route(account).offer(mail) {
                Offer::Accepted => return Ok(()),
                Offer::Full(mail) => return Err(mail),
                // It ended between the look-up and the offer: a new one is started.
                Offer::Gone(returned) => mail = returned,
            }
        }
    }

    /// Gives a control message to an account's route, whatever its credit.
    pub fn control(self: &Arc<Self>, account: &Jid, mut mail: AccountMail) {
        loop {
            match self.account_route(account).offer_control(mail) {
                Offer::Accepted => return,
                Offer::Full(returned) | Offer::Gone(returned) => mail = returned,
            }
        }
    }

    fn account_route(self: &Arc<Self>, account: &Jid) -> AccountOutlet {
        let bare = account.bare_str();
        self.directory.find_or_start(bare, || {
            let (outlet, inlet) = outlet(self.config.route_bytes, self.config.route_items);
            let router = self.clone();
            let account = account.to_bare();
            let place = self.arbiters.place(bare);
            self.arbiters.run_on(place, move || AccountRoute::start(router, account, inlet));
            outlet
        })
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

    /// After [`Router::close_all`]: resolves when no route has anything left to do, or `limit`
    /// has passed.
    pub async fn settle(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
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
                    Origin::Server => None,
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
