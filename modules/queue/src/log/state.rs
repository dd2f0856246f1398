//! What the log holds now, as far as it is kept in memory: queues, marks, leases, and where the
//! records stand. Payloads are never here.
//!
//! What must hold: the committer thread alone changes what is stored, by applying what it has
//! committed, in order; recovery applies the same changes in the same order and comes to the same
//! state. A record of the active segment costs 16 bytes per queue until it is acknowledged; one of
//! a sealed segment a bit, and its queue 24 bytes per segment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use waystation_core::queue::{LeaseId, QueueName};

use crate::check;
use crate::log::frame::Change;
use crate::log::index::{Identity, IndexRun, LogFile, PER_PAGE, Page, SegmentFiles, Slot, Unwritten};
use crate::log::marks::Marks;
use crate::log::queue::DONE;
pub(crate) use crate::log::queue::{Queue, Run};
use crate::log::snapshot::{Copying, before_change};
use crate::names::{Named, Names, Recent};

/// A sealed segment.
pub(crate) struct Sealed {
    pub(crate) files: Arc<SegmentFiles>,
    /// A bit per slot: acknowledged.
    pub(crate) done: Arc<Vec<u64>>,
    pub(crate) live: u32,
    /// About how many bytes of the log file the live slots need.
    pub(crate) live_bytes: u64,
}

impl Sealed {
    pub(crate) fn is_done(&self, slot: u32) -> bool {
        self.done[(slot / 64) as usize] & (1 << (slot % 64)) != 0
    }

    fn set_done(&mut self, slot: u32) {
        // Copied when a snapshot holds it: at most once for each.
        Arc::make_mut(&mut self.done)[(slot / 64) as usize] |= 1 << (slot % 64);
    }

    /// Live slots of a range.
    pub(crate) fn count_live(&self, start: u32, count: u32) -> u32 {
        let mut live = 0;
        let mut slot = start;
        let end = start + count;
        while slot < end {
            let bit = slot % 64;
            let take = (64 - bit).min(end - slot);
            let mask = if take == 64 { u64::MAX } else { ((1 << take) - 1) << bit };
            live += take - (self.done[(slot / 64) as usize] & mask).count_ones();
            slot += take;
        }
        live
    }
}

/// What a record needs in a log file beside its payload, about.
pub(crate) const RECORD_COST: u64 = 96;

/// Where a record of a queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the active segment, if anywhere.
    Tail,
    /// In a sealed segment.
    Sealed { segment: u32, slot: u32, len: u32 },
    /// Nowhere.
    Absent,
}

/// The segment that is written to.
pub(crate) struct Active {
    pub(crate) number: u32,
    /// No record in it has a smaller id, and none in a sealed segment a larger one.
    pub(crate) first_id: u64,
    pub(crate) log: Arc<LogFile>,
}

/// See the module's header.
pub(crate) struct State {
    pub(crate) queues: Names<Queue>,
    recent: Recent,
    pub(crate) sealed: BTreeMap<u32, Sealed>,
    pub(crate) active: Active,
    pub(crate) marks: Marks,
    /// The snapshot that is under way.
    pub(crate) copying: Option<Copying>,
    /// Queues that may have records in the active segment.
    tailed: Vec<u32>,
    pub(crate) next_id: u64,
    /// Bytes of sealed segments that acknowledgements have set free since this was last looked at.
    pub(crate) freed: u64,
    leases: HashMap<LeaseId, (u32, u64)>,
    last_lease: u64,
}

impl State {
    pub(crate) fn new(active: Active) -> Self {
        Self {
            queues: Names::default(),
            recent: Recent::default(),
            sealed: BTreeMap::new(),
            next_id: active.first_id,
            active,
            marks: Marks::default(),
            copying: None,
            tailed: Vec::new(),
            freed: 0,
            leases: HashMap::new(),
            last_lease: 0,
        }
    }

    pub(crate) fn queue(&self, name: &str) -> Option<&Queue> {
        self.queues.get(self.queues.number(name)?)
    }

