//! Why a store could not be opened, in words that tell the operator what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a data folder or its store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the folder.
    #[error(
        "the data folder {} is in use by {}; stop it, or set another `data_dir`",
        path.display(),
        match pid { Some(pid) => format!("the process {pid}"), None => "another process".to_owned() }
    )]
    Locked {
        /// The data folder.
        path: PathBuf,
        /// The process that holds it, where the lock file names one.
        pid: Option<u32>,
    },
    /// The store was written by a later release.
    #[error(
        "the store in {} has schema version {found}, this release knows {known}; \
         start the release that wrote it, or a later one", path.display()
    )]
    NewerSchema {
        /// The store's folder.
        path: PathBuf,
        /// The version written there.
        found: u32,
        /// The version of this release.
        known: u32,
    },
    /// There are files where the store belongs, but no word of who wrote them.
    #[error(
        "{} holds files but no `schema` file, so it is no store of this server or a damaged one; \
         restore it from a backup, or move it away to start with an empty store", path.display()
    )]
    NoSchema {
        /// The store's folder.
        path: PathBuf,
    },
    /// The schema file cannot be understood.
    #[error(
        "{} is damaged ({detail}); restore it from a backup, or move the whole folder away to \
         start with an empty store", path.display()
    )]
    BadSchema {
        /// The schema file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The store was written by another engine.
    #[error(
        "the store in {} was written by the engine `{found}`, the configuration asks for `{asked}`; \
         set `storage` to `{found}`, or move the folder away to start with an empty store",
        path.display()
    )]
    OtherEngine {
        /// The store's folder.
        path: PathBuf,
        /// The engine named in the schema file.
        found: String,
        /// The engine asked for.
        asked: &'static str,
    },
    /// The engine cannot read what is there.
    #[error("the engine `{engine}` cannot open {}: {detail}; restore the folder from a backup", path.display())]
    Damaged {
        /// The store's folder.
        path: PathBuf,
        /// The engine.
        engine: &'static str,
        /// The engine's own words.
        detail: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl OpenError {
    /// Puts what was tried, and with what, to an error of the system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
