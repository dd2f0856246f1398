//! What is kept of one contact, in memory and as a stored record.
//!
//! What must hold: `decode(encode(c)) == c`; a contact that is not listed is never subscribed in
//! either direction, so it is visible to no client (RFC 6121 3.1.3, A.1).
//!
//! A record is, with numbers in little endian: format (1 byte, 1), flags (1 byte: bits 0-1 `to`,
//! 2-3 `from`, 4 listed, 5 approved, 6 request), `changed` (8 bytes), name, count of groups
//! (4 bytes) and groups, then the request if there is one. A text is its length in bytes (4 bytes)
//! and its bytes in UTF-8.

use bytes::Bytes;

use crate::subscription::{Half, State};

const FORMAT: u8 = 1;
const LISTED: u8 = 1 << 4;
const APPROVED: u8 = 1 << 5;
const REQUEST: u8 = 1 << 6;

/// What is known of one contact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    /// The handle; empty for none (RFC 6121 2.1.2.4).
    pub(crate) name: Box<str>,
    /// Groups, in the order in which the client gave them.
    pub(crate) groups: Box<[Box<str>]>,
    /// The subscription.
    pub(crate) state: State,
    /// Pre-approved (RFC 6121 3.4).
    pub(crate) approved: bool,
    /// Whether it is an item of the roster that clients see.
    pub(crate) listed: bool,
    /// The roster version of the last change that clients saw; 0 when they never saw it. A contact
    /// that is not listed but was seen is remembered as removed (RFC 6121 2.6).
    pub(crate) changed: u64,
    /// The subscription request, as [`waystation_core::Stanza::to_bytes`] wrote it, while the
    /// contact waits for an answer (RFC 6121 3.1.3).
    pub(crate) request: Option<Bytes>,
}

impl Contact {
    /// True when there is nothing to remember.
    pub(crate) fn is_void(&self) -> bool {
        !self.listed && self.changed == 0 && self.state == State::default()
    }

    /// True when it only reminds of a removal.
    pub(crate) fn is_removed(&self) -> bool {
        !self.listed && self.changed > 0
    }

    /// Bytes of its name and groups.
    pub(crate) fn text_len(&self) -> usize {
        self.name.len() + self.groups.iter().map(|g| g.len()).sum::<usize>()
    }

    /// The stored form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let request_len = self.request.as_ref().map_or(0, |request| request.len() + 4);
        let mut out = Vec::with_capacity(18 + self.text_len() + 4 * self.groups.len() + request_len);
        let mut flags = half_bits(self.state.to) | half_bits(self.state.from) << 2;
        flags |= if self.listed { LISTED } else { 0 };
        flags |= if self.approved { APPROVED } else { 0 };
        flags |= if self.request.is_some() { REQUEST } else { 0 };
        out.extend_from_slice(&[FORMAT, flags]);
        out.extend_from_slice(&self.changed.to_le_bytes());
        put_text(&mut out, self.name.as_bytes());
        put_length(&mut out, self.groups.len());
        for group in &self.groups {
            put_text(&mut out, group.as_bytes());
        }
        if let Some(request) = &self.request {
            put_text(&mut out, request);
        }
        out
    }

    /// Reads the stored form; `None` when it is damaged or of an unknown format.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let &[format, flags] = take(&mut rest)?;
        if format != FORMAT {
            return None;
        }
        let changed = u64::from_le_bytes(*take(&mut rest)?);
        let name = take_text(&mut rest)?;
        let count = take_length(&mut rest)?;
        // Each group takes at least its length, so damaged counts cannot ask for much memory.
        if count > rest.len() / 4 {
            return None;
        }
        let groups = (0..count).map(|_| take_text(&mut rest)).collect::<Option<_>>()?;
        let request =
            if flags & REQUEST != 0 { Some(take_text(&mut rest)?.into_boxed_bytes().into()) } else { None };
        let state = State { to: half_from_bits(flags)?, from: half_from_bits(flags >> 2)? };
        rest.is_empty().then_some(Self {
            name,
            groups,
            state,
            approved: flags & APPROVED != 0,
            listed: flags & LISTED != 0,
            changed,
            request,
        })
    }
}

fn half_bits(half: Half) -> u8 {
    match half {
        Half::None => 0,
        Half::Pending => 1,
        Half::Subscribed => 2,
    }
}

fn half_from_bits(bits: u8) -> Option<Half> {
    match bits & 3 {
        0 => Some(Half::None),
        1 => Some(Half::Pending),
        2 => Some(Half::Subscribed),
        _ => None,
    }
}

/// Texts come from stanzas, whose size limits are far below 4 GiB.
fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_length(out, text.len());
    out.extend_from_slice(text);
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(head)
}

fn take_length(rest: &mut &[u8]) -> Option<usize> {
    take(rest).map(|bytes| u32::from_le_bytes(*bytes) as usize)
}

fn take_text(rest: &mut &[u8]) -> Option<Box<str>> {
    let length = take_length(rest)?;
    let (text, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    std::str::from_utf8(text).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn half() -> impl Strategy<Value = Half> {
        prop_oneof![Just(Half::None), Just(Half::Pending), Just(Half::Subscribed)]
    }

    fn text() -> impl Strategy<Value = Box<str>> {
        ".{0,20}".prop_map(Into::into)
    }

    prop_compose! {
        fn contact()(
            name in text(),
            groups in proptest::collection::vec(text(), 0..4),
            to in half(),
            from in half(),
            approved: bool,
            listed: bool,
            changed: u64,
            request in proptest::option::of(text()),
        ) -> Contact {
            Contact {
                name,
                groups: groups.into(),
                state: State { to, from },
                approved,
                listed,
                changed,
                request: request.map(|request| request.into_boxed_bytes().into()),
            }
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(contact in contact()) {
            prop_assert_eq!(Contact::decode(&contact.encode()), Some(contact));
        }

        #[test]
        fn a_cut_or_longer_record_is_refused(contact in contact(), at in any::<prop::sample::Index>()) {
            let bytes = contact.encode();
            prop_assert_eq!(Contact::decode(&bytes[..at.index(bytes.len())]), None);
            let longer = [&bytes[..], &[0]].concat();
            prop_assert_eq!(Contact::decode(&longer), None);
        }

        #[test]
        fn damaged_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Contact::decode(&bytes);
        }
    }

    #[test]
    fn other_formats_are_refused() {
        let mut bytes = Contact::default().encode();
        bytes[0] = 2;
        assert_eq!(Contact::decode(&bytes), None);
    }

    #[test]
    fn released_records_can_still_be_read() {
        let bytes = [
            &[1u8, 0b0111_0110][..],
            &[7, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, b'N'],
            &[1, 0, 0, 0, 2, 0, 0, 0, b'G', b'H'],
            &[4, 0, 0, 0, b'<', b'x', b'/', b'>'],
        ]
        .concat();
        assert_eq!(
            Contact::decode(&bytes),
            Some(Contact {
                name: "N".into(),
                groups: ["GH".into()].into(),
                state: State { to: Half::Subscribed, from: Half::Pending },
                approved: true,
                listed: true,
                changed: 7,
                request: Some(Bytes::from_static(b"<x/>")),
            })
        );
    }
}
