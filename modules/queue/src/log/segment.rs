//! A segment's file: made, checked, and written at its end.
//!
//! What must hold: a frame is written once, behind everything that was flushed; what was written
//! only in part is cut off, and the cut flushed, before anything else is written or said; behind
//! the last frame there are only zeros. The room of a segment is taken when it is made, and zeros
//! are written a stretch ahead, so that flushing a frame has no change of the file's layout to
//! flush with it.
//!
//! ```text
//! header, 64 bytes: "WAYQLOG1" | format version u32 | number u32 | generation u32 | last merged
//!                   segment u32 | first id u64 | CRC of these u32 | zeros
//! ```

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use crate::error::OpenError;
use crate::fs::{FileSystem, is_full, read_exact, write_all};
use crate::log::index::{LogFile, file_names};
use crate::log::reader::Reader;

const MAGIC: &[u8; 8] = b"WAYQLOG1";
/// Where the first frame begins.
pub(crate) const HEADER: u32 = 64;

/// How far ahead zeros are written; writes that are longer than half of it need none.
const AHEAD: u64 = 1024 * 1024;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u32,
    pub(crate) generation: u32,
    pub(crate) last: u32,
    pub(crate) first_id: u64,
}

/// Makes a segment's file, takes `capacity` bytes for it and flushes it. The caller flushes the
/// folder.
pub(crate) fn create(
    fs: &dyn FileSystem,
    folder: &Path,
    header: SegmentHeader,
    capacity: u64,
) -> io::Result<Arc<LogFile>> {
    let path = folder.join(file_names(header.number, header.generation).0);
    let file = fs.create(&path)?;
    let made = (|| {
        file.allocate(capacity)?;
        let mut bytes = Vec::with_capacity(HEADER as usize);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&crate::FORMAT_VERSION.to_le_bytes());
        for number in [header.number, header.generation, header.last] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&header.first_id.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.resize(HEADER as usize, 0);
        write_all(&*file, &mut [IoSlice::new(&bytes)], 0)?;
        file.sync()
    })();
    if let Err(error) = made {
        // It is in nobody's way if it stays: the next open removes it.
        let _ = fs.remove(&path);
        return Err(error);
    }
    Ok(Arc::new(LogFile { file, path }))
}

/// Reads and checks the header of a segment's file.
pub(crate) fn read_header(log: &LogFile) -> Result<SegmentHeader, OpenError> {
    let damaged = |what: &str| OpenError::damaged(&log.path, 0, what);
    let mut bytes = [0; HEADER as usize];
    read_exact(&*log.file, &mut bytes, 0).map_err(|_| damaged("the segment has no header"))?;
    let mut read = Reader(&bytes);
    if read.take(8) != Some(MAGIC) {
        return Err(damaged("this is no segment of a queue"));
    }
    // As many bytes were read as the header has.
    let version = read.u32().unwrap_or_default();
    if version != crate::FORMAT_VERSION {
        let path = log.path.clone();
        return Err(OpenError::Version { path, found: version, known: crate::FORMAT_VERSION });
    }
    let mut number = || read.u32().unwrap_or_default();
    let (number, generation, last) = (number(), number(), number());
    let first_id = read.u64().unwrap_or_default();
    let covered = bytes.len() - read.0.len();
    if read.u32() != Some(crc32fast::hash(&bytes[..covered])) {
        return Err(damaged("the header's check sum is wrong"));
    }
    Ok(SegmentHeader { number, generation, last, first_id })
}

/// How a write failed.
pub(crate) enum WriteFailure {
    /// No room; nothing of it is in the log.
    Full,
    /// What is in the log is open.
    Stop(io::Error),
}

/// The end of the active segment.
pub(crate) struct Writer {
    pub(crate) log: Arc<LogFile>,
    pub(crate) number: u32,
    /// Where the next frame goes.
    pub(crate) position: u64,
    /// Up to where the file was flushed.
    pub(crate) synced: u64,
    /// Up to where there are zeros that were written, not only promised by the file system.
    zeroed: u64,
    /// Bytes that were taken for it.
    pub(crate) capacity: u64,
}

impl Writer {
    /// Writes behind `position`, up to which everything was flushed if `synced` says so.
    pub(crate) fn new(log: Arc<LogFile>, number: u32, position: u64, capacity: u64) -> Self {
        Self { log, number, position, synced: position, zeroed: position, capacity }
    }

    /// Writes frames of `len` bytes at the end. The position moves only on success.
    pub(crate) fn write(&mut self, slices: &mut [IoSlice<'_>], len: u64) -> Result<(), WriteFailure> {
        let end = self.position + len;
        if end > self.zeroed {
            self.zero_ahead(end, len)?;
        }
        match write_all(&*self.log.file, slices, self.position) {
            Ok(()) => {
                self.position = end;
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.cut().map_or_else(|e| Err(WriteFailure::Stop(e)), |()| Err(WriteFailure::Full))
            }
            Err(error) => Err(WriteFailure::Stop(error)),
        }
    }

    fn zero_ahead(&mut self, end: u64, len: u64) -> Result<(), WriteFailure> {
        let target = (end + AHEAD).min(self.capacity);
        self.zeroed = end;
        if len > AHEAD / 2 || target <= end {
            return Ok(());
        }
        let mut at = end;
        let mut pieces = Vec::with_capacity(17);
        while at < target {
            let piece = (target - at).min(ZEROS.len() as u64);
            pieces.push(IoSlice::new(&ZEROS[..piece as usize]));
            at += piece;
        }
        match write_all(&*self.log.file, &mut pieces, end) {
            Ok(()) => self.zeroed = target,
            // Only the head start is lost; whether the frame fits shows when it is written.
            Err(error) if is_full(&error) => {}
            Err(error) => return Err(WriteFailure::Stop(error)),
        }
        Ok(())
    }

    /// Flushes what was written. After an error the log must not be written again.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.log.file.sync()?;
        self.synced = self.position;
        Ok(())
    }

    /// Cuts off what stands behind the position, and flushes the cut: otherwise whole frames of a
    /// batch that was refused could be found there after a power loss.
    fn cut(&mut self) -> io::Result<()> {
        self.log.file.set_len(self.position)?;
        self.log.file.sync()?;
        self.synced = self.position;
        self.zeroed = self.position;
        match self.log.file.allocate(self.capacity) {
            // The file grows again when there is room.
            Err(error) if !is_full(&error) => Err(error),
            _ => Ok(()),
        }
    }
}
