//! What a checkpoint is made of: the state as it was at one moment, while commits go on.
//!
//! What must hold: what is copied is the state at the moment of [`State::snapshot`], exactly, for
//! what the log says behind the position of a checkpoint is applied to it once more. Taking a
//! snapshot costs a little per sealed segment; queues are copied afterwards, a few at a time, and
//! one that is about to change before its turn is copied first. Segments are neither sealed nor
//! replaced meanwhile. One snapshot is under way at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::log::checkpoint::{Position, put_queue};
use crate::log::marks::Map;
use crate::log::queue::Queue;
use crate::log::recover::now_ms;
use crate::log::state::State;

/// The state but for its queues.
pub(crate) struct Head {
    pub(crate) position: Position,
    pub(crate) next_id: u64,
    pub(crate) time_ms: u64,
    pub(crate) sealed: Vec<SealedHead>,
    pub(crate) marks: Arc<Map>,
}

/// A sealed segment.
pub(crate) struct SealedHead {
    pub(crate) number: u32,
    pub(crate) generation: u32,
    pub(crate) live_bytes: u64,
    pub(crate) slots: u32,
    /// Which are acknowledged, if any is.
    pub(crate) done: Option<Arc<Vec<u64>>>,
}

/// How far the queues were copied.
pub(crate) struct Copying {
    /// Places in the list of queues: the next one, and where the list ended at first.
    next: usize,
    end: usize,
    at: Instant,
    /// What was copied before its turn; nothing of a queue that held nothing.
    saved: HashMap<usize, Vec<u8>>,
}

/// Queues that are looked at, and bytes that are copied, before others get a turn at the state.
const STRIDE: usize = 512;
const STRETCH: usize = 64 * 1024;

/// A queue at a place in the list is about to change.
#[inline]
pub(crate) fn before_change(copying: &mut Option<Copying>, place: u32, queue: Option<&Queue>) {
    if let Some(copying) = copying {
        copying.save(place as usize, queue);
    }
}

impl Copying {
    fn save(&mut self, place: usize, queue: Option<&Queue>) {
        if !(self.next..self.end).contains(&place) || self.saved.contains_key(&place) {
            return;
        }
        let mut bytes = Vec::new();
        if let Some(queue) = queue {
            put_queue(&mut bytes, queue, self.at);
        }
        self.saved.insert(place, bytes);
    }
}

impl State {
    /// Begins a snapshot of now, for a checkpoint at a position.
    pub(crate) fn snapshot(&mut self, position: Position) -> Head {
        let live = self.sealed.values().filter(|sealed| sealed.live > 0);
        let sealed = live.map(|sealed| SealedHead {
            number: sealed.files.number,
            generation: sealed.files.generation,
            live_bytes: sealed.live_bytes,
            slots: sealed.files.slots,
            done: (sealed.live < sealed.files.slots).then(|| Arc::clone(&sealed.done)),
        });
        let sealed = sealed.collect();
        let (end, at) = (self.queues.end() as usize, Instant::now());
        self.copying = Some(Copying { next: 0, end, at, saved: HashMap::new() });
        Head { position, next_id: self.next_id, time_ms: now_ms(), sealed, marks: self.marks.copy() }
    }

    /// Copies some more queues of the snapshot, and counts them; true when that was all.
    pub(crate) fn copy_some(&mut self, out: &mut Vec<u8>, count: &mut u64) -> bool {
        let Some(mut copying) = self.copying.take() else { return true };
        let stop = (copying.next + STRIDE).min(copying.end);
        let begin = out.len();
        while copying.next < stop && out.len() - begin < STRETCH {
            let before = out.len();
            match (copying.saved.remove(&copying.next), self.queues.get(copying.next as u32)) {
                (Some(bytes), _) => out.extend_from_slice(&bytes),
                (None, Some(queue)) => put_queue(out, queue, copying.at),
                (None, None) => {}
            }
            *count += u64::from(out.len() > before);
            copying.next += 1;
        }
        let done = copying.next == copying.end;
        if !done {
            self.copying = Some(copying);
        }
        done
    }
}
