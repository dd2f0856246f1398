//! SECURITY.md row A13: a login while the account store fails. The store is the only back-end of
//! authentication; this one fails when it is told to.
//!
//! What must hold: such a login ends in `temporary-auth-failure`, never in success; it does not
//! count as a wrong password; and on the same connection the next one succeeds once the store is
//! well again.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use waystation_auth::{Accounts, AccountsConfig, PasswordWorkers};
use waystation_c2s::accept;
use waystation_core::account::{AccountPresence, PresenceLogic};
use waystation_core::module::{AccountRegistry, RegistryError};
use waystation_core::storage::{
    Batch, BoxFuture, Durability, Op, Row, ScanRange, Space, Storage, StorageError,
};
use waystation_core::{Jid, SessionId};
use waystation_harness::{Mechanism, RawClient};
use waystation_route::router::RouterParts;
use waystation_route::{Intake, IqTable, Router, RouterConfig};
use waystation_runtime::{Arbiters, Drain};
use waystation_transport::DetachedConnection;

const WELL: u8 = 0;
const BROKEN: u8 = 1;
const DAMAGED: u8 = 2;
const SILENT: u8 = 3;

/// A store in memory that is as well as `state` says.
#[derive(Default)]
struct Store {
    rows: Mutex<BTreeMap<(Space, Bytes), Bytes>>,
    state: AtomicU8,
}

impl Storage for Store {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        Box::pin(async move {
            match self.state.load(Ordering::SeqCst) {
                BROKEN => Err(StorageError::Io("broken by the test".into())),
                DAMAGED => Ok(Some(Bytes::from_static(b"\x01damaged"))),
                SILENT => std::future::pending().await,
                _ => Ok(self.rows.lock().unwrap().get(&(space, key)).cloned()),
            }
        })
    }
    fn scan(&self, _: Space, _: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(async { Err(StorageError::Io("nothing is scanned for a login".into())) })
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let mut rows = self.rows.lock().unwrap();
        for op in batch.ops {
            match op {
                Op::Put { space, key, value } => drop(rows.insert((space, key), value)),
                Op::Delete { space, key } => drop(rows.remove(&(space, key))),
            }
        }
        Box::pin(async { Ok(()) })
    }
    fn durability(&self) -> Durability {
        Durability::Memory
    }
    fn name(&self) -> &'static str {
        "test"
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// What a router is made of, and a login does not reach.
struct Unused;

fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, StorageError>> {
    Box::pin(async { Err(StorageError::Io("a login ends before this".into())) })
}

impl PresenceLogic for Unused {
    fn load(&self, _: Jid) -> BoxFuture<'static, Result<Box<dyn AccountPresence>, StorageError>> {
        unused()
    }
    fn iq_namespaces(&self) -> &'static [&'static str] {
        &[]
    }
}

impl AccountRegistry for Unused {
    fn exists(&self, _: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        unused()
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

struct Server {
    store: Arc<Store>,
    at: SocketAddr,
    _drain: Drain,
    _certificates: tempfile::TempDir,
}

impl Server {
    /// A server for direct TLS with the account romeo, on this thread.
    async fn start() -> Self {
        let store = Arc::new(Store::default());
        let accounts = Accounts::open(store.clone(), PasswordWorkers::default(), AccountsConfig::default())
            .await
            .unwrap();
        accounts.create("localhost", "romeo", "right").await.unwrap();
        let certificates = tempfile::tempdir().unwrap();
        let arbiters = Arc::new(Arbiters::start(1));
        let drain = Drain::default();
        let router = Router::new(RouterParts {
            hosts: vec!["localhost".into()],
            config: RouterConfig::default(),
            arbiters: arbiters.clone(),
            iqs: IqTable::new(Duration::from_secs(10)),
            storage: store.clone(),
            presence: Arc::new(Unused),
            intake: Intake::new(waystation_queue::memory()).await.unwrap(),
            archive: None,
            accounts: Arc::new(Unused),
            observers: Vec::new(),
        });
        let tls = common::tls(certificates.path());
        let hosts = vec!["localhost".to_owned()];
        let mut c2s = common::shared(hosts, tls, accounts, router, arbiters, &drain);
        c2s.limits.unauthenticated = Duration::from_secs(3);
        c2s.limits.ping_timeout = Duration::from_secs(10);
        c2s.limits.resume = Duration::ZERO;
        let c2s = Arc::new(c2s);
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        actix_rt::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let connection = DetachedConnection::accepted(stream.into_std().unwrap(), peer, None);
                accept(c2s.clone(), connection, true);
            }
        });
        Self { store, at, _drain: drain, _certificates: certificates }
    }

    fn is(&self, state: u8) {
        self.store.state.store(state, Ordering::SeqCst);
    }

    async fn open(&self) -> RawClient {
        let mut raw = RawClient::connect_tls(self.at, "localhost").await.unwrap();
        raw.open("localhost").await.unwrap();
        raw
    }
}

