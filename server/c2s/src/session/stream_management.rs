//! Acknowledgements both ways (XEP-0198 4) and what a resumption needs (5).
//!
//! What must hold: `h` says how many stanzas are safe without a gap, never more; for a session
//! that may be resumed a number is said only once it is stored, so that a server that comes back
//! never says less; what was sent is kept until the client has acknowledged it, and a note of
//! which records it was is on its way to the log.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::Sleep;
use waystation_core::queue::{Mark, RecordId};
use waystation_core::storage::StorageError;
use waystation_core::xml::Frame;
use waystation_core::{Condition, Element, Stanza, StreamCondition, StreamError};
use waystation_route::intake::{Item, MAX_DONE, Stored};
use waystation_route::stream::{
    Acknowledged, Detachment, Note, acknowledged, key_text, note_queue, write_note,
};
use waystation_route::{AccountMail, Asking, Receipts};
use waystation_runtime::{after_others, wheel};
use waystation_transport::Connection;

use super::{End, Link};

/// `urn:xmpp:sm:3`
pub(crate) const NS_STREAM_MANAGEMENT: &str = "urn:xmpp:sm:3";
/// Longest wait of an answer to `<r/>` for a commit (DELIVERY P1).
const MAX_WAIT: Duration = Duration::from_millis(50);
/// Accepted stanzas after which the client is told without having asked.
const UNASKED: u64 = 100;
/// The same in time.
const UNASKED_AFTER: Duration = Duration::from_secs(1);

/// A stanza that was sent and is kept.
pub(super) struct Kept {
    pub(super) stanza: Stanza,
    pub(super) record: Option<RecordId>,
    /// It counts against the session's credit.
    pub(super) charged: bool,
}

/// A request for stream management whose answer waits for the store.
pub(super) struct Enabling {
    key: u128,
    max: Duration,
    stored: oneshot::Receiver<Result<(), StorageError>>,
}

/// What a session with stream management keeps.
#[derive(Default)]
pub(super) struct StreamManagement {
    /// Set for a session that may be resumed.
    resumable: Option<(u128, Duration)>,
    /// Stanzas sent.
    sent: u64,
    /// Stanzas that the client has acknowledged.
    confirmed: u64,
    /// Those between, in order.
    kept: VecDeque<Kept>,
    /// What the client was asked.
    asking: Asking,
    /// When this task is woken to ask again: once for many of those times, which end one by one.
    wakes: Option<Instant>,
    /// The number last said to the client.
    said: u64,
    /// The client has asked for the number.
    answer: bool,
    /// It is told at this time at the latest, when it cannot be told all at once.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The client was told less than it had sent: it hears more when there is more.
    follow_up: Option<u64>,
    /// Since when there is something unsaid.
    unsaid: Option<Instant>,
    /// The greatest number that is stored.
    marked: u64,
    /// Numbers that are stored with their stanzas.
    marks_coming: VecDeque<u64>,
    /// A number that is being stored for itself.
    marking: Option<(u64, Arc<Stored>)>,
    /// Records sent and not yet noted.
    unnoted: Vec<(u64, RecordId)>,
    /// Notes in the session's queue.
    notes: VecDeque<Note>,
}

impl StreamManagement {
    /// A session that goes on from where it was.
    pub(super) fn resumed(key: u128, max: Duration, state: &mut Detachment) -> Self {
        Self {
            resumable: Some((key, max)),
            sent: state.confirmed,
            confirmed: state.confirmed,
            said: state.received,
            marked: state.marked,
            notes: std::mem::take(&mut state.notes),
            ..Self::default()
        }
    }

    /// The mark of the stream, when it has one.
    pub(super) fn mark(&self) -> Option<u128> {
        self.resumable.map(|(key, _)| key)
    }

    /// True when it may be resumed.
    pub(super) fn is_resumable(&self) -> bool {
        self.resumable.is_some()
    }

    /// A stanza of the client is stored together with its number.
    pub(super) fn mark_comes(&mut self, number: u64) {
        if self.resumable.is_some() {
            self.marks_coming.push_back(number);
        }
    }

    /// A stanza was queued to the socket.
    pub(super) fn sent(&mut self, kept: Kept) {
        self.sent += 1;
        if let (Some(record), true) = (kept.record, self.resumable.is_some()) {
            self.unnoted.push((self.sent, record));
        }
        self.kept.push_back(kept);
    }

