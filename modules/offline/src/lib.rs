//! Offline messages (XEP-0160): what arrives while no resource of an account is there to take it.
//!
//! What must hold: a message is acknowledged only once it is durable; messages come out in the
//! order in which [`OfflineStore::store`] was called; an account that has reached its limit
//! refuses new messages and never loses old ones.
//!
//! Which messages belong here is not decided here but by [`waystation_core::storable`].

use std::sync::Arc;

use waystation_core::module::{AccountRemoved, Feature, Module, Registration, Scope, Spec};
use waystation_core::storage::{BoxFuture, Storage, StorageError};
use waystation_core::{Jid, account::OfflineStore};

mod spool;
mod stamp;

pub use spool::{Limits, Spool};

/// The module: the spool of one server.
pub struct Offline {
    spool: Arc<Spool>,
}

impl Offline {
    /// Offline messages kept in `storage`.
    pub fn new(storage: Arc<dyn Storage>, limits: Limits) -> Self {
        Self { spool: Arc::new(Spool::new(storage, limits)) }
    }
}

impl Module for Offline {
    fn registration(&self) -> Registration {
        Registration {
            name: "offline",
            specs: vec![
                Spec {
                    id: "XEP-0160",
                    version: "1.0.1",
                    title: "Best Practices for Handling Offline Messages",
                },
                Spec { id: "XEP-0203", version: "2.0", title: "Delayed Delivery" },
                Spec { id: "XEP-0334", version: "1.0.0", title: "Message Processing Hints" },
            ],
            features: vec![Feature { scope: Scope::Host, var: "msgoffline" }],
            offline: Some(self.spool.clone()),
            on_account_removed: Some(self.spool.clone()),
            ..Registration::default()
        }
    }
}

impl AccountRemoved for Spool {
    fn account_removed(&self, account: Jid) -> BoxFuture<'static, Result<(), StorageError>> {
        self.clear(account)
    }
}
