//! One connection: a socket, its TLS session if any, and what waits to be sent.
//!
//! Its holder polls it; nothing runs in the background. What must stay true: `queued` is sent after everything in the TLS
//! session's `wire_out`; a poll does a bounded amount of work and, unless it returns a result, has
//! registered a waker.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::admission::AddressSlot;
use crate::error::TransportError;
use crate::outgoing::Outgoing;
use crate::scratch::{READ_CHUNK, RECORD_PLAIN, Scratch};
use crate::tls::acceptor::TlsAcceptor;
use crate::tls::info::TlsInfo;
use crate::tls::session::TlsSession;

/// Most bytes one `poll_flush` writes before it lets others run.
const FLUSH_BUDGET: usize = 256 * 1024;
/// Most pieces given to one writev.
const IOVECS: usize = 64;
/// Most bytes read and thrown away while closing, so that the peer gets to see our last words instead of a
/// reset.
const LINGER_BYTES: usize = 256 * 1024;
/// How long an active handshake counts against the limit of concurrent ones.
const HANDSHAKE_TURN: Duration = Duration::from_secs(1);

/// What a sink wants after a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// More, if there is more.
    Continue,
    /// Nothing more in this read.
    Stop,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The connection is open.
    Data {
        /// Bytes handed to the sink.
        bytes: usize,
        /// Bytes taken from the socket: with TLS the larger number, and the one that limits should count,
        /// since a peer can send many records that hold nothing.
        wire: usize,
        /// True if the read ended for its budget or its sink: more may be waiting, and no waker is
        /// registered, so read again soon.
        more: bool,
    },
    /// The peer is done sending: by close_notify, or by FIN on a connection without TLS.
    Closed,
    /// The peer's FIN came without close_notify: what it sent may have been cut off (SECURITY T10).
    Truncated,
}

/// A TCP connection, plain or with TLS. It belongs to the runtime that it was made in; see
/// [`Connection::detach`] for moving it.
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Box<TlsSession>>,
    queued: Outgoing,
    failed: Option<io::Error>,
    closing: Closing,
    slot: Option<AddressSlot>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    Notified,
    Lingering { left: usize },
    Done,
}

/// A [`Connection`] that belongs to no runtime, on its way to another thread.
pub struct DetachedConnection {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    tls: Option<Box<TlsSession>>,
    queued: Outgoing,
    slot: Option<AddressSlot>,
}

impl DetachedConnection {
    /// A connection that was just accepted; `stream` must be non-blocking.
    pub fn accepted(stream: std::net::TcpStream, peer: SocketAddr, slot: Option<AddressSlot>) -> Self {
        Self { stream, peer, tls: None, queued: Outgoing::default(), slot }
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Registers the connection with the current thread's runtime.
    pub fn attach(self) -> io::Result<Connection> {
        Ok(Connection {
            stream: TcpStream::from_std(self.stream)?,
            peer: self.peer,
            tls: self.tls,
            queued: self.queued,
            failed: None,
            closing: Closing::Open,
            slot: self.slot,
        })
    }
}

impl Connection {
    /// A connection without TLS.
    pub fn plain(stream: TcpStream, peer: SocketAddr) -> Self {
        Self {
            stream,
            peer,
            tls: None,
            queued: Outgoing::default(),
            failed: None,
            closing: Closing::Open,
            slot: None,
        }
    }

    /// Takes the connection off its runtime, with its TLS session and everything that waits in it, so that it can be moved to another thread and attached there.
    pub fn detach(self) -> io::Result<DetachedConnection> {
        Ok(DetachedConnection {
            stream: self.stream.into_std()?,
            peer: self.peer,
            tls: self.tls,
            queued: self.queued,
            slot: self.slot,
        })
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address the peer connected to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// True if TLS was started, its handshake complete or not.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What the TLS handshake agreed on; `None` without TLS and until the handshake is complete.
    pub fn tls_info(&self) -> Option<&TlsInfo> {
        self.tls.as_ref()?.info()
    }

    /// The protocol agreed by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls.as_ref()?.alpn()
    }

