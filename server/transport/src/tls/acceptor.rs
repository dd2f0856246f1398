//! Certificates and settings for incoming TLS, replaceable while sessions run.
//!
//! Invariant: a reload that fails changes nothing. A session keeps what it started with.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, ServerConfig, SupportedCipherSuite};
use tokio::sync::Semaphore;

use super::anyone::Anyone;
use super::certificate::{CertificateError, CertificateSet, CertificateWarning, HostCertificate};
use super::connector;
use super::probe::Probe;
use super::session::TlsSession;
use crate::error::TransportError;

/// What a [`TlsAcceptor`] is made from.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// The hosts' certificates.
    pub hosts: Vec<HostCertificate>,
    /// The host whose certificate is presented to clients that name no host, or an unknown one. It must be
    /// among `hosts`.
    pub default_host: String,
    /// How many handshakes may be active at once, over all threads; more wait their turn. A handshake whose
    /// client is slow stops counting after a second, so that slow clients cannot keep others out.
    pub concurrent_handshakes: usize,
    /// How long a handshake may take, the wait for its turn included.
    pub handshake_deadline: Duration,
}

impl TlsSettings {
    /// Settings with the default limits: 256 active handshakes, 10 seconds each.
    pub fn new(hosts: Vec<HostCertificate>, default_host: impl Into<String>) -> Self {
        Self {
            hosts,
            default_host: default_host.into(),
            concurrent_handshakes: 256,
            handshake_deadline: Duration::from_secs(10),
        }
    }
}

/// Starts TLS sessions. Cheap to clone; all clones share certificates and limits.
#[derive(Clone)]
pub struct TlsAcceptor {
    shared: Arc<Shared>,
    alpn: Arc<[Vec<u8>]>,
    peers: Peers,
}

/// Whom an acceptor is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peers {
    Clients,
    Servers,
}

struct Shared {
    settings: TlsSettings,
    for_clients: ServerConfig,
    for_servers: ServerConfig,
    /// For a [`super::connector::TlsConnector`].
    client: ClientConfig,
    certificates: ArcSwap<CertificateSet>,
    handshakes: Arc<Semaphore>,
}

