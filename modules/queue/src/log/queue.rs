//! One queue: how much it holds, where that stands, and what is noted of single records.
//!
//! What must hold: slots and runs are ordered by id, the tail behind the runs; the figures count
//! what is not acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use waystation_core::queue::{LeaseId, QueueName};

use crate::log::index::Slot;
use crate::names::Named;

/// Marks a slot of the active segment as acknowledged; payloads are far shorter.
pub(crate) const DONE: u32 = 1 << 31;

/// The slots of one queue in one sealed segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) first_id: u64,
    pub(crate) segment: u32,
    pub(crate) start: u32,
    pub(crate) count: u32,
    /// Of these, how many are not acknowledged.
    pub(crate) live: u32,
}

/// What is to be remembered of a record beside its place.
#[derive(Debug, Default)]
pub(crate) struct Special {
    pub(crate) attempts: u32,
    /// Not offered to consumers before this.
    pub(crate) not_before: Option<Instant>,
    /// Why it was set aside, and the length of its payload.
    pub(crate) parked: Option<(Box<str>, u32)>,
}

/// One queue.
pub(crate) struct Queue {
    pub(crate) name: QueueName,
    /// Not acknowledged and not parked: how many, and bytes of their payloads.
    pub(crate) pending: u64,
    pub(crate) bytes: u64,
    pub(crate) parked: u64,
    /// In the active segment, oldest first; acknowledged ones only behind one that is not.
    pub(crate) tail: VecDeque<Slot>,
    /// The state has noted that there may be something in it.
    pub(crate) tailed: bool,
    /// In sealed segments, oldest first.
    pub(crate) runs: VecDeque<Run>,
    pub(crate) special: BTreeMap<u64, Special>,
    pub(crate) leases: BTreeMap<u64, (LeaseId, Instant)>,
}

impl Named for Queue {
    fn named(name: QueueName) -> Self {
        Self {
            name,
            pending: 0,
            bytes: 0,
            parked: 0,
            tail: VecDeque::new(),
            tailed: false,
            runs: VecDeque::new(),
            special: BTreeMap::new(),
            leases: BTreeMap::new(),
        }
    }

    fn name(&self) -> &QueueName {
        &self.name
    }

    fn is_empty(&self) -> bool {
        self.pending == 0 && self.parked == 0
    }
}

impl Queue {
    /// Where in the tail a record stands; nearly always at its front, for that is where records leave.
    pub(crate) fn in_tail(&self, id: u64) -> Option<usize> {
        if self.tail.front()?.id == id {
            return Some(0);
        }
        self.tail.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    /// Slots of the active segment that are not acknowledged, from an id on.
    pub(crate) fn tail_from(&self, id: u64) -> impl Iterator<Item = Slot> {
        let from = self.tail.partition_point(|slot| slot.id < id);
        self.tail.range(from..).filter(|slot| slot.len & DONE == 0).copied()
    }

    /// True when a consumer may have the record.
    pub(crate) fn is_free(&self, id: u64, now: Instant) -> bool {
        let held = self.leases.get(&id).is_some_and(|(_, until)| *until > now);
        let special = self.special.get(&id);
        let waits = special.is_some_and(|s| s.parked.is_some() || s.not_before.is_some_and(|at| at > now));
        !held && !waits
    }

    pub(crate) fn is_parked(&self, id: u64) -> bool {
        self.parked > 0 && self.special.get(&id).is_some_and(|special| special.parked.is_some())
    }

    /// Bytes of payload that parked records hold.
    pub(crate) fn parked_bytes(&self) -> u64 {
        self.special.values().filter_map(|s| s.parked.as_ref()).map(|(_, len)| u64::from(*len)).sum()
    }

    /// Bytes of payload of what is not acknowledged and stands in sealed segments.
    pub(crate) fn sealed_bytes(&self) -> u64 {
        let tail: u64 = self.tail_from(0).map(|slot| u64::from(slot.len)).sum();
        self.total_bytes().saturating_sub(tail)
    }

    /// Bytes of payload of what is not acknowledged, parked or not.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.bytes + self.parked_bytes()
    }
}

impl Queue {
    pub(crate) fn leave_tail(&mut self, index: usize) {
        if index == 0 {
            return self.leave_front();
        }
        self.tail[index].len |= DONE;
    }

    pub(crate) fn leave_front(&mut self) {
        self.tail.pop_front();
        while self.tail.front().is_some_and(|slot| slot.len & DONE != 0) {
            self.tail.pop_front();
        }
        if self.tail.is_empty() && self.tail.capacity() > 1024 {
            self.tail = VecDeque::new();
        }
    }

    pub(crate) fn leave_run(&mut self, segment: u32) {
        if let Ok(index) = self.runs.binary_search_by_key(&segment, |run| run.segment) {
            self.runs[index].live -= 1;
            if self.runs[index].live == 0 {
                self.runs.remove(index);
            }
        }
    }
}
