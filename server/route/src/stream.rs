//! Streams that outlive their connections (XEP-0198 5): what a session hands over when it loses
//! its connection, what it gets back, and what of it is stored.
//!
//! What must hold: what is needed to resume after a crash is in the store and the queue, never
//! only here: a row of [`STREAMS`] for each resumable session, a mark with the number of its
//! stanzas that were accepted, and in its own queue notes of which records it was sent. A key is
//! 128 random bits, bound to one account and never used again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use waystation_core::queue::{QueueName, RecordId};
use waystation_core::storage::Space;
use waystation_core::{Element, Jid, SessionId, Stanza};
use waystation_runtime::Inlet;

use crate::intake::Stored;
use crate::mail::{SessionMail, SessionOutlet};
use crate::receipt::Receipts;

/// Rows of resumable sessions: bare JID, NUL, key in hexadecimal.
pub const STREAMS: Space = Space("streams");

/// How long the number of accepted stanzas is kept after a session can no longer be resumed
/// (DELIVERY P4).
pub const ENDED_FOR: Duration = Duration::from_secs(24 * 3600);

/// A stanza that was sent and not acknowledged, with its record if it has one.
pub type Unconfirmed = (Stanza, Option<RecordId>);

/// A note of what was sent, by the number of the last stanza in it.
pub type Note = (u64, Arc<Stored>);

/// What a session that lost its connection hands to its account's route.
pub struct Detachment {
    /// Sent or to be sent, and not acknowledged by the client, in order.
    pub unconfirmed: VecDeque<Unconfirmed>,
    /// How many of them had been sent.
    pub sent: usize,
    /// Stanzas that the client has acknowledged.
    pub confirmed: u64,
    /// Stanzas received from the client.
    pub received: u64,
    /// Which of them are accepted.
    pub receipts: Receipts,
    /// Greatest number whose mark is known to be stored.
    pub marked: u64,
    /// Notes that are still in the session's queue.
    pub notes: VecDeque<Note>,
    /// `xml:lang` of the stream, escaped.
    pub lang: Option<Box<str>>,
}

impl Detachment {
    /// Adds mail that came while the session was on its way.
    pub fn take_mail(&mut self, mails: Vec<SessionMail>) {
        for mail in mails {
            match mail {
                SessionMail::Stanza(stanza) => self.unconfirmed.push_back((stanza, None)),
                SessionMail::Record(stanza, record) => self.unconfirmed.push_back((stanza, Some(record))),
                SessionMail::Yield | SessionMail::Close(_) => {}
            }
        }
    }

    /// Bytes of the stanzas it holds.
    pub fn bytes(&self) -> usize {
        self.unconfirmed.iter().map(|(stanza, _)| stanza.len() + 256).sum()
    }
}

/// A request to resume a session.
pub struct ResumeRequest {
    /// The authenticated account.
    pub account: Jid,
    /// The session's key.
    pub key: u128,
    /// Stanzas that the client has received, modulo 2^32.
    pub h: u32,
    /// How to reach the session on its new connection.
    pub outlet: SessionOutlet,
    /// The session's side of it.
    pub inlet: Inlet<SessionMail>,
    /// Where the client connects from.
    pub peer: SocketAddr,
    /// `TLSv1_3`, or `none`.
    pub security: &'static str,
}

/// A resumed session.
pub struct Resumption {
    /// Its identity on this connection.
    pub id: SessionId,
    /// Its full JID.
    pub jid: Jid,
    /// Its mail.
    pub inlet: Inlet<SessionMail>,
    /// How long it may be resumed after the next loss.
    pub max: Duration,
    /// What it had when it lost its connection, and what came since.
    pub state: Box<Detachment>,
}

/// Why a session was not resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// No such session, or another account's: both look alike. The number of accepted stanzas,
    /// if the session was the account's own and ended less than [`ENDED_FOR`] ago.
    #[error("there is no such session")]
    Unknown(Option<u64>),
    /// The client acknowledges more than it was sent.
    #[error("more was acknowledged than was sent")]
    TooHigh {
        /// What it acknowledged.
        h: u32,
        /// What it was sent.
        sent: u64,
    },
    /// The account's state cannot be read.
    #[error("the account's state could not be loaded")]
    Unavailable,
}

