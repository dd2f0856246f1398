//! A file system in memory that knows what was flushed, and fails on demand.
//!
//! What was written and not flushed survives a power cut in any subset of its 512-byte sectors;
//! what was created, renamed or removed and not flushed survives in any prefix. After a flush that
//! failed, what it should have flushed is never flushed again, though it can still be read: that
//! is what Linux does.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use waystation_queue::fs::{File, FileSystem, FreeSpace, Lock};

const SECTOR: u64 = 512;

/// The files that are there after a crash.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

/// What happens at the operation that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The operation fails, and does nothing.
    Error,
    /// Half of a write is done; then there is no room for some operations.
    Full { operations: u64 },
    /// A write is done by half, and says so.
    Short,
    /// The machine loses power in the middle of the operation.
    Cut,
}

/// A change of the files.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create(String),
    Rename(String, String),
    Remove(String),
    SyncFolder,
    Write(usize, u64, Vec<u8>),
    SetLen(usize, u64),
    Sync(usize),
}

#[derive(Clone, Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Pending {
    Sector(u64, Vec<u8>),
    Len(u64),
}

impl Pending {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Sector(offset, bytes) => {
                let (begin, end) = (*offset as usize, *offset as usize + bytes.len());
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[begin..end].copy_from_slice(bytes);
            }
            Self::Len(len) => data.resize(*len as usize, 0),
        }
    }
}

/// The files, as they are and as a power cut would leave them.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<Op>,
}

impl Disk {
    fn of(image: &Image) -> Self {
        let mut disk = Self::default();
        for (name, bytes) in image {
            disk.names.insert(name.clone(), disk.inodes.len());
            disk.inodes.push(Inode { data: bytes.clone(), durable: bytes.clone(), pending: Vec::new() });
        }
        disk.durable_names = disk.names.clone();
        disk
    }

    fn rename(names: &mut BTreeMap<String, usize>, op: &Op, created: usize) {
        match op {
            Op::Create(name) => {
                names.insert(name.clone(), created);
            }
            Op::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Op::Remove(name) => {
                names.remove(name);
            }
            _ => {}
        }
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(name) => {
                // A file that is there is emptied, which is a change of its own inode.
                if let Some(inode) = self.names.get(name).copied() {
                    self.apply(&Op::SetLen(inode, 0));
                    return;
                }
                self.inodes.push(Inode::default());
                self.names.insert(name.clone(), self.inodes.len() - 1);
                self.pending_names.push(op.clone());
            }
            Op::Rename(..) | Op::Remove(_) => {
                Self::rename(&mut self.names, op, 0);
                self.pending_names.push(op.clone());
            }
            Op::SyncFolder => {
                self.durable_names = self.names.clone();
                self.pending_names.clear();
            }
            Op::Write(inode, offset, bytes) => {
                let inode = &mut self.inodes[*inode];
                let mut at = *offset;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let take = (SECTOR - at % SECTOR).min(rest.len() as u64) as usize;
                    let sector = Pending::Sector(at, rest[..take].to_vec());
                    sector.apply(&mut inode.data);
                    inode.pending.push(sector);
                    rest = &rest[take..];
                    at += take as u64;
                }
            }
            Op::SetLen(inode, len) => {
                let inode = &mut self.inodes[*inode];
                let len = Pending::Len(*len);
                len.apply(&mut inode.data);
                inode.pending.push(len);
            }
            Op::Sync(inode) => {
                let inode = &mut self.inodes[*inode];
                // Not a copy of the data: what an earlier flush has lost stays lost.
                let pending = std::mem::take(&mut inode.pending);
                pending.iter().for_each(|write| write.apply(&mut inode.durable));
            }
        }
    }

    /// What a power cut leaves: `keep` decides on each write that was not flushed, and on how many
    /// changes of names survive.
    pub(crate) fn cut(&self, mut keep: impl FnMut() -> bool) -> Image {
        let mut names = self.durable_names.clone();
        let mut created =
            self.inodes.len() - self.pending_names.iter().filter(|op| matches!(op, Op::Create(_))).count();
        for op in &self.pending_names {
            if !keep() {
                break;
            }
            Self::rename(&mut names, op, created);
            created += usize::from(matches!(op, Op::Create(_)));
        }
        let mut left = |inode: usize| {
            let inode = &self.inodes[inode];
            let mut data = inode.durable.clone();
            inode.pending.iter().filter(|_| keep()).for_each(|write| write.apply(&mut data));
            data
        };
        names.into_iter().map(|(name, inode)| (name, left(inode))).collect()
    }

    /// Writes and changes of names that were not flushed.
    pub(crate) fn pending(&self) -> usize {
        self.pending_names.len() + self.inodes.iter().map(|inode| inode.pending.len()).sum::<usize>()
    }

    /// What the death of the process leaves.
    pub(crate) fn kill(&self) -> Image {
        self.names.iter().map(|(name, inode)| (name.clone(), self.inodes[*inode].data.clone())).collect()
    }
}

