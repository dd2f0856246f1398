//! Keeps the folder in shape: seals full segments, and decides when a checkpoint is written, what
//! is removed, and when what is mostly acknowledged is compacted.
//!
//! What must hold: the checkpoint decides. A file is complete and flushed before a checkpoint
//! names it, and is removed only after a checkpoint no longer names it, so that a crash at any
//! moment leaves a folder in which some checkpoint and all its files are whole.
//!
//! Sealing is done in memory, and the commits go on in a segment that was made before; the keeper
//! ([`crate::log::keeper`]) writes the index and the checkpoint meanwhile. Until that checkpoint is
//! in force the one before is, and what comes behind it stands in two segments. The second is
//! written only when the first was flushed to its end, and a third is not begun before.

use std::io;
use std::sync::Arc;

use crate::fs::is_full;
use crate::log::checkpoint::Position;
use crate::log::committer::Committer;
use crate::log::index::Identity;
use crate::log::keeper::{self, Outcome, Round};
use crate::log::segment::{self, SegmentHeader, Writer};
use crate::log::state::Active;

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
    /// Seals the active segment and goes on in the next. On [`KeepError::Full`] the old one goes on.
    pub(crate) fn roll(&mut self) -> Result<(), KeepError> {
        if !self.can_roll() {
            self.wait()?;
        }
        if !self.can_roll() {
            // Now it is needed, and a checkpoint may set room free for it.
            self.begin(true, true)?;
            self.wait()?;
        }
        let Some(log) = self.next.take_if(|_| self.unsealed.is_empty()) else {
            return Err(KeepError::Full);
        };
        // Here too, for a keeper that is always busy would leave no other time for it.
        if self.shared.state().freed >= self.worth() {
            self.shared.state_mut().freed = 0;
            self.make_room()?;
        }
        // A frame in the next segment says of this one that it was flushed, whatever the durability.
        self.flush()?;
        let (old, old_len) = (Arc::clone(&self.writer.log), self.writer.position);
        let number = self.writer.number + 1;
        let capacity = u64::from(self.options.segment_bytes);
        let sealed = {
            let mut state = self.shared.state_mut();
            let first_id = state.next_id;
            let old = self.writer.number;
            let identity = Identity { number: old, generation: 0, last: old, log_len: old_len };
            state.seal(&identity, Active { number, first_id, log: Arc::clone(&log) })
        };
        match sealed {
            Some(files) => {
                self.unsealed.push(files);
                self.trim.push((old, old_len));
            }
            None => self.unneeded.push(old.path.clone()),
        }
        self.writer = Writer::new(log, number, u64::from(segment::HEADER), capacity);
        self.begin(true, false)
    }

    /// From how many bytes on, set free in sealed segments, they are looked at.
    fn worth(&self) -> u64 {
        u64::from(self.options.segment_bytes) / 2
    }

    fn make_room(&mut self) -> Result<(), KeepError> {
        match self.compact() {
            // What is acknowledged altogether can go all the same, and makes room.
            Ok(()) | Err(KeepError::Full) => Ok(()),
            Err(stop) => Err(stop),
        }
    }

    fn can_roll(&self) -> bool {
        self.next.is_some() && self.unsealed.is_empty() && !self.busy
    }

    /// Does what the last group has made worth doing. `full`: the device has no room.
    pub(crate) fn tidy(&mut self, full: bool) -> Result<(), KeepError> {
        self.collect()?;
        if self.busy {
            return Ok(());
        }
        let prepare = self.next.is_none() && !full && self.writer.position > self.writer.capacity / 2;
        let freed = self.shared.state().freed;
        let dead = || self.shared.state().sealed.values().any(|sealed| sealed.live == 0);
        if freed < self.worth() && !(full && dead()) {
            // After an attempt that found no room, the next one is when the segment is needed.
            return if prepare && !self.no_room { self.begin(false, true) } else { Ok(()) };
        }
        self.shared.state_mut().freed = 0;
        if self.unsealed.is_empty() {
            self.make_room()?;
        }
        self.begin(true, prepare)
    }

    /// Brings everything into a checkpoint, and waits until that is done.
    pub(crate) fn finish(&mut self) -> Result<(), KeepError> {
        self.wait()?;
        if let Some(unused) = self.next.take() {
            keeper::remove(&*self.fs, &unused.path);
        }
        let moved = self.checkpoint_at != (self.writer.number, self.writer.position);
        self.begin(true, false)?;
        if !self.busy && moved && self.checkpoint_at != (self.writer.number, self.writer.position) {
            self.start(true, false)?;
        }
        self.wait()?;
        if self.no_room { Err(KeepError::Full) } else { Ok(()) }
    }

    /// Begins a round, if there is anything to do in it: a checkpoint, when something waits for
    /// one, and the next segment, when there is none. The round before must have ended.
    pub(crate) fn begin(&mut self, checkpoint: bool, prepare: bool) -> Result<(), KeepError> {
        if checkpoint {
            let mut state = self.shared.state_mut();
            let dead = state.sealed.extract_if(.., |_, sealed| sealed.live == 0);
            self.unneeded.extend(dead.flat_map(|(_, sealed)| sealed.files.paths()));
            self.unsealed.retain(|files| state.sealed.contains_key(&files.number));
        }
        let checkpoint = checkpoint && !(self.unsealed.is_empty() && self.unneeded.is_empty());
        self.start(checkpoint, prepare && self.next.is_none())
    }

    fn start(&mut self, checkpoint: bool, prepare: bool) -> Result<(), KeepError> {
        if !checkpoint && !prepare {
            return Ok(());
        }
        let mut round = Round::default();
        if checkpoint {
            self.flush()?;
            let mut state = self.shared.state_mut();
            let offset = self.writer.position as u32;
            let first_id = state.active.first_id;
            let position = Position { segment: self.writer.number, first_id, offset };
            round.head = Some(state.snapshot(position));
            round.unsealed = self.unsealed.clone();
            round.unneeded = std::mem::take(&mut self.unneeded);
            round.trim = std::mem::take(&mut self.trim);
        }
        if prepare {
            let number = self.writer.number + 1;
            // No record in it will have a smaller id.
            let first_id = self.shared.state().next_id;
            let header = SegmentHeader { number, generation: 0, last: number, first_id };
            round.prepare = Some((header, u64::from(self.options.segment_bytes)));
        }
        match &self.keeper {
            Some(keeper) => {
                keeper.begin(round)?;
                self.busy = true;
                Ok(())
            }
            None => {
                let outcome = keeper::work(&*self.fs, &self.folder, &self.shared, round);
                self.take_up(outcome)
            }
        }
    }

    /// Takes up what the keeper has done.
    fn collect(&mut self) -> Result<(), KeepError> {
        match self.keeper.as_ref().and_then(keeper::Keeper::poll) {
            Some(outcome) => self.take_up(outcome),
            None => Ok(()),
        }
    }

    /// Waits until the round that is under way has ended.
    fn wait(&mut self) -> Result<(), KeepError> {
        match &self.keeper {
            Some(keeper) if self.busy => {
                let outcome = keeper.wait()?;
                self.take_up(outcome)
            }
            _ => Ok(()),
        }
    }

    fn take_up(&mut self, Outcome { round, result, checkpoint, next }: Outcome) -> Result<(), KeepError> {
        self.busy = false;
        self.next = next.or_else(|| self.next.take());
        // What was not removed waits for the next checkpoint.
        self.unneeded.extend(round.unneeded);
        self.trim.extend(round.trim);
        if let Some(position) = checkpoint {
            // None was added: no segment is sealed during a round.
            self.unsealed.clear();
            self.checkpoint_at = (position.segment, u64::from(position.offset));
        }
        match result {
            Ok(()) => self.no_room = false,
            Err(KeepError::Full) => self.no_room = true,
            Err(stop) => return Err(stop),
        }
        Ok(())
    }

    /// A checkpoint stands only on what was flushed, whatever the durability.
    fn flush(&mut self) -> Result<(), KeepError> {
        if self.writer.synced < self.writer.position {
            self.writer.sync().map_err(|error| KeepError::Stop(format!("flushing: {error}")))?;
        }
        Ok(())
    }
}
