//! Sessions that wait for their clients to come back (XEP-0198 5), also after a restart.
//!
//! What must hold: such a session stays a session of the account in every respect, until its
//! time is over or its room is used up; then it ends as a lost one does, and its records wait
//! for another session. Its state is in the store before the client is told that it may resume.
//! One connection owns a session at a time.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use waystation_core::account::LiveSession;
use waystation_core::queue::{Mark, RecordId};
use waystation_core::storage::{Batch, Durability, StorageError};
use waystation_core::{PresenceType, SessionId, Stanza, StanzaType, StreamError};

use super::{AccountRoute, Handle, Link, State};
use crate::intake::Item;
use crate::mail::SessionMail;
use crate::receipt::Receipts;
use crate::stream::{
    Acknowledged, Detachment, ENDED_FOR, Note, ResumeError, ResumeRequest, Resumption, STREAMS, StreamRow,
    acknowledged, note_queue, row_key,
};

/// What makes a session resumable.
#[derive(Clone, Copy)]
pub(super) struct Resumable {
    pub(super) key: u128,
    pub(super) max: Duration,
}

/// A session without a connection.
pub(super) struct Detached {
    pub(super) state: Box<Detachment>,
    /// How many of the unconfirmed stanzas had been sent.
    sent: usize,
    bytes: usize,
    until: Instant,
    /// It is known from the store alone: the server was restarted.
    restored: bool,
    /// After a restart: the numbers under which records were sent, as far as they were noted.
    numbers: HashMap<RecordId, u64>,
    /// After a restart: records up to this one were sent, or were not for this session.
    pub(super) had: RecordId,
}

/// A stored session as the route finds it when it is loaded.
pub(super) struct StoredStream {
    pub(super) key: u128,
    pub(super) row: StreamRow,
    /// Stanzas of the client that were accepted.
    pub(super) accepted: u64,
    /// What was sent: numbers and records.
    pub(super) sent: Vec<(u64, RecordId)>,
    /// The notes that say so.
    pub(super) notes: VecDeque<Note>,
}

/// Most ended sessions of an account whose numbers it can still be told.
const MAX_ENDED: usize = 100;
/// Earlier identities of a session that are known: mail of older ones has long been handled.
const MAX_WAS: usize = 8;

type ResumeReply = oneshot::Sender<Result<Resumption, ResumeError>>;

impl Detached {
    /// Takes a stanza; false when there is no room.
    pub(super) fn push(
        &mut self,
        stanza: &Stanza,
        record: Option<RecordId>,
        max_stanzas: usize,
        max_bytes: usize,
    ) -> bool {
        if record.is_none() && is_availability(stanza) {
            // Only the last presence of each sender is worth keeping.
            let from = stanza.from();
            let queue = &mut self.state.unconfirmed;
            let older = (self.sent..queue.len()).find(|i| {
                queue[*i].0.from() == from && queue[*i].1.is_none() && is_availability(&queue[*i].0)
            });
            if let Some((older, _)) = older.and_then(|index| queue.remove(index)) {
                self.bytes -= older.len();
            }
        }
        if self.state.unconfirmed.len() >= max_stanzas || self.bytes + stanza.len() > max_bytes {
            return false;
        }
        self.bytes += stanza.len();
        self.state.unconfirmed.push_back((stanza.clone(), record));
        true
    }

    /// What the client says that it has received is taken away.
    fn confirm(&mut self, h: u32) -> Result<Option<RecordId>, ResumeError> {
        if self.restored {
            return Ok(self.confirm_restored(h));
        }
        let sent = self.state.confirmed + self.sent as u64;
        let new = match acknowledged(h, self.state.confirmed, sent) {
            Acknowledged::More(new) => new,
            // What was acknowledged is not sent again.
            Acknowledged::Fewer => 0,
            Acknowledged::TooMany => return Err(ResumeError::TooHigh { h, sent }),
        };
        let last = self.state.unconfirmed.drain(..new as usize).filter_map(|(_, record)| record).next_back();
        self.state.confirmed += new;
        Ok(last)
    }

    /// After a restart only the numbers of records are known, and perhaps not of the last ones:
    /// what is not known to have been received is sent again.
    fn confirm_restored(&mut self, h: u32) -> Option<RecordId> {
        let newest = self.numbers.values().max().copied().unwrap_or(self.state.confirmed);
        // The nearest number that ends in these 32 bits.
        let ahead = h.wrapping_sub(newest as u32) as i32;
        self.state.confirmed = newest.saturating_add_signed(i64::from(ahead));
        let confirmed = self.state.confirmed;
        let numbers = std::mem::take(&mut self.numbers);
        let had = |record: &Option<RecordId>| {
            record.and_then(|id| numbers.get(&id)).is_some_and(|number| *number <= confirmed)
        };
        let last =
            self.state.unconfirmed.iter().filter_map(|(_, r)| had(r).then_some(*r).flatten()).next_back();
        self.state.unconfirmed.retain(|(_, record)| !had(record));
        last
    }
}

