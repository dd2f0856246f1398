//! The quiet at the end: everyone settles, comes back with a new session, reads everything, leaves.
//!
//! What must stay true: nobody begins to read before everybody has settled, and
//! nobody leaves before everybody has read; only then is "not there" a loss.

use std::time::{Duration, Instant};

use super::{Task, Workload, roster};
use crate::client::{Lost, Peer};
use crate::history::Ev;
use crate::rng::Rng;

/// How long the clients may take to come back, to settle, and to read: what C9 allows.
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn quiesce(peer: &mut Peer, task: &Task) {
    let mut rng = Rng::fork(task.options.seed, 1_000 + task.number as u64);
    // A stream that breaks here is noted like any other, and what is missing is found by the checks.
    let _broken = settle(peer, &mut rng).await;
    task.barrier.wait().await;
    peer.forget();
    let _broken = come_back(peer, task.options.idle).await;
    task.barrier.wait().await;
    let _broken = read(peer, task).await;
    task.barrier.wait().await;
    if peer.is_connected() {
        let _broken = peer.close().await;
    }
}

/// What is open is resumed, resent and acknowledged; then one half closes, and one half just goes.
async fn settle(peer: &mut Peer, rng: &mut Rng) -> Result<(), Lost> {
    let orderly = rng.percent(50);
    let end = Instant::now() + DEADLINE;
    // A stale connection may only show itself when it is used: so there is a second attempt.
    for _ in 0..2 {
        peer.connect_until(end).await?;
        if peer.settle(end).await.is_ok() {
            break;
        }
    }
    // Without stream management only a clean close confirms anything.
    if orderly {
        peer.close().await?;
    } else {
        peer.cut().await;
    }
    Ok(())
}

async fn come_back(peer: &mut Peer, idle: Duration) -> Result<(), Lost> {
    peer.connect_until(Instant::now() + DEADLINE).await?;
    peer.ask().await?;
    peer.run_until_idle(idle).await
}

async fn read(peer: &mut Peer, task: &Task) -> Result<(), Lost> {
    if task.number == 0 && !peer.is_managed() {
        let text = "the server offers no stream management (urn:xmpp:sm:3): none was used".to_owned();
        peer.note(Ev::Note { text });
    }
    if task.options.workload == Workload::Roster {
        return roster::read(peer).await;
    }
    if peer.has_archive().await? {
        return peer.read_archive().await;
    }
    if task.number == 0 {
        let text = "the server offers no archive (urn:xmpp:mam:2): none was read".to_owned();
        peer.note(Ev::Note { text });
    }
    Ok(())
}
