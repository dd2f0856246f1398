//! Stanzas for the client, as they are counted and recognised over a restart of the server.

use sha2::{Digest, Sha256};
use waystation_core::Jid;
use waystation_core::xml::Element;

const NS_STANZA_ID: &str = "urn:xmpp:sid:0";

/// What a stanza is known by when it comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// XEP-0359, given by the account.
    Id(String),
    /// All of it.
    Hash([u8; 32]),
}

impl Identity {
    /// The identity of a stanza for a session of `account`.
    pub(crate) fn of(stanza: &Element, account: &Jid) -> Self {
        let id = stanza
            .children()
            .filter(|child| {
                child.is("stanza-id", NS_STANZA_ID) && child.attr("by") == Some(account.bare_str())
            })
            .find_map(|child| child.attr("id"));
        match id {
            Some(id) => Self::Id(id.to_owned()),
            None => Self::Hash(Sha256::digest(stanza.to_vec("")).into()),
        }
    }
}

/// The numbers of stanzas for the client: its own count, and that of the stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    /// Stanzas for the client so far.
    pub(super) count: u64,
    /// Where the stream was resumed, as it counts.
    pub(super) resumed_at: u64,
    /// The count at that time.
    pub(super) base: u64,
    /// Of what the server sent again, the numbers that it had.
    pub(super) again: Vec<u64>,
}

impl Numbers {
    /// A number as the stream has it.
    pub(super) fn on_stream(&self, count: u64) -> u64 {
        let again = self.again.iter().filter(|number| **number <= count).count() as u64;
        self.resumed_at + again + count.saturating_sub(self.base)
    }
}
