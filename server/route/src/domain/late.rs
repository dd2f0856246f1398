//! Stanzas that nothing keeps and that wait for a stream, in their places among the records.
//!
//! What must hold: each comes behind the records that were offered before it and before those that were
//! offered after it; of a sender's availability to one recipient only the last waits; they are bounded in
//! number and bytes, and at the limit the oldest presence gives way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ahash::HashMap;
use waystation_core::{IqType, Jid, PresenceType, Stanza, StanzaType};

/// From, to, and whether it is a probe, which availability does not replace.
type Key = (Jid, Jid, bool);

struct Waiting {
    stanza: Stanza,
    /// The last record that was offered before it.
    after: u64,
    since: Instant,
}

/// See the module's header.
pub(super) struct Late {
    /// In their order.
    waiting: BTreeMap<i64, Waiting>,
    presence: HashMap<Key, i64>,
    bytes: usize,
    max_items: usize,
    max_bytes: usize,
}

/// True for a request, which must be answered.
pub(super) fn is_request(stanza: &Stanza) -> bool {
    matches!(stanza.stanza_type(), StanzaType::Iq(IqType::Get | IqType::Set))
}

/// True for presence of which only the last counts.
pub(super) fn is_availability(stanza: &Stanza) -> bool {
    matches!(
        stanza.stanza_type(),
        StanzaType::Presence(PresenceType::Available | PresenceType::Unavailable | PresenceType::Probe)
    )
}

fn key(stanza: &Stanza) -> Option<Key> {
    if !is_availability(stanza) {
        return None;
    }
    let probe = stanza.stanza_type() == StanzaType::Presence(PresenceType::Probe);
    Some((stanza.from()?.clone(), stanza.to()?.clone(), probe))
}

impl Late {
    /// Room for so many stanzas and bytes of them.
    pub(super) fn new(max_items: usize, max_bytes: usize) -> Self {
        Self { waiting: BTreeMap::new(), presence: HashMap::default(), bytes: 0, max_items, max_bytes }
    }

