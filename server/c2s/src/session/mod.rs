//! The session actor: one bound client stream, from bind to its end (RFC 6120 4 and 8).
//!
//! What must hold: the actor drives its socket itself, in one poll per wake: mail out, bytes
//! in, one write. A client that does not read is not read from, and what it is sent waits in
//! its inlet, whose credit bounds it. What was accepted for the client and not handed to the
//! socket goes back to the account's route when the session ends, also when a panic ends it.
//! An idle session holds no buffer.

pub(crate) mod client_state;
mod inbound;
mod keepalive;
mod presence;
mod proof;
mod rate;
pub(crate) mod stream_management;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::{Actor, ActorContext, AsyncContext};
use tokio::time::Sleep;
use waystation_core::xml::Framer;
use waystation_core::{Jid, SessionId, Stanza, StreamCondition, StreamError};
use waystation_route::mail::STANZA_OVERHEAD;
use waystation_route::{AccountMail, Detachment, Receipts, Recent, SessionMail};
use waystation_runtime::{DrainSignal, Inlet, after_others};
use waystation_transport::{Connection, Flow, ReadOutcome};

use crate::context::C2s;
use crate::negotiate::security;
use client_state::ClientState;
pub(crate) use inbound::OrderGate;
use inbound::Parked;
use keepalive::Keepalive;
use presence::PresenceRate;
use proof::Proof;
use rate::Bucket;
use stream_management::{Enabling, Kept, StreamManagement};

/// Bytes read from a socket in one turn, so that a flood leaves time for others.
const READ_BUDGET: usize = 32 * 1024;
/// Unsent bytes in the connection above which nothing more is queued into it and nothing is
/// read from the client.
const HIGH_WATER: usize = 64 * 1024;
/// How long the last words of a session may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long the end of a stream waits for what the client sent to be stored. A disk that others
/// keep busy can take seconds for one commit, and only a broken one takes longer than this.
const STORE_DEADLINE: Duration = Duration::from_secs(60);
/// How long input waits when the recipient's route has no credit left.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The client ended its stream: what the socket will still take counts as sent.
    Closed,
    /// The connection broke, or ended without the end of the stream.
    Lost(String),
    /// With a stream error.
    Error(Box<StreamError>),
    /// Another connection resumes the session.
    Resumed,
}

/// What a session begins with.
pub(crate) struct Start {
    pub(crate) shared: Arc<C2s>,
    pub(crate) connection: Connection,
    pub(crate) framer: Framer,
    /// Bytes that were read and not yet looked at.
    pub(crate) backlog: Vec<u8>,
    pub(crate) inlet: Inlet<SessionMail>,
    pub(crate) id: SessionId,
    pub(crate) jid: Jid,
    /// Whose session it is, as authenticated.
    pub(crate) account: Jid,
    pub(crate) lang: Option<Box<str>>,
    pub(crate) drain: DrainSignal,
    /// The state of a session that is resumed, with its key and how long it may be resumed.
    pub(crate) resumed: Option<(u128, Duration, Box<Detachment>)>,
}

/// The actor.
pub(crate) struct Session {
    /// Taken out when the session ends.
    connection: Option<Connection>,
    framer: Framer,
    /// Input that waits: read, but not to be looked at yet.
    backlog: Vec<u8>,
    link: Link,
}

/// All of a session but its connection and its framer, which are borrowed while input is read.
struct Link {
    shared: Arc<C2s>,
    id: SessionId,
    jid: Jid,
    bare: Jid,
    lang: Option<Box<str>>,
    inlet: Inlet<SessionMail>,
    /// Taken from the inlet, not yet in the connection.
    outgoing: VecDeque<Kept>,
    /// In the connection, not yet taken by the socket; kept to be given back. Empty with stream
    /// management, which keeps more.
    unsent: Vec<Kept>,
    /// Records that the socket has taken, of a client without stream management, once there are
    /// some.
    proof: Option<Box<Proof>>,
    client_state: ClientState,
    /// Elements that are no stanzas, to be written before the next stanza.
    elements: Vec<u8>,
    management: Option<Box<StreamManagement>>,
    enabling: Option<Box<Enabling>>,
    /// Stanzas from the client, since it enabled stream management if it did.
    received: u64,
    /// Where the last message went, while the client sends any.
    recent: Option<Box<Recent>>,
    /// Which of them are safe.
    receipts: Receipts,
    /// Those from before it enabled stream management.
    before: Option<Receipts>,
    /// Replies of this very session, made while input is read.
    replies: Vec<Stanza>,
    order: OrderGate,
    parked: Option<Box<Parked>>,
    bucket: Bucket,
    presence_rate: PresenceRate,
    /// Set while input is looked at: how long to pause before the next stanza.
    slow_down: Option<Duration>,
    /// Reading waits for the client to read what it was sent.
    read_held_back: bool,
    /// Set while nothing may be read before a moment.
    pause: Option<Pin<Box<Sleep>>>,
    keepalive: Keepalive,
    end: Option<End>,
    /// The client has ended its stream, and is answered when all that it sent is safe, or then.
    closing: Option<Pin<Box<Sleep>>>,
    started: Instant,
    stanzas_in: u64,
    stanzas_out: u64,
    drain: DrainSignal,
}

