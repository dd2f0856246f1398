//! What the actors say to each other.
//!
//! What must hold: every message has a weight, so that every queue has a bound in bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use waystation_core::queue::RecordId;
use waystation_core::storage::StorageError;
use waystation_core::{Jid, SessionId, Stanza, StreamError};
use waystation_runtime::{Inlet, Outlet, Weigh};

use crate::receipt::Receipt;
use crate::router::Router;
use crate::stream::{Detachment, ResumeError, ResumeRequest, Resumption};

/// Memory that a queued stanza holds besides its bytes, roughly.
pub const STANZA_OVERHEAD: usize = 256;
const OVERHEAD: usize = STANZA_OVERHEAD;

/// What a session is given.
#[derive(Debug)]
pub enum SessionMail {
    /// Write this to the client.
    Stanza(Stanza),
    /// Write this to the client; the record leaves the account's queue once the client has
    /// confirmed it.
    Record(Stanza, RecordId),
    /// Another connection resumes this session: give its state back, then close the stream
    /// with `conflict` (XEP-0198 5).
    Yield,
    /// Close the stream with this error.
    Close(StreamError),
}

impl SessionMail {
    /// The stanza, if it is one.
    pub fn into_stanza(self) -> Option<Stanza> {
        match self {
            Self::Stanza(stanza) | Self::Record(stanza, _) => Some(stanza),
            Self::Yield | Self::Close(_) => None,
        }
    }
}

/// What a session that ends gives back: the stanzas that are in nobody's queue. The records
/// stay in the account's queue and need no giving back.
pub fn leftovers(mails: Vec<SessionMail>) -> Vec<Stanza> {
    let of = |mail| match mail {
        SessionMail::Stanza(stanza) => Some(stanza),
        SessionMail::Record(..) | SessionMail::Yield | SessionMail::Close(_) => None,
    };
    mails.into_iter().filter_map(of).collect()
}

impl Weigh for SessionMail {
    fn weight(&self) -> usize {
        match self {
            Self::Stanza(stanza) | Self::Record(stanza, _) => stanza.len() + OVERHEAD,
            Self::Yield | Self::Close(_) => OVERHEAD,
        }
    }
}

/// The handle of a session.
pub type SessionOutlet = Outlet<SessionMail>;

/// Counts as done when dropped; see [`crate::router::Router`] on order.
#[derive(Debug)]
pub struct OrderToken(Arc<AtomicU64>);

impl OrderToken {
    /// A token that adds one to `done` when dropped.
    pub fn new(done: Arc<AtomicU64>) -> Self {
        Self(done)
    }
}

impl Drop for OrderToken {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// What travels with a stanza through its sender's own route.
#[derive(Debug)]
pub struct Outbound {
    /// Done when everything that the stanza caused was handed on.
    pub token: OrderToken,
    /// Accepted when everything that is to be durable is.
    pub receipt: Option<Receipt>,
    /// The mark of the sender's stream, if it has one.
    pub stream: Option<u128>,
}

/// A request to bind a resource (RFC 6120 7).
pub struct BindRequest {
    /// The authenticated account.
    pub account: Jid,
    /// The resource that the client asked for; `None`: the server makes one.
    pub resource: Option<String>,
    /// How to reach the session.
    pub outlet: SessionOutlet,
    /// The session's side of it, given back with the binding.
    pub inlet: Inlet<SessionMail>,
    /// Where the client connects from.
    pub peer: SocketAddr,
    /// `TLSv1_3`, or `none`.
    pub security: &'static str,
}

/// A bound resource whose session has not started yet. Dropped, it is unbound again, with
/// what was delivered to it meanwhile given back.
pub struct Binding {
    id: SessionId,
    jid: Jid,
    /// Taken out by [`Binding::start`].
    inlet: Option<Inlet<SessionMail>>,
    router: Arc<Router>,
}

impl Binding {
    pub(crate) fn new(id: SessionId, jid: Jid, inlet: Inlet<SessionMail>, router: Arc<Router>) -> Self {
        Self { id, jid, inlet: Some(inlet), router }
    }

