//! What the transport tests share: certificates, a listening side that accepts one connection, and clients.

use std::future::Future;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
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
    let name = idna::domain_to_ascii(host).unwrap();
    let certificate = CertificateParams::new(vec![name]).unwrap().self_signed(&key).unwrap();
    let files = HostCertificate {
        host: host.to_owned(),
        chain: folder.join(format!("{host}.pem")),
        key: folder.join(format!("{host}.key")),
    };
    std::fs::write(&files.chain, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    files
}

/// A connected pair of sockets on the loopback interface: (server, client).
pub(crate) async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
    let connected = connected.unwrap();
    connected.set_nodelay(true).unwrap();
    (accepted.unwrap().0, connected)
}

pub(crate) fn connection(stream: TcpStream) -> Connection {
    let peer = stream.peer_addr().unwrap();
    // As the listener does.
    stream.set_nodelay(true).unwrap();
    Connection::plain(stream, peer)
}

/// An `openssl s_client` run against `server`, which gets the connection. Returns what both had to say.
pub(crate) async fn openssl<F, Fut>(
    arguments: &[&str],
    input: &[u8],
    server: F,
) -> (Fut::Output, OpensslOutput)
where
    F: FnOnce(Connection) -> Fut,
    Fut: Future,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = std::process::Command::new("openssl");
    command.arg("s_client").arg("-connect").arg(address).args(arguments);
    let client = run_process(command, input.to_vec());
    let served = async {
        let (stream, _) = listener.accept().await.unwrap();
        server(connection(stream)).await
    };
    tokio::join!(served, client)
}

/// What a process printed on both outputs, and whether it succeeded.
pub(crate) struct OpensslOutput {
    pub(crate) text: String,
    pub(crate) success: bool,
}

/// Runs a process to its end, on a thread of its own.
pub(crate) async fn run_process(mut command: std::process::Command, input: Vec<u8>) -> OpensslOutput {
    let run = move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl must be installed for these tests");
        let mut stdin = child.stdin.take().unwrap();
        // A client that was refused no longer reads its input.
        let _ = stdin.write_all(&input);
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        OpensslOutput { text, success: output.status.success() }
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Runs `openssl` to make test files.
pub(crate) fn openssl_make(arguments: &[&str]) {
    let output = std::process::Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl must be installed for these tests");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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

/// Client settings that check certificates against `roots`.
pub(crate) fn trusting(roots: &rustls::RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
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
pub(crate) struct TrustAll;

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
