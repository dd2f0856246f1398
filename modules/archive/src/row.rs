//! How a message lies in the store: its key, its index key and its row.
//!
//! On disk, in the space `archive`: the account's bare JID, NUL, the position as a big-endian
//! number, holding
//!
//! ```text
//! flags    1 byte: bit 0 set for type groupchat, bits 4 to 7 the version of the layout (0)
//! time     varint: milliseconds since 1970, zigzag
//! with     varint length, and the counterpart's bare JID
//! head     varint: length of the stanza's start tag without its end
//! stanza   the bytes as they go over the wire
//! ```
//!
//! and in the space `archive_with`: the account's bare JID, NUL, eight bytes of hash of the
//! counterpart's bare JID, the position; holding nothing. A hash, because two JIDs may be longer
//! than a key; what it finds is compared with the row, so that equal hashes do no harm. The index
//! makes a conversation as cheap to page through as the whole archive, at the price of one more
//! small key per message; without it a query for a rare counterpart would read everything.
//!
//! What must hold: what this module writes it reads back unchanged, and bytes that it did not
//! write are an error, never a panic; both keys of one message are made from its row alone.

use std::hash::Hasher as _;

use bytes::{Bytes, BytesMut};
use twox_hash::XxHash3_64;
use waystation_core::datetime::Timestamp;
use waystation_core::queue::RecordId;
use waystation_core::storage::{Space, StorageError};
use waystation_core::{Jid, MessageType, Stanza, StanzaType};

/// The messages.
pub(crate) const ROWS: Space = Space("archive");
/// The messages of each counterpart.
pub(crate) const WITH: Space = Space("archive_with");

const GROUPCHAT: u8 = 1;

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

impl Row {
    /// The row of a message that `account` sent or got.
    pub(crate) fn new(account: &Jid, at: Timestamp, stanza: &Stanza) -> Self {
        let (head, tail) = stanza.wire();
        Self {
            groupchat: stanza.stanza_type() == StanzaType::Message(MessageType::Groupchat),
            at,
            with: counterpart(account, stanza).bare_str().into(),
            head: head.clone(),
            tail: tail.clone(),
        }
    }

    /// Length of the stanza on the wire, which is what limits count.
    pub(crate) fn stanza_len(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(24 + self.with.len() + self.head.len() + self.tail.len());
        out.extend_from_slice(&[if self.groupchat { GROUPCHAT } else { 0 }]);
        put_signed(&mut out, self.at.unix_millis());
        put_varint(&mut out, self.with.len() as u64);
        out.extend_from_slice(self.with.as_bytes());
        put_varint(&mut out, self.head.len() as u64);
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&self.tail);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, StorageError> {
        Self::read(bytes).ok_or_else(|| StorageError::Corrupt("a row of a message archive".into()))
    }

    fn read(bytes: &Bytes) -> Option<Self> {
        let mut input = &bytes[..];
        let (&flags, rest) = input.split_first()?;
        input = rest;
        if flags & !GROUPCHAT != 0 {
            return None;
        }
        let at = Timestamp::from_unix_millis(take_signed(&mut input)?)?;
        let length = usize::try_from(take_varint(&mut input)?).ok()?;
        let (with, rest) = input.split_at_checked(length)?;
        input = rest;
        let head = usize::try_from(take_varint(&mut input)?).ok()?;
        let stanza = bytes.slice(bytes.len() - input.len()..);
        if head > stanza.len() {
            return None;
        }
        let with = std::str::from_utf8(with).ok()?.into();
        let (head, tail) = (stanza.slice(..head), stanza.slice(head..));
        Some(Self { groupchat: flags & GROUPCHAT != 0, at, with, head, tail })
    }

    /// The stanza, parsed anew.
    pub(crate) fn stanza(&self) -> Result<Stanza, StorageError> {
        Stanza::parse(&[&self.head[..], &self.tail[..]].concat())
            .map_err(|_| StorageError::Corrupt("a stanza of a message archive".into()))
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

/// What all index keys of an account and a counterpart begin with.
pub(crate) fn with_prefix(account: &Jid, with: &str) -> Bytes {
    let mut hasher = XxHash3_64::new();
    hasher.write(with.as_bytes());
    [account.bare_str().as_bytes(), &[0], &hasher.finish().to_be_bytes()].concat().into()
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

pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.extend_from_slice(&[value as u8 | 0x80]);
        value >>= 7;
    }
    out.extend_from_slice(&[value as u8]);
}

pub(crate) fn put_signed(out: &mut BytesMut, value: i64) {
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
            assert_eq!(Row::decode(&row.encode()).unwrap(), row);
        }
    }

    #[test]
    fn keys_of_the_longest_addresses_fit() {
        let longest = jid(&format!("{}@{}", "a".repeat(1023), vec!["b".repeat(62); 4].join(".")));
        let key = key(&with_prefix(&longest, longest.bare_str()), u64::MAX);
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
            let mut out = BytesMut::new();
            put_signed(&mut out, value);
            put_varint(&mut out, unsigned);
            let mut input = &out[..];
            prop_assert_eq!(take_signed(&mut input), Some(value));
            prop_assert_eq!(take_varint(&mut input), Some(unsigned));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn rows_read_back_and_no_bytes_panic(
            millis in -62_167_219_200_000i64..=253_402_300_799_999,
            with in "\\PC{0,300}",
            text in "[a-z ]{0,300}",
            cut in any::<prop::sample::Index>(),
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let row = Row {
                groupchat: millis % 2 == 0,
                at: Timestamp::from_unix_millis(millis).unwrap(),
                with: with.into(),
                head: Bytes::from("<message from='a@b'"),
                tail: Bytes::from(format!("><body>{text}</body></message>")),
            };
            let bytes = row.encode();
            prop_assert_eq!(&Row::decode(&bytes).unwrap(), &row);
            let _ = Row::decode(&bytes.slice(..cut.index(bytes.len())));
            let _ = Row::decode(&noise.into());
        }
    }
}
