//! Where a stanza goes: the router, and the routes of accounts and of remote domains.
//!
//! What must hold: routing a stanza is a decision without an await; each account has at most
//! one route, which alone knows its sessions, and so has each pair of domains, which alone knows its stream; a stanza that is not delivered is stored or
//! answered with the error that RFC 6121 8 names, or dropped where that section says so.
//! `README.md` beside this crate walks one message from socket to socket.

pub mod account;
mod asking;
mod commits;
mod config;
pub mod delivery;
pub mod directory;
pub mod domain;
pub mod intake;
pub mod iq;
pub mod mail;
mod pace;
mod pump;
pub mod receipt;
mod recent;
pub mod remote;
pub mod router;
pub mod stream;

pub use asking::Asking;
pub use commits::CommitTimes;
pub use config::RouterConfig;
pub use directory::Directory;
pub use domain::{DomainConfig, DomainInfo, DomainState};
pub use intake::Intake;
pub use iq::IqTable;
pub use mail::{
    AccountMail, BindError, BindRequest, Binding, CloseWhich, OrderToken, Outbound, SessionInfo, SessionMail,
    SessionOutlet,
};
pub use receipt::{Receipt, Receipts};
pub use recent::Recent;
pub use router::{Origin, Passage, Routed, Router};
pub use stream::{Detachment, ResumeError, ResumeRequest, Resumption};

use waystation_core::module::{Feature, Registration, Scope, Spec};

/// What the routes implement.
pub const SPECS: &[Spec] = &[
    Spec { id: "XEP-0160", version: "1.0.1", title: "Best Practices for Handling Offline Messages" },
    Spec { id: "XEP-0203", version: "2.0", title: "Delayed Delivery" },
    Spec { id: "XEP-0280", version: "1.0.1", title: "Message Carbons" },
    Spec { id: "XEP-0334", version: "1.0.0", title: "Message Processing Hints" },
    Spec { id: "XEP-0359", version: "0.7.0", title: "Unique and Stable Stanza IDs" },
];

/// What of it clients are told.
pub fn registration() -> Registration {
    let features = [
        (Scope::Host, "msgoffline"),
        (Scope::Host, "urn:xmpp:carbons:2"),
        (Scope::Account, "urn:xmpp:sid:0"),
    ];
    Registration {
        name: "delivery",
        features: features.into_iter().map(|(scope, var)| Feature { scope, var }).collect(),
        ..Registration::default()
    }
}
