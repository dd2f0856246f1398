//! How messages lie in the store: several of one account, next to each other, in one value.
//!
//! On disk, in the space `archive`: the account's bare JID, NUL, the position of the chunk's first
//! message as a big-endian number, holding
//!
//! ```text
//! kind     1 byte: bits 4 to 7 the version of the layout (1), bit 0 set when the rows are
//!          compressed (lz4 block)
//! count    varint: how many messages there are
//! span     varint: distance from the first message's position to the last one's
//! time     varint, zigzag: time of the first message, milliseconds since 1970
//! length   varint: bytes of the rows, before they were compressed
//! rows     for each message
//!   delta    varint: distance to the position before it; 0 for the first
//!   flags    1 byte: bit 0 set for type groupchat
//!   time     varint, zigzag: milliseconds since the time before it; 0 for the first
//!   with     varint length, and the counterpart's bare JID
//!   head     varint: length of the stanza's start tag without its end
//!   tail     varint: length of the rest
//!   stanza   the bytes as they go over the wire
//! ```
//!
//! and in the space `archive_with`: the account's bare JID, NUL, eight bytes of hash of a
//! counterpart's bare JID, the position of the first message of a chunk that has some of its
//! messages; holding nothing. A hash, because two JIDs may be longer than a key; what it finds is
//! compared with the rows, so that equal hashes do no harm.
//!
//! One value for many messages, because what a commit costs goes by the values: keys, places in
//! tables and their merging, and the state that each commit rewrites.
//!
//! What must hold: chunks of an account never overlap in positions, and rows are in the order of
//! their positions; a chunk has a row, at most [`MAX_ROWS`] of them, and ends with the one that
//! makes it [`MAX_BYTES`] or more; what this module writes it reads back unchanged, and bytes
//! that it did not write are an error, never a panic; every key of a chunk is made from its rows.

use std::ops::Range;

use bytes::Bytes;
use waystation_core::datetime::Timestamp;
use waystation_core::storage::{Batch, MAX_VALUE, Space, StorageError};
use waystation_core::{Jid, Stanza};

use crate::compress;
use crate::row::{self, Row, RowRef, put_signed, put_varint, take_signed, take_varint};

/// The messages.
pub(crate) const ROWS: Space = Space("archive");
/// The chunks with messages of each counterpart.
pub(crate) const WITH: Space = Space("archive_with");

/// Most messages of a chunk.
pub(crate) const MAX_ROWS: usize = 128;
/// A chunk of this many bytes takes no more messages.
pub(crate) const MAX_BYTES: usize = 32 * 1024;

const VERSION: u8 = 1 << 4;
const COMPRESSED: u8 = 1;
const GROUPCHAT: u8 = 1;

/// Less than this is not worth compressing.
const SMALL: usize = 256;

/// Bytes of a value before its rows, at most: the kind and four numbers.
const MAX_HEAD: usize = 1 + 4 * MAX_NUMBER;
/// Bytes of a row beside the counterpart and the stanza, at most: the flags and five numbers.
const MAX_ROW_HEAD: usize = 1 + 5 * MAX_NUMBER;
const MAX_NUMBER: usize = 10;

/// A chunk that is being put together.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    first: u64,
    last: u64,
    first_time: i64,
    last_time: i64,
    count: usize,
    rows: Vec<u8>,
    /// Where in the rows the last counterpart stands.
    last_with: Range<usize>,
    /// Hashes of the counterparts, each once.
    withs: Vec<u64>,
}

