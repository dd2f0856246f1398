//! What a store keeps when its process is killed, its device loses power or its writes fail.
//!
//! Each test starts this binary again as a child that writes and tells of each acknowledged batch,
//! ends the child in the way it is about, and compares what is left with what was told. The seed
//! is printed; `STORAGE_SEED` repeats one, as far as the timing of the kill allows.
#![allow(clippy::print_stdout, reason = "the test harness shows it when a test fails")]

mod device;
mod workload;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use device::Images;
use tempfile::TempDir;
use waystation_core::storage::{Durability, StorageError};
use waystation_storage::{DataDir, Kind, Options, open};
use workload::{Plan, Random, WRITERS, judge, tell, write_until_failure};

/// How long a child may take for its next word.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for sled, which is known to wait for ever.
const SLED_PATIENCE: Duration = Duration::from_secs(15);

/// How long to wait for the effect of a single failed operation.
const GOES_ON: Duration = Duration::from_secs(5);

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn options(kind: Kind) -> Options {
    Options {
        kind,
        durability: Durability::Fsync,
        // Small, so that tables are written and merged within a round.
        write_buffer_bytes: 256 * 1024,
        min_free_bytes: Some(0),
        ..Options::default()
    }
}

/// What a child process runs; does nothing in the parent.
#[test]
fn child() {
    let Ok(folder) = std::env::var("STORAGE_CHILD") else { return };
    let get = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let kind = get("STORAGE_KIND").parse().unwrap();
    let plan =
        Plan { seed: get("STORAGE_SEED").parse().unwrap(), longest: get("STORAGE_LONGEST").parse().unwrap() };
    let opened = DataDir::lock(folder).and_then(|data_dir| open(&data_dir, &options(kind)));
    let store = match opened {
        Ok(store) => store,
        Err(error) => {
            tell(format_args!("not opened: {error}"));
            return;
        }
    };
    tell(format_args!("opened"));
    let errors = write_until_failure(&store, plan);
    // One writer hears of the failure itself, others may come after it; then all is closed.
    assert!(errors.iter().any(|error| !matches!(error, StorageError::Closed)), "{errors:?}");
    for error in &errors {
        match error {
            StorageError::Full => tell(format_args!("full")),
            StorageError::Io(text) => tell(format_args!("io {text}")),
            StorageError::Closed => {}
            other => panic!("{other:?}"),
        }
    }
    for error in write_until_failure(&store, plan) {
        // sled answers the reads for a batch's conditions with the error of the write.
        let read = kind == Kind::Sled && matches!(error, StorageError::Io(_));
        assert!(read || matches!(error, StorageError::Closed), "a failed store answered {error:?}");
    }
    match judge(&store, plan, &[1 << 40; WRITERS as usize]) {
        Ok(_) => tell(format_args!("reads go on")),
        Err(wrong) => tell(format_args!("reads fail: {wrong}")),
    }
    drop(store);
    tell(format_args!("end"));
}

/// A store under test: where it is, and what was acknowledged.
struct Trial {
    kind: Kind,
    plan: Plan,
    random: Random,
    folder: TempDir,
    images: Images,
    acknowledged: Vec<u64>,
}