    /// True when nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn remove(&mut self, place: i64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&place)?;
        self.bytes -= waiting.stanza.len();
        if let Some(key) = key(&waiting.stanza)
            && self.presence.get(&key) == Some(&place)
        {
            self.presence.remove(&key);
        }
        Some(waiting)
    }

    fn insert(&mut self, place: i64, stanza: Stanza, after: u64, since: Instant) {
        self.bytes += stanza.len();
        if let Some(key) = key(&stanza) {
            self.presence.insert(key, place);
        }
        self.waiting.insert(place, Waiting { stanza, after, since });
    }

    fn has_room_for(&self, stanza: &Stanza) -> bool {
        self.waiting.len() < self.max_items && self.bytes + stanza.len() <= self.max_bytes
    }

    /// Adds one; gives back what there is no room for: a request must be answered.
    pub(super) fn push(&mut self, stanza: Stanza, after: u64, now: Instant) -> Option<Stanza> {
        if let Some(older) = key(&stanza).and_then(|key| self.presence.get(&key).copied()) {
            self.remove(older);
        }
        while !self.has_room_for(&stanza) {
            let oldest = self.waiting.iter().find(|(_, waiting)| is_availability(&waiting.stanza));
            let Some(place) = oldest.map(|(place, _)| *place) else { return Some(stanza) };
            self.remove(place);
        }
        let place = self.waiting.last_key_value().map_or(0, |(place, _)| place + 1);
        self.insert(place, stanza, after, now);
        None
    }

    /// Puts back what a stream was given, in its order, before everything that waits; presence only where
    /// there is none that is newer. Gives back the requests that there is no room for.
    pub(super) fn put_back(&mut self, stanzas: Vec<(Stanza, u64)>, now: Instant) -> Vec<Stanza> {
        let mut refused = Vec::new();
        for (stanza, after) in stanzas.into_iter().rev() {
            if key(&stanza).is_some_and(|key| self.presence.contains_key(&key)) {
                continue;
            }
            if !self.has_room_for(&stanza) {
                refused.push(stanza);
                continue;
            }
            let place = self.waiting.first_key_value().map_or(0, |(place, _)| place - 1);
            self.insert(place, stanza, after, now);
        }
        refused.retain(is_request);
        refused
    }

    /// The first, and the last record that was offered before it.
    pub(super) fn first(&self) -> Option<(&Stanza, u64)> {
        self.waiting.first_key_value().map(|(_, waiting)| (&waiting.stanza, waiting.after))
    }

    /// Removes the first.
    pub(super) fn pop(&mut self) {
        if let Some(place) = self.waiting.first_key_value().map(|(place, _)| *place) {
            self.remove(place);
        }
    }

    fn take(&mut self, which: impl Fn(&Waiting) -> bool) -> Vec<Stanza> {
        let places: Vec<_> = self.waiting.iter().filter(|(_, w)| which(w)).map(|(place, _)| *place).collect();
        places.into_iter().filter_map(|place| self.remove(place)).map(|waiting| waiting.stanza).collect()
    }

    /// Takes all but availability, which waits for better times.
    pub(super) fn take_all_but_presence(&mut self) -> Vec<Stanza> {
        self.take(|waiting| !is_availability(&waiting.stanza))
    }

    /// Takes all.
    pub(super) fn take_all(&mut self) -> Vec<Stanza> {
        self.take(|_| true)
    }

    /// Takes requests that have waited for `request`, and whatever has for `any`.
    pub(super) fn take_older(&mut self, request: Duration, any: Duration, now: Instant) -> Vec<Stanza> {
        let age = |waiting: &Waiting| now.saturating_duration_since(waiting.since);
        self.take(|waiting| age(waiting) >= any || (is_request(&waiting.stanza) && age(waiting) >= request))
    }

    /// When [`Late::take_older`] has something to do.
    pub(super) fn due(&self, request: Duration, any: Duration) -> Option<Instant> {
        // One of the oldest request and the oldest of all; which come first in their order.
        let first = self.waiting.values().next().map(|waiting| waiting.since + any);
        let requests = self.waiting.values().find(|waiting| is_request(&waiting.stanza));
        first.into_iter().chain(requests.map(|waiting| waiting.since + request)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(xml: &str) -> Stanza {
        Stanza::parse(xml.as_bytes()).unwrap()
    }

    fn presence(from: &str, kind: &str) -> Stanza {
        stanza(&format!("<presence from='{from}' to='b@r' {kind}/>"))
    }

    fn iq(id: u32) -> Stanza {
        stanza(&format!("<iq type='get' id='{id}' from='a@h/r' to='b@r'><x xmlns='u'/></iq>"))
    }

    fn describe(late: &mut Late) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        while let Some((stanza, after)) = late.first() {
            let what = stanza.id().map_or_else(|| stanza.from().unwrap().to_string(), |id| id.into_owned());
            all.push((what, after));
            late.pop();
        }
        assert_eq!((late.bytes, late.presence.len()), (0, 0));
        all
    }

    #[test]
    fn only_the_last_availability_of_a_sender_waits_and_a_probe_beside_it() {
        let (mut late, now) = (Late::new(10, 10_000), Instant::now());
        for (from, kind, after) in [
            ("a@h/1", "", 1),
            ("a@h/2", "", 2),
            ("a@h/1", "type='probe'", 3),
            ("a@h/1", "type='unavailable'", 4),
        ] {
            assert!(late.push(presence(from, kind), after, now).is_none());
        }
        let expected = [("a@h/2".to_owned(), 2), ("a@h/1".to_owned(), 3), ("a@h/1".to_owned(), 4)];
        assert_eq!(describe(&mut late), expected);
    }

    #[test]
    fn at_the_limit_the_oldest_presence_goes_and_requests_are_given_back() {
        let (mut late, now) = (Late::new(3, 10_000), Instant::now());
        late.push(iq(1), 0, now);
        late.push(presence("a@h/1", ""), 0, now);
        late.push(presence("a@h/2", ""), 0, now);
        assert!(late.push(presence("a@h/3", ""), 0, now).is_none());
        assert!(late.push(iq(2), 0, now).is_none());
        assert!(late.push(iq(3), 0, now).is_none());
        assert!(late.push(iq(4), 0, now).is_some(), "nothing is left that may give way");
        assert_eq!(late.len(), 3);
        assert_eq!(describe(&mut late), [("1".to_owned(), 0), ("2".to_owned(), 0), ("3".to_owned(), 0)]);
        let mut small = Late::new(10, presence("a@h/1", "").len() + 2);
        small.push(presence("a@h/1", ""), 0, now);
        small.push(presence("a@h/2", ""), 0, now);
        assert_eq!(describe(&mut small), [("a@h/2".to_owned(), 0)], "bytes count too");
    }

    #[test]
    fn what_is_put_back_comes_first_unless_there_is_newer_presence() {
        let (mut late, now) = (Late::new(4, 10_000), Instant::now());
        late.push(presence("a@h/1", ""), 9, now);
        let back = vec![(presence("a@h/1", "type='unavailable'"), 1), (iq(1), 2), (presence("a@h/2", ""), 3)];
        assert!(late.put_back(back, now).is_empty());
        assert_eq!(late.put_back(vec![(iq(2), 0), (iq(3), 0)], now).len(), 1);
        let expected = [("3", 0), ("1", 2), ("a@h/2", 3), ("a@h/1", 9)];
        assert_eq!(describe(&mut late), expected.map(|(what, after)| (what.to_owned(), after)));
    }

    #[test]
    fn what_is_too_old_is_taken() {
        let (mut late, now) = (Late::new(10, 10_000), Instant::now());
        let (short, long) = (Duration::from_secs(30), Duration::from_secs(60));
        late.push(presence("a@h/1", ""), 0, now);
        late.push(iq(1), 0, now);
        assert_eq!(late.due(short, long), Some(now + short));
        assert!(late.take_older(short, long, now + Duration::from_secs(29)).is_empty());
        assert_eq!(late.take_older(short, long, now + short).len(), 1);
        assert_eq!(late.due(short, long), Some(now + long));
        assert_eq!(late.take_older(short, long, now + long).len(), 1);
        assert!(late.is_empty() && late.due(short, long).is_none());
    }
}
