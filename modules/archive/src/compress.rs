//! Compressing the rows of a chunk.
//!
//! What must hold: what is kept for it between two chunks is no more than chunks of usual messages
//! take, whatever came before.

use std::sync::{Mutex, PoisonError};

use lz4_flex::block::{CompressTable, compress, compress_into_with_table, get_maximum_output_size};

use crate::chunk::MAX_BYTES;

/// Larger rows than this, which a single stanza makes so large, are compressed in room of their own.
/// It is also less than what makes the compressor take another table for good.
const MAX_ROOM: usize = MAX_BYTES + MAX_BYTES / 2;

/// What the compressor needs.
#[derive(Default)]
struct Room {
    table: CompressTable,
    out: Vec<u8>,
}

/// Kept from chunk to chunk, and taken away by whoever compresses: made anew it has to be zeroed,
/// some 30 KiB a chunk, and given back to the allocator. Two who compress at once make two.
static ROOM: Mutex<Option<Room>> = Mutex::new(None);

/// Hands the compressed rows to `then`; `None` when they could not be compressed.
pub(crate) fn with<T>(rows: &[u8], then: impl FnOnce(Option<&[u8]>) -> T) -> T {
    if rows.len() > MAX_ROOM {
        return then(Some(&compress(rows)));
    }
    // It is never left half done.
    let kept = || ROOM.lock().unwrap_or_else(PoisonError::into_inner);
    let mut room = kept().take().unwrap_or_default();
    let most = get_maximum_output_size(rows.len());
    if room.out.len() < most {
        room.out.resize(most, 0);
    }
    let compressed = compress_into_with_table(rows, &mut room.out, &mut room.table).ok();
    let done = then(compressed.and_then(|len| room.out.get(..len)));
    *kept() = Some(room);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_before_makes_no_difference() {
        let rows =
            |len: usize, step: usize| -> Vec<u8> { (0..len).map(|at| (at / step * 7) as u8).collect() };
        let sizes = [(300, 3), (MAX_ROOM, 5), (20_000, 9), (MAX_ROOM + 1, 2), (256, 256), (1_000_000, 1)];
        for (len, step) in sizes.into_iter().cycle().take(3 * sizes.len()) {
            let rows = rows(len, step);
            let compressed = with(&rows, |compressed| compressed.map(<[u8]>::to_vec)).unwrap();
            assert_eq!(lz4_flex::block::decompress(&compressed, len).unwrap(), rows, "{len} bytes");
        }
        let kept = ROOM.lock().unwrap().take();
        assert!(kept.is_none_or(|room| room.out.len() <= get_maximum_output_size(MAX_ROOM)));
    }
}
