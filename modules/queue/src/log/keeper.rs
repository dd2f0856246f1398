//! The thread that does for the committer what commits must not wait for: indexes of sealed
//! segments, checkpoints, the next segment, and the removal of what is no longer needed.
//!
//! What must hold: it changes files that the committer does not write, and nothing of the state;
//! what it has done is taken up by the committer, between two groups. A round is done in order: a
//! checkpoint is written when the files that it names are flushed, and files go when it is in
//! force. After a failure other than for want of room the log stops.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::fs::FileSystem;
use crate::log::checkpoint::{self, Failure, Position};
use crate::log::committer::Shared;
use crate::log::index::{LogFile, SegmentFiles};
use crate::log::keep::{KeepError, keep_error};
use crate::log::segment::{self, SegmentHeader};
use crate::log::snapshot::Head;

/// What there is to do.
#[derive(Default)]
pub(crate) struct Round {
    /// What a checkpoint is to be written of.
    pub(crate) head: Option<Head>,
    /// Segments that it names and whose index may not be written yet.
    pub(crate) unsealed: Vec<Arc<SegmentFiles>>,
    /// Files that it does not name.
    pub(crate) unneeded: Vec<PathBuf>,
    /// Sealed segments, and their length without what was taken ahead.
    pub(crate) trim: Vec<(Arc<LogFile>, u64)>,
    /// The segment to make, and its length.
    pub(crate) prepare: Option<(SegmentHeader, u64)>,
}

/// How a round ended.
pub(crate) struct Outcome {
    /// What is left of it: all but what was done.
    pub(crate) round: Round,
    pub(crate) result: Result<(), KeepError>,
    /// Where the checkpoint stands that was put in force.
    pub(crate) checkpoint: Option<Position>,
    /// The segment that was made.
    pub(crate) next: Option<Arc<LogFile>>,
}

/// The committer's end of the thread.
pub(crate) struct Keeper {
    rounds: Option<SyncSender<Round>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread for the log of a folder.
    pub(crate) fn start(fs: Arc<dyn FileSystem>, folder: PathBuf, shared: Arc<Shared>) -> io::Result<Self> {
        // One round is under way at a time.
        let (rounds, todo) = sync_channel(1);
        let (done, outcomes) = sync_channel(1);
        let serve = move || {
            while let Ok(round) = todo.recv() {
                let outcome = catch_unwind(AssertUnwindSafe(|| work(&*fs, &folder, &shared, round)));
                let outcome = outcome.unwrap_or_else(|_| Outcome {
                    round: Round::default(),
                    result: Err(KeepError::Stop(
                        "the thread that keeps the folder in shape panicked".to_owned(),
                    )),
                    checkpoint: None,
                    next: None,
                });
                if matches!(outcome.result, Err(KeepError::Stop(_))) {
                    // The committer may be waiting for work, and does not hear of it then.
                    shared.inbox.fail();
                }
                if done.send(outcome).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("queue-keep".to_owned()).spawn(serve)?;
        Ok(Self { rounds: Some(rounds), outcomes, thread: Some(thread) })
    }

    /// Hands over a round; the one before must have ended.
    pub(crate) fn begin(&self, round: Round) -> Result<(), KeepError> {
        let sent = self.rounds.as_ref().is_some_and(|rounds| rounds.send(round).is_ok());
        if sent { Ok(()) } else { Err(gone()) }
    }

    /// The outcome of the round, if it has ended.
    pub(crate) fn poll(&self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }

    /// Waits for the outcome of the round.
    pub(crate) fn wait(&self) -> Result<Outcome, KeepError> {
        self.outcomes.recv().map_err(|_| gone())
    }
}

fn gone() -> KeepError {
    KeepError::Stop("the thread that keeps the folder in shape has ended".to_owned())
}

impl Drop for Keeper {
    /// Waits for it: only then may the folder's lock go.
    fn drop(&mut self) {
        self.rounds = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps the queue's folder in shape panicked");
        }
    }
}

/// Does a round.
pub(crate) fn work(fs: &dyn FileSystem, folder: &Path, shared: &Shared, mut round: Round) -> Outcome {
    let (mut checkpoint, mut next) = (None, None);
    let result = keep(fs, folder, shared, &mut round).and_then(|position| {
        checkpoint = position;
        next = round.prepare.take().map(|(header, len)| prepare(fs, folder, header, len)).transpose()?;
        Ok(())
    });
    Outcome { round, result, checkpoint, next }
}

fn keep(
    fs: &dyn FileSystem,
    folder: &Path,
    shared: &Shared,
    round: &mut Round,
) -> Result<Option<Position>, KeepError> {
    let Some(head) = round.head.take() else { return Ok(None) };
    let position = head.position;
    let bytes = checkpoint::encode(&head, |out, count| shared.state_mut().copy_some(out, count));
    // What it holds would be copied when it changes.
    drop(head);
    for files in &round.unsealed {
        if let Err(error) = files.write_index(fs) {
            // The next open removes it otherwise.
            let _ = fs.remove(&files.index_path);
            return Err(keep_error("writing an index")(error));
        }
    }
    if !round.unsealed.is_empty() {
        sync_folder(fs, folder)?;
    }
    checkpoint::write(fs, folder, &bytes).map_err(|failure| match failure {
        Failure::Full => KeepError::Full,
        Failure::Stop(error) => KeepError::Stop(format!("writing the checkpoint: {error}")),
    })?;
    round.unsealed.clear();
    for path in round.unneeded.drain(..) {
        remove(fs, &path);
    }
    for (log, len) in round.trim.drain(..) {
        // If it fails, the room is lost until the segment goes.
        drop(log.file.set_len(len));
    }
    Ok(Some(position))
}

fn prepare(
    fs: &dyn FileSystem,
    folder: &Path,
    header: SegmentHeader,
    len: u64,
) -> Result<Arc<LogFile>, KeepError> {
    let log = segment::create(fs, folder, header, len).map_err(keep_error("making a segment"))?;
    // Before anything is written to it: a frame in it must not be lost with its name.
    sync_folder(fs, folder)?;
    Ok(log)
}

/// Flushes the names in a folder.
pub(crate) fn sync_folder(fs: &dyn FileSystem, folder: &Path) -> Result<(), KeepError> {
    // Whatever the error, what the folder holds after a power loss is open.
    fs.sync_folder(folder).map_err(|error| KeepError::Stop(format!("flushing the folder: {error}")))
}

/// Removes a file that is not needed any more.
pub(crate) fn remove(fs: &dyn FileSystem, path: &Path) {
    match fs.remove(path) {
        // A segment that was never given an index has none to remove.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "cannot remove a file that the queue no longer needs");
        }
        _ => {}
    }
}
