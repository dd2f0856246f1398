//! Message archives (XEP-0313) with preferences (XEP-0441), for the accounts of this server.
//!
//! What must hold: every message that is handed over is in its account's archive once, unless the
//! account's preferences do not want it, and stays there until the configured limits or the
//! removal of the account take it away; a query sees everything that was handed over before it;
//! nobody but the account itself sees anything; and what one query costs is bounded, however
//! large the archive is.
//!
//! Which messages are handed over is not decided here but by the account's route.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use waystation_core::Jid;
use waystation_core::module::{
    AccountRemoved, Feature, IqRegistration, Module, Registration, Requests, Scope, ServerHandle, Spec,
};
use waystation_core::storage::{BoxFuture, Storage, StorageError};

mod chunk;
mod compress;
mod driver;
mod export;
mod gather;
mod handler;
mod late;
mod outbox;
mod page;
mod prefs;
mod query;
mod result;
mod retention;
mod row;
mod seek;
mod sid;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod walk;

pub use export::{ExportError, export};
pub use prefs::Policy;

use handler::Handler;
use store::{Archives, Seam};

/// Namespace of queries and preferences; also the disco feature.
pub const NS_MAM: &str = "urn:xmpp:mam:2";
const NS_MAM_EXTENDED: &str = "urn:xmpp:mam:2#extended";
const GROUPCHAT_FIELD: &str = "urn:xmpp:mam:2#groupchat-field";
const GROUPCHAT_AVAILABLE: &str = "urn:xmpp:mam:2#groupchat-available";

/// Where results are sent; set once the server is there, before the first query.
pub type Server = Arc<OnceLock<Arc<dyn ServerHandle>>>;

/// How archives are kept and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most messages of a page, whatever the client asks for. Default 100.
    pub page_limit: usize,
    /// Bytes of archived stanzas that end a page early; the client then asks for the next one.
    /// A page holds at least one message. Default 1 MiB.
    pub page_bytes: u64,
    /// Most rows that one query looks at, at least 1. A query that needs more (a full JID, or
    /// only groupchat, that few messages match) is answered with what was found so far and without
    /// `complete`, so that the client goes on. Default 5,000.
    pub rows_per_query: usize,
    /// Messages older than this are removed. Default `None`: kept forever.
    pub max_age: Option<Duration>,
    /// Most messages per account; the oldest are removed. Default `None`: no limit.
    pub max_messages: Option<u64>,
    /// Most bytes of stanzas per account, counted as on the wire; the oldest messages are
    /// removed. Default `None`: no limit.
    pub max_bytes: Option<u64>,
    /// How often the limits are enforced, at least every second; until then an archive may
    /// exceed them. Default one minute.
    pub sweep_interval: Duration,
    /// What is archived for accounts that have set no preferences. Default [`Policy::Always`].
    pub default_policy: Policy,
    /// Most JIDs in both lists of an account's preferences. Default 1,000.
    pub max_prefs: usize,
    /// How long a query waits for messages that are on their way into the store before it is
    /// answered with a temporary error. Default 20 seconds.
    pub commit_wait: Duration,
    /// How long messages of an account may wait to be committed together with those behind them,
    /// unless they are many or somebody asks. Default one second. Those that are many go to the store
    /// with what others have, at most 50 ms later.
    pub gather: Duration,
    /// True when the route hands over messages of type groupchat, which is then advertised
    /// (XEP-0313 7). Default false.
    pub groupchat: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            page_limit: 100,
            page_bytes: 1024 * 1024,
            rows_per_query: 5_000,
            max_age: None,
            max_messages: None,
            max_bytes: None,
            sweep_interval: Duration::from_secs(60),
            default_policy: Policy::Always,
            max_prefs: 1_000,
            commit_wait: Duration::from_secs(20),
            gather: Duration::from_secs(1),
            groupchat: false,
        }
    }
}

impl Config {
    fn has_limits(&self) -> bool {
        self.max_age.is_some() || self.max_messages.is_some() || self.max_bytes.is_some()
    }
}

/// The module: the archives of one server.
pub struct MessageArchive {
    archives: Arc<Archives>,
    server: Server,
}

impl MessageArchive {
    /// Archives kept in `storage`; results go through `server`.
    ///
    /// Its archive must be called inside of a tokio runtime. The limits are enforced while
    /// [`MessageArchive::enforce_limits`] runs.
    pub fn new(storage: Arc<dyn Storage>, config: Config, server: Server) -> Self {
        Self { archives: Archives::new(storage, config), server }
    }

    /// To be called when the server begins to stop, so that its end need not wait for messages
    /// that gather (for [`Config::gather`] at most): commits them, and from then on all at once.
    pub fn stop_gathering(&self) -> impl Fn() + Send + Sync + 'static {
        let archives = self.archives.clone();
        move || archives.stop_gathering()
    }

    /// Enforces the configured limits again and again; to be run in the background for as long
    /// as the server runs. Resolves at once when there are none.
    pub fn enforce_limits(&self) -> impl Future<Output = ()> + Send + 'static {
        let archives = self.archives.clone();
        async move {
            while archives.config.has_limits() {
                tokio::time::sleep(archives.config.sweep_interval.max(Duration::from_secs(1))).await;
                match archives.sweep(SystemTime::now()).await {
                    Ok(()) => {}
                    Err(StorageError::Closed) => return,
                    Err(error) => tracing::warn!(%error, "archives could not be cut to their limits"),
                }
            }
        }
    }
}

impl Module for MessageArchive {
    fn registration(&self) -> Registration {
        let handler = Arc::new(Handler { archives: self.archives.clone(), server: self.server.clone() });
        let iq = |element, requests| IqRegistration {
            namespace: NS_MAM,
            element,
            scope: Scope::Account,
            requests,
            handler: handler.clone(),
        };
        let feature = |var| Feature { scope: Scope::Account, var };
        let mut features =
            vec![feature(NS_MAM), feature(NS_MAM_EXTENDED), feature(GROUPCHAT_FIELD), feature(sid::NS_SID)];
        if self.archives.config.groupchat {
            features.push(feature(GROUPCHAT_AVAILABLE));
        }
        let seam = Arc::new(Seam(self.archives.clone()));
        Registration {
            name: "archive",
            specs: vec![
                Spec { id: "XEP-0297", version: "1.0", title: "Stanza Forwarding" },
                Spec { id: "XEP-0313", version: "1.1.3", title: "Message Archive Management" },
                Spec { id: "XEP-0359", version: "0.7.0", title: "Unique and Stable Stanza IDs" },
                Spec { id: "XEP-0441", version: "0.2.0", title: "Message Archive Management Preferences" },
            ],
            iqs: vec![
                iq("query", Requests::Both),
                iq("metadata", Requests::Get),
                iq("prefs", Requests::Both),
            ],
            features,
            archive: Some(seam.clone()),
            on_account_removed: Some(seam),
            ..Registration::default()
        }
    }
}

impl AccountRemoved for Seam {
    fn account_removed(&self, account: Jid) -> BoxFuture<'static, Result<(), StorageError>> {
        let archives = self.0.clone();
        Box::pin(async move { archives.ask(&account, |reply| driver::Job::Remove { reply }).await })
    }
}
