//! A torn tail is cut off; damage in front of acknowledged batches is refused, named, and repaired.

use std::path::Path;
use std::sync::Arc;

use waystation_committer::block_on;
use waystation_core::queue::{QueueBackend, QueueError, RecordId, Verdict};
use waystation_core::storage::Durability;
use waystation_queue::{OpenError, RepairReport, repair_on};

use crate::open_sim;
use crate::sim::{Image, Sim};
use crate::support::{ack, all, mark, name, records, settle, texts};

const FIRST: &str = "0000000001-0000.log";

fn open(image: &Image) -> Result<Arc<dyn QueueBackend>, OpenError> {
    open_sim(&Sim::new(image, None), Durability::Fsync)
}

fn repair(image: &Image) -> (Image, RepairReport) {
    let sim = Sim::new(image, None);
    let report = repair_on(Arc::new(sim.clone()), Path::new("/queue")).unwrap();
    // What a repair has done survives a power cut.
    (sim.disk().cut(|| false), report)
}

/// A log with one segment and some batches in it, and where these begin and end.
fn short_log() -> (Image, Vec<usize>, Vec<RecordId>) {
    let sim = Sim::new(&Image::new(), None);
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    let mut ids = Vec::new();
    for n in 0..6 {
        let text = format!("text {n}");
        let mut batch = records(&["a", "b"], &[&text, ""]);
        batch.marks = mark(1, Some(n)).marks;
        ids.extend(block_on(queue.commit(batch)).unwrap());
    }
    // Not closed: the end was not noted by a checkpoint.
    let image = sim.disk().kill();
    let log = &image[FIRST];
    let mut ends = vec![64];
    loop {
        let at = ends[ends.len() - 1];
        let len = u32::from_le_bytes(log[at + 4..at + 8].try_into().unwrap()) as usize;
        if len == 0 {
            break;
        }
        ends.push(at + len);
    }
    assert_eq!(ends.len(), 7);
    (image, ends, ids)
}

#[test]
fn a_tail_cut_at_any_byte_leaves_the_batches_before_it() {
    let (image, ends, ids) = short_log();
    let last = ends[ends.len() - 1];
    let intact = image[FIRST].clone();
    for cut in ends[3]..=last {
        for shorter in [false, true] {
            let mut image = image.clone();
            let log = image.get_mut(FIRST).unwrap();
            log.truncate(cut);
            if !shorter {
                log.resize(intact.len(), 0);
            }
            // Where only zeros were cut off and put back, nothing is missing.
            let whole = ends[1..].iter().filter(|end| log.get(..**end) == Some(&intact[..**end])).count();
            let queue = open(&image).unwrap();
            let read = block_on(all(&queue, "a"));
            assert_eq!(read.iter().map(|r| r.id).collect::<Vec<_>>(), ids[..whole * 2], "cut at {cut}");
            assert_eq!(block_on(queue.mark(1)).unwrap(), whole.checked_sub(1).map(|n| n as u64));
            let more = block_on(queue.commit(records(&["a"], &["more"]))).unwrap();
            assert!(Some(&more[0]) > ids[..whole * 2].last());
        }
    }
}

