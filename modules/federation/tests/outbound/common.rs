//! Our side with everything behind it, and peers written by hand on loopback sockets, which say what no
//! real server says.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use waystation_core::module::{AccountRegistry, Module, RegistryError};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Jid, MessageType, SessionId, Stanza, StanzaType};
use waystation_federation::{DomainPolicy, Federation, FederationParts, Settings};
use waystation_harness::DnsServer;
use waystation_roster::{RosterConfig, RosterModule};
use waystation_route::mail::BindRequest;
use waystation_route::remote::{
    Pair, RemoteStreams, Resume, StreamEnd, StreamEvent, StreamEvents, StreamInfo, StreamMail, StreamOutlet,
    StreamRequest,
};
use waystation_route::router::RouterParts;
use waystation_route::{Binding, Intake, IqTable, Router, RouterConfig, SessionMail};
use waystation_runtime::{Arbiters, Drain, Inlet, outlet};
use waystation_storage::{DataDir, Kind, Options};
use waystation_transport::{DetachedConnection, HostCertificate, TlsAcceptor, TlsSettings};

/// After this, what is waited for does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// Our domain, and the peer's.
pub(crate) const US: &str = "here.test";
pub(crate) const THEM: &str = "there.test";

/// What is waited for, or the test fails.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// An authority of the test's own, and what it has signed.
pub(crate) struct Authority {
    pub(crate) folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn certify(&self, host: &str) -> HostCertificate {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        write(self.folder.path(), host, params.signed_by(&key, &self.issuer).unwrap().pem(), &key)
    }

    /// A certificate that nobody vouches for.
    fn self_signed(&self, host: &str) -> HostCertificate {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        write(self.folder.path(), &format!("self-{host}"), params.self_signed(&key).unwrap().pem(), &key)
    }
}

fn write(folder: &Path, host: &str, certificate: String, key: &KeyPair) -> HostCertificate {
    use std::os::unix::fs::PermissionsExt;
    let chain = folder.join(format!("{host}.pem"));
    let key_file = folder.join(format!("{host}.key"));
    std::fs::write(&chain, certificate).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    HostCertificate { host: host.to_owned(), chain, key: key_file }
}

struct Everyone;

