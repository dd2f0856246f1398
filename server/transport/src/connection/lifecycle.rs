//! The beginning of TLS and the end of the connection.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::wire::Wire;
use super::{Closing, Connection};
use crate::error::TransportError;
use crate::scratch::{READ_CHUNK, Scratch};
use crate::tls::acceptor::TlsAcceptor;
use crate::tls::session::TlsSession;

/// Most bytes read and thrown away while closing, so that the peer gets to see our last words instead of a
/// reset.
const LINGER_BYTES: usize = 256 * 1024;
/// How long an active handshake counts against the limit of concurrent ones.
const HANDSHAKE_TURN: Duration = Duration::from_secs(1);

impl Connection {
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
        self.check_startable()?;
        let mut tls = acceptor.start(host)?;
        tls.feed(leftover)?;
        self.begin(tls);
        Ok(())
    }

    pub(super) fn check_startable(&self) -> Result<(), TransportError> {
        if self.tls.is_some() {
            return Err(TransportError::TlsActive);
        }
        if self.wire.pipe().is_some() {
            return Err(TransportError::NoSocket);
        }
        Ok(())
    }

    /// Puts the session into place; what is queued is sent before its first record.
    pub(super) fn begin(&mut self, mut tls: TlsSession) -> &mut TlsSession {
        let mut plain = vec![0; self.queued.len()];
        self.queued.copy_front(&mut plain);
        self.queued.release();
        tls.push_wire(&plain);
        self.tls.insert(Box::new(tls))
    }

    /// Drives the TLS handshake. Ready when it is complete; [`Connection::tls_info`] then has its outcome.
    /// An error ends the connection; an alert was sent if TLS has one for it.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let mut scratch = Scratch::read();
        loop {
            if self.tls.as_ref().is_some_and(|tls| tls.has_only_tickets()) {
                return Poll::Ready(Ok(()));
            }
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
                match ready!(self.wire.read(cx, &mut scratch[pending..pending + READ_CHUNK])) {
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
                        ready!(self.poll_flush_to_last_record(cx))?;
                        if let Some(tls) = &mut self.tls {
                            // Without it (the keys are used up) the peer still gets the FIN.
                            let _ = tls.close_notify();
                        }
                    }
                    self.closing = Closing::Notified;
                }
                Closing::Notified => {
                    ready!(self.poll_flush_wire(cx))?;
                    ready!(self.wire.shut_down(cx))?;
                    self.closing = Closing::Lingering { left: LINGER_BYTES };
                }
                Closing::Lingering { left } => {
                    let mut scratch = Scratch::read();
                    match ready!(self.wire.read(cx, &mut scratch[..READ_CHUNK])) {
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
        self.complete(acceptor.handshakes(), deadline, leftover.is_empty()).await
    }

    /// Sends what TLS has to send, and completes the handshake in its turn by `deadline`. The turn is waited
    /// for at once or, with `wait_first`, when the peer's first bytes are there.
    pub(super) async fn complete(
        &mut self,
        handshakes: &Semaphore,
        deadline: Instant,
        wait_first: bool,
    ) -> Result<(), TransportError> {
        let handshake = async {
            poll_fn(|cx| self.poll_flush_wire(cx)).await?;
            if wait_first && let Wire::Tcp(stream) = &self.wire {
                // Not `readable`, which is also true when tokio has not looked yet.
                stream.peek(&mut [0]).await?;
            }
            // The semaphore is never closed; were it, the handshake would go on without a turn.
            let mut turn = handshakes.acquire().await.ok();
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
        let _ = timeout(deadline, poll_fn(|cx| self.poll_shutdown(cx))).await;
    }
}
