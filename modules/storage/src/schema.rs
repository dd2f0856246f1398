//! What a store's folder says of itself: who wrote it, and in which schema.
//!
//! What must hold: a folder is opened only by the engine and schema that wrote it; a store appears
//! under its final name with everything in it, so that a crash or a power loss while it is made
//! leaves either no store or a whole one.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::data_dir::{sync_dir, sync_tree, write_atomic};
use crate::engine::Engine;
use crate::{DataDir, Kind, OpenError};

/// Version of the layout of keys and values that this release writes and reads.
pub const SCHEMA_VERSION: u32 = 1;

/// Folder of the store below the data folder.
const STORE: &str = "store";
/// The same while it is being made.
const STAGING: &str = "store.new";
/// The file that names engine and schema, in the store's folder.
const SCHEMA: &str = "schema";

/// True when the data folder holds a store.
pub(crate) fn store_exists(data_dir: &DataDir) -> bool {
    data_dir.path().join(STORE).exists()
}

/// Opens the store of a data folder with `open`, which is given the engine's own folder; makes
/// the store first when there is none.
pub(crate) fn open_or_create<E: Engine>(
    data_dir: &DataDir,
    kind: Kind,
    open: impl Fn(&Path) -> Result<E, OpenError>,
) -> Result<E, OpenError> {
    // sled panics over some damage; that is damage in words as well.
    let open = |folder: &Path| {
        catch_unwind(AssertUnwindSafe(|| open(folder))).unwrap_or_else(|_| {
            Err(OpenError::Damaged {
                path: folder.to_owned(),
                engine: E::NAME,
                detail: "it panicked, as the log tells".to_owned(),
            })
        })
    };
    let store = data_dir.path().join(STORE);
    if is_absent_or_empty(&store)? {
        create(data_dir.path(), kind, open)?;
    }
    check(&store, kind)?;
    open(&store.join(kind.as_str()))
}

fn is_absent_or_empty(store: &Path) -> Result<bool, OpenError> {
    match store.read_dir() {
        Ok(mut listing) => Ok(listing.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(OpenError::Io { action: "list", path: store.to_owned(), source }),
    }
}

fn create<E: Engine>(
    data_dir: &Path,
    kind: Kind,
    open: impl Fn(&Path) -> Result<E, OpenError>,
) -> Result<(), OpenError> {
    let staging = data_dir.join(STAGING);
    match std::fs::remove_dir_all(&staging) {
        Ok(()) => tracing::info!("removed a store that was not completed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OpenError::Io { action: "remove", path: staging, source }),
    }
    DirBuilder::new().mode(0o700).create(&staging).map_err(OpenError::io("make", &staging))?;
    open(&staging.join(kind.as_str()))?.close().map_err(|error| OpenError::Damaged {
        path: staging.clone(),
        engine: kind.as_str(),
        detail: error.to_string(),
    })?;
    write_atomic(&staging, SCHEMA, &format!("schema = {SCHEMA_VERSION}\nengine = {kind}\n"))?;
    sync_tree(&staging)?;
    let store = data_dir.join(STORE);
    std::fs::rename(&staging, &store).map_err(OpenError::io("make", &store))?;
    sync_dir(data_dir)
}

fn check(store: &Path, kind: Kind) -> Result<(), OpenError> {
    let path = store.join(SCHEMA);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::NoSchema { path: store.to_owned() });
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(OpenError::BadSchema { path, detail: "it is not text".to_owned() });
        }
        Err(source) => return Err(OpenError::Io { action: "read", path, source }),
    };
    let value = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    };
    // The version comes first: a later release may have changed everything else in the file.
    let Some(found) = value("schema").and_then(|version| version.parse::<u32>().ok()) else {
        return Err(OpenError::BadSchema { path, detail: "it names no schema version".to_owned() });
    };
    if found > SCHEMA_VERSION {
        return Err(OpenError::NewerSchema { path: store.to_owned(), found, known: SCHEMA_VERSION });
    }
    if found < SCHEMA_VERSION {
        // Versions start at 1 and none has been superseded, so no release ever wrote this.
        return Err(OpenError::BadSchema { path, detail: format!("there is no schema version {found}") });
    }
    match value("engine") {
        Some(engine) if engine == kind.as_str() => Ok(()),
        Some(engine) => Err(OpenError::OtherEngine {
            path: store.to_owned(),
            found: engine.to_owned(),
            asked: kind.as_str(),
        }),
        None => Err(OpenError::BadSchema { path, detail: "it names no engine".to_owned() }),
    }
}
