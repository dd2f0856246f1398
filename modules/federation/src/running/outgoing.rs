//! What a stream is given to send: taken from the inlets of the routes, written in their order, counted,
//! and said to be handed over when the peer has it for certain (DELIVERY P8).
//!
//! What must hold: with stream management only the peer's acknowledgement hands over. Without it a stanza is
//! handed over when the stream stayed up for 30 s after the socket took it, when the peer has answered
//! something that it was asked behind it, or when both sides have ended the stream in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use waystation_core::Stanza;
use waystation_route::remote::{
    EndCause, Pair, StreamEnd, StreamEvents, StreamInfo, StreamMail, StreamRequest,
};
use waystation_runtime::{Inlet, Weigh};
use waystation_transport::Connection;

use super::{End, HIGH_WATER, Link, PATIENCE};
use crate::proof::Question;

/// After this time a stanza that the socket took counts as read.
const SETTLED: Duration = Duration::from_secs(30);
/// Stanzas after which the peer is asked whether it has read them.
const ASK_AFTER: u64 = 500;
/// The same in time; also the shortest time between two questions.
const ASK_AFTER_TIME: Duration = Duration::from_secs(1);

/// One route's share of a stream.
pub(super) struct Outgoing {
    pub(super) pair: Arc<Pair>,
    inlet: Inlet<StreamMail>,
    /// Taken when the route is told of the end.
    events: Option<StreamEvents>,
    /// Taken from the inlet, not yet in the connection.
    waiting: VecDeque<Stanza>,
    /// The route wants nothing more of the stream, since then.
    closing: Option<Instant>,
    /// Stanzas taken from the inlet, put into the connection, taken by the socket, and handed over: each
    /// number includes the next, and all go on from those of the stream before when that is resumed.
    taken: u64,
    written: u64,
    flushed: u64,
    handed: u64,
    /// Those that the peer has acknowledged, and all from before it began to (XEP-0198).
    acknowledged: u64,
    /// Credit of what is in the connection.
    bytes: usize,
    items: usize,
    /// What the socket took when, in steps of a second: at most half a minute of it.
    log: VecDeque<Step>,
    proof: Proof,
}

/// What the socket took within a second.
struct Step {
    from: Instant,
    to: Instant,
    count: u64,
}

/// What the peer was asked.
#[derive(Default)]
struct Proof {
    /// The question that is open, when it was asked, and how many stanzas went before it.
    open: Option<(Question, Instant, u64)>,
    /// Since when something is unproven.
    since: Option<Instant>,
    asked: Option<Instant>,
    /// It never answered: it is not asked any more.
    in_vain: bool,
}

impl Outgoing {
    pub(super) fn new(request: StreamRequest) -> Self {
        let StreamRequest { pair, inlet, events, .. } = request;
        Self {
            pair,
            inlet,
            events: Some(events),
            waiting: VecDeque::new(),
            closing: None,
            taken: 0,
            written: 0,
            flushed: 0,
            handed: 0,
            acknowledged: 0,
            bytes: 0,
            items: 0,
            log: VecDeque::new(),
            proof: Proof::default(),
        }
    }

    /// Says that stanzas may come. With `info.resumed` counts go on from there.
    pub(super) fn up(&mut self, info: StreamInfo) {
        let base = info.resumed.unwrap_or(0);
        (self.taken, self.written, self.flushed, self.handed) = (base, base, base, base);
        self.acknowledged = base;
        if let Some(events) = &self.events {
            events.up(info);
        }
    }

    /// So many are the peer's now.
    pub(super) fn hand(&mut self, count: u64) {
        if count <= self.handed {
            return;
        }
        self.handed = count;
        while self.log.front().is_some_and(|step| step.count <= count) {
            self.log.pop_front();
        }
        if self.handed >= self.flushed {
            self.proof.since = None;
        }
        if let Some(events) = &self.events {
            events.handed(count);
        }
    }

    /// The peer has acknowledged so many more.
    pub(super) fn acknowledge(&mut self, more: u64) {
        self.acknowledged += more;
        self.hand(self.acknowledged);
    }