#[derive(Default)]
struct State {
    disk: Disk,
    operations: u64,
    fault: Option<(u64, Mode)>,
    /// The fault has happened.
    fired: bool,
    /// Nothing works any more: the power is gone.
    dead: bool,
    /// A flush has failed.
    flush_failed: bool,
    trace: Vec<Op>,
    locked: bool,
    /// Bytes that all files may have together, if that is limited.
    room: Option<u64>,
    /// How long a flush of a file takes.
    flush_time: Duration,
    /// How the thread that keeps the folder in shape is slowed down.
    pace: Pace,
    /// Operations of all other threads.
    others: u64,
    /// A flush of the thread that keeps the folder in shape has failed.
    keeping_failed: bool,
}

/// How the thread that keeps the folder in shape gets on beside the one that commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    #[default]
    Free,
    /// Each of its operations comes after some of others, unless these wait for it.
    Behind(u64),
    /// It stands still.
    Held,
}

/// How long no other thread does anything when all of them wait for the one that is behind.
const WAITING: Duration = Duration::from_micros(200);

/// Whether this is the thread that keeps the folder in shape.
fn keeps() -> bool {
    std::thread::current().name() == Some("queue-keep")
}

/// See the module's header.
#[derive(Clone, Default)]
pub(crate) struct Sim(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Sim {
    pub(crate) fn new(image: &Image, fault: Option<(u64, Mode)>) -> Self {
        let state = State { disk: Disk::of(image), fault, ..State::default() };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while it is held")
    }

    pub(crate) fn fired(&self) -> bool {
        self.state().fired
    }

    pub(crate) fn flush_failed(&self) -> bool {
        self.state().flush_failed
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Everything that was done, in order.
    pub(crate) fn trace(&self) -> Vec<Op> {
        self.state().trace.clone()
    }

    pub(crate) fn disk(&self) -> Disk {
        self.state().disk.clone()
    }

    /// Limits the bytes of all files together.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.state().room = room;
    }

    /// Lets every flush of a file take some time from now on.
    pub(crate) fn set_flush_time(&self, time: Duration) {
        self.state().flush_time = time;
    }

    /// Slows the thread that keeps the folder in shape down from now on.
    pub(crate) fn set_pace(&self, pace: Pace) {
        self.state().pace = pace;
        self.0.changed.notify_all();
    }

    pub(crate) fn keeping_failed(&self) -> bool {
        self.state().keeping_failed
    }

    fn act(&self, op: Op) -> io::Result<usize> {
        let mut state = self.state();
        if keeps() {
            let mut seen = state.others;
            let (began, asked) = (seen, Instant::now());
            loop {
                let behind = match state.pace {
                    Pace::Free => 0,
                    Pace::Behind(operations) => began + operations,
                    Pace::Held => u64::MAX,
                };
                // A test that fails must end all the same.
                if state.others >= behind || state.dead || asked.elapsed() > Duration::from_secs(10) {
                    break;
                }
                let (next, slept) =
                    self.0.changed.wait_timeout(state, WAITING).expect("no panic while it is held");
                state = next;
                if slept.timed_out() && state.others == seen && state.pace != Pace::Held {
                    break;
                }
                seen = state.others;
            }
        } else {
            state.others += 1;
            self.0.changed.notify_all();
        }
        state.act(op)
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl State {
    fn act(&mut self, op: Op) -> io::Result<usize> {
        if self.dead {
            return Err(io::Error::other("the power is gone"));
        }
        let now = self.operations;
        self.operations += 1;
        let len = if let Op::Write(_, _, bytes) = &op { bytes.len() } else { 0 };
        if let Some((at, mode)) = self.fault
            && now >= at
        {
            let first = now == at;
            self.fired = true;
            match (mode, &op) {
                (Mode::Error, Op::Sync(inode)) if first => {
                    self.disk.inodes[*inode].pending.clear();
                    self.note_failed_flush();
                    return Err(io::Error::other("injected"));
                }
                (Mode::Error, Op::SyncFolder) if first => {
                    self.note_failed_flush();
                    return Err(io::Error::other("injected"));
                }
                (Mode::Error, _) if first => return Err(io::Error::other("injected")),
                // Removing, cutting and flushing need no room.
                (
                    Mode::Full { operations },
                    Op::Write(..) | Op::Create(_) | Op::Rename(..) | Op::SetLen(..),
                ) if now < at + operations => match op {
                    Op::Write(inode, offset, bytes) if first && len > 1 => {
                        self.apply(Op::Write(inode, offset, bytes[..len / 2].to_vec()));
                        return Ok(len / 2);
                    }
                    Op::SetLen(inode, to) if to <= self.disk.inodes[inode].data.len() as u64 => {}
                    _ => return Err(full()),
                },
                (Mode::Short, Op::Write(inode, offset, bytes)) if first && len > 1 => {
                    self.apply(Op::Write(*inode, *offset, bytes[..len / 2].to_vec()));
                    return Ok(len / 2);
                }
                (Mode::Cut, _) if first => {
                    // What the operation would have done may still be done in part.
                    if !matches!(op, Op::Sync(_) | Op::SyncFolder) {
                        self.apply(op);
                    }
                    self.dead = true;
                    return Err(io::Error::other("the power is gone"));
                }
                _ => {}
            }
        }
        if self.room.is_some_and(|room| self.size_after(&op) > room) {
            return Err(full());
        }
        self.apply(op);
        Ok(len)
    }

    /// What a failed flush of a checkpoint has lost is nothing that a commit flushes: commits end
    /// soon, but one may be on its way.
    fn note_failed_flush(&mut self) {
        if keeps() {
            self.keeping_failed = true;
        } else {
            self.flush_failed = true;
        }
    }

    /// Bytes of all files once an operation was done; 0 for one that needs no room.
    fn size_after(&self, op: &Op) -> u64 {
        let (grown, to) = match op {
            Op::Write(inode, offset, bytes) => (*inode, offset + bytes.len() as u64),
            Op::SetLen(inode, len) => (*inode, *len),
            _ => return 0,
        };
        let before = self.disk.inodes[grown].data.len() as u64;
        if to <= before {
            return 0;
        }
        let all = self.disk.names.values().map(|inode| self.disk.inodes[*inode].data.len() as u64);
        all.sum::<u64>() + to - before
    }

    fn apply(&mut self, op: Op) {
        self.disk.apply(&op);
        self.trace.push(op);
    }
}

fn name(path: &Path) -> String {
    path.file_name().expect("a file's path").to_string_lossy().into_owned()
}

struct SimFile {
    sim: Sim,
    inode: usize,
}

struct SimLock(Sim);

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

impl FileSystem for Sim {
    fn make_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(self.state().disk.names.keys().cloned().collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.act(Op::Create(name(path)))?;
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inode = self.state().disk.names.get(&name(path)).copied();
        let inode = inode.ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { sim: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Op::Rename(name(from), name(to))).map(|_| ())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.state().disk.names.contains_key(&name(path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.act(Op::Remove(name(path))).map(|_| ())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        self.act(Op::SyncFolder).map(|_| ())
    }

    fn free_space(&self, _: &Path) -> io::Result<FreeSpace> {
        Ok(FreeSpace { available: 1 << 40, total: 1 << 40 })
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let was = std::mem::replace(&mut self.state().locked, true);
        Ok((!was).then(|| Box::new(SimLock(self.clone())) as Box<dyn Lock>))
    }
}

impl File for SimFile {
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let bytes = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.sim.act(Op::Write(self.inode, offset, bytes))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.sim.state();
        let data = &state.disk.inodes[self.inode].data;
        let rest = data.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        let time = self.sim.state().flush_time;
        if !time.is_zero() {
            std::thread::sleep(time);
        }
        self.sim.act(Op::Sync(self.inode)).map(|_| ())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.size()? < len { self.set_len(len) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.sim.act(Op::SetLen(self.inode, len)).map(|_| ())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.sim.state().disk.inodes[self.inode].data.len() as u64)
    }
}
