//! The one thread that writes: gathers what waits into a group, writes it at once, flushes it once,
//! applies it to the state, answers.
//!
//! What must hold: jobs take effect in the order of their queueing; nobody hears of success, and
//! nobody reads a record, before the group is as durable as promised; after a failed write (other
//! than for want of room) or a failed flush nothing is written or acknowledged again, for what the
//! device holds is then unknown, and a second flush would report a success that it did not have.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tokio::sync::oneshot;
use waystation_committer::{Reserve, Work};
use waystation_core::queue::{Batch, LeaseId, QueueError, QueueName, RecordId, Settle, Verdict};
use waystation_core::storage::Durability;

use crate::Options;
use crate::fs::{FileSystem, Lock};
use crate::log::checkpoint::millis;
use crate::log::find::{resolve, resolve_in};
use crate::log::frame::{Change, Control, Encoder, Stamp};
use crate::log::index::{LogFile, Miss, PageError, Pages, SegmentFiles, Slot};
use crate::log::job::{Entry, Inbox, Job, Outcome};
use crate::log::keep::KeepError;
use crate::log::keeper::Keeper;
use crate::log::recover::now_ms;
use crate::log::segment::{self, WriteFailure, Writer};
use crate::log::state::{Place, State};
use crate::names::Recent;

/// What the committer shares with the callers.
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) pages: Pages,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) closed: AtomicBool,
}

impl Shared {
    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        // A panic while it was written has stopped the log; what can be read still is.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts an error of an index page into words.
pub(crate) fn page_error(miss: &Miss, error: &PageError) -> QueueError {
    let path = miss.files.index_path.display();
    match error {
        PageError::Io(error) => QueueError::Io(format!("reading {path}: {error}")),
        PageError::Damaged { offset } => QueueError::Corrupt {
            record: None,
            detail: format!(
                "{path}: the page at byte {offset}; stop the server and run `waystation queue repair`"
            ),
        },
    }
}

/// See the module's header.
pub(crate) struct Committer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) folder: PathBuf,
    pub(crate) options: Options,
    pub(crate) writer: Writer,
    pub(crate) encoder: Encoder,
    pub(crate) plan: Plan,
    pub(crate) reserve: Reserve,
    /// Does what commits must not wait for; without it, it is done at once.
    pub(crate) keeper: Option<Keeper>,
    /// A round of the keeper is under way.
    pub(crate) busy: bool,
    /// There was no room for what the last round was to do.
    pub(crate) no_room: bool,
    /// The segment that comes next, once it was made.
    pub(crate) next: Option<Arc<LogFile>>,
    /// Sealed segments that no checkpoint names yet: none, or the one before the active one.
    pub(crate) unsealed: Vec<Arc<SegmentFiles>>,
    /// Files that are to go, which the checkpoint in force may still name.
    pub(crate) unneeded: Vec<PathBuf>,
    /// Sealed segments, and their length without what was taken ahead and is to be given back.
    pub(crate) trim: Vec<(Arc<LogFile>, u64)>,
    /// Segments that cannot be compacted, for something in them is damaged.
    pub(crate) damaged: HashSet<u32>,
    /// Where the checkpoint in force stands.
    pub(crate) checkpoint_at: (u32, u64),
    pub(crate) _lock: Box<dyn Lock>,
}

/// What was planned for one entry.
enum Step {
    Refused(QueueError),
    /// The ids of the records begin here.
    Batch {
        first_id: u64,
    },
    Settle {
        queue: QueueName,
        id: u64,
        counts: bool,
    },
    Leased,
    Purge,
}

/// What a verdict of a batch is about.
struct Settled {
    /// Of its queue, if that was there when the group was planned: the number stays until the group
    /// is applied.
    number: Option<u32>,
    place: Place,
    /// This is an attempt that no lease has counted.
    counts: bool,
}

/// What was planned for a group: one step per entry, and what they need, in order. The memory is used
/// again for the next group.
#[derive(Default)]
pub(crate) struct Plan {
    steps: Vec<Step>,
    /// Where the records stand from the beginning of the group on.
    offsets: Vec<usize>,
    /// The verdicts of batches.
    settled: Vec<Settled>,
    /// The records that other jobs are about.
    places: Vec<Place>,
    next_id: u64,
    /// Leases that a job of this group ends.
    ended: HashSet<LeaseId>,
    recent: Recent,
}

/// Above this many items the memory of a plan is given back after a group.
const KEEP_PLAN: usize = 8 * 1024;

