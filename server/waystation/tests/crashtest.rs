//! The test of the promise, as a user runs it: it passes, it can fail, and it leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Place, Run, finish};

/// Longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(30);

/// The command, with a folder of the test's for temporary files.
fn crashtest(place: &Place, args: &[&str]) -> Command {
    let temporary = place.file("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = place.command(&["crashtest"]);
    command.args(args).env("TMPDIR", temporary);
    command
}

fn report(run: &Run) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {run:#?}"))
}

/// Processes that work in a folder below this one.
fn processes(folder: &Path) -> usize {
    let works_there = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
    };
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter(works_there).count()
}

/// Folders and processes that are left.
#[track_caller]
fn nothing_is_left(place: &Place) {
    let temporary = place.file("tmp");
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes(&temporary), 0);
}

#[test]
fn nothing_is_lost() {
    let place = Place::new();
    let run = finish(crashtest(&place, &["--cycles", "3", "--clients", "3", "--rate", "2000", "--json"]), "");
    let report = report(&run);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_eq!(report["kills"], 3);
    for promise in ["lost", "doubled", "out_of_order", "stored_twice", "taken_back", "strange", "returned"] {
        assert_eq!(report[promise], 0, "{promise}: {report:#}");
    }
    // The moments of the kills are random; the two that stay are due to send twice as many before the first.
    assert!(report["sent"].as_u64() > Some(100), "{report:#}");
    assert_eq!(report["sent"], report["acknowledged"]);
    assert_eq!(report["sent"], report["delivered"]);
    assert!(report["longest_recovery_ms"].as_u64() > Some(0), "{report:#}");
    assert!(run.err.contains("kills, "), "there is no progress: {run:#?}");
    nothing_is_left(&place);
}

#[test]
fn a_server_that_keeps_nothing_is_found_out() {
    let place = Place::new();
    let run = finish(crashtest(&place, &["--cycles", "3", "--clients", "3", "--durability", "memory"]), "");
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.out.contains("ACKNOWLEDGED MESSAGES WERE LOST"), "{run:#?}");
    assert!(run.out.contains("lost: message "), "{run:#?}");
    nothing_is_left(&place);
}

#[test]
fn a_run_without_an_acknowledged_message_is_no_success() {
    let place = Place::new();
    // A client's first message is due after ten seconds.
    let run = finish(crashtest(&place, &["--cycles", "1", "--clients", "10", "--rate", "1"]), "");
    assert!(run.fails(2).contains("so nothing was shown"));
    nothing_is_left(&place);
}

#[test]
fn the_folder_is_kept_on_request() {
    let place = Place::new();
    let args = ["--cycles", "1", "--clients", "2", "--durability", "os", "--keep"];
    let run = finish(crashtest(&place, &args), "");
    let out = run.ok();
    let folder = out.lines().find_map(|line| line.strip_prefix("kept: ")).unwrap();
    assert!(Path::new(folder).join("server.log").exists() && Path::new(folder).join("data").exists());
    assert_eq!(processes(&place.file("tmp")), 0);
}

#[test]
fn what_cannot_be_run_says_so() {
    let place = Place::new();
    let mut command = crashtest(&place, &[]);
    command.env("TMPDIR", "/nowhere");
    let run = finish(command, "");
    assert!(run.fails(2).contains("the folder /nowhere/"));
    let run = place.run(&["--data-dir", "x", "crashtest"]);
    assert!(run.fails(2).contains("leave --set and --data-dir out"));
    assert_eq!(place.run(&["crashtest", "--clients", "1"]).code, Some(2));
}

#[test]
fn an_interrupted_test_leaves_nothing_behind() {
    let place = Place::new();
    let mut child = crashtest(&place, &["--cycles", "1000"]).spawn().unwrap();
    let end = Instant::now() + DEADLINE;
    while processes(&place.file("tmp")) == 0 {
        assert!(Instant::now() < end, "no server was started");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(1));
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_is_left(&place);
}
