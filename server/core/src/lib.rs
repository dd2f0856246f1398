//! Types and seams that everything else is built on: JIDs, stanzas, errors, storage, module traits.
//!
//! What must hold: this crate does no I/O and knows no module.

pub mod account;
pub mod archive;
pub mod caps;
pub mod dataform;
pub mod datetime;
pub mod disco;
pub mod error;
pub mod jid;
pub mod module;
mod parts;
pub mod prep;
pub mod queue;
pub mod read;
pub mod rsm;
mod signs;
pub mod spoof;
pub mod stanza;
pub mod storable;
pub mod storage;

pub use account::{SessionId, Sessions};
pub use error::{Condition, ErrorType, StanzaError, StreamCondition, StreamError};
pub use jid::Jid;
pub use signs::Sign;
pub use stanza::{IqType, Kind, MessageType, PresenceType, Stanza, StanzaType};
pub use waystation_xml as xml;
pub use waystation_xml::Element;