impl Committer {
    /// Serves the inbox until it is closed; then writes a checkpoint and answers `closed`.
    pub(crate) fn run(mut self, closed: oneshot::Sender<Result<(), QueueError>>) {
        // What a crash has left half done; there is nothing to do otherwise.
        let mut failed = match self.begin(true, false) {
            Ok(()) | Err(KeepError::Full) => None,
            Err(KeepError::Stop(error)) => {
                self.shared.inbox.fail();
                Some(error)
            }
        };
        while let Work::Group(group) = self.shared.inbox.next() {
            let inbox = Arc::clone(&self.shared.inbox);
            let done = catch_unwind(AssertUnwindSafe(|| self.commit(group)));
            let outcome = done.unwrap_or_else(|_| Err("the committer panicked".to_owned()));
            if let Err(error) = outcome {
                tracing::error!(%error, "the queue has stopped: it takes nothing more until it is opened again");
                inbox.fail();
                failed.get_or_insert(error);
            }
        }
        let outcome = match failed {
            Some(error) => Err(QueueError::Io(format!("the queue had stopped: {error}"))),
            None => match self.finish() {
                Ok(()) | Err(KeepError::Full) => Ok(()),
                Err(KeepError::Stop(error)) => {
                    tracing::error!(%error, "the queue did not close cleanly");
                    Err(QueueError::Io(error))
                }
            },
        };
        drop(self);
        // Nobody listens when the queue was dropped instead of closed.
        let _ = closed.send(outcome);
    }

    /// Commits a group and answers its callers.
    fn commit(&mut self, group: Vec<Entry>) -> Result<(), String> {
        let weight: usize = group.iter().map(|entry| entry.bytes).sum();
        let mut full = self.reserve.is_low();
        // The last part of a segment is kept for batches that set records free, for when there is
        // no room for another segment.
        let limit = self.writer.capacity - self.writer.capacity / 16;
        let wanted = self.writer.position + weight as u64;
        if wanted > limit && self.writer.position > u64::from(segment::HEADER) {
            match self.roll() {
                Ok(()) => {}
                Err(KeepError::Full) => full = true,
                Err(KeepError::Stop(error)) => return Err(self.refuse(group, error)),
            }
        }
        let mut plan = self.plan(&group, full);
        if self.encoder.len() > 0 {
            let len = self.encoder.len() as u64;
            match self.writer.write(&mut self.encoder.slices(), len) {
                Ok(()) => {}
                Err(WriteFailure::Full) => {
                    tracing::error!("the disk is full: a group of batches was refused");
                    for (entry, step) in group.into_iter().zip(plan.steps.drain(..)) {
                        let answer = match step {
                            Step::Refused(error) => error,
                            _ => QueueError::Full,
                        };
                        entry.answer(Err(answer));
                    }
                    self.plan = plan;
                    return Ok(());
                }
                Err(WriteFailure::Stop(error)) => return Err(self.refuse(group, format!("writing: {error}"))),
            }
            if self.options.durability == Durability::Fsync
                && let Err(error) = self.writer.sync()
            {
                return Err(self.refuse(group, format!("flushing: {error}")));
            }
        }
        let answers = self.apply(&group, &mut plan);
        self.plan = plan;
        for (entry, answer) in group.into_iter().zip(answers) {
            entry.answer(answer);
        }
        match self.tidy(full) {
            Ok(()) | Err(KeepError::Full) => Ok(()),
            Err(KeepError::Stop(error)) => Err(error),
        }
    }

    /// Tells a group of a failure, after which the log is stopped.
    fn refuse(&self, group: Vec<Entry>, error: String) -> String {
        // First, so that a caller who hears of the failure finds the queue closed.
        self.shared.inbox.fail();
        for entry in group {
            entry.answer(Err(QueueError::Io(error.clone())));
        }
        error
    }

