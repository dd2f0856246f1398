//! Mutations of clean histories: each is one thing that a faulty server might do.
//!
//! `None` means that the history has no place for it. What is picked is picked
//! so that the mutation is a fault for certain, and no other fault besides.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_checker::facts::{At, Facts, Recv, Stanza, bare};
use waystation_checker::history::{Class, Ctx, Ev, Event, History, How};
use waystation_checker::rng::Rng;

mod stream;

pub(crate) use stream::*;

type Place = (String, usize);

fn place(facts: &Facts<'_>, at: At) -> Place {
    (facts.clients[at.client].name.to_owned(), at.index)
}

fn event<'a>(history: &'a mut History, (client, index): &Place) -> &'a mut Event {
    &mut history.clients.get_mut(client).unwrap()[*index]
}

fn insert_after(history: &mut History, (client, index): &Place, ev: Ev) {
    let events = history.clients.get_mut(client).unwrap();
    let (t, s) = (events[*index].t, events[*index].s);
    events.insert(index + 1, Event { t, s, ev });
}

fn pick<T>(rng: &mut Rng, mut all: Vec<T>) -> Option<T> {
    (!all.is_empty()).then(|| all.swap_remove(rng.index(all.len())))
}

/// Messages that came, picked by a condition.
fn recvs<'a, 'h>(facts: &'a Facts<'h>, wanted: impl Fn(&Recv<'h>, &Stanza<'h>) -> bool) -> Vec<&'a Recv<'h>> {
    facts.recvs.iter().filter(|r| r.uid.is_some_and(|uid| wanted(r, facts.stanza(uid)))).collect()
}

fn has_archive(facts: &Facts<'_>, of: &str) -> bool {
    facts.archives.iter().any(|a| a.of == of)
}

/// Whether nothing was sent again, and the message came once to this resource.
fn is_plain(facts: &Facts<'_>, recv: &Recv<'_>) -> bool {
    let uid = recv.uid.unwrap();
    let copies = facts.recvs.iter().filter(|r| r.uid == recv.uid && r.jid == recv.jid).count();
    facts.stanza(uid).sends.len() == 1 && copies == 1
}

fn accepted_chats(facts: &Facts<'_>) -> Vec<String> {
    let wanted = |s: &&Stanza<'_>| s.acked && s.kind == "chat" && s.class == Class::D && s.bounces.is_empty();
    facts.stanzas.iter().filter(wanted).map(|s| s.uid.to_owned()).collect()
}

fn lose(history: &mut History, lost: &str, live: bool, archived: bool) {
    let to = history.clients.values().flatten().find_map(|e| match &e.ev {
        Ev::Send { uid, to, .. } if uid == lost => Some(to.clone()),
        _ => None,
    });
    let to = to.unwrap();
    for events in history.clients.values_mut() {
        let own = events.iter().any(|e| matches!(&e.ev, Ev::Bound { jid } if bare(jid) == to));
        events.retain(|e| match &e.ev {
            Ev::Recv { uid, .. } => !(live && own && uid == lost),
            Ev::Mam { uid: Some(uid), arch, .. } => !(archived && *arch == to && uid == lost),
            _ => true,
        });
    }
}

pub(crate) fn lose_everywhere(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let archived = facts.accounts.iter().all(|a| has_archive(&facts, a));
    let uid = pick(rng, accepted_chats(&facts)).filter(|_| archived)?;
    lose(history, &uid, true, true);
    Some(())
}

pub(crate) fn lose_from_live_without_archive(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let archived = facts.accounts.iter().any(|a| has_archive(&facts, a));
    let uid = pick(rng, accepted_chats(&facts)).filter(|_| !archived)?;
    lose(history, &uid, true, false);
    Some(())
}

pub(crate) fn lose_from_archive(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let live = recvs(&facts, |r, s| {
        *r.ctx == Ctx::Live && s.class == Class::D && is_plain(&facts, r) && has_archive(&facts, bare(r.jid))
    });
    let uid = pick(rng, live)?.text.to_owned();
    lose(history, &uid, false, true);
    Some(())
}

fn alter(hash: &mut String) {
    *hash = format!("!{}", &hash[1..]);
}

pub(crate) fn alter_body(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let at = place(&facts, pick(rng, recvs(&facts, |_, _| true))?.at);
    let Ev::Recv { hash, .. } = &mut event(history, &at).ev else { return None };
    alter(hash);
    Some(())
}

fn entries(facts: &Facts<'_>) -> Vec<Place> {
    facts.archives.iter().flat_map(|a| &a.entries).map(|e| place(facts, e.at)).collect()
}

