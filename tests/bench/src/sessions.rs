//! Many sessions at once: how the workloads' users log in.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use tokio::task::{JoinSet, LocalSet};
use waystation_harness::{Account, Client, Endpoint, Login, Mechanism, Security};

use crate::Failure;

/// How many logins are under way at the same time.
const CONCURRENCY: usize = 32;

/// How the users of a workload connect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// How connections are secured.
    pub(crate) security: Security,
    /// The SASL mechanism.
    pub(crate) mechanism: Mechanism,
}

impl Access {
    /// The login with a fixed resource.
    pub(crate) fn login(&self) -> Login {
        Login { security: self.security, mechanism: Some(self.mechanism), resource: Some("bench".to_owned()) }
    }
}

/// The `n`th account of every workload.
pub(crate) fn account(n: usize) -> Account {
    Account::new(&format!("u{n}"))
}

/// Switches stream management (XEP-0198) on; both sides count from here on.
pub(crate) async fn manage(client: &mut Client) -> Result<(), Failure> {
    client.send("<enable xmlns='urn:xmpp:sm:3'/>").await?;
    while client.raw().next_element("<enabled/>").await?.local() != "enabled" {}
    Ok(())
}

/// Logs these users in, each one available, in the order of their numbers.
pub(crate) async fn open(at: &Endpoint, access: Access, users: Range<usize>) -> Result<Vec<Client>, Failure> {
    let Range { start, end } = users.clone();
    let next = Rc::new(Cell::new(start));
    let tasks = LocalSet::new();
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY.min(users.len()) {
        let (at, next) = (at.clone(), Rc::clone(&next));
        workers.spawn_local_on(
            async move {
                let mut opened = Vec::new();
                loop {
                    let n = next.get();
                    if n >= end {
                        return Ok::<_, Failure>(opened);
                    }
                    next.set(n + 1);
                    let mut client = Client::login(&at, &account(n), &access.login()).await?;
                    client.become_available().await?;
                    opened.push((n, client));
                }
            },
            &tasks,
        );
    }
    let mut all = tasks
        .run_until(async {
            let mut all = Vec::with_capacity(users.len());
            while let Some(part) = workers.join_next().await {
                all.extend(part.map_err(Failure::task)??);
            }
            Ok::<_, Failure>(all)
        })
        .await?;
    all.sort_by_key(|(n, _)| *n);
    Ok(all.into_iter().map(|(_, client)| client).collect())
}