    /// The certificates the peer presented, its own first; empty if none.
    pub fn peer_certificates(&self) -> &[rustls_pki_types::CertificateDer<'static>] {
        self.tls.as_ref().map_or(&[], |tls| tls.peer_certificates())
    }

    /// Bytes that wait to be sent: queued ones, and encrypted ones that the socket has not taken.
    pub fn queued_bytes(&self) -> usize {
        self.queued.len() + self.tls.as_ref().map_or(0, |tls| tls.wire_out().len())
    }

    /// Queues `bytes` for sending. Large ones are shared, not copied. There is no limit here: the holder
    /// watches [`Connection::queued_bytes`]. Once the connection is being closed nothing is queued any more.
    pub fn queue(&mut self, bytes: Bytes) {
        if self.closing == Closing::Open {
            self.queued.push(bytes);
        }
    }

    /// Queues a copy of `bytes` for sending.
    pub fn queue_slice(&mut self, bytes: &[u8]) {
        if self.closing == Closing::Open {
            self.queued.push_slice(bytes);
        }
    }

    /// Reads what the socket has, up to about `budget` bytes of it, and hands it to `sink` in pieces.
    ///
    /// Pending: there is nothing yet, and the waker is registered. With TLS the handshake must be complete.
    /// A connection that reached its end keeps saying so.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        budget: usize,
        sink: &mut dyn FnMut(&[u8]) -> Flow,
    ) -> Poll<Result<ReadOutcome, TransportError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error.into()));
        }
        match &self.tls {
            None => self.poll_read_plain(cx, budget, sink),
            Some(tls) if tls.failed() => Poll::Ready(Err(TransportError::Closed)),
            Some(tls) if tls.is_handshaking() => Poll::Ready(Err(TransportError::HandshakeIncomplete)),
            Some(_) => self.poll_read_tls(cx, budget, sink),
        }
    }

    fn poll_read_plain(
        &mut self,
        cx: &mut Context<'_>,
        budget: usize,
        sink: &mut dyn FnMut(&[u8]) -> Flow,
    ) -> Poll<Result<ReadOutcome, TransportError>> {
        let mut scratch = Scratch::read();
        let mut bytes = 0;
        let data = |bytes, more| Poll::Ready(Ok(ReadOutcome::Data { bytes, wire: bytes, more }));
        while bytes < budget {
            let room = (budget - bytes).min(READ_CHUNK);
            match read(&mut self.stream, cx, &mut scratch[..room]) {
                Poll::Pending if bytes == 0 => return Poll::Pending,
                Poll::Pending => return data(bytes, false),
                Poll::Ready(Ok(0)) if bytes == 0 => return Poll::Ready(Ok(ReadOutcome::Closed)),
                // The end is found again by the next read.
                Poll::Ready(Ok(0)) => return data(bytes, true),
                Poll::Ready(Ok(n)) => {
                    bytes += n;
                    if sink(&scratch[..n]) == Flow::Stop {
                        break;
                    }
                }
                Poll::Ready(Err(error)) if bytes == 0 => return Poll::Ready(Err(error.into())),
                Poll::Ready(Err(error)) => {
                    self.failed = Some(error);
                    return data(bytes, true);
                }
            }
        }
        data(bytes, true)
    }

    fn poll_read_tls(
        &mut self,
        cx: &mut Context<'_>,
        budget: usize,
        sink: &mut dyn FnMut(&[u8]) -> Flow,
    ) -> Poll<Result<ReadOutcome, TransportError>> {
        let Some(tls) = &mut self.tls else { return Poll::Ready(Err(TransportError::Closed)) };
        let mut bytes = 0;
        let mut wire = 0;
        let early = tls.take_early();
        if !early.is_empty() {
            bytes += early.len();
            if sink(&early) == Flow::Stop {
                return Poll::Ready(Ok(ReadOutcome::Data { bytes, wire, more: true }));
            }
        }
        if tls.peer_closed() && bytes == 0 {
            return Poll::Ready(Ok(ReadOutcome::Closed));
        }

        let mut scratch = Scratch::read();
        let mut unread = tls.has_unread();
        let mut filled = tls.load_pending(&mut scratch);
        let mut eof = false;
        let more = loop {
            if unread {
                unread = false;
            } else if wire >= budget {
                break true;
            } else {
                let room = (budget - wire).min(READ_CHUNK).min(scratch.len() - filled);
                match read(&mut self.stream, cx, &mut scratch[filled..filled + room]) {
                    Poll::Pending => break false,
                    Poll::Ready(Ok(0)) => {
                        eof = true;
                        break true;
                    }
                    Poll::Ready(Ok(n)) => {
                        wire += n;
                        filled += n;
                    }
                    Poll::Ready(Err(error)) => {
                        self.failed = Some(error);
                        break true;
                    }
                }
            }
            let progress = match tls.process(&mut scratch[..filled], sink) {
                Ok(progress) => progress,
                Err(error) => return self.fail(cx, error),
            };
            bytes += progress.plain;
            scratch.copy_within(progress.consumed..filled, 0);
            filled -= progress.consumed;
            if tls.has_unread() || tls.peer_closed() {
                break true;
            }
            if filled + READ_CHUNK > scratch.len() {
                // More than one record's worth is unfinished; `keep_pending` judges it.
                break true;
            }
        };
        if let Err(error) = tls.keep_pending(&scratch[..filled]) {
            return self.fail(cx, error);
        }
        drop(scratch);
        // What TLS answered by itself (alerts) goes out with no wait for the next flush.
        if !tls.wire_out().is_empty()
            && let Poll::Ready(Err(error)) = self.poll_flush_wire(cx)
        {
            return Poll::Ready(Err(error));
        }
        if bytes == 0 && wire == 0 {
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(error.into()));
            }
            if eof {
                return Poll::Ready(Ok(ReadOutcome::Truncated));
            }
            if !more {
                return Poll::Pending;
            }
        }
        if bytes == 0 && self.tls.as_ref().is_some_and(|tls| tls.peer_closed()) {
            return Poll::Ready(Ok(ReadOutcome::Closed));
        }
        Poll::Ready(Ok(ReadOutcome::Data { bytes, wire, more }))
    }

    /// Sends the alert that goes with a TLS error, as far as the socket takes it.
    fn fail<T>(&mut self, cx: &mut Context<'_>, error: TransportError) -> Poll<Result<T, TransportError>> {
        let _ = self.poll_flush_wire(cx);
        self.queued.release();
        Poll::Ready(Err(error))
    }

    /// Writes what waits. Ready when nothing waits any more; pending with the waker registered otherwise.
    ///
    /// Plain data goes out in one writev for all pieces. With TLS, records of up to 16 KiB are made as the
    /// socket takes them, and data queued during the handshake waits for its end.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        match &self.tls {
            None => self.poll_flush_plain(cx),
            Some(_) => self.poll_flush_tls(cx),
        }
    }

    fn poll_flush_plain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let mut written = 0;
        while !self.queued.is_empty() {
            if written >= FLUSH_BUDGET {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut slices = [IoSlice::new(&[]); IOVECS];
            let used = self.queued.slices(&mut slices);
            let n = match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..used]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return self.write_failed(error),
            };
            written += n;
            self.queued.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush_tls(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        ready!(self.poll_flush_wire(cx))?;
        let mut written = 0;
        loop {
            let Some(tls) = &mut self.tls else { return Poll::Ready(Err(TransportError::Closed)) };
            if self.queued.is_empty() || tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if written >= FLUSH_BUDGET {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Nothing is encrypted for a socket that takes nothing: it waits as plain, shared bytes.
            if let Err(error) = ready!(self.stream.poll_write_ready(cx)) {
                return self.write_failed(error);
            }
            let mut scratch = Scratch::write();
            let (gathered, cipher) = scratch.split_at_mut(RECORD_PLAIN);
            let front = self.queued.front();
            let plain = if front.len() == self.queued.len() || front.len() >= RECORD_PLAIN {
                &front[..front.len().min(RECORD_PLAIN)]
            } else {
                let n = self.queued.copy_front(gathered);
                &gathered[..n]
            };
            let taken = plain.len();
            let len = match tls.encrypt(plain, cipher) {
                Ok(len) => len,
                Err(error) => return self.fail(cx, error),
            };
            self.queued.advance(taken);
            written += len;
            let record = &cipher[..len];
            if !tls.wire_out().is_empty() {
                // rustls had something to say first.
                tls.push_wire(record);
                drop(scratch);
                ready!(self.poll_flush_wire(cx))?;
                continue;
            }
            match Pin::new(&mut self.stream).poll_write(cx, record) {
                Poll::Ready(Ok(n)) if n == len => {}
                Poll::Ready(Ok(n)) => tls.push_wire(&record[n..]),
                Poll::Pending => {
                    tls.push_wire(record);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return self.write_failed(error),
            }
            drop(scratch);
            ready!(self.poll_flush_wire(cx))?;
        }
    }

    /// Writes the TLS session's own output.
    fn poll_flush_wire(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let Some(tls) = &mut self.tls else { return Poll::Ready(Ok(())) };
        while !tls.wire_out().is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, tls.wire_out())) {
                Ok(n) => tls.advance_wire(n),
                Err(error) => return self.write_failed(error),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write_failed<T>(&mut self, error: io::Error) -> Poll<Result<T, TransportError>> {
        // What waits can never be sent.
        self.queued.release();
        if let Some(tls) = &mut self.tls {
            tls.abandon_wire();
        }
        Poll::Ready(Err(error.into()))
    }

    /// Starts the server side of TLS; the handshake is then driven by [`Connection::poll_handshake`].
    ///
    /// `host` (the stream's `to`) chooses the certificate if the client sends no server name. `leftover` is
    /// what arrived behind `<starttls/>` in the same read: it becomes the first input of TLS, where anything
    /// but a ClientHello fails the handshake (SECURITY T1). Queued bytes (`<proceed/>`) are sent before TLS.
    pub fn start_tls(
        &mut self,
        acceptor: &TlsAcceptor,
        host: Option<&str>,
        leftover: &[u8],
    ) -> Result<(), TransportError> {
        if self.tls.is_some() {
            return Err(TransportError::TlsActive);
        }
        let mut tls = acceptor.start(host)?;
        tls.feed(leftover)?;
        let mut plain = vec![0; self.queued.len()];
        self.queued.copy_front(&mut plain);
        self.queued.release();
        tls.push_wire(&plain);
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Drives the TLS handshake. Ready when it is complete; [`Connection::tls_info`] then has its outcome.
    /// An error ends the connection; an alert was sent if TLS has one for it.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let mut scratch = Scratch::read();
        loop {
            if let Err(error) = ready!(self.poll_flush_wire(cx)) {
                return Poll::Ready(Err(error));
            }
            let Some(tls) = &mut self.tls else { return Poll::Ready(Err(TransportError::Closed)) };
            if !tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let pending = tls.pending_len();
            // Input that came with `start_tls` is looked at before more is read.
            let received = if tls.has_unread() {
                0
            } else {
                match ready!(read(&mut self.stream, cx, &mut scratch[pending..pending + READ_CHUNK])) {
                    Ok(0) => return Poll::Ready(Err(TransportError::HandshakeTruncated)),
                    Ok(n) => n,
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            };
            tls.load_pending(&mut scratch);
            let filled = pending + received;
            let consumed = match tls.process_handshake(&mut scratch[..filled], received) {
                Ok((consumed, _)) => consumed,
                Err(error) => return self.fail(cx, error),
            };
            if let Err(error) = tls.keep_pending(&scratch[consumed..filled]) {
                return self.fail(cx, error);
            }
        }
    }

    /// Ends the connection in order: sends what is queued, close_notify, and FIN, then waits for the peer's
    /// end while throwing away what it still sends (closing a socket with unread input resets it, and the
    /// peer could miss our last words). Ready when the peer is done too, or has sent 256 KiB more; a peer
    /// that does neither is the caller's deadline to decide on. Dropping the connection closes it at once.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        loop {
            match self.closing {
                Closing::Open => {
                    if let Some(tls) = &self.tls
                        && (tls.failed() || tls.is_handshaking())
                    {
                        self.queued.release();
                        ready!(self.poll_flush_wire(cx))?;
                    } else {
                        ready!(self.poll_flush(cx))?;
                        if let Some(tls) = &mut self.tls {
                            // Without it (the keys are used up) the peer still gets the FIN.
                            let _ = tls.close_notify();
                        }
                    }
                    self.closing = Closing::Notified;
                }
                Closing::Notified => {
                    ready!(self.poll_flush_wire(cx))?;
                    ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
                    self.closing = Closing::Lingering { left: LINGER_BYTES };
                }
                Closing::Lingering { left } => {
                    let mut scratch = Scratch::read();
                    match ready!(read(&mut self.stream, cx, &mut scratch[..READ_CHUNK])) {
                        Ok(n) if n > 0 && n < left => {
                            self.closing = Closing::Lingering { left: left - n };
                        }
                        _ => self.closing = Closing::Done,
                    }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// [`Connection::poll_read`] as a future.
    pub async fn read_some(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(&[u8]) -> Flow,
    ) -> Result<ReadOutcome, TransportError> {
        poll_fn(|cx| self.poll_read(cx, budget, sink)).await
    }

    /// [`Connection::poll_flush`] as a future.
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Starts TLS and completes the handshake, within the acceptor's deadline and its limit of handshakes at
    /// once. The turn is waited for once the client's first bytes are there, so that connections that send
    /// nothing take no turn. Arguments as for [`Connection::start_tls`].
    pub async fn handshake(
        &mut self,
        acceptor: &TlsAcceptor,
        host: Option<&str>,
        leftover: &[u8],
    ) -> Result<(), TransportError> {
        let deadline = Instant::now() + acceptor.handshake_deadline();
        self.start_tls(acceptor, host, leftover)?;
        let handshake = async {
            poll_fn(|cx| self.poll_flush_wire(cx)).await?;
            if leftover.is_empty() {
                self.stream.readable().await?;
            }
            // The semaphore is never closed; were it, the handshake would go on without a turn.
            let mut turn = acceptor.handshakes().acquire().await.ok();
            let turn_end = sleep_until(Instant::now() + HANDSHAKE_TURN);
            tokio::pin!(turn_end);
            poll_fn(|cx| {
                if turn.is_some() && turn_end.as_mut().poll(cx).is_ready() {
                    turn = None;
                }
                self.poll_handshake(cx)
            })
            .await
        };
        timeout_at(deadline, handshake).await.unwrap_or(Err(TransportError::HandshakeTimeout))
    }

    /// [`Connection::poll_shutdown`] within `deadline`, then closes whatever is left.
    pub async fn close(mut self, deadline: Duration) {
        // The connection ends either way.
        let _ = tokio::time::timeout(deadline, poll_fn(|cx| self.poll_shutdown(cx))).await;
    }
}

fn read(stream: &mut TcpStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .field("tls", &self.tls_info())
            .field("queued", &self.queued_bytes())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DetachedConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DetachedConnection").field("peer", &self.peer).finish_non_exhaustive()
    }
}
