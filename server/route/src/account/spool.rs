//! The messages that wait for the account (XEP-0160): handing them over in order.
//!
//! What must hold: they are the records of the account's queue that no session holds, read from
//! the queue when a session can take them; while they are being handed over, newer ones wait
//! behind them; each leaves the queue only when a client has confirmed it, so presence alone
//! takes nothing away.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use waystation_core::queue::{QueueError, Record, RecordId};
use waystation_core::storage::BoxFuture;
use waystation_core::{SessionId, Stanza};
use waystation_runtime::wheel;

use super::{AccountRoute, Given};

/// Records read at once, and bytes of them.
const PAGE: usize = 100;
const PAGE_BYTES: usize = 1024 * 1024;
/// How long a session without credit is left alone.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Drain {
    session: SessionId,
    /// The last record that was handed over or passed by.
    after: RecordId,
    stage: Stage,
}

enum Stage {
    Start,
    Loading(BoxFuture<'static, Result<Vec<Record>, QueueError>>),
    /// The session has no credit.
    Paused(Instant),
}

impl AccountRoute {
    /// True while messages that waited are being handed over.
    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Begins to hand what waits to a session that has become able to receive it.
    pub(super) fn start_drain(&mut self, session: SessionId) {
        if self.drain.is_none() && self.records.waiting > 0 {
            self.drain = Some(Box::new(Drain { session, after: RecordId(0), stage: Stage::Start }));
        }
    }

    /// A session has changed its state: whoever waited for that goes on at once.
    pub(super) fn wake_drain(&mut self) {
        if let Some(drain) = &mut self.drain
            && matches!(drain.stage, Stage::Paused(_))
        {
            drain.stage = Stage::Start;
        }
    }

    /// A record waits again that may have been passed by already.
    pub(super) fn rewind_drain(&mut self, id: RecordId) {
        if let Some(drain) = &mut self.drain
            && drain.after >= id
        {
            drain.after = RecordId(id.0 - 1);
            // A page that is being read begins behind it.
            drain.stage = Stage::Start;
        }
    }

    /// Begins to hand what waits to any session that can receive it.
    pub(super) fn drain_to_anyone(&mut self) {
        let able = self.sessions.available().filter(|s| s.priority >= 0).max_by_key(|s| s.priority);
        if let Some(id) = able.map(|s| s.id) {
            self.start_drain(id);
        }
    }

    /// True when something was done.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Some(drain) = &mut self.drain {
            let able =
                |id: SessionId| self.sessions.get(id).is_some_and(|s| s.is_available() && s.priority >= 0);
            if !able(drain.session) {
                // Another session goes on where this one ended, if there is one. What this one
                // held waits again, so it begins anew.
                let Some(other) = self.sessions.available().find(|s| s.priority >= 0) else {
                    self.drain = None;
                    return true;
                };
                drain.session = other.id;
                drain.after = RecordId(0);
                drain.stage = Stage::Start;
            }
            match &mut drain.stage {
                Stage::Start => {
                    self.records.forget_gone(&self.router.intake);
                    let read = self.router.intake.backend().read(
                        self.queue.clone(),
                        Some(drain.after),
                        PAGE,
                        PAGE_BYTES,
                    );
                    drain.stage = Stage::Loading(read);
                }
                Stage::Paused(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if !left.is_zero() {
                        wheel::wake_after(left, cx.waker().clone());
                        return progress;
                    }
                    drain.stage = Stage::Start;
                }
                Stage::Loading(loading) => {
                    let Poll::Ready(result) = loading.as_mut().poll(cx) else { return progress };
                    // What the route has not handled yet comes by mail, and waits then.
                    let seen = self.records.seen;
                    let result = result.map(|mut page| {
                        page.retain(|record| record.id.0 <= seen);
                        page
                    });
                    match result {
                        Err(error) => {
                            tracing::error!(account = %self.account, %error, "messages that wait could not be read");
                            self.drain = None;
                        }
                        // One that came while the last page was being read is behind it.
                        Ok(page) if page.is_empty() && drain.after.0 >= self.records.newest_waiting => {
                            self.drain = None;
                        }
                        Ok(page) if page.is_empty() => {
                            // What was counted has left the queue otherwise.
                            self.records.newest_waiting = drain.after.0;
                            drain.stage = Stage::Start;
                        }
                        Ok(page) => self.hand_over(page),
                    }
                }
            }
            progress = true;
        }
        progress
    }

    fn hand_over(&mut self, page: Vec<Record>) {
        let Some((session, mut after)) = self.drain.as_ref().map(|drain| (drain.session, drain.after)) else {
            return;
        };
        let mut stage = Stage::Start;
        for record in page {
            let taken = self.records.is_taken(record.id);
            let stanza = if taken { None } else { self.readable(&record) };
            if let Some(stanza) = stanza {
                let copy = self.late_copy(record.id, &stanza, record.since);
                match self.try_give(session, &copy, Some(record.id)) {
                    Given::Taken => self.records.hold_waiting(record.id, stanza.len()),
                    // One that is gone says so by mail, which ends the pause.
                    Given::Full | Given::Gone => {
                        stage = Stage::Paused(Instant::now() + PAUSE);
                        break;
                    }
                }
            }
            after = record.id;
        }
        if let Some(drain) = &mut self.drain {
            drain.after = after;
            drain.stage = stage;
        }
    }

    /// The stanza of a record, if it is one that waits for a session of the account. What the
    /// account sent itself waits for nothing but its archive.
    fn readable(&self, record: &Record) -> Option<Stanza> {
        match Stanza::parse(&record.payload) {
            Ok(stanza) => {
                let ours = stanza.to().is_some_and(|to| to.bare_eq(&self.account));
                let message = stanza.kind() == waystation_core::Kind::Message;
                (ours && message).then_some(stanza)
            }
            Err(error) => {
                // Only a bug writes such a record. It stays where it is, for people to look at.
                tracing::error!(account = %self.account, id = record.id.0, ?error, "a record is no stanza");
                None
            }
        }
    }
}
