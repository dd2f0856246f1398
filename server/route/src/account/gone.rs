//! Records that are done with, and are still read from the queue until the log knows.
//!
//! What must hold: an id is known from the moment the route is done with it until a read of the
//! queue that begins later cannot show it any more; those that the intake was not told of yet are
//! the last ones.

use std::collections::VecDeque;

use waystation_core::queue::RecordId;

use super::first_room;
use crate::intake::{Ids, MAX_DONE};

/// In the order in which the intake was told.
#[derive(Default)]
pub(super) struct Gone {
    /// With the number that the intake gave; the last ones have none yet.
    order: VecDeque<(u64, RecordId)>,
    /// How many have none yet.
    untold: usize,
    /// The same to be looked up, made when somebody asks: that is only while a queue is being read.
    ids: Option<Box<ahash::HashSet<RecordId>>>,
}

impl Gone {
    pub(super) fn contains(&mut self, id: RecordId) -> bool {
        let order = &self.order;
        self.ids.get_or_insert_with(|| Box::new(order.iter().map(|(_, id)| *id).collect())).contains(&id)
    }

    /// A record that is done with. The intake is to be told, with [`Gone::tell`].
    pub(super) fn add(&mut self, id: RecordId) {
        if let Some(ids) = &mut self.ids {
            ids.insert(id);
        }
        first_room(&mut self.order);
        self.order.push_back((u64::MAX, id));
        self.untold += 1;
    }

    /// True when there are some that the intake was not told of.
    pub(super) fn has_untold(&self) -> bool {
        self.untold > 0
    }

    /// Tells the intake of what is new, some at a time: `offer` gives the number of the item.
    pub(super) fn tell(&mut self, mut offer: impl FnMut(Ids) -> u64) {
        while self.untold > 0 {
            let first = self.order.len() - self.untold;
            let few = self.untold.min(MAX_DONE);
            let number = offer(self.order.range(first..first + few).map(|(_, id)| *id).collect());
            self.order.range_mut(first..first + few).for_each(|told| told.0 = number);
            self.untold -= few;
        }
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
        let tell = |gone: &mut Gone, number| gone.tell(|ids| (number, assert_eq!(ids.len(), 1)).0);
        // The numbers grow, the records need not.
        for (number, id) in [(3, 7), (4, 2), (9, 5)] {
            gone.add(RecordId(id));
            tell(&mut gone, number);
        }
        let known = |gone: &mut Gone| [7, 2, 5].map(|id| gone.contains(RecordId(id)));
        gone.forget(2);
        assert_eq!(known(&mut gone), [true; 3]);
        gone.forget(8);
        assert_eq!(known(&mut gone), [false, false, true]);
        gone.add(RecordId(8));
        tell(&mut gone, 10);
        assert!(gone.contains(RecordId(8)));
        gone.forget(10);
        assert!(!gone.contains(RecordId(8)));
        gone.add(RecordId(9));
        gone.forget(10);
        assert!(gone.contains(RecordId(9)), "the intake does not know of it");
        tell(&mut gone, 11);
        gone.forget(11);
        assert!(gone.ids.is_none() && gone.order.capacity() == 0);
    }

    #[test]
    fn the_intake_is_told_of_all_in_their_order_a_bounded_number_at_a_time() {
        let mut gone = Gone::default();
        let all = 2 * MAX_DONE + 3;
        (0..all).for_each(|id| gone.add(RecordId(id as u64)));
        let mut told = Vec::new();
        gone.tell(|ids| {
            told.push(ids);
            told.len() as u64
        });
        assert_eq!(told.iter().map(|ids| ids.len()).collect::<Vec<_>>(), [MAX_DONE, MAX_DONE, 3]);
        assert!(told.iter().flatten().map(|id| id.0).eq(0..all as u64));
        gone.forget(2);
        assert_eq!(gone.order.len(), 3);
        gone.tell(|_| panic!("twice"));
    }
}
