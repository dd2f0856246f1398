//! The program and its configuration: what is said of mistakes, which source wins, what is shown.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::{Place, finish};

#[test]
fn every_mistake_is_told_and_nothing_is_started() {
    let place = Place::new();
    place.write("w.toml", "[tls]\nrequird = true\n\n[listen]\nc2s = [\"localhost:5222\"]\n");
    let expected = r#"waystation: w.toml:2:1: unknown key `tls.requird`
  2 | requird = true
    | ^^^^^^^
  help: did you mean `tls.required`?
w.toml:5:8: listen.c2s: found the string "localhost:5222", expected an IP address with a port
  5 | c2s = ["localhost:5222"]
    |        ^^^^^^^^^^^^^^^^
  help: one address is "192.0.2.1:5222" or "[2001:db8::1]:5222", all are "0.0.0.0:5222" or "[::]:5222"
--set durability=none: durability: found `none`, expected a TOML value
  help: a string needs TOML's quotes inside the shell's: --set 'durability="none"'
3 problems in the configuration
"#;
    for command in [&["serve"][..], &["config", "check"], &["config", "show"], &["user", "list"]] {
        let options = ["--config", "w.toml", "--set", "durability=none"];
        for args in [[command, &options].concat(), [&options, command].concat()] {
            assert_eq!(place.run(&args).fails(3), expected, "{args:?}");
        }
    }
    assert!(!place.file("data").exists());
}

#[test]
fn check_names_what_it_checked() {
    let place = Place::new();
    place.write("w.toml", "threads = 1\n");
    assert_eq!(place.run(&["config", "check", "w.toml"]).ok(), "w.toml is right\n");
    assert_eq!(place.run(&["--config", "w.toml", "config", "check"]).ok(), "w.toml is right\n");
    assert_eq!(place.run(&["config", "check"]).ok(), "the configuration is right; no file was named\n");
    assert!(place.run(&["config", "check", "none.toml"]).fails(3).contains("none.toml"));
    place.run(&["config", "check", "w.toml", "--config", "w.toml"]).fails(2);
}

#[test]
fn the_environment_names_a_file_and_sets_keys() {
    let place = Place::new();
    place.write("w.toml", "threads = 1\n[limits]\nroster_items = 10\n");
    let show = |args: &[&str]| {
        let mut command = place.command(args);
        command.env("WAYSTATION_CONFIG", "w.toml").env("WAYSTATION_THREADS", "2");
        finish(command, "").ok()
    };
    let shown = show(&["config", "show"]);
    assert!(shown.contains("\nthreads = 2 # environment variable WAYSTATION_THREADS\n"), "{shown}");
    assert!(shown.contains("\nroster_items = 10 # w.toml:3:16\n"), "{shown}");
    let shown = show(&["config", "show", "--set", "threads=3", "--data-dir", "elsewhere"]);
    assert!(shown.contains("\nthreads = 3 # --set threads=3\n"), "{shown}");
    assert!(shown.contains("data_dir = \"elsewhere\" # --data-dir elsewhere\n"), "{shown}");
    assert!(shown.contains("\nhosts = [\"localhost\"]\n"), "{shown}");
}

#[test]
fn the_configuration_is_shown_as_json() {
    let place = Place::new();
    let shown = place.run(&["config", "show", "--json", "--set", "limits.disabled=true"]).ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["limits"]["disabled"], true);
    assert_eq!(shown["hosts"], serde_json::json!(["localhost"]));
}

#[test]
fn the_reference_is_a_configuration() {
    let place = Place::new();
    let reference = place.run(&["config", "reference"]).ok();
    place.write("w.toml", &reference);
    place.run(&["config", "check", "w.toml"]).ok();
}

#[test]
fn help_teaches_and_wrong_usage_has_its_own_code() {
    let place = Place::new();
    let help = place.run(&["--help"]).ok();
    for text in
        ["Examples:", "Exit codes:", "user", "session", "config", "--set <KEY=VALUE>", "WAYSTATION_CONFIG"]
    {
        assert!(help.contains(text), "{text} is not in:\n{help}");
    }
    assert!(place.run(&["user", "add", "--help"]).ok().contains("--bulk"));
    assert!(place.run(&["--version"]).ok().starts_with("waystation 0."));
    place.run(&["user", "add"]).fails(2);
    place.run(&["usr"]).fails(2);
}
