//! The embedded log: queues in append-only segments of one folder.
//!
//! What must hold:
//! - a batch is one frame, whole or absent, also after a crash ([`frame`], [`scan`]);
//! - all waiting batches are written by one thread with one write and one flush ([`committer`]);
//! - a payload is stored once, however many queues hold it, and is not kept in memory;
//! - a commit waits for its own flush, not for an index, a checkpoint or a new segment ([`keeper`]);
//! - what comes behind the checkpoint stands in the active segment, and for a while in the one before
//!   it; the second is written only when the first was flushed to its end ([`keep`], [`recover`]);
//! - a sealed segment never changes; what is acknowledged in it is a bit in memory and in the
//!   checkpoint ([`state`], [`checkpoint`]); it is removed when all of it is ([`keep`]);
//! - verdicts and marks are part of the frames; once a checkpoint holds their effect, the segment
//!   that held them is not needed for them;
//! - what is damaged is reported with its place, never served, never skipped ([`read`],
//!   [`recover`]).
//!
//! The folder:
//! ```text
//! lock                    locked while the log is open
//! checkpoint              what the log held at one position of the active segment, or of the one
//!                         before it (checkpoint)
//! 0000000007-0000.log     a segment: header (segment) and frames (frame); number and generation.
//!                         Behind the active one there may be one that was made ahead, with nothing
//!                         in it; those before are sealed
//! 0000000007-0000.index   of a sealed one: which queue held which records (index); it may be missing
//!                         from the last sealed one after a crash
//! torn-*, damaged-*       what recovery cut off and repair set aside, for people to look at
//! ```
//! Every file begins with its magic and [`crate::FORMAT_VERSION`].

pub(crate) mod checkpoint;
pub(crate) mod committer;
mod compact;
pub(crate) mod find;
pub(crate) mod frame;
pub(crate) mod index;
pub(crate) mod job;
pub(crate) mod keep;
pub(crate) mod keeper;
pub(crate) mod marks;
pub(crate) mod queue;
pub(crate) mod read;
mod reader;
pub(crate) mod recover;
pub(crate) mod scan;
pub(crate) mod segment;
pub(crate) mod snapshot;
pub(crate) mod state;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use waystation_committer::{Limit, Readers, Reserve};
use waystation_core::queue::{
    Batch, Capabilities, LeaseId, Leased, MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_QUEUE_NAME, Parked,
    QueueBackend, QueueError, QueueName, QueueStats, Record, RecordId, Verdict,
};
use waystation_core::storage::{BoxFuture, Durability};

use crate::error::OpenError;
use crate::fs::FileSystem;
use crate::log::committer::{Committer, Shared};
use crate::log::find::Scan;
use crate::log::index::Pages;
use crate::log::job::{Commit, Inbox, Job};
use crate::log::keeper::Keeper;
use crate::log::queue::Queue;
use crate::options::{MAX_SEGMENT, MIN_SEGMENT};
use crate::{Options, check};

/// Name of the file that is locked.
const LOCK: &str = "lock";
/// What the log holds of batches that wait. A single batch always fits.
const WAITING: Limit = Limit { entries: 65_536, bytes: 2 * MAX_BATCH_BYTES };
/// What is committed with one flush: enough to amortise it, and small enough that the first of a
/// group does not wait long for the last.
const GROUP: Limit = Limit { entries: 16_384, bytes: 8 * 1024 * 1024 };
/// Threads that read records.
const READERS: usize = 2;
/// What a job beside a batch weighs in the inbox: more than it takes in the log.
const JOB: usize = 128;

/// See the module's header.
pub(crate) struct Log {
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    durability: Durability,
    committer: Option<JoinHandle<()>>,
    /// Resolves when the committer has ended; taken by the first `close`.
    ended: Mutex<Option<oneshot::Receiver<Result<(), QueueError>>>>,
}

/// Locks a folder, which is made if it is absent.
pub(crate) fn lock(fs: &dyn FileSystem, folder: &Path) -> Result<Box<dyn crate::fs::Lock>, OpenError> {
    fs.make_folder(folder).map_err(OpenError::io("make", folder))?;
    let path = folder.join(LOCK);
    let lock = fs.lock(&path).map_err(OpenError::io("lock", &path))?;
    lock.ok_or_else(|| OpenError::Locked { path: folder.to_owned() })
}

