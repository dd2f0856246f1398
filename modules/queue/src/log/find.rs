//! Where the records of a queue stand: questions that may need pages of an index.
//!
//! What must hold: no file is read while the state is locked. A question that needs a page which
//! is not in memory answers with a [`Miss`]; who asks reads the page and asks again, and a scan
//! then goes on where it was.

use std::sync::Arc;

use crate::log::index::{LogFile, Miss, Pages, Slot};
use crate::log::state::{Place, Queue, State};

/// A record of a queue that was found, and the file that holds it.
pub(crate) struct Found {
    pub(crate) slot: Slot,
    pub(crate) log: Arc<LogFile>,
    pub(crate) attempts: u32,
    /// Why it is parked.
    pub(crate) reason: Option<Box<str>>,
}

/// A walk along a queue, oldest first, that can be interrupted.
pub(crate) struct Scan {
    /// The first id that was not looked at.
    pub(crate) next: u64,
    /// How many more to find, and how many bytes of payload.
    max: usize,
    max_bytes: u64,
    pub(crate) found: Vec<Found>,
}

/// How a scan ended.
pub(crate) enum Progress {
    Done,
    /// It has held the state long enough.
    Again,
}

/// Slots that are looked at before others get a turn at the state.
const STRIDE: usize = 4096;

impl Scan {
    /// Looks for at most `max` records from `next` on and, from the second on, for no more than
    /// `max_bytes` of payload.
    pub(crate) fn new(next: u64, max: usize, max_bytes: usize) -> Self {
        Self { next, max, max_bytes: max_bytes as u64, found: Vec::new() }
    }

    /// Takes up a slot that is wanted; false when that is enough.
    fn take(&mut self, queue: &Queue, slot: Slot, log: &Arc<LogFile>) -> bool {
        if self.found.len() >= self.max {
            return false;
        }
        let Some(rest) = self.max_bytes.checked_sub(u64::from(slot.len)) else {
            if self.found.is_empty() {
                self.push(queue, slot, log);
            }
            return false;
        };
        self.max_bytes = rest;
        self.push(queue, slot, log);
        self.found.len() < self.max
    }

    fn push(&mut self, queue: &Queue, slot: Slot, log: &Arc<LogFile>) {
        let special = queue.special.get(&slot.id);
        let attempts = special.map_or(0, |special| special.attempts);
        let reason = special.and_then(|s| s.parked.as_ref()).map(|(reason, _)| reason.clone());
        self.found.push(Found { slot, log: Arc::clone(log), attempts, reason });
    }

    /// Goes on along the queue, taking what is `wanted`.
    pub(crate) fn advance(
        &mut self,
        state: &State,
        pages: &Pages,
        name: &str,
        wanted: impl Fn(&Queue, u64) -> bool,
    ) -> Result<Progress, Miss> {
        let Some(queue) = state.queue(name) else { return Ok(Progress::Done) };
        if self.max == 0 {
            return Ok(Progress::Done);
        }
        let mut steps = 0;
        let first = queue.runs.partition_point(|run| run.first_id <= self.next).saturating_sub(1);
        for run in queue.runs.range(first..) {
            // A run stays in its queue only while its segment is there.
            let Some(sealed) = state.sealed.get(&run.segment) else { continue };
            let end = run.start + run.count;
            let mut slot = pages.search(&sealed.files, run.start, end, self.next)?;
            while slot < end {
                if sealed.is_done(slot) {
                    // Skips what is acknowledged by the word; the bits need no page.
                    let gone = sealed.done[(slot / 64) as usize] >> (slot % 64);
                    slot += gone.trailing_ones().min(end - slot);
                    steps += 1;
                    continue;
                }
                let found = pages.slot(&sealed.files, slot)?;
                if wanted(queue, found.id) && !self.take(queue, found, &sealed.files.log) {
                    return Ok(Progress::Done);
                }
                self.next = found.id + 1;
                slot += 1;
                steps += 1;
                if steps > STRIDE {
                    return Ok(Progress::Again);
                }
            }
        }
        for slot in queue.tail_from(self.next) {
            if wanted(queue, slot.id) && !self.take(queue, slot, &state.active.log) {
                return Ok(Progress::Done);
            }
            self.next = slot.id + 1;
            steps += 1;
            if steps > STRIDE {
                return Ok(Progress::Again);
            }
        }
        Ok(Progress::Done)
    }
}

/// Where a record of a queue stands.
pub(crate) fn resolve(state: &State, pages: &Pages, name: &str, id: u64) -> Result<Place, Miss> {
    resolve_in(state, pages, state.queue(name), id)
}

/// Where a record stands, in a queue if there is one.
pub(crate) fn resolve_in(
    state: &State,
    pages: &Pages,
    queue: Option<&Queue>,
    id: u64,
) -> Result<Place, Miss> {
    if id >= state.active.first_id {
        return Ok(Place::Tail);
    }
    let Some(queue) = queue else { return Ok(Place::Absent) };
    let index = queue.runs.partition_point(|run| run.first_id <= id);
    let Some(run) = index.checked_sub(1).and_then(|index| queue.runs.get(index)) else {
        return Ok(Place::Absent);
    };
    let Some(sealed) = state.sealed.get(&run.segment) else { return Ok(Place::Absent) };
    let end = run.start + run.count;
    let slot = pages.search(&sealed.files, run.start, end, id)?;
    if slot == end {
        return Ok(Place::Absent);
    }
    let found = pages.slot(&sealed.files, slot)?;
    if found.id != id || sealed.is_done(slot) {
        return Ok(Place::Absent);
    }
    Ok(Place::Sealed { segment: run.segment, slot, len: found.len })
}
