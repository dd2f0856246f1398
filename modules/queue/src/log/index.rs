//! The index of a sealed segment: which records it held for which queue when it was sealed.
//!
//! What must hold: a queue's slots stand together and are ordered by id; slots never change their
//! number; every page and the directory carry a CRC, and nothing is taken from one that is
//! damaged. Only the directory is read when the log is opened.
//!
//! ```text
//! header     64 bytes: "WAYQIDX1" | format version u32 | segment u32 | generation u32 |
//!            last merged segment u32 | length of the log file u64 | slots u32 | runs u32 |
//!            length of the directory u64 | CRC of the directory u32 | CRC of the header u32 | zeros
//! pages      of 4096 bytes: 255 slots (id u64 | offset of the record u32 | length of its payload
//!            u32), then the number of the page u32, CRC u32, zeros
//! directory  a run for each queue: name (u16, UTF-8) | id of the first slot u64 | slots u32
//! ```

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use waystation_core::queue::QueueName;

use crate::error::OpenError;
use crate::fs::{File, FileSystem, read_exact, write_all};
use crate::log::reader::Reader;

const MAGIC: &[u8; 8] = b"WAYQIDX1";
const HEADER: usize = 64;
const PAGE: usize = 4096;
const SLOT: usize = 16;
/// Slots on a page.
pub(crate) const PER_PAGE: u32 = 255;

/// Where a record stands, as one queue sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) id: u64,
    /// Where in the segment its header begins.
    pub(crate) offset: u32,
    /// Length of its payload.
    pub(crate) len: u32,
}

/// The file that holds the frames of a segment.
pub(crate) struct LogFile {
    pub(crate) file: Arc<dyn File>,
    pub(crate) path: PathBuf,
}

/// What an index will hold that was not written yet.
#[derive(Default)]
pub(crate) struct Unwritten {
    /// A queue each: the id of its first slot, and how many slots it has.
    pub(crate) runs: Vec<(QueueName, u64, u32)>,
    pub(crate) pages: Vec<Page>,
}

/// Where the pages of an index are.
enum Place {
    File(Arc<dyn File>),
    Memory(Arc<Unwritten>),
}

/// The files of a sealed segment.
pub(crate) struct SegmentFiles {
    pub(crate) number: u32,
    pub(crate) generation: u32,
    /// The last of the segments that a compaction merged into this one; its own number otherwise.
    pub(crate) last: u32,
    pub(crate) slots: u32,
    /// Bytes of the log file that hold frames.
    pub(crate) log_len: u64,
    pub(crate) log: Arc<LogFile>,
    index: Mutex<Place>,
    pub(crate) index_path: PathBuf,
}

impl SegmentFiles {
    /// Those of a segment whose index is in a file.
    pub(crate) fn new(
        identity: &Identity,
        slots: u32,
        log: Arc<LogFile>,
        index: Arc<dyn File>,
        index_path: PathBuf,
    ) -> Self {
        let Identity { number, generation, last, log_len } = *identity;
        let index = Mutex::new(Place::File(index));
        Self { number, generation, last, slots, log_len, log, index, index_path }
    }

    /// Those of a segment that was just sealed; its index is still to be written.
    pub(crate) fn unwritten(identity: &Identity, slots: u32, log: Arc<LogFile>, index: Unwritten) -> Self {
        let Identity { number, generation, last, log_len } = *identity;
        let index_path = log.path.with_file_name(file_names(number, generation).1);
        let index = Mutex::new(Place::Memory(Arc::new(index)));
        Self { number, generation, last, slots, log_len, log, index, index_path }
    }

