//! In-band registration (XEP-0077): new accounts for clients that have none yet, change of the
//! password and removal of the account for those that have.
//!
//! What must hold: new accounts are off unless configured, and cost each address time; a
//! request of a session concerns the account of that session and no other (SECURITY A12); no
//! password appears in a log or in an error.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use waystation_core::account::IqHandler;
use waystation_core::module::{
    AccountRegistry, Feature, IqRegistration, Module, Registration, RegistryError, Requests, Scope,
    ServerHandle, Spec,
};
use waystation_core::{Condition, Element, ErrorType, StanzaError};

mod account;
mod limit;
mod pre_auth;
mod request;
#[cfg(test)]
mod tests;

pub use limit::{MAX_ADDRESSES, MAX_FAILURES};

const NS_REGISTER: &str = "jabber:iq:register";

/// What the module may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether clients may register new accounts.
    pub enabled: bool,
    /// Least time between two new accounts of one address (IPv6: one /64); zero for no limit.
    pub interval: Duration,
    /// Whether new usernames may mix scripts that no writing system mixes, and so may look like
    /// the names of others (SECURITY F8).
    pub allow_mixed_scripts: bool,
    /// Whether passwords may be changed.
    pub password_change: bool,
    /// Whether accounts may be removed by their owners.
    pub removal: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            interval: Duration::from_secs(600),
            allow_mixed_scripts: false,
            password_change: true,
            removal: true,
        }
    }
}

/// The parts of the server that the module works on.
pub struct Server {
    /// The accounts.
    pub registry: Arc<dyn AccountRegistry>,
    /// The sessions.
    pub handle: Arc<dyn ServerHandle>,
}

/// The module.
pub struct InBandRegistration {
    config: Config,
    server: ServerCell,
}

impl InBandRegistration {
    /// `server` is set once the registrations of all modules are known and before the first
    /// client connects.
    pub fn new(config: Config, server: Arc<OnceLock<Server>>) -> Self {
        Self { config, server: ServerCell(server) }
    }
}

impl Module for InBandRegistration {
    fn registration(&self) -> Registration {
        let mut registration = Registration {
            name: "registration",
            specs: vec![Spec { id: "XEP-0077", version: "2.4", title: "In-Band Registration" }],
            ..Registration::default()
        };
        if self.config.enabled {
            registration.pre_auth =
                Some(Arc::new(pre_auth::NewAccounts::new(&self.config, self.server.clone())));
        }
        if self.config.enabled || self.config.password_change || self.config.removal {
            registration.features.push(Feature { scope: Scope::Host, var: NS_REGISTER });
            let handler: Arc<dyn IqHandler> =
                Arc::new(account::OwnAccount::new(&self.config, self.server.clone()));
            // A request without `to` is one to the account itself (XEP-0077 3.2).
            for scope in [Scope::Host, Scope::Account] {
                registration.iqs.push(IqRegistration {
                    namespace: NS_REGISTER,
                    element: "query",
                    scope,
                    requests: Requests::Both,
                    handler: handler.clone(),
                });
            }
        }
        registration
    }
}

#[derive(Clone)]
struct ServerCell(Arc<OnceLock<Server>>);

impl ServerCell {
    fn registry(&self) -> Result<Arc<dyn AccountRegistry>, StanzaError> {
        self.get().map(|server| server.registry.clone())
    }

    fn handle(&self) -> Result<Arc<dyn ServerHandle>, StanzaError> {
        self.get().map(|server| server.handle.clone())
    }

    fn get(&self) -> Result<&Server, StanzaError> {
        self.0.get().ok_or_else(|| {
            tracing::error!("a registration request came in before the server was set");
            StanzaError::new(Condition::InternalServerError).with_type(ErrorType::Wait)
        })
    }
}

fn registry_error(error: RegistryError) -> StanzaError {
    match error {
        RegistryError::BadPassword => StanzaError::new(Condition::NotAcceptable)
            .with_text("the password is empty or holds characters that may not be used"),
        RegistryError::Storage(error) => {
            tracing::error!(%error, "the accounts could not be read or changed");
            error.into()
        }
    }
}

fn element(name: &str, text: &str) -> Element {
    Element::new(name, NS_REGISTER).with_text(text)
}
