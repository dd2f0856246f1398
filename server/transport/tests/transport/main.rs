//! The transport against real clients: rustls, OpenSSL, and hand-made bytes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attacks;
mod certificates;
mod common;
mod handshake;
mod listening;
mod piped;
mod records;
mod transfer;
