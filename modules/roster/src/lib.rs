//! Roster, presence subscriptions and presence of accounts (RFC 6121 2 to 4).
//!
//! What must hold: the state in memory equals what is stored as soon as the batches that were
//! asked for are committed; nobody hears of a change before its commit; presence goes only to the
//! account itself, to subscribers, and to whom a session sent it by its own choice.
//!
//! `subscription` is the state machine of Appendix A, `roster` the data with its rows, `contact`
//! one row, `query` the XML of `jabber:iq:roster`; `account` ties them to the sessions of the
//! account's route, with `requests` for subscription stanzas, `broadcast` for presence that the
//! account sends and `probe` for the questions of others.

mod account;
mod broadcast;
mod contact;
mod ids;
mod probe;
mod query;
mod requests;
mod roster;
mod subscription;

use std::sync::Arc;

use waystation_core::Jid;
use waystation_core::account::{AccountPresence, PresenceLogic};
use waystation_core::module::{Feature, Module, Registration, Scope, Spec};
use waystation_core::storage::{BoxFuture, Storage, StorageError};

use crate::ids::Ids;
use crate::query::NS_ROSTER;

/// Highest number of items and of kept requests that a configuration can allow: all rows of an
/// account fit one batch of the store.
const MOST_ROWS: usize = 4_000;

/// Limits of one account. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterConfig {
    /// Most items of a roster; values over 4,000 count as 4,000. A roster set or subscription
    /// stanza that needs one more gets `policy-violation`.
    pub max_items: usize,
    /// Most bytes of JIDs, names and groups of all items; what needs more gets `policy-violation`.
    pub max_roster_bytes: usize,
    /// Most groups of one item; more get `not-acceptable`.
    pub max_groups: usize,
    /// Longest name and longest group; longer ones get `not-acceptable` (RFC 6121 2.3.3).
    pub max_text_bytes: usize,
    /// Most subscription requests that wait for an answer; values over 4,000 count as 4,000.
    ///
    /// A request over the limit is ignored, as it is for an account that does not exist, so that
    /// who fills the list learns nothing. It is not lost for good: servers repeat requests that
    /// stay unanswered (RFC 6121 3.1.2).
    pub max_requests: usize,
    /// Longest request that is kept whole; of a longer one only the start of its first status
    /// text is kept.
    pub max_request_bytes: usize,
    /// Most bytes of all requests that wait; once reached, further ones are kept without content.
    pub max_requests_bytes: usize,
    /// Longest presence that is broadcast; a longer one gets `policy-violation`. It is sent to
    /// every subscriber and kept as long as the session is available.
    pub max_presence_bytes: usize,
}

impl Default for RosterConfig {
    fn default() -> Self {
        Self {
            max_items: 1_000,
            max_roster_bytes: 1024 * 1024,
            max_groups: 50,
            max_text_bytes: 1023,
            max_requests: 500,
            max_request_bytes: 8 * 1024,
            max_requests_bytes: 512 * 1024,
            max_presence_bytes: 16 * 1024,
        }
    }
}

impl RosterConfig {
    pub(crate) fn max_items(&self) -> usize {
        self.max_items.min(MOST_ROWS)
    }

    pub(crate) fn max_requests(&self) -> usize {
        self.max_requests.min(MOST_ROWS)
    }
}

/// The module: rosters in a store.
pub struct RosterModule {
    logic: Arc<Logic>,
}

impl RosterModule {
    /// Rosters kept in `storage`.
    pub fn new(storage: Arc<dyn Storage>, config: RosterConfig) -> Self {
        Self { logic: Arc::new(Logic { storage, config: Arc::new(config), ids: Arc::default() }) }
    }
}

impl Module for RosterModule {
    fn registration(&self) -> Registration {
        Registration {
            name: "roster",
            specs: vec![
                Spec {
                    id: "RFC 6121",
                    version: "",
                    title: "Extensible Messaging and Presence Protocol (XMPP): Instant Messaging and Presence",
                },
                Spec { id: "XEP-0237", version: "1.3", title: "Roster Versioning" },
            ],
            features: vec![Feature { scope: Scope::Host, var: NS_ROSTER }],
            stream_features: vec![
                "<ver xmlns='urn:xmpp:features:rosterver'/>".into(),
                "<sub xmlns='urn:xmpp:features:pre-approval'/>".into(),
            ],
            presence: Some(self.logic.clone()),
            ..Registration::default()
        }
    }
}

struct Logic {
    storage: Arc<dyn Storage>,
    config: Arc<RosterConfig>,
    ids: Arc<Ids>,
}

impl PresenceLogic for Logic {
    fn load(&self, account: Jid) -> BoxFuture<'static, Result<Box<dyn AccountPresence>, StorageError>> {
        let (storage, config, ids) = (self.storage.clone(), self.config.clone(), self.ids.clone());
        Box::pin(async move {
            let account = account::Account::load(&*storage, account, config, ids).await?;
            Ok(Box::new(account) as Box<dyn AccountPresence>)
        })
    }

    fn iq_namespaces(&self) -> &'static [&'static str] {
        &[NS_ROSTER]
    }
}
