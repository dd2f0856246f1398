//! A server for client streams in one process: accounts, routes and rosters in memory, and clients of
//! in-process connections. Also used by the tests of web transports.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use waystation_auth::{Accounts, AccountsConfig, FailureLimits, FailureTracker, PasswordWorkers, SaslPolicy};
use waystation_c2s::{C2s, Limits, Rate, RecipientLimit, Recipients};
use waystation_core::module::{AccountRegistry, Module, RegistryError};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Jid, SessionId, xml};
use waystation_roster::{RosterConfig, RosterModule};
use waystation_route::router::RouterParts;
use waystation_route::{Intake, IqTable, Router, RouterConfig};
use waystation_runtime::{Arbiters, Drain};
use waystation_storage::{DataDir, Kind, Options};
use waystation_transport::{PipeEnd, TlsAcceptor, TlsSettings, ensure_development_certificate};

/// After this, what is waited for does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The address that clients come from.
pub(crate) const PEER: ([u8; 4], u16) = ([192, 0, 2, 7], 0);
/// `\0romeo\0right` for PLAIN.
pub(crate) const RIGHT: &str = "AHJvbWVvAHJpZ2h0";

/// The registry of a server where nobody registers or leaves.
struct Fixed(Accounts);

impl AccountRegistry for Fixed {
    fn exists(&self, account: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        let accounts = self.0.clone();
        Box::pin(async move {
            let local = account.local().unwrap_or_default();
            Ok(accounts.exists(account.domain(), local).await.unwrap_or(false))
        })
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

/// TLS with a certificate for `localhost` that is made in `folder`.
pub(crate) fn tls(folder: &Path) -> TlsAcceptor {
    let certificate = ensure_development_certificate(folder, "localhost").unwrap();
    TlsAcceptor::new(TlsSettings::new(vec![certificate.files], "localhost")).unwrap().0
}

/// What clients share: TLS is required, rates are not limited, and nobody is pinged.
pub(crate) fn shared(
    hosts: Vec<String>,
    tls: TlsAcceptor,
    accounts: Accounts,
    router: Arc<Router>,
    arbiters: Arc<Arbiters>,
    drain: &Drain,
) -> C2s {
    let failures = FailureLimits::default();
    C2s {
        hosts,
        limits: Limits {
            bytes: Rate::NONE,
            broadcasts: Rate::NONE,
            presence: Rate::NONE,
            pre_auth: xml::Limits::pre_auth(),
            authenticated: xml::Limits::authenticated(),
            unauthenticated: PATIENCE,
            idle_ping: Duration::ZERO,
            ping_timeout: PATIENCE,
            outbound_bytes: 1 << 20,
            outbound_stanzas: 1000,
            resume: PATIENCE,
            failures: failures.clone(),
        },
        tls: Some(tls),
        tls_required: true,
        tls_loopback_exempt: false,
        sasl: SaslPolicy::default(),
        accounts,
        failures: FailureTracker::new(&failures),
        recipients: Recipients::new(RecipientLimit::NONE),
        pre_auth: None,
        stream_features: String::new(),
        router,
        arbiters,
        drain: drain.signal(),
    }
}

/// The server. Hosts: `localhost` and `other.test`; account: `romeo@localhost`, password `right`.
pub(crate) struct Server {
    pub(crate) c2s: Arc<C2s>,
    pub(crate) drain: Drain,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts it on this thread; `change` may alter what clients share.
    pub(crate) async fn start(change: impl FnOnce(&mut C2s)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::lock(folder.path().join("data")).unwrap();
        let storage = waystation_storage::open(&data, &Options { kind: Kind::Memory, ..Options::default() });
        let storage = storage.unwrap();
        let accounts = Accounts::open(storage.clone(), PasswordWorkers::default(), AccountsConfig::default())
            .await
            .unwrap();
        accounts.create("localhost", "romeo", "right").await.unwrap();
        let arbiters = Arc::new(Arbiters::start(1));
        let drain = Drain::default();
        let hosts = vec!["localhost".to_owned(), "other.test".to_owned()];
        let roster = RosterModule::new(storage.clone(), RosterConfig::default());
        let router = Router::new(RouterParts {
            hosts: hosts.clone(),
            config: RouterConfig::default(),
            arbiters: arbiters.clone(),
            iqs: IqTable::new(Duration::from_secs(10)),
            storage: storage.clone(),
            presence: roster.registration().presence.unwrap(),
            intake: Intake::new(waystation_queue::memory()).await.unwrap(),
            archive: None,
            accounts: Arc::new(Fixed(accounts.clone())),
            observers: Vec::new(),
        });
        let mut c2s = shared(hosts, tls(folder.path()), accounts, router, arbiters, &drain);
        change(&mut c2s);
        Self { c2s: Arc::new(c2s), drain, _folder: folder }
    }

    /// A client of an in-process connection, which has not been authenticated.
    pub(crate) fn connect(&self, secure: bool) -> Client {
        let (server, end) = waystation_transport::pipe(SocketAddr::from(PEER), secure, 16 * 1024);
        waystation_c2s::accept_gateway(self.c2s.clone(), server);
        Client { end, received: Vec::new() }
    }

    /// One that is known to be `account`.
    pub(crate) fn connect_as(&self, account: &str, secure: bool) -> Client {
        let (server, end) = waystation_transport::pipe(SocketAddr::from(PEER), secure, 16 * 1024);
        let account = Jid::parse(account).unwrap();
        waystation_c2s::accept_authenticated(self.c2s.clone(), server, &account);
        Client { end, received: Vec::new() }
    }
}

/// A client of an in-process connection.
pub(crate) struct Client {
    pub(crate) end: PipeEnd,
    received: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, xml: &str) {
        self.end.write_all(xml.as_bytes()).await.unwrap();
    }

    /// Sends a stream header for `to`.
    pub(crate) async fn open(&mut self, to: &str) {
        self.send(&format!(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams' to='{to}' version='1.0'>"
        ))
        .await;
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
                assert!(self.end.read(&mut self.received).await.is_some(), "{end} did not come: {text}");
            }
        });
        String::from_utf8(found.await.unwrap_or_else(|_| panic!("{end} did not come"))).unwrap()
    }

    /// What the server sends up to its end of the connection.
    pub(crate) async fn until_end(&mut self) -> String {
        let ended = async { while self.end.read(&mut self.received).await.is_some() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the server does not end");
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    /// Logs in as romeo and opens the stream that follows.
    pub(crate) async fn log_in(&mut self) {
        self.open("localhost").await;
        self.until("</stream:features>").await;
        self.send(&format!(
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{RIGHT}</auth>"
        ))
        .await;
        self.until("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>").await;
        self.open("localhost").await;
        self.until("</stream:features>").await;
    }

    /// Binds a resource.
    pub(crate) async fn bind(&mut self, resource: &str) -> String {
        self.send(&format!(
            "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
             <resource>{resource}</resource></bind></iq>"
        ))
        .await;
        self.until("</iq>").await
    }
}