impl TlsAcceptor {
    /// Reads all certificates and makes an acceptor without ALPN, as for STARTTLS.
    pub fn new(settings: TlsSettings) -> Result<(Self, Vec<CertificateWarning>), CertificateError> {
        let (certificates, warnings) = CertificateSet::load(&settings.hosts, &settings.default_host)?;
        let certificates = Arc::new(certificates);
        let fallback = certificates.for_host(None).clone();
        let provider = Arc::new(provider());
        let resolver = Arc::new(Probe::new(certificates.clone(), fallback));
        let builder = || {
            ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13, &TLS12])
        };
        let mut for_clients = builder()?.with_no_client_auth().with_cert_resolver(resolver.clone());
        // Tickets hold the session with the client; nothing is stored here. One ticket is enough for clients
        // that keep one connection, and each costs a record.
        for_clients.session_storage = Arc::new(NoServerSessionStorage {});
        for_clients.send_tls13_tickets = 1;
        for_clients.ignore_client_order = true;
        let anyone = Arc::new(Anyone::new(provider.signature_verification_algorithms));
        let mut for_servers = builder()?.with_client_cert_verifier(anyone).with_cert_resolver(resolver);
        // No session is resumed: a server proves on every connection that it has its key.
        for_servers.session_storage = Arc::new(NoServerSessionStorage {});
        for_servers.send_tls13_tickets = 0;
        for_servers.ignore_client_order = true;
        let shared = Shared {
            handshakes: Arc::new(Semaphore::new(settings.concurrent_handshakes.max(1))),
            certificates: ArcSwap::new(certificates),
            client: connector::client_config()?,
            for_clients,
            for_servers,
            settings,
        };
        let shared = Arc::new(shared);
        Ok((Self { shared, alpn: Arc::new([]), peers: Peers::Clients }, warnings))
    }

    /// The same acceptor for a listener whose clients may ask for one of `protocols` by ALPN (XEP-0368:
    /// `xmpp-client`, `xmpp-server`). A client that asks for others only is refused with
    /// `no_application_protocol`; one that uses no ALPN is accepted.
    pub fn with_alpn(&self, protocols: &[&[u8]]) -> Self {
        Self {
            shared: self.shared.clone(),
            alpn: protocols.iter().map(|protocol| protocol.to_vec()).collect(),
            peers: self.peers,
        }
    }

    /// The same acceptor for a listener that other servers connect to: it asks for a certificate and takes
    /// any or none. Only that the peer has the certificate's key is checked; whom it proves has to be judged
    /// from [`crate::Connection::peer_certificates`]. Sessions are not resumed.
    #[must_use]
    pub fn for_servers(&self) -> Self {
        Self { shared: self.shared.clone(), alpn: self.alpn.clone(), peers: Peers::Servers }
    }

    /// Reads the certificate files again. New handshakes use them; sessions go on undisturbed. On an error
    /// nothing changes. Tickets issued before are no longer accepted, as they belong to the old certificates.
    pub fn reload(&self) -> Result<Vec<CertificateWarning>, CertificateError> {
        let settings = &self.shared.settings;
        let (certificates, warnings) = CertificateSet::load(&settings.hosts, &settings.default_host)?;
        self.shared.certificates.store(Arc::new(certificates));
        Ok(warnings)
    }

    /// Starts the server side of a session. `host` (the stream's `to`) decides the certificate when the
    /// client sends no server name.
    pub(crate) fn start(&self, host: Option<&str>) -> Result<TlsSession, TransportError> {
        let (mut config, probe) = self.config(host);
        config.key_log = probe.clone();
        let connection = UnbufferedServerConnection::new(Arc::new(config))?;
        Ok(TlsSession::server(connection, probe))
    }

    /// What a session starts with, and what chooses its certificate.
    fn config(&self, host: Option<&str>) -> (ServerConfig, Arc<Probe>) {
        let certificates = self.shared.certificates.load_full();
        let fallback = certificates.for_host(host).clone();
        let mut config = match self.peers {
            Peers::Clients => self.shared.for_clients.clone(),
            Peers::Servers => self.shared.for_servers.clone(),
        };
        if self.peers == Peers::Clients {
            config.ticketer = fallback.ticketer.clone();
        }
        config.alpn_protocols = self.alpn.to_vec();
        let probe = Arc::new(Probe::new(certificates, fallback));
        config.cert_resolver = probe.clone();
        (config, probe)
    }

    /// What a session of [`TlsAcceptor::accept_stream`] starts with: nothing is kept of its secrets.
    pub(crate) fn stream_config(&self) -> Arc<ServerConfig> {
        Arc::new(self.config(None).0)
    }

    pub(super) fn client_config(&self) -> &ClientConfig {
        &self.shared.client
    }

    pub(super) fn certificates(&self) -> Arc<CertificateSet> {
        self.shared.certificates.load_full()
    }

    pub(crate) fn handshakes(&self) -> &Arc<Semaphore> {
        &self.shared.handshakes
    }

    pub(crate) fn handshake_deadline(&self) -> Duration {
        self.shared.settings.handshake_deadline
    }
}

/// The provider of cryptography, with AES-128-GCM and SHA-256 first: no attack on them is known or in sight,
/// and the key schedule of SHA-384, which processors have no instructions for, was a sixteenth of what a login
/// over TLS cost the server. A client that does not have them gets another suite.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let first = |suite: &SupportedCipherSuite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        // The rest of TLS 1.3 stays before what there is of TLS 1.2.
        _ if suite.tls13().is_some() => 1,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 2,
        _ => 3,
    };
    provider.cipher_suites.sort_by_key(first);
    provider
}

impl std::fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsAcceptor").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}
