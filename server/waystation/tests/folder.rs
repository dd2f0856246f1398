//! Accounts in a data folder that no server uses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::os::unix::fs::PermissionsExt;

use support::Place;

/// Fewest rounds, for speed.
const FAST: [&str; 2] = ["--set", "sasl.iterations=4096"];

fn add(place: &Place, jid: &str, password: &str) -> support::Run {
    place.run_with(&["user", "add", jid, "--password-stdin", FAST[0], FAST[1]], password)
}

#[test]
fn accounts_are_made_shown_changed_and_removed() {
    let place = Place::new();
    assert_eq!(add(&place, "Ann@localhost", "secret\n").ok(), "added Ann@localhost\n");
    assert_eq!(place.file("data").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        add(&place, "ann@localhost", "other").fails(1),
        "waystation: ann@localhost: the account exists already\n"
    );
    assert_eq!(place.run(&["user", "list"]).ok(), "ann@localhost\n");
    let shown = place.run(&["user", "show", "ann@localhost", "--json"]).ok();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
        serde_json::json!({ "jid": "ann@localhost", "admin": false, "offline_messages": 0, "sessions": [] })
    );
    let shown = place.run(&["user", "show", "ANN@localhost", "--set", "admins=[\"ann@localhost\"]"]).ok();
    assert!(shown.contains("administrator      yes"), "{shown}");
    let changed = place.run_with(&["user", "passwd", "ann@localhost", "--password-stdin"], "new\n").ok();
    assert_eq!(changed, "changed the password of ann@localhost\n");
    assert_eq!(place.run(&["user", "remove", "ann@localhost"]).ok(), "removed ann@localhost\n");
    for command in [&["user", "remove", "ann@localhost"][..], &["user", "show", "ann@localhost"]] {
        let error = place.run(command).fails(1);
        assert_eq!(
            error,
            "waystation: there is no account ann@localhost; `waystation user list` shows all\n"
        );
    }
    let listed = place.run(&["user", "list"]);
    assert_eq!((listed.out.as_str(), listed.err.as_str()), ("", "there are none\n"));
}

#[test]
fn names_and_passwords_that_cannot_be_are_refused() {
    let place = Place::new();
    for (jid, password, message) in [
        ("localhost", "x", "no account; one looks like \"name@localhost\""),
        ("a@other.example", "x", "\"other.example\" is no host of this server; its hosts are: localhost"),
        ("a b@localhost", "x", "is no JID"),
        ("a@localhost/x", "x", "is a session"),
        ("p\u{430}ul@localhost", "x", "mixes scripts"),
        ("a@localhost", "\u{7}", "the password is empty, too long, or holds a forbidden character"),
        ("a@localhost", "", "found no password, expected one line"),
        ("a@localhost", "a\nb\n", "found more than one line, expected the password alone"),
    ] {
        let error = add(&place, jid, password).fails(1);
        assert!(error.contains(message), "{jid} {password:?}: {error}");
    }
}

#[test]
fn many_accounts_are_made_from_a_file_and_listed_in_pages() {
    let place = Place::new();
    let mut file = String::from("# accounts\n\n");
    for n in 0..1203 {
        file.push_str(&format!("u{n:04}@localhost password {n}\n"));
    }
    place.write("accounts.txt", &file);
    let args = ["user", "add", "--bulk", "accounts.txt", FAST[0], FAST[1]];
    assert_eq!(place.run(&args).ok(), "added 1203 accounts\n");
    let all = place.run(&["user", "list"]).ok();
    assert_eq!(all.lines().count(), 1203);
    assert!(all.lines().is_sorted());
    let json: Vec<serde_json::Value> =
        serde_json::from_str(&place.run(&["user", "list", "--json"]).ok()).unwrap();
    assert_eq!(json.len(), 1203);
    assert_eq!(json[7], serde_json::json!({ "jid": "u0007@localhost" }));

    let page = place.run(&["user", "list", "localhost", "--limit", "2", "--after", "u0001@localhost"]);
    assert_eq!(page.err, "there are more; go on with --after 'u0003@localhost'\n");
    assert_eq!(page.ok(), "u0002@localhost\nu0003@localhost\n");
    let last = place.run(&["user", "list", "--limit", "9", "--after", "u1200@localhost"]);
    assert_eq!((last.out.as_str(), last.err.as_str()), ("u1201@localhost\nu1202@localhost\n", ""));
}

