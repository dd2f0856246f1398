//! The data folder: made private, and owned by one process at a time.
//!
//! What must hold: nothing below the folder is opened before its lock is held; the lock lasts as
//! long as any clone of [`DataDir`], and the system drops it when the process ends in any way.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::OpenError;

/// Name of the lock file in the data folder.
const LOCK: &str = "lock";

/// A data folder that this process has locked. Clones share the lock.
#[derive(Clone, Debug)]
pub struct DataDir {
    inner: Arc<Locked>,
}

#[derive(Debug)]
struct Locked {
    path: PathBuf,
    lock: File,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is just being started from this one holds
        // a copy of it for a moment, and the lock with it.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "cannot unlock the data folder");
        }
    }
}

impl DataDir {
    /// Makes the folder if it is absent (mode 0700), and locks it.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another process (or another `DataDir` of this one) holds it,
    /// [`OpenError::Io`] when the system refuses.
    pub fn lock(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        make_private(&path)?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(OpenError::io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read_pid(&mut lock);
                return Err(OpenError::Locked { path, pid });
            }
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::Io { action: "lock", path: lock_path, source });
            }
        }
        // The file stays when the lock is dropped: removing it would let two processes lock two
        // files of the same name. The number in it is read only while someone holds the lock.
        write_pid(&mut lock).map_err(OpenError::io("write", &lock_path))?;
        Ok(Self { inner: Arc::new(Locked { path, lock }) })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

fn make_private(path: &Path) -> Result<(), OpenError> {
    match path.metadata() {
        Ok(found) => {
            if found.permissions().mode() & 0o077 != 0 {
                tracing::warn!(
                    folder = %path.display(),
                    "the data folder is open to other users of this machine; `chmod 700` closes it"
                );
            }
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(OpenError::Io { action: "look at", path: path.to_owned(), source });
        }
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(OpenError::io("make", path))?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => sync_dir(Path::new(".")),
    }
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Flushes a folder, so that what was made, renamed or removed in it survives a power loss.
pub(crate) fn sync_dir(path: &Path) -> Result<(), OpenError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(OpenError::io("flush", path))
}

/// Flushes every file and folder below `path`, and `path` itself.
pub(crate) fn sync_tree(path: &Path) -> Result<(), OpenError> {
    let listing = path.read_dir().map_err(OpenError::io("list", path))?;
    for entry in listing {
        let entry = entry.map_err(OpenError::io("list", path))?;
        let child = entry.path();
        // Neither engine makes links, and a link planted here is not followed.
        if entry.file_type().map_err(OpenError::io("look at", &child))?.is_dir() {
            sync_tree(&child)?;
        } else {
            File::open(&child).and_then(|file| file.sync_all()).map_err(OpenError::io("flush", &child))?;
        }
    }
    sync_dir(path)
}

/// Writes a file whole or not at all: under another name first, flushed, then renamed.
pub(crate) fn write_atomic(folder: &Path, name: &str, content: &str) -> Result<(), OpenError> {
    let temporary = folder.join(format!("{name}.new"));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    write().map_err(OpenError::io("write", &temporary))?;
    let target = folder.join(name);
    std::fs::rename(&temporary, &target).map_err(OpenError::io("write", &target))?;
    sync_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_is_private_and_the_lock_is_exclusive() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        let first = DataDir::lock(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);

        let error = DataDir::lock(&path).unwrap_err();
        assert!(
            matches!(&error, OpenError::Locked { pid, .. } if *pid == Some(std::process::id())),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("stop it"), "{text}");

        let clone = first.clone();
        drop(first);
        assert!(DataDir::lock(&path).is_err(), "a clone holds the lock");
        drop(clone);
        DataDir::lock(&path).unwrap();
    }

    #[test]
    fn a_copy_of_the_lock_file_in_another_process_does_not_keep_the_lock() {
        let base = tempfile::tempdir().unwrap();
        let first = DataDir::lock(base.path()).unwrap();
        let copy = first.inner.lock.try_clone().unwrap();
        drop(first);
        DataDir::lock(base.path()).unwrap();
        drop(copy);
    }

    #[test]
    fn a_lock_file_without_a_number_still_gives_a_clear_error() {
        let base = tempfile::tempdir().unwrap();
        let holder = File::create(base.path().join(LOCK)).unwrap();
        holder.try_lock().unwrap();
        let text = DataDir::lock(base.path()).unwrap_err().to_string();
        assert!(text.contains("in use by another process"), "{text}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("file"), "").unwrap();
        let error = DataDir::lock(base.path().join("file/below")).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
        assert!(error.to_string().contains("file/below"), "{error}");
    }
}
