//! The state of a BOSH session (XEP-0124 7 to 17): which requests are due, which are held, what
//! they are answered with. No I/O, no clock: whoever drives it says what happened and when.
//!
//! What must hold: requests are carried out in the order of their IDs, each one once; responses
//! are given in that order as well; a request is answered only when all that it brought is safe;
//! a repeated request gets the very response that the first one got; everything that is kept is
//! bounded by the number of requests that the client may make at once.

mod answer;
mod terms;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use waystation_core::xml::Element;

use crate::body::{Payload, Wrapper};
use crate::keys::{self, Key};
use crate::request::{Condition, Purpose, Request};
use answer::MAX_WAITING;
pub(crate) use terms::{Response, Terms, VERSION, creation, refusal};

/// How often a request may be repeated (14.3).
const MAX_REPEATS: u32 = 20;
/// After this time a response that the client does not acknowledge is reported (9.2).
const REPORT_AFTER: Duration = Duration::from_secs(2);
/// What has to be done for the client on its stream.
#[derive(Debug)]
pub(crate) enum Forward {
    Payload(Element),
    /// A new stream (XEP-0206 5).
    Restart {
        to: Option<String>,
        lang: Option<String>,
    },
    /// All of this request has been forwarded: [`Session::forwarded`] is to be told.
    End(u64),
    /// The client ends the session.
    Close,
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The client has ended it, its stream has ended, or the client broke a rule.
    Ended,
    /// The client was not heard of (10): its stream is lost.
    Lost,
    /// The server stops: the session goes on with the next one.
    Suspended,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// With a stream error, which is given here.
    Error(Payload),
    /// In order.
    Closed,
    /// Without a word.
    Lost,
    /// What the session needs cannot be stored.
    Internal,
}

/// A request that was carried out and is not answered.
struct Pending<T> {
    rid: u64,
    ticket: T,
    since: Instant,
    purpose: Purpose,
    /// Stanzas that the client has sent up to the end of this request, once they are forwarded.
    sent: Option<u64>,
    /// What is said of the session in the response that creates it.
    creation: Option<Wrapper>,
    key: Option<String>,
    /// What the next request's key has to hash to.
    next_key: Option<Key>,
    repeats: u32,
    /// The response to this one is reported (9.2).
    report: Option<(u64, Instant)>,
}

/// A response that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) rid: u64,
    pub(crate) body: Bytes,
    /// The `key` of the request.
    pub(crate) key: Option<String>,
    /// Stanzas that the client has got up to this response.
    pub(crate) got: u64,
    pub(crate) at: Instant,
    pub(crate) empty: bool,
    pub(crate) repeats: u32,
}

/// A request that came before its turn.
struct Early<T> {
    request: Request,
    ticket: T,
    at: Instant,
    repeats: u32,
}

/// What is kept of a session across a restart of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) answered_rid: u64,
    /// Stanzas that the client had sent up to that request.
    pub(crate) sent: u64,
    /// Stanzas that it had got up to that response.
    pub(crate) got: u64,
    /// Those of which it is known.
    pub(crate) confirmed: u64,
    pub(crate) next_key: Option<Key>,
    pub(crate) pause: Option<Duration>,
}

/// A session. `T` is where a response goes.
pub(crate) struct Session<T> {
    terms: Terms,
    /// The ID of the request that is carried out next.
    next: u64,
    early: BTreeMap<u64, Early<T>>,
    pending: VecDeque<Pending<T>>,
    answered: VecDeque<Answered>,
    expected_key: Option<Key>,
    outbound: VecDeque<Payload>,
    outbound_bytes: usize,
    snapshot: Snapshot,
    /// Stanzas of the client that are safe.
    safe: u64,
    /// Nothing is answered: what a successor would have to know is not known yet.
    withheld: bool,
    last_response: Instant,
    /// The last request that was new: when, its ID, and whether it was a poll.
    last_new: Option<(Instant, u64, bool)>,
    /// The client has ended the session.
    closing: bool,
    /// The stream is gone: what the client is told of it.
    farewell: Option<StreamEnd>,
    over: Option<Over>,
    forwards: VecDeque<Forward>,
    responses: Vec<(T, Response)>,
    changed: bool,
}

