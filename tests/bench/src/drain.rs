//! Messages that wait for accounts that are offline, and what it costs to deliver them.
//!
//! They are stored before anything is measured, and the recipients are logged
//! in with stream management (XEP-0198), but not available. The measurement
//! begins when all of them become available at once. Its wall time ends with
//! the last message; its CPU time when the server has come to rest, so that
//! the removal of what was stored counts as well. Every message must come, and
//! come once.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use waystation_harness::xml::{Element, escape};
use waystation_harness::{Client, Endpoint};

use crate::Failure;
use crate::load::until_measured;
use crate::meter::{Cost, Meter, rest};
use crate::sessions::{self, Access};

/// Messages that a sender sends before it waits for the server.
const CHUNK: usize = 50;
/// How long the server may take for a chunk, and how long it may let a recipient wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of text in a body.
const BODY: usize = 100;

/// The shape of the load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    /// Accounts that messages wait for.
    pub(crate) accounts: usize,
    /// Messages that wait for each.
    pub(crate) messages: usize,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// Messages that came.
    pub(crate) delivered: u64,
    /// Messages that did not come.
    pub(crate) lost: u64,
    /// Messages beyond those that were stored: some came twice.
    pub(crate) surplus: u64,
    /// What it cost.
    pub(crate) cost: Cost,
}

#[derive(Default)]
struct Shared {
    received: Cell<u64>,
    arrived: Notify,
}

/// Stores the messages, and lets the recipients take them.
pub(crate) async fn run(at: &Endpoint, pid: u32, access: Access, shape: Shape) -> Result<Outcome, Failure> {
    let Shape { accounts, messages } = shape;
    for (n, mut sender) in sessions::open(at, access, accounts..accounts * 2).await?.into_iter().enumerate() {
        store(&mut sender, &sessions::account(n).jid(), messages).await?;
        sender.close().await?;
    }
    rest(pid).await?;
    let shared = Rc::new(Shared::default());
    let mut recipients = Vec::new();
    for n in 0..accounts {
        let mut client = Client::login(at, &sessions::account(n), &access.login()).await?;
        sessions::manage(&mut client).await?;
        // Nothing comes any more once all is there.
        client.set_patience(PATIENCE * 10);
        recipients.push(client);
    }
    let tasks = LocalSet::new();
    let mut takers = JoinSet::new();
    let meter = Meter::start(&[pid])?;
    for client in recipients {
        takers.spawn_local_on(take(client, messages, Rc::clone(&shared)), &tasks);
    }
    let expected = (accounts * messages) as u64;
    let measured = async {
        loop {
            let before = shared.received.get();
            if before >= expected {
                break;
            }
            let waited = tokio::time::timeout(PATIENCE, shared.arrived.notified()).await;
            if waited.is_err() && shared.received.get() == before {
                break;
            }
        }
        let wall = meter.cost()?.wall;
        let cost = Cost { wall, ..rest_of(&meter, pid).await? };
        let received = shared.received.get();
        Ok(Outcome {
            delivered: received.min(expected),
            lost: expected.saturating_sub(received),
            surplus: received.saturating_sub(expected),
            cost,
        })
    };
    until_measured(tasks, takers, measured).await
}

async fn rest_of(meter: &Meter, pid: u32) -> Result<Cost, Failure> {
    rest(pid).await?;
    meter.cost()
}

/// Sends so many messages to an account that is offline, and makes sure that none was refused.
async fn store(sender: &mut Client, to: &str, messages: usize) -> Result<(), Failure> {
    sender.set_patience(PATIENCE);
    let body = "x".repeat(BODY);
    let message = format!("<message to='{to}' type='chat' id='bench'><body>{body}</body></message>");
    let mut left = messages;
    while left > 0 {
        let count = left.min(CHUNK);
        sender.send(message.repeat(count)).await?;
        let answers = sender.drain().await?;
        if let Some(refusal) = answers.iter().find(|stanza| stanza.attr("type") == Some("error")) {
            return Err(Failure::Load(format!("a message was not stored: {refusal}")));
        }
        left -= count;
    }
    Ok(())
}

/// Becomes available and takes what comes, acknowledging when it is asked and when all is there.
async fn take(mut client: Client, messages: usize, shared: Rc<Shared>) -> std::io::Result<()> {
    let failed = std::io::Error::other::<waystation_harness::Error>;
    client.send("<presence/>").await.map_err(failed)?;
    let (mut handled, mut mine) = (0u32, 0usize);
    loop {
        let stanza = client.raw().next_element("a message").await.map_err(failed)?;
        let mut answer = String::new();
        let ack = |handled: u32| format!("<a xmlns='urn:xmpp:sm:3' h='{handled}'/>");
        match stanza.local() {
            "r" => answer = ack(handled),
            "message" => {
                handled = handled.wrapping_add(1);
                if stanza.child("body").is_some() {
                    mine += 1;
                    shared.received.set(shared.received.get() + 1);
                    shared.arrived.notify_one();
                }
                if mine == messages {
                    answer = ack(handled);
                }
            }
            "presence" => handled = handled.wrapping_add(1),
            "iq" => {
                handled = handled.wrapping_add(1);
                answer = result(&stanza);
            }
            _ => {}
        }
        if !answer.is_empty() {
            client.send(answer).await.map_err(failed)?;
        }
    }
}

/// The empty result of a request; nothing for an answer.
fn result(iq: &Element) -> String {
    match (iq.attr("type"), iq.attr("id"), iq.attr("from")) {
        (Some("get"), Some(id), Some(from)) => {
            format!("<iq type='result' id='{}' to='{}'/>", escape(id), escape(from))
        }
        (Some("get"), Some(id), None) => format!("<iq type='result' id='{}'/>", escape(id)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use waystation_harness::xml::CLIENT_NS;

    use super::*;

    #[test]
    fn only_requests_are_answered() {
        let of = |xml: &str| result(&Element::parse(xml, CLIENT_NS).unwrap());
        assert_eq!(of("<iq type='get' id='a' from='h'/>"), "<iq type='result' id='a' to='h'/>");
        assert_eq!(of("<iq type='get' id='a'/>"), "<iq type='result' id='a'/>");
        assert_eq!(of("<iq type='result' id='a'/>"), "");
    }
}
