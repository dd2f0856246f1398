//! A server's inside on one thread: a router with its intake, and accounts.
//!
//! What must hold: what a message meets is the server's own; only the store, which a message does
//! not reach, is a simple one, and the queues are those of memory, for the log is counted apart. The
//! intake, which has a thread of its own in the server, is a task of this one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use waystation_auth::{Accounts, AccountsConfig, PasswordWorkers};
use waystation_core::archive::Archive;
use waystation_core::module::{AccountRegistry, Module, RegistryError};
use waystation_core::queue::{QueueBackend, QueueName};
use waystation_core::storage::{
    Batch, BoxFuture, Durability, Op, Row, ScanRange, Space, Storage, StorageError,
};
use waystation_core::{Jid, SessionId};
use waystation_roster::{RosterConfig, RosterModule};
use waystation_route::router::RouterParts;
use waystation_route::{Intake, IqTable, Router, RouterConfig};
use waystation_runtime::Arbiters;

use crate::Failure;

/// The domain that is served.
pub(crate) const HOST: &str = "localhost";

/// See the module's header.
pub(crate) struct World {
    pub(crate) router: Arc<Router>,
    pub(crate) arbiters: Arc<Arbiters>,
    pub(crate) accounts: Accounts,
    queue: Arc<dyn QueueBackend>,
}

impl World {
    /// Starts on this thread's system, perhaps with an archive.
    pub(crate) async fn start(archive: Option<Arc<dyn Archive>>) -> Result<Self, Failure> {
        let storage: Arc<dyn Storage> = Arc::new(Store::default());
        let config = AccountsConfig {
            // A login is no part of what is counted.
            iterations: waystation_auth::MIN_ITERATIONS,
            ..AccountsConfig::default()
        };
        let accounts = Accounts::open(storage.clone(), PasswordWorkers::default(), config).await?;
        let roster = RosterModule::new(storage.clone(), RosterConfig::default());
        let presence = roster.registration().presence.ok_or("the roster keeps no presence")?;
        let arbiters = Arc::new(Arbiters::start(1));
        let queue = waystation_queue::memory();
        let intake = Intake::new(queue.clone()).await?;
        let router = Router::new(RouterParts {
            hosts: vec![HOST.to_owned()],
            config: RouterConfig::default(),
            arbiters: arbiters.clone(),
            iqs: IqTable::new(Duration::from_secs(10)),
            storage,
            presence,
            intake: intake.clone(),
            archive,
            accounts: Arc::new(Registry(accounts.clone())),
            observers: Vec::new(),
        });
        actix_rt::spawn(intake.run(Arc::downgrade(&router)));
        Ok(Self { router, arbiters, accounts, queue })
    }

    /// Waits until nothing is left in an account's queue.
    pub(crate) async fn rest(&self, user: &str) -> Result<(), Failure> {
        let queue = QueueName::from(format!("a/{user}@{HOST}").as_str());
        // Not what the queue tells of itself, for which it counts.
        while !self.queue.read(queue.clone(), None, 1, 1).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Makes an account.
    pub(crate) async fn create(&self, user: &str, password: &str) -> Result<(), Failure> {
        self.accounts.create(HOST, user, password).await?;
        Ok(())
    }
}

/// Rows in memory.
#[derive(Default)]
struct Store(Mutex<BTreeMap<(Space, Bytes), Bytes>>);

impl Storage for Store {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        let value = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(space, key)).cloned();
        Box::pin(async move { Ok(value) })
    }

    fn scan(&self, _: Space, _: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for op in batch.ops {
            match op {
                Op::Put { space, key, value } => rows.insert((space, key), value),
                Op::Delete { space, key } => rows.remove(&(space, key)),
            };
        }
        Box::pin(async { Ok(()) })
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn name(&self) -> &'static str {
        "rows in memory"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The accounts as routes see them.
struct Registry(Accounts);

impl AccountRegistry for Registry {
    fn exists(&self, account: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        let accounts = self.0.clone();
        Box::pin(async move { accounts.exists(account.domain(), account.local().unwrap_or_default()).await })
    }

    fn create(&self, _: Jid, _: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Ok(false) })
    }

    fn set_password(&self, _: Jid, _: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Ok(false) })
    }

    fn remove(&self, _: Jid, _: Option<SessionId>) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Ok(false) })
    }
}