    /// Acknowledgements begin here: what was written before is settled by time, or with what follows it.
    pub(super) fn begin_acknowledgements(&mut self) {
        self.acknowledged = self.written;
        let now = Instant::now();
        if self.written > self.handed {
            self.log.push_back(Step { from: now, to: now, count: self.written });
        }
        self.proof = Proof::default();
    }

    /// Nothing is under way.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.handed == self.written
    }

    /// The route wants nothing more, since then.
    pub(super) fn closing(&self) -> Option<Instant> {
        self.closing
    }

    /// All that was taken is in the connection.
    pub(super) fn has_written_all(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Hands over what the stream has outlived.
    fn settle(&mut self, now: Instant) {
        let settled = self.log.iter().take_while(|step| step.to + SETTLED <= now).last();
        if let Some(count) = settled.map(|step| step.count) {
            self.hand(count);
        }
    }

    /// The socket has taken what is in the connection. To be settled by time if `log`.
    fn flushed(&mut self, log: bool, now: Instant) {
        if self.items > 0 {
            self.inlet.release(self.bytes, self.items);
            (self.bytes, self.items) = (0, 0);
        }
        if self.flushed == self.written {
            return;
        }
        self.flushed = self.written;
        if !log {
            return;
        }
        self.proof.since.get_or_insert(now);
        match self.log.back_mut() {
            Some(step) if now < step.from + ASK_AFTER_TIME => (step.to, step.count) = (now, self.flushed),
            _ => self.log.push_back(Step { from: now, to: now, count: self.flushed }),
        }
    }

    /// Tells the route that the stream has ended. What was handed over was said before.
    pub(super) fn down(
        mut self,
        cause: EndCause,
        text: String,
        resume: Option<waystation_route::remote::Resume>,
    ) {
        self.inlet.close();
        if let Some(events) = self.events.take() {
            events.down(StreamEnd { cause, text, resume });
        }
    }
}

impl Link {
    /// Takes what the routes want to send. Nothing is taken while there is no saying how it is counted.
    pub(super) fn take_mail(&mut self, cx: &mut Context<'_>) {
        if self.joining.is_some() {
            return;
        }
        for outgoing in self.outgoing.iter_mut().flatten() {
            while let Poll::Ready(mails) = outgoing.inlet.poll_take(cx) {
                for mail in mails {
                    match mail {
                        StreamMail::Stanza(stanza) => {
                            outgoing.taken += 1;
                            outgoing.waiting.push_back(stanza);
                        }
                        mail @ StreamMail::Close => {
                            outgoing.inlet.release(mail.weight(), 1);
                            outgoing.closing.get_or_insert_with(Instant::now);
                        }
                    }
                }
            }
        }
    }

    /// Moves mail into the connection and the connection's bytes into the socket.
    pub(super) fn write(&mut self, conn: &mut Connection, cx: &mut Context<'_>) {
        loop {
            if !self.elements.is_empty() {
                conn.queue_slice(&self.elements);
                self.elements.clear();
            }
            if self.closing.may_write() {
                self.queue_stanzas(conn);
            } else if !self.closing.peer_ended() && !self.closing.tag_sent() {
                // Our end waits for what was sent, of which the peer may have been asked a part.
                self.ask_for_number(conn);
            }
            if conn.queued_bytes() == 0 {
                return;
            }
            let before = conn.queued_bytes();
            let result = conn.poll_flush(cx);
            if conn.queued_bytes() < before {
                self.taken = Instant::now();
            }
            match result {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => return self.finish_with(End::Lost(error.to_string())),
                Poll::Ready(Ok(())) => {
                    let (log, now) = (self.management.is_none(), Instant::now());
                    for outgoing in self.outgoing.iter_mut().flatten() {
                        outgoing.flushed(log, now);
                        if let Some(since) = outgoing.proof.since {
                            self.alarm.wake_at(since + ASK_AFTER_TIME, cx);
                        }
                        if outgoing.waiting.is_empty() {
                            // Room that a burst needed is not kept by a stream that has gone idle.
                            outgoing.waiting = VecDeque::new();
                        }
                    }
                    self.elements = Vec::new();
                    if !self.closing.may_write()
                        || self.outgoing.iter().flatten().all(|o| o.waiting.is_empty())
                    {
                        return;
                    }
                }
            }
        }
    }

