//! What goes wrong: a server is killed or stopped, connections are reset, the disk is full.
//!
//! What must stay true: every fault that begins in the history ends in it, all
//! servers run at the end, and a full disk is a small file system of its own,
//! which goes with the run.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::servers::Servers;
use super::{Failure, Options, Orders, Workload};
use crate::client::Scene;
use crate::history::{Ev, Event};
use crate::rng::Rng;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::sync::watch;

/// The size of the file system that gets full.
const DISK: &str = "size=96m";
/// How long servers live between two kills, in milliseconds; the second is for two of them, which need some
/// time to find each other again.
const LIFE: [u64; 2] = [1_000, 3_000];
/// How long connections live between two storms, in milliseconds.
const CALM: (u64, u64) = (100, 1_000);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nemesis {
    /// Nothing.
    None,
    /// A server is killed (SIGKILL) and started again.
    Kill,
    /// A server is stopped (SIGSTOP) for a while.
    Stop,
    /// All connections are reset at once.
    Reset,
    /// The servers' disk is full for a while.
    DiskFull,
}

impl Nemesis {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::None, Self::Kill, Self::Stop, Self::Reset, Self::DiskFull];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kill => "kill9",
            Self::Stop => "stop",
            Self::Reset => "reset",
            Self::DiskFull => "disk-full",
        }
    }

    /// Finds one by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|n| n.name() == name)
    }
}

/// Where the server keeps its data.
#[derive(Debug)]
pub(super) struct Field {
    disk: Option<Disk>,
}

impl Field {
    pub(super) fn prepare(nemesis: Nemesis) -> Result<Self, Failure> {
        let disk = if nemesis == Nemesis::DiskFull { Some(Disk::mount()?) } else { None };
        Ok(Self { disk })
    }

    /// A folder for the server.
    pub(super) fn folder(&self) -> Result<TempDir, Failure> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("waystation-check-");
        let made = match &self.disk {
            Some(disk) => builder.tempdir_in(disk.folder.path()),
            None => builder.tempdir(),
        };
        made.map_err(|e| Failure::LeftOut(format!("no temporary folder: {e}")))
    }
}

/// A small file system in memory.
#[derive(Debug)]
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn mount() -> Result<Self, Failure> {
        let left_out = |e: &dyn std::fmt::Display| {
            Failure::LeftOut(format!(
                "a full disk needs a tmpfs of its own, which may not be mounted here: {e}"
            ))
        };
        let folder = TempDir::new().map_err(|e| left_out(&e))?;
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(DISK))
            .map_err(|e| left_out(&e))?;
        Ok(Self { folder })
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }

    /// Writes until no byte more fits, and again as long as something was freed.
    fn fill(&self) -> std::io::Result<()> {
        let mut file = File::options().create(true).append(true).open(self.filler())?;
        for size in [1 << 20, 4096, 1] {
            let block = vec![0u8; size];
            while file.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) {
        // A file that is not there needs no removal.
        let _gone = std::fs::remove_file(self.filler());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detached, it goes as soon as the last file in it is closed.
        let _gone = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}

/// The nemesis at work. It blocks, and belongs on a thread of its own.
pub(super) struct Demon {
    servers: Servers,
    scene: Arc<Scene>,
    options: Arc<Options>,
    field: Field,
    orders: watch::Sender<Orders>,
    rng: Rng,
    events: Vec<Event>,
}

impl Demon {
    pub(super) fn new(
        servers: Servers,
        scene: Arc<Scene>,
        options: Arc<Options>,
        field: Field,
        orders: watch::Sender<Orders>,
    ) -> Self {
        let rng = Rng::fork(options.seed, 0);
        Self { servers, scene, options, field, orders, rng, events: Vec::new() }
    }

    /// Does its work, and leaves servers that run.
    pub(super) fn torment(&mut self, progress: fn(&str)) -> Result<(), Failure> {
        let cycles = self.options.cycles;
        for cycle in 1..=cycles {
            match self.options.nemesis {
                Nemesis::None => std::thread::sleep(Duration::from_secs(1)),
                Nemesis::Kill => self.kill()?,
                Nemesis::Stop => self.stop()?,
                Nemesis::Reset => self.reset(),
                Nemesis::DiskFull => self.fill_disk()?,
            }
            if cycle % 10 == 0 || cycle == cycles {
                progress(&format!("cycle {cycle} of {cycles}"));
            }
        }
        Ok(())
    }

    /// Gives the servers and the history back.
    pub(super) fn end(self) -> (Servers, Vec<Event>, Field) {
        (self.servers, self.events, self.field)
    }

    /// Notes a fault of a server.
    fn note(&mut self, server: usize, on: bool) {
        let node = self.servers.nodes[server].name.to_owned();
        let kind = self.options.nemesis.name().to_owned();
        self.events.push(Event { t: self.scene.now(), s: 0, ev: Ev::Fault { kind, node, on } });
    }

    /// Lets the clients work for a random time, in milliseconds.
    fn wait(&mut self, low: u64, high: u64) {
        std::thread::sleep(Duration::from_millis(self.rng.between(low, high)));
    }

    /// Any of the servers. Where there is one, nothing is drawn.
    fn victim(&mut self) -> usize {
        let count = self.servers.nodes.len();
        if count > 1 { self.rng.index(count) } else { 0 }
    }

    /// For how long servers live at most.
    fn life(&self) -> u64 {
        LIFE[usize::from(self.options.workload == Workload::Federation)]
    }

    fn kill(&mut self) -> Result<(), Failure> {
        self.wait(0, self.life());
        let victim = self.victim();
        self.note(victim, true);
        let server = &mut self.servers.nodes[victim].server;
        server.kill()?;
        server.start_again()?;
        self.note(victim, false);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.wait(0, self.life());
        let victim = self.victim();
        self.note(victim, true);
        self.servers.nodes[victim].server.signal(Signal::SIGSTOP)?;
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let (low, high) = self.options.pause;
        self.wait(millis(low), millis(high));
        self.servers.nodes[victim].server.signal(Signal::SIGCONT)?;
        self.note(victim, false);
        Ok(())
    }

    fn reset(&mut self) {
        self.wait(CALM.0, CALM.1);
        self.note(0, true);
        self.orders.send_modify(|orders| orders.resets += 1);
        self.note(0, false);
    }

    fn fill_disk(&mut self) -> Result<(), Failure> {
        self.wait(500, 1_500);
        self.note(0, true);
        if let Some(disk) = &self.field.disk {
            disk.fill().map_err(|e| Failure::LeftOut(format!("the disk could not be filled: {e}")))?;
        }
        self.wait(1_000, 3_000);
        if let Some(disk) = &self.field.disk {
            disk.free();
        }
        self.note(0, false);
        Ok(())
    }
}
