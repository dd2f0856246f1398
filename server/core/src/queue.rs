//! The seam to the durable queue: named queues over one ordered log of records.
//!
//! What must hold for every back-end: a batch is committed whole or not at all, and `commit`
//! resolves only when the batch survives what [`Capabilities::durability`] promises; ids grow in
//! the order of commit over all queues, so that two queues agree on the order of the records
//! they share; a record stays in a queue until that queue's consumer has acknowledged it, and is
//! never served again after that acknowledgement is durable; a payload is stored once, however
//! many queues hold it; what is damaged is reported, never served and never skipped in silence.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::storage::{BoxFuture, Durability};

/// Name of a queue: 1 to [`MAX_QUEUE_NAME`] bytes of UTF-8 without control characters, such as
/// `a/juliet@example.org`. A queue exists while it holds a record.
pub type QueueName = Arc<str>;

/// Longest name of a queue in bytes: a JID of any length and a prefix.
pub const MAX_QUEUE_NAME: usize = 3_200;
/// Most queues that one record can be in.
pub const MAX_QUEUES: usize = 8;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 16 * 1024 * 1024;
/// Most records, acknowledgements or marks in one batch.
pub const MAX_BATCH_ITEMS: usize = 10_000;
/// Most bytes of payload in one batch.
pub const MAX_BATCH_BYTES: usize = 32 * 1024 * 1024;

/// Position of a record in the order of commits; never used twice by one back-end, 0 never used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(pub u64);

/// The bytes of a record, in pieces so that a shared tail needs no copy: the pieces are stored
/// one behind the other and read back as one.
pub type Payload = SmallVec<[Bytes; 2]>;

/// A record to be appended.
#[derive(Clone, Debug)]
pub struct Append {
    /// The queues that hold it, 1 to [`MAX_QUEUES`], without repetition.
    pub queues: SmallVec<[QueueName; 2]>,
    /// What it says.
    pub payload: Payload,
}

/// A named number that is committed together with records: how far a stream of stanzas has been
/// stored (XEP-0198 `h`), for instance.
///
/// A mark only grows: setting a smaller value than the present one changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Whose number it is.
    pub key: u128,
    /// The number; `None` removes the mark.
    pub value: Option<u64>,
}

/// What a record's consumer has to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done: the record leaves the queue.
    Ack,
    /// Not done: the record is offered again no earlier than `delay` from now.
    Nack {
        /// How long to wait.
        delay: Duration,
    },
    /// Cannot be done: the record is set aside, to be looked at by people (see
    /// [`QueueBackend::parked`]).
    Park {
        /// Why, in words for people; at most 1,000 bytes are kept.
        reason: String,
    },
    /// A parked record becomes an ordinary one again, at its place in the order.
    Unpark,
}

/// A verdict on one record of one queue. One about a record that is not (or no longer) in the
/// queue changes nothing.
#[derive(Clone, Debug)]
pub struct Settle {
    /// The queue.
    pub queue: QueueName,
    /// The record.
    pub id: RecordId,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What is committed together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Records, appended in this order with consecutive order of ids.
    pub records: Vec<Append>,
    /// Verdicts on records of earlier batches.
    pub settles: Vec<Settle>,
    /// Numbers to set.
    pub marks: Vec<Mark>,
}

impl Batch {
    /// True when there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.settles.is_empty() && self.marks.is_empty()
    }
}

/// A record as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub id: RecordId,
    /// What it says.
    pub payload: Bytes,
    /// When it was committed.
    pub since: SystemTime,
    /// How often it was leased or refused (nack) before.
    pub attempts: u32,
}

/// A record that one consumer works on until a moment.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The record.
    pub record: Record,
    /// Names the lease: only its holder can extend it or settle under it.
    pub lease: LeaseId,
    /// When the record is offered to others again.
    pub until: SystemTime,
}

/// Identity of a lease, never used twice in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u64);

/// A record that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The record.
    pub record: Record,
    /// Why.
    pub reason: String,
}

/// Figures of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Records that are not acknowledged, parked ones not counted.
    pub pending: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Of the pending, those under a lease now.
    pub leased: u64,
    /// Records set aside.
    pub parked: u64,
    /// The oldest pending record's position.
    pub oldest: Option<RecordId>,
    /// Every record of the queue up to this position is counted here, or has left the queue.
    pub as_of: RecordId,
}

