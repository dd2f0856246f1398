//! Records that are done with, and are still read from the queue until the log knows.
//!
//! What must hold: an id is known from the moment the route is done with it until a read of the
//! queue that begins later cannot show it any more.

use std::collections::VecDeque;

use waystation_core::queue::RecordId;

/// In the order in which the intake was told.
#[derive(Default)]
pub(super) struct Gone {
    ids: ahash::HashSet<RecordId>,
    /// With the number that the intake gave.
    order: VecDeque<(u64, RecordId)>,
}

impl Gone {
    pub(super) fn contains(&self, id: RecordId) -> bool {
        self.ids.contains(&id)
    }

    /// A record that is done with, as the intake's item `number` says.
    pub(super) fn add(&mut self, number: u64, id: RecordId) {
        self.ids.insert(id);
        self.order.push_back((number, id));
    }

    /// Forgets those whose items have taken effect. Each costs a constant time: one look at all of
    /// them for every new one took two thirds of the server's time under load.
    pub(super) fn forget(&mut self, effected: u64) {
        while let Some((number, id)) = self.order.front().copied()
            && number <= effected
        {
            self.order.pop_front();
            self.ids.remove(&id);
        }
        if self.order.is_empty() && self.ids.capacity() > 0 {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_taken_effect_is_forgotten_and_nothing_else() {
        let mut gone = Gone::default();
        // The numbers grow, the records need not.
        for (number, id) in [(3, 7), (4, 2), (9, 5)] {
            gone.add(number, RecordId(id));
        }
        let known = |gone: &Gone| [7, 2, 5].map(|id| gone.contains(RecordId(id)));
        gone.forget(2);
        assert_eq!(known(&gone), [true; 3]);
        gone.forget(8);
        assert_eq!(known(&gone), [false, false, true]);
        gone.forget(9);
        assert_eq!(known(&gone), [false; 3]);
        assert_eq!((gone.ids.capacity(), gone.order.capacity()), (0, 0));
    }
}
