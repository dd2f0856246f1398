//! The end of a stream in order (RFC 6120 4.4), and the moments at which it is due.
//!
//! What must hold: our end tag says that everything the peer sent is safe (DELIVERY P7), so it waits for that
//! when the peer has ended the stream first; behind it nothing is written; each wait has a deadline.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use waystation_core::{StreamCondition, StreamError};
use waystation_route::Receipts;
use waystation_runtime::DrainSignal;
use waystation_transport::{Connection, Flow, ReadOutcome};

use super::{End, Link, Outgoing, PATIENCE};

/// How long the end waits for what the peer sent to be stored.
const STORE_DEADLINE: Duration = Duration::from_secs(60);
/// How long it waits for what was sent to be acknowledged, and then for the peer's end tag: a peer may have
/// to store something before it says it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// The same while the server stops.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes behind the peer's end that are thrown away in one turn.
const DRAIN_BUDGET: usize = 16 * 1024;

/// How far the end has come.
#[derive(Default)]
pub(super) struct Closing {
    /// Resolves when the server stops.
    stopping: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// We want to end the stream, and why.
    wanted: Option<Wanted>,
    /// The peer has ended its side, then.
    peer: Option<Instant>,
    /// Our end tag is in the connection, since then.
    tag: Option<Instant>,
}

struct Wanted {
    why: &'static str,
    error: Option<StreamError>,
    since: Instant,
    answer: Duration,
}

impl Closing {
    /// Ready to be told that the server stops.
    pub(super) fn new(mut drain: DrainSignal) -> Self {
        Self { stopping: Some(Box::pin(async move { drain.started().await })), ..Self::default() }
    }

    /// Stanzas may be put into the connection.
    pub(super) fn may_write(&self) -> bool {
        self.wanted.is_none() && self.peer.is_none() && self.tag.is_none()
    }

    /// Nothing more comes from the peer.
    pub(super) fn peer_ended(&self) -> bool {
        self.peer.is_some()
    }

    pub(super) fn tag_sent(&self) -> bool {
        self.tag.is_some()
    }
}

impl Link {
    /// Ends the stream when the server stops.
    pub(super) fn watch_drain(&mut self, cx: &mut Context<'_>) {
        let Some(stopping) = &mut self.closing.stopping else { return };
        if stopping.as_mut().poll(cx).is_ready() {
            self.closing.stopping = None;
            let error = Some(StreamCondition::SystemShutdown.into());
            self.want_to_end("the server stops", error, SHUTDOWN_DEADLINE);
        }
    }

    fn want_to_end(&mut self, why: &'static str, error: Option<StreamError>, answer: Duration) {
        match &mut self.closing.wanted {
            None => self.closing.wanted = Some(Wanted { why, error, since: Instant::now(), answer }),
            Some(wanted) => wanted.answer = wanted.answer.min(answer),
        }
    }

    /// The connection is gone. That matters only while something is open: a peer that was told of the end
    /// may go without a word.
    pub(super) fn gone(&mut self, why: String) {
        let settled = self.outgoing.iter().flatten().all(Outgoing::is_settled);
        match &self.closing.wanted {
            Some(wanted) if settled && self.closing.tag_sent() => {
                let why = wanted.why;
                self.finish_with(End::Ended(why));
            }
            _ => self.finish_with(End::Lost(why)),
        }
    }

    /// The peer has ended its side of the stream.
    pub(super) fn peer_ends(&mut self) {
        self.closing.peer.get_or_insert_with(Instant::now);
    }

