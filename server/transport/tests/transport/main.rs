//! The transport against real clients: rustls, OpenSSL, and hand-made bytes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attacks;
mod certificates;
mod common;
mod connecting;
mod handshake;
mod listening;
mod openssl;
mod piped;
mod records;
mod servers;
mod transfer;