impl Log {
    /// Opens the log of a folder, and makes it when there is none.
    pub(crate) fn open(
        fs: Arc<dyn FileSystem>,
        folder: &Path,
        options: &Options,
    ) -> Result<Arc<Self>, OpenError> {
        let mut options = options.clone();
        options.segment_bytes = options.segment_bytes.clamp(MIN_SEGMENT, MAX_SEGMENT);
        if options.durability == Durability::Memory {
            options.durability = Durability::Os;
        }
        let durability = options.durability;
        let lock = lock(&*fs, folder)?;
        let pages = Pages::new(options.cache_bytes);
        let began = Instant::now();
        let opened = recover::open(&*fs, folder, &options, &pages)?;
        tracing::info!(
            folder = %folder.display(), ?durability, segments = opened.state.sealed.len() + 1,
            milliseconds = began.elapsed().as_millis(), "queue opened"
        );
        let inbox = Arc::new(Inbox::new(WAITING, GROUP));
        let shared = Arc::new(Shared {
            state: RwLock::new(opened.state),
            pages,
            inbox,
            closed: AtomicBool::new(false),
        });
        let probe = {
            let (fs, folder) = (Arc::clone(&fs), folder.to_owned());
            Box::new(move || fs.free_space(&folder))
        };
        let mut committer = Committer {
            shared: Arc::clone(&shared),
            fs,
            folder: folder.to_owned(),
            reserve: Reserve::new("the queue", probe, options.min_free_bytes),
            options,
            writer: opened.writer,
            encoder: frame::Encoder::default(),
            plan: committer::Plan::default(),
            keeper: None,
            busy: false,
            no_room: false,
            next: None,
            unsealed: opened.unsealed,
            unneeded: opened.unneeded,
            trim: Vec::new(),
            damaged: std::collections::HashSet::new(),
            checkpoint_at: (0, 0),
            _lock: lock,
        };
        let (answer, ended) = oneshot::channel();
        let started = Readers::start("queue-read", READERS).and_then(|readers| {
            let fs = Arc::clone(&committer.fs);
            committer.keeper = Some(Keeper::start(fs, folder.to_owned(), Arc::clone(&shared))?);
            let builder = std::thread::Builder::new().name("queue-commit".to_owned());
            Ok((readers, builder.spawn(move || committer.run(answer))?))
        });
        let (readers, committer) = started.map_err(OpenError::io("start the threads for", folder))?;
        Ok(Arc::new(Self {
            shared,
            readers: Arc::new(readers),
            durability,
            committer: Some(committer),
            ended: Mutex::new(Some(ended)),
        }))
    }

    fn push(&self, job: Job, bytes: usize) -> Result<Commit, QueueError> {
        self.shared.inbox.push(job, bytes)
    }

    /// Runs `act` on a thread that may wait for the device, after a look at the name.
    fn reading<T: Send + 'static>(
        &self,
        queue: QueueName,
        act: impl FnOnce(&Arc<Shared>, &QueueName) -> Result<T, QueueError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, QueueError>> {
        let shared = Arc::clone(&self.shared);
        let readers = Arc::clone(&self.readers);
        Box::pin(async move {
            check::name(&queue)?;
            shared.check_open()?;
            readers.run(move || act(&shared, &queue)).await
        })
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), QueueError> {
        if self.closed.load(Ordering::Acquire) { Err(QueueError::Closed) } else { Ok(()) }
    }
}

/// A future that is resolved already.
fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

