//! Reads a page of an archive out of the store.
//!
//! What must hold: a page is a run of consecutive matches, at most as long as its limits; it is
//! complete only if no match lies beyond it; a query looks at a bounded number of messages (with a
//! counterpart, at so many of that one's) and reads a bounded number of bytes, and when such a
//! bound ends it early, whoever goes on behind what it names misses nothing.

use waystation_core::Jid;
use waystation_core::storage::{Storage, StorageError};

use crate::chunk::{Chunk, Entry};
use crate::row::Row;
use crate::walk::{Step, Walk};

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
    fn holds(&self, chunk: &Chunk, entry: &Entry) -> Result<bool, StorageError> {
        let millis = entry.at.unix_millis();
        let cheap = self.with.as_ref().is_none_or(|with| with.as_str().as_bytes() == chunk.with(entry))
            && self.start.is_none_or(|start| millis >= start)
            && self.end.is_none_or(|end| millis <= end)
            && self.groupchat.is_none_or(|wanted| wanted || !entry.groupchat);
        let Some(address) = self.address.as_ref().filter(|_| cheap) else { return Ok(cheap) };
        let stanza = chunk.stanza(entry)?;
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
        let entry = match walk.next().await? {
            Step::Message(entry) => entry,
            Step::End => {
                page.complete = true;
                break;
            }
            Step::Stopped => {
                page.stopped_at = walk.passed;
                break;
            }
        };
        if looked >= plan.max_rows {
            page.stopped_at = walk.passed;
            break;
        }
        looked += 1;
        let position = entry.position;
        walk.passed = Some(position);
        let Some(chunk) = walk.chunk() else { continue };
        match plan.matching.holds(chunk, &entry) {
            Ok(true) => {}
            Ok(false) => continue,
            // One damaged message must not hide those around it; it stays for repair.
            Err(error) => {
                tracing::error!(%account, position, %error, "an archived message is damaged");
                continue;
            }
        }
        page.met += 1;
        if page.met <= plan.skip {
            continue;
        }
        if full {
            break;
        }
        bytes += entry.stanza_len();
        page.rows.push((position, chunk.row(&entry)?));
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
