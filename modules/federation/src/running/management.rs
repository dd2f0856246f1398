//! Acknowledgements both ways (XEP-0198 4), and going on with a stream whose connection broke (5).
//!
//! What must hold: `h` says how many stanzas are safe without a gap, never more; a stanza is handed over
//! when the peer has acknowledged it, and not before; nothing is sent between the request to begin and
//! its answer, so that both sides count the same; only the peer that was proven for the same pair takes up
//! what a stream left. What is kept of a stream are numbers: the routes have the stanzas.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::Sleep;
use waystation_core::xml::Frame;
use waystation_core::{Condition, Element, StreamCondition, StreamError};
use waystation_route::remote::Resume;
use waystation_route::stream::{Acknowledged, acknowledged};
use waystation_route::{Asking, Receipt, Receipts};
use waystation_transport::Connection;

use super::taking::keep;
use super::{End, Link};
use crate::resumable::Claim;
use crate::stream::{NS_SERVER, NS_STREAM_MANAGEMENT};

/// Longest wait of an answer to `<r/>` for a commit (DELIVERY P1).
const MAX_WAIT: Duration = Duration::from_millis(50);
/// Accepted stanzas after which the peer is told without having asked.
const UNASKED: u64 = 100;
/// The same in time.
const UNASKED_AFTER: Duration = Duration::from_secs(1);
/// Longest id of a stream that is kept to resume it, in bytes.
const MAX_ID: usize = 1024;
/// How long the answer to a request to begin may take.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);
/// How long the next stream waits for what came before the connection broke to be stored.
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// What a stream that we opened left, to be resumed.
pub(crate) struct Left {
    id: Box<str>,
    /// Stanzas sent, and of these acknowledged.
    sent: u64,
    confirmed: u64,
    /// Stanzas received, and which of them are safe.
    received: u64,
    receipts: Receipts,
}

/// How stream management begins on a stream that we opened.
pub(crate) enum Joining {
    /// What the stream before received is being stored: only then its number can be said.
    Settling(Box<Left>),
    /// We asked to go on with it.
    Resuming(Box<Left>, Instant),
    /// To ask for it anew.
    Enable,
    /// We asked for it.
    Enabling(Instant),
}

impl Joining {
    /// With what the stream before left, if it left something.
    pub(crate) fn new(resume: Option<Resume>) -> Self {
        let resumable = resume.and_then(|resume| resume.downcast().ok());
        resumable.map_or(Self::Enable, Self::Settling)
    }
}

/// What a stream with stream management keeps.
#[derive(Default)]
pub(super) struct Management {
    /// Under what a stream that we opened can be resumed.
    id: Option<Box<str>>,
    /// The same of one that the peer opened.
    pub(super) claim: Option<Claim>,
    /// Another stream goes on with this one, and waits for its number.
    pub(super) yielding: Option<oneshot::Sender<u32>>,
    /// Stanzas sent, and of these acknowledged.
    sent: u64,
    confirmed: u64,
    /// Whose those between are: places among the outgoing, and how many in a row.
    kept: VecDeque<(usize, u64)>,
    /// What the peer was asked.
    asking: Asking,
    /// The number last said to the peer.
    said: u64,
    /// The peer has asked for the number.
    answer: bool,
    /// It is told at this time at the latest, when it cannot be told all at once.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The peer was told less than it had sent: it hears more when there is more.
    follow_up: Option<u64>,
    /// Since when there is something unsaid.
    unsaid: Option<Instant>,
}

impl Management {
    /// Of a stream that the peer opened, which counted so many stanzas each way before this connection.
    pub(super) fn of_peer(claim: Option<Claim>, sent: u64, received: u64) -> Self {
        Self { claim, sent, confirmed: sent, said: received, ..Self::default() }
    }

    /// Another stream goes on with this one.
    pub(super) fn is_yielding(&self) -> bool {
        self.yielding.is_some()
    }

    /// A stanza of the one at `place` was put into the connection.
    pub(super) fn sent(&mut self, place: usize) {
        self.sent += 1;
        match self.kept.back_mut() {
            Some((last, count)) if *last == place => *count += 1,
            _ => self.kept.push_back((place, 1)),
        }
    }

    /// Nothing of the one at `place` waits to be acknowledged.
    pub(super) fn is_done_with(&self, place: usize) -> bool {
        self.kept.iter().all(|(other, _)| *other != place)
    }

    /// All that was sent is acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.kept.is_empty()
    }

    /// Since when the peer owes an answer.
    pub(super) fn asked_since(&self) -> Option<Instant> {
        self.asking.since()
    }

    /// The peer has answered that it has got so many stanzas more.
    fn answered(&mut self, new: u64) {
        self.asking.answered(new, !self.kept.is_empty());
    }
}

