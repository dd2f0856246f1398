//! A server for streams of other servers in one process, and what its tests play by hand: other servers that
//! connect, authoritative servers that are asked, and the authority that signs for both.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use waystation_core::account::{IqHandler, IqRequest};
use waystation_core::module::{AccountRegistry, IqRegistration, Module, RegistryError, Requests, Scope};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Element, Jid, SessionId, Stanza, StanzaError};
use waystation_federation::{DomainPolicy, Federation, FederationParts, Settings};
use waystation_roster::{RosterConfig, RosterModule};
use waystation_route::router::RouterParts;
use waystation_route::{DomainConfig, Intake, IqTable, Router, RouterConfig};
use waystation_runtime::{Arbiters, Drain};
use waystation_storage::{DataDir, Kind, Options};
use waystation_transport::{DetachedConnection, HostCertificate, TlsAcceptor, TlsSettings};

/// After this, what is waited for does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// The authority that the server trusts.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate of these names, with its key.
    pub(crate) fn issue(&self, names: &[&str]) -> Arc<CertifiedKey> {
        let (chain, key) = self.issue_pem(names);
        let chain = rustls_pki_types::pem::PemObject::pem_slice_iter(chain.as_bytes());
        let chain: Vec<CertificateDer<'static>> = chain.map(Result::unwrap).collect();
        let key: PrivateKeyDer<'static> =
            rustls_pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        Arc::new(CertifiedKey::new(chain, key))
    }

    fn issue_pem(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// The registry of a server without accounts.
struct Nobody;

impl AccountRegistry for Nobody {
    fn exists(&self, _: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        Box::pin(async { Ok(false) })
    }
    fn create(&self, _: Jid, _: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Err(RegistryError::BadPassword) })
    }
    fn set_password(&self, _: Jid, _: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Err(RegistryError::BadPassword) })
    }
    fn remove(&self, _: Jid, _: Option<SessionId>) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Err(RegistryError::BadPassword) })
    }
}

/// Notes who asks: a stanza that gets here was taken from its stream.
struct Witness(mpsc::Sender<(String, String)>);

impl IqHandler for Witness {
    fn handle(&self, request: IqRequest) -> BoxFuture<'static, Result<Option<Element>, StanzaError>> {
        let _ = self.0.try_send((request.from.to_string(), request.target.to_string()));
        Box::pin(async { Ok(None) })
    }
}

/// An iq that the [`World`] notes.
pub(crate) fn iq(from: &str, to: &str) -> String {
    format!("<iq type='get' id='i' from='{from}' to='{to}'><seen xmlns='urn:test'/></iq>")
}

/// A message from us.
pub(crate) fn message(to: &str) -> Stanza {
    let (from, to) = (Jid::parse("v@us.example").unwrap(), Jid::parse(to).unwrap());
    waystation_core::stanza::text_message(from, to, "m", "back")
}

/// The server: `us.example` and `chat.us.example`.
pub(crate) struct World {
    pub(crate) federation: Arc<Federation>,
    pub(crate) router: Arc<Router>,
    /// Where streams begin with STARTTLS, and where with TLS.
    pub(crate) starttls: SocketAddr,
    pub(crate) direct: SocketAddr,
    pub(crate) ca: Arc<Ca>,
    taken: mpsc::Receiver<(String, String)>,
    pub(crate) drain: Drain,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        Self::with_ca(Arc::new(Ca::new()), change).await
    }

    pub(crate) async fn with_ca(ca: Arc<Ca>, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authorities = folder.path().join("ca.pem");
        std::fs::write(&authorities, ca.0.pem()).unwrap();
        let mut settings = Settings {
            hosts: vec!["us.example".into(), "chat.us.example".into()],
            private_targets: true,
            authorities: Some(authorities),
            // Nobody answers there: only servers that a test names are found.
            nameservers: vec![SocketAddr::from(([127, 0, 0, 1], 1))],
            ..Settings::default()
        };
        change(&mut settings);
        let (router, taken) = router(folder.path(), &settings.hosts).await;
        let drain = Drain::default();
        let federation = Federation::new(FederationParts {
            tls: tls(folder.path(), &ca),
            settings,
            router: router.clone(),
            drain: drain.signal(),
        });
        let federation = federation.unwrap();
        let starttls = listen(federation.clone(), false).await;
        let direct = listen(federation.clone(), true).await;
        Self { federation, router, starttls, direct, ca, taken, drain, _folder: folder }
    }

    /// Sender and target of the next iq that was taken.
    pub(crate) async fn taken(&mut self) -> (String, String) {
        tokio::time::timeout(PATIENCE, self.taken.recv()).await.expect("no iq was taken").unwrap()
    }

    /// None was.
    pub(crate) fn assert_nothing_taken(&mut self) {
        assert!(self.taken.try_recv().is_err(), "a stanza was taken");
    }

    /// A server that has TLS, with this certificate if any, and has opened a stream from `from`.
    pub(crate) async fn secured(&self, from: &str, key: Option<Arc<CertifiedKey>>) -> Peer {
        let mut peer = Peer::connect(self.starttls).await;
        peer.open(from, "us.example").await;
        peer.until("</stream:features>").await;
        let mut peer = peer.start_tls("us.example", key).await;
        peer.open(from, "us.example").await;
        peer
    }
}