    /// The full JID.
    pub fn jid(&self) -> &Jid {
        &self.jid
    }

    /// Hands the binding over to a session, which must send [`AccountMail::Unbind`] when it
    /// ends, whatever ends it: the account's route waits for it.
    pub fn start(mut self) -> (SessionId, Jid, Inlet<SessionMail>) {
        let inlet = self.inlet.take().unwrap_or_else(|| waystation_runtime::outlet(0, 0).1);
        (self.id, self.jid.clone(), inlet)
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binding").field("id", &self.id).field("jid", &self.jid).finish_non_exhaustive()
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        let Some(mut inlet) = self.inlet.take() else { return };
        let leftovers = leftovers(inlet.close());
        self.router.control(&self.jid, AccountMail::Unbind(self.id, leftovers));
    }
}

/// Why a resource was not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The resource cannot be prepared (RFC 6120 7.7.2.1).
    #[error("the resource is malformed")]
    Malformed,
    /// The account has as many sessions as it may have (RFC 6120 7.6.2.1).
    #[error("the account has reached its number of sessions")]
    TooMany,
    /// The account has been removed.
    #[error("there is no such account")]
    NoAccount,
    /// The account's state could not be loaded.
    #[error("the account's state could not be loaded")]
    Unavailable,
}

/// One live session as administrators see it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Full JID.
    pub jid: Jid,
    /// Where the client connects from.
    pub peer: SocketAddr,
    /// `TLSv1_3`, or `none`.
    pub security: &'static str,
    /// When it was bound.
    pub since: SystemTime,
    /// Priority, when available.
    pub priority: Option<i8>,
}

/// What an account's route is given.
pub enum AccountMail {
    /// Bind a resource.
    Bind(Box<BindRequest>, oneshot::Sender<Result<Binding, BindError>>),
    /// Take up a session whose connection was lost (XEP-0198 5).
    Resume(Box<ResumeRequest>, oneshot::Sender<Result<Resumption, ResumeError>>),
    /// Make a session resumable under this key, for this long; answered once that is durable.
    Enable(SessionId, u128, Duration, oneshot::Sender<Result<(), StorageError>>),
    /// A session has ended; `leftovers` were accepted for it, never written, and in no queue.
    Unbind(SessionId, Vec<Stanza>),
    /// A session has lost its connection and may be resumed.
    Detach(SessionId, Box<Detachment>),
    /// The client of a session has confirmed all records up to this one.
    Confirmed(SessionId, RecordId),
    /// A record of the account's queue, in the order of the log.
    Record(RecordId, Stanza, SystemTime),
    /// Records were committed that the route had no room for: it reads them itself.
    Behind,
    /// A stanza of one of the account's own sessions that its route must see first: presence,
    /// and whatever must not overtake it.
    Outbound(SessionId, Stanza, Outbound),
    /// A stanza addressed to the account, with the local session that sent it.
    Inbound(Stanza, Option<SessionId>),
    /// A stanza for the one session that its `to` names.
    ToSession(Stanza),
    /// Close sessions: all, one resource, or all but one.
    Close(CloseWhich, StreamError),
    /// Describe the sessions.
    Describe(oneshot::Sender<Vec<SessionInfo>>),
    /// The account is being removed: tell its contacts, close its sessions but one.
    Remove(Option<SessionId>, oneshot::Sender<()>),
}

/// Which sessions of an account to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseWhich {
    /// All.
    All,
    /// All but one.
    AllBut(SessionId),
    /// One resource.
    Resource(String),
}

impl Weigh for AccountMail {
    fn weight(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Outbound(_, stanza, _)
                | Self::Inbound(stanza, _)
                | Self::Record(_, stanza, _)
                | Self::ToSession(stanza) => stanza.len(),
                Self::Detach(_, detachment) => detachment.bytes(),
                Self::Unbind(_, leftovers) => leftovers.iter().map(Stanza::len).sum(),
                _ => 0,
            }
    }
}
