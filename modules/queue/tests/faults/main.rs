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

use history::History;
use sim::{Disk, Image, Mode, Op, Sim};
use waystation_core::queue::QueueBackend;
use waystation_core::storage::Durability;
use waystation_queue::{MIN_SEGMENT, OpenError, Options, open_on};

use crate::support::block_on;

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
fn run_with_fault(at: u64, mode: Mode) -> bool {
    let sim = Sim::new(&Image::new(), Some((at, mode)));
    let mut history = History::default();
    match open_sim(&sim, Durability::Fsync) {
        Ok(queue) => {
            for n in 0..STEPS {
                history.step(&queue, n, || sim.flush_failed());
            }
            // Closing fails when the queue has stopped, and may run into the fault itself.
            let _ = block_on(queue.close());
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
    let mut at = 0;
    while run_with_fault(at, mode) {
        at += 1;
    }
    assert!(at > 150, "the script has too few operations: {at}");
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
fn every_crash_image_of_a_short_run_opens() {
    let sim = Sim::new(&Image::new(), None);
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
    let mut images = 0;
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
                recover(&image, expected.clone());
                images += 1;
            }
        }
        recover(&disk.cut(|| dice.half()), expected);
    }
    assert!(images > 1000, "{images}");
}
