//! The session actor: one bound client stream, from bind to its end (RFC 6120 4 and 8).
//!
//! What must hold: the actor drives its socket itself, in one poll per wake: mail out, bytes
//! in, one write. A client that does not read is not read from, and what it is sent waits in
//! its inlet, whose credit bounds it. What was accepted for the client and not handed to the
//! socket goes back to the account's route when the session ends, also when a panic ends it.
//! An idle session holds no buffer.

mod inbound;
mod keepalive;
mod rate;
mod spoof;

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
use waystation_route::{AccountMail, SessionMail};
use waystation_runtime::{DrainSignal, Inlet, Weigh, after_others};
use waystation_transport::{Connection, Flow, ReadOutcome};

use crate::context::C2s;
pub(crate) use inbound::OrderGate;
use inbound::Parked;
use keepalive::Keepalive;
use rate::Bucket;

/// Bytes read from a socket in one turn, so that a flood leaves time for others.
const READ_BUDGET: usize = 32 * 1024;
/// Unsent bytes in the connection above which nothing more is queued into it and nothing is
/// read from the client.
const HIGH_WATER: usize = 64 * 1024;
/// How long the last words of a session may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
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
    Error(StreamError),
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
    pub(crate) lang: Option<Box<str>>,
    pub(crate) drain: DrainSignal,
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
    outgoing: VecDeque<Stanza>,
    /// In the connection, not yet taken by the socket; kept to be given back.
    unsent: Vec<Stanza>,
    /// Replies of this very session, made while input is read.
    replies: Vec<Stanza>,
    order: OrderGate,
    parked: Option<Parked>,
    bucket: Bucket,
    /// Reading waits for the client to read what it was sent.
    read_held_back: bool,
    /// Set while nothing may be read before a moment.
    pause: Option<Pin<Box<Sleep>>>,
    keepalive: Keepalive,
    end: Option<End>,
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
        let Start { shared, connection, framer, backlog, inlet, id, jid, lang, drain } = start;
        tracing::info!(
            session = %jid,
            peer = %connection.peer(),
            tls = %connection.tls_info().map_or_else(|| "none".to_owned(), |t| t.version().to_string()),
            "session started"
        );
        let link = Link {
            bucket: Bucket::new(&shared.limits),
            keepalive: Keepalive::new(),
            bare: jid.to_bare(),
            shared,
            id,
            jid,
            lang,
            inlet,
            outgoing: VecDeque::new(),
            unsent: Vec::new(),
            replies: Vec::new(),
            order: OrderGate::default(),
            parked: None,
            read_held_back: false,
            pause: None,
            end: None,
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
        link.unbind(matches!(end, End::Closed));
        let reason = match end {
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
        if let End::Error(error) = end {
            error.write(&mut last);
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
            self.link.unbind(false);
        }
    }
}

impl Link {
    fn take_mail(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(mails) = self.inlet.poll_take(cx) {
            for mail in mails {
                match mail {
                    SessionMail::Stanza(stanza) => self.outgoing.push_back(stanza),
                    SessionMail::Close(error) => {
                        self.end.get_or_insert(End::Error(error));
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
        }
        if self.parked.is_some() {
            return self.pause_reading(BUSY_PAUSE, cx);
        }
        if self.end.is_some() {
            return;
        }
        let outcome = conn.poll_read(cx, READ_BUDGET, &mut |chunk| {
            let used = self.feed(framer, chunk);
            if used < chunk.len() {
                backlog.extend_from_slice(&chunk[used..]);
            }
            if backlog.is_empty() && self.end.is_none() { Flow::Continue } else { Flow::Stop }
        });
        match outcome {
            Poll::Pending => {}
            Poll::Ready(Ok(ReadOutcome::Data { wire, more, .. })) => {
                self.keepalive.heard();
                if let Some(pause) = self.bucket.spend(wire) {
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
                self.finish_with(End::Lost("the connection ended without a TLS close".into()));
            }
            Poll::Ready(Err(error)) => self.finish_with(End::Lost(error.to_string())),
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
            for stanza in self.replies.drain(..) {
                queue(conn, &stanza);
                self.stanzas_out += 1;
            }
            while conn.queued_bytes() < HIGH_WATER
                && let Some(stanza) = self.outgoing.pop_front()
            {
                queue(conn, &stanza);
                self.stanzas_out += 1;
                self.unsent.push(stanza);
            }
            if conn.queued_bytes() == 0 {
                return;
            }
            match conn.poll_flush(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => return self.finish_with(End::Lost(error.to_string())),
                Poll::Ready(Ok(())) => {
                    let items = self.unsent.len();
                    if items > 0 {
                        let bytes = self.unsent.drain(..).map(|s| SessionMail::Stanza(s).weight()).sum();
                        self.inlet.release(bytes, items);
                    }
                    if self.outgoing.is_empty() {
                        // Room that a burst needed is not kept by a session that has gone idle.
                        self.unsent = Vec::new();
                        self.outgoing = VecDeque::new();
                        return;
                    }
                }
            }
        }
    }

    /// Tells the account's route that the session is over, with what was not sent.
    fn unbind(&mut self, all_sent: bool) {
        let mut leftovers = Vec::new();
        if !all_sent {
            leftovers.append(&mut self.unsent);
        }
        leftovers.extend(self.outgoing.drain(..));
        for mail in self.inlet.close() {
            if let SessionMail::Stanza(stanza) = mail {
                leftovers.push(stanza);
            }
        }
        if let Some(Parked::Route(stanza) | Parked::Outbound(stanza)) = self.parked.take() {
            // Not accepted: its sender is the client that is gone.
            tracing::debug!(session = %self.jid, bytes = stanza.len(), "a stanza was not accepted before the end");
        }
        self.shared.router.control(&self.bare, AccountMail::Unbind(self.id, leftovers));
    }
}

fn queue(conn: &mut Connection, stanza: &Stanza) {
    let (head, tail) = stanza.wire();
    conn.queue(head.clone());
    conn.queue(tail.clone());
}

/// A stream error for what the framer refused.
pub(crate) fn xml_error(error: waystation_core::xml::XmlError) -> StreamError {
    let condition = StreamCondition::from_name(error.condition()).unwrap_or(StreamCondition::NotWellFormed);
    StreamError::new(condition).with_text(error.text())
}
