//! Client to server: from an accepted connection to a bound session (RFC 6120).
//!
//! What must hold: nothing a client sends before authentication acts on anything but its own
//! negotiation; what arrived before TLS is never taken for XML after it (T1); an account's
//! session runs on the arbiter of its route.

mod context;
mod negotiate;
mod sasl;
mod session;
mod stream;

pub use context::{C2s, Limits};
pub use negotiate::accept;
