//! Many sessions at once: how the workloads' users log in.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use tokio::task::{JoinSet, LocalSet};
use waystation_harness::xml::Element;
use waystation_harness::{Account, Client, Endpoint, Link, Login, Mechanism, Security, Transport};

use crate::Failure;
use crate::channel::Channel;

/// How many logins are under way at the same time.
const CONCURRENCY: usize = 32;

/// How the users of a workload connect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// How streams get to the server.
    pub(crate) transport: Transport,
    /// How connections are secured; those of the web are not.
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
    account_at(n, "localhost")
}

/// The same on another domain.
pub(crate) fn account_at(n: usize, host: &str) -> Account {
    Account::at(&format!("u{n}"), host)
}

/// Switches stream management (XEP-0198) on; both sides count from here on.
pub(crate) async fn manage(client: &mut Client) -> Result<(), Failure> {
    client.send("<enable xmlns='urn:xmpp:sm:3'/>").await?;
    while client.raw().next_element("<enabled/>").await?.local() != "enabled" {}
    Ok(())
}

/// A user who is there, as a load of messages needs it.
pub(crate) struct Talker {
    /// The full JID.
    pub(crate) jid: String,
    /// The way of its stanzas.
    pub(crate) channel: Channel,
}

impl Talker {
    /// Of a session over TCP.
    pub(crate) fn of(client: Client) -> Self {
        Self { jid: client.jid().to_owned(), channel: Channel::tcp(client.into_wire()) }
    }

    /// The bare JID.
    pub(crate) fn bare(&self) -> &str {
        self.jid.split_once('/').map_or(&self.jid, |(bare, _)| bare)
    }
}

/// Logs these users in, each one available, in the order of their numbers.
pub(crate) async fn open(at: &Endpoint, access: Access, users: Range<usize>) -> Result<Vec<Client>, Failure> {
    let at = at.clone();
    let open = move |n: usize| {
        let at = at.clone();
        async move {
            let mut client = Client::login(&at, &account_at(n, &at.host), &access.login()).await?;
            client.become_available().await?;
            Ok(client)
        }
    };
    all(users, open).await
}

/// The same over the transport that these users have: their full JIDs and streams.
pub(crate) async fn links(
    at: &Endpoint,
    access: Access,
    users: Range<usize>,
) -> Result<Vec<(String, Link)>, Failure> {
    let at = at.clone();
    let open = move |n: usize| {
        let at = at.clone();
        async move {
            let login = access.login();
            let (mut link, _) =
                Link::authenticate(access.transport, &at, &account_at(n, &at.host), &login).await?;
            let jid = link.bind(login.resource.as_deref()).await?;
            link.send("<presence/>").await?;
            let is_own = |e: &Element| e.local() == "presence" && e.attr("from") == Some(&jid);
            while !is_own(&link.next_element("the own presence").await?) {}
            Ok((jid, link))
        }
    };
    all(users, open).await
}

/// Logs these users in to talk, over TCP with stream management if they are `managed`.
pub(crate) async fn talkers(
    at: &Endpoint,
    access: Access,
    users: Range<usize>,
    managed: bool,
) -> Result<Vec<Talker>, Failure> {
    if access.transport != Transport::Tcp {
        let links = links(at, access, users).await?;
        let talker = |(jid, link)| Talker { jid, channel: Channel::of(link) };
        return Ok(links.into_iter().map(talker).collect());
    }
    let mut talkers = Vec::new();
    let mut clients = open(at, access, users).await?;
    if managed {
        // Before the first message, for both sides count from here on.
        for client in &mut clients {
            manage(client).await?;
        }
    }
    talkers.extend(clients.into_iter().map(Talker::of));
    Ok(talkers)
}

/// What `open` makes of each of these numbers, several at a time, in their order.
async fn all<T, F>(
    users: Range<usize>,
    open: impl Fn(usize) -> F + Clone + 'static,
) -> Result<Vec<T>, Failure>
where
    T: 'static,
    F: Future<Output = Result<T, Failure>> + 'static,
{
    let Range { start, end } = users.clone();
    let next = Rc::new(Cell::new(start));
    let tasks = LocalSet::new();
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY.min(users.len()) {
        let (open, next) = (open.clone(), Rc::clone(&next));
        workers.spawn_local_on(
            async move {
                let mut opened = Vec::new();
                loop {
                    let n = next.get();
                    if n >= end {
                        return Ok::<_, Failure>(opened);
                    }
                    next.set(n + 1);
                    opened.push((n, open(n).await?));
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
    Ok(all.into_iter().map(|(_, opened)| opened).collect())
}
