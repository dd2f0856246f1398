//! A client's stream, step by step: from raw bytes to a bound resource.
//!
//! `RawClient` never hides what the server says: every wait has a deadline and
//! fails with what had arrived. Its helpers do what a well-behaved client does;
//! a test that attacks uses `send` and `read_until` between them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result, show};
use crate::negotiation::{Negotiation, element_of};
use crate::sasl::{Binding, Mechanism};
use crate::tls;
use crate::wire::Wire;
use crate::xml::{Element, STREAM_NS, StreamEvent, StreamReader, escape};

/// How long a single answer may take before the step fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

const TLS_NS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
const STREAM_ERROR_NS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// A stream that was opened: the server's header and its features.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The header element that the server sent.
    pub header: Element,
    /// `<stream:features/>`.
    pub features: Element,
}

impl Opened {
    /// A stream with this header; an error if what followed it are no features.
    pub(crate) fn new(header: Element, features: Element) -> Result<Self> {
        if features.name == (STREAM_NS.to_owned(), "features".to_owned()) {
            Ok(Self { header, features })
        } else {
            Err(Error::unexpected("stream features", features.to_string()))
        }
    }

    /// The names of the SASL mechanisms on offer.
    pub fn mechanisms(&self) -> Vec<String> {
        let list = self.features.child("mechanisms");
        list.iter()
            .flat_map(|m| m.children())
            .filter(|c| c.local() == "mechanism")
            .map(Element::text)
            .collect()
    }

    /// The channel binding types on offer (XEP-0440).
    pub fn bindings(&self) -> Vec<String> {
        let list = self.features.child_in("urn:xmpp:sasl-cb:0");
        list.iter().flat_map(|m| m.children()).filter_map(|c| c.attr("type")).map(str::to_owned).collect()
    }

    /// Whether STARTTLS is on offer.
    pub fn offers_tls(&self) -> bool {
        self.features.child_in(TLS_NS).is_some()
    }
}

/// A client connection under the test's full control.
pub struct RawClient {
    wire: Wire,
    inbox: Vec<u8>,
    reader: StreamReader,
    patience: Duration,
    ended: bool,
}

impl RawClient {
    /// Connects over TCP.
    pub async fn connect(addr: SocketAddr) -> Result<Self> {
        let wire = Wire::connect(addr).await.map_err(Error::io(format!("connect to {addr}")))?;
        Ok(Self {
            wire,
            inbox: Vec::new(),
            reader: StreamReader::default(),
            patience: PATIENCE,
            ended: false,
        })
    }

    /// Connects over TCP and runs the TLS handshake of XEP-0368 (ALPN `xmpp-client`).
    pub async fn connect_tls(addr: SocketAddr, sni: &str) -> Result<Self> {
        Self::connect_tls_with(addr, tls::client_config(&[b"xmpp-client"]), sni).await
    }

    /// As [`RawClient::connect_tls`] with other TLS settings.
    pub async fn connect_tls_with(addr: SocketAddr, config: Arc<ClientConfig>, sni: &str) -> Result<Self> {
        let mut client = Self::connect(addr).await?;
        client.handshake(config, sni).await?;
        Ok(client)
    }

