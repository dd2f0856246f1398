//! A client's stream over BOSH (XEP-0206).
//!
//! Behaves as the clients of browsers do: a request stays with the server as
//! long as someone waits for what comes, and stanzas go with the next one that
//! may be made. The stream outlives its connections: after a failure the next
//! step goes on with the same session, and sends what was not answered again.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result, show};
use crate::exchange::{BIND_NS, Exchange, PATH, XBOSH_NS};
use crate::negotiation::{Negotiation, element_of};
use crate::stream::{Opened, PATIENCE};
use crate::xml::{Element, StreamEvent, escape, with_namespace};

/// How much one read takes.
const CHUNK: usize = 16 * 1024;
/// The longest that the server may let a request wait, in seconds.
const WAIT: u64 = 60;
/// Bytes of stanzas that wait for a request before sending waits as well.
const MAX_QUEUED: usize = 256 * 1024;

/// A client's stream over BOSH.
pub struct Bosh {
    exchange: Exchange,
    sent: u64,
    events: VecDeque<StreamEvent>,
    patience: Duration,
    wait: u64,
}

impl Bosh {
    /// A stream whose session is not created yet.
    pub fn new(at: SocketAddr) -> Self {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).expect("the system has a random source");
        // Large, random, and far from 2^53 (XEP-0124 section 14.1).
        let rid = 1_000_000_000 + u64::from(u32::from_be_bytes(bytes));
        Self {
            exchange: Exchange::new(at, PATH, rid),
            sent: 0,
            events: VecDeque::new(),
            patience: PATIENCE,
            wait: WAIT,
        }
    }

    /// Changes how long each later step may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Asks the server to let requests wait up to this many seconds. To be called before
    /// [`Bosh::open`].
    pub fn set_wait(&mut self, seconds: u64) {
        self.wait = seconds;
    }

    /// The requests and answers below.
    pub fn exchange(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    /// Gives requests and answers away, for traffic that needs no stanza reader.
    pub fn into_exchange(self) -> Exchange {
        self.exchange
    }

    /// Whether the session can go on, over whatever connections.
    pub fn is_open(&self) -> bool {
        self.exchange.is_open()
    }

    /// Sends one element, with the namespace of clients if it names none. It goes at once if a request
    /// may be made, and otherwise with one of the next steps.
    pub async fn send(&mut self, xml: &str) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        while self.exchange.queued() > MAX_QUEUED {
            self.answer(deadline, "room to send").await?;
        }
        self.exchange.post(with_namespace(xml).as_bytes());
        self.sent += 1;
        self.flush(deadline).await
    }

    /// How many elements were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// How many of them, from the first one on, went with requests that are answered.
    pub fn confirmed(&self) -> u64 {
        self.exchange.confirmed()
    }

    async fn flush(&mut self, deadline: Instant) -> Result<()> {
        match timeout_at(deadline, self.exchange.flush()).await {
            Ok(done) => done.map_err(Error::io("send over BOSH")),
            Err(_) => Err(self.timed_out("room to send")),
        }
    }

    /// Makes sure that the server has a request to answer with what comes.
    pub async fn hold(&mut self) -> Result<()> {
        match timeout_at(Instant::now() + self.patience, self.exchange.hold()).await {
            Ok(done) => done.map_err(Error::io("send over BOSH")),
            Err(_) => Err(self.timed_out("room to send")),
        }
    }

    /// The next event of the stream. It has no headers; its end is the end of the session, if that is
    /// no error.
    pub async fn next_event(&mut self, what: &str) -> Result<StreamEvent> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let ended = !self.exchange.sid().is_empty() && !self.exchange.is_open();
            if ended && !self.exchange.has_answers() {
                return Err(Error::Closed { what: what.to_owned(), got: String::new() });
            }
            self.answer(deadline, what).await?;
        }
    }

    /// Takes the next answer apart; returns its wrapper without what was in it.
    async fn answer(&mut self, deadline: Instant, what: &str) -> Result<Element> {
        let mut chunk = vec![0; CHUNK];
        let body = match timeout_at(deadline, self.exchange.next(&mut chunk)).await {
            Ok(Ok(body)) => body,
            Ok(Err(e)) if is_end(&e) => {
                return Err(Error::Closed { what: what.to_owned(), got: String::new() });
            }
            Ok(Err(e)) => return Err(Error::io(format!("BOSH, waiting for {what}"))(e)),
            Err(_) => return Err(self.timed_out(what)),
        };
        let text = String::from_utf8(body).map_err(|e| Error::unexpected("text", show(e.as_bytes())))?;
        let mut body = Element::parse_document(&text)?;
        if body.name != (BIND_NS.to_owned(), "body".to_owned()) {
            return Err(Error::unexpected("<body/>", text));
        }
        let ends = body.attr("type") == Some("terminate");
        let condition = body.attr("condition").map(str::to_owned);
        let children: Vec<Element> = body.children().cloned().collect();
        self.events.extend(children.into_iter().map(StreamEvent::Element));
        match condition.as_deref() {
            // The stream error is among the children (XEP-0206 section 6).
            None | Some("remote-stream-error") if ends => self.events.push_back(StreamEvent::End),
            Some(_) if ends => return Err(Error::unexpected(what, text)),
            _ => {}
        }
        body.nodes.clear();
        Ok(body)
    }

    /// Creates the session, or restarts the stream of one that is created; waits for the features.
    pub async fn open(&mut self, host: &str) -> Result<Opened> {
        let to = escape(host);
        let deadline = Instant::now() + self.patience;
        let header = if self.exchange.sid().is_empty() {
            let wait = self.wait;
            self.exchange.post_body(&format!(
                "to='{to}' wait='{wait}' hold='1' ver='1.6' content='text/xml; charset=utf-8' xml:lang='en' \
                 xmlns:xmpp='{XBOSH_NS}' xmpp:version='1.0'"
            ));
            let header = self.answer(deadline, "the session").await?;
            let requests = header.attr("requests").and_then(|n| n.parse().ok());
            let (Some(sid), Some(requests)) = (header.attr("sid"), requests) else {
                return Err(Error::unexpected("a session", header.to_string()));
            };
            self.exchange.created(sid, requests);
            header
        } else {
            self.exchange
                .post_body(&format!("to='{to}' xml:lang='en' xmlns:xmpp='{XBOSH_NS}' xmpp:restart='true'"));
            self.answer(deadline, "the restarted stream").await?
        };
        Opened::new(header, self.element("stream features").await?)
    }

    /// Asks for the end of the session, after all that was sent.
    pub async fn end_stream(&mut self) -> Result<()> {
        self.exchange.terminate();
        self.flush(Instant::now() + self.patience).await
    }

    /// Breaks all connections without a word. The session goes on with the next step.
    pub fn reset(&mut self) {
        self.exchange.reset();
    }

    fn timed_out(&self, what: &str) -> Error {
        let open: Vec<u64> = self.exchange.unanswered().collect();
        let got = format!("nothing to the requests {open:?}");
        Error::Timeout { what: what.to_owned(), after: self.patience, got }
    }
}

impl Negotiation for Bosh {
    async fn put(&mut self, xml: &str) -> Result<()> {
        self.send(xml).await
    }

    async fn element(&mut self, what: &str) -> Result<Element> {
        let event = self.next_event(what).await?;
        element_of(event, what, b"")
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}
