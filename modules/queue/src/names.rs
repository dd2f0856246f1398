//! Queues by their names, the same for both back-ends: each has a number as long as it is here.
//!
//! What must hold: a queue that holds nothing is as good as absent, and is kept for a while only
//! because it is likely to hold something again; a number is given to another queue only after the
//! sweep that took the first away. Names are chosen by users, so that the map is keyed at random.

use std::collections::BTreeMap;

use waystation_core::queue::QueueName;

/// What has a name here.
pub(crate) trait Named {
    /// An empty one.
    fn named(name: QueueName) -> Self;

    fn name(&self) -> &QueueName;

    fn is_empty(&self) -> bool;
}

/// The queues that were looked up last, for whoever looks up many in a row.
///
/// The records and verdicts of a batch name few queues by turns: to compare a name with the last
/// two costs 70 instructions, to find it in the map 130, and each message has four look-ups.
#[derive(Default)]
pub(crate) struct Recent {
    numbers: [u32; 2],
    /// Which of them gives way to the next one.
    oldest: usize,
}

/// See the module's header.
pub(crate) struct Names<Q> {
    numbers: ahash::HashMap<QueueName, u32>,
    order: BTreeMap<QueueName, u32>,
    queues: Vec<Option<Q>>,
    unused: Vec<u32>,
    /// How many of them hold nothing; kept by whoever fills and empties them.
    pub(crate) empty: usize,
}

/// Empty queues that are kept in any case.
const KEEP_EMPTY: usize = 1024;

impl<Q> Default for Names<Q> {
    fn default() -> Self {
        Self {
            numbers: ahash::HashMap::default(),
            order: BTreeMap::new(),
            queues: Vec::new(),
            unused: Vec::new(),
            empty: 0,
        }
    }
}

impl<Q: Named> Names<Q> {
    /// The number of a queue.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The number of a queue; faster for one of the last two that were looked up.
    #[inline]
    pub(crate) fn find(&self, name: &str, recent: &mut Recent) -> Option<u32> {
        let [one, other] = recent.numbers;
        if self.is_named(one, name) {
            return Some(one);
        }
        if self.is_named(other, name) {
            return Some(other);
        }
        self.look_up(name, recent)
    }

    #[inline(never)]
    fn look_up(&self, name: &str, recent: &mut Recent) -> Option<u32> {
        let number = self.number(name)?;
        recent.numbers[recent.oldest] = number;
        recent.oldest = 1 - recent.oldest;
        Some(number)
    }

    /// As [`Names::find`]; the queue is made when there is none, and counted as empty.
    #[inline]
    pub(crate) fn find_or_add(&mut self, name: &str, recent: &mut Recent) -> u32 {
        self.find(name, recent).unwrap_or_else(|| self.add(name))
    }

    #[inline]
    fn is_named(&self, number: u32, name: &str) -> bool {
        self.get(number).is_some_and(|queue| **queue.name() == *name)
    }

    /// Makes a queue that is not here yet.
    pub(crate) fn add(&mut self, name: &str) -> u32 {
        let name = QueueName::from(name);
        let number = self.unused.pop().unwrap_or_else(|| {
            self.queues.push(None);
            self.queues.len() as u32 - 1
        });
        self.numbers.insert(name.clone(), number);
        self.order.insert(name.clone(), number);
        self.queues[number as usize] = Some(Q::named(name));
        self.empty += 1;
        number
    }

    /// The queue of a number.
    pub(crate) fn get(&self, number: u32) -> Option<&Q> {
        self.queues.get(number as usize)?.as_ref()
    }

    /// The queue of a number.
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut Q> {
        self.queues.get_mut(number as usize)?.as_mut()
    }

    /// The queue of a name whose number was just found or made.
    pub(crate) fn ensure(&mut self, number: u32, name: &str) -> &mut Q {
        self.queues[number as usize].get_or_insert_with(|| Q::named(QueueName::from(name)))
    }

    /// One more than the highest number so far.
    pub(crate) fn end(&self) -> u32 {
        self.queues.len() as u32
    }

    /// Every queue there is, empty or not.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Q> {
        self.queues.iter().flatten()
    }

    /// Every queue there is, empty or not.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Q> {
        self.queues.iter_mut().flatten()
    }

    /// Names of queues that hold something, which begin with `prefix` and come after `after`, in
    /// order.
    pub(crate) fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Vec<QueueName> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = match after {
            Some(after) if after >= prefix => Excluded(after),
            _ => Included(prefix),
        };
        self.order
            .range::<str, _>((from, Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter(|(_, number)| self.get(**number).is_some_and(|queue| !queue.is_empty()))
            .take(max)
            .map(|(name, _)| QueueName::clone(name))
            .collect()
    }

    /// Forgets queues that hold nothing, when there are many.
    pub(crate) fn sweep(&mut self) {
        if self.empty <= KEEP_EMPTY + self.numbers.len() / 2 {
            return;
        }
        for (number, place) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = place.take_if(|queue| queue.is_empty()) {
                self.numbers.remove(queue.name());
                self.order.remove(queue.name());
                self.unused.push(number as u32);
            }
        }
        self.empty = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Queue(QueueName);

    impl Named for Queue {
        fn named(name: QueueName) -> Self {
            Self(name)
        }

        fn name(&self) -> &QueueName {
            &self.0
        }

        fn is_empty(&self) -> bool {
            self.0.starts_with("empty")
        }
    }

    #[test]
    fn what_was_looked_up_last_is_not_taken_for_another() {
        let mut names = Names::<Queue>::default();
        let mut recent = Recent::default();
        assert_eq!(names.find("a", &mut recent), None);
        let numbers = ["a", "b", "empty", "c"].map(|name| names.find_or_add(name, &mut recent));
        assert_eq!(numbers, [0, 1, 2, 3]);
        for name in ["a", "b", "a", "b", "c", "a", "a", "empty", "empty"] {
            assert_eq!(names.find(name, &mut recent), names.number(name), "{name}");
        }
        assert_eq!(names.list("", None, 9).len(), 3);
        // Its number goes to another one, and the last look-up still names it.
        names.empty = KEEP_EMPTY + 3;
        names.sweep();
        assert_eq!((names.find("empty", &mut recent), names.empty), (None, 0));
        assert_eq!(names.find_or_add("d", &mut recent), 2);
        assert_eq!(names.find("empty", &mut recent), None);
        assert_eq!(names.find("d", &mut recent), Some(2));
    }
}
