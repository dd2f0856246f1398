//! Administration: what can be asked of a server, over a socket in its data folder or in process.
//!
//! What must hold: one dispatcher answers every request, wherever it comes from, and checks it
//! there; only this server's user (and root) may connect; no line, page, wait or number of
//! connections is without a limit; a password is never logged and never printed.

mod backend;
mod client;
mod dispatch;
mod folder;
mod password;
mod process;
mod protocol;
mod server;
mod socket;
#[cfg(test)]
mod tests;

use waystation_core::storage::BoxFuture;
use waystation_core::{Jid, StreamError};

pub(crate) use backend::Backend;
pub(crate) use client::{Client, ClientError};
pub(crate) use dispatch::Dispatcher;
pub(crate) use folder::{Folder, storage_options};
pub(crate) use password::Password;
pub(crate) use protocol::{
    AdminError, ArbiterTimers, Commits, Condition, DomainRow, ErrorKind, MAX_ADD, MAX_PAGE, NewUser, Request,
    Response, SessionRow, Status, StreamRow, UserDetails,
};
pub(crate) use server::serve;
pub(crate) use socket::AdminSocket;

/// An account to make.
#[derive(Debug)]
pub(crate) struct NewAccount {
    /// Its bare JID, of a host of this server.
    pub(crate) jid: Jid,
    /// Its password.
    pub(crate) password: Password,
}

/// What the server does for its administrators. Every JID is prepared, of a local host, and has a
/// localpart.
pub(crate) trait AdminBackend: Send + Sync + 'static {
    /// The domains that are served.
    fn hosts(&self) -> Vec<String>;

    /// Makes accounts, durably; one result for each, in order. [`ErrorKind::Exists`] and
    /// [`ErrorKind::BadPassword`] concern one account, the others are made nevertheless.
    fn add_users(&self, users: Vec<NewAccount>) -> BoxFuture<'_, Vec<Result<(), AdminError>>>;

    /// Changes a password and closes the account's sessions, which were opened with the old one.
    fn set_password(&self, account: Jid, password: Password) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Removes an account with all that is kept of it, and closes its sessions.
    fn remove_user(&self, account: Jid) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Accounts of a host, in order, the first after `after`.
    fn list_users(
        &self,
        host: Jid,
        after: Option<Jid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Jid>, AdminError>>;

    /// What is known of an account; [`ErrorKind::NotFound`] when there is none.
    fn show_user(&self, account: Jid) -> BoxFuture<'_, Result<UserDetails, AdminError>>;

    /// Live sessions, of one account or of all, ordered by JID.
    fn list_sessions(&self, account: Option<Jid>) -> BoxFuture<'_, Result<Vec<SessionRow>, AdminError>>;

    /// Closes the session of a full JID, or all sessions of a bare one; tells how many.
    fn kick(&self, target: Jid, error: StreamError) -> BoxFuture<'_, Result<usize, AdminError>>;

    /// Pairs of domains that something waits for or that have a stream; of one remote domain, or of all.
    fn list_domains(&self, remote: Option<Jid>) -> BoxFuture<'_, Result<Vec<DomainRow>, AdminError>>;

    /// Tries to reach a domain now; tells from how many of the domains served here.
    fn retry_domain(&self, remote: Jid) -> BoxFuture<'_, Result<usize, AdminError>>;

    /// Sends what waits for a domain back to its senders; tells how many stanzas.
    fn flush_domain(&self, remote: Jid) -> BoxFuture<'_, Result<u64, AdminError>>;

    /// Reads certificates again; tells what is worth knowing about them.
    fn reload_certificates(&self) -> BoxFuture<'_, Result<Vec<String>, AdminError>>;

    /// How the server is; with `timers` also how late they are, which takes a second to measure.
    fn status(&self, timers: bool) -> BoxFuture<'_, Result<Status, AdminError>>;
}
