//! The checkpoint: what the log held at one position, so that nothing before it is read again.
//!
//! What must hold: it is written under another name, flushed, and renamed, so that there is always
//! one whole checkpoint; it names every sealed segment that holds something, so that it is also
//! what decides whether a segment, or what a compaction made of it, belongs to the log; everything
//! before its position was flushed before it was written.
//!
//! ```text
//! "WAYQCKP1" | format version u32 | CRC of the rest u32 | length of the rest u64 | rest:
//!   written at, ms since 1970 u64 | next id u64
//!   active segment u32 | its first id u64 | position in it u32
//!   sealed segments u32, each: number u32 | generation u32 | live bytes u64 | slots u32 |
//!      1 and a bit per slot (acknowledged), in words of 64, or 0 when none is
//!   marks u64, each: key u128 | value u64
//!   queues u64, each: name (u16, UTF-8) | bytes in sealed segments u64
//!      slots in the active segment u32, each: id u64 | offset u32 | length u32
//!      special records u32, each: id u64 | attempts u32 | ms to wait u64 | 1 and the reason
//!         (u16, UTF-8) and the length of its payload u32 when it is parked, or 0
//! ```

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::time::{Duration, Instant};

use waystation_core::queue::QueueName;

use crate::check;
use crate::error::OpenError;
use crate::fs::{FileSystem, read_exact, write_all};
use crate::log::index::Slot;
use crate::log::marks::Map;
use crate::log::queue::{Queue, Special};
use crate::log::reader::Reader;
use crate::log::snapshot::Head;
use crate::names::Named;

const MAGIC: &[u8; 8] = b"WAYQCKP1";
const HEADER: usize = 24;

/// Name of the checkpoint in the folder.
pub(crate) const NAME: &str = "checkpoint";
/// The same while it is being written.
pub(crate) const NEW_NAME: &str = "checkpoint.new";

/// From where on the log is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) segment: u32,
    pub(crate) first_id: u64,
    pub(crate) offset: u32,
}

/// How a checkpoint failed.
pub(crate) enum Failure {
    /// No room; the old checkpoint is in force, and the log may go on.
    Full,
    /// Which checkpoint is in force is open.
    Stop(io::Error),
}

/// The bytes of a checkpoint; `queues` takes as much of their bytes as it likes each time it is
/// called, counts them, and says when that was all.
pub(crate) fn encode(head: &Head, mut queues: impl FnMut(&mut Vec<u8>, &mut u64) -> bool) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    put64(&mut out, head.time_ms);
    put64(&mut out, head.next_id);
    put32(&mut out, head.position.segment);
    put64(&mut out, head.position.first_id);
    put32(&mut out, head.position.offset);

    put32(&mut out, head.sealed.len() as u32);
    for segment in &head.sealed {
        put32(&mut out, segment.number);
        put32(&mut out, segment.generation);
        put64(&mut out, segment.live_bytes);
        put32(&mut out, segment.slots);
        out.push(u8::from(segment.done.is_some()));
        if let Some(done) = &segment.done {
            done.iter().for_each(|word| put64(&mut out, *word));
        }
    }

    // The queues first, for until they are copied what changes has to be copied for them.
    let (mut bytes, mut count) = (Vec::new(), 0);
    while !queues(&mut bytes, &mut count) {}
    put64(&mut out, head.marks.len() as u64);
    for (key, value) in head.marks.iter() {
        out.extend_from_slice(&key.to_le_bytes());
        put64(&mut out, *value);
    }
    put64(&mut out, count);
    out.append(&mut bytes);

    let crc = crc32fast::hash(&out[HEADER..]);
    let len = (out.len() - HEADER) as u64;
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&crate::FORMAT_VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out[16..24].copy_from_slice(&len.to_le_bytes());
    out
}

/// Puts what a checkpoint says of a queue at a moment; nothing when the queue holds nothing.
pub(crate) fn put_queue(out: &mut Vec<u8>, queue: &Queue, now: Instant) {
    if queue.is_empty() {
        return;
    }
    put_text(out, &queue.name);
    put64(out, queue.sealed_bytes());
    let at = out.len();
    put32(out, 0);
    let mut slots = 0_u32;
    for slot in queue.tail_from(0) {
        put64(out, slot.id);
        put32(out, slot.offset);
        put32(out, slot.len);
        slots += 1;
    }
    out[at..at + 4].copy_from_slice(&slots.to_le_bytes());
    put32(out, queue.special.len() as u32);
    for (id, special) in &queue.special {
        put64(out, *id);
        put32(out, special.attempts);
        let wait = special.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        put64(out, millis(wait));
        out.push(u8::from(special.parked.is_some()));
        if let Some((reason, len)) = &special.parked {
            put_text(out, reason);
            put32(out, *len);
        }
    }
}

