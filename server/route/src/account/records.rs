//! The records of the account's queue: each comes in the order of the log, is archived, given to
//! sessions, and leaves the queue when its fate is final (DELIVERY P2).
//!
//! What must hold: a record leaves the queue only when a client has confirmed it, or a bounce
//! that replaces it is committed, or it concerned only the archive and is there; until then it
//! is either held by sessions (`out`) or waits in the queue for one, and only its number is in
//! memory. A session is given records in growing order, so one number says what it has had.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::SystemTime;

use waystation_core::account::Effects;
use waystation_core::datetime::{self, Timestamp};
use waystation_core::queue::{QueueError, Record, RecordId};
use waystation_core::storage::BoxFuture;
use waystation_core::{Condition, Kind, MessageType, SessionId, Stanza, StanzaError, StanzaType, storable};

use super::gone::Gone;
use super::steps::QueuedStep;
use super::{AccountRoute, State, first_room};
use crate::delivery::{self, Delivery, Targets};
use crate::intake::{Intake, Item, NewRecord};
use crate::mail::AccountMail;

/// A record that sessions hold, or that is on its way to the archive.
struct Out {
    id: RecordId,
    holders: u32,
    /// A client has confirmed it.
    delivered: bool,
    /// It is on its way to the archive.
    archiving: bool,
    /// Nobody is waiting for it: it may go once nobody holds it.
    spent: bool,
    /// It is counted among those that wait for a session.
    waiting: bool,
    bytes: u64,
}

/// What the route knows of its queue.
#[derive(Default)]
pub(super) struct Records {
    /// Records up to here were handled.
    pub(super) seen: u64,
    out: VecDeque<Out>,
    /// Records in the queue that no session holds, and their bytes.
    pub(super) waiting: u64,
    pub(super) waiting_bytes: u64,
    /// The newest of them.
    pub(super) newest_waiting: u64,
    /// Records that are done with, and are still read from the queue until that is stored.
    gone: Gone,
    /// Greatest position that the archive has; what comes after it is handed over again.
    pub(super) archived: RecordId,
    catch_up: Option<CatchUp>,
    /// There are records that were not given to this route.
    pub(super) behind: bool,
}

/// Reading the queue, instead of being given its records.
pub(super) struct CatchUp {
    /// The records were there when the route was loaded: they wait, or restored sessions hold
    /// them. Otherwise they are new.
    restore: bool,
    loading: BoxFuture<'static, Result<Vec<Record>, QueueError>>,
}

impl Records {
    fn index(&self, id: RecordId) -> Result<usize, usize> {
        // Most often it is a record that has just come, or the oldest that is out.
        match (self.out.front(), self.out.back()) {
            (None, _) | (_, None) => Err(0),
            (_, Some(newest)) if newest.id < id => Err(self.out.len()),
            (_, Some(newest)) if newest.id == id => Ok(self.out.len() - 1),
            (Some(oldest), _) if oldest.id == id => Ok(0),
            _ => self.out.binary_search_by_key(&id, |out| out.id),
        }
    }

    /// True when no session is to be given the record: one holds it, or it is as good as gone.
    pub(super) fn is_taken(&mut self, id: RecordId) -> bool {
        self.gone.contains(id)
            || self.index(id).is_ok_and(|index| {
                let out = &self.out[index];
                out.holders > 0 || out.delivered || out.spent
            })
    }

    /// Forgets what has left the queue. Not while a page is being read, for that may have been
    /// made up before.
    pub(super) fn forget_gone(&mut self, intake: &Intake) {
        self.gone.forget(intake.effected());
    }

    fn out(&mut self, id: RecordId, bytes: usize) -> &mut Out {
        let index = match self.index(id) {
            Ok(index) => index,
            Err(index) => {
                let new = Out {
                    id,
                    holders: 0,
                    delivered: false,
                    archiving: false,
                    spent: false,
                    waiting: false,
                    bytes: bytes as u64,
                };
                first_room(&mut self.out);
                self.out.insert(index, new);
                index
            }
        };
        &mut self.out[index]
    }

    /// The record is on its way to the archive.
    pub(super) fn is_archiving(&mut self, id: RecordId, bytes: usize) {
        self.out(id, bytes).archiving = true;
    }

