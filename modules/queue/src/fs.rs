//! The seam to the file system, so that tests can let any operation of the log fail.
//!
//! What must hold: nothing in this crate touches a file but through these two traits. Errors are
//! those of the system, unchanged: the log tells a full disk ([`io::ErrorKind::StorageFull`],
//! [`io::ErrorKind::QuotaExceeded`]) from every other failure.

use std::fs::{DirBuilder, File as StdFile, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
/// What [`FileSystem::free_space`] answers.
pub use waystation_committer::FreeSpace;

/// What keeps a folder locked until it is dropped.
pub trait Lock: Send + Sync {}

/// What the log needs of a folder. Errors of every method are those of the system.
pub trait FileSystem: Send + Sync + 'static {
    /// Makes a folder that only this user may enter, and what is missing above it.
    ///
    /// # Errors
    /// Those of the system; that it exists is none.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;

    /// Names of the files in a folder, in any order.
    ///
    /// # Errors
    /// Those of the system.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Makes an empty file, in place of any of that name, open for reading and writing.
    ///
    /// # Errors
    /// Those of the system.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// Those of the system.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Renames a file, in place of any of the new name.
    ///
    /// # Errors
    /// Those of the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes what was created, renamed and removed in a folder survive a power loss.
    ///
    /// # Errors
    /// Those of the system.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Room on the device of a folder.
    ///
    /// # Errors
    /// Those of the system.
    fn free_space(&self, folder: &Path) -> io::Result<FreeSpace>;

    /// Locks a file (made if absent) against other processes and other locks of this one; `None`
    /// when it is locked already.
    ///
    /// # Errors
    /// Those of the system.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;
}

/// An open file. Its methods may be called from several threads at once.
pub trait File: Send + Sync {
    /// Writes the pieces one behind the other from `offset` on; says how many bytes were written,
    /// which may be fewer than there are.
    ///
    /// # Errors
    /// Those of the system.
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Reads into `buffer`; says how many bytes were read, 0 at the end of the file.
    ///
    /// # Errors
    /// Those of the system.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Makes what was written survive a power loss, and the length as far as reading needs it.
    ///
    /// # Errors
    /// Those of the system. What was written is then lost or not, and a later success proves nothing.
    fn sync(&self) -> io::Result<()>;

    /// Takes disk up to a length, and makes the file that long if it is shorter.
    ///
    /// # Errors
    /// Those of the system.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts the file, or makes it longer with zeros.
    ///
    /// # Errors
    /// Those of the system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Its length in bytes.
    ///
    /// # Errors
    /// Those of the system.
    fn size(&self) -> io::Result<u64>;
}

/// True for errors that mean "no room", after which the log goes on.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Fills `buffer` from `offset` on.
pub(crate) fn read_exact(file: &dyn File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Most pieces of one write; the limit of Linux.
const MAX_PIECES: usize = 1024;

/// Writes all of the pieces.
pub(crate) fn write_all(file: &dyn File, pieces: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    let mut rest = pieces;
    while !rest.is_empty() {
        match file.write_at(&rest[..rest.len().min(MAX_PIECES)], offset) {
            Ok(0) if rest.iter().any(|piece| !piece.is_empty()) => {
                return Err(io::ErrorKind::WriteZero.into());
            }
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
                // Nothing written of nothing: only empty pieces are left.
                if written == 0 {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFileSystem;

struct RealFile(StdFile);

struct RealLock(StdFile);

impl Lock for RealLock {}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is just being started from this one
        // holds a copy of it for a moment, and the lock with it.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot unlock the queue's folder");
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl FileSystem for RealFileSystem {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        match folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.sync_folder(parent),
            None => self.sync_folder(Path::new(".")),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in folder.read_dir()? {
            // A name that is no UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(options().create(true).truncate(true).open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(options().open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        StdFile::open(folder)?.sync_all()
    }

    fn free_space(&self, folder: &Path) -> io::Result<FreeSpace> {
        waystation_committer::free_space(folder)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        // The file stays when the lock is dropped: removing it would let two processes lock two
        // files of the same name.
        let file = options().create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(RealLock(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl File for RealFile {
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        match pieces {
            [piece] => FileExt::write_at(&self.0, piece, offset),
            pieces => {
                let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
                Ok(nix::sys::uio::pwritev(&self.0, pieces, offset)?)
            }
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let len = i64::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        match fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // A file system that cannot reserve room still has to have the length.
            Err(nix::errno::Errno::EOPNOTSUPP) => {
                let wanted = len.unsigned_abs();
                if self.size()? < wanted { self.set_len(wanted) } else { Ok(()) }
            }
            other => Ok(other?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