    /// Looks whether the stream is to be ended, and how far that has come.
    pub(super) fn close(&mut self, conn: &mut Connection, cx: &mut Context<'_>) {
        if self.end.is_some() {
            return;
        }
        if self.initiated {
            let all_want = self.outgoing.iter().flatten().all(|outgoing| outgoing.closing().is_some());
            let done = self.outgoing.iter().flatten().all(|outgoing| outgoing.has_written_all());
            if all_want && done && self.joining.is_none() {
                self.want_to_end("it is not needed any more", None, ANSWER_DEADLINE);
            }
        } else {
            self.let_go(cx);
        }
        let now = Instant::now();
        let safe = self.receipts.is_clear() && self.before.as_ref().is_none_or(Receipts::is_clear);
        if let Some(peer) = self.closing.peer {
            if let Some(tag) = self.closing.tag {
                if safe && conn.queued_bytes() == 0 {
                    return self.last_look(tag, conn, cx);
                }
            } else if safe {
                return self.say_the_end(conn);
            }
            if now >= peer + STORE_DEADLINE {
                let error = StreamError::new(StreamCondition::InternalServerError)
                    .with_text("what was sent could not be stored in time");
                return self.finish_with(End::Error(error.into()));
            }
            return self.alarm.wake_at(peer + STORE_DEADLINE, cx);
        }
        let Some(wanted) = &self.closing.wanted else { return };
        let late = wanted.since + wanted.answer;
        if let Some(tag) = self.closing.tag {
            let deadline = tag + wanted.answer;
            if now >= deadline {
                return self.gone("the peer did not answer the end of the stream".into());
            }
            return self.alarm.wake_at(deadline, cx);
        }
        let acknowledged = self.management.as_ref().is_none_or(|management| management.is_settled());
        if acknowledged || now >= late {
            return self.say_the_end(conn);
        }
        self.alarm.wake_at(late, cx);
    }

    /// Both sides have ended the stream, and all is out. A peer that answered our end has read what was before
    /// it. One that ended first reads on to our end, and shows that by the end of the connection in order
    /// (RFC 6120 4.4).
    fn last_look(&mut self, tag: Instant, conn: &mut Connection, cx: &mut Context<'_>) {
        if let Some(wanted) = &self.closing.wanted {
            return self.finish_with(End::Ended(wanted.why));
        }
        let settled = self.outgoing.iter().flatten().all(Outgoing::is_settled);
        if settled || self.management.is_some() {
            return self.finish_with(End::Ended("the peer ended it"));
        }
        let lost = match conn.poll_read(cx, DRAIN_BUDGET, &mut |_| Flow::Continue) {
            Poll::Ready(Ok(ReadOutcome::Closed)) => return self.finish_with(End::Ended("the peer ended it")),
            Poll::Ready(Ok(ReadOutcome::Data { .. })) => {
                self.again = true;
                return;
            }
            Poll::Ready(Ok(ReadOutcome::Truncated)) => "the connection was cut off at the end".to_owned(),
            Poll::Ready(Err(error)) => error.to_string(),
            Poll::Pending if Instant::now() < tag + SHUTDOWN_DEADLINE => {
                return self.alarm.wake_at(tag + SHUTDOWN_DEADLINE, cx);
            }
            Poll::Pending => "the peer did not close the connection".to_owned(),
        };
        self.finish_with(End::Lost(lost));
    }

    fn say_the_end(&mut self, conn: &mut Connection) {
        let error = self.closing.wanted.as_mut().and_then(|wanted| wanted.error.take());
        if let Some(error) = error {
            error.write(&mut self.elements);
        }
        self.elements.extend_from_slice(b"</stream:stream>");
        conn.queue_slice(&std::mem::take(&mut self.elements));
        self.closing.tag = Some(Instant::now());
    }

    /// Ends a stream that carries nothing, and one whose peer does not read or answer.
    pub(super) fn watch(&mut self, conn: &Connection, cx: &mut Context<'_>) {
        if self.end.is_some() {
            return;
        }
        let now = Instant::now();
        if conn.queued_bytes() > 0 {
            if now >= self.taken + PATIENCE {
                return self.finish_with(End::Lost("the peer does not read what it is sent".into()));
            }
            self.alarm.wake_at(self.taken + PATIENCE, cx);
        }
        if let Some(since) = self.management.as_ref().and_then(|management| management.asked_since()) {
            if now >= since + PATIENCE {
                let error = "the peer does not acknowledge what it is sent".to_owned();
                return self.finish_with(End::Lost(error));
            }
            self.alarm.wake_at(since + PATIENCE, cx);
        }
        let idle = self.federation.settings.idle;
        if idle.is_zero() || !self.closing.may_write() {
            return;
        }
        if now >= self.carried + idle && self.joining.is_none() {
            self.want_to_end("it carried nothing for a while", None, ANSWER_DEADLINE);
            self.again = true;
        } else {
            self.alarm.wake_at(self.carried + idle, cx);
        }
    }
}
