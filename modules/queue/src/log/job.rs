//! What callers of the log have committed: everything that changes it goes this way.
//!
//! What must hold: a job says what is wanted, not how it is written; whether it can be done is
//! decided when its turn comes, after all that was queued before it.

use waystation_core::queue::{Batch, LeaseId, QueueError, QueueName, RecordId, Verdict};

/// What a caller wants to have committed.
pub(crate) enum Job {
    /// See `QueueBackend::commit`.
    Batch(Batch),
    /// Counts an attempt on each of these records, which were just leased.
    Leased { queue: QueueName, ids: Vec<u64> },
    /// See `QueueBackend::settle`.
    Settle { lease: LeaseId, verdict: Verdict },
    /// See `QueueBackend::purge`.
    Purge { queue: QueueName },
}

/// What a job resolves to: the ids of its records.
pub(crate) type Outcome = Result<Vec<RecordId>, QueueError>;

/// The jobs that wait.
pub(crate) type Inbox = waystation_committer::Inbox<Job, Vec<RecordId>, QueueError>;

/// A job with the way back to its caller.
pub(crate) type Entry = waystation_committer::Entry<Job, Vec<RecordId>, QueueError>;

/// The future of one job.
pub(crate) type Commit = waystation_committer::Commit<Job, Vec<RecordId>, QueueError>;
