//! Reads a page of an archive out of the store.
//!
//! What must hold: a page is a run of consecutive matches, at most as long as its limits; it is
//! complete only if no match lies beyond it; a query looks at a bounded number of rows, and when
//! that bound ends it early, whoever goes on behind what it names misses nothing.

use std::ops::Bound;

use bytes::Bytes;
use waystation_core::Jid;
use waystation_core::storage::{ScanRange, Storage, StorageError};

use crate::row::{self, ROWS, Row, WITH};

/// Rows read at a time: few enough that a chunk of the largest stanzas stays small.
const CHUNK: usize = 64;
/// Index rows read at a time.
const INDEX_CHUNK: usize = 256;

/// Where the matches are looked for.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Among all messages.
    All,
    /// Among those with a counterpart, by its bare JID.
    With(String),
    /// At these positions, ascending.
    Positions(Vec<u64>),
}

/// What every match has to be, besides lying in a range.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matching {
    /// With this bare JID as the counterpart.
    pub(crate) with: Option<Jid>,
    /// To or from exactly this JID.
    pub(crate) address: Option<Jid>,
    /// Not before, in milliseconds since 1970.
    pub(crate) start: Option<i64>,
    /// Not after.
    pub(crate) end: Option<i64>,
    /// Of type groupchat or not.
    pub(crate) groupchat: Option<bool>,
}

impl Matching {
    fn holds(&self, row: &Row) -> Result<bool, StorageError> {
        let millis = row.at.unix_millis();
        let cheap = self.with.as_ref().is_none_or(|with| with.as_str() == &*row.with)
            && self.start.is_none_or(|start| millis >= start)
            && self.end.is_none_or(|end| millis <= end)
            && self.groupchat.is_none_or(|wanted| wanted || !row.groupchat);
        let Some(address) = self.address.as_ref().filter(|_| cheap) else { return Ok(cheap) };
        let stanza = row.stanza()?;
        Ok(stanza.to() == Some(address) || stanza.from() == Some(address))
    }
}

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) source: Source,
    pub(crate) matching: Matching,
    /// First and last positions where matches may lie, ascending and apart from each other.
    pub(crate) ranges: Vec<(u64, u64)>,
    /// The last matches instead of the first.
    pub(crate) backward: bool,
    /// Matches to leave out before the page begins.
    pub(crate) skip: usize,
    /// Most messages of the page.
    pub(crate) max: usize,
    /// The page ends with the message that makes it this large.
    pub(crate) max_bytes: u64,
    /// Most rows to look at.
    pub(crate) max_rows: usize,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Positions and rows, ascending.
    pub(crate) rows: Vec<(u64, Row)>,
    /// True when no match lies beyond the page, in the direction of reading.
    pub(crate) complete: bool,
    /// How many matches were met, those before and the one behind the page included.
    pub(crate) met: usize,
    /// The last position that was looked at when the bound ended the reading.
    pub(crate) stopped_at: Option<u64>,
}

/// Reads what a plan asks for.
pub(crate) async fn read(storage: &dyn Storage, account: &Jid, plan: &Plan) -> Result<Page, StorageError> {
    let mut walk = Walk::new(storage, account, plan);
    let mut page = Page::default();
    let (mut looked, mut bytes, mut full) = (0, 0, plan.max == 0);
    loop {
        let Some((position, value)) = walk.next().await? else {
            page.complete = true;
            break;
        };
        if looked >= plan.max_rows {
            page.stopped_at = walk.before;
            break;
        }
        looked += 1;
        walk.before = Some(position);
        // Removed since the index was read.
        let Some(value) = value else { continue };
        let (row, holds) = match Row::decode(&value).and_then(|row| Ok((plan.matching.holds(&row)?, row))) {
            Ok((holds, row)) => (row, holds),
            // One damaged message must not hide those around it; it stays for repair.
            Err(error) => {
                tracing::error!(%account, position, %error, "an archived message is damaged");
                continue;
            }
        };
        if !holds {
            continue;
        }
        page.met += 1;
        if page.met <= plan.skip {
            continue;
        }
        if full {
            break;
        }
        bytes += row.stanza_len();
        page.rows.push((position, row));
        full = page.rows.len() >= plan.max || bytes >= plan.max_bytes;
    }
    if plan.backward {
        page.rows.reverse();
    }
    Ok(page)
}

