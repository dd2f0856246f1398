//! Ids and numbers that nobody outside can guess.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes ids for stanzas of the server (SECURITY F7): SipHash of a counter under a key that the
/// operating system's random numbers made. No reply to them is acted upon, so this is plenty.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    key: RandomState,
    next: AtomicU64,
}

impl Ids {
    /// A new id; safe in an attribute as it is.
    pub(crate) fn stanza_id(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.key.hash_one((count, 0u8)), self.key.hash_one((count, 1u8)))
    }

    /// Where the versions of a new roster begin: a random multiple of 2^32, which leaves room for
    /// 2^32 changes, and fits the hexadecimal text that clients get.
    pub(crate) fn first_version(&self) -> u64 {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        (self.key.hash_one((count, 2u8)) >> 33) << 32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn f7_ids_do_not_repeat_nor_follow_from_each_other() {
        let (ids, others) = (Ids::default(), Ids::default());
        let made: HashSet<_> = (0..1_000).flat_map(|_| [ids.stanza_id(), others.stanza_id()]).collect();
        assert_eq!(made.len(), 2_000, "equal counters under two keys give different ids");
        assert!(made.iter().all(|id| id.len() == 32));
    }

    #[test]
    fn first_versions_leave_room() {
        let ids = Ids::default();
        let made: HashSet<_> = (0..100).map(|_| ids.first_version()).collect();
        assert!(made.len() > 90);
        assert!(made.iter().all(|version| version % (1 << 32) == 0 && *version < 1 << 63));
    }
}
