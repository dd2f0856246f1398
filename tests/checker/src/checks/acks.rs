//! C5: acknowledgements that make sense; C9: nothing is stuck once faults are over.
//!
//! What must stay true: under-ack is judged by times (a recipient saw a stanza
//! before it was resent), which is sound because sending is noted before the
//! write and receiving after the read.

use std::collections::BTreeMap;

use crate::checks::{Check, Witness};
use crate::facts::{At, Facts, ReportKind};
use crate::history::{Ev, HARNESS};

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