impl AccountRegistry for Everyone {
    fn exists(&self, _: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        Box::pin(async { Ok(true) })
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

/// Our side. Its arbiter is the test's thread.
pub(crate) struct Us {
    us: &'static str,
    them: &'static str,
    pub(crate) federation: Arc<Federation>,
    pub(crate) router: Arc<Router>,
    pub(crate) drain: Drain,
    _dns: DnsServer,
    _data: TempDir,
}

impl Us {
    /// Federation that looks for [`THEM`] at these ports, and knows `authority`; `change` may alter the rest.
    pub(crate) async fn start(
        authority: &Authority,
        ports: &[u16],
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Self::start_as(US, THEM, authority, ports, change).await
    }

    /// The same of the domain `us` that looks for `them`.
    pub(crate) async fn start_as(
        us: &'static str,
        them: &'static str,
        authority: &Authority,
        ports: &[u16],
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let folder = DataDir::lock(data.path().join("data")).unwrap();
        let options = Options { kind: Kind::Memory, ..Options::default() };
        let storage = waystation_storage::open(&folder, &options).unwrap();
        let arbiters = Arc::new(Arbiters::start(1));
        let drain = Drain::default();
        let roster = RosterModule::new(storage.clone(), RosterConfig::default());
        let router = Router::new(RouterParts {
            hosts: vec![us.into()],
            config: RouterConfig::default(),
            arbiters: arbiters.clone(),
            iqs: IqTable::new(Duration::from_secs(10)),
            storage,
            presence: roster.registration().presence.unwrap(),
            intake: Intake::new(waystation_queue::memory()).await.unwrap(),
            archive: None,
            accounts: Arc::new(Everyone),
            observers: Vec::new(),
        });
        actix_rt::spawn(router.intake().clone().run(Arc::downgrade(&router)));
        // One is where the administrators say; of several DNS tells.
        let zone: String = ports
            .iter()
            .enumerate()
            .map(|(n, port)| format!("_xmpp-server._tcp.{them} SRV {n} 0 {port} host.{them}\n"))
            .collect();
        let dns = DnsServer::start(format!("{zone}host.{them} A 127.0.0.1").parse().unwrap()).unwrap();
        let server = |port: &u16| DomainPolicy {
            domain: them.into(),
            require_tls: None,
            require_certificate: None,
            server: Some(("127.0.0.1".into(), *port)),
            direct_tls: false,
        };
        let mut settings = Settings {
            hosts: vec![us.into()],
            private_targets: true,
            authorities: Some(authority.folder.path().join("ca.pem")),
            domains: ports.first().filter(|_| ports.len() == 1).map(server).into_iter().collect(),
            nameservers: vec![dns.address],
            negotiation_timeout: PATIENCE,
            ..Settings::default()
        };
        change(&mut settings);
        let tls = TlsAcceptor::new(TlsSettings::new(vec![authority.certify(us)], us)).unwrap().0;
        let parts = FederationParts { settings, tls, router: router.clone(), drain: drain.signal() };
        Self { us, them, federation: Federation::new(parts).unwrap(), router, drain, _dns: dns, _data: data }
    }

    /// Asks for a stream, as a route does.
    pub(crate) fn open(&self, resume: Option<Resume>) -> Route {
        self.open_for(self.them, resume)
    }

    pub(crate) fn open_for(&self, remote: &str, resume: Option<Resume>) -> Route {
        let (outlet, inlet) = outlet(1 << 20, 10_000);
        let told = Arc::new((Mutex::new(VecDeque::new()), Notify::new()));
        let tell = told.clone();
        let events = StreamEvents::new(move |event| {
            tell.0.lock().unwrap().push_back(event);
            tell.1.notify_one();
        });
        let pair = Arc::new(Pair::new(self.us, remote));
        self.federation.open(StreamRequest { pair, inlet, events, resume });
        Route { outlet, told }
    }

    /// Listens for other servers.
    pub(crate) async fn listen(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let federation = self.federation.clone();
        actix_rt::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let stream = stream.into_std().unwrap();
                let connection = DetachedConnection::accepted(stream, peer, None);
                waystation_federation::accept(federation.clone(), connection, false);
            }
        });
        port
    }

    /// A session of an account of ours that is available to all.
    pub(crate) async fn bind(&self, jid: &str) -> (Binding, Jid) {
        let jid = Jid::parse(jid).unwrap();
        let (outlet, inlet): (_, Inlet<SessionMail>) = outlet(1 << 20, 1000);
        let request = BindRequest {
            account: jid.to_bare(),
            resource: jid.resource().map(str::to_owned),
            outlet,
            inlet,
            peer: ([127, 0, 0, 1], 1).into(),
            security: "none",
        };
        (self.router.bind(request).await.unwrap(), jid)
    }
}

/// A route's side of a stream.
pub(crate) struct Route {
    pub(crate) outlet: StreamOutlet,
    told: Arc<(Mutex<VecDeque<StreamEvent>>, Notify)>,
}

impl Route {
    pub(crate) fn send(&self, number: usize) {
        assert!(self.outlet.offer(StreamMail::Stanza(message(number))).is_accepted());
    }

    /// Whether there was room for it.
    pub(crate) fn offer(&self, number: usize) -> bool {
        self.outlet.offer(StreamMail::Stanza(message(number))).is_accepted()
    }

    /// Whether there was room for a message with this body.
    pub(crate) fn offer_body(&self, body: &str) -> bool {
        let message = message(0);
        let (from, to) = (message.from().cloned(), message.to().cloned());
        let body = format!("<body>{body}</body>");
        let message = Stanza::build(message.stanza_type(), from, to, None, body);
        self.outlet.offer(StreamMail::Stanza(message)).is_accepted()
    }

