//! A WebSocket connection, as the body of the HTTP response that opened it: whoever sends the body
//! drives it.
//!
//! What must hold: there is no task behind it. It is asked for more only when the socket takes more,
//! and then it looks at the server's side first, so a client that does not read is not read from;
//! while a full pipe holds back what the client sent, nothing is read either. The pipe is closed in
//! order when the server has ended its stream, and else dropped: then the server takes the client
//! for lost, and its session can be resumed.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use actix_web::dev::Payload;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use tokio::time::{Sleep, sleep};
use waystation_transport::PipeEnd;

use crate::frame::{CloseCode, PIECE, write_close, write_pong};
use crate::inbound::{Inbound, Input};
use crate::outbound::Outbound;
use crate::quota::Quota;

/// Bytes that may be under way in each direction between here and the server's stream.
pub(crate) const PIPE_CAPACITY: usize = 16 * 1024;
/// Bytes of input that are looked at before others have their turn.
const BUDGET: usize = 64 * 1024;
/// How long the client has for its half of the closing handshake (RFC 6455 7.1.1).
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// The same when its half cannot be told from what else it sends, for want of frames.
const DISCARD_DEADLINE: Duration = Duration::from_secs(1);
/// Most bytes that are read and thrown away meanwhile.
const DISCARD_BYTES: usize = 256 * 1024;

/// Most bytes of a message.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) pre_auth: usize,
    pub(crate) authenticated: usize,
}

/// The connection.
pub(crate) struct Connection {
    payload: Payload,
    peer: SocketAddr,
    limits: Limits,
    /// Read and not yet looked at.
    input: Bytes,
    inbound: Inbound,
    /// For the server, when the pipe was full: from `sent` on.
    to_server: Vec<u8>,
    sent: usize,
    pipe: Option<PipeEnd>,
    outbound: Outbound,
    /// Frames for the client.
    out: BytesMut,
    quota: Quota,
    phase: Phase,
}

enum Phase {
    Open,
    /// The client sent what ends its stream; only the server has something to say.
    Faulted,
    Closing(Closing),
    Done,
}

/// Our close frame is on its way.
struct Closing {
    deadline: Pin<Box<Sleep>>,
    left: usize,
    /// What the client sends can still be told apart.
    in_frames: bool,
}

impl Connection {
    pub(crate) fn new(payload: Payload, pipe: PipeEnd, peer: SocketAddr, limits: Limits) -> Self {
        tracing::debug!(%peer, "WebSocket opened");
        Self {
            payload,
            peer,
            limits,
            input: Bytes::new(),
            inbound: Inbound::new(limits.pre_auth),
            to_server: Vec::new(),
            sent: 0,
            pipe: Some(pipe),
            outbound: Outbound::new(),
            out: BytesMut::new(),
            quota: Quota::new(Instant::now()),
            phase: Phase::Open,
        }
    }

