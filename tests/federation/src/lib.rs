//! Servers of several kinds that meet on loopback, and what their users see of each other.
//!
//! What they share is a [`waystation_harness::Network`]: a name server and an authority for certificates, both
//! of the test's own. [`cases`] are what users do across two servers, written for any pair of them: proven between servers
//! that others wrote, and required of this project's.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Kind, Server};

pub mod cases;
pub mod sender;
pub mod talker;

pub use sender::Sender;
pub use talker::Talker;

/// Ends two servers with streams to each other: a peer first, so that ours is left alone and must be as it was
/// before anyone came.
///
/// # Panics
/// As [`Server::finish`] and [`Server::end`] do.
pub fn end(a: Server, b: Server) {
    let (first, last) = if a.config().kind == Kind::Waystation { (b, a) } else { (a, b) };
    first.end();
    last.finish();
}
