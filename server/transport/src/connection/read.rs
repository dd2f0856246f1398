//! Reading: from the socket into the thread's scratch buffer, through TLS if there is any, to the sink.
//!
//! What must stay true: a poll reads about its budget and no more; what TLS has not released is kept with
//! the connection when the poll ends, on every path that leaves the connection usable.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::{Connection, Flow, ReadOutcome};
use crate::error::TransportError;
use crate::pipe::Pipe;
use crate::scratch::{READ_CHUNK, Scratch};

impl Connection {
    /// Reads what the socket has, up to about `budget` bytes of it, and hands it to `sink` in pieces.
    ///
    /// Pending: there is nothing yet, and the waker is registered. With TLS the handshake must be complete.
    /// A connection that reached its end keeps saying so. `budget` must not be 0. If `sink` panics, the
    /// connection must be dropped: what TLS had not released is lost.
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
            match self.wire.read(cx, &mut scratch[..room]) {
                Poll::Pending if bytes == 0 => return Poll::Pending,
                Poll::Pending => return data(bytes, false),
                Poll::Ready(Ok(0)) if bytes == 0 => {
                    let lost = self.wire.pipe().is_some_and(Pipe::is_lost);
                    let end = if lost { ReadOutcome::Truncated } else { ReadOutcome::Closed };
                    return Poll::Ready(Ok(end));
                }
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
                match self.wire.read(cx, &mut scratch[filled..filled + room]) {
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

    /// [`Connection::poll_read`] as a future.
    pub async fn read_some(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(&[u8]) -> Flow,
    ) -> Result<ReadOutcome, TransportError> {
        poll_fn(|cx| self.poll_read(cx, budget, sink)).await
    }
}
