//! Client side TLS settings for tests: no verification of the server's certificate.
//!
//! What a test checks about certificates it checks itself, from the
//! certificate that the handshake delivered; here every certificate is taken.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

/// A client configuration for TLS 1.3 and 1.2 that takes any certificate and offers `alpn`.
pub fn client_config(alpn: &[&[u8]]) -> Arc<ClientConfig> {
    client_config_for(rustls::ALL_VERSIONS, alpn)
}

/// As [`client_config`], limited to the given protocol versions.
pub fn client_config_for(
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("the ring provider has cipher suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakeAny(provider)))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    // A resumed session would skip the certificate and make login figures incomparable.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// What a client sends first: its ClientHello, as it goes over the wire.
pub fn client_hello(config: Arc<ClientConfig>, sni: &str) -> io::Result<Vec<u8>> {
    let name = ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?;
    let mut hello = Vec::new();
    ClientConnection::new(config, name).map_err(io::Error::other)?.write_tls(&mut hello)?;
    Ok(hello)
}

/// The `tls-exporter` channel binding of RFC 9266 (32 bytes).
pub fn exporter_binding(conn: &ClientConnection) -> Option<Vec<u8>> {
    conn.export_keying_material(vec![0; 32], b"EXPORTER-Channel-Binding", Some(b"")).ok()
}

/// The `tls-server-end-point` channel binding of RFC 5929 for a certificate signed with SHA-256
/// (which test certificates are, and MD5 and SHA-1 count as).
pub fn end_point_binding(conn: &ClientConnection) -> Option<Vec<u8>> {
    conn.peer_certificates()?.first().map(|cert| Sha256::digest(cert).to_vec())
}

#[derive(Debug)]
struct TakeAny(Arc<CryptoProvider>);

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
