//! The bytes of a batch in a segment: written here, taken apart here, nowhere else.
//!
//! What must hold: a frame is whole exactly when its own CRC and that of each of its records are
//! right, so that a batch that was cut off in any way is told from a whole one; every number is
//! little-endian; a frame begins at a multiple of [`ALIGN`] and is padded to one.
//!
//! ```text
//! frame    header (48 bytes) | meta | records | padding with zeros
//! header   0 magic u32 (BATCH, or COPY for records that a compaction moved)
//!          4 length of the frame u32, padding included
//!          8 number of the segment u64
//!         16 id of the first record, or the next id to be given when there is none u64
//!         24 when, in milliseconds since 1970 u64
//!         32 number of records u32
//!         36 length of meta u32
//!         40 up to which offset the segment was flushed when this was written u32
//!         44 CRC of header (0 to 44) and meta u32
//! meta     for each record: number of queues u8, then their names; then changes up to its end
//! name     length u16, UTF-8; the length 0xffff stands for the name before, once more
//! change   tag u8, name, id u64 and, by tag: 1 ack; 2 nack: delay in ms u64, counts u8;
//!          3 park: length u16, reason; 4 unpark; 5 leased; 8 purge (the id is 0).
//!          tag u8, key u128: 6 set mark: value u64; 7 remove mark
//! record   id u64 | since, in ms since 1970 u64 | length of the payload u32 |
//!          CRC of these and the payload u32 | payload
//! ```
//!
//! CRCs are CRC-32 (IEEE) by `crc32fast`: at these lengths it finds what CRC-32C would find, it
//! runs at several GB/s on the carry-less multiplication that servers have, and sled, which this
//! server can be built with anyway, brings it along.

use bytes::Bytes;
use crc32fast::Hasher;
use waystation_core::queue::Mark;

use crate::check;
use crate::log::reader::Reader;

/// Frames begin at multiples of this.
pub(crate) const ALIGN: usize = 8;
/// Length of a frame's header.
pub(crate) const HEADER: usize = 48;
/// Length of a record's header.
pub(crate) const RECORD_HEADER: usize = 24;
/// Of it, the check sum at its end, and what comes before that.
const CHECK: usize = 4;
const HEAD: usize = RECORD_HEADER - CHECK;

const BATCH: u32 = 0x3151_5957;
const COPY: u32 = 0x3143_5957;
const SAME_NAME: u16 = 0xffff;
const ACK: u8 = 1;

/// A change of what is stored, as it stands in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    Ack,
    /// `counts`: this is an attempt that no lease has counted.
    Nack {
        delay_ms: u64,
        counts: bool,
    },
    Park {
        reason: &'a str,
    },
    Unpark,
    Leased,
}

/// What a frame says beside its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control<'a> {
    Settle { queue: &'a str, id: u64, change: Change<'a> },
    Mark(Mark),
    Purge { queue: &'a str },
}

/// A part of what is to be written: in the buffer, or bytes of a caller.
pub(crate) enum Piece {
    Buffer(std::ops::Range<usize>),
    Shared(Bytes),
}

/// Payload pieces from this length on are written from where they are; shorter ones are copied
/// to the others, which costs less than one more piece in the system call.
const SHARE: usize = 2048;

/// Writes frames one behind the other. The memory is used again for the next group.
#[derive(Default)]
pub(crate) struct Encoder {
    meta: Vec<u8>,
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
    /// Where in the buffer the last piece begins.
    open: usize,
    /// Bytes of all frames.
    len: usize,
    /// Of the frame under way: where it begins in all, and its header in the buffer.
    frame: usize,
    header: usize,
    records: u32,
    /// Where in `meta` the last name stands.
    last_name: std::ops::Range<usize>,
    /// Of nothing: to make one is to ask what the processor can do.
    no_crc: Hasher,
}

/// What a frame's header says beside lengths and checks.
#[derive(Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) segment: u32,
    pub(crate) first_id: u64,
    pub(crate) time_ms: u64,
    pub(crate) synced: u32,
    pub(crate) copy: bool,
}

/// Above this the buffers are given back after a group.
const KEEP_BUFFER: usize = 1024 * 1024;