/// Puts a checkpoint in force.
pub(crate) fn write(fs: &dyn FileSystem, folder: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let (new, path) = (folder.join(NEW_NAME), folder.join(NAME));
    let prepare = || {
        let file = fs.create(&new)?;
        write_all(&*file, &mut [IoSlice::new(bytes)], 0)?;
        file.sync()?;
        fs.rename(&new, &path)
    };
    match prepare() {
        Ok(()) => {}
        // The file is written anew the next time, so that no flush is repeated on lost pages.
        Err(error) if crate::fs::is_full(&error) => {
            let _ = fs.remove(&new);
            return Err(Failure::Full);
        }
        Err(error) => return Err(Failure::Stop(error)),
    }
    fs.sync_folder(folder).map_err(Failure::Stop)
}

/// What a checkpoint says of a sealed segment.
pub(crate) struct SealedEntry {
    pub(crate) number: u32,
    pub(crate) generation: u32,
    pub(crate) live_bytes: u64,
    pub(crate) slots: u32,
    pub(crate) done: Vec<u64>,
}

/// What a checkpoint says of a queue.
pub(crate) struct QueueEntry {
    pub(crate) name: QueueName,
    pub(crate) tail: Vec<Slot>,
    pub(crate) special: Vec<(u64, Special)>,
}

/// A checkpoint that was read.
pub(crate) struct Checkpoint {
    pub(crate) next_id: u64,
    pub(crate) position: Position,
    pub(crate) sealed: Vec<SealedEntry>,
    pub(crate) marks: Map,
    pub(crate) queues: Vec<QueueEntry>,
    pub(crate) sealed_bytes: HashMap<QueueName, u64>,
}

/// Reads the checkpoint; `None` when there is none.
pub(crate) fn read(fs: &dyn FileSystem, folder: &Path, now_ms: u64) -> Result<Option<Checkpoint>, OpenError> {
    let path = folder.join(NAME);
    let file = match fs.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::io("open", &path)(error)),
    };
    let len = file.size().map_err(OpenError::io("look at", &path))?;
    let mut bytes = vec![0; len as usize];
    read_exact(&*file, &mut bytes, 0).map_err(OpenError::io("read", &path))?;
    let damaged = |what: &str| OpenError::damaged(&path, 0, what);
    let mut header = Reader(&bytes);
    if header.take(8) != Some(MAGIC) {
        return Err(damaged("this is no checkpoint"));
    }
    let version = header.u32().ok_or_else(|| damaged("the header is cut off"))?;
    if version != crate::FORMAT_VERSION {
        return Err(OpenError::Version { path, found: version, known: crate::FORMAT_VERSION });
    }
    let (crc, len) = (header.u32(), header.u64());
    if len != Some(header.0.len() as u64) || crc != Some(crc32fast::hash(header.0)) {
        return Err(damaged("the checkpoint's check sum is wrong"));
    }
    let rest = header.0;
    decode(rest, now_ms).map(Some).ok_or_else(|| damaged("the checkpoint contradicts itself"))
}

fn decode(bytes: &[u8], now_ms: u64) -> Option<Checkpoint> {
    let mut read = Reader(bytes);
    let passed = now_ms.saturating_sub(read.u64()?);
    let now = Instant::now();
    let next_id = read.u64()?;
    let position = Position { segment: read.u32()?, first_id: read.u64()?, offset: read.u32()? };
    let mut sealed = Vec::new();
    for _ in 0..read.u32()? {
        let (number, generation) = (read.u32()?, read.u32()?);
        let (live_bytes, slots) = (read.u64()?, read.u32()?);
        let words = (slots as usize).div_ceil(64);
        let done = if read.u8()? == 0 {
            vec![0; words]
        } else {
            let words = read.take(words * 8)?.as_chunks().0;
            words.iter().map(|word| u64::from_le_bytes(*word)).collect()
        };
        sealed.push(SealedEntry { number, generation, live_bytes, slots, done });
    }
    let mut marks = Map::default();
    for _ in 0..read.u64()? {
        marks.insert(read.u128()?, read.u64()?);
    }
    let mut queues = Vec::new();
    let mut sealed_bytes = HashMap::new();
    for _ in 0..read.u64()? {
        let name = QueueName::from(read.text()?);
        sealed_bytes.insert(name.clone(), read.u64()?);
        let mut tail = Vec::new();
        for _ in 0..read.u32()? {
            tail.push(Slot { id: read.u64()?, offset: read.u32()?, len: read.u32()? });
        }
        let mut special = Vec::new();
        for _ in 0..read.u32()? {
            let (id, attempts, wait) = (read.u64()?, read.u32()?, read.u64()?);
            let parked = if read.u8()? == 0 { None } else { Some((read.text()?.into(), read.u32()?)) };
            let not_before = later(now, wait.saturating_sub(passed));
            special.push((id, Special { attempts, not_before, parked }));
        }
        queues.push(QueueEntry { name, tail, special });
    }
    read.0.is_empty().then_some(Checkpoint { next_id, position, sealed, marks, queues, sealed_bytes })
}

/// A moment some milliseconds from now; `None` for none.
fn later(now: Instant, wait_ms: u64) -> Option<Instant> {
    if wait_ms == 0 { None } else { now.checked_add(check::wait(Duration::from_millis(wait_ms))) }
}

/// Whole milliseconds, rounded up, so that a short wait stays one.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Names and reasons are shorter than 64 KiB; that was checked when they came in.
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