async fn router(folder: &Path, hosts: &[String]) -> (Arc<Router>, mpsc::Receiver<(String, String)>) {
    let data = DataDir::lock(folder.join("data")).unwrap();
    let options = Options { kind: Kind::Memory, ..Options::default() };
    let storage = waystation_storage::open(&data, &options).unwrap();
    let arbiters = Arc::new(Arbiters::start(1));
    let roster = RosterModule::new(storage.clone(), RosterConfig::default());
    let (witness, taken) = mpsc::channel(10_000);
    let mut iqs = IqTable::new(PATIENCE);
    let registration = IqRegistration {
        namespace: "urn:test",
        element: "seen",
        scope: Scope::Host,
        requests: Requests::Get,
        handler: Arc::new(Witness(witness)),
    };
    iqs.add(registration).unwrap();
    let intake = Intake::new(waystation_queue::memory()).await.unwrap();
    let router = Router::new(RouterParts {
        hosts: hosts.to_vec(),
        config: RouterConfig {
            domains: DomainConfig { retry_min: Duration::from_secs(1), ..DomainConfig::default() },
            ..RouterConfig::default()
        },
        arbiters,
        iqs,
        storage,
        presence: roster.registration().presence.unwrap(),
        intake: intake.clone(),
        archive: None,
        accounts: Arc::new(Nobody),
        observers: Vec::new(),
    });
    actix_rt::spawn(intake.run(Arc::downgrade(&router)));
    (router, taken)
}

fn tls(folder: &Path, ca: &Ca) -> TlsAcceptor {
    let (chain, key) = (folder.join("chain.pem"), folder.join("key.pem"));
    let (chain_pem, key_pem) = ca.issue_pem(&["us.example", "chat.us.example"]);
    std::fs::write(&chain, chain_pem).unwrap();
    std::fs::write(&key, key_pem).unwrap();
    let hosts = ["us.example", "chat.us.example"];
    let hosts =
        hosts.map(|host| HostCertificate { host: host.into(), chain: chain.clone(), key: key.clone() });
    TlsAcceptor::new(TlsSettings::new(hosts.to_vec(), "us.example")).unwrap().0
}

async fn listen(federation: Arc<Federation>, direct_tls: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    actix_rt::spawn(async move {
        while let Ok((socket, peer)) = listener.accept().await {
            let connection = DetachedConnection::accepted(socket.into_std().unwrap(), peer, None);
            waystation_federation::accept(federation.clone(), connection, direct_tls);
        }
    });
    address
}

/// A policy that says where the server of a domain is.
pub(crate) fn server_at(domain: &str, port: u16) -> DomainPolicy {
    DomainPolicy {
        domain: domain.into(),
        require_tls: None,
        require_certificate: None,
        server: Some(("127.0.0.1".into(), port)),
        direct_tls: false,
    }
}

pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

/// The far side of a connection, played by hand.
pub(crate) struct Peer {
    pub(crate) wire: Box<dyn Wire>,
    pub(crate) received: Vec<u8>,
}

