//! Every file operation fails once, in every way; every crash image opens; every damage is found.
//!
//! What must hold in all of it: nothing acknowledged is lost, nothing refused or unknown is
//! served, ids never repeat, and a failed flush is never followed by an acknowledgement.
#![allow(clippy::unwrap_used, reason = "in a test, also in its functions, it is an assertion")]

mod damage;
mod history;
mod kill;
mod sim;
#[path = "../contract/support.rs"]
#[allow(dead_code, reason = "shared with the contract's tests")]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use history::History;
use sim::{Disk, Image, Mode, Op, Pace, Sim};
use waystation_committer::block_on;
use waystation_core::queue::{Batch, QueueBackend, QueueError, RecordId, Verdict};
use waystation_core::storage::Durability;
use waystation_queue::{MIN_SEGMENT, OpenError, Options, open_on};

/// Steps of the script: enough for several segments, removals and a compaction.
const STEPS: usize = 48;

fn open_sim(sim: &Sim, durability: Durability) -> Result<Arc<dyn QueueBackend>, OpenError> {
    let options =
        Options { durability, segment_bytes: MIN_SEGMENT, min_free_bytes: Some(0), ..Options::default() };
    open_on(Arc::new(sim.clone()), Path::new("/queue"), &options)
}

/// Numbers that look random, the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn half(&mut self) -> bool {
        self.roll().is_multiple_of(2)
    }
}

/// Opens what a crash has left, which must succeed, checks it, goes on, and checks again.
fn recover(image: &Image, mut history: History) {
    let sim = Sim::new(image, None);
    let queue = open_sim(&sim, Durability::Fsync).unwrap_or_else(|error| panic!("{error}"));
    history.check(&queue);
    for n in 0..4 {
        history.step(&queue, 100 + n, || false);
    }
    block_on(queue.close()).unwrap();
    let sim = Sim::new(&sim.disk().cut(|| false), None);
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    history.check(&queue);
}

/// Runs the script with a fault at one operation; false when it was over before.
fn run_with_fault(at: u64, mode: Mode, pace: Pace) -> bool {
    let sim = Sim::new(&Image::new(), Some((at, mode)));
    sim.set_pace(pace);
    let mut history = History::default();
    match open_sim(&sim, Durability::Fsync) {
        Ok(queue) => {
            for n in 0..STEPS {
                history.step(&queue, n, || sim.flush_failed());
            }
            // Closing fails when the queue has stopped, and may run into the fault itself.
            let closed = block_on(queue.close());
            assert!(closed.is_err() || !(sim.flush_failed() || sim.keeping_failed()), "at {at}, {pace:?}");
        }
        Err(error) => assert!(sim.fired(), "{error}"),
    }
    let disk = sim.disk();
    if !sim.fired() {
        let made =
            |end: &str| sim.trace().iter().any(|op| matches!(op, Op::Create(name) if name.ends_with(end)));
        assert!(made("-0001.log") && made("5-0000.index"), "the script compacts nothing");
    }
    let mut dice = Dice(at + 1);
    if mode == Mode::Cut || mode == Mode::Error {
        recover(&disk.cut(|| false), history.clone());
        recover(&disk.cut(|| true), history.clone());
        for _ in 0..3 {
            recover(&disk.cut(|| dice.half()), history.clone());
        }
    }
    if mode != Mode::Cut {
        recover(&disk.kill(), history);
    }
    sim.fired()
}

fn every_operation(mode: Mode) {
    // The thread beside the commits as quick as it can, in between, and as late as it may.
    for pace in [Pace::Free, Pace::Behind(3), Pace::Behind(1000)] {
        let mut at = 0;
        while run_with_fault(at, mode, pace) {
            at += 1;
        }
        assert!(at > 150, "the script has too few operations: {at}, {pace:?}");
    }
}

#[test]
fn an_error_at_every_operation() {
    every_operation(Mode::Error);
}

#[test]
fn a_full_disk_at_every_operation() {
    every_operation(Mode::Full { operations: 1 });
    every_operation(Mode::Full { operations: 40 });
}

#[test]
fn a_short_write_at_every_operation() {
    every_operation(Mode::Short);
}

#[test]
fn a_power_cut_at_every_operation() {
    every_operation(Mode::Cut);
}

