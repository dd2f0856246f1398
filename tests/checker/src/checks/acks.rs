//! C5: acknowledgements that make sense; C9: nothing is stuck once faults are over.
//!
//! What must stay true: under-ack is judged by times (a recipient saw a stanza
//! before it was resent), which is sound because sending is noted before the
//! write and receiving after the read.

use std::collections::BTreeMap;

use crate::checks::{Check, Witness};
use crate::facts::{At, Facts, ReportKind};
use crate::history::{Class, Ev, HARNESS};

/// How long an `<r/>` may wait for its answer.
const ANSWER: u64 = 5_000_000_000;
/// How long after a fault everything may take.
const RECOVERY: u64 = 30_000_000_000;

pub(super) fn acks(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    for chain in &facts.chains {
        for report in &chain.reports {
            let mut accuse = |text: String| found.push(Witness::new(Check::C5, [report.at], text));
            if report.h < report.before {
                accuse(format!("{}: h={} after h={}", chain.jid, report.h, report.before));
            } else if report.h > report.sent {
                accuse(format!("{}: h={} of {} stanzas sent", chain.jid, report.h, report.sent));
            }
            if report.kind == ReportKind::Ack {
                continue;
            }
            let rest = chain.sent.partition_point(|&(seq, _)| seq <= report.h);
            for &(seq, uid) in &chain.sent[rest..] {
                let stanza = facts.stanza(uid);
                if stanza.class == Class::E {
                    // Nothing of it is stored before it is delivered: a crash may forget either.
                    continue;
                }
                let Some(first) = stanza.sends.first().filter(|s| s.t <= report.t) else { break };
                let resent = stanza.sends.iter().map(|s| s.t).find(|&t| t > report.t);
                if let Some(seen) = stanza.seen.filter(|&seen| seen < resent.unwrap_or(report.t)) {
                    let text = format!(
                        "{}: h={} after the break, but {} (number {seq}) had come to its recipient at {seen}",
                        chain.jid, report.h, stanza.uid
                    );
                    found.push(Witness::new(Check::C5, [first.at, report.at], text));
                    // The rest of the same h says nothing new.
                    break;
                }
            }
        }
    }
    found
}

pub(super) fn liveness(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    for fault in facts.faults.iter().filter(|f| f.off == u64::MAX) {
        found.push(Witness::new(Check::C9, [fault.at], format!("the fault {} was never ended", fault.kind)));
    }
    if let Some(healed) = facts.faults.iter().map(|f| f.off).max().filter(|&t| t != u64::MAX) {
        found.extend(unbound(facts, healed));
    }
    found.extend(unanswered(facts));
    for archive in facts.archives.iter().filter(|a| !a.complete) {
        let text = format!("the archive of {} could not be read to its end", archive.of);
        found.push(Witness::new(Check::C9, [archive.at], text));
    }
    found
}

/// Clients that had no session in the time of recovery.
fn unbound(facts: &Facts<'_>, healed: u64) -> Vec<Witness> {
    let mut found = Vec::new();
    for (number, client) in facts.clients.iter().enumerate().filter(|(_, c)| c.name != HARNESS) {
        let is_back = client.sessions.iter().map(|&s| &facts.sessions[s]).any(|session| {
            session.bound.is_some_and(|(t, _)| t <= healed.saturating_add(RECOVERY))
                && session.close.is_none_or(|(t, _)| t >= healed)
        });
        // Who left before in order, and did not try again, is not stuck.
        let tried = client.events.iter().rposition(|e| matches!(e.ev, Ev::Connect { .. }) && e.t >= healed);
        if let Some(index) = tried.filter(|_| !is_back) {
            let text = format!("{} had no session within 30 s after the last fault", client.name);
            found.push(Witness::new(Check::C9, [At { client: number, index }], text));
        }
    }
    found
}

