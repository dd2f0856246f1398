//! Finds the chunks of a span of time, by halving.
//!
//! What must hold: every message of the span lies in the ranges that come out; times need not
//! be in order for that, only nearly, within each sorted segment (see `state.rs`).

use std::ops::Bound;

use waystation_core::Jid;
use waystation_core::storage::{ScanRange, Storage, StorageError};

use crate::chunk::{Head, ROWS};
use crate::row;
use crate::state::{SLACK, State};

/// Archives of up to this many messages are not searched: reading them costs no more.
const SMALL: u64 = 64;

/// The ranges of positions where messages from `start` to `end` may lie, in milliseconds since
/// 1970, ascending.
pub(crate) async fn ranges(
    storage: &dyn Storage,
    account: &Jid,
    state: &State,
    start: Option<i64>,
    end: Option<i64>,
) -> Result<Vec<(u64, u64)>, StorageError> {
    let mut out = Vec::new();
    for (mut first, mut last, sorted) in state.segments() {
        if sorted && state.messages > SMALL {
            let segment = (first, last);
            if let Some(start) = start {
                // All that lies before a message of this time is older than `start`.
                let time = start.saturating_sub(SLACK);
                first = around(storage, account, segment, time).await?.0.unwrap_or(first);
            }
            if let Some(end) = end {
                // All that lies behind a message of this time is younger than `end`.
                let time = end.saturating_add(SLACK).saturating_add(1);
                let behind = around(storage, account, segment, time).await?.1;
                last = behind.map_or(last, |behind| behind.saturating_sub(1));
            }
        }
        if first <= last && last > 0 {
            out.push((first, last));
        }
    }
    Ok(out)
}

/// First positions of two chunks that begin in the range and have no other between them: one
/// whose first message is older than `time`, and one whose first message is not.
async fn around(
    storage: &dyn Storage,
    account: &Jid,
    (first, last): (u64, u64),
    time: i64,
) -> Result<(Option<u64>, Option<u64>), StorageError> {
    let prefix = row::prefix(account);
    let (mut before, mut behind) = (None, None);
    // Chunks that begin below `low` are not looked at any more, nor those at or above `high`.
    let (mut low, mut high) = (first, last.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        let range = ScanRange {
            start: Bound::Included(row::key(&prefix, low)),
            end: Bound::Included(row::key(&prefix, middle)),
            reverse: true,
            limit: 1,
        };
        let rows = storage.scan(ROWS, range).await?;
        let Some((key, value)) = rows.first() else {
            low = middle.saturating_add(1);
            continue;
        };
        let found = row::position_of(key, &prefix)?;
        if Head::decode(found, value)?.time < time {
            before = Some(found);
            low = middle.saturating_add(1);
        } else {
            behind = Some(found);
            high = found;
        }
    }
    Ok((before, behind))
}