    /// The client has answered that it has got so many stanzas more.
    fn answered(&mut self, new: u64) {
        self.asking.answered(new, !self.kept.is_empty());
    }

    /// Has the task woken when the client may be asked again.
    fn wake_to_ask(&mut self, cx: &mut Context<'_>) {
        let Some(then) = self.asking.again_at() else { return };
        let now = Instant::now();
        if then > now && self.wakes.is_none_or(|at| at <= now || at > then) {
            self.wakes = Some(then);
            // A part of a second would be cut off, and the task woken too early.
            wheel::wake_after(then - now + Duration::from_secs(1), cx.waker().clone());
        }
    }

    /// What is kept, to be handed over.
    pub(super) fn take_kept(&mut self) -> VecDeque<Kept> {
        std::mem::take(&mut self.kept)
    }

    /// State for a later resumption, without the stanzas.
    pub(super) fn into_parts(self) -> (u64, u64, VecDeque<Note>) {
        (self.confirmed, self.marked, self.notes)
    }
}

impl Link {
    /// An element of `urn:xmpp:sm:3`.
    pub(super) fn stream_management_element(&mut self, frame: &Frame<'_>) {
        match frame.name() {
            "r" if self.management.is_some() => self.asked_for_number(),
            "a" if self.management.is_some() => {
                let h = frame.head.attr(frame.bytes, "h").and_then(|h| parse_h(&h));
                match h {
                    Some(h) => self.acknowledged(h),
                    None => {
                        let error = StreamError::new(StreamCondition::BadFormat)
                            .with_text("an acknowledgement needs a number of 32 bits");
                        self.finish_with(End::Error(error.into()));
                    }
                }
            }
            "enable" => self.enable(frame),
            // A session that is bound cannot become another one (5: resume comes before bind).
            "resume" => self.say(&failed(Condition::UnexpectedRequest, None)),
            "r" | "a" => self.say(&failed(Condition::UnexpectedRequest, None)),
            _ => {
                self.finish_with(End::Error(StreamError::new(StreamCondition::UnsupportedStanzaType).into()))
            }
        }
    }

    fn enable(&mut self, frame: &Frame<'_>) {
        if self.management.is_some() || self.enabling.is_some() {
            // Section 3: at most one attempt.
            return self.say(&failed(Condition::UnexpectedRequest, None));
        }
        // From here on the client's stanzas are counted from 0.
        self.before = Some(std::mem::take(&mut self.receipts));
        self.received = 0;
        let wants = frame.head.attr(frame.bytes, "resume");
        let limit = self.shared.limits.resume;
        let wants = wants.is_some_and(|wants| matches!(&*wants, "true" | "1")) && !limit.is_zero();
        if !wants {
            self.management = Some(Box::default());
            return self.say(&Element::new("enabled", NS_STREAM_MANAGEMENT));
        }
        let asked = frame.head.attr(frame.bytes, "max").and_then(|max| max.trim().parse().ok());
        let max = asked.map_or(limit, |seconds| Duration::from_secs(seconds).min(limit));
        let mut random = [0; 16];
        if getrandom::fill(&mut random).is_err() {
            // Without randomness there is no key that nobody can guess.
            self.management = Some(Box::default());
            return self.say(&Element::new("enabled", NS_STREAM_MANAGEMENT));
        }
        let key = u128::from_be_bytes(random);
        let (reply, stored) = oneshot::channel();
        self.shared.router.control(&self.bare, AccountMail::Enable(self.id, key, max, reply));
        self.enabling = Some(Box::new(Enabling { key, max, stored }));
    }

    /// The client may resume once what that needs is stored; it is told then.
    pub(super) fn poll_enabling(&mut self, cx: &mut Context<'_>) {
        let Some(enabling) = &mut self.enabling else { return };
        let Poll::Ready(stored) = Pin::new(&mut enabling.stored).poll(cx) else { return };
        let Some(Enabling { key, max, .. }) = self.enabling.take().map(|enabling| *enabling) else { return };
        let mut enabled = Element::new("enabled", NS_STREAM_MANAGEMENT);
        let mut management = Box::new(StreamManagement::default());
        if let Ok(Ok(())) = stored {
            management.resumable = Some((key, max));
            enabled = enabled
                .with_attr("id", key_text(key))
                .with_attr("resume", "true")
                .with_attr("max", max.as_secs().to_string());
        }
        // Said before the first stanza that counts.
        self.say(&enabled);
        self.management = Some(management);
        // Nothing was read meanwhile.
        after_others(cx);
    }

