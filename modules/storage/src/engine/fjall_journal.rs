//! Looks through fjall's journals before fjall does.
//!
//! A power loss can leave the last group half on the device. fjall drops such a tail when it ends
//! in nonsense, but refuses to open when only a block in the middle of a long value is missing;
//! and damage in front of whole batches it drops silently, with all that follows. What must hold:
//! a torn tail, which nobody was promised, never keeps a store from opening, and is kept aside;
//! batches that were promised are never dropped without a word.
//!
//! A journal is a sequence of batches and ends with its file or with zeros (files are
//! preallocated). A batch is `1 count:u32 seqno:u64`, then `count` items, each
//! `2 kind:u8 compression:u8 space:u64 key_len:u16 value_len:u32 stored_len:u32 key value` or
//! `4 space:u64`, then `3 xxh3:u64 "FJL" 3`, all in little endian; the checksum is over the items.
//! The numbers `seqno` grow from batch to batch.

use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::OpenError;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";

/// What is at a position of a journal.
enum Next {
    Batch { len: u64, seqno: u64 },
    Nothing,
    Broken,
}

/// Reads a journal and counts what was read.
struct Source<R> {
    reader: R,
    read: u64,
}

impl<R: Read> Source<R> {
    fn new(reader: R) -> Self {
        Self { reader, read: 0 }
    }

    /// The next `N` bytes, unless the journal ends before.
    fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.reader.read_exact(&mut bytes) {
            Ok(()) => {
                self.read += N as u64;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Feeds the next `len` bytes to the checksum; false when the journal ends before.
    fn hash(&mut self, len: u64, checksum: &mut impl Hasher) -> io::Result<bool> {
        let mut left = len;
        let mut buffer = [0; 4096];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let got = match self.reader.read(&mut buffer[..want]) {
                Ok(0) => return Ok(false),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            checksum.write(&buffer[..got]);
            left -= got as u64;
        }
        self.read += len;
        Ok(true)
    }

    /// Reads one batch and checks it.
    fn next(&mut self) -> io::Result<Next> {
        let from = self.read;
        match self.take()? {
            None | Some([0]) => return Ok(Next::Nothing),
            Some([START]) => {}
            Some(_) => return Ok(Next::Broken),
        }
        let (Some(count), Some(seqno)) = (self.take()?, self.take()?) else { return Ok(Next::Broken) };
        let mut checksum = twox_hash::XxHash3_64::new();
        for _ in 0..u32::from_le_bytes(count) {
            if !self.item(&mut checksum)? {
                return Ok(Next::Broken);
            }
        }
        let (Some([END]), Some(sum), Some(TRAILER)) = (self.take()?, self.take()?, self.take()?) else {
            return Ok(Next::Broken);
        };
        if u64::from_le_bytes(sum) != checksum.finish() {
            return Ok(Next::Broken);
        }
        Ok(Next::Batch { len: self.read - from, seqno: u64::from_le_bytes(seqno) })
    }

    /// Reads one item; false when there is none.
    fn item(&mut self, checksum: &mut impl Hasher) -> io::Result<bool> {
        match self.take()? {
            Some([ITEM]) => {
                let Some(head) = self.take::<20>()? else { return Ok(false) };
                checksum.write(&[ITEM]);
                checksum.write(&head);
                let key = u16::from_le_bytes([head[10], head[11]]);
                let stored = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
                self.hash(u64::from(key) + u64::from(stored), checksum)
            }
            Some([CLEAR]) => {
                checksum.write(&[CLEAR]);
                self.hash(8, checksum)
            }
            _ => Ok(false),
        }
    }
}

/// Where the whole batches of a journal end, and whether nothing but zeros comes then.
struct Extent {
    end: u64,
    clean: bool,
}

fn extent(file: &File) -> io::Result<Extent> {
    let mut source = Source::new(BufReader::with_capacity(1 << 16, file));
    let (mut end, mut last) = (0, 0);
    loop {
        match source.next()? {
            // The checksum leaves the number out, but a wrong one breaks the order.
            Next::Batch { len, seqno } if seqno >= last => {
                end += len;
                last = seqno;
            }
            Next::Batch { .. } | Next::Broken => return Ok(Extent { end, clean: false }),
            Next::Nothing => {
                let clean = only_zeros(&mut source.reader)?;
                return Ok(Extent { end, clean });
            }
        }
    }
}

fn only_zeros(reader: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(got) if buffer[..got].iter().all(|byte| *byte == 0) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether any whole batch begins within `tail`. Its checksum keeps chance from finding one.
fn holds_a_batch(tail: &[u8]) -> bool {
    let starts = (0..tail.len()).filter(|at| tail[*at] == START);
    // Reading from memory does not fail.
    starts.map(|at| Source::new(&tail[at..]).next()).any(|next| matches!(next, Ok(Next::Batch { .. })))
}

/// Checks every journal in fjall's `folder`. A torn tail of the last one is cut off and kept in
/// the file `aside`.
///
/// With `strict`, that is when each group was flushed before the next was written, whole batches
/// after a broken one mean that promised data is damaged.
///
/// # Errors
/// [`OpenError::Damaged`] then, [`OpenError::Io`] when the system refuses.
pub(super) fn check(folder: &Path, aside: &Path, strict: bool) -> Result<(), OpenError> {
    let mut journals = list(folder).map_err(OpenError::io("list", folder))?;
    journals.sort_unstable();
    let Some((_, active)) = journals.pop() else { return Ok(()) };
    for (_, path) in journals {
        // Flushed before the next one was begun, so no power loss tears it.
        let open = File::open(&path).and_then(|file| extent(&file));
        let Extent { end, clean } = open.map_err(OpenError::io("read", &path))?;
        if !clean {
            damaged(folder, &path, end, strict)?;
        }
    }
    let io = |error| OpenError::io("read", &active)(error);
    let mut file = OpenOptions::new().read(true).write(true).open(&active).map_err(io)?;
    let Extent { end, clean } = extent(&file).map_err(io)?;
    if clean {
        return Ok(());
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(end)).and_then(|_| file.read_to_end(&mut tail)).map_err(io)?;
    tail.truncate(tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    if holds_a_batch(&tail) {
        damaged(folder, &active, end, strict)?;
    }
    tracing::warn!(
        bytes = tail.len(),
        kept_in = %aside.display(),
        "the last write before the server ended was cut short, as a power loss does: it is dropped"
    );
    std::fs::write(aside, &tail)
        .and_then(|()| File::open(aside)?.sync_all())
        .map_err(OpenError::io("write", aside))?;
    file.set_len(end).and_then(|()| file.sync_all()).map_err(OpenError::io("cut", &active))
}

fn damaged(folder: &Path, journal: &Path, at: u64, strict: bool) -> Result<(), OpenError> {
    let name = journal.file_name().unwrap_or_default().to_string_lossy();
    if strict {
        return Err(OpenError::Damaged {
            path: folder.to_owned(),
            engine: <super::FjallEngine as super::Engine>::NAME,
            detail: format!(
                "{name} is damaged at byte {at}, in front of data that was acknowledged (to drop that \
                 data, start once with the durability `os`)"
            ),
        });
    }
    tracing::error!(journal = %name, at, "a journal is damaged: what follows in it is dropped");
    Ok(())
}

/// The journals in a folder with their numbers.
fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let listing = match folder.read_dir() {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut journals = Vec::new();
    for entry in listing {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse().ok());
        journals.extend(number.map(|number| (number, path)));
    }
    Ok(journals)
}

#[cfg(test)]
#[path = "fjall_journal_tests.rs"]
mod tests;
