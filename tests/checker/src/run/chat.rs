//! W1: a ring of clients that chat while they are online, offline or flapping.
//!
//! Of its time, a client is online for 70 %, offline for 20 %, and for 10 % it
//! loses and regains its connection. What must stay true: choices are drawn from
//! the client's own stream of random numbers and in the same order whatever the
//! server does, so that a seed is a schedule.

use std::time::{Duration, Instant};

use waystation_harness::xml::escape;

use super::{CLIENTS, Orders, Task};
use crate::body;
use crate::client::{Lost, Outgoing, Peer};
use crate::history::Class;
use crate::rng::Rng;

/// How often a client looks at its orders and its schedule.
const TICK: Duration = Duration::from_millis(10);
/// How many stanzas may wait for acknowledgement before a client pauses.
const WINDOW: usize = 400;
/// How long it waits before it asks again for an acknowledgement.
const ASK: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Online,
    Offline,
    Flapping,
}

/// The draws of a client, apart for what it does and for what it sends.
struct Plan {
    modes: Rng,
    messages: Rng,
}

impl Plan {
    fn next_mode(&mut self) -> (Mode, Duration) {
        let mode = match self.modes.below(100) {
            0..70 => Mode::Online,
            70..90 => Mode::Offline,
            _ => Mode::Flapping,
        };
        (mode, Duration::from_millis(self.modes.between(300, 1_500)))
    }

    fn next_message(&mut self, peer: &mut Peer, task: &Task) -> Outgoing {
        let rng = &mut self.messages;
        // Mostly to the neighbour in the ring, sometimes to any other.
        let step = if rng.percent(70) { 1 } else { 1 + rng.index(CLIENTS - 1) };
        let to = task.peers[(task.number + step) % CLIENTS].clone();
        let len = if rng.percent(3) { rng.between(1_000, 8_000) } else { rng.between(0, 200) };
        let class = if rng.percent(90) { Class::D } else { Class::E };
        let uid = peer.next_uid();
        let (text, made) = body::make(&uid, usize::try_from(len).unwrap_or(0), rng);
        let kind = if class == Class::D { "chat" } else { "headline" };
        let xml = format!(
            "<message to='{}' type='{kind}' id='{uid}'><body>{}</body>\
             <origin-id xmlns='urn:xmpp:sid:0' id='{uid}'/></message>",
            escape(&to),
            escape(&text)
        );
        Outgoing { uid, to, class, kind, hash: made.hash, xml }
    }
}

/// A client at work, and what it has seen of its orders.
struct Worker<'a> {
    peer: &'a mut Peer,
    task: &'a Task,
    plan: Plan,
    resets: u64,
    /// Time between two messages.
    interval: Duration,
    next: Instant,
}

pub(super) async fn work(peer: &mut Peer, task: &Task, mut rng: Rng) {
    let plan = Plan { modes: Rng::new(rng.next_u64()), messages: Rng::new(rng.next_u64()) };
    let interval = Duration::from_secs(CLIENTS as u64) / task.options.rate.max(1);
    let mut worker = Worker { peer, task, plan, resets: 0, interval, next: Instant::now() };
    // Everyone is there once before the first is missed.
    let mut mode = (Mode::Online, Duration::from_millis(500));
    while !worker.orders().stop {
        let until = Instant::now() + mode.1;
        match mode.0 {
            Mode::Online => worker.online(until).await,
            Mode::Offline => worker.offline(until).await,
            Mode::Flapping => worker.flap(until).await,
        }
        mode = worker.plan.next_mode();
    }
}

impl Worker<'_> {
    fn orders(&self) -> Orders {
        *self.task.orders.borrow()
    }

    /// Online until then, whatever it takes.
    async fn online(&mut self, until: Instant) {
        while Instant::now() < until && !self.orders().stop {
            if !self.peer.is_connected() && self.peer.connect_until(until).await.is_err() {
                continue;
            }
            // Whatever ended the session is noted; the next round connects again.
            let _ended = self.session(until).await;
        }
    }

    async fn session(&mut self, until: Instant) -> Result<(), Lost> {
        self.next = self.next.max(Instant::now());
        while Instant::now() < until {
            let orders = self.orders();
            if orders.stop {
                return Ok(());
            }
            if orders.resets != self.resets {
                self.resets = orders.resets;
                self.peer.cut().await;
                return Err(Lost);
            }
            while self.next <= Instant::now() {
                self.next += self.interval;
                if self.peer.unacked() < WINDOW {
                    let message = self.plan.next_message(self.peer, self.task);
                    self.peer.send(message).await?;
                }
            }
            self.peer.ask_if_due(ASK).await?;
            let wake = self.next.min(Instant::now() + TICK).min(until);
            self.peer.run_until(wake).await?;
        }
        Ok(())
    }

    /// Leaves, mostly in order, and stays away until then.
    async fn offline(&mut self, until: Instant) {
        let orderly = self.plan.modes.percent(70);
        // One in ten forgets its stream and comes back as if it had none.
        let forgets = self.plan.modes.percent(10);
        if self.peer.is_connected() {
            if orderly {
                self.leave().await;
            } else {
                self.peer.cut().await;
            }
        }
        if forgets {
            self.peer.forget();
        }
        while Instant::now() < until && !self.orders().stop {
            tokio::time::sleep(TICK.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    async fn leave(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        if self.peer.settle(Instant::now() + PATIENCE).await.is_ok() {
            // If it fails, the stream broke instead, which is noted.
            let _broken = self.peer.close().await;
        }
    }

    /// Loses and regains its connection until then.
    async fn flap(&mut self, until: Instant) {
        while Instant::now() < until && !self.orders().stop {
            let pause = Duration::from_millis(self.plan.modes.between(20, 150));
            self.online(until.min(Instant::now() + pause)).await;
            self.peer.cut().await;
        }
    }
}
