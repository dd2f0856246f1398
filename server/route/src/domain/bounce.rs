//! Records that wait for too long or for a domain that does not exist, and senders who are told of a delay.
//!
//! What must hold (DELIVERY P2, P8): an error takes the place of a record in one commit, so a record is
//! delivered or bounced and never neither; while errors are on their way to the log nothing is sent. A
//! sender is told of a delay once in an outage.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use ahash::HashSet;
use waystation_core::queue::{Record, RecordId};
use waystation_core::stanza::text_message;
use waystation_core::{Condition, Jid, MessageType, Stanza, StanzaError, StanzaType};

use super::records::{Purpose, in_time};
use super::{DomainRoute, REPAIR, Stage, no_room};
use crate::intake::{Item, NewRecord, Stored};
use crate::receipt::Receipts;

/// Most senders who are told of a delay in one outage.
const MAX_TOLD: usize = 1_000;
/// Senders of messages that come later in an outage are told at most so often.
const NOTICE_PAUSE: Duration = Duration::from_secs(1);

/// An error on its way to the log.
struct Bounce {
    bytes: u64,
    stored: Arc<Stored>,
}

/// See the module's header.
#[derive(Default)]
pub(super) struct Bounces {
    under_way: Vec<Bounce>,
    receipts: Receipts,
    issued: u64,
    /// When the queue's front is to be looked at.
    look_at: Option<Instant>,
    /// Everything up to here is given up, say the administrators.
    flush: RecordId,
    /// Senders of records up to here were told, and who they were.
    noticed: RecordId,
    told: HashSet<Jid>,
    notice_at: Option<Instant>,
}

