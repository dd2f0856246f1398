//! TLS on rustls' unbuffered API.
//!
//! `session` drives one rustls connection over shared scratch memory; `probe` watches its handshake for what
//! the unbuffered API does not report (server name, certificate, exporter); `acceptor` holds certificates
//! and settings; `certificate` reads and checks certificate files; `accept` is TLS for
//! those who read and write a stream of bytes; `development` makes self-signed ones.

mod accept;
pub(crate) mod acceptor;
pub(crate) mod certificate;
pub(crate) mod development;
pub(crate) mod exporter;
pub(crate) mod info;
pub(crate) mod probe;
pub(crate) mod session;
