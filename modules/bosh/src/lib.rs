//! BOSH: XMPP over HTTP requests (XEP-0124, XEP-0206), as a gateway.
//!
//! Behind each session is a client stream like any other, over an in-process connection:
//! [`upstream`] speaks on it, [`session`] knows which requests are due, [`gateway`] drives both
//! and the store, and [`http`] stands before them.
//!
//! What must hold: a request is carried out once, whatever happens to connections or to the
//! server, and answered only when what it brought is safe; a session goes on after the server was
//! killed, within the time that its client may be silent. [`gateway`] says how.

mod body;
mod gateway;
mod http;
mod keys;
mod record;
mod registry;
mod request;
mod session;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::ServiceConfig;
use waystation_core::module::{Module, Registration, Spec};
use waystation_core::storage::Storage;
use waystation_core::xml::Limits;
use waystation_web::{Streams, WebModule};

use crate::registry::Shared;

/// What is implemented, and the versions of the texts.
pub const SPECS: [Spec; 2] = [
    Spec { id: "XEP-0124", version: "1.11", title: "Bidirectional-streams Over Synchronous HTTP (BOSH)" },
    Spec { id: "XEP-0206", version: "1.4", title: "XMPP Over BOSH" },
];

/// How the service behaves. The defaults are those of Prosody where it has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the service is: `/http-bind`.
    pub path: String,
    /// Longest time that a request is held.
    pub max_wait: Duration,
    /// Most requests that are held at once.
    pub max_hold: usize,
    /// How long a client may be silent.
    pub inactivity: Duration,
    /// Shortest time between polls.
    pub polling: Duration,
    /// Longest pause that a client may ask for.
    pub max_pause: Duration,
    /// Sessions in all; above that no new one is created.
    pub max_sessions: usize,
    /// Sessions of one address (or IPv6 network); 0 for no limit.
    pub sessions_per_address: u32,
    /// Limits on the payloads of one request together.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: "/http-bind".into(),
            max_wait: Duration::from_secs(120),
            max_hold: 2,
            inactivity: Duration::from_secs(60),
            polling: Duration::from_secs(5),
            max_pause: Duration::from_secs(120),
            max_sessions: 20_000,
            sessions_per_address: 200,
            limits: Limits::authenticated(),
        }
    }
}

/// The module.
pub struct Bosh {
    shared: Arc<Shared>,
}

impl Bosh {
    /// The service, for streams that `streams` takes. Sessions are kept in `storage`.
    pub fn new(streams: Arc<dyn Streams>, storage: Arc<dyn Storage>, settings: Settings) -> Self {
        Self { shared: Arc::new(Shared::new(streams, storage, settings)) }
    }
}

impl WebModule for Bosh {
    fn configure(&self, config: &mut ServiceConfig) {
        self.shared.sweep();
        http::configure(&self.shared, config);
    }
}

impl Module for Bosh {
    fn registration(&self) -> Registration {
        Registration { name: "bosh", specs: SPECS.to_vec(), ..Registration::default() }
    }
}

#[cfg(test)]
mod tests;
