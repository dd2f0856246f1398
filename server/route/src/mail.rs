//! What the actors say to each other.
//!
//! What must hold: every message has a weight, so that every queue has a bound in bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::oneshot;
use waystation_core::{Jid, SessionId, Stanza, StreamError};
use waystation_runtime::{Outlet, Weigh};

/// Memory that a queued stanza holds besides its bytes, roughly.
const OVERHEAD: usize = 256;

/// What a session is given.
#[derive(Debug)]
pub enum SessionMail {
    /// Write this to the client.
    Stanza(Stanza),
    /// Close the stream with this error.
    Close(StreamError),
}

impl Weigh for SessionMail {
    fn weight(&self) -> usize {
        match self {
            Self::Stanza(stanza) => stanza.len() + OVERHEAD,
            Self::Close(_) => OVERHEAD,
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

/// A request to bind a resource (RFC 6120 7).
#[derive(Debug)]
pub struct BindRequest {
    /// The authenticated account.
    pub account: Jid,
    /// The resource that the client asked for; `None`: the server makes one.
    pub resource: Option<String>,
    /// How to reach the session.
    pub outlet: SessionOutlet,
    /// Where the client connects from.
    pub peer: SocketAddr,
    /// `TLSv1_3`, or `none`.
    pub security: &'static str,
}

/// A bound session.
#[derive(Debug)]
pub struct Bound {
    /// Its identity.
    pub id: SessionId,
    /// Its full JID.
    pub jid: Jid,
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
#[derive(Debug)]
pub enum AccountMail {
    /// Bind a resource.
    Bind(Box<BindRequest>, oneshot::Sender<Result<Bound, BindError>>),
    /// A session has ended; `leftovers` were accepted for it and never written.
    Unbind(SessionId, Vec<Stanza>),
    /// A stanza of one of the account's own sessions that its route must see first: presence,
    /// and whatever must not overtake it.
    Outbound(SessionId, Stanza, OrderToken),
    /// A stanza addressed to the account, with the local session that sent it.
    Inbound(Stanza, Option<SessionId>),
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
                Self::Outbound(_, stanza, _) | Self::Inbound(stanza, _) => stanza.len(),
                Self::Unbind(_, leftovers) => leftovers.iter().map(Stanza::len).sum(),
                _ => 0,
            }
    }
}
