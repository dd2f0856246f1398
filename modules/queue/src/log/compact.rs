//! Moves the few live records of old segments together, so that the rest of the disk is given back.
//!
//! What must hold: the order of ids over segments stays as it is, for only neighbours are merged,
//! and the result takes the place of the first of them under a new generation; a record keeps its
//! id, its time and its bytes, CRC included, and is checked before it is copied; a segment with
//! anything damaged in it stays as it is. The old files are removed after the checkpoint names the
//! new one.

use std::collections::HashMap;
use std::sync::Arc;

use waystation_core::queue::QueueName;

use crate::fs::{read_exact, write_all};
use crate::log::committer::Committer;
use crate::log::frame::{Encoder, RECORD_HEADER, Stamp, StoredRecord};
use crate::log::index::{self, Identity, IndexRun, PER_PAGE, SegmentFiles, Slot, file_names};
use crate::log::keep::{KeepError, keep_error};
use crate::log::keeper;
use crate::log::recover::now_ms;
use crate::log::segment::{self, SegmentHeader};
use crate::log::state::{RECORD_COST, Sealed, State};

/// Segments that are merged for being many, however full they are.
const MANY: usize = 8;
/// Merges of one turn, so that commits are not held up for long.
const MERGES: usize = 4;
/// Bytes of records in one frame of a compacted segment.
const FRAME: usize = 256 * 1024;

/// A live slot of a segment that is to be merged.
struct Item {
    slot: Slot,
    /// Which of the merged segments, and which of the queues.
    from: usize,
    queue: usize,
}

/// What was read of the segments that are to be merged.
struct Plan {
    window: Vec<Arc<SegmentFiles>>,
    queues: Vec<QueueName>,
    items: Vec<Item>,
}

/// Why a merge was given up.
enum Failed {
    Keep(KeepError),
    /// This segment is damaged.
    Damaged(u32),
}

impl From<KeepError> for Failed {
    fn from(error: KeepError) -> Self {
        Self::Keep(error)
    }
}