/// Counts the matches of a plan, as far as its bound on rows allows; `None` beyond.
pub(crate) async fn count(
    storage: &dyn Storage,
    account: &Jid,
    plan: &Plan,
) -> Result<Option<usize>, StorageError> {
    let all = Plan { skip: usize::MAX, max: 0, ..plan.clone() };
    let page = read(storage, account, &all).await?;
    Ok(page.complete.then_some(page.met))
}

/// Goes over the positions of a plan in its direction.
struct Walk<'a> {
    storage: &'a dyn Storage,
    source: &'a Source,
    backward: bool,
    prefix: Bytes,
    index: Option<Bytes>,
    /// What is left, the next range last.
    ranges: Vec<(u64, u64)>,
    /// What was read ahead, the next one last.
    ahead: Vec<(u64, Option<Bytes>)>,
    /// How many to read next.
    chunk: usize,
    /// The position that was looked at before.
    before: Option<u64>,
}

impl<'a> Walk<'a> {
    fn new(storage: &'a dyn Storage, account: &Jid, plan: &'a Plan) -> Self {
        let index = match &plan.source {
            Source::With(with) => Some(row::with_prefix(account, with)),
            _ => None,
        };
        let mut ranges = plan.ranges.clone();
        if !plan.backward {
            ranges.reverse();
        }
        let most = if index.is_some() { INDEX_CHUNK } else { CHUNK };
        Self {
            storage,
            source: &plan.source,
            backward: plan.backward,
            prefix: row::prefix(account),
            index,
            ranges,
            ahead: Vec::new(),
            // One beyond the page tells whether it is complete.
            chunk: plan.skip.saturating_add(plan.max).saturating_add(1).min(most),
            before: None,
        }
    }

    /// The next position, with its row unless that has gone.
    async fn next(&mut self) -> Result<Option<(u64, Option<Bytes>)>, StorageError> {
        while self.ahead.is_empty() {
            let Some(range) = self.ranges.pop() else { return Ok(None) };
            self.read_ahead(range).await?;
        }
        let Some((position, value)) = self.ahead.pop() else { return Ok(None) };
        if matches!(self.source, Source::All) {
            return Ok(Some((position, value)));
        }
        let value = self.storage.get(ROWS, row::key(&self.prefix, position)).await?;
        Ok(Some((position, value)))
    }

    /// Reads a chunk of a range, and puts what is left of the range back.
    async fn read_ahead(&mut self, (first, last): (u64, u64)) -> Result<(), StorageError> {
        if let Source::Positions(positions) = self.source {
            let inside = positions.iter().filter(|&&position| position >= first && position <= last);
            self.ahead = inside.map(|&position| (position, None)).collect();
            if !self.backward {
                self.ahead.reverse();
            }
            return Ok(());
        }
        let (space, prefix) = match &self.index {
            Some(index) => (WITH, index),
            None => (ROWS, &self.prefix),
        };
        let range = ScanRange {
            start: Bound::Included(row::key(prefix, first)),
            end: Bound::Included(row::key(prefix, last)),
            reverse: self.backward,
            limit: self.chunk,
        };
        let rows = self.storage.scan(space, range).await?;
        for (key, value) in &rows {
            self.ahead.push((row::position_of(key, prefix)?, Some(value.clone())));
        }
        if let Some(&(end, _)) = self.ahead.last()
            && rows.len() >= self.chunk
        {
            let left = match self.backward {
                true => end.checked_sub(1).map(|end| (first, end)),
                false => end.checked_add(1).map(|end| (end, last)),
            };
            self.ranges.extend(left.filter(|(first, last)| first <= last));
        }
        self.ahead.reverse();
        Ok(())
    }
}
