//! The memory of sessions that say nothing.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::{JoinSet, LocalSet};
use waystation_harness::process::Sample;
use waystation_harness::{Endpoint, Link, Transport};

use crate::Failure;
use crate::load::until_measured;
use crate::meter::as_f64;
use crate::sessions::{self, Access};

/// Users that log in and out before the baseline is taken, so that it has seen every code path.
const WARM_UP: usize = 64;
/// Users of the web that log in before they begin to stay.
const BATCH: usize = 100;
/// How long a user of the web may hear nothing.
const STAY: Duration = Duration::from_secs(3_600);
/// Memory counts as settled when it moved by less than this share between two looks.
const STEADY: f64 = 0.002;
const LOOK_EVERY: Duration = Duration::from_secs(2);
const MAX_SETTLE: Duration = Duration::from_secs(20);

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// Sessions that were open.
    pub(crate) sessions: usize,
    /// The server's resident memory before them, in bytes.
    pub(crate) baseline_rss: u64,
    /// The server's resident memory with them, in bytes.
    pub(crate) rss: u64,
    /// Growth of resident memory per session, in bytes.
    pub(crate) rss_per_session: f64,
    /// Growth of the proportional share of memory per session, in bytes.
    pub(crate) pss_per_session: f64,
}

/// Opens `count` sessions, each available, waits until memory is steady, and closes them.
pub(crate) async fn run(at: &Endpoint, pid: u32, access: Access, count: usize) -> Result<Outcome, Failure> {
    if access.transport != Transport::Tcp {
        return on_the_web(at, pid, access, count).await;
    }
    for client in sessions::open(at, access, 0..WARM_UP.min(count)).await? {
        client.close().await?;
    }
    let before = settled(pid).await?;
    let clients = sessions::open(at, access, 0..count).await?;
    let after = settled(pid).await?;
    for client in clients {
        client.reset()?;
    }
    Ok(outcome(count, before, after))
}

/// The same over a transport that needs its clients to do something now and then: over BOSH a request
/// is with the server all the time.
async fn on_the_web(at: &Endpoint, pid: u32, access: Access, count: usize) -> Result<Outcome, Failure> {
    for (_, link) in sessions::links(at, access, 0..WARM_UP.min(count)).await? {
        link.close().await?;
    }
    let before = settled(pid).await?;
    let tasks = LocalSet::new();
    let mut users = JoinSet::new();
    // Those who are there stay, while others still log in.
    let opened = tasks.run_until(async {
        for start in (0..count).step_by(BATCH) {
            for (_, link) in sessions::links(at, access, start..(start + BATCH).min(count)).await? {
                users.spawn_local(stay(link));
            }
        }
        Ok::<_, Failure>(())
    });
    opened.await?;
    let after = until_measured(tasks, users, settled(pid)).await?;
    Ok(outcome(count, before, after))
}

async fn stay(mut link: Link) -> std::io::Result<()> {
    link.set_patience(STAY);
    loop {
        link.next_event("anything").await.map_err(std::io::Error::other)?;
    }
}

fn outcome(count: usize, before: Sample, after: Sample) -> Outcome {
    let per_session = |before: u64, after: u64| (as_f64(after) - as_f64(before)) / as_f64(count as u64);
    Outcome {
        sessions: count,
        baseline_rss: before.rss,
        rss: after.rss,
        rss_per_session: per_session(before.rss, after.rss),
        pss_per_session: per_session(before.pss, after.pss),
    }
}

async fn settled(pid: u32) -> Result<Sample, Failure> {
    let end = Instant::now() + MAX_SETTLE;
    let mut last = Sample::of(pid)?;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = Sample::of(pid)?;
        let moved = as_f64(now.rss.abs_diff(last.rss));
        if moved < STEADY * as_f64(last.rss) || Instant::now() > end {
            return Ok(now);
        }
        last = now;
    }
}
