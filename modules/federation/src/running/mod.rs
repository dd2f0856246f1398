//! A stream between servers on which stanzas flow, in one direction or in both (RFC 6120 4 and 8, XEP-0288,
//! XEP-0198), from the end of its negotiation to its own.
//!
//! What must hold: one task drives the socket, in one poll per wake: mail out, bytes in, one write. A peer
//! that does not read is not read from, and what it is sent waits in the inlets, whose credit bounds it:
//! the stream itself holds no more than its high-water mark and one batch of mail. Stanzas are never kept
//! to be sent again: what was not handed over is the routes' (DELIVERY P8). Each route that uses the stream
//! is told of its end once, with how much of what it gave has arrived for certain.

mod alarm;
mod closing;
mod incoming;
mod management;
mod outgoing;
mod reverse;
mod taking;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use tokio::time::Sleep;
use waystation_core::xml::{Element, Framer};
use waystation_core::{Stanza, StreamError};
use waystation_route::remote::{Authenticated, StreamInfo, StreamRequest};
use waystation_route::{Passage, Receipts, Recent};
use waystation_runtime::after_others;
use waystation_transport::{Connection, Flow, ReadOutcome, TlsVersion};

use crate::Federation;
use crate::addressing::Proven;
use crate::identity;
use crate::rate::Rate;
use crate::stream::{CLOSE_DEADLINE, Stream};
use alarm::Alarm;
use closing::Closing;
pub(crate) use management::Joining;
use management::Management;
use outgoing::Outgoing;
use reverse::Reverse;
pub(crate) use reverse::ReverseStreams;
use taking::Taking;

