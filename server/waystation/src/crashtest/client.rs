//! A client that sends numbered messages, loses its connection again and again, and sends again
//! only what the server says it does not have (XEP-0198).
//!
//! What must hold: the queue is exactly what was sent on the stream and is not acknowledged, in
//! the order of sending; a message is noted as seen before it is acknowledged to the server.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, sleep};
use waystation_core::xml::Element;

use super::board::{Board, Leave};
use super::ledger::Seen;
use super::stream::{Connection, Fault, Incoming};
use super::{HOST, Random};

/// Namespace of stream management.
const SM: &str = "urn:xmpp:sm:3";
/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(10);
/// How often messages that are due are sent.
const TICK: Duration = Duration::from_millis(10);
/// Most stanzas that may wait for an acknowledgement.
const WINDOW: usize = 500;

/// A stanza that was sent and is not acknowledged.
#[derive(Clone, Copy, Debug)]
enum Stanza {
    Presence,
    Message { number: usize, to: usize },
}

/// A client with its session.
pub(super) struct Client {
    index: usize,
    password: Rc<str>,
    board: Rc<Board>,
    random: Random,
    /// Messages a second.
    rate: f64,
    due: f64,
    queue: VecDeque<Stanza>,
    /// What resumes the session.
    resume: Option<String>,
    /// Stanzas that the server acknowledged in this session.
    acknowledged: u32,
    /// Stanzas that the server sent in this session.
    received: u32,
    /// Number of the session, from 1.
    session: u32,
    /// Number of the connection, from 1.
    connection: u32,
}

impl Client {
    pub(super) fn new(index: usize, password: Rc<str>, board: Rc<Board>, rate: f64) -> Self {
        Self {
            index,
            password,
            board,
            random: Random::new(),
            rate,
            due: 0.0,
            queue: VecDeque::new(),
            resume: None,
            acknowledged: 0,
            received: 0,
            session: 0,
            connection: 0,
        }
    }

    /// Connects whenever it is not away, for ever; ends when the server does what it must not do.
    pub(super) async fn run(mut self) {
        loop {
            if self.board.away(self.index).is_some() {
                sleep(RETRY).await;
                continue;
            }
            let ended = self.connect().await;
            self.board.offline(self.index);
            match ended {
                Ok(()) => {}
                Err(fault @ (Fault::Broken(_) | Fault::Ended(_))) => {
                    self.board.trouble(self.index, &fault);
                    sleep(RETRY).await;
                }
                Err(Fault::Wrong(text)) => {
                    self.board.fail(format!("client {}: {text}", self.index));
                    return;
                }
            }
        }
    }

    /// One connection, from its beginning to its end.
    async fn connect(&mut self) -> Result<(), Fault> {
        let life = self.board.life();
        let user = user(self.index);
        let mut connection = Connection::log_in(self.board.address, &user, &self.password).await?;
        self.connection += 1;
        let is_resumed = self.resume(&mut connection).await?;
        if !is_resumed {
            self.begin(&mut connection).await?;
        }
        self.board.online(self.index, life, is_resumed);
        self.talk(&mut connection).await
    }

    /// Resumes the session, if there is one. False when a new one is to begin.
    async fn resume(&mut self, connection: &mut Connection) -> Result<bool, Fault> {
        let Some(id) = &self.resume else { return Ok(false) };
        let h = self.received;
        connection.send(&format!("<resume xmlns='{SM}' previd='{id}' h='{h}'/>")).await?;
        let answer = match connection.answer().await {
            // Such a server has forgotten what it sent; it will not resume this session.
            Err(Fault::Ended(condition)) => {
                self.give_up();
                return Err(Fault::Ended(condition));
            }
            answer => answer?,
        };
        if answer.is("resumed", SM) {
            self.acknowledge_again(&answer)?;
            let again = self.queue.iter().map(|stanza| self.xml(*stanza)).collect::<String>();
            connection.send(&again).await?;
            return Ok(true);
        }
        if !answer.is("failed", SM) {
            return Err(Fault::Wrong(format!("<resume/> was answered with <{}/>", answer.name())));
        }
        if answer.attr("h").is_some() {
            self.acknowledge_again(&answer)?;
            self.resume = None;
        } else {
            self.give_up();
        }
        Ok(false)
    }

    /// The session is gone, and nobody knows what the server has of the queue.
    fn give_up(&mut self) {
        self.resume = None;
        let mut ledger = self.board.ledger.borrow_mut();
        for stanza in &self.queue {
            if let Stanza::Message { number, .. } = stanza {
                ledger.sent_blindly(self.index, *number);
            }
        }
    }

    /// Begins a session, and sends again what the one before left.
    async fn begin(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        connection.bind("crashtest").await?;
        connection.send(&format!("<enable xmlns='{SM}' resume='true'/>")).await?;
        let enabled = connection.answer().await?;
        let id = enabled.attr("id").filter(|_| enabled.is("enabled", SM));
        let id = id.ok_or_else(|| {
            Fault::Wrong(format!("<enable/> was answered with <{}/>, without an id", enabled.name()))
        })?;
        self.resume = Some(id.to_owned());
        self.session += 1;
        (self.acknowledged, self.received) = (0, 0);
        self.queue.retain(|stanza| matches!(stanza, Stanza::Message { .. }));
        self.queue.push_front(Stanza::Presence);
        let all = self.queue.iter().map(|stanza| self.xml(*stanza)).collect::<String>();
        connection.send(&all).await
    }