/// What a back-end can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What a resolved commit survives.
    pub durability: Durability,
    /// True when a batch is applied whole or not at all also across a crash. Otherwise its parts
    /// are applied in the order records, marks, verdicts, so that a crash may repeat work and
    /// never loses any.
    pub atomic: bool,
    /// True when other servers use the same queues.
    pub shared: bool,
}

/// Why a queue operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// No room on the device; nothing of the batch was applied. Later commits may succeed.
    #[error("the disk is full")]
    Full,
    /// The batch breaks a limit of this module.
    #[error("the batch breaks a limit: {0}")]
    Invalid(&'static str),
    /// The lease has expired or was settled: its record may be someone else's by now.
    #[error("the lease is no longer held")]
    LeaseLost,
    /// Stored data cannot be read back. It stays where it is until it is settled or repaired.
    #[error("the queue's data is damaged: {detail}")]
    Corrupt {
        /// The damaged record, where it is one record that is damaged: a reader goes on behind it
        /// by reading after this position, a consumer by parking or acknowledging it.
        record: Option<RecordId>,
        /// What is damaged, and where.
        detail: String,
    },
    /// The queue was closed, or has stopped after a failed flush: whether the batch was applied
    /// is known only after it was opened again.
    #[error("the queue is closed")]
    Closed,
    /// Any other failure of the device, the system or the broker; whether the batch was applied
    /// is open.
    #[error("queue input/output failed: {0}")]
    Io(String),
}

/// A queue engine. Cheap to share; every method may be called from any thread and never blocks
/// the caller: what takes time resolves later.
pub trait QueueBackend: Send + Sync + 'static {
    /// What the engine promises.
    fn capabilities(&self) -> Capabilities;

    /// Commits a batch; resolves with the ids of its records, in their order, once it is as
    /// durable as [`Capabilities::durability`] says. Batches are applied in the order of the
    /// calls: a batch is queued when this is called, not when the future is first polled.
    /// Dropping the future leaves open whether the batch is applied, as a crash would.
    ///
    /// # Errors
    /// [`QueueError`]. After `Closed` or `Io` nothing more is committed.
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Vec<RecordId>, QueueError>>;

    /// Pending records of a queue after a position, oldest first: at most `max` of them and,
    /// from the second on, no more than `max_bytes` of payload. Leased ones and those that wait
    /// after a nack are included, for this reader keeps its own account of what it has under way.
    fn read(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
        max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<Record>, QueueError>>;

    /// Leases pending records that nobody holds and whose delay has passed, oldest first. `how_long`
    /// counts from when they are handed out: what the engine has to do before takes nothing from it.
    fn lease(
        &self,
        queue: QueueName,
        max: usize,
        how_long: Duration,
    ) -> BoxFuture<'static, Result<Vec<Leased>, QueueError>>;

    /// Makes a lease last until `how_long` from now.
    ///
    /// # Errors
    /// [`QueueError::LeaseLost`].
    fn extend(&self, lease: LeaseId, how_long: Duration) -> BoxFuture<'static, Result<(), QueueError>>;

    /// Settles a leased record, and ends the lease.
    ///
    /// # Errors
    /// [`QueueError::LeaseLost`]; nothing was changed then.
    fn settle(&self, lease: LeaseId, verdict: Verdict) -> BoxFuture<'static, Result<(), QueueError>>;

    /// Records of a queue that were set aside, oldest first.
    fn parked(
        &self,
        queue: QueueName,
        after: Option<RecordId>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<Parked>, QueueError>>;

    /// Acknowledges every record that is in a queue now, parked ones included.
    fn purge(&self, queue: QueueName) -> BoxFuture<'static, Result<(), QueueError>>;

    /// A mark's value.
    fn mark(&self, key: u128) -> BoxFuture<'static, Result<Option<u64>, QueueError>>;

    /// Figures of a queue; zeros for one that holds nothing.
    fn stats(&self, queue: QueueName) -> BoxFuture<'static, Result<QueueStats, QueueError>>;

    /// Names of queues that hold records, in the order of their bytes: those that begin with
    /// `prefix` and come after `after`, at most `max`.
    fn queues(
        &self,
        prefix: String,
        after: Option<QueueName>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<QueueName>, QueueError>>;

    /// Commits what was queued and lets the engine's files go. Later calls answer
    /// [`QueueError::Closed`].
    fn close(&self) -> BoxFuture<'static, Result<(), QueueError>>;
}