    /// Changes how long each later step may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The connection below.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Gives the connection away, with what was received and not yet consumed.
    pub fn into_wire(self) -> (Wire, Vec<u8>) {
        (self.wire, self.inbox)
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, data: impl AsRef<[u8]>) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        match timeout_at(deadline, self.wire.write_all(data.as_ref())).await {
            Ok(done) => done.map_err(Error::io("send")),
            Err(_) => Err(self.timed_out("room to send")),
        }
    }

    /// Sends bytes with one write per `size` bytes, so that the server sees them in pieces.
    pub async fn send_in_pieces(&mut self, data: impl AsRef<[u8]>, size: usize) -> Result<()> {
        for piece in data.as_ref().chunks(size.max(1)) {
            self.send(piece).await?;
            // Without a pause for the other side the kernel would join the pieces again.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Reads until `pattern` appears, and takes everything up to its end.
    pub async fn read_until(&mut self, pattern: &str) -> Result<String> {
        let deadline = Instant::now() + self.patience;
        let mut searched = 0;
        loop {
            let found = self.inbox[searched..].windows(pattern.len()).position(|w| w == pattern.as_bytes());
            if let Some(at) = found {
                let taken: Vec<u8> = self.inbox.drain(..searched + at + pattern.len()).collect();
                return Ok(String::from_utf8_lossy(&taken).into_owned());
            }
            searched = self.inbox.len().saturating_sub(pattern.len());
            self.fill(deadline, pattern).await?;
        }
    }

    /// Reads until the connection ends, and returns all that came. A reset counts as an end.
    pub async fn read_to_end(&mut self) -> Result<String> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.fill(deadline, "the end of the connection").await {
                Ok(()) => {}
                Err(Error::Closed { .. }) => {
                    return Ok(String::from_utf8_lossy(&std::mem::take(&mut self.inbox)).into_owned());
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// What was received and not yet consumed.
    pub fn pending(&self) -> &[u8] {
        &self.inbox
    }

    /// The next event of the stream.
    pub async fn next_event(&mut self, what: &str) -> Result<StreamEvent> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(event) = self.reader.next(&mut self.inbox)? {
                return Ok(event);
            }
            self.fill(deadline, what).await?;
        }
    }

    /// The next first-level element; a stream error is returned as an error.
    pub async fn next_element(&mut self, what: &str) -> Result<Element> {
        let event = self.next_event(what).await?;
        element_of(event, what, &self.inbox)
    }

    /// Takes an element that is already here, without waiting.
    pub fn poll_element(&mut self) -> Result<Option<Element>> {
        match self.reader.next(&mut self.inbox)? {
            Some(StreamEvent::Element(element)) => Ok(Some(element)),
            Some(other) => Err(Error::unexpected("an element", format!("{other:?}"))),
            None => Ok(None),
        }
    }

    /// Starts a new stream to `host` and waits for header and features.
    pub async fn open(&mut self, host: &str) -> Result<Opened> {
        self.reader = StreamReader::default();
        let header = stream_header(host);
        self.send(header).await?;
        let header = match self.next_event("the stream header").await? {
            StreamEvent::Header(header) => header,
            other => return Err(Error::unexpected("a stream header", format!("{other:?}"))),
        };
        Opened::new(header, self.next_element("stream features").await?)
    }

    /// Negotiates STARTTLS and runs the handshake; the caller opens a new stream afterwards.
    pub async fn starttls(&mut self, sni: &str) -> Result<()> {
        self.send(format!("<starttls xmlns='{TLS_NS}'/>")).await?;
        let answer = self.next_element("the answer to STARTTLS").await?;
        if answer.name != (TLS_NS.to_owned(), "proceed".to_owned()) {
            return Err(Error::unexpected("<proceed/>", answer.to_string()));
        }
        if !self.inbox.is_empty() {
            return Err(Error::unexpected("nothing after <proceed/>", show(&self.inbox)));
        }
        self.handshake(tls::client_config(&[]), sni).await
    }

    /// Runs a TLS handshake on the connection as it stands.
    pub async fn handshake(&mut self, config: Arc<ClientConfig>, sni: &str) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        match timeout_at(deadline, self.wire.start_tls(config, sni)).await {
            Ok(done) => done.map_err(Error::io("TLS handshake")),
            Err(_) => Err(self.timed_out("TLS handshake")),
        }
    }

    /// The channel binding data that `mechanism` would use here: tls-exporter on TLS 1.3,
    /// tls-server-end-point otherwise; none without TLS.
    pub fn binding(&self, offered: &[String]) -> Binding {
        let Some(conn) = self.wire.tls() else { return Binding::NotSupported };
        let wants = |kind: &str| offered.is_empty() || offered.iter().any(|o| o == kind);
        let is_13 = conn.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let exporter = || tls::exporter_binding(conn).map(|data| ("tls-exporter", data));
        let end_point = || tls::end_point_binding(conn).map(|data| ("tls-server-end-point", data));
        let found = if is_13 && wants("tls-exporter") { exporter() } else { end_point() };
        match found {
            Some((kind, data)) => Binding::Bound { kind: kind.to_owned(), data },
            None => Binding::NotSupported,
        }
    }

    /// Authenticates with the given mechanism. On success the caller opens a new stream.
    pub async fn authenticate(
        &mut self,
        mechanism: Mechanism,
        user: &str,
        password: &str,
        offered_bindings: &[String],
    ) -> Result<()> {
        let binding =
            if mechanism.is_plus() { self.binding(offered_bindings) } else { Binding::NotSupported };
        Negotiation::authenticate(self, mechanism, user, password, binding).await
    }

    /// Binds a resource (the server chooses when `None`) and returns the full JID.
    pub async fn bind(&mut self, resource: Option<&str>) -> Result<String> {
        Negotiation::bind(self, resource).await
    }

    /// Waits for a stream error with this condition, then for the end of the stream and of the connection.
    pub async fn expect_stream_error(&mut self, condition: &str) -> Result<()> {
        let expected = format!("the stream error {condition}");
        loop {
            match self.next_event(&expected).await? {
                StreamEvent::Element(e) if e.name == (STREAM_NS.to_owned(), "error".to_owned()) => {
                    if e.child_in(STREAM_ERROR_NS).map(Element::local) != Some(condition) {
                        return Err(Error::unexpected(expected, e.to_string()));
                    }
                    break;
                }
                // The server opens its own stream before it reports a fault in ours (RFC 6120 4.9.1.2).
                StreamEvent::Header(_) => {}
                other => return Err(Error::unexpected(expected, format!("{other:?}"))),
            }
        }
        match self.next_event("</stream:stream>").await? {
            StreamEvent::End => self.expect_end().await,
            other => Err(Error::unexpected("</stream:stream>", format!("{other:?}"))),
        }
    }

    /// Waits for the end of the connection, before which nothing more may come.
    pub async fn expect_end(&mut self) -> Result<()> {
        let rest = self.read_to_end().await?;
        if rest.trim().is_empty() { Ok(()) } else { Err(Error::unexpected("the end", show(rest.as_bytes()))) }
    }

    /// Closes the stream, waits for the server to close its own, and ends the connection.
    /// Stanzas that were still on their way are dropped.
    pub async fn close(mut self) -> Result<()> {
        self.send("</stream:stream>").await?;
        loop {
            match self.next_event("</stream:stream>").await {
                Ok(StreamEvent::End) => break,
                Ok(StreamEvent::Element(e)) if e.name == (STREAM_NS.to_owned(), "error".to_owned()) => {
                    return Err(Error::unexpected("</stream:stream>", e.to_string()));
                }
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
        // The server may have closed its side already; then there is nothing left to shut.
        let _already_closed = self.wire.shutdown().await;
        Ok(())
    }

    /// Breaks the connection without a word.
    pub fn reset(self) -> Result<()> {
        self.wire.reset().map_err(Error::io("reset"))
    }

    async fn fill(&mut self, deadline: Instant, what: &str) -> Result<()> {
        if self.ended {
            return Err(Error::Closed { what: what.to_owned(), got: show(&self.inbox) });
        }
        match timeout_at(deadline, self.wire.read(&mut self.inbox)).await {
            Err(_) => Err(self.timed_out(what)),
            Ok(Ok(0)) => {
                self.ended = true;
                Err(Error::Closed { what: what.to_owned(), got: show(&self.inbox) })
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionReset => {
                self.ended = true;
                Err(Error::Closed { what: what.to_owned(), got: show(&self.inbox) })
            }
            Ok(Err(e)) => Err(Error::io(format!("read, waiting for {what}"))(e)),
        }
    }

    fn timed_out(&self, what: &str) -> Error {
        Error::Timeout { what: what.to_owned(), after: self.patience, got: show(&self.inbox) }
    }
}

/// The opening tag of a client's stream.
pub fn stream_header(host: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='{STREAM_NS}' \
         to='{}' version='1.0' xml:lang='en'>",
        escape(host)
    )
}

impl Negotiation for RawClient {
    async fn put(&mut self, xml: &str) -> Result<()> {
        self.send(xml).await
    }

    async fn element(&mut self, what: &str) -> Result<Element> {
        self.next_element(what).await
    }
}
