//! Starts real servers and drives real streams against them.
//!
//! What integration tests, the scenario runner and the load generator stand
//! on. It uses no crate of the server: it meets the server only on the wire,
//! through its command line and through `/proc`, as a user would.

pub mod bosh;
pub mod client;
pub mod dns;
pub mod error;
pub mod exchange;
pub mod federation;
pub mod http;
pub mod link;
pub mod network;
pub mod pace;
pub mod pattern;
pub mod process;
pub mod sasl;
pub mod scenario;
pub mod server;
pub mod stream;
pub mod tls;
pub mod waystation;
pub mod websocket;
pub mod wire;
pub mod witness;
pub mod xml;

mod negotiation;
mod peers;

pub use bosh::Bosh;
pub use client::{Client, Login, Security};
pub use dns::DnsServer;
pub use error::{Error, Result};
pub use exchange::Exchange;
pub use federation::{Authority, Federation, Proof};
pub use link::{Link, Transport};
pub use network::{Mode, Network, Way};
pub use sasl::Mechanism;
pub use server::{Account, Config, Endpoint, Kind, Server};
pub use stream::RawClient;
pub use websocket::WebSocket;
pub use witness::Witness;