    /// Both files.
    pub(crate) fn paths(&self) -> [PathBuf; 2] {
        // The index first: without it, the log is not taken for a sealed one.
        [self.index_path.clone(), self.log.path.clone()]
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes and flushes the index if it is in memory only, and gives that memory back. The caller
    /// flushes the folder.
    pub(crate) fn write_index(&self, fs: &dyn FileSystem) -> io::Result<()> {
        let unwritten = match &*self.place() {
            Place::File(_) => return Ok(()),
            Place::Memory(unwritten) => Arc::clone(unwritten),
        };
        let runs = unwritten.runs.iter().map(|(queue, first_id, count)| (&**queue, *first_id, *count));
        let slots = unwritten.pages.iter().flat_map(|page| page.iter());
        let identity = Identity {
            number: self.number,
            generation: self.generation,
            last: self.last,
            log_len: self.log_len,
        };
        let file = write(fs, &self.index_path, &identity, runs, slots, self.slots)?;
        *self.place() = Place::File(file);
        Ok(())
    }
}

/// Names of the files of a segment.
pub(crate) fn file_names(number: u32, generation: u32) -> (String, String) {
    (format!("{number:010}-{generation:04}.log"), format!("{number:010}-{generation:04}.index"))
}

/// A queue's part of an index.
pub(crate) struct IndexRun {
    pub(crate) queue: QueueName,
    pub(crate) slots: Vec<Slot>,
}

/// What an index belongs to.
pub(crate) struct Identity {
    pub(crate) number: u32,
    pub(crate) generation: u32,
    pub(crate) last: u32,
    pub(crate) log_len: u64,
}

/// Writes and flushes the index of some runs; says how many slots it holds. The caller flushes the
/// folder.
pub(crate) fn write_runs(
    fs: &dyn FileSystem,
    path: &Path,
    identity: &Identity,
    runs: &[IndexRun],
) -> io::Result<(Arc<dyn File>, u32)> {
    let count: usize = runs.iter().map(|run| run.slots.len()).sum();
    let slots = runs.iter().flat_map(|run| &run.slots);
    let runs =
        runs.iter().map(|run| (&*run.queue, run.slots.first().map_or(0, |s| s.id), run.slots.len() as u32));
    Ok((write(fs, path, identity, runs, slots, count as u32)?, count as u32))
}

fn write<'a>(
    fs: &dyn FileSystem,
    path: &Path,
    identity: &Identity,
    runs: impl Iterator<Item = (&'a str, u64, u32)>,
    slots: impl Iterator<Item = &'a Slot>,
    count: u32,
) -> io::Result<Arc<dyn File>> {
    let pages = count.div_ceil(PER_PAGE) as usize;
    let mut bytes = Vec::with_capacity(HEADER + pages * PAGE);
    bytes.resize(HEADER, 0);
    let mut on_page = 0;
    let mut page = 0_u32;
    for slot in slots {
        bytes.extend_from_slice(&slot.id.to_le_bytes());
        bytes.extend_from_slice(&slot.offset.to_le_bytes());
        bytes.extend_from_slice(&slot.len.to_le_bytes());
        on_page += 1;
        if on_page == PER_PAGE {
            end_page(&mut bytes, page);
            (on_page, page) = (0, page + 1);
        }
    }
    if on_page > 0 {
        end_page(&mut bytes, page);
    }
    let mut directory = Vec::new();
    let mut listed = 0_u32;
    for (queue, first_id, slots) in runs {
        directory.extend_from_slice(&(queue.len() as u16).to_le_bytes());
        directory.extend_from_slice(queue.as_bytes());
        directory.extend_from_slice(&first_id.to_le_bytes());
        directory.extend_from_slice(&slots.to_le_bytes());
        listed += 1;
    }
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&crate::FORMAT_VERSION.to_le_bytes());
    header.extend_from_slice(&identity.number.to_le_bytes());
    header.extend_from_slice(&identity.generation.to_le_bytes());
    header.extend_from_slice(&identity.last.to_le_bytes());
    header.extend_from_slice(&identity.log_len.to_le_bytes());
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&listed.to_le_bytes());
    header.extend_from_slice(&(directory.len() as u64).to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(&directory).to_le_bytes());
    let crc = crc32fast::hash(&header);
    header.extend_from_slice(&crc.to_le_bytes());
    bytes[..header.len()].copy_from_slice(&header);

    let file = fs.create(path)?;
    write_all(&*file, &mut [IoSlice::new(&bytes), IoSlice::new(&directory)], 0)?;
    file.sync()?;
    Ok(file)
}

