//! The seam to durable state: typed key spaces, atomic batches, compare-and-set, ordered scans.
//!
//! What must hold for every back-end: a batch is applied whole or not at all; `commit` resolves
//! only when the batch survives what the configured [`Durability`] promises; after `commit`
//! resolved, `get` and `scan` see the batch; keys of a space are ordered as bytes.

use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;

use bytes::Bytes;

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A named key space. Each one is a partition of its own in back-ends that have partitions.
///
/// The name is lower-case ASCII with `_`, at most 32 bytes, and never changes once released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(pub &'static str);

/// What a resolved commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: the data was flushed to the device.
    Fsync,
    /// A crash of the process: the data is with the operating system.
    Os,
    /// Nothing: the data is in this process's memory (or not flushed to the system).
    Memory,
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a value, replacing any earlier one.
    Put {
        /// The space written to.
        space: Space,
        /// The key, 1 to [`MAX_KEY`] bytes.
        key: Bytes,
        /// The value, at most [`MAX_VALUE`] bytes.
        value: Bytes,
    },
    /// Removes a key; removing an absent key is no error.
    Delete {
        /// The space.
        space: Space,
        /// The key.
        key: Bytes,
    },
}

/// Longest key in bytes.
pub const MAX_KEY: usize = 4096;
/// Longest value in bytes.
pub const MAX_VALUE: usize = 16 * 1024 * 1024;
/// Most changes in one batch, and most conditions.
pub const MAX_BATCH_OPS: usize = 10_000;
/// Most bytes of keys and values in one batch, conditions included.
pub const MAX_BATCH_BYTES: usize = 32 * 1024 * 1024;

/// A condition that must hold for a batch to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The space.
    pub space: Space,
    /// The key.
    pub key: Bytes,
    /// The value that must be stored now; `None`: the key must be absent.
    pub value: Option<Bytes>,
}

/// Changes that are applied together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Conditions, checked atomically with the changes.
    pub expects: Vec<Expect>,
    /// Changes, applied in order.
    pub ops: Vec<Op>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put { space, key: key.into(), value: value.into() });
        self
    }

    /// Adds a removal.
    #[must_use]
    pub fn delete(mut self, space: Space, key: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Delete { space, key: key.into() });
        self
    }

    /// Adds a condition: the batch fails with [`StorageError::Conflict`] unless it holds.
    #[must_use]
    pub fn expect(mut self, space: Space, key: impl Into<Bytes>, value: Option<Bytes>) -> Self {
        self.expects.push(Expect { space, key: key.into(), value });
        self
    }

    /// True when there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Which keys a scan returns, and in which direction.
#[derive(Clone, Debug)]
pub struct ScanRange {
    /// Lower end.
    pub start: Bound<Bytes>,
    /// Upper end.
    pub end: Bound<Bytes>,
    /// Descending key order when true.
    pub reverse: bool,
    /// Most rows to return. Scans never return more than this.
    pub limit: usize,
}

impl ScanRange {
    /// All keys that begin with `prefix`, ascending, at most `limit` rows.
    pub fn prefix(prefix: impl Into<Bytes>, limit: usize) -> Self {
        let start = prefix.into();
        let end = match prefix_end(&start) {
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        };
        Self { start: Bound::Included(start), end, reverse: false, limit }
    }

    /// The same range, read from its end.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Continues after `key` (exclusive) in an ascending scan.
    #[must_use]
    pub fn after(mut self, key: impl Into<Bytes>) -> Self {
        self.start = Bound::Excluded(key.into());
        self
    }
}

/// The smallest key greater than every key that begins with `prefix`; `None` when there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// Joins key parts with NUL, which no JID part may contain, so that prefixes never run together.
pub fn key(parts: &[&str]) -> Bytes {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.len() + 1).sum());
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push(0);
        }
        out.extend_from_slice(part.as_bytes());
    }
    out.into()
}

/// Key and value of one stored row.
pub type Row = (Bytes, Bytes);

/// Why a storage operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// A condition of the batch did not hold; nothing was applied.
    #[error("a condition of the batch did not hold")]
    Conflict,
    /// No space left on the device; nothing was applied. Retry later, unless later commits answer
    /// [`StorageError::Closed`]: then the device filled up in the middle of a write, and whether
    /// the batch took effect is known only after the store was opened again.
    #[error("the disk is full")]
    Full,
    /// The batch, a key or a value is larger than the limits of this module.
    #[error("the batch exceeds a storage limit: {0}")]
    TooLarge(&'static str),
    /// An empty key, or a name of a space that is not of the form [`Space`] demands.
    #[error("the batch or query is not valid: {0}")]
    Invalid(&'static str),
    /// Stored data cannot be read back.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// The store has been closed, or stopped after a failed flush: nothing can be promised.
    #[error("the store is closed")]
    Closed,
    /// Any other failure of the device or the operating system.
    #[error("storage input/output failed: {0}")]
    Io(String),
}

/// A store. Cheap to share; every method may be called from any thread.
pub trait Storage: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>>;

    /// Rows of a range in key order.
    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>>;

    /// Applies a batch atomically. Commits issued by one task one after the other (without
    /// awaiting) are applied in the order of issue: the batch is queued when this is called,
    /// not when the future is first polled. The caller is never blocked: when the queue is at
    /// its limit, the future resolves that much later.
    ///
    /// Dropping the future leaves open whether the batch is applied, as a crash would.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] when a condition fails; after a failed flush every later
    /// commit fails with [`StorageError::Closed`], for what the device holds is unknown.
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>>;

    /// What a resolved commit survives.
    fn durability(&self) -> Durability;

    /// Name of the back-end, for logs: `fjall`, `sled`, `memory`.
    fn name(&self) -> &'static str;

    /// Flushes and closes; later calls fail with [`StorageError::Closed`].
    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_is_the_next_key_after_all_with_the_prefix() {
        assert_eq!(prefix_end(b"ab").as_deref(), Some(&b"ac"[..]));
        assert_eq!(prefix_end(&[b'a', 0xff]).as_deref(), Some(&b"b"[..]));
        assert_eq!(prefix_end(&[0xff, 0xff]), None);
    }

    #[test]
    fn key_parts_do_not_run_together() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }
}