const MECHANISMS: [Mechanism; 3] = [Mechanism::Plain, Mechanism::ScramSha1, Mechanism::ScramSha256];

/// The condition of the failure, or `success`.
async fn login(raw: &mut RawClient, mechanism: Mechanism, password: &str) -> String {
    let Err(error) = raw.authenticate(mechanism, "romeo", password, &[]).await else {
        return "success".to_owned();
    };
    let text = error.to_string();
    let conditions = ["temporary-auth-failure", "not-authorized"];
    conditions.into_iter().find(|c| text.contains(c)).map_or(text.clone(), str::to_owned)
}

#[actix_rt::test]
async fn a13_a_store_that_fails_is_a_temporary_failure_and_no_wrong_password() {
    let server = Server::start().await;
    for mechanism in MECHANISMS {
        for fault in [BROKEN, DAMAGED] {
            let mut raw = server.open().await;
            server.is(fault);
            // More than a connection may fail (5), and than an account may from one address (10).
            for _ in 0..12 {
                for password in ["right", "wrong"] {
                    assert_eq!(login(&mut raw, mechanism, password).await, "temporary-auth-failure");
                }
            }
            server.is(WELL);
            // All four that are allowed are left, and then the right password is right.
            for _ in 0..4 {
                assert_eq!(login(&mut raw, mechanism, "wrong").await, "not-authorized");
            }
            assert_eq!(login(&mut raw, mechanism, "right").await, "success", "{mechanism:?}");
        }
    }
}

#[actix_rt::test]
async fn a13_a_store_that_fails_between_two_messages_lets_nobody_in() {
    let server = Server::start().await;
    for mechanism in [Mechanism::ScramSha1, Mechanism::ScramSha256] {
        let mut raw = server.open().await;
        let name = mechanism.name();
        // "n,,n=romeo,r=abcdefgh"
        let first = "biwsbj1yb21lbyxyPWFiY2RlZmdo";
        raw.send(format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{name}'>{first}</auth>"))
            .await
            .unwrap();
        assert_eq!(raw.next_element("a challenge").await.unwrap().local(), "challenge");
        server.is(BROKEN);
        // "c=biws,r=abcdefgh,p=AAAA": neither nonce nor proof is right.
        raw.send(
            "<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>Yz1iaXdzLHI9YWJjZGVmZ2gscD1BQUFB</response>",
        )
        .await
        .unwrap();
        let answer = raw.next_element("a failure").await.unwrap();
        assert_eq!((answer.local(), answer.child("not-authorized").is_some()), ("failure", true));
        assert_eq!(login(&mut raw, mechanism, "right").await, "temporary-auth-failure");
        server.is(WELL);
        assert_eq!(login(&mut raw, mechanism, "right").await, "success");
    }
}

#[actix_rt::test]
async fn a13_a_store_that_does_not_answer_ends_with_the_deadline() {
    let server = Server::start().await;
    for mechanism in [Mechanism::Plain, Mechanism::ScramSha256] {
        let mut raw = server.open().await;
        server.is(SILENT);
        let error = raw.authenticate(mechanism, "romeo", "right", &[]).await.unwrap_err();
        assert!(error.to_string().contains("connection-timeout"), "{error}");
        server.is(WELL);
        // Whoever was cut off has not failed: another connection gets in at once.
        assert_eq!(login(&mut server.open().await, mechanism, "right").await, "success");
    }
}
