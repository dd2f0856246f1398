//! Opens a log: the checkpoint, the directories of sealed segments, and the frames behind the
//! checkpoint.
//!
//! Behind the checkpoint there may be two segments: a crash can come before the checkpoint that was to
//! name the first as sealed. It is sealed again, in memory, and the committer sees to the rest.
//!
//! What must hold: of segments that the checkpoint names as sealed nothing but the directory of the
//! index is read; a torn end
//! is cut off, and flushed as cut off, before anything is written behind it; damage in front of
//! acknowledged data stops the start and changes nothing.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Options;
use crate::error::OpenError;
use crate::fs::{FileSystem, write_all};
use crate::log::checkpoint::{self, Checkpoint, Position};
use crate::log::find::resolve;
use crate::log::frame::{Change, Control, Frame};
use crate::log::index::{self, Identity, LogFile, PageError, Pages, SegmentFiles, Slot, file_names};
use crate::log::scan::{End, Window, judge};
use crate::log::segment::{self, SegmentHeader, Writer};
use crate::log::state::{Active, Run, Sealed, State};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The moment of a number of milliseconds since 1970.
pub(crate) fn moment(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

/// A log that was opened.
pub(crate) struct Opened {
    pub(crate) state: State,
    pub(crate) writer: Writer,
    /// Segments behind the checkpoint that were sealed again, but in memory only.
    pub(crate) unsealed: Vec<Arc<SegmentFiles>>,
    /// Files that the checkpoint still needs, and that nothing does after the next one.
    pub(crate) unneeded: Vec<PathBuf>,
}

/// Opens the log of a folder that is locked.
pub(crate) fn open(
    fs: &dyn FileSystem,
    folder: &Path,
    options: &Options,
    pages: &Pages,
) -> Result<Opened, OpenError> {
    let names = fs.list(folder).map_err(OpenError::io("list", folder))?;
    let Some(checkpoint) = checkpoint::read(fs, folder, now_ms())? else {
        return create(fs, folder, &names, options);
    };
    let mut from = u64::from(checkpoint.position.offset);
    let mut state = load(fs, folder, checkpoint)?;
    let mut keep = Vec::new();
    let (mut unsealed, mut unneeded) = (Vec::new(), Vec::new());
    loop {
        let log = Arc::clone(&state.active.log);
        let number = state.active.number;
        keep.push(file_names(number, 0).0);
        let header = segment::read_header(&log)?;
        if header.number != number {
            return Err(OpenError::damaged(&log.path, 0, "the file is another segment than its name says"));
        }
        let mut window = Window::new(&log)?;
        if window.len < from {
            let detail = format!("the file is cut off; up to byte {from} it was flushed");
            return Err(OpenError::damaged(&log.path, window.len, detail));
        }
        let end = replay(&mut state, pages, &mut window, from)?;
        let judged = judge(&mut window, end, number)?;
        if let End::Damaged { witness } = judged {
            let detail =
                format!("a batch that was flushed cannot be read, and behind it, at byte {witness}, one can");
            return Err(OpenError::damaged(&log.path, end, detail));
        }
        if let Some((next, at, first_id)) = following(fs, folder, number)? {
            // It was begun when this one was flushed to its end.
            let fits = at > u64::from(segment::HEADER) || first_id == state.next_id;
            if judged != End::Clean || !fits {
                let path = next.path.display();
                let detail = format!("a batch that was flushed cannot be read; {path} was begun behind it");
                return Err(OpenError::damaged(&log.path, end, detail));
            }
            let first_id = state.next_id;
            let identity = Identity { number, generation: 0, last: number, log_len: end };
            match state.seal(&identity, Active { number: number + 1, first_id, log: next }) {
                Some(files) => unsealed.push(files),
                None => unneeded.push(log.path.clone()),
            }
            from = u64::from(segment::HEADER);
            continue;
        }
        if let End::Torn { whole } = judged {
            tracing::warn!(
                file = %log.path.display(), offset = end, whole_batches = whole,
                "the last batches were not written completely; they were not acknowledged as flushed, and are cut off"
            );
            if whole > 0 {
                set_aside(fs, folder, &mut window, end)?;
            }
        }
        let capacity = u64::from(options.segment_bytes).max(end);
        settle_end(&log, window, from, end, capacity, judged)?;
        remove_leftovers(fs, folder, &names, &state, keep);
        let writer = Writer::new(Arc::clone(&log), number, end, capacity);
        return Ok(Opened { state, writer, unsealed, unneeded });
    }
}

/// The segment behind one, if there is a whole batch in it: where the first one stands, and its
/// first id. One that was only made ahead holds none; nor does one whose first batches are torn, and
/// these were not acknowledged.
pub(crate) fn following(
    fs: &dyn FileSystem,
    folder: &Path,
    number: u32,
) -> Result<Option<(Arc<LogFile>, u64, u64)>, OpenError> {
    let path = folder.join(file_names(number + 1, 0).0);
    let file = match fs.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::io("open", &path)(error)),
    };
    let log = Arc::new(LogFile { file, path });
    let mut window = Window::new(&log)?;
    let begin = u64::from(segment::HEADER);
    if window.is_zero(begin)? {
        return Ok(None);
    }
    let first = window.next_frame(begin, number + 1)?;
    Ok(first.map(|(at, header)| (log, at, header.first_id)))
}

