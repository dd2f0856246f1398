//! C11: a change that was confirmed is there when it is read, whatever failed in between.
//!
//! Each key (a contact of a roster, an affiliation of a room) is a register. A
//! read may show a confirmed value that no later confirmed change has replaced,
//! or the value of any change that was never confirmed nor refused before the
//! read began: such a change may take effect at any time. What must stay true:
//! no other value is ever accepted, and none of these refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::checks::{Check, Witness};
use crate::facts::{At, Facts};
use crate::history::Ev;

struct Change<'h> {
    value: Option<&'h str>,
    asked: u64,
    done: Option<u64>,
    at: At,
}

type Key<'h> = (&'h str, &'h str, &'h str);

pub(super) fn effects(facts: &Facts<'_>) -> Vec<Witness> {
    let mut done: HashMap<&str, u64> = HashMap::new();
    let mut refused: HashMap<&str, u64> = HashMap::new();
    for event in facts.clients.iter().flat_map(|c| c.events) {
        match &event.ev {
            Ev::Done { uid } => _ = done.insert(uid, event.t),
            Ev::Err { uid, .. } => _ = refused.insert(uid, event.t),
            _ => {}
        }
    }
    let mut changes: BTreeMap<Key<'_>, Vec<Change<'_>>> = BTreeMap::new();
    let mut reads = Vec::new();
    for (client, events) in facts.clients.iter().map(|c| c.events).enumerate() {
        for (index, event) in events.iter().enumerate() {
            let at = At { client, index };
            match &event.ev {
                Ev::Set { uid, what, scope, key, value } if !refused.contains_key(uid.as_str()) => {
                    let done = done.get(uid.as_str()).copied();
                    let change = Change { value: value.as_deref(), asked: event.t, done, at };
                    changes.entry((what, scope, key)).or_default().push(change);
                }
                Ev::State { what, scope, since, items } => {
                    reads.push((what, scope, *since, event.t, items, at))
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    for (what, scope, since, until, items, at) in reads {
        let of_scope = (what.as_str(), scope.as_str(), "")..;
        let mut known = BTreeSet::new();
        for ((w, s, key), all) in changes.range(of_scope) {
            if (*w, *s) != (what.as_str(), scope.as_str()) {
                break;
            }
            known.insert(*key);
            let value = items.get(*key).map(String::as_str);
            if let Some(change) = contradicted(all, value, since, until) {
                let text = format!(
                    "{what} of {scope}: {key} was set to {:?}, and is {value:?}",
                    change.and_then(|c| c.value)
                );
                let mut events = vec![at];
                events.extend(change.map(|c| c.at));
                found.push(Witness::new(Check::C11, events, text));
            }
        }
        for key in items.keys().filter(|key| !known.contains(key.as_str())) {
            found.push(Witness::new(Check::C11, [at], format!("{what} of {scope}: nobody ever set {key}")));
        }
    }
    found
}

/// The change that the value contradicts, if it does: `Some(None)` when there is only its absence.
fn contradicted<'a, 'h>(
    all: &'a [Change<'h>],
    value: Option<&str>,
    since: u64,
    until: u64,
) -> Option<Option<&'a Change<'h>>> {
    let certain = |c: &&Change<'_>| c.done.is_some_and(|done| done < since);
    let newest = all.iter().filter(certain).max_by_key(|c| c.asked);
    let replaced = newest.map_or(0, |c| c.asked);
    let may_show = |c: &Change<'_>| match c.done {
        Some(done) if done < since => done >= replaced,
        _ => c.asked <= until,
    };
    let absent_at_first = newest.is_none() && value.is_none();
    let allowed = absent_at_first || all.iter().any(|c| may_show(c) && c.value == value);
    (!allowed).then_some(newest)
}
