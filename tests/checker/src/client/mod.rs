//! A client that keeps P4 and writes down all it sees.
//!
//! It knows stream management (XEP-0198) with resumption, answers pings, reads
//! archives, and never resends what the server may have handled. What must stay
//! true: an event of sending is noted before the bytes are written and one of
//! receiving after they were read, every connection ends with one `close`, and
//! every stanza that is written is counted and noted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use waystation_harness::stream::Opened;
use waystation_harness::xml::{Element, StreamEvent, escape};
use waystation_harness::{Account, Client, Endpoint, Error, Login, RawClient};

use crate::history::{Class, Ev, Event, How};

mod archive;
mod incoming;

pub use archive::MAM_NS;

const SM_NS: &str = "urn:xmpp:sm:3";
/// How long a step of a login, or a clean close, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// After how many stanzas without it the client asks for an acknowledgement.
const ASK_EVERY: usize = 25;

/// What all clients of a run share.
#[derive(Debug)]
pub struct Scene {
    /// The start of the clock.
    pub epoch: Instant,
    /// Where the server is.
    pub at: Endpoint,
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

/// A stream under management, connected or not.
#[derive(Debug)]
struct Managed {
    id: String,
    resumable: bool,
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
    account: Account,
    resource: String,
    wants_management: bool,
    name: String,
    session: u32,
    events: Vec<Event>,
    jid: String,
    raw: Option<RawClient>,
    managed: Option<Managed>,
    plain_sent: u64,
    resumed: bool,
    uids: u64,
    queries: u64,
    results: VecDeque<archive::Found>,
}

impl Peer {
    /// A client that has not connected yet.
    pub fn new(scene: Arc<Scene>, account: Account, resource: &str, wants_management: bool) -> Self {
        Self {
            scene,
            name: account.user.clone(),
            account,
            resource: resource.to_owned(),
            wants_management,
            session: 0,
            events: Vec::new(),
            jid: String::new(),
            raw: None,
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
    pub fn into_history(self) -> (String, Vec<Event>) {
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

    /// How many stanzas wait for their acknowledgement; 0 without stream management.
    pub fn unacked(&self) -> usize {
        self.managed.as_ref().map_or(0, |m| m.unacked.len())
    }

    /// Gives up the stream that could be resumed: what was not acknowledged is never resent.
    pub fn forget(&mut self) {
        self.managed = None;
    }

    /// One attempt to connect, resuming the stream if there is one.
    pub async fn connect(&mut self) -> Result<(), Lost> {
        self.session += 1;
        self.resumed = false;
        self.note(Ev::Connect { node: "n1".to_owned() });
        match self.log_in().await {
            Ok(()) => Ok(()),
            Err(e) => Err(self.lost(&e)),
        }
    }

    /// Attempts until it is connected or the deadline has passed.
    pub async fn connect_until(&mut self, deadline: Instant) -> Result<(), Lost> {
        const PAUSE: Duration = Duration::from_millis(50);
        while self.raw.is_none() {
            if self.connect().await.is_ok() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Lost);
            }
            // The server is being restarted: there is nothing to wait for but its port.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn log_in(&mut self) -> Result<(), Error> {
        let (mut raw, opened) =
            Client::authenticate(&self.scene.at, &self.account, &Login::default()).await?;
        raw.set_patience(PATIENCE);
        let offers_management = opened.features.child_in(SM_NS).is_some_and(|f| f.local() == "sm");
        let mut resend = Vec::new();
        if let Some(managed) = self.managed.take().filter(|m| m.resumable && offers_management) {
            match self.resume(&mut raw, managed).await? {
                Resumption::Done(rest) => {
                    self.raw = Some(raw);
                    return self.resend(rest).await;
                }
                Resumption::Failed(rest) => resend = rest,
            }
        }
        self.bind(raw, &opened).await?;
        // P4: what the server says it has not handled is sent again, as new stanzas of this stream.
        for outgoing in resend.into_iter().filter(|o| !matches!(o.kind, "presence" | "iq")) {
            self.send(outgoing).await.map_err(|Lost| closed())?;
        }
        Ok(())
    }

    async fn resume(&mut self, raw: &mut RawClient, mut managed: Managed) -> Result<Resumption, Error> {
        let (id, h) = (managed.id.clone(), managed.received);
        self.note(Ev::Resume { previd: id.clone(), h });
        let answer =
            match raw.send(format!("<resume xmlns='{SM_NS}' previd='{}' h='{h}'/>", escape(&id))).await {
                Ok(()) => raw.next_element("the answer to <resume/>").await,
                Err(e) => Err(e),
            };
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) => {
                // Nothing is known: it is tried again with the next connection.
                self.managed = Some(managed);
                return Err(e);
            }
        };
        let h: Option<u32> = answer.attr("h").and_then(|h| h.parse().ok());
        match (answer.local(), h) {
            ("resumed", Some(h)) => {
                self.note(Ev::Resumed { h });
                managed.acked(h);
                let rest = managed.unacked.iter().cloned().collect();
                (managed.told, managed.since_asked, managed.asked) = (managed.received, 0, None);
                self.managed = Some(managed);
                self.resumed = true;
                Ok(Resumption::Done(rest))
            }
            ("failed", h) => {
                self.note(Ev::Smfail { h });
                // Without h nobody knows what was handled, and nothing may be sent again.
                let Some(h) = h else { return Ok(Resumption::Failed(Vec::new())) };
                managed.acked(h);
                Ok(Resumption::Failed(managed.unacked.into_iter().map(|(_, o)| o).collect()))
            }
            _ => Err(Error::Unexpected {
                expected: "<resumed/> or <failed/>".to_owned(),
                got: answer.to_string(),
            }),
        }
    }

