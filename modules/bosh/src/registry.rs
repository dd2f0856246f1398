//! The sessions of this server, by the hash of their identifiers.
//!
//! What must hold: an identifier is only ever compared as its hash, so that the time a look-up
//! takes says nothing of it; there are at most so many sessions, in all and of an address; a
//! session is taken up from the store by one task only, however many requests come for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use tokio::sync::{mpsc, oneshot};
use waystation_core::Jid;
use waystation_core::storage::Storage;
use waystation_core::xml::{Element, Limits};
use waystation_transport::{AddressLimits, AddressSlot, Admission};
use waystation_web::{ClientInfo, Streams};

use crate::Settings;
use crate::gateway::{Gateway, Mail, Ticket};
use crate::record::{self, Identity, SidHash, sid_hash};
use crate::request::{Condition, Request, Wishes};
use crate::session::{self, Response, Session, Terms, VERSION, refusal};

/// Requests that may wait for their session, above which their handlers wait.
const MAILBOX: usize = 8;
/// How often expired sessions are looked for, besides at the start.
const SWEEP: Duration = Duration::from_secs(3600);
/// How much longer than the session its stream can be resumed.
const MARGIN: Duration = Duration::from_secs(30);
/// `wait` of a client that does not say it.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) streams: Arc<dyn Streams>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) settings: Settings,
    sessions: Mutex<HashMap<SidHash, mpsc::Sender<Mail>>>,
    admission: Admission,
    /// The server stops: no session is begun or taken up.
    stopping: AtomicBool,
    swept: AtomicBool,
}