impl Actor for Session {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Pump);
    }
}

/// The actor's only spawned item.
struct Pump;

impl ActorFuture<Session> for Pump {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        session: &mut Session,
        ctx: &mut actix::Context<Session>,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        if session.turn(task).is_ready() {
            ctx.stop();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Session {
    /// Starts the actor on the current arbiter.
    pub(crate) fn start_session(start: Start) {
        let Start { shared, connection, framer, backlog, inlet, id, jid, account, lang, drain, resumed } =
            start;
        tracing::info!(
            session = %jid,
            peer = %connection.peer(),
            tls = security(&connection),
            resumed = resumed.is_some(),
            "session started"
        );
        let mut outgoing = VecDeque::new();
        let (mut management, mut receipts, mut received) = (None, Receipts::default(), 0);
        if let Some((key, max, mut state)) = resumed {
            let unconfirmed = std::mem::take(&mut state.unconfirmed);
            outgoing.extend(unconfirmed.into_iter().map(|(stanza, record)| Kept {
                stanza,
                record,
                charged: false,
            }));
            management = Some(Box::new(StreamManagement::resumed(key, max, &mut state)));
            receipts = state.receipts;
            received = state.received;
        }
        let link = Link {
            bucket: Bucket::new(shared.limits.bytes),
            presence_rate: PresenceRate::new(&shared.limits),
            slow_down: None,
            keepalive: Keepalive::new(),
            bare: account,
            shared,
            id,
            jid,
            lang,
            inlet,
            outgoing,
            unsent: Vec::new(),
            proof: None,
            client_state: ClientState::default(),
            elements: Vec::new(),
            management,
            enabling: None,
            received,
            recent: None,
            receipts,
            before: None,
            replies: Vec::new(),
            order: OrderGate::default(),
            parked: None,
            read_held_back: false,
            pause: None,
            end: None,
            closing: None,
            started: Instant::now(),
            stanzas_in: 0,
            stanzas_out: 0,
            drain,
        };
        drop(Self::create(|_| Self { connection: Some(connection), framer, backlog, link }));
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { connection, framer, backlog, link } = self;
        let Some(conn) = connection.as_mut() else { return Poll::Ready(()) };
        link.take_mail(cx);
        if link.end.is_none() {
            link.read(conn, framer, backlog, cx);
        }
        if link.end.is_none() {
            link.poll_enabling(cx);
            link.numbers(cx);
            link.poll_closing(cx);
        }
        if link.end.is_none() {
            link.write(conn, cx);
        }
        if link.read_held_back && conn.queued_bytes() < HIGH_WATER {
            link.read_held_back = false;
            after_others(cx);
        }
        if link.end.is_none() {
            link.keepalive(conn, cx);
        }
        match link.end.take() {
            None => Poll::Pending,
            Some(end) => {
                self.finish(&end);
                Poll::Ready(())
            }
        }
    }

    /// Gives back what is not sent, says the last words and lets the connection go.
    fn finish(&mut self, end: &End) {
        let Some(mut conn) = self.connection.take() else { return };
        let link = &mut self.link;
        link.leave(end);
        let reason = match end {
            End::Resumed => "resumed on another connection".to_owned(),
            End::Closed => "closed by the client".to_owned(),
            End::Lost(why) => format!("connection lost: {why}"),
            End::Error(error) => format!("stream error: {}", error.condition.as_str()),
        };
        tracing::info!(
            session = %link.jid,
            peer = %conn.peer(),
            seconds = link.started.elapsed().as_secs(),
            stanzas_in = link.stanzas_in,
            stanzas_out = link.stanzas_out,
            reason,
            "session ended"
        );
        if matches!(end, End::Lost(_)) {
            return;
        }
        let mut last = Vec::new();
        match end {
            End::Error(error) => error.write(&mut last),
            // XEP-0198 5: the old stream is told.
            End::Resumed => StreamError::new(StreamCondition::Conflict)
                .with_text("resumed on another connection")
                .write(&mut last),
            End::Closed | End::Lost(_) => {}
        }
        last.extend_from_slice(b"</stream:stream>");
        conn.queue_slice(&last);
        let drain = link.drain.clone();
        actix_rt::spawn(async move {
            conn.close(CLOSE_DEADLINE).await;
            drop(drain);
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.connection.take().is_some() {
            self.link.unbind();
        }
    }
}

impl Link {
    fn take_mail(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(mails) = self.inlet.poll_take(cx) {
            // Room for all at once, not in steps; the same where they are moved on.
            self.outgoing.reserve(mails.len());
            for mail in mails {
                match mail {
                    SessionMail::Stanza(stanza) => {
                        self.take_up(Kept { stanza, record: None, charged: true });
                    }
                    SessionMail::Record(stanza, record) => {
                        self.take_up(Kept { stanza, record: Some(record), charged: true });
                    }
                    SessionMail::Yield => {
                        self.end.get_or_insert(End::Resumed);
                    }
                    SessionMail::Close(error) => {
                        self.end.get_or_insert(End::Error(error.into()));
                    }
                }
            }
        }
    }

    /// Reads and handles input, unless something stands against it.
    fn read(
        &mut self,
        conn: &mut Connection,
        framer: &mut Framer,
        backlog: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) {
        if self.closing.is_some() || self.enabling.is_some() {
            return;
        }
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return;
            }
            self.pause = None;
        }
        if !self.retry_parked() {
            return self.pause_reading(BUSY_PAUSE, cx);
        }
        if conn.queued_bytes() >= HIGH_WATER {
            self.read_held_back = true;
            return;
        }
        if !backlog.is_empty() {
            let input = std::mem::take(backlog);
            let used = self.feed(framer, &input);
            if used < input.len() {
                *backlog = input[used..].to_vec();
            }
            if used > 0 {
                // Its answer to a ping may be behind what has to wait.
                self.keepalive.heard();
            }
        }
        if let Some(pause) = self.slow_down.take() {
            return self.pause_reading(pause, cx);
        }
        if self.parked.is_some() {
            return self.pause_reading(BUSY_PAUSE, cx);
        }
        if self.end.is_some() || self.closing.is_some() || self.enabling.is_some() {
            return;
        }
        let outcome = conn.poll_read(cx, READ_BUDGET, &mut |chunk| {
            let used = self.feed(framer, chunk);
            if used < chunk.len() {
                backlog.extend_from_slice(&chunk[used..]);
            }
            let goes_on = backlog.is_empty() && self.end.is_none() && self.slow_down.is_none();
            if goes_on { Flow::Continue } else { Flow::Stop }
        });
        match outcome {
            Poll::Pending => {}
            Poll::Ready(Ok(ReadOutcome::Data { wire, more, .. })) => {
                self.keepalive.heard();
                if let Some(pause) = self.bucket.spend(wire).max(self.slow_down.take()) {
                    self.pause_reading(pause, cx);
                } else if self.parked.is_some() {
                    self.pause_reading(BUSY_PAUSE, cx);
                } else if more {
                    after_others(cx);
                }
            }
            Poll::Ready(Ok(ReadOutcome::Closed)) => {
                self.finish_with(End::Lost(
                    "the client closed the connection without ending its stream".into(),
                ));
            }
            Poll::Ready(Ok(ReadOutcome::Truncated)) => {
                self.finish_with(End::Lost("the connection was cut off".into()));
            }
            Poll::Ready(Err(error)) => self.finish_with(End::Lost(error.to_string())),
        }
    }

    /// The client has ended its stream. Our end of it says that everything is safe (DELIVERY
    /// P7), so it waits for that.
    fn close(&mut self) {
        self.closing = Some(Box::pin(tokio::time::sleep(STORE_DEADLINE)));
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) {
        let Some(deadline) = &mut self.closing else { return };
        let late = deadline.as_mut().poll(cx).is_ready();
        // The receipts wake the task when the last one is in: they were asked in this turn.
        if self.is_clear() {
            self.finish_with(End::Closed);
        } else if late {
            let error = StreamError::new(StreamCondition::InternalServerError)
                .with_text("what was sent could not be stored in time");
            self.finish_with(End::Error(error.into()));
        }
    }

    fn finish_with(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    fn pause_reading(&mut self, how_long: Duration, cx: &mut Context<'_>) {
        let mut sleep = Box::pin(tokio::time::sleep(how_long));
        if sleep.as_mut().poll(cx).is_ready() {
            after_others(cx);
        }
        self.pause = Some(sleep);
    }

    /// Moves mail into the connection and the connection's bytes into the socket.
    fn write(&mut self, conn: &mut Connection, cx: &mut Context<'_>) {
        loop {
            if !self.elements.is_empty() {
                conn.queue_slice(&self.elements);
                self.elements = Vec::new();
            }
            for stanza in std::mem::take(&mut self.replies) {
                queue(conn, &stanza);
                self.stanzas_out += 1;
                if let Some(management) = &mut self.management {
                    management.sent(Kept { stanza, record: None, charged: false });
                }
            }
            if self.management.is_none() {
                self.unsent.reserve(self.outgoing.len());
            }
            while conn.queued_bytes() < HIGH_WATER
                && self.enabling.is_none()
                && !self.is_proof_overdue()
                && let Some(kept) = self.outgoing.pop_front()
            {
                queue(conn, &kept.stanza);
                self.stanzas_out += 1;
                match &mut self.management {
                    Some(management) => management.sent(kept),
                    None => self.unsent.push(kept),
                }
            }
            self.after_sending(conn);
            if conn.queued_bytes() == 0 {
                return;
            }
            match conn.poll_flush(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => return self.finish_with(End::Lost(error.to_string())),
                Poll::Ready(Ok(())) => {
                    self.flushed(cx);
                    if self.outgoing.is_empty() {
                        // Room that a burst needed is not kept by a session that has gone idle.
                        self.unsent = Vec::new();
                        self.outgoing = VecDeque::new();
                    }
                    if self.outgoing.is_empty() && self.replies.is_empty() || self.is_proof_overdue() {
                        return;
                    }
                }
            }
        }
    }

    /// The socket has taken everything.
    fn flushed(&mut self, cx: &mut Context<'_>) {
        let (mut bytes, mut items) = (0, 0);
        for kept in self.unsent.drain(..) {
            if kept.charged {
                bytes += kept.weight();
                items += 1;
            }
            if let Some(record) = kept.record {
                self.proof.get_or_insert_default().flushed(record);
            }
        }
        if items > 0 {
            self.inlet.release(bytes, items);
        }
        self.ask_for_proof(cx);
    }

    /// Leaves the account's route, or waits there to be resumed.
    fn leave(&mut self, end: &End) {
        if matches!(end, End::Closed) && self.management.is_none() {
            // DELIVERY P2: flushed to the stream of a client that closed it properly.
            if let Some(last) = self.proof.as_ref().and_then(|proof| proof.last()) {
                self.shared.router.control(&self.bare, AccountMail::Confirmed(self.id, last));
            }
        }
        let resumable = self.management.as_ref().is_some_and(|management| management.is_resumable());
        let lasts = match end {
            End::Lost(_) | End::Resumed => true,
            // The server comes back, and so does the client.
            End::Error(error) => error.condition == StreamCondition::SystemShutdown,
            End::Closed => false,
        };
        if resumable && lasts { self.detach() } else { self.unbind() }
    }

    fn detach(&mut self) {
        let Some(mut management) = self.management.take() else { return self.unbind() };
        let mut unconfirmed: VecDeque<_> =
            management.take_kept().into_iter().map(|kept| (kept.stanza, kept.record)).collect();
        let sent = unconfirmed.len();
        self.outgoing.extend(self.client_state.take());
        unconfirmed.extend(self.outgoing.drain(..).map(|kept| (kept.stanza, kept.record)));
        if let Some(parked) = self.parked.take() {
            // Not accepted and not counted: the client sends it again.
            self.received -= 1;
            parked.withdraw();
        }
        let (confirmed, marked, notes) = management.into_parts();
        let mut detachment = Detachment {
            unconfirmed,
            sent,
            confirmed,
            received: self.received,
            receipts: std::mem::take(&mut self.receipts),
            marked,
            notes,
            lang: self.lang.take(),
        };
        detachment.take_mail(self.inlet.close());
        self.shared.router.control(&self.bare, AccountMail::Detach(self.id, Box::new(detachment)));
    }

    /// Tells the account's route that the session is over, with what was not sent and is in no
    /// queue.
    fn unbind(&mut self) {
        let mut kept: Vec<_> = self.unsent.drain(..).collect();
        if let Some(management) = &mut self.management {
            kept.extend(management.take_kept());
        }
        kept.extend(self.outgoing.drain(..));
        kept.extend(self.client_state.take());
        let mut leftovers: Vec<_> =
            kept.into_iter().filter(|kept| kept.record.is_none()).map(|kept| kept.stanza).collect();
        leftovers.extend(waystation_route::mail::leftovers(self.inlet.close()));
        if let Some(parked) = self.parked.take() {
            // Not accepted: its sender is the client that is gone.
            let stanza = parked.withdraw();
            tracing::debug!(session = %self.jid, bytes = stanza.len(), "a stanza was not accepted before the end");
        }
        self.shared.router.control(&self.bare, AccountMail::Unbind(self.id, leftovers));
    }
}

/// What a stanza costs of a session's credit.
fn weight(stanza: &Stanza) -> usize {
    stanza.len() + STANZA_OVERHEAD
}

fn queue(conn: &mut Connection, stanza: &Stanza) {
    let (head, tail) = stanza.wire();
    conn.queue(head);
    conn.queue(tail);
}