impl QueueBackend for Log {
    fn capabilities(&self) -> Capabilities {
        Capabilities { durability: self.durability, atomic: true, shared: false }
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Vec<RecordId>, QueueError>> {
        let queued = check::batch(&batch).and_then(|bytes| self.push(Job::Batch(batch), bytes));
        match queued {
            Ok(commit) => Box::pin(commit),
            Err(error) => ready(Err(error)),
        }
    }

    fn read(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
        max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<Record>, QueueError>> {
        self.reading(queue, move |shared, queue| {
            let from = after.map_or(0, |id| id.0.saturating_add(1));
            let found =
                shared.find(queue, Scan::new(from, max, max_bytes), |queue, id| !queue.is_parked(id))?;
            read::load(&found)
        })
    }

    fn lease(
        &self,
        queue: QueueName,
        max: usize,
        how_long: Duration,
    ) -> BoxFuture<'static, Result<Vec<Leased>, QueueError>> {
        let readers = Arc::clone(&self.readers);
        let claiming =
            self.reading(queue.clone(), move |shared, queue| shared.claim(queue, max.min(MAX_BATCH_ITEMS)));
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let mut claims = Claims { claimed: claiming.await?, shared };
            if claims.claimed.is_empty() {
                return Ok(Vec::new());
            }
            let ids: Vec<u64> = claims.claimed.iter().map(|(found, _)| found.slot.id).collect();
            let bytes = queue.len() + JOB + 16 * ids.len();
            let job = Job::Leased { queue: queue.clone(), ids };
            claims.shared.inbox.push(job, bytes)?.await?;
            let taken = std::mem::take(&mut claims.claimed);
            let shared = Arc::clone(&claims.shared);
            readers.run(move || finish_lease(&shared, taken, how_long)).await
        })
    }

    fn extend(&self, lease: LeaseId, how_long: Duration) -> BoxFuture<'static, Result<(), QueueError>> {
        let now = Instant::now();
        let extended = self.shared.check_open().and_then(|()| {
            let until = now + check::wait(how_long);
            let held = self.shared.state_mut().extend(lease, now, until);
            if held { Ok(()) } else { Err(QueueError::LeaseLost) }
        });
        ready(extended)
    }

    fn settle(&self, lease: LeaseId, verdict: Verdict) -> BoxFuture<'static, Result<(), QueueError>> {
        let reason =
            if let Verdict::Park { reason } = &verdict { reason.len().min(check::MAX_REASON) } else { 0 };
        let queued = self.push(Job::Settle { lease, verdict }, MAX_QUEUE_NAME + reason + JOB);
        Box::pin(async move { queued?.await.map(|_| ()) })
    }

    fn parked(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<Parked>, QueueError>> {
        self.reading(queue, move |shared, queue| {
            let from = after.map_or(0, |id| id.0.saturating_add(1));
            let found = shared.find(queue, Scan::new(from, max, usize::MAX), Queue::is_parked)?;
            let records = read::load(&found)?;
            let parked = records.into_iter().zip(found).map(|(record, found)| Parked {
                record,
                reason: found.reason.map_or_else(String::new, String::from),
            });
            Ok(parked.collect())
        })
    }

    fn purge(&self, queue: QueueName) -> BoxFuture<'static, Result<(), QueueError>> {
        let bytes = queue.len() + JOB;
        let queued = check::name(&queue).and_then(|()| self.push(Job::Purge { queue }, bytes));
        Box::pin(async move { queued?.await.map(|_| ()) })
    }

    fn mark(&self, key: u128) -> BoxFuture<'static, Result<Option<u64>, QueueError>> {
        ready(self.shared.check_open().map(|()| self.shared.state().marks.get(key)))
    }

    fn stats(&self, queue: QueueName) -> BoxFuture<'static, Result<QueueStats, QueueError>> {
        self.reading(queue, |shared, name| {
            let oldest = shared.find(name, Scan::new(0, 1, usize::MAX), |queue, id| !queue.is_parked(id))?;
            let state = shared.state();
            let as_of = RecordId(state.next_id - 1);
            let Some(queue) = state.queue(name) else {
                return Ok(QueueStats { as_of, ..QueueStats::default() });
            };
            let now = Instant::now();
            Ok(QueueStats {
                pending: queue.pending,
                bytes: queue.bytes,
                leased: queue.leases.values().filter(|(_, until)| *until > now).count() as u64,
                parked: queue.parked,
                oldest: oldest.first().filter(|_| queue.pending > 0).map(|found| RecordId(found.slot.id)),
                as_of,
            })
        })
    }

    fn queues(
        &self,
        prefix: String,
        after: Option<QueueName>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<QueueName>, QueueError>> {
        let names = self.shared.check_open();
        ready(names.map(|()| self.shared.state().queues.list(&prefix, after.as_deref(), max)))
    }

    fn close(&self) -> BoxFuture<'static, Result<(), QueueError>> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let ended = ended.ok_or(QueueError::Closed)?;
            shared.inbox.close();
            let outcome = ended.await.unwrap_or(Err(QueueError::Closed));
            shared.closed.store(true, Ordering::Release);
            outcome
        })
    }
}

/// Leases that are given back unless they are handed out.
struct Claims {
    claimed: Vec<(find::Found, Leased)>,
    shared: Arc<Shared>,
}

impl Drop for Claims {
    fn drop(&mut self) {
        if !self.claimed.is_empty() {
            let mut state = self.shared.state_mut();
            self.claimed.iter().for_each(|(_, leased)| state.release(leased.lease));
        }
    }
}

/// Reads the payloads of leased records whose attempts were committed; from now on their leases
/// run, for what was needed to come here must not be taken from the consumer's time.
fn finish_lease(
    shared: &Arc<Shared>,
    claimed: Vec<(find::Found, Leased)>,
    how_long: Duration,
) -> Result<Vec<Leased>, QueueError> {
    let mut claims = Claims { claimed, shared: Arc::clone(shared) };
    {
        let now = Instant::now();
        let state = shared.state();
        // Some may have been acknowledged by others while the attempt was being committed.
        claims.claimed.retain(|(_, leased)| state.held(leased.lease, now).is_some());
    }
    let (found, leased): (Vec<_>, Vec<_>) = std::mem::take(&mut claims.claimed).into_iter().unzip();
    let records = match read::load(&found) {
        Ok(records) => records,
        Err(error) => {
            claims.claimed = found.into_iter().zip(leased).collect();
            return Err(error);
        }
    };
    let mut answer = Vec::with_capacity(records.len());
    let how_long = check::wait(how_long);
    let (now, until) = (Instant::now(), SystemTime::now() + how_long);
    let mut state = shared.state_mut();
    for (index, (found, mut leased)) in found.into_iter().zip(leased).enumerate() {
        match records.get(index) {
            Some(record) => {
                // Settled by others while it was read: it is no longer theirs to have.
                if state.extend(leased.lease, now, now + how_long) {
                    leased.record = record.clone();
                    leased.until = until;
                    answer.push(leased);
                }
            }
            // Behind a damaged one: offered again.
            None => claims.claimed.push((found, leased)),
        }
    }
    // What is given back takes the lock once more.
    drop(state);
    Ok(answer)
}

impl Drop for Log {
    /// Waits until what was queued is committed: only then may the folder's lock go.
    fn drop(&mut self) {
        self.shared.inbox.close();
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            tracing::error!("the queue's thread panicked");
        }
    }
}