impl Encoder {
    /// Forgets what was written.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BUFFER);
        self.meta.shrink_to(KEEP_BUFFER);
        self.open = 0;
        self.len = 0;
    }

    /// Bytes of all frames so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What is to be written, in order.
    pub(crate) fn slices(&self) -> Vec<std::io::IoSlice<'_>> {
        let pieces = self.pieces.iter();
        pieces
            .map(|piece| match piece {
                Piece::Buffer(range) => std::io::IoSlice::new(&self.buffer[range.clone()]),
                Piece::Shared(bytes) => std::io::IoSlice::new(bytes),
            })
            .collect()
    }

    /// Begins a frame. Its names and changes come first, all of them, then [`Encoder::payloads`].
    pub(crate) fn begin(&mut self) {
        self.meta.clear();
        self.records = 0;
        self.last_name = 0..0;
        self.frame = self.len;
    }

    /// The queues of the next record.
    pub(crate) fn queues<'a>(&mut self, queues: impl ExactSizeIterator<Item = &'a str>) {
        self.records += 1;
        // At most MAX_QUEUES, which was checked.
        self.meta.push(queues.len() as u8);
        for queue in queues {
            self.name(queue);
        }
    }

    fn name(&mut self, name: &str) {
        if self.meta[self.last_name.clone()] == *name.as_bytes() {
            self.meta.extend_from_slice(&SAME_NAME.to_le_bytes());
            return;
        }
        // At most MAX_QUEUE_NAME, which was checked.
        self.meta.extend_from_slice(&(name.len() as u16).to_le_bytes());
        self.last_name = self.meta.len()..self.meta.len() + name.len();
        self.meta.extend_from_slice(name.as_bytes());
    }

    /// The change that nearly all are, [`Change::Ack`].
    pub(crate) fn ack(&mut self, queue: &str, id: u64) {
        self.meta.push(ACK);
        self.name(queue);
        self.meta.extend_from_slice(&id.to_le_bytes());
    }

    /// A change.
    pub(crate) fn control(&mut self, control: Control<'_>) {
        match control {
            Control::Settle { queue, id, change } => {
                let tag = match change {
                    Change::Ack => ACK,
                    Change::Nack { .. } => 2,
                    Change::Park { .. } => 3,
                    Change::Unpark => 4,
                    Change::Leased => 5,
                };
                self.meta.push(tag);
                self.name(queue);
                self.meta.extend_from_slice(&id.to_le_bytes());
                match change {
                    Change::Nack { delay_ms, counts } => {
                        self.meta.extend_from_slice(&delay_ms.to_le_bytes());
                        self.meta.push(u8::from(counts));
                    }
                    Change::Park { reason } => {
                        let reason = check::reason(reason);
                        self.meta.extend_from_slice(&(reason.len() as u16).to_le_bytes());
                        self.meta.extend_from_slice(reason.as_bytes());
                    }
                    Change::Ack | Change::Unpark | Change::Leased => {}
                }
            }
            Control::Mark(Mark { key, value }) => {
                self.meta.push(if value.is_some() { 6 } else { 7 });
                self.meta.extend_from_slice(&key.to_le_bytes());
                if let Some(value) = value {
                    self.meta.extend_from_slice(&value.to_le_bytes());
                }
            }
            Control::Purge { queue } => {
                self.meta.push(8);
                self.name(queue);
                self.meta.extend_from_slice(&0_u64.to_le_bytes());
            }
        }
    }

    /// Everything but the payloads is known: from here on come the records.
    pub(crate) fn payloads(&mut self) {
        self.header = self.buffer.len();
        self.buffer.extend_from_slice(&[0; HEADER]);
        self.buffer.extend_from_slice(&self.meta);
        self.len += HEADER + self.meta.len();
    }

    /// A record; says where it stands, from the beginning of all frames.
    pub(crate) fn record(&mut self, id: u64, since_ms: u64, payload: &[Bytes]) -> usize {
        let at = self.len;
        let len: usize = payload.iter().map(Bytes::len).sum();
        self.len += RECORD_HEADER + len;
        let head = record_head(id, since_ms, len as u32);
        let begin = self.buffer.len();
        let mut crc = self.no_crc.clone();
        if payload.iter().all(|piece| piece.len() < SHARE) {
            // The check sum covers what stands before and behind it: it is taken while the two are
            // together, for one stretch costs 190 instructions where three short ones cost 370.
            self.buffer.extend_from_slice(&[0; CHECK]);
            self.buffer.extend_from_slice(&head);
            payload.iter().for_each(|piece| self.buffer.extend_from_slice(piece));
            let record = &mut self.buffer[begin..];
            crc.update(&record[CHECK..]);
            record[..HEAD].copy_from_slice(&head);
            record[HEAD..RECORD_HEADER].copy_from_slice(&crc.finalize().to_le_bytes());
            return at;
        }
        crc.update(&head);
        payload.iter().for_each(|piece| crc.update(piece));
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(&crc.finalize().to_le_bytes());
        for piece in payload {
            if piece.len() < SHARE {
                self.buffer.extend_from_slice(piece);
            } else {
                self.cut();
                self.pieces.push(Piece::Shared(piece.clone()));
            }
        }
        at
    }

    /// A record that is written as it was read, header included.
    pub(crate) fn copied(&mut self, record: &[u8]) -> usize {
        let at = self.len;
        self.buffer.extend_from_slice(record);
        self.len += record.len();
        at
    }

    /// Ends the frame.
    pub(crate) fn end(&mut self, stamp: Stamp) {
        let padding = self.len.next_multiple_of(ALIGN) - self.len;
        self.buffer.extend_from_slice(&[0; ALIGN][..padding]);
        self.len += padding;
        let header = Header {
            copy: stamp.copy,
            len: (self.len - self.frame) as u32,
            segment: u64::from(stamp.segment),
            first_id: stamp.first_id,
            time_ms: stamp.time_ms,
            records: self.records,
            meta_len: self.meta.len() as u32,
            synced: stamp.synced,
        };
        let bytes = header.bytes(&self.meta);
        self.buffer[self.header..self.header + HEADER].copy_from_slice(&bytes);
    }

    /// Ends the group: the last bytes of the buffer become a piece.
    pub(crate) fn finish(&mut self) {
        self.cut();
    }

    fn cut(&mut self) {
        if self.open < self.buffer.len() {
            self.pieces.push(Piece::Buffer(self.open..self.buffer.len()));
            self.open = self.buffer.len();
        }
    }
}