/// A new log, in a folder that has none.
fn create(
    fs: &dyn FileSystem,
    folder: &Path,
    names: &[String],
    options: &Options,
) -> Result<Opened, OpenError> {
    let first = file_names(1, 0).0;
    for name in names.iter().filter(|name| name.ends_with(".log")) {
        // A crash while the log was made leaves its first segment, with nothing in it.
        let path = folder.join(name);
        let file = fs.open(&path).map_err(OpenError::io("open", &path))?;
        let log = LogFile { file, path };
        let mut window = Window::new(&log)?;
        if *name != first || !window.is_zero(u64::from(segment::HEADER))? {
            let path = folder.join(checkpoint::NAME);
            return Err(OpenError::damaged(&path, 0, "the checkpoint is missing, but there are segments"));
        }
    }
    let capacity = u64::from(options.segment_bytes);
    let header = SegmentHeader { number: 1, generation: 0, last: 1, first_id: 1 };
    let log =
        segment::create(fs, folder, header, capacity).map_err(OpenError::io("make a segment in", folder))?;
    fs.sync_folder(folder).map_err(OpenError::io("flush", folder))?;
    let active = Active { number: 1, first_id: 1, log: Arc::clone(&log) };
    let mut state = State::new(active);
    let position = Position { segment: 1, first_id: 1, offset: segment::HEADER };
    let head = state.snapshot(position);
    let bytes = checkpoint::encode(&head, |out, count| state.copy_some(out, count));
    checkpoint::write(fs, folder, &bytes).map_err(|failure| match failure {
        checkpoint::Failure::Full => {
            OpenError::io("write the checkpoint in", folder)(std::io::ErrorKind::StorageFull.into())
        }
        checkpoint::Failure::Stop(error) => OpenError::io("write the checkpoint in", folder)(error),
    })?;
    let writer = Writer::new(log, 1, u64::from(segment::HEADER), capacity);
    Ok(Opened { state, writer, unsealed: Vec::new(), unneeded: Vec::new() })
}

/// The state that a checkpoint describes.
pub(crate) fn load(fs: &dyn FileSystem, folder: &Path, checkpoint: Checkpoint) -> Result<State, OpenError> {
    let position = checkpoint.position;
    let path = folder.join(file_names(position.segment, 0).0);
    let file = fs.open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => OpenError::damaged(&path, 0, "the file is missing"),
        _ => OpenError::io("open", &path)(error),
    })?;
    let log = Arc::new(LogFile { file, path });
    let active = Active { number: position.segment, first_id: position.first_id, log };
    let mut state = State::new(active);
    state.next_id = checkpoint.next_id;
    state.marks = checkpoint.marks.into();
    for entry in checkpoint.sealed {
        let (files, runs) = index::open(fs, folder, entry.number, entry.generation)?;
        if files.slots != entry.slots {
            return Err(OpenError::damaged(&files.index_path, 0, "the index does not match the checkpoint"));
        }
        let number = entry.number;
        let mut sealed = Sealed {
            files: Arc::new(files),
            done: Arc::new(entry.done),
            live: 0,
            live_bytes: entry.live_bytes,
        };
        let mut start = 0;
        for run in runs {
            let live = sealed.count_live(start, run.count);
            sealed.live += live;
            if live > 0 {
                let entry = Run { first_id: run.first_id, segment: number, start, count: run.count, live };
                state.ensure(&run.queue).runs.push_back(entry);
            }
            start += run.count;
        }
        state.sealed.insert(number, sealed);
    }
    for queue in checkpoint.queues {
        for slot in queue.tail {
            state.restore_tail(&queue.name, slot);
        }
        state.ensure(&queue.name).special.extend(queue.special);
    }
    state.settle_figures(&checkpoint.sealed_bytes);
    Ok(state)
}

/// Applies the frames from an offset on; where they end.
fn replay(state: &mut State, pages: &Pages, window: &mut Window<'_>, from: u64) -> Result<u64, OpenError> {
    let segment = state.active.number;
    let mut at = from;
    loop {
        let frame = match window.frame(at, segment)? {
            Ok(frame) if frame.header.first_id == state.next_id && !frame.header.copy => frame,
            _ => return Ok(at),
        };
        let len = u64::from(frame.header.len);
        apply(state, pages, &frame, at)?;
        at += len;
    }
}

/// Applies one frame that stands at an offset of the active segment.
pub(crate) fn apply(state: &mut State, pages: &Pages, frame: &Frame<'_>, at: u64) -> Result<(), OpenError> {
    if apply_what_is_whole(state, pages, frame, at)? {
        return Ok(());
    }
    Err(OpenError::damaged(&state.active.log.path, at, "a batch contradicts itself"))
}

