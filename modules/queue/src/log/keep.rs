//! Keeps the folder in shape: seals full segments, writes checkpoints, removes what is
//! acknowledged, and compacts what is mostly acknowledged.
//!
//! What must hold: the checkpoint decides. A file is complete and flushed before a checkpoint
//! names it, and is removed only after a checkpoint no longer names it, so that a crash at any
//! moment leaves a folder in which some checkpoint and all its files are whole.

use std::io;
use std::sync::Arc;

use crate::fs::is_full;
use crate::log::checkpoint::{self, Failure, Position, Sealing};
use crate::log::committer::Committer;
use crate::log::index::{self, Identity, SegmentFiles, file_names};
use crate::log::recover::now_ms;
use crate::log::segment::{self, SegmentHeader, Writer};
use crate::log::state::{Active, RECORD_COST};

/// Why the folder could not be kept in shape.
#[derive(Debug)]
pub(crate) enum KeepError {
    /// No room; nothing has changed.
    Full,
    /// The log must stop.
    Stop(String),
}

/// What an error of the system means for the log.
pub(crate) fn keep_error(action: &str) -> impl FnOnce(io::Error) -> KeepError + '_ {
    move |error| {
        if is_full(&error) { KeepError::Full } else { KeepError::Stop(format!("{action}: {error}")) }
    }
}

impl Committer {
    /// Seals the active segment and begins another. On [`KeepError::Full`] the old one goes on.
    pub(crate) fn roll(&mut self) -> Result<(), KeepError> {
        self.flush()?;
        let number = self.writer.number;
        let (_, index_name) = file_names(number, 0);
        let index_path = self.folder.join(index_name);
        let next_number = number + 1;
        let (runs, next_id) = {
            let state = self.shared.state();
            (state.tails(), state.next_id)
        };
        let header =
            SegmentHeader { number: next_number, generation: 0, last: next_number, first_id: next_id };
        let capacity = u64::from(self.options.segment_bytes);
        let made = (|| {
            let log = segment::create(&*self.fs, &self.folder, header, capacity)
                .map_err(keep_error("making a segment"))?;
            let identity = Identity { number, generation: 0, last: number, log_len: self.writer.position };
            let index = if runs.is_empty() {
                None
            } else {
                let written = index::write(&*self.fs, &index_path, &identity, &runs);
                Some(written.map_err(keep_error("writing an index"))?)
            };
            self.sync_folder()?;
            let live_bytes =
                runs.iter().flat_map(|run| &run.slots).map(|s| u64::from(s.len) + RECORD_COST).sum();
            let slots = index.as_ref().map_or(0, |(_, slots)| *slots);
            let sealing = Sealing { number, slots, live_bytes };
            let position = Position { segment: next_number, first_id: next_id, offset: segment::HEADER };
            self.write_checkpoint(position, Some(&sealing))?;
            Ok((log, index))
        })();
        let (log, index) = match made {
            Ok(made) => made,
            // The new checkpoint may be in force, and name these files.
            Err(error @ KeepError::Stop(_)) => return Err(error),
            Err(error) => {
                // The next open removes them otherwise.
                let _ = self.fs.remove(&index_path);
                let _ = self.fs.remove(&self.folder.join(file_names(next_number, 0).0));
                return Err(error);
            }
        };
        let old = Arc::clone(&self.writer.log);
        let log_len = self.writer.position;
        let files = index.map(|(index, slots)| {
            let log = Arc::clone(&old);
            Arc::new(SegmentFiles {
                number,
                generation: 0,
                last: number,
                slots,
                log_len,
                log,
                index,
                index_path,
            })
        });
        // Gives back what was taken ahead; if it fails, the room is lost until the segment goes.
        match &files {
            Some(_) => drop(old.file.set_len(log_len)),
            None => self.remove(&old.path),
        }
        let next = Active { number: next_number, first_id: next_id, log: Arc::clone(&log) };
        self.shared.state_mut().seal(files, next);
        self.writer = Writer::new(log, next_number, u64::from(segment::HEADER), capacity);
        self.drop_dead();
        Ok(())
    }

    /// Writes a checkpoint of now, and removes what it no longer names.
    pub(crate) fn checkpoint(&mut self) -> Result<(), KeepError> {
        let dead = self.shared.state().sealed.values().any(|sealed| sealed.live == 0);
        let moved = self.checkpoint_at != (self.writer.number, self.writer.position);
        if !moved && !dead && self.garbage.is_empty() {
            return Ok(());
        }
        self.flush()?;
        let first_id = self.shared.state().active.first_id;
        let offset = self.writer.position as u32;
        self.write_checkpoint(Position { segment: self.writer.number, first_id, offset }, None)?;
        self.drop_dead();
        Ok(())
    }

    /// Does what the last group has made worth doing. `full`: the device has no room.
    pub(crate) fn tidy(&mut self, full: bool) -> Result<(), KeepError> {
        let freed = self.shared.state().freed;
        let worth = u64::from(self.options.segment_bytes) / 2;
        let dead = || self.shared.state().sealed.values().any(|sealed| sealed.live == 0);
        if freed < worth && !(full && dead()) {
            return Ok(());
        }
        self.shared.state_mut().freed = 0;
        match self.compact() {
            // What is acknowledged altogether can go all the same, and makes room.
            Ok(()) | Err(KeepError::Full) => {}
            Err(stop) => return Err(stop),
        }
        self.checkpoint()
    }

    pub(crate) fn sync_folder(&self) -> Result<(), KeepError> {
        // Whatever the error, what the folder holds after a power loss is open.
        self.fs
            .sync_folder(&self.folder)
            .map_err(|error| KeepError::Stop(format!("flushing the folder: {error}")))
    }

    /// A checkpoint stands only on what was flushed, whatever the durability.
    fn flush(&mut self) -> Result<(), KeepError> {
        if self.writer.synced < self.writer.position {
            self.writer.sync().map_err(|error| KeepError::Stop(format!("flushing: {error}")))?;
        }
        Ok(())
    }

    fn write_checkpoint(&mut self, position: Position, sealing: Option<&Sealing>) -> Result<(), KeepError> {
        let bytes = checkpoint::encode(&self.shared.state(), position, sealing, now_ms());
        checkpoint::write(&*self.fs, &self.folder, &bytes).map_err(|failure| match failure {
            Failure::Full => KeepError::Full,
            Failure::Stop(error) => KeepError::Stop(format!("writing the checkpoint: {error}")),
        })?;
        self.checkpoint_at = (position.segment, u64::from(position.offset));
        Ok(())
    }

    /// Removes segments that hold nothing; the checkpoint in force does not name them.
    fn drop_dead(&mut self) {
        let mut dead: Vec<_> = {
            let mut state = self.shared.state_mut();
            state
                .sealed
                .extract_if(.., |_, sealed| sealed.live == 0)
                .map(|(_, sealed)| sealed.files)
                .collect()
        };
        dead.append(&mut self.garbage);
        for files in dead {
            self.remove(&files.index_path);
            self.remove(&files.log.path);
        }
    }

    pub(crate) fn remove(&self, path: &std::path::Path) {
        if let Err(error) = self.fs.remove(path) {
            tracing::warn!(file = %path.display(), %error, "cannot remove a file that the queue no longer needs");
        }
    }
}
