//! The marks, and copies of them that cost nothing to take.
//!
//! What must hold: a copy never changes. While one is in use, changes go to a layer above what it
//! holds, so that neither taking it nor changing a mark has to copy the others.

use std::sync::Arc;

use waystation_core::queue::Mark;

/// Marks by their keys.
pub(crate) type Map = ahash::HashMap<u128, u64>;

/// See the module's header.
#[derive(Default)]
pub(crate) struct Marks {
    base: Arc<Map>,
    /// What has changed since a copy was taken; `None` for a mark that was removed.
    above: ahash::HashMap<u128, Option<u64>>,
}

impl From<Map> for Marks {
    fn from(marks: Map) -> Self {
        Self { base: Arc::new(marks), above: ahash::HashMap::default() }
    }
}

impl Marks {
    pub(crate) fn get(&self, key: u128) -> Option<u64> {
        self.above.get(&key).copied().unwrap_or_else(|| self.base.get(&key).copied())
    }

    /// Changes a mark: it only grows.
    pub(crate) fn change(&mut self, mark: Mark) {
        // Without the way over the layer above, and without the slower hash of the standard map, the
        // mark that a message brings costs 230 instructions in all; with both it cost 950.
        if self.above.is_empty()
            && let Some(base) = Arc::get_mut(&mut self.base)
        {
            match mark.value {
                Some(value) => {
                    let present = base.entry(mark.key).or_insert(value);
                    *present = value.max(*present);
                }
                None => drop(base.remove(&mark.key)),
            }
            return;
        }
        let value = mark.value.map(|value| value.max(self.get(mark.key).unwrap_or(0)));
        // To the layer above first: a copy may be dropped at any moment, and what was written
        // below a layer that is still there would not be seen.
        self.above.insert(mark.key, value);
        self.settle(false);
    }

    /// The marks as they are now.
    pub(crate) fn copy(&mut self) -> Arc<Map> {
        self.settle(true);
        Arc::clone(&self.base)
    }

    /// Puts the layer above into the base once no copy is in use, or in any case.
    fn settle(&mut self, in_any_case: bool) {
        if self.above.is_empty() {
            return;
        }
        let base = match Arc::get_mut(&mut self.base) {
            Some(base) => base,
            None if in_any_case => Arc::make_mut(&mut self.base),
            None => return,
        };
        for (key, value) in self.above.drain() {
            match value {
                Some(value) => drop(base.insert(key, value)),
                None => drop(base.remove(&key)),
            }
        }
        if self.above.capacity() > 1024 {
            self.above = ahash::HashMap::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_stays_as_it_is_while_marks_change() {
        let mut marks = Marks::default();
        let set = |marks: &mut Marks, key, value| marks.change(Mark { key, value });
        set(&mut marks, 1, Some(5));
        set(&mut marks, 2, Some(6));
        let copy = marks.copy();
        set(&mut marks, 1, Some(4));
        set(&mut marks, 2, None);
        set(&mut marks, 3, Some(1));
        set(&mut marks, 3, Some(9));
        let now = |marks: &Marks| (marks.get(1), marks.get(2), marks.get(3));
        assert_eq!(now(&marks), (Some(5), None, Some(9)));
        assert_eq!((copy.len(), copy[&1], copy[&2]), (2, 5, 6));
        // Another one while the first is in use, and none.
        let second = marks.copy();
        assert_eq!((second.len(), second[&1], second[&3], copy.len()), (2, 5, 9, 2));
        drop((copy, second));
        set(&mut marks, 2, Some(1));
        assert_eq!((now(&marks), marks.above.len()), ((Some(5), Some(1), Some(9)), 0));
    }
}
