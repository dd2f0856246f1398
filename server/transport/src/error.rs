//! Why a connection failed. Every variant ends the connection.

use std::io;

/// A failure that ends a connection.
///
/// The messages hold no text that a peer chose, so they may be logged.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The socket failed (reset, timed out, unreachable).
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// The peer broke the TLS protocol, or nothing could be agreed with it. An alert was sent where TLS
    /// calls for one.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The handshake was not complete at its deadline.
    #[error("TLS handshake not complete in time")]
    HandshakeTimeout,
    /// The peer closed the connection during the handshake.
    #[error("connection closed during the TLS handshake")]
    HandshakeTruncated,
    /// The peer sent more than 64 KiB before the handshake was complete.
    #[error("TLS handshake too large")]
    HandshakeTooLarge,
    /// Reading was tried before the handshake was complete.
    #[error("TLS handshake not complete")]
    HandshakeIncomplete,
    /// A TLS message was spread over more records than are kept for one connection.
    #[error("TLS message spread over too many records")]
    FragmentsTooLarge,
    /// The keys of a TLS 1.2 session have encrypted as much as they may; the peer has to connect again.
    #[error("TLS keys used up")]
    KeysExhausted,
    /// TLS was started on a connection that has it already.
    #[error("TLS is already active")]
    TlsActive,
    /// The peer sent data between its consent to TLS and TLS itself (SECURITY T2).
    #[error("data before TLS")]
    DataBeforeTls,
    /// The name of the server to connect to is none that TLS could carry.
    #[error("the server's name is no host name")]
    InvalidServerName,
    /// TLS was started on an in-process connection.
    #[error("there is no TLS on an in-process connection")]
    NoSocket,
    /// The connection failed or was shut down before.
    #[error("connection is closed")]
    Closed,
}
