//! HTTP for browsers: the listeners, what all services on them share, and the seam between web
//! transports (BOSH, WebSocket) and client streams.
//!
//! What must hold: a module that adds a service knows nothing of listeners, and this crate
//! nothing of modules; what a proxy says of a client is believed only if the proxy is trusted.

mod gateway;
mod service;

pub use gateway::Streams;
pub use service::{ClientInfo, WebModule};
