//! A client that keeps P4 and writes down all it sees.
//!
//! It knows stream management (XEP-0198) with resumption, answers pings, reads
//! archives, and never resends what the server may have handled. What must stay
//! true: an event of sending is noted before the bytes are written and one of
//! receiving after they were read, every session ends with one `close`, and
//! every stanza that is written is counted and noted.
//!
//! Over BOSH the session outlives its connections, and goes on over new ones: no
//! `close` is noted for these. An answer to a request is noted as an
//! acknowledgement of all that went with requests up to it, for this project's
//! server answers only when that is safe.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use waystation_harness::xml::{Element, StreamEvent};
use waystation_harness::{Account, Bosh, Endpoint, Error, Link, Transport};

use crate::history::{Class, Ev, Event, How};

mod archive;
mod incoming;
mod login;

pub use archive::MAM_NS;
use login::PATIENCE;

const SM_NS: &str = "urn:xmpp:sm:3";
/// After how many stanzas without it the client asks for an acknowledgement.
const ASK_EVERY: usize = 25;

/// What all clients of a run share.
#[derive(Debug)]
pub struct Scene {
    /// The start of the clock.
    pub epoch: Instant,
    /// The name of the run, with which every uid begins.
    pub run: String,
    /// Whether connections end by FIN instead of a reset, so that the server reads what was written.
    pub gentle: bool,
}

impl Scene {
    /// The time of an event.
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The connection ended; the end is noted already.
#[derive(Debug)]
pub struct Lost;

/// What one step on a stream came to.
#[derive(Debug)]
pub enum Step {
    /// Nothing came before the deadline.
    Idle,
    /// Something came and was dealt with.
    Handled,
    /// A reply to one of the client's own requests came.
    Reply(Element),
}

/// A stanza to send.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its name in the history.
    pub uid: String,
    /// To whom.
    pub to: String,
    /// Its class.
    pub class: Class,
    /// Its kind.
    pub kind: &'static str,
    /// The hash of its body; empty without one.
    pub hash: String,
    /// The bytes.
    pub xml: String,
}

/// A server as its clients know it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The name in the history.
    pub node: String,
    /// Where it is.
    pub at: Endpoint,
}

/// How a client gets to the server, and what it wants there.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// How its stream gets there.
    pub over: Transport,
    /// Whether it wants stream management; over BOSH it has no need of it.
    pub managed: bool,
}

/// A stream under management, connected or not.
#[derive(Debug)]
struct Managed {
    id: String,
    resumable: bool,
    /// Over BOSH, how many elements were sent before the stream's first stanza: answers to requests
    /// acknowledge, and nobody is asked.
    before: Option<u64>,
    received: u32,
    told: u32,
    sent: u64,
    unacked: VecDeque<(u64, Outgoing)>,
    since_asked: usize,
    asked: Option<Instant>,
}

/// A client with all its sessions.
pub struct Peer {
    scene: Arc<Scene>,
    place: Place,
    account: Account,
    resource: String,
    manner: Manner,
    name: String,
    session: u32,
    events: Vec<Event>,
    jid: String,
    raw: Option<Link>,
    /// The session over BOSH whose connections are broken.
    asleep: Option<Box<Bosh>>,
    managed: Option<Managed>,
    plain_sent: u64,
    resumed: bool,
    uids: u64,
    queries: u64,
    results: VecDeque<archive::Found>,
}

impl Peer {
    /// A client that has not connected yet.
    pub fn new(scene: Arc<Scene>, place: Place, account: Account, resource: &str, manner: Manner) -> Self {
        Self {
            scene,
            place,
            name: account.user.clone(),
            account,
            resource: resource.to_owned(),
            manner,
            session: 0,
            events: Vec::new(),
            jid: String::new(),
            raw: None,
            asleep: None,
            managed: None,
            plain_sent: 0,
            resumed: false,
            uids: 0,
            queries: 0,
            results: VecDeque::new(),
        }
    }

    /// Notes an event now.
    pub fn note(&mut self, ev: Ev) {
        self.events.push(Event { t: self.scene.now(), s: self.session, ev });
    }

    /// Its name and its history.
    pub fn into_history(mut self) -> (String, Vec<Event>) {
        self.forget();
        (self.name, self.events)
    }

    /// What it shares with others.
    pub fn scene(&self) -> &Arc<Scene> {
        &self.scene
    }

    /// The name in the history.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bare JID.
    pub fn bare(&self) -> String {
        self.account.jid()
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.raw.is_some()
    }

    /// Whether its stream is under management.
    pub fn is_managed(&self) -> bool {
        self.managed.is_some()
    }

    /// A new name for a stanza.
    pub fn next_uid(&mut self) -> String {
        self.uids += 1;
        format!("{}/{}/{}", self.scene.run, self.name, self.uids)
    }

    /// Whether this message has come to it.
    pub fn has_received(&self, uid: &str) -> bool {
        self.events.iter().rev().any(|e| matches!(&e.ev, Ev::Recv { uid: known, .. } if known == uid))
    }

