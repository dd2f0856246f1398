//! The allocator of the server and of what measures it.
//!
//! What must hold: what is freed or grown here was given out here, which is so because it is the
//! only allocator of a program.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys::{mi_malloc, mi_realloc, mi_zalloc};
use mimalloc::MiMalloc;

/// What mimalloc aligns to unasked, for blocks of at least that size.
const NATURAL: usize = 16;

/// mimalloc.
///
/// A stanza's life is a handful of small allocations, made on one thread and often freed on
/// another. Measured on the pairs workload of `tests/bench` in one run: 1.28 times the messages
/// per CPU second of the system's allocator (TLS: 1.46; logins with STARTTLS: 1.45), where
/// jemalloc gains 1.22 (1.23; 1.02).
///
/// Its own crate asks for every block with an alignment, which sends all sizes that are no powers
/// of two past its fast path whenever a page is used up: half a thousand instructions a message.
/// Here it is asked for one only where its natural alignment does not do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

fn is_natural(layout: Layout) -> bool {
    layout.align() <= NATURAL && layout.align() <= layout.size()
}

#[expect(unsafe_code, reason = "an allocator has no safe form")]
// SAFETY: the functions are those of one allocator, so that any of them may free or grow what
// another one gave; blocks of at least 16 bytes are aligned to 16, smaller ones to 8, or to their
// size, and what needs more asks for it (tested below); mimalloc never unwinds.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_natural(layout) {
            // SAFETY: any size may be asked for.
            return unsafe { mi_malloc(layout.size()) }.cast();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_natural(layout) {
            // SAFETY: any size may be asked for.
            return unsafe { mi_zalloc(layout.size()) }.cast();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.align() <= NATURAL && layout.align() <= size {
            // SAFETY: the block is this allocator's, as the caller promises.
            return unsafe { mi_realloc(block.cast(), size) }.cast();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { MiMalloc.realloc(block, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "it is what is tested")]
    fn blocks_are_aligned_and_keep_what_they_hold() {
        const COUNT: usize = 64;
        for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
            for size in (1..=130).chain([500, 1_000, 4_095, 4_096, 70_000, 3_000_000]) {
                let layout = Layout::from_size_align(size, align).unwrap();
                let larger = Layout::from_size_align(size * 2 + 1, align).unwrap();
                let blocks: Vec<*mut u8> = (0..if size > 10_000 { 2 } else { COUNT })
                    .map(|n| {
                        // SAFETY: the size is not zero; only bytes of the block are touched.
                        unsafe {
                            let zeroed = n % 2 == 0;
                            let block =
                                if zeroed { Allocator.alloc_zeroed(layout) } else { Allocator.alloc(layout) };
                            assert!(!block.is_null() && block.align_offset(align) == 0, "{layout:?}");
                            assert!(!zeroed || (0..size).all(|at| *block.add(at) == 0), "{layout:?}");
                            block.write_bytes(n as u8 + 1, size);
                            block
                        }
                    })
                    .collect();
                for (n, block) in blocks.into_iter().enumerate() {
                    // SAFETY: the block was given out above with this layout, and is freed once.
                    unsafe {
                        let block = Allocator.realloc(block, layout, larger.size());
                        assert!(!block.is_null() && block.align_offset(align) == 0, "{layout:?}");
                        assert!((0..size).all(|at| *block.add(at) == n as u8 + 1), "{layout:?}");
                        let block = Allocator.realloc(block, larger, size);
                        assert!((0..size).all(|at| *block.add(at) == n as u8 + 1), "{layout:?}");
                        Allocator.dealloc(block, layout);
                    }
                }
            }
        }
    }
}