    fn asked_for_number(&mut self) {
        if let Some(management) = &mut self.management {
            management.answer = true;
        }
    }

    /// The client has acknowledged stanzas.
    fn acknowledged(&mut self, h: u32) {
        let Some(management) = &mut self.management else { return };
        let new = match acknowledged(h, management.confirmed, management.sent) {
            Acknowledged::More(new) => new,
            Acknowledged::Fewer => {
                management.answered(0);
                tracing::debug!(session = %self.jid, h, "an acknowledgement went backwards");
                return;
            }
            Acknowledged::TooMany => {
                let error = too_high(h, management.sent);
                return self.finish_with(End::Error(error.into()));
            }
        };
        management.answered(new);
        management.confirmed += new;
        let (mut bytes, mut items, mut last) = (0, 0, None);
        for kept in management.kept.drain(..new as usize) {
            if kept.charged {
                bytes += kept.weight();
                items += 1;
            }
            last = kept.record.or(last);
        }
        if management.kept.is_empty() {
            // Room that a burst needed is not kept by a session that has gone idle.
            management.kept = VecDeque::new();
        }
        let confirmed = management.confirmed;
        let mut spent = Vec::new();
        // The newest of them stays: a record may outlive its note, when another session has not
        // acknowledged it or the server dies first, and is not given to this session again.
        while management.notes.get(1).is_some_and(|(number, _)| *number <= confirmed)
            && let Some((_, stored)) = management.notes.front()
            && let Some(id) = stored.get()
        {
            spent.push(id);
            management.notes.pop_front();
        }
        if let Some((key, _)) = management.resumable {
            for ids in spent.chunks(MAX_DONE) {
                self.shared.router.intake().offer(Item::Done(note_queue(key), ids.iter().copied().collect()));
            }
        }
        if items > 0 {
            self.inlet.release(bytes, items);
        }
        if let Some(last) = last {
            self.shared.router.control(&self.bare, AccountMail::Confirmed(self.id, last));
        }
    }