    /// How many stanzas wait for their acknowledgement; 0 without stream management.
    pub fn unacked(&self) -> usize {
        self.managed.as_ref().map_or(0, |m| m.unacked.len())
    }

    /// Gives up the stream that could be resumed, or the session that could go on: what was not
    /// acknowledged is never resent.
    pub fn forget(&mut self) {
        self.managed = None;
        if self.asleep.take().is_some() {
            self.note(Ev::Close { how: How::Eof });
        }
    }

    fn note_send(&mut self, seq: u64, outgoing: &Outgoing) {
        let Outgoing { uid, to, class, kind, hash, .. } = outgoing.clone();
        self.note(Ev::Send { uid, seq, to, cls: class, kind: kind.to_owned(), hash });
    }

    /// Sends a stanza.
    pub async fn send(&mut self, outgoing: Outgoing) -> Result<(), Lost> {
        let seq = match &mut self.managed {
            Some(managed) => {
                managed.sent += 1;
                managed.since_asked += 1;
                managed.sent
            }
            None => {
                self.plain_sent += 1;
                self.plain_sent
            }
        };
        self.note_send(seq, &outgoing);
        let xml = outgoing.xml.clone();
        if let Some(managed) = &mut self.managed {
            managed.unacked.push_back((seq, outgoing));
        }
        self.write(&xml).await?;
        if self.managed.as_ref().is_some_and(|m| m.since_asked >= ASK_EVERY) {
            self.ask().await?;
        }
        Ok(())
    }

    /// Asks for an acknowledgement.
    pub async fn ask(&mut self) -> Result<(), Lost> {
        let Some(managed) = &mut self.managed else { return Ok(()) };
        managed.since_asked = 0;
        if managed.before.is_some() {
            return Ok(());
        }
        managed.asked = Some(Instant::now());
        self.note(Ev::ROut);
        self.write(&format!("<r xmlns='{SM_NS}'/>")).await
    }

    /// Asks if something has waited for its acknowledgement for `age` since it last asked.
    pub async fn ask_if_due(&mut self, age: Duration) -> Result<(), Lost> {
        let due = |m: &Managed| !m.unacked.is_empty() && m.asked.is_none_or(|at| at.elapsed() >= age);
        if self.managed.as_ref().is_some_and(due) { self.ask().await } else { Ok(()) }
    }

    /// Acknowledges all that came.
    async fn acknowledge(&mut self) -> Result<(), Lost> {
        let Some(managed) = &mut self.managed else { return Ok(()) };
        let h = managed.received;
        managed.told = h;
        let silent = managed.before.is_some();
        self.note(Ev::AOut { h });
        if silent {
            // The next request tells the server.
            return Ok(());
        }
        self.write(&format!("<a xmlns='{SM_NS}' h='{h}'/>")).await
    }

    async fn write(&mut self, xml: &str) -> Result<(), Lost> {
        let Some(raw) = &mut self.raw else { return Err(Lost) };
        match raw.send(xml).await {
            Ok(()) => Ok(()),
            Err(e) => Err(self.lost(&e)),
        }
    }

    /// Waits for the next event of the stream, at most until the deadline, and handles it.
    pub async fn step(&mut self, deadline: Instant) -> Result<Step, Lost> {
        let Some(raw) = &mut self.raw else { return Err(Lost) };
        // Only the reading is given up at the deadline: a write that broke off would break the stream.
        let event = tokio::time::timeout_at(deadline.into(), raw.next_event("traffic")).await;
        self.note_answers();
        let Ok(event) = event else { return Ok(Step::Idle) };
        match event {
            Ok(StreamEvent::Element(element)) => {
                Ok(self.handle(element).await?.map_or(Step::Handled, Step::Reply))
            }
            Ok(StreamEvent::End) => Err(self.lost(&closed())),
            Ok(StreamEvent::Header(_)) => Ok(Step::Handled),
            // The harness has a patience of its own, which says nothing about this deadline.
            Err(Error::Timeout { .. }) => Ok(Step::Handled),
            Err(e) => Err(self.lost(&e)),
        }
    }

    /// Notes what the answers to requests over BOSH acknowledge.
    fn note_answers(&mut self) {
        let Some(Link::Bosh(bosh)) = &self.raw else { return };
        let Some(managed) = &mut self.managed else { return };
        let Some(before) = managed.before else { return };
        let done = bosh.confirmed().saturating_sub(before);
        let known = managed.sent - managed.unacked.len() as u64;
        if done > known {
            // Fewer than 2^32 stanzas fit into a run.
            let h = u32::try_from(done).unwrap_or(u32::MAX);
            managed.acked(h);
            self.note(Ev::AIn { h });
        }
    }

    /// Works on the stream until the deadline.
    pub async fn run_until(&mut self, deadline: Instant) -> Result<(), Lost> {
        // On a busy stream there is always something, so the clock is looked at each time.
        while Instant::now() < deadline {
            self.step(deadline).await?;
        }
        Ok(())
    }

