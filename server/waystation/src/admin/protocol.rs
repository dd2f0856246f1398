//! The lines of the admin socket: one JSON object a request, one a response.
//!
//! ```text
//! > {"version":1,"request":{"op":"show_user","jid":"ann@localhost"}}
//! < {"version":1,"response":{"result":"user","jid":"ann@localhost","admin":false,...}}
//! < {"version":1,"error":{"kind":"not_found","message":"..."}}
//! ```
//!
//! What must hold: a line of another version is refused before it is looked into; no line is
//! longer than its limit.

use serde::{Deserialize, Serialize};

use super::Password;

/// The version of the protocol. Client and server are the same program, so a change needs no
/// compatibility, only a clear message.
pub(crate) const VERSION: u32 = 1;
/// Longest request in bytes.
pub(crate) const MAX_REQUEST: usize = 1024 * 1024;
/// Longest response in bytes.
pub(crate) const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// Most accounts in one request to add some.
pub(crate) const MAX_ADD: usize = 500;
/// Most rows of one page. Each holds a JID of at most 3 KiB.
pub(crate) const MAX_PAGE: usize = 2_000;

/// An account to make, as it is written in a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq, Eq))]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    pub(crate) jid: String,
    pub(crate) password: Password,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq, Eq))]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How is the server? With `timers` it measures, which takes a second.
    Status {
        #[serde(default)]
        timers: bool,
    },
    /// Read the certificates again.
    Reload {},
    /// Make accounts.
    AddUsers { users: Vec<NewUser> },
    /// Change a password.
    SetPassword { jid: String, password: Password },
    /// Remove an account.
    RemoveUser { jid: String },
    /// A page of accounts: of one host or of all, after an account, at most so many.
    ListUsers { host: Option<String>, after: Option<String>, limit: usize },
    /// What is known of an account?
    ShowUser { jid: String },
    /// A page of sessions: of one account or of all, after a session, at most so many.
    ListSessions { jid: Option<String>, after: Option<String>, limit: usize },
    /// Close the session of a full JID, or all of a bare one.
    Kick { jid: String, condition: Condition, text: Option<String> },
    /// All pairs of domains with something that waits or with a stream.
    ListDomains {},
    /// The pairs of one remote domain.
    ShowDomain { domain: String },
    /// Try to reach a domain now.
    RetryDomain { domain: String },
    /// Send back what waits for a domain.
    FlushDomain { domain: String },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Response {
    /// It is done.
    Done {},
    /// What became of each account, in the order of the request; `None` is success.
    Added { errors: Vec<Option<AdminError>> },
    /// A page of accounts, and whether there are more.
    Users { jids: Vec<String>, more: bool },
    /// An account.
    User(UserDetails),
    /// A page of sessions, and whether there are more.
    Sessions { sessions: Vec<SessionRow>, more: bool },
    /// So many sessions were closed.
    Kicked { sessions: usize },
    /// Pairs of domains, by remote domain; at most [`MAX_PAGE`].
    Domains { domains: Vec<DomainRow> },
    /// So many pairs are being tried.
    Retried { pairs: usize },
    /// So many stanzas go back.
    Flushed { stanzas: u64 },
    /// The certificates were read again, with what is worth knowing about them.
    Reloaded { warnings: Vec<String> },
    /// How the server is.
    Status(Status),
}

/// An account as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserDetails {
    /// Its bare JID.
    pub(crate) jid: String,
    /// True when it administers the server.
    pub(crate) admin: bool,
    /// Messages that wait for it.
    pub(crate) offline_messages: usize,
    /// Its live sessions.
    pub(crate) sessions: Vec<SessionRow>,
}

/// A live session as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRow {
    /// Its full JID.
    pub(crate) jid: String,
    /// Where the client connects from.
    pub(crate) address: String,
    /// The version of TLS, or `none`.
    pub(crate) security: String,
    /// When it was bound, in seconds since 1970.
    pub(crate) since: u64,
    /// Its priority, when it is available.
    pub(crate) priority: Option<i8>,
}