fn is_availability(stanza: &Stanza) -> bool {
    matches!(stanza.stanza_type(), StanzaType::Presence(PresenceType::Available | PresenceType::Unavailable))
}

impl AccountRoute {
    /// Makes a session resumable; the reply follows once that is durable.
    pub(super) fn enable(
        &mut self,
        id: SessionId,
        key: u128,
        max: Duration,
        reply: oneshot::Sender<Result<(), StorageError>>,
    ) {
        let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == id) else { return };
        handle.resumable = Some(Resumable { key, max });
        if self.is_volatile() {
            // The session may have gone.
            let _ = reply.send(Ok(()));
            return;
        }
        let Some(row) = self.stream_row(id) else { return };
        let batch = Batch::new().put(STREAMS, row_key(&self.account, key), row.to_bytes());
        let commit = self.router.storage.commit(batch);
        actix_rt::spawn(async move {
            // The session may have gone.
            let _ = reply.send(commit.await);
        });
    }

    /// True when the queue does not outlive the process: then a session must not seem to.
    fn is_volatile(&self) -> bool {
        self.router.intake.backend().capabilities().durability == Durability::Memory
    }

    fn stream_row(&self, id: SessionId) -> Option<StreamRow> {
        let resumable = self.handles.iter().find(|handle| handle.id == id)?.resumable?;
        let session = self.sessions.get(id)?;
        Some(StreamRow::Resumable {
            resource: session.jid.resource()?.to_owned(),
            max: resumable.max,
            presence: session.presence.clone(),
            priority: session.priority,
            carbons: session.carbons,
            interested: session.interested,
            directed: session.directed.iter().cloned().collect(),
        })
    }

    /// Stores what has changed of a resumable session. Nobody waits for it: at worst an older
    /// presence is found after a crash.
    pub(super) fn store_stream(&self, id: SessionId) {
        let resumable = self.handles.iter().find(|handle| handle.id == id).and_then(|h| h.resumable);
        if let (Some(Resumable { key, .. }), Some(row)) = (resumable, self.stream_row(id)) {
            self.write_row(Batch::new().put(STREAMS, row_key(&self.account, key), row.to_bytes()));
        }
    }

    fn write_row(&self, batch: Batch) {
        if self.is_volatile() {
            return;
        }
        let commit = self.router.storage.commit(batch);
        let account = self.account.clone();
        actix_rt::spawn(async move {
            if let Err(error) = commit.await {
                tracing::warn!(%account, %error, "the state of a resumable session could not be stored");
            }
        });
    }

    /// A session that cannot be resumed any more. Its number of accepted stanzas is kept for a
    /// day when its client may ask for it.
    pub(super) fn forget_stream(&mut self, Resumable { key, .. }: Resumable, keep_number: bool) {
        if keep_number {
            self.ended.push(key);
            if self.ended.len() > MAX_ENDED {
                let oldest = self.ended.remove(0);
                self.forget_stream(Resumable { key: oldest, max: Duration::ZERO }, false);
            }
        }
        let row = row_key(&self.account, key);
        self.write_row(if keep_number {
            let ended = StreamRow::Ended(SystemTime::now() + ENDED_FOR);
            Batch::new().put(STREAMS, row, ended.to_bytes())
        } else {
            Batch::new().delete(STREAMS, row)
        });
        if !keep_number {
            self.router.intake.offer(Item::Mark(Mark { key, value: None }, None));
        }
        let purge = self.router.intake.backend().purge(note_queue(key));
        actix_rt::spawn(async move {
            if let Err(error) = purge.await {
                tracing::warn!(%error, "the notes of a session could not be removed");
            }
        });
    }

    /// A session has lost its connection.
    pub(super) fn detach(&mut self, id: SessionId, state: Box<Detachment>) {
        self.has_left(id);
        // One that was closed meanwhile is known no more, and this was its farewell.
        let Some(index) = self.handles.iter().position(|handle| handle.id == id) else { return };
        let Some(resumable) = self.handles[index].resumable else { return self.unbind(id) };
        if self.server_stops() {
            return self.put_by(id);
        }
        let bytes = state.unconfirmed.iter().map(|(stanza, _)| stanza.len()).sum();
        // What is kept over a resumption counts against no credit: without a bound it would grow
        // with each one of a client that never acknowledges anything.
        let config = &self.router.config;
        let too_much =
            state.unconfirmed.len() > 2 * config.detached_stanzas || bytes > 2 * config.detached_bytes;
        let detached = Detached {
            sent: state.sent,
            bytes,
            until: Instant::now() + resumable.max,
            restored: false,
            numbers: HashMap::new(),
            had: RecordId(0),
            state,
        };
        let handle = &mut self.handles[index];
        handle.link = Link::Detached(Box::new(detached));
        if too_much {
            tracing::info!(account = %self.account, "a session ended: its client acknowledged too little");
            return self.end_detached(id);
        }
        if let Some((request, reply)) = handle.resuming.take() {
            return self.resume(request, reply);
        }
        self.limit_detached();
    }

    /// When the server stops, a session that may be resumed is not over; false for all others.
    pub(super) fn leave_to_the_next_server(&mut self, id: SessionId, error: &StreamError) -> bool {
        let Some(handle) = self.handles.iter().find(|handle| handle.id == id) else { return false };
        if !self.server_stops() || handle.resumable.is_none() {
            return false;
        }
        match &handle.link {
            Link::Live(outlet) => {
                // Gone: it has lost its connection, and says so by mail as well.
                let _ = outlet.offer_control(SessionMail::Close(error.clone()));
                self.wait_for(id);
            }
            Link::Detached(_) => self.put_by(id),
        }
        true
    }

    /// A session is forgotten here, and resumed from the store by the next server.
    fn put_by(&mut self, id: SessionId) {
        let Some(index) = self.handles.iter().position(|handle| handle.id == id) else { return };
        self.sessions.remove(id);
        for record in self.handles.remove(index).held {
            self.release(record, false);
        }
    }

    /// The oldest sessions beyond the limit end.
    fn limit_detached(&mut self) {
        let mut waiting: Vec<_> = self
            .handles
            .iter()
            .filter_map(|handle| match &handle.link {
                Link::Detached(detached) => Some((detached.until, handle.id)),
                Link::Live(_) => None,
            })
            .collect();
        waiting.sort_unstable();
        let surplus = waiting.len().saturating_sub(self.router.config.detached_sessions);
        for (_, id) in waiting.into_iter().take(surplus) {
            tracing::debug!(account = %self.account, "a session that waited for its client gave way to newer ones");
            self.end_detached(id);
        }
    }

    /// A session without a connection ends: it is unavailable, and what it held goes elsewhere.
    pub(super) fn end_detached(&mut self, id: SessionId) {
        let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == id) else { return };
        let Link::Detached(detached) = &mut handle.link else { return };
        let leftovers: Vec<_> = std::mem::take(&mut detached.state.unconfirmed)
            .into_iter()
            .filter(|(_, record)| record.is_none())
            .map(|(stanza, _)| stanza)
            .collect();
        self.unbind(id);
        for stanza in leftovers {
            self.undelivered(&stanza);
        }
    }

    /// Ends the sessions whose time is over; when the next one's is.
    pub(super) fn expire_detached(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let times = self.handles.iter().filter_map(|handle| match &handle.link {
            Link::Detached(detached) => Some((handle.id, detached.until)),
            Link::Live(_) => None,
        });
        let (due, later): (Vec<_>, Vec<_>) = times.partition(|(_, until)| *until <= now);
        for (id, _) in due {
            tracing::info!(account = %self.account, "a session ended: its client did not come back in time");
            self.end_detached(id);
        }
        later.into_iter().map(|(_, until)| until - now).min()
    }

    /// Takes up a session.
    pub(super) fn resume(&mut self, request: Box<ResumeRequest>, reply: ResumeReply) {
        let answer = self.try_resume(request, reply);
        if let Some((reply, result)) = answer {
            // A client that has gone meanwhile: the session waits for the next attempt.
            if let Err(Ok(Resumption { id, mut state, mut inlet, .. })) = reply.send(result) {
                state.take_mail(inlet.close());
                self.detach(id, state);
            }
        }
    }

    fn try_resume(
        &mut self,
        request: Box<ResumeRequest>,
        reply: ResumeReply,
    ) -> Option<(ResumeReply, Result<Resumption, ResumeError>)> {
        if !matches!(self.state, State::Live(_)) {
            return Some((reply, Err(ResumeError::Unknown(None))));
        }
        // One whose time is over has ended, whether that was noticed yet or not.
        self.expire_detached();
        let key = request.key;
        let found = self.handles.iter().position(|h| h.resumable.is_some_and(|r| r.key == key));
        let Some(index) = found else {
            if !self.ended.contains(&key) {
                return Some((reply, Err(ResumeError::Unknown(None))));
            }
            let mark = self.router.intake.backend().mark(key);
            actix_rt::spawn(async move {
                // The client may have gone; without the number it only resends more.
                let _ = reply.send(Err(ResumeError::Unknown(mark.await.ok().flatten().or(Some(0)))));
            });
            return None;
        };
        let handle = &mut self.handles[index];
        let detached = match &mut handle.link {
            Link::Live(outlet) => {
                // The old connection gives the state up; then it is resumed. A second request
                // meanwhile takes the first one's place, which is told that there is no session.
                let _ = outlet.offer_control(SessionMail::Yield);
                handle.resuming = Some((request, reply));
                return None;
            }
            Link::Detached(detached) => detached,
        };
        let had = match detached.confirm(request.h) {
            Ok(had) => had,
            Err(error) => return Some((reply, Err(error))),
        };
        let ResumeRequest { outlet, inlet, peer, security, .. } = *request;
        let Link::Detached(detached) = std::mem::replace(&mut handle.link, Link::Live(outlet)) else {
            return None;
        };
        // A new identity, so that what the old connection still says is not taken for the new
        // one's.
        let id = self.router.new_session_id();
        let old = std::mem::replace(&mut handle.id, id);
        if handle.was.len() >= MAX_WAS {
            handle.was.remove(0);
        }
        handle.was.push(old);
        handle.peer = peer;
        handle.security = security;
        let max = handle.resumable.map_or(Duration::ZERO, |resumable| resumable.max);
        let session = self.sessions.get_mut(old)?;
        session.id = id;
        let jid = session.jid.clone();
        if let Some(had) = had {
            self.confirmed(id, had);
        }
        let resumption = Resumption { id, jid, inlet, max, state: detached.state };
        Some((reply, Ok(resumption)))
    }

    /// Brings back the sessions that were stored.
    pub(super) fn restore_streams(&mut self, streams: Vec<StoredStream>) {
        let now = SystemTime::now();
        for StoredStream { key, row, accepted, sent, notes } in streams {
            match row {
                StreamRow::Ended(until) if until > now => self.ended.push(key),
                StreamRow::Ended(_) => self.forget_stream(Resumable { key, max: Duration::ZERO }, false),
                StreamRow::Resumable { resource, max, presence, priority, carbons, interested, directed } => {
                    let Ok(jid) = self.account.with_resource(&resource) else { continue };
                    let id = self.router.new_session_id();
                    let mut session = LiveSession::new(id, jid);
                    session.priority = priority;
                    session.presence = presence;
                    session.carbons = carbons;
                    session.interested = interested;
                    session.directed = directed.into_iter().collect();
                    self.sessions.insert(session);
                    let had = sent.iter().map(|(_, id)| *id).max().unwrap_or_default();
                    let state = Box::new(Detachment {
                        unconfirmed: VecDeque::new(),
                        sent: 0,
                        confirmed: sent.iter().map(|(number, _)| *number).max().unwrap_or(0),
                        received: accepted,
                        receipts: Receipts::default(),
                        marked: accepted,
                        notes,
                        lang: None,
                    });
                    let numbers = sent.into_iter().map(|(number, id)| (id, number)).collect();
                    let until = self.router.started + max;
                    let detached = Detached { state, sent: 0, bytes: 0, until, restored: true, numbers, had };
                    let handle = Handle {
                        resumable: Some(Resumable { key, max }),
                        ..Handle::new(id, Link::Detached(Box::new(detached)))
                    };
                    self.handles.push(handle);
                }
            }
        }
    }

    /// Gives a record that was in the queue at the start to the restored sessions among
    /// `targets`, but for those that confirmed it before the end. `counted` are its bytes, if it
    /// counts as waiting.
    pub(super) fn restore_record(
        &mut self,
        id: RecordId,
        counted: Option<usize>,
        copy: &Stanza,
        targets: &[SessionId],
    ) {
        let (max_stanzas, max_bytes) =
            (self.router.config.detached_stanzas, self.router.config.detached_bytes);
        let mut full = Vec::new();
        for handle in &mut self.handles {
            let Link::Detached(detached) = &mut handle.link else { continue };
            // What was noted and not confirmed, and what is newer than the notes.
            let wanted = detached.numbers.contains_key(&id) || id > detached.had;
            if !wanted || !targets.contains(&handle.id) {
                continue;
            }
            if detached.push(copy, Some(id), max_stanzas, max_bytes) {
                handle.held.push_back(id);
                match counted {
                    Some(bytes) => self.records.hold_waiting(id, bytes),
                    None => self.records.hold(id, copy.len()),
                }
            } else {
                full.push(handle.id);
            }
        }
        for id in full {
            self.end_detached(id);
        }
    }
}
