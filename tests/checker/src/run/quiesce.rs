//! The quiet at the end: everyone settles, comes back with a new session, reads everything, leaves.
//!
//! What must stay true: nobody begins to read before everybody has settled, and
//! nobody leaves before everybody has read; only then is "not there" a loss.

use std::time::{Duration, Instant};

use waystation_harness::xml::escape;

use super::{CLIENTS, Task, Workload, roster, servers};
use crate::body;
use crate::client::{Lost, Outgoing, Peer};
use crate::history::{Class, Ev};
use crate::rng::Rng;

/// How long the clients may take to come back, to settle, and to read: what C9 allows.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the servers may take to bring each other what waits: they may have given up for a while.
const CROSSING: Duration = Duration::from_secs(120);

pub(super) async fn quiesce(peer: &mut Peer, task: &Task) {
    let mut rng = Rng::fork(task.options.seed, 1_000 + task.number as u64);
    // A stream that breaks here is noted like any other, and what is missing is found by the checks.
    let _broken = settle(peer, &mut rng).await;
    task.barrier.wait().await;
    peer.forget();
    let _broken = come_back(peer, task).await;
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

async fn come_back(peer: &mut Peer, task: &Task) -> Result<(), Lost> {
    peer.connect_until(Instant::now() + DEADLINE).await?;
    peer.ask().await?;
    if task.options.workload == Workload::Federation {
        last_word(peer, task).await?;
    }
    peer.run_until_idle(task.options.idle).await
}

/// Everyone sends a last message to its neighbour, on the other server. Between servers all goes in order, so
/// what was accepted before has come when this one has. It is a message like any other, and judged as such.
async fn last_word(peer: &mut Peer, task: &Task) -> Result<(), Lost> {
    let last_of = |number: usize| format!("{}/{}/last", peer.scene().run, servers::user(number % CLIENTS));
    let (uid, awaited) = (last_of(task.number), last_of(task.number + CLIENTS - 1));
    let to = task.peers[(task.number + 1) % CLIENTS].clone();
    let (text, made) = body::make(&uid, 0, &mut Rng::fork(task.options.seed, 2_000 + task.number as u64));
    let xml = format!(
        "<message to='{}' type='chat' id='{uid}'><body>{}</body></message>",
        escape(&to),
        escape(&text)
    );
    peer.send(Outgoing { uid, to, class: Class::D, kind: "chat", hash: made.hash, xml }).await?;
    peer.ask().await?;
    let end = Instant::now() + CROSSING;
    while !peer.has_received(&awaited) && Instant::now() < end {
        peer.run_until(Instant::now() + Duration::from_millis(100)).await?;
    }
    Ok(())
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
