//! What all streams to and from other servers share.
//!
//! What must hold: nothing here changes while the server runs, save what is behind its own lock or atomics;
//! each table is bounded by what it says.

use std::sync::{Arc, Weak};

use tokio::sync::Semaphore;
use waystation_route::Router;
use waystation_route::remote::{Authenticated, Forbidden, Pair, RemoteStreams, StreamRequest};
use waystation_runtime::DrainSignal;
use waystation_transport::{AddressLimits, Admission, TlsAcceptor, TlsConnector};

use crate::Settings;
use crate::dial::Resolver;
use crate::dns::ResolverError;
use crate::keys::Keys;
use crate::policy::Policy;
use crate::proof::Proofs;
use crate::rate::Rates;
use crate::receiving::MAX_ASKING;
use crate::resumable::Resumable;
use crate::running::ReverseStreams;
use crate::trust::{Trust, TrustError};

/// Addresses whose streams are counted at once.
const MAX_ADDRESSES: usize = 65_536;

/// The parts that federation is made of.
pub struct FederationParts {
    /// What it is to do.
    pub settings: Settings,
    /// The certificates of our domains, and the limits of handshakes.
    pub tls: TlsAcceptor,
    /// Where stanzas go.
    pub router: Arc<Router>,
    /// Tells when the server stops.
    pub drain: DrainSignal,
}

/// Why federation cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The authorities that are to be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Where the servers of domains are.
    #[error("no name servers: {0}")]
    Resolver(#[from] ResolverError),
    /// No secret for dialback can be made.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Streams to and from other servers.
pub struct Federation {
    /// To hand on to streams, which outlive the call that starts them.
    pub(crate) this: Weak<Federation>,
    pub(crate) settings: Settings,
    pub(crate) policy: Policy,
    pub(crate) resolver: Resolver,
    /// Who vouches for certificates.
    pub(crate) trust: Trust,
    pub(crate) router: Arc<Router>,
    pub(crate) drain: DrainSignal,
    /// TLS on streams that others open.
    pub(crate) acceptor: TlsAcceptor,
    /// TLS on streams that we open.
    pub(crate) connector: TlsConnector,
    /// Keys of dialback, of this process.
    pub(crate) keys: Keys,
    /// Questions whose answers may come on any stream.
    pub(crate) proofs: Proofs,
    /// How fast remote domains may send.
    pub(crate) rates: Rates,
    /// Streams that others opened, for what is to be sent to them.
    pub(crate) reverse: ReverseStreams,
    /// Counts of inbound streams that may be resumed.
    pub(crate) resumable: Resumable,
    /// How many streams that others opened there are from each address.
    pub(crate) admission: Admission,
    /// Who may ask an authoritative server at the moment.
    pub(crate) asking: Semaphore,
}

impl Federation {
    /// Federation as the configuration says.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(parts: FederationParts) -> Result<Arc<Self>, StartError> {
        let FederationParts { settings, tls, router, drain } = parts;
        let trust = match &settings.authorities {
            Some(path) => Trust::from_pem(path)?,
            None => Trust::system()?,
        };
        let resolver = Resolver::new(&settings)?;
        let keys = Keys::random().map_err(StartError::Random)?;
        let per_address = AddressLimits {
            connections: settings.streams_per_address,
            rate: 0.0,
            burst: 0,
            tracked: MAX_ADDRESSES,
        };
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            policy: Policy::new(&settings),
            resolver,
            trust,
            acceptor: tls.for_servers(),
            connector: TlsConnector::new(&tls),
            keys,
            proofs: Proofs::default(),
            rates: Rates::new(&settings),
            reverse: ReverseStreams::default(),
            resumable: Resumable::new(settings.resume),
            admission: Admission::new(per_address),
            asking: Semaphore::new(MAX_ASKING),
            settings,
            router,
            drain,
        }))
    }

    /// Whether a prepared domain is served here.
    pub(crate) fn serves(&self, domain: &str) -> bool {
        self.settings.hosts.iter().any(|host| host == domain) || self.router.is_local(domain)
    }

    /// A peer has proven a pair on a stream that it opened.
    pub(crate) fn proved(&self, pair: &Pair, how: Authenticated) {
        tracing::info!(local = %pair.local, remote = %pair.remote, ?how, "a server has proven its domain");
    }
}

impl RemoteStreams for Federation {
    fn permits(&self, pair: &Pair) -> Result<(), Forbidden> {
        self.policy.permits(pair)
    }

    fn open(&self, request: StreamRequest) {
        let Some(this) = self.this.upgrade() else { return };
        if let Err(request) = self.reverse.hand(request) {
            crate::outbound::open(this, request);
        }
    }
}
