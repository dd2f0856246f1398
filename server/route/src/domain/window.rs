//! What a stream was given and has not handed over.
//!
//! What must hold: notes are in the order of the giving, one for each stanza, so a count says which have
//! arrived; of a record only its number is kept, for its queue has the rest.

use std::collections::VecDeque;

use waystation_core::Stanza;
use waystation_core::queue::RecordId;

/// Most stanzas that a stream may be given without handing them over: what a queue may hold.
pub(super) const MAX_NOTES: usize = 20_000;
/// Most bytes of stanzas that nothing else keeps.
pub(super) const MAX_KEPT: usize = 1024 * 1024;

/// What is known of a stanza that was given.
#[derive(Debug)]
pub(super) enum Note {
    /// A record of the queue, with its bytes.
    Record(RecordId, u64),
    /// A request, which is answered when it fails, or presence, which is sent again.
    Kept(Stanza),
    /// One that may be lost.
    Nothing,
}

/// See the module's header.
#[derive(Default)]
pub(super) struct Window {
    notes: VecDeque<Note>,
    /// How many before the first note were handed over.
    handed: u64,
    kept: usize,
}

impl Window {
    /// True when nothing is open.
    pub(super) fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// True when nothing more is to be given.
    pub(super) fn is_full(&self) -> bool {
        self.notes.len() >= MAX_NOTES
    }

    /// True when a stanza that nothing else keeps can be noted.
    pub(super) fn has_room_for(&self, stanza: &Stanza) -> bool {
        self.kept + stanza.len() <= MAX_KEPT
    }

    /// A stanza was given.
    pub(super) fn push(&mut self, note: Note) {
        if let Note::Kept(stanza) = &note {
            self.kept += stanza.len();
        }
        self.notes.push_back(note);
    }

    fn pop(&mut self) -> Option<Note> {
        let note = self.notes.pop_front()?;
        if let Note::Kept(stanza) = &note {
            self.kept -= stanza.len();
        }
        Some(note)
    }

    /// So many have arrived, counted from the first of all: `each` is called with those that are new. A
    /// count of more than was given means all.
    pub(super) fn handed(&mut self, count: u64, mut each: impl FnMut(Note)) {
        while self.handed < count
            && let Some(note) = self.pop()
        {
            self.handed += 1;
            each(note);
        }
    }

    /// Takes what is open; the next stream's count begins behind `count`.
    pub(super) fn take(&mut self, count: u64) -> VecDeque<Note> {
        self.kept = 0;
        self.handed = count;
        std::mem::take(&mut self.notes)
    }

    /// Takes the requests, whose places stay.
    pub(super) fn take_requests(&mut self, is_request: impl Fn(&Stanza) -> bool) -> Vec<Stanza> {
        let mut requests = Vec::new();
        for note in &mut self.notes {
            if let Note::Kept(stanza) = note
                && is_request(stanza)
            {
                self.kept -= stanza.len();
                if let Note::Kept(stanza) = std::mem::replace(note, Note::Nothing) {
                    requests.push(stanza);
                }
            }
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(xml: &str) -> Note {
        Note::Kept(Stanza::parse(xml.as_bytes()).unwrap())
    }

    #[test]
    fn counts_say_which_have_arrived_also_after_a_resumption() {
        let mut window = Window::default();
        (1..=4).for_each(|id| window.push(Note::Record(RecordId(id), 1)));
        let mut arrived = Vec::new();
        let mut each = |note| {
            if let Note::Record(id, _) = note {
                arrived.push(id.0);
            }
        };
        window.handed(2, &mut each);
        window.handed(1, &mut each);
        assert_eq!(window.take(2).len(), 2);
        // The count goes on from 2.
        window.push(Note::Record(RecordId(3), 1));
        window.push(Note::Nothing);
        window.handed(3, &mut each);
        assert!(!window.is_empty());
        window.handed(99, &mut each);
        assert!(window.is_empty());
        window.take(0);
        window.push(Note::Record(RecordId(4), 1));
        window.handed(1, &mut each);
        assert_eq!(arrived, [1, 2, 3, 4]);
    }

    #[test]
    fn what_nothing_else_keeps_is_bounded_and_requests_can_be_taken_from_among_the_rest() {
        let mut window = Window::default();
        let long =
            format!("<presence from='a@h' to='b@r'><status>{}</status></presence>", "x".repeat(MAX_KEPT));
        let Note::Kept(long) = kept(&long) else { panic!() };
        assert!(!window.has_room_for(&long));
        window.push(kept("<presence from='a@h' to='b@r'/>"));
        window.push(kept("<iq type='get' id='1' from='a@h' to='b@r'><x xmlns='u'/></iq>"));
        let taken = window.take_requests(|stanza| stanza.kind() == waystation_core::Kind::Iq);
        assert_eq!(taken.len(), 1);
        let mut left = Vec::new();
        window.handed(2, |note| left.push(matches!(note, Note::Kept(_))));
        assert_eq!((left, window.kept), (vec![true, false], 0));
    }
}