    /// The message with this number to another address of theirs.
    pub(crate) fn send_to(&self, number: usize, to: &str) {
        self.send_from(number, "romeo@here.test/r", to);
    }

    pub(crate) fn send_from(&self, number: usize, from: &str, to: &str) {
        let (from, to) = (Jid::parse(from).unwrap(), Jid::parse(to).unwrap());
        let message = message(number).readdressed(Some(from), Some(to));
        assert!(self.outlet.offer(StreamMail::Stanza(message)).is_accepted());
    }

    pub(crate) fn close(&self) {
        assert!(self.outlet.offer_control(StreamMail::Close).is_accepted());
    }

    pub(crate) async fn event(&self) -> StreamEvent {
        soon("an event", async {
            loop {
                if let Some(event) = self.told.0.lock().unwrap().pop_front() {
                    return event;
                }
                self.told.1.notified().await;
            }
        })
        .await
    }

    pub(crate) async fn up(&self) -> StreamInfo {
        match self.event().await {
            StreamEvent::Up(info) => *info,
            other => panic!("{other:?} instead of Up"),
        }
    }

    pub(crate) async fn handed(&self) -> u64 {
        match self.event().await {
            StreamEvent::Handed(count) => count,
            other => panic!("{other:?} instead of Handed"),
        }
    }

    pub(crate) async fn down(&self) -> StreamEnd {
        match self.event().await {
            StreamEvent::Down(end) => end,
            other => panic!("{other:?} instead of Down"),
        }
    }

    /// What was told and not taken.
    pub(crate) fn pending(&self) -> usize {
        self.told.0.lock().unwrap().len()
    }
}

/// The message with this number, from us to them.
pub(crate) fn message(number: usize) -> Stanza {
    Stanza::build(
        StanzaType::Message(MessageType::Chat),
        Jid::parse(&format!("romeo@{US}/r")).ok(),
        Jid::parse(&format!("juliet@{THEM}")).ok(),
        Some(&format!("m{number}")),
        format!("<body>{number}</body>"),
    )
}

/// The peer's listener.
pub(crate) struct Peer {
    listener: TcpListener,
    pub(crate) port: u16,
    tls: tokio_rustls::TlsAcceptor,
}

impl Peer {
    /// One with a certificate of `authority`.
    pub(crate) async fn listen(authority: &Authority) -> Self {
        Self::with(&authority.certify(THEM)).await
    }

    /// One whose certificate proves nothing.
    pub(crate) async fn self_signed(authority: &Authority) -> Self {
        Self::with(&authority.self_signed(THEM)).await
    }

    async fn with(files: &HostCertificate) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let chain = rustls::pki_types::CertificateDer::pem_file_iter(&files.chain).unwrap();
        let chain = chain.map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"xmpp-server".to_vec()];
        Self { listener, port, tls: tokio_rustls::TlsAcceptor::from(Arc::new(config)) }
    }

    /// Our connection to it.
    pub(crate) async fn accept(&self) -> Conn {
        let (stream, _) = soon("a connection", self.listener.accept()).await.unwrap();
        Conn { stream: Box::new(stream), received: Vec::new(), tls: self.tls.clone() }
    }

    /// The same over TLS from the first byte; also the protocol that was agreed on.
    pub(crate) async fn accept_tls(&self) -> (Conn, Option<Vec<u8>>) {
        let (stream, _) = soon("a connection", self.listener.accept()).await.unwrap();
        let stream = soon("a handshake", self.tls.accept(stream)).await.unwrap();
        let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        (Conn { stream: Box::new(stream), received: Vec::new(), tls: self.tls.clone() }, alpn)
    }

    /// Up to the features behind STARTTLS, which are `features`.
    pub(crate) async fn accept_starttls(&self, features: &str) -> Conn {
        let mut conn = self.accept().await;
        conn.greet(STARTTLS).await;
        let mut conn = conn.start_tls("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
        conn.greet(features).await;
        conn
    }

    /// Up to the first stanza, proven by SASL EXTERNAL; `before` and `after` are the features.
    pub(crate) async fn accept_external(&self, before: &str, after: &str) -> Conn {
        let mut conn = self.accept_starttls(&format!("{EXTERNAL}{before}")).await;
        conn.until("</auth>").await;
        conn.send("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>").await;
        conn.greet(after).await;
        conn
    }
}

