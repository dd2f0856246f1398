//! The seam to the message archive (XEP-0313): what an account's route hands over, and when.
//!
//! What must hold: a message is in an account's archive once, under the position that its record
//! has in the queue's log, so that handing it over again after a crash changes nothing; the order
//! of positions is the order in which the account's sessions saw the messages live; the archive
//! may lag behind the log, but a query sees everything that was handed over before it.

use std::time::SystemTime;

use crate::jid::Jid;
use crate::queue::RecordId;
use crate::signs::Sign;
use crate::stanza::Stanza;
use crate::storage::{BoxFuture, StorageError};

/// A message on its way into an account's archive.
#[derive(Clone, Debug)]
pub struct Archived {
    /// Position in the log; the archive id and the stanza id (XEP-0359) are made from it.
    pub id: RecordId,
    /// When the server accepted it.
    pub at: SystemTime,
    /// The message as it was accepted: without the account's own stanza id.
    pub stanza: Stanza,
    /// True when the other party is in the account's roster (for the preference `roster`).
    pub contact: bool,
}

/// The archives of all accounts.
pub trait Archive: Send + Sync + 'static {
    /// Adds messages to an account's archive, as far as the account's preferences want them.
    /// They are taken up by the call itself, in the order of the calls; what is returned only tells
    /// that they are durable, also when none was wanted, and need not be polled before. A message
    /// that is there already is left as it is.
    ///
    /// After a failure every call fails whose outcome was not known yet, and so does every further
    /// one until the caller has polled those to their end or dropped them. It then hands over again
    /// what failed, in its order and before anything else; until that is done, queries wait.
    fn add(&self, account: Jid, messages: Vec<Archived>) -> BoxFuture<'static, Result<(), StorageError>>;

    /// The greatest position that was ever handed over for an account and is durable, wanted
    /// or not: what comes after it must be handed over again after a crash.
    fn newest(&self, account: Jid) -> BoxFuture<'static, Result<Option<RecordId>, StorageError>>;
}

/// The archive id and stanza id (XEP-0359) of a position: 13 characters of base32hex (RFC 4648 7,
/// lower case), whose order as text is the order of positions.
pub fn stanza_id(id: RecordId) -> String {
    digits(id).into_iter().map(char::from).collect()
}

fn digits(id: RecordId) -> [u8; 13] {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let mut out = [0; 13];
    for (i, digit) in out.iter_mut().rev().enumerate() {
        *digit = DIGITS[(id.0 >> (i * 5)) as usize & 31];
    }
    out
}

impl Stanza {
    /// The same stanza with the stanza id (XEP-0359) that `by` gave it as its last child.
    #[must_use]
    pub fn with_stanza_id(&self, by: &Jid, id: RecordId) -> Self {
        let (by, id) = (by.escaped(), digits(id));
        let start: &[u8] = b"<stanza-id xmlns='urn:xmpp:sid:0' by='";
        // It has no other sign than this one.
        let signs = self.signs().with_known(&[Sign::Claims]);
        self.appended([start, by.as_bytes(), b"' id='", &id, b"'/>"], signs)
    }
}

/// The position that an archive id names; `None` for what is no such id.
pub fn position(id: &str) -> Option<RecordId> {
    if id.len() != 13 || id.as_bytes()[0] > b'f' {
        return None;
    }
    id.bytes()
        .try_fold(0u64, |sum, byte| {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'v' => byte - b'a' + 10,
                _ => return None,
            };
            Some(sum << 5 | u64::from(digit))
        })
        .map(RecordId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_keep_their_order() {
        let mut last = String::new();
        for n in [0, 1, 31, 32, 1_000_000, u64::from(u32::MAX), u64::MAX] {
            let id = stanza_id(RecordId(n));
            assert!(id.len() == 13 && id > last, "{id}");
            assert_eq!(position(&id), Some(RecordId(n)));
            last = id;
        }
        for wrong in [
            "",
            "0",
            "g000000000000",
            "000000000000w",
            "000000000000A",
            "00000000000001",
            "'; --\u{e9}\u{e9}\u{e9}",
        ] {
            assert_eq!(position(wrong), None, "{wrong}");
        }
    }
}
