//! Durable queues behind [`waystation_core::queue::QueueBackend`]: a log in a folder (default), and
//! memory.
//!
//! What must hold: one process owns a folder at a time; a commit resolves only after what its
//! durability promises was done; after a failed write or flush nothing is acknowledged again;
//! damage is reported, never served and never skipped. `README.md` states what each back-end
//! promises; the header of `src/log/mod.rs` describes the folder and its files.

mod check;
mod error;
pub mod fs;
mod log;
mod memory;
mod names;
mod options;
mod repair;
mod report;

use std::path::Path;
use std::sync::Arc;

pub use error::OpenError;
pub use options::{Kind, MAX_SEGMENT, MIN_SEGMENT, Options, UnknownKind};
pub use report::{Lost, RepairReport};
use waystation_core::queue::QueueBackend;

use crate::fs::{FileSystem, RealFileSystem};

/// Version of the layout of the files that this release writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Queues in this process's memory: gone when it ends.
pub fn memory() -> Arc<dyn QueueBackend> {
    Arc::new(memory::MemoryQueue::default())
}

/// Opens the log of a folder, which is made (mode 0700) when it is absent.
///
/// The folder stays locked until the queue is closed or dropped. Dropping it commits what was
/// queued and waits for that; [`QueueBackend::close`] does the same and tells of errors. Reads the
/// device and may take seconds: not to be called on an event loop.
///
/// # Errors
/// [`OpenError`], whose text names the file and what to do about it.
pub fn open(folder: &Path, options: &Options) -> Result<Arc<dyn QueueBackend>, OpenError> {
    open_on(Arc::new(RealFileSystem), folder, options)
}

/// Like [`open`], on a file system of the caller's: for tests of faults.
///
/// # Errors
/// [`OpenError`].
pub fn open_on(
    fs: Arc<dyn FileSystem>,
    folder: &Path,
    options: &Options,
) -> Result<Arc<dyn QueueBackend>, OpenError> {
    Ok(log::Log::open(fs, folder, options)?)
}

/// Repairs the log of a folder that no process has open: copies what is damaged to files of their
/// own (`damaged-*`), takes it out of the log, and says exactly what was lost. Reads every record
/// that is not acknowledged. A folder without damage is left as it is.
///
/// Afterwards the folder opens. What was acknowledged may be served again when the verdicts on it
/// were lost; the report says of which files.
///
/// # Errors
/// [`OpenError`]: the folder is locked, was written by another release, or the system refuses.
pub fn repair(folder: &Path) -> Result<RepairReport, OpenError> {
    repair_on(Arc::new(RealFileSystem), folder)
}

/// Like [`repair`], on a file system of the caller's.
///
/// # Errors
/// [`OpenError`].
#[expect(clippy::needless_pass_by_value, reason = "the same shape as `open_on`")]
pub fn repair_on(fs: Arc<dyn FileSystem>, folder: &Path) -> Result<RepairReport, OpenError> {
    repair::repair(&fs, folder)
}