impl Shared {
    pub(crate) fn new(streams: Arc<dyn Streams>, storage: Arc<dyn Storage>, settings: Settings) -> Self {
        let limits = AddressLimits {
            connections: settings.sessions_per_address,
            tracked: settings.max_sessions,
            ..AddressLimits::unlimited()
        };
        Self {
            streams,
            storage,
            settings,
            sessions: Mutex::default(),
            admission: Admission::new(limits),
            stopping: AtomicBool::new(false),
            swept: AtomicBool::new(false),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SidHash, mpsc::Sender<Mail>>> {
        // No change of the map can be left half done by a panic.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Limits on what the server sends: its own stanzas may be larger than those of clients.
    pub(crate) fn upstream_limits(&self) -> Limits {
        Limits {
            max_stanza_bytes: 4 * self.settings.limits.max_stanza_bytes,
            max_depth: usize::MAX,
            max_elements: usize::MAX,
            max_attributes: usize::MAX,
        }
    }

    /// How long streams are to be resumable.
    pub(crate) fn resumable_for(&self) -> Duration {
        self.settings.max_pause.max(self.polling_inactivity()) + MARGIN
    }

    /// XEP-0124 12: longer than for others by more than the shortest interval.
    fn polling_inactivity(&self) -> Duration {
        self.settings.inactivity + 2 * self.settings.polling
    }

    /// The server stops.
    pub(crate) fn stops(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Looks for expired sessions, now and now and then. Needs the runtime of this thread; the
    /// second call does nothing.
    pub(crate) fn sweep(self: &Arc<Self>) {
        if self.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let (weak, storage) = (Arc::downgrade(self), Arc::downgrade(&self.storage));
        actix_rt::spawn(async move {
            while let (Some(_), Some(storage)) = (weak.upgrade().map(drop), storage.upgrade()) {
                match record::sweep(&*storage).await {
                    Ok(0) => {}
                    Ok(removed) => tracing::info!(removed, "expired BOSH sessions were removed"),
                    Err(error) => tracing::warn!(%error, "expired BOSH sessions could not be removed"),
                }
                drop(storage);
                tokio::time::sleep(SWEEP).await;
            }
        });
    }

    /// Answers a request: with what its session says, or as one that has none.
    pub(crate) async fn request(
        self: &Arc<Self>,
        body: &mut Element,
        info: ClientInfo,
    ) -> (Response, Option<String>) {
        // 17.1: a client that gives no version when it wants a session is a legacy one.
        let legacy = body.attr("sid").is_none() && body.attr("ver").is_none();
        let request = match Request::read(body) {
            Ok(request) => request,
            Err(condition) => return (refusal(legacy, Some(condition)), None),
        };
        let (ticket, answer) = oneshot::channel();
        let begun = match request.sid.as_deref().map(sid_hash) {
            Some(hash) => self.find(hash, Mail { request, info, ticket }).await,
            None => self.create(body, &request, &info, ticket),
        };
        if let Err(refused) = begun {
            return (refused, None);
        }
        // A session that cannot answer has failed, or its task did.
        let internal = || (refusal(false, Some(Condition::InternalServerError)), None);
        answer.await.unwrap_or_else(|_| internal())
    }

    async fn find(self: &Arc<Self>, hash: SidHash, mail: Mail) -> Result<(), Response> {
        let unknown = || refusal(false, Some(Condition::ItemNotFound));
        let (sender, revived) = {
            let mut sessions = self.sessions();
            match sessions.get(&hash) {
                Some(sender) => (sender.clone(), None),
                None if self.stopping.load(Ordering::Relaxed) => return Err(Response::Retry),
                None if sessions.len() >= self.settings.max_sessions => return Err(unknown()),
                None => {
                    let slot = self.admit(mail.info.peer.ip())?;
                    let (sender, receiver) = mpsc::channel(MAILBOX);
                    sessions.insert(hash, sender.clone());
                    (sender, Some((receiver, slot)))
                }
            }
        };
        if let Some((receiver, slot)) = revived {
            actix_rt::spawn(Gateway::revive(self.clone(), hash, mail.info.clone(), receiver, slot));
        }
        // The session has just ended.
        sender.send(mail).await.map_err(|_| unknown())
    }

    fn admit(&self, address: IpAddr) -> Result<Option<AddressSlot>, Response> {
        self.admission.admit(address).map_err(|_| refusal(false, Some(Condition::PolicyViolation)))
    }

    /// Creates a session (7).
    fn create(
        self: &Arc<Self>,
        body: &Element,
        request: &Request,
        info: &ClientInfo,
        ticket: Ticket,
    ) -> Result<(), Response> {
        let legacy = body.attr("ver").is_none();
        let refuse = |condition| refusal(legacy, Some(condition));
        if self.stopping.load(Ordering::Relaxed) {
            return Err(refuse(Condition::SystemShutdown));
        }
        let wishes = Wishes::read(body).map_err(refuse)?;
        let to = request.to.as_deref().map(str::trim_ascii).filter(|to| !to.is_empty());
        let host = Jid::parse(to.ok_or_else(|| refuse(Condition::ImproperAddressing))?)
            .map_err(|_| refuse(Condition::HostUnknown))?;
        if host.local().is_some() || !host.is_bare() {
            return Err(refuse(Condition::ImproperAddressing));
        }
        if !self.streams.serves(host.domain()) {
            return Err(refuse(Condition::HostUnknown));
        }
        let slot = self.admit(info.peer.ip())?;
        let sid = random_sid().ok_or_else(|| refuse(Condition::InternalServerError))?;
        let terms = self.terms(&wishes, request.ack == Some(1));
        let creation = session::creation(&terms, &sid, host.domain(), request.rid);
        let identity = Identity {
            host: host.domain().to_owned(),
            from: request.from.as_deref().and_then(|from| Jid::parse(from).ok()).map(|from| from.to_string()),
            lang: request.lang.clone(),
            content: wishes.content.unwrap_or_else(|| crate::http::CONTENT_TYPE.to_owned()),
            secure: info.secure,
        };
        let session = match Session::create(terms, request, creation, ticket, Instant::now()) {
            Ok(session) => session,
            Err((_, condition)) => return Err(refuse(condition)),
        };
        let hash = sid_hash(&sid);
        let (sender, receiver) = mpsc::channel(MAILBOX);
        {
            let mut sessions = self.sessions();
            if sessions.len() >= self.settings.max_sessions {
                tracing::warn!(limit = self.settings.max_sessions, "there are too many BOSH sessions");
                return Err(refuse(Condition::InternalServerError));
            }
            sessions.insert(hash, sender);
        }
        let gateway = Gateway::create(self.clone(), hash, identity, session, info, receiver, slot);
        actix_rt::spawn(gateway.run());
        Ok(())
    }

    /// What is agreed on (7.2). `acks`: the client acknowledges responses.
    fn terms(&self, wishes: &Wishes, acks: bool) -> Terms {
        let settings = &self.settings;
        let wait = wishes.wait.map_or(DEFAULT_WAIT, Duration::from_secs).min(settings.max_wait);
        let hold = wishes.hold.map_or(1, |hold| usize::try_from(hold).unwrap_or(usize::MAX));
        let hold = hold.min(settings.max_hold);
        let mut terms = Terms {
            wait,
            hold,
            requests: hold + 1,
            inactivity: settings.inactivity,
            polling: settings.polling,
            max_pause: settings.max_pause,
            acks,
            legacy: wishes.version.is_none(),
            version: wishes.version.map_or(VERSION, |version| version.min(VERSION)),
        };
        if terms.is_polling() {
            terms.inactivity = self.polling_inactivity();
        }
        terms
    }

    /// A session is over: it is not found any more, and what still waits for it gets `response`.
    pub(crate) async fn forget(&self, hash: &SidHash, mut mail: mpsc::Receiver<Mail>, response: &Response) {
        self.sessions().remove(hash);
        mail.close();
        while let Some(Mail { ticket, .. }) = mail.recv().await {
            // The client may have gone.
            let _ = ticket.send((response.clone(), None));
        }
    }
}

/// 256 random bits (XEP-0124 19.3: unpredictable).
fn random_sid() -> Option<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .inspect_err(|error| tracing::error!(%error, "the system gives no random bytes"))
        .ok()?;
    Some(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}