impl Peer {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let socket = TcpStream::connect(to).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::of(socket)
    }

    pub(crate) fn of(wire: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Self {
        Self { wire: Box::new(wire), received: Vec::new() }
    }

    /// Connects with TLS from the first byte.
    pub(crate) async fn connect_tls(to: SocketAddr, name: &str, alpn: &[&[u8]]) -> std::io::Result<Self> {
        let socket = TcpStream::connect(to).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(waystation_harness::tls::client_config(alpn));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Ok(Self::of(connector.connect(name, socket).await?))
    }

    /// The same with a certificate.
    pub(crate) async fn connect_tls_as(
        to: SocketAddr,
        name: &str,
        alpn: &[&[u8]],
        key: Arc<CertifiedKey>,
    ) -> Self {
        let socket = TcpStream::connect(to).await.unwrap();
        let mut config = ClientConfig::clone(&waystation_harness::tls::client_config(alpn));
        config.client_auth_cert_resolver = Arc::new(Presented(key));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Self::of(connector.connect(name, socket).await.unwrap())
    }

    pub(crate) async fn send(&mut self, xml: &str) {
        self.send_bytes(xml.as_bytes()).await.unwrap();
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.wire.write_all(bytes).await?;
        self.wire.flush().await
    }

    /// Sends a stream header.
    pub(crate) async fn open(&mut self, from: &str, to: &str) {
        self.send(&header(&format!("from='{from}' to='{to}' version='1.0'"))).await;
    }

    /// What the server sends up to `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let text = String::from_utf8_lossy(&self.received).into_owned();
                if let Some(at) = text.find(end) {
                    let rest = self.received.split_off(at + end.len());
                    return std::mem::replace(&mut self.received, rest);
                }
                let read = self.wire.read_buf(&mut self.received).await;
                assert!(matches!(read, Ok(1..)), "{end} did not come: {text} {read:?}");
            }
        });
        let found = found.await;
        String::from_utf8(found.unwrap_or_else(|_| panic!("{end} did not come: {self:?}"))).unwrap()
    }

    /// What the server sends up to the end of the connection.
    pub(crate) async fn until_end(&mut self) -> String {
        String::from_utf8(self.bytes_until_end().await).unwrap()
    }

    /// The same, or what it sends up to `end` if that comes first.
    pub(crate) async fn until_end_or(&mut self, end: &str) -> String {
        let found = async {
            loop {
                let text = String::from_utf8_lossy(&self.received).into_owned();
                let read = self.wire.read_buf(&mut self.received);
                if text.contains(end) || !matches!(read.await, Ok(1..)) {
                    return text;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the server does not end")
    }

    /// The same of a server that may speak TLS.
    pub(crate) async fn until_end_lossy(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes_until_end().await).into_owned()
    }

    async fn bytes_until_end(&mut self) -> Vec<u8> {
        let ended = async { while matches!(self.wire.read_buf(&mut self.received).await, Ok(1..)) {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the server does not end");
        std::mem::take(&mut self.received)
    }

    /// The features, and the id of the stream that they are for.
    pub(crate) async fn features(&mut self) -> (String, String) {
        let text = self.until("</stream:features>").await;
        let id = attribute(&text, "id");
        (id, text[text.find("<stream:features>").unwrap()..].to_owned())
    }

    /// Asks for TLS, and presents this certificate if any.
    pub(crate) async fn start_tls(mut self, name: &str, key: Option<Arc<CertifiedKey>>) -> Self {
        self.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
        self.until("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
        let mut config = ClientConfig::clone(&waystation_harness::tls::client_config(&[]));
        if let Some(key) = key {
            config.client_auth_cert_resolver = Arc::new(Presented(key));
        }
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Self::of(connector.connect(name, self.wire).await.unwrap())
    }

    /// Makes a claim by dialback.
    pub(crate) async fn claim(&mut self, from: &str, to: &str, key: &str) {
        self.send(&format!("<db:result from='{from}' to='{to}'>{key}</db:result>")).await;
    }

    /// The answer to one: its type, or the condition of its error.
    pub(crate) async fn answer(&mut self) -> String {
        let text = self.until("</db:result>").await;
        assert!(text.starts_with("<db:result "), "{text}");
        verdict(&text)
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.received))
    }
}

/// A stream header with these attributes.
pub(crate) fn header(attributes: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:server' xmlns:db='jabber:server:dialback' \
         xmlns:stream='http://etherx.jabber.org/streams' {attributes}>"
    )
}

/// An attribute of the first element that has it.
pub(crate) fn attribute(xml: &str, name: &str) -> String {
    let start = xml.find(&format!(" {name}='")).unwrap_or_else(|| panic!("no {name} in {xml}"));
    xml[start + name.len() + 3..].split('\'').next().unwrap().to_owned()
}

/// The type of an answer of dialback, or the condition of its error.
pub(crate) fn verdict(answer: &str) -> String {
    match attribute(answer, "type").as_str() {
        "error" => {
            let error = answer.split_once("<error ").unwrap().1.split_once("><").unwrap().1;
            error.split(' ').next().unwrap().to_owned()
        }
        other => other.to_owned(),
    }
}

#[derive(Debug)]
pub(crate) struct Presented(pub(crate) Arc<CertifiedKey>);

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Presented {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