impl Link {
    /// Begins with stream management, where we opened the stream.
    pub(super) fn join(&mut self, cx: &mut Context<'_>) {
        let now = Instant::now();
        let Some(joining) = self.joining.take() else { return };
        let next = match *joining {
            Joining::Settling(left) => {
                if left.receipts.has_failed() || now >= self.started + SETTLE_DEADLINE {
                    // What it received cannot be acknowledged: that stream cannot go on.
                    Joining::Enable
                } else if left.receipts.accepted(left.received, true, cx) == left.received {
                    let resume = Element::new("resume", NS_STREAM_MANAGEMENT)
                        .with_attr("h", (left.received as u32).to_string())
                        .with_attr("previd", &*left.id);
                    self.say(&resume);
                    Joining::Resuming(left, now)
                } else {
                    self.alarm.wake_at(self.started + SETTLE_DEADLINE, cx);
                    Joining::Settling(left)
                }
            }
            other => other,
        };
        let next = match next {
            Joining::Enable => {
                self.say(&Element::new("enable", NS_STREAM_MANAGEMENT).with_attr("resume", "true"));
                Joining::Enabling(now)
            }
            other => other,
        };
        if let Joining::Resuming(_, since) | Joining::Enabling(since) = &next {
            if now >= *since + JOIN_DEADLINE {
                let error = "the peer did not answer the request for stream management".to_owned();
                self.finish_with(End::Lost(error));
            }
            self.alarm.wake_at(*since + JOIN_DEADLINE, cx);
        }
        self.joining = Some(Box::new(next));
    }

    /// An element of `urn:xmpp:sm:3`.
    pub(super) fn stream_management_element(&mut self, frame: &Frame<'_>) {
        let attr = |name: &str| frame.head.attr(frame.bytes, name);
        match frame.name() {
            "r" => match &mut self.management {
                Some(management) => management.answer = true,
                None => self.say(&failed(Condition::UnexpectedRequest)),
            },
            "a" if self.management.is_some() => match attr("h").and_then(|h| parse_h(&h)) {
                Some(h) => self.acknowledged(h),
                None => self.bad_number(),
            },
            "enabled" if matches!(self.joining.as_deref(), Some(Joining::Enabling(_))) => {
                let resumable = attr("resume").is_some_and(|resume| matches!(&*resume, "true" | "1"));
                let id = attr("id").filter(|id| resumable && !id.is_empty() && id.len() <= MAX_ID);
                let id = id.map(|id| id.into_owned().into_boxed_str());
                // From here on the peer's stanzas are counted from 0.
                self.before = Some(std::mem::take(&mut self.receipts));
                self.received = 0;
                self.joined(Some(Management { id, ..Management::default() }));
            }
            "resumed" => {
                match (self.joining.take().map(|joining| *joining), attr("h").and_then(|h| parse_h(&h))) {
                    (Some(Joining::Resuming(left, _)), Some(h)) => self.resumed(*left, h),
                    (Some(Joining::Resuming(..)), None) => self.bad_number(),
                    _ => self.stream_error(StreamCondition::UnsupportedStanzaType.into()),
                }
            }
            "failed" => match self.joining.take().map(|joining| *joining) {
                Some(Joining::Resuming(..)) => {
                    self.joining = Some(Box::new(Joining::Enable));
                    self.again = true;
                }
                Some(Joining::Enabling(_)) => self.joined(None),
                _ => self.stream_error(StreamCondition::UnsupportedStanzaType.into()),
            },
            "enable" if self.may_begin() => {
                let resume = attr("resume").is_some_and(|resume| matches!(&*resume, "true" | "1"));
                self.enable(resume);
            }
            "resume" if self.may_begin() => match (attr("previd"), attr("h").and_then(|h| parse_h(&h))) {
                (Some(id), Some(h)) => self.look_for(&id, h),
                _ => self.say(&failed(Condition::BadRequest)),
            },
            "enable" | "resume" | "a" => self.say(&failed(Condition::UnexpectedRequest)),
            _ => self.stream_error(StreamCondition::UnsupportedStanzaType.into()),
        }
    }

    fn bad_number(&mut self) {
        let error = StreamError::new(StreamCondition::BadFormat).with_text("a number of 32 bits is missing");
        self.stream_error(error);
    }

    fn joined(&mut self, management: Option<Management>) {
        self.joining = None;
        self.management = management.map(Box::new);
        // Mail was left alone until now.
        self.again = true;
        self.ready();
    }

    /// The peer goes on with the stream before.
    fn resumed(&mut self, left: Left, h: u32) {
        let Left { id, sent, confirmed, received, receipts } = left;
        let confirmed = match acknowledged(h, confirmed, sent) {
            Acknowledged::More(more) => confirmed + more,
            Acknowledged::Fewer | Acknowledged::TooMany => return self.stream_error(too_high(h, sent)),
        };
        self.before = Some(std::mem::replace(&mut self.receipts, receipts));
        self.received = received;
        self.info.resumed = Some(confirmed);
        let management =
            Management { id: Some(id), sent: confirmed, confirmed, said: received, ..Management::default() };
        self.joined(Some(management));
    }

