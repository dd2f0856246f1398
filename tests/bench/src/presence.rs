//! One user whose contacts are all there, and who keeps changing its presence.
//!
//! The next change is sent when every contact has the last one, so that no
//! server is measured by what it may drop. What counts is copies delivered.
//! The status begins with the time of sending.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use memchr::memmem::Finder;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use waystation_harness::wire::Wire;
use waystation_harness::{Client, Endpoint};

use crate::Failure;
use crate::load::{Ground, until_measured};
use crate::meter::{Cost, Meter};
use crate::sessions::{self, Access};

/// Before the time stamp in every copy.
const START: &[u8] = b"<status>";
/// How long the subscriptions may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The shape of the load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    /// Contacts that see the user's presence.
    pub(crate) contacts: usize,
    /// Seconds of load before measuring.
    pub(crate) warm_up: f64,
    /// Seconds measured.
    pub(crate) seconds: f64,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// Copies delivered while measuring.
    pub(crate) copies: u64,
    /// The time of the faster half, in milliseconds.
    pub(crate) p50_ms: f64,
    /// The time that 99 of 100 stay below, in milliseconds.
    pub(crate) p99_ms: f64,
    /// What it cost.
    pub(crate) cost: Cost,
}

struct Shared {
    ground: Ground,
    copies: Cell<u64>,
    arrived: Notify,
    start: Finder<'static>,
}

/// Runs the load against the server with this process id.
pub(crate) async fn run(at: &Endpoint, pid: u32, access: Access, shape: Shape) -> Result<Outcome, Failure> {
    let mut clients = sessions::open(at, access, 0..shape.contacts + 1).await?;
    let mut user = clients.remove(0);
    tokio::time::timeout(PATIENCE, subscribe(&mut user, &mut clients))
        .await
        .map_err(|_| Failure::Load("the contacts were not subscribed in time".into()))??;
    let shared = Rc::new(Shared {
        ground: Ground::new(64 * 1024),
        copies: Cell::new(0),
        arrived: Notify::new(),
        start: Finder::new(START),
    });
    let tasks = LocalSet::new();
    let mut readers = JoinSet::new();
    for client in clients {
        readers.spawn_local_on(read(client.into_wire(), Rc::clone(&shared)), &tasks);
    }
    let contacts = shape.contacts as u64;
    let changing = Rc::clone(&shared);
    readers.spawn_local_on(change(user.into_wire(), changing, contacts), &tasks);
    let measured = async {
        tokio::time::sleep(Duration::from_secs_f64(shape.warm_up)).await;
        let meter = Meter::start(&[pid])?;
        let before = shared.copies.get();
        shared.ground.take_latencies();
        tokio::time::sleep(Duration::from_secs_f64(shape.seconds)).await;
        let cost = meter.cost()?;
        let latencies = shared.ground.take_latencies();
        let copies = shared.copies.get() - before;
        Ok(Outcome { copies, p50_ms: latencies.p50_ms, p99_ms: latencies.p99_ms, cost })
    };
    until_measured(tasks, readers, measured).await
}

/// Every contact asks for the user's presence, and gets it.
async fn subscribe(user: &mut Client, contacts: &mut [Client]) -> Result<(), Failure> {
    for contact in contacts.iter_mut() {
        contact.send(format!("<presence type='subscribe' to='{}'/>", user.bare())).await?;
    }
    let mut asked = 0;
    while asked < contacts.len() {
        let stanza = user.next("a subscription request").await?;
        if stanza.local() == "presence" && stanza.attr("type") == Some("subscribe") {
            asked += 1;
        }
    }
    let answers: String =
        contacts.iter().map(|c| format!("<presence type='subscribed' to='{}'/>", c.bare())).collect();
    user.send(answers).await?;
    for contact in contacts {
        loop {
            let stanza = contact.next("the user's presence").await?;
            let from = stanza.attr("from").unwrap_or_default();
            if stanza.local() == "presence" && from == user.jid() && stanza.attr("type").is_none() {
                break;
            }
        }
    }
    Ok(())
}

/// Changes the user's presence whenever all have the last change.
async fn change(mut wire: Wire, shared: Rc<Shared>, contacts: u64) -> io::Result<()> {
    let (mut inbox, mut sent) = (Vec::new(), 0);
    loop {
        let stamp = shared.ground.now();
        wire.write_all(format!("<presence><status>{stamp:016x}</status></presence>").as_bytes()).await?;
        sent += contacts;
        while shared.copies.get() < sent {
            tokio::select! {
                () = shared.arrived.notified() => {}
                n = shared.ground.fill(&mut wire, &mut inbox) => {
                    if n? == 0 {
                        return Ok(());
                    }
                    // The copy for the user itself, which is not counted.
                    inbox.clear();
                }
            }
        }
    }
}

async fn read(mut wire: Wire, shared: Rc<Shared>) -> io::Result<()> {
    let mut inbox = Vec::new();
    while shared.ground.fill(&mut wire, &mut inbox).await? > 0 {
        shared.count(&mut inbox);
    }
    Ok(())
}

impl Shared {
    /// Counts the copies whose stamps have arrived, and removes what came before them.
    fn count(&self, inbox: &mut Vec<u8>) {
        const STAMP: usize = 16;
        let now = self.ground.now();
        let mut used = 0;
        while let Some(at) = self.start.find(&inbox[used..])
            && let Some(stamp) = inbox.get(used + at + START.len()..used + at + START.len() + STAMP)
        {
            let sent = std::str::from_utf8(stamp).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
            if let Some(sent) = sent {
                self.ground.record(sent, now);
                self.copies.set(self.copies.get() + 1);
            }
            used += at + START.len() + STAMP;
        }
        inbox.drain(..used);
        self.arrived.notify_one();
    }
}
