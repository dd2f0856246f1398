//! The durable queue of the server: opening it, and what commits to it.
//!
//! What must hold: the queue is opened before anyone is let in, and closed after the last route
//! has settled.

use std::error::Error;
use std::sync::Arc;

use waystation_config::{Config, MinFree};
use waystation_core::queue::QueueBackend;
use waystation_core::storage::Durability;
use waystation_queue::Options;
use waystation_route::{Intake, Router};
use waystation_runtime::Arbiters;
use waystation_storage::DataDir;

/// Its folder in the data folder.
pub(crate) const FOLDER: &str = "queue";

/// Opens the queue of a data folder.
///
/// # Errors
/// When it cannot be opened, with what to do about it.
pub(crate) fn open(config: &Config, data_dir: &DataDir) -> Result<Arc<dyn QueueBackend>, Box<dyn Error>> {
    if config.durability == Durability::Memory {
        return Ok(waystation_queue::memory());
    }
    let options = Options {
        durability: config.durability,
        min_free_bytes: match config.storage.min_free {
            MinFree::Auto => None,
            MinFree::Fixed(size) => Some(size.0),
        },
        ..Options::default()
    };
    Ok(waystation_queue::open(&data_dir.path().join(FOLDER), &options)?)
}

/// What commits to the queue what is offered.
pub(crate) enum Committing {
    /// A thread of its own, beside those of the arbiters.
    Thread(std::thread::JoinHandle<()>),
    /// A task of the only arbiter: with one core a thread would only be in its way. Under load that
    /// spares a switch between threads for every batch, and a batch holds what all sessions that were
    /// ready have read.
    Task(actix_rt::task::JoinHandle<()>),
}

impl Committing {
    /// Starts to commit.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        intake: &Arc<Intake>,
        router: &Arc<Router>,
        arbiters: &Arbiters,
    ) -> std::io::Result<Self> {
        let (intake, router) = (intake.clone(), Arc::downgrade(router));
        if arbiters.count() == 1 {
            return Ok(Self::Task(actix_rt::spawn(intake.run(router))));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name("intake".to_owned());
        Ok(Self::Thread(thread.spawn(move || runtime.block_on(intake.run(router)))?))
    }

    /// Ends it; there is nothing left to do.
    pub(crate) async fn stop(self, intake: &Arc<Intake>) {
        intake.stop();
        let panicked = match self {
            Self::Thread(thread) => thread.join().is_err(),
            Self::Task(task) => task.await.is_err(),
        };
        if panicked {
            tracing::error!("what commits to the queue had panicked");
        }
    }
}
