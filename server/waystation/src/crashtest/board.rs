//! What the clients and whoever kills the server tell each other.
//!
//! What must hold: a client counts as online only on a connection to the server of this life,
//! not on one that it has not yet noticed to be dead.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::ledger::Ledger;

/// How a client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// Its connection breaks: the session waits for it.
    Break,
    /// It closes its stream: its messages are stored.
    Close,
}

/// Who goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// This client.
    One(usize),
    /// All clients.
    All,
}

/// The shared state of a run, on one thread.
#[derive(Debug)]
pub(super) struct Board {
    /// Where the server listens.
    pub(super) address: SocketAddr,
    /// How many clients there are.
    pub(super) clients: usize,
    /// All messages.
    pub(super) ledger: RefCell<Ledger>,
    sending: Cell<bool>,
    away: Cell<Option<(Whom, Leave)>>,
    /// How often the server was started.
    life: Cell<u32>,
    /// The life in which each client is online; 0 when it is not.
    online: RefCell<Vec<u32>>,
    /// When the server was killed, until a session is there again.
    killed: Cell<Option<Instant>>,
    recovery: Cell<Duration>,
    heard: Cell<Instant>,
    failure: RefCell<Option<String>>,
    /// Why a client's connection ended last.
    trouble: RefCell<String>,
    resumed: Cell<u64>,
    begun: Cell<u64>,
}

impl Board {
    pub(super) fn new(address: SocketAddr, clients: usize) -> Self {
        Self {
            address,
            clients,
            ledger: RefCell::new(Ledger::new(clients)),
            sending: Cell::new(false),
            away: Cell::new(None),
            life: Cell::new(1),
            online: RefCell::new(vec![0; clients]),
            killed: Cell::new(None),
            recovery: Cell::new(Duration::ZERO),
            heard: Cell::new(Instant::now()),
            failure: RefCell::new(None),
            trouble: RefCell::default(),
            resumed: Cell::new(0),
            begun: Cell::new(0),
        }
    }

    /// Which life of the server this is. Ask before connecting.
    pub(super) fn life(&self) -> u32 {
        self.life.get()
    }

    /// The server was killed at this moment.
    pub(super) fn killed(&self, at: Instant) {
        self.life.set(self.life.get() + 1);
        self.killed.set(Some(at));
    }

    /// A client has a session.
    pub(super) fn online(&self, client: usize, life: u32, is_resumed: bool) {
        self.online.borrow_mut()[client] = life;
        let count = if is_resumed { &self.resumed } else { &self.begun };
        count.set(count.get() + 1);
        if life == self.life.get()
            && let Some(killed) = self.killed.take()
        {
            self.recovery.set(self.recovery.get().max(killed.elapsed()));
        }
    }

    /// A client has no connection.
    pub(super) fn offline(&self, client: usize) {
        self.online.borrow_mut()[client] = 0;
    }

    /// True when all clients have a session with the server of this life.
    pub(super) fn all_online(&self) -> bool {
        self.online.borrow().iter().all(|life| *life == self.life.get())
    }

    /// True when no client has a connection.
    pub(super) fn all_offline(&self) -> bool {
        self.online.borrow().iter().all(|life| *life == 0)
    }

    /// Sends clients away, or lets all come back.
    pub(super) fn send_away(&self, away: Option<(Whom, Leave)>) {
        self.away.set(away);
    }

    /// How a client is to be away, if it is.
    pub(super) fn away(&self, client: usize) -> Option<Leave> {
        self.away
            .get()
            .and_then(|(whom, leave)| (whom == Whom::One(client) || whom == Whom::All).then_some(leave))
    }

    /// Lets clients send, or stops them.
    pub(super) fn set_sending(&self, sending: bool) {
        self.sending.set(sending);
    }

    pub(super) fn is_sending(&self) -> bool {
        self.sending.get()
    }

    /// A message came.
    pub(super) fn heard(&self) {
        self.heard.set(Instant::now());
    }

    /// How long no message has come.
    pub(super) fn silence(&self) -> Duration {
        self.heard.get().elapsed()
    }

    /// The run cannot go on. The first reason is told.
    pub(super) fn fail(&self, text: String) {
        self.failure.borrow_mut().get_or_insert(text);
    }

    /// A connection ended, as connections do here.
    pub(super) fn trouble(&self, client: usize, fault: &dyn std::fmt::Display) {
        *self.trouble.borrow_mut() = format!("client {client}: {fault}");
    }

    /// Why a connection ended last.
    pub(super) fn last_trouble(&self) -> String {
        self.trouble.borrow().clone()
    }

    /// Why the run cannot go on.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// Sessions that were resumed, and those that were begun.
    pub(super) fn sessions(&self) -> (u64, u64) {
        (self.resumed.get(), self.begun.get())
    }

    /// The longest time from a kill to the first session after it.
    pub(super) fn recovery(&self) -> Duration {
        self.recovery.get()
    }
}
