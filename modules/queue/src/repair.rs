//! Makes a damaged folder usable again: sets aside what cannot be read, and says what that was.
//!
//! What must hold: nothing that can be read is given up; every damaged byte range is copied to a
//! file of its own before anything is changed; the report names all of it. What was acknowledged
//! may be served again when the verdicts on it stood in what is lost; nothing is invented.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IoSlice};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use waystation_committer::{Limit, Reserve};
use waystation_core::queue::QueueName;

use crate::error::OpenError;
use crate::fs::{FileSystem, Lock, read_exact, write_all};
use crate::log::checkpoint::{self, Checkpoint, SealedEntry};
use crate::log::committer::{Committer, Plan, Shared};
use crate::log::find::resolve;
use crate::log::frame::{ALIGN, Change, Encoder, Flaw, Frame, RECORD_HEADER, StoredRecord};
use crate::log::index::{
    self, DirectoryRun, Identity, IndexRun, LogFile, Pages, SegmentFiles, Slot, file_names,
};
use crate::log::job::Inbox;
use crate::log::keep::KeepError;
use crate::log::recover::{self, now_ms};
use crate::log::scan::Window;
use crate::log::segment::{self, Writer};
use crate::log::state::{Active, Place, Queue, RECORD_COST, State};
use crate::report::{Lost, RepairReport};
use crate::{MIN_SEGMENT, Options};

struct Repair<'a> {
    fs: &'a Arc<dyn FileSystem>,
    folder: &'a Path,
    report: RepairReport,
    aside: u32,
}

/// Repairs the log of a folder.
pub(crate) fn repair(fs: &Arc<dyn FileSystem>, folder: &Path) -> Result<RepairReport, OpenError> {
    let lock = crate::log::lock(&**fs, folder)?;
    let mut repair = Repair { fs, folder, report: RepairReport::default(), aside: 0 };
    let names = fs.list(folder).map_err(OpenError::io("list", folder))?;
    let pages = Pages::new(Options::default().cache_bytes);
    let recovered = match checkpoint::read(&**fs, folder, now_ms()) {
        Ok(Some(mut checkpoint)) => {
            repair.check_sealed(&mut checkpoint)?;
            repair.by_checkpoint(checkpoint, &names, &pages)?
        }
        Ok(None) if !names.iter().any(|name| name.ends_with(".log")) => return Ok(repair.report),
        Ok(None) => repair.by_segments(&names, &pages)?,
        Err(OpenError::Damaged { path, .. }) => {
            repair.set_file_aside(&path)?;
            repair.by_segments(&names, &pages)?
        }
        Err(other) => return Err(other),
    };
    let report = repair.report;
    if !report.is_clean() {
        put_in_force(fs, folder, recovered, pages, lock)?;
        fs.sync_folder(folder).map_err(OpenError::io("flush", folder))?;
    }
    Ok(report)
}

/// Seals what was recovered, so that no damaged part of a segment is read again, and writes a
/// checkpoint of it.
fn put_in_force(
    fs: &Arc<dyn FileSystem>,
    folder: &Path,
    recovered: Recovered,
    pages: Pages,
    lock: Box<dyn Lock>,
) -> Result<(), OpenError> {
    let Recovered { state, writer, unsealed } = recovered;
    let limit = Limit { entries: 1, bytes: 1 };
    let inbox = Arc::new(Inbox::new(limit, limit));
    let shared = Shared { state: RwLock::new(state), pages, inbox, closed: AtomicBool::new(false) };
    // The indexes that were rebuilt are about to be named by a checkpoint.
    fs.sync_folder(folder).map_err(OpenError::io("flush", folder))?;
    let mut committer = Committer {
        shared: Arc::new(shared),
        fs: Arc::clone(fs),
        folder: folder.to_owned(),
        // The next open takes as much for it as it is told to.
        options: Options { segment_bytes: MIN_SEGMENT, ..Options::default() },
        writer,
        encoder: Encoder::default(),
        plan: Plan::default(),
        reserve: Reserve::none(),
        keeper: None,
        busy: false,
        no_room: false,
        next: None,
        unsealed,
        unneeded: Vec::new(),
        trim: Vec::new(),
        damaged: HashSet::new(),
        checkpoint_at: (0, 0),
        _lock: lock,
    };
    committer.roll().and_then(|()| committer.finish()).map_err(|error| {
        let source = match error {
            KeepError::Full => io::ErrorKind::StorageFull.into(),
            KeepError::Stop(text) => io::Error::other(text),
        };
        OpenError::io("write what was repaired in", folder)(source)
    })
}

