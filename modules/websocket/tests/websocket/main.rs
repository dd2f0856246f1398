//! The module on a real HTTP server, with real client streams behind it, against a client that can
//! send anything.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod attacks;
mod client;
#[path = "../../../../server/c2s/tests/common/mod.rs"]
mod common;
mod opening;
mod sessions;
mod xml;
