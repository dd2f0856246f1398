//! What the child writes until it is killed, and how the parent judges what is left.
//!
//! Each writer has a numbered sequence of batches. Batch `n` moves the writer's head from `n - 1`
//! to `n`, on condition that it was there; puts a few rows in two spaces; and deletes those of
//! batch `n - KEPT`. Rows follow from the plan, writer and `n` alone. So the head found after a crash
//! tells exactly which rows must be there, and any other row, missing or too many, is half a batch
//! or one that came back.

use std::collections::VecDeque;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use waystation_committer::block_on;
use waystation_core::storage::{Batch, ScanRange, Space, Storage, StorageError};

const HEADS: Space = Space("heads");
const ROWS: [Space; 2] = [Space("rows"), Space("more_rows")];

/// How many writers there are.
pub(crate) const WRITERS: u64 = 4;
/// How many commits a writer issues before it awaits the first of them.
pub(crate) const AHEAD: usize = 4;
/// Of how many batches the rows are kept.
const KEPT: u64 = 12;

/// A small generator of random numbers (splitmix64).
pub(crate) struct Random(pub u64);

impl Random {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of a range.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// What rows follow from.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Length of the longest values; most are shorter than 600 bytes in any case.
    pub(crate) longest: u64,
}

/// The rows of a batch: space, key, value.
fn rows(plan: Plan, writer: u64, n: u64) -> Vec<(Space, Bytes, Bytes)> {
    let mut random = Random(plan.seed ^ (writer << 48) ^ n);
    (0..random.within(1..5))
        .map(|row| {
            // Mostly small; now and then one of several blocks, of bytes that do not compress.
            let len =
                if random.within(0..8) == 0 { random.within(0..plan.longest) } else { random.within(0..600) };
            let value: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
            let space = ROWS[usize::from(row % 2 == 1)];
            (space, format!("{writer}/{n:010}/{row}").into(), value.into())
        })
        .collect()
}

fn head_key(writer: u64) -> Bytes {
    format!("{writer}").into()
}

fn batch(plan: Plan, writer: u64, n: u64) -> Batch {
    let head = head_key(writer);
    let before = (n > 1).then(|| Bytes::from((n - 1).to_string()));
    let mut batch = Batch::new().expect(HEADS, head.clone(), before).put(HEADS, head, n.to_string());
    for (space, key, value) in rows(plan, writer, n) {
        batch = batch.put(space, key, value);
    }
    if n > KEPT {
        for (space, key, _) in rows(plan, writer, n - KEPT) {
            batch = batch.delete(space, key);
        }
    }
    batch
}

async fn head(store: &Arc<dyn Storage>, writer: u64) -> Result<u64, String> {
    let value = store.get(HEADS, head_key(writer)).await.map_err(|error| error.to_string())?;
    let Some(value) = value else { return Ok(0) };
    std::str::from_utf8(&value).ok().and_then(|v| v.parse().ok()).ok_or(format!("head {value:?}"))
}

/// Writes one line to the parent in one piece, or ends the process when nobody reads any more.
pub(crate) fn tell(line: std::fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
        std::process::exit(3);
    }
}

/// Runs every writer until the store fails; tells the parent of each acknowledged batch.
/// Returns the error of each writer.
pub(crate) fn write_until_failure(store: &Arc<dyn Storage>, plan: Plan) -> Vec<StorageError> {
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || block_on(write_one(Arc::clone(store), plan, writer))))
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer panicked")).collect()
    })
}

async fn write_one(store: Arc<dyn Storage>, plan: Plan, writer: u64) -> StorageError {
    // sled answers reads with the error of an earlier write as well; that ends the run like it.
    let mut issued = match head(&store, writer).await {
        Ok(head) => head,
        Err(error) => return StorageError::Io(error),
    };
    let mut acknowledged = issued;
    let mut commits = VecDeque::new();
    loop {
        while commits.len() < AHEAD {
            issued += 1;
            commits.push_back(store.commit(batch(plan, writer, issued)));
        }
        let Some(first) = commits.pop_front() else { continue };
        if let Err(error) = first.await {
            return error;
        }
        acknowledged += 1;
        tell(format_args!("ack {writer} {acknowledged}"));
    }
}

/// What a look at the store after a crash found.
pub(crate) struct Found {
    /// Acknowledged batches that are not there, over all writers.
    pub(crate) lost: u64,
    /// Where each writer's sequence goes on.
    pub(crate) heads: Vec<u64>,
}

/// Compares the store with what was acknowledged to each writer.
///
/// # Errors
/// A description of a batch that is there in part, or that was never issued.
pub(crate) fn judge(store: &Arc<dyn Storage>, plan: Plan, acknowledged: &[u64]) -> Result<Found, String> {
    block_on(async {
        let mut found = Found { lost: 0, heads: Vec::new() };
        for writer in 0..WRITERS {
            let head = head(store, writer).await?;
            let acked = acknowledged[usize::try_from(writer).expect("few")];
            if head > acked + AHEAD as u64 {
                return Err(format!(
                    "writer {writer}: batch {head} was never issued, {acked} was acknowledged"
                ));
            }
            found.lost += acked.saturating_sub(head);
            found.heads.push(head);
            let mut expected: Vec<_> =
                (head.saturating_sub(KEPT) + 1..=head).flat_map(|n| rows(plan, writer, n)).collect();
            let mut actual = Vec::new();
            for space in ROWS {
                let range = ScanRange::prefix(format!("{writer}/"), usize::MAX);
                let rows = store.scan(space, range).await.map_err(|error| error.to_string())?;
                actual.extend(rows.into_iter().map(|(key, value)| (space, key, value)));
            }
            expected.sort_unstable();
            actual.sort_unstable();
            if expected != actual {
                return Err(difference(writer, head, acked, &expected, &actual));
            }
        }
        Ok(found)
    })
}

type Row = (Space, Bytes, Bytes);

fn difference(writer: u64, head: u64, acked: u64, expected: &[Row], actual: &[Row]) -> String {
    let keys = |some: &[Row], others: &[Row]| -> Vec<_> {
        some.iter()
            .filter(|row| !others.contains(row))
            .take(6)
            .map(|(space, key, _)| (space.0, key.clone()))
            .collect()
    };
    format!(
        "writer {writer} at {head} ({acked} acknowledged): missing or different {:?}, too many {:?}",
        keys(expected, actual),
        keys(actual, expected)
    )
}
