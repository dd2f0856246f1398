//! The queues of one process: nothing is written, everything is gone when the process ends.
//!
//! What must hold: the same answers as the log gives, for tests and throw-away servers. It has no
//! limit but this process's memory.
//!
//! Records leave a queue nearly always at its front, and few of them are ever refused, leased or
//! parked: a queue is a run of small entries, and what happens to single records stands beside it.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use waystation_core::queue::{
    Append, Batch, Capabilities, LeaseId, Leased, Mark, Parked, QueueBackend, QueueError, QueueName,
    QueueStats, Record, RecordId, Settle, Verdict,
};
use waystation_core::storage::{BoxFuture, Durability};

use crate::check;
use crate::names::{Named, Names, Recent};

/// The place of one record in one queue.
struct Entry {
    id: u64,
    /// Nothing when it has left from between others.
    held: Option<Held>,
}

/// One record in one queue.
struct Held {
    /// One for all queues, in memory of its own: a piece may be a small part of a large buffer.
    payload: Arc<[u8]>,
    since: SystemTime,
    special: Option<Box<Special>>,
}

/// What has happened to a record.
#[derive(Default)]
struct Special {
    attempts: u32,
    /// Not offered to consumers before this.
    not_before: Option<Instant>,
    parked: Option<String>,
    lease: Option<(LeaseId, Instant)>,
}

impl Special {
    fn is_leased(&self, now: Instant) -> bool {
        self.lease.is_some_and(|(_, until)| until > now)
    }

    fn is_free(&self, now: Instant) -> bool {
        self.parked.is_none() && !self.is_leased(now) && self.not_before.is_none_or(|at| at <= now)
    }
}

impl Held {
    fn special(&mut self) -> &mut Special {
        self.special.get_or_insert_default()
    }

    fn is_parked(&self) -> bool {
        self.special.as_ref().is_some_and(|special| special.parked.is_some())
    }

    fn lease(&self) -> Option<LeaseId> {
        let (lease, _) = self.special.as_ref()?.lease?;
        Some(lease)
    }

    fn record(&self, id: u64) -> Record {
        let attempts = self.special.as_ref().map_or(0, |special| special.attempts);
        let payload = Bytes::from_owner(Arc::clone(&self.payload));
        Record { id: RecordId(id), payload, since: self.since, attempts }
    }
}

struct Queue {
    name: QueueName,
    /// By id. The first one is held; of the others at least about half.
    entries: VecDeque<Entry>,
    /// How many are held.
    len: usize,
}

/// Entries of records that have left, and of an empty queue, that are kept in any case.
const KEEP: usize = 64;

impl Named for Queue {
    fn named(name: QueueName) -> Self {
        Self { name, entries: VecDeque::new(), len: 0 }
    }