    /// Says what is to be said of the client's stanzas.
    pub(super) fn numbers(&mut self, cx: &mut Context<'_>) {
        let progress = self.management.is_some() || self.before.is_some() || self.closing.is_some();
        let accepted = self.receipts.accepted(self.received, progress, cx);
        // Wakes this task when it is clear.
        if let Some(before) = &self.before
            && before.accepted(u64::MAX, true, cx) == u64::MAX
        {
            self.before = None;
        }
        if self.receipts.has_failed() || self.before.as_ref().is_some_and(Receipts::has_failed) {
            let error = StreamError::new(StreamCondition::InternalServerError)
                .with_text("what was sent could not be stored");
            return self.finish_with(End::Error(error.into()));
        }
        let Some(management) = &mut self.management else { return };
        while management.marks_coming.front().is_some_and(|number| *number <= accepted) {
            management.marked = management.marks_coming.pop_front().unwrap_or(0).max(management.marked);
        }
        if let Some((number, stored)) = &management.marking
            && stored.poll(cx).is_some()
        {
            management.marked = management.marked.max(*number);
            management.marking = None;
        }
        management.wake_to_ask(cx);
        let unsaid = accepted - management.said.min(accepted);
        if unsaid > 0 && management.unsaid.is_none() {
            management.unsaid = Some(Instant::now());
            wheel::wake_after(UNASKED_AFTER, cx.waker().clone());
        }
        let due = management.unsaid.is_some_and(|since| since.elapsed() >= UNASKED_AFTER);
        let wanted =
            management.answer || management.follow_up.is_some() || unsaid >= UNASKED || (due && unsaid > 0);
        let sayable = match management.resumable {
            None => accepted,
            Some((key, _)) => {
                if wanted && management.marked < accepted && management.marking.is_none() {
                    let stored = Arc::new(Stored::default());
                    let mark = Mark { key, value: Some(accepted) };
                    // Registers the task to be woken.
                    stored.poll(cx);
                    self.shared.router.intake().offer(Item::Mark(mark, Some(stored.clone())));
                    management.marking = Some((accepted, stored));
                }
                management.marked.min(accepted)
            }
        };
        let complete = sayable == self.received;
        let mut late = false;
        if management.answer && !complete {
            let deadline = management.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(MAX_WAIT)));
            late = deadline.as_mut().poll(cx).is_ready();
        }
        let answers = management.answer && (complete || late);
        let follows = management.follow_up.is_some_and(|number| sayable >= number);
        let unasked = (unsaid >= UNASKED || due) && sayable > management.said;
        if answers || follows || unasked {
            if answers {
                management.answer = false;
                management.deadline = None;
                management.follow_up = (!complete).then_some(self.received);
            }
            if follows {
                management.follow_up = None;
            }
            management.said = sayable;
            management.unsaid = None;
            let number = (sayable as u32).to_string();
            self.say(&Element::new("a", NS_STREAM_MANAGEMENT).with_attr("h", number));
        }
    }

    /// After stanzas were queued to the socket: asks for their acknowledgement, and notes which
    /// records they were.
    pub(super) fn after_sending(&mut self, conn: &mut Connection) {
        let Some(management) = &mut self.management else { return };
        if let (Some((key, _)), false) = (management.resumable, management.unnoted.is_empty()) {
            let unnoted = std::mem::take(&mut management.unnoted);
            let number = unnoted.last().map_or(0, |(number, _)| *number);
            let stored = Arc::new(Stored::default());
            let note = Item::Note(note_queue(key), write_note(&unnoted), stored.clone());
            self.shared.router.intake().offer(note);
            management.notes.push_back((number, stored));
        }
        if management.asking.is_due(management.sent, !management.kept.is_empty()) {
            management.asking.asks(management.sent);
            conn.queue_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
        }
        // What is on credit is bounded by that. Answers to the client itself and what was kept
        // from before a resumption are not, and there may be as many of them.
        if management.kept.len() > 2 * self.shared.limits.outbound_stanzas {
            let error = StreamError::new(StreamCondition::PolicyViolation)
                .with_text("the client does not acknowledge what it is sent");
            self.finish_with(End::Error(error.into()));
        }
    }

    /// Queues an element that is no stanza.
    pub(super) fn say(&mut self, element: &Element) {
        element.write(&mut self.elements, "jabber:client");
    }
}

impl Kept {
    /// What the stanza costs of the session's credit.
    pub(super) fn weight(&self) -> usize {
        super::weight(&self.stanza)
    }
}

/// Section 6: more was acknowledged than was sent.
pub(crate) fn too_high(h: u32, sent: u64) -> StreamError {
    let detail = Element::new("handled-count-too-high", NS_STREAM_MANAGEMENT)
        .with_attr("h", h.to_string())
        .with_attr("send-count", (sent as u32).to_string());
    let mut xml = Vec::new();
    detail.write(&mut xml, "");
    StreamError::new(StreamCondition::UndefinedCondition)
        .with_text("more stanzas were acknowledged than were sent")
        .with_application(String::from_utf8(xml).unwrap_or_default())
}

/// `<failed/>`, with the number of accepted stanzas if it is known.
pub(crate) fn failed(condition: Condition, h: Option<u64>) -> Element {
    let mut element = Element::new("failed", NS_STREAM_MANAGEMENT);
    if let Some(h) = h {
        element.set_attr("h", (h as u32).to_string());
    }
    element.with_child(Element::new(condition.as_str(), "urn:ietf:params:xml:ns:xmpp-stanzas"))
}

/// A number as `xs:unsignedInt` has it.
pub(crate) fn parse_h(text: &str) -> Option<u32> {
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m9_numbers_are_unsigned_and_of_32_bits() {
        for (text, number) in [("0", 0), ("7", 7), (" 12 ", 12), ("+3", 3), ("4294967295", u32::MAX)] {
            assert_eq!(parse_h(text), Some(number), "{text}");
        }
        for text in ["", " ", "-1", "1e3", "4294967296", "0x1", "1 2", "1.0", "++1"] {
            assert_eq!(parse_h(text), None, "{text}");
        }
    }
}
