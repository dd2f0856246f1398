use std::collections::BTreeMap;
use std::future::ready;
use std::net::IpAddr;
use std::sync::Mutex;

use futures_util::FutureExt;
use proptest::prelude::*;
use waystation_core::account::{IqRequest, Relation};
use waystation_core::module::PreAuthIq;
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{IqType, Jid, SessionId, Stanza, StanzaType, StreamCondition, StreamError};

use super::*;

mod new_accounts;
mod own_account;

/// A password that the registry refuses.
const REFUSED: &str = "refused";

type Closed = (Jid, Option<SessionId>, StreamCondition);

/// Accounts and sessions of a server, and what was done to them.
#[derive(Default)]
struct World {
    accounts: Mutex<BTreeMap<Jid, String>>,
    closed: Mutex<Vec<Closed>>,
    broken: bool,
}

impl World {
    fn call<T: Send + 'static>(&self, value: T) -> BoxFuture<'static, Result<T, RegistryError>> {
        let broken = self.broken;
        Box::pin(ready(if broken { Err(StorageError::Full.into()) } else { Ok(value) }))
    }

    fn passwords(&self) -> Vec<(String, String)> {
        let accounts = self.accounts.lock().unwrap();
        accounts.iter().map(|(jid, password)| (jid.to_string(), password.clone())).collect()
    }

    fn closed(&self) -> Vec<Closed> {
        self.closed.lock().unwrap().clone()
    }
}

impl AccountRegistry for World {
    fn exists(&self, account: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        Box::pin(ready(Ok(self.accounts.lock().unwrap().contains_key(&account))))
    }

    fn create(&self, account: Jid, password: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        if password == REFUSED {
            return Box::pin(ready(Err(RegistryError::BadPassword)));
        }
        let mut accounts = self.accounts.lock().unwrap();
        let new = !self.broken && !accounts.contains_key(&account);
        if new {
            accounts.insert(account, password);
        }
        self.call(new)
    }

    fn set_password(
        &self,
        account: Jid,
        password: String,
    ) -> BoxFuture<'static, Result<bool, RegistryError>> {
        if password == REFUSED {
            return Box::pin(ready(Err(RegistryError::BadPassword)));
        }
        let mut accounts = self.accounts.lock().unwrap();
        let known = accounts.get_mut(&account).filter(|_| !self.broken).map(|old| *old = password).is_some();
        self.call(known)
    }

    fn remove(&self, account: Jid, _: Option<SessionId>) -> BoxFuture<'static, Result<bool, RegistryError>> {
        let known = !self.broken && self.accounts.lock().unwrap().remove(&account).is_some();
        self.call(known)
    }
}

impl ServerHandle for World {
    fn to_session(&self, _stanza: Stanza) {}

    fn route(&self, stanza: Stanza) {
        panic!("nothing is to be routed: {stanza:?}");
    }

    fn close_sessions(&self, account: &Jid, except: Option<SessionId>, error: StreamError) {
        self.closed.lock().unwrap().push((account.clone(), except, error.condition));
    }

    fn is_local_host(&self, domain: &str) -> bool {
        domain == "shakespeare.example"
    }
}

fn jid(text: &str) -> Jid {
    Jid::parse(text).unwrap()
}

fn open() -> Config {
    Config { enabled: true, ..Config::default() }
}

/// A world in which bill has an account, and what the module registers in it.
fn world(config: Config) -> (Arc<World>, Registration) {
    build(World::default(), config)
}

fn build(world: World, config: Config) -> (Arc<World>, Registration) {
    world.accounts.lock().unwrap().insert(jid("bill@shakespeare.example"), "old".into());
    let world = Arc::new(world);
    let cell = Arc::new(OnceLock::new());
    let module = InBandRegistration::new(config, cell.clone());
    let _ = cell.set(Server { registry: world.clone(), handle: world.clone() });
    (world, module.registration())
}

fn broken() -> World {
    World { broken: true, ..World::default() }
}