fn record_head(id: u64, since_ms: u64, len: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&id.to_le_bytes());
    head[8..16].copy_from_slice(&since_ms.to_le_bytes());
    head[16..].copy_from_slice(&len.to_le_bytes());
    head
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) copy: bool,
    pub(crate) len: u32,
    pub(crate) segment: u64,
    pub(crate) first_id: u64,
    pub(crate) time_ms: u64,
    pub(crate) records: u32,
    pub(crate) meta_len: u32,
    pub(crate) synced: u32,
}

impl Header {
    fn bytes(&self, meta: &[u8]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(if self.copy { COPY } else { BATCH }).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.segment.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.time_ms.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.records.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.meta_len.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.synced.to_le_bytes());
        let mut crc = Hasher::new();
        crc.update(&bytes[..44]);
        crc.update(meta);
        bytes[44..].copy_from_slice(&crc.finalize().to_le_bytes());
        bytes
    }

    /// Reads a header; `None` when these bytes cannot be one. Its CRC is not checked yet.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut read = Reader(bytes);
        let magic = read.u32()?;
        let header = Self {
            copy: magic == COPY,
            len: read.u32()?,
            segment: read.u64()?,
            first_id: read.u64()?,
            time_ms: read.u64()?,
            records: read.u32()?,
            meta_len: read.u32()?,
            synced: read.u32()?,
        };
        let fits = header.len as usize >= HEADER + header.meta_len as usize
            && (header.len as usize).is_multiple_of(ALIGN);
        ((magic == BATCH || magic == COPY) && fits).then_some(header)
    }
}

/// A record of a frame, where it stands, and what it says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredRecord<'a> {
    pub(crate) id: u64,
    pub(crate) since_ms: u64,
    pub(crate) payload: &'a [u8],
    /// Header and payload, as they stand there.
    pub(crate) bytes: &'a [u8],
}