impl Repair<'_> {
    /// Copies damaged bytes to a file of their own, and notes them.
    fn lose(
        &mut self,
        log: &LogFile,
        range: std::ops::Range<u64>,
        records: Option<RangeInclusive<u64>>,
        detail: impl Into<String>,
    ) -> Result<(), OpenError> {
        let kept = self.side_file();
        let file = self.fs.create(&kept).map_err(OpenError::io("make", &kept))?;
        let mut window = Window::new(log)?;
        let end = range.end.min(window.len);
        let mut at = range.start;
        while at < end {
            let bytes = window.get(at, 1)?;
            let take = (end - at).min(bytes.len() as u64);
            write_all(&*file, &mut [IoSlice::new(&bytes[..take as usize])], at - range.start)
                .map_err(OpenError::io("write", &kept))?;
            at += take;
        }
        file.sync().map_err(OpenError::io("flush", &kept))?;
        self.report.lost.push(Lost {
            file: log.path.clone(),
            offset: range.start,
            bytes: range.end - range.start,
            records,
            detail: detail.into(),
            kept: Some(kept),
        });
        Ok(())
    }

    fn side_file(&mut self) -> PathBuf {
        self.aside += 1;
        self.folder.join(format!("damaged-{}-{}", now_ms(), self.aside))
    }

    fn set_file_aside(&mut self, path: &Path) -> Result<PathBuf, OpenError> {
        let kept = self.side_file();
        self.fs.rename(path, &kept).map_err(OpenError::io("rename", path))?;
        Ok(kept)
    }

    fn open_log(&self, path: PathBuf) -> Result<Option<Arc<LogFile>>, OpenError> {
        match self.fs.open(&path) {
            Ok(file) => Ok(Some(Arc::new(LogFile { file, path }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OpenError::io("open", &path)(error)),
        }
    }

    /// Reads everything that is live in sealed segments; takes out of the checkpoint what is gone.
    fn check_sealed(&mut self, checkpoint: &mut Checkpoint) -> Result<(), OpenError> {
        // Counted anew from what is found.
        checkpoint.sealed_bytes.clear();
        for mut entry in std::mem::take(&mut checkpoint.sealed) {
            let (log_name, index_name) = file_names(entry.number, entry.generation);
            let Some(log) = self.open_log(self.folder.join(log_name))? else {
                self.report.lost.push(Lost {
                    file: self.folder.join(file_names(entry.number, entry.generation).0),
                    offset: 0,
                    bytes: 0,
                    records: None,
                    detail: format!("the file is missing; it held {} records of queues", entry.slots),
                    kept: None,
                });
                continue;
            };
            let opened = index::open(&**self.fs, self.folder, entry.number, entry.generation);
            let files = match opened {
                Ok((files, runs)) if files.slots == entry.slots => Some((files, runs)),
                Ok(_) | Err(OpenError::Damaged { .. }) => None,
                Err(other) => return Err(other),
            };
            let damaged = match &files {
                Some((files, runs)) => inspect(files, runs, &entry, &mut checkpoint.sealed_bytes)?,
                None => None,
            };
            match (files, damaged) {
                (Some((files, _)), Some(damaged)) => {
                    for (number, slot) in damaged {
                        let begin = u64::from(slot.offset);
                        let end = begin + RECORD_HEADER as u64 + u64::from(slot.len);
                        let seen =
                            self.report.lost.iter().any(|l| l.file == files.log.path && l.offset == begin);
                        if !seen {
                            let only = Some(slot.id..=slot.id);
                            self.lose(&files.log, begin..end, only, "a record's check sum is wrong")?;
                        }
                        entry.done[(number / 64) as usize] |= 1 << (number % 64);
                    }
                    checkpoint.sealed.push(entry);
                }
                _ => {
                    let index_path = self.folder.join(index_name);
                    if self.fs.open(&index_path).is_ok() {
                        self.set_file_aside(&index_path)?;
                    }
                    self.report.served_again.push(log.path.clone());
                    let mut state = scratch(&log, entry.number);
                    self.read_segment(&mut state, &Pages::new(0), u64::from(segment::HEADER))?;
                    let rebuilt = self.write_index(&state, entry.number, entry.generation)?;
                    for (queue, bytes) in rebuilt.bytes {
                        *checkpoint.sealed_bytes.entry(queue).or_default() += bytes;
                    }
                    checkpoint.sealed.extend(rebuilt.entry);
                }
            }
        }
        Ok(())
    }

    fn by_checkpoint(
        &mut self,
        checkpoint: Checkpoint,
        names: &[String],
        pages: &Pages,
    ) -> Result<Recovered, OpenError> {
        let position = checkpoint.position;
        let name = file_names(position.segment, 0).0;
        if !names.contains(&name) {
            let path = self.folder.join(&name);
            self.report.lost.push(Lost {
                file: path.clone(),
                offset: 0,
                bytes: 0,
                records: None,
                detail: "the file is missing".to_owned(),
                kept: None,
            });
            // An empty one in its place, from which the log goes on.
            self.fs.create(&path).map_err(OpenError::io("make", &path))?;
        }
        let sums = checkpoint.sealed_bytes.clone();
        let mut state = recover::load(&**self.fs, self.folder, checkpoint)?;
        prune(&mut state, pages, &sums)?;
        let log = Arc::clone(&state.active.log);
        let size = log.file.size().map_err(OpenError::io("look at", &log.path))?;
        if size >= u64::from(position.offset)
            && let Err(OpenError::Damaged { detail, .. }) = segment::read_header(&log)
        {
            self.lose(&log, 0..u64::from(segment::HEADER), None, detail)?;
        }
        self.check_tails(&mut state)?;
        let mut end = if size < u64::from(position.offset) {
            let range = size..u64::from(position.offset);
            self.lose(&log, range, None, "the file was cut off, and batches that were flushed with it")?;
            size
        } else {
            self.read_segment(&mut state, pages, u64::from(position.offset))?
        };
        // Batches that came behind it when a crash kept the checkpoint from being written.
        let mut unsealed = Vec::new();
        while let Some((log, at, first)) = recover::following(&**self.fs, self.folder, state.active.number)? {
            if at == u64::from(segment::HEADER) && first != state.next_id {
                let (begun, missing) =
                    (Arc::clone(&state.active.log), state.next_id..=first.saturating_sub(1));
                self.lose(&begun, end..end, Some(missing), "batches are missing at the end of the segment")?;
            }
            if let Err(OpenError::Damaged { detail, .. }) = segment::read_header(&log) {
                self.lose(&log, 0..u64::from(segment::HEADER), None, detail)?;
            }
            let (number, first_id) = (state.active.number + 1, state.next_id);
            let identity = Identity { number: number - 1, generation: 0, last: number - 1, log_len: end };
            unsealed.extend(state.seal(&identity, Active { number, first_id, log }));
            end = self.read_segment(&mut state, pages, u64::from(segment::HEADER))?;
        }
        let active = &state.active;
        let writer = Writer::new(Arc::clone(&active.log), active.number, end, end);
        Ok(Recovered { state, writer, unsealed })
    }

    /// Reads the records of the active segment that the checkpoint knows of.
    fn check_tails(&mut self, state: &mut State) -> Result<(), OpenError> {
        let log = Arc::clone(&state.active.log);
        let mut damaged: BTreeMap<u64, (Slot, Vec<QueueName>)> = BTreeMap::new();
        for run in state.tails() {
            for slot in run.slots.into_iter().filter(|slot| !is_whole(&log, *slot)) {
                damaged.entry(slot.id).or_insert((slot, Vec::new())).1.push(QueueName::clone(&run.queue));
            }
        }
        for (id, (slot, queues)) in damaged {
            let begin = u64::from(slot.offset);
            let end = begin + RECORD_HEADER as u64 + u64::from(slot.len);
            self.lose(&log, begin..end, Some(id..=id), "a record's check sum is wrong")?;
            for queue in queues {
                state.settle(&queue, id, Place::Tail, Change::Ack, std::time::Instant::now());
            }
        }
        Ok(())
    }

    /// Applies what can be read of the active segment from an offset on; where that ends.
    fn read_segment(&mut self, state: &mut State, pages: &Pages, from: u64) -> Result<u64, OpenError> {
        let log = Arc::clone(&state.active.log);
        let number = state.active.number;
        let mut window = Window::new(&log)?;
        let mut at = from;
        loop {
            let good = match window.frame(at, number)? {
                Ok(frame) if frame.header.first_id >= state.next_id || frame.header.copy => {
                    recover::apply(state, pages, &frame, at)?;
                    Ok(u64::from(frame.header.len))
                }
                Ok(_) => Err(Flaw::Frame),
                Err(flaw) => Err(flaw),
            };
            match good {
                Ok(len) => at += len,
                Err(Flaw::Record(_)) => at += self.salvage(state, pages, &mut window, at)?,
                Err(Flaw::Frame) => {
                    let next = window.next_frame(at + ALIGN as u64, number)?;
                    if next.is_none() && window.is_zero(at)? {
                        return Ok(at);
                    }
                    let expected = state.next_id;
                    let (end, records) = match next {
                        Some((found, header)) if header.first_id > expected => {
                            (found, Some(expected..=header.first_id - 1))
                        }
                        Some((found, _)) => (found, None),
                        None => (window.len, None),
                    };
                    let detail = match next {
                        Some(_) => "a batch cannot be read; its verdicts and marks, if any, are lost too",
                        None => "the end cannot be read: a batch that was not flushed, or the last one",
                    };
                    self.lose(&log, at..end, records, detail)?;
                    if next.is_none() {
                        return Ok(at);
                    }
                    at = end;
                }
            }
        }
    }

    /// Applies a batch of which some records are damaged, without these; its length.
    fn salvage(
        &mut self,
        state: &mut State,
        pages: &Pages,
        window: &mut Window<'_>,
        at: u64,
    ) -> Result<u64, OpenError> {
        let bytes = window.get(at, 0)?;
        let wanted = crate::log::frame::Header::parse(bytes).map_or(0, |header| header.len as usize);
        let bytes = window.get(at, wanted)?.to_vec();
        // Its header was right a moment ago.
        let Some(frame) = Frame::open(&bytes) else { return Ok(ALIGN as u64) };
        let mut bad = Vec::new();
        let mut id = frame.header.first_id;
        let mut begins = Vec::new();
        let _ = frame.walk(
            |offset, _, record| {
                if record.is_none() {
                    bad.push((offset, id));
                }
                begins.push(offset);
                id = record.map_or(id, |record| record.id) + 1;
            },
            |_| (),
        );
        begins.push(frame.header.len as usize);
        let log = Arc::clone(&state.active.log);
        for (offset, id) in bad {
            let end = begins.iter().copied().find(|begin| *begin > offset).unwrap_or(bytes.len());
            let range = at + offset as u64..at + end as u64;
            self.lose(&log, range, Some(id..=id), "a record's check sum is wrong")?;
        }
        recover::apply_what_is_whole(state, pages, &frame, at)?;
        state.next_id = state.next_id.max(id);
        Ok(u64::from(frame.header.len))
    }

    /// Writes the index of the segment that was read into a state.
    fn write_index(&self, state: &State, number: u32, generation: u32) -> Result<Rebuilt, OpenError> {
        let log = &state.active.log;
        let runs: Vec<IndexRun> = state.tails();
        let path = self.folder.join(file_names(number, generation).1);
        if runs.is_empty() {
            return Ok(Rebuilt { entry: None, bytes: Vec::new() });
        }
        let log_len = log.file.size().map_err(OpenError::io("look at", &log.path))?;
        let last = segment::read_header(log).map_or(number, |header| header.last);
        let identity = Identity { number, generation, last, log_len };
        let (_, slots) =
            index::write_runs(&**self.fs, &path, &identity, &runs).map_err(OpenError::io("write", &path))?;
        let bytes_of = |run: &IndexRun| run.slots.iter().map(|slot| u64::from(slot.len)).sum::<u64>();
        let live_bytes = runs.iter().map(|run| bytes_of(run) + RECORD_COST * run.slots.len() as u64).sum();
        let done = vec![0; (slots as usize).div_ceil(64)];
        let bytes = runs.iter().map(|run| (QueueName::clone(&run.queue), bytes_of(run))).collect();
        Ok(Rebuilt { entry: Some(SealedEntry { number, generation, live_bytes, slots, done }), bytes })
    }

    /// Rebuilds the state from all segments there are: the checkpoint is lost.
    fn by_segments(&mut self, names: &[String], pages: &Pages) -> Result<Recovered, OpenError> {
        self.report.marks_lost = true;
        let mut found: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for name in names {
            let Some((number, generation)) = name.strip_suffix(".log").and_then(|n| n.split_once('-')) else {
                continue;
            };
            let (Ok(number), Ok(generation)) = (number.parse(), generation.parse()) else { continue };
            let Some(log) = self.open_log(self.folder.join(name))? else { continue };
            let last = match segment::read_header(&log) {
                Ok(header) => header.last,
                Err(OpenError::Damaged { .. }) => number,
                Err(other) => return Err(other),
            };
            let known = found.entry(number).or_insert((generation, last));
            if known.0 <= generation {
                *known = (generation, last);
            }
        }
        // What was merged into another is there once more, until the merged files were removed.
        let merged: Vec<u32> = found.iter().flat_map(|(number, (_, last))| number + 1..=*last).collect();
        found.retain(|number, _| !merged.contains(number));
        let mut state: Option<State> = None;
        let mut end = 0;
        let mut list = found.into_iter().peekable();
        while let Some((number, (generation, _))) = list.next() {
            let path = self.folder.join(file_names(number, generation).0);
            let Some(log) = self.open_log(path)? else { continue };
            let state = state.get_or_insert_with(|| scratch(&log, number));
            state.active = Active { number, first_id: state.next_id, log: Arc::clone(&log) };
            self.report.served_again.push(log.path.clone());
            end = self.read_segment(state, pages, u64::from(segment::HEADER))?;
            if list.peek().is_some() {
                let last = segment::read_header(&log).map_or(number, |header| header.last);
                let identity = Identity { number, generation, last, log_len: end };
                // What comes next takes its place at once.
                let next = Active { number, first_id: state.next_id, log };
                if let Some(files) = state.seal(&identity, next) {
                    let path = &files.index_path;
                    files.write_index(&**self.fs).map_err(OpenError::io("write", path))?;
                }
            }
        }
        let Some(state) = state else {
            return Err(OpenError::damaged(self.folder, 0, "there is no segment that can be read"));
        };
        let active = &state.active;
        let writer = Writer::new(Arc::clone(&active.log), active.number, end, end);
        Ok(Recovered { state, writer, unsealed: Vec::new() })
    }
}

/// What the log holds after all, and where it goes on.
struct Recovered {
    state: State,
    writer: Writer,
    /// Segments behind the checkpoint, sealed in memory only.
    unsealed: Vec<Arc<SegmentFiles>>,
}

struct Rebuilt {
    entry: Option<SealedEntry>,
    bytes: Vec<(QueueName, u64)>,
}

/// A state that knows nothing but one segment.
fn scratch(log: &Arc<LogFile>, number: u32) -> State {
    State::new(Active { number, first_id: 0, log: Arc::clone(log) })
}

/// The live slots of a sealed segment whose records cannot be read; `None` when a page of the
/// index is damaged. Adds the bytes of those that can be read to their queues' sums.
fn inspect(
    files: &SegmentFiles,
    runs: &[DirectoryRun],
    entry: &SealedEntry,
    sums: &mut HashMap<QueueName, u64>,
) -> Result<Option<Vec<(u32, Slot)>>, OpenError> {
    let mut damaged = Vec::new();
    let mut found: Vec<(usize, u64)> = Vec::new();
    let mut page: Option<(u32, index::Page)> = None;
    let queues = runs.iter().enumerate().flat_map(|(index, run)| (0..run.count).map(move |_| index));
    for (number, queue) in (0..files.slots).zip(queues) {
        if entry.done[(number / 64) as usize] & (1 << (number % 64)) != 0 {
            continue;
        }
        let wanted = number / index::PER_PAGE;
        let loaded = match page.take() {
            Some(loaded) if loaded.0 == wanted => loaded,
            _ => match index::load(files, wanted) {
                Ok(slots) => (wanted, slots),
                Err(index::PageError::Damaged { .. }) => return Ok(None),
                Err(index::PageError::Io(error)) => {
                    return Err(OpenError::io("read", &files.index_path)(error));
                }
            },
        };
        let slot = loaded.1[(number % index::PER_PAGE) as usize];
        if is_whole(&files.log, slot) {
            found.push((queue, u64::from(slot.len)));
        } else {
            damaged.push((number, slot));
        }
        page = Some(loaded);
    }
    for (queue, len) in found {
        *sums.entry(QueueName::from(&*runs[queue].queue)).or_default() += len;
    }
    Ok(Some(damaged))
}

/// Forgets what is noted of records that are gone, and sets the figures of the queues.
fn prune(state: &mut State, pages: &Pages, sums: &HashMap<QueueName, u64>) -> Result<(), OpenError> {
    let noted: Vec<_> = state
        .queues
        .iter()
        .flat_map(|queue| queue.special.keys().map(|id| (QueueName::clone(&queue.name), *id)))
        .collect();
    for (queue, id) in noted {
        let place = loop {
            match resolve(state, pages, &queue, id) {
                Ok(place) => break place,
                Err(miss) => pages.fetch(&miss).map_err(|error| match error {
                    index::PageError::Io(error) => OpenError::io("read", &miss.files.index_path)(error),
                    index::PageError::Damaged { offset } => {
                        OpenError::damaged(&miss.files.index_path, offset, "a page's check sum is wrong")
                    }
                })?,
            }
        };
        let in_tail = |queue: &Queue| queue.tail_from(id).next().is_some_and(|slot| slot.id == id);
        let queue = state.ensure(&queue);
        if place == Place::Absent || (place == Place::Tail && !in_tail(queue)) {
            queue.special.remove(&id);
        }
    }
    state.settle_figures(sums);
    Ok(())
}

/// True when a record can be read and is the one that its slot says.
fn is_whole(log: &LogFile, slot: Slot) -> bool {
    let mut bytes = vec![0; RECORD_HEADER + slot.len as usize];
    read_exact(&*log.file, &mut bytes, u64::from(slot.offset)).is_ok()
        && StoredRecord::parse(&bytes).is_some_and(|stored| stored.id == slot.id)
}