impl Committer {
    /// Compacts what is worth it.
    pub(crate) fn compact(&mut self) -> Result<(), KeepError> {
        for _ in 0..MERGES {
            let window = self.choose();
            if window.is_empty() {
                return Ok(());
            }
            match self.merge(&window) {
                Ok(()) => {}
                Err(Failed::Damaged(segment)) => {
                    tracing::error!(
                        segment,
                        "a segment is damaged and was not compacted; run `waystation queue repair`"
                    );
                    self.damaged.insert(segment);
                }
                Err(Failed::Keep(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Neighbours whose live records need little of the disk that they take.
    fn choose(&self) -> Vec<u32> {
        let state = self.shared.state();
        let limit = u64::from(self.options.segment_bytes) / 2;
        let mut window = Vec::new();
        let (mut live, mut disk) = (0, 0);
        for (number, sealed) in state.sealed.iter().filter(|(_, sealed)| sealed.live > 0) {
            let usable = !self.damaged.contains(number) && sealed.live_bytes <= limit;
            if !usable || live + sealed.live_bytes > limit {
                if worth(window.len(), live, disk) {
                    break;
                }
                window.clear();
                (live, disk) = (0, 0);
                if !usable {
                    continue;
                }
            }
            window.push(*number);
            live += sealed.live_bytes;
            disk += sealed.files.log_len;
        }
        if worth(window.len(), live, disk) { window } else { Vec::new() }
    }

    fn merge(&mut self, window: &[u32]) -> Result<(), Failed> {
        let gathered = gather(&self.shared.state(), window);
        let mut plan = read_slots(gathered)?;
        plan.items.sort_unstable_by_key(|item| (item.slot.id, item.queue));
        let (Some(first), Some(last)) = (plan.window.first(), plan.window.last()) else { return Ok(()) };
        let (number, generation) = (first.number, first.generation + 1);
        let first_id = plan.items.first().map_or(0, |item| item.slot.id);
        let header = SegmentHeader { number, generation, last: last.last, first_id };
        let (log_name, index_name) = file_names(number, generation);
        let index_path = self.folder.join(index_name);
        match self.write_merged(&plan, header, &index_path) {
            Ok((sealed, runs)) => {
                let paths = plan.window.iter().flat_map(|old| old.paths());
                self.unneeded.extend(paths);
                self.shared.state_mut().replace(window, sealed, &runs);
                Ok(())
            }
            Err(error) => {
                // The next open removes them otherwise.
                let _ = self.fs.remove(&self.folder.join(log_name));
                let _ = self.fs.remove(&index_path);
                Err(error)
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "the two parts of one change of the state")]
    fn write_merged(
        &self,
        plan: &Plan,
        header: SegmentHeader,
        index_path: &std::path::Path,
    ) -> Result<(Sealed, Vec<(QueueName, u64, u32)>), Failed> {
        let log = segment::create(&*self.fs, &self.folder, header, u64::from(segment::HEADER))
            .map_err(keep_error("making a segment"))?;
        let mut slots: HashMap<usize, Vec<Slot>> = HashMap::new();
        let mut position = u64::from(segment::HEADER);
        let mut encoder = Encoder::default();
        let mut rest = &plan.items[..];
        let mut live_bytes = 0;
        while !rest.is_empty() {
            let frame = take_frame(&mut rest);
            encoder.clear();
            encoder.begin();
            let records: Vec<&[Item]> = frame.chunk_by(|a, b| a.slot.id == b.slot.id).collect();
            for record in &records {
                encoder.queues(record.iter().map(|item| &*plan.queues[item.queue]));
            }
            encoder.payloads();
            for record in records {
                let item = &record[0];
                let bytes = read_record(plan, item)?;
                let offset = (position + encoder.copied(&bytes) as u64) as u32;
                for item in record {
                    slots.entry(item.queue).or_default().push(Slot { offset, ..item.slot });
                    live_bytes += u64::from(item.slot.len) + RECORD_COST;
                }
            }
            encoder.end(Stamp {
                segment: header.number,
                first_id: frame.first().map_or(0, |item| item.slot.id),
                time_ms: now_ms(),
                synced: 0,
                copy: true,
            });
            encoder.finish();
            write_all(&*log.file, &mut encoder.slices(), position)
                .map_err(keep_error("writing a compacted segment"))?;
            position += encoder.len() as u64;
        }
        log.file.sync().map_err(|error| KeepError::Stop(format!("flushing a compacted segment: {error}")))?;
        let runs: Vec<_> = plan
            .queues
            .iter()
            .enumerate()
            .filter_map(|(index, queue)| {
                Some(IndexRun { queue: QueueName::clone(queue), slots: slots.remove(&index)? })
            })
            .collect();
        let SegmentHeader { number, generation, last, .. } = header;
        let identity = Identity { number, generation, last, log_len: position };
        let (index, slots) = index::write_runs(&*self.fs, index_path, &identity, &runs)
            .map_err(keep_error("writing an index"))?;
        keeper::sync_folder(&*self.fs, &self.folder)?;
        let files = Arc::new(SegmentFiles::new(&identity, slots, log, index, index_path.to_owned()));
        let done = Arc::new(vec![0; (slots as usize).div_ceil(64)]);
        let runs = runs
            .into_iter()
            .map(|run| (run.queue, run.slots.first().map_or(0, |slot| slot.id), run.slots.len() as u32));
        Ok((Sealed { files, done, live: slots, live_bytes }, runs.collect()))
    }
}

/// Whether merging so many segments with so many live bytes gives back enough.
fn worth(segments: usize, live: u64, disk: u64) -> bool {
    segments > 0 && (disk >= live.saturating_mul(4) || segments >= MANY)
}

/// Takes the items of one frame off the front; those of one record stay together.
fn take_frame<'a>(rest: &mut &'a [Item]) -> &'a [Item] {
    let mut bytes = 0;
    let mut end = 0;
    while let Some(item) = rest.get(end) {
        let same = end > 0 && rest[end - 1].slot.id == item.slot.id;
        if !same {
            if bytes >= FRAME {
                break;
            }
            bytes += item.slot.len as usize + RECORD_HEADER;
        }
        end += 1;
    }
    let (frame, behind) = rest.split_at(end);
    *rest = behind;
    frame
}

/// The runs of the segments, as (which segment, which queue, bits that are live).
type Runs = Vec<(usize, usize, u32, Vec<bool>)>;

fn gather(state: &State, window: &[u32]) -> (Vec<Arc<SegmentFiles>>, Vec<QueueName>, Runs) {
    let files: Vec<_> =
        window.iter().filter_map(|number| Some(Arc::clone(&state.sealed.get(number)?.files))).collect();
    let mut queues = Vec::new();
    let mut runs = Vec::new();
    for queue in state.all_queues() {
        let mut any = false;
        for run in &queue.runs {
            let Ok(from) = window.binary_search(&run.segment) else { continue };
            let Some(sealed) = state.sealed.get(&run.segment) else { continue };
            any = true;
            let live = (run.start..run.start + run.count).map(|slot| !sealed.is_done(slot)).collect();
            runs.push((from, queues.len(), run.start, live));
        }
        if any {
            queues.push(QueueName::clone(&queue.name));
        }
    }
    (files, queues, runs)
}

/// Reads the slots of the runs.
fn read_slots(
    (window, queues, runs): (Vec<Arc<SegmentFiles>>, Vec<QueueName>, Runs),
) -> Result<Plan, Failed> {
    let mut items = Vec::new();
    let mut page: Option<(usize, u32, index::Page)> = None;
    for (from, queue, start, live) in runs {
        for (slot, _) in (start..).zip(&live).filter(|(_, live)| **live) {
            let number = slot / PER_PAGE;
            let loaded = match page.take() {
                Some(loaded) if (loaded.0, loaded.1) == (from, number) => loaded,
                _ => {
                    let read = index::load(&window[from], number);
                    (from, number, read.map_err(|_| Failed::Damaged(window[from].number))?)
                }
            };
            items.push(Item { slot: loaded.2[(slot % PER_PAGE) as usize], from, queue });
            page = Some(loaded);
        }
    }
    Ok(Plan { window, queues, items })
}

fn read_record(plan: &Plan, item: &Item) -> Result<Vec<u8>, Failed> {
    let files = &plan.window[item.from];
    let damaged = || Failed::Damaged(files.number);
    let mut bytes = vec![0; RECORD_HEADER + item.slot.len as usize];
    read_exact(&*files.log.file, &mut bytes, u64::from(item.slot.offset)).map_err(|_| damaged())?;
    match StoredRecord::parse(&bytes) {
        Some(stored) if stored.id == item.slot.id && stored.bytes.len() == bytes.len() => Ok(bytes),
        _ => Err(damaged()),
    }
}
