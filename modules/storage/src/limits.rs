//! The limits of keys, values, batches and names, checked before anything is queued or read.

use std::ops::Bound;

use waystation_core::storage::{
    Batch, MAX_BATCH_BYTES, MAX_BATCH_OPS, MAX_KEY, MAX_VALUE, Op, ScanRange, Space, StorageError,
};

/// Longest name of a space, in bytes.
const MAX_SPACE: usize = 32;

/// What an operation weighs beside its key and value: its place in queues and maps.
const OP_OVERHEAD: usize = 96;

/// Checks a batch and returns its weight in bytes.
pub(crate) fn check_batch(batch: &Batch) -> Result<usize, StorageError> {
    if batch.ops.len() > MAX_BATCH_OPS {
        return Err(StorageError::TooLarge("too many changes in one batch"));
    }
    if batch.expects.len() > MAX_BATCH_OPS {
        return Err(StorageError::TooLarge("too many conditions in one batch"));
    }
    // Lengths are at most isize::MAX each and their count is bounded, but not their sum.
    let mut bytes: usize = 0;
    for op in &batch.ops {
        let (space, key, value) = match op {
            Op::Put { space, key, value } => (space, key, value.len()),
            Op::Delete { space, key } => (space, key, 0),
        };
        check_space(*space)?;
        check_key(key)?;
        check_value(value)?;
        bytes = bytes.saturating_add(key.len() + value);
    }
    for expect in &batch.expects {
        check_space(expect.space)?;
        check_key(&expect.key)?;
        let value = expect.value.as_ref().map_or(0, |value| value.len());
        check_value(value)?;
        bytes = bytes.saturating_add(expect.key.len() + value);
    }
    if bytes > MAX_BATCH_BYTES {
        return Err(StorageError::TooLarge("the keys and values of one batch"));
    }
    Ok(bytes + OP_OVERHEAD * (1 + batch.ops.len() + batch.expects.len()))
}

/// Checks a key to be read or written.
pub(crate) fn check_key(key: &[u8]) -> Result<(), StorageError> {
    if key.is_empty() {
        return Err(StorageError::Invalid("an empty key"));
    }
    if key.len() > MAX_KEY {
        return Err(StorageError::TooLarge("a key"));
    }
    Ok(())
}

fn check_value(len: usize) -> Result<(), StorageError> {
    if len > MAX_VALUE {
        return Err(StorageError::TooLarge("a value"));
    }
    Ok(())
}

/// Checks the form that [`Space`] demands, on which the engines rely (sled's keys begin with it).
pub(crate) fn check_space(space: Space) -> Result<(), StorageError> {
    let name = space.0.as_bytes();
    let fits = !name.is_empty() && name.len() <= MAX_SPACE;
    if fits && name.iter().all(|b| b.is_ascii_lowercase() || *b == b'_') {
        return Ok(());
    }
    Err(StorageError::Invalid("the name of the space"))
}

/// Checks the ends of a range. `Ok(false)`: no key can be in it.
pub(crate) fn check_range(range: &ScanRange) -> Result<bool, StorageError> {
    for bound in [&range.start, &range.end] {
        if let Bound::Included(key) | Bound::Excluded(key) = bound
            && key.len() > MAX_KEY
        {
            return Err(StorageError::TooLarge("the end of a range"));
        }
    }
    // The engines and the standard maps panic on some ranges that hold nothing.
    let holds_any = match (&range.start, &range.end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        (Bound::Included(start), Bound::Included(end)) => start <= end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
            start < end
        }
    };
    Ok(holds_any && range.limit > 0)
}