/// A child that runs.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Trial {
    fn new(kind: Kind, seed: u64) -> Self {
        println!("{kind}: STORAGE_SEED={seed}");
        Self {
            kind,
            plan: Plan { seed, longest: 30_000 },
            random: Random(seed),
            folder: tempfile::tempdir().expect("a temporary folder"),
            images: Images::new(),
            acknowledged: vec![0; WRITERS as usize],
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, shim: bool, fail: Option<&str>) -> Running {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env("STORAGE_CHILD", self.path())
            .env("STORAGE_KIND", self.kind.as_str())
            .env("STORAGE_SEED", self.plan.seed.to_string())
            .env("STORAGE_LONGEST", self.plan.longest.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if shim {
            command
                .env("LD_PRELOAD", device::shim())
                .env("FAULTS_FOLDER", self.path())
                .env("FAULTS_SYNCED", self.images.path());
        }
        if let Some(fail) = fail {
            command.env("FAULTS_FAIL", fail);
        }
        let mut child = command.spawn().expect("the child starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        // Bounded, so that the child does not run far ahead of what was read.
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines }
    }

    /// Takes down an acknowledgement; gives back any other line.
    fn note(&mut self, line: String) -> Option<String> {
        // The test harness of the child prints without ending its line.
        let start = line.find("ack ").unwrap_or(0);
        let mut words = line[start..].split(' ');
        if words.next() != Some("ack") {
            return Some(line);
        }
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number");
        let (writer, n) = (number(), number());
        let last = &mut self.acknowledged[usize::try_from(writer).expect("small")];
        assert!(n == *last + 1 || *last == 0, "writer {writer} was told of {n} after {last}");
        *last = n;
        None
    }

    /// Lets the child run for `time` (and until it wrote `at_least` batches), then kills it, unless
    /// the shim does that first.
    fn kill_after(&mut self, running: Running, time: Duration, at_least: u64) {
        let Running { mut child, lines } = running;
        let started = Instant::now();
        let mut acks = 0;
        while started.elapsed() < time || acks < at_least {
            let left = time.saturating_sub(started.elapsed());
            match lines.recv_timeout(if acks < at_least { PATIENCE } else { left }) {
                Ok(line) => match self.note(line) {
                    None => acks += 1,
                    Some(line) => assert!(!line.contains("not opened"), "{line}"),
                },
                Err(RecvTimeoutError::Timeout) => {
                    assert!(acks >= at_least, "no batch in {PATIENCE:?} after {acks}");
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        child.kill().expect("the child is killed");
        let status = child.wait().expect("the child ends");
        assert_eq!(status.signal(), Some(9), "the child ended by itself: {status}");
        // What it told before it was killed counts as well.
        while let Ok(line) = lines.recv() {
            self.note(line);
        }
    }

    /// Opens the store and compares it with what was acknowledged. Returns how many acknowledged
    /// batches are lost, or what is wrong.
    fn judge(&mut self) -> Result<u64, String> {
        let data_dir = DataDir::lock(self.path()).map_err(|error| error.to_string())?;
        let store = open(&data_dir, &options(self.kind)).map_err(|error| error.to_string())?;
        let found = judge(&store, self.plan, &self.acknowledged)?;
        self.acknowledged = found.heads;
        Ok(found.lost)
    }
}

fn seed() -> u64 {
    match std::env::var("STORAGE_SEED") {
        Ok(seed) => seed.parse().expect("STORAGE_SEED is a number"),
        Err(_) => std::process::id().into(),
    }
}

fn kill_rounds(kind: Kind) {
    let mut trial = Trial::new(kind, seed());
    for round in 0..12 {
        // The first ones so early that the store is just being made.
        let longest = if round < 5 { 40 } else { 200 };
        let time = Duration::from_millis(trial.random.within(0..longest));
        let running = trial.start(false, None);
        trial.kill_after(running, time, if round < 5 { 0 } else { 20 });
        let lost = trial.judge().unwrap_or_else(|wrong| panic!("{kind}, round {round}: {wrong}"));
        assert_eq!(lost, 0, "{kind}, round {round}: acknowledged batches are lost");
    }
    assert!(trial.acknowledged.iter().all(|n| *n > 0), "nothing was written");
}

#[test]
fn fjall_keeps_every_acknowledged_batch_when_killed() {
    kill_rounds(Kind::Fjall);
}

#[test]
fn sled_keeps_every_acknowledged_batch_when_killed() {
    kill_rounds(Kind::Sled);
}

#[test]
fn fjall_keeps_every_acknowledged_batch_when_power_is_lost() {
    let mut trial = Trial::new(Kind::Fjall, seed());
    let mut blocks = 0;
    for round in 0..14 {
        // In front of a write or flush, where most is pending: while the store is being made at
        // first, later anywhere.
        let what = if round % 4 == 3 { "write" } else { "sync" };
        let n = 1 + trial.random.within(0..if round < 6 { 20 } else { 200 });
        let running = trial.start(true, Some(&format!("{what}:{n}:0")));
        trial.kill_after(running, Duration::ZERO, u64::MAX);
        let pending = trial.images.cut_power(trial.folder.path(), &mut trial.random);
        println!("round {round}: cut before {what} {n}, {pending} blocks pending");
        blocks += pending;
        let lost = trial.judge().unwrap_or_else(|wrong| panic!("round {round}: {wrong}"));
        assert_eq!(lost, 0, "round {round}: acknowledged batches are lost");
        // Judging wrote as well, and all of that counts as flushed: the next cut is about the child.
        trial.images = Images::of(trial.folder.path());
    }
    // How much a cut finds pending is a matter of timing; too little proves less, and is said.
    if blocks <= 10 {
        println!("hardly a write was pending: these cuts show little");
    }
}

#[test]
fn fjall_keeps_every_acknowledged_batch_when_power_is_lost_while_journals_change() {
    let mut trial = Trial::new(Kind::Fjall, seed());
    trial.plan.longest = 1_500_000;
    for round in 0..3 {
        // Enough for a journal and more, so that one is sealed and then removed, which must not
        // happen before what it held is flushed elsewhere.
        let n = trial.random.within(400..600);
        let running = trial.start(true, Some(&format!("sync:{n}:0")));
        trial.kill_after(running, Duration::ZERO, u64::MAX);
        let pending = trial.images.cut_power(trial.folder.path(), &mut trial.random);
        let lost = trial.judge().unwrap_or_else(|wrong| panic!("round {round}: {wrong}"));
        println!("round {round}: cut before sync {n}, {pending} blocks pending");
        assert_eq!(lost, 0, "round {round}: acknowledged batches are lost");
        trial.images = Images::of(trial.folder.path());
    }
    let first = trial.path().join("store/fjall/0.jnl");
    assert!(!first.exists(), "too little was written for a journal to be removed");
}

#[test]
fn sled_promises_no_more_than_it_keeps_when_power_is_lost() {
    let mut trial = Trial::new(Kind::Sled, seed());
    let data_dir = DataDir::lock(trial.path()).unwrap();
    let store = open(&data_dir, &options(Kind::Sled)).unwrap();
    // Fsync was asked for.
    assert_eq!(store.durability(), Durability::Os);
    drop((store, data_dir));
    trial.images = Images::of(trial.path());
    let mut lost = 0;
    for round in 0..4 {
        let time = Duration::from_millis(trial.random.within(50..300));
        let running = trial.start(true, None);
        trial.kill_after(running, time, 20);
        trial.images.cut_power(trial.folder.path(), &mut trial.random);
        match trial.judge() {
            Ok(batches) => lost += batches,
            Err(wrong) => {
                println!("sled, round {round}: {wrong}");
                trial = Trial::new(Kind::Sled, seed() + round);
                continue;
            }
        }
        trial.images = Images::of(trial.folder.path());
    }
    println!("sled lost {lost} acknowledged batches that were never flushed to the device");
}

/// Runs a child whose n-th write or flush fails, until it ends. Gives back what it told, but for
/// its acknowledgements; nothing when it overcame the failure and went on.
fn run_failing(trial: &mut Trial, fail: &str) -> Option<Vec<String>> {
    let Running { mut child, lines } = trial.start(true, Some(fail));
    let started = Instant::now();
    let mut other = Vec::new();
    let mut hangs = false;
    loop {
        let patience = if trial.kind == Kind::Sled { SLED_PATIENCE } else { PATIENCE };
        match lines.recv_timeout(patience) {
            Ok(line) => other.extend(trial.note(line)),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => hangs = true,
        }
        // fjall gives up a merge of tables that fails, and leaves the old ones in place.
        let goes_on = fail.ends_with(":once") && started.elapsed() > GOES_ON;
        if goes_on || hangs {
            child.kill().expect("the child is killed");
            child.wait().expect("the child ends");
            while let Ok(line) = lines.recv() {
                trial.note(line);
            }
            // sled waits for ever, now and then, for what a full disk refused: nobody is told anything
            // that is not so.
            assert!(!hangs || trial.kind == Kind::Sled, "{fail}: the child hangs after {other:?}");
            return None;
        }
    }
    let status = child.wait().expect("the child ends");
    assert!(status.success(), "{fail}: {status}: {other:?}");
    Some(other)
}

/// All that was acknowledged is there and equal, but there is more.
const EXTRA_ROWS: &str = "missing or different [], too many";
/// What sled says of files that it cannot read.
const SLED_DAMAGED: &str = "Read corrupted data";

fn failing_rounds(kind: Kind, what: &str, errno: i32, rounds: u64, most: u64, power: bool) {
    let mut random = Random(seed());
    for round in 0..rounds {
        let mut trial = Trial::new(kind, random.next());
        let n = 1 + random.within(0..most);
        let fail = format!("{what}:{n}:{errno}{}", if round % 2 == 0 { "" } else { ":once" });
        println!("{fail}");
        let told = run_failing(&mut trial, &fail);
        let said = |told: &[String], what: &str| told.iter().any(|line| line.contains(what));
        match &told {
            None => println!("it went on"),
            Some(told) if said(told, "not opened") => {}
            Some(told) => {
                // sled answers reads with the error of the write as well, or shows half of the
                // batch that was refused; what it finds when it is opened again counts.
                let reads = said(told, "reads go on") || kind == Kind::Sled && said(told, "reads fail: ");
                assert!(said(told, "end") && reads, "{fail}: {told:?}");
            }
        }
        if power {
            trial.images.cut_power(trial.folder.path(), &mut trial.random);
        }
        let lost = match trial.judge() {
            Ok(lost) => lost,
            // What sled shows of a refused batch may also have reached its files; and files that it
            // could not write to while it opened them it calls damaged ever after.
            Err(wrong)
                if kind == Kind::Sled && (wrong.contains(EXTRA_ROWS) || wrong.contains(SLED_DAMAGED)) =>
            {
                println!("{fail}: {wrong}");
                continue;
            }
            Err(wrong) => panic!("{kind}, {fail}: {wrong}; {told:?}"),
        };
        assert_eq!(lost, 0, "{kind}, {fail}: acknowledged batches are lost; {told:?}");
    }
}

#[test]
fn fjall_acknowledges_nothing_that_a_full_disk_refused() {
    failing_rounds(Kind::Fjall, "write", ENOSPC, 8, 400, true);
}

#[test]
fn fjall_acknowledges_nothing_after_a_failed_flush() {
    failing_rounds(Kind::Fjall, "sync", EIO, 8, 120, true);
}

#[test]
fn sled_acknowledges_nothing_that_a_full_disk_refused() {
    failing_rounds(Kind::Sled, "write", ENOSPC, 6, 200, false);
}
