//! The records of the domain's queue: they come by mail while the route keeps up, and are read from the
//! queue in pages while it does not.
//!
//! What must hold: a stream is given records in growing order, without a gap and none twice. What comes by
//! mail is given only when everything before it was (the route is `live`); otherwise it is let go and read
//! later, so what waits is in the queue and not in memory.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use waystation_core::datetime::{self, Timestamp};
use waystation_core::queue::{QueueError, Record, RecordId};
use waystation_core::storage::BoxFuture;
use waystation_core::{Jid, Stanza};
use waystation_runtime::Offer;

use super::late::{is_availability, is_request};
use super::window::Note;
use super::{DomainRoute, REPAIR, Stage, no_room};
use crate::intake::{Item, MAX_DONE};
use crate::remote::StreamMail;
use crate::router::Router;

/// Records read at once, and bytes of them.
const PAGE: usize = 256;
const PAGE_BYTES: usize = 256 * 1024;
/// What is sent so long after its commit is stamped with the time of that (XEP-0203).
const LATE: Duration = Duration::from_secs(1);
/// How long a stream without room is left alone at first, and at most: it does not say when it has some.
const MIN_PAUSE: Duration = Duration::from_millis(5);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// What a page is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be given to the stream of this number.
    Send(u64),
    /// To find what has waited for too long.
    Front,
    /// To tell senders that their messages are delayed.
    Notice,
}

struct Reading {
    purpose: Purpose,
    after: RecordId,
    /// The newest record when it began: an empty page says that none up to there is left.
    newest: u64,
    page: BoxFuture<'static, Result<Vec<Record>, QueueError>>,
}

/// What the route knows of its queue.
pub(super) struct Records {
    /// Records up to here are done with.
    pub(super) base: RecordId,
    /// Records up to here were given to the stream, or are not there.
    pub(super) cursor: RecordId,
    /// Everything that was passed on before this record has come. One that is newer can be in the queue
    /// before what precedes it is in the mail.
    pub(super) known: RecordId,
    /// All records that have not come by mail were given.
    live: bool,
    /// A page to be given.
    page: VecDeque<Record>,
    reading: Option<Reading>,
    /// All records from this one on came by mail, and none was let go or is to be given once more.
    unbroken: Option<RecordId>,
    /// The stream had no room: it is offered more then, and after this pause.
    room_at: Option<Instant>,
    pause: Duration,
    /// Reading failed; it is tried again then.
    read_again: Option<Instant>,
    page_size: usize,
    /// Records that cannot be read. They stay in the queue, for people to see, and are counted no more.
    damaged: Vec<RecordId>,
    /// Done with, and not yet said.
    done: Vec<RecordId>,
    /// The number of the last item that said so.
    told: u64,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            base: RecordId(0),
            cursor: RecordId(0),
            known: RecordId(0),
            live: true,
            page: VecDeque::new(),
            reading: None,
            unbroken: None,
            room_at: None,
            pause: MIN_PAUSE,
            read_again: None,
            page_size: PAGE,
            damaged: Vec::new(),
            done: Vec::new(),
            told: 0,
        }
    }
}

impl Records {
    /// A record has come by mail; it is handled in its turn.
    pub(super) fn is_mailed(&mut self, id: RecordId) {
        self.unbroken.get_or_insert(id);
    }

    /// What comes by mail from here on is not all there was.
    pub(super) fn is_interrupted(&mut self) {
        self.unbroken = None;
    }

    /// There are records that will not come by mail, or were let go.
    pub(super) fn is_behind(&mut self) {
        self.live = false;
    }

    /// A new stream is given all that is not done with.
    pub(super) fn rewind(&mut self) {
        self.page = VecDeque::new();
        self.cursor = self.base;
        self.live = false;
        self.unbroken = None;
        self.room_at = None;
        self.pause = MIN_PAUSE;
    }

    /// The stream has let something go.
    pub(super) fn has_room(&mut self) {
        self.room_at = None;
        self.pause = MIN_PAUSE;
    }

    /// True when the stream was given all that there is.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// A record is done with; the intake is told at the end of the turn.
    pub(super) fn done(&mut self, id: RecordId) {
        self.done.push(id);
    }

    /// True when the queue knows of everything that is done with: a route that begins now finds none of it.
    pub(super) fn is_settled(&self, router: &Router) -> bool {
        self.done.is_empty() && (router.intake.effected() >= self.told || router.intake.has_failed())
    }
}

impl DomainRoute {
    /// True while the stream is to be given something.
    pub(super) fn ready(&self) -> bool {
        matches!(self.stage, Stage::Sending)
            && self.bounces.is_clear()
            && self.link.as_ref().is_some_and(|link| !link.closing)
    }

    /// Mail waits while a page is being read that may come before it.
    pub(super) fn waits_for_a_page(&self) -> bool {
        let reading = self.records.reading.as_ref();
        self.ready() && reading.is_some_and(|reading| matches!(reading.purpose, Purpose::Send(_)))
    }

