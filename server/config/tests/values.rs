//! Which source wins, and what the defaults and the reference file are.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use waystation_config::{Config, Durability, Engine, Level, Loaded, Origin, Size, Sources, load, reference};

struct Fixture {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Fixture {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.toml");
        std::fs::write(&path, text).unwrap();
        Self { folder, sources: Sources { file: Some(path), ..Sources::default() } }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((OsString::from(name), OsString::from(value)));
        self
    }

    fn set(mut self, text: &str) -> Self {
        self.sources.set.push(text.to_owned());
        self
    }

    fn load(&self) -> Loaded {
        load(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }
}

#[test]
fn without_sources_the_defaults_hold() {
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.hosts[0].as_str(), "localhost");
    assert_eq!(loaded.config.listen.c2s, ["127.0.0.1:5222".parse().unwrap()]);
    assert_eq!(loaded.config.listen.c2s_tls, ["127.0.0.1:5223".parse().unwrap()]);
    assert_eq!(loaded.config.data_dir, Path::new("data"));
    assert_eq!(loaded.config.durability, Durability::Fsync);
    assert!(loaded.config.tls.required);
    assert!(!loaded.config.registration.enabled);
    assert_eq!(loaded.origin("hosts"), Origin::Default);
}

#[test]
fn later_sources_win_key_by_key() {
    let fixture =
        Fixture::new("threads = 1\n[limits]\nstanza_depth = 20\nroster_items = 20\nping_timeout = \"5s\"\n")
            .variable("WAYSTATION_LIMITS__STANZA_DEPTH", "30")
            .variable("WAYSTATION_LIMITS__ROSTER_ITEMS", "30")
            .variable("OTHER_LIMITS__ROSTER_ITEMS", "7")
            .set("limits.roster_items=40")
            .set("limits.roster_items = 50");
    let loaded = fixture.load();
    assert_eq!(loaded.config.threads, 1);
    assert_eq!(loaded.config.limits.ping_timeout, Duration::from_secs(5));
    assert_eq!(loaded.config.limits.stanza_depth, 30);
    assert_eq!(loaded.config.limits.roster_items, 50);
    let path = fixture.folder.path().join("w.toml");
    assert_eq!(loaded.origin("limits.ping_timeout"), Origin::File { path, line: 5, column: 16 });
    assert_eq!(
        loaded.origin("limits.stanza_depth"),
        Origin::Environment("WAYSTATION_LIMITS__STANZA_DEPTH".into())
    );
    assert_eq!(
        loaded.origin("limits.roster_items"),
        Origin::Argument("--set limits.roster_items = 50".into())
    );
}

#[test]
fn a_value_that_is_overridden_is_still_checked() {
    let fixture = Fixture::new("threads = \"x\"\n").set("threads=2");
    assert_eq!(load(&fixture.sources).unwrap_err().problems.len(), 1);
}

#[test]
fn sections_can_be_given_as_tables() {
    let loaded = Fixture::new("")
        .variable("WAYSTATION_LISTEN", "{ c2s = [\"127.0.0.1:0\"], c2s_tls = [] }")
        .set("limits={disabled=true, outbound_bytes=1048576}")
        .load();
    assert_eq!(loaded.config.listen.c2s, ["127.0.0.1:0".parse().unwrap()]);
    assert!(loaded.config.listen.c2s_tls.is_empty());
    assert!(loaded.config.limits.disabled);
    assert_eq!(loaded.config.limits.outbound_bytes, Size::mib(1));
}

#[test]
fn log_levels_of_all_sources_are_joined() {
    let loaded = Fixture::new("[log.modules]\nwaystation_c2s = \"debug\"\nrustls = \"warn\"\n")
        .variable("WAYSTATION_LOG__MODULES__RUSTLS", "\"off\"")
        .set("log.modules.\"waystation_c2s::session\"=\"trace\"")
        .load();
    let modules = &loaded.config.log.modules.0;
    assert_eq!(modules["waystation_c2s"], Level::Debug);
    assert_eq!(modules["rustls"], Level::Off);
    assert_eq!(modules["waystation_c2s::session"], Level::Trace);
}

