//! Outgoing TLS, to other servers: the settings of the client's side.
//!
//! What must stay true: a connector presents the certificates that its acceptor presents at that moment; no
//! session is resumed, so that both sides prove themselves on every connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ResolvesClientCert, Resumption, UnbufferedClientConnection};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SignatureScheme};
use rustls_pki_types::ServerName;
use tokio::sync::Semaphore;

use super::acceptor::TlsAcceptor;
use super::anyone::Anyone;
use super::certificate::ascii_host;
use super::session::TlsSession;
use crate::error::TransportError;

/// The protocol of direct TLS between servers (XEP-0368).
const SERVER_PROTOCOL: &[u8] = b"xmpp-server";

/// Starts TLS sessions with other servers. Cheap to clone.
///
/// A session presents its local host's certificate when the peer asks for one. The peer's certificate is taken
/// whatever it is, as long as the peer has its key: who it is has to be judged from
/// [`crate::Connection::peer_certificates`].
#[derive(Clone)]
pub struct TlsConnector {
    acceptor: TlsAcceptor,
}

impl TlsConnector {
    /// A connector with the certificates of `acceptor`, reloaded with it, and its limits: handshakes of both
    /// directions are counted together, and have the same deadline.
    pub fn new(acceptor: &TlsAcceptor) -> Self {
        Self { acceptor: acceptor.clone() }
    }

    /// Starts the client's side of a session.
    pub(crate) fn start(
        &self,
        local_host: &str,
        server_name: &str,
        alpn: bool,
    ) -> Result<TlsSession, TransportError> {
        let name = ascii_host(server_name)
            .ok()
            .and_then(|name| ServerName::try_from(name).ok())
            .ok_or(TransportError::InvalidServerName)?;
        let mut config = self.acceptor.client_config().clone();
        let key = self.acceptor.certificates().for_client(local_host);
        config.client_auth_cert_resolver = Arc::new(Own(key));
        if alpn {
            config.alpn_protocols = vec![SERVER_PROTOCOL.to_vec()];
        }
        Ok(TlsSession::client(UnbufferedClientConnection::new(Arc::new(config), name)?))
    }

    pub(crate) fn handshakes(&self) -> &Arc<Semaphore> {
        self.acceptor.handshakes()
    }

    pub(crate) fn handshake_deadline(&self) -> Duration {
        self.acceptor.handshake_deadline()
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

/// What every session of a connector starts with.
pub(super) fn client_config() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anyone = Arc::new(Anyone::new(provider.signature_verification_algorithms));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(anyone)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The local host's certificate, whichever authorities the peer names: a server has no other to choose.
struct Own(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Own").field(&self.0.is_some()).finish()
    }
}
