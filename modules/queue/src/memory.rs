//! The queues of one process: nothing is written, everything is gone when the process ends.
//!
//! What must hold: the same answers as the log gives, for tests and throw-away servers. It has no
//! limit but this process's memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use waystation_core::queue::{
    Append, Batch, Capabilities, LeaseId, Leased, Mark, Parked, QueueBackend, QueueError, QueueName,
    QueueStats, Record, RecordId, Settle, Verdict,
};
use waystation_core::storage::{BoxFuture, Durability};

use crate::check;

/// One record in one queue.
struct Entry {
    payload: Bytes,
    since: SystemTime,
    attempts: u32,
    /// Not offered to consumers before this.
    not_before: Option<Instant>,
    parked: Option<String>,
    lease: Option<(LeaseId, Instant)>,
}

impl Entry {
    fn is_leased(&self, now: Instant) -> bool {
        self.lease.is_some_and(|(_, until)| until > now)
    }

    fn is_free(&self, now: Instant) -> bool {
        self.parked.is_none() && !self.is_leased(now) && self.not_before.is_none_or(|at| at <= now)
    }

    fn record(&self, id: u64) -> Record {
        Record { id: RecordId(id), payload: self.payload.clone(), since: self.since, attempts: self.attempts }
    }
}

#[derive(Default)]
struct State {
    closed: bool,
    last_id: u64,
    last_lease: u64,
    queues: BTreeMap<QueueName, BTreeMap<u64, Entry>>,
    marks: HashMap<u128, u64>,
    leases: HashMap<LeaseId, (QueueName, u64)>,
}

/// See the module's header.
#[derive(Default)]
pub(crate) struct MemoryQueue {
    state: Mutex<State>,
}

impl State {
    fn append(&mut self, record: Append) -> RecordId {
        self.last_id += 1;
        let payload = join(&record.payload);
        let since = SystemTime::now();
        for queue in record.queues {
            let entry = Entry {
                payload: payload.clone(),
                since,
                attempts: 0,
                not_before: None,
                parked: None,
                lease: None,
            };
            self.queues.entry(queue).or_default().insert(self.last_id, entry);
        }
        RecordId(self.last_id)
    }

    fn mark(&mut self, mark: Mark) {
        match mark.value {
            Some(value) => {
                let present = self.marks.entry(mark.key).or_insert(value);
                *present = value.max(*present);
            }
            None => {
                self.marks.remove(&mark.key);
            }
        }
    }

    fn settle(&mut self, settle: &Settle) {
        let now = Instant::now();
        let id = settle.id.0;
        let Some(queue) = self.queues.get_mut(&settle.queue) else { return };
        let Some(entry) = queue.get_mut(&id) else { return };
        match &settle.verdict {
            Verdict::Ack => {
                if let Some((lease, _)) = entry.lease {
                    self.leases.remove(&lease);
                }
                queue.remove(&id);
                if queue.is_empty() {
                    self.queues.remove(&settle.queue);
                }
                return;
            }
            Verdict::Nack { .. } if entry.parked.is_some() => return,
            Verdict::Nack { delay } => {
                entry.not_before = now.checked_add(check::wait(*delay));
                // A lease was counted when it was given.
                if !entry.is_leased(now) {
                    entry.attempts = entry.attempts.saturating_add(1);
                }
            }
            Verdict::Park { reason } => {
                entry.parked = Some(check::reason(reason).to_owned());
                entry.not_before = None;
            }
            Verdict::Unpark => {
                entry.parked = None;
                return;
            }
        }
        if let Some((lease, _)) = entry.lease.take() {
            self.leases.remove(&lease);
        }
    }

    /// The record under a lease that is still held.
    fn held(&mut self, lease: LeaseId) -> Result<(QueueName, u64), QueueError> {
        let (queue, id) = self.leases.get(&lease).cloned().ok_or(QueueError::LeaseLost)?;
        let held = self.queues.get(&queue).and_then(|entries| entries.get(&id)).is_some_and(|entry| {
            entry.lease.is_some_and(|(by, until)| by == lease && until > Instant::now())
        });
        if held { Ok((queue, id)) } else { Err(QueueError::LeaseLost) }
    }

    fn lease(&mut self, queue: &QueueName, max: usize, how_long: Duration) -> Vec<Leased> {
        let now = Instant::now();
        let how_long = check::wait(how_long);
        let until = SystemTime::now() + how_long;
        let Some(entries) = self.queues.get_mut(queue) else { return Vec::new() };
        let mut leased = Vec::new();
        for (id, entry) in entries.iter_mut().filter(|(_, entry)| entry.is_free(now)).take(max) {
            self.last_lease += 1;
            let lease = LeaseId(self.last_lease);
            if let Some((expired, _)) = entry.lease.replace((lease, now + how_long)) {
                self.leases.remove(&expired);
            }
            self.leases.insert(lease, (queue.clone(), *id));
            leased.push(Leased { record: entry.record(*id), lease, until });
            entry.attempts = entry.attempts.saturating_add(1);
        }
        leased
    }
}