    /// Sends what the server has not handled once more, with the same numbers.
    async fn resend(&mut self, rest: Vec<(u64, Outgoing)>) -> Result<(), Error> {
        for (seq, outgoing) in rest {
            self.note_send(seq, &outgoing);
            self.write(&outgoing.xml).await.map_err(|Lost| closed())?;
        }
        Ok(())
    }

    async fn bind(&mut self, mut raw: RawClient, opened: &Opened) -> Result<(), Error> {
        self.jid = raw.bind(Some(&self.resource)).await?;
        self.note(Ev::Bound { jid: self.jid.clone() });
        self.plain_sent = 0;
        let offers = opened.features.child_in(SM_NS).is_some_and(|f| f.local() == "sm");
        if self.wants_management && offers {
            raw.send(format!("<enable xmlns='{SM_NS}' resume='true'/>")).await?;
            let answer = raw.next_element("<enabled/>").await?;
            if answer.local() != "enabled" {
                return Err(Error::Unexpected { expected: "<enabled/>".into(), got: answer.to_string() });
            }
            let resumable = matches!(answer.attr("resume"), Some("true" | "1"));
            let given = answer.attr("id").filter(|_| resumable).map(str::to_owned);
            let id = given.unwrap_or_else(|| format!("{}#{}", self.name, self.session));
            self.note(Ev::Smon { id: id.clone() });
            self.managed = Some(Managed {
                id,
                resumable,
                received: 0,
                told: 0,
                sent: 0,
                unacked: VecDeque::new(),
                since_asked: 0,
                asked: None,
            });
        }
        self.raw = Some(raw);
        let uid = self.next_uid();
        let presence = Outgoing {
            uid,
            to: String::new(),
            class: Class::E,
            kind: "presence",
            hash: String::new(),
            xml: "<presence/>".to_owned(),
        };
        self.send(presence).await.map_err(|Lost| closed())
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
        self.note(Ev::AOut { h });
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
        let event = match tokio::time::timeout_at(deadline.into(), raw.next_event("traffic")).await {
            Ok(event) => event,
            Err(_) => return Ok(Step::Idle),
        };
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
        while self.unacked() > 0 && Instant::now() < deadline {
            self.ask_if_due(Duration::from_millis(250)).await?;
            self.run_until(Instant::now() + Duration::from_millis(10)).await?;
        }
        Ok(())
    }

    /// Ends the stream in order: acknowledges, closes, reads to the server's end.
    pub async fn close(&mut self) -> Result<(), Lost> {
        if self.managed.as_ref().is_some_and(|m| m.told != m.received) {
            self.acknowledge().await?;
        }
        self.write("</stream:stream>").await?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Some(raw) = &mut self.raw else { return Err(Lost) };
            match raw.next_event("the end of the stream").await {
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
        let Some(mut raw) = self.raw.take() else { return };
        self.note(Ev::Close { how: How::Eof });
        // What fails here fails on a socket that is gone already.
        if self.scene.gentle {
            // Only after the server has read to the end is no reset sent for what this side leaves unread.
            raw.set_patience(Duration::from_secs(2));
            let _gone = raw.wire().shutdown().await;
            let _unread = raw.read_to_end().await;
        } else {
            let _gone = raw.reset();
        }
    }

    /// Notes the end of the connection, whatever ended it.
    fn lost(&mut self, error: &Error) -> Lost {
        let condition = match error {
            Error::Unexpected { got, .. } => incoming::stream_error(got),
            _ => None,
        };
        let how = condition.map_or(How::Eof, How::Error);
        self.note(Ev::Close { how });
        if let Some(raw) = self.raw.take() {
            let _gone = raw.reset();
        }
        Lost
    }
}

enum Resumption {
    Done(Vec<(u64, Outgoing)>),
    Failed(Vec<Outgoing>),
}

impl Managed {
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