pub(crate) const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
pub(crate) const EXTERNAL: &str =
    "<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL</mechanism></mechanisms>";
pub(crate) const SM: &str = "<sm xmlns='urn:xmpp:sm:3'/>";
pub(crate) const BIDI: &str = "<bidi xmlns='urn:xmpp:features:bidi'/>";

trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

/// A connection of the peer's.
pub(crate) struct Conn {
    stream: Box<dyn Wire>,
    received: Vec<u8>,
    tls: tokio_rustls::TlsAcceptor,
}

impl Conn {
    pub(crate) async fn send(&mut self, xml: &str) {
        self.stream.write_all(xml.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// What we send up to `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let text = String::from_utf8_lossy(&self.received).into_owned();
                if let Some(at) = text.find(end) {
                    let rest = self.received.split_off(at + end.len());
                    return std::mem::replace(&mut self.received, rest);
                }
                let read = self.stream.read_buf(&mut self.received).await.unwrap();
                assert!(read > 0, "{end} did not come: {text}");
            }
        });
        let found = found.await;
        let text = String::from_utf8_lossy(&self.received);
        String::from_utf8(found.unwrap_or_else(|_| panic!("{end} did not come: {text}"))).unwrap()
    }

    /// All that we send up to the end of the connection, however it ends.
    pub(crate) async fn until_end(&mut self) -> String {
        let ended = async { while self.stream.read_buf(&mut self.received).await.is_ok_and(|n| n > 0) {} };
        soon("the end of the connection", ended).await;
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    /// Reads our header and answers it with these features.
    pub(crate) async fn greet(&mut self, features: &str) -> String {
        let header = self.until("version='1.0' xml:lang='en'>").await;
        self.send(&format!("{}<stream:features>{features}</stream:features>", self.header(THEM))).await;
        header
    }

    pub(crate) fn header(&self, from: &str) -> String {
        format!(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:server' xmlns:db='jabber:server:dialback' \
             xmlns:stream='http://etherx.jabber.org/streams' id='s1' from='{from}' to='{US}' version='1.0'>"
        )
    }

    /// Answers `<starttls/>` with `proceed` and starts TLS.
    pub(crate) async fn start_tls(mut self, proceed: &str) -> Self {
        self.until("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
        self.send(proceed).await;
        assert!(self.received.is_empty());
        let stream = soon("a handshake", self.tls.accept(self.stream)).await.unwrap();
        Self { stream: Box::new(stream), received: Vec::new(), tls: self.tls }
    }

    /// Takes our key of dialback and answers it.
    pub(crate) async fn dialback(&mut self, answer: &str) -> String {
        let asked = self.until("</db:result>").await;
        self.send(&format!("<db:result from='{THEM}' to='{US}' type='{answer}'/>")).await;
        asked
    }

    /// Says in order that it sends no more.
    pub(crate) async fn shutdown(&mut self) {
        // We may have gone already.
        let _ = self.stream.shutdown().await;
    }

    /// Ends the connection as a process that dies does.
    pub(crate) fn cut(self) {
        drop(self);
    }

    /// Ends the stream in order, after we have.
    pub(crate) async fn end(&mut self) {
        self.until("</stream:stream>").await;
        self.send("</stream:stream>").await;
    }
}

/// A raw connection, for what is not XML.
pub(crate) fn into_raw(listener: &Peer) -> &TcpListener {
    &listener.listener
}