#[test]
fn the_data_folder_has_an_argument_that_is_no_toml() {
    let mut fixture = Fixture::new("data_dir = \"a\"\n").set("data_dir=\"b\"");
    fixture.sources.data_dir = Some("c \"d\"\\e".into());
    let loaded = fixture.load();
    assert_eq!(loaded.config.data_dir, Path::new("c \"d\"\\e"));
    assert_eq!(loaded.origin("data_dir"), Origin::Argument("--data-dir c \"d\"\\e".into()));
}

#[test]
fn variables_that_are_not_ours_to_read_are_left_alone() {
    Fixture::new("")
        .variable("WAYSTATION_CONFIG", "x.toml")
        .variable("WAYSTATION_SERVICE_HOST", "10.0.0.1")
        .variable("WAYSTATION_SERVICE_PORT_C2S", "5222")
        .variable("WAYSTATION_PORT", "tcp://10.0.0.1:5222")
        .variable("WAYSTATION_PORT_5222_TCP", "tcp://10.0.0.1:5222")
        .load();
}

#[test]
fn an_engine_lowers_only_a_durability_that_nobody_set() {
    for (engine, kept) in
        [("fjall", Durability::Fsync), ("sled", Durability::Os), ("memory", Durability::Memory)]
    {
        let loaded = Fixture::new(&format!("storage.engine = \"{engine}\"")).load();
        assert_eq!(loaded.config.durability, kept, "{engine}");
    }
    let loaded = Fixture::new("storage.engine = \"sled\"\ndurability = \"memory\"").load();
    assert_eq!(loaded.config.storage.engine, Engine::Sled);
    assert_eq!(loaded.config.durability, Durability::Memory);
}

#[test]
fn what_is_shown_can_be_loaded_again() {
    let loaded = Fixture::new("hosts = [\"bücher.example\"]\n")
        .set("log.modules={a=\"off\"}")
        .set("contact.abuse=[\"mailto:a@b\"]")
        .set("storage.min_free=\"1 GiB\"")
        .load();
    let shown = loaded.show();
    assert_eq!(Fixture::new(&shown).load().config, loaded.config);
    assert!(shown.contains("abuse = [\"mailto:a@b\"] # --set contact.abuse=[\"mailto:a@b\"]\n"), "{shown}");
    assert!(shown.contains("\nadmin = []\n"), "{shown}");
}

fn reference_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/waystation.toml")
}

#[test]
fn the_reference_file_has_every_key_with_its_default() {
    let text = std::fs::read_to_string(reference_file()).unwrap();
    let loaded = load(&Sources { file: Some(reference_file()), ..Sources::default() })
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.config, Config::default());
    // A key that the file lacks would have its default as well: each must be set by the file.
    let shown = load(&Sources::default()).unwrap().show();
    let mut section = String::new();
    for line in shown.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((name, _)) = line.split_once(" = ") {
            let key = format!("{section}{name}");
            assert!(
                matches!(loaded.origin(&key), Origin::File { .. }),
                "{key} is not in config/waystation.toml"
            );
        }
    }
    assert_eq!(
        text,
        reference(),
        "config/waystation.toml is not what the code says; write it anew with \
         `waystation config reference > config/waystation.toml`"
    );
}

#[test]
fn the_example_of_a_certificate_in_the_reference_is_valid() {
    let text = reference();
    let start = text.find("#   certificates = [").unwrap();
    let example: String =
        text[start..].lines().take(3).map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
    let fixture = Fixture::new(&format!("hosts = [\"example.org\"]\n[tls]\n{example}"));
    let problems = load(&fixture.sources).unwrap_err().problems;
    // The files do not exist: that is all that is wrong with it.
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().all(|p| p.message.contains("cannot be read")), "{problems:?}");
}