    /// The archive has the record.
    pub(super) fn has_archived(&mut self, id: RecordId) {
        if let Ok(index) = self.index(id) {
            self.out[index].archiving = false;
        }
    }

    /// A session holds a record that has just come.
    pub(super) fn hold(&mut self, id: RecordId, bytes: usize) {
        self.out(id, bytes).holders += 1;
    }

    /// A session holds a record that waited for one.
    pub(super) fn hold_waiting(&mut self, id: RecordId, bytes: usize) {
        if !self.is_taken(id) {
            self.waiting = self.waiting.saturating_sub(1);
            self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes as u64);
        }
        let out = self.out(id, bytes);
        out.holders += 1;
        out.waiting = false;
    }

    fn waits(&mut self, id: RecordId, bytes: u64) {
        self.waiting += 1;
        self.waiting_bytes += bytes;
        self.newest_waiting = self.newest_waiting.max(id.0);
    }

    /// True while the queue is being read: what comes by mail waits.
    pub(super) fn is_reading(&self) -> bool {
        self.catch_up.is_some()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.out.is_empty() && self.catch_up.is_none() && !self.behind
    }
}

/// Records read at once, and bytes of them.
const PAGE: usize = 256;
const PAGE_BYTES: usize = 1024 * 1024;

impl AccountRoute {
    /// Reads the queue from a position on; nothing else is handled meanwhile.
    pub(super) fn start_catch_up(&mut self, after: RecordId, restore: bool) {
        let backend = self.router.intake.backend();
        let loading = backend.read(self.queue.clone(), Some(after), PAGE, PAGE_BYTES);
        self.records.catch_up = Some(CatchUp { restore, loading });
    }

    /// True when something was done; an error ends the route.
    pub(super) fn poll_catch_up(&mut self, cx: &mut Context<'_>) -> Result<bool, QueueError> {
        if self.records.behind && self.records.catch_up.is_none() && self.leaving.is_empty() {
            self.records.behind = false;
            self.start_catch_up(RecordId(self.records.seen), false);
        }
        let Some(catch_up) = &mut self.records.catch_up else { return Ok(false) };
        let Poll::Ready(page) = catch_up.loading.as_mut().poll(cx) else { return Ok(false) };
        let (page, restore) = (page?, catch_up.restore);
        self.records.catch_up = None;
        let Some(last) = page.last().map(|record| record.id) else {
            return Ok(true);
        };
        // What is newer than that was given to this route, and comes by mail.
        let until = if restore { self.records.seen } else { u64::MAX };
        for record in page {
            if record.id.0 > until {
                return Ok(true);
            }
            match Stanza::parse(&record.payload) {
                Ok(stanza) if restore => self.found(record.id, stanza, record.since),
                Ok(stanza) => {
                    if self.record(record.id, stanza, record.since).is_some() {
                        // Its sessions are leaving; it is read again when they have left.
                        self.records.behind = true;
                        return Ok(true);
                    }
                }
                Err(error) => {
                    // Only a bug writes such a record. It stays where it is, for people to see.
                    tracing::error!(account = %self.account, id = record.id.0, ?error, "a record is no stanza");
                }
            }
        }
        self.start_catch_up(last, restore);
        Ok(true)
    }

    /// A record that was in the queue when the route was loaded. An earlier route handled it,
    /// unless the server ended before it could.
    fn found(&mut self, id: RecordId, stanza: Stanza, at: SystemTime) {
        if stanza.kind() == Kind::Presence {
            return self.subscription(id, stanza);
        }
        let ours = stanza.to().is_some_and(|to| to.bare_eq(&self.account));
        let new = id > self.records.archived && id <= self.router.intake.found();
        let delivery = match self.state {
            State::Live(_) => delivery::message(&self.sessions, &stanza),
            _ => delivery::message_to_nobody(&stanza),
        };
        let targets = match delivery {
            _ if !ours => Targets::new(),
            Delivery::To(targets) => targets,
            Delivery::Ignore => return self.done(id),
            Delivery::Bounce if new || !storable::storable(&stanza) => {
                return self.bounce(id, &stanza, &Condition::ServiceUnavailable.into());
            }
            Delivery::Store | Delivery::Bounce => Targets::new(),
        };
        if !matches!(self.state, State::Live(_)) {
            return self.done(id);
        }
        if id > self.records.archived {
            self.archive(id, &stanza, at);
        }
        let bytes = stanza.len();
        if ours {
            self.records.waits(id, bytes as u64);
            if let Ok(index) = self.records.index(id) {
                self.records.out[index].waiting = true;
            }
        }
        let copy = self.late_copy(id, &stanza, at);
        self.restore_record(id, ours.then_some(bytes), &copy, &targets);
        self.restore_carbons(id, &stanza, &copy, &targets);
        if !ours {
            self.records.out(id, bytes).spent = true;
            self.finish(id);
        }
    }