    /// Sends and receives until the connection breaks or the client is to go away.
    async fn talk(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        // The answers to what was sent again are asked for at once.
        let mut has_asked = false;
        loop {
            tokio::select! {
                incoming = connection.next() => match incoming? {
                    Incoming::Close => return Ok(()),
                    Incoming::Element(element) => {
                        has_asked &= !element.is("a", SM);
                        self.take(connection, &element).await?;
                    }
                },
                _ = tick.tick() => {
                    let since = last.elapsed();
                    last = Instant::now();
                    match self.board.away(self.index) {
                        None => {}
                        Some(Leave::Break) => return Ok(()),
                        // What is not acknowledged when the stream is closed would be in doubt.
                        Some(Leave::Close) if self.queue.is_empty() => return self.close(connection).await,
                        Some(Leave::Close) => {}
                    }
                    let mut out = self.messages(since);
                    if !has_asked && !self.queue.is_empty() {
                        has_asked = true;
                        // Writing to a string cannot fail.
                        let _ = write!(out, "<r xmlns='{SM}'/>");
                    }
                    if !out.is_empty() {
                        connection.send(&out).await?;
                    }
                }
            }
        }
    }

    /// Closes the stream, and with it the session. Until the server has closed its own, what it
    /// sends is noted.
    async fn close(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        connection.send(&format!("<a xmlns='{SM}' h='{}'/></stream:stream>", self.received)).await?;
        while let Incoming::Element(element) = connection.next().await? {
            self.note(&element);
        }
        self.resume = None;
        Ok(())
    }

    /// The messages that are due.
    fn messages(&mut self, since: Duration) -> String {
        let mut out = String::new();
        if !self.board.is_sending() || self.board.away(self.index).is_some() {
            return out;
        }
        // After a pause there is no burst.
        self.due = (self.due + since.as_secs_f64() * self.rate).min(WINDOW as f64);
        while self.due >= 1.0 && self.queue.len() < WINDOW {
            self.due -= 1.0;
            let to = (self.index + 1 + self.random.below(self.board.clients - 1)) % self.board.clients;
            let number = self.board.ledger.borrow_mut().sent(self.index, to);
            let stanza = Stanza::Message { number, to };
            self.queue.push_back(stanza);
            out.push_str(&self.xml(stanza));
        }
        out
    }

    fn xml(&self, stanza: Stanza) -> String {
        match stanza {
            Stanza::Presence => "<presence/>".to_owned(),
            Stanza::Message { number, to } => {
                let (from, session, to) = (self.index, self.session, user(to));
                format!(
                    "<message type='chat' id='{from}-{number}' to='{to}@{HOST}'><body>{from} {number} \
                     {session}</body></message>"
                )
            }
        }
    }

    async fn take(&mut self, connection: &mut Connection, element: &Element) -> Result<(), Fault> {
        if element.is("a", SM) {
            return self.acknowledge(element);
        }
        if element.is("r", SM) {
            return connection.send(&format!("<a xmlns='{SM}' h='{}'/>", self.received)).await;
        }
        self.note(element);
        Ok(())
    }

    /// Notes a stanza.
    fn note(&mut self, element: &Element) {
        if !matches!(element.name(), "message" | "presence" | "iq") {
            return;
        }
        self.received = self.received.wrapping_add(1);
        if element.name() != "message" {
            return;
        }
        self.board.heard();
        let mut ledger = self.board.ledger.borrow_mut();
        if element.attr("type") == Some("error") {
            let number =
                element.attr("id").and_then(|id| id.split_once('-')).and_then(|(_, n)| n.parse().ok());
            ledger.returned(self.index, number.unwrap_or(usize::MAX));
            return;
        }
        let seen = read(element).unwrap_or(Seen { from: usize::MAX, number: 0, session: 0, id: None });
        ledger.seen(self.index, self.connection, seen);
    }

    /// Like [`Self::acknowledge`], after the connection had broken. A server that has forgotten what
    /// it acknowledged counts on from less. What it acknowledged is not sent again: nobody keeps it.
    fn acknowledge_again(&mut self, element: &Element) -> Result<(), Fault> {
        let back = self.acknowledged.wrapping_sub(h(element)?);
        // Otherwise it is a larger number, as it should be.
        if (1..1 << 31).contains(&back) {
            self.acknowledged = self.acknowledged.wrapping_sub(back);
            self.board.ledger.borrow_mut().taken_back(u64::from(back));
        }
        self.acknowledge(element)
    }

    /// Takes what the server has accepted off the queue.
    fn acknowledge(&mut self, element: &Element) -> Result<(), Fault> {
        let h = h(element)?;
        let count = h.wrapping_sub(self.acknowledged) as usize;
        if count > self.queue.len() {
            return Err(Fault::Wrong(format!(
                "<{}/> has h={h}, of {} that were acknowledged and {} that were not",
                element.name(),
                self.acknowledged,
                self.queue.len()
            )));
        }
        self.acknowledged = h;
        let mut ledger = self.board.ledger.borrow_mut();
        for stanza in self.queue.drain(..count) {
            if let Stanza::Message { number, .. } = stanza {
                ledger.acknowledged(self.index, number);
            }
        }
        Ok(())
    }
}

/// The number of stanzas in an element of stream management.
fn h(element: &Element) -> Result<u32, Fault> {
    let h = element.attr("h").and_then(|h| h.parse().ok());
    h.ok_or_else(|| Fault::Wrong(format!("<{}/> has no number of stanzas", element.name())))
}

/// The name of a client's account.
pub(super) fn user(index: usize) -> String {
    format!("client-{index}")
}

/// Reads a message of a client.
fn read(message: &Element) -> Option<Seen> {
    let body = message.child("body", "jabber:client")?.text();
    let mut numbers = body.split(' ');
    Some(Seen {
        from: numbers.next()?.parse().ok()?,
        number: numbers.next()?.parse().ok()?,
        session: numbers.next()?.parse().ok()?,
        id: message.child("stanza-id", "urn:xmpp:sid:0").and_then(|id| id.attr("id")).map(str::to_owned),
    })
}
