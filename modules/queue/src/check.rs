//! The limits of batches and names, checked before anything is queued, the same for every back-end.

use std::time::Duration;

use waystation_core::queue::{
    Batch, MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_PAYLOAD, MAX_QUEUE_NAME, MAX_QUEUES, QueueError, Verdict,
};

/// What an item weighs beside its payload: its place in queues and maps.
const ITEM_OVERHEAD: usize = 96;

/// Most bytes that are kept of the reason why a record is parked.
pub(crate) const MAX_REASON: usize = 1_000;

/// Checks a batch and returns its weight in bytes.
pub(crate) fn batch(batch: &Batch) -> Result<usize, QueueError> {
    if batch.records.len() > MAX_BATCH_ITEMS
        || batch.settles.len() > MAX_BATCH_ITEMS
        || batch.marks.len() > MAX_BATCH_ITEMS
    {
        return Err(QueueError::Invalid("too many records, verdicts or marks"));
    }
    // Each piece is at most isize::MAX long, but not their sum.
    let mut bytes = 0_usize;
    let mut names = 0_usize;
    for record in &batch.records {
        if record.queues.is_empty() || record.queues.len() > MAX_QUEUES {
            return Err(QueueError::Invalid("a record has to be in one to eight queues"));
        }
        for (at, queue) in record.queues.iter().enumerate() {
            name(queue)?;
            names += queue.len();
            if record.queues[..at].contains(queue) {
                return Err(QueueError::Invalid("a record names a queue twice"));
            }
        }
        let payload = record.payload.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        if payload > MAX_PAYLOAD {
            return Err(QueueError::Invalid("a payload is too long"));
        }
        bytes = bytes.saturating_add(payload);
    }
    if bytes > MAX_BATCH_BYTES {
        return Err(QueueError::Invalid("the payloads of a batch are too long together"));
    }
    for settle in &batch.settles {
        name(&settle.queue)?;
        names += settle.queue.len();
        if let Verdict::Park { reason } = &settle.verdict {
            names += reason.len().min(MAX_REASON);
        }
    }
    let items = 1 + batch.records.len() + batch.settles.len() + batch.marks.len();
    Ok(bytes + names + ITEM_OVERHEAD * items)
}

/// Checks the name of a queue.
pub(crate) fn name(name: &str) -> Result<(), QueueError> {
    if name.is_empty() || name.len() > MAX_QUEUE_NAME {
        return Err(QueueError::Invalid("the length of a queue's name"));
    }
    // Byte by byte for those of ASCII, as nearly all are: names are a fifth of what an append costs.
    let has_control = match name.is_ascii() {
        true => name.bytes().any(|byte| byte.is_ascii_control()),
        false => name.chars().any(char::is_control),
    };
    if has_control {
        return Err(QueueError::Invalid("a control character in a queue's name"));
    }
    Ok(())
}

/// The part of a reason that is kept: whole characters of its first [`MAX_REASON`] bytes.
pub(crate) fn reason(text: &str) -> &str {
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A wait that every clock can reach the end of: at most ten years.
pub(crate) fn wait(asked: Duration) -> Duration {
    asked.min(Duration::from_secs(10 * 365 * 24 * 60 * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_has_control_characters() {
        for good in ["a/romeo@localhost", "a/\u{e9}@localhost", "~"] {
            assert!(name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a\n", "\u{7f}", "\u{e9}\u{0}", "\u{85}", &"x".repeat(MAX_QUEUE_NAME + 1)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(reason("short"), "short");
        let long = "x".repeat(MAX_REASON - 1) + "\u{20ac}";
        assert_eq!(reason(&long), &long[..MAX_REASON - 1]);
    }
}