    /// One stanza of each in turn, so that none waits for the whole batch of another.
    fn queue_stanzas(&mut self, conn: &mut Connection) {
        let places = self.outgoing.len();
        let mut idle = 0;
        while idle < places && conn.queued_bytes() < HIGH_WATER {
            self.turn = (self.turn + 1) % places;
            let next = self.outgoing[self.turn].as_mut().and_then(|o| Some((o.waiting.pop_front()?, o)));
            let Some((stanza, outgoing)) = next else {
                idle += 1;
                continue;
            };
            idle = 0;
            let (head, tail) = stanza.wire();
            conn.queue(head);
            conn.queue(tail);
            outgoing.written += 1;
            outgoing.bytes += StreamMail::Stanza(stanza).weight();
            outgoing.items += 1;
            self.stanzas_out += 1;
            self.carried = Instant::now();
            if let Some(management) = &mut self.management {
                management.sent(self.turn);
            }
        }
        self.ask_for_number(conn);
    }

    /// Hands over what the peer has read for certain, and asks it where that is unknown.
    pub(super) fn proofs(&mut self, conn: &mut Connection, cx: &mut Context<'_>) {
        if self.end.is_some() {
            return;
        }
        let now = Instant::now();
        for outgoing in self.outgoing.iter_mut().flatten() {
            outgoing.settle(now);
            if let Some((question, asked, count)) = &outgoing.proof.open {
                if question.poll(cx) {
                    let count = *count;
                    outgoing.proof.open = None;
                    outgoing.hand(count);
                } else if now >= *asked + PATIENCE {
                    outgoing.proof.open = None;
                    outgoing.proof.in_vain = true;
                }
            }
            if let Some(step) = outgoing.log.front() {
                self.alarm.wake_at(step.to + SETTLED, cx);
            }
            let proof = &mut outgoing.proof;
            if let Some((_, asked, _)) = &proof.open {
                self.alarm.wake_at(*asked + PATIENCE, cx);
                continue;
            }
            let may_ask = self.management.is_none() && self.closing.may_write() && !proof.in_vain;
            let Some(since) = proof.since.filter(|_| may_ask) else { continue };
            let due = proof.asked.map_or(since, |asked| asked.max(since)) + ASK_AFTER_TIME;
            if now < due && outgoing.flushed - outgoing.handed < ASK_AFTER {
                self.alarm.wake_at(due, cx);
                continue;
            }
            let Some((question, ping)) = self.federation.proofs.ask(&outgoing.pair) else {
                proof.in_vain = true;
                continue;
            };
            proof.open = Some((question, now, outgoing.written));
            proof.asked = Some(now);
            // What is unproven behind it counts from when this is answered.
            proof.since = Some(now);
            let (head, tail) = ping.wire();
            conn.queue(head);
            conn.queue(tail);
        }
    }

    /// The stream has ended: tells all routes.
    pub(super) fn tell_the_end(&mut self, end: &End, reason: &str) {
        if matches!(end, End::Ended(_)) && self.management.is_none() {
            for outgoing in self.outgoing.iter_mut().flatten() {
                outgoing.hand(outgoing.flushed);
            }
        }
        let mut resume = self.leave(end);
        for outgoing in std::mem::take(&mut self.outgoing).into_iter().flatten() {
            let whole = matches!(end, End::Ended(_)) && outgoing.handed == outgoing.taken;
            let cause = if whole { EndCause::Ended } else { EndCause::Failed };
            outgoing.down(cause, reason.to_owned(), resume.take());
        }
    }

