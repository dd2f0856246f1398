//! TLS on rustls' unbuffered API.
//!
//! `session` is one session of either side over shared scratch memory, `drive` its loops around rustls;
//! `probe` watches the server's handshake for what the unbuffered API does not report (server name,
//! certificate, exporter); `acceptor` holds certificates and settings, `connector` what is the client's side
//! of them; `anyone` takes the certificates of other servers; `certificate` reads and checks certificate
//! files; `accept` is TLS for those who read and write a stream of bytes; `development` makes self-signed
//! certificates.

mod accept;
pub(crate) mod acceptor;
mod anyone;
pub(crate) mod certificate;
pub(crate) mod connector;
pub(crate) mod development;
mod drive;
pub(crate) mod exporter;
pub(crate) mod info;
pub(crate) mod probe;
pub(crate) mod session;
