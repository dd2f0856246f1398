//! What the tests of the store share: a back-end in a temporary folder.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use waystation_core::storage::Storage;
use waystation_storage::{DataDir, Kind, OpenError, Options, open};

/// An engine with a data folder of its own.
pub(crate) struct Backend {
    kind: Kind,
    folder: TempDir,
}

impl Backend {
    /// With an empty folder.
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The data folder.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whether data outlives the store.
    pub(crate) fn is_durable(&self) -> bool {
        self.kind != Kind::Memory
    }

    /// The options that `open` uses: small buffers, so that tables are written and merged too.
    pub(crate) fn options(&self) -> Options {
        Options {
            kind: self.kind,
            write_buffer_bytes: 256 * 1024,
            min_free_bytes: Some(0),
            ..Options::default()
        }
    }

    /// Opens the store.
    pub(crate) fn try_open(&self) -> Result<Arc<dyn Storage>, OpenError> {
        open(&DataDir::lock(self.path())?, &self.options())
    }

    /// Opens the store, which has to succeed.
    pub(crate) fn open(&self) -> Arc<dyn Storage> {
        self.try_open().expect("the store opens")
    }

    /// Closes a store, which must have no other owner, and opens it again.
    pub(crate) async fn reopen(&self, store: Arc<dyn Storage>) -> Arc<dyn Storage> {
        store.close().await.expect("the store closes");
        drop(store);
        self.open()
    }
}
