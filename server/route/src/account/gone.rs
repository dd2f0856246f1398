//! Records that are done with, and are still read from the queue until the log knows.
//!
//! What must hold: an id is known from the moment the route is done with it until a read of the
//! queue that begins later cannot show it any more.

use std::collections::VecDeque;

use waystation_core::queue::RecordId;

use super::first_room;

/// In the order in which the intake was told.
#[derive(Default)]
pub(super) struct Gone {
    /// With the number that the intake gave.
    order: VecDeque<(u64, RecordId)>,
    /// The same to be looked up, made when somebody asks: that is only while a queue is being read.
    ids: Option<Box<ahash::HashSet<RecordId>>>,
}

impl Gone {
    pub(super) fn contains(&mut self, id: RecordId) -> bool {
        let order = &self.order;
        self.ids.get_or_insert_with(|| Box::new(order.iter().map(|(_, id)| *id).collect())).contains(&id)
    }

    /// A record that is done with, as the intake's item `number` says.
    pub(super) fn add(&mut self, number: u64, id: RecordId) {
        if let Some(ids) = &mut self.ids {
            ids.insert(id);
        }
        first_room(&mut self.order);
        self.order.push_back((number, id));
    }

    /// Forgets those whose items have taken effect. Each costs a constant time: one look at all of
    /// them for every new one took two thirds of the server's time under load.
    pub(super) fn forget(&mut self, effected: u64) {
        while let Some((number, id)) = self.order.front().copied()
            && number <= effected
        {
            self.order.pop_front();
            if let Some(ids) = &mut self.ids {
                ids.remove(&id);
            }
        }
        if self.order.is_empty() && self.order.capacity() > 0 {
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
        let known = |gone: &mut Gone| [7, 2, 5].map(|id| gone.contains(RecordId(id)));
        gone.forget(2);
        assert_eq!(known(&mut gone), [true; 3]);
        gone.forget(8);
        assert_eq!(known(&mut gone), [false, false, true]);
        gone.add(10, RecordId(8));
        assert!(gone.contains(RecordId(8)));
        gone.forget(10);
        assert!(!gone.contains(RecordId(8)));
        gone.add(11, RecordId(9));
        gone.forget(11);
        assert!(gone.ids.is_none() && gone.order.capacity() == 0);
    }
}
