//! What carries a connection's bytes: a TCP socket, or one end of an in-process pipe.
//!
//! What must stay true: both behave alike for those who read and write, so that nothing above has to know
//! which it is; only TLS is for sockets alone.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::pipe::Pipe;

/// It belongs to the runtime that it was made in.
pub(super) enum Wire {
    Tcp(TcpStream),
    Pipe(Pipe),
}

/// A wire on its way to another thread.
pub(super) enum DetachedWire {
    Tcp(std::net::TcpStream),
    Pipe(Pipe),
}

impl DetachedWire {
    pub(super) fn attach(self) -> io::Result<Wire> {
        Ok(match self {
            Self::Tcp(stream) => Wire::Tcp(TcpStream::from_std(stream)?),
            Self::Pipe(pipe) => Wire::Pipe(pipe),
        })
    }
}

impl Wire {
    pub(super) fn detach(self) -> io::Result<DetachedWire> {
        Ok(match self {
            Self::Tcp(stream) => DetachedWire::Tcp(stream.into_std()?),
            Self::Pipe(pipe) => DetachedWire::Pipe(pipe),
        })
    }

    /// The pipe, if it is one.
    pub(super) fn pipe(&self) -> Option<&Pipe> {
        match self {
            Self::Tcp(_) => None,
            Self::Pipe(pipe) => Some(pipe),
        }
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr(),
            Self::Pipe(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Reads once. The end is 0.
    #[inline]
    pub(super) fn read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
                Poll::Ready(Ok(buffer.filled().len()))
            }
            Self::Pipe(pipe) => pipe.poll_read(cx, buffer).map(Ok),
        }
    }

    #[inline]
    pub(super) fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Pipe(pipe) => pipe.poll_write(cx, &[IoSlice::new(bytes)]),
        }
    }

    #[inline]
    pub(super) fn write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Pipe(pipe) => pipe.poll_write(cx, slices),
        }
    }

    /// Ready when a write may take something.
    pub(super) fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            // It takes something, or makes the writer wait itself.
            Self::Pipe(_) => Poll::Ready(Ok(())),
        }
    }

    /// Says that no more will be written.
    pub(super) fn shut_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Pipe(pipe) => {
                pipe.shut_down();
                Poll::Ready(Ok(()))
            }
        }
    }
}
