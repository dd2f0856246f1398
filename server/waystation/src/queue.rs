//! The durable queue of the server: opening it, and the thread that commits to it.
//!
//! What must hold: the queue is opened before anyone is let in, and closed after the last route
//! has settled.

use std::error::Error;
use std::sync::Arc;
use std::thread::JoinHandle;

use waystation_config::{Config, MinFree};
use waystation_core::queue::QueueBackend;
use waystation_core::storage::Durability;
use waystation_queue::Options;
use waystation_route::{Intake, Router};
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

/// Starts the thread that commits what is offered.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn start(intake: &Arc<Intake>, router: &Arc<Router>) -> std::io::Result<JoinHandle<()>> {
    let (intake, router) = (intake.clone(), Arc::downgrade(router));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("intake".to_owned()).spawn(move || runtime.block_on(intake.run(router)))
}

/// Ends the thread, which has nothing left to do.
pub(crate) fn stop(intake: &Arc<Intake>, thread: JoinHandle<()>) {
    intake.stop();
    if thread.join().is_err() {
        tracing::error!("the thread that commits to the queue had panicked");
    }
}
