//! What every client connection shares: hosts, limits, TLS, accounts, the router.
//!
//! What must hold: nothing here changes while the server runs, save what is behind its own
//! lock or atomics (certificates, failure counts).

use std::sync::Arc;
use std::time::Duration;

use waystation_auth::{Accounts, FailureLimits, FailureTracker, SaslPolicy};
use waystation_core::module::PreAuthIq;
use waystation_core::xml;
use waystation_route::Router;
use waystation_runtime::{Arbiters, DrainSignal};
use waystation_transport::TlsAcceptor;

use crate::recipients::Recipients;

/// How much of something a client may send: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; 0 for no limit.
    pub per_second: u32,
    /// At once above that.
    pub burst: u32,
}

impl Rate {
    /// No limit at all.
    pub const NONE: Self = Self { per_second: 0, burst: 0 };
}

/// Limits of client connections. `0` switches a limit off where that is said.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes that a client may send.
    pub bytes: Rate,
    /// Presence that a session may send to all of its contacts.
    pub broadcasts: Rate,
    /// Presence that it may send to addresses of its choice, requests for subscription included.
    pub presence: Rate,
    /// Before authentication.
    pub pre_auth: xml::Limits,
    /// After it.
    pub authenticated: xml::Limits,
    /// From connect to the end of authentication, and from there to bind.
    pub unauthenticated: Duration,
    /// Silence after which a client is pinged; zero for never.
    pub idle_ping: Duration,
    /// How long the answer may take.
    pub ping_timeout: Duration,
    /// Bytes that may wait for a client that does not read.
    pub outbound_bytes: usize,
    /// Stanzas that may wait for it.
    pub outbound_stanzas: usize,
    /// How long a session may be resumed after it lost its connection; zero for not at all.
    pub resume: Duration,
    /// Failed authentications.
    pub failures: FailureLimits,
}

/// What client connections share.
pub struct C2s {
    /// Domains served here; the first is the default.
    pub hosts: Vec<String>,
    /// Limits.
    pub limits: Limits,
    /// TLS; `None` only when the configuration allows plain streams.
    pub tls: Option<TlsAcceptor>,
    /// STARTTLS before anything else.
    pub tls_required: bool,
    /// Clients on the loopback interface may go without TLS all the same.
    pub tls_loopback_exempt: bool,
    /// Mechanisms that may be offered.
    pub sasl: SaslPolicy,
    /// Accounts and their keys.
    pub accounts: Accounts,
    /// Failed authentications by address and account.
    pub failures: Arc<FailureTracker>,
    /// To how many addresses accounts have sent presence.
    pub recipients: Recipients,
    /// Iqs that may be sent before authentication (XEP-0077), if any.
    pub pre_auth: Option<Arc<dyn PreAuthIq>>,
    /// Stream features of authenticated streams, made by modules.
    pub stream_features: String,
    /// Where stanzas go.
    pub router: Arc<Router>,
    /// Where sessions live.
    pub arbiters: Arc<Arbiters>,
    /// Tells when the server stops.
    pub drain: DrainSignal,
}

impl C2s {
    /// True when the domain is served here.
    pub fn serves(&self, domain: &str) -> bool {
        self.hosts.iter().any(|host| host == domain)
    }
}