/// What a number means that a client acknowledges (XEP-0198 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// So many stanzas more than before, perhaps none.
    More(u64),
    /// Fewer than before: an old number that was overtaken, or a client that counts wrong. What
    /// was acknowledged stays so.
    Fewer,
    /// More than were sent (section 6).
    TooMany,
}

/// Reads an acknowledgement, which counts modulo 2^32, where `confirmed` of `sent` stanzas were
/// acknowledged before.
pub fn acknowledged(h: u32, confirmed: u64, sent: u64) -> Acknowledged {
    let more = u64::from(h.wrapping_sub(confirmed as u32));
    let fewer = u64::from((confirmed as u32).wrapping_sub(h));
    if more <= sent - confirmed {
        Acknowledged::More(more)
    } else if fewer < more && fewer <= confirmed {
        Acknowledged::Fewer
    } else {
        Acknowledged::TooMany
    }
}

/// The queue of a session's notes.
pub fn note_queue(key: u128) -> QueueName {
    format!("s/{key:032x}").into()
}

/// The text of a key, as clients get it.
pub fn key_text(key: u128) -> String {
    format!("{key:032x}")
}

/// Reads [`key_text`].
pub fn parse_key(text: &str) -> Option<u128> {
    let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain { u128::from_str_radix(text, 16).ok() } else { None }
}

/// A note: the number of each stanza with a record that was sent, and that record.
pub fn write_note(sent: &[(u64, RecordId)]) -> Bytes {
    let mut out = Vec::with_capacity(sent.len() * 16);
    for (number, id) in sent {
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&id.0.to_be_bytes());
    }
    out.into()
}

/// Reads [`write_note`].
pub fn read_note(note: &[u8]) -> impl Iterator<Item = (u64, RecordId)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    note.chunks_exact(16).map(move |pair| (number(&pair[..8]), RecordId(number(&pair[8..]))))
}

/// A row of [`STREAMS`].
#[derive(Clone, Debug)]
pub enum StreamRow {
    /// The session can be resumed.
    Resumable {
        /// Its resource.
        resource: String,
        /// How long it can be resumed after it lost its connection.
        max: Duration,
        /// Its presence, when it is available.
        presence: Option<Stanza>,
        /// The priority of that.
        priority: i8,
        /// It wants copies of the account's other messages (XEP-0280).
        carbons: bool,
        /// It has asked for the roster.
        interested: bool,
        /// JIDs that got directed presence.
        directed: Vec<Jid>,
    },
    /// It has ended; its number of accepted stanzas is kept until then.
    Ended(SystemTime),
}

/// The key of a row.
pub fn row_key(account: &Jid, key: u128) -> Bytes {
    waystation_core::storage::key(&[account.bare_str(), &key_text(key)])
}

/// The rows of an account begin with this.
pub fn row_prefix(account: &Jid) -> Bytes {
    waystation_core::storage::key(&[account.bare_str(), ""])
}

const NS: &str = "urn:waystation:stream";

impl StreamRow {
    /// The value of a row.
    pub fn to_bytes(&self) -> Bytes {
        let element = match self {
            Self::Ended(until) => {
                let seconds = until.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                Element::new("ended", NS).with_attr("until", seconds.to_string())
            }
            Self::Resumable { resource, max, presence, priority, carbons, interested, directed } => {
                let mut element = Element::new("stream", NS)
                    .with_attr("resource", resource.as_str())
                    .with_attr("max", max.as_secs().to_string())
                    .with_attr("priority", priority.to_string())
                    .with_attr("carbons", if *carbons { "1" } else { "0" })
                    .with_attr("interested", if *interested { "1" } else { "0" });
                for jid in directed {
                    element = element.with_child(Element::new("directed", NS).with_text(jid.as_str()));
                }
                if let Some(presence) = presence.as_ref().and_then(|p| p.element().ok()) {
                    element = element.with_child(presence);
                }
                element
            }
        };
        let mut out = Vec::new();
        element.write(&mut out, "");
        out.into()
    }

