//! What a finished TLS handshake agreed on.

use std::fmt;
use std::sync::Arc;

/// A TLS protocol version this server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    Tls12,
    /// TLS 1.3, RFC 8446.
    Tls13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        })
    }
}

/// The outcome of a TLS handshake.
pub struct TlsInfo {
    pub(crate) version: TlsVersion,
    pub(crate) cipher_suite: rustls::CipherSuite,
    pub(crate) resumed: bool,
    pub(crate) server_name: Option<Box<str>>,
    pub(crate) exporter: Option<[u8; 32]>,
    pub(crate) server_end_point: Option<Arc<[u8]>>,
}

impl TlsInfo {
    /// The protocol version.
    pub fn version(&self) -> TlsVersion {
        self.version
    }

    /// The cipher suite's registered name, such as `TLS13_AES_128_GCM_SHA256`.
    pub fn cipher_suite(&self) -> &'static str {
        self.cipher_suite.as_str().unwrap_or("unknown")
    }

    /// True when an earlier session was resumed by a ticket.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// The name the client asked for by SNI (a lower-case A-label), if any. The client chose it: the
    /// stream's `to` decides the host, never this (SECURITY T7). `None` where the client was this server.
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Channel binding `tls-exporter`, RFC 9266. `None` on TLS 1.2 without the extended master secret, where
    /// the type is not defined, and where the client was this server: it never binds to a channel.
    pub fn tls_exporter(&self) -> Option<&[u8; 32]> {
        self.exporter.as_ref()
    }

    /// Channel binding `tls-server-end-point`, RFC 5929 section 4: the hash of the certificate this server
    /// presented. `None` when the certificate's signature algorithm has no single hash (such as Ed25519), and
    /// where this server was the client.
    pub fn tls_server_end_point(&self) -> Option<&[u8]> {
        self.server_end_point.as_deref()
    }
}

impl fmt::Debug for TlsInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsInfo")
            .field("version", &self.version)
            .field("cipher_suite", &self.cipher_suite())
            .field("resumed", &self.resumed)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
