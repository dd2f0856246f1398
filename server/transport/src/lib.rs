//! The byte transport below XMPP streams: TCP, the STARTTLS upgrade and direct TLS; and pipes, over which
//! web transports of the same process speak as clients do over a socket.
//!
//! What this crate owns: sockets, TLS sessions, certificates and listeners. It knows nothing of XML.
//!
//! What must stay true:
//! - A [`Connection`] is driven by whoever holds it, from a poll function; there is no task and no channel
//!   behind it. Every `poll_*` call does a bounded amount of work.
//! - An idle connection holds no buffer: reads and encryption go through scratch memory that the thread's
//!   connections share. What stays with a connection is what the peer has left unfinished (part of a TLS
//!   record) or not yet taken (queued output), both bounded or counted.
//! - Bytes received before TLS starts are never handed out as decrypted data, and no decrypted data is
//!   handed out before the handshake is complete.

mod admission;
mod connection;
mod error;
mod listener;
mod outgoing;
mod pipe;
mod proxy;
mod scratch;
mod tls;

pub use admission::{AddressLimits, AddressSlot, Admission, Refusal};
pub use connection::{Connection, DetachedConnection, Flow, ReadOutcome};
pub use error::TransportError;
pub use ipnet::IpNet;
pub use listener::{Accepted, BindError, Listener};
pub use pipe::{PipeClosed, PipeEnd, pipe};
pub use tls::acceptor::{TlsAcceptor, TlsSettings};
pub use tls::certificate::{CertificateError, CertificateWarning, HostCertificate};
pub use tls::connector::TlsConnector;
pub use tls::development::{DevelopmentCertificate, DevelopmentOrigin, ensure_development_certificate};
pub use tls::info::{TlsInfo, TlsVersion};
pub use tokio_rustls::server::TlsStream;
