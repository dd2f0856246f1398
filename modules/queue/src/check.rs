//! The limits of batches and names, checked before anything is queued, the same for every back-end.

use std::sync::Arc;
use std::time::Duration;

use waystation_core::queue::{
    Batch, MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_PAYLOAD, MAX_QUEUE_NAME, MAX_QUEUES, QueueError, QueueName,
    Verdict,
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
    let mut known = Known::default();
    for record in &batch.records {
        if record.queues.is_empty() || record.queues.len() > MAX_QUEUES {
            return Err(QueueError::Invalid("a record has to be in one to eight queues"));
        }
        for (at, queue) in record.queues.iter().enumerate() {
            known.name(queue)?;
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
        known.name(&settle.queue)?;
        names += settle.queue.len();
        if let Verdict::Park { reason } = &settle.verdict {
            names += reason.len().min(MAX_REASON);
        }
    }
    let items = 1 + batch.records.len() + batch.settles.len() + batch.marks.len();
    Ok(bytes + names + ITEM_OVERHEAD * items)
}

/// The last names of a batch that were found right: most batches name the same few by turns, and
/// mostly as one string.
#[derive(Default)]
struct Known<'a>([Option<&'a QueueName>; 2]);

impl<'a> Known<'a> {
    fn name(&mut self, queue: &'a QueueName) -> Result<(), QueueError> {
        let [last, before] = self.0;
        // No other name can come to stand there while the batch is borrowed.
        let is_it = |known: Option<&QueueName>| known.is_some_and(|known| Arc::ptr_eq(known, queue));
        if !is_it(last) && !is_it(before) {
            name(queue)?;
            self.0 = [Some(queue), last];
        }
        Ok(())
    }
}

/// Checks the name of a queue.
pub(crate) fn name(name: &str) -> Result<(), QueueError> {
    if name.is_empty() || name.len() > MAX_QUEUE_NAME {
        return Err(QueueError::Invalid("the length of a queue's name"));
    }
    if !is_plain(name.as_bytes()) && name.chars().any(char::is_control) {
        return Err(QueueError::Invalid("a control character in a queue's name"));
    }
    Ok(())
}

/// True only when all bytes are printable ASCII.
///
/// Eight at a time: each message brings four names, which cost a sixth of the commit one by one (690
/// instructions of 3,850 then, 130 now).
fn is_plain(bytes: &[u8]) -> bool {
    const EACH: u64 = u64::MAX / 0xff;
    const HIGH: u64 = 0x80 * EACH;
    // The high bit of a byte ends up set when it was set, when adding one sets it (0x7f), or when
    // taking 0x20 from it has to borrow. Where no byte has it set, none carries into its neighbour.
    let odd = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        (word | word.wrapping_add(EACH) | !((word | HIGH) - 0x20 * EACH)) & HIGH
    };
    let Some(last) = bytes.last_chunk() else {
        return bytes.iter().all(|byte| (0x20..0x7f).contains(byte));
    };
    // What is left of the last eight bytes is looked at together with some before it.
    let words = bytes.as_chunks().0.iter();
    words.fold(odd(*last), |found, word| found | odd(*word)) == 0
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
    fn eight_bytes_at_a_time_are_judged_as_one_by_one() {
        for len in [1, 7, 8, 9, 15, 16, 17, 24, 30] {
            for at in 0..len {
                for byte in 0..=u8::MAX {
                    let mut bytes = vec![b'a'; len];
                    bytes[at] = byte;
                    let one_by_one = bytes.iter().all(|byte| byte.is_ascii() && !byte.is_ascii_control());
                    assert_eq!(is_plain(&bytes), one_by_one, "{byte:#x} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(reason("short"), "short");
        let long = "x".repeat(MAX_REASON - 1) + "\u{20ac}";
        assert_eq!(reason(&long), &long[..MAX_REASON - 1]);
    }
}
