//! Where a stanza goes: the router, the directory of account routes, and the account route.
//!
//! What must hold: routing a stanza is a decision without an await; each account has at most
//! one route, which alone knows its sessions; a stanza that is not delivered is stored or
//! answered with the error that RFC 6121 8 names, or dropped where that section says so.
//! `README.md` beside this crate walks one message from socket to socket.

pub mod account;
pub mod delivery;
pub mod directory;
pub mod iq;
pub mod mail;
pub mod router;

pub use directory::Directory;
pub use iq::IqTable;
pub use mail::{
    AccountMail, BindError, BindRequest, Binding, CloseWhich, OrderToken, SessionInfo, SessionMail,
    SessionOutlet,
};
pub use router::{Origin, Routed, Router, RouterConfig};
