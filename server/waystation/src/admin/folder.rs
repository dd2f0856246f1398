//! A data folder that no server uses: the server's parts put together for administration alone.
//!
//! What must hold: nothing listens; what a command began is stored before the program ends,
//! with other accounts as well: the contacts of a removed account are told.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use waystation_archive::MessageArchive;
use waystation_auth::{Accounts, AccountsConfig, PasswordWorkers};
use waystation_config::{Config, Engine, MinFree};
use waystation_core::module::Module;
use waystation_core::{Jid, StreamCondition, StreamError};
use waystation_info::Info;
use waystation_roster::{RosterConfig, RosterModule};
use waystation_route::router::RouterParts;
use waystation_route::{Intake, IqTable, Router, RouterConfig};
use waystation_runtime::Arbiters;
use waystation_storage::{DataDir, Kind, Options};

use super::MAX_ADD;
use super::backend::Backend;
use crate::queue::Committing;
use crate::registry::Registry;

/// Longest wait for the contacts of removed accounts to be told. Each is a commit.
const SETTLE: Duration = Duration::from_secs(60);

/// An opened data folder.
pub(crate) struct Folder {
    /// What administrators ask.
    pub(crate) backend: Arc<Backend>,
    intake: Arc<Intake>,
    committing: Committing,
}

impl Folder {
    /// Opens a locked data folder. Call it inside a running actix system, and use the folder there.
    ///
    /// # Errors
    /// When the store cannot be opened or read.
    pub(crate) async fn open(config: &Config, data_dir: &DataDir) -> Result<Self, Box<dyn Error>> {
        let storage = waystation_storage::open(data_dir, &storage_options(config))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let accounts_config = AccountsConfig {
            iterations: config.sasl.iterations,
            refuse_mixed_scripts: config.registration.refuse_mixed_scripts,
        };
        let workers = PasswordWorkers::new(cores, MAX_ADD);
        let accounts = Accounts::open(storage.clone(), workers, accounts_config).await?;
        // The modules that keep something of an account. Their limits concern what clients send.
        let roster = RosterModule::new(storage.clone(), RosterConfig::default()).registration();
        let info = Info::new(None, storage.clone()).registration();
        let archive = MessageArchive::new(
            storage.clone(),
            waystation_archive::Config::default(),
            waystation_archive::Server::default(),
        );
        let archive = archive.registration();
        let removed = [&roster, &info, &archive].into_iter().filter_map(|m| m.on_account_removed.clone());
        let registry = Arc::new(Registry::new(accounts.clone(), removed.collect()));
        let presence = roster.presence.ok_or("no module keeps presence")?;
        let queue = crate::queue::open(config, data_dir)?;
        let intake = Intake::new(queue.clone()).await?;
        let hosts: Vec<String> = config.hosts.iter().map(|host| host.to_string()).collect();
        let arbiters = Arc::new(Arbiters::start(1));
        let router = Router::new(RouterParts {
            hosts: hosts.clone(),
            config: RouterConfig::default(),
            arbiters: arbiters.clone(),
            iqs: IqTable::new(config.limits.iq_timeout),
            storage: storage.clone(),
            presence,
            intake: intake.clone(),
            archive: None,
            accounts: registry.clone(),
            observers: Vec::new(),
        });
        registry.connect(&router);
        let committing = Committing::start(&intake, &router, &arbiters)?;
        let admins = config.admins.iter().map(|admin| Jid::clone(admin)).collect();
        let started = Instant::now();
        let tls = None;
        let backend =
            Backend { hosts, admins, accounts, registry, router, queue, storage, tls, arbiters, started };
        Ok(Self { backend: Arc::new(backend), intake, committing })
    }

    /// Waits until all is stored, and closes the store.
    ///
    /// # Errors
    /// When something could not be stored.
    pub(crate) async fn close(self) -> Result<(), Box<dyn Error>> {
        let Backend { router, storage, queue, .. } = &*self.backend;
        router.close_all(&StreamError::new(StreamCondition::SystemShutdown));
        router.settle(SETTLE).await;
        let untold = router.routes();
        self.intake.settle().await;
        self.committing.stop(&self.intake).await;
        queue.close().await?;
        storage.close().await?;
        if untold > 0 {
            return Err(format!("{untold} contacts of removed accounts were not told in time").into());
        }
        Ok(())
    }
}

/// How the configuration wants the store.
pub(crate) fn storage_options(config: &Config) -> Options {
    Options {
        kind: match config.storage.engine {
            Engine::Fjall => Kind::Fjall,
            Engine::Sled => Kind::Sled,
            Engine::Memory => Kind::Memory,
        },
        durability: config.durability,
        cache_bytes: config.storage.cache.0,
        write_buffer_bytes: config.storage.write_buffer.0,
        min_free_bytes: match config.storage.min_free {
            MinFree::Auto => None,
            MinFree::Fixed(size) => Some(size.0),
        },
    }
}
