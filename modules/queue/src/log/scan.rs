//! Reads the frames of a segment one after the other, and judges what stands where they end.
//!
//! What must hold: a torn end is told from damage. Every frame says up to where the segment was
//! flushed when it was written; an intact frame that says so of a place which cannot be read now
//! proves that what stood there was acknowledged, or could have been.

use std::io;

use crate::error::OpenError;
use crate::fs::read_exact;
use crate::log::frame::{ALIGN, Flaw, Frame, HEADER, Header};
use crate::log::index::LogFile;

/// How much is read at once.
const WINDOW: usize = 1024 * 1024;

/// A part of a file in memory.
pub(crate) struct Window<'a> {
    log: &'a LogFile,
    pub(crate) len: u64,
    bytes: Vec<u8>,
    start: u64,
}

impl<'a> Window<'a> {
    pub(crate) fn new(log: &'a LogFile) -> Result<Self, OpenError> {
        let len = log.file.size().map_err(OpenError::io("look at", &log.path))?;
        Ok(Self { log, len, bytes: Vec::new(), start: 0 })
    }

    /// The bytes from `offset` on: at least `wanted` of them unless the file ends before.
    pub(crate) fn get(&mut self, offset: u64, wanted: usize) -> Result<&[u8], OpenError> {
        let there = (self.len.saturating_sub(offset)).min(wanted as u64);
        let covered = offset >= self.start && offset + there <= self.start + self.bytes.len() as u64;
        if !covered {
            let take = self.len.saturating_sub(offset).min(wanted.max(WINDOW) as u64);
            self.bytes.resize(take as usize, 0);
            self.start = offset;
            read_exact(&*self.log.file, &mut self.bytes, offset)
                .map_err(|source: io::Error| OpenError::io("read", &self.log.path)(source))?;
        }
        Ok(&self.bytes[(offset - self.start) as usize..])
    }

    /// The frame that begins at an offset, or what is wrong with it.
    pub(crate) fn frame(&mut self, offset: u64, segment: u32) -> Result<Result<Frame<'_>, Flaw>, OpenError> {
        let Some(header) = Header::parse(self.get(offset, HEADER)?) else { return Ok(Err(Flaw::Frame)) };
        if header.segment != u64::from(segment) || offset + u64::from(header.len) > self.len {
            return Ok(Err(Flaw::Frame));
        }
        Ok(Frame::check(self.get(offset, header.len as usize)?))
    }

    /// The first place from `offset` on where a whole frame begins, and its header.
    pub(crate) fn next_frame(
        &mut self,
        offset: u64,
        segment: u32,
    ) -> Result<Option<(u64, Header)>, OpenError> {
        let mut at = offset.next_multiple_of(ALIGN as u64);
        while at + (HEADER as u64) <= self.len {
            if Header::parse(self.get(at, HEADER)?).is_some()
                && let Ok(frame) = self.frame(at, segment)?
            {
                return Ok(Some((at, frame.header)));
            }
            at += ALIGN as u64;
        }
        Ok(None)
    }

    /// True when there are only zeros from `offset` on.
    pub(crate) fn is_zero(&mut self, mut offset: u64) -> Result<bool, OpenError> {
        while offset < self.len {
            let bytes = self.get(offset, 1)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += bytes.len() as u64;
        }
        Ok(true)
    }
}

/// What stands behind the last frame of the active segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Zeros.
    Clean,
    /// The remains of a group that was not flushed; `whole` frames of it can be read.
    Torn { whole: u64 },
    /// What can no longer be read had been flushed: a frame that was found at `witness` says so.
    Damaged { witness: u64 },
}

/// Judges what stands from `offset` on, where no frame begins that belongs there.
pub(crate) fn judge(window: &mut Window<'_>, offset: u64, segment: u32) -> Result<End, OpenError> {
    if window.is_zero(offset)? {
        return Ok(End::Clean);
    }
    let mut whole = 0;
    let mut at = offset + ALIGN as u64;
    while let Some((found, header)) = window.next_frame(at, segment)? {
        if u64::from(header.synced) > offset {
            return Ok(End::Damaged { witness: found });
        }
        whole += 1;
        at = found + u64::from(header.len);
    }
    Ok(End::Torn { whole })
}