    /// The peer has acknowledged stanzas.
    fn acknowledged(&mut self, h: u32) {
        let Some(management) = &mut self.management else { return };
        let new = match acknowledged(h, management.confirmed, management.sent) {
            Acknowledged::More(new) => new,
            Acknowledged::Fewer => return management.answered(0),
            Acknowledged::TooMany => {
                let error = too_high(h, management.sent);
                return self.stream_error(error);
            }
        };
        management.answered(new);
        management.confirmed += new;
        let mut left = new;
        while left > 0
            && let Some((place, count)) = management.kept.front_mut()
        {
            let some = left.min(*count);
            (left, *count) = (left - some, *count - some);
            if let Some(outgoing) = self.outgoing.get_mut(*place).and_then(Option::as_mut) {
                outgoing.acknowledge(some);
            }
            if *count == 0 {
                management.kept.pop_front();
            }
        }
    }

    /// Says what is to be said of the peer's stanzas, and ends the stream when one could not be stored.
    pub(super) fn numbers(&mut self, cx: &mut Context<'_>) {
        if self.end.is_some() {
            return;
        }
        let progress = self.management.is_some() || self.before.is_some() || self.closing.peer_ended();
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
            return self.stream_error(error);
        }
        let Some(management) = &mut self.management else { return };
        if let Some(again) = management.asking.again_at()
            && !management.kept.is_empty()
            && management.asking.since().is_none()
        {
            self.alarm.wake_at(again, cx);
        }
        let unsaid = accepted - management.said.min(accepted);
        if unsaid > 0 {
            let since = *management.unsaid.get_or_insert_with(Instant::now);
            self.alarm.wake_at(since + UNASKED_AFTER, cx);
        }
        let due = management.unsaid.is_some_and(|since| since.elapsed() >= UNASKED_AFTER);
        let complete = accepted == self.received;
        let mut late = false;
        if management.answer && !complete {
            let deadline = management.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(MAX_WAIT)));
            late = deadline.as_mut().poll(cx).is_ready();
        }
        let answers = management.answer && (complete || late);
        let follows = management.follow_up.is_some_and(|number| accepted >= number);
        let unasked = (unsaid >= UNASKED || due) && unsaid > 0;
        // The last number goes before our end of the stream.
        let last = self.closing.peer_ended() && complete && unsaid > 0 && !self.closing.tag_sent();
        if answers || follows || unasked || last {
            if answers {
                management.answer = false;
                management.deadline = None;
                management.follow_up = (!complete).then_some(self.received);
            }
            if follows {
                management.follow_up = None;
            }
            management.said = accepted;
            management.unsaid = None;
            let number = (accepted as u32).to_string();
            self.say(&Element::new("a", NS_STREAM_MANAGEMENT).with_attr("h", number));
        }
    }

    /// After stanzas were put into the connection: asks for their acknowledgement.
    pub(super) fn ask_for_number(&mut self, conn: &mut Connection) {
        let Some(management) = &mut self.management else { return };
        if management.asking.is_due(management.sent, !management.kept.is_empty()) {
            management.asking.asks(management.sent);
            conn.queue_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
        }
    }

    /// What the stream leaves to the next one, when its connection broke.
    pub(super) fn leave(&mut self, end: &End) -> Option<Resume> {
        if let Some(Joining::Settling(left) | Joining::Resuming(left, _)) = self.joining.take().map(|j| *j) {
            // It broke before it could go on with the stream before: that may still go on.
            let lost = matches!(end, End::Lost(_));
            return if lost { Some(left) } else { None };
        }
        let mut management = self.management.take()?;
        if !matches!(end, End::Lost(_)) {
            return None;
        }
        if let Some((_, passage)) = self.parked.take() {
            // Not accepted and not counted: the peer sends it again.
            self.received -= 1;
            passage.receipt.into_iter().for_each(Receipt::accept);
        }
        let (received, receipts) = (self.received, std::mem::take(&mut self.receipts));
        if let Some(claim) = management.claim.take() {
            actix_rt::spawn(keep(claim, received, receipts));
            return None;
        }
        let (id, sent, confirmed) = (management.id?, management.sent, management.confirmed);
        Some(Box::new(Left { id, sent, confirmed, received, receipts }))
    }

    /// Queues an element that is no stanza.
    pub(super) fn say(&mut self, element: &Element) {
        element.write(&mut self.elements, NS_SERVER);
    }
}

/// Section 6: more was acknowledged than was sent.
fn too_high(h: u32, sent: u64) -> StreamError {
    let detail = Element::new("handled-count-too-high", NS_STREAM_MANAGEMENT)
        .with_attr("h", h.to_string())
        .with_attr("send-count", (sent as u32).to_string());
    let mut xml = Vec::new();
    detail.write(&mut xml, "");
    StreamError::new(StreamCondition::UndefinedCondition)
        .with_text("more stanzas were acknowledged than were sent")
        .with_application(String::from_utf8(xml).unwrap_or_default())
}

pub(super) fn failed(condition: Condition) -> Element {
    let condition = Element::new(condition.as_str(), waystation_core::error::NS_STANZA_ERROR);
    Element::new("failed", NS_STREAM_MANAGEMENT).with_child(condition)
}

/// A number as `xs:unsignedInt` has it.
fn parse_h(text: &str) -> Option<u32> {
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}