impl<T> Session<T> {
    /// Creates a session (7). `creation` is what its response says of it.
    pub(crate) fn create(
        terms: Terms,
        request: &Request,
        creation: Wrapper,
        ticket: T,
        now: Instant,
    ) -> Result<Self, (T, Condition)> {
        let Ok(next_key) = keys::accept(None, request.key.as_deref(), request.new_key.as_deref()) else {
            return Err((ticket, Condition::ItemNotFound));
        };
        let mut session = Self::new(
            terms,
            Snapshot { answered_rid: request.rid - 1, sent: 0, got: 0, confirmed: 0, next_key, pause: None },
            VecDeque::new(),
            now,
        );
        session.next = request.rid + 1;
        session.pending.push_back(Pending {
            rid: request.rid,
            ticket,
            since: now,
            purpose: Purpose::Payloads,
            sent: Some(0),
            creation: Some(creation),
            key: request.key.clone(),
            next_key,
            repeats: 0,
            report: None,
        });
        Ok(session)
    }

    /// A session that goes on after a restart of the server.
    pub(crate) fn revive(
        terms: Terms,
        snapshot: Snapshot,
        answered: VecDeque<Answered>,
        now: Instant,
    ) -> Self {
        Self::new(terms, snapshot, answered, now)
    }

    fn new(terms: Terms, snapshot: Snapshot, answered: VecDeque<Answered>, now: Instant) -> Self {
        Self {
            terms,
            next: snapshot.answered_rid + 1,
            early: BTreeMap::new(),
            pending: VecDeque::new(),
            answered,
            expected_key: snapshot.next_key,
            outbound: VecDeque::new(),
            outbound_bytes: 0,
            safe: snapshot.sent,
            withheld: false,
            snapshot,
            last_response: now,
            last_new: None,
            closing: false,
            farewell: None,
            over: None,
            forwards: VecDeque::new(),
            responses: Vec::new(),
            changed: false,
        }
    }

    /// What was agreed on.
    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// True once the client has ended the session.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// What a successor would have to know.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The responses that may be asked for again, oldest first.
    pub(crate) fn answered(&self) -> &VecDeque<Answered> {
        &self.answered
    }

    /// Stanzas that the client is known to have got.
    pub(crate) fn confirmed(&self) -> u64 {
        self.snapshot.confirmed
    }

    /// True when there is room for more payloads, or when nothing is answered before the stream has said
    /// something: that comes behind the payloads, of which the stream's own limits allow only so many.
    pub(crate) fn has_room(&self) -> bool {
        let waits_for_stream =
            self.closing || self.pending.front().is_some_and(|front| !self.may_answer(front));
        waits_for_stream || self.outbound_bytes < MAX_WAITING
    }

    /// True once after [`snapshot`](Self::snapshot) or [`answered`](Self::answered) has changed.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is to be done on the stream next.
    pub(crate) fn next_forward(&mut self) -> Option<Forward> {
        self.forwards.pop_front()
    }

    /// Responses to be given, in this order.
    pub(crate) fn take_responses(&mut self) -> Vec<(T, Response)> {
        std::mem::take(&mut self.responses)
    }

    /// Set once nothing more will happen.
    pub(crate) fn over(&self) -> Option<Over> {
        self.over
    }

    /// A request of this session has arrived.
    pub(crate) fn request(&mut self, request: Request, ticket: T, now: Instant) {
        if self.over.is_some() {
            return self.respond_with(ticket, Some(Condition::ItemNotFound));
        }
        if request.rid < self.next {
            return self.repeat(&request, ticket);
        }
        if let Some(early) = self.early.get_mut(&request.rid) {
            early.repeats += 1;
            let (repeats, same) =
                (early.repeats, keys::same(early.request.key.as_deref(), request.key.as_deref()));
            let former = std::mem::replace(&mut early.ticket, ticket);
            return self.replaced(former, request.rid, repeats, same);
        }
        let extra = usize::from(request.is_extra());
        let most = self.terms.requests + extra;
        if request.rid - self.next >= most as u64 {
            // 14.2
            return self.fail(Condition::ItemNotFound, ticket);
        }
        let outstanding = self.pending.len() + self.early.len() + 1;
        if outstanding > most || self.is_too_soon(&request, outstanding, now) {
            // 11, 12
            return self.fail(Condition::PolicyViolation, ticket);
        }
        self.last_new = Some((now, request.rid, request.is_poll()));
        if request.rid > self.next {
            self.early.insert(request.rid, Early { request, ticket, at: now, repeats: 0 });
            return;
        }
        self.take(request, ticket, now, 0);
        while self.over.is_none()
            && let Some(Early { request, ticket, at, repeats }) = self.early.remove(&self.next)
        {
            self.take(request, ticket, at, repeats);
        }
        self.pump(now);
    }

