//! Who may open a data folder, and what the refusals say.

use std::path::Path;
use std::sync::Arc;

use waystation_committer::block_on;
use waystation_core::storage::{Batch, Durability, Space, Storage, StorageError};
use waystation_storage::{DataDir, Kind, OpenError, Options, open};

const SPACE: Space = Space("rows");

fn options(kind: Kind) -> Options {
    Options { kind, min_free_bytes: Some(0), ..Options::default() }
}

fn try_open(folder: &Path, kind: Kind) -> Result<Arc<dyn Storage>, OpenError> {
    open(&DataDir::lock(folder)?, &options(kind))
}

fn refusal(folder: &Path, kind: Kind) -> OpenError {
    match try_open(folder, kind) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
fn a_store_keeps_its_folder_locked() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [Kind::Memory, Kind::Fjall] {
        let store = try_open(folder.path(), kind).unwrap();
        assert!(matches!(refusal(folder.path(), kind), OpenError::Locked { .. }));
        drop(store);
        try_open(folder.path(), kind).unwrap();
    }
}

#[test]
fn a_folder_is_refused_to_another_engine() {
    for (first, second) in [(Kind::Fjall, Kind::Sled), (Kind::Sled, Kind::Fjall)] {
        let folder = tempfile::tempdir().unwrap();
        try_open(folder.path(), first).unwrap();
        let error = refusal(folder.path(), second);
        assert!(matches!(error, OpenError::OtherEngine { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("set `storage` to `{first}`")), "{text}");
        try_open(folder.path(), first).unwrap();
    }
}

#[test]
fn memory_leaves_a_store_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = try_open(folder.path(), Kind::Fjall).unwrap();
    block_on(store.commit(Batch::new().put(SPACE, "k", "v"))).unwrap();
    drop(store);
    let store = try_open(folder.path(), Kind::Memory).unwrap();
    assert_eq!(block_on(store.get(SPACE, "k".into())).unwrap(), None);
    block_on(store.commit(Batch::new().put(SPACE, "k", "other"))).unwrap();
    drop(store);
    let store = try_open(folder.path(), Kind::Fjall).unwrap();
    assert_eq!(block_on(store.get(SPACE, "k".into())).unwrap().unwrap(), "v");
}

#[test]
fn durability_is_told_as_it_is() {
    use Durability::{Fsync, Memory, Os};
    let cases = [
        (Kind::Fjall, Fsync, Fsync),
        (Kind::Fjall, Os, Os),
        (Kind::Fjall, Memory, Memory),
        (Kind::Sled, Fsync, Os),
        (Kind::Sled, Os, Os),
        (Kind::Sled, Memory, Memory),
        (Kind::Memory, Fsync, Memory),
    ];
    for (kind, asked, told) in cases {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(folder.path()).unwrap();
        let store = open(&data_dir, &Options { durability: asked, ..options(kind) }).unwrap();
        assert_eq!(store.durability(), told, "{kind} asked for {asked:?}");
        assert_eq!(store.name(), kind.as_str());
        // Each of them survives an orderly end, memory excepted.
        block_on(store.commit(Batch::new().put(SPACE, "k", "v"))).unwrap();
        block_on(store.close()).unwrap();
        drop(store);
        let store = open(&data_dir, &Options { durability: asked, ..options(kind) }).unwrap();
        let kept = block_on(store.get(SPACE, "k".into())).unwrap();
        assert_eq!(kept.is_some(), kind != Kind::Memory, "{kind} with {asked:?}");
    }
}

#[test]
fn a_schema_of_another_release_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    try_open(folder.path(), Kind::Fjall).unwrap();
    let schema = folder.path().join("store/schema");
    assert_eq!(std::fs::read_to_string(&schema).unwrap(), "schema = 1\nengine = fjall\n");

    let refused = |text: &str, word: &str| {
        std::fs::write(&schema, text).unwrap();
        let error = refusal(folder.path(), Kind::Fjall);
        assert!(error.to_string().contains(word), "{text:?}: {error}");
        error
    };
    let newer = refused("schema = 2\nwhatever comes then", "start the release that wrote it");
    assert!(matches!(newer, OpenError::NewerSchema { found: 2, known: 1, .. }), "{newer:?}");
    for text in ["", "schema", "schema = one\nengine = fjall\n", "engine = fjall\n"] {
        refused(text, "names no schema version");
    }
    refused("schema = 0\nengine = fjall\n", "no schema version 0");
    refused("schema = 1\n", "names no engine");
    refused("schema = 1\nengine = rocksdb\n", "`rocksdb`");
    std::fs::write(&schema, [0xff, 0xfe]).unwrap();
    assert!(refusal(folder.path(), Kind::Fjall).to_string().contains("not text"));

    std::fs::remove_file(&schema).unwrap();
    let missing = refusal(folder.path(), Kind::Fjall);
    assert!(matches!(missing, OpenError::NoSchema { .. }), "{missing:?}");

    std::fs::write(&schema, "schema = 1\nengine = fjall\n").unwrap();
    try_open(folder.path(), Kind::Fjall).unwrap();
}

#[test]
fn a_store_that_was_not_completed_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let leftovers = folder.path().join("store.new/fjall");
    std::fs::create_dir_all(&leftovers).unwrap();
    // fjall alone cannot get past this one.
    std::fs::write(leftovers.join("0.jnl"), "").unwrap();
    // A mount point, or made by hand: empty is as good as absent.
    std::fs::create_dir(folder.path().join("store")).unwrap();
    try_open(folder.path(), Kind::Fjall).unwrap();
    assert!(!folder.path().join("store.new").exists());
}

#[test]
fn a_damaged_store_is_refused_in_words() {
    for (kind, file) in [(Kind::Fjall, "store/fjall/version"), (Kind::Sled, "store/sled/conf")] {
        let folder = tempfile::tempdir().unwrap();
        try_open(folder.path(), kind).unwrap();
        std::fs::write(folder.path().join(file), "this is not what belongs here").unwrap();
        let error = refusal(folder.path(), kind);
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("restore the folder from a backup"), "{error}");
    }
}

#[test]
fn a_dropped_store_has_written_what_was_queued() {
    for kind in [Kind::Fjall, Kind::Sled] {
        let folder = tempfile::tempdir().unwrap();
        let store = try_open(folder.path(), kind).unwrap();
        let commits: Vec<_> =
            (0..100).map(|n| store.commit(Batch::new().put(SPACE, n.to_string(), "v"))).collect();
        drop(store);
        for commit in commits {
            block_on(commit).unwrap();
        }
        let store = try_open(folder.path(), kind).unwrap();
        let kept = block_on(store.get(SPACE, "99".into()));
        assert!(matches!(&kept, Ok(Some(value)) if value == "v"), "{kept:?}");
        assert!(!matches!(kept, Err(StorageError::Closed)));
    }
}