fn end_page(bytes: &mut Vec<u8>, page: u32) {
    let begin = HEADER + page as usize * PAGE;
    bytes.resize(begin + PER_PAGE as usize * SLOT, 0);
    bytes.extend_from_slice(&page.to_le_bytes());
    let crc = crc32fast::hash(&bytes[begin..]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.resize(begin + PAGE, 0);
}

/// A run as the directory has it.
pub(crate) struct DirectoryRun {
    pub(crate) queue: Box<str>,
    pub(crate) first_id: u64,
    pub(crate) count: u32,
}

/// Opens the files of a sealed segment and reads the directory of its index.
pub(crate) fn open(
    fs: &dyn FileSystem,
    folder: &Path,
    number: u32,
    generation: u32,
) -> Result<(SegmentFiles, Vec<DirectoryRun>), OpenError> {
    let (log_name, index_name) = file_names(number, generation);
    let (log_path, index_path) = (folder.join(log_name), folder.join(index_name));
    let open = |path: &Path| {
        fs.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OpenError::damaged(path, 0, "the file is missing"),
            _ => OpenError::io("open", path)(error),
        })
    };
    let (log, index) = (open(&log_path)?, open(&index_path)?);
    let damaged = |offset: usize, what: &str| OpenError::damaged(&index_path, offset as u64, what);
    let mut header = [0; HEADER];
    read_exact(&*index, &mut header, 0).map_err(|_| damaged(0, "the index has no header"))?;
    let mut read = Reader(&header);
    if read.take(8) != Some(MAGIC) {
        return Err(damaged(0, "this is no index"));
    }
    // The length of the header was just read, so that no number in it is missing.
    let version = read.u32().unwrap_or_default();
    if version != crate::FORMAT_VERSION {
        return Err(OpenError::Version { path: index_path, found: version, known: crate::FORMAT_VERSION });
    }
    let mut number_at = || read.u32().unwrap_or_default();
    let (found_number, found_generation, last) = (number_at(), number_at(), number_at());
    let log_len = read.u64().unwrap_or_default();
    let (slots, runs) = (read.u32().unwrap_or_default(), read.u32().unwrap_or_default());
    let directory_len = read.u64().unwrap_or_default();
    let directory_crc = read.u32().unwrap_or_default();
    let covered = HEADER - read.0.len();
    if read.u32() != Some(crc32fast::hash(&header[..covered])) {
        return Err(damaged(0, "the header's check sum is wrong"));
    }
    if (found_number, found_generation) != (number, generation) {
        return Err(damaged(0, "the index belongs to another segment"));
    }
    let directory_at = HEADER + (slots as usize).div_ceil(PER_PAGE as usize) * PAGE;
    let length = index.size().map_err(OpenError::io("look at", &index_path))?;
    if length != directory_at as u64 + directory_len {
        return Err(damaged(directory_at, "the index has another length than its header says"));
    }
    let mut directory = vec![0; directory_len as usize];
    read_exact(&*index, &mut directory, directory_at as u64).map_err(OpenError::io("read", &index_path))?;
    if crc32fast::hash(&directory) != directory_crc {
        return Err(damaged(directory_at, "the directory's check sum is wrong"));
    }
    let mut read = Reader(&directory);
    let mut list = Vec::with_capacity(runs as usize);
    let mut sum = 0_u64;
    for _ in 0..runs {
        let run = (|| Some((read.text()?, read.u64()?, read.u32()?)))();
        let Some((queue, first_id, count)) = run else {
            return Err(damaged(directory_at, "the directory is shorter than its header says"));
        };
        sum += u64::from(count);
        list.push(DirectoryRun { queue: queue.into(), first_id, count });
    }
    if sum != u64::from(slots) {
        return Err(damaged(directory_at, "the directory does not match the number of slots"));
    }
    let length = log.size().map_err(OpenError::io("look at", &log_path))?;
    if length < log_len {
        return Err(OpenError::damaged(&log_path, length, format!("the file should have {log_len} bytes")));
    }
    let log = Arc::new(LogFile { file: log, path: log_path });
    let identity = Identity { number, generation, last, log_len };
    Ok((SegmentFiles::new(&identity, slots, log, index, index_path), list))
}

/// One page of an index.
pub(crate) type Page = Arc<[Slot]>;

/// A page that has to be read before a question can be answered.
pub(crate) struct Miss {
    pub(crate) files: Arc<SegmentFiles>,
    pub(crate) page: u32,
}

