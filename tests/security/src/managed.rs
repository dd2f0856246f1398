//! A client with stream management (XEP-0198) whose every step is the test's: it counts what it
//! receives, and acknowledges only when it is told to.
//!
//! What must hold: each stanza is counted once, before the test sees it.

use std::time::{Duration, Instant};

use waystation_harness::xml::{CLIENT_NS, Element};
use waystation_harness::{Client, Error, Login, RawClient, Server};

/// The namespace of stream management.
pub const SM: &str = "urn:xmpp:sm:3";

/// A session under management.
pub struct Managed {
    /// The stream.
    pub raw: RawClient,
    /// The full JID; empty for one that was resumed.
    pub jid: String,
    /// What it can be resumed with; empty if it cannot.
    pub id: String,
    /// Stanzas received.
    pub received: u32,
}

/// Connects and authenticates, up to where a resource is bound or a session resumed.
pub async fn authenticated(server: &Server, user: &str) -> RawClient {
    Client::authenticate(server.endpoint(), server.account(user), &Login::default()).await.unwrap().0
}

/// The name of an answer of stream management, with the condition if it is a failure.
pub fn outcome(answer: &Element) -> String {
    assert_eq!(answer.ns(), SM, "{answer}");
    match answer.children().next() {
        Some(condition) => format!("{} {}", answer.local(), condition.local()),
        None => answer.local().to_owned(),
    }
}

impl Managed {
    /// A session that is bound and counts nothing yet.
    pub async fn bound(server: &Server, user: &str, resource: &str) -> Self {
        let mut raw = authenticated(server, user).await;
        let jid = raw.bind(Some(resource)).await.unwrap();
        Self { raw, jid, id: String::new(), received: 0 }
    }

    /// A session that can be resumed.
    pub async fn login(server: &Server, user: &str, resource: &str) -> Self {
        let mut this = Self::bound(server, user, resource).await;
        let enabled = this.enable("resume='true'").await;
        this.id = enabled.attr("id").unwrap_or_else(|| panic!("not resumable: {enabled}")).to_owned();
        this
    }

    /// The same, available: it gets messages to its bare JID.
    pub async fn available(server: &Server, user: &str, resource: &str) -> Self {
        let mut this = Self::login(server, user, resource).await;
        this.send("<presence/>").await;
        let own = this.stanza("the own presence").await;
        assert_eq!(own.attr("from"), Some(&*this.jid), "{own}");
        this
    }

    /// Asks for stream management with these attributes.
    pub async fn enable(&mut self, attributes: &str) -> Element {
        self.send(format!("<enable xmlns='{SM}' {attributes}/>")).await;
        self.raw.next_element("the answer to <enable/>").await.unwrap()
    }

    /// Resumes a session; the number that the server has handled, or its answer.
    pub async fn resume(server: &Server, user: &str, id: &str, h: u32) -> Result<(Self, u32), Element> {
        let mut raw = authenticated(server, user).await;
        raw.send(format!("<resume xmlns='{SM}' previd='{id}' h='{h}'/>")).await.unwrap();
        let answer = raw.next_element("the answer to <resume/>").await.unwrap();
        if answer.local() != "resumed" {
            return Err(answer);
        }
        assert_eq!(answer.attr("previd"), Some(id), "{answer}");
        let handled = answer.attr("h").and_then(|h| h.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
        Ok((Self { raw, jid: String::new(), id: id.to_owned(), received: h }, handled))
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, xml: impl AsRef<[u8]>) {
        self.raw.send(xml).await.unwrap();
    }

    /// The next stanza; elements of stream management before it are passed by.
    pub async fn stanza(&mut self, what: &str) -> Element {
        self.try_stanza(what).await.unwrap()
    }

    /// The same; the error says how the stream ended, or that nothing came.
    pub async fn try_stanza(&mut self, what: &str) -> Result<Element, Error> {
        loop {
            let element = self.raw.next_element(what).await?;
            if element.ns() == CLIENT_NS {
                self.received += 1;
                return Ok(element);
            }
        }
    }

    /// The number of the next `<a/>`; stanzas before it are counted and dropped.
    pub async fn number(&mut self) -> u32 {
        loop {
            let element = self.raw.next_element("<a/>").await.unwrap();
            match element.ns() {
                CLIENT_NS => self.received += 1,
                SM if element.local() == "a" => return element.attr("h").unwrap().parse().unwrap(),
                _ => {}
            }
        }
    }

    /// Asks until all of `sent` stanzas are acknowledged.
    pub async fn settled(&mut self, sent: u32) {
        self.send(format!("<r xmlns='{SM}'/>")).await;
        loop {
            let h = self.number().await;
            assert!(h <= sent, "{h} of {sent} acknowledged");
            if h == sent {
                return;
            }
        }
    }

    /// Acknowledges what was received.
    pub async fn acknowledge(&mut self) {
        let h = self.received;
        self.send(format!("<a xmlns='{SM}' h='{h}'/>")).await;
    }

    /// The bodies of the next messages, so many of them. Every hundredth is acknowledged, so that
    /// more may come.
    pub async fn bodies(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        while bodies.len() < count {
            let what = format!("message {} of {count}", bodies.len() + 1);
            let stanza = self.stanza(&what).await;
            bodies.extend(body(&stanza));
            if bodies.len() % 100 == 0 {
                self.acknowledge().await;
            }
        }
        bodies
    }

    /// The bodies of all messages that come before the answer to a ping.
    pub async fn rest(&mut self) -> Vec<String> {
        self.send("<iq type='get' id='rest' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        let mut bodies = Vec::new();
        loop {
            let stanza = self.stanza("the answer to a ping").await;
            if stanza.attr("id") == Some("rest") {
                return bodies;
            }
            bodies.extend(body(&stanza));
        }
    }
}

/// The text of a message.
pub fn body(stanza: &Element) -> Option<String> {
    if stanza.local() == "message" { stanza.child("body").map(Element::text) } else { None }
}

/// A chat message with a number as its text.
pub fn message(to: &str, number: usize) -> String {
    format!("<message to='{to}' type='chat' id='m{number}'><body>{number}</body></message>")
}

/// Several, with the numbers of a range.
pub fn messages(to: &str, numbers: impl IntoIterator<Item = usize>) -> String {
    numbers.into_iter().map(|number| message(to, number)).collect()
}

/// The numbers of a range as text.
pub fn numbers(range: impl IntoIterator<Item = usize>) -> Vec<String> {
    range.into_iter().map(|number| number.to_string()).collect()
}

/// Tries until something holds.
///
/// # Panics
/// When it does not within a minute, which a busy disk may need.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