    /// Decides what becomes of each entry, and writes the frames of those that are committed.
    fn plan(&mut self, group: &[Entry], full: bool) -> Plan {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        let mut plan = std::mem::take(&mut self.plan);
        plan.begin(state.next_id);
        let time_ms = now_ms();
        self.encoder.clear();
        for entry in group {
            let step = loop {
                let lens = (plan.places.len(), plan.settled.len());
                match plan.entry(&state, &shared.pages, &entry.job, full) {
                    Ok(step) => break step,
                    Err(miss) => {
                        plan.places.truncate(lens.0);
                        plan.settled.truncate(lens.1);
                        // No file is read while the state is locked.
                        drop(state);
                        let fetched = shared.pages.fetch(&miss);
                        state = shared.state();
                        if let Err(error) = fetched {
                            break Step::Refused(page_error(&miss, &error));
                        }
                    }
                }
            };
            let stamp = Stamp {
                segment: self.writer.number,
                first_id: plan.next_id,
                time_ms,
                synced: self.writer.synced as u32,
                copy: false,
            };
            self.encode(&mut plan, &entry.job, &step, stamp);
            plan.steps.push(step);
        }
        self.encoder.finish();
        plan
    }

    fn encode(&mut self, plan: &mut Plan, job: &Job, step: &Step, stamp: Stamp) {
        let encoder = &mut self.encoder;
        match (job, step) {
            (_, Step::Refused(_)) => return,
            (Job::Batch(batch), _) if batch.is_empty() => return,
            _ => encoder.begin(),
        }
        match (job, step) {
            (Job::Batch(batch), _) => {
                for record in &batch.records {
                    encoder.queues(record.queues.iter().map(|queue| &**queue));
                }
                batch.marks.iter().for_each(|mark| encoder.control(Control::Mark(*mark)));
                let settled = &plan.settled[plan.settled.len() - batch.settles.len()..];
                for (settle, settled) in batch.settles.iter().zip(settled) {
                    let (queue, id) = (&settle.queue, settle.id.0);
                    if settle.verdict == Verdict::Ack {
                        encoder.ack(queue, id);
                        continue;
                    }
                    let change = change(&settle.verdict, settled.counts);
                    encoder.control(Control::Settle { queue, id, change });
                }
                encoder.payloads();
                for record in &batch.records {
                    plan.offsets.push(encoder.record(plan.next_id, stamp.time_ms, &record.payload));
                    plan.next_id += 1;
                }
            }
            (Job::Leased { queue, ids }, _) => {
                for id in ids {
                    encoder.control(Control::Settle { queue, id: *id, change: Change::Leased });
                }
                encoder.payloads();
            }
            (Job::Settle { verdict, .. }, Step::Settle { queue, id, counts }) => {
                encoder.control(Control::Settle { queue, id: *id, change: change(verdict, *counts) });
                encoder.payloads();
            }
            (Job::Purge { queue }, _) => {
                encoder.control(Control::Purge { queue });
                encoder.payloads();
            }
            // A job to settle is planned as that or refused.
            (Job::Settle { .. }, _) => encoder.payloads(),
        }
        encoder.end(stamp);
    }

    /// Applies what was written, and gives the answers.
    fn apply(&mut self, group: &[Entry], plan: &mut Plan) -> Vec<Outcome> {
        let begin = self.writer.position - self.encoder.len() as u64;
        let now = Instant::now();
        let mut offsets = plan.offsets.iter().copied();
        let mut settled = plan.settled.drain(..);
        let mut places = plan.places.drain(..);
        let mut state = self.shared.state_mut();
        let mut answers = Vec::with_capacity(group.len());
        for (entry, step) in group.iter().zip(plan.steps.drain(..)) {
            let answer = match (&entry.job, step) {
                (_, Step::Refused(error)) => Err(error),
                (Job::Batch(batch), Step::Batch { first_id }) => {
                    Ok(apply_batch(&mut state, batch, first_id, begin, &mut offsets, &mut settled, now))
                }
                (Job::Settle { verdict, .. }, Step::Settle { queue, id, counts }) => {
                    let place = places.next().unwrap_or(Place::Absent);
                    state.settle(&queue, id, place, change(verdict, counts), now);
                    Ok(Vec::new())
                }
                (Job::Leased { queue, ids }, _) => {
                    for (id, place) in ids.iter().zip(&mut places) {
                        state.settle(queue, *id, place, Change::Leased, now);
                    }
                    Ok(Vec::new())
                }
                (Job::Purge { queue }, _) => {
                    state.purge(queue);
                    Ok(Vec::new())
                }
                _ => Ok(Vec::new()),
            };
            answers.push(answer);
        }
        state.next_id = plan.next_id;
        state.queues.sweep();
        answers
    }
}