    /// Lets routes go that want nothing more, of a stream that is the peer's to end.
    pub(super) fn let_go(&mut self, cx: &mut Context<'_>) {
        let now = Instant::now();
        for place in &mut self.outgoing {
            let Some(since) = place.as_ref().and_then(|outgoing| outgoing.closing) else { continue };
            let settled = place.as_ref().is_some_and(Outgoing::is_settled);
            if !settled && now < since + PATIENCE {
                self.alarm.wake_at(since + PATIENCE, cx);
                continue;
            }
            let Some(outgoing) = place.take() else { continue };
            let cause = if settled { EndCause::Ended } else { EndCause::Failed };
            outgoing.down(cause, "the stream is not needed any more".into(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::Waker;

    use waystation_route::remote::StreamEvent;
    use waystation_runtime::{Outlet, outlet};

    use super::*;

    fn outgoing() -> (Outgoing, Outlet<StreamMail>, Arc<Mutex<Vec<u64>>>) {
        let (outlet, inlet) = outlet(10_000, 10);
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let events = StreamEvents::new(move |event| {
            if let StreamEvent::Handed(count) = event {
                tell.lock().unwrap().push(count);
            }
        });
        let pair = Arc::new(Pair::new("here.test", "there.test"));
        (Outgoing::new(StreamRequest { pair, inlet, events, resume: None }), outlet, told)
    }

    /// So many stanzas are written, and the socket takes them.
    fn write(outgoing: &mut Outgoing, count: u64, at: Instant) {
        (outgoing.taken, outgoing.written) = (outgoing.taken + count, outgoing.written + count);
        outgoing.flushed(true, at);
    }

    #[test]
    fn what_a_stream_has_outlived_for_30_seconds_is_handed_over() {
        let (mut outgoing, _outlet, told) = outgoing();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        // Ten a second, so that there is never a pause of 30 s.
        for tenth in 0..1000u32 {
            let now = start + second * tenth / 10;
            write(&mut outgoing, 1, now);
            outgoing.settle(now);
            let handed = outgoing.handed;
            // Never too early, and at most a second late.
            assert!(handed <= u64::from(tenth.saturating_sub(299)), "{handed} at {tenth}");
            assert!(handed + 11 >= u64::from(tenth.saturating_sub(299)), "{handed} at {tenth}");
            assert!(outgoing.log.len() <= 32, "{}", outgoing.log.len());
        }
        outgoing.settle(start + second * 200);
        assert_eq!(told.lock().unwrap().last(), Some(&1000));
        assert!(outgoing.is_settled() && outgoing.log.is_empty());
        assert!(told.lock().unwrap().windows(2).all(|pair| pair[0] < pair[1]), "it never falls");
    }

    #[test]
    fn credit_comes_back_when_the_socket_has_taken_what_it_is_for() {
        let (mut outgoing, outlet, _) = outgoing();
        let stanza = crate::proof::Proofs::default().ask(&outgoing.pair).unwrap().1;
        for _ in 0..10 {
            assert!(outlet.offer(StreamMail::Stanza(stanza.clone())).is_accepted());
        }
        assert!(outgoing.inlet.poll_take(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(!outlet.offer(StreamMail::Stanza(stanza.clone())).is_accepted(), "taken is not written");
        (outgoing.items, outgoing.bytes) = (10, 10 * StreamMail::Stanza(stanza.clone()).weight());
        write(&mut outgoing, 10, Instant::now());
        assert!(outlet.offer(StreamMail::Stanza(stanza)).is_accepted());
    }

    #[test]
    fn after_a_resumption_counts_go_on() {
        let (mut outgoing, _outlet, told) = outgoing();
        let info = StreamInfo {
            peer: ([127, 0, 0, 1], 1).into(),
            security: "none",
            authenticated: waystation_route::remote::Authenticated::Certificate,
            certificate: None,
            acknowledges: true,
            bidirectional: false,
            resumed: Some(7),
            since: std::time::SystemTime::now(),
        };
        outgoing.up(info);
        write(&mut outgoing, 3, Instant::now());
        outgoing.acknowledge(2);
        outgoing.acknowledge(1);
        assert_eq!(*told.lock().unwrap(), [9, 10]);
        assert!(outgoing.is_settled());
    }
}