    /// A record has come by mail.
    pub(super) fn record(&mut self, id: RecordId, stanza: &Stanza, at: SystemTime) {
        if id <= self.records.cursor {
            return;
        }
        if self.records.live && self.ready() && self.give_late(id.0) && self.give_record(id, stanza) {
            return;
        }
        self.records.is_behind();
        self.records.is_interrupted();
        let ttl = self.config().message_ttl;
        let expires = match self.stage {
            Stage::Bouncing { .. } => Instant::now(),
            _ => in_time(at, ttl),
        };
        self.bounces.look_at(expires);
    }

    /// Reads from the queue, if nothing else is being read.
    pub(super) fn start_read(&mut self, purpose: Purpose, after: RecordId) {
        let newest = self.domain.newest();
        let backend = self.router.intake.backend();
        let page = backend.read(self.domain.queue.clone(), Some(after), self.records.page_size, PAGE_BYTES);
        self.records.reading = Some(Reading { purpose, after, newest, page });
    }

    /// True while a page is being read.
    pub(super) fn is_reading(&self) -> bool {
        self.records.reading.is_some()
    }

    /// When reading may go on after a failure.
    pub(super) fn read_again(&self) -> Option<Instant> {
        self.records.read_again
    }

    /// True when a page came.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(reading) = &mut self.records.reading else { return false };
        let Poll::Ready(page) = reading.page.as_mut().poll(cx) else { return false };
        let Some(Reading { purpose, after, newest, .. }) = self.records.reading.take() else { return false };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                self.read_failed(purpose, after, &error);
                return true;
            }
        };
        self.records.page_size = PAGE;
        match purpose {
            Purpose::Send(generation) => {
                if generation != self.generation || !matches!(self.stage, Stage::Sending) {
                    return true;
                }
                if page.is_empty() {
                    self.records.cursor = self.records.cursor.max(RecordId(newest));
                    self.records.live = true;
                }
                self.records.page = page.into();
            }
            Purpose::Front => self.look_at_the_front(page),
            Purpose::Notice => self.notify(page, newest),
        }
        true
    }

    fn read_failed(&mut self, purpose: Purpose, after: RecordId, error: &QueueError) {
        let now = Instant::now();
        let pair = &self.domain.pair;
        match error {
            // Which one it is shows when they are read one by one.
            QueueError::Corrupt { record: Some(_), .. } if self.records.page_size > 1 => {
                self.records.page_size = 1;
            }
            QueueError::Corrupt { record: Some(id), .. } if *id > after => {
                tracing::error!(%pair, %error, "a record is damaged, and is passed by");
                self.records.page_size = PAGE;
                match purpose {
                    Purpose::Send(_) => self.records.cursor = self.records.cursor.max(*id),
                    Purpose::Front if self.window.is_empty() => {
                        self.records.base = self.records.base.max(*id);
                    }
                    // What comes before it is still the last stream's.
                    Purpose::Front => self.records.read_again = Some(now + REPAIR),
                    Purpose::Notice => self.bounces.pass_by(*id),
                }
                self.pass_by(*id, 0);
            }
            _ => {
                tracing::error!(%pair, %error, "a domain's queue could not be read");
                self.records.read_again = Some(now + REPAIR);
            }
        }
        if purpose == Purpose::Front {
            self.bounces.look_at(now);
        }
    }

    /// A record that cannot be sent stays where it is, for people to see.
    fn pass_by(&mut self, id: RecordId, bytes: u64) {
        if !self.records.damaged.contains(&id) {
            self.records.damaged.push(id);
            self.domain.release(1, bytes);
        }
    }

    /// The stanza of a record.
    pub(super) fn readable(&mut self, record: &Record) -> Option<Stanza> {
        match Stanza::parse(&record.payload) {
            Ok(stanza) => Some(stanza),
            Err(error) => {
                // Only a bug writes such a record.
                if !self.records.damaged.contains(&record.id) {
                    tracing::error!(pair = %self.domain.pair, id = record.id.0, ?error, "a record is no stanza");
                }
                self.pass_by(record.id, record.payload.len() as u64);
                None
            }
        }
    }

    /// Gives the stream what is there for it; true when something was done.
    pub(super) fn fill(&mut self, budget: &mut usize) -> bool {
        if !self.ready() {
            return false;
        }
        let now = Instant::now();
        if self.records.room_at.is_some_and(|at| now < at)
            || self.records.read_again.is_some_and(|at| now < at)
        {
            return false;
        }
        (self.records.room_at, self.records.read_again) = (None, None);
        let mut progress = false;
        while *budget > 0 {
            let next = self.records.page.front().map(|record| record.id.0);
            if !self.give_late(next.unwrap_or(0)) {
                return progress;
            }
            if next.is_some_and(|next| next > self.records.known.0) {
                // Its own mail wakes the route.
                return progress;
            }
            let Some(record) = self.records.page.pop_front() else { break };
            if let Some(stanza) = self.readable(&record) {
                let late = record.since.elapsed().is_ok_and(|age| age >= LATE);
                let stanza = if late { self.stamped(&stanza, record.since) } else { stanza };
                if !self.give_sized(record.id, &stanza, record.payload.len() as u64) {
                    self.records.page.push_front(record);
                    return progress;
                }
            }
            self.records.cursor = record.id;
            *budget -= 1;
            progress = true;
        }
        if self.records.page.is_empty() && !self.records.live && self.records.reading.is_none() {
            progress = true;
            if self.records.unbroken.is_some_and(|id| id <= self.records.cursor) {
                // What follows is there already, or will come by mail.
                self.records.live = true;
            } else {
                self.start_read(Purpose::Send(self.generation), self.records.cursor);
            }
        }
        progress
    }

    /// Gives what belongs before the next record; false when the stream has no room for it.
    fn give_late(&mut self, next: u64) -> bool {
        while let Some((stanza, after)) = self.late.first()
            && (after <= self.records.cursor.0 || after < next)
        {
            let stanza = stanza.clone();
            if !self.give_ephemeral(&stanza) {
                return false;
            }
            self.late.pop();
        }
        true
    }

    fn give_record(&mut self, id: RecordId, stanza: &Stanza) -> bool {
        let given = self.give_sized(id, stanza, stanza.len() as u64);
        if given {
            self.records.cursor = id;
        }
        given
    }

    fn give_sized(&mut self, id: RecordId, stanza: &Stanza, bytes: u64) -> bool {
        self.give(stanza, Note::Record(id, bytes))
    }

    /// Gives a stanza that nothing keeps, or answers it; false when it must wait.
    pub(super) fn give_ephemeral(&mut self, stanza: &Stanza) -> bool {
        let request = is_request(stanza);
        if !(request || is_availability(stanza)) {
            return self.give(stanza, Note::Nothing);
        }
        if self.window.has_room_for(stanza) {
            return self.give(stanza, Note::Kept(stanza.clone()));
        }
        if request {
            // Nobody would answer it if it failed.
            self.answer(stanza, &no_room());
            return true;
        }
        self.give(stanza, Note::Nothing)
    }

    fn give(&mut self, stanza: &Stanza, note: Note) -> bool {
        let Some(link) = &mut self.link else { return false };
        if self.window.is_full() {
            // What is handed over wakes the route.
            return false;
        }
        let now = Instant::now();
        match link.outlet.offer(StreamMail::Stanza(stanza.clone())) {
            Offer::Accepted => {
                link.last_given = now;
                self.window.push(note);
                self.records.pause = MIN_PAUSE;
                true
            }
            Offer::Full(_) => {
                self.records.room_at = Some(now + self.records.pause);
                self.records.pause = (2 * self.records.pause).min(MAX_PAUSE);
                false
            }
            Offer::Gone(_) => {
                // It has ended, and says so by mail.
                link.closing = true;
                false
            }
        }
    }

    /// When the stream is offered more.
    pub(super) fn room_at(&self) -> Option<Instant> {
        if self.ready() { self.records.room_at.or(self.records.read_again) } else { None }
    }

    /// The stanza with the time at which it was accepted (XEP-0203), for late delivery.
    fn stamped(&self, stanza: &Stanza, at: SystemTime) -> Stanza {
        match Jid::parse(&self.domain.pair.local) {
            Ok(local) => stanza.with_appended(&datetime::delay(&local, Timestamp::from_system_time(at))),
            // It is the domain of a JID, and was prepared as such.
            Err(_) => stanza.clone(),
        }
    }

    /// So many of the stanzas that were given have arrived.
    pub(super) fn handed_over(&mut self, count: u64) -> bool {
        let (records, domain, total) = (&mut self.records, &self.domain, &mut self.handed);
        let mut any = false;
        self.window.handed(count, |note| {
            any = true;
            *total += 1;
            if let Note::Record(id, bytes) = note {
                records.base = records.base.max(id);
                records.done(id);
                domain.release(1, bytes);
            }
        });
        any
    }

    /// Tells the intake which records are done with.
    pub(super) fn tell_done(&mut self) {
        for few in std::mem::take(&mut self.records.done).chunks(MAX_DONE) {
            let item = Item::Done(self.domain.queue.clone(), few.into());
            self.records.told = self.router.intake.offer_numbered(item);
        }
    }
}

/// The moment that is so long after a time of the calendar; now, if that has passed.
pub(super) fn in_time(at: SystemTime, after: Duration) -> Instant {
    let left = at.checked_add(after).and_then(|end| end.duration_since(SystemTime::now()).ok());
    Instant::now() + left.unwrap_or_default().min(super::MAX_SLEEP)
}
