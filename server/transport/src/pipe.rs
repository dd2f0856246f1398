//! In-process connections: a pair of bounded byte queues between a [`Connection`](crate::Connection) and a
//! [`PipeEnd`], which may live on another thread.
//!
//! What must stay true:
//! - At most `capacity` bytes wait in each direction; whoever writes more waits for the reader.
//! - A direction in which nothing waits holds no buffer.
//! - What was written before a writer went away is still read, as over TCP; what nobody can read any more is
//!   given back at once.
//! - State changes and wakers are under one lock per direction, so no wake-up is lost; wakers run outside of
//!   it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::connection::DetachedConnection;

/// Makes an in-process connection: what [`DetachedConnection::attach`] gives works as that of a socket does,
/// without TLS, and `PipeEnd` is the client's end of it.
///
/// `peer` is what [`Connection::peer`](crate::Connection::peer) says. `secure` tells that nobody can read
/// along on the way from the client to here
/// ([`Connection::is_encrypted`](crate::Connection::is_encrypted)). `capacity` is in bytes, for each
/// direction; 0 counts as 1.
pub fn pipe(peer: SocketAddr, secure: bool, capacity: usize) -> (DetachedConnection, PipeEnd) {
    let shared =
        Arc::new(Shared { to_server: Direction::new(capacity), to_client: Direction::new(capacity) });
    let server = Pipe { shared: shared.clone(), secure };
    (DetachedConnection::piped(server, peer), PipeEnd { shared, orderly: false })
}

struct Shared {
    to_server: Direction,
    to_client: Direction,
}

/// One direction of a pipe.
struct Direction {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    writer: Writer,
    reader_gone: bool,
    reader_waker: Option<Waker>,
    writer_waker: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Open,
    /// It has said that this was all.
    Finished,
    /// It was dropped before it said so.
    Lost,
}

impl Direction {
    fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can leave a state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `most` bytes and hands them to `take` in up to two pieces; 0 is the end.
    fn read(&self, cx: &mut Context<'_>, most: usize, mut take: impl FnMut(&[u8])) -> Poll<usize> {
        let mut state = self.lock();
        let count = state.waiting.len().min(most);
        if count == 0 {
            if state.writer == Writer::Open && most > 0 {
                register(&mut state.reader_waker, cx);
                return Poll::Pending;
            }
            return Poll::Ready(0);
        }
        let (first, second) = state.waiting.as_slices();
        let from_first = first.len().min(count);
        take(&first[..from_first]);
        take(&second[..count - from_first]);
        if count == state.waiting.len() {
            state.waiting = VecDeque::new();
        } else {
            state.waiting.drain(..count);
        }
        let waker = state.writer_waker.take();
        drop(state);
        wake(waker);
        Poll::Ready(count)
    }

    /// Adds what there is room for, at least a byte of it. An error when nobody will read it.
    fn write<'a>(
        &self,
        cx: &mut Context<'_>,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<Result<usize, PipeClosed>> {
        let mut state = self.lock();
        if state.reader_gone {
            return Poll::Ready(Err(PipeClosed));
        }
        let mut written = 0;
        for piece in pieces {
            let room = self.capacity - state.waiting.len();
            if room == 0 && !piece.is_empty() {
                if written == 0 {
                    register(&mut state.writer_waker, cx);
                    return Poll::Pending;
                }
                break;
            }
            let count = piece.len().min(room);
            state.waiting.extend(&piece[..count]);
            written += count;
        }
        let waker = state.reader_waker.take();
        drop(state);
        wake(waker);
        Poll::Ready(Ok(written))
    }

    /// The writer writes no more; what it said of its end first stays.
    fn end(&self, how: Writer) {
        let mut state = self.lock();
        if state.writer == Writer::Open {
            state.writer = how;
        }
        let waker = state.reader_waker.take();
        state.writer_waker = None;
        drop(state);
        wake(waker);
    }

    /// The reader reads no more.
    fn abandon(&self) {
        let mut state = self.lock();
        state.reader_gone = true;
        state.reader_waker = None;
        state.waiting = VecDeque::new();
        let waker = state.writer_waker.take();
        drop(state);
        wake(waker);
    }

    fn is_lost(&self) -> bool {
        self.lock().writer == Writer::Lost
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The server's end, in the place of a socket.
pub(crate) struct Pipe {
    shared: Arc<Shared>,
    secure: bool,
}

impl Pipe {
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// True if the client's end was dropped, not closed.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.to_server.is_lost()
    }

    /// Reads once. The end, of either kind, is 0.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<usize> {
        let mut filled = 0;
        self.shared.to_server.read(cx, buffer.len(), |piece| {
            buffer[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        })
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let pieces = slices.iter().map(|slice| &**slice);
        self.shared.to_client.write(cx, pieces).map_err(|PipeClosed| io::ErrorKind::BrokenPipe.into())
    }

    /// Says that no more will be written.
    pub(crate) fn shut_down(&self) {
        self.shared.to_client.end(Writer::Finished);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.shared.to_client.end(Writer::Lost);
        self.shared.to_server.abandon();
    }
}