/// Bytes read from a socket in one turn, so that a flood leaves time for others.
const READ_BUDGET: usize = 64 * 1024;
/// Unsent bytes in the connection above which nothing more is queued into it and nothing is read.
const HIGH_WATER: usize = 256 * 1024;
/// How long input waits when the recipient's route has no credit left.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long a peer may take to read anything of what it is sent, and to answer what it is asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a stream ends.
#[derive(Debug)]
enum End {
    /// In order: both sides have ended it, and all that was written has been read.
    Ended(&'static str),
    /// The connection broke, or the peer is silent.
    Lost(String),
    /// With a stream error of ours.
    Error(Box<StreamError>),
    /// With one of the peer's.
    Peer(String),
}

/// What a stream's holder does with elements that are neither stanzas nor of stream management: dialback,
/// which goes on while stanzas flow.
pub(crate) trait Extension {
    /// An element of the peer.
    ///
    /// # Errors
    /// What ends the stream.
    fn element(&mut self, element: &Element, ground: &mut Ground<'_>) -> Result<(), StreamError>;

    /// Asked in each turn, after input was looked at.
    ///
    /// # Errors
    /// What ends the stream.
    fn poll(&mut self, cx: &mut Context<'_>, ground: &mut Ground<'_>) -> Result<(), StreamError>;
}

/// What an [`Extension`] may change.
pub(crate) struct Ground<'a> {
    /// The pairs whose stanzas are taken.
    pub(crate) proven: &'a mut Proven,
    /// To be sent to the peer, before any stanza that is not in the connection yet.
    pub(crate) say: &'a mut Vec<u8>,
}

/// What a stream begins with.
pub(crate) struct Start {
    pub(crate) federation: Arc<Federation>,
    /// Negotiated, with the limits of a peer that has proven itself.
    pub(crate) stream: Stream,
    /// We opened the connection.
    pub(crate) initiated: bool,
    /// The pairs whose stanzas are taken; none on a stream that we opened without XEP-0288.
    pub(crate) proven: Proven,
    /// Stanzas flow both ways (XEP-0288).
    pub(crate) bidirectional: bool,
    /// How the peer has proven who it is.
    pub(crate) authenticated: Authenticated,
    /// Who wants to send on it; none at first on a stream that the peer opened.
    pub(crate) request: Option<StreamRequest>,
    /// How to begin with stream management, where we opened the stream and the peer offers it.
    pub(crate) joining: Option<Joining>,
    /// Who deals with other elements.
    pub(crate) extension: Box<dyn Extension>,
}

/// The stream.
struct Running {
    /// Taken out when the stream ends.
    connection: Option<Connection>,
    framer: Framer,
    /// Input that waits: read, but not to be looked at yet.
    backlog: Vec<u8>,
    link: Link,
}

/// All of a stream but its connection and its framer, which are borrowed while input is read.
struct Link {
    federation: Arc<Federation>,
    /// For logs: the first pair.
    name: String,
    initiated: bool,
    proven: Proven,
    /// Of how many of these the routes know.
    announced: usize,
    /// What is known of the stream, for those who send on it.
    info: StreamInfo,
    /// Who sends on it; a place is used again when its route is done with it.
    outgoing: Vec<Option<Outgoing>>,
    /// Whose turn it is to be written.
    turn: usize,
    /// How routes find a stream that the peer opened, when stanzas may flow back on it.
    reverse: Option<Reverse>,
    /// Elements that are no stanzas, to be written before the next stanza.
    elements: Vec<u8>,
    joining: Option<Box<Joining>>,
    management: Option<Box<Management>>,
    /// The peer wants to go on with a stream that it opened before.
    taking: Option<Box<Taking>>,
    extension: Box<dyn Extension>,
    /// Stanzas from the peer, since stream management began if it did.
    received: u64,
    /// Which of them are safe.
    receipts: Receipts,
    /// Those from before stream management.
    before: Option<Receipts>,
    /// Where the last message went.
    recent: Option<Box<Recent>>,
    /// A stanza that found no room; nothing is read until it does.
    parked: Option<(Stanza, Passage)>,
    rate: Rate,
    /// Set while nothing may be read before a moment.
    pause: Option<Pin<Box<Sleep>>>,
    /// Reading waits for the peer to read what it was sent.
    read_held_back: bool,
    closing: Closing,
    /// Something has changed that was looked at before in this turn.
    again: bool,
    alarm: Alarm,
    /// When anything came last, when a stanza went either way last, and when the peer last read something.
    heard: Instant,
    carried: Instant,
    taken: Instant,
    started: Instant,
    stanzas_in: u64,
    stanzas_out: u64,
    end: Option<End>,
}

/// Runs a stream until it ends. Must be called on an arbiter's thread, where it stays.
pub(crate) async fn run(start: Start) {
    let mut running = Running::new(start);
    poll_fn(|cx| running.turn(cx)).await;
    if let Some(connection) = running.finish() {
        let drain = running.link.federation.drain.clone();
        // Everything else of the stream is given back at once.
        drop(running);
        connection.close(CLOSE_DEADLINE).await;
        drop(drain);
    }
}

impl Running {
    fn new(start: Start) -> Self {
        let Start {
            federation,
            stream,
            initiated,
            proven,
            bidirectional,
            authenticated,
            request,
            joining,
            extension,
        } = start;
        let Stream { conn, framer, buffer, .. } = stream;
        let first =
            request.as_ref().map(|request| request.pair.clone()).or_else(|| proven.iter().next().cloned());
        let name = first.as_ref().map_or_else(|| "?".to_owned(), |pair| pair.to_string());
        let info = StreamInfo {
            peer: conn.peer(),
            security: tls_name(&conn),
            authenticated,
            certificate: conn.peer_certificates().first().map(identity::describe),
            acknowledges: false,
            bidirectional,
            resumed: None,
            since: SystemTime::now(),
        };
        tracing::info!(stream = %name, peer = %info.peer, tls = info.security, initiated, bidirectional, "server stream started");
        let (now, drain) = (Instant::now(), federation.drain.clone());
        let reverse = (bidirectional && !initiated).then(|| Reverse::new(&federation));
        let link = Link {
            rate: federation.rates.of(first.as_ref().map_or("", |pair| &pair.remote)),
            federation,
            name,
            initiated,
            proven,
            announced: 0,
            info,
            outgoing: request.into_iter().map(|request| Some(Outgoing::new(request))).collect(),
            turn: 0,
            reverse,
            elements: Vec::new(),
            joining: joining.map(Box::new),
            management: None,
            taking: None,
            extension,
            received: 0,
            receipts: Receipts::default(),
            before: None,
            recent: None,
            parked: None,
            pause: None,
            read_held_back: false,
            closing: Closing::new(drain),
            again: false,
            alarm: Alarm::default(),
            heard: now,
            carried: now,
            taken: now,
            started: now,
            stanzas_in: 0,
            stanzas_out: 0,
            end: None,
        };
        let mut running = Self { connection: Some(conn), framer, backlog: buffer, link };
        if running.link.joining.is_none() {
            running.link.ready();
        }
        running
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { connection, framer, backlog, link } = self;
        let Some(conn) = connection.as_mut() else { return Poll::Ready(()) };
        if conn.queued_bytes() == 0 {
            link.taken = Instant::now();
        }
        link.watch_drain(cx);
        link.join(cx);
        link.take_over(cx);
        link.take_requests(cx);
        link.take_mail(cx);
        link.read(conn, framer, backlog, cx);
        link.extend(cx);
        link.numbers(cx);
        link.proofs(conn, cx);
        link.close(conn, cx);
        if link.end.is_none() {
            link.write(conn, cx);
        }
        if link.closing.tag_sent() {
            // Perhaps it is out already.
            link.close(conn, cx);
        }
        if link.read_held_back && conn.queued_bytes() < HIGH_WATER {
            link.read_held_back = false;
            link.again = true;
        }
        link.watch(conn, cx);
        if std::mem::take(&mut link.again) {
            after_others(cx);
        }
        if link.end.is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Tells the routes, and says the last words. The connection, if it is to be closed in order.
    fn finish(&mut self) -> Option<Connection> {
        let mut conn = self.connection.take()?;
        let link = &mut self.link;
        let end = link.end.take().unwrap_or_else(|| End::Lost("the stream was given up".into()));
        let reason = match &end {
            End::Ended(why) => (*why).to_owned(),
            End::Lost(why) => format!("connection lost: {why}"),
            End::Error(error) => crate::stream::Failure::Error((**error).clone()).to_string(),
            End::Peer(why) => format!("the peer said {why}"),
        };
        tracing::info!(
            stream = %link.name,
            peer = %conn.peer(),
            seconds = link.started.elapsed().as_secs(),
            stanzas_in = link.stanzas_in,
            stanzas_out = link.stanzas_out,
            reason,
            "server stream ended"
        );
        link.close_to_requests();
        link.tell_the_end(&end, &reason);
        let mut last = Vec::new();
        match end {
            End::Lost(_) => return None,
            End::Error(error) => error.write(&mut last),
            End::Ended(_) | End::Peer(_) => {}
        }
        if !link.closing.tag_sent() {
            last.extend_from_slice(b"</stream:stream>");
        }
        conn.queue_slice(&last);
        Some(conn)
    }
}

impl Link {
    /// Stanzas may flow: tells those who want to send.
    fn ready(&mut self) {
        self.info.acknowledges = self.management.is_some();
        for outgoing in self.outgoing.iter_mut().flatten() {
            outgoing.up(self.info.clone());
        }
    }