fn apply_batch(
    state: &mut State,
    batch: &Batch,
    first_id: u64,
    begin: u64,
    offsets: &mut impl Iterator<Item = usize>,
    settled: &mut impl Iterator<Item = Settled>,
    now: Instant,
) -> Vec<RecordId> {
    let mut ids = Vec::with_capacity(batch.records.len());
    for ((record, offset), id) in batch.records.iter().zip(offsets).zip(first_id..) {
        let len = record.payload.iter().map(bytes::Bytes::len).sum::<usize>() as u32;
        let slot = Slot { id, offset: (begin + offset as u64) as u32, len };
        for queue in &record.queues {
            state.append(queue, slot);
        }
        ids.push(RecordId(id));
    }
    batch.marks.iter().for_each(|mark| state.marks.change(*mark));
    for (Settle { queue, id, verdict }, settled) in batch.settles.iter().zip(settled) {
        let change = change(verdict, settled.counts);
        match settled.number {
            Some(number) if *verdict == Verdict::Ack && state.ack_front(number, id.0) => {}
            Some(number) => state.settle_in(number, id.0, settled.place, change, now),
            // The group itself may have made it.
            None => state.settle(queue, id.0, settled.place, change, now),
        }
    }
    ids
}

fn change(verdict: &Verdict, counts: bool) -> Change<'_> {
    match verdict {
        Verdict::Ack => Change::Ack,
        Verdict::Nack { delay } => Change::Nack { delay_ms: millis(*delay), counts },
        Verdict::Park { reason } => Change::Park { reason: crate::check::reason(reason) },
        Verdict::Unpark => Change::Unpark,
    }
}

impl Plan {
    /// Forgets the last group.
    fn begin(&mut self, next_id: u64) {
        self.steps.clear();
        self.steps.shrink_to(KEEP_PLAN);
        self.offsets.clear();
        self.offsets.shrink_to(KEEP_PLAN);
        self.settled.clear();
        self.settled.shrink_to(KEEP_PLAN);
        self.places.clear();
        self.places.shrink_to(KEEP_PLAN);
        self.ended.clear();
        self.ended.shrink_to(KEEP_PLAN);
        self.next_id = next_id;
    }

    /// Decides on one entry, and notes the places that it needs.
    fn entry(&mut self, state: &State, pages: &Pages, job: &Job, full: bool) -> Result<Step, Miss> {
        match job {
            Job::Batch(batch) if full && !batch.records.is_empty() => Ok(Step::Refused(QueueError::Full)),
            Job::Batch(batch) => {
                let first = self.settled.len();
                let mut leased = false;
                // First all the places: a page that is missing must leave nothing half noted.
                for Settle { queue, id, .. } in &batch.settles {
                    let number = state.queues.find(queue, &mut self.recent);
                    let queue = number.and_then(|number| state.queues.get(number));
                    let place = resolve_in(state, pages, queue, id.0)?;
                    leased |= queue.is_some_and(|queue| !queue.leases.is_empty());
                    self.settled.push(Settled { number, place, counts: true });
                }
                if !leased {
                    return Ok(Step::Batch { first_id: self.next_id });
                }
                for (settle, settled) in batch.settles.iter().zip(&mut self.settled[first..]) {
                    let queue = settled.number.and_then(|number| state.queues.get(number));
                    let lease = queue.and_then(|queue| queue.leases.get(&settle.id.0));
                    let Some((lease, until)) = lease else { continue };
                    // A lease was counted when it was given.
                    settled.counts = *until <= Instant::now() || self.ended.contains(lease);
                    if settle.verdict != Verdict::Unpark {
                        self.ended.insert(*lease);
                    }
                }
                Ok(Step::Batch { first_id: self.next_id })
            }
            Job::Settle { lease, verdict } => {
                let held = state.held(*lease, Instant::now());
                let Some((queue, id)) = held.filter(|_| !self.ended.contains(lease)) else {
                    return Ok(Step::Refused(QueueError::LeaseLost));
                };
                self.places.push(resolve(state, pages, &queue.name, id)?);
                if *verdict != Verdict::Unpark {
                    self.ended.insert(*lease);
                }
                Ok(Step::Settle { queue: QueueName::clone(&queue.name), id, counts: false })
            }
            Job::Leased { queue, ids } => {
                for id in ids {
                    self.places.push(resolve(state, pages, queue, *id)?);
                }
                Ok(Step::Leased)
            }
            Job::Purge { queue } => {
                let leases = state.queue(queue).into_iter().flat_map(|queue| queue.leases.values());
                self.ended.extend(leases.map(|(lease, _)| *lease));
                Ok(Step::Purge)
            }
        }
    }
}