impl<'a> StoredRecord<'a> {
    /// Reads and checks a record at the beginning of `bytes`; `None` when it is damaged.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut read = Reader(bytes);
        let (id, since_ms, len, crc) = (read.u64()?, read.u64()?, read.u32()?, read.u32()?);
        let payload = read.take(len as usize)?;
        let mut hasher = Hasher::new();
        hasher.update(&bytes[..HEAD]);
        hasher.update(payload);
        let bytes = &bytes[..RECORD_HEADER + payload.len()];
        (hasher.finalize() == crc).then_some(Self { id, since_ms, payload, bytes })
    }
}

/// What is wrong with the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Header or meta: nothing in it can be relied upon.
    Frame,
    /// One record, at this offset in the frame.
    Record(usize),
}

/// A whole frame that was read and found right.
pub(crate) struct Frame<'a> {
    pub(crate) header: Header,
    meta: &'a [u8],
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks header and meta of a frame at the beginning of `bytes`, but none of its records.
    pub(crate) fn open(bytes: &'a [u8]) -> Option<Self> {
        let header = Header::parse(bytes)?;
        let frame = bytes.get(..header.len as usize)?;
        let meta = &frame[HEADER..HEADER + header.meta_len as usize];
        let expected = header.bytes(meta);
        (frame[..HEADER] == expected).then(|| Self { header, meta, body: &frame[HEADER + meta.len()..] })
    }

    /// Checks a whole frame.
    pub(crate) fn check(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let frame = Self::open(bytes).ok_or(Flaw::Frame)?;
        let mut flaw = None;
        let walked = frame.walk(
            |offset, _, record| {
                if record.is_none() {
                    flaw = flaw.or(Some(Flaw::Record(offset)));
                }
            },
            |_| (),
        );
        match (walked, flaw) {
            (None, _) => Err(flaw.unwrap_or(Flaw::Frame)),
            (_, Some(flaw)) => Err(flaw),
            (Some(()), None) => Ok(frame),
        }
    }

    /// Goes over the records, with their offsets in the frame and their queues, then over the
    /// changes. A damaged record is `None`, and so are all behind one whose length is damaged.
    /// `None` when there was such a length, or when the frame contradicts itself.
    pub(crate) fn walk(
        &self,
        mut record: impl FnMut(usize, &[&'a str], Option<StoredRecord<'a>>),
        mut control: impl FnMut(Control<'a>),
    ) -> Option<()> {
        let mut meta = Reader(self.meta);
        let mut last = "";
        let mut queues: Vec<&str> = Vec::new();
        let mut body = Some(self.body);
        for _ in 0..self.header.records {
            queues.clear();
            for _ in 0..meta.u8()? {
                queues.push(meta.name(&mut last)?);
            }
            let left = body.map_or(0, <[u8]>::len);
            let offset = HEADER + self.meta.len() + (self.body.len() - left);
            let stored = body.and_then(StoredRecord::parse);
            record(offset, &queues, stored);
            body = body.and_then(|body| {
                let len = Reader(body.get(16..)?).u32()?;
                body.get(RECORD_HEADER + len as usize..)
            });
        }
        // What is left is padding.
        let whole = body.is_some_and(|body| body.len() < ALIGN);
        while !meta.0.is_empty() {
            let tag = meta.u8()?;
            if tag == 6 || tag == 7 {
                let key = meta.u128()?;
                let value = if tag == 6 { Some(meta.u64()?) } else { None };
                control(Control::Mark(Mark { key, value }));
                continue;
            }
            let queue = meta.name(&mut last)?;
            let id = meta.u64()?;
            let change = match tag {
                ACK => Change::Ack,
                2 => Change::Nack { delay_ms: meta.u64()?, counts: meta.u8()? != 0 },
                3 => {
                    let len = meta.u16()?;
                    Change::Park { reason: std::str::from_utf8(meta.take(usize::from(len))?).ok()? }
                }
                4 => Change::Unpark,
                5 => Change::Leased,
                8 => {
                    control(Control::Purge { queue });
                    continue;
                }
                _ => return None,
            };
            control(Control::Settle { queue, id, change });
        }
        whole.then_some(())
    }
}

impl<'a> Reader<'a> {
    fn name(&mut self, last: &mut &'a str) -> Option<&'a str> {
        let mut ahead = Reader(self.0);
        if ahead.u16()? == SAME_NAME {
            *self = ahead;
            return Some(last);
        }
        *last = self.text()?;
        Some(last)
    }
}
