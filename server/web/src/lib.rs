//! HTTP for browsers: the listeners, what all services on them share, and the seam between web
//! transports (BOSH, WebSocket) and client streams.
//!
//! What must hold: a module that adds a service knows nothing of listeners, and this crate
//! nothing of modules; what a proxy says of a client is believed only if the proxy is trusted; whatever a
//! client is slow at, it is not waited for without end.

mod body;
mod client;
mod connection;
mod front;
mod gateway;
mod host_meta;
mod listening;
mod service;
mod settings;

pub use gateway::Streams;
pub use host_meta::{HostMeta, Links};
pub use listening::Web;
pub use service::{ClientInfo, WebModule};
pub use settings::{Deadlines, PlainLogin, Settings};

use waystation_core::module::Spec;

/// What this crate implements.
pub const SPECS: &[Spec] =
    &[Spec { id: "XEP-0156", version: "1.4.0", title: "Discovering Alternative XMPP Connection Methods" }];
