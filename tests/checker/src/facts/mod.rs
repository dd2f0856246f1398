//! What follows from a history before any check: streams, fates, deliveries, archives.
//!
//! One pass over the events. A *chain* is one stream in the sense of the
//! contract: the sessions that successful resumptions join, or a single session
//! without stream management. What must stay true: a report of the server that
//! cannot be right (h falls, or exceeds what was sent) is kept for C5 and is no
//! evidence for anything else, so that one lie trips one check.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Class, Ev, Event, HARNESS, History, How};

mod data;

pub use data::{
    Archive, At, Bounce, Chain, Client, Entry, Facts, Recv, Report, ReportKind, Sent, Session, Stanza, Window,
};

/// The bare JID of a JID.
pub fn bare(jid: &str) -> &str {
    jid.split_once('/').map_or(jid, |(bare, _)| bare)
}

/// The domain of a JID.
fn domain(jid: &str) -> &str {
    bare(jid).rsplit_once('@').map_or(bare(jid), |(_, domain)| domain)
}

/// The number that `raw` stands for modulo 2^32, nearest to `near`.
fn unwrap_h(raw: u32, near: u64) -> u64 {
    const TURN: u64 = 1 << 32;
    let here = (near & !(TURN - 1)) | u64::from(raw);
    let around = [Some(here), here.checked_add(TURN), here.checked_sub(TURN)];
    around.into_iter().flatten().min_by_key(|h| h.abs_diff(near)).unwrap_or(here)
}

impl<'h> Facts<'h> {
    /// Derives them.
    pub fn new(history: &'h History) -> Self {
        let mut facts = Self::default();
        for (n, (name, events)) in history.clients.iter().enumerate() {
            facts.clients.push(Client { name, events, sessions: Vec::new() });
            facts.end = facts.end.max(events.iter().map(|e| e.t).max().unwrap_or(0));
            if name == HARNESS { facts.read_faults(n) } else { facts.read_sends(n) }
        }
        facts.settle();
        // Only when all that was sent is known can deliveries be matched with it.
        for n in 0..facts.clients.len() {
            facts.read_deliveries(n);
        }
        facts
    }

