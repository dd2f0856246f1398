//! The accounts and the router as modules see them.
//!
//! What must hold: an account that is removed is removed from everywhere, and no session of it
//! is left; what is interrupted half-way can be done again.

use std::sync::{Arc, OnceLock, Weak};

use waystation_auth::{AccountError, Accounts};
use waystation_core::module::{AccountRegistry, AccountRemoved, RegistryError, ServerHandle};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Jid, SessionId, Stanza, StreamError};
use waystation_route::{CloseWhich, Router};

/// The accounts.
pub(crate) struct Registry {
    accounts: Accounts,
    removed: Vec<Arc<dyn AccountRemoved>>,
    router: OnceLock<Weak<Router>>,
}

impl Registry {
    /// Accounts, and the modules that keep something of them.
    pub(crate) fn new(accounts: Accounts, removed: Vec<Arc<dyn AccountRemoved>>) -> Self {
        Self { accounts, removed, router: OnceLock::new() }
    }

    /// Where the sessions are; said once, when the router is there.
    pub(crate) fn connect(&self, router: &Arc<Router>) {
        let _ = self.router.set(Arc::downgrade(router));
    }
}

fn local(account: &Jid) -> &str {
    account.local().unwrap_or_default()
}

fn registry_error(error: AccountError) -> RegistryError {
    match error {
        AccountError::Password => RegistryError::BadPassword,
        AccountError::Storage(error) => error.into(),
        other => StorageError::Io(other.to_string()).into(),
    }
}

impl AccountRegistry for Registry {
    fn exists(&self, account: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        let accounts = self.accounts.clone();
        Box::pin(async move { accounts.exists(account.domain(), local(&account)).await })
    }

    fn create(&self, account: Jid, password: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        let accounts = self.accounts.clone();
        Box::pin(async move {
            match accounts.create(account.domain(), local(&account), &password).await {
                Ok(_) => Ok(true),
                Err(AccountError::Exists) => Ok(false),
                Err(error) => Err(registry_error(error)),
            }
        })
    }

    fn set_password(
        &self,
        account: Jid,
        password: String,
    ) -> BoxFuture<'static, Result<bool, RegistryError>> {
        let accounts = self.accounts.clone();
        Box::pin(async move {
            match accounts.set_password(account.domain(), local(&account), &password).await {
                Ok(()) => Ok(true),
                Err(AccountError::Unknown) => Ok(false),
                Err(error) => Err(registry_error(error)),
            }
        })
    }

    /// The keys go last, so that what is interrupted can be done again. The route is told
    /// before, while the contacts are still known, and after, to close whoever logged in
    /// meanwhile and to forget that the account existed.
    fn remove(
        &self,
        account: Jid,
        except: Option<SessionId>,
    ) -> BoxFuture<'static, Result<bool, RegistryError>> {
        let (accounts, removed) = (self.accounts.clone(), self.removed.clone());
        let router = self.router.get().and_then(Weak::upgrade);
        Box::pin(async move {
            if !accounts.exists(account.domain(), local(&account)).await? {
                return Ok(false);
            }
            if let Some(router) = &router {
                router.remove_account(&account, except).await;
            }
            for module in removed {
                module.account_removed(account.clone()).await?;
            }
            let result = match accounts.remove(account.domain(), local(&account)).await {
                Ok(()) => true,
                Err(AccountError::Unknown) => false,
                Err(error) => return Err(registry_error(error)),
            };
            if let Some(router) = &router {
                router.remove_account(&account, except).await;
            }
            Ok(result)
        })
    }
}

/// The router as modules see it.
pub(crate) struct Handle {
    router: Weak<Router>,
}

impl Handle {
    pub(crate) fn new(router: &Arc<Router>) -> Self {
        Self { router: Arc::downgrade(router) }
    }
}

impl ServerHandle for Handle {
    fn route(&self, stanza: Stanza) {
        if let Some(router) = self.router.upgrade() {
            router.route_own(stanza);
        }
    }

    fn to_session(&self, stanza: Stanza) {
        if let Some(router) = self.router.upgrade() {
            router.to_session(stanza);
        }
    }

    fn close_sessions(&self, account: &Jid, except: Option<SessionId>, error: StreamError) {
        if let Some(router) = self.router.upgrade() {
            router.close_sessions(account, except.map_or(CloseWhich::All, CloseWhich::AllBut), error);
        }
    }

    fn is_local_host(&self, domain: &str) -> bool {
        self.router.upgrade().is_some_and(|router| router.is_local(domain))
    }
}