impl Bounces {
    /// True when no error is on its way to the log.
    pub(super) fn is_clear(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The front of the queue is to be looked at then, or before.
    pub(super) fn look_at(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// Nobody is told of this record.
    pub(super) fn pass_by(&mut self, id: RecordId) {
        self.noticed = self.noticed.max(id);
    }

    /// A stream is up: the next outage is another one.
    pub(super) fn outage_is_over(&mut self) {
        self.told = HashSet::default();
        self.notice_at = None;
        self.noticed = RecordId(0);
    }
}

impl DomainRoute {
    /// When the queue is to be read for something else than sending.
    pub(super) fn next_read(&self) -> Option<Instant> {
        if matches!(self.stage, Stage::Sending) || self.is_reading() || !self.bounces.is_clear() {
            return None;
        }
        let next = [self.bounces.look_at, self.notice_due()].into_iter().flatten().min()?;
        Some(self.read_again().map_or(next, |again| next.max(again)))
    }

    fn notice_due(&self) -> Option<Instant> {
        let delay = self.config().delay_notice;
        let wanted = !delay.is_zero()
            && self.bounces.told.len() < MAX_TOLD
            && !matches!(self.stage, Stage::Bouncing { .. })
            && self.domain.newest() > self.bounces.noticed.0
            && self.domain.depth().0 > 0;
        let since = self.outage.filter(|_| wanted)?;
        Some(self.bounces.notice_at.map_or(since + delay, |at| at.max(since + delay)))
    }

    /// Begins to read the front, or what senders are to be told of; true when it did.
    pub(super) fn read_if_due(&mut self, now: Instant) -> bool {
        if self.next_read().is_none_or(|at| at > now) {
            return false;
        }
        if self.bounces.look_at.is_some_and(|at| at <= now) {
            self.bounces.look_at = None;
            self.start_read(Purpose::Front, self.records.base);
        } else {
            let after = self.bounces.noticed.max(self.records.base);
            self.start_read(Purpose::Notice, after);
        }
        true
    }

    /// The oldest records, which were read because one of them may have to go.
    pub(super) fn look_at_the_front(&mut self, page: Vec<Record>) {
        if matches!(self.stage, Stage::Sending) {
            return;
        }
        if !page.is_empty() {
            // There may be more of them, and clocks are set.
            self.bounces.look_at(Instant::now() + super::MAX_SLEEP);
        }
        for record in page {
            let error: StanzaError = match &self.stage {
                Stage::Bouncing { error, .. } => error.clone(),
                _ if record.id <= self.bounces.flush => Condition::RemoteServerTimeout.into(),
                _ => {
                    let expires = in_time(record.since, self.config().message_ttl);
                    if expires > Instant::now() {
                        return self.bounces.look_at(expires);
                    }
                    Condition::RemoteServerTimeout.into()
                }
            };
            self.bounce(&record, &error);
        }
        if !self.bounces.is_clear() {
            self.bounces.look_at(Instant::now());
        }
    }

    fn bounce(&mut self, record: &Record, error: &StanzaError) {
        // What the last stream was given cannot be resumed any more.
        if self.resume.take().is_some() || !self.window.is_empty() {
            self.put_back();
        }
        let bytes = record.payload.len() as u64;
        let Some(stanza) = self.readable(record) else { return };
        // Errors are not answered.
        let party = stanza.error_reply(error).and_then(|reply| {
            let party = self.router.party_to(&reply)?;
            Some((reply, party))
        });
        let Some((reply, party)) = party else {
            self.records.done(record.id);
            self.domain.release(1, bytes);
            self.bounced += 1;
            return;
        };
        let stored = Arc::new(Stored::default());
        self.bounces.issued += 1;
        let new = NewRecord {
            stanza: reply,
            concerned: std::iter::once(party).collect(),
            mark: None,
            receipt: Some(self.bounces.receipts.issue(self.bounces.issued)),
            instead_of: Some((self.domain.queue.clone(), record.id)),
            stored: Some(stored.clone()),
        };
        self.bounces.under_way.push(Bounce { bytes, stored });
        self.router.intake.offer(Item::Record(Box::new(new)));
    }

    /// True when the errors that were on their way to the log are there, or were refused.
    pub(super) fn poll_bounces(&mut self, cx: &mut Context<'_>) -> bool {
        if self.bounces.is_clear() {
            return false;
        }
        let issued = self.bounces.issued;
        if self.bounces.receipts.accepted(issued, true, cx) < issued {
            return false;
        }
        for Bounce { bytes, stored } in std::mem::take(&mut self.bounces.under_way) {
            if stored.get().is_some() {
                self.domain.release(1, bytes);
                self.bounced += 1;
            } else {
                // The queue is full. The record is still there, and is tried again.
                self.bounces.look_at = Some(Instant::now() + REPAIR);
            }
        }
        true
    }

    /// Gives up what waits, at once; how many records that is.
    pub(super) fn flush(&mut self) -> u64 {
        let sending = matches!(self.stage, Stage::Sending);
        if sending && self.records.is_live() && self.late.is_empty() {
            // All that there is was given to the stream.
            return 0;
        }
        let count = self.domain.depth().0;
        if sending || matches!(self.stage, Stage::Connecting { .. }) {
            self.give_up_stream();
            self.resume = None;
            self.put_back();
            self.fail(Instant::now());
        }
        for stanza in self.late.take_all() {
            self.answer(&stanza, &Condition::RemoteServerTimeout.into());
        }
        self.bounces.flush = RecordId(self.domain.newest()).max(self.router.intake.given());
        self.bounces.look_at(Instant::now());
        count
    }

    /// Tells the senders of these messages, each of them once, that they are delayed.
    pub(super) fn notify(&mut self, page: Vec<Record>, newest: u64) {
        if matches!(self.stage, Stage::Sending) {
            return;
        }
        if page.is_empty() {
            self.bounces.noticed = self.bounces.noticed.max(RecordId(newest));
            self.bounces.notice_at = Some(Instant::now() + NOTICE_PAUSE);
        }
        for record in page {
            self.bounces.noticed = record.id;
            let Some(stanza) = self.readable(&record) else { continue };
            let message = matches!(
                stanza.stanza_type(),
                StanzaType::Message(MessageType::Normal | MessageType::Chat | MessageType::Groupchat)
            );
            let sender = stanza.from().filter(|from| message && from.local().is_some());
            let Some(sender) = sender.filter(|sender| !self.bounces.told.contains(*sender)) else { continue };
            if self.bounces.told.len() >= MAX_TOLD {
                return;
            }
            self.bounces.told.insert(sender.clone());
            if let Some(notice) = self.notice(sender, record.id) {
                self.router.route_own(notice);
            }
        }
    }

    fn notice(&self, sender: &Jid, id: RecordId) -> Option<Stanza> {
        let local = Jid::parse(&self.domain.pair.local).ok()?;
        let text = format!(
            "What you sent to {} is delayed, because its server cannot be reached. It is sent as soon as \
             that succeeds; if it does not, you are told.",
            self.domain.pair.remote
        );
        Some(text_message(local, sender.clone(), &format!("delayed-{}", id.0), &text))
    }

    /// Everything that waits and that will come is answered with an error, for a while.
    pub(super) fn give_up(&mut self, error: StanzaError, now: Instant) {
        self.resume = None;
        self.put_back();
        for stanza in self.late.take_all() {
            self.answer(&stanza, &error);
        }
        self.stage = Stage::Bouncing { until: now + self.config().negative, error };
        self.bounces.look_at(now);
    }

    /// Takes back what the last stream was given and did not hand over: records are read again, requests
    /// are answered, presence is sent again.
    pub(super) fn put_back(&mut self) {
        self.return_window(None);
    }

    /// The same. `resumed`: a stream goes on where the last one broke off, after so many stanzas; then it is
    /// given the requests, too.
    pub(super) fn return_window(&mut self, resumed: Option<u64>) {
        use super::late::{is_availability, is_request};
        use super::window::Note;
        let mut after = self.records.base.0;
        let mut back = Vec::new();
        for note in self.window.take(resumed.unwrap_or(0)) {
            match note {
                Note::Record(id, _) => after = id.0,
                Note::Kept(stanza) if is_availability(&stanza) || resumed.is_some() => {
                    back.push((stanza, after))
                }
                Note::Kept(stanza) if is_request(&stanza) => {
                    self.answer(&stanza, &Condition::RemoteServerTimeout.into());
                }
                Note::Kept(_) | Note::Nothing => {}
            }
        }
        for refused in self.late.put_back(back, Instant::now()) {
            self.answer(&refused, &no_room());
        }
        self.records.rewind();
    }
}
