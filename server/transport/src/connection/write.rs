//! Writing: what is queued, and what TLS has to send, to the socket.
//!
//! What must stay true: bytes leave in the order they were queued in; with TLS, what was encrypted earlier
//! leaves earlier; and nothing is encrypted while the socket takes nothing.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use super::Connection;
use crate::error::TransportError;
use crate::outgoing::Outgoing;
use crate::scratch::{RECORD_PLAIN, Scratch};
use crate::tls::session::TlsSession;

/// Most bytes one `poll_flush` writes before it lets others run.
const FLUSH_BUDGET: usize = 256 * 1024;
/// Most pieces given to one writev.
const IOVECS: usize = 64;

impl Connection {
    /// Sends the alert that goes with a TLS error, as far as the socket takes it.
    pub(super) fn fail<T>(
        &mut self,
        cx: &mut Context<'_>,
        error: TransportError,
    ) -> Poll<Result<T, TransportError>> {
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
            let n = match self.write_plain(cx, FLUSH_BUDGET - written) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return self.write_failed(error),
            };
            written += n;
            self.queued.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    fn write_plain(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<usize>> {
        // Most often small stanzas were gathered into one piece, and need no list of pieces.
        let front = self.queued.front();
        if front.len() == self.queued.len() {
            let front = &front[..front.len().min(limit)];
            return self.wire.write(cx, front);
        }
        let mut slices = [IoSlice::new(&[]); IOVECS];
        let used = self.queued.slices(&mut slices, limit);
        self.wire.write_vectored(cx, &slices[..used])
    }

    fn poll_flush_tls(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        // Tickets leave in one write with the first record, a system call less for each login.
        let joined = !self.queued.is_empty() && self.tls.as_ref().is_some_and(|tls| tls.has_only_tickets());
        if !joined {
            ready!(self.poll_flush_wire(cx))?;
        }
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
            if let Err(error) = ready!(self.wire.poll_write_ready(cx)) {
                return self.write_failed(error);
            }
            let mut scratch = Scratch::write();
            let record = match next_record(&mut self.queued, tls, &mut scratch) {
                Ok(record) => record,
                Err(error) => return self.fail(cx, error),
            };
            let len = record.len();
            written += len;
            if !tls.wire_out().is_empty() {
                // rustls had something to say first.
                tls.push_wire(record);
                drop(scratch);
                ready!(self.poll_flush_wire(cx))?;
                continue;
            }
            match self.wire.write(cx, record) {
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

    /// As [`Connection::poll_flush`], but with TLS the last record is left in the session's output, so that it
    /// leaves in one write with the close_notify that follows.
    pub(super) fn poll_flush_to_last_record(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TransportError>> {
        if self.queued.is_empty() || self.queued.len() > RECORD_PLAIN {
            return self.poll_flush(cx);
        }
        let Some(tls) = &mut self.tls else { return self.poll_flush(cx) };
        let mut scratch = Scratch::write();
        match next_record(&mut self.queued, tls, &mut scratch) {
            Ok(record) => tls.push_wire(record),
            Err(error) => return self.fail(cx, error),
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the TLS session's own output.
    pub(super) fn poll_flush_wire(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let Some(tls) = &mut self.tls else { return Poll::Ready(Ok(())) };
        while !tls.wire_out().is_empty() {
            match ready!(self.wire.write(cx, tls.wire_out())) {
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

    /// [`Connection::poll_flush`] as a future.
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }
}

/// Makes a record of what is queued, in `scratch`.
fn next_record<'s>(
    queued: &mut Outgoing,
    tls: &mut TlsSession,
    scratch: &'s mut [u8],
) -> Result<&'s [u8], TransportError> {
    let (gathered, cipher) = scratch.split_at_mut(RECORD_PLAIN);
    let front = queued.front();
    let plain = if front.len() == queued.len() || front.len() >= RECORD_PLAIN {
        &front[..front.len().min(RECORD_PLAIN)]
    } else {
        let n = queued.copy_front(gathered);
        &gathered[..n]
    };
    let taken = plain.len();
    let len = tls.encrypt(plain, cipher)?;
    queued.advance(taken);
    Ok(&cipher[..len])
}
