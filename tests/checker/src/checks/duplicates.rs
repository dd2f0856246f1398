//! C3: duplicates only where the contract allows them; C3b: what came in once is processed once.
//!
//! What must stay true: copies as carbons are apart from direct ones, for a
//! message that another resource could not take may come to one that has its
//! carbon. Stanzas that a client resent blindly are new stanzas (P4), and no duplicates. Between
//! servers a stanza may come again after a fault (P8): then it is a new one to the second server. So may one of
//! class E that its server forgot in a fault.

use std::collections::{HashMap, HashSet};

use crate::checks::{Check, Witness};
use crate::facts::{Facts, Recv, bare};
use crate::history::Ctx;

/// Direct, carbon or room.
fn way(ctx: &Ctx) -> u8 {
    match ctx {
        Ctx::Live | Ctx::Offline => 0,
        Ctx::Carbon => 1,
        Ctx::Room(_) => 2,
    }
}

/// The messages that came, so that copies are neighbours.
fn sorted<'a, 'h>(facts: &'a Facts<'h>) -> Vec<(u32, &'a Recv<'h>)> {
    let mut all: Vec<_> = facts
        .recvs
        .iter()
        .filter_map(|r| Some((r.uid?, r)))
        .filter(|(uid, r)| facts.belongs(*uid, bare(r.jid)))
        .collect();
    all.sort_by_key(|(uid, r)| (*uid, r.jid, way(r.ctx), r.t, r.at));
    all
}

pub(super) fn duplicates(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    let archived = archive_ids(facts);
    let all = sorted(facts);
    for pair in all.windows(2) {
        let [(uid, first), (next_uid, second)] = pair else { continue };
        if uid != next_uid || first.jid != second.jid || way(first.ctx) != way(second.ctx) {
            continue;
        }
        let name = first.text;
        if facts.may_repeat(*uid, bare(first.jid), second.t) || facts.was_forgotten(*uid, second.t) {
            continue;
        }
        if !facts.broke_between(first, second) {
            let text = format!("{name} came twice to {} and no stream broke between", first.jid);
            let sends = facts.stanza(*uid).sends.iter().map(|sent| sent.at);
            found.push(Witness::new(Check::C3, sends.chain([first.at, second.at]).collect::<Vec<_>>(), text));
        } else if first.sid != second.sid && !facts.stanza(*uid).blind {
            let text = format!("{name} came to {} as {:?} and as {:?}", first.jid, first.sid, second.sid);
            found.push(Witness::new(Check::C3, [first.at, second.at], text));
        }
    }
    for (uid, recv) in &all {
        let (Some(sid), Some(by)) = (recv.sid, recv.by) else { continue };
        let Some(ids) = archived.get(&(by, *uid)) else { continue };
        if !ids.contains(&sid) && !facts.stanza(*uid).blind {
            let text = format!("{} came as {sid} by {by}, and is archived as {ids:?}", recv.text);
            found.push(Witness::new(Check::C3, [recv.at], text));
        }
    }
    found.extend(twice_in_archive(facts));
    found.extend(ids_that_mean_two(facts, &all));
    found
}

/// The ids under which each archive holds each stanza.
fn archive_ids<'h>(facts: &Facts<'h>) -> HashMap<(&'h str, u32), Vec<&'h str>> {
    let mut ids: HashMap<_, Vec<_>> = HashMap::new();
    for archive in &facts.archives {
        for entry in &archive.entries {
            let Some(uid) = entry.uid else { continue };
            let known: &mut Vec<_> = ids.entry((archive.of, uid)).or_default();
            if !known.contains(&entry.id) {
                known.push(entry.id);
            }
        }
    }
    ids
}

/// One entry that a reading shows twice.
fn twice_in_archive(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    for archive in &facts.archives {
        let mut seen = HashMap::with_capacity(archive.entries.len());
        for entry in &archive.entries {
            if let Some(before) = seen.insert(entry.id, entry) {
                let text = format!("the archive of {} shows {} twice", archive.of, entry.id);
                found.push(Witness::new(Check::C3, [before.at, entry.at], text));
            }
        }
    }
    found
}

/// One stanza id for two stanzas.
fn ids_that_mean_two(facts: &Facts<'_>, all: &[(u32, &Recv<'_>)]) -> Vec<Witness> {
    let mut found = Vec::new();
    let mut meaning = HashMap::with_capacity(all.len());
    let live = all.iter().filter_map(|(uid, r)| Some((r.by?, r.sid?, *uid, r.at)));
    let archived = facts
        .archives
        .iter()
        .flat_map(|a| a.entries.iter().filter_map(move |e| Some((a.of, e.id, e.uid?, e.at))));
    for (by, sid, uid, at) in live.chain(archived) {
        let (known, first) = *meaning.entry((by, sid)).or_insert((uid, at));
        if known != uid {
            let (a, b) = (facts.stanza(known).uid, facts.stanza(uid).uid);
            found.push(Witness::new(Check::C3, [first, at], format!("{sid} by {by} is {a} and is {b}")));
        }
    }
    found
}

