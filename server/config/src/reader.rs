//! Gives each key its value: the last source that sets it wins, every source is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::problem::{Origin, Problem};
use crate::source::{Entry, Source};
use crate::value::{Bounds, Fault, Leaf, Value};

/// Values by key, in the order in which their sources win.
#[derive(Default)]
pub(crate) struct Reader<'i> {
    values: BTreeMap<String, Vec<(&'i Source, Value<'i>)>>,
    places: BTreeMap<String, (&'i Source, Range<usize>)>,
    faulty: BTreeSet<String>,
    pub(crate) problems: Vec<Problem>,
}

impl<'i> Reader<'i> {
    /// A reader of the entries of all sources, with the problems that were found on the way.
    pub(crate) fn new(entries: Vec<Entry<'i>>, problems: Vec<Problem>) -> Self {
        let mut reader = Self { problems, ..Self::default() };
        for Entry { source, key, value } in entries {
            reader.values.entry(key).or_default().push((source, value));
        }
        reader
    }

    /// The value of a key.
    pub(crate) fn leaf<T: Leaf>(&mut self, key: &str, default: T, bounds: Bounds<'_, T>) -> T {
        let mut result = None;
        for (source, value) in self.values.remove(key).unwrap_or_default() {
            let mut faults = Vec::new();
            if let Some(parsed) = T::parse(&value, bounds, &mut faults) {
                result = Some(match result {
                    Some(earlier) => parsed.over(earlier),
                    None => parsed,
                });
            }
            self.places.insert(key.to_owned(), (source, value.span()));
            if !faults.is_empty() {
                self.faulty.insert(key.to_owned());
            }
            self.problems.extend(faults.into_iter().map(|fault| source.problem(fault, Some(key))));
        }
        result.unwrap_or(default)
    }

    /// True when some source sets the key.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// True when none of the keys has a mistake of its own: then what they mean together can be judged.
    pub(crate) fn is_sound(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|key| self.faulty.contains(*key))
    }

    /// Reports a mistake that only shows when values are seen together.
    pub(crate) fn reject(&mut self, key: &str, message: String, help: Option<String>) {
        let problem = match self.places.get(key) {
            Some((source, span)) => source.problem(Fault { span: span.clone(), message, help }, Some(key)),
            None => {
                Problem { origin: Origin::Default, key: Some(key.to_owned()), message, help, excerpt: None }
            }
        };
        self.problems.push(problem);
    }

    /// Where each key that is set was set.
    pub(crate) fn origins(&self) -> BTreeMap<String, Origin> {
        self.places.iter().map(|(key, (source, span))| (key.clone(), source.origin(span))).collect()
    }
}