pub(crate) fn alter_archived_body(history: &mut History, rng: &mut Rng) -> Option<()> {
    let at = pick(rng, entries(&Facts::new(history)))?;
    let Ev::Mam { hash, .. } = &mut event(history, &at).ev else { return None };
    alter(hash);
    Some(())
}

pub(crate) fn invent(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let at = place(&facts, pick(rng, recvs(&facts, |_, _| true))?.at);
    let mut ev = event(history, &at).ev.clone();
    let Ev::Recv { uid, sid, .. } = &mut ev else { return None };
    (*uid, *sid) = ("m/nobody/1".to_owned(), Some("none".to_owned()));
    insert_after(history, &at, ev);
    Some(())
}

pub(crate) fn forge_sender(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let at = place(&facts, pick(rng, recvs(&facts, |_, _| true))?.at);
    let Ev::Recv { from, .. } = &mut event(history, &at).ev else { return None };
    *from = "mallory@x/r0".to_owned();
    Some(())
}

/// A copy comes to an account that has nothing to do with it.
pub(crate) fn readdress(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let recv = pick(rng, recvs(&facts, |r, _| *r.ctx == Ctx::Live))?;
    let strangers: Vec<Place> = facts
        .recvs
        .iter()
        .filter(|r| bare(r.jid) != bare(recv.jid) && bare(r.jid) != bare(recv.from) && r.t > recv.t)
        .map(|r| place(&facts, r.at))
        .collect();
    let stranger = pick(rng, strangers)?;
    let at = place(&facts, recv.at);
    let ev = event(history, &at).ev.clone();
    insert_after(history, &stranger, ev);
    Some(())
}

pub(crate) fn change_addressee(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let recv = pick(rng, recvs(&facts, |r, _| !matches!(r.ctx, Ctx::Room(_))))?;
    let at = place(&facts, recv.at);
    let Ev::Recv { to, .. } = &mut event(history, &at).ev else { return None };
    *to = Some("mallory@x".to_owned());
    Some(())
}

pub(crate) fn repeat_at_once(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let recv = pick(rng, recvs(&facts, |r, _| !facts.fault_overlaps(r.t, r.t)))?;
    let at = place(&facts, recv.at);
    let ev = event(history, &at).ev.clone();
    insert_after(history, &at, ev);
    Some(())
}

/// After a break it may come again, but not under another id.
pub(crate) fn repeat_with_new_id(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let mut places = Vec::new();
    for first in recvs(&facts, |_, _| true) {
        let later = facts.recvs.iter().find(|r| {
            r.at.client == first.at.client && r.session > first.session && facts.broke_between(first, r)
        });
        places.extend(later.map(|r| (place(&facts, first.at), place(&facts, r.at))));
    }
    let (first, later) = pick(rng, places)?;
    let mut ev = event(history, &first).ev.clone();
    let Ev::Recv { sid, by, .. } = &mut ev else { return None };
    // Without the archive as a judge only the copies' disagreement can tell.
    (*sid, *by) = (Some("another".to_owned()), by.take());
    insert_after(history, &later, ev);
    Some(())
}

pub(crate) fn same_id_for_two(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let live = recvs(&facts, |r, _| *r.ctx == Ctx::Live && is_plain(&facts, r));
    let first = pick(rng, live.clone())?;
    let second = pick(rng, live.into_iter().filter(|r| r.by == first.by && r.uid != first.uid).collect())?;
    let (id, at) = (first.sid.unwrap().to_owned(), place(&facts, second.at));
    let Ev::Recv { sid, .. } = &mut event(history, &at).ev else { return None };
    *sid = Some(id);
    Some(())
}

/// Adds an entry at the end of an archive that repeats one of it.
fn append(history: &mut History, rng: &mut Rng, new_id: Option<&str>) -> Option<()> {
    let (client, index) = pick(rng, entries(&Facts::new(history)))?;
    let events = history.clients.get_mut(&client).unwrap();
    let mut ev = events[index].ev.clone();
    let Ev::Mam { arch: of, idx, id, .. } = &mut ev else { return None };
    let end = events
        .iter()
        .position(|e| matches!(&e.ev, Ev::Mam { arch, complete: true, .. } if arch == of))
        .unwrap();
    let Ev::Mam { idx: next, .. } = events[end].ev else { return None };
    *idx = next;
    if let Some(new_id) = new_id {
        new_id.clone_into(id);
    }
    let (t, s) = (events[end].t, events[end].s);
    events.insert(end, Event { t, s, ev });
    Some(())
}

