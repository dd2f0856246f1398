//! The program: what it prints, and how it exits.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::process::{Command, Output};

use waystation_checker::history::{Ev, History};

mod model;

fn check(history: &History, folder: &Path) -> Output {
    let files = history.write(folder).unwrap();
    Command::new(env!("CARGO_BIN_EXE_waystation-checker")).arg("check").args(files).output().unwrap()
}

#[test]
fn a_clean_history_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let output = check(&model::clean(1), folder.path());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("PASSED"));
}

#[test]
fn a_violation_exits_with_1_and_shows_its_witness() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = (0..).map(model::clean).find(|h| h.len() > 400).unwrap();
    let altered = history.clients.values_mut().flatten().find_map(|e| match &mut e.ev {
        Ev::Recv { hash, uid, .. } => {
            "altered".clone_into(hash);
            Some(uid.clone())
        }
        _ => None,
    });
    let output = check(&history, folder.path());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("first witness: C2") && text.contains("FAILED: 1 violation"), "{text}");
    let marked = text.lines().find(|l| l.starts_with("  >")).unwrap();
    assert!(marked.contains(&altered.unwrap()), "{text}");
    // The witness stands among its surroundings.
    assert!(text.lines().filter(|l| l.starts_with("    ")).count() > 10, "{text}");
}

#[test]
fn a_file_that_is_no_history_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    std::fs::write(&path, "hello\n").unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_waystation-checker")).arg("check").arg(path).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("bad.jsonl:1:"), "{output:?}");
}