#[test]
fn a_full_disk_refuses_records_takes_acknowledgements_and_recovers_by_itself() {
    let sim = Sim::new(&Image::new(), None);
    sim.set_room(Some(100_000));
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    let commit = |n: usize| block_on(queue.commit(support::records(&["a"], &[&format!("{n:0900}")])));
    for round in 0..3 {
        let mut ids = Vec::new();
        let refused = loop {
            match commit(ids.len()) {
                Ok(committed) => ids.extend(committed),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, QueueError::Full), "round {round}: {refused}");
        assert!(ids.len() > 35, "round {round}: only {} records found room", ids.len());
        assert!(matches!(commit(0), Err(QueueError::Full)));
        let read: Vec<_> = block_on(support::all(&queue, "a")).iter().map(|r| r.id).collect();
        assert_eq!(read, ids, "round {round}: what was refused is not there");
        // All of it outlives a power cut now.
        recover_count(&sim, ids.len());
        for ids in ids.chunks(4) {
            let settles = ids.iter().flat_map(|id| support::ack("a", *id).settles);
            let batch = Batch { settles: settles.collect(), ..Batch::default() };
            block_on(queue.commit(batch)).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        assert_eq!(block_on(support::all(&queue, "a")).len(), 0);
    }
}

/// Asserts how many records of "a" a power cut leaves.
fn recover_count(sim: &Sim, count: usize) {
    let queue = open_sim(&Sim::new(&sim.disk().cut(|| false), None), Durability::Fsync).unwrap();
    assert_eq!(block_on(support::all(&queue, "a")).len(), count);
}

#[test]
fn a_lease_begins_when_it_is_handed_out_however_long_committing_it_takes() {
    let sim = Sim::new(&Image::new(), None);
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    block_on(queue.commit(support::records(&["a"], &["0"]))).unwrap();
    sim.set_flush_time(Duration::from_millis(400));
    let asked = SystemTime::now();
    let how_long = Duration::from_millis(300);
    let leased = block_on(queue.lease("a".into(), 1, how_long)).unwrap();
    assert_eq!(leased.len(), 1, "the lease was over before it was handed out");
    assert!(leased[0].until >= asked + how_long + Duration::from_millis(300));
    sim.set_flush_time(Duration::ZERO);
    block_on(queue.settle(leased[0].lease, Verdict::Ack)).unwrap();
    // Nothing of it is left once it is over, either.
    block_on(queue.commit(support::records(&["a"], &["1"]))).unwrap();
    let leased = block_on(queue.lease("a".into(), 1, Duration::from_millis(1))).unwrap();
    assert_eq!(leased.len(), 1);
    std::thread::sleep(Duration::from_millis(20));
    let again = block_on(queue.lease("a".into(), 1, how_long)).unwrap();
    assert_eq!(again[0].record.id, leased[0].record.id, "a lease of no end was left");
}

/// Whether a crash has left two segments behind the checkpoint: the second has batches in it, and
/// the first no index.
fn has_two_open_segments(image: &Image) -> bool {
    image.iter().any(|(name, log)| {
        let number = name.strip_suffix("-0000.log").and_then(|number| number.parse::<u32>().ok());
        let before = number.map(|number| format!("{:010}-0000", number - 1));
        log.get(64..).is_some_and(|frames| frames.iter().any(|byte| *byte != 0))
            && before.is_some_and(|before| {
                image.contains_key(&format!("{before}.log"))
                    && !image.contains_key(&format!("{before}.index"))
            })
    })
}

#[test]
fn every_crash_image_of_a_short_run_opens() {
    for pace in [Pace::Free, Pace::Behind(2), Pace::Behind(1000)] {
        every_crash_image(pace);
    }
}

fn every_crash_image(pace: Pace) {
    let sim = Sim::new(&Image::new(), None);
    sim.set_pace(pace);
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    let mut history = History::default();
    // What was answered by which operation.
    let mut known = vec![(sim.operations(), history.clone())];
    for n in 0..14 {
        history.step(&queue, n * 3 + 1, || false);
        known.push((sim.operations(), history.clone()));
    }
    drop(queue);
    let mut disk = Disk::default();
    let mut dice = Dice(7);
    let (mut images, mut two) = (0, 0);
    for (n, op) in sim.trace().iter().enumerate() {
        disk.apply(op);
        // Answered before this operation: what must be there. Asked after it: what must not.
        let answered = known.iter().rposition(|(at, _)| *at <= n as u64);
        let mut expected = known[answered.map_or(0, |index| index + 1).min(known.len() - 1)].1.clone();
        expected.reopen_last(answered.map_or(&History::default(), |index| &known[index].1));
        let pending = disk.pending();
        // All prefixes, each one missing alone, each one there alone, and some at random.
        for chosen in 0..=pending.min(24) {
            for mut keep in [
                Box::new(|index| index < chosen) as Box<dyn FnMut(usize) -> bool>,
                Box::new(|index| index != chosen),
                Box::new(|index| index == chosen),
            ] {
                let mut index = 0;
                let image = disk.cut(|| {
                    index += 1;
                    keep(index - 1)
                });
                two += usize::from(has_two_open_segments(&image));
                recover(&image, expected.clone());
                images += 1;
            }
        }
        recover(&disk.cut(|| dice.half()), expected);
    }
    assert!(images > 500, "{images}, {pace:?}");
    assert!(two > 50 || pace == Pace::Free, "{two} with two segments behind the checkpoint, {pace:?}");
}

/// A run that has gone on in a second segment while the thread that keeps the folder in shape stood
/// still; the ids of "a".
fn two_open_segments() -> (Sim, Arc<dyn QueueBackend>, Vec<RecordId>) {
    let sim = Sim::new(&Image::new(), None);
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    let commit = |n: usize| block_on(queue.commit(support::records(&["a"], &[&format!("{n:0500}")])));
    let mut ids: Vec<_> = (0..5).flat_map(|n| commit(n).unwrap()).collect();
    // The next segment is made, its name flushed last.
    let made = |trace: &[Op]| {
        let created = trace.iter().position(|op| matches!(op, Op::Create(name) if name.contains("2-0000")));
        created.is_some_and(|at| trace[at..].iter().any(|op| matches!(op, Op::SyncFolder)))
    };
    let began = Instant::now();
    while !made(&sim.trace()) {
        assert!(began.elapsed() < Duration::from_secs(10), "the next segment is made ahead");
        std::thread::sleep(Duration::from_millis(1));
    }
    sim.set_pace(Pace::Held);
    ids.extend((5..11).flat_map(|n| commit(n).unwrap()));
    block_on(queue.commit(support::ack("a", ids.remove(1)))).unwrap();
    assert!(has_two_open_segments(&sim.disk().kill()), "commits do not wait for an index or a checkpoint");
    (sim, queue, ids)
}

fn ids_of(queue: &Arc<dyn QueueBackend>) -> Vec<RecordId> {
    block_on(support::all(queue, "a")).iter().map(|record| record.id).collect()
}

#[test]
fn commits_go_on_while_a_checkpoint_is_written_and_closing_waits_for_it() {
    let (sim, queue, ids) = two_open_segments();
    assert_eq!(ids_of(&queue), ids, "what stands in a segment without an index can be read");
    for image in [sim.disk().kill(), sim.disk().cut(|| false), sim.disk().cut(|| true)] {
        let again = Sim::new(&image, None);
        let queue = open_sim(&again, Durability::Fsync).unwrap();
        assert_eq!(ids_of(&queue), ids);
        block_on(queue.close()).unwrap();
        assert!(again.disk().kill().contains_key("0000000001-0000.index"), "sealed once more");
        let queue = open_sim(&Sim::new(&again.disk().cut(|| false), None), Durability::Fsync).unwrap();
        assert_eq!(ids_of(&queue), ids);
    }
    let closing = queue.close();
    let release = sim.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        assert!(!release.disk().kill().contains_key("0000000001-0000.index"));
        release.set_pace(Pace::Free);
    });
    block_on(closing).unwrap();
    thread.join().unwrap();
    let files: Vec<_> = sim.disk().cut(|| false).into_keys().collect();
    let expected = ["0000000001-0000.index", "0000000001-0000.log", "0000000002-0000.log", "checkpoint"];
    assert_eq!(files, expected, "all is done, and nothing that was made ahead is left");
    let done = sim.operations();
    drop(queue);
    assert_eq!(sim.operations(), done);
}