pub(crate) fn show_archived_twice(history: &mut History, rng: &mut Rng) -> Option<()> {
    append(history, rng, None)
}

pub(crate) fn archive_twice(history: &mut History, rng: &mut Rng) -> Option<()> {
    append(history, rng, Some("another"))
}

pub(crate) fn bounce_delivered(history: &mut History, rng: &mut Rng) -> Option<()> {
    let facts = Facts::new(history);
    let uid = pick(rng, accepted_chats(&facts))?;
    let stanza = facts.stanzas.iter().find(|s| s.uid == uid).unwrap();
    let (at, from) = (place(&facts, stanza.sends[0].at), stanza.to.to_owned());
    let (cond, r#type) = ("service-unavailable".to_owned(), "cancel".to_owned());
    insert_after(history, &at, Ev::Err { uid, cond, r#type, from });
    Some(())
}

fn retype(history: &mut History, rng: &mut Rng, new: &str) -> Option<()> {
    let facts = Facts::new(history);
    let all = facts.stanzas.iter().flat_map(|s| &s.bounces).map(|b| place(&facts, b.at)).collect();
    let at = pick(rng, all)?;
    let Ev::Err { r#type, .. } = &mut event(history, &at).ev else { return None };
    new.clone_into(r#type);
    Some(())
}

pub(crate) fn overload_for_good(history: &mut History, rng: &mut Rng) -> Option<()> {
    retype(history, rng, "cancel")
}

pub(crate) fn unknown_error_type(history: &mut History, rng: &mut Rng) -> Option<()> {
    retype(history, rng, "sorry")
}

fn states(history: &History, wanted: impl Fn(usize) -> bool) -> Vec<Place> {
    let mut found = Vec::new();
    for (client, events) in &history.clients {
        for (index, event) in events.iter().enumerate() {
            if matches!(&event.ev, Ev::State { items, .. } if wanted(items.len())) {
                found.push((client.clone(), index));
            }
        }
    }
    found
}

pub(crate) fn forget_change(history: &mut History, rng: &mut Rng) -> Option<()> {
    let at = pick(rng, states(history, |len| len > 0))?;
    let Ev::State { items, since, .. } = event(history, &at).ev.clone() else { return None };
    let key = items.keys().next().unwrap().clone();
    // A removal that was asked for and never confirmed would excuse the server.
    let excused = history
        .clients
        .values()
        .flatten()
        .any(|e| matches!(&e.ev, Ev::Set { key: k, value: None, .. } if *k == key));
    // So would it be an excuse that the item itself was never confirmed.
    let confirmed = history.clients.values().flatten().any(|e| match &e.ev {
        Ev::Set { uid, key: k, scope, .. } if *k == key => {
            let own = matches!(&event_of(history, &at).ev, Ev::State { scope: s, .. } if s == scope);
            own && history
                .clients
                .values()
                .flatten()
                .any(|e| e.t < since && matches!(&e.ev, Ev::Done { uid: done } if done == uid))
        }
        _ => false,
    });
    if excused || !confirmed {
        return None;
    }
    let Ev::State { items, .. } = &mut event(history, &at).ev else { return None };
    items.remove(&key);
    Some(())
}

fn event_of<'a>(history: &'a History, (client, index): &Place) -> &'a Event {
    &history.clients[client][*index]
}

/// An item is there that nobody ever set.
pub(crate) fn revive_removed(history: &mut History, rng: &mut Rng) -> Option<()> {
    let at = pick(rng, states(history, |_| true))?;
    let Ev::State { items, .. } = &mut event(history, &at).ev else { return None };
    items.insert("friend0@x".to_owned(), "a name that nobody gave".to_owned());
    Some(())
}

pub(crate) fn double_bind(history: &mut History, rng: &mut Rng) -> Option<()> {
    const LONG: u64 = 2_000_000_000;
    let facts = Facts::new(history);
    let long = facts.sessions.iter().filter_map(|s| {
        let ((bound, _), (close, _)) = (s.bound?, s.close?);
        (close - bound > LONG).then(|| (s.jid.unwrap().to_owned(), bound))
    });
    let (jid, t) = pick(rng, long.collect())?;
    let events = [Ev::Connect { node: "n1".into() }, Ev::Bound { jid }, Ev::Close { how: How::Eof }];
    let times = [t + 1, t + 2, t + LONG];
    let events = times.into_iter().zip(events).map(|(t, ev)| Event { t, s: 1, ev }).collect();
    history.clients.insert("intruder".to_owned(), events);
    Some(())
}