/// Requests for acknowledgement that nobody answered although the stream held.
fn unanswered(facts: &Facts<'_>) -> Vec<Witness> {
    let mut found = Vec::new();
    for (number, client) in facts.clients.iter().enumerate() {
        let mut first: BTreeMap<u32, usize> = BTreeMap::new();
        // Walked backwards, so that the next answer and the end of each session are known.
        let mut answer: Option<(u32, u64)> = None;
        let mut last: Option<(u32, u64)> = None;
        for (index, event) in client.events.iter().enumerate().rev() {
            match &event.ev {
                Ev::Close { .. } => last = Some((event.s, event.t)),
                Ev::AIn { .. } => answer = Some((event.s, event.t)),
                Ev::ROut => {
                    let soon = event.t + ANSWER;
                    let disturbed = facts.faults.iter().filter(|f| f.on <= soon).map(|f| f.off).max();
                    let deadline = disturbed.map_or(soon, |off| soon.max(off.saturating_add(RECOVERY)));
                    let of_session = |known: Option<(u32, u64)>| {
                        known.filter(|(s, _)| *s == event.s).map_or(u64::MAX, |(_, t)| t)
                    };
                    let end = of_session(answer).min(of_session(last)).min(facts.end);
                    if end > deadline {
                        first.insert(event.s, index);
                    }
                }
                _ => {}
            }
        }
        // One per session: a client that waits asks again and again.
        for (session, index) in first {
            let text = format!("{}: no answer to <r/> of session {session} within 5 s", client.name);
            found.push(Witness::new(Check::C9, [At { client: number, index }], text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::checks::check;
    use crate::history::{Class, Ev, Event, HARNESS, History, How};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A fault of the tenth second, and a client that comes back after `delay` seconds.
    fn back_after(delay: u64) -> History {
        let fault = |on| Ev::Fault { kind: "kill9".into(), node: "n1".into(), on };
        let connect = || Ev::Connect { node: "n1".into() };
        let bound = || Ev::Bound { jid: "a@x/r".into() };
        let close = || Ev::Close { how: How::Eof };
        let client = [
            (1, 1, connect()),
            (1, 1, bound()),
            (9, 1, close()),
            (11, 2, connect()),
            (11, 2, close()),
            (10 + delay, 3, connect()),
            (10 + delay, 3, bound()),
            (90, 3, close()),
        ];
        let event = |(t, s, ev)| Event { t: t * SECOND, s, ev };
        let mut history = History::default();
        history.clients.insert("a".into(), client.map(event).into());
        history
            .clients
            .insert(HARNESS.into(), [(9, 0, fault(true)), (10, 0, fault(false))].map(event).into());
        history
    }

    #[test]
    fn who_comes_back_too_late_is_stuck() {
        assert_eq!(check(&back_after(29)), []);
        let found = check(&back_after(31));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].check, Check::C9);
    }

    #[test]
    fn acknowledgements_may_wrap() {
        let top = u64::from(u32::MAX);
        let send = |seq| Ev::Send {
            uid: format!("u{seq}"),
            seq,
            to: String::new(),
            cls: Class::E,
            kind: "presence".into(),
            hash: String::new(),
        };
        let mut all = vec![Ev::Bound { jid: "a@x/r".into() }, Ev::Smon { id: "1".into() }];
        // A history that begins shortly before the turn.
        for (seq, h) in [(1 << 31, 1 << 31), (top - 1, u32::MAX - 1), (top + 2, 1)] {
            all.extend([send(seq), Ev::AIn { h }]);
        }
        let mut history = History::default();
        history
            .clients
            .insert("a".into(), (1..).zip(all.clone()).map(|(t, ev)| Event { t, s: 1, ev }).collect());
        assert_eq!(check(&history), []);
        all.push(Ev::AIn { h: 0 });
        history.clients.insert("a".into(), (1..).zip(all).map(|(t, ev)| Event { t, s: 1, ev }).collect());
        assert_eq!(check(&history).iter().map(|w| w.check).collect::<Vec<_>>(), [Check::C5]);
    }
}
