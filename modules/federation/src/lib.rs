//! Streams to and from other servers (RFC 6120, XEP-0220, XEP-0178, XEP-0368, XEP-0288, XEP-0198).
//!
//! What this crate owns: finding a domain's servers, connecting to them, proving who we are and having the
//! peer prove who it is, and the streams once that is done. The queues of what waits for a domain, and when
//! to try again, are the routes' (`waystation_route::remote` is the seam).
//!
//! What must hold: a stanza is taken from a peer only when its sender's domain was proven on that very
//! stream for the domain that it is addressed to, and given to a peer only when that was proven likewise;
//! nothing received before TLS counts after it; a domain served here is never dialled.

mod addressing;
mod dial;
mod dialback;
mod dns;
mod external;
mod federation;
mod findings;
pub mod identity;
mod inbound;
mod initiating;
mod keys;
mod outbound;
mod piggybacking;
mod policy;
mod proof;
mod rate;
mod receiving;
mod resumable;
mod running;
mod settings;
mod stream;
mod trust;

pub use dial::{Dialled, Dialling, Resolver};
pub use dns::ResolverError;
pub use federation::{Federation, FederationParts, StartError};
pub use findings::DialError;
pub use inbound::accept;
pub use policy::Policy;
pub use settings::{DomainPolicy, Settings};
pub use trust::{Trust, TrustError};

use waystation_core::module::{Registration, Spec};

/// What streams between servers implement.
pub const SPECS: &[Spec] = &[
    Spec { id: "RFC 6120", version: "", title: "Extensible Messaging and Presence Protocol (XMPP): Core" },
    Spec { id: "RFC 9525", version: "", title: "Service Identity in TLS" },
    Spec {
        id: "XEP-0178",
        version: "1.2",
        title: "Best Practices for Use of SASL EXTERNAL with Certificates",
    },
    Spec { id: "XEP-0185", version: "1.0", title: "Dialback Key Generation and Validation" },
    Spec { id: "XEP-0198", version: "1.6.3", title: "Stream Management" },
    Spec { id: "XEP-0220", version: "1.1.1", title: "Server Dialback" },
    Spec { id: "XEP-0288", version: "1.0.1", title: "Bidirectional Server-to-Server Connections" },
    Spec { id: "XEP-0344", version: "0.4", title: "Impact of TLS and DNSSEC on Dialback" },
    Spec { id: "XEP-0368", version: "1.1.0", title: "SRV records for XMPP over TLS" },
];

/// What of it clients are told: nothing, for it concerns servers alone.
pub fn registration() -> Registration {
    Registration { name: "federation", ..Registration::default() }
}
