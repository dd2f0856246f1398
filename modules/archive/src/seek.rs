//! Finds the positions of a span of time, by halving.
//!
//! What must hold: every message of the span lies in the ranges that come out; times need not
//! be in order for that, only nearly, within each sorted segment (see `state.rs`).

use std::ops::Bound;

use waystation_core::Jid;
use waystation_core::storage::{ScanRange, Storage, StorageError};

use crate::row::{self, ROWS, Row};
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
            if let Some(start) = start {
                // All that lies before a message of this time is older than `start`.
                let time = start.saturating_sub(SLACK);
                first = first_not_before(storage, account, (first, last), time).await?;
            }
            if let Some(end) = end {
                // All that lies behind a message of this time is younger than `end`.
                let time = end.saturating_add(SLACK).saturating_add(1);
                last = first_not_before(storage, account, (first, last), time).await?.saturating_sub(1);
            }
        }
        if first <= last && last > 0 {
            out.push((first, last));
        }
    }
    Ok(out)
}

/// A position such that the message before it is older than `time` and the one at or behind it is
/// not; one past the range when all are older.
async fn first_not_before(
    storage: &dyn Storage,
    account: &Jid,
    (first, last): (u64, u64),
    time: i64,
) -> Result<u64, StorageError> {
    let prefix = row::prefix(account);
    // Below `low` lies only what is older, at or above `high` begins what is not.
    let (mut low, mut high) = (first, last.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        let range = ScanRange {
            start: Bound::Included(row::key(&prefix, middle)),
            end: Bound::Excluded(row::key(&prefix, high)),
            reverse: false,
            limit: 1,
        };
        match storage.scan(ROWS, range).await?.first() {
            Some((key, value)) if Row::decode(value)?.at.unix_millis() < time => {
                low = row::position_of(key, &prefix)?.saturating_add(1);
            }
            _ => high = middle,
        }
    }
    Ok(low)
}
