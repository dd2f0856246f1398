//! Order: C4 of a sender's stream, C7 of a room, C8 of an account.
//!
//! What must stay true: only first occurrences count, since redelivery repeats
//! what was seen, and an inversion within one sender's stream is reported by C4 alone. What is of class E keeps
//! its place while nothing fails: not when it was forgotten in a fault and sent again.

use std::collections::{HashMap, HashSet};

use crate::checks::{Check, Witness};
use crate::facts::{Archive, At, Facts, Recv, bare};
use crate::history::{Class, Ctx, Ev};

pub(super) fn sender_order(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    let mut resources: HashMap<&str, HashSet<&str>> = HashMap::new();
    for recv in &facts.recvs {
        resources.entry(bare(recv.jid)).or_default().insert(recv.jid);
    }
    let mut first: HashSet<(u32, &str, u8)> = HashSet::with_capacity(facts.recvs.len());
    let mut last: HashMap<(usize, &str, u8), (u64, At)> = HashMap::new();
    for recv in &facts.recvs {
        let Some(uid) = recv.uid.filter(|uid| facts.belongs(*uid, bare(recv.jid))) else { continue };
        // P5 holds across offline and live. With several resources that cannot be demanded of one of
        // them: what another could not take comes to it late, from the offline store.
        let one = resources.get(bare(recv.jid)).is_some_and(|r| r.len() == 1);
        let (way, lane) = match recv.ctx {
            Ctx::Live => (0, 0),
            Ctx::Offline => (0, if one { 0 } else { 1 }),
            Ctx::Carbon => (2, 2),
            Ctx::Room(_) => (3, 3),
        };
        if !first.insert((uid, recv.jid, way)) {
            continue;
        }
        let (chain, seq) = facts.position(uid);
        let (before, at) = *last.get(&(chain, recv.jid, lane)).unwrap_or(&(0, recv.at));
        if seq > before {
            last.insert((chain, recv.jid, lane), (seq, recv.at));
        } else if !facts.was_forgotten(uid, recv.t) {
            let text = format!("{} (number {seq}) came to {} after number {before}", recv.text, recv.jid);
            found.push(Witness::new(Check::C4, [at, recv.at], text));
        }
    }
    for archive in &facts.archives {
        let mut first = HashSet::with_capacity(archive.entries.len());
        let mut last: HashMap<usize, (u64, At)> = HashMap::new();
        for entry in &archive.entries {
            let Some(uid) = entry.uid.filter(|uid| first.insert(*uid)) else { continue };
            let (chain, seq) = facts.position(uid);
            let (before, at) = *last.get(&chain).unwrap_or(&(0, entry.at));
            if seq > before {
                last.insert(chain, (seq, entry.at));
            } else {
                let text = format!(
                    "{} (number {seq}) is in the archive of {} after number {before}",
                    entry.text, archive.of
                );
                found.push(Witness::new(Check::C4, [at, entry.at], text));
            }
        }
    }
    found
}

/// The places of stanzas in an archive, counting those of the run only.
fn ranks(archive: &Archive<'_>) -> HashMap<u32, usize> {
    let mut ranks = HashMap::with_capacity(archive.entries.len());
    for uid in archive.entries.iter().filter_map(|e| e.uid) {
        let next = ranks.len();
        ranks.entry(uid).or_insert(next);
    }
    ranks
}

/// The first complete reading of each archive.
fn complete<'a, 'h>(facts: &'a Facts<'h>) -> HashMap<&'h str, &'a Archive<'h>> {
    let mut readings: HashMap<&str, &Archive<'_>> = HashMap::new();
    for archive in facts.archives.iter().filter(|a| a.complete) {
        readings.entry(archive.of).or_insert(archive);
    }
    readings
}

/// C8: what a resource sees live is in its account's archive, in the same order.
pub(super) fn account_order(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    let ranks: HashMap<&str, _> = complete(facts).into_iter().map(|(of, a)| (of, ranks(a))).collect();
    let mut first = HashSet::with_capacity(facts.recvs.len());
    let mut last: HashMap<&str, (usize, &Recv<'_>)> = HashMap::new();
    for recv in &facts.recvs {
        let account = bare(recv.jid);
        let Some(ranks) = ranks.get(account) else { continue };
        let Some(uid) = recv.uid.filter(|uid| facts.belongs(*uid, account)) else { continue };
        if !first.insert((uid, recv.jid)) || !matches!(recv.ctx, Ctx::Live | Ctx::Carbon) {
            continue;
        }
        let stanza = facts.stanza(uid);
        let Some(&rank) = ranks.get(&uid) else {
            if stanza.class == Class::D {
                let text = format!("{} came to {} and is not in its archive", recv.text, recv.jid);
                found.push(Witness::new(Check::C8, [recv.at], text));
            }
            continue;
        };
        match last.get(recv.jid) {
            Some((highest, before)) if *highest > rank => {
                let same_stream = before.uid.is_some_and(|b| facts.position(b).0 == facts.position(uid).0);
                if !same_stream {
                    let text = format!(
                        "{} came to {} after {}, and is archived before it",
                        recv.text, recv.jid, before.text
                    );
                    found.push(Witness::new(Check::C8, [before.at, recv.at], text));
                }
            }
            _ => {
                last.insert(recv.jid, (rank, recv));
            }
        }
    }
    found
}

/// C7: every occupant sees the room's order, without gaps while its stream holds.
pub(super) fn room_order(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    let ranks: HashMap<&str, _> = complete(facts).into_iter().map(|(of, a)| (of, ranks(a))).collect();
    let mut first = HashSet::new();
    // Per client and room: the highest rank seen since it joined.
    let mut last: HashMap<(usize, &str), (usize, &Recv<'_>)> = HashMap::new();
    let mut recvs = facts.recvs.iter().filter(|r| matches!(r.ctx, Ctx::Room(_))).peekable();
    for (number, client) in facts.clients.iter().enumerate() {
        let mut breaks = client
            .events
            .iter()
            .enumerate()
            .filter_map(|(index, e)| match &e.ev {
                Ev::Join { room } | Ev::Leave { room } => Some((index, room.as_str())),
                _ => None,
            })
            .peekable();
        while let Some(recv) = recvs.next_if(|r| r.at.client == number) {
            while let Some((_, room)) = breaks.next_if(|(index, _)| *index < recv.at.index) {
                last.remove(&(number, room));
            }
            let (Ctx::Room(room), Some(uid)) = (recv.ctx, recv.uid) else { continue };
            let Some(ranks) = ranks.get(room.as_str()) else { continue };
            if bare(facts.stanza(uid).to) != room || !first.insert((uid, recv.jid)) {
                continue;
            }
            let Some(&rank) = ranks.get(&uid) else {
                if facts.stanza(uid).class == Class::D {
                    let text = format!("{} came from {room} and is not in its archive", recv.text);
                    found.push(Witness::new(Check::C7, [recv.at], text));
                }
                continue;
            };
            let Some((highest, before)) = last.insert((number, room), (rank, recv)) else { continue };
            if rank < highest {
                let text = format!("{} came from {room} after {}, against its order", recv.text, before.text);
                found.push(Witness::new(Check::C7, [before.at, recv.at], text));
                last.insert((number, room), (highest, before));
            } else if rank > highest + 1 && !facts.broke_between(before, recv) {
                let text = format!(
                    "{} message(s) of {room} between {} and {} did not come",
                    rank - highest - 1,
                    before.text,
                    recv.text
                );
                found.push(Witness::new(Check::C7, [before.at, recv.at], text));
            }
        }
    }
    found
}