    /// Lets the extension go on, and has routes find what it has proven: of a stream that the peer opened they
    /// are told that its domain is there, once they can find it.
    fn extend(&mut self, cx: &mut Context<'_>) {
        if self.end.is_some() {
            return;
        }
        let mut ground = Ground { proven: &mut self.proven, say: &mut self.elements };
        if let Err(error) = self.extension.poll(cx, &mut ground) {
            return self.finish_with(End::Error(error.into()));
        }
        if let Some(reverse) = &mut self.reverse {
            reverse.publish(&self.proven);
        }
        if !self.initiated {
            for pair in self.proven.iter().skip(self.announced) {
                self.federation.router.domain_alive(pair);
            }
        }
        self.announced = self.proven.len();
    }

    /// Reads and handles input, unless something stands against it.
    fn read(
        &mut self,
        conn: &mut Connection,
        framer: &mut Framer,
        backlog: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) {
        if self.end.is_some() || self.holds_input() {
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
        }
        if self.parked.is_some() {
            return self.pause_reading(BUSY_PAUSE, cx);
        }
        if self.end.is_some() || self.holds_input() {
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
                self.heard = Instant::now();
                if let Some(pause) = self.rate.spend(wire) {
                    self.pause_reading(pause, cx);
                } else if self.parked.is_some() {
                    self.pause_reading(BUSY_PAUSE, cx);
                } else if more {
                    after_others(cx);
                }
            }
            Poll::Ready(Ok(ReadOutcome::Closed)) => {
                self.finish_with(End::Lost(
                    "the peer closed the connection without ending its stream".into(),
                ));
            }
            Poll::Ready(Ok(ReadOutcome::Truncated)) => {
                self.gone("the connection was cut off".into());
            }
            Poll::Ready(Err(error)) => self.gone(error.to_string()),
        }
    }

    /// Nothing more of what the peer sends is looked at, for good or until it has its answer.
    fn holds_input(&self) -> bool {
        self.closing.peer_ended()
            || self.taking.is_some()
            || self.management.as_ref().is_some_and(|management| management.is_yielding())
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
}

/// The version of TLS, for people.
fn tls_name(conn: &Connection) -> &'static str {
    match conn.tls_info().map(|info| info.version()) {
        None => "none",
        Some(TlsVersion::Tls12) => "TLSv1.2",
        Some(TlsVersion::Tls13) => "TLSv1.3",
    }
}
