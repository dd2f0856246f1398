//! Output that waits for its socket.
//!
//! Order of the bytes: `segments` first, then `tail` from `tail_start` on. Small pieces are copied into the
//! tail (a copy is cheaper than one more iovec), large ones are shared. When everything is taken, no buffer
//! remains.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use crate::scratch::{recycle, spare_buffer};

/// Pieces up to this size are copied together.
const COALESCE: usize = 1024;
/// The tail is closed at this size, so that growing it never copies much.
const TAIL_LIMIT: usize = 16 * 1024;

#[derive(Default)]
pub(crate) struct Outgoing {
    segments: VecDeque<Bytes>,
    tail: Vec<u8>,
    tail_start: usize,
    len: usize,
}

impl Outgoing {
    /// Bytes waiting.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes`, sharing them when they are large.
    pub(crate) fn push(&mut self, bytes: &Bytes) {
        if bytes.len() <= COALESCE {
            self.push_slice(bytes);
            return;
        }
        self.len += bytes.len();
        self.close_tail();
        self.segments.push_back(bytes.clone());
    }

    /// Appends a copy of `bytes`.
    pub(crate) fn push_slice(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        if self.tail.len() + bytes.len() > TAIL_LIMIT {
            self.close_tail();
        }
        if self.tail.capacity() == 0 {
            self.tail = spare_buffer();
        }
        self.tail.extend_from_slice(bytes);
    }

    fn close_tail(&mut self) {
        if self.tail.len() > self.tail_start {
            let mut closed = Bytes::from(std::mem::take(&mut self.tail));
            closed.advance(self.tail_start);
            self.segments.push_back(closed);
        } else {
            self.tail.clear();
        }
        self.tail_start = 0;
    }

    /// The first bytes waiting that lie side by side.
    pub(crate) fn front(&self) -> &[u8] {
        self.segments.front().map_or(&self.tail[self.tail_start..], |segment| segment)
    }

    /// Fills `slices` with what is waiting, in order, up to `limit` bytes; returns how many were used.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>], mut limit: usize) -> usize {
        let tail = (self.tail.len() > self.tail_start).then(|| &self.tail[self.tail_start..]);
        let waiting = self.segments.iter().map(|segment| &segment[..]).chain(tail);
        let mut used = 0;
        for (slot, bytes) in slices.iter_mut().zip(waiting) {
            if limit == 0 {
                break;
            }
            let bytes = &bytes[..bytes.len().min(limit)];
            limit -= bytes.len();
            *slot = IoSlice::new(bytes);
            used += 1;
        }
        used
    }

    /// Copies the first bytes waiting into `target`, without taking them; returns how many.
    pub(crate) fn copy_front(&self, target: &mut [u8]) -> usize {
        let mut filled = 0;
        let tail = &self.tail[self.tail_start..];
        for bytes in self.segments.iter().map(|segment| &segment[..]).chain(std::iter::once(tail)) {
            let n = bytes.len().min(target.len() - filled);
            target[filled..filled + n].copy_from_slice(&bytes[..n]);
            filled += n;
            if filled == target.len() {
                break;
            }
        }
        filled
    }

    /// Removes the first `n` bytes, which were sent.
    pub(crate) fn advance(&mut self, mut n: usize) {
        self.len = self.len.saturating_sub(n);
        while let Some(first) = self.segments.front_mut() {
            if n < first.len() {
                first.advance(n);
                return;
            }
            n -= first.len();
            self.segments.pop_front();
        }
        self.tail_start += n;
        if self.is_empty() {
            self.release();
        }
    }

    /// Removes everything and gives the memory back.
    pub(crate) fn release(&mut self) {
        self.segments = VecDeque::new();
        recycle(std::mem::take(&mut self.tail));
        self.tail_start = 0;
        self.len = 0;
    }

    #[cfg(test)]
    fn held_capacity(&self) -> usize {
        self.segments.capacity() + self.tail.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(out: &Outgoing) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 128];
        let used = out.slices(&mut slices, usize::MAX);
        let by_slices: Vec<u8> = slices[..used].iter().flat_map(|s| s.iter().copied()).collect();
        let used = out.slices(&mut slices, 1001);
        let limited: Vec<u8> = slices[..used].iter().flat_map(|s| s.iter().copied()).collect();
        assert_eq!(limited, by_slices[..by_slices.len().min(1001)]);
        let mut by_copy = vec![0; out.len()];
        assert_eq!(out.copy_front(&mut by_copy), out.len());
        assert_eq!(by_copy, by_slices);
        by_slices
    }

    #[test]
    fn order_is_kept_over_small_and_large_pieces() {
        let mut out = Outgoing::default();
        let mut want = Vec::new();
        for (i, size) in [3, 2000, 10, 900, 1024, 1025, 70_000, 1, 16_000, 500].into_iter().enumerate() {
            let piece = vec![i as u8; size];
            want.extend_from_slice(&piece);
            if i % 2 == 0 { out.push_slice(&piece) } else { out.push(&Bytes::from(piece)) }
        }
        assert_eq!(out.len(), want.len());
        assert_eq!(taken(&out), want);
        for step in [1, 2, 500, 1600, 1024, 30_000, 5] {
            out.advance(step);
            want.drain(..step);
            assert_eq!(taken(&out), want);
            assert!(want.starts_with(out.front()) && !out.front().is_empty());
        }
        out.advance(want.len());
        assert!(out.is_empty());
        assert_eq!(out.held_capacity(), 0, "nothing is held when idle");
    }

    #[test]
    fn appending_after_a_partial_send_keeps_what_is_left() {
        let mut out = Outgoing::default();
        out.push_slice(b"abcdef");
        out.advance(2);
        out.push(&Bytes::from(vec![b'x'; 2000]));
        out.push_slice(b"end");
        let mut want = b"cdef".to_vec();
        want.extend_from_slice(&[b'x'; 2000]);
        want.extend_from_slice(b"end");
        assert_eq!(taken(&out), want);
    }
}