/// The same but for damaged records, which are left out; false when there was something that could
/// not be understood.
pub(crate) fn apply_what_is_whole(
    state: &mut State,
    pages: &Pages,
    frame: &Frame<'_>,
    at: u64,
) -> Result<bool, OpenError> {
    let now = Instant::now();
    let passed = now_ms().saturating_sub(frame.header.time_ms);
    // A state that is borrowed by one closure at a time.
    let cell = std::cell::RefCell::new(&mut *state);
    let mut failed = None;
    let walked = frame.walk(
        |offset, queues, record| {
            let Some(record) = record else { return };
            let offset = (at + offset as u64) as u32;
            let slot = Slot { id: record.id, offset, len: record.payload.len() as u32 };
            let mut state = cell.borrow_mut();
            for queue in queues {
                state.append(queue, slot);
            }
            state.next_id = record.id + 1;
        },
        |control| {
            let mut state = cell.borrow_mut();
            match control {
                Control::Mark(mark) => state.marks.change(mark),
                Control::Purge { queue } => state.purge(queue),
                Control::Settle { queue, id, change } => {
                    let place = loop {
                        match resolve(&state, pages, queue, id) {
                            Ok(place) => break place,
                            Err(miss) => {
                                if let Err(error) = pages.fetch(&miss) {
                                    let path = miss.files.index_path.clone();
                                    failed.get_or_insert((path, error));
                                    return;
                                }
                            }
                        }
                    };
                    let change = match change {
                        Change::Nack { delay_ms, counts } => {
                            Change::Nack { delay_ms: delay_ms.saturating_sub(passed), counts }
                        }
                        other => other,
                    };
                    state.settle(queue, id, place, change, now);
                }
            }
        },
    );
    match (failed, walked) {
        (Some((path, PageError::Damaged { offset })), _) => {
            Err(OpenError::damaged(&path, offset, "a page's check sum is wrong"))
        }
        (Some((path, PageError::Io(error))), _) => Err(OpenError::io("read", &path)(error)),
        (None, walked) => Ok(walked.is_some()),
    }
}

/// Makes sure that what was read is on the device, and that only zeros follow.
fn settle_end(
    log: &LogFile,
    mut window: Window<'_>,
    from: u64,
    end: u64,
    capacity: u64,
    judged: End,
) -> Result<(), OpenError> {
    // After a failed flush the system may hold, and show, what the device does not have, and flush
    // it no more. Writing the same bytes again makes the flush below one of these bytes.
    let mut at = from;
    while at < end {
        let bytes = window.get(at, 1)?;
        let take = (end - at).min(bytes.len() as u64);
        write_all(&*log.file, &mut [IoSlice::new(&bytes[..take as usize])], at)
            .map_err(OpenError::io("write", &log.path))?;
        at += take;
    }
    if judged != End::Clean {
        log.file.set_len(end).map_err(OpenError::io("cut", &log.path))?;
    }
    if from < end || judged != End::Clean {
        log.file.sync().map_err(OpenError::io("flush", &log.path))?;
    }
    if judged != End::Clean || window.len < capacity {
        match log.file.allocate(capacity) {
            // With no room ahead the log still opens: acknowledging is what makes room.
            Err(error) if !crate::fs::is_full(&error) => {
                return Err(OpenError::io("take room for", &log.path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Copies what is about to be cut off to a file of its own.
fn set_aside(
    fs: &dyn FileSystem,
    folder: &Path,
    window: &mut Window<'_>,
    from: u64,
) -> Result<(), OpenError> {
    let path = folder.join(format!("torn-{}", now_ms()));
    let file = fs.create(&path).map_err(OpenError::io("make", &path))?;
    let mut at = from;
    while at < window.len {
        let bytes = window.get(at, 1)?;
        write_all(&*file, &mut [IoSlice::new(bytes)], at - from).map_err(OpenError::io("write", &path))?;
        at += bytes.len() as u64;
    }
    file.sync().map_err(OpenError::io("flush", &path))?;
    fs.sync_folder(folder).map_err(OpenError::io("flush", folder))?;
    tracing::warn!(file = %path.display(), "what was cut off is kept there");
    Ok(())
}

/// Removes what a crash has left: files that the checkpoint does not name, nor need, but those to
/// `keep`.
fn remove_leftovers(
    fs: &dyn FileSystem,
    folder: &Path,
    names: &[String],
    state: &State,
    mut keep: Vec<String>,
) {
    for sealed in state.sealed.values() {
        let (log, index) = file_names(sealed.files.number, sealed.files.generation);
        keep.extend([log, index]);
    }
    for name in names {
        let ours = name.ends_with(".log") || name.ends_with(".index") || *name == checkpoint::NEW_NAME;
        if ours && !keep.contains(name) {
            // Left where it is, it only takes room, and is removed the next time.
            if let Err(error) = fs.remove(&folder.join(name)) {
                tracing::warn!(file = %name, %error, "cannot remove a file that the queue no longer needs");
            }
        }
    }
}
