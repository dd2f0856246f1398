//! Goes over the messages of an archive, chunk by chunk.
//!
//! What must hold: every message of the ranges that is there from the beginning to the end of the
//! walk comes once, in order, also when the chunk that has it is replaced meanwhile (late
//! messages, retention); what is read is bounded: after [`MAX_READ`] bytes of rows a walk stops,
//! but not before it has passed a message.

use std::ops::Bound;

use bytes::Bytes;
use waystation_core::Jid;
use waystation_core::storage::{ScanRange, Storage, StorageError};

use crate::chunk::{Chunk, Entry, MAX_ROWS, ROWS, WITH};
use crate::page::{Plan, Source};
use crate::row;

/// Most chunks read at once. Each is of 32 KiB and one stanza at most.
const MAX_CHUNKS: usize = 32;
/// Index keys read at once.
const INDEX_KEYS: usize = 64;
/// How often the index is read again because a chunk was replaced meanwhile.
const MAX_AGAIN: usize = 16;
/// Bytes of rows after which a walk stops.
const MAX_READ: usize = 32 * 1024 * 1024;

/// The chunk with the greatest first position that is not behind `position`: the one that covers
/// it, if there is one.
pub(crate) async fn at_or_before(
    storage: &dyn Storage,
    prefix: &[u8],
    position: u64,
) -> Result<Option<Chunk>, StorageError> {
    let range = ScanRange {
        start: Bound::Included(row::key(prefix, 0)),
        end: Bound::Included(row::key(prefix, position)),
        reverse: true,
        limit: 1,
    };
    let rows = storage.scan(ROWS, range).await?;
    let Some((key, value)) = rows.first() else { return Ok(None) };
    Chunk::decode(row::position_of(key, prefix)?, value).map(Some)
}

/// What comes next.
pub(crate) enum Step {
    Message(Entry),
    /// There may be more, but enough was read.
    Stopped,
    End,
}