/// The pieces as one, in memory of its own: a piece may be a small part of a large buffer.
fn join(pieces: &[Bytes]) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        joined.extend_from_slice(piece);
    }
    joined.freeze()
}

impl MemoryQueue {
    fn with<T>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, QueueError>,
    ) -> BoxFuture<'static, Result<T, QueueError>>
    where
        T: Send + 'static,
    {
        let mut state = self.lock();
        let result = if state.closed { Err(QueueError::Closed) } else { act(&mut state) };
        drop(state);
        Box::pin(std::future::ready(result))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic half-way through a change is a bug here, and the state still answers.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueBackend for MemoryQueue {
    fn capabilities(&self) -> Capabilities {
        Capabilities { durability: Durability::Memory, atomic: true, shared: false }
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Vec<RecordId>, QueueError>> {
        self.with(|state| {
            check::batch(&batch)?;
            let ids = batch.records.into_iter().map(|record| state.append(record)).collect();
            batch.marks.into_iter().for_each(|mark| state.mark(mark));
            batch.settles.iter().for_each(|settle| state.settle(settle));
            Ok(ids)
        })
    }

    fn read(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
        max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<Record>, QueueError>> {
        self.with(|state| {
            check::name(&queue)?;
            let Some(entries) = state.queues.get(&queue) else { return Ok(Vec::new()) };
            let from = after.map_or(0, |id| id.0.saturating_add(1));
            let mut bytes = 0_usize;
            let mut records = Vec::new();
            for (id, entry) in entries.range(from..).filter(|(_, entry)| entry.parked.is_none()).take(max) {
                bytes += entry.payload.len();
                if bytes > max_bytes && !records.is_empty() {
                    break;
                }
                records.push(entry.record(*id));
            }
            Ok(records)
        })
    }

    fn lease(
        &self,
        queue: QueueName,
        max: usize,
        how_long: Duration,
    ) -> BoxFuture<'static, Result<Vec<Leased>, QueueError>> {
        self.with(|state| {
            check::name(&queue)?;
            Ok(state.lease(&queue, max, how_long))
        })
    }

    fn extend(&self, lease: LeaseId, how_long: Duration) -> BoxFuture<'static, Result<(), QueueError>> {
        self.with(|state| {
            let (queue, id) = state.held(lease)?;
            if let Some(entry) = state.queues.get_mut(&queue).and_then(|entries| entries.get_mut(&id)) {
                entry.lease = Some((lease, Instant::now() + check::wait(how_long)));
            }
            Ok(())
        })
    }

    fn settle(&self, lease: LeaseId, verdict: Verdict) -> BoxFuture<'static, Result<(), QueueError>> {
        self.with(|state| {
            let (queue, id) = state.held(lease)?;
            state.settle(&Settle { queue, id: RecordId(id), verdict });
            Ok(())
        })
    }

    fn parked(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<Parked>, QueueError>> {
        self.with(|state| {
            check::name(&queue)?;
            let Some(entries) = state.queues.get(&queue) else { return Ok(Vec::new()) };
            let from = after.map_or(0, |id| id.0.saturating_add(1));
            let parked = entries.range(from..).filter_map(|(id, entry)| {
                let reason = entry.parked.clone()?;
                Some(Parked { record: entry.record(*id), reason })
            });
            Ok(parked.take(max).collect())
        })
    }

    fn purge(&self, queue: QueueName) -> BoxFuture<'static, Result<(), QueueError>> {
        self.with(|state| {
            check::name(&queue)?;
            for entry in state.queues.remove(&queue).unwrap_or_default().into_values() {
                if let Some((lease, _)) = entry.lease {
                    state.leases.remove(&lease);
                }
            }
            Ok(())
        })
    }

    fn mark(&self, key: u128) -> BoxFuture<'static, Result<Option<u64>, QueueError>> {
        self.with(|state| Ok(state.marks.get(&key).copied()))
    }

    fn stats(&self, queue: QueueName) -> BoxFuture<'static, Result<QueueStats, QueueError>> {
        self.with(|state| {
            check::name(&queue)?;
            let now = Instant::now();
            let mut stats = QueueStats { as_of: RecordId(state.last_id), ..QueueStats::default() };
            for (id, entry) in state.queues.get(&queue).into_iter().flatten() {
                if entry.parked.is_some() {
                    stats.parked += 1;
                    continue;
                }
                stats.pending += 1;
                stats.bytes += entry.payload.len() as u64;
                stats.leased += u64::from(entry.is_leased(now));
                stats.oldest = stats.oldest.or(Some(RecordId(*id)));
            }
            Ok(stats)
        })
    }

    fn queues(
        &self,
        prefix: String,
        after: Option<QueueName>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<QueueName>, QueueError>> {
        self.with(|state| {
            let names = state
                .queues
                .keys()
                .filter(|name| name.starts_with(&prefix) && after.as_ref().is_none_or(|after| *name > after));
            Ok(names.take(max).cloned().collect())
        })
    }

    fn close(&self) -> BoxFuture<'static, Result<(), QueueError>> {
        self.with(|state| {
            *state = State { closed: true, ..State::default() };
            Ok(())
        })
    }
}
