//! One connection: what carries its bytes, its TLS session if any, and what waits to be sent.
//!
//! Its holder polls it; nothing runs in the background. What must stay true: `queued` is sent after everything in the TLS
//! session's `wire_out`; a poll does a bounded amount of work and, unless it returns a result, has
//! registered a waker.

mod connect;
mod lifecycle;
mod read;
mod wire;
mod write;

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::admission::AddressSlot;
use crate::outgoing::Outgoing;
use crate::pipe::Pipe;
use crate::tls::info::TlsInfo;
use crate::tls::session::TlsSession;
use wire::{DetachedWire, Wire};

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
    /// The peer's FIN came without close_notify, or the other end of a pipe was lost: what it sent may have
    /// been cut off (SECURITY T10).
    Truncated,
}

/// A TCP connection, plain or with TLS, or an in-process one ([`pipe`](crate::pipe())). It belongs to the
/// runtime that it was made in; see [`Connection::detach`] for moving it.
pub struct Connection {
    wire: Wire,
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
    wire: DetachedWire,
    peer: SocketAddr,
    tls: Option<Box<TlsSession>>,
    queued: Outgoing,
    failed: Option<io::Error>,
    closing: Closing,
    slot: Option<AddressSlot>,
}

impl DetachedConnection {
    /// A connection that was just accepted; `stream` must be non-blocking.
    pub fn accepted(stream: std::net::TcpStream, peer: SocketAddr, slot: Option<AddressSlot>) -> Self {
        Self::new(DetachedWire::Tcp(stream), peer, slot)
    }

    /// The server's end of a pipe.
    pub(crate) fn piped(pipe: Pipe, peer: SocketAddr) -> Self {
        Self::new(DetachedWire::Pipe(pipe), peer, None)
    }

    fn new(wire: DetachedWire, peer: SocketAddr, slot: Option<AddressSlot>) -> Self {
        Self {
            wire,
            peer,
            tls: None,
            queued: Outgoing::default(),
            failed: None,
            closing: Closing::Open,
            slot,
        }
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Registers the connection with the current thread's runtime.
    pub fn attach(self) -> io::Result<Connection> {
        Ok(Connection {
            wire: self.wire.attach()?,
            peer: self.peer,
            tls: self.tls,
            queued: self.queued,
            failed: self.failed,
            closing: self.closing,
            slot: self.slot,
        })
    }
}

impl Connection {
    /// A connection without TLS.
    pub fn plain(stream: TcpStream, peer: SocketAddr) -> Self {
        Self {
            wire: Wire::Tcp(stream),
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
            wire: self.wire.detach()?,
            peer: self.peer,
            tls: self.tls,
            queued: self.queued,
            failed: self.failed,
            closing: self.closing,
            slot: self.slot,
        })
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address the peer connected to; an error for an in-process connection, which has none.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.wire.local_addr()
    }

    /// True if nobody on the way can read along: with TLS, and on an in-process connection that was made
    /// as a secure one.
    pub fn is_encrypted(&self) -> bool {
        self.is_tls() || self.wire.pipe().is_some_and(Pipe::is_secure)
    }

    /// True if TLS may be started, on either side: not twice, and not on an in-process connection, where
    /// TLS is below what carries the stream or nowhere.
    pub fn can_start_tls(&self) -> bool {
        !self.is_tls() && self.wire.pipe().is_none()
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

    /// Bytes that wait to be sent: queued ones, and encrypted ones that the socket has not taken. Tickets,
    /// which wait for data to leave with, do not count.
    pub fn queued_bytes(&self) -> usize {
        let encrypted = match &self.tls {
            Some(tls) if !tls.has_only_tickets() => tls.wire_out().len(),
            _ => 0,
        };
        self.queued.len() + encrypted
    }

    /// Queues `bytes` for sending. Large ones are shared, not copied. There is no limit here: the holder
    /// watches [`Connection::queued_bytes`]. Once the connection is being closed nothing is queued any more.
    pub fn queue(&mut self, bytes: &Bytes) {
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
