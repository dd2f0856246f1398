//! How a module tells the server what it does: its registrations, as data.
//!
//! What must hold: everything that a module answers, advertises or implements is listed in its
//! [`Registration`]; the disco answers and the README's table are made from the same lists.

use std::net::IpAddr;
use std::sync::Arc;

use waystation_xml::Element;

use crate::account::{IqHandler, PresenceLogic};
use crate::archive::Archive;
use crate::error::{StanzaError, StreamError};
use crate::jid::Jid;
use crate::stanza::Stanza;
use crate::storage::{BoxFuture, StorageError};

/// A specification that is implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spec {
    /// `XEP-0030`, `RFC 6121`.
    pub id: &'static str,
    /// Version of the text that the code was written against; empty for RFCs.
    pub version: &'static str,
    /// What it is called.
    pub title: &'static str,
}

/// Whose iqs a handler answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Addressed to a host of this server.
    Host,
    /// Addressed to a local account's bare JID (or without `to`), answered on its behalf.
    Account,
}

/// Which iq types a handler answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// Only get.
    Get,
    /// Only set.
    Set,
    /// Both.
    Both,
}

/// An iq handler with what it answers.
pub struct IqRegistration {
    /// Namespace of the payload.
    pub namespace: &'static str,
    /// Name of the payload element.
    pub element: &'static str,
    /// Whose.
    pub scope: Scope,
    /// Which types.
    pub requests: Requests,
    /// The handler.
    pub handler: Arc<dyn IqHandler>,
}

/// A disco feature (XEP-0030).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Where it is advertised.
    pub scope: Scope,
    /// The feature's name.
    pub var: &'static str,
}

/// What a module brings. All parts but the name may be empty.
#[derive(Default)]
pub struct Registration {
    /// The module's name, as in the configuration.
    pub name: &'static str,
    /// What it implements.
    pub specs: Vec<Spec>,
    /// Its iq handlers.
    pub iqs: Vec<IqRegistration>,
    /// Disco features.
    pub features: Vec<Feature>,
    /// Stream features for authenticated clients, as XML with own namespaces.
    pub stream_features: Vec<String>,
    /// The presence logic, at most one in the server.
    pub presence: Option<Arc<dyn PresenceLogic>>,
    /// The message archive, at most one in the server.
    pub archive: Option<Arc<dyn Archive>>,
    /// Answers iqs before authentication, at most one in the server.
    pub pre_auth: Option<Arc<dyn PreAuthIq>>,
    /// Hears of sessions that come and go.
    pub observer: Option<Arc<dyn SessionObserver>>,
    /// Removes what the module keeps of an account.
    pub on_account_removed: Option<Arc<dyn AccountRemoved>>,
}

/// Answers iqs on client streams that have not authenticated (XEP-0077 3.1).
pub trait PreAuthIq: Send + Sync + 'static {
    /// The stream feature that offers it, as XML; shown where SASL mechanisms are offered.
    fn stream_feature(&self) -> &'static str;

    /// True for the iqs that it answers; all others are refused as before.
    fn answers(&self, iq: &Element) -> bool;

    /// The payload of the result (`None` for an empty one), or the error. `iq` is the whole
    /// stanza, `host` the one that the stream is addressed to, `peer` the client's address.
    fn handle(
        &self,
        iq: Element,
        host: Jid,
        peer: IpAddr,
    ) -> BoxFuture<'static, Result<Option<Element>, StanzaError>>;
}

/// Hears of sessions that come and go. Called in the turn of the account's route: must not block.
pub trait SessionObserver: Send + Sync + 'static {
    /// A session was bound.
    fn session_opened(&self, _session: &Jid) {}

    /// A session stopped being available (unavailable presence or end of the session).
    /// `others` is how many available sessions the account has left; `presence` is the
    /// unavailable presence, if the client sent one.
    fn session_unavailable(&self, _session: &Jid, _others: usize, _presence: Option<&Stanza>) {}
}

/// Removes what a module keeps of an account that is being removed.
pub trait AccountRemoved: Send + Sync + 'static {
    /// Resolves once removed, durably.
    fn account_removed(&self, account: Jid) -> BoxFuture<'static, Result<(), StorageError>>;
}

/// A module of the server.
pub trait Module {
    /// What it does, as data.
    fn registration(&self) -> Registration;
}

/// The server as modules see it.
pub trait ServerHandle: Send + Sync + 'static {
    /// Routes a stanza by its `to`; `from` must be set.
    fn route(&self, stanza: Stanza);

    /// Hands a stanza to the local session that its `to` names, in the order of the calls and
    /// before what is routed to it later; dropped when there is no such session any more. For
    /// what only the session that asked wants to know, such as pages of an archive.
    fn to_session(&self, stanza: Stanza);

    /// Closes the sessions of an account with a stream error: all of them, or all but one.
    fn close_sessions(&self, account: &Jid, except: Option<crate::account::SessionId>, error: StreamError);

    /// True when the domain is a host of this server.
    fn is_local_host(&self, domain: &str) -> bool;
}

/// Accounts as modules see them.
pub trait AccountRegistry: Send + Sync + 'static {
    /// True when the account exists. `account` is a bare JID of a local host.
    fn exists(&self, account: Jid) -> BoxFuture<'static, Result<bool, StorageError>>;

    /// Creates an account; false when it exists already.
    fn create(&self, account: Jid, password: String) -> BoxFuture<'static, Result<bool, RegistryError>>;

    /// Changes a password; false when there is no such account.
    fn set_password(&self, account: Jid, password: String)
    -> BoxFuture<'static, Result<bool, RegistryError>>;

    /// Removes an account with all that modules keep of it, and closes its sessions but
    /// `except`; false when there is no such account.
    fn remove(
        &self,
        account: Jid,
        except: Option<crate::account::SessionId>,
    ) -> BoxFuture<'static, Result<bool, RegistryError>>;
}

/// Why a registry call failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The password cannot be used (empty, or refused by SASLprep).
    #[error("the password is empty or holds characters that may not be used")]
    BadPassword,
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