    /// Does what can be done, until there is something for the client. Ready as well when the phase
    /// has changed.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Phase::Closing(_) = self.phase {
            ready!(self.discard(cx));
            self.phase = Phase::Done;
            return Poll::Ready(());
        }
        if self.read_server(cx) {
            return Poll::Ready(());
        }
        let mut budget = BUDGET;
        loop {
            ready!(self.write_server(cx));
            if !matches!(self.phase, Phase::Open) {
                return if self.out.is_empty() { Poll::Pending } else { Poll::Ready(()) };
            }
            if self.input.is_empty() {
                if !self.out.is_empty() {
                    return Poll::Ready(());
                }
                if budget == 0 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                match ready!(Pin::new(&mut self.payload).poll_next(cx)) {
                    Some(Ok(bytes)) => self.input = bytes,
                    // Without the end of its stream: lost.
                    Some(Err(_)) | None => {
                        tracing::debug!(peer = %self.peer, "WebSocket lost");
                        self.pipe = None;
                        self.phase = Phase::Done;
                        return Poll::Ready(());
                    }
                }
                budget = budget.saturating_sub(self.input.len());
            }
            self.read_client();
            if matches!(self.phase, Phase::Closing(_)) {
                return Poll::Ready(());
            }
        }
    }

    /// Takes what the server has sent. True if there is something for the client, or the phase has
    /// changed.
    fn read_server(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let Some(pipe) = &mut self.pipe else { return true };
            let mut bytes = Vec::new();
            match pipe.poll_read(cx, &mut bytes) {
                Poll::Pending => return false,
                Poll::Ready(None) => {
                    self.close(CloseCode::Away, true);
                    return true;
                }
                Poll::Ready(Some(())) => {}
            }
            let found = match self.outbound.add(&bytes, &mut self.out) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(peer = %self.peer, %error, "the server's own stream cannot be read");
                    self.close(CloseCode::Internal, true);
                    return true;
                }
            };
            if found.authenticated {
                self.inbound.authenticated(self.limits.authenticated);
            }
            if found.closed {
                if let Some(pipe) = self.pipe.take() {
                    pipe.close();
                }
                self.close(CloseCode::Normal, true);
            }
            if !self.out.is_empty() {
                return true;
            }
        }
    }

    /// Hands the server what waits for it.
    fn write_server(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pipe) = &mut self.pipe {
            while self.sent < self.to_server.len() {
                match ready!(pipe.poll_write(cx, &self.to_server[self.sent..])) {
                    Ok(written) => self.sent += written,
                    // Its side is gone, as reading from it says next.
                    Err(_) => {
                        cx.waker().wake_by_ref();
                        break;
                    }
                }
            }
        }
        self.to_server = Vec::new();
        self.sent = 0;
        Poll::Ready(())
    }

    /// Looks at what the client sent, up to the next element.
    fn read_client(&mut self) {
        let mut scratch = [0; PIECE];
        while self.to_server.is_empty() && matches!(self.phase, Phase::Open) {
            let mut rest = &self.input[..];
            let input = self.inbound.next(&mut rest, &mut scratch, &mut self.to_server);
            let used = self.input.len() - rest.len();
            let nothing = match input {
                Ok(Input::NeedMore | Input::Element) => false,
                Ok(Input::Fault) => {
                    self.phase = Phase::Faulted;
                    false
                }
                Ok(Input::Nothing) => true,
                Ok(Input::Ping(payload)) => {
                    write_pong(payload, &mut self.out);
                    true
                }
                Ok(Input::Close(code)) => {
                    write_close(code.unwrap_or(CloseCode::Normal as u16), &mut self.out);
                    self.closing(Duration::ZERO, false);
                    false
                }
                Err(code) => {
                    tracing::debug!(peer = %self.peer, ?code, "WebSocket ended for what the client sent");
                    self.close(code, false);
                    false
                }
            };
            if nothing && !self.quota.take(Instant::now()) {
                tracing::debug!(peer = %self.peer, "WebSocket ended for frames that say nothing");
                self.out.clear();
                self.close(CloseCode::Policy, true);
            }
            self.input.advance(used);
            if self.input.is_empty() {
                // It may be a part of a larger buffer.
                self.input = Bytes::new();
                break;
            }
        }
    }

    /// Says why the connection ends. Without an orderly end before, the pipe is lost for the server.
    fn close(&mut self, code: CloseCode, in_frames: bool) {
        write_close(code as u16, &mut self.out);
        let deadline = if in_frames { CLOSE_DEADLINE } else { DISCARD_DEADLINE };
        self.closing(deadline, in_frames);
    }

    fn closing(&mut self, deadline: Duration, in_frames: bool) {
        self.pipe = None;
        self.to_server = Vec::new();
        self.sent = 0;
        let deadline = Box::pin(sleep(deadline));
        self.phase = Phase::Closing(Closing { deadline, left: DISCARD_BYTES, in_frames });
    }

    /// Waits for the client's close frame or its end, throwing away what else it sends: closing a
    /// socket with unread input resets it, and the client could miss our last words.
    fn discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Closing(closing) = &mut self.phase else { return Poll::Ready(()) };
        loop {
            if closing.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if closing.in_frames && self.inbound.finds_close(&self.input) {
                return Poll::Ready(());
            }
            self.input = match ready!(Pin::new(&mut self.payload).poll_next(cx)) {
                Some(Ok(bytes)) if bytes.len() < closing.left => bytes,
                _ => return Poll::Ready(()),
            };
            closing.left -= self.input.len();
        }
    }
}

impl Stream for Connection {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if !this.out.is_empty() {
                return Poll::Ready(Some(Ok(std::mem::take(&mut this.out).freeze())));
            }
            if matches!(this.phase, Phase::Done) {
                return Poll::Ready(None);
            }
            ready!(this.turn(cx));
        }
    }
}