    /// The stanza of this number.
    pub fn stanza(&self, uid: u32) -> &Stanza<'h> {
        &self.stanzas[uid as usize]
    }

    /// The full JIDs that sent it.
    pub fn senders(&self, uid: u32) -> impl Iterator<Item = &'h str> + '_ {
        self.stanza(uid).sends.iter().map(|s| self.chains[s.chain].jid)
    }

    /// Where it stands in the order of its sender: on the stream of its last sending.
    pub fn position(&self, uid: u32) -> (usize, u64) {
        self.stanza(uid).sends.last().map_or((usize::MAX, 0), |s| (s.chain, s.seq))
    }

    /// Whether it may come to this account at all: what C2 reports is left out of other checks.
    pub fn belongs(&self, uid: u32, account: &str) -> bool {
        let stanza = self.stanza(uid);
        stanza.kind == "groupchat"
            || bare(stanza.to) == account
            || self.senders(uid).any(|s| bare(s) == account)
    }

    /// Whether a copy that came to this account by then may be a repetition by the sender's server: of what
    /// another server has taken a server knows only what it was told before a fault (P8).
    pub fn may_repeat(&self, uid: u32, account: &str, until: u64) -> bool {
        let first = self.stanza(uid).sends.first().map_or(0, |s| s.t);
        self.senders(uid).all(|sender| domain(sender) != domain(account)) && self.fault_overlaps(first, until)
    }

    /// Whether a fault made a server forget this stanza, so that its sender sent it again by then, as P4 asks. Of
    /// class E nothing is stored before it is delivered: it may have come already, or come later as well (over
    /// BOSH in a response from before the fault), and what was sent after it may have come before it.
    pub fn was_forgotten(&self, uid: u32, until: u64) -> bool {
        let stanza = self.stanza(uid);
        let again = |s: &[Sent]| s[1].t <= until && self.fault_overlaps(s[0].t, s[1].t);
        stanza.class == Class::E && stanza.sends.windows(2).any(again)
    }

    /// Whether a fault was in force at some time from `start` to `end`.
    pub fn fault_overlaps(&self, start: u64, end: u64) -> bool {
        self.faults.iter().any(|f| f.on <= end && start <= f.off)
    }

    /// Whether a stream of the resource broke between two events of one client.
    pub fn broke_between(&self, first: &Recv<'h>, second: &Recv<'h>) -> bool {
        if first.at.client != second.at.client {
            return true;
        }
        if first.session == second.session {
            return self.fault_overlaps(first.t, second.t);
        }
        let (low, high) = (first.session.min(second.session), first.session.max(second.session));
        // Sessions of a client are neighbours, so this is the range between the two.
        let broken = self.sessions[low..high].iter().any(|s| !matches!(s.close, Some((_, How::Clean))));
        let session = &self.sessions[first.session];
        let managed = session.chain.is_some_and(|c| self.chains[c].managed);
        let acked = !managed || session.last_a_out.is_some_and(|index| index > first.at.index);
        broken || !acked || self.fault_overlaps(first.t, second.t)
    }

    fn read_faults(&mut self, client: usize) {
        let mut open: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (index, event) in self.clients[client].events.iter().enumerate() {
            let Ev::Fault { kind, node, on } = &event.ev else { continue };
            match (on, open.remove(&(kind.as_str(), node.as_str()))) {
                (true, _) => {
                    open.insert((kind, node), self.faults.len());
                    let at = At { client, index };
                    self.faults.push(Window { kind, on: event.t, off: u64::MAX, at });
                }
                (false, Some(window)) => self.faults[window].off = event.t,
                (false, None) => {}
            }
        }
    }

    fn read_sends(&mut self, client: usize) {
        let mut numbers: HashMap<u32, usize> = HashMap::new();
        let mut managed: HashMap<&str, usize> = HashMap::new();
        let events = self.clients[client].events;
        for (index, event) in events.iter().enumerate() {
            let at = At { client, index };
            let here = *numbers.entry(event.s).or_insert_with(|| {
                self.clients[client].sessions.push(self.sessions.len());
                self.sessions.push(Session {
                    client,
                    jid: None,
                    bound: None,
                    close: None,
                    chain: None,
                    last_a_out: None,
                    resuming: None,
                });
                self.sessions.len() - 1
            });
            let session = &mut self.sessions[here];
            match &event.ev {
                Ev::Bound { jid } => {
                    session.jid = Some(jid);
                    session.bound = Some((event.t, at));
                    session.chain = Some(self.chains.len());
                    self.chains.push(Chain { jid, ..Chain::default() });
                    self.accounts.insert(bare(jid));
                }
                Ev::Smon { id } => {
                    if let Some(chain) = session.chain {
                        self.chains[chain].managed = true;
                        managed.insert(id, chain);
                    }
                }
                Ev::Resume { previd, .. } => session.resuming = managed.get(previd.as_str()).copied(),
                Ev::Resumed { h } => {
                    if let Some(chain) = session.resuming.take() {
                        session.chain = Some(chain);
                        (session.jid, session.bound) = (Some(self.chains[chain].jid), Some((event.t, at)));
                        self.report(chain, ReportKind::Resumed, *h, event.t, at);
                    }
                }
                Ev::Smfail { h } => {
                    if let (Some(chain), Some(h)) = (session.resuming.take(), h) {
                        self.report(chain, ReportKind::Failed, *h, event.t, at);
                    }
                }
                Ev::AIn { h } => {
                    if let Some(chain) = session.chain {
                        self.report(chain, ReportKind::Ack, *h, event.t, at);
                    }
                }
                Ev::AOut { .. } => session.last_a_out = Some(index),
                Ev::Send { .. } => self.read_send(here, event, at),
                Ev::Close { how } => {
                    session.close = Some((event.t, how));
                    if let Some(chain) = session.chain {
                        self.chains[chain].clean = *how == How::Clean;
                    }
                }
                _ => {}
            }
        }
    }

    fn report(&mut self, chain: usize, kind: ReportKind, raw: u32, t: u64, at: At) {
        let chain = &mut self.chains[chain];
        let sent = chain.sent.last().map_or(0, |&(seq, _)| seq);
        let h = unwrap_h(raw, chain.h);
        let report = Report { kind, h, before: chain.h, sent, t, at };
        chain.reports.push(report);
        if report.is_sane() {
            chain.h = h;
        }
        match kind {
            ReportKind::Ack => {}
            ReportKind::Resumed => chain.resumed_h = Some(h),
            ReportKind::Failed => chain.failed_h = Some(h),
        }
    }

    fn read_send(&mut self, session: usize, event: &'h Event, at: At) {
        let Ev::Send { uid, seq, to, cls, kind, hash } = &event.ev else { return };
        let Some(here) = self.sessions[session].chain else { return };
        let number = *self.names.entry(uid).or_insert_with(|| {
            self.stanzas.push(Stanza {
                uid,
                to,
                class: *cls,
                kind,
                hash,
                sends: Vec::new(),
                blind: false,
                acked: false,
                bounces: Vec::new(),
                seen: None,
            });
            // Four thousand million stanzas do not fit into memory.
            u32::try_from(self.stanzas.len() - 1).unwrap_or(u32::MAX)
        });
        let stanza = &mut self.stanzas[number as usize];
        if let Some(before) = stanza.sends.last() {
            let chain = &self.chains[before.chain];
            let handled = if before.chain == here { chain.resumed_h } else { chain.failed_h };
            stanza.blind |= !chain.managed || handled.is_none_or(|h| before.seq <= h);
        }
        stanza.sends.push(Sent { chain: here, seq: *seq, t: event.t, at });
        let chain = &mut self.chains[here];
        if chain.sent.last().is_none_or(|&(last, _)| *seq > last) {
            chain.sent.push((*seq, number));
        }
    }

    /// Which stanzas were accepted, now that all streams are complete.
    fn settle(&mut self) {
        for stanza in &mut self.stanzas {
            stanza.acked = stanza.sends.iter().any(|s| {
                let chain = &self.chains[s.chain];
                if chain.managed { s.seq <= chain.h } else { chain.clean }
            });
        }
    }

    fn read_deliveries(&mut self, client: usize) {
        let events = self.clients[client].events;
        // Sessions were numbered as they appeared, so the same walk gives the same indexes.
        let mut numbers: HashMap<u32, usize> = HashMap::new();
        let mut sessions = self.clients[client].sessions.clone().into_iter();
        let mut open: HashMap<(u32, &str), usize> = HashMap::new();
        for (index, event) in events.iter().enumerate() {
            let at = At { client, index };
            let session = match numbers.get(&event.s) {
                Some(&session) => session,
                None => {
                    let Some(session) = sessions.next() else { continue };
                    numbers.insert(event.s, session);
                    session
                }
            };
            match &event.ev {
                Ev::Recv { uid, sid, by, from, to, ctx, hash, .. } => {
                    let number = self.names.get(uid.as_str()).copied();
                    if let Some(number) = number {
                        let seen = &mut self.stanzas[number as usize].seen;
                        *seen = Some(seen.map_or(event.t, |t| t.min(event.t)));
                    }
                    self.recvs.push(Recv {
                        at,
                        t: event.t,
                        session,
                        jid: self.sessions[session].jid.unwrap_or_default(),
                        uid: number,
                        text: uid,
                        sid: sid.as_deref(),
                        by: by.as_deref(),
                        from,
                        to: to.as_deref(),
                        ctx,
                        hash,
                    });
                }
                Ev::Err { uid, cond, r#type, from } => {
                    if let Some(&number) = self.names.get(uid.as_str()) {
                        let bounce = Bounce { cond, kind: r#type, from, t: event.t, at };
                        self.stanzas[number as usize].bounces.push(bounce);
                    }
                }
                Ev::Mam { arch, idx, id, uid, from, hash, complete } => {
                    let reading = *open.entry((event.s, arch)).or_insert_with(|| {
                        self.archives.push(Archive { of: arch, entries: Vec::new(), complete: false, at });
                        self.archives.len() - 1
                    });
                    let archive = &mut self.archives[reading];
                    archive.complete |= complete;
                    // The mark after the last page is no entry.
                    if !(*complete && uid.is_none()) {
                        archive.entries.push(Entry {
                            at,
                            idx: *idx,
                            id,
                            uid: uid.as_deref().and_then(|uid| self.names.get(uid).copied()),
                            text: uid.as_deref().unwrap_or_default(),
                            from: from.as_deref(),
                            hash,
                        });
                    }
                }
                _ => {}
            }
        }
        for &reading in open.values() {
            self.archives[reading].entries.sort_by_key(|e| e.idx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h_wraps() {
        let top = u64::from(u32::MAX);
        assert_eq!(unwrap_h(5, 3), 5);
        assert_eq!(unwrap_h(3, 5), 3);
        assert_eq!(unwrap_h(2, top - 1), top + 3);
        assert_eq!(unwrap_h(u32::MAX, top + 5), top);
        assert_eq!(unwrap_h(0, 0), 0);
        assert_eq!(unwrap_h(5, 1), 5);
    }
}