/// Goes over the positions of a plan in its direction.
pub(crate) struct Walk<'a> {
    storage: &'a dyn Storage,
    account: &'a Jid,
    backward: bool,
    prefix: Bytes,
    /// Where the chunks with a counterpart are listed, and its bare JID.
    index: Option<(Bytes, &'a str)>,
    /// What is left, the next range last.
    ranges: Vec<(u64, u64)>,
    /// What is left of the range that is being read.
    range: Option<(u64, u64)>,
    /// Behind it, in the direction of the walk, keys are read next.
    cursor: Option<u64>,
    /// No key is left in the range.
    exhausted: bool,
    /// Chunks that were read ahead, by their first positions, the next one last; with the index
    /// without their values.
    ahead: Vec<(u64, Option<Bytes>)>,
    /// How many to read next.
    batch: usize,
    chunk: Option<Chunk>,
    /// Messages of the chunk, the next one last.
    entries: Vec<Entry>,
    read: usize,
    /// Chunks that the index named and that were not there.
    missing: Vec<u64>,
    /// The last message that lies before the next one.
    pub(crate) passed: Option<u64>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(storage: &'a dyn Storage, account: &'a Jid, plan: &'a Plan) -> Self {
        let index = match &plan.source {
            Source::With(with) => Some((row::with_hash_prefix(account, row::with_hash(with)), with.as_str())),
            _ => None,
        };
        let mut ranges = match &plan.source {
            Source::Positions(positions) => {
                let inside = |position: u64| {
                    plan.ranges.iter().any(|(first, last)| (*first..=*last).contains(&position))
                };
                let inside = positions.iter().filter(|position| inside(**position));
                inside.map(|position| (*position, *position)).collect()
            }
            _ => plan.ranges.clone(),
        };
        if !plan.backward {
            ranges.reverse();
        }
        // One message beyond the page tells whether it is complete, and chunks may be short.
        let wanted = plan.skip.saturating_add(plan.max).saturating_add(1);
        let batch = if wanted > 8 { wanted.div_ceil(MAX_ROWS).saturating_add(1) } else { 1 };
        Self {
            storage,
            account,
            backward: plan.backward,
            prefix: row::prefix(account),
            index,
            ranges,
            range: None,
            cursor: None,
            exhausted: true,
            ahead: Vec::new(),
            batch: batch.min(MAX_CHUNKS),
            chunk: None,
            entries: Vec::new(),
            read: 0,
            missing: Vec::new(),
            passed: None,
        }
    }

    /// The chunk of the message that came last.
    pub(crate) fn chunk(&self) -> Option<&Chunk> {
        self.chunk.as_ref()
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Result<Step, StorageError> {
        loop {
            if let Some(entry) = self.entries.pop() {
                return Ok(Step::Message(entry));
            }
            let Some((first, value)) = self.next_chunk().await? else { return Ok(Step::End) };
            if self.read >= MAX_READ && self.passed.is_some() {
                return Ok(Step::Stopped);
            }
            match Chunk::decode(first, &value) {
                Ok(chunk) => self.enter(chunk),
                // One damaged chunk must not hide those around it; it stays for repair.
                Err(error) => self.damaged(first, &error),
            }
        }
    }

    fn damaged(&self, first: u64, error: &StorageError) {
        tracing::error!(account = %self.account, first, %error, "a chunk of an archive is damaged");
    }

    /// Takes up the messages of a chunk that lie in the range, and what is left of the range.
    fn enter(&mut self, chunk: Chunk) {
        let Some((first, last)) = self.range else { return };
        self.read += chunk.size();
        let mut passed = None;
        for entry in chunk.entries() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.damaged(chunk.head.first, &error);
                    break;
                }
            };
            if entry.position < first || entry.position > last {
                continue;
            }
            if !self.backward || passed.is_none() {
                passed = Some(entry.position);
            }
            if self.index.as_ref().is_none_or(|(_, with)| with.as_bytes() == chunk.with(&entry)) {
                self.entries.push(entry);
            }
        }
        if self.entries.is_empty() {
            // There is one to go on from, even if none was looked for.
            self.passed = passed.or(self.passed);
        }
        self.range = match self.backward {
            true => chunk.head.first.checked_sub(1).map(|left| (first, last.min(left))),
            false => chunk.head.last.checked_add(1).map(|left| (first.max(left), last)),
        };
        self.range = self.range.filter(|(first, last)| first <= last);
        if !self.backward {
            self.entries.reverse();
        }
        self.chunk = Some(chunk);
    }

    /// The next chunk that may have messages of the ranges.
    async fn next_chunk(&mut self) -> Result<Option<(u64, Bytes)>, StorageError> {
        loop {
            let Some(range) = self.range else {
                let Some(range) = self.ranges.pop() else { return Ok(None) };
                (self.range, self.cursor, self.exhausted) = (Some(range), None, false);
                self.ahead.clear();
                continue;
            };
            match self.ahead.pop() {
                // A chunk lies before the range that does not reach into it, or was replaced by one
                // that was read already: going on shows.
                Some((first, _)) if first > range.1 => {}
                Some((first, Some(value))) => return Ok(Some((first, value))),
                Some((first, None)) => {
                    let key = row::key(&self.prefix, first);
                    match self.storage.get(ROWS, key).await? {
                        Some(value) => return Ok(Some((first, value))),
                        // Replaced since the index was read, which then names the new ones; or
                        // damaged, which reading again does not change.
                        None if self.missing.len() < MAX_AGAIN && !self.missing.contains(&first) => {
                            self.missing.push(first);
                            self.ahead.clear();
                            (self.cursor, self.exhausted) = (None, false);
                        }
                        None => {}
                    }
                }
                None if self.exhausted => self.range = None,
                None => self.read_ahead(range).await?,
            }
        }
    }

    /// Reads keys of a range, and with them the chunks unless it is the index that is read.
    async fn read_ahead(&mut self, (first, last): (u64, u64)) -> Result<(), StorageError> {
        let (space, prefix) = match &self.index {
            Some((index, _)) => (WITH, index),
            None => (ROWS, &self.prefix),
        };
        let lowest = Bound::Included(row::key(prefix, 0));
        // Forward, the first chunk may begin before the range; backward, the last one read may.
        let covering = !self.backward && self.cursor.is_none();
        let (start, end, limit) = match (self.backward, self.cursor) {
            (true, None) => (lowest, Bound::Included(row::key(prefix, last)), self.batch),
            (true, Some(cursor)) => (lowest, Bound::Excluded(row::key(prefix, cursor)), self.batch),
            (false, None) => (lowest, Bound::Included(row::key(prefix, first)), 1),
            (false, Some(cursor)) => {
                let behind = Bound::Excluded(row::key(prefix, cursor));
                (behind, Bound::Included(row::key(prefix, last)), self.batch)
            }
        };
        let limit = if self.index.is_some() && !covering { INDEX_KEYS } else { limit };
        let range = ScanRange { start, end, reverse: self.backward || covering, limit };
        let rows = self.storage.scan(space, range).await?;
        for (key, value) in &rows {
            let value = self.index.is_none().then(|| value.clone());
            self.ahead.push((row::position_of(key, prefix)?, value));
        }
        let end = self.ahead.last().map(|(end, _)| *end);
        if covering {
            let cursor = end.unwrap_or(0).max(first);
            (self.cursor, self.exhausted) = (Some(cursor), cursor >= last);
        } else {
            self.cursor = end.or(self.cursor);
            // A chunk that begins at or before a range's first message is the last one of it.
            let is_last = self.backward && end.is_some_and(|end| end <= first);
            self.exhausted = rows.len() < limit || is_last;
            // Where chunks are short, a page takes many of them.
            self.batch = (self.batch * 2).min(MAX_CHUNKS);
        }
        self.ahead.reverse();
        Ok(())
    }
}
