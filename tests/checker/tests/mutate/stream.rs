//! Mutations of streams: order, acknowledgements, liveness.

use waystation_checker::facts::{Entry, Facts, Recv, ReportKind, bare};
use waystation_checker::history::{Class, Ctx, Ev, Event, HARNESS, History};
use waystation_checker::rng::Rng;

use super::{Place, event, has_archive, is_plain, pick, place};

/// Neighbours in what one session received that a swap can be judged by.
fn neighbours<'a, 'h>(
    facts: &'a Facts<'h>,
    wanted: impl Fn(&Recv<'h>, &Recv<'h>) -> bool,
) -> Vec<(&'a Recv<'h>, &'a Recv<'h>)> {
    let fits = |a: &Recv<'h>, b: &Recv<'h>| {
        a.session == b.session && a.ctx == b.ctx && is_plain(facts, a) && is_plain(facts, b) && wanted(a, b)
    };
    facts.recvs.windows(2).filter(|p| fits(&p[0], &p[1])).map(|p| (&p[0], &p[1])).collect()
}

fn same_sender(facts: &Facts<'_>, a: &Recv<'_>, b: &Recv<'_>) -> bool {
    facts.position(a.uid.unwrap()).0 == facts.position(b.uid.unwrap()).0
}

fn swap(history: &mut History, first: &Place, second: &Place) -> Option<()> {
    let ev = event(history, first).ev.clone();
    let ev = std::mem::replace(&mut event(history, second).ev, ev);
    event(history, first).ev = ev;
    Some(())
}

