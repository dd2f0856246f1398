//! What the transport tests share: certificates, a listening side that accepts one connection, and clients.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use waystation_transport::{
    Connection, Flow, HostCertificate, ReadOutcome, TlsAcceptor, TlsSettings, TransportError,
};

/// The time after which a test that waits is a failed one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test's future on a single-threaded runtime, as the server's threads are.
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(
        local.run_until(async { tokio::time::timeout(PATIENCE, test).await.expect("test takes too long") }),
    )
}

/// Certificates of a test, in a folder of their own.
pub(crate) struct Certificates {
    pub(crate) folder: TempDir,
    pub(crate) hosts: Vec<HostCertificate>,
}

impl Certificates {
    pub(crate) fn new(hosts: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hosts =
            hosts.iter().map(|host| make(folder.path(), host, &rcgen::PKCS_ECDSA_P256_SHA256)).collect();
        Self { folder, hosts }
    }

    pub(crate) fn settings(&self) -> TlsSettings {
        TlsSettings::new(self.hosts.clone(), self.hosts[0].host.clone())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::new(self.settings()).unwrap().0
    }
}

/// Makes a self-signed certificate for `host`.
pub(crate) fn make(folder: &Path, host: &str, algorithm: &'static SignatureAlgorithm) -> HostCertificate {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
    let files = HostCertificate {
        host: host.to_owned(),
        chain: folder.join(format!("{host}.pem")),
        key: folder.join(format!("{host}.key")),
    };
    std::fs::write(&files.chain, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// A connected pair of sockets on the loopback interface: (server, client).
pub(crate) async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
    (accepted.unwrap().0, connected.unwrap())
}

pub(crate) fn connection(stream: TcpStream) -> Connection {
    let peer = stream.peer_addr().unwrap();
    Connection::plain(stream, peer)
}

/// Accepts one connection on a port of its own and hands it to `server`.
pub(crate) async fn serve_one<F, Fut>(server: F) -> (SocketAddr, tokio::task::JoinHandle<Fut::Output>)
where
    F: FnOnce(Connection) -> Fut + 'static,
    Fut: Future + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::task::spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        server(connection(stream)).await
    });
    (address, task)
}

/// Client settings that accept any certificate.
pub(crate) fn client_config(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll))
        .with_no_client_auth()
}

pub(crate) fn any_version() -> ClientConfig {
    client_config(&[&rustls::version::TLS13, &rustls::version::TLS12])
}

pub(crate) async fn tls_client(
    stream: TcpStream,
    config: ClientConfig,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// A handshake on both sides of a new connection.
pub(crate) async fn tls_pair(
    acceptor: &TlsAcceptor,
    config: ClientConfig,
) -> (Connection, TlsStream<TcpStream>) {
    let (server, client) = socket_pair().await;
    let mut server = connection(server);
    let (accepted, connected) =
        tokio::join!(server.handshake(acceptor, None, b""), tls_client(client, config, "localhost"));
    accepted.unwrap();
    (server, connected.unwrap())
}

/// Reads until `done` says that what was read so far is enough, or the connection ends.
pub(crate) async fn read_until(
    connection: &mut Connection,
    done: impl Fn(&[u8]) -> bool,
) -> Result<(Vec<u8>, Option<ReadOutcome>), TransportError> {
    let mut got = Vec::new();
    while !done(&got) {
        let outcome = connection
            .read_some(64 * 1024, &mut |bytes| {
                got.extend_from_slice(bytes);
                Flow::Continue
            })
            .await?;
        if !matches!(outcome, ReadOutcome::Data { .. }) {
            return Ok((got, Some(outcome)));
        }
    }
    Ok((got, None))
}

#[derive(Debug)]
struct TrustAll;

impl ServerCertVerifier for TrustAll {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
