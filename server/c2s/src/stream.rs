//! A client stream before its session: reading elements one by one, writing replies.
//!
//! What must hold: what is not looked at yet stays in `buffer`, bounded by the limits before
//! authentication, and goes on to TLS or to the session byte for byte; an error is sent on an
//! open stream, so the header goes out before it (RFC 6120 4.9.1.2).

use std::time::Duration;

use base64::Engine;
use waystation_core::xml::{Element, Event, Framer, StreamOpen};
use waystation_core::{Jid, StreamCondition, StreamError};
use waystation_transport::{Connection, Flow, ReadOutcome, TransportError};

use crate::context::C2s;

/// Bytes read at once before authentication.
const READ: usize = 4096;
/// How long the last words may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Why a negotiation ends without a session.
#[derive(Debug)]
pub(crate) enum Failure {
    /// With a stream error.
    Error(StreamError),
    /// The client ended its stream.
    Closed,
    /// The connection broke.
    Lost(String),
}

impl From<StreamCondition> for Failure {
    fn from(condition: StreamCondition) -> Self {
        Self::Error(condition.into())
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Error(error)
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// A stream under negotiation.
pub(crate) struct Stream {
    pub(crate) conn: Connection,
    pub(crate) framer: Framer,
    /// Read and not yet looked at.
    pub(crate) buffer: Vec<u8>,
    /// The response header has been sent on the present stream.
    header_sent: bool,
    /// The domain the client asked for, once known to be served.
    pub(crate) host: Option<String>,
}

/// What the client sent.
pub(crate) enum Input {
    Open(StreamOpen),
    Element(Element),
}

impl Stream {
    pub(crate) fn new(conn: Connection, limits: waystation_core::xml::Limits) -> Self {
        Self { conn, framer: Framer::new(limits), buffer: Vec::new(), header_sent: false, host: None }
    }

    /// A stream that goes on on another arbiter, before its restart is answered.
    pub(crate) fn resumed(conn: Connection, framer: Framer, buffer: Vec<u8>, host: Option<String>) -> Self {
        Self { conn, framer, buffer, header_sent: false, host }
    }

    /// The next stream header or element. White space is skipped.
    pub(crate) async fn next(&mut self) -> Result<Input, Failure> {
        loop {
            let mut rest = self.buffer.as_slice();
            let mut result = None;
            while result.is_none() {
                result = match self.framer.next(&mut rest) {
                    Ok(Event::NeedMore) => break,
                    Ok(Event::Whitespace(_)) => None,
                    Ok(Event::Open(open)) => Some(Ok(Input::Open(open))),
                    Ok(Event::Stanza(frame)) => Some(match frame.element() {
                        Ok(element) => Ok(Input::Element(element)),
                        Err(error) => Err(StreamError::from(error).into()),
                    }),
                    Ok(Event::Close) => Some(Err(Failure::Closed)),
                    Err(error) => Some(Err(StreamError::from(error).into())),
                };
            }
            let used = self.buffer.len() - rest.len();
            self.buffer.drain(..used);
            if let Some(result) = result {
                return result;
            }
            self.fill().await?;
        }
    }

    /// Reads what has arrived, at least something.
    async fn fill(&mut self) -> Result<(), Failure> {
        let buffer = &mut self.buffer;
        let outcome = self
            .conn
            .read_some(READ, &mut |chunk| {
                buffer.extend_from_slice(chunk);
                Flow::Continue
            })
            .await?;
        match outcome {
            ReadOutcome::Data { .. } => Ok(()),
            ReadOutcome::Closed => Err(Failure::Closed),
            ReadOutcome::Truncated => Err(Failure::Lost("the connection was cut off".into())),
        }
    }

    /// Clients that end each element with a line feed send one after the element that restarts
    /// the stream; it belongs to the old stream, and an XML declaration may follow it.
    async fn skip_white_space(&mut self) -> Result<(), Failure> {
        loop {
            let white = self.buffer.len() - self.buffer.trim_ascii_start().len();
            self.buffer.drain(..white);
            if !self.buffer.is_empty() {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// The next element, on an open stream.
    pub(crate) async fn element(&mut self) -> Result<Element, Failure> {
        match self.next().await? {
            Input::Element(element) => Ok(element),
            Input::Open(_) => Err(StreamCondition::NotWellFormed.into()),
        }
    }

    /// Reads the client's stream header and answers it (RFC 6120 4.7). `authenticated` is the
    /// account of a stream that is restarted after authentication: its host stays (X14).
    pub(crate) async fn open(
        &mut self,
        shared: &C2s,
        authenticated: Option<&Jid>,
    ) -> Result<StreamOpen, Failure> {
        self.header_sent = false;
        if self.host.is_some() {
            self.skip_white_space().await?;
        }
        let open = match self.next().await? {
            Input::Open(open) => open,
            Input::Element(_) => return Err(StreamCondition::NotWellFormed.into()),
        };
        let checked = check(&open, shared, authenticated);
        if let Ok(host) = &checked {
            self.host = Some(host.clone());
        }
        self.send_header(shared, &open)?;
        checked?;
        Ok(open)
    }

    fn send_header(&mut self, shared: &C2s, open: &StreamOpen) -> Result<(), Failure> {
        let host = self.host.clone().or_else(|| shared.hosts.first().cloned()).unwrap_or_default();
        let mut out = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
            xmlns:stream='http://etherx.jabber.org/streams' id='"
            .to_vec();
        out.extend_from_slice(random_id()?.as_bytes());
        out.extend_from_slice(b"' from='");
        waystation_core::xml::escape_attr(&host, &mut out);
        // RFC 6120 4.7.2: only once the client's identity is known for sure may a `from` that
        // it claims be used; a `to` is given back when the client said who it is over TLS.
        if let Some(from) = open.from.as_deref().filter(|_| self.conn.is_encrypted())
            && let Ok(from) = Jid::parse(from)
        {
            out.extend_from_slice(b"' to='");
            out.extend_from_slice(from.escaped().as_bytes());
        }
        out.extend_from_slice(b"' version='1.0' xml:lang='en'>");
        self.conn.queue_slice(&out);
        self.header_sent = true;
        Ok(())
    }

    /// Writes and flushes.
    pub(crate) async fn send(&mut self, xml: &[u8]) -> Result<(), Failure> {
        self.conn.queue_slice(xml);
        Ok(self.conn.flush().await?)
    }

    /// The stream begins anew (after STARTTLS and after authentication).
    pub(crate) fn restart(&mut self) {
        self.framer.restart();
        self.header_sent = false;
    }

    /// Ends the stream, with last words where there is someone to hear them.
    pub(crate) async fn end(mut self, shared: &C2s, failure: Failure) {
        let error = match failure {
            Failure::Lost(reason) => {
                tracing::debug!(peer = %self.conn.peer(), reason, "connection lost during negotiation");
                return;
            }
            Failure::Closed => None,
            Failure::Error(error) => Some(error),
        };
        let mut out = Vec::new();
        if let Some(error) = &error {
            tracing::debug!(peer = %self.conn.peer(), condition = error.condition.as_str(), "negotiation ended");
            if !self.header_sent && self.send_header(shared, &StreamOpen::default()).is_err() {
                return;
            }
            error.write(&mut out);
        }
        if self.header_sent {
            out.extend_from_slice(b"</stream:stream>");
        }
        self.conn.queue_slice(&out);
        self.conn.close(CLOSE_DEADLINE).await;
    }
}

/// RFC 6120 4.7: which host is meant, or what is wrong with the header.
fn check(open: &StreamOpen, shared: &C2s, authenticated: Option<&Jid>) -> Result<String, StreamError> {
    if !open.stream_prefix_ok {
        return Err(StreamCondition::BadNamespacePrefix.into());
    }
    if open.content_namespace != "jabber:client" {
        return Err(StreamCondition::InvalidNamespace.into());
    }
    let Some(to) = open.to.as_deref().filter(|to| !to.is_empty()) else {
        return Err(
            StreamError::new(StreamCondition::ImproperAddressing).with_text("the stream header has no 'to'")
        );
    };
    let Ok(to) = Jid::parse(to) else {
        return Err(StreamError::new(StreamCondition::HostUnknown).with_text("the 'to' is no domain"));
    };
    if to.local().is_some() || !to.is_bare() {
        return Err(
            StreamError::new(StreamCondition::ImproperAddressing).with_text("the 'to' must be a domain")
        );
    }
    if !shared.serves(to.domain()) {
        return Err(StreamCondition::HostUnknown.into());
    }
    if !open.is_version_1() {
        return Err(StreamCondition::UnsupportedVersion.into());
    }
    if authenticated.is_some_and(|account| account.domain() != to.domain()) {
        return Err(StreamError::new(StreamCondition::NotAuthorized).with_text("the host may not change"));
    }
    Ok(to.domain().to_owned())
}

/// 144 random bits (RFC 6120 4.7.3: unpredictable).
pub(crate) fn random_id() -> Result<String, Failure> {
    let mut bytes = [0; 18];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the system gives no random bytes");
        Failure::from(StreamCondition::InternalServerError)
    })?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}