    /// Polls and empty requests that come too fast.
    fn is_too_soon(&self, request: &Request, outstanding: usize, now: Instant) -> bool {
        let Some((at, rid, was_poll)) = self.last_new else { return false };
        if !request.is_poll() || now.saturating_duration_since(at) >= self.terms.polling {
            return false;
        }
        // Requests on several connections may arrive in another order than they were made in: an empty
        // one is the last of them only if none after it is here.
        if self.early.keys().any(|later| *later > request.rid) {
            return false;
        }
        if self.terms.is_polling() {
            // 12: two polls in a row, the first of which was answered with nothing.
            let empty = self.answered.iter().any(|answered| answered.rid == rid && answered.empty);
            return was_poll && empty && request.rid == rid + 1;
        }
        // 11: as many as are allowed, none of them answered.
        outstanding == self.terms.requests
    }

    /// Carries out a request whose turn it is.
    fn take(&mut self, request: Request, ticket: T, now: Instant, repeats: u32) {
        let Request { rid, purpose, .. } = request;
        let keys =
            keys::accept(self.expected_key.as_ref(), request.key.as_deref(), request.new_key.as_deref());
        // 15.4; 16: no stream has a name here.
        let Ok(next_key) = keys
            .map_err(drop)
            .and_then(|key| if request.stream && !request.payloads.is_empty() { Err(()) } else { Ok(key) })
        else {
            return self.fail(Condition::ItemNotFound, ticket);
        };
        if let Purpose::Pause(seconds) = purpose
            && Duration::from_secs(seconds) > self.terms.max_pause
        {
            return self.fail(Condition::PolicyViolation, ticket);
        }
        self.expected_key = next_key;
        self.next = rid + 1;
        // 10: back to normal with the next request.
        self.snapshot.pause = None;
        let report = self.acknowledgement(&request, now);
        match purpose {
            // XEP-0206 5: payloads of a restart are ignored.
            Purpose::Restart => {
                self.forwards.push_back(Forward::Restart { to: request.to, lang: request.lang });
            }
            Purpose::Payloads | Purpose::Pause(_) | Purpose::Terminate => {
                self.forwards.extend(request.payloads.into_iter().map(Forward::Payload));
            }
        }
        self.forwards.push_back(Forward::End(rid));
        if purpose == Purpose::Terminate {
            self.closing = true;
            self.forwards.push_back(Forward::Close);
        }
        let key = request.key;
        self.pending.push_back(Pending {
            rid,
            ticket,
            since: now,
            purpose,
            sent: None,
            creation: None,
            key,
            next_key,
            repeats,
            report,
        });
    }

    /// What a new request says of the responses before it (9.2); the response that seems to be
    /// missing.
    fn acknowledgement(&mut self, request: &Request, now: Instant) -> Option<(u64, Instant)> {
        let last = self.snapshot.answered_rid;
        // Without acknowledgements a request tells that its client had room for it.
        let most = self.terms.requests as u64 + u64::from(request.is_extra());
        let mut known = request.rid.saturating_sub(most);
        let mut missing = None;
        if self.terms.acks {
            match request.ack {
                Some(ack) => {
                    known = known.max(ack.min(last));
                    missing = self.answered.iter().find(|answered| answered.rid == ack.saturating_add(1));
                }
                None if self.pending.is_empty() => known = known.max(last),
                None => {}
            }
        }
        if request.purpose == Purpose::Terminate {
            // As with a stream that is closed in order, what was handed to HTTP counts as received.
            known = last;
        }
        let report = missing
            .filter(|answered| now.saturating_duration_since(answered.at) >= REPORT_AFTER)
            .map(|answered| (answered.rid, answered.at));
        self.confirm(known);
        report
    }

