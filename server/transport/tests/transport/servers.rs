//! What the tests of connections between servers share: both sides ours, and the far side by rustls.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use waystation_transport::{Connection, HostCertificate, TlsAcceptor, TlsConnector, TransportError};

use crate::common::*;

/// The certificate in a host's file.
pub(crate) fn certificate(files: &HostCertificate) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&files.chain).unwrap()
}

/// A certificate with a key, which need not be its own.
pub(crate) fn certified(chain: &HostCertificate, key: &HostCertificate) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::from_pem_file(&key.key).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    Arc::new(CertifiedKey::new(vec![certificate(chain)], key))
}

/// Both sides of a new connection are ours: (accepted, connected), with the handshake's outcome on either.
pub(crate) async fn ours(
    acceptor: &TlsAcceptor,
    connector: &TlsConnector,
    local_host: &str,
    server_name: &str,
    alpn: bool,
) -> ((Connection, Result<(), TransportError>), (Connection, Result<(), TransportError>)) {
    let (server, client) = socket_pair().await;
    let (mut server, mut client) = (connection(server), connection(client));
    let (accepted, connected) = tokio::join!(
        server.handshake(acceptor, None, b""),
        client.connect_tls(connector, local_host, server_name, alpn, b"")
    );
    ((server, accepted), (client, connected))
}

/// As [`ours`], where nothing goes wrong.
pub(crate) async fn our_pair(certificates: &Certificates) -> (Connection, Connection) {
    let acceptor = certificates.acceptor().for_servers();
    let host = &certificates.hosts[0].host;
    let ((server, accepted), (client, connected)) =
        ours(&acceptor, &TlsConnector::new(&acceptor), host, host, false).await;
    accepted.unwrap();
    connected.unwrap();
    (server, client)
}

/// Our client against a server made of rustls: (theirs, ours).
pub(crate) async fn to_rustls(
    connector: &TlsConnector,
    local_host: &str,
    config: ServerConfig,
) -> (std::io::Result<TlsStream<TcpStream>>, (Connection, Result<(), TransportError>)) {
    let (server, client) = socket_pair().await;
    let mut client = connection(client);
    let (accepted, connected) = tokio::join!(
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(server),
        client.connect_tls(connector, local_host, "peer.example", false, b"")
    );
    (accepted, (client, connected))
}

/// A server that presents `key`, and asks for a certificate.
pub(crate) fn server_config(
    version: &'static SupportedProtocolVersion,
    key: Arc<CertifiedKey>,
) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Asking))
        .with_cert_resolver(Arc::new(Presented(key)))
}

/// A client that presents `key`.
pub(crate) fn presenting(version: &'static SupportedProtocolVersion, key: Arc<CertifiedKey>) -> ClientConfig {
    let mut config = client_config(&[version]);
    config.client_auth_cert_resolver = Arc::new(Presented(key));
    config
}

#[derive(Debug)]
struct Presented(Arc<CertifiedKey>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any certificate, and names an authority that issued none of them.
#[derive(Debug)]
struct Asking;

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        static HINTS: std::sync::OnceLock<[DistinguishedName; 1]> = std::sync::OnceLock::new();
        // C=XX
        HINTS.get_or_init(|| {
            [DistinguishedName::from(vec![
                0x30, 13, 0x31, 11, 0x30, 9, 6, 3, 0x55, 4, 6, 0x13, 2, b'X', b'X',
            ])]
        })
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
