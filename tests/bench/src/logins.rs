//! Logins per second: connect, possibly TLS, SCRAM, bind, close; over and over.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use tokio::task::{JoinSet, LocalSet};
use waystation_harness::{Client, Endpoint};

use crate::Failure;
use crate::meter::{Cost, Meter};
use crate::sessions::{self, Access};

/// Logins under way at the same time: so many that a server which lets clients wait for
/// acknowledgements (tens of milliseconds each) still has enough to do.
pub(crate) const CONCURRENCY: usize = 128;

/// The shape of the load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    /// Users that take turns.
    pub(crate) users: usize,
    /// Seconds measured.
    pub(crate) seconds: f64,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// Sessions that were bound and closed while measuring.
    pub(crate) logins: u64,
    /// What it cost.
    pub(crate) cost: Cost,
}

/// Runs the load against the server with this process id.
pub(crate) async fn run(at: &Endpoint, pid: u32, access: Access, shape: Shape) -> Result<Outcome, Failure> {
    // Once through all users: afterwards the generator's SCRAM keys are known and cost nothing.
    for client in sessions::open(at, access, 0..shape.users).await? {
        client.close().await?;
    }
    let done = Rc::new(Cell::new(0u64));
    let turn = Rc::new(Cell::new(0usize));
    let stopping = Rc::new(Cell::new(false));
    let tasks = LocalSet::new();
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (done, turn, stopping, at) =
            (Rc::clone(&done), Rc::clone(&turn), Rc::clone(&stopping), at.clone());
        workers.spawn_local_on(
            async move {
                while !stopping.get() {
                    let n = turn.get();
                    turn.set((n + 1) % shape.users);
                    let client = Client::login(&at, &sessions::account(n), &access.login()).await?;
                    client.close().await?;
                    done.set(done.get() + 1);
                }
                Ok::<(), Failure>(())
            },
            &tasks,
        );
    }
    tasks
        .run_until(async {
            let measured = async {
                let meter = Meter::start(&[pid])?;
                let before = done.get();
                tokio::time::sleep(Duration::from_secs_f64(shape.seconds)).await;
                Ok::<_, Failure>(Outcome { logins: done.get() - before, cost: meter.cost()? })
            };
            let outcome = tokio::select! {
                outcome = measured => outcome?,
                Some(failed) = workers.join_next() => {
                    failed.map_err(Failure::task)??;
                    return Err(Failure::Load("a login worker ended early".into()));
                }
            };
            stopping.set(true);
            while let Some(ended) = workers.join_next().await {
                ended.map_err(Failure::task)??;
            }
            Ok(outcome)
        })
        .await
}
