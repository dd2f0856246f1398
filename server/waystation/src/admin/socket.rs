//! The socket in the data folder: `admin.sock`, for this user only.
//!
//! What must hold: the socket never exists with wider permissions than 0600 under its name; a
//! socket that a crashed server left is replaced (the lock on the folder proves that it has no
//! owner); a folder with a long name works like any other.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The socket's name in the data folder.
const NAME: &str = "admin.sock";
/// Its name until it has its permissions.
const NEW_NAME: &str = "admin.sock.new";
/// The longest path that a socket's address holds: 108 bytes with the final NUL (unix(7)).
const MAX_PATH: usize = 107;

/// A path that fits into a socket's address, usable while this lives.
struct ShortPath {
    path: PathBuf,
    /// The folder, when the path goes by way of its descriptor.
    _folder: Option<File>,
}

fn short(data_dir: &Path, name: &str) -> io::Result<ShortPath> {
    let path = data_dir.join(name);
    if path.as_os_str().as_bytes().len() <= MAX_PATH {
        return Ok(ShortPath { path, _folder: None });
    }
    let folder = File::open(data_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    if !path.exists() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "the path of the admin socket, {}, is longer than {MAX_PATH} bytes; use a shorter data_dir, \
                 or a relative one",
                data_dir.join(name).display()
            ),
        ));
    }
    Ok(ShortPath { path: path.join(name), _folder: Some(folder) })
}

/// The listening socket; its name is removed on drop.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl AdminSocket {
    /// Listens in a data folder that this process has locked.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn bind(data_dir: &Path) -> io::Result<Self> {
        let new = data_dir.join(NEW_NAME);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(short(data_dir, NEW_NAME)?.path)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        let path = data_dir.join(NAME);
        fs::rename(&new, &path)?;
        Ok(Self { path, listener })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the admin socket cannot be removed");
        }
    }
}

/// Connects to the server that owns a data folder; `None` when there is none.
///
/// # Errors
/// When the system refuses, for example because the folder is another user's.
pub(super) fn connect(data_dir: &Path) -> io::Result<Option<UnixStream>> {
    let attempt = short(data_dir, NAME).and_then(|short| UnixStream::connect(short.path));
    match attempt {
        Ok(stream) => Ok(Some(stream)),
        // No folder, no socket in it, or one that a crashed server left behind.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_private_replaces_a_dead_one_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(connect(folder.path()).unwrap().is_none());
        // What a crashed server leaves: names without a listener.
        drop(UnixListener::bind(folder.path().join(NAME)).unwrap());
        drop(UnixListener::bind(folder.path().join(NEW_NAME)).unwrap());
        assert!(connect(folder.path()).unwrap().is_none());

        let socket = AdminSocket::bind(folder.path()).unwrap();
        let mode = folder.path().join(NAME).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!folder.path().join(NEW_NAME).exists());
        assert!(connect(folder.path()).unwrap().is_some());
        drop(socket);
        assert!(!folder.path().join(NAME).exists());
    }

    #[test]
    fn long_paths_work() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("x".repeat(120));
        fs::create_dir(&folder).unwrap();
        assert!(connect(&folder).unwrap().is_none());
        let _socket = AdminSocket::bind(&folder).unwrap();
        assert!(folder.join(NAME).exists());
        assert!(connect(&folder).unwrap().is_some());
    }

    #[test]
    fn a_folder_that_is_absent_has_no_server() {
        assert!(connect(Path::new("no/such/folder")).unwrap().is_none());
        assert!(connect(&Path::new("no").join("x".repeat(120))).unwrap().is_none());
    }
}