fn swap_neighbours(
    history: &mut History,
    rng: &mut Rng,
    wanted: impl Fn(&Facts<'_>, &Recv<'_>, &Recv<'_>) -> bool,
) -> Option<()> {
    let facts = Facts::new(history);
    let (a, b) = pick(rng, neighbours(&facts, |a, b| wanted(&facts, a, b)))?;
    let (a, b) = (place(&facts, a.at), place(&facts, b.at));
    swap(history, &a, &b)
}

pub(crate) fn swap_of_one_sender(history: &mut History, rng: &mut Rng) -> Option<()> {
    swap_neighbours(history, rng, |facts, a, b| {
        matches!(a.ctx, Ctx::Live | Ctx::Offline) && same_sender(facts, a, b)
    })
}

pub(crate) fn swap_of_two_senders(history: &mut History, rng: &mut Rng) -> Option<()> {
    swap_neighbours(history, rng, |facts, a, b| {
        let durable = |r: &Recv<'_>| facts.stanza(r.uid.unwrap()).class == Class::D;
        let archived = has_archive(facts, bare(a.jid));
        archived && *a.ctx == Ctx::Live && durable(a) && durable(b) && !same_sender(facts, a, b)
    })
}

pub(crate) fn swap_in_room(history: &mut History, rng: &mut Rng) -> Option<()> {
    swap_neighbours(history, rng, |facts, a, b| {
        matches!(a.ctx, Ctx::Room(_)) && archived_room(facts) && !same_sender(facts, a, b)
    })
}

fn archived_room(facts: &Facts<'_>) -> bool {
    facts.archives.iter().any(|a| a.of.starts_with("room@"))
}

/// The middle one of three from a room does not come.
pub(crate) fn gap_in_room(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let fits = |p: &&[Recv<'_>]| {
        let [a, b, c] = p else { return false };
        let calm = a.session == c.session && a.session == b.session && !facts.fault_overlaps(a.t, c.t);
        let room = p.iter().all(|r| matches!(r.ctx, Ctx::Room(_)) && is_plain(&facts, r));
        if !calm {
            return false;
        }
        let between = &facts.clients[a.at.client].events[a.at.index..c.at.index];
        let moved = between.iter().any(|e| matches!(e.ev, Ev::Join { .. } | Ev::Leave { .. }));
        room && !moved && archived_room(&facts)
    };
    let all = facts.recvs.windows(3).filter(fits).map(|p| place(&facts, p[1].at)).collect();
    let (client, index) = pick(rng, all)?;
    history.clients.get_mut(&client)?.remove(index);
    Some(())
}

pub(crate) fn swap_archived_of_one_sender(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let once = |e: &Entry<'_>| e.uid.is_some_and(|uid| facts.stanza(uid).sends.len() == 1);
    let stream = |e: &Entry<'_>| e.uid.map(|uid| facts.position(uid).0);
    let mut pairs = Vec::new();
    for archive in facts.archives.iter().filter(|a| !a.of.starts_with("room@")) {
        for pair in archive.entries.windows(2) {
            let [a, b] = pair else { continue };
            if once(a) && once(b) && stream(a) == stream(b) {
                pairs.push((place(&facts, a.at), place(&facts, b.at)));
            }
        }
    }
    let (a, b) = pick(rng, pairs)?;
    swap(history, &a, &b)?;
    // The places are swapped, not the numbers.
    for at in [&a, &b] {
        let Ev::Mam { idx, .. } = &mut event(history, at).ev else { return None };
        if *at == a { *idx -= 1 } else { *idx += 1 }
    }
    Some(())
}

/// A report of the server, picked by a condition, with another h.
fn report(
    history: &mut History,
    rng: &mut Rng,
    new: impl Fn(&Facts<'_>, usize, &waystation_checker::facts::Report) -> Option<u64>,
) -> Option<()> {
    let facts = Facts::new(history);
    let mut places = Vec::new();
    for (number, chain) in facts.chains.iter().enumerate() {
        for report in &chain.reports {
            places.extend(new(&facts, number, report).map(|h| (place(&facts, report.at), h)));
        }
    }
    let (at, value) = pick(rng, places)?;
    let value = u32::try_from(value).ok()?;
    match &mut event(history, &at).ev {
        Ev::AIn { h } | Ev::Resumed { h } => *h = value,
        Ev::Smfail { h } => *h = Some(value),
        _ => return None,
    }
    Some(())
}

pub(crate) fn raise_h(history: &mut History, rng: &mut Rng) -> Option<()> {
    report(history, rng, |_, _, r| (r.kind == ReportKind::Ack).then_some(r.sent + 3))
}

pub(crate) fn lower_h(history: &mut History, rng: &mut Rng) -> Option<()> {
    report(history, rng, |_, _, r| (r.kind == ReportKind::Ack && r.before > 0).then(|| r.before - 1))
}

pub(crate) fn lower_resumed_h(history: &mut History, rng: &mut Rng) -> Option<()> {
    report(history, rng, |_, _, r| (r.kind == ReportKind::Resumed && r.before > 0).then(|| r.before - 1))
}

/// The server says after a break that it did not handle what it had passed on already.
pub(crate) fn deny_handled(history: &mut History, rng: &mut Rng) -> Option<()> {
    report(history, rng, |facts, chain, r| {
        let chain = &facts.chains[chain];
        let last = chain.sent.partition_point(|&(seq, _)| seq <= r.h);
        let &(seq, uid) = chain.sent.get(last.checked_sub(1)?)?;
        let stanza = facts.stanza(uid);
        // What nothing stores may be forgotten.
        let seen = stanza.class == Class::D && stanza.seen.is_some_and(|seen| seen < r.t);
        (r.kind != ReportKind::Ack && r.h > r.before && seq == r.h && seen).then(|| r.h - 1)
    })
}

/// A request is never answered although its stream holds for long.
pub(crate) fn no_answer(history: &mut History, rng: &mut Rng) -> Option<()> {
    const LONG: u64 = 6_000_000_000;
    let facts = Facts::new(history);
    if !facts.faults.is_empty() {
        return None;
    }
    let mut places = Vec::new();
    for session in &facts.sessions {
        let (Some((_, at)), Some((close, _))) = (session.bound, session.close) else { continue };
        let events = facts.clients[at.client].events;
        let number = events[at.index].s;
        let own = events.iter().enumerate().filter(|(_, e)| e.s == number);
        let answered =
            own.clone().filter(|(_, e)| matches!(e.ev, Ev::AIn { .. })).map(|(i, _)| i).next_back();
        let last = own.clone().find(|(i, _)| answered.is_none_or(|a| *i > a)).map(|(i, _)| i);
        // Stanzas in between keep the stream alive, so that nothing else is wrong with it.
        places.extend(last.filter(|&i| events[i].t + LONG < close).map(|i| (at.client, i)));
    }
    let (client, index) = pick(rng, places)?;
    let name = facts.clients[client].name.to_owned();
    super::insert_after(history, &(name, index), Ev::ROut);
    Some(())
}

pub(crate) fn archive_without_end(history: &mut History, rng: &mut Rng) -> Option<()> {
    let mut places = Vec::new();
    for (client, events) in &history.clients {
        for (index, event) in events.iter().enumerate() {
            let of_some = index > 0 && matches!(events[index - 1].ev, Ev::Mam { complete: false, .. });
            if matches!(event.ev, Ev::Mam { complete: true, .. }) && of_some {
                places.push((client.clone(), index));
            }
        }
    }
    let (client, index) = pick(rng, places)?;
    history.clients.get_mut(&client)?.remove(index);
    Some(())
}

pub(crate) fn fault_without_end(history: &mut History, _: &mut Rng) -> Option<()> {
    let t = history.clients.values().flatten().map(|e| e.t).max()?;
    let ev = Ev::Fault { kind: "kill9".into(), node: "n1".into(), on: true };
    history.clients.get_mut(HARNESS)?.push(Event { t, s: 0, ev });
    Some(())
}
