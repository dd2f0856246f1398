//! Streams that other servers open, played by hand over loopback sockets: what SECURITY.md has of them, and what
//! the specifications say of headers, TLS, SASL EXTERNAL and dialback.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod authority;
mod common;
mod dialback;
mod headers;
mod hostile;
mod management;
mod multiplexing;
mod proof;