/// C3b: an archive holds a stanza under one id, even when it was resent as P4 asks.
pub(super) fn processed_twice(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    let mut accused = HashSet::new();
    for archive in &facts.archives {
        let mut seen = HashMap::with_capacity(archive.entries.len());
        for entry in &archive.entries {
            let Some(uid) = entry.uid else { continue };
            let (id, at) = *seen.entry(uid).or_insert((entry.id, entry.at));
            let is_new =
                id != entry.id && !facts.stanza(uid).blind && !facts.may_repeat(uid, archive.of, facts.end);
            if is_new && accused.insert((archive.of, uid)) {
                let text =
                    format!("{} is in the archive of {} as {id} and as {}", entry.text, archive.of, entry.id);
                found.push(Witness::new(Check::C3b, [at, entry.at], text));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::checks::check;
    use crate::history::{Class, Ctx, Ev, Event, HARNESS, History, How};

    use super::*;

    /// A message that comes at 5 and at 15, each time as a new one, with a fault that begins then if it does.
    fn twice(to: &str, fault: Option<u64>) -> Vec<Check> {
        let send = Ev::Send {
            uid: "u".into(),
            seq: 1,
            to: to.into(),
            cls: Class::D,
            kind: "chat".into(),
            hash: String::new(),
        };
        let recv = |sid: &str| Ev::Recv {
            uid: "u".into(),
            sid: Some(sid.into()),
            by: Some(to.into()),
            from: "a@one.test/r".into(),
            to: None,
            delay: false,
            ctx: Ctx::Live,
            hash: String::new(),
        };
        let event = |(t, ev)| Event { t, s: 1, ev };
        let mut history = History::default();
        let sender = [(1, Ev::Bound { jid: "a@one.test/r".into() }), (2, send)].map(event);
        history.clients.insert("a".into(), sender.into());
        let recipient =
            [(1, Ev::Bound { jid: format!("{to}/r") }), (5, recv("s1")), (15, recv("s2"))].map(event);
        history.clients.insert("b".into(), recipient.into());
        let fault = fault.into_iter().flat_map(|t| {
            [(t, true), (t + 1, false)]
                .map(|(t, on)| event((t, Ev::Fault { kind: "kill9".into(), node: "n1".into(), on })))
        });
        history.clients.insert(HARNESS.into(), fault.collect());
        check(&history).iter().map(|w| w.check).collect()
    }

    /// Number 1 comes twice in one session of its recipient, after number 2; it was sent again at `again`, after a
    /// fault that was over before the first copy came.
    fn after_a_fault(class: Class, again: Option<u64>) -> Vec<Check> {
        let send = |uid: &str, seq| Ev::Send {
            uid: uid.into(),
            seq,
            to: "b@one.test".into(),
            cls: class,
            kind: "headline".into(),
            hash: String::new(),
        };
        let recv = |uid: &str| Ev::Recv {
            uid: uid.into(),
            sid: None,
            by: None,
            from: "a@one.test/r".into(),
            to: None,
            delay: false,
            ctx: Ctx::Live,
            hash: String::new(),
        };
        let event = |(t, s, ev)| Event { t, s, ev };
        let mut sender = vec![
            (1, 1, Ev::Bound { jid: "a@one.test/r".into() }),
            (2, 1, Ev::Smon { id: "m".into() }),
            (3, 1, send("one", 1)),
            (4, 1, send("two", 2)),
            (5, 1, Ev::Close { how: How::Eof }),
            (20, 2, Ev::Resume { previd: "m".into(), h: 0 }),
            (21, 2, Ev::Resumed { h: 0 }),
        ];
        sender.extend(again.map(|t| (t, 2, send("one", 1))));
        let recipient = [
            (1, 1, Ev::Bound { jid: "b@one.test/r".into() }),
            (14, 1, recv("two")),
            (15, 1, recv("one")),
            (25, 1, recv("one")),
        ];
        let fault = [(6, true), (10, false)]
            .map(|(t, on)| (t, 0, Ev::Fault { kind: "kill9".into(), node: "n1".into(), on }));
        let mut history = History::default();
        history.clients.insert("a".into(), sender.into_iter().map(event).collect());
        history.clients.insert("b".into(), recipient.map(event).into());
        history.clients.insert(HARNESS.into(), fault.map(event).into());
        let relevant = |check: &Check| matches!(check, Check::C3 | Check::C4);
        check(&history).iter().map(|w| w.check).filter(relevant).collect()
    }

    #[test]
    fn what_nothing_keeps_and_a_fault_made_forgotten_may_come_again() {
        assert_eq!(after_a_fault(Class::D, Some(22)), [Check::C3, Check::C4]);
        assert_eq!(after_a_fault(Class::E, None), [Check::C3, Check::C4], "it was sent once");
        assert_eq!(after_a_fault(Class::E, Some(26)), [Check::C3, Check::C4], "it was sent again later");
        assert_eq!(after_a_fault(Class::E, Some(22)), [Check::C4], "the first came before it was sent again");
        assert_eq!(after_a_fault(Class::E, Some(12)), []);
    }

    #[test]
    fn another_server_may_repeat_what_was_under_way_in_a_fault() {
        assert_eq!(twice("b@two.test", Some(3)), []);
        assert_eq!(twice("b@two.test", Some(10)), []);
        assert_eq!(twice("b@two.test", None), [Check::C3]);
        assert_eq!(twice("b@two.test", Some(20)), [Check::C3], "the fault came later");
        assert_eq!(twice("b@one.test", Some(10)), [Check::C3], "the own server knows");
    }
}