    /// Handles a record; gives the mail back when it must wait.
    pub(super) fn record(&mut self, id: RecordId, stanza: Stanza, at: SystemTime) -> Option<AccountMail> {
        if id.0 <= self.records.seen {
            return None;
        }
        if stanza.kind() == Kind::Presence {
            self.records.seen = id.0;
            self.subscription(id, stanza);
            return None;
        }
        let ours = stanza.to().is_some_and(|to| to.bare_eq(&self.account));
        if !ours {
            self.records.seen = id.0;
            self.sent(id, &stanza, at);
            return None;
        }
        let again = self.received(id, stanza, at);
        if again.is_none() {
            self.records.seen = id.0;
        }
        again
    }

    /// A subscription stanza: it is done with when what it changed is stored.
    fn subscription(&mut self, id: RecordId, stanza: Stanza) {
        let mut effects = Effects::default();
        if let State::Live(presence) = &mut self.state {
            presence.inbound(&mut self.sessions, stanza, &mut effects);
        }
        self.enqueue(effects);
        self.enqueue_step(QueuedStep::Done(id));
    }

    /// A message that one of the account's own sessions sent.
    fn sent(&mut self, id: RecordId, stanza: &Stanza, at: SystemTime) {
        if !matches!(self.state, State::Live(_)) {
            return self.done(id);
        }
        self.archive(id, stanza, at);
        let out = self.records.out(id, stanza.len());
        out.spent = true;
        self.carbons_of_sent(id, stanza);
        self.finish(id);
    }

    fn received(&mut self, id: RecordId, stanza: Stanza, at: SystemTime) -> Option<AccountMail> {
        let delivery = match self.state {
            State::Live(_) => delivery::message(&self.sessions, &stanza),
            _ => delivery::message_to_nobody(&stanza),
        };
        match delivery {
            Delivery::Ignore => self.done(id),
            Delivery::Bounce => self.bounce(id, &stanza, &Condition::ServiceUnavailable.into()),
            Delivery::Store => self.keep(id, &stanza, at),
            Delivery::To(targets) => {
                let exact = stanza.to().is_some_and(|to| !to.is_bare() && targets.len() == 1);
                let storable = storable::storable(&stanza);
                if self.is_draining() && !exact && storable {
                    // Behind those that are being handed over.
                    self.keep(id, &stanza, at);
                    return None;
                }
                let copy = self.with_stanza_id(id, &stanza);
                let mut given = Targets::new();
                for target in targets {
                    if self.give(target, &copy, Some(id)) {
                        given.push(target);
                    }
                }
                if given.is_empty()
                    && !matches!(stanza.stanza_type(), StanzaType::Message(MessageType::Error))
                {
                    // The sessions are leaving; once they have, the rules are asked again.
                    return Some(AccountMail::Record(id, stanza, at));
                }
                self.archive(id, &stanza, at);
                self.carbons_of_received(Some(id), &copy, &given);
                self.finish(id);
            }
        }
        None
    }