impl Builder {
    /// One that has room for so many bytes of rows, and some more.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self { rows: Vec::with_capacity(bytes + bytes / 8), ..Self::default() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count >= MAX_ROWS || self.rows.len() >= MAX_BYTES
    }

    /// Bytes of the rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes of memory that the rows take up.
    pub(crate) fn size(&self) -> usize {
        self.rows.capacity()
    }

    /// Appends a message behind all others.
    pub(crate) fn push(&mut self, position: u64, row: RowRef<'_>) {
        let millis = row.at.unix_millis();
        if self.count == 0 {
            (self.first, self.first_time) = (position, millis);
            (self.last, self.last_time) = (position, millis);
        }
        let out = &mut self.rows;
        out.reserve(MAX_ROW_HEAD + row.with.len() + row.head.len() + row.tail.len());
        put_varint(out, position - self.last);
        out.push(if row.groupchat { GROUPCHAT } else { 0 });
        put_signed(out, millis - self.last_time);
        put_varint(out, row.with.len() as u64);
        let with = out.len()..out.len() + row.with.len();
        out.extend_from_slice(row.with.as_bytes());
        put_varint(out, row.head.len() as u64);
        put_varint(out, row.tail.len() as u64);
        out.extend_from_slice(row.head);
        out.extend_from_slice(row.tail);
        (self.last, self.last_time) = (position, millis);
        self.count += 1;
        // Most often it is the one before.
        if self.withs.is_empty() || self.rows[self.last_with.clone()] != *row.with.as_bytes() {
            let hash = row::with_hash(row.with);
            if !self.withs.contains(&hash) {
                self.withs.push(hash);
            }
        }
        self.last_with = with;
    }

    /// Appends the chunk's keys and its value to a batch, unless it has no rows.
    pub(crate) fn write(&self, account: &Jid, mut batch: Batch) -> Batch {
        if self.count == 0 {
            return batch;
        }
        batch = batch.put(ROWS, row::key(&row::prefix(account), self.first), self.encode());
        for with in &self.withs {
            let prefix = row::with_hash_prefix(account, *with);
            batch = batch.put(WITH, row::key(&prefix, self.first), Bytes::new());
        }
        batch
    }

    fn encode(&self) -> Bytes {
        let whole = |compressed: Option<&[u8]>| match compressed {
            Some(rows) if rows.len() < self.rows.len() => self.value(VERSION | COMPRESSED, rows),
            _ => self.value(VERSION, &self.rows),
        };
        if self.rows.len() < SMALL {
            return whole(None);
        }
        compress::with(&self.rows, whole)
    }

    /// The value with rows that are compressed or not.
    fn value(&self, kind: u8, rows: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(MAX_HEAD + rows.len());
        out.push(kind);
        put_varint(&mut out, self.count as u64);
        put_varint(&mut out, self.last - self.first);
        put_signed(&mut out, self.first_time);
        put_varint(&mut out, self.rows.len() as u64);
        out.extend_from_slice(rows);
        out.into()
    }
}

/// What a chunk's beginning tells of it, which costs no reading of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Time of the first message in milliseconds since 1970.
    pub(crate) time: i64,
    count: u64,
    length: usize,
    compressed: bool,
    /// Where the rows begin.
    rows: usize,
}

impl Head {
    /// Reads the beginning of the chunk whose first message has this position.
    pub(crate) fn decode(first: u64, value: &[u8]) -> Result<Self, StorageError> {
        match value.first() {
            Some(kind) if kind & !COMPRESSED == VERSION => {}
            Some(kind) if kind & 0xf0 == 0 => {
                let text = "a message archive in an older layout, which this version does not read";
                return Err(StorageError::Corrupt(text.into()));
            }
            _ => return Err(damaged()),
        }
        Self::read(first, value).ok_or_else(damaged)
    }

    fn read(first: u64, value: &[u8]) -> Option<Self> {
        let (&kind, mut input) = value.split_first()?;
        let count = take_varint(&mut input)?;
        let last = first.checked_add(take_varint(&mut input)?)?;
        let time = take_signed(&mut input)?;
        let length = usize::try_from(take_varint(&mut input)?).ok()?;
        let compressed = kind & COMPRESSED != 0;
        let fits = if compressed { length <= MAX_VALUE } else { length == input.len() };
        let rows = value.len() - input.len();
        (count > 0 && fits).then_some(Self { first, last, time, count, length, compressed, rows })
    }
}

fn damaged() -> StorageError {
    StorageError::Corrupt("a chunk of a message archive".into())
}

/// A chunk that was read, with its rows as they are.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) head: Head,
    rows: Bytes,
}

/// One message of a chunk: what there is to know without copying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    pub(crate) at: Timestamp,
    pub(crate) groupchat: bool,
    with: Range<usize>,
    head: Range<usize>,
    tail: Range<usize>,
}

impl Entry {
    /// Length of the stanza on the wire, which is what limits count.
    pub(crate) fn stanza_len(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64
    }
}

