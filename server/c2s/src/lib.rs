//! Client to server: from an accepted connection to a bound session (RFC 6120).
//!
//! What must hold: nothing a client sends before authentication acts on anything but its own
//! negotiation; what arrived before TLS is never taken for XML after it (T1); an account's
//! session runs on the arbiter of its route; a client of a web transport, whose connection is
//! in-process, is treated as one over TCP, save that TLS was below its transport or is nowhere.

mod context;
mod gateway;
mod negotiate;
mod recipients;
mod resume;
mod sasl;
mod session;
mod stream;

pub use context::{C2s, Limits, Rate};
pub use gateway::{accept_authenticated, accept_gateway};
pub use negotiate::accept;
pub use recipients::{RecipientLimit, Recipients};

use waystation_core::module::Spec;

/// What client streams implement.
pub const SPECS: &[Spec] = &[
    Spec { id: "RFC 6120", version: "", title: "Extensible Messaging and Presence Protocol (XMPP): Core" },
    Spec { id: "RFC 7590", version: "", title: "Use of Transport Layer Security (TLS) in XMPP" },
    Spec { id: "XEP-0198", version: "1.6.3", title: "Stream Management" },
    Spec { id: "XEP-0352", version: "1.0.0", title: "Client State Indication" },
    Spec { id: "XEP-0368", version: "1.1.0", title: "SRV records for XMPP over TLS" },
    Spec { id: "XEP-0440", version: "1.0.0", title: "SASL Channel-Binding Type Capability" },
    Spec { id: "XEP-0474", version: "0.5.0", title: "SASL SCRAM Downgrade Protection" },
];
