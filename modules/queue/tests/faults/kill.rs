//! The process is killed while it commits, on the real file system: a child is this test once more.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use waystation_committer::block_on;
use waystation_core::queue::RecordId;
use waystation_core::storage::Durability;
use waystation_queue::{Options, open};

use crate::Dice;
use crate::support::{ack, all, records};

const FOLDER: &str = "WAYSTATION_QUEUE_KILL_FOLDER";
/// Records that are pending between two batches.
const WINDOW: usize = 20;

fn options(durability: Durability) -> Options {
    Options { durability, segment_bytes: 64 * 1024, min_free_bytes: Some(0), ..Options::default() }
}

fn durability() -> Durability {
    if std::env::var_os("WAYSTATION_QUEUE_KILL_OS").is_some() { Durability::Os } else { Durability::Fsync }
}

/// Commits a record and acknowledges the twentieth before it, in one batch, for ever; prints the
/// id of each record once it is committed.
fn child(folder: &Path) {
    let queue = open(folder, &options(durability())).unwrap();
    let mut pending: Vec<RecordId> = block_on(all(&queue, "q")).iter().map(|r| r.id).collect();
    let mut out = std::io::stdout().lock();
    loop {
        let text = "x".repeat(pending.len() * 50 + 100);
        let mut batch = records(&["q"], &[&text]);
        if pending.len() >= WINDOW {
            batch.settles = ack("q", pending.remove(0)).settles;
        }
        pending.extend(block_on(queue.commit(batch)).unwrap());
        if writeln!(out, "committed {}", pending[pending.len() - 1].0).is_err() {
            return;
        }
    }
}

#[test]
fn what_was_committed_survives_kill_9() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return child(Path::new(&folder));
    }
    let mut dice = Dice(99);
    for os in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut last = 0;
        for round in 0..12 {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "kill::what_was_committed_survives_kill_9", "--nocapture"]);
            command.env(FOLDER, folder.path()).stdout(Stdio::piped()).stderr(Stdio::null());
            if os {
                command.env("WAYSTATION_QUEUE_KILL_OS", "1");
            }
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut seen = 0;
            let wait = Duration::from_millis(dice.roll() % 60);
            let mut deadline = None;
            for line in lines.by_ref() {
                let line = line.unwrap();
                if let Some(id) = line.strip_prefix("committed ") {
                    seen = id.parse().unwrap();
                    let until = *deadline.get_or_insert_with(|| std::time::Instant::now() + wait);
                    if std::time::Instant::now() >= until {
                        break;
                    }
                }
            }
            child.kill().unwrap();
            // What it had said before it died.
            for line in lines.map_while(Result::ok) {
                if let Some(id) = line.strip_prefix("committed ").and_then(|id| id.parse().ok()) {
                    seen = id;
                }
            }
            child.wait().unwrap();
            assert!(seen > last, "round {round}: the child came to {seen}, the one before to {last}");
            let queue = open(folder.path(), &options(Durability::Fsync)).unwrap();
            let read: Vec<_> = block_on(all(&queue, "q")).iter().map(|r| r.id.0).collect();
            let newest = *read.last().unwrap();
            assert!(newest == seen || newest == seen + 1, "round {round}: {newest} after {seen}");
            // Batches are whole: each new record has taken an old one's place.
            let expected = newest.saturating_sub(WINDOW as u64 - 1).max(1)..=newest;
            assert_eq!(read, expected.collect::<Vec<_>>(), "round {round}");
            last = newest;
        }
    }
}