/// Why a page could not be read.
#[derive(Debug)]
pub(crate) enum PageError {
    Io(io::Error),
    Damaged { offset: u64 },
}

/// Reads a page from the device.
pub(crate) fn load(files: &SegmentFiles, page: u32) -> Result<Page, PageError> {
    let offset = HEADER as u64 + u64::from(page) * PAGE as u64;
    let index = match &*files.place() {
        Place::File(file) => Arc::clone(file),
        Place::Memory(unwritten) => return Ok(Page::clone(&unwritten.pages[page as usize])),
    };
    let mut bytes = [0; PAGE];
    read_exact(&*index, &mut bytes, offset).map_err(PageError::Io)?;
    let covered = PER_PAGE as usize * SLOT + 4;
    let mut tail = Reader(&bytes[covered - 4..]);
    if tail.u32() != Some(page) || tail.u32() != Some(crc32fast::hash(&bytes[..covered])) {
        return Err(PageError::Damaged { offset });
    }
    let count = (files.slots - page * PER_PAGE).min(PER_PAGE);
    let slots = bytes.chunks_exact(SLOT).take(count as usize).map(|chunk| {
        let mut read = Reader(chunk);
        // Each chunk is as long as a slot.
        Slot {
            id: read.u64().unwrap_or_default(),
            offset: read.u32().unwrap_or_default(),
            len: read.u32().unwrap_or_default(),
        }
    });
    Ok(slots.collect())
}

type Key = (u32, u32, u32);

#[derive(Default)]
struct Cached {
    pages: HashMap<Key, Page>,
    order: VecDeque<Key>,
}

/// Index pages in memory, the oldest of which go first.
pub(crate) struct Pages {
    cached: Mutex<Cached>,
    capacity: usize,
}

impl Pages {
    /// Keeps about `bytes`, and never less than what one search needs.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { cached: Mutex::default(), capacity: (bytes / PAGE).max(64) }
    }

    /// A page that is in memory.
    pub(crate) fn get(&self, files: &Arc<SegmentFiles>, page: u32) -> Result<Page, Miss> {
        if let Place::Memory(unwritten) = &*files.place() {
            return Ok(Page::clone(&unwritten.pages[page as usize]));
        }
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (files.number, files.generation, page);
        cached.pages.get(&key).cloned().ok_or_else(|| Miss { files: Arc::clone(files), page })
    }

    /// Reads what was missing.
    pub(crate) fn fetch(&self, miss: &Miss) -> Result<(), PageError> {
        let page = load(&miss.files, miss.page)?;
        let key = (miss.files.number, miss.files.generation, miss.page);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.pages.insert(key, page).is_none() {
            cached.order.push_back(key);
        }
        while cached.order.len() > self.capacity {
            if let Some(oldest) = cached.order.pop_front() {
                cached.pages.remove(&oldest);
            }
        }
        Ok(())
    }

    /// The slot of a number.
    pub(crate) fn slot(&self, files: &Arc<SegmentFiles>, slot: u32) -> Result<Slot, Miss> {
        Ok(self.get(files, slot / PER_PAGE)?[(slot % PER_PAGE) as usize])
    }

    /// The first slot in `start..end` whose id is at least `id`; `end` when there is none.
    pub(crate) fn search(
        &self,
        files: &Arc<SegmentFiles>,
        start: u32,
        end: u32,
        id: u64,
    ) -> Result<u32, Miss> {
        // By pages first, so that a page is looked up once for all of its slots.
        let (mut low, mut high) = (start, end);
        while low < high {
            let middle = low + (high - low) / 2;
            let number = middle / PER_PAGE;
            let page = self.get(files, number)?;
            let first = (number * PER_PAGE).max(low);
            let last = ((number + 1) * PER_PAGE).min(high);
            let on_page = &page[(first - number * PER_PAGE) as usize..(last - number * PER_PAGE) as usize];
            let below = on_page.partition_point(|slot| slot.id < id) as u32;
            if below == 0 {
                high = first;
            } else if first + below == last {
                low = last;
            } else {
                return Ok(first + below);
            }
        }
        Ok(low)
    }
}