    /// No session can take it: it waits in the queue, or goes back.
    fn keep(&mut self, id: RecordId, stanza: &Stanza, at: SystemTime) {
        if !storable::storable(stanza) {
            // Groupchat and whatever else is not kept for those who are away.
            return self.bounce(id, stanza, &Condition::ServiceUnavailable.into());
        }
        let config = &self.router.config;
        let bytes = stanza.len() as u64;
        if self.records.waiting >= config.waiting_messages
            || self.records.waiting_bytes + bytes > config.waiting_bytes
        {
            // XEP-0160 3 leaves the condition open; this one says that a retry may succeed.
            return self.bounce(id, stanza, &Condition::ResourceConstraint.into());
        }
        self.archive(id, stanza, at);
        if let Ok(index) = self.records.index(id) {
            self.records.out[index].waiting = true;
        }
        self.records.waits(id, bytes);
    }

    /// Answers a record with an error that takes its place in the log.
    fn bounce(&mut self, id: RecordId, stanza: &Stanza, error: &StanzaError) {
        let Some(reply) = stanza.error_reply(error) else { return self.done(id) };
        let Some(sender) = self.router.party_to(&reply) else {
            self.route_own(reply);
            return self.done(id);
        };
        self.routed += 1;
        let record = NewRecord {
            stanza: reply,
            concerned: std::iter::once(sender).collect(),
            mark: None,
            receipt: Some(self.receipts.issue(self.routed)),
            instead_of: Some((self.queue.clone(), id)),
            stored: None,
        };
        self.router.intake.offer(Item::Record(Box::new(record)));
    }

    /// The record leaves the queue; the intake is told at the end of the turn.
    pub(super) fn done(&mut self, id: RecordId) {
        self.records.gone.add(id);
    }

    /// Tells the intake which records are done with.
    pub(super) fn tell_done(&mut self) {
        if !self.records.gone.has_untold() {
            return;
        }
        if !self.is_draining() {
            self.records.forget_gone(&self.router.intake);
        }
        let (intake, queue) = (&self.router.intake, &self.queue);
        self.records.gone.tell(|ids| intake.offer_numbered(Item::Done(queue.clone(), ids)));
    }

    /// The copy that the account's clients see (XEP-0359 3: `by` the account).
    pub(super) fn with_stanza_id(&self, id: RecordId, stanza: &Stanza) -> Stanza {
        if !matches!(stanza.stanza_type(), StanzaType::Message(MessageType::Chat | MessageType::Normal)) {
            return stanza.clone();
        }
        stanza.with_stanza_id(&self.account, id)
    }

    /// The same with the time at which it was accepted (XEP-0203), for late delivery.
    pub(super) fn late_copy(&self, id: RecordId, stanza: &Stanza, at: SystemTime) -> Stanza {
        self.with_stanza_id(id, stanza)
            .with_appended(&datetime::delay(&self.account.to_domain(), Timestamp::from_system_time(at)))
    }

    /// A client has confirmed all that it was given up to a record.
    pub(super) fn confirmed(&mut self, session: SessionId, up_to: RecordId) {
        let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == session) else { return };
        let mut ids = Vec::new();
        while handle.held.front().is_some_and(|id| *id <= up_to) {
            ids.extend(handle.held.pop_front());
        }
        if handle.held.is_empty() {
            handle.held = VecDeque::new();
        }
        for id in ids {
            self.release(id, true);
        }
    }

    /// A session no longer holds a record.
    pub(super) fn release(&mut self, id: RecordId, delivered: bool) {
        let Ok(index) = self.records.index(id) else { return };
        let out = &mut self.records.out[index];
        out.holders = out.holders.saturating_sub(1);
        out.delivered |= delivered;
        self.finish(id);
    }

    /// Looks whether a record's fate is final.
    pub(super) fn finish(&mut self, id: RecordId) {
        let Ok(index) = self.records.index(id) else { return };
        let out = &mut self.records.out[index];
        if out.holders > 0 {
            return;
        }
        let (over, archiving, bytes) = (out.delivered || out.spent, out.archiving, out.bytes);
        if !over && !std::mem::replace(&mut out.waiting, true) {
            // Its sessions have gone: it waits for the next one, also while it is being archived.
            self.records.waits(id, bytes);
            self.rewind_drain(id);
        }
        if archiving {
            return;
        }
        self.records.out.remove(index);
        if self.records.out.is_empty() {
            self.records.out = VecDeque::new();
        }
        if over {
            self.done(id);
        }
    }
}
