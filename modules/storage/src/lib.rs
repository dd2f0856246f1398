//! Durable state behind [`waystation_core::storage::Storage`]: fjall (default), sled and memory.
//!
//! What must hold: one process owns a data folder at a time ([`DataDir`]); a folder is opened only
//! by the engine and the schema that wrote it; a commit resolves only after what
//! [`Storage::durability`] promises was done; after a failed write or flush nothing is
//! acknowledged again; no queue grows without bound. `README.md` states what each back-end promises.

mod committer;
mod data_dir;
mod engine;
mod error;
mod limits;
mod options;
mod schema;
mod store;

use std::sync::Arc;

pub use data_dir::DataDir;
pub use error::OpenError;
pub use options::{Kind, Options, UnknownKind};
pub use schema::SCHEMA_VERSION;
use waystation_core::storage::{Durability, Storage};

use crate::engine::{FjallEngine, MemoryEngine, SledEngine};
use crate::store::Store;

/// Opens the store below a locked data folder, creating it when the folder has none.
///
/// The store keeps the folder locked for as long as it lives. Dropping it flushes and closes it
/// (and waits for that), [`Storage::close`] does the same and tells of errors.
///
/// With [`Kind::Memory`] nothing in the folder is read or written.
///
/// # Errors
/// [`OpenError`], whose text names the folder and what to do about it.
pub fn open(data_dir: &DataDir, options: &Options) -> Result<Arc<dyn Storage>, OpenError> {
    let store: Arc<dyn Storage> = match options.kind {
        Kind::Memory => {
            if schema::store_exists(data_dir) {
                tracing::warn!(
                    "storage is `memory`: the store in the data folder is left untouched and unread, \
                     and nothing written from now on survives a restart"
                );
            }
            Store::start(MemoryEngine::default(), Durability::Memory, data_dir, options)?
        }
        Kind::Fjall => {
            let durability = options.durability;
            let engine = schema::open_or_create(data_dir, Kind::Fjall, |folder| {
                FjallEngine::open(folder, durability, options)
            })?;
            Store::start(engine, durability, data_dir, options)?
        }
        Kind::Sled => {
            let durability = sled_durability(options.durability);
            let engine = schema::open_or_create(data_dir, Kind::Sled, |folder| {
                SledEngine::open(folder, durability, options)
            })?;
            Store::start(engine, durability, data_dir, options)?
        }
    };
    tracing::info!(engine = store.name(), durability = ?store.durability(), "storage opened");
    Ok(store)
}

/// sled 0.34 writes with `sync_file_range`, which does not flush the device: it never reaches
/// [`Durability::Fsync`], so claiming that would be a lie.
fn sled_durability(asked: Durability) -> Durability {
    if asked == Durability::Fsync {
        tracing::warn!(
            "storage is `sled`, which does not flush to the device: acknowledged data survives a crash \
             of the server but not a power loss; use `fjall` where that matters"
        );
        return Durability::Os;
    }
    asked
}
