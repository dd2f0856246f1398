//! The fate of stanzas: C1 loss, C2 phantoms, C6 two fates, C12 honest errors.
//!
//! What must stay true: only stanzas whose acceptance is certain can be lost, and
//! only accounts whose deliveries and archive were read can have lost them.

use std::collections::HashSet;

use crate::checks::{Check, Witness};
use crate::facts::{Facts, bare};
use crate::history::{Class, Ctx};

/// Errors that say "not now": a sender must be told that it may try again.
const OVERLOAD: [&str; 2] = ["resource-constraint", "remote-server-timeout"];
/// Faults of which a server can tell that they pass.
const PASSING: [&str; 4] = ["disk-full", "broker-down", "database-down", "partition"];
/// The error types of RFC 6120 8.3.2.
const TYPES: [&str; 5] = ["auth", "cancel", "continue", "modify", "wait"];

/// What came to whom, live or from an archive.
fn delivered<'h>(facts: &Facts<'h>) -> HashSet<(&'h str, u32)> {
    let mut all = HashSet::with_capacity(facts.recvs.len());
    for recv in &facts.recvs {
        let Some(uid) = recv.uid else { continue };
        all.insert((bare(recv.jid), uid));
        // What an occupant got from a room has been through the room.
        if matches!(recv.ctx, Ctx::Room(_)) {
            all.insert((bare(recv.from), uid));
        }
    }
    for archive in &facts.archives {
        all.extend(archive.entries.iter().filter_map(|e| Some((archive.of, e.uid?))));
    }
    all
}

/// C1: an accepted durable message came to its recipient, or back as an error.
pub(super) fn loss(facts: &Facts<'_>) -> Vec<Witness> {
    let delivered = delivered(facts);
    let rooms: HashSet<&str> = facts.archives.iter().map(|a| a.of).collect();
    let mut found = Vec::new();
    for (number, stanza) in (0u32..).zip(&facts.stanzas) {
        let to = bare(stanza.to);
        // An account that nobody logged in to, or a room whose archive nobody read, cannot be judged.
        let known = facts.accounts.contains(to) || (stanza.kind == "groupchat" && rooms.contains(to));
        let promised = stanza.acked && stanza.class == Class::D && stanza.is_message() && known;
        if promised && stanza.bounces.is_empty() && !delivered.contains(&(to, number)) {
            let at: Vec<_> = stanza.sends.iter().map(|s| s.at).collect();
            found.push(Witness::new(
                Check::C1,
                at,
                format!("{} to {to} was accepted and is lost", stanza.uid),
            ));
        }
    }
    found
}

/// C2: nothing comes that was not sent, and what comes is what was sent.
pub(super) fn phantoms(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    for recv in &facts.recvs {
        let mut accuse = |text: String| found.push(Witness::new(Check::C2, [recv.at], text));
        let Some(uid) = recv.uid else {
            accuse(format!("{} came to {} and was never sent", recv.text, recv.jid));
            continue;
        };
        let stanza = facts.stanza(uid);
        let account = bare(recv.jid);
        if recv.hash != stanza.hash {
            accuse(format!("{}: the body came with hash {}, sent was {}", recv.text, recv.hash, stanza.hash));
        }
        let own_copy = *recv.ctx == Ctx::Carbon && facts.senders(uid).any(|s| bare(s) == account);
        if let Ctx::Room(room) = recv.ctx {
            if bare(stanza.to) != room || bare(recv.from) != room {
                accuse(format!("{} for {} came from {} in {room}", recv.text, stanza.to, recv.from));
            }
            continue;
        }
        if !facts.senders(uid).any(|sender| sender == recv.from) {
            accuse(format!("{} came from {}, which did not send it", recv.text, recv.from));
        }
        if bare(stanza.to) != account && !own_copy {
            accuse(format!("{} to {} came to {}", recv.text, stanza.to, recv.jid));
        } else if recv.to.is_some_and(|to| to != stanza.to) {
            accuse(format!("{} to {} came with to={:?}", recv.text, stanza.to, recv.to));
        }
    }
    for archive in &facts.archives {
        for entry in &archive.entries {
            let mut accuse = |text: String| found.push(Witness::new(Check::C2, [entry.at], text));
            let Some(uid) = entry.uid else {
                // Entries without the text of a run, such as a room's subject, are nobody's phantom.
                if !entry.text.is_empty() {
                    accuse(format!("{} in the archive of {} was never sent", entry.text, archive.of));
                }
                continue;
            };
            let stanza = facts.stanza(uid);
            if entry.hash != stanza.hash {
                accuse(format!("{} in the archive of {} has another body", entry.text, archive.of));
            }
            let own = facts.senders(uid).any(|s| bare(s) == archive.of);
            if bare(stanza.to) != archive.of && !own {
                accuse(format!("{} to {} is in the archive of {}", entry.text, stanza.to, archive.of));
            }
            let by_room = stanza.kind == "groupchat";
            let genuine = |from: &str| {
                facts.senders(uid).any(|s| s == from) || (by_room && bare(from) == bare(stanza.to))
            };
            if entry.from.is_some_and(|from| !genuine(from)) {
                accuse(format!("{} in the archive of {} is from {:?}", entry.text, archive.of, entry.from));
            }
        }
    }
    found
}

/// C6: an accepted durable message is delivered or bounced, not both.
pub(super) fn two_fates(facts: &Facts<'_>) -> Vec<Witness> {
    let delivered = delivered(facts);
    let mut found = Vec::new();
    for (number, stanza) in (0u32..).zip(&facts.stanzas) {
        if !stanza.acked || stanza.class != Class::D || !stanza.is_message() {
            continue;
        }
        let to = bare(stanza.to);
        if !delivered.contains(&(to, number)) {
            continue;
        }
        // An error of someone else is about a copy: one of many recipients refused.
        if let Some(bounce) = stanza.bounces.iter().find(|b| bare(b.from) == to) {
            let text = format!("{} came to {to}, and back as {}", stanza.uid, bounce.cond);
            found.push(Witness::new(Check::C6, [bounce.at], text));
        }
    }
    found
}

/// C12: an error that is about overload, or comes during a fault that passes, says "wait".
pub(super) fn errors(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    for stanza in &facts.stanzas {
        for bounce in &stanza.bounces {
            let passing = facts
                .faults
                .iter()
                .find(|f| PASSING.contains(&f.kind) && f.on <= bounce.t && bounce.t <= f.off)
                .map(|f| f.kind);
            let reason = if !TYPES.contains(&bounce.kind) {
                "which is no type of error".to_owned()
            } else if bounce.kind == "wait" {
                continue;
            } else if OVERLOAD.contains(&bounce.cond) {
                "and overload passes".to_owned()
            } else if let Some(kind) = passing {
                format!("during {kind}, which passes")
            } else {
                continue;
            };
            let text =
                format!("{} came back as {} of type {}, {reason}", stanza.uid, bounce.cond, bounce.kind);
            found.push(Witness::new(Check::C12, [bounce.at], text));
        }
    }
    found
}