    /// Every queue that holds something.
    pub(crate) fn all_queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.iter().filter(|queue| !queue.is_empty())
    }

    /// The queue of a name, made when there is none.
    pub(crate) fn ensure(&mut self, name: &str) -> &mut Queue {
        let number = self.number(name);
        self.queues.ensure(number, name)
    }

    /// The number of a name, whose queue is made when there is none.
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.queues.find(name, &mut self.recent) {
            return number;
        }
        let number = self.queues.add(name);
        before_change(&mut self.copying, number, None);
        number
    }

    /// Puts a slot into the tail of a queue.
    fn put_in_tail(&mut self, name: &str, slot: Slot) -> Option<&mut Queue> {
        let number = self.number(name);
        let queue = self.queues.get_mut(number)?;
        before_change(&mut self.copying, number, Some(queue));
        if !queue.tailed {
            queue.tailed = true;
            self.tailed.push(number);
        }
        queue.tail.push_back(slot);
        Some(queue)
    }

    /// Puts a record of the active segment into a queue.
    pub(crate) fn append(&mut self, queue: &str, slot: Slot) {
        let Some(queue) = self.put_in_tail(queue, slot) else { return };
        let was_empty = queue.is_empty();
        queue.pending += 1;
        queue.bytes += u64::from(slot.len);
        if was_empty {
            self.queues.empty -= 1;
        }
    }

    /// Applies a verdict on a record at a place that was resolved since the last seal.
    pub(crate) fn settle(&mut self, name: &str, id: u64, place: Place, change: Change<'_>, now: Instant) {
        if let Some(number) = self.queues.find(name, &mut self.recent) {
            self.settle_in(number, id, place, change, now);
        }
    }

    /// Acknowledges a record at the front of what a queue has in the active segment; false when it is
    /// not there, or when something is noted of records of the queue. That is how nearly all leave, and
    /// all that [`State::settle_in`] asks besides costs more than this.
    pub(crate) fn ack_front(&mut self, number: u32, id: u64) -> bool {
        let Some(queue) = self.queues.get_mut(number) else { return false };
        let Some(slot) = queue.tail.front().copied().filter(|slot| slot.id == id) else { return false };
        if !queue.special.is_empty() || !queue.leases.is_empty() {
            return false;
        }
        before_change(&mut self.copying, number, Some(queue));
        // The first one is not acknowledged yet.
        queue.leave_front();
        queue.pending -= 1;
        queue.bytes -= u64::from(slot.len);
        let emptied = queue.is_empty();
        self.queues.empty += usize::from(emptied);
        true
    }

    /// As [`State::settle`], of the queue of a number.
    pub(crate) fn settle_in(&mut self, number: u32, id: u64, place: Place, change: Change<'_>, now: Instant) {
        let Some(queue) = self.queues.get_mut(number) else { return };
        let tail = match place {
            Place::Absent => return,
            Place::Tail => match queue.in_tail(id) {
                Some(index) if queue.tail[index].len & DONE == 0 => Some(index),
                _ => return,
            },
            Place::Sealed { segment, slot, .. } => match self.sealed.get(&segment) {
                Some(sealed) if !sealed.is_done(slot) => None,
                _ => return,
            },
        };
        let len = match (place, tail) {
            (Place::Sealed { len, .. }, _) => len,
            (_, Some(index)) => queue.tail[index].len,
            _ => return,
        };
        before_change(&mut self.copying, number, Some(queue));
        let parked = queue.is_parked(id);
        let mut emptied = false;
        match change {
            Change::Ack => {
                match (place, tail) {
                    (Place::Sealed { segment, slot, .. }, _) => {
                        if let Some(sealed) = self.sealed.get_mut(&segment) {
                            sealed.set_done(slot);
                            sealed.live -= 1;
                            let freed = u64::from(len) + RECORD_COST;
                            sealed.live_bytes = sealed.live_bytes.saturating_sub(freed);
                            self.freed += freed;
                        }
                        queue.leave_run(segment);
                    }
                    (_, Some(index)) => queue.leave_tail(index),
                    _ => return,
                }
                // Few records ever have either, and a look into an empty map is a call.
                if !queue.special.is_empty() {
                    queue.special.remove(&id);
                }
                if parked {
                    queue.parked -= 1;
                } else {
                    queue.pending -= 1;
                    queue.bytes -= u64::from(len);
                }
                emptied = queue.is_empty();
            }
            Change::Nack { .. } if parked => return,
            Change::Nack { delay_ms, counts } => {
                let special = queue.special.entry(id).or_default();
                special.not_before = now.checked_add(check::wait(Duration::from_millis(delay_ms)));
                special.attempts = special.attempts.saturating_add(u32::from(counts));
            }
            Change::Park { reason } => {
                let special = queue.special.entry(id).or_default();
                special.parked = Some((reason.into(), len));
                special.not_before = None;
                if !parked {
                    queue.parked += 1;
                    queue.pending -= 1;
                    queue.bytes -= u64::from(len);
                }
            }
            Change::Unpark => {
                if parked && let Some(special) = queue.special.get_mut(&id) {
                    special.parked = None;
                    queue.parked -= 1;
                    queue.pending += 1;
                    queue.bytes += u64::from(len);
                }
                return;
            }
            Change::Leased => {
                let special = queue.special.entry(id).or_default();
                special.attempts = special.attempts.saturating_add(1);
                return;
            }
        }
        if !queue.leases.is_empty()
            && let Some((lease, _)) = queue.leases.remove(&id)
        {
            self.leases.remove(&lease);
        }
        self.queues.empty += usize::from(emptied);
    }

    /// Acknowledges everything in a queue.
    pub(crate) fn purge(&mut self, name: &str) {
        let Some(number) = self.queues.number(name) else { return };
        let Some(queue) = self.queues.get_mut(number) else { return };
        if queue.is_empty() {
            return;
        }
        before_change(&mut self.copying, number, Some(queue));
        for run in queue.runs.drain(..) {
            if let Some(sealed) = self.sealed.get_mut(&run.segment) {
                (run.start..run.start + run.count).for_each(|slot| sealed.set_done(slot));
                // The sizes stand in the index, which is not read for this: a share is taken.
                let share = sealed.live_bytes / u64::from(sealed.live.max(1)) * u64::from(run.live);
                sealed.live_bytes -= share;
                sealed.live -= run.live;
                self.freed += share;
            }
        }
        for (lease, _) in queue.leases.values() {
            self.leases.remove(lease);
        }
        *queue = Queue::named(QueueName::clone(&queue.name));
        self.queues.empty += 1;
    }

    /// What the active segment holds: its live slots, by queue.
    pub(crate) fn tails(&self) -> Vec<IndexRun> {
        let runs = self.all_queues().map(|queue| IndexRun {
            queue: QueueName::clone(&queue.name),
            slots: queue.tail_from(0).collect(),
        });
        runs.filter(|run| !run.slots.is_empty()).collect()
    }

    /// Seals the active segment, which is the one that `identity` names, and goes on with another.
    /// The index is in memory and still to be written; `None` when the segment holds nothing.
    ///
    /// This takes time for the live records and the queues of that one segment only.
    pub(crate) fn seal(&mut self, identity: &Identity, next: Active) -> Option<Arc<SegmentFiles>> {
        let old = std::mem::replace(&mut self.active, next);
        let mut index = Unwritten::default();
        let mut page = Vec::with_capacity(PER_PAGE as usize);
        let (mut start, mut live_bytes) = (0, 0);
        for number in std::mem::take(&mut self.tailed) {
            // One that was forgotten and came back may stand there twice.
            let Some(queue) = self.queues.get_mut(number) else { continue };
            queue.tailed = false;
            let tail = std::mem::take(&mut queue.tail);
            let live = tail.iter().filter(|slot| slot.len & DONE == 0);
            let Some(first_id) = live.clone().next().map(|slot| slot.id) else { continue };
            let before = start;
            for slot in live {
                page.push(*slot);
                start += 1;
                live_bytes += u64::from(slot.len) + RECORD_COST;
                if start % PER_PAGE == 0 {
                    index.pages.push(Page::from(&page[..]));
                    page.clear();
                }
            }
            let count = start - before;
            index.runs.push((QueueName::clone(&queue.name), first_id, count));
            let run = Run { first_id, segment: identity.number, start: before, count, live: count };
            queue.runs.push_back(run);
        }
        if start == 0 {
            return None;
        }
        if !page.is_empty() {
            index.pages.push(Page::from(&page[..]));
        }
        let files = Arc::new(SegmentFiles::unwritten(identity, start, old.log, index));
        let done = Arc::new(vec![0; (start as usize).div_ceil(64)]);
        let sealed = Sealed { files: Arc::clone(&files), done, live: start, live_bytes };
        self.sealed.insert(identity.number, sealed);
        Some(files)
    }

    /// Puts what a compaction has made in the place of the segments `window`: its runs, each with
    /// the queue, the id of its first slot and how many slots it has, all of them live.
    pub(crate) fn replace(&mut self, window: &[u32], sealed: Sealed, runs: &[(QueueName, u64, u32)]) {
        let number = sealed.files.number;
        for segment in window {
            self.sealed.remove(segment);
        }
        self.sealed.insert(number, sealed);
        let mut start = 0;
        for (name, first_id, count) in runs {
            let run = Run { first_id: *first_id, segment: number, start, count: *count, live: *count };
            start += count;
            let queue = self.ensure(name);
            let at = queue.runs.partition_point(|run| run.segment < number);
            queue.runs.retain(|run| !window.contains(&run.segment));
            queue.runs.insert(at, run);
        }
    }

    /// Leases a record that is free; ends a lease of it that has run out.
    pub(crate) fn lease(&mut self, name: &str, id: u64, until: Instant) -> Option<LeaseId> {
        let number = self.queues.number(name)?;
        let queue = self.queues.get_mut(number)?;
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        if let Some((expired, _)) = queue.leases.insert(id, (lease, until)) {
            self.leases.remove(&expired);
        }
        self.leases.insert(lease, (number, id));
        Some(lease)
    }

    /// The record under a lease that is still held, and when it ends.
    pub(crate) fn held(&self, lease: LeaseId, now: Instant) -> Option<(&Queue, u64)> {
        let (number, id) = *self.leases.get(&lease)?;
        let queue = self.queues.get(number)?;
        let (by, until) = queue.leases.get(&id)?;
        (*by == lease && *until > now).then_some((queue, id))
    }

    /// Lets a lease that is held last until another moment; false when it is not held.
    pub(crate) fn extend(&mut self, lease: LeaseId, now: Instant, until: Instant) -> bool {
        let Some((number, id)) = self.leases.get(&lease).copied() else { return false };
        let queue = self.queues.get_mut(number);
        match queue.and_then(|queue| queue.leases.get_mut(&id)) {
            Some((by, at)) if *by == lease && *at > now => {
                *at = until;
                true
            }
            _ => false,
        }
    }

    /// Gives a lease back as if it had never been.
    pub(crate) fn release(&mut self, lease: LeaseId) {
        let Some((number, id)) = self.leases.remove(&lease) else { return };
        if let Some(queue) = self.queues.get_mut(number)
            && queue.leases.get(&id).is_some_and(|(by, _)| *by == lease)
        {
            queue.leases.remove(&id);
        }
    }

    /// Sets the figures of each queue from its parts, after a checkpoint was read.
    pub(crate) fn settle_figures(&mut self, sealed_bytes: &HashMap<QueueName, u64>) {
        let mut empty = 0;
        for queue in self.queues.iter_mut() {
            let runs: u64 = queue.runs.iter().map(|run| u64::from(run.live)).sum();
            let (mut count, mut bytes) = (runs, sealed_bytes.get(&queue.name).copied().unwrap_or(0));
            for slot in queue.tail_from(0) {
                count += 1;
                bytes += u64::from(slot.len);
            }
            queue.parked = queue.special.values().filter(|s| s.parked.is_some()).count() as u64;
            queue.pending = count.saturating_sub(queue.parked);
            queue.bytes = bytes.saturating_sub(queue.parked_bytes());
            empty += usize::from(queue.is_empty());
        }
        self.queues.empty = empty;
    }

    /// Puts a slot into a queue's tail without counting it, while a checkpoint is read.
    pub(crate) fn restore_tail(&mut self, name: &str, slot: Slot) {
        self.put_in_tail(name, slot);
    }
}
