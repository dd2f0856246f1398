//! C10: a full JID has one owner at a time.
//!
//! What must stay true: two clients note the same moment at slightly different
//! times, so only an overlap longer than [`CLOCK_ERROR`] is one. A delivery to the
//! older connection after that time lies within such an overlap, and needs no look of its own.

use std::collections::HashMap;

use crate::checks::{Check, Witness};
use crate::facts::Facts;

/// How much later than the other side a busy client may note an event.
const CLOCK_ERROR: u64 = 1_000_000_000;

pub(super) fn owners(facts: &Facts<'_>) -> Vec<Witness> {
    let mut owners: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, session) in facts.sessions.iter().enumerate() {
        if let (Some(jid), Some(_)) = (session.jid, session.bound) {
            owners.entry(jid).or_default().push(number);
        }
    }
    let mut found = Vec::new();
    let mut jids: Vec<_> = owners.into_iter().collect();
    jids.sort_unstable();
    for (jid, mut sessions) in jids {
        sessions.sort_by_key(|&s| facts.sessions[s].bound);
        for pair in sessions.windows(2) {
            let [older, newer] = [&facts.sessions[pair[0]], &facts.sessions[pair[1]]];
            let (Some((_, old_at)), Some((bound, at))) = (older.bound, newer.bound) else { continue };
            let limit = bound + CLOCK_ERROR;
            if older.close.map_or(facts.end, |(t, _)| t) > limit {
                let text = format!("{jid} was bound again while an older connection had it");
                found.push(Witness::new(Check::C10, [old_at, at], text));
            }
        }
    }
    found
}