#[test]
fn a_flipped_byte_in_the_last_batches_is_torn_off_or_refused_and_repaired() {
    let (image, ends, ids) = short_log();
    let (first, last) = (ends[ends.len() - 4], ends[ends.len() - 1]);
    for at in first..last {
        let mut image = image.clone();
        image.get_mut(FIRST).unwrap()[at] ^= 0x41;
        let batch = ends.iter().rposition(|begin| *begin <= at).unwrap();
        match open(&image) {
            Ok(queue) => {
                let read: Vec<_> = block_on(all(&queue, "a")).iter().map(|r| r.id).collect();
                // Padding is not looked at; the last batch cannot be told from one that was torn.
                let torn = batch == ends.len() - 2 && read == ids[..ids.len() - 2];
                assert!(read == ids || torn, "byte {at}: {read:?}");
                let text =
                    |n: usize| if n.is_multiple_of(2) { format!("text {}", n / 2) } else { String::new() };
                assert_eq!(block_on(texts(&queue, "b")), (0..read.len()).map(text).collect::<Vec<_>>());
            }
            Err(OpenError::Damaged { path, offset, detail }) => {
                assert!(batch < ends.len() - 2, "byte {at}: {detail}");
                assert_eq!((path.as_path(), offset), (&*Path::new("/queue").join(FIRST), ends[batch] as u64));
                let (repaired, report) = repair(&image);
                assert!(!report.lost.is_empty() && !report.marks_lost, "{report}");
                let queue = open(&repaired).unwrap();
                let read: Vec<_> = block_on(all(&queue, "a")).iter().map(|r| r.id).collect();
                let reported = |id: &RecordId| {
                    report.lost.iter().any(|lost| lost.records.as_ref().is_some_and(|r| r.contains(&id.0)))
                };
                let expected: Vec<_> = ids.iter().copied().filter(|id| !reported(id)).collect();
                assert_eq!(read, expected, "byte {at}: {report}");
                assert!(read.len() >= ids.len() - 2, "only the damaged batch is lost: {report}");
                for lost in &report.lost {
                    let kept = lost.kept.as_ref().unwrap().file_name().unwrap().to_str().unwrap();
                    let begin = lost.offset as usize;
                    assert_eq!(repaired[kept], image[FIRST][begin..begin + lost.bytes as usize]);
                }
                assert_eq!(block_on(queue.mark(1)).unwrap(), Some(5));
                assert!(block_on(queue.commit(records(&["a"], &["x"]))).unwrap()[0] > ids[ids.len() - 1]);
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
}

/// A log with sealed segments, closed; the ids that are pending in "a".
fn long_log() -> (Image, Vec<RecordId>) {
    let sim = Sim::new(&Image::new(), None);
    let queue = open_sim(&sim, Durability::Fsync).unwrap();
    let mut ids = Vec::new();
    for n in 0..30 {
        let text = format!("text {n} {}", "x".repeat(400));
        ids.extend(block_on(queue.commit(records(&["a", "b"], &[&text]))).unwrap());
        if n % 5 == 4 {
            let id = ids.remove(ids.len() - 2);
            block_on(queue.commit(ack("a", id))).unwrap();
            block_on(queue.commit(ack("b", id))).unwrap();
        }
    }
    let park = Verdict::Park { reason: "for a test".to_owned() };
    block_on(queue.commit(settle("b", ids[0], park))).unwrap();
    block_on(queue.close()).unwrap();
    (sim.disk().kill(), ids)
}

fn flip(image: &Image, file: &str, at: usize) -> Image {
    let mut image = image.clone();
    image.get_mut(file).unwrap()[at] ^= 0x10;
    image
}

#[test]
fn a_damaged_payload_is_an_error_of_its_own_and_reading_goes_on_behind_it() {
    let (image, ids) = long_log();
    // One in a sealed segment, and the last, in the active one.
    for (text, index) in [("text 2 x", 2), ("text 29 x", ids.len() - 1)] {
        let find = |log: &[u8]| log.windows(text.len()).position(|w| w == text.as_bytes());
        let (file, at) = image.iter().find_map(|(name, log)| Some((name, find(log)?))).unwrap();
        let damaged = flip(&image, file, at + 3);
        let queue = open(&damaged).unwrap();
        let before = block_on(queue.read(name("a"), None, 1000, usize::MAX)).unwrap();
        assert_eq!(before.iter().map(|r| r.id).collect::<Vec<_>>(), ids[..index]);
        let after = index.checked_sub(1).map(|index| ids[index]);
        let error = block_on(queue.read(name("a"), after, 1000, usize::MAX)).unwrap_err();
        let QueueError::Corrupt { record, detail } = error else { panic!("{error}") };
        assert!(record == Some(ids[index]) && detail.contains(file), "{detail}");
        let behind = block_on(queue.read(name("a"), record, 1000, usize::MAX)).unwrap();
        assert_eq!(behind.iter().map(|r| r.id).collect::<Vec<_>>(), ids[index + 1..]);
        block_on(queue.close()).unwrap();
        drop(queue);

        let (repaired, report) = repair(&damaged);
        assert_eq!(report.lost.len(), 1, "{report}");
        assert_eq!(report.lost[0].records, Some(ids[index].0..=ids[index].0));
        let queue = open(&repaired).unwrap();
        for of in ["a", "b"] {
            let stats = block_on(queue.stats(name(of))).unwrap();
            let read = block_on(all(&queue, of));
            assert_eq!(stats.pending, read.len() as u64);
            assert_eq!(stats.bytes, read.iter().map(|r| r.payload.len() as u64).sum::<u64>());
            assert!(read.len() >= ids.len() - 2 && read.iter().all(|r| r.id != ids[index]));
        }
        assert!(repair(&repaired).1.is_clean());
    }
}

/// The name of the active segment's file.
fn active(image: &Image) -> &str {
    image.keys().rfind(|name| name.ends_with(".log")).unwrap()
}

#[test]
fn a_flipped_byte_of_an_index_or_the_checkpoint_is_found_and_repaired() {
    let (image, ids) = long_log();
    let index = image.keys().find(|name| name.ends_with(".index")).unwrap().clone();
    for file in ["checkpoint", &index] {
        let len = image[file].len();
        // Pages end in zeros that nothing is taken from.
        let mut refused = 0;
        for at in (0..len).filter(|at| *at < 200 || at % 37 == 0 || *at > len - 100) {
            let damaged = flip(&image, file, at);
            let broken = match open(&damaged) {
                Ok(queue) => match block_on(queue.read(name("a"), None, 1000, usize::MAX)) {
                    Ok(read) => {
                        assert_eq!(read.iter().map(|r| r.id).collect::<Vec<_>>(), ids, "{file} at {at}");
                        false
                    }
                    Err(QueueError::Corrupt { record, detail }) => {
                        assert!(record.is_none() && detail.contains(&index), "{detail}");
                        true
                    }
                    Err(error) => panic!("{file} at {at}: {error}"),
                },
                Err(OpenError::Version { .. }) => {
                    assert!((8..12).contains(&at), "{file} at {at}");
                    continue;
                }
                Err(OpenError::Damaged { path, .. }) => {
                    assert!(path.ends_with(file), "{file} at {at}: {}", path.display());
                    true
                }
                Err(error) => panic!("{file} at {at}: {error}"),
            };
            if broken {
                refused += 1;
                let (repaired, report) = repair(&damaged);
                assert_eq!(report.marks_lost, file == "checkpoint", "{report}");
                let queue =
                    open(&repaired).unwrap_or_else(|error| panic!("{file} at {at}: {error}\n{report}"));
                let read = block_on(all(&queue, "a"));
                assert!(ids.iter().all(|id| read.iter().any(|r| r.id == *id)), "{file} at {at}: {report}");
                let stats = block_on(queue.stats(name("a"))).unwrap();
                assert_eq!(stats.bytes, read.iter().map(|r| r.payload.len() as u64).sum::<u64>());
            }
        }
        assert!(refused > 50, "{file}: {refused}");
    }
}

#[test]
fn what_is_missing_cut_short_or_of_another_version_is_named() {
    let (image, ids) = long_log();
    let fails = |image: &Image, file: &str| {
        let text = open(image).err().unwrap_or_else(|| panic!("without {file} it opened")).to_string();
        assert!(text.contains(file) && text.contains("waystation queue repair"), "{text}");
        let (repaired, report) = repair(image);
        assert!(!report.is_clean());
        let queue = open(&repaired).unwrap_or_else(|error| panic!("{file}: {error}"));
        let read = block_on(all(&queue, "a"));
        let stats = block_on(queue.stats(name("a"))).unwrap();
        assert_eq!(stats.pending, read.len() as u64, "{file}");
        assert!(block_on(queue.commit(records(&["a"], &["x"]))).unwrap()[0] > ids[ids.len() - 1], "{file}");
        read.len()
    };
    for file in image.keys().filter(|name| *name != "lock") {
        let mut without = image.clone();
        without.remove(file);
        let left = fails(&without, file);
        assert!(left >= ids.len() / 2, "{file}: {left} of {} are left", ids.len());
        if file.ends_with(".index") {
            assert!(left >= ids.len(), "{file}: an index can be rebuilt");
        }
        let mut short = image.clone();
        let len = if file == active(&image) { 80 } else { image[file].len() - 1 };
        short.get_mut(file).unwrap().truncate(len);
        fails(&short, file);
        let mut newer = image.clone();
        newer.get_mut(file).unwrap()[8] = 2;
        let needed = !file.ends_with(".log") || file == active(&image);
        match open(&newer) {
            Err(OpenError::Version { path, found: 2, known: 1 }) => assert!(path.ends_with(file)),
            Ok(_) if !needed => {}
            other => panic!("{file}: {:?}", other.err()),
        }
    }
}

#[test]
fn a_folder_is_opened_once_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let queue = waystation_queue::open(folder.path(), &waystation_queue::Options::default()).unwrap();
    for outcome in [
        waystation_queue::open(folder.path(), &waystation_queue::Options::default()).map(|_| ()),
        waystation_queue::repair(folder.path()).map(|_| ()),
    ] {
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("in use by another process"), "{text}");
    }
    drop(queue);
    assert!(waystation_queue::repair(folder.path()).unwrap().is_clean());
    waystation_queue::open(folder.path(), &waystation_queue::Options::default()).unwrap();
}