    fn confirm(&mut self, rid: u64) {
        let got =
            self.answered.iter().rev().find(|answered| answered.rid <= rid).map(|answered| answered.got);
        self.snapshot.confirmed = self.snapshot.confirmed.max(got.unwrap_or(0));
        // 14.3: as many as may be asked for are kept, and one of a pause or an end besides.
        while self.answered.len() > self.terms.requests + 1
            && self.answered.front().is_some_and(|answered| answered.rid <= rid)
        {
            self.answered.pop_front();
        }
    }

    /// A request that was there before (14.3).
    fn repeat(&mut self, request: &Request, ticket: T) {
        let key = request.key.as_deref();
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.rid == request.rid) {
            pending.repeats += 1;
            let (repeats, same) = (pending.repeats, keys::same(pending.key.as_deref(), key));
            let former = std::mem::replace(&mut pending.ticket, ticket);
            return self.replaced(former, request.rid, repeats, same);
        }
        let Some(answered) = self.answered.iter_mut().find(|answered| answered.rid == request.rid) else {
            return self.fail(Condition::ItemNotFound, ticket);
        };
        answered.repeats += 1;
        if !keys::same(answered.key.as_deref(), key) {
            return self.fail(Condition::ItemNotFound, ticket);
        }
        if answered.repeats > MAX_REPEATS {
            return self.fail(Condition::PolicyViolation, ticket);
        }
        let body = answered.body.clone();
        self.responses.push((ticket, Response::Body(body)));
    }

    /// The later one of two equal requests gets the response; the former one is told at once.
    fn replaced(&mut self, former: T, rid: u64, repeats: u32, same: bool) {
        if same && repeats <= MAX_REPEATS {
            let mut wrapper = Wrapper::default();
            wrapper.attr("type", "error");
            return self.responses.push((former, Response::Body(wrapper.finish())));
        }
        let condition = if same { Condition::PolicyViolation } else { Condition::ItemNotFound };
        // The new one is at fault.
        let new = match self.pending.iter_mut().find(|pending| pending.rid == rid) {
            Some(pending) => std::mem::replace(&mut pending.ticket, former),
            None => match self.early.get_mut(&rid) {
                Some(early) => std::mem::replace(&mut early.ticket, former),
                None => former,
            },
        };
        self.fail(condition, new);
    }

    /// All that a request brought is on its way; it is `sent` stanzas in all.
    pub(crate) fn forwarded(&mut self, rid: u64, sent: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.rid == rid) {
            pending.sent = Some(sent);
        }
    }

    /// So many stanzas of the client are safe.
    pub(crate) fn safe(&mut self, count: u64) {
        self.safe = self.safe.max(count);
    }

    /// Whether all responses wait, whatever else is due, until the stream has said something.
    pub(crate) fn withhold(&mut self, withheld: bool) {
        self.withheld = withheld;
    }

    /// True when all that a request brought is safe, and so is its response once it is stored.
    fn may_answer(&self, pending: &Pending<T>) -> bool {
        !self.withheld && pending.sent.is_some_and(|sent| sent <= self.safe)
    }

    /// Something for the client.
    pub(crate) fn outbound(&mut self, payload: Payload) {
        self.outbound_bytes += payload.bytes.len();
        self.outbound.push_back(payload);
    }

    /// The stream is gone.
    pub(crate) fn stream_ended(&mut self, end: StreamEnd) {
        if self.over.is_some() || self.farewell.is_some() {
            return;
        }
        if self.closing && end == StreamEnd::Closed {
            // 13: the oldest request is told, the others are empty.
            for (index, pending) in std::mem::take(&mut self.pending).into_iter().enumerate() {
                let wrapper = if index == 0 { Wrapper::terminate(None) } else { Wrapper::default() };
                self.responses.push((pending.ticket, Response::Body(wrapper.finish())));
            }
            return self.end(Over::Ended);
        }
        self.farewell = Some(end);
    }

    /// The server stops, and the session outlives it.
    pub(crate) fn suspend(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            self.responses.push((pending.ticket, Response::Retry));
        }
        for (_, early) in std::mem::take(&mut self.early) {
            self.responses.push((early.ticket, Response::Retry));
        }
        self.over = Some(Over::Suspended);
    }
}

#[cfg(test)]
mod tests;
