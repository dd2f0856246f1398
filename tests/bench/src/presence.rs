//! One user or some, whose contacts are the same and all there, and who keep changing their presence.
//!
//! A user's next change is sent when every contact has its last one, so that no
//! server is measured by what it may drop. What counts is copies delivered.
//! The status is the time of sending and the number of the user.

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
    /// Users who change their presence.
    pub(crate) users: usize,
    /// Contacts that see the presence of each of them.
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
    users: Vec<User>,
    start: Finder<'static>,
}

/// What has arrived of one user's presence.
#[derive(Default)]
struct User {
    copies: Cell<u64>,
    /// Every contact has got the last change.
    arrived: Notify,
}

/// Runs the load against the server with this process id.
pub(crate) async fn run(at: &Endpoint, pid: u32, access: Access, shape: Shape) -> Result<Outcome, Failure> {
    let mut clients = sessions::open(at, access, 0..shape.users + shape.contacts).await?;
    let mut users: Vec<_> = clients.drain(..shape.users).collect();
    let subscribed = async {
        for user in &mut users {
            subscribe(user, &mut clients).await?;
        }
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(PATIENCE, subscribed)
        .await
        .map_err(|_| Failure::Load("the contacts were not subscribed in time".into()))??;
    let shared = Rc::new(Shared {
        ground: Ground::new(64 * 1024),
        copies: Cell::new(0),
        users: std::iter::repeat_with(User::default).take(shape.users).collect(),
        start: Finder::new(START),
    });
    let tasks = LocalSet::new();
    let mut readers = JoinSet::new();
    let contacts = shape.contacts as u64;
    for client in clients {
        readers.spawn_local_on(read(client.into_wire(), Rc::clone(&shared), contacts), &tasks);
    }
    for (number, user) in users.into_iter().enumerate() {
        let changing = Rc::clone(&shared);
        readers.spawn_local_on(change(user.into_wire(), changing, number, contacts), &tasks);
    }
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

/// Changes a user's presence whenever all have its last change.
async fn change(mut wire: Wire, shared: Rc<Shared>, number: usize, contacts: u64) -> io::Result<()> {
    let (mut inbox, mut sent) = (Vec::new(), 0);
    let user = &shared.users[number];
    loop {
        let stamp = shared.ground.now();
        let change = format!("<presence><status>{stamp:016x}{number:04x}</status></presence>");
        wire.write_all(change.as_bytes()).await?;
        sent += contacts;
        while user.copies.get() < sent {
            tokio::select! {
                () = user.arrived.notified() => {}
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

async fn read(mut wire: Wire, shared: Rc<Shared>, contacts: u64) -> io::Result<()> {
    let mut inbox = Vec::new();
    while shared.ground.fill(&mut wire, &mut inbox).await? > 0 {
        shared.count(&mut inbox, contacts);
    }
    Ok(())
}

impl Shared {
    /// Counts the copies whose stamps have arrived, and removes what came before them.
    fn count(&self, inbox: &mut Vec<u8>, contacts: u64) {
        const STAMP: usize = 16;
        const NUMBER: usize = 4;
        let now = self.ground.now();
        let mut used = 0;
        while let Some(at) = self.start.find(&inbox[used..])
            && let begin = used + at + START.len()
            && let Some(status) = inbox.get(begin..begin + STAMP + NUMBER)
        {
            if let (Some(sent), Some(number)) = (hexadecimal(&status[..STAMP]), hexadecimal(&status[STAMP..]))
                && let Some(user) = self.users.get(number as usize)
            {
                self.ground.record(sent, now);
                self.copies.set(self.copies.get() + 1);
                user.copies.set(user.copies.get() + 1);
                if user.copies.get().is_multiple_of(contacts) {
                    user.arrived.notify_one();
                }
            }
            used = begin + STAMP + NUMBER;
        }
        inbox.drain(..used);
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