/// A local and a remote domain as administrators see them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DomainRow {
    /// The domain served here.
    pub(crate) local: String,
    /// The other one.
    pub(crate) remote: String,
    /// `idle`, `connecting`, `sending`, `backoff` (until the next try) or `bouncing`.
    pub(crate) state: String,
    /// Stanzas in the queue.
    pub(crate) waiting: u64,
    /// Bytes of them.
    pub(crate) bytes: u64,
    /// When the oldest of them was stored, in seconds since 1970.
    pub(crate) oldest: Option<u64>,
    /// Why the last stream ended or could not be opened.
    pub(crate) last_error: Option<String>,
    /// When the domain is tried again, in seconds since 1970.
    pub(crate) next_try: Option<u64>,
    /// Stanzas that the remote server has taken, since the route began.
    pub(crate) handed: u64,
    /// Stanzas that went back to their senders, since the route began.
    pub(crate) bounced: u64,
    /// The stream, if there is one.
    pub(crate) stream: Option<StreamRow>,
}

/// A stream to another server as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamRow {
    /// The peer's address.
    pub(crate) peer: String,
    /// The version of TLS, or `none`.
    pub(crate) security: String,
    /// `certificate` or `dialback`.
    pub(crate) proven_by: String,
    /// Names and end of the peer's certificate.
    pub(crate) certificate: Option<String>,
    /// The peer acknowledges what it has taken (XEP-0198).
    pub(crate) acknowledges: bool,
    /// Stanzas come back on it (XEP-0288).
    pub(crate) bidirectional: bool,
    /// When it became ready, in seconds since 1970.
    pub(crate) since: u64,
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Its version.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Seconds since it was started.
    pub(crate) uptime: u64,
    /// The domains that it serves.
    pub(crate) hosts: Vec<String>,
    /// The storage engine.
    pub(crate) storage: String,
    /// What confirmed data survives: `fsync`, `os` or `memory`.
    pub(crate) durability: String,
    /// Live sessions.
    pub(crate) sessions: usize,
    /// Accounts with a route: those with sessions, and those that got something of late.
    pub(crate) routes: usize,
    /// Resident memory in bytes, where the system tells.
    pub(crate) memory: Option<u64>,
    /// Open file descriptors, where the system tells.
    pub(crate) descriptors: Option<usize>,
    /// What commits to the queue take; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commits: Option<Commits>,
    /// How late timers are, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timers: Option<Vec<ArbiterTimers>>,
}

/// What the last commits to the queue took. A message waits for one before it is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commits {
    /// How many are meant.
    pub(crate) count: usize,
    /// Half of them took no longer, in microseconds.
    pub(crate) median_us: u64,
    /// 99 of 100 took no longer, in microseconds.
    pub(crate) p99_us: u64,
}

/// How late the timers of an arbiter were within a second. Each was due 10 ms after the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ArbiterTimers {
    /// The number of the arbiter; 0 is the thread that accepts connections.
    pub(crate) arbiter: usize,
    /// 99 of 100 timers were no later, in microseconds.
    pub(crate) p99_us: u64,
    /// The latest, in microseconds.
    pub(crate) worst_us: u64,
}

/// Why an administrator closes a session (RFC 6120 4.9.3).
#[expect(clippy::enum_variant_names, reason = "the RFC's name of a condition")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Condition {
    /// Another session takes its place.
    Conflict,
    /// It may not be here.
    NotAuthorized,
    /// It does not keep the rules.
    PolicyViolation,
    /// It should connect again.
    Reset,
    /// It costs too much.
    ResourceConstraint,
    /// Anything else.
    UndefinedCondition,
}

/// What kind of error; scripts may rely on the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorKind {
    /// There is no such account or session.
    NotFound,
    /// There is such an account already.
    Exists,
    /// The password is empty, too long, or holds a forbidden character.
    BadPassword,
    /// The request is not one that can be answered.
    BadRequest,
    /// Client and server are of different versions.
    Version,
    /// Too many administrators are connected.
    Busy,
    /// It took too long; it may still happen.
    Timeout,
    /// The server could not do it.
    Failed,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct AdminError {
    /// What kind.
    pub(crate) kind: ErrorKind,
    /// What happened and what to do, for people.
    pub(crate) message: String,
}

impl AdminError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// A line of the client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestLine<R> {
    pub(crate) version: u32,
    pub(crate) request: R,
}

/// A line of the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseLine {
    pub(crate) version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) response: Option<Response>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<AdminError>,
}
