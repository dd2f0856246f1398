//! A connection's socket as the HTTP library sees it, with the deadlines that the library does not have.
//!
//! What must hold: whatever a client does or leaves undone, one of three clocks runs against it: while a
//! request is awaited or its head is read, while output waits to be taken, or (in [`crate::body`]) while a
//! body is read. No clock of reading runs while a service has a request, so that a long poll may last, nor
//! while a connection is a service's own, as with WebSocket; there the clock of writing is a slow one. A connection that waits for a request ends when the server stops.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use waystation_transport::TlsStream;

use crate::client::Ends;
use crate::settings::Deadlines;

/// What is known of a connection, shared by its socket and its requests.
pub(crate) struct Shared {
    pub(crate) ends: Ends,
    /// Requests so far.
    requests: Cell<u64>,
    /// A service has a request, or its response is being written.
    busy: Cell<bool>,
    /// The connection belongs to a service for good.
    upgraded: Cell<bool>,
    stopping: Cell<bool>,
    /// Polls the connection again.
    reader: RefCell<Option<Waker>>,
}

impl Shared {
    pub(crate) fn new(ends: Ends) -> Self {
        Self {
            ends,
            requests: Cell::new(0),
            busy: Cell::new(false),
            upgraded: Cell::new(false),
            stopping: Cell::new(false),
            reader: RefCell::new(None),
        }
    }

    /// The server stops: no further request is awaited.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        self.wake();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// The connection is no longer HTTP (RFC 9110 15.2.2).
    pub(crate) fn upgrade(&self) {
        self.upgraded.set(true);
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgraded.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}

/// A request that has not been answered to the end.
pub(crate) struct InProgress(Rc<Shared>);

impl InProgress {
    pub(crate) fn new(shared: &Rc<Shared>) -> Self {
        shared.requests.set(shared.requests.get() + 1);
        shared.busy.set(true);
        Self(shared.clone())
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.busy.set(false);
        // The socket's clock starts when it is polled.
        self.0.wake();
    }
}

/// The bytes below HTTP.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the reading clock measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Request,
    Head,
}

/// A socket with its clocks.
pub(crate) struct Socket {
    wire: Wire,
    shared: Rc<Shared>,
    deadlines: Rc<Deadlines>,
    clock: Pin<Box<Sleep>>,
    /// What the clock was set for: after how many requests, and for what.
    set_for: (u64, Awaited),
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(crate) fn new(wire: Wire, shared: Rc<Shared>, deadlines: Rc<Deadlines>) -> Self {
        let clock = Box::pin(tokio::time::sleep(deadlines.head));
        Self { wire, shared, deadlines, clock, set_for: (0, Awaited::Head), stalled: None }
    }

    pub(crate) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    /// Starts the clock, unless it runs for this already.
    fn expect(&mut self, awaited: Awaited) {
        let now = (self.shared.requests.get(), awaited);
        let running = self.set_for == now || self.set_for == (now.0, Awaited::Head);
        if !running {
            self.set_for = now;
            let time = match awaited {
                Awaited::Request => self.deadlines.idle,
                Awaited::Head => self.deadlines.head,
            };
            self.clock.as_mut().reset(Instant::now() + time);
        }
    }

    /// Lets the writing clock run while nothing is taken.
    fn written<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let owned = self.shared.upgraded.get() && self.shared.busy.get();
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let time: Duration = if owned { self.deadlines.owned_write } else { self.deadlines.write };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => outcome,
        }
    }
}

impl AsyncRead for Socket {
    /// Ends, as if the client had closed the connection, when its time is over or the server stops.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waiting = !this.shared.busy.get();
        if waiting && this.shared.stopping.get() {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let outcome = match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if waiting && buf.filled().len() > before {
            this.expect(Awaited::Head);
        }
        if outcome.is_pending() {
            this.shared.reader.replace(Some(cx.waker().clone()));
            if waiting {
                this.expect(Awaited::Request);
                if this.clock.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(()));
                }
            }
        }
        outcome
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.written(outcome, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.wire {
            // There is nothing between it and the kernel; a pending write keeps its clock.
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => {
                let outcome = Pin::new(stream).poll_flush(cx);
                this.written(outcome, cx)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        this.written(outcome, cx)
    }
}
