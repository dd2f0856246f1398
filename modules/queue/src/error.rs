//! Why a log could not be opened, in words that tell the operator what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a queue's folder could not be opened or repaired.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another queue of this one, has the folder open.
    #[error("the queue in {} is in use by another process; stop it, or set another folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A file was written by a release with another layout.
    #[error(
        "{} has format version {found}, this release reads {known}; start the release that wrote it, \
         or a later one", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version written there.
        found: u32,
        /// The version of this release.
        known: u32,
    },
    /// What was stored, and possibly acknowledged, cannot be read.
    #[error(
        "{} is damaged at byte {offset}: {detail}; nothing was changed. Restore the folder from a \
         backup, or run `waystation queue repair`, which sets the damaged part aside and says what was lost",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it the damage begins.
        offset: u64,
        /// What is wrong.
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

    /// Damage in a file.
    pub(crate) fn damaged(path: &Path, offset: u64, detail: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, detail: detail.into() }
    }
}