impl Chunk {
    /// Reads the chunk whose first message has this position.
    pub(crate) fn decode(first: u64, value: &Bytes) -> Result<Self, StorageError> {
        let head = Head::decode(first, value)?;
        let stored = value.slice(head.rows..);
        let rows = match head.compressed {
            true => lz4_flex::block::decompress(&stored, head.length).map_err(|_| damaged())?.into(),
            false => stored,
        };
        if rows.len() != head.length {
            return Err(damaged());
        }
        Ok(Self { head, rows })
    }

    /// Bytes of the rows.
    pub(crate) fn size(&self) -> usize {
        self.rows.len()
    }

    /// The messages in their order; ends with an error where the chunk is damaged.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<Entry, StorageError>> {
        let (mut input, mut left) = (&self.rows[..], self.head.count);
        let (mut position, mut millis) = (self.head.first, self.head.time);
        std::iter::from_fn(move || {
            if left == 0 {
                // Whatever lies behind the last row is none of ours.
                return (!std::mem::take(&mut input).is_empty()).then(|| Err(damaged()));
            }
            let is_first = left == self.head.count;
            left -= 1;
            let entry = self.take(&mut input, position, millis);
            let entry = entry.filter(|entry| {
                (entry.position == position) == is_first && (entry.position == self.head.last) == (left == 0)
            });
            let Some(entry) = entry else {
                (left, input) = (0, &[]);
                return Some(Err(damaged()));
            };
            (position, millis) = (entry.position, entry.at.unix_millis());
            Some(Ok(entry))
        })
    }

    fn take(&self, input: &mut &[u8], position: u64, millis: i64) -> Option<Entry> {
        let position = position.checked_add(take_varint(input)?)?;
        let (&flags, rest) = input.split_first()?;
        *input = rest;
        if flags & !GROUPCHAT != 0 {
            return None;
        }
        let at = Timestamp::from_unix_millis(millis.checked_add(take_signed(input)?)?)?;
        let slice = |length: u64, input: &mut &[u8]| {
            let start = self.rows.len() - input.len();
            let (_, rest) = input.split_at_checked(usize::try_from(length).ok()?)?;
            *input = rest;
            Some(start..self.rows.len() - rest.len())
        };
        let with = take_varint(input)?;
        let with = slice(with, input)?;
        let (head, tail) = (take_varint(input)?, take_varint(input)?);
        let (head, tail) = (slice(head, input)?, slice(tail, input)?);
        Some(Entry { position, at, groupchat: flags & GROUPCHAT != 0, with, head, tail })
    }

    /// The counterpart's bare JID.
    pub(crate) fn with(&self, entry: &Entry) -> &[u8] {
        &self.rows[entry.with.clone()]
    }

    /// The whole row.
    pub(crate) fn row(&self, entry: &Entry) -> Result<Row, StorageError> {
        Ok(Row {
            groupchat: entry.groupchat,
            at: entry.at,
            with: std::str::from_utf8(self.with(entry)).map_err(|_| damaged())?.into(),
            head: self.rows.slice(entry.head.clone()),
            tail: self.rows.slice(entry.tail.clone()),
        })
    }

    /// The stanza, parsed anew.
    pub(crate) fn stanza(&self, entry: &Entry) -> Result<Stanza, StorageError> {
        // Its two parts lie side by side.
        Stanza::parse(&self.rows[entry.head.start..entry.tail.end])
            .map_err(|_| StorageError::Corrupt("a stanza of a message archive".into()))
    }

    /// Appends the removal of all of the chunk's keys to a batch.
    pub(crate) fn delete(&self, account: &Jid, mut batch: Batch) -> Result<Batch, StorageError> {
        let mut withs = Vec::new();
        for entry in self.entries() {
            let with = row::with_hash_bytes(self.with(&entry?));
            if !withs.contains(&with) {
                withs.push(with);
            }
        }
        batch = batch.delete(ROWS, row::key(&row::prefix(account), self.head.first));
        for with in withs {
            batch = batch.delete(WITH, row::key(&row::with_hash_prefix(account, with), self.head.first));
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(millis: i64, groupchat: bool, with: &str, text: &str) -> Row {
        Row {
            groupchat,
            at: Timestamp::from_unix_millis(millis).unwrap(),
            with: with.into(),
            head: Bytes::from("<message from='a@b'"),
            tail: Bytes::from(format!("><body>{text}</body></message>")),
        }
    }

    fn all(chunk: &Chunk) -> Result<Vec<(u64, Row)>, StorageError> {
        chunk
            .entries()
            .map(|entry| entry.and_then(|entry| Ok((entry.position, chunk.row(&entry)?))))
            .collect()
    }

    #[test]
    fn a_chunk_takes_so_many_messages_or_bytes() {
        let (mut many, mut large) = (Builder::default(), Builder::default());
        for position in 1..=MAX_ROWS as u64 {
            assert!(!many.is_full());
            many.push(position, row(0, false, "c@d", "").as_ref());
        }
        large.push(1, row(0, false, "c@d", &"x".repeat(MAX_BYTES - 100)).as_ref());
        assert!(many.is_full() && !large.is_full());
        large.push(2, row(0, false, "c@d", "and this one").as_ref());
        assert!(large.is_full());
    }

    #[test]
    fn an_older_layout_is_refused_in_words() {
        // A row of layout 1: flags, time, counterpart, head.
        let error = Chunk::decode(1, &Bytes::from_static(b"\0\0\x03a@b\0<message/>")).unwrap_err();
        assert!(error.to_string().contains("an older layout"), "{error}");
    }

    #[test]
    fn a_length_that_no_chunk_has_is_not_made_room_for() {
        let mut value = vec![VERSION | COMPRESSED, 1, 0, 0];
        put_varint(&mut value, u64::MAX / 4);
        value.extend_from_slice(b"rows");
        assert!(Chunk::decode(1, &value.into()).is_err());
    }

    #[test]
    fn keys_are_made_and_removed_alike() {
        let account = Jid::parse("juliet@capulet.example").unwrap();
        let mut builder = Builder::default();
        for (position, with) in [(5, "a@b"), (6, "c@d"), (9, "a@b")] {
            builder.push(position, row(0, false, with, "").as_ref());
        }
        let written = builder.write(&account, Batch::new());
        let chunk = Chunk::decode(5, &builder.encode()).unwrap();
        let removed = chunk.delete(&account, Batch::new()).unwrap();
        let key = |op: &waystation_core::storage::Op| match op {
            waystation_core::storage::Op::Put { space, key, .. } => (*space, key.clone()),
            waystation_core::storage::Op::Delete { space, key } => (*space, key.clone()),
        };
        let (written, removed): (Vec<_>, Vec<_>) =
            (written.ops.iter().map(key).collect(), removed.ops.iter().map(key).collect());
        assert_eq!((written.len(), &written), (3, &removed));
    }

    proptest! {
        #[test]
        fn chunks_read_back_and_no_bytes_panic(
            rows in proptest::collection::vec(
                (1u64..1_000, -62_167_219_200_000i64..=253_402_300_799_999, "\\PC{0,40}", "[a-z ]{0,200}"),
                1..64,
            ),
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let (mut builder, mut position, mut expected) = (Builder::default(), 0, Vec::new());
            for (gap, millis, with, text) in &rows {
                position += gap;
                let row = row(*millis, millis % 2 == 0, with, text);
                builder.push(position, row.as_ref());
                expected.push((position, row));
            }
            let (first, last) = (expected[0].0, position);
            let value = builder.encode();
            let chunk = Chunk::decode(first, &value).unwrap();
            prop_assert_eq!((chunk.head.first, chunk.head.last), (first, last));
            prop_assert_eq!(chunk.head.time, expected[0].1.at.unix_millis());
            prop_assert_eq!(all(&chunk).unwrap(), expected);
            // Whatever is wrong with it, it is an error or other rows, in order and within the chunk.
            let mut flipped = value.to_vec();
            flipped[flip.index(value.len())] ^= 0x55;
            let mut headed = vec![VERSION];
            headed.extend(&noise);
            for bytes in [value.slice(..cut.index(value.len())), flipped.into(), noise.into(), headed.into()] {
                let Ok(chunk) = Chunk::decode(first, &bytes) else { continue };
                if let Ok(rows) = all(&chunk) {
                    prop_assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0));
                    prop_assert!(!rows.is_empty() && rows[0].0 == first);
                    prop_assert_eq!(rows[rows.len() - 1].0, chunk.head.last);
                }
            }
        }
    }
}