#[test]
fn damage_in_the_first_of_two_open_segments_is_refused_and_repaired() {
    let (sim, _queue, ids) = two_open_segments();
    let image = sim.disk().kill();
    sim.set_pace(Pace::Free);
    let log = &image["0000000001-0000.log"];
    let end = log.iter().rposition(|byte| *byte != 0).unwrap();
    // Of the last record of the first segment; and all of it, as if it had never been written.
    let begin = (64..end).rev().find(|at| log[*at..].starts_with(b"WYQ1")).unwrap();
    for damage in [end - 20..end - 19, begin..end + 1] {
        let mut image = image.clone();
        let log = image.get_mut("0000000001-0000.log").unwrap();
        log[damage.clone()].iter_mut().for_each(|byte| *byte = 0);
        let error = open_sim(&Sim::new(&image, None), Durability::Fsync).err().unwrap();
        let OpenError::Damaged { path, offset, .. } = error else { panic!("{error}") };
        assert_eq!((path, offset), (Path::new("/queue/0000000001-0000.log").to_owned(), begin as u64));
        let sim = Sim::new(&image, None);
        let report = waystation_queue::repair_on(Arc::new(sim.clone()), Path::new("/queue")).unwrap();
        let queue = open_sim(&Sim::new(&sim.disk().cut(|| false), None), Durability::Fsync).unwrap();
        let read = ids_of(&queue);
        assert_eq!(read.len(), ids.len() - 1, "{damage:?}: {report}");
        assert!(read.iter().all(|id| ids.contains(id)) && read.last() == ids.last());
    }
}

#[test]
fn no_room_for_what_is_made_ahead_fails_no_commit_that_fits() {
    let sim = Sim::new(&Image::new(), None);
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    sim.set_room(Some(5000));
    let commit = |n: usize| block_on(queue.commit(support::records(&["a"], &[&format!("{n:0500}")])));
    let taken = (0..20).take_while(|n| commit(*n).is_ok()).count();
    assert_eq!(taken, 6, "as many as one segment holds");
    assert!(matches!(commit(6), Err(QueueError::Full)));
    block_on(queue.commit(support::mark(1, Some(1)))).unwrap();
    sim.set_room(None);
    let more: Vec<_> = (6..30).flat_map(|n| commit(n).unwrap()).collect();
    assert_eq!((ids_of(&queue).len(), more.len()), (30, 24));
}