    /// Works on the stream until nothing has come for `idle`.
    pub async fn run_until_idle(&mut self, idle: Duration) -> Result<(), Lost> {
        while !matches!(self.step(Instant::now() + idle).await?, Step::Idle) {}
        Ok(())
    }

    /// Waits until all that was sent is acknowledged, at most until the deadline.
    pub async fn settle(&mut self, deadline: Instant) -> Result<(), Lost> {
        // The server may keep a request that brought something for long. With a second one that brings
        // something it has to answer the first.
        while self.waits_for_answers() && Instant::now() < deadline {
            let host = self.account.host.clone();
            self.request("get", &host, &format!("<ping xmlns='{}'/>", incoming::PING_NS)).await?;
        }
        while self.unacked_is_asked_for() && self.unacked() > 0 && Instant::now() < deadline {
            self.ask_if_due(Duration::from_millis(250)).await?;
            self.run_until(Instant::now() + Duration::from_millis(10)).await?;
        }
        Ok(())
    }

    /// Whether something durable went over BOSH with a request that is not answered.
    fn waits_for_answers(&self) -> bool {
        let durable = |m: &Managed| m.unacked.iter().any(|(_, o)| o.class == Class::D);
        self.managed.as_ref().is_some_and(|m| m.before.is_some() && durable(m))
    }

    /// Whether the server acknowledges what it is asked for.
    fn unacked_is_asked_for(&self) -> bool {
        self.managed.as_ref().is_some_and(|m| m.before.is_none())
    }

    /// Ends the stream in order: acknowledges, closes, reads to the server's end.
    pub async fn close(&mut self) -> Result<(), Lost> {
        if self.managed.as_ref().is_some_and(|m| m.told != m.received) {
            self.acknowledge().await?;
        }
        let Some(raw) = &mut self.raw else { return Err(Lost) };
        if let Err(e) = raw.end_stream().await {
            return Err(self.lost(&e));
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Some(raw) = &mut self.raw else { return Err(Lost) };
            let event = raw.next_event("the end of the stream").await;
            self.note_answers();
            match event {
                Ok(StreamEvent::Element(element)) => self.receive_after_close(&element)?,
                Ok(StreamEvent::End) => {
                    self.note(Ev::Close { how: How::Clean });
                    (self.raw, self.managed) = (None, None);
                    return Ok(());
                }
                Ok(StreamEvent::Header(_)) => {}
                Err(e) => return Err(self.lost(&e)),
            }
        }
        Err(self.lost(&closed()))
    }

    /// Breaks the connection without a word.
    pub async fn cut(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let Some(mut raw) = self.raw.take() else { return };
        if self.scene.gentle {
            let _late = tokio::time::timeout(PATIENCE, raw.shut()).await;
        }
        match raw {
            Link::Bosh(mut bosh) => {
                bosh.reset();
                self.asleep = Some(bosh);
            }
            link => {
                self.note(Ev::Close { how: How::Eof });
                // What fails here fails on a socket that is gone already.
                let _gone = link.reset();
            }
        }
    }

    /// Notes the end of the connection, whatever ended it.
    fn lost(&mut self, error: &Error) -> Lost {
        let condition = match error {
            Error::Unexpected { got, .. } => incoming::stream_error(got),
            _ => None,
        };
        let link = match self.raw.take() {
            Some(Link::Bosh(mut bosh)) if bosh.is_open() && is_of_connection(error) => {
                bosh.reset();
                self.asleep = Some(bosh);
                return Lost;
            }
            link => link,
        };
        let how = condition.map_or(How::Eof, How::Error);
        self.note(Ev::Close { how });
        if let Some(link) = link {
            let _gone = link.reset();
        }
        Lost
    }
}

/// Whether an error says nothing about the session, only about what it went over.
fn is_of_connection(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() != std::io::ErrorKind::Other,
        Error::Closed { .. } | Error::Timeout { .. } => true,
        _ => false,
    }
}

impl Managed {
    fn new(id: String, resumable: bool) -> Self {
        Self {
            id,
            resumable,
            before: None,
            received: 0,
            told: 0,
            sent: 0,
            unacked: VecDeque::new(),
            since_asked: 0,
            asked: None,
        }
    }

    /// Takes away what is acknowledged by h; a number beyond what was sent is left to the checker.
    fn acked(&mut self, h: u32) {
        while let Some((seq, _)) = self.unacked.front() {
            // In the ring of 32 bits, h is ahead of what it covers by less than half.
            #[expect(clippy::cast_possible_truncation, reason = "the numbers are modulo 2^32")]
            let ahead = h.wrapping_sub(*seq as u32);
            if ahead >= 1 << 31 {
                break;
            }
            self.unacked.pop_front();
        }
    }
}

fn closed() -> Error {
    Error::Closed { what: "the stream".to_owned(), got: String::new() }
}
