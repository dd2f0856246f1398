//! When requests are answered and with what, and how a session ends.

use std::time::{Duration, Instant};

use super::{Answered, Over, Response, Session, StreamEnd, refusal};
use crate::body::Wrapper;
use crate::request::{Condition, Purpose};

/// Bytes of payloads in one response, of which one may exceed this alone. What the client gets at
/// once it acknowledges at once: many small responses keep the server waiting for less.
pub(super) const MAX_RESPONSE: usize = 64 * 1024;
/// Bytes of payloads that may wait for requests, above which the stream is not read. As much as a
/// client gets that asks for many pages of its archive at once.
pub(super) const MAX_WAITING: usize = 1024 * 1024;
/// How long the response that creates a session waits for stream features, when the client
/// wants no waiting: XEP-0206 4 has them in it where possible, and they are almost there.
pub(super) const FEATURES: Duration = Duration::from_millis(500);

impl<T> Session<T> {
    /// Answers what is to be answered by now.
    pub(crate) fn pump(&mut self, now: Instant) {
        while self.over.is_none() && self.farewell.is_none() && self.is_due(now) {
            self.answer(now);
        }
        if self.over.is_some() {
            return;
        }
        if self.farewell.is_some() && !self.pending.is_empty() {
            return self.say_farewell();
        }
        if self.idle_until().is_some_and(|until| until <= now) {
            // 10: without informing the client.
            self.end(if self.farewell.is_some() { Over::Ended } else { Over::Lost });
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let Some(front) = self.pending.front() else { return false };
        if self.closing || !self.may_answer(front) {
            return false;
        }
        let waits = if front.creation.is_some() { self.terms.wait.max(FEATURES) } else { self.terms.wait };
        let pauses = self.pending.iter().any(|pending| matches!(pending.purpose, Purpose::Pause(_)));
        let holds = if front.creation.is_some() { self.terms.hold.max(1) } else { self.terms.hold };
        (!self.outbound.is_empty() && !matches!(front.purpose, Purpose::Pause(_)))
            || self.pending.len() > holds
            || pauses
            || front.report.is_some()
            || now.saturating_duration_since(front.since) >= waits
    }

    fn answer(&mut self, now: Instant) {
        let Some(front) = self.pending.pop_front() else { return };
        let mut wrapper = front.creation.unwrap_or_default();
        // 9.1: all requests up to this one have been received.
        if self.next - 1 != front.rid {
            wrapper.attr("ack", &(self.next - 1).to_string());
        }
        if let Some((rid, at)) = front.report {
            wrapper.attr("report", &rid.to_string());
            let time = now.saturating_duration_since(at).as_millis().min(u128::from(u16::MAX));
            wrapper.attr("time", &time.to_string());
        }
        let mut bytes = 0;
        let pause = match front.purpose {
            Purpose::Pause(seconds) => Some(Duration::from_secs(seconds)),
            _ => None,
        };
        while pause.is_none()
            && let Some(payload) = self.outbound.front()
            && (bytes == 0 || bytes + payload.bytes.len() <= MAX_RESPONSE)
        {
            bytes += payload.bytes.len();
            self.snapshot.got = self.snapshot.got.max(payload.number);
            wrapper.payload(payload);
            self.outbound.pop_front();
        }
        self.outbound_bytes -= bytes;
        let body = wrapper.finish();
        self.snapshot.answered_rid = front.rid;
        self.snapshot.sent = front.sent.unwrap_or(self.snapshot.sent);
        self.snapshot.next_key = front.next_key;
        if pause.is_some() {
            self.snapshot.pause = pause;
        }
        self.answered.push_back(Answered {
            rid: front.rid,
            body: body.clone(),
            key: front.key,
            got: self.snapshot.got,
            at: now,
            empty: bytes == 0,
            repeats: 0,
        });
        self.last_response = now;
        self.changed = true;
        self.responses.push((front.ticket, Response::Body(body)));
    }

    /// When [`pump`](Self::pump) has something to do next, if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let held = self.pending.front().filter(|_| !self.closing).and_then(|front| {
            let wait = if front.creation.is_some() { self.terms.wait.max(FEATURES) } else { self.terms.wait };
            // What is not safe is waited for without a limit.
            self.may_answer(front).then(|| front.since + wait)
        });
        held.or_else(|| self.idle_until())
    }

    /// Until when the client may be silent (10); `None` while it waits for a response.
    fn idle_until(&self) -> Option<Instant> {
        let allowed = self.snapshot.pause.unwrap_or(self.terms.inactivity);
        self.pending.is_empty().then_some(self.last_response + allowed)
    }

    /// The stream is gone, and there is a request to say so to (XEP-0206 6).
    fn say_farewell(&mut self) {
        let Some(end) = self.farewell.take() else { return };
        let (condition, last) = match end {
            StreamEnd::Error(error) => (Some(Condition::RemoteStreamError), Some(error)),
            StreamEnd::Closed => (None, None),
            StreamEnd::Lost => (Some(Condition::RemoteConnectionFailed), None),
            StreamEnd::Internal => (Some(Condition::InternalServerError), None),
        };
        let mut wrapper = Wrapper::terminate(condition);
        // Counted stanzas were not acknowledged, and go to another session: given to this one as
        // well they would be there twice.
        for payload in self.outbound.drain(..).filter(|payload| payload.number == 0).chain(last) {
            wrapper.payload(&payload);
        }
        self.outbound_bytes = 0;
        let mut first = Some(wrapper);
        for pending in std::mem::take(&mut self.pending) {
            let wrapper = first.take().unwrap_or_else(|| Wrapper::terminate(condition));
            self.responses.push((pending.ticket, Response::Body(wrapper.finish())));
        }
        self.end(Over::Ended);
    }

    /// A request broke a rule: it is told which one, and the others that the session is over.
    pub(super) fn fail(&mut self, condition: Condition, ticket: T) {
        for pending in std::mem::take(&mut self.pending) {
            self.respond_with(pending.ticket, Some(Condition::OtherRequest));
        }
        self.respond_with(ticket, Some(condition));
        self.end(Over::Ended);
    }

    /// Ends the session for a reason that lies with the server.
    pub(crate) fn abort(&mut self) {
        if self.over.is_none() {
            self.responses.clear();
            self.farewell = Some(StreamEnd::Internal);
            self.outbound.clear();
            if self.pending.is_empty() { self.end(Over::Ended) } else { self.say_farewell() }
        }
    }

    pub(super) fn respond_with(&mut self, ticket: T, condition: Option<Condition>) {
        let response = refusal(self.terms.legacy, condition);
        self.responses.push((ticket, response));
    }

    pub(super) fn end(&mut self, over: Over) {
        for (_, early) in std::mem::take(&mut self.early) {
            let response = refusal(self.terms.legacy, Some(Condition::OtherRequest));
            self.responses.push((early.ticket, response));
        }
        self.forwards.clear();
        self.over = Some(over);
    }
}
