//! The outcome of a check for a reader: totals, violations, and the first one with its surroundings.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::Serialize;

use crate::checks::{Check, Witness, check_facts};
use crate::facts::{At, Facts};
use crate::history::{Class, Ev, History};

/// How many events around a witness are shown per client.
const AROUND: usize = 20;
/// How many witnesses of each check are named.
const NAMED: usize = 5;

/// Counts over a whole run. Messages only, but for `events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Events in the history.
    pub events: usize,
    /// Distinct messages sent.
    pub sent: usize,
    /// Of these: accepted by the server for certain.
    pub acked: usize,
    /// Of these: returned as errors.
    pub bounced: usize,
    /// Neither of both: their fate is open.
    pub indet: usize,
    /// Witnesses of C1.
    pub lost: usize,
    /// Copies that came beyond the first, allowed or not.
    pub dup: usize,
    /// Witnesses of C4.
    pub reordered: usize,
    /// The most copies of one message that one resource got.
    pub max_redelivery: usize,
    /// Faults.
    pub faults: usize,
    /// Messages read from archives.
    pub archived: usize,
    /// Durable messages that were accepted for a recipient whom the history does not show.
    pub unobserved: usize,
}

/// The outcome of all checks.
#[derive(Debug)]
pub struct Report {
    /// The counts.
    pub totals: Totals,
    /// What was violated.
    pub witnesses: Vec<Witness>,
    /// What the run was, if the history says so.
    pub run: Option<String>,
    /// Remarks of the run.
    pub notes: Vec<String>,
    excerpt: String,
}

impl Report {
    /// Checks a history.
    pub fn of(history: &History) -> Self {
        let facts = Facts::new(history);
        let witnesses = check_facts(&facts);
        let mut notes = Vec::new();
        let mut run = None;
        for event in history.clients.values().flatten() {
            match &event.ev {
                Ev::Note { text } => notes.push(text.clone()),
                Ev::Run { seed, workload, nemesis, server } => {
                    run =
                        Some(format!("workload {workload}, nemesis {nemesis}, server {server}, seed {seed}"));
                }
                _ => {}
            }
        }
        let mut totals = totals(&facts, history.len());
        totals.lost = witnesses.iter().filter(|w| w.check == Check::C1).count();
        totals.reordered = witnesses.iter().filter(|w| w.check == Check::C4).count();
        let excerpt = witnesses.first().map(|w| excerpt(&facts, w)).unwrap_or_default();
        Self { totals, witnesses, run, notes, excerpt }
    }

    /// Whether nothing was violated.
    pub fn passed(&self) -> bool {
        self.witnesses.is_empty()
    }

    /// How many witnesses each violated check has.
    pub fn counts(&self) -> BTreeMap<Check, usize> {
        let mut counts = BTreeMap::new();
        for witness in &self.witnesses {
            *counts.entry(witness.check).or_default() += 1;
        }
        counts
    }
}

fn totals(facts: &Facts<'_>, events: usize) -> Totals {
    let rooms: HashSet<&str> = facts.archives.iter().map(|a| a.of).collect();
    let mut totals = Totals { events, faults: facts.faults.len(), ..Totals::default() };
    for stanza in facts.stanzas.iter().filter(|s| s.is_message()) {
        totals.sent += 1;
        totals.acked += usize::from(stanza.acked);
        totals.bounced += usize::from(!stanza.bounces.is_empty());
        totals.indet += usize::from(!stanza.acked && stanza.bounces.is_empty());
        let to = crate::facts::bare(stanza.to);
        let observed = facts.accounts.contains(to) || rooms.contains(to);
        totals.unobserved += usize::from(stanza.acked && stanza.class == Class::D && !observed);
    }
    let mut copies: HashMap<(&str, u32), usize> = HashMap::with_capacity(facts.recvs.len());
    for recv in &facts.recvs {
        if let Some(uid) = recv.uid {
            *copies.entry((recv.jid, uid)).or_default() += 1;
        }
    }
    totals.dup = copies.values().map(|n| n - 1).sum();
    totals.max_redelivery = copies.values().map(|n| n - 1).max().unwrap_or(0);
    totals.archived =
        facts.archives.iter().map(|a| a.entries.iter().filter(|e| e.uid.is_some()).count()).sum();
    totals
}

/// The events around a witness, per client that took part in it.
fn excerpt(facts: &Facts<'_>, witness: &Witness) -> String {
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for At { client, index } in &witness.at {
        places.entry(*client).or_default().push(*index);
    }
    let mut text = String::new();
    for (client, indexes) in places {
        let client = &facts.clients[client];
        for middle in &indexes {
            let start = middle.saturating_sub(AROUND / 2);
            text.push_str(&format!("  -- {} --\n", client.name));
            for (index, event) in client.events.iter().enumerate().skip(start).take(AROUND) {
                let mark = if indexes.contains(&index) { '>' } else { ' ' };
                let shown = serde_json::to_string(&event.ev).unwrap_or_else(|e| e.to_string());
                let seconds = event.t / 1_000_000_000;
                let rest = event.t % 1_000_000_000 / 1_000;
                text.push_str(&format!("  {mark} {seconds:>5}.{rest:06} s{:<4} {shown}\n", event.s));
            }
        }
    }
    text
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(run) = &self.run {
            writeln!(f, "{run}")?;
        }
        let t = &self.totals;
        writeln!(
            f,
            "sent {}  acked {}  bounced {}  indet {}  lost {}  dup {}  reordered {}  max redelivery {}",
            t.sent, t.acked, t.bounced, t.indet, t.lost, t.dup, t.reordered, t.max_redelivery
        )?;
        writeln!(f, "archived {}  faults {}  events {}", t.archived, t.faults, t.events)?;
        if t.unobserved > 0 {
            writeln!(f, "not judged: {} accepted messages to recipients outside the history", t.unobserved)?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for (check, count) in self.counts() {
            writeln!(f, "{check} {}: {count} violation(s)", check.title())?;
            for witness in self.witnesses.iter().filter(|w| w.check == check).take(NAMED) {
                writeln!(f, "    {}", witness.text)?;
            }
        }
        match self.witnesses.first() {
            None => write!(f, "PASSED: no violation"),
            Some(first) => {
                writeln!(f, "first witness: {}: {}", first.check, first.text)?;
                write!(f, "{}FAILED: {} violation(s)", self.excerpt, self.witnesses.len())
            }
        }
    }
}
