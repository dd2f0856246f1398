//! Commands that need a data folder for themselves: the queue and the archive.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{Place, finish};

/// A data folder in which clients have talked.
fn talked(place: &Place) -> PathBuf {
    let mut command = place.command(&["crashtest", "--cycles", "1", "--clients", "2", "--keep", "--json"]);
    command.env("TMPDIR", place.path());
    let report: Value = serde_json::from_str(&finish(command, "").ok()).unwrap();
    Path::new(report["folder"].as_str().unwrap()).join("data")
}

#[test]
fn an_archive_is_exported() {
    let place = Place::new();
    let data = talked(&place);
    let data = data.to_str().unwrap();
    let export = place.run(&["archive", "export", "client-0@localhost", "--data-dir", data]);
    assert!(export.err.starts_with("exported ") && !export.err.contains(" 0 messages"), "{export:#?}");
    let out = export.ok();
    assert!(out.contains("<user name='client-0'>") && out.ends_with("</server-data>\n"));
    // Whichever of the two was sent away, the other one wrote.
    assert!(out.contains("<body>0 0 1</body>") || out.contains("<body>1 0 1</body>"));

    let args = ["archive", "export", "client-0@localhost", "--output", "out.xml", "--data-dir", data];
    assert_eq!(place.run(&args).ok(), "");
    assert_eq!(std::fs::read_to_string(place.file("out.xml")).unwrap(), out);
    assert_eq!(place.file("out.xml").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!place.file("out.xml.part").exists());

    let args = ["archive", "export", "nobody@localhost/x", "--output", "no.xml", "--data-dir", data];
    assert!(place.run(&args).fails(1).contains("only the bare address"));
    assert!(!place.file("no.xml").exists() && !place.file("no.xml.part").exists());
}

#[test]
fn a_queue_is_repaired() {
    let place = Place::new();
    let data = talked(&place);
    let folder = data.to_str().unwrap();
    let repair = || place.run(&["queue", "repair", "--data-dir", folder]);
    assert_eq!(repair().ok(), "nothing is damaged\n");
    let stats = place.run(&["queue", "stats", "--json", "--data-dir", folder]).ok();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert!(stats["pending"].is_u64(), "{stats}");

    let mut files = std::fs::read_dir(data.join("queue")).unwrap().map(|entry| entry.unwrap().path());
    let segment = files.find(|path| path.extension().is_some_and(|ext| ext == "log")).unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    // The header of the first segment, before anything that was flushed behind it.
    bytes[..64].fill(0xff);
    std::fs::write(&segment, bytes).unwrap();
    let refused = place.run(&["queue", "stats", "--data-dir", folder]).fails(1);
    assert!(refused.contains("waystation queue repair"), "{refused}");
    let lost = repair().ok();
    assert!(lost.contains("lost: ") && lost.contains("damaged-"), "{lost}");
    assert_eq!(repair().ok(), "nothing is damaged\n");
    place.run(&["queue", "stats", "--data-dir", folder]).ok();
}

#[test]
fn a_folder_in_use_is_refused() {
    let place = Place::new();
    let run = place.run(&["queue", "repair"]);
    assert!(run.fails(4).contains("there is no data folder"));
    std::fs::create_dir(place.file("data")).unwrap();
    assert_eq!(place.run(&["queue", "repair"]).ok(), "there is no queue in data\n");
    let lock = waystation_storage::DataDir::lock(place.file("data")).unwrap();
    for args in [&["queue", "repair"][..], &["queue", "stats"], &["archive", "export", "a@localhost"]] {
        let refused = place.run(args).fails(4);
        assert!(refused.contains("stop the server first"), "{refused}");
    }
    drop(lock);
}