    fn name(&self) -> &QueueName {
        &self.name
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Queue {
    fn push(&mut self, id: u64, held: Held) {
        self.entries.push_back(Entry { id, held: Some(held) });
        self.len += 1;
    }

    fn position(&self, id: u64) -> Option<usize> {
        if self.entries.front()?.id == id {
            return Some(0);
        }
        self.entries.binary_search_by_key(&id, |entry| entry.id).ok()
    }

    fn get_mut(&mut self, id: u64) -> Option<&mut Held> {
        let position = self.position(id)?;
        self.entries.get_mut(position)?.held.as_mut()
    }

    fn remove(&mut self, id: u64) -> Option<Held> {
        let position = self.position(id)?;
        let held = match position {
            0 => self.entries.pop_front()?.held,
            _ => self.entries.get_mut(position)?.held.take(),
        }?;
        self.len -= 1;
        while self.entries.front().is_some_and(|entry| entry.held.is_none()) {
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(KEEP);
        } else if self.entries.len() > 2 * self.len + KEEP {
            // Behind one that stays, what has left would pile up. Each entry is moved once for each
            // that is taken away.
            self.entries.retain(|entry| entry.held.is_some());
        }
        Some(held)
    }

    /// The records from an id on.
    fn held_from(&self, id: u64) -> impl Iterator<Item = (u64, &Held)> {
        let first = self.entries.partition_point(|entry| entry.id < id);
        self.entries.range(first..).filter_map(|entry| Some((entry.id, entry.held.as_ref()?)))
    }
}

#[derive(Default)]
struct State {
    closed: bool,
    last_id: u64,
    last_lease: u64,
    queues: Names<Queue>,
    recent: Recent,
    marks: ahash::HashMap<u128, u64>,
    /// Which record of which queue is leased. A queue that holds a record keeps its number.
    leases: HashMap<LeaseId, (u32, u64)>,
    /// Where pieces are put together.
    joined: Vec<u8>,
}

/// Above this the memory for pieces is given back.
const KEEP_JOINED: usize = 64 * 1024;

/// See the module's header.
#[derive(Default)]
pub(crate) struct MemoryQueue {
    state: Mutex<State>,
}

impl State {
    fn append(&mut self, record: &Append, since: SystemTime) -> RecordId {
        self.last_id += 1;
        let payload = self.join(&record.payload);
        for name in &record.queues {
            let number = self.queues.find_or_add(name, &mut self.recent);
            let Some(queue) = self.queues.get_mut(number) else { continue };
            let was_empty = queue.is_empty();
            queue.push(self.last_id, Held { payload: Arc::clone(&payload), since, special: None });
            self.queues.empty -= usize::from(was_empty);
        }
        RecordId(self.last_id)
    }

    /// The pieces as one.
    fn join(&mut self, pieces: &[Bytes]) -> Arc<[u8]> {
        if let [piece] = pieces {
            return Arc::from(&piece[..]);
        }
        self.joined.clear();
        pieces.iter().for_each(|piece| self.joined.extend_from_slice(piece));
        let payload = Arc::from(&self.joined[..]);
        self.joined.shrink_to(KEEP_JOINED);
        payload
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

    fn settle(&mut self, Settle { queue, id, verdict }: &Settle) {
        if let Some(number) = self.queues.find(queue, &mut self.recent) {
            self.say(number, id.0, verdict);
        }
    }

    /// Applies a verdict on a record of a queue.
    fn say(&mut self, number: u32, id: u64, verdict: &Verdict) {
        let Some(queue) = self.queues.get_mut(number) else { return };
        if *verdict == Verdict::Ack {
            let Some(held) = queue.remove(id) else { return };
            self.queues.empty += usize::from(queue.is_empty());
            if let Some(lease) = held.lease() {
                self.leases.remove(&lease);
            }
            return;
        }
        let Some(held) = queue.get_mut(id) else { return };
        let is_parked = held.is_parked();
        let special = held.special();
        match verdict {
            Verdict::Nack { .. } if is_parked => return,
            Verdict::Nack { delay } => {
                let now = Instant::now();
                special.not_before = now.checked_add(check::wait(*delay));
                // A lease was counted when it was given.
                if !special.is_leased(now) {
                    special.attempts = special.attempts.saturating_add(1);
                }
            }
            Verdict::Park { reason } => {
                special.parked = Some(check::reason(reason).to_owned());
                special.not_before = None;
            }
            Verdict::Unpark | Verdict::Ack => {
                special.parked = None;
                return;
            }
        }
        if let Some((lease, _)) = special.lease.take() {
            self.leases.remove(&lease);
        }
    }

    /// The record under a lease that is still held, and its queue.
    fn held(&mut self, lease: LeaseId) -> Result<(u32, u64, &mut Special), QueueError> {
        let (number, id) = *self.leases.get(&lease).ok_or(QueueError::LeaseLost)?;
        let special = self.queues.get_mut(number).and_then(|queue| queue.get_mut(id)?.special.as_deref_mut());
        let held = |special: &&mut Special| {
            special.lease.is_some_and(|(by, until)| by == lease && until > Instant::now())
        };
        special.filter(held).map(|special| (number, id, special)).ok_or(QueueError::LeaseLost)
    }

    fn lease(&mut self, queue: &QueueName, max: usize, how_long: Duration) -> Vec<Leased> {
        let now = Instant::now();
        let how_long = check::wait(how_long);
        let until = SystemTime::now() + how_long;
        let Some(number) = self.queues.number(queue) else { return Vec::new() };
        let Some(queue) = self.queues.get_mut(number) else { return Vec::new() };
        let mut leased = Vec::new();
        let held = queue.entries.iter_mut().filter_map(|entry| Some((entry.id, entry.held.as_mut()?)));
        let free = held.filter(|(_, held)| held.special.as_ref().is_none_or(|special| special.is_free(now)));
        for (id, held) in free.take(max) {
            self.last_lease += 1;
            let lease = LeaseId(self.last_lease);
            leased.push(Leased { record: held.record(id), lease, until });
            let special = held.special();
            if let Some((expired, _)) = special.lease.replace((lease, now + how_long)) {
                self.leases.remove(&expired);
            }
            self.leases.insert(lease, (number, id));
            special.attempts = special.attempts.saturating_add(1);
        }
        leased
    }

    fn queue(&self, name: &str) -> Option<&Queue> {
        self.queues.get(self.queues.number(name)?)
    }
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
        let checked = check::batch(&batch);
        self.with(|state| {
            checked?;
            // One clock for the batch: it is committed at one moment.
            let since = SystemTime::now();
            let ids = batch.records.iter().map(|record| state.append(record, since)).collect();
            batch.marks.iter().for_each(|mark| state.mark(*mark));
            batch.settles.iter().for_each(|settle| state.settle(settle));
            state.queues.sweep();
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
            let Some(queue) = state.queue(&queue) else { return Ok(Vec::new()) };
            let from = after.map_or(0, |id| id.0.saturating_add(1));
            let mut bytes = 0_usize;
            let mut records = Vec::new();
            for (id, held) in queue.held_from(from).filter(|(_, held)| !held.is_parked()).take(max) {
                bytes += held.payload.len();
                if bytes > max_bytes && !records.is_empty() {
                    break;
                }
                records.push(held.record(id));
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
            let (.., special) = state.held(lease)?;
            special.lease = Some((lease, Instant::now() + check::wait(how_long)));
            Ok(())
        })
    }

    fn settle(&self, lease: LeaseId, verdict: Verdict) -> BoxFuture<'static, Result<(), QueueError>> {
        self.with(|state| {
            let (number, id, _) = state.held(lease)?;
            state.say(number, id, &verdict);
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
            let Some(queue) = state.queue(&queue) else { return Ok(Vec::new()) };
            let from = after.map_or(0, |id| id.0.saturating_add(1));
            let parked = queue.held_from(from).filter_map(|(id, held)| {
                let reason = held.special.as_ref()?.parked.clone()?;
                Some(Parked { record: held.record(id), reason })
            });
            Ok(parked.take(max).collect())
        })
    }

    fn purge(&self, queue: QueueName) -> BoxFuture<'static, Result<(), QueueError>> {
        self.with(|state| {
            check::name(&queue)?;
            let number = state.queues.number(&queue);
            let Some(queue) = number.and_then(|number| state.queues.get_mut(number)) else { return Ok(()) };
            let was_empty = queue.is_empty();
            let emptied = std::mem::replace(queue, Queue::named(QueueName::clone(&queue.name)));
            state.queues.empty += usize::from(!was_empty);
            for lease in emptied.held_from(0).filter_map(|(_, held)| held.lease()) {
                state.leases.remove(&lease);
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
            for (id, held) in state.queue(&queue).into_iter().flat_map(|queue| queue.held_from(0)) {
                if held.is_parked() {
                    stats.parked += 1;
                    continue;
                }
                stats.pending += 1;
                stats.bytes += held.payload.len() as u64;
                stats.leased +=
                    u64::from(held.special.as_ref().is_some_and(|special| special.is_leased(now)));
                stats.oldest = stats.oldest.or(Some(RecordId(id)));
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
        self.with(|state| Ok(state.queues.list(&prefix, after.as_deref(), max)))
    }

    fn close(&self) -> BoxFuture<'static, Result<(), QueueError>> {
        self.with(|state| {
            *state = State { closed: true, ..State::default() };
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held { payload: Arc::from(&[][..]), since: SystemTime::UNIX_EPOCH, special: None }
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Entry>(), 48);
    }

    #[test]
    fn what_has_left_does_not_pile_up_behind_what_stays() {
        let mut queue = Queue::named(QueueName::from("a"));
        queue.push(1, held());
        for id in 2..10_000 {
            queue.push(id, held());
            // In pairs, the second one first.
            if id % 2 == 1 {
                assert!(queue.remove(id).is_some() && queue.remove(id).is_none(), "{id}");
                assert!(queue.remove(id - 1).is_some(), "{id}");
            }
            assert!(queue.entries.len() <= 2 * queue.len + KEEP + 1, "{id}: {}", queue.entries.len());
        }
        assert!(queue.get_mut(1).is_some() && queue.get_mut(2).is_none());
        assert!(queue.remove(1).is_some() && queue.is_empty() && queue.entries.is_empty());
        assert!(queue.entries.capacity() <= KEEP);
    }
}
