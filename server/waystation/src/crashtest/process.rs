//! The server that is killed, and the folder it works in.
//!
//! What must hold: only the process that was started here is killed; it does not outlive its
//! value, and neither does the folder, unless it is to be kept; the server hears nothing of the
//! configuration of others.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{Failure, HOST};

/// How many lines of the server's log are shown when it ends by itself.
const LINES: usize = 12;
/// How long it may take to end when it is asked to.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A temporary folder.
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Makes a folder that only this user can read.
    pub(super) fn new(keep: bool) -> Result<Self, Failure> {
        let name = format!("waystation-crashtest-{}-{:08x}", std::process::id(), super::seed() as u32);
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Failure::Impossible(format!("the folder {} cannot be made: {error}", path.display()))
        })?;
        Ok(Self { path, keep })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing can be done about a folder that cannot be removed; the system clears such folders.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// How the server is started.
pub(super) struct Server<'f> {
    folder: &'f Folder,
    durability: &'static str,
    /// Where it listens.
    pub(super) address: SocketAddr,
    child: Option<Child>,
}

impl<'f> Server<'f> {
    /// A server that has not started. Its port is one that was free just now.
    pub(super) fn new(folder: &'f Folder, durability: &'static str) -> Result<Self, Failure> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(|error| Failure::Impossible(format!("127.0.0.1 cannot be listened on: {error}")))?;
        Ok(Self { folder, durability, address, child: None })
    }

    /// Makes accounts, on the folder itself. They are stored whatever the durability is: it is
    /// messages that the test is about.
    pub(super) fn add_accounts(&self, accounts: &str) -> Result<(), Failure> {
        let mut command = self.command("fsync")?;
        command.args(["user", "add", "--bulk", "-"]).stdin(Stdio::piped());
        let mut child = command.spawn().map_err(|error| cannot_start(&error))?;
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(accounts.as_bytes()));
        let status = child.wait().map_err(|error| cannot_start(&error))?;
        match written {
            Some(Ok(())) if status.success() => Ok(()),
            _ => Err(self.ended("making the accounts", status)),
        }
    }

    /// Starts it. Clients find out when it listens.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let mut command = self.command(self.durability)?;
        command.arg("serve").stdin(Stdio::null());
        self.child = Some(command.spawn().map_err(|error| cannot_start(&error))?);
        Ok(())
    }

    /// An error if it has ended although nobody killed it.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        let status = match &mut self.child {
            Some(child) => child.try_wait().map_err(|error| cannot_start(&error))?,
            None => None,
        };
        status.map_or(Ok(()), |status| Err(self.ended("the server", status)))
    }

    /// Kills it with SIGKILL, and returns when it is gone.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill()?;
        child.wait().map(drop)
    }

    /// Asks it to end, so that what it still gathers is in the folder; kills it if it does not.
    fn stop(&mut self) -> io::Result<()> {
        // One that has ended is waited for, and its number may be another's.
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_none()
            && let Ok(pid) = i32::try_from(child.id())
        {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
            let deadline = Instant::now() + STOP_WITHIN;
            while Instant::now() < deadline && child.try_wait()?.is_none() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // A process that was waited for is not killed any more.
        self.kill()
    }

    fn command(&self, durability: &str) -> Result<Command, Failure> {
        let program = std::env::current_exe().map_err(|error| cannot_start(&error))?;
        let log = self.log().map_err(|error| cannot_start(&error))?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WAYSTATION_") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.folder.path()).stdout(Stdio::null()).stderr(log);
        command.args(["--data-dir", "data"]);
        for setting in [
            format!("hosts=[\"{HOST}\"]"),
            format!("listen.c2s=[\"{}\"]", self.address),
            "listen.c2s_tls=[]".to_owned(),
            "listen.http=[]".to_owned(),
            "listen.s2s=[]".to_owned(),
            "listen.s2s_tls=[]".to_owned(),
            "listen.https=[]".to_owned(),
            format!("durability=\"{durability}\""),
            // Nothing leaves this machine.
            "tls.required=false".to_owned(),
            // Each restart brings all clients at once.
            "limits.disabled=true".to_owned(),
            "sasl.iterations=4096".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        Ok(command)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(self.log_path())
    }

    fn ended(&self, what: &str, status: ExitStatus) -> Failure {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
        Failure::Impossible(format!("{what} ended by itself ({status}); its log ends with\n{last}"))
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // It is gone already, or cannot be ended by us.
        let _ = self.stop();
    }
}

fn cannot_start(error: &io::Error) -> Failure {
    Failure::Impossible(format!("the server cannot be started: {error}"))
}