    /// Reads [`StreamRow::to_bytes`]; `None` for what is damaged.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let element = Element::parse(bytes, "").ok()?;
        if element.is("ended", NS) {
            let seconds = element.attr("until")?.parse().ok()?;
            return Some(Self::Ended(UNIX_EPOCH + Duration::from_secs(seconds)));
        }
        let presence = element.child("presence", "jabber:client").map(|presence| {
            let mut out = Vec::new();
            presence.write(&mut out, "jabber:client");
            Stanza::parse(&out)
        });
        Some(Self::Resumable {
            resource: element.attr("resource")?.to_owned(),
            max: Duration::from_secs(element.attr("max")?.parse().ok()?),
            presence: presence.transpose().ok()?,
            priority: element.attr("priority")?.parse().ok()?,
            carbons: element.attr("carbons") == Some("1"),
            interested: element.attr("interested") == Some("1"),
            directed: element
                .children()
                .filter(|child| child.is("directed", NS))
                .filter_map(|child| Jid::parse(&child.text()).ok())
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back() {
        let presence =
            "<presence from='a@b/c' xml:lang='en'><priority>5</priority><x xmlns='urn:x'/></presence>";
        let row = StreamRow::Resumable {
            resource: "a 'b' <c>".into(),
            max: Duration::from_secs(300),
            presence: Some(Stanza::parse(presence.as_bytes()).unwrap()),
            priority: 5,
            carbons: true,
            interested: false,
            directed: vec![Jid::parse("x@y/z&").unwrap()],
        };
        let Some(StreamRow::Resumable { resource, max, presence, priority, carbons, interested, directed }) =
            StreamRow::parse(&row.to_bytes())
        else {
            panic!("not read back")
        };
        assert_eq!(
            (resource.as_str(), max.as_secs(), priority, carbons, interested),
            ("a 'b' <c>", 300, 5, true, false)
        );
        assert_eq!(presence.unwrap().from().unwrap().as_str(), "a@b/c");
        assert_eq!(directed, [Jid::parse("x@y/z&").unwrap()]);
        let ended = StreamRow::Ended(UNIX_EPOCH + Duration::from_secs(77));
        assert!(
            matches!(StreamRow::parse(&ended.to_bytes()), Some(StreamRow::Ended(at)) if at == UNIX_EPOCH + Duration::from_secs(77))
        );
        assert!(StreamRow::parse(b"<x/>").is_none() && StreamRow::parse(b"").is_none());
    }

    #[test]
    fn xep_0198_4_numbers_wrap_at_2_to_the_32nd() {
        use Acknowledged::{Fewer, More, TooMany};
        const WRAP: u64 = 1 << 32;
        for (h, confirmed, sent, expected) in [
            (0, 0, 0, More(0)),
            (2, 0, 2, More(2)),
            (3, 0, 2, TooMany),
            // Nothing was acknowledged yet: these cannot be old numbers.
            (u32::MAX, 0, 2, TooMany),
            (1 << 31, 0, 2, TooMany),
            (u32::MAX, 1, 2, TooMany),
            (0, 1, 2, Fewer),
            (4, 5, 5, Fewer),
            (0, 5, 9, Fewer),
            (6, 5, 5, TooMany),
            // Over the edge.
            (u32::MAX, WRAP - 1, WRAP - 1, More(0)),
            (0, WRAP - 1, WRAP, More(1)),
            (4, WRAP - 3, WRAP + 4, More(7)),
            (5, WRAP - 3, WRAP + 4, TooMany),
            (u32::MAX, WRAP + 1, WRAP + 1, Fewer),
            (2, WRAP + 1, WRAP + 1, TooMany),
            (1 << 31, WRAP + 1, WRAP + 1, TooMany),
            (0, 7 * WRAP, 7 * WRAP + 1, More(0)),
            (1, 7 * WRAP, 7 * WRAP + 1, More(1)),
        ] {
            assert_eq!(acknowledged(h, confirmed, sent), expected, "{h} after {confirmed} of {sent}");
        }
    }

    #[test]
    fn notes_and_keys_read_back() {
        let sent = [(1, RecordId(7)), (u64::MAX, RecordId(1 << 40))];
        assert_eq!(read_note(&write_note(&sent)).collect::<Vec<_>>(), sent);
        assert_eq!(parse_key(&key_text(5)), Some(5));
        assert_eq!(parse_key(&key_text(u128::MAX)), Some(u128::MAX));
        for wrong in ["", "5", "+0000000000000000000000000000005", "0000000000000000000000000000000G"] {
            assert_eq!(parse_key(wrong), None);
        }
    }
}