#[test]
fn wrong_lines_are_told_and_the_others_done() {
    let place = Place::new();
    add(&place, "old@localhost", "x").ok();
    let lines = "new@localhost x\nCANARY\nold@localhost y\n@localhost z\nlast@localhost x";
    let run = place.run_with(&["user", "add", "--bulk", "-", FAST[0], FAST[1]], lines);
    assert_eq!(run.out, "added 2 accounts\n");
    let error = run.fails(1);
    assert_eq!(
        error,
        "line 2: expected a JID, a blank and a password\n\
         line 3: old@localhost: the account exists already\n\
         line 4: @localhost: \"@localhost\" is no JID: a part of the address is empty\n\
         waystation: 3 lines could not be done\n"
    );
    assert_eq!(place.run(&["user", "list"]).ok(), "last@localhost\nnew@localhost\nold@localhost\n");
}

#[test]
fn what_needs_a_server_or_a_folder_says_so() {
    let place = Place::new();
    let error = place.run(&["user", "list"]).fails(4);
    assert!(error.starts_with("waystation: there is no data folder data; it is made when"), "{error}");
    assert!(!place.file("data").exists(), "a list made a data folder");
    for command in [&["session", "list"][..], &["session", "kick", "a@localhost"], &["status"], &["reload"]] {
        let error = place.run(command).fails(4);
        assert!(error.starts_with("waystation: no server runs on the data folder data; start it"), "{error}");
    }
    let memory = ["user", "add", "a@localhost", "--password-stdin", "--set", "storage.engine=\"memory\""];
    let error = place.run_with(&memory, "x").fails(4);
    assert!(error.contains("accounts live in the running server only; start it first"), "{error}");
    place.write("data", "a file");
    add(&place, "a@localhost", "x").fails(4);
}

#[test]
fn a_folder_that_is_in_use_is_left_alone() {
    let place = Place::new();
    add(&place, "a@localhost", "x").ok();
    let lock = std::fs::OpenOptions::new().write(true).open(place.file("data/lock")).unwrap();
    lock.try_lock().unwrap();
    let error = place.run(&["user", "list"]).fails(4);
    assert!(error.contains("uses the data folder data, but does not answer on its admin socket"), "{error}");
    drop(lock);
    place.run(&["user", "list"]).ok();
}

#[test]
fn every_engine_that_lasts_keeps_accounts() {
    for (engine, durability) in [("fjall", "memory"), ("fjall", "fsync"), ("sled", "os")] {
        let place = Place::new();
        place.write("w.toml", &format!("storage.engine = \"{engine}\"\ndurability = \"{durability}\"\n"));
        let add = ["user", "add", "a@localhost", "--password-stdin", "--config", "w.toml"];
        place.run_with(&add, "x").ok();
        let listed = place.run(&["user", "list", "--config", "w.toml"]).ok();
        assert_eq!(listed, "a@localhost\n", "{engine} {durability}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    add(&place, "a@localhost", "x").ok();
    let mut command = place.command(&["user", "list"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{:?}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn m16_what_was_asked_for_is_quoted_without_its_control_characters() {
    let place = Place::new();
    let error = add(&place, "a\u{1b}[2J\n@localhost", "x").fails(1);
    assert!(!error.trim_end().contains(char::is_control), "{error:?}");
    assert!(error.contains("a\\u{1b}[2J\\n@localhost"), "{error:?}");
    place.run(&["user", "list"]).ok();
}
