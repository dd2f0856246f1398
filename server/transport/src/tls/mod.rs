//! TLS on rustls' unbuffered API.
//!
//! `session` drives one rustls connection over shared scratch memory; `probe` watches its handshake for what
//! the unbuffered API does not report (server name, certificate, exporter); `acceptor` holds certificates
//! and settings; `certificate` reads and checks certificate files; `development` makes self-signed ones.

pub(crate) mod acceptor;
pub(crate) mod certificate;
pub(crate) mod development;
pub(crate) mod exporter;
pub(crate) mod info;
pub(crate) mod probe;
pub(crate) mod session;
