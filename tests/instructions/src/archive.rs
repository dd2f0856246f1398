//! The message archive: what it adds to `routing`, with its store on disk.
//!
//! What must hold: all that was routed is in both archives at the end, and in no queue; chunks are
//! written when they are full, whatever the time; nothing is flushed, for that is the kernel's work.
//! The store's own threads are counted as well.

use std::sync::Arc;

use waystation_archive::{Config, MessageArchive};
use waystation_core::Jid;
use waystation_core::module::Module;
use waystation_core::storage::{Durability, Storage};
use waystation_storage::{DataDir, Options};

use crate::routing::Pair;
use crate::world::{HOST, World};
use crate::{Failure, PATIENCE, in_time, on_this_thread};

/// Messages of five full chunks. After so many everything comes to rest, so that how long records wait
/// in the queues, where more of them cost more each, depends little on how fast all this runs.
const CHUNKS: usize = 5 * 64;

/// The messages of `routing`, each archived for its sender and for its recipient.
pub(crate) fn archive(messages: usize) -> Result<(), Failure> {
    on_this_thread(in_time(run(messages)))
}

async fn run(messages: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let options = Options { durability: Durability::Os, min_free_bytes: Some(0), ..Options::default() };
    let storage: Arc<dyn Storage> = waystation_storage::open(&DataDir::lock(folder.path())?, &options)?;
    let config = Config { gather: PATIENCE, ..Config::default() };
    let module = MessageArchive::new(storage.clone(), config, Arc::default());
    let archive = module.registration().archive.ok_or("the archive keeps no messages")?;
    let world = World::start(Some(archive.clone())).await?;
    let mut pair = Pair::bind(&world).await?;
    let mut sent = 0;
    while sent < messages {
        let some = (messages - sent).min(CHUNKS);
        pair.send(&world, some).await?;
        sent += some;
        for user in ["romeo", "juliet"] {
            let newest = archive.newest(Jid::parse(&format!("{user}@{HOST}"))?).await?;
            if newest.is_none_or(|newest| newest.0 < sent as u64) {
                return Err(format!("of {sent} messages {user}'s archive has those up to {newest:?}").into());
            }
            world.rest(user).await?;
        }
    }
    Ok(storage.close().await?)
}