/// The server's side of an in-process connection is gone: nobody will read what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server's side of the connection is gone")]
pub struct PipeClosed;

/// The client's end of an in-process connection. It belongs to no runtime.
///
/// Dropped, it is a connection that was lost: the server reads what was written, and then
/// [`ReadOutcome::Truncated`](crate::ReadOutcome::Truncated). What the server had sent and nobody read is
/// gone, and its next write fails. [`PipeEnd::close`] is the orderly end.
pub struct PipeEnd {
    shared: Arc<Shared>,
    orderly: bool,
}

impl PipeEnd {
    /// Appends all that the server has sent, at most the pipe's capacity. `None`: the server's end of it, and
    /// it keeps saying so. Pending: there is nothing yet, and the waker is registered.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut Vec<u8>) -> Poll<Option<()>> {
        let count = self.shared.to_client.read(cx, usize::MAX, |piece| into.extend_from_slice(piece));
        count.map(|count| (count > 0).then_some(()))
    }

    /// [`PipeEnd::poll_read`] as a future. Nothing is lost if it is dropped.
    pub async fn read(&mut self, into: &mut Vec<u8>) -> Option<()> {
        poll_fn(|cx| self.poll_read(cx, into)).await
    }

    /// Writes as much of `bytes` as there is room for, and says how much that was: at least 1 unless `bytes`
    /// is empty. Pending: there is no room, and the waker is registered.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, PipeClosed>> {
        self.shared.to_server.write(cx, std::iter::once(bytes))
    }

    /// Writes all of `bytes`, waiting for room. If it is dropped, a part of them may have been written.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), PipeClosed> {
        while !bytes.is_empty() {
            let written = poll_fn(|cx| self.poll_write(cx, bytes)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// True if the server's side was dropped without having been shut down. Not known before
    /// [`PipeEnd::poll_read`] has found the end.
    pub fn is_lost(&self) -> bool {
        self.shared.to_client.is_lost()
    }

    /// Ends the connection in order: the server reads what was written, and then
    /// [`ReadOutcome::Closed`](crate::ReadOutcome::Closed).
    pub fn close(mut self) {
        self.orderly = true;
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.shared.to_server.end(if self.orderly { Writer::Finished } else { Writer::Lost });
        self.shared.to_client.abandon();
    }
}

impl std::fmt::Debug for PipeEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipeEnd").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_pipe_holds_no_buffer() {
        let (_server, mut end) = pipe(([127, 0, 0, 1], 1).into(), true, 1 << 20);
        let cx = &mut Context::from_waker(Waker::noop());
        let held = |end: &PipeEnd| {
            end.shared.to_server.lock().waiting.capacity() + end.shared.to_client.lock().waiting.capacity()
        };
        assert_eq!(held(&end), 0);
        assert_eq!(end.poll_write(cx, &[7; 1000]), Poll::Ready(Ok(1000)));
        assert!(held(&end) >= 1000);
        let server = Pipe { shared: end.shared.clone(), secure: true };
        assert_eq!(server.poll_read(cx, &mut [0; 600]), Poll::Ready(600));
        assert_eq!(server.poll_read(cx, &mut [0; 600]), Poll::Ready(400));
        let Poll::Ready(Ok(5)) = server.poll_write(cx, &[IoSlice::new(b"he"), IoSlice::new(b"llo")]) else {
            panic!("there is room");
        };
        let mut got = Vec::new();
        assert_eq!(end.poll_read(cx, &mut got), Poll::Ready(Some(())));
        assert_eq!((held(&end), &got[..]), (0, &b"hello"[..]));
        assert!(size_of::<Shared>() <= 256, "{}", size_of::<Shared>());
    }
}
