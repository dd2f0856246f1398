//! Memory that all connections of a thread share, so that an idle connection needs none of its own.
//!
//! Invariant: a buffer is taken out of its thread-local slot while in use and put back on drop. A nested use
//! (a sink that flushes another connection) therefore gets a buffer of its own instead of a borrow panic.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Most bytes asked of a socket in one read.
pub(crate) const READ_CHUNK: usize = 32 * 1024;
/// Most ciphertext kept of a TLS connection between two reads: one whole record (16 KiB and its overhead), or a
/// handshake message spread over many records.
pub(crate) const MAX_PENDING: usize = 32 * 1024;
/// The largest plaintext of one TLS record.
pub(crate) const RECORD_PLAIN: usize = 16 * 1024;
/// Room for a record of `RECORD_PLAIN` bytes and for a key update in front of it.
const RECORD_CIPHER: usize = RECORD_PLAIN + 1024;

/// Buffers above this size are given back to the allocator instead of being kept for reuse.
const SPARE_CAPACITY: usize = 64 * 1024;
/// How many output buffers a thread keeps for reuse.
const SPARES: usize = 16;

type Slot = Cell<Option<Box<[u8]>>>;

thread_local! {
    static READ: Slot = const { Cell::new(None) };
    static WRITE: Slot = const { Cell::new(None) };
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer borrowed from the thread, put back on drop.
pub(crate) struct Scratch {
    buffer: Box<[u8]>,
    slot: &'static LocalKey<Slot>,
}

impl Scratch {
    /// Room for what a connection has pending and one read behind it.
    pub(crate) fn read() -> Self {
        Self::take(&READ, MAX_PENDING + READ_CHUNK)
    }

    /// Room for one record's plaintext followed by its ciphertext.
    pub(crate) fn write() -> Self {
        Self::take(&WRITE, RECORD_PLAIN + RECORD_CIPHER)
    }

    fn take(slot: &'static LocalKey<Slot>, size: usize) -> Self {
        let buffer = slot.with(Cell::take).unwrap_or_else(|| vec![0; size].into_boxed_slice());
        Self { buffer, slot }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // The thread may be ending, and its slot gone: then the buffer is simply freed.
        let _ = self.slot.try_with(|slot| slot.set(Some(buffer)));
    }
}

impl Deref for Scratch {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}

/// An empty output buffer, with capacity when the thread has a used one left.
pub(crate) fn spare_buffer() -> Vec<u8> {
    SPARE.try_with(|spares| spares.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

/// Gives an output buffer back for reuse by the thread's connections.
pub(crate) fn recycle(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > SPARE_CAPACITY {
        return;
    }
    buffer.clear();
    let _ = SPARE.try_with(|spares| {
        let mut spares = spares.borrow_mut();
        if spares.len() < SPARES {
            spares.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_use_gets_a_buffer_of_its_own() {
        let mut outer = Scratch::read();
        outer[0] = 1;
        let outer_at = outer.as_ptr();
        {
            let mut inner = Scratch::read();
            inner[0] = 2;
            assert_ne!(inner.as_ptr(), outer_at);
        }
        assert_eq!(outer[0], 1);
        drop(outer);
        assert_eq!(Scratch::read().as_ptr(), outer_at, "the buffer is reused");
    }

    #[test]
    fn output_buffers_are_reused_within_bounds() {
        recycle(Vec::with_capacity(SPARE_CAPACITY + 1));
        assert_eq!(spare_buffer().capacity(), 0, "an oversized buffer is not kept");
        recycle(vec![7; 100]);
        let again = spare_buffer();
        assert!(again.is_empty() && again.capacity() >= 100);
        for _ in 0..SPARES * 2 {
            recycle(Vec::with_capacity(8));
        }
        assert_eq!(SPARE.with(|s| s.borrow().len()), SPARES);
    }
}
