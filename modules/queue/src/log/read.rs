//! Reads records: finds where they stand, then reads and checks them.
//!
//! What must hold: a record is served only if its CRC is right and it is the one that was asked
//! for; a damaged one ends an answer, so that a reader meets it as an error of its own.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use waystation_core::queue::{Leased, QueueError, Record, RecordId};

use crate::check;
use crate::fs::read_exact;
use crate::log::committer::{Shared, page_error};
use crate::log::find::{Found, Progress, Scan};
use crate::log::frame::{RECORD_HEADER, StoredRecord};
use crate::log::recover::moment;
use crate::log::state::Queue;

/// Longest stretch of a file that is read at once for several records.
const STRETCH: u64 = 256 * 1024;
/// Bytes that are read in vain rather than asking the system twice.
const GAP: u64 = 4 * 1024;

impl Shared {
    /// Records of a queue, as [`Scan::new`] limits them, that are `wanted`.
    pub(crate) fn find(
        &self,
        queue: &str,
        mut scan: Scan,
        wanted: impl Fn(&Queue, u64) -> bool,
    ) -> Result<Vec<Found>, QueueError> {
        loop {
            let progress = scan.advance(&self.state(), &self.pages, queue, &wanted);
            match progress {
                Ok(Progress::Done) => return Ok(scan.found),
                Ok(Progress::Again) => {}
                Err(miss) => self.pages.fetch(&miss).map_err(|error| page_error(&miss, &error))?,
            }
        }
    }

    /// Leases free records of a queue in memory; the attempts are still to be committed. Until the
    /// leases are handed out they have no end, for only then does their time begin.
    pub(crate) fn claim(&self, name: &str, max: usize) -> Result<Vec<(Found, Leased)>, QueueError> {
        let now = Instant::now();
        let no_end = now + check::wait(Duration::MAX);
        let found = self.find(name, Scan::new(0, max, usize::MAX), |queue, id| queue.is_free(id, now))?;
        let mut state = self.state_mut();
        let mut claimed = Vec::with_capacity(found.len());
        for found in found {
            let id = found.slot.id;
            // Someone else may have been quicker. One that was acknowledged meanwhile is found out
            // when the attempt was committed.
            if !state.queue(name).is_some_and(|queue| queue.is_free(id, now)) {
                continue;
            }
            let Some(lease) = state.lease(name, id, no_end) else { continue };
            let record = Record {
                id: RecordId(id),
                payload: Bytes::new(),
                since: SystemTime::UNIX_EPOCH,
                attempts: found.attempts,
            };
            claimed.push((found, Leased { record, lease, until: SystemTime::UNIX_EPOCH }));
        }
        Ok(claimed)
    }
}

/// Reads what was found, in order, up to the first damaged record; an error when that is the first.
pub(crate) fn load(found: &[Found]) -> Result<Vec<Record>, QueueError> {
    let mut records = Vec::with_capacity(found.len());
    let mut buffer = Vec::new();
    let mut rest = found;
    while let Some(first) = rest.first() {
        let begin = u64::from(first.slot.offset);
        let mut end = begin;
        let mut together = 0;
        for next in rest {
            let offset = u64::from(next.slot.offset);
            let next_end = offset + RECORD_HEADER as u64 + u64::from(next.slot.len);
            let near = offset >= end && offset - end <= GAP && next_end - begin <= STRETCH;
            if together > 0 && !(Arc::ptr_eq(&next.log, &first.log) && near) {
                break;
            }
            end = next_end;
            together += 1;
        }
        let (stretch, behind) = rest.split_at(together);
        rest = behind;
        buffer.resize((end - begin) as usize, 0);
        match read_exact(&*first.log.file, &mut buffer, begin) {
            Ok(()) => {}
            // Some of it may be beyond the end of a file that was cut: each is then tried alone.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                if together > 1 {
                    for one in stretch {
                        match load(std::slice::from_ref(one)) {
                            Ok(one) => records.extend(one),
                            Err(error) if records.is_empty() => return Err(error),
                            Err(_) => return Ok(records),
                        }
                    }
                    continue;
                }
                buffer.clear();
            }
            Err(error) => {
                return Err(QueueError::Io(format!("reading {}: {error}", first.log.path.display())));
            }
        }
        for one in stretch {
            let at = u64::from(one.slot.offset) - begin;
            let stored = buffer.get(at as usize..).and_then(StoredRecord::parse);
            let right = stored.filter(|s| s.id == one.slot.id && s.payload.len() == one.slot.len as usize);
            match right {
                Some(stored) => records.push(Record {
                    id: RecordId(stored.id),
                    // Copied, so that a small record does not keep a large buffer in memory.
                    payload: Bytes::copy_from_slice(stored.payload),
                    since: moment(stored.since_ms),
                    attempts: one.attempts,
                }),
                None if records.is_empty() => return Err(damaged(one)),
                None => return Ok(records),
            }
        }
    }
    Ok(records)
}

fn damaged(found: &Found) -> QueueError {
    QueueError::Corrupt {
        record: Some(RecordId(found.slot.id)),
        detail: format!(
            "record {} at byte {} of {}",
            found.slot.id,
            found.slot.offset,
            found.log.path.display()
        ),
    }
}
