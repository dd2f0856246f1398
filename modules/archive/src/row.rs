//! A message of an archive, the keys that its chunk lies under, and the numbers inside of it.
//!
//! What must hold: keys of one account, and of one of its counterparts, are in the order of
//! positions and apart from all others'.

use bytes::{Bytes, BytesMut};
use twox_hash::XxHash3_64;
use waystation_core::datetime::Timestamp;
use waystation_core::queue::RecordId;
use waystation_core::storage::StorageError;
use waystation_core::{Jid, MessageType, Stanza, StanzaType};

/// A message as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// True for type groupchat.
    pub(crate) groupchat: bool,
    /// When the server accepted it.
    pub(crate) at: Timestamp,
    /// The other party's bare JID.
    pub(crate) with: Box<str>,
    /// The start tag without its end.
    pub(crate) head: Bytes,
    /// The rest.
    pub(crate) tail: Bytes,
}

/// The same where it lies: what is added is copied once, into its chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowRef<'a> {
    pub(crate) groupchat: bool,
    pub(crate) at: Timestamp,
    pub(crate) with: &'a str,
    pub(crate) head: &'a [u8],
    pub(crate) tail: &'a [u8],
}

impl<'a> RowRef<'a> {
    /// That of a message with this counterpart.
    pub(crate) fn new(other: &'a Jid, at: Timestamp, stanza: &'a Stanza) -> Self {
        let (head, tail) = stanza.wire();
        let groupchat = stanza.stanza_type() == StanzaType::Message(MessageType::Groupchat);
        Self { groupchat, at, with: other.bare_str(), head, tail }
    }

    /// See [`Row::stanza_len`].
    pub(crate) fn stanza_len(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64
    }
}

impl Row {
    /// The row of a message that `account` sent or got.
    pub(crate) fn new(account: &Jid, at: Timestamp, stanza: &Stanza) -> Self {
        let RowRef { groupchat, at, with, .. } = RowRef::new(counterpart(account, stanza), at, stanza);
        let (head, tail) = stanza.wire();
        Self { groupchat, at, with: with.into(), head: head.clone(), tail: tail.clone() }
    }

    pub(crate) fn as_ref(&self) -> RowRef<'_> {
        let Self { groupchat, at, with, head, tail } = self;
        RowRef { groupchat: *groupchat, at: *at, with, head, tail }
    }

    /// Length of the stanza on the wire, which is what limits count.
    pub(crate) fn stanza_len(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64
    }
}

/// The other party of a message: who it is to if the account sent it, else who sent it. For
/// messages to oneself that is the account.
pub(crate) fn counterpart<'a>(account: &'a Jid, stanza: &'a Stanza) -> &'a Jid {
    let from = stanza.from().unwrap_or(account);
    if from.bare_eq(account) { stanza.to().unwrap_or(account) } else { from }
}

/// What all keys of an account's messages begin with: the bare JID and NUL, which no JID holds.
pub(crate) fn prefix(account: &Jid) -> Bytes {
    [account.bare_str().as_bytes(), &[0]].concat().into()
}

/// What stands for a counterpart in the index, by its bare JID.
pub(crate) fn with_hash(with: &str) -> u64 {
    with_hash_bytes(with.as_bytes())
}

/// The same of its bytes.
pub(crate) fn with_hash_bytes(with: &[u8]) -> u64 {
    XxHash3_64::oneshot(with)
}

/// What all index keys of an account and a counterpart begin with.
pub(crate) fn with_hash_prefix(account: &Jid, with: u64) -> Bytes {
    [account.bare_str().as_bytes(), &[0], &with.to_be_bytes()].concat().into()
}

/// The key of a position behind a prefix.
pub(crate) fn key(prefix: &[u8], position: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(prefix.len() + 8);
    out.extend_from_slice(prefix);
    out.extend_from_slice(&position.to_be_bytes());
    out.freeze()
}

/// The position at the end of a key.
pub(crate) fn position_of(key: &[u8], prefix: &[u8]) -> Result<u64, StorageError> {
    let number = key.get(prefix.len()..).and_then(|rest| rest.try_into().ok());
    number.map(u64::from_be_bytes).ok_or_else(|| StorageError::Corrupt("a key of a message archive".into()))
}

/// The archive id of a position.
pub(crate) fn id(position: u64) -> String {
    waystation_core::archive::stanza_id(RecordId(position))
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

pub(crate) fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

pub(crate) fn take_signed(input: &mut &[u8]) -> Option<i64> {
    let value = take_varint(input)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn jid(text: &str) -> Jid {
        Jid::parse(text).unwrap()
    }

    fn message(addresses: &str, kind: &str) -> Stanza {
        Stanza::parse(format!("<message {addresses} {kind}><body>hi</body></message>").as_bytes()).unwrap()
    }

    #[test]
    fn the_counterpart_is_the_other_party() {
        let account = jid("juliet@capulet.example");
        for (addresses, expected) in [
            ("from='romeo@montague.example/a' to='juliet@capulet.example'", "romeo@montague.example"),
            ("from='juliet@capulet.example/b' to='romeo@montague.example/a'", "romeo@montague.example"),
            ("from='juliet@capulet.example/b' to='juliet@capulet.example'", "juliet@capulet.example"),
            ("from='juliet@capulet.example/b'", "juliet@capulet.example"),
            ("from='capulet.example' to='juliet@capulet.example/b'", "capulet.example"),
            ("from='hall@rooms.example/romeo' to='juliet@capulet.example/b'", "hall@rooms.example"),
        ] {
            let row = Row::new(&account, Timestamp::now(), &message(addresses, ""));
            assert_eq!(&*row.with, expected, "{addresses}");
        }
    }

    #[test]
    fn groupchat_is_told_apart() {
        let account = jid("a@b");
        for (kind, expected) in [("type='groupchat'", true), ("type='chat'", false), ("", false)] {
            let row = Row::new(&account, Timestamp::now(), &message("from='c@d' to='a@b'", kind));
            assert_eq!(row.groupchat, expected, "{kind}");
        }
    }

    #[test]
    fn keys_of_the_longest_addresses_fit() {
        let longest = jid(&format!("{}@{}", "a".repeat(1023), vec!["b".repeat(62); 4].join(".")));
        let key = key(&with_hash_prefix(&longest, with_hash(longest.bare_str())), u64::MAX);
        assert!(key.len() <= waystation_core::storage::MAX_KEY, "{}", key.len());
    }

    #[test]
    fn keys_are_in_the_order_of_positions_and_of_one_account() {
        let (short, long) = (prefix(&jid("a@b")), prefix(&jid("a@b.c")));
        assert!(key(&short, 255) < key(&short, 256));
        assert!(!long.starts_with(&short));
        assert_eq!(position_of(&key(&short, 7), &short).unwrap(), 7);
        assert!(position_of(&short, &short).is_err());
    }

    proptest! {
        #[test]
        fn numbers_read_back(value in any::<i64>(), unsigned in any::<u64>()) {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            put_varint(&mut out, unsigned);
            let mut input = &out[..];
            prop_assert_eq!(take_signed(&mut input), Some(value));
            prop_assert_eq!(take_varint(&mut input), Some(unsigned));
            prop_assert!(input.is_empty());
        }
    }
}
