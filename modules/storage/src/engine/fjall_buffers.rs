//! How much memory fjall uses for data that is in no table yet, over all key spaces.
//!
//! fjall bounds each key space by itself, by asking its workers to seal what was gathered, which
//! they do once they have nothing else to do; and it keeps what a worker has written into a table
//! until something is sealed again, for readers of an older version. So a flood that touches
//! several key spaces takes a multiple of what each is allowed.
//!
//! What must hold: what is held stays within the limit and one group of changes; a group waits
//! only while a worker has something to write, for else nothing would end the wait; something is
//! sealed only behind a write that came after the last table, for else fjall keeps what is in it.

use std::collections::HashMap;

use fjall::{AbstractTree, Keyspace};

use super::Changes;

/// What fjall counts for an entry beside its key and value.
const ENTRY_OVERHEAD: usize = 64;

/// The memtables of all key spaces; sizes are as fjall counts them.
#[derive(Default)]
pub(crate) struct Usage {
    /// Bytes of those that are open for writing.
    open: u64,
    /// How many are sealed and wait to be written, or are being written.
    sealed: usize,
    /// The key space with the largest open one, and its bytes.
    largest: Option<(u64, Keyspace)>,
}

impl Usage {
    pub(crate) fn of(spaces: &HashMap<String, Keyspace>) -> Self {
        let mut usage = Self::default();
        for space in spaces.values() {
            let open = space.tree.active_memtable().size();
            usage.open += open;
            usage.sealed += space.tree.sealed_memtable_count();
            if open > usage.largest.as_ref().map_or(0, |(largest, _)| *largest) {
                usage.largest = Some((open, space.clone()));
            }
        }
        usage
    }

    /// True while nothing waits to be written into a table.
    pub(crate) fn is_idle(&self) -> bool {
        self.sealed == 0
    }

    /// Bytes in memory: `unwritten` is what fjall counts as in no table, `last` what was sealed
    /// last, which is held even when it is in one.
    pub(crate) fn held(&self, unwritten: u64, last: u64) -> u64 {
        self.open + unwritten.saturating_sub(self.open).max(last)
    }

    /// What to seal, if it is time: a third of the limit was gathered. Another third may be on its
    /// way into a table, and the last one is for what comes meanwhile. One memtable at a time is
    /// sealed, so that behind slow workers the next table is larger, instead of tables being more.
    pub(crate) fn due(self, limit: u64) -> Option<(u64, Keyspace)> {
        self.largest.filter(|_| self.open >= limit / 3)
    }
}

/// What changes will take, as fjall counts it.
pub(crate) fn weight(changes: &Changes) -> u64 {
    let weigh = |key: &[u8], value: usize| (key.len() + value + ENTRY_OVERHEAD) as u64;
    changes.iter().map(|((_, key), value)| weigh(key, value.as_ref().map_or(0, |value| value.len()))).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use waystation_core::storage::{Durability, ScanRange, Space};

    use super::*;
    use crate::Options;
    use crate::engine::{Engine, FjallEngine};

    const LIMIT: u64 = 1024 * 1024;
    const SPACES: [Space; 3] = [Space("large"), Space("middle"), Space("small")];
    const ROUNDS: u64 = 300;

    /// 16 rows for each space, of which one is written again and again.
    fn round(number: u64) -> Changes {
        let mut changes = Changes::new();
        for (space, size) in SPACES.into_iter().zip([2_048, 512, 64]) {
            for row in 0..16 {
                let key = if row == 0 { 0 } else { number * 16 + row };
                changes
                    .insert((space, Bytes::copy_from_slice(&key.to_be_bytes())), Some(vec![7; size].into()));
            }
        }
        changes
    }

    #[test]
    fn key_spaces_share_one_limit_and_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { write_buffer_bytes: LIMIT, ..Options::default() };
        let open = || FjallEngine::open(&folder.path().join("fjall"), Durability::Os, &options).unwrap();
        let engine = open();
        let (mut most, mut written, mut group) = (0, 0, 0);
        for number in 0..ROUNDS {
            let changes = round(number);
            group = weight(&changes);
            written += group;
            engine.commit(changes).unwrap();
            most = most.max(engine.held(&engine.usage()));
        }
        assert!(written > 10 * LIMIT, "{written} bytes");
        assert!(most <= LIMIT + group, "{most} bytes were held");
        engine.close().unwrap();
        let engine = open();
        for space in SPACES {
            let rows = engine.scan(space, &ScanRange::prefix(Bytes::new(), usize::MAX)).unwrap();
            assert_eq!(rows.len() as u64, ROUNDS * 15 + 1, "{space:?}");
        }
    }

    #[test]
    fn a_group_larger_than_the_limit_goes_alone() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { write_buffer_bytes: 64 * 1024, ..Options::default() };
        let engine = FjallEngine::open(&folder.path().join("fjall"), Durability::Os, &options).unwrap();
        for number in 0..20u8 {
            let key = Bytes::copy_from_slice(&[number]);
            engine.commit(Changes::from([((SPACES[0], key), Some(vec![7; 256 * 1024].into()))])).unwrap();
        }
        assert_eq!(engine.scan(SPACES[0], &ScanRange::prefix(Bytes::new(), usize::MAX)).unwrap().len(), 20);
    }
}
